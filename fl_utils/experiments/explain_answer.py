"""Notebook 04's answer in words, computed from its tables."""

import pandas as pd

from fl_utils.experiments.analysis import SIGNIFICANCE, with_interval
from fl_utils.experiments.explain_plan import COMPARED_CAMS
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
    for (dataset, name), _ in scores.groupby(["dataset", "panel"], sort=False):
        of = [table[table["dataset"] == dataset] for table in (scores, compared, agreement, repeated)]
        paragraphs += [_where(name, *of[:2]), _who(name, *of[2:])]
        if shortcut is not None and tests is not None and (shortcut["dataset"] == dataset).any():
            of = [table[table["dataset"] == dataset] for table in (shortcut, tests)]
            paragraphs.append(_marker(name, *of))
    return paragraphs


def _where(name: str, scores: pd.DataFrame, compared: pd.DataFrame) -> str:
    maps = scores.set_index(["metric", "model", "cam"])
    masks = "energy" in maps.index.get_level_values("metric")
    text = f"**{name}.** "
    for metric in ("pointing", "energy") if masks else ("insertion", "deletion"):
        said = [
            f"{CAM_LABELS[cam]}: " + ", ".join(f"{MODEL_LABELS[model]} {with_interval(maps.loc[(metric, model, cam)])}" for model in _SAID)
            for cam in COMPARED_CAMS
        ]
        blind = f"a random map on FedAvg {with_interval(maps.loc[(metric, 'fedavg', 'random')])}"
        if masks:
            blind += f", the lesion's share of the image {maps.loc[(metric, 'fedavg', 'random'), 'chance']:.3f}"
        text += f"{METRIC_LABELS[metric]}. {'; '.join(said)}; {blind}. "
    for kind, chosen in (
        ("of models", compared["second_cam"].isin(COMPARED_CAMS)), ("with a random map", compared["second_cam"] == "random"),
    ):
        text += _significant(f"comparisons {kind}", compared[chosen])
    return text.rstrip()


def _who(name: str, agreement: pd.DataFrame, repeated: pd.DataFrame) -> str:
    words = {
        ("fedavg", "centralized"): "FedAvg and centralized", ("fedavg", "alone"): "FedAvg and a hospital alone",
        ("alone", "alone"): "two hospitals alone", ("centralized", "untrained"): "centralized and untrained",
    }
    text = f"**{name}, agreement** (rank correlation of the maps of two models). "
    for cam in COMPARED_CAMS:
        ranks, again = (
            table[(table["measure"] == "rank_correlation") & (table["cam"] == cam)].set_index(index)
            for table, index in ((agreement, ["first", "second"]), (repeated, "model"))
        )
        said = [f"{what} {with_interval(ranks.loc[pair])}" for pair, what in words.items() if pair in ranks.index]
        twice = [f"{MODEL_LABELS[arm]} {with_interval(again.loc[arm])}" for arm in ("centralized", "fedavg") if arm in again.index]
        text += f"{CAM_LABELS[cam]}: {', '.join(said)}; the same arm in two seeds: {', '.join(twice)}. "
    return text.rstrip()


def _marker(name: str, shortcut: pd.DataFrame, tests: pd.DataFrame) -> str:
    text, table = f"**{name}, the marker.** ", shortcut.set_index(["quantity", "cam", "arm"])
    area = shortcut.loc[shortcut["quantity"] == "energy", "chance"].mean()
    asked = [("energy", cam, f"Share of {CAM_LABELS[cam]} in the marker's box (its area {area:.3f})") for cam in COMPARED_CAMS]
    asked += [("rise", "", "Rise of sick calls on healthy images by the mark"), ("balanced_accuracy", "", "Balanced accuracy without marks")]
    for quantity, cam, words in asked:
        arms = [arm for arm in ARM_LABELS if (quantity, cam, arm) in table.index and (arm == "fedavg" or "_marked_" in arm)]
        text += f"{words}: {'; '.join(f'{ARM_LABELS[arm]} {with_interval(table.loc[(quantity, cam, arm)])}' for arm in arms)}. "
    return text + _significant("comparisons", tests).rstrip()


def _significant(what: str, table: pd.DataFrame) -> str:
    """How many differences hold; which ones is in the table."""
    before = (table["p_value"] < SIGNIFICANCE).sum()
    return f"Significant after Holm: {table['significant'].sum()} of {len(table)} {what} ({before} before it). "
