"""The runs of a sweep as tasks of a Ray cluster (https://docs.ray.io): one CPU each, on any number of machines.

The machines need this environment (`make setup`) and the data, but no common disk: a run is trained into a temporary
folder of its machine, and its record comes back as bytes.

    ray start --head --include-dashboard=false     # on the first machine; it prints its address
    ray start --address=<address>                  # on each other machine
    fl-utils sweep --ray-address <address>         # on one of them

Security: Ray runs code for whoever reaches its ports, without authentication. Keep the cluster in a private network.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fl_utils import paths, records
from fl_utils.config import ExperimentConfig
from fl_utils.data.types import DataError
from fl_utils.experiments.jobs import Job, perform
from fl_utils.experiments.processes import RUNS_PER_PROCESS

#: How often Ray does a run again whose process or machine was lost.
MAX_RETRIES = 3
CONNECT_TIMEOUT_S = 120
#: A cluster without any CPU for so long is given up.
NO_CPU_TIMEOUT_S = 300
_POLL_S = 2

# Ray tries for minutes and may then end Python; a process of its own finds out, within a limit.
_TRIAL = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')"


class RayError(RuntimeError):
    """The Ray cluster cannot be used; the text says what to do."""


def outcomes(jobs: Sequence[Job], address: str, shown) -> Iterator[tuple[ExperimentConfig, Path | Exception]]:
    """Runs the jobs on the cluster and installs their records here; yields each configuration when it is done.

    Raises:
      RayError: Ray is not installed, the cluster cannot be reached, or it has no CPU.
    """
    ray = _connect(address)
    try:
        shown.workers = max(1, int(_cpus(ray, address, wait=False)))
        task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES, max_calls=RUNS_PER_PROCESS)(_run_on_node)
        waiting = {task.remote(job, str(paths.data_root())): job for job in jobs}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=_POLL_S)
            if not ready:
                _cpus(ray, address, wait=True)
            for reference in ready:
                job = waiting.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    result = RayError(f"lost {MAX_RETRIES + 1} times, last: {str(error).splitlines()[0]}")
                yield job.config, _installed(job, result)
    finally:
        ray.shutdown()


def _connect(address: str):
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when Ray is loaded: nothing is reported to its makers
    try:
        import ray
    except ImportError as error:
        raise RayError(
            f"Ray is needed for --ray-address and cannot be imported ({error}). Run `make setup`, or use --workers."
        ) from None
    how = (
        "Expected host:port of a running cluster (or 'auto' on one of its machines). Start one with "
        "`ray start --head --include-dashboard=false`, which prints its address, and check that no firewall is "
        "between; all machines need this project's environment (the same Python and Ray)."
    )
    try:
        trial = subprocess.run(
            [sys.executable, "-c", _TRIAL, address], capture_output=True, text=True, timeout=CONNECT_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise RayError(f"No Ray cluster answered at {address!r} within {CONNECT_TIMEOUT_S} s. {how}") from None
    if trial.returncode:
        last = (trial.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RayError(f"The Ray cluster at {address!r} cannot be used: {last} {how}")
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    return ray


def _cpus(ray, address: str, *, wait: bool) -> float:
    """CPUs of the living machines; waits a while for the first one, as lost machines may come back."""
    deadline = time.monotonic() + (NO_CPU_TIMEOUT_S if wait else 0)
    while not (cpus := ray.cluster_resources().get("CPU", 0.0)) >= 1:
        if time.monotonic() >= deadline:
            raise RayError(
                f"The Ray cluster at {address!r} has {cpus:g} CPUs, and a run needs one. Add a machine with "
                "`ray start --address=...`, then run again: what is recorded is kept."
            )
        time.sleep(_POLL_S)
    return cpus


def _run_on_node(job: Job, data_root: str) -> tuple[str, dict[str, bytes]] | Exception:
    """Ray calls this on some machine. Returns the record's name and files, or the error."""
    # A machine may have its own place for the data; else it is that of the machine that asks.
    os.environ.setdefault("FL_UTILS_DATA", data_root)
    os.environ.pop("FL_UTILS_NO_TRAINING", None)
    with tempfile.TemporaryDirectory(prefix="fl_utils_run_", ignore_cleanup_errors=True) as folder:
        os.environ["FL_UTILS_RESULTS"] = folder
        outcome = perform(dataclasses.replace(job, wait=True))
        if isinstance(outcome, Exception):
            if isinstance(outcome, DataError):
                return DataError(
                    f"{outcome} This was on the machine {os.uname().nodename!r} of the Ray cluster: each machine "
                    f"needs the data in the same folder, {data_root} (FL_UTILS_DATA), or FL_UTILS_DATA set to its "
                    "own before `ray start`."
                )
            return outcome
        return outcome.name, {file.name: file.read_bytes() for file in outcome.iterdir()}


def _installed(job: Job, result) -> Path | Exception:
    if isinstance(result, Exception):
        return result
    name, files = result
    try:
        return records.install_record(paths.runs_root(job.config.profile) / job.experiment, name, files).path
    except records.RecordError as error:
        return error
