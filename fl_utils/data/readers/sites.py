"""Layout "xray_sites": chest X-rays of two institutions and three kinds of device, normal against pneumonia."""

from dataclasses import replace

from fl_utils import paths
from fl_utils.data.catalogue import DatasetCard
from fl_utils.data.catalogue import card as card_of
from fl_utils.data.readers.files import ImageFile, Listing
from fl_utils.data.readers.folders import list_class_folders
from fl_utils.data.readers.nih import list_nih

NORMAL, PNEUMONIA = 0, 1


def list_xray_sites(card: DatasetCard) -> Listing:
    """Lists the normal and the pneumonia images of `chest_xray` and `nih`, as three hospitals.

    Hospitals: chest_xray; nih patients first X-rayed standing; nih patients first X-rayed at the bedside, with a
    portable device. From nih, images without any finding, and those with pneumonia, whatever else they show.
    covid19 is no hospital: its normal and its viral images are pictures of chest_xray.

    Raises:
      DataError: one of the two is not at hand; see the readers.
    """
    files: list[ImageFile] = []
    excluded: list[tuple[str, str]] = []
    for name, reader in (("chest_xray", list_class_folders), ("nih", list_nih)):
        source = card_of(name)
        listing = reader(source)
        for file in listing.files:
            label = _label(source, file)
            if label is not None:
                place = file.hospital.partition(",")[0]  # "bedside, under 50" -> "bedside"
                files.append(
                    replace(
                        file, source=f"{source.folder}/{file.source}", label=label,
                        hospital=f"{name} {place}".strip(), patient=f"{name}/{file.patient}" if file.patient else "",
                    )
                )
        excluded += [(f"{source.folder}/{path}", reason) for path, reason in listing.excluded]
    return Listing(paths.data_root(), sorted(files, key=lambda file: file.source), tuple(excluded))


def _label(source: DatasetCard, file: ImageFile) -> int | None:
    """Normal, pneumonia, or None for what this task leaves out."""
    if source.layout != "nih":
        return {"normal": NORMAL, "pneumonia": PNEUMONIA}[source.class_names[file.label]]
    if not any(file.label):
        return NORMAL
    return PNEUMONIA if file.label[source.class_names.index("pneumonia")] else None
