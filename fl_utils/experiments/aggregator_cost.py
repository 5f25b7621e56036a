"""What each rule costs the server beside the mean: one round's combining in TFF, updates of a real model's size."""

import time

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from fl_utils import paths, seeding
from fl_utils.config import AGGREGATOR_LABELS
from fl_utils.experiments.measured import Content, Layout, digest, load_or_compute
from fl_utils.records import describe_environment

#: Folder of the measurements, beside the runs'.
AGGREGATOR_COST = "aggregator_cost"
VERSION = 1  # raise it when measurements change their meaning: old ones are then ignored
#: Numbers of hospitals, and rounds of each rule, by profile.
SIZES = {"smoke": ((5,), 1), "quick": ((10,), 3), "paper": ((10, 100), 5)}
_LAYOUT = Layout("measurements", ("cost",), "%.4g", verb="make")


def measure(profile: str, progress: bool = True) -> pd.DataFrame:
    """See `cost_table`: loaded if it is there, otherwise measured.

    Raises:
      RecordError: it is not there, and this command does not measure; or it cannot be written or read.
    """
    numbers, rounds = SIZES[profile]
    folder = paths.runs_root(profile) / AGGREGATOR_COST / f"rounds_{digest([VERSION, list(numbers), rounds])}"

    def made() -> Content:
        facts = {"version": VERSION, "rounds": rounds, "num_parameters": sum(map(np.prod, _shapes())).item()}
        return Content({"cost": cost_table(numbers, rounds, progress)}, facts | describe_environment())

    return load_or_compute(folder, _LAYOUT, profile, made).tables["cost"]


def cost_table(numbers: tuple[int, ...], rounds: int, progress: bool = False) -> pd.DataFrame:
    """Seconds of one round's combining, and their ratio to the mean's, measured in one run.

    The rules take turns, so that whatever else the machine does hits all alike; the first round of each, which traces its
    graph, is not counted. Most of it is handing the updates to TFF's worker, which all rules share.

    Args:
      numbers: of hospitals.
      rounds: counted rounds a rule.
      progress: show a bar.
    Returns:
      A row a number of hospitals and rule: hospitals, aggregator, label, seconds (median), ratio (to the mean).
    """
    import tensorflow_federated as tff

    from fl_utils.learning import engine

    engine.ensure_started()
    rows, shapes = [], _shapes()
    value_type = tff.to_type([tff.TensorType(np.float32, shape) for shape in shapes])
    for number in numbers:
        rng = seeding.generator(0, "aggregator_cost", number)
        updates = [[rng.normal(size=shape).astype(np.float32) for shape in shapes] for _ in range(number)]
        processes = {name: factory.create(value_type, tff.TensorType(np.float32)) for name, factory in _rules(number).items()}
        states = {name: _started(name, process, shapes) for name, process in processes.items()}
        spent = {name: [] for name in processes}
        bar = tqdm(total=(rounds + 1) * len(processes), desc=f"{number} hospitals", disable=not progress, leave=False)
        for turn in range(rounds + 1):
            for name, process in processes.items():
                start = time.perf_counter()
                states[name] = process.next(states[name], updates, [1.0] * number).state
                spent[name] += [time.perf_counter() - start] if turn else []
                bar.update()
        bar.close()
        seconds = {name: float(np.median(values)) for name, values in spent.items()}
        rows += [(number, name, AGGREGATOR_LABELS[name], seconds[name], seconds[name] / seconds["mean"]) for name in seconds]
    return pd.DataFrame(rows, columns=["hospitals", "aggregator", "label", "seconds", "ratio"])


def _shapes() -> list[tuple[int, ...]]:
    """Of the weights of notebook 07's model."""
    from fl_utils.models.classifiers import build_model

    return [tuple(weight.shape) for weight in build_model("small_cnn", (32, 32, 1), 4).trainable_variables]


def _rules(number: int) -> dict:
    """Every rule as notebook 07 sets it, for three tenths of bad hospitals."""
    from fl_utils.experiments.robust_learner import factory_of

    return {name: factory_of(name, num_clients=number, assumed_attackers=3 * number // 10) for name in AGGREGATOR_LABELS}


def _started(name: str, process, shapes):
    from fl_utils.learning import aggregators

    state = process.initialize()
    return aggregators.trusting(state, np.ones(sum(map(np.prod, shapes)))) if name == "fltrust" else state
