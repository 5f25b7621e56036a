"""What leaves a hospital: every call is counted on its way out, every update is written down before it is sent."""

import hashlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np

from fl_utils.deployment.flower.board import append_line, read_lines
from fl_utils.deployment.flower.settings import FederationError

FILE = "sent.jsonl"


class Journal(grpc.UnaryUnaryClientInterceptor):
    """Counts the bytes of all that this process sends, and keeps the log of a hospital's updates.

    It stands in the connection itself, so that nothing passes by it: polls, heartbeats and acknowledgements count too.

    Args:
      folder: of the hospital; the log is its `sent.jsonl`, one JSON object a line.
      keep: folder for a copy of every byte that is sent, in order (a file a call), for who wants to look; or None.
    Attributes:
      sent_bytes: of all calls so far.
    """

    def __init__(self, folder: Path, keep: Path | None = None):
        self._log, self._keep = Path(folder) / FILE, keep
        self.sent_bytes, self._calls = 0, 0
        self._lock = threading.Lock()  # pieces of a message are sent by several threads, heartbeats by another
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)

    def intercept_unary_unary(self, continuation, client_call_details, request):
        """Called by gRPC with every request."""
        content = request.SerializeToString()
        with self._lock:
            self.sent_bytes += len(content)
            self._calls += 1
            number = self._calls
        if self._keep is not None:
            name = client_call_details.method.rsplit("/", 1)[-1]
            (self._keep / f"{number:06d}_{name}.bin").write_bytes(content)
        return continuation(client_call_details, request)

    def write(self, **entry) -> None:
        """Adds a line to the log, on disk before it returns.

        Raises:
          FederationError: the log cannot be written; then what it is about must not be sent.
        """
        try:
            append_line(self._log, {"time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())} | entry)
        except OSError as error:
            raise FederationError(
                f"The log of what is sent, {self._log.name}, cannot be written ({error.strerror}); so nothing is sent. Free some "
                "space and start the client again."
            ) from error


def read_journal(folder: Path) -> list[dict]:
    """The lines of a hospital's log; none where nothing was sent."""
    return read_lines(Path(folder) / FILE)


def fingerprint(arrays: Sequence[np.ndarray]) -> str:
    """Hex SHA-256 of arrays: their types, shapes and bytes in order. Sender and receiver get the same."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
