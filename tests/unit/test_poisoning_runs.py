"""Attacked federations as runs: what a record holds, what becomes of a hospital that sends NaN, and of a ruined model."""

import numpy as np
import pytest

from fl_utils.config import make_config
from fl_utils.experiments.poisoning_plan import cell_config
from fl_utils.experiments.robust_learner import attackers_of
from fl_utils.experiments.run import run
from fl_utils.learning.errors import TrainingError

pytestmark = pytest.mark.usefixtures("folders")


def config_of(attack="clean", aggregator="mean", **fields):
    config = cell_config("smoke", 0, attack=attack, aggregator=aggregator, client_learning_rate=0.1, fraction=0.2)
    return make_config(**config.model_dump() | {"num_images": 120} | fields)


def rows_of(record, split, metric, client="all"):
    table = record.metrics
    rows = table[(table["split"] == split) & (table["metric"] == metric) & (table["client"] == client)]
    return rows.drop_duplicates("round").set_index("round")["value"]


def test_a_run_goes_on_without_the_hospital_that_sends_nan_and_names_it():
    config = config_of("not_finite")
    (bad,) = attackers_of(config, 1)
    record = run(config, experiment="poisoning", progress=False)
    assert rows_of(record, "update", "left_out", str(bad)).to_dict() == {1: 1.0, 2: 1.0}
    assert rows_of(record, "train", "loss", str(bad)).empty and len(rows_of(record, "train", "loss", str((bad + 1) % 5))) == 2
    assert np.isfinite(rows_of(record, "test", "balanced_accuracy")).all()
    assert np.isfinite(record.predictions[["p0", "p1", "p2", "p3"]]).all().all()


def test_the_last_round_is_reported_and_the_updates_are_told():
    record = run(config_of("backdoor", "mean"), experiment="poisoning", progress=False)
    assert record.environment["selected_round"] == {"all": 2}
    assert {"norm", "cosine_distance", "pca_0", "flag_pca", "flag_cosine", "attacker"} <= set(record.metrics["metric"])
    assert sum(rows_of(record, "update", "attacker", str(client)).iloc[0] for client in range(5)) == 1
    assert len(rows_of(record, "marked_2", "accuracy")) == 2 and rows_of(record, "marked_1", "accuracy").empty
    # Nobody looks at updates that a robust rule acts on, nor at single hospitals under attack.
    other = run(config_of("backdoor", "multi_krum"), experiment="poisoning", progress=False)
    assert not (other.metrics["split"] == "update").any() and not (other.metrics["split"] == "own_test").any()


@pytest.mark.parametrize("keep_diverged", [False, True])
def test_a_federation_of_which_nobody_is_left_ends_and_names_all(keep_diverged):
    config = config_of(client_learning_rate=1e25)
    with pytest.raises(TrainingError, match=r"not finite at client\(s\) 0, 1, 2, 3, 4"):
        run(config, experiment="poisoning", progress=False, keep_diverged=keep_diverged)
