"""Readers: one a layout; each lists the image files of a dataset with labels, patients and hospitals."""

from fl_utils.data.readers.listing import ImageFile, Listing, list_files
from fl_utils.data.readers.medmnist import MedMnist, read_medmnist

__all__ = ["ImageFile", "Listing", "MedMnist", "list_files", "read_medmnist"]
