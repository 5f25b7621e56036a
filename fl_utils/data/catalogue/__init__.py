"""The catalogue: one typed card a dataset, grouped by kind of picture."""

from collections.abc import Mapping
from types import MappingProxyType

from fl_utils.data.catalogue.medmnist import MEDMNIST
from fl_utils.data.catalogue.mri import BRAIN_MRI
from fl_utils.data.catalogue.oct import OCT2017
from fl_utils.data.catalogue.phantoms import PHANTOMS
from fl_utils.data.catalogue.schema import DatasetCard, Download
from fl_utils.data.catalogue.segmentation import SEGMENTATION
from fl_utils.data.catalogue.xray import XRAY
from fl_utils.data.types import DataError

__all__ = ["CARDS", "DatasetCard", "Download", "card"]

CARDS: Mapping[str, DatasetCard] = MappingProxyType(
    {entry.name: entry for entry in (BRAIN_MRI, *XRAY, OCT2017, *MEDMNIST, *SEGMENTATION, *PHANTOMS)}
)


def card(name: str) -> DatasetCard:
    """The card of a dataset.

    Raises:
      DataError: the name is not in the catalogue; the text lists those that are.
    """
    try:
        return CARDS[name]
    except KeyError:
        raise DataError(f"There is no dataset {name!r}. Known names: {', '.join(sorted(CARDS))}.") from None
