"""Processes that this one starts: they end with it or are noted to be ended later; folders and addresses for their talk."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from fl_utils.files import write_atomically

_PR_SET_PDEATHSIG = 1
_DAY_S = 86_400
_END_WITH_PARENT = (
    "import sys; from fl_utils.children import end_with_parent\n"
    "if not end_with_parent(int(sys.argv.pop(1))): sys.exit(1)\n"
)


def end_with_parent(parent: int) -> bool:
    """Called in the new process: from now on the kernel kills it when the one that started it ends, however it ends.

    Args:
      parent: id of the process that started this one.
    Returns:
      False where that one has ended already: then this one is to end by itself.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent


def owned_python(program: str) -> list[str]:
    """The command line of a Python that ends with this process, however this one ends.

    Args:
      program: its text, in which `sys` is imported. Arguments put behind the command line are its `sys.argv[1:]`.
    """
    return [sys.executable, "-c", _END_WITH_PARENT + program, str(os.getpid())]


def note_processes(path: Path, pids: Iterable[int]) -> None:
    """Writes down which processes run, instead of those noted before, so that a later process can end them.

    Raises:
      OSError: the note cannot be written.
    """
    births = {str(pid): birth for pid in pids if (birth := _birth(pid)) is not None}
    write_atomically(path, lambda file: file.write(json.dumps(births).encode()))


def noted_processes(path: Path) -> list[int]:
    """Which of the noted processes still run; none where there is no note that can be read."""
    try:
        births = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return [int(pid) for pid, birth in births.items() if _birth(int(pid)) == birth]


def end_noted(path: Path) -> int:
    """Ends the noted processes: asks, waits, then kills. Removes the note; returns how many there were."""
    ended = 0
    for attempt in (signal.SIGTERM, signal.SIGKILL):
        for pid in noted_processes(path):
            ended += attempt == signal.SIGTERM
            for number in (attempt, signal.SIGCONT):  # one that is stopped hears nothing else
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
        end = time.monotonic() + 6.0
        while noted_processes(path) and time.monotonic() < end:
            time.sleep(0.1)
    path.unlink(missing_ok=True)
    return ended


def _birth(pid: int) -> str | None:
    """When a process began, in ticks since the machine's start: tells it from a later one of the same number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def free_addresses(number: int) -> list[str]:
    """Different addresses on loopback, host:port, that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def new_socket_folder(kind: str) -> Path:
    """A folder that only this user can open; those that killed processes left behind are removed after a day.

    Args:
      kind: a word without "_", which tells apart what the folders are for.
    """
    root = Path(tempfile.gettempdir())
    if len(str(root)) > 60:
        root = Path("/tmp")  # the path of a socket holds at most 107 characters
    for old in root.glob(f"fl_utils_{kind}_*_*"):
        try:
            if time.time() - old.stat().st_mtime > _DAY_S and not Path(f"/proc/{old.name.split('_')[3]}").exists():
                shutil.rmtree(old, ignore_errors=True)
        except OSError:
            pass
    return Path(tempfile.mkdtemp(prefix=f"fl_utils_{kind}_{os.getpid()}_", dir=root))
