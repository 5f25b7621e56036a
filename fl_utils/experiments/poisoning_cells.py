"""What the tables on poisoned hospitals are made of: cells, scores, and differences to the clean plain mean."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from fl_utils.config import AGGREGATOR_LABELS, ATTACK_LABELS
from fl_utils.experiments.cells import partition_label
from fl_utils.experiments.poisoning_plan import late_score
from fl_utils.records import RunRecord
from fl_utils.statistics import holm, paired_seed_test, seed_interval

#: What tells cells apart; within a cell only the seed differs.
CELL = ("dataset", "panel", "attack", "aggregator", "fraction", "schedule")
COMPARED = ("difference", "diff_low", "diff_high", "p_value")


def cell_of(config: Mapping) -> tuple:
    """The cell of a configuration, as in CELL; a federation without an attack is "clean", with a fraction of 0."""
    fraction, schedule = config.get("attack_fraction") or 0.0, config.get("attack_schedule", "fixed")
    attack = config.get("attack") or "clean"
    return config["dataset"], partition_label(config), attack, config["aggregator"], fraction, schedule


def by_cell(runs: Sequence[RunRecord]) -> dict[tuple, list[RunRecord]]:
    """The records by cell, each cell's by seed; IID comes first, attacks and rules stand as in `config`.

    Those without an aggregator are of other notebooks and passed over.

    Raises:
      ValueError: two records of one seed in a cell; they differ in what the tables do not show.
    """
    found: dict[tuple, list[RunRecord]] = {}
    for run in sorted((run for run in runs if run.config.get("aggregator")), key=lambda run: run.config["seed"]):
        members = found.setdefault(cell_of(run.config), [])
        if members and members[-1].config["seed"] == run.config["seed"]:
            one, other = members[-1].config, run.config
            names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
            raise ValueError(
                f"{', '.join(map(str, cell_of(other)))} has two records of seed {one['seed']}, which differ in "
                f"{', '.join(names) or 'nothing'}. Choose one with `analysis.select`."
            )
        members.append(run)
    datasets = list(dict.fromkeys(run.config["dataset"] for run in runs))
    attacks, rules = list(ATTACK_LABELS), list(AGGREGATOR_LABELS)

    def place(cell: tuple) -> tuple:
        dataset, panel, attack, rule, *rest = cell
        return datasets.index(dataset), panel != "IID", panel, attacks.index(attack), rules.index(rule), *rest

    return {cell: found[cell] for cell in sorted(found, key=place)}


def clean_mean(cell: tuple) -> tuple:
    """The cell that this one is compared with: nobody is bad, and the server averages."""
    return (*cell[:2], "clean", "mean", 0.0, "fixed")


def score_of(run: RunRecord, metric: str = "balanced_accuracy", split: str = "test", client: str = "all") -> float:
    """A metric's mean over the run's last rounds; see `poisoning_plan.late_score`.

    Raises:
      ValueError: the record has no such rows.
    """
    return late_score(run, split, metric, client)


def compared(cells: Mapping[tuple, Sequence[RunRecord]], value: Callable[[RunRecord], float]) -> pd.DataFrame:
    """Interval of a share over seeds, and the paired test against the clean plain mean of the same seeds.

    Args:
      cells: of `by_cell`.
      value: of a run, 0 to 1.
    Returns:
      A row a cell, in order: CELL, seeds, mean, low, high, COMPARED (NaN where the clean mean lacks a seed), p_holm.
    """
    scores = {cell: {run.config["seed"]: value(run) for run in members} for cell, members in cells.items()}
    rows = []
    for cell, by_seed in scores.items():
        row = dict(zip(CELL, cell, strict=True)) | {"seeds": len(by_seed), **share(by_seed.values())}
        base = scores.get(clean_mean(cell), {})
        if cell != clean_mean(cell) and len(by_seed) > 1 and set(by_seed) <= set(base):
            test = paired_seed_test(list(by_seed.values()), [base[seed] for seed in by_seed])
            found = test.difference
            row |= dict(zip(COMPARED, (found.mean, found.low, found.high, test.p_value), strict=True))
        rows.append(row)
    return corrected(pd.DataFrame(rows, columns=[*CELL, "seeds", "mean", "low", "high", *COMPARED]))


def corrected(table: pd.DataFrame) -> pd.DataFrame:
    """With p_holm over all rows that have a p-value."""
    tested = table["p_value"].notna()
    table = table.assign(p_holm=np.nan)
    if tested.any():
        table.loc[tested, "p_holm"] = holm(table.loc[tested, "p_value"])
    return table


def interval(values: Collection[float]) -> dict[str, float]:
    """mean, low, high (t over seeds); NaN without a value."""
    if len(values) == 0:
        return dict.fromkeys(("mean", "low", "high"), math.nan)
    found = seed_interval(list(values))
    return {"mean": found.mean, "low": found.low, "high": found.high}


def share(values: Collection[float]) -> dict[str, float]:
    """The interval of what cannot leave 0 to 1; a NaN end stays."""
    found = interval(values)
    return found | {"low": float(np.maximum(found["low"], 0.0)), "high": float(np.minimum(found["high"], 1.0))}
