"""How a member's process starts those of jobs, and when a job ends.

NVFlare writes a job's command as one text and parts it at blanks, which a folder's path may hold; here the words stay
apart. Its processes of jobs look after their parent only once they are well under way, and then end in their own time;
here they end within half a second. And it ends everybody's job with the first hospital whose process ends badly; here
the workflow decides (`server_parts.PlannedTraining`).
"""

import os
import runpy
import shlex
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.app_common.job_launcher.process_launcher import ProcessJobLauncher
from nvflare.private.fed.app.deployer import server_deployer
from nvflare.private.fed.server.job_runner import JobRunner
from nvflare.utils.job_launcher_utils import get_client_job_args, get_server_job_args

from fl_utils.deployment.nvflare.spending import RUNNING
from fl_utils.deployment.nvflare.store import Store

_PROGRAM = f"import sys; from {__name__} import job; job(int(sys.argv.pop(1)), sys.argv.pop(1))"
_LOOK_S = 0.5


class ClientLauncher(ProcessJobLauncher):
    """Starts a hospital's process of a job; a run whose process was killed is said to be ended."""

    def get_command(self, job_meta: dict, fl_ctx: FLContext) -> str:
        return _command(fl_ctx, get_client_job_args())

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.JOB_COMPLETED:
            end_lost_runs(Path.cwd(), fl_ctx.get_prop(FLContextKey.CURRENT_JOB_ID))


class ServerLauncher(ProcessJobLauncher):
    """Starts the server's process of a job."""

    def get_command(self, job_meta: dict, fl_ctx: FLContext) -> str:
        return _command(fl_ctx, get_server_job_args())


class Jobs(JobRunner):
    """The server's keeper of jobs, to whom a hospital that was killed, or fails, is no reason to end the others' job, or to wait."""

    def __init__(self, workspace_root: str):
        super().__init__(workspace_root)
        self.client_outcome_wait_timeout = 0.0

    def is_client_outcome_pending(self, job_id: str, client_name: str) -> bool:
        return False


def end_lost_runs(hospital: Path, job: str | None = None) -> None:
    """Ends runs that are said to be under way though their process has ended, by force, and could not say so.

    Args:
      hospital: its folder.
      job: whose process has ended; None: all, because the site only begins to work.
    """
    store = Store(hospital)
    for run in store.runs():
        if run.state == RUNNING and job in (None, run.run_id):
            store.end_run(run.run_id, "lost")


def install() -> None:
    """NVFlare's server of this process keeps its jobs so."""
    server_deployer.JobRunner = Jobs


def job(parent: int, module: str) -> None:
    """The program of a job's process.

    Args:
      parent: id of the member's process; this one ends with it.
      module: NVFlare's program, whose arguments are in `sys.argv[1:]`.
    """
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with(parent: int) -> None:
    # The kernel's own signal (`children.end_with_parent`) comes already when the thread ends that started this process.
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _command(fl_ctx: FLContext, names: Sequence[str]) -> str:
    given = {name: fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS).get(name) for name in names}
    (_, module), (option, settings) = given.pop(JobProcessArgs.EXE_MODULE), given.pop(JobProcessArgs.OPTIONS)
    words = [str(word) for one in given.values() if one for word in one]
    return shlex.join([sys.executable, "-c", _PROGRAM, str(os.getpid()), module, *words, option, *settings.split()])
