"""The interactive cell without a browser: its state, its widgets, its pictures."""

import itertools
import threading

import numpy as np
import pytest
from matplotlib.figure import Figure

from fl_utils import interactive
from fl_utils.config import PARTITION_FIELD, ConfigError
from fl_utils.data.partition import PartitionError
from fl_utils.experiments import live
from fl_utils.experiments.live import BOUNDS, METHODS, PARTITIONS, LiveSettings, Playground

LIMIT_S = 300


@pytest.fixture(scope="module")
def play(folders):
    return Playground("smoke")


@pytest.fixture
def box(folders, monkeypatch):
    monkeypatch.delenv("FL_UTILS_STATIC", raising=False)
    box = interactive.playground("smoke", num_clients=2, total_rounds=3)
    yield box
    box.close()
    box.play.stop(wait_s=LIMIT_S)


def wait(play: Playground) -> None:
    play._thread.join(LIMIT_S)
    assert not play.running


def settings_within_the_bounds():
    for partition, num_clients in itertools.product(PARTITIONS, (2, 3, 7, 20)):
        field = {"classes_per_client": "classes_per_client", None: None}.get(PARTITION_FIELD.get(partition), "alpha")
        for value in {"alpha": (0.05, 0.5, 100.0), "classes_per_client": (1, 2, 4), None: (None,)}[field]:
            yield LiveSettings(partition, num_clients=num_clients, **({field: value} if field else {}))


def test_every_setting_gives_a_partition_or_a_sentence(play):
    made, refused = 0, []
    for settings in settings_within_the_bounds():
        try:
            counts, numbers, images = play.partition(settings)
        except PartitionError as error:
            refused.append(str(error))
            continue
        made += 1
        train = counts.groupby("client")["count"].sum()
        assert len(train) == len(images) == settings.num_clients and (train > 0).all()
        assert 0 <= numbers["js_distance"] <= 1 and 0 <= numbers["size_gini"] < 1
    assert made > 20 and len(refused) > 5
    assert all("Use " in text or "expected" in text for text in refused)


def test_every_algorithm_and_slider_end_makes_a_configuration(play):
    for method in METHODS:
        for field, ends in BOUNDS.items():
            for end in ends:
                config = play.config(LiveSettings(method=method, **{field: end}))
                assert config.method == method and config.num_images <= 1000


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"partition": "natural"}, "expected one of iid, dirichlet"),
        ({"method": "local"}, "expected one of fedsgd, fedavg"),
        ({"alpha": 0}, "alpha is 0; expected 0.05 to 100"),
        ({"num_clients": 21}, "num_clients is 21; expected 2 to 20"),
    ],
)
def test_settings_outside_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        LiveSettings(**wrong)


def test_only_phantoms_are_played_with():
    with pytest.raises(ConfigError, match="phantom_brain"):
        Playground("smoke", "brain_mri")
    with pytest.raises(ConfigError, match="smoke, quick, paper"):
        Playground("large")


def test_static_mode_returns_a_picture(folders, monkeypatch):
    monkeypatch.setenv("FL_UTILS_STATIC", "1")
    figure = interactive.playground("smoke", num_clients=3)
    assert isinstance(figure, Figure)
    assert any("open this notebook in JupyterLab" in text.get_text() for text in figure.texts)


def test_a_moved_slider_redraws_at_once(box):
    seen = [box.partition.value]
    for field, value in (("alpha", 0.1), ("num_clients", 5), ("partition", "feature"), ("partition", "pathological")):
        box.controls[field].value = value
        assert box.partition.value not in seen
        seen.append(box.partition.value)
    assert all(bytes(content).startswith(b"\x89PNG") for content in seen)
    assert box.controls["alpha"].disabled and not box.controls["classes_per_client"].disabled
    box.controls["num_clients"].value = 20
    assert "Use fewer hospitals or more images" in box.problem.value and box.partition.layout.display == "none"
    box.controls["num_clients"].value = 4
    assert box.problem.value == "" and box.partition.layout.display is None
    assert not box.play.running


def test_an_impossible_partition_is_not_trained(box):
    box.controls["num_clients"].value = 20
    box.buttons["Train"].click()
    assert not box.play.running and "Use fewer hospitals" in box.status.value
    assert not box.buttons["Train"].disabled


def test_train_twice_is_one_run_and_curves_stay_for_comparison(box, folders, monkeypatch):
    empty = box.curves.value
    box.buttons["Train"].click()
    assert box.buttons["Train"].disabled and not box.buttons["Stop"].disabled
    box.buttons["Train"].click()
    assert not box.play.train(box.settings)
    box.controls["alpha"].value = 0.2  # the run goes on with what it started with
    wait(box.play)
    assert box.play.status == "Done: 3 rounds."
    curves = box.play.curves
    assert set(curves["run_num"]) == {1} and set(curves["run"]) == {LiveSettings(num_clients=2).text}
    for split in ("validation", "test"):
        rows = curves[curves["split"] == split]
        assert rows["round"].tolist() == [1, 2, 3] and rows["value"].between(0, 1).all()
    first = box.curves.value
    assert first != empty and not box.buttons["Train"].disabled
    with_rounds(monkeypatch, lambda number: VALUES)  # one real training is enough
    box.buttons["Train FedAvg on IID"].click()
    wait(box.play)
    assert box.play.curves["run"].nunique() == 2 and "FedAvg, 1 local epoch\niid" in set(
        text.split(";")[0] for text in box.play.curves["run"]
    )
    assert box.curves.value != first
    box.buttons["Clear"].click()
    assert box.curves.value == empty
    assert not (folders / "results").exists()


def with_rounds(monkeypatch, round_of):
    """Training replaced by calls of `round_of`, where the test is of what goes on around it."""
    from fl_utils.experiments import training
    from fl_utils.learning import engine

    def train(config, dataset, hospitals, checkpoints, on_round, *, checkpoint_interval_s):
        for number in range(1, config.total_rounds + 1):
            on_round(round_of(number))

    monkeypatch.setattr(training, "train_hospital_models", train)
    monkeypatch.setattr(engine, "ensure_started", lambda: None)


VALUES = {"balanced_accuracy": 0.5, "test_balanced_accuracy": 0.4}


def test_stop_ends_the_run_after_its_round(box, monkeypatch):
    in_round, go_on = threading.Event(), threading.Event()

    def round_of(number):
        in_round.set()
        assert number == 1 and go_on.wait(LIMIT_S)
        return VALUES

    with_rounds(monkeypatch, round_of)
    box.buttons["Train"].click()
    assert in_round.wait(LIMIT_S)
    box.buttons["Clear"].click()  # leaves the run that is on
    box.buttons["Stop"].click()
    assert "Stopping" in box.status.value
    go_on.set()
    wait(box.play)
    assert box.play.status == "Stopped after round 1 of 3." and box.status.value == box.play.status
    assert set(box.play.curves["round"]) == {1}
    with_rounds(monkeypatch, lambda number: VALUES)
    box.buttons["Train"].click()  # a stop does not hold for the next run
    wait(box.play)
    assert box.play.status == "Done: 3 rounds."


def test_an_error_of_a_run_is_said_in_the_box(box, monkeypatch):
    def round_of(number):
        raise KeyError("<weights>")

    with_rounds(monkeypatch, round_of)
    box.buttons["Train"].click()
    wait(box.play)
    assert "ended in round 1. KeyError" in box.status.value and "&lt;weights&gt;" in box.status.value
    assert not box.buttons["Train"].disabled


def test_a_closed_box_ends_its_run_and_is_drawn_no_more(box, monkeypatch):
    in_round, go_on = threading.Event(), threading.Event()

    def round_of(number):
        in_round.set()
        assert go_on.wait(LIMIT_S)
        return VALUES

    with_rounds(monkeypatch, round_of)
    box.buttons["Train"].click()
    assert in_round.wait(LIMIT_S)
    before = box.curves.value
    other = interactive.playground("smoke", num_clients=2)  # the cell is run again
    go_on.set()
    wait(box.play)
    assert box.play.status == "Stopped after round 1 of 3." and box.curves.value == before
    other.close()


def test_the_oldest_runs_make_room(play, monkeypatch):
    with_rounds(monkeypatch, lambda number: VALUES)
    for _ in range(live.MAX_RUNS + 2):
        assert play.train(LiveSettings(num_clients=2, total_rounds=1))
        wait(play)
    kept = play.curves["run_num"].unique()
    assert len(kept) == live.MAX_RUNS and np.all(np.diff(kept) == 1)
