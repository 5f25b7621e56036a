"""Notebook 04: the marker of one hospital: who looks at it, who is misled by it, what it costs."""

from collections.abc import Sequence

import pandas as pd

from fl_utils.experiments.analysis import METRICS, panel
from fl_utils.experiments.explain_plan import CAM, COMPARED_CAMS
from fl_utils.experiments.explain_report import CAM_LABELS, by_dataset, with_holm
from fl_utils.experiments.explaining import Explanation
from fl_utils.records import RunRecord
from fl_utils.statistics import paired_seed_test, seed_interval

#: Arm -> its words, in the order of tables and figures. The hospital alone is the first one, which marks.
ARM_LABELS = {
    "local": "Hospital 1 alone, no marks", "local_marked_1": "Hospital 1 alone, marks",
    "centralized": "Centralized, no marks", "centralized_marked_1": "Centralized, hospital 1 marks",
    "centralized_marked_4": "Centralized, all mark",
    "fedavg": "FedAvg, no marks", "fedavg_marked_1": "FedAvg, hospital 1 marks", "fedavg_marked_4": "FedAvg, all mark",
}
QUANTITIES = {
    "energy": "Energy in the marker's box", "rise": "Rise of sick calls by the mark",
    "accuracy": "Accuracy, no marks", "balanced_accuracy": "Balanced accuracy, no marks",
}
_DILUTED = (("fedavg_marked_1", "local_marked_1"), ("fedavg_marked_1", "centralized_marked_1"))


def shortcut_table(
    explanations: Sequence[Explanation], runs: Sequence[RunRecord], cams: Sequence[str] = COMPARED_CAMS
) -> pd.DataFrame:
    """What the marker does to every arm.

    Args:
      explanations: data sets without a shortcut (more than two classes) are passed over.
      runs: the records that the explanations are of; see `explaining.records_of`.
      cams: whose energy.
    Returns:
      One row dataset x arm x quantity: dataset, panel, arm, method (the arm's, for its look), label (words), marked
      (hospitals that mark), quantity, quantity_label, cam ("" but for energy), seeds, mean, low, high (t over seeds),
      chance (the box's share of the image for energy, 0 for the rise, else NaN). Quantities: energy (share of the last
      class's map that lies in the marker's box, on marked sick images), rise (of the share of healthy images that are
      called sick, when they are marked), accuracy and balanced_accuracy (of all test images, without marks).
    Raises:
      ValueError: see `explain_report.by_dataset`; a run that is not among the records; no data set with a shortcut.
    """
    values = _values(explanations, runs)
    values = values[(values["quantity"] != "energy") | values["cam"].isin(cams)]
    keys, rows = ["dataset", "quantity", "cam", "arm"], []
    for (dataset, quantity, cam, arm), group in values.groupby(keys, sort=False):
        interval = seed_interval(group["value"])
        rows.append(
            {"dataset": dataset, "panel": panel(dataset), "arm": arm, "method": arm.split("_")[0]}
            | {"label": ARM_LABELS[arm], "marked": _marked(arm), "quantity": quantity}
            | {"quantity_label": QUANTITIES[quantity] + (f", {CAM_LABELS[cam]}" if cam else ""), "cam": cam}
            | {"seeds": interval.num, "mean": interval.mean, "low": interval.low, "high": interval.high}
            | {"chance": group["chance"].mean()}
        )
    return pd.DataFrame(rows)


def shortcut_tests(
    explanations: Sequence[Explanation], runs: Sequence[RunRecord], metric: str = "balanced_accuracy"
) -> pd.DataFrame:
    """Paired t-tests over seeds on the marker, with Holm's correction over the whole table; energy of HiResCAM.

    Asked are: does federation dilute the shortcut (against the hospital alone and against pooling, in energy and rise),
    and what do marks change at all (each arm against itself without marks, in `metric` as well).

    Returns:
      One row a data set, quantity and pair: dataset, panel, quantity, comparison (words), first, second, seeds,
      difference (first minus second), low, high, p_value, p_holm, significant.
    Raises:
      ValueError: see `shortcut_table`; fewer than 2 seeds.
    """
    values, rows = _values(explanations, runs), []
    values = values[values["cam"].isin(("", COMPARED_CAMS[1]))]
    for dataset, own in values.groupby("dataset", sort=False):
        wide = own.pivot(index="seed", columns=["quantity", "arm"], values="value")
        pairs = [(quantity, pair) for quantity in ("energy", "rise") for pair in _DILUTED]
        pairs += [
            (quantity, (arm, arm.split("_")[0]))
            for quantity in (metric, "energy", "rise") for arm in ARM_LABELS if _marked(arm)
        ]
        for quantity, (first, second) in pairs:
            test = paired_seed_test(wide[quantity, first], wide[quantity, second])
            rows.append(
                {"dataset": dataset, "panel": panel(dataset), "quantity": quantity}
                | {"comparison": f"{ARM_LABELS[first]} minus {ARM_LABELS[second]}", "first": first, "second": second}
                | {"seeds": test.difference.num, "difference": test.difference.mean}
                | {"low": test.difference.low, "high": test.difference.high, "p_value": test.p_value}
            )
    return with_holm(pd.DataFrame(rows))


def _values(explanations: Sequence[Explanation], runs: Sequence[RunRecord]) -> pd.DataFrame:
    """One number a data set, seed, arm, quantity and cam, with its chance."""
    by_name, rows = {run.path.name: run for run in runs}, []
    for dataset, members in by_dataset(explanations).items():
        for member in members:
            for row in member.shortcut.itertuples():
                key = {"dataset": dataset, "seed": member.seed, "arm": row.arm}
                rows.append(key | {"quantity": "energy", "cam": row.cam, "value": row.energy, "chance": row.area})
                if row.cam != CAM:  # the rest is the model's, whatever its maps
                    continue
                rise = row.called_sick_marked - row.called_sick
                rows.append(key | {"quantity": "rise", "cam": "", "value": rise, "chance": 0.0})
                name = member.facts["runs"][row.arm]
                if name not in by_name:
                    raise ValueError(
                        f"The record {name} is not among the {len(runs)} runs; take `explaining.records_of`."
                    )
                table = by_name[name].predictions
                table = table[(table["client"] == row.client) & (table["split"] == "test")]
                probabilities = table[[f"p{k}" for k in range(len(member.facts["class_names"]))]].to_numpy()
                for metric in ("accuracy", "balanced_accuracy"):
                    value = METRICS[metric](table["label"].to_numpy(), probabilities)
                    rows.append(key | {"quantity": metric, "cam": "", "value": value, "chance": float("nan")})
    if not rows:
        raise ValueError("None of the explanations is of a data set with a shortcut (two classes).")
    order = {name: place for place, name in enumerate((*QUANTITIES, *ARM_LABELS))}
    table = pd.DataFrame(rows)
    # Data sets stay as they came; quantities and arms stand in their own order.
    table["place"] = table["dataset"].map({name: n for n, name in enumerate(dict.fromkeys(table["dataset"]))})
    table = table.sort_values(
        ["place", "quantity", "cam", "arm", "seed"],
        key=lambda column: column.map(order) if column.name in ("quantity", "arm") else column,
    )
    return table.drop(columns="place").reset_index(drop=True)


def _marked(arm: str) -> int:
    return int(arm.rsplit("_", 1)[1]) if "_marked_" in arm else 0
