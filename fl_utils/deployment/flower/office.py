"""The server's desk: posts messages to hospitals and collects their answers, over Flower's Grid."""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence

import grpc
import numpy as np
from flwr.common import Message
from flwr.common.constant import ErrorCode
from flwr.server.grid import grpc_grid

from fl_utils.deployment.flower import messages

POLL_S = 0.03
# Flower waits a second before it looks again for an answer whose last bytes are under way, and up to two hours for a
# hospital that was killed while it sent. Our process has no other use of this function.
grpc_grid.pull_objects = functools.partial(
    grpc_grid.pull_objects, initial_backoff=POLL_S, backoff_cap=0.5, max_time=15.0
)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a hospital answered.

    Attributes:
      hospital: its number.
      kind: what was asked (`messages`).
      round_num: of the question.
      facts: scalars.
      arrays: weights or changes.
      error: what the hospital, or Flower in its place, said instead; None for an answer.
      gone: Flower says that the hospital is no longer there.
      received_bytes: of the answer's content.
      message_id: SHA-256 of the content; the hospital's log has the same.
    """

    hospital: int
    kind: str
    round_num: int
    facts: dict
    arrays: list[np.ndarray]
    error: str | None = None
    gone: bool = False
    received_bytes: int = 0
    message_id: str = ""


@dataclasses.dataclass(frozen=True)
class _Posted:
    hospital: int
    kind: str
    round_num: int


class Office:
    """Posts and collects; remembers what has not been answered.

    Args:
      grid: Flower's.
      nodes: Flower's id of each hospital, by its key; what other nodes there may be are not spoken to.
    """

    def __init__(self, grid, nodes: Mapping[int, int]):
        self.grid, self.nodes = grid, dict(nodes)
        self._hospitals = {node: hospital for hospital, node in nodes.items()}
        self._waiting: dict[str, _Posted] = {}
        self._unreadable: list[Answer] = []

    def online(self) -> set[int]:
        """Hospitals whose process is connected, as far as Flower knows."""
        return {self._hospitals[node] for node in self.grid.get_node_ids() if node in self._hospitals}

    def hospital_of(self, node: int) -> int:
        return self._hospitals[node]

    def asked(self, hospital: int, kind: str | None = None) -> bool:
        """Whether a question (of a kind) to a hospital is open."""
        return any(p.hospital == hospital and kind in (None, p.kind) for p in self._waiting.values())

    def post(
        self, hospitals: Sequence[int], kind: str, facts: Mapping | None = None, arrays: Sequence[np.ndarray] = (),
        round_num: int = 0,
    ) -> None:
        """Asks hospitals something, all the same."""
        content = messages.content_of(facts or {}, arrays)
        message_type = {messages.TRAIN: "train", messages.JUDGE: "evaluate"}.get(kind, f"query.{kind}")
        outgoing = [
            Message(content, dst_node_id=self.nodes[hospital], message_type=message_type, group_id=str(round_num))
            for hospital in hospitals
        ]
        for hospital, message_id in zip(hospitals, self.grid.push_messages(outgoing), strict=True):
            if message_id:
                self._waiting[message_id] = _Posted(hospital, kind, round_num)

    def collect(self) -> list[Answer]:
        """The answers that have come since the last time; does not wait."""
        if not self._waiting:
            return []
        answers = []
        for message in self._pulled():
            posted = self._waiting.pop(message.metadata.reply_to_message_id, None)
            if posted is not None:
                answers.append(self._answer(posted, message))
        unreadable, self._unreadable = self._unreadable, []
        return answers + unreadable

    def _pulled(self) -> list[Message]:
        try:
            return list(self.grid.pull_messages(list(self._waiting)))
        except grpc.RpcError:
            raise
        except Exception:  # one of them is no message of Flower's; the others count, and the one who sent it is named
            read, lost = [], []
            for message_id, posted in self._waiting.items():
                try:
                    read += self.grid.pull_messages([message_id])
                except grpc.RpcError:
                    raise
                except Exception as error:
                    reason = f"its answer cannot be read: {type(error).__name__}: {error}"
                    lost.append((message_id, Answer(posted.hospital, posted.kind, posted.round_num, {}, [], error=reason)))
            self._unreadable += [answer for _, answer in lost]
            self._waiting = {key: posted for key, posted in self._waiting.items() if key not in dict(lost)}
            return read

    def _answer(self, posted: _Posted, message: Message) -> Answer:
        who = (posted.hospital, posted.kind, posted.round_num)
        if message.has_error():
            lost = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
            return Answer(*who, {}, [], error=message.error.reason or "no reason was given", gone=message.error.code in lost)
        try:
            facts, arrays = messages.facts_of(message), messages.arrays_of(message)
            size = sum(array.nbytes for array in arrays)
        except Exception as error:  # bytes that are no array, or another file's; no answer may end the server
            return Answer(*who, {}, [], error=f"its answer cannot be read: {type(error).__name__}: {error}")
        return Answer(*who, facts, arrays, received_bytes=size, message_id=message.metadata.message_id)


class StageGrid:
    """For `secure`: posts a stage's messages and waits for their answers, looking often.

    Args:
      grid: Flower's.
    """

    def __init__(self, grid):
        self._grid = grid

    def send_and_receive(self, outgoing, *, timeout: float | None = None) -> list[Message]:
        """As `flwr.server.Grid.send_and_receive`."""
        waiting, answers = set(self._grid.push_messages(list(outgoing))), []
        end = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while waiting and time.monotonic() < end:
            received = self._grid.pull_messages(list(waiting))
            answers += received
            waiting -= {message.metadata.reply_to_message_id for message in received}
            if waiting:
                time.sleep(POLL_S)
        return answers
