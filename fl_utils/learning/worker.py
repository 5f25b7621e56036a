"""One process of TFF's C++ worker: started with its output in a log file, reached by gRPC, ended for certain.

Knows nothing of TFF's contexts (see `engine`) and does not import TensorFlow.
"""

import functools
import importlib.util
import itertools
import mmap
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from fl_utils import paths
from fl_utils.children import new_socket_folder

# A worker that no longer answers (stopped, swapped out, dead-locked) is noticed while a call waits for it. gRPC
# servers refuse pings that come more often than every five minutes, hence this interval.
KEEPALIVE_INTERVAL_MS = 310_000
KEEPALIVE_TIMEOUT_MS = 120_000
LOG_TAIL_LINES = 15
LOGS_KEPT = 20
_LISTEN_EVERYWHERE, _LISTEN_ON_UNIX_SOCKET = b"[::]:", b"unix:"
_WORKER_NUMBER = itertools.count()

# Runs in the new process, before it becomes the worker. PR_SET_PDEATHSIG (1): the kernel sends SIGKILL (9) when the
# parent ends, however it ends. A parent that ended before that call is noticed by its id. A fresh interpreter does
# this, not a `preexec_fn`: Python code between fork and exec can dead-lock in a process with TensorFlow's threads.
_LAUNCHER = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(0)
os.execv(sys.argv[2], sys.argv[2:])
"""


class EngineError(RuntimeError):
    """TFF's worker did not start, kept dying, or was used after it was stopped. The message names its log."""


def worker_binary() -> Path:
    """The worker that the installed TFF brings along (found without importing TFF)."""
    spec = importlib.util.find_spec("tensorflow_federated")
    if spec is None or spec.origin is None:
        raise EngineError("tensorflow_federated is not installed in this environment; run `make setup`.")
    return Path(spec.origin).parent / "data" / "worker_binary"


def new_log() -> Path:
    """An empty log file for one engine; only the newest logs are kept."""
    try:
        folder = paths.cache_root() / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f"tff_worker_{os.getpid()}_", suffix=".log", dir=folder)
    except OSError:  # a read-only project is no reason not to train
        folder = Path(tempfile.gettempdir())
        descriptor, name = tempfile.mkstemp(prefix=f"tff_worker_{os.getpid()}_", suffix=".log")
    os.close(descriptor)
    logs = sorted(folder.glob("tff_worker_*.log"), key=lambda log: log.stat().st_mtime if log.exists() else 0.0)
    for old in logs[:-LOGS_KEPT]:
        old.unlink(missing_ok=True)
    return Path(name)


def log_tail(log: Path) -> str:
    """What an error message says about the log: its path and its last lines."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    except OSError as error:
        lines = [f"(cannot be read: {error})"]
    return f"\nLog of the worker: {log}\nIts last lines:\n  " + "\n  ".join(lines or ["(empty)"])


class Worker:
    """A running worker process and the gRPC channel to it."""

    def __init__(self, log: Path, max_concurrent_computation_calls: int) -> None:
        """Starts the process; `wait_until_ready` says when it can be used (`start` does both).

        Must be called on a thread that lives as long as the worker shall: the kernel's parent-death signal is sent
        when the *thread* that started the process ends.
        """
        binary = worker_binary().resolve()
        if not os.access(binary, os.X_OK):
            raise EngineError(f"Expected TFF's worker at {binary}, and may not execute it or it is not there; "
                              "install the environment again with `make setup`.")
        constant_at = _find_once(binary, _LISTEN_EVERYWHERE)  # before the start: the file is large, then time is short
        self.log = log
        self.channel: grpc.Channel | None = None
        self._folder = new_socket_folder("worker")
        self._port = _free_port()
        self._log_start = log.stat().st_size
        arguments = [str(binary), f"--port={self._port}",
                     f"--max_concurrent_computation_calls={max_concurrent_computation_calls}"]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,  # not ours: `python script.py | cat` would wait for a pipe that the worker holds open
                stderr=output,
                cwd=self._folder,  # holds the Unix socket
                start_new_session=True,  # Ctrl-C in a terminal reaches Python only, which decides
                # An inherited level would hide the worker's own account of what went wrong from its log.
                # Few arenas: with one a thread, glibc keeps what short-lived threads freed, and memory creeps up.
                env={"MALLOC_ARENA_MAX": "2", **os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"},
            )
        try:
            self._socket = self._folder / str(self._port) if _listen_on_unix_socket(self.process, binary, constant_at) else None
        except BaseException:
            self.kill()
            raise

    @classmethod
    def start(cls, log: Path, max_concurrent_computation_calls: int, timeout_s: float,
              cancelled: Callable[[], bool]) -> "Worker":
        """A worker that answers; see `wait_until_ready` for the errors and `__init__` for the thread."""
        for attempts_left in (2, 1, 0):
            worker = cls(log, max_concurrent_computation_calls)
            intended_private = worker.private
            try:
                worker.wait_until_ready(timeout_s, cancelled)
            except BaseException:
                worker.kill()
                raise
            if worker.private or not intended_private or not attempts_left:
                return worker
            worker.close()  # on a busy machine it had read its address before we could change it
        raise AssertionError("unreachable")

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def private(self) -> bool:
        """Whether only this user can reach the worker (Unix socket) instead of all of the network."""
        return self._socket is not None

    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_until_ready(self, timeout_s: float, cancelled: Callable[[], bool]) -> None:
        """Connects; raises EngineError when the worker dies, is cancelled, or does not answer within timeout_s."""
        deadline = time.monotonic() + timeout_s
        while True:
            if cancelled():
                raise EngineError("The engine was stopped while TFF's worker was starting.")
            if not self.alive():
                raise EngineError(f"TFF's worker (process {self.pid}) ended while starting, with exit code "
                                  f"{self.process.returncode}; expected it to keep running.{log_tail(self.log)}")
            if time.monotonic() > deadline:
                raise EngineError(f"TFF's worker (process {self.pid}) did not answer within {timeout_s:g} s; it was "
                                  "ended. On a busy machine pass a larger startup_timeout_s to "
                                  f"ensure_started().{log_tail(self.log)}")
            if self._socket is not None and self._listens_everywhere():
                self._socket = None  # it was faster than `_listen_on_unix_socket`
            if self._socket is None or self._socket.exists():
                if self.channel is None:
                    self.channel = grpc.insecure_channel(self._target(), _channel_options())
                try:
                    grpc.channel_ready_future(self.channel).result(timeout=0.2)
                    return
                except grpc.FutureTimeoutError:
                    continue
            time.sleep(0.02)

    def kill(self) -> None:
        """Ends the process, whatever state it is in, and removes its folder. May be called more than once."""
        if self.alive():
            self.process.kill()  # it holds nothing worth a polite end, and a stopped process hears nothing else
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:  # in uninterruptible sleep: it ends when the kernel lets go
            pass
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """`kill`, and gives up the channel."""
        self.kill()
        if self.channel is not None:
            self.channel.close()

    def _target(self) -> str:
        return f"localhost:{self._port}" if self._socket is None else f"unix:{self._socket}"

    def _listens_everywhere(self) -> bool:
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return b"listening on " + _LISTEN_EVERYWHERE in log.read()


def _channel_options() -> list[tuple[str, int]]:
    size = 2 * 1000 * 1000 * 1000  # as TFF's own channel: a model and its data in one message
    return [("grpc.max_message_length", size), ("grpc.max_receive_message_length", size),
            ("grpc.max_send_message_length", size), ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS), ("grpc.http2.max_pings_without_data", 0),
            # gRPC shares connections between channels of the same target; a restarted worker wants a fresh one.
            ("grpc.use_local_subchannel_pool", 1), ("fl_utils.worker", next(_WORKER_NUMBER))]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _listen_on_unix_socket(process: subprocess.Popen, binary: Path, constant_at: int | None) -> bool:
    """Makes the worker listen on a Unix socket in its own folder; returns whether that could be arranged.

    The worker has no option for its address: it joins the constant "[::]:" (all interfaces) and the port, and has no
    authentication, so whoever reaches the port can run graphs as this user, which read and write files. gRPC also
    understands "unix:", which happens to be as long: it is written over the constant in the memory of our own child
    before the worker, which first loads for some 50 ms, reads it; `start` tries again when that came too late. No file
    is changed. Where the kernel refuses (ptrace restrictions) or the constant is not found exactly once, nothing is changed and False is returned.
    """
    if constant_at is None:
        return False
    try:
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            # First still the launcher, then for some milliseconds the worker without its mappings.
            if os.readlink(f"/proc/{process.pid}/exe") == str(binary):
                address = _address_in(process.pid, binary, constant_at)
                if address is not None:
                    return _overwrite(process.pid, address)
            time.sleep(0.001)
    except (OSError, ValueError):
        pass
    return False


def _address_in(pid: int, binary: Path, offset: int) -> int | None:
    """Where a process has mapped this offset of the binary; None when it has not (yet)."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, _, file_offset, _, _, *name = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        if name == [str(binary)] and 0 <= offset - int(file_offset, 16) < end - start:
            return start + offset - int(file_offset, 16)
    return None


def _overwrite(pid: int, address: int) -> bool:
    """Writes the private address over the public one, if that is what stands there; returns whether it did."""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        if memory.read(len(_LISTEN_EVERYWHERE)) != _LISTEN_EVERYWHERE:
            return False
        memory.seek(address)
        return memory.write(_LISTEN_ON_UNIX_SOCKET) == len(_LISTEN_ON_UNIX_SOCKET)


@functools.cache
def _find_once(binary: Path, constant: bytes) -> int | None:
    """Where the file holds the constant; None when nowhere or more than once."""
    try:
        with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            offset = content.find(constant)
            return offset if offset >= 0 and content.find(constant, offset + 1) < 0 else None
    except (OSError, ValueError):  # ValueError: an empty file
        return None
