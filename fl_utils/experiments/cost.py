"""Learning curves, and what reaching a target costs in rounds and bytes."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fl_utils.experiments.analysis import panel, select
from fl_utils.experiments.cells import ALGORITHMS, cells
from fl_utils.records import RunRecord

#: Vectors as long as the model that a client sends and receives a round; 1 and 1 is update and model.
VECTORS_A_ROUND = {
    # Karimireddy et al. 2020: the client's control variate goes up too, the server's comes down too.
    "scaffold": (2, 2),
    # Karimireddy et al. 2021: the full gradient goes up too, the server's momentum comes down too.
    "mimelite": (2, 2),
    # FedOpt keeps its moments at the server; fine-tuning and the proximal term stay with the client.
    **dict.fromkeys(("fedsgd", "fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"), (1, 1)),
    "finetuned": (1, 1),
    # At most: the normalisation layers stay at home.
    "local_norm": (1, 1),
}
BYTES_A_NUMBER = 4  # float32


def curves(
    runs: Sequence[RunRecord], metric: str = "balanced_accuracy", split: str = "validation",
    methods: Sequence[str] = ALGORITHMS,
) -> pd.DataFrame:
    """Learning curves of the common model, a panel a partition, as `plotting.learning_curves` takes them.

    Returns:
      Columns dataset, panel (the partition), method, seed, round, value.
    """
    tables = [
        _curve(run, metric, split).rename("value").reset_index().assign(
            dataset=dataset, panel=partition, method=method, seed=run.config["seed"]
        )
        for (dataset, partition, method), members in cells([r for r in runs if r.config["method"] in methods]).items()
        for run in members
    ]
    if not tables:
        raise ValueError(f"None of {len(runs)} records is of {', '.join(methods)}.")
    return pd.concat(tables, ignore_index=True)


def _curve(run: RunRecord, metric: str, split: str) -> pd.Series:
    """round -> value of the common model."""
    rows = run.metrics
    rows = rows[(rows["client"] == "all") & (rows["split"] == split) & (rows["metric"] == metric)]
    # The selected round's full scores may repeat the curve's.
    return rows.groupby("round")["value"].mean()


def cost_to_target(
    runs: Sequence[RunRecord], share: float = 0.95, metric: str = "balanced_accuracy",
    methods: Sequence[str] = ALGORITHMS,
) -> pd.DataFrame:
    """Rounds and bytes until the validation curve reaches a share of the centralized model's validation score.

    The target is `share` times the centralized score at its selected round, mean over seeds. The curve is the mean
    over seeds; the first round at or above the target counts. The test set is not looked at.

    Args:
      runs: records of the methods and of centralized.
      share: above 0, at most 1.
    Returns:
      One row dataset x partition x method: dataset, panel, partition, method, target, rounds, upload_bytes,
      download_bytes, total_bytes (of all clients of the cohort; NaN where the mean curve does not reach the target),
      seeds_reached (seeds whose own curve does), seeds, total_rounds.
    Raises:
      ValueError: no centralized record, `share` out of range, or a method whose messages are not known.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; expected a number above 0, at most 1.")
    rows = []
    for (dataset, partition, method), members in cells([r for r in runs if r.config["method"] in methods]).items():
        config = members[0].config
        goals = [
            _curve(run, metric, "validation")[run.environment["selected_round"]["all"]]
            for run in centralized_anchor(runs, config)
        ]
        target = share * float(np.mean(goals))
        curve = pd.DataFrame({run.config["seed"]: _curve(run, metric, "validation") for run in members})
        reached = curve.index[curve.mean(axis=1) >= target]
        rounds = float(reached.min()) if len(reached) else float("nan")
        up, down = bytes_a_round(members[0])
        rows.append(
            {"dataset": dataset, "panel": panel(dataset), "partition": partition, "method": method, "target": target}
            | {"rounds": rounds, "upload_bytes": rounds * up, "download_bytes": rounds * down}
            | {"total_bytes": rounds * (up + down), "seeds_reached": int((curve >= target).any().sum())}
            | {"seeds": len(members), "total_rounds": config["total_rounds"]}
        )
    if not rows:
        raise ValueError(f"None of {len(runs)} records is of {', '.join(methods)}.")
    return pd.DataFrame(rows)


def bytes_a_round(run: RunRecord) -> tuple[int, int]:
    """(upload, download) of one round over the whole cohort, in bytes; see VECTORS_A_ROUND.

    Raises:
      ValueError: the method sends nothing, or it is not known what.
    """
    config = run.config
    if config["method"] not in VECTORS_A_ROUND:
        known = ", ".join(VECTORS_A_ROUND)
        raise ValueError(f"What {config['method']!r} sends is not known; VECTORS_A_ROUND has {known}.")
    cohort = config.get("clients_per_round") or config["num_clients"]
    one = BYTES_A_NUMBER * run.environment["num_parameters"] * cohort
    up, down = VECTORS_A_ROUND[config["method"]]
    return up * one, down * one


def centralized_anchor(runs: Sequence[RunRecord], config: Mapping) -> list[RunRecord]:
    """The centralized runs that a federated configuration is held against, ordered by seed."""
    partition = "feature" if config["partition"] == "feature" else "pooled"
    return select(
        runs, method="centralized", partition=partition, dataset=config["dataset"], model=config["model"]
    )
