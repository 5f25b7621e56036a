"""What the server tells of itself while it runs: a status file for `federation status`, and a log of events."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from fl_utils.deployment.flower.settings import FederationError
from fl_utils.files import write_atomically

STATUS, EVENTS = "status.json", "events.jsonl"


class Board:
    """Keeps the status and the log in the server's folder; a lock makes sure that there is one server.

    Args:
      folder: the server's.
      num_hospitals: of the federation.
      say: is handed each event's text.
    Raises:
      FederationError: another server works in this folder.
    """

    def __init__(self, folder: Path, num_hospitals: int, say: Callable[[str], None] = print):
        self._folder, self._say, self._unwritable = Path(folder), say, False
        self._lock = (self._folder / "lock").open("w")
        if not _locked(self._lock, fcntl.LOCK_EX, patience_s=5.0):
            raise FederationError(f"Another server is at work in {folder}. End it first: `fl-utils federation down`.")
        self.status = {
            "state": "starting", "pid": os.getpid(), "round": 0, "total_rounds": 0, "last_word": "", "validation": None,
            "hospitals": {str(n): {"state": "not joined", "round": 0, "bytes": 0, "last_word": ""} for n in range(num_hospitals)},
        }

    def event(self, text: str, hospital: int | None = None, **facts) -> None:
        """Says, logs and shows what happened; `hospital` if it is about one."""
        self._say(text if hospital is None else f"Hospital {hospital}: {text}")
        place = self.status if hospital is None else self.status["hospitals"][str(hospital)]
        place["last_word"] = text
        about = {} if hospital is None else {"hospital": hospital}
        line = {"time_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())} | about | {"text": text} | facts
        with self._tolerating_a_full_disk():
            append_line(self._folder / EVENTS, line)
        self.show()

    def hospital(self, number: int, **fields) -> None:
        """Changes fields of a hospital's line."""
        self.status["hospitals"][str(number)] |= fields

    def show(self, **fields) -> None:
        """Changes fields of the status and writes it."""
        self.status |= fields
        with self._tolerating_a_full_disk():
            write_atomically(self._folder / STATUS, lambda file: file.write(json.dumps(self.status).encode()))

    @contextlib.contextmanager
    def _tolerating_a_full_disk(self):
        """The training's own checkpoint decides whether it can go on, not its log."""
        try:
            yield
        except OSError as error:
            if not self._unwritable:
                self._say(f"Status and log cannot be written ({error.strerror}).")
            self._unwritable = True

    def close(self) -> None:
        self._lock.close()


def read_status(folder: Path) -> dict | None:
    """The status of the server of this folder, or None where there never was one. A server that died says "gone"."""
    try:
        status = json.loads((Path(folder) / STATUS).read_text())
    except (OSError, ValueError):
        return None
    if status["state"] not in ("finished", "failed", "stopped"):
        with (Path(folder) / "lock").open("a") as lock:
            if _locked(lock, fcntl.LOCK_SH):
                status["state"] = "gone"
    return status


def append_line(path: Path, entry: dict) -> None:
    """Adds a JSON object to a file, a line of its own; the whole line or nothing of it.

    Raises:
      OSError: the disk is full, or the file cannot be written.
    """
    rest = (json.dumps(entry) + "\n").encode()
    with path.open("ab", buffering=0) as file:  # a buffer would write its rest when the file is closed
        before = file.tell()
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


def read_lines(path: Path) -> list[dict]:
    """The objects that `append_line` added to a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _locked(file, kind: int, patience_s: float = 0.0) -> bool:
    """Whether the lock was had; a server that was just killed, or who reads the status, holds it a moment longer."""
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.1)


def read_events(folder: Path) -> list[dict]:
    """The lines of the server's log."""
    return read_lines(Path(folder) / EVENTS)
