"""From a card to the listing of its image files."""

from fl_utils.data.catalogue import DatasetCard
from fl_utils.data.readers.files import ImageFile, Listing
from fl_utils.data.readers.folders import list_class_folders
from fl_utils.data.readers.nih import list_nih
from fl_utils.data.readers.sites import list_xray_sites
from fl_utils.data.types import DataError

__all__ = ["ImageFile", "Listing", "list_files"]

_READERS = {"class_folders": list_class_folders, "nih": list_nih, "xray_sites": list_xray_sites}


def list_files(card: DatasetCard) -> Listing:
    """The image files of a dataset.

    Raises:
      DataError: the layout is not one of image files, or is not as expected.
    """
    if card.layout not in _READERS:
        raise DataError(
            f"{card.name} is laid out as {card.layout!r}, which is not a folder of images. Volumes are read by "
            "fl_utils.data.volumes."
        )
    return _READERS[card.layout](card)
