"""Notebook 06: the grid of protections, and the answer in sentences made of its numbers."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fl_utils.config import PROTECTION_LABELS
from fl_utils.experiments.analysis import with_interval
from fl_utils.experiments.privacy_report import BASELINE


@dataclasses.dataclass(frozen=True)
class Seen:
    """Who can attack what under an arm.

    Attributes:
      server, hospital: the condition of `inversion_runs` that stands for what the server and another hospital see; None:
        there is nothing to attack, or it was not attacked.
      members: the arm whose membership attack stands for it, as the model is the same.
      open: what the arm leaves unprotected.
    """

    server: str | None
    hospital: str | None
    members: str | None
    open: str


_DP_OPEN = (
    "validation patients (they choose the round); how many images a hospital has; the federation's class shares; what is "
    "true of most patients; a patient seen in two hospitals, for whom both epsilons add up"
)
SEEN: Mapping[str, Seen] = {
    "none": Seen("one", "four", "none", "everything: the server sees each update, everyone the model"),
    "longer": Seen("longer", None, "longer", "everything: updates of more steps are still updates; everyone sees the model"),
    "patient_8": Seen("patient_8", None, "patient_8", _DP_OPEN),
    "patient_3": Seen(None, None, None, _DP_OPEN),
    "patient_1": Seen("patient_1", None, "patient_1", _DP_OPEN),
    "hospital_few": Seen(
        "one", "hospital_few", "hospital_few",
        "the updates on their way: the server sees each before it adds noise; validation patients",
    ),
    "hospital_few_adaptive": Seen("one", None, None, "as with a fixed clip"),
    "hospital_many": Seen("one", None, None, "as with 5 hospitals"),
    "hospital_many_adaptive": Seen("one", None, None, "as with 5 hospitals"),
    "encrypted": Seen(
        None, "four", "none",
        "the sum, which every hospital reads, and the model; each single update from the server with any one hospital",
    ),
    "both": Seen(
        None, None, "patient_8", "what patient-level DP leaves open; single updates (noised) from the server with any one hospital"
    ),
    "local": Seen(None, None, None, "nothing leaves the hospital during training; its model does if it is shared"),
    "none_many": Seen("one", None, None, "as without protection"),
}
COLUMNS = {
    "accuracy": "Balanced accuracy", "epsilon": "Epsilon (unit)", "server": "SSIM, attack by the server",
    "hospital": "SSIM, attack by a hospital", "members": "Members found at 1 % FPR", "minutes": "Minutes a run",
    "megabytes": "MB a hospital and round",
}


def protection_grid(
    accuracy: pd.DataFrame, inversion: pd.DataFrame, membership: pd.DataFrame, upload_bytes: Mapping[str, float]
) -> pd.DataFrame:
    """Protection x what it costs and stops.

    Args:
      accuracy: of `privacy_report.accuracy_table`.
      inversion: of `privacy_report.inversion_table`, SSIM.
      membership: of `privacy_report.membership_summary`.
      upload_bytes: what a hospital sends in a round: "plain" and "CKKS", of the same model.
    Returns:
      A row a data set, arm and column (keys of COLUMNS): panel, arm, column (heading), value (NaN: not measured or cannot
      be), low, high, text, badness (0 to 1, NaN: neither), open (what the arm leaves unprotected).
    """
    rows = []
    for row in accuracy.itertuples():
        seen = SEEN[row.arm]
        shared = {"panel": row.panel, "arm": row.arm, "open": seen.open}
        same = accuracy[accuracy["dataset"] == row.dataset].set_index("arm")
        sent = upload_bytes["CKKS" if row.arm in ("encrypted", "both") else "plain"] / 1e6
        baseline = BASELINE.get(row.arm, "none") or row.arm
        found = {
            "accuracy": _accuracy(row, same),
            "epsilon": _cell(row.target, f"{row.target:g} ({row.unit})") if row.unit else _cell(math.nan, "none"),
            "server": _inverted(inversion, row.dataset, seen.server),
            "hospital": _inverted(inversion, row.dataset, seen.hospital),
            "members": _members(membership, row.dataset, seen.members),
            "minutes": _cell(row.minutes, f"{row.minutes:.2f}", _times(row.minutes, same["minutes"].get(baseline, math.nan))),
            "megabytes": _cell(math.nan, "no round") if row.arm == "local" else _cell(
                sent, f"{sent:.2f}", _times(sent, upload_bytes["plain"] / 1e6)
            ),
        }
        rows += [{**shared, "column": COLUMNS[name], **cell} for name, cell in found.items()]
    return pd.DataFrame(rows)


def grid_table(grid: pd.DataFrame) -> pd.DataFrame:
    """The grid as a table to read: a row a protection, its texts, and what it leaves open."""
    table = grid.pivot(index=["panel", "arm"], columns="column", values="text")
    keys = grid[["panel", "arm", "open"]].drop_duplicates().set_index(["panel", "arm"])["open"]
    table = table.reindex(index=keys.index, columns=list(COLUMNS.values())).assign(**{"Not protected": keys})
    table = table.reset_index().rename(columns={"panel": "Data", "arm": "Protection"})
    return table.assign(Protection=[PROTECTION_LABELS[arm] for arm in table["Protection"]])


#: What the answer says of the attacks and of the costs; the tables say all.
_SAID_CONDITIONS = ("one", "plain", "dlg_smooth", "update", "noise_0.01", "patient_8")
_SAID_ARMS = ("none", "patient_8", "patient_3", "patient_1", "hospital_few", "hospital_many_adaptive", "encrypted", "local")


def answer(
    accuracy: pd.DataFrame, inversion: pd.DataFrame, membership: pd.DataFrame, same: pd.DataFrame
) -> list[str]:
    """The answer, a paragraph a data set, of what matters most in the tables."""
    return [
        f"**{name}**\n\n" + "\n".join(f"* {part}" for part in _parts(dataset, table, inversion, membership, same) if part)
        for (dataset, name), table in accuracy.groupby(["dataset", "panel"], sort=False)
    ]


def _parts(dataset: str, accuracy, inversion, membership, same) -> tuple[str, ...]:
    return (
        _rebuilt(inversion[inversion["dataset"] == dataset]),
        _found(membership[membership["dataset"] == dataset]), _costs(accuracy), _hides(same[same["dataset"] == dataset]),
    )


def _rebuilt(inversion: pd.DataFrame) -> str:
    said = [
        f"{row['label']} {with_interval(row)} (another image at random {row['random_other']:.2f}; identified {row['identified']:.0%})"
        for _, row in inversion.iterrows() if row["condition"] in _SAID_CONDITIONS
    ]
    return f"**Rebuilt from an update**, SSIM: {'; '.join(said)}."


def _found(membership: pd.DataFrame) -> str:
    parts, by_patient = [], membership[membership["unit"] == "patient"]
    for metric, words in {"auc": "area under the curve", "tpr_at_fpr": "share found at 1 % false alarms"}.items():
        rows = by_patient[by_patient["metric"] == metric]
        # The stronger attack of each arm.
        rows = rows.loc[rows.groupby("arm", sort=False)["mean"].idxmax()]
        said = [f"{row['label']} {with_interval(row)} ({row['attack']})" for _, row in rows.iterrows()]
        parts += [f"{words} (guessing: {rows['chance'].iloc[0]:g}): {', '.join(said)}"] if said else []
    return f"**Training patients told from others**, {'; '.join(parts)}." if parts else ""


def _costs(accuracy: pd.DataFrame) -> str:
    said = [
        f"{row['label']} {with_interval(row)}" + (f" ({row['verdict']})" if row["verdict"] else "")
        for _, row in accuracy.iterrows() if row["arm"] in _SAID_ARMS
    ]
    return (
        f"**Cost**, balanced accuracy: {'; '.join(said)}. In brackets: against the unprotected federation of as many hospitals, "
        "paired over seeds, after Holm."
    )


def _hides(same: pd.DataFrame) -> str:
    return "" if same.empty else (
        f"**Encrypted sums** leave {1 - same['flipped'].sum() / same['images'].sum():.1%} of the predicted classes as they are; the "
        "others are rounding that training amplifies (below)."
    )


def _accuracy(row, same: pd.DataFrame) -> dict:
    """Bad is the way from the data set's best arm down to chance, which is taken as the lowest of the arms or below."""
    best, worst = same["mean"].max(), same["mean"].min()
    badness = (best - row.mean) / (best - worst) if best > worst else 0.0
    text = with_interval(pd.Series({"mean": row.mean, "low": row.low, "high": row.high}))
    return _cell(row.mean, text, badness, row.low, row.high)


def _inverted(inversion: pd.DataFrame, dataset: str, condition: str | None) -> dict:
    rows = inversion[(inversion["dataset"] == dataset) & (inversion["condition"] == condition)]
    if rows.empty:
        return _cell(math.nan, "")
    row = rows.iloc[0]
    badness = float(np.clip((row["mean"] - row["random_other"]) / (1 - row["random_other"]), 0, 1))
    return _cell(row["mean"], f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]", badness, row["low"], row["high"])


def _members(membership: pd.DataFrame, dataset: str, arm: str | None) -> dict:
    """The stronger of the attacks that were run, patient by patient."""
    rows = membership[
        (membership["dataset"] == dataset) & (membership["arm"] == arm) & (membership["unit"] == "patient")
        & (membership["metric"] == "tpr_at_fpr")
    ]
    if rows.empty:
        return _cell(math.nan, "")
    row = rows.loc[rows["mean"].idxmax()]
    badness = float(np.clip((row["mean"] - row["chance"]) / (1 - row["chance"]), 0, 1)) ** 0.5
    text = f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    return _cell(row["mean"], text, badness, row["low"], row["high"])


def _times(value: float, baseline: float) -> float:
    """0 for no more than the baseline, 1 for twenty times as much."""
    return float(np.clip(math.log(max(value / baseline, 1)) / math.log(20), 0, 1)) if baseline > 0 else math.nan


def _cell(value: float, text: str, badness: float = math.nan, low: float = math.nan, high: float = math.nan) -> dict:
    return {"value": value, "low": low, "high": high, "text": text or "-", "badness": badness}


def upload_of(aggregation: pd.DataFrame) -> dict[str, float]:
    """`upload_bytes` of `protection_grid` from the table of `secure_sums.aggregation`."""
    return aggregation.set_index("way")["upload_bytes"].to_dict()


def classes_of(runs: Sequence) -> dict[str, int]:
    """Data set -> number of classes, from records."""
    return {run.config["dataset"]: len(run.environment["class_names"]) for run in runs}
