"""Notebook 04's answer in words, computed from its tables."""

import pandas as pd

from fl_utils.experiments.explain_plan import CAM
from fl_utils.experiments.explain_report import CAM_LABELS, METRIC_LABELS, MODEL_LABELS
from fl_utils.experiments.explain_shortcut import ARM_LABELS

_SAID = ("centralized", "fedavg", "local")


def answer(
    scores: pd.DataFrame, compared: pd.DataFrame, agreement: pd.DataFrame, repeated: pd.DataFrame,
    shortcut: pd.DataFrame | None = None, tests: pd.DataFrame | None = None,
) -> list[str]:
    """The notebook's answer in sentences of Markdown; intervals are over seeds.

    Args:
      scores, compared: of `explain_report.score_table` (not by class) and `comparisons`.
      agreement, repeated: of `explain_agreement.agreement_matrix` and `repeatability`.
      shortcut, tests: of `explain_shortcut.shortcut_table` and `shortcut_tests`; None where no data set has a shortcut.
    Returns:
      Up to three paragraphs a data set: where the maps point, who agrees, what the marker did.
    """
    paragraphs = []
    for name in scores["panel"].drop_duplicates():
        of = [table[table["panel"] == name] for table in (scores, compared, agreement, repeated)]
        paragraphs += [_where(name, *of[:2]), _who(name, *of[2:])]
        if shortcut is not None and tests is not None and (shortcut["panel"] == name).any():
            paragraphs.append(_marker(name, shortcut[shortcut["panel"] == name], tests[tests["panel"] == name]))
    return paragraphs


def _where(name: str, scores: pd.DataFrame, compared: pd.DataFrame) -> str:
    maps = scores[scores["cam"] == CAM].set_index(["metric", "model"])
    masks = "energy" in maps.index.get_level_values("metric")
    text = f"**{name}.** "
    for metric in ("pointing", "energy") if masks else ("insertion", "deletion"):
        said = ", ".join(f"{MODEL_LABELS[model]} {_ci(maps.loc[metric, model])}" for model in _SAID)
        if masks:
            blind = f"the lesion's share of the image {maps.loc[(metric, 'fedavg'), 'chance']:.3f}"
        else:
            random = scores[(scores["metric"] == metric) & (scores["cam"] == "random") & (scores["model"] == "fedavg")]
            blind = f"a random map on FedAvg {_ci(random.iloc[0])}"
        text += f"{METRIC_LABELS[metric]} of {CAM_LABELS[CAM]}: {said}; {blind}. "
    for kind, cam in (("of models", CAM), ("with a random map", "random")):
        text += _significant(f"comparisons {kind}", compared[compared["second_cam"] == cam])
    return text.rstrip()


def _who(name: str, agreement: pd.DataFrame, repeated: pd.DataFrame) -> str:
    ranks = agreement[agreement["measure"] == "rank_correlation"].set_index(["first", "second"])
    again = repeated[repeated["measure"] == "rank_correlation"].set_index("model")
    words = {
        ("fedavg", "centralized"): "FedAvg and centralized", ("fedavg", "alone"): "FedAvg and a hospital alone",
        ("alone", "alone"): "two hospitals alone", ("centralized", "untrained"): "centralized and untrained",
    }
    said = [f"{text} {_ci(ranks.loc[pair])}" for pair, text in words.items() if pair in ranks.index]
    twice = [f"{MODEL_LABELS[name]} {_ci(again.loc[name])}" for name in ("centralized", "fedavg") if name in again.index]
    text = f"**{name}, agreement** (rank correlation of the maps of two models): {', '.join(said)}."
    return text + (f" The same arm in two seeds: {', '.join(twice)}." if twice else "")


def _marker(name: str, shortcut: pd.DataFrame, tests: pd.DataFrame) -> str:
    table = shortcut[shortcut["cam"].isin(("", CAM))].set_index(["quantity", "arm"])
    text, area = f"**{name}, the marker.** ", table.loc["energy", "chance"].mean()
    for quantity, words in (
        ("energy", f"Share of {CAM_LABELS[CAM]} in the marker's box (its area {area:.3f})"),
        ("rise", "Rise of sick calls on healthy images by the mark"),
        ("balanced_accuracy", "Balanced accuracy without marks"),
    ):
        arms = [arm for arm in ARM_LABELS if (quantity, arm) in table.index and (arm == "fedavg" or "_marked_" in arm)]
        text += f"{words}: {'; '.join(f'{ARM_LABELS[arm]} {_ci(table.loc[quantity, arm])}' for arm in arms)}. "
    return text + _significant("comparisons", tests).rstrip()


def _significant(what: str, table: pd.DataFrame) -> str:
    """How many differences hold, and which."""
    found = table[table["significant"]]
    column = "metric" if "metric" in table else "quantity"
    names = "; ".join(f"{getattr(r, column)}, {r.comparison} {r.difference:+.3f}" for r in found.itertuples())
    before = (table["p_value"] < 0.05).sum()
    return f"Significant after Holm: {len(found)} of {len(table)} {what}" + (
        f" ({names}); {before} before it. " if names else f" ({before} before it). "
    )


def _ci(row: pd.Series) -> str:
    if row["low"] != row["low"]:
        return f"{row['mean']:.3f} (no interval)"
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
