"""The data floor: catalogue, loading, audit, splits, partitions. Imports no TensorFlow."""

from fl_utils.data.audit import AuditReport, audit
from fl_utils.data.catalogue import CARDS, DatasetCard, card
from fl_utils.data.load import load_dataset
from fl_utils.data.partition import PartitionError, iid_partition, natural_partition
from fl_utils.data.splits import Split, make_split
from fl_utils.data.types import DataError, ImageDataset

__all__ = [
    "CARDS",
    "AuditReport",
    "DataError",
    "DatasetCard",
    "ImageDataset",
    "PartitionError",
    "Split",
    "audit",
    "card",
    "iid_partition",
    "load_dataset",
    "make_split",
    "natural_partition",
]
