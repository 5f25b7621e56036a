"""A whole federation on one machine: a process for the server and one for each hospital, all owned by who started them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from fl_utils.children import end_noted, note_processes, noted_processes, owned_python
from fl_utils.deployment.flower.board import read_status
from fl_utils.deployment.flower.settings import FederationError, read_federation

PIDS = "processes.json"


class Local:
    """Starts, watches and ends the processes of a federation; for notebooks and a first try.

        with Local(folder) as federation:
            federation.wait(show=...)

    The processes end with the block, and with the thread that started them, however it ends (`owned` False leaves them).
    What they say is in server/console.log and hospital_N/console.log.

    Args:
      folder: of the federation.
      hospitals: which to start; default all.
      owned: they end with this process.
    Raises:
      FederationError: one is at work there already.
    """

    def __init__(self, folder: Path, *, hospitals: Sequence[int] | None = None, owned: bool = True):
        self.folder, self._owned = Path(folder).resolve(), owned
        number = read_federation(self.folder).config.num_clients
        self._wanted = list(range(number)) if hospitals is None else list(hospitals)
        if noted_processes(self.folder / PIDS):
            raise FederationError(f"A federation is at work in {folder}. End it first: `fl-utils federation down`.")
        self.server: subprocess.Popen | None = None
        self.hospitals: dict[int, subprocess.Popen] = {}

    def __enter__(self) -> Self:
        try:
            self.start_server()
            for hospital in self._wanted:
                self.start_hospital(hospital)
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.down()

    def start_server(self) -> None:
        """Starts the server, also again after it ended: it goes on from its checkpoint."""
        self.server = self._start(["server", "--folder", str(self.folder)], self.folder / "server")
        self._note()

    def start_hospital(self, hospital: int, *options: str) -> None:
        """Starts a hospital, also again after it ended; `options` are further ones of `fl-utils client`."""
        arguments = ["client", str(hospital), "--folder", str(self.folder), *options]
        self.hospitals[hospital] = self._start(arguments, self.folder / f"hospital_{hospital}")
        self._note()

    def kill_hospital(self, hospital: int) -> None:
        """Ends a hospital's process without warning, as a power cut would."""
        self.hospitals[hospital].kill()
        self.hospitals[hospital].wait()

    def status(self) -> dict | None:
        """See `board.read_status`."""
        return read_status(self.folder / "server")

    def wait(
        self, *, show: Callable[[dict], None] | None = None, until: Callable[[dict], bool] | None = None, timeout_s: float = 3600.0
    ) -> dict:
        """Waits for the server to end, or for a condition on the status; hospitals are given a moment to end as well.

        Args:
          show: is handed the status whenever it has changed.
          until: condition to wait for; default the server's end.
          timeout_s: then it is an error.
        Raises:
          FederationError: the server failed, or it took too long; the text has its last word.
        """
        end, before = time.monotonic() + timeout_s, None
        while True:
            over, status = self.server.poll() is not None, self.status()
            if status is not None and status != before:
                before = status
                if show is not None:
                    show(status)
                if until is not None and until(status):
                    return status
            if over:
                break
            if time.monotonic() > end:
                raise FederationError(f"Nothing came of it in {timeout_s:g} s: {(status or {}).get('last_word', '')}")
            time.sleep(0.1)
        if self.server.returncode != 0:
            raise FederationError(f"The server ended with {self.server.returncode}: {self.last_words(self.folder / 'server')}")
        for process in self.hospitals.values():
            try:
                process.wait(15.0)
            except subprocess.TimeoutExpired:
                pass  # one that hangs; `down` ends it
        return self.status()

    def exit_codes(self) -> dict[str, int | None]:
        """Exit code of the server and of each hospital; None while it runs, negative where a signal ended it."""
        return {"server": self.server.poll()} | {f"hospital {n}": one.poll() for n, one in self.hospitals.items()}

    def last_words(self, folder: Path) -> str:
        """The last line that a process said."""
        lines = (folder / "console.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def down(self) -> None:
        """Ends all that still runs: asks, waits, then kills."""
        running = [one for one in [self.server, *self.hospitals.values()] if one is not None and one.poll() is None]
        for process in running:
            process.terminate()
            process.send_signal(signal.SIGCONT)  # one that is stopped hears nothing else
        end = time.monotonic() + 6.0
        for process in running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        (self.folder / PIDS).unlink(missing_ok=True)

    def _start(self, arguments: list[str], folder: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "fl_utils.cli", *arguments]
        if self._owned:
            command = [*owned_python("from fl_utils.cli import main; main()"), *arguments]
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        with (folder / "console.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )

    def _note(self) -> None:
        everyone = [one for one in [self.server, *self.hospitals.values()] if one is not None]
        note_processes(self.folder / PIDS, [one.pid for one in everyone if one.poll() is None])


def put_down(folder: Path) -> int:
    """Ends the processes of a federation that another process started; returns how many there were."""
    return end_noted(Path(folder) / PIDS)
