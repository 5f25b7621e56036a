"""What server and hospitals say to each other, as Flower's records: arrays of numbers and a few scalars, no objects."""

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.common import ArrayRecord, ConfigRecord, Message, RecordDict

#: What the server asks for; a hospital answers each once.
INTRODUCE, TRAIN, JUDGE, FINISH, REFUSE = "introduce", "train", "judge", "finish", "refuse"
_ARRAYS, _FACTS = "arrays", "facts"


def content_of(facts: Mapping, arrays: Sequence[np.ndarray] = ()) -> RecordDict:
    """A message's content.

    Args:
      facts: name -> int, float, str, bytes, bool, or a list of one of them.
      arrays: numbers that travel with it: weights, or their change.
    """
    records = {_FACTS: ConfigRecord(dict(facts))}
    if len(arrays):
        records[_ARRAYS] = ArrayRecord([np.asarray(array) for array in arrays])
    return RecordDict(records)


def facts_of(message: Message) -> dict:
    """The scalars of a message; empty where it has none."""
    record = message.content.config_records.get(_FACTS)
    return dict(record) if record else {}


def arrays_of(message: Message) -> list[np.ndarray]:
    """The arrays of a message; none where it has none.

    Raises:
      ValueError: they are not what they say.
    """
    record = message.content.array_records.get(_ARRAYS)
    return record.to_numpy_ndarrays() if record else []
