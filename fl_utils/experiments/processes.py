"""The runs of a sweep in processes of this machine: each has its own cores, and ends with the process that started it.

Not `concurrent.futures.ProcessPoolExecutor`: one process that dies (out of memory) breaks the whole pool there, with
all its runs, and does not tell which run it was; and its `max_tasks_per_child` can dead-lock (python/cpython#115634).
"""

import dataclasses
import multiprocessing
import os
import signal
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from pathlib import Path

from fl_utils.children import end_with_parent
from fl_utils.config import ExperimentConfig
from fl_utils.experiments.jobs import Job, Outcome, name_of, perform

#: A process ends after so many runs, for TensorFlow keeps some memory of each.
RUNS_PER_PROCESS = 25
#: A run whose process dies is tried once more.
ATTEMPTS = 2


class WorkerDied(RuntimeError):
    """The process of a run died, twice; the text has its exit code and last words."""


def outcomes(jobs: Sequence[Job], workers: int, shown) -> Iterator[tuple[ExperimentConfig, Path | Exception]]:
    """Runs the jobs in `workers` processes; yields each configuration when it is done.

    Must be used on a thread that lives until it is exhausted or closed: the kernel's parent-death signal is sent
    when the *thread* that started a process ends. Closed early (an error, Ctrl-C), it ends its processes at once.
    """
    queue, deaths = deque(jobs), Counter()
    idle = [_Worker(cores) for cores in shares(sorted(os.sched_getaffinity(0)), min(workers, len(queue)))]
    busy: list[_Worker] = []
    try:
        while queue or busy:
            while queue and idle:
                worker = idle.pop().ready()
                busy.append(worker)
                worker.hand(queue.popleft())
                shown.started(worker.job.config)
            for pipe in connection.wait([worker.pipe for worker in busy]):
                worker = next(worker for worker in busy if worker.pipe is pipe)
                busy.remove(worker)
                idle.append(worker)
                job, outcome = worker.job, worker.outcome()
                if isinstance(outcome, WorkerDied):
                    deaths[job.config] += 1
                    shown.note(f"{name_of(job.config)}: {outcome}")
                    if deaths[job.config] < ATTEMPTS:
                        outcome = None
                if outcome is None:  # last in the queue: until then another sweep may have finished it
                    shown.put_off(job.config)
                    queue.append(dataclasses.replace(job, wait=True))
                else:
                    yield job.config, outcome
        for worker in idle:
            worker.end()
    finally:
        for worker in idle + busy:
            worker.kill()


def shares(cores: Sequence[int], workers: int) -> list[list[int]]:
    """Shares cores out evenly; with more workers than cores, several workers have the same one."""
    if workers >= len(cores):
        return [[cores[number % len(cores)]] for number in range(workers)]
    return [
        list(cores[number * len(cores) // workers : (number + 1) * len(cores) // workers]) for number in range(workers)
    ]


class _Worker:
    """A process, the pipe to it, and the job that it is at."""

    def __init__(self, cores: list[int]):
        self.cores = cores
        self.job: Job | None = None
        self._start()

    def _start(self) -> None:
        # Spawned, not forked: TensorFlow's threads and locks do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.runs = 0
        self.pipe, theirs = context.Pipe()
        handle, self.log = tempfile.mkstemp(prefix="fl_utils_sweep_", suffix=".log")
        os.close(handle)
        self.process = context.Process(target=_work, args=(theirs, self.cores, os.getpid(), self.log), daemon=True)
        self.process.start()
        theirs.close()  # only the process itself holds it now, so its death closes the pipe

    def ready(self) -> "_Worker":
        """Itself, with a new process where the old one has died or done its share."""
        if self.runs >= RUNS_PER_PROCESS:
            self.end()
        if not self.process.is_alive():
            self.kill()
            self._start()
        return self

    def hand(self, job: Job) -> None:
        self.job = job
        self.runs += 1
        try:
            self.pipe.send(job)
        except OSError:  # it has just died, which `outcome` finds
            pass

    def outcome(self) -> Outcome:
        """What became of the job, once the pipe has something to read; WorkerDied when the process did."""
        self.job = None
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            pass
        self.process.join(timeout=30)
        code, killed = self.process.exitcode, " It was killed, most often because memory ran out; fewer workers help."
        words = Path(self.log).read_text(errors="replace").strip().splitlines()[-10:]
        return WorkerDied(
            f"its process died with exit code {code}.{killed if code == -signal.SIGKILL else ''}"
            + "".join(f"\n  {line}" for line in words)
        )

    def end(self) -> None:
        """Lets the idle process end by itself, and its TFF worker with it."""
        self.pipe.close()
        self.process.join(timeout=60)

    def kill(self) -> None:
        """Ends the process, whatever it does; its TFF worker dies with it. May be called more than once."""
        self.process.kill()
        self.process.join(timeout=30)
        self.pipe.close()
        Path(self.log).unlink(missing_ok=True)


def _work(pipe, cores: Sequence[int], parent: int, log: str) -> None:
    """The body of a process: does what it is handed until the pipe is closed."""
    if not end_with_parent(parent):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which decides
    os.sched_setaffinity(0, cores)  # before TensorFlow is loaded, which makes a thread a core
    with open(log, "w") as words:  # not into the parent's table
        os.dup2(words.fileno(), sys.stdout.fileno())
        os.dup2(words.fileno(), sys.stderr.fileno())
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(perform(job))
