"""Whole runs of a small Attention U-Net on phantom tumours: the record, the kept weights, and going on after a stop."""

import itertools
import shutil

import numpy as np
import pytest

from fl_utils import paths
from fl_utils.config import make_config
from fl_utils.experiments import segment_plan, segmenter_training, segmenting
from fl_utils.experiments.hospitals import owners
from fl_utils.experiments.run import data_of, run, selected_weights
from fl_utils.learning import rounds
from fl_utils.learning.segmentation_scores import EMPTY_HD95_MM, SCORE_COLUMNS, regions_of
from tests.unit.made_volumes import few_tumours

NUM_SUBJECTS, NUM_CLIENTS = 24, 3
ROUNDS = {"centralized": 2, "local": 1, "fedavg": 3}
CLASSES = ("background", "necrotic_core", "oedema", "enhancing")
REGIONS = tuple(regions_of(CLASSES))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", autouse=True)
def few_phantoms(folders):
    with few_tumours(NUM_SUBJECTS):
        yield


def config(method):
    """A smoke run, smaller still; three hospitals of five institutions."""
    planned = segment_plan.segment_config("smoke", "attention_unet", method, 0, learning_rate=0.1, augment=True)
    size = {"total_rounds": ROUNDS[method], "client_epochs_per_round": 1}
    size["num_clients"] = 1 if method == "centralized" else NUM_CLIENTS
    return make_config(**planned.model_dump() | size)


@pytest.fixture(scope="module")
def records(few_phantoms):
    return {method: run(config(method), experiment="segmentation", progress=False) for method in ROUNDS}


def models_of(method):
    return [str(client) for client in range(NUM_CLIENTS)] if method == "local" else ["all"]


def held_by(method):
    return segmenting.hospitals_of(config(method), data_of(config(method)))


@pytest.mark.parametrize("method", ROUNDS)
def test_what_a_record_holds(records, method):
    record = records[method]
    assert {path.name for path in record.path.iterdir()} == {
        "config.json", "metrics.csv", "predictions.csv", "environment.json"
    }
    facts, held = record.environment, held_by(method)
    assert facts["class_names"] == list(CLASSES) and facts["synthetic"] is True
    sizes = {part: [len(index) for index in getattr(held, part)] for part in ("train", "validation", "test")}
    assert facts["subjects"] == sizes and sum(map(sum, sizes.values())) == NUM_SUBJECTS
    volumes = data_of(config(method)).volumes
    assert facts["num_parameters"] == segmenter_training.new_segmenter(config(method), volumes).count_params()
    assert set(facts["selected_round"]) == set(models_of(method))
    assert all(1 <= number <= ROUNDS[method] for number in facts["selected_round"].values())
    assert facts["dataset_fingerprint"] == data_of(config(method)).fingerprint


@pytest.mark.parametrize("method", ROUNDS)
def test_the_curve(records, method):
    metrics = records[method].metrics
    curve = metrics[metrics["split"] != segmenting.WHOLE_VOLUMES]
    assert curve["value"].notna().all() and set(curve["round"]) == set(range(1, ROUNDS[method] + 1))
    scores = {"dice", "loss", *(f"dice/{name}" for name in CLASSES[1:])}
    for client, split in itertools.product(models_of(method), ("validation", "test")):
        rows = curve.query("client == @client and split == @split")
        assert set(rows["metric"]) == scores and len(rows) == len(scores) * ROUNDS[method]
        parts = rows[rows["metric"].str.startswith("dice/")].groupby("round")["value"].mean()
        np.testing.assert_allclose(rows[rows["metric"] == "dice"].set_index("round")["value"], parts, atol=1e-5)
    trained = curve.query("split == 'train' and metric == 'loss'")
    assert len(trained) == ROUNDS[method] * (1 if method == "centralized" else NUM_CLIENTS)
    dice = curve[curve["metric"].str.startswith("dice")]["value"]
    assert dice.between(0, 1).all()
    if method == "fedavg":  # every hospital's own data are followed as well
        assert set(curve.query("split == 'own_test'")["client"]) == {str(c) for c in range(NUM_CLIENTS)}
        assert trained.groupby("round")["value"].mean().is_monotonic_decreasing


@pytest.mark.parametrize("method", ROUNDS)
def test_scores_of_whole_volumes(records, method):
    record, data, held = records[method], data_of(config(method)), held_by(method)
    table = record.predictions
    assert list(table.columns) == ["client", "split", "example", "group", "hospital", "subject", *SCORE_COLUMNS]
    assert len(table) == len(models_of(method)) * len(held.split.test) * len(REGIONS)
    assert (table.groupby(["client", "region"])["example"].apply(sorted).map(tuple) == tuple(held.split.test)).all()
    names = np.array(data.volumes.subjects)
    assert (names[table["example"]] == table["subject"]).all()
    assert (data.subjects.groups[table["example"]] == table["group"]).all()
    assert (owners(held, len(names))[table["example"]] == table["hospital"]).all()
    assert table["dice"].between(0, 1).all() and table["hd95_mm"].between(0, EMPTY_HD95_MM + 1e-3).all()
    # True volumes are those of the files, 4 mm voxels, whatever was predicted.
    voxels = data.volumes.table.set_index("subject")
    oedema = table[table["region"] == "oedema"]
    expected = voxels.loc[oedema["subject"], "voxels_oedema"].to_numpy() * 0.064
    np.testing.assert_allclose(oedema["volume_ml"], expected, atol=1e-4)
    rows = record.metrics[record.metrics["split"] == segmenting.WHOLE_VOLUMES]
    assert set(rows["metric"]) >= {f"{score}/{region}" for score in ("dice", "hd95_mm") for region in REGIONS}
    for client, selected in record.environment["selected_round"].items():
        mine = rows[rows["client"] == client]
        assert set(mine["round"]) == {selected}
        for region, part in table[table["client"] == client].groupby("region"):
            for score in segmenting.SCORES:
                found = mine[mine["metric"] == f"{score}/{region}"]["value"]
                assert found.item() == pytest.approx(part[score].mean(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("method", ROUNDS)
def test_kept_weights_give_the_published_scores_again(records, method):
    record, chosen = records[method], config(method)
    data, held = data_of(chosen), held_by(method)
    volumes = segmenting.volumes_as_taken(chosen, data, held)
    model = segmenter_training.new_segmenter(chosen, volumes)
    subjects = [data.volumes.subjects[i] for i in held.split.test]
    weights = selected_weights(record, train=False)
    assert set(weights) == set(models_of(method))
    for client in list(weights)[:1]:  # of those alone one is enough
        again = segmenter_training.volume_scores(model, weights[client], volumes, subjects)
        published = record.predictions[record.predictions["client"] == client].reset_index(drop=True)
        assert published[["subject", "region"]].equals(again[["subject", "region"]])
        for score in ("dice", "hd95_mm", "volume_ml", "volume_error_ml"):
            np.testing.assert_allclose(published[score], again[score], atol=1e-5)


def test_the_record_is_found_and_not_trained_again(records, monkeypatch):
    monkeypatch.setattr(segmenting, "train", lambda *_, **__: pytest.fail("trained again"))
    for method, record in records.items():
        assert run(config(method), experiment="segmentation", progress=False).path == record.path


def test_weights_of_followed_rounds(records):
    """A federation's only: one file a followed round, and each round is another model."""
    kept = {}
    for number in segmenting.followed_rounds(config("fedavg")):
        with np.load(segmenting.followed_path(records["fedavg"].path.name, number)) as arrays:
            kept[number] = [arrays[f"arr_{position}"] for position in range(len(arrays.files))]
    assert list(kept) == [1, 2, 3]
    for one, other in ((1, 2), (2, 3)):
        assert any(not np.array_equal(a, b) for a, b in zip(kept[one], kept[other], strict=True))
    (best,) = selected_weights(records["fedavg"], train=False).values()
    selected = records["fedavg"].environment["selected_round"]["all"]
    assert all(np.array_equal(a, b) for a, b in zip(best, kept[selected], strict=True))
    followed = {path.name.rsplit("_round", 1)[0] for path in (paths.cache_root() / "models").glob("*_round*.npz")}
    assert followed == {records["fedavg"].path.name}


class Stopped(Exception):
    """In place of a power cut."""


def everything(record):
    """All that a run decides, as bytes: tables, selected weights and followed rounds."""
    found = {name: (record.path / name).read_bytes() for name in ("metrics.csv", "predictions.csv")}
    for path in (paths.cache_root() / "models").glob(f"{record.path.name}_*.npz"):
        with np.load(path) as arrays:
            found |= {f"{path.name}/{name}": arrays[name].tobytes() for name in arrays.files}
    return found


def test_a_run_that_was_stopped_goes_on(records, monkeypatch):
    """The same bits as in one go; what the run in one go left is put aside."""
    record, chosen = records["fedavg"], config("fedavg")
    whole = everything(record)
    aside = record.path.rename(record.path.with_name(".aside"))
    models = list((paths.cache_root() / "models").glob(f"{record.path.name}_*.npz"))
    assert len(models) == 1 + ROUNDS["fedavg"]
    for path in models:
        path.unlink()
    save, saved = rounds.save_checkpoint, []

    def save_and_stop(path, **content):
        save(path, **content)
        saved.append(content["done"])
        if saved == [1]:
            raise Stopped

    monkeypatch.setattr(rounds, "save_checkpoint", save_and_stop)
    again = {"experiment": "segmentation", "progress": False, "checkpoint_interval_s": 0}
    with pytest.raises(Stopped):
        run(chosen, **again)
    assert not record.path.exists()
    resumed = everything(run(chosen, **again))
    shutil.rmtree(aside)
    assert saved == [1, 2, 3]  # nothing was done twice
    assert set(resumed) == set(whole) and [name for name in whole if resumed[name] != whole[name]] == []
    assert not list(paths.checkpoints_root().rglob("*.npz"))
