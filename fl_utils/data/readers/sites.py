"""Layout "xray_sites": three chest X-ray datasets as three hospitals, normal against pneumonia."""

from dataclasses import replace

from fl_utils import paths
from fl_utils.data.catalogue import DatasetCard
from fl_utils.data.catalogue import card as card_of
from fl_utils.data.readers.files import ImageFile, Listing
from fl_utils.data.readers.folders import list_class_folders
from fl_utils.data.readers.nih import list_nih

NORMAL, PNEUMONIA = 0, 1


def list_xray_sites(card: DatasetCard) -> Listing:
    """Lists the normal and the pneumonia images of `chest_xray`, `covid19` and `nih`.

    From covid19, normal and viral pneumonia (COVID-19 itself is left out). From nih, images without any finding, and
    those with pneumonia, whatever else they show.

    Raises:
      DataError: one of the three is not at hand; see the readers.
    """
    files: list[ImageFile] = []
    excluded: list[tuple[str, str]] = []
    readers = {"chest_xray": list_class_folders, "covid19": list_class_folders, "nih": list_nih}
    for name, reader in readers.items():
        source = card_of(name)
        listing = reader(source)
        for file in listing.files:
            label = _label(source, file)
            if label is not None:
                files.append(
                    replace(
                        file, source=f"{source.folder}/{file.source}", label=label, hospital=name,
                        patient=f"{name}/{file.patient}" if file.patient else "",
                    )
                )
        excluded += [(f"{source.folder}/{path}", reason) for path, reason in listing.excluded]
    return Listing(paths.data_root(), sorted(files, key=lambda file: file.source), tuple(excluded))


def _label(source: DatasetCard, file: ImageFile) -> int | None:
    """Normal, pneumonia, or None for what this task leaves out."""
    if source.layout == "nih":
        if not any(file.label):
            return NORMAL
        return PNEUMONIA if file.label[source.class_names.index("pneumonia")] else None
    return {"normal": NORMAL, "pneumonia": PNEUMONIA, "viral_pneumonia": PNEUMONIA}.get(source.class_names[file.label])
