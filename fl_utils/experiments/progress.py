"""What a sweep shows while it runs: a table on a terminal, otherwise one line a finished run."""

import datetime
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fl_utils.config import ExperimentConfig
from fl_utils.records import RunRecord

Result = RunRecord | Exception


class SweepProgress:
    """Counts the runs of a sweep and draws the counts. A context manager: the table lives inside it.

    Args:
      configs: all runs that are wanted.
      done: those that are recorded already.
      workers: runs at a time, for the time that is left.
      experiment: named in the table's title.
      show: whether anything is written.
      console: where to; default standard error.
    """

    def __init__(
        self, configs: Sequence[ExperimentConfig], done: Mapping[ExperimentConfig, Result], *,
        workers: int, experiment: str, show: bool = True, console: Console | None = None,
    ):
        self._console = console or Console(stderr=True)
        self._experiment, self._show, self.workers = experiment, show, workers
        self._wanted = list(dict.fromkeys(configs))
        self._done = dict(done)
        self._running: dict[ExperimentConfig, float] = {}
        self._start = time.monotonic()
        self._live = None

    def __enter__(self) -> "SweepProgress":
        if self._show and self._console.is_terminal:
            self._live = Live(get_renderable=self.table, console=self._console, refresh_per_second=2)
            self._live.__enter__()
        return self

    def __exit__(self, *raised) -> None:
        if self._live is not None:
            self._live.__exit__(*raised)

    def started(self, config: ExperimentConfig) -> None:
        self._running[config] = time.monotonic()

    def put_off(self, config: ExperimentConfig) -> None:
        """The run goes back into the queue."""
        self._running.pop(config, None)

    def finished(self, config: ExperimentConfig, result: Result) -> None:
        self._running.pop(config, None)
        self._done[config] = result
        if self._live is None:
            failed = f"failed ({type(result).__name__}), " if isinstance(result, Exception) else ""
            self.note(f"{len(self._done)}/{len(self._wanted)} {_label(config)}: {failed}{self.times()}")

    def note(self, text: str) -> None:
        """Writes a line; above the table where there is one."""
        if self._show:
            self._console.print(Text(text), soft_wrap=True)  # a log is searched by line

    def counts(self) -> dict[tuple[str, str], dict[str, tuple[int, int, int]]]:
        """(dataset, partition) -> method -> runs (recorded, failed, wanted)."""
        counts: dict = {}
        wanted, recorded, failed = Counter(), Counter(), Counter()
        for config in self._wanted:
            cell = (config.dataset, config.partition), config.method
            wanted[cell] += 1
            result = self._done.get(config)
            failed[cell] += isinstance(result, Exception)
            recorded[cell] += result is not None and not isinstance(result, Exception)
        for row, method in wanted:
            counts.setdefault(row, {})[method] = tuple(counter[row, method] for counter in (recorded, failed, wanted))
        return counts

    def seconds_left(self) -> float | None:
        """Estimated from the recorded durations of the same method and data set, else of any; None without any."""
        durations: dict[tuple, list[float]] = {}
        for config, result in list(self._done.items()):
            if isinstance(result, RunRecord):
                for key in ((config.dataset, config.method), ()):
                    durations.setdefault(key, []).append(result.environment["duration_s"])
        if not durations:
            return None
        means = {key: sum(values) / len(values) for key, values in durations.items()}
        todo = [config for config in self._wanted if config not in self._done]
        seconds = sum(means.get((config.dataset, config.method), means[()]) for config in todo)
        now = time.monotonic()
        spent = sum(now - start for start in list(self._running.values()))
        return max(0.0, seconds - spent) / max(1, min(self.workers, len(todo)))

    def times(self) -> str:
        """Elapsed time and an estimate of the time left, hours:minutes:seconds."""
        left = self.seconds_left()
        return f"{_clock(time.monotonic() - self._start)} elapsed" + (
            "" if left is None else f", about {_clock(left)} left"
        )

    def table(self) -> Group:
        """The table, the runs under way, and the times."""
        counts = self.counts()
        methods = list(dict.fromkeys(method for row in counts.values() for method in row))
        table = Table(title=f"Runs of {self._experiment}: recorded / wanted")
        for heading in ("dataset", "partition", *methods):
            table.add_column(heading)
        for row, cells in counts.items():
            table.add_row(*row, *(_cell(cells.get(method)) for method in methods))
        now = time.monotonic()
        under_way = [f"{_label(config)} ({_clock(now - start)})" for config, start in list(self._running.items())]
        return Group(table, Text("Under way: " + ", ".join(under_way) if under_way else ""), Text(self.times()))


def _cell(counts: tuple[int, int, int] | None) -> str:
    if counts is None:
        return ""
    recorded, failed, wanted = counts
    return f"{recorded} / {wanted}" + (f", {failed} failed" if failed else "")


def _label(config: ExperimentConfig) -> str:
    return f"{config.dataset} {config.method} {config.partition} s{config.seed}"


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
