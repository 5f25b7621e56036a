"""The consortium's processes on one machine: NVFlare's server and sites, each owned by who started it."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import psutil

from fl_utils.children import end_noted, note_processes, noted_processes, owned_python
from fl_utils.deployment.nvflare.settings import ConsortiumError

PIDS, CONSOLE = "processes.json", "console.log"
_START_S = 90.0
_PROGRAM = "from fl_utils.deployment.nvflare.processes import serve_member; serve_member(sys.argv[1])"


def serve_member(folder: str | Path) -> None:
    """The program of a member's process: NVFlare's own, until it is ended.

    Args:
      folder: of the server or of a hospital.
    """
    folder = Path(folder).resolve()
    sys.modules.setdefault("ray", None)  # what is installed beside is not looked at
    is_server = (folder / "startup" / "fed_server.json").is_file()
    if is_server:
        from nvflare.private.fed.app.server import server_train as program

        from fl_utils.deployment.nvflare import gate, launch

        gate.install(folder)
        launch.install()
        settings = {"fed_server": "fed_server.json"}
        words = ["secure_train=true", "org=consortium", "config_folder=config"]
    else:
        from nvflare.private.fed.app.client import client_train as program

        from fl_utils.deployment.nvflare import launch

        launch.end_lost_runs(folder)
        settings = {"fed_client": "fed_client.json", "local_rank": 0}
        name = json.loads((folder / "startup" / "fed_client.json").read_text())["client"]["fqsn"]
        words = ["secure_train=true", f"uid={name}", f"org={name}", "config_folder=config"]
    from nvflare.fuel.f3.mpm import MainProcessMonitor

    arguments = argparse.Namespace(workspace=str(folder), set=words, **settings)
    sys.exit(MainProcessMonitor.run(main_func=program.main, run_dir=str(folder), args=arguments))


class Running:
    """Starts, watches and ends the processes of a consortium whose members' folders lie on this machine.

        with Running(folder) as consortium:
            ...

    Args:
      folder: of the consortium.
      hospitals: which to start; default all.
      owned: they end with this process; False leaves them.
    Raises:
      ConsortiumError: one is at work there already, or there is none.
    """

    def __init__(self, folder: Path, *, hospitals: Sequence[str] | None = None, owned: bool = True):
        from fl_utils.deployment.nvflare.consortium import authority_of, hospitals_in

        self.folder, self._owned = Path(folder).resolve(), owned
        authority_of(self.folder)
        if noted_processes(self.folder / PIDS):
            raise ConsortiumError(f"Processes of {folder} are at work. End them first: `fl-utils consortium down --folder {folder}`.")
        self._wanted = hospitals_in(self.folder) if hospitals is None else tuple(hospitals)
        self.processes: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Self:
        try:
            self.start("server")
            wait_for_port(self.folder, self.processes["server"])
            for name in self._wanted:
                self.start(name)
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_) -> None:
        if self._owned:
            self.down()

    def start(self, name: str) -> None:
        """Starts a member's process, the server or a hospital."""
        command = owned_python(_PROGRAM) if self._owned else [sys.executable, "-c", "import sys; " + _PROGRAM]
        place = self.folder / name
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        with (place / CONSOLE).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*command, str(place)], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment,
                cwd=place,
            )
        note_processes(self.folder / PIDS, [one.pid for one in self.processes.values() if one.poll() is None])

    def kill(self, name: str) -> None:
        """Kills a member's process, and those of its jobs, as a power cut would."""
        for one in [*_family(self.processes[name].pid), psutil.Process(self.processes[name].pid)]:
            one.kill()
        self.processes[name].wait()

    def last_words(self, name: str) -> str:
        """The last lines that a member's process said."""
        lines = (self.folder / name / CONSOLE).read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]) if lines else "it said nothing"

    def down(self) -> None:
        """Ends all that still runs, with the processes of jobs."""
        down(self.folder)
        for process in self.processes.values():
            process.wait()


def down(folder: Path) -> int:
    """Ends the processes of a consortium, whoever started them, and of its jobs; returns how many members there were."""
    folder = Path(folder)
    pids = noted_processes(folder / PIDS)
    jobs = [one for pid in pids for one in _family(pid)]
    ended = end_noted(folder / PIDS)
    _, left = psutil.wait_procs(jobs, timeout=3.0)  # a job's process sees that its parent is gone
    for one in left:
        one.kill()
    psutil.wait_procs(left, timeout=3.0)
    return ended


def member_states(folder: Path) -> dict[str, str]:
    """Of each member whose folder lies here: "running" or "not running", by the processes that were started from it."""
    at_work = set()
    for pid in noted_processes(Path(folder) / PIDS):
        with contextlib.suppress(psutil.Error):
            at_work.add(Path(psutil.Process(pid).cmdline()[-1]).name)
    members = [path.parent.name for path in sorted(Path(folder).glob("*/startup"))]
    return {name: "running" if name in at_work else "not running" for name in members}


def wait_for_port(folder: Path, process: subprocess.Popen) -> None:
    """Waits until the server listens.

    Raises:
      ConsortiumError: it ended, or takes too long; with its last words.
    """
    import socket

    target = json.loads((Path(folder) / "server" / "startup" / "fed_server.json").read_text())["servers"][0]["service"]["target"]
    host, _, port = target.rpartition(":")
    end = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection((host.replace("0.0.0.0", "127.0.0.1"), int(port)), 1.0).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                words = (Path(folder) / "server" / CONSOLE).read_text(errors="replace").strip().splitlines()[-3:]
                raise ConsortiumError("The server did not start: " + " / ".join(words)) from None
            time.sleep(0.1)


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
