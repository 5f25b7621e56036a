"""Processes that this one starts: they end with it, and talk through a folder that only this user can open."""

import ctypes
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_DAY_S = 86_400


def end_with_parent(parent: int) -> bool:
    """Called in the new process: from now on the kernel kills it when the one that started it ends, however it ends.

    Args:
      parent: id of the process that started this one.
    Returns:
      False where that one has ended already: then this one is to end by itself.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent


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
