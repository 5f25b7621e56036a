"""Explaining for real, shrunk: computed once, found again, never half-written; weights that are trained again."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from fl_utils.data.markers import mark
from fl_utils.data.types import DataError
from fl_utils.experiments import explain_models, explain_plan, explaining
from fl_utils.experiments import run as run_module
from fl_utils.experiments.explaining import explain, images_of, records_of, upsampled
from fl_utils.experiments.measured import Content, load, write
from fl_utils.experiments.run import selected_weights
from fl_utils.records import RecordError

ARMS = ("centralized", "local", "fedavg", "shuffled", "local_marked_1", "fedavg_marked_1")


@pytest.fixture(scope="module")
def tiny(folders):
    """A plan of one seed, one round, 28 pixels and few arms."""
    settings = explain_plan.ExplainSettings((0,), {"phantom_chest": 1}, image_size_px=28, num_images=120, images_per_class=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(explain_plan.SETTINGS, "smoke", settings)
        whole = explain_plan.arms_of
        few = lambda dataset: {arm: whole(dataset)[arm] for arm in ARMS}  # noqa: E731
        patch.setattr(explain_plan, "arms_of", few)
        patch.setattr(explaining, "arms_of", few)
        yield explain("smoke", "phantom_chest", 0, progress=False)


def test_the_tables_hold_every_model_image_and_map(tiny):
    assert len(tiny.examples) == 4 and (np.diff(tiny.examples) > 0).all()
    images, labels, masks = images_of(tiny)
    assert images.shape == (4, 28, 28, 1) and np.bincount(labels).tolist() == [2, 2]
    # 3 common models with 4 cams and 2 baselines, 4 hospitals with two cams each.
    assert tiny.scores.groupby(["model", "client", "cam"]).size().eq(4).all() and len(tiny.scores) == 4 * (3 * 6 + 4 * 2)
    found = tiny.scores["pointing"].notna()
    assert (tiny.scores.loc[found, "label"] == 1).all() and found.sum() == len(tiny.scores) / 2
    chance = tiny.scores[found].groupby("example")["chance"].first()
    np.testing.assert_allclose(chance, masks[labels == 1].mean(axis=(1, 2)), rtol=1e-3)
    for column in ("deletion", "insertion", "probability"):
        assert tiny.scores[column].between(0, 1).all()
    # 8 models (7 trained, one never), each pair once, by label, for two cams.
    assert len(tiny.agreement) == 2 * 2 * 8 * 7 / 2
    assert set(tiny.sanity["model"]) == {"centralized", "fedavg"} and tiny.sanity["layer"].iloc[0] == "logits"
    assert set(tiny.shortcut["arm"]) == set(ARMS) - {"shuffled"}
    assert set(tiny.shortcut.loc[tiny.shortcut["arm"].str.startswith("local"), "client"]) == {"0"}
    cams = ("grad_cam", "hires_cam")
    assert set(tiny.maps) == {(arm, cam) for arm in ("centralized", "local", "fedavg") for cam in cams}
    assert all(maps.dtype == np.uint8 and maps.shape == (4, 7, 7) for maps in tiny.maps.values())
    marked = {(arm, cam): 2 for arm in ("local_marked_1", "fedavg_marked_1") for cam in cams}
    assert {key: len(maps) for key, maps in tiny.marked_maps.items()} == marked
    assert set(records_of(tiny)) == set(ARMS) == set(tiny.facts["runs"])


def test_kept_maps_upsampled_are_the_models_maps(tiny):
    """The grid in 256 steps, upsampled afterwards, is what `explain.maps` gives at once."""
    config = run_module.ExperimentConfig(**records_of(tiny)["fedavg"].config)
    looked = explain_models.Looked(run_module.dataset_of("phantom_chest", 28, 120), tiny.examples, config, 0)
    compared = 0
    for arm in ("centralized", "fedavg"):
        maps = looked.maps(selected_weights(records_of(tiny)[arm])["all"])
        for one, other in zip(maps, upsampled(tiny.maps[arm, "grad_cam"], 28), strict=True):
            if one.max() == 0:
                assert other.max() == 0
                continue
            # Both are scaled by the grid's maximum, which upsampling may only lower.
            scale = (one * other).sum() / (other * other).sum()
            np.testing.assert_allclose(one, scale * other, atol=1.01 * scale)
            compared += 1
    assert compared > 0


def test_a_second_call_loads(tiny, monkeypatch):
    monkeypatch.setattr(explaining, "_computed", lambda *a: pytest.fail("computed again"))
    monkeypatch.setenv("FL_UTILS_NO_TRAINING", "1")
    again = explain("smoke", "phantom_chest", 0, progress=False)
    for table in ("scores", "agreement", "sanity", "shortcut"):
        pd.testing.assert_frame_equal(getattr(again, table), getattr(tiny, table))
    np.testing.assert_array_equal(again.examples, tiny.examples)
    assert again.facts == tiny.facts
    for kind in ("maps", "marked_maps"):
        assert set(getattr(again, kind)) == set(getattr(tiny, kind))
        for arm, maps in getattr(tiny, kind).items():
            np.testing.assert_array_equal(getattr(again, kind)[arm], maps)


def test_other_settings_are_other_scores_and_not_computed_where_that_is_forbidden(tiny, monkeypatch):
    settings = dataclasses.replace(explain_plan.SETTINGS["smoke"], images_per_class=1)
    monkeypatch.setitem(explain_plan.SETTINGS, "smoke", settings)
    monkeypatch.setenv("FL_UTILS_NO_TRAINING", "1")
    with pytest.raises(RecordError, match="There are no scores phantom_chest_s0_.*make reproduce PROFILE=smoke"):
        explain("smoke", "phantom_chest", 0, progress=False)


def content(tiny):
    tables = {name: getattr(tiny, name) for name in ("scores", "agreement", "sanity", "shortcut")}
    return Content(tables, tiny.facts, {"examples": tiny.examples})


def test_scores_are_written_whole_or_not_at_all(tiny, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(RecordError, match="could not be written .*No space left on device. Free some space"):
        write(tmp_path / "scores" / "one", explaining._LAYOUT, content(tiny))
    assert list((tmp_path / "scores").iterdir()) == []
    monkeypatch.setattr(np, "savez_compressed", lambda *args, **kwargs: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception):
        write(tmp_path / "scores" / "one", explaining._LAYOUT, content(tiny))
    assert list((tmp_path / "scores").iterdir()) == []


def test_damaged_scores_say_what_to_do(tiny, tmp_path):
    folder = tmp_path / "one"
    write(folder, explaining._LAYOUT, content(tiny))
    (folder / "maps.npz").write_bytes(b"no archive")
    with pytest.raises(RecordError, match="one cannot be read: .* Delete it and run again"):
        load(folder, explaining._LAYOUT)
    (folder / "scores.csv").unlink()
    with pytest.raises(RecordError, match="scores.csv"):
        load(folder, explaining._LAYOUT)


def test_marked_cases_are_the_sick_with_the_mark(tiny):
    images, labels, _ = images_of(tiny)
    marked, maps, titles = explaining.marked_cases(tiny, num=1)
    np.testing.assert_array_equal(marked, mark(images[labels == 1][:1]))
    assert set(maps) == set(tiny.marked_maps) and titles == ["pneumonia, marked"]
    assert all(one.shape == (1, 28, 28) and one.min() >= 0 and one.max() <= 1 + 1e-6 for one in maps.values())


def test_records_that_are_gone_are_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("FL_UTILS_RESULTS", str(tmp_path))
    with pytest.raises(RecordError, match="is not a whole record"):
        records_of(tiny)


@pytest.mark.parametrize("arm", ["centralized", "local"])
def test_weights_are_trained_again_with_equal_bits(tiny, arm, tmp_path, monkeypatch):
    record = records_of(tiny)[arm]
    kept = selected_weights(record)
    assert set(kept) == ({"0", "1", "2", "3"} if arm == "local" else {"all"})
    monkeypatch.setenv("FL_UTILS_CACHE", str(tmp_path))
    with pytest.raises(RecordError, match="trains them again"):
        selected_weights(record, train=False)
    monkeypatch.setenv("FL_UTILS_NO_TRAINING", "1")
    with pytest.raises(RecordError, match="are not in .*models, and this command does not train"):
        selected_weights(record)
    monkeypatch.delenv("FL_UTILS_NO_TRAINING")
    again = selected_weights(record, progress=False)
    assert set(again) == set(kept)
    for client, weights in kept.items():
        for one, other in zip(weights, again[client], strict=True):
            np.testing.assert_array_equal(one, other)
    # And they are kept now: nothing is trained a third time.
    monkeypatch.setattr(run_module, "_trained", lambda *args, **kwargs: pytest.fail("trained again"))
    third = selected_weights(record)
    for client, weights in again.items():
        for one, other in zip(weights, third[client], strict=True):
            np.testing.assert_array_equal(one, other)


def test_weights_without_images_cannot_be_had(tiny, tmp_path, monkeypatch):
    def nothing(*args):
        raise DataError("brain_mri is not at hand")

    monkeypatch.setenv("FL_UTILS_CACHE", str(tmp_path))
    monkeypatch.setattr(run_module, "data_of", nothing)
    with pytest.raises(DataError, match="not at hand"):
        selected_weights(records_of(tiny)["fedavg"])


def test_the_same_test_images_for_every_seed_and_arm():
    data = run_module.dataset_of("phantom_chest", 28, 120)
    chosen = [
        explaining.test_examples(data, explain_plan.explain_config("quick", "phantom_chest", arm, seed), 3)
        for arm in ("centralized", "fedavg", "fedavg_marked_1") for seed in (0, 1)
    ]  # fmt: skip
    assert all(np.array_equal(chosen[0], other) for other in chosen) and len(chosen[0]) == 6
    assert np.bincount(data.labels[chosen[0]]).tolist() == [3, 3]
