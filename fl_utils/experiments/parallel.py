"""Sweeps over many runs: in this process, in processes that share out the cores, or on the machines of a Ray cluster.

The records are the same whichever way is taken: TensorFlow computes an operation with one thread (set in
`fl_utils/__init__.py`), so the number of cores does not change the order in which it adds.
"""

import contextlib
import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from fl_utils import paths, records
from fl_utils.config import ExperimentConfig
from fl_utils.experiments import processes, ray_cluster
from fl_utils.experiments.jobs import Job, fingerprint_of, name_of, perform
from fl_utils.experiments.progress import SweepProgress
from fl_utils.records import RunRecord

Facts = Callable[[ExperimentConfig], dict] | Mapping[ExperimentConfig, dict]


class SweepError(RuntimeError):
    """Some runs of a sweep failed; all others are finished and recorded.

    Attributes:
      errors: configuration -> what its run raised.
    """

    def __init__(self, errors: dict[ExperimentConfig, Exception], total: int):
        self.errors = errors
        lines = [f"{name_of(config)}: {_sentence(error)}" for config, error in errors.items()]
        super().__init__(
            f"{len(errors)} of {total} runs failed, the others are recorded. The same command tries the failed "
            "ones again:\n  " + "\n  ".join(lines)
        )


def sweep(
    configs: Sequence[ExperimentConfig],
    *,
    experiment: str,
    workers: int = 1,
    ray_address: str | None = None,
    progress: bool = True,
    facts: Facts | None = None,
    errors: Literal["raise", "return"] = "raise",
    keep_diverged: bool = False,
) -> list[RunRecord]:
    """Trains the runs that have no record yet; a sweep that was killed goes on where it was.

    Two sweeps may share runs: each run is trained by one of them and loaded by the other.

    Args:
      configs: what to run; a configuration that is given twice is run once.
      experiment: folder of the records below `results/runs/` (or `results/<profile>/runs/`).
      workers: processes; 1 is this process. Each is pinned to its share of this process's cores. A script that
        asks for several needs `if __name__ == "__main__":` around its call, as always with spawned processes.
      ray_address: host:port of a Ray cluster, which then does all runs; `workers` is not used.
      progress: show a table on a terminal, else one line a finished run, on standard error.
      facts: further facts for a run's environment.json: by configuration, or a function of it.
      errors: "raise" a SweepError when all runs are through, or "return" each error in its record's place.
      keep_diverged: see `run`.
    Returns:
      The records in the order of `configs`.
    Raises:
      ValueError: workers < 1, or errors is not known.
      SweepError: runs failed; it lists them. The others are finished first.
      RayError: the cluster cannot be used.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; expected 1 or more.")
    if errors not in ("raise", "return"):
        raise ValueError(f"errors is {errors!r}; expected 'raise' or 'return'.")
    done: dict[ExperimentConfig, RunRecord | Exception] = {
        config: record for config in dict.fromkeys(configs) if (record := _find(config, experiment)) is not None
    }
    missing = [config for config in dict.fromkeys(configs) if config not in done]
    jobs = [Job(config, experiment, _facts_of(config, facts), keep_diverged) for config in missing]
    with SweepProgress(configs, done, workers=workers, experiment=experiment, show=progress and bool(jobs)) as shown:
        with contextlib.closing(_outcomes(jobs, workers, ray_address, shown)) as outcomes:
            for config, outcome in outcomes:
                done[config] = records.load_record(outcome) if isinstance(outcome, Path) else outcome
                shown.finished(config, done[config])
    failed = {config: result for config, result in done.items() if isinstance(result, Exception)}
    if failed and errors == "raise":
        raise SweepError(failed, len(done))
    return [done[config] for config in configs]


def _outcomes(jobs: list[Job], workers: int, ray_address: str | None, shown) -> Iterator[tuple]:
    # Where nothing may be trained, the sentence that says so comes from `run`, without a process or a cluster.
    if not jobs or os.environ.get("FL_UTILS_NO_TRAINING"):
        return _in_this_process(jobs, shown)
    if ray_address is not None:
        return ray_cluster.outcomes(jobs, ray_address, shown)
    if workers == 1:
        return _in_this_process(jobs, shown)
    return processes.outcomes(jobs, workers, shown)


def _in_this_process(jobs: list[Job], shown) -> Iterator[tuple[ExperimentConfig, Path | Exception]]:
    queue = deque(jobs)
    while queue:
        job = queue.popleft()
        shown.started(job.config)
        outcome = perform(job)
        if outcome is None:
            shown.put_off(job.config)
            queue.append(dataclasses.replace(job, wait=True))
        else:
            yield job.config, outcome


def _find(config: ExperimentConfig, experiment: str) -> RunRecord | None:
    return records.find_record(paths.runs_root(config.profile) / experiment, config, fingerprint_of(config))


def _facts_of(config: ExperimentConfig, facts: Facts | None) -> dict | None:
    if facts is None:
        return None
    return facts(config) if callable(facts) else facts.get(config)


def _sentence(error: Exception) -> str:
    return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
