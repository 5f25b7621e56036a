"""Sums in secret: within the stated errors, nothing wrong taken for right, measured once and found again; the story."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_utils import records, seeding
from fl_utils.config import ExperimentConfig
from fl_utils.experiments import secure_costs, secure_sums
from fl_utils.experiments.classifying import trained_model
from fl_utils.experiments.hospitals import as_taken, share_out
from fl_utils.experiments.measured import Content, load, write
from fl_utils.experiments.plans import base_config
from fl_utils.experiments.run import data_of, run, selected_weights
from fl_utils.experiments.secret_numbers import five_in_shares, recombined, sum_in_shares, what_one_share_tells
from fl_utils.experiments.secure_costs import WAYS, aggregation, encrypted_head_table
from fl_utils.experiments.secure_sums import measure
from fl_utils.records import RecordError
from fl_utils.trust import encrypted, parties, shares
from fl_utils.trust.messages import MessageError
from fl_utils.trust.shares import ShareError

NAMES = ("north", "south", "east", "west")
EXAMPLES = dict(zip(NAMES, (40, 8, 900, 120)))
SHAPES = [(30, 20), (20,), ()]


def made_updates(names=NAMES, scale=0.1):
    rng = np.random.default_rng(0)
    return {name: [scale * rng.normal(size=shape).astype(np.float32) for shape in SHAPES] for name in names}


@pytest.fixture(scope="module")
def table():
    return aggregation(made_updates(), EXAMPLES).set_index("way")


# --- the costs and errors of a sum ---


def test_each_way_gives_the_mean_within_its_stated_error(table):
    assert table.index.tolist() == list(WAYS)
    assert table["hospitals"].eq(4).all() and table["values"].eq(621).all()
    assert (table["max_error"] <= table["error_bound"]).all() and table["max_error"].gt(0).all()
    total = sum(EXAMPLES.values())
    mean = sum(EXAMPLES[name] * np.concatenate([part.ravel() for part in update]).astype(float)
               for name, update in made_updates().items()) / total
    largest = np.abs(mean).max()
    np.testing.assert_allclose(table["relative_error"], table["max_error"] / largest, rtol=1e-12)
    # The bounds are those that the modules state; float32's is below one unit in the last place of the largest terms.
    stated = {"CKKS": encrypted.SUM_ERROR / total + 1e-6 * largest, "Shamir": 4 * 2.0**-25 / total}
    for way, bound in stated.items():
        assert bound < table.loc[way, "error_bound"] < 1.0001 * bound  # float64's rounding is the rest
    assert table.loc["plain", "error_bound"] < 1e-6


def test_the_error_is_that_of_the_mean_which_came_out(monkeypatch):
    """An update that is changed after the exact mean was taken shows, by as much as its weight."""
    genuine = encrypted.Hospital.encrypt_update

    def shifted(hospital, update, *, weight, round_num):
        moved = 0.5 if hospital.name == "south" else 0.0
        return genuine(hospital, [np.asarray(update[0]) + moved], weight=weight, round_num=round_num)

    monkeypatch.setattr(encrypted.Hospital, "encrypt_update", shifted)
    found = aggregation(made_updates(), EXAMPLES, repetitions=1).set_index("way")["max_error"]
    assert found["CKKS"] == pytest.approx(0.5 * 8 / 1068, rel=1e-3)
    assert found["plain"] < 1e-6 and found["Shamir"] < 1e-6


def test_seconds_and_bytes_are_counted(table):
    seconds = table[[name for name in table if name.endswith("_seconds")]]
    assert (seconds > 0).all().all() and len(seconds.columns) == 8
    assert table.loc["plain", ["upload_bytes", "download_bytes"]].tolist() == [4 * 621] * 2
    # 626 values with weight and marks fit into one ciphertext of two polynomials of 8192 numbers of 100 bits.
    assert 8192 * 2 * 100 / 8 < table.loc["CKKS", "upload_bytes"] < 8192 * 2 * 8 * 3
    # 8 bytes a value (pickled 10, and headers) to three others, and of the sum 8 to the aggregator.
    assert 4 * 8 * 622 <= table.loc["Shamir", "upload_bytes"] < (3 * 10 + 8) * 622 + 3 * 500
    assert 3 * 8 * 622 + 4 * 621 <= table.loc["Shamir", "download_bytes"] < table.loc["Shamir", "upload_bytes"]
    for part in ("server", "decrypt"):
        assert (table["wall_seconds"] > table[f"{part}_seconds"])[["plain", "CKKS"]].all()
    # Four Python processes that import NumPy: their time is counted, though it is not this process's.
    assert table.loc["Shamir", "cpu_seconds"] > 0.2


@pytest.mark.parametrize(("hospitals", "threshold", "said"), [
    (4, None, "Any 3 hospitals together read every update; up to 2 of them"),
    (3, None, "Any 2 hospitals together read every update; one of them"),
    (2, None, "Any 2 hospitals .* With two hospitals, the mean tells"),
    (4, 3, "Any 4 hospitals together read every update; up to 3 of them"),
])
def test_who_must_collude_follows_the_threshold_that_was_used(hospitals, threshold, said, monkeypatch):
    used = []

    def noted(values, *, threshold, timeout_s):
        used.append(threshold)
        split = [shares.split(shares.to_field(v, terms=len(values)), parties=len(values), threshold=threshold)
                 for v in values.values()]
        return parties.SecureSum(sum(values.values()), shares.add(*split), dict.fromkeys(values, 1), 1.0, 1.0)

    monkeypatch.setattr(secure_costs.parties, "secure_sum", noted)
    names = NAMES[:hospitals]
    found = aggregation(made_updates(names), {n: EXAMPLES[n] for n in names}, threshold=threshold, repetitions=1)
    text = found.set_index("way")["who_must_collude"]
    assert pd.Series([text["Shamir"]]).str.contains(said, regex=True).all()
    assert f"Any {used[0] + 1} hospitals" in text["Shamir"] and found["max_error"].le(found["error_bound"]).all()
    assert "any one hospital" in text["CKKS"] and "the server reads every update" in text["plain"]
    assert text.str.contains("With two hospitals").all() == (hospitals == 2)


def test_a_tampered_message_or_share_is_an_error_not_a_row(monkeypatch):
    genuine = encrypted.Hospital.encrypt_update

    def changed(hospital, *args, **kwargs):
        message = bytearray(genuine(hospital, *args, **kwargs))
        message[-20] ^= hospital.name == "east"
        return bytes(message)

    with monkeypatch.context() as patch:
        patch.setattr(encrypted.Hospital, "encrypt_update", changed)
        with pytest.raises(MessageError, match="'east'.*tag does not fit"):
            aggregation(made_updates(), EXAMPLES, repetitions=1)
    result = parties._Party.result

    def wrong(party):
        found = result(party)
        found["share"][7] ^= party.name == "east"
        return found

    monkeypatch.setattr(parties._Party, "result", wrong)
    with pytest.raises(ShareError, match="do not lie on one polynomial"):  # with m - 2 it is noticed
        aggregation(made_updates(), EXAMPLES, repetitions=1)


@pytest.mark.parametrize(("updates", "examples", "said"), [
    ({"a": [np.ones(2)]}, {"a": 1}, "two or more hospitals"),
    ({"a": [np.ones(2)], "b": [np.ones(2)]}, {"a": 1, "c": 1}, "the same two"),
    ({"a": [np.ones(2)], "b": [np.ones(3)]}, {"a": 1, "b": 1}, "'b' has the shapes .*same model"),
    ({"a": [np.ones(2)], "b": [np.ones(1), np.ones(1)]}, {"a": 1, "b": 1}, "'b' has the shapes"),
    ({"a": [np.ones(2)], "b": [np.array([1, np.nan])]}, {"a": 1, "b": 1}, "'b' has 1 values in array 0 that are not"),
    ({"a": [np.ones(2)], "b": [np.ones(2)]}, {"a": 1, "b": 0}, "weight of 'b' is 0"),
])
def test_updates_that_cannot_be_added_are_refused(updates, examples, said):
    with pytest.raises(ValueError, match=said):
        aggregation(updates, examples)


# --- the encrypted last layer ---


def test_encrypted_logits_are_those_of_the_plain_layer():
    rng = np.random.default_rng(1)
    features, kernel, bias = rng.normal(size=(3, 12)), rng.normal(size=(12, 4)), rng.normal(size=4)
    table = encrypted_head_table(features, kernel, bias, np.array([3, 0, 1]))
    assert table["image"].tolist() == [0, 1, 2] and table["label"].tolist() == [3, 0, 1]
    assert table["predicted"].tolist() == (features @ kernel + bias).argmax(axis=1).tolist()
    assert table["same_prediction"].all() and table["max_error"].gt(0).all()
    assert (table["max_error"] <= table["error_bound"]).all() and table["error_bound"].max() < 1e-3
    assert table["context_bytes"].nunique() == 1 and table["context_bytes"].gt(10e6).all()
    assert table["seconds"].gt(0).all() and table["upload_bytes"].gt(8192 * 2).all()
    # Four logits; each has half of the bits left, the multiplication used the rest up.
    assert (table["download_bytes"] / table["upload_bytes"]).between(1, 4).all()


def test_another_bias_in_the_head_is_seen(monkeypatch):
    class Wrong(secure_costs.EncryptedHead):
        def __init__(self, weights, bias, context):
            super().__init__(weights, bias + np.array([0.0, 9.0]), context)

    monkeypatch.setattr(secure_costs, "EncryptedHead", Wrong)
    table = encrypted_head_table(np.ones((1, 3)), np.ones((3, 2)), np.array([1.0, 0.0]), [0], repetitions=1)
    assert not table["same_prediction"].any() and table["max_error"].item() == pytest.approx(9)


def test_features_and_labels_must_fit():
    for features, labels in ((np.ones(3), [0]), (np.ones((2, 3)), [0]), (np.ones((0, 3)), [])):
        with pytest.raises(ValueError, match=r"expected \[N, F\] and \[N\]"):
            encrypted_head_table(features, np.ones((3, 2)), np.ones(2), labels)


# --- measured on a run ---


@pytest.fixture(scope="module")
def record(folders):
    """A real federation of one round."""
    config = base_config("smoke", "phantom_chest", method="fedavg", model="small_cnn", client_learning_rate=0.05,
                         total_rounds=1)
    return run(config, experiment="secure_sums_test", progress=False)


@pytest.fixture(scope="module")
def measured(record):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secure_sums, "REPETITIONS", 1)
        yield measure("smoke", record=record, progress=False)


def test_the_updates_are_those_of_the_federation(record):
    """From the initial weights, the mean of the updates leads to TFF's weights after the round."""
    from fl_utils.experiments.training import hospital_updates
    from fl_utils.models.classifiers import build_model

    config = ExperimentConfig(**record.config)
    data, seed = data_of(config), seeding.derive_seed(config.seed, "init", config.model)
    hospitals = share_out(data, config)
    start = build_model(config.model, data.images.shape[1:], data.num_classes, seed=seed).get_weights()
    updates = hospital_updates(config, as_taken(data, hospitals, config), hospitals, start, 1)
    sizes = [len(own) for own in hospitals.train]
    for before, after, *parts in zip(start, selected_weights(record)["all"], *updates, strict=True):
        mean = np.average(parts, axis=0, weights=sizes)
        np.testing.assert_allclose(before - mean, after, atol=1e-6)
        assert np.abs(mean).max() > 1e-4


def test_what_was_measured_is_of_the_runs_model_and_images(record, measured):
    facts, added = measured.facts, measured.aggregation
    assert facts["run"] == record.path.name and facts["round"] == 2 and facts["synthetic"] is True
    assert facts["num_parameters"] == record.environment["num_parameters"] == added["values"].iloc[0]
    assert sum(facts["num_examples"].values()) == np.sum(record.environment["class_counts"]["train"])
    assert facts["repetitions"] == 1 and facts["cpu_count"] > 0
    assert {"tenseal", "mpyc", "numpy"} <= set(facts["versions"])
    assert added["way"].tolist() == list(WAYS) and (added["max_error"] <= added["error_bound"]).all()
    assert added["hospitals"].eq(4).all() and added["relative_error"].between(1e-12, 1e-3).all()
    head, test = measured.head, record.predictions.query("client == 'all'").set_index("example")
    assert len(head) == 8 and head["label"].value_counts().tolist() == [4, 4]
    # The selected model's own test predictions, of the record, are those of the encrypted layer.
    probabilities = test.loc[head["image"], ["p0", "p1"]].to_numpy()
    assert head["predicted"].tolist() == probabilities.argmax(axis=1).tolist() and head["same_prediction"].all()
    assert head["label"].tolist() == test.loc[head["image"], "label"].tolist()
    assert (head["max_error"] <= head["error_bound"]).all()


def test_a_runs_model_has_its_weights_and_its_own_statistics_where_none_travelled(record):
    from fl_utils.models.classifiers import build_model

    config = ExperimentConfig(**record.config).model_copy(update={"model": "norm_cnn_batch"})
    data = data_of(config)
    built = build_model(config.model, data.images.shape[1:], data.num_classes)
    learned, statistics = ([part.numpy() for part in parts] for parts in (built.trainable_variables, built.non_trainable_variables))
    moved = [part + 1 for part in learned + statistics]
    for weights, kept in ((moved, moved), (moved[: len(learned)], moved[: len(learned)] + statistics)):
        model = trained_model(config, data, weights)
        found = model.trainable_variables + model.non_trainable_variables
        for variable, weight in zip(found, kept, strict=True):
            np.testing.assert_array_equal(variable.numpy(), weight)
    for wrong in (moved[:-1], moved[: len(learned) - 1], [*moved, moved[0]]):
        with pytest.raises(ValueError):
            trained_model(config, data, wrong)


def test_a_second_call_loads(record, measured, monkeypatch):
    monkeypatch.setattr(secure_sums, "_measured", lambda *args: pytest.fail("measured again"))
    monkeypatch.setenv("FL_UTILS_NO_TRAINING", "1")
    again = measure("smoke", record=record)
    for name in ("aggregation", "head"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(measured, name))
    assert again.facts == measured.facts and again.path == measured.path
    assert sorted(path.name for path in again.path.iterdir()) == ["aggregation.csv", "facts.json", "head.csv"]


def test_what_is_written_is_what_is_loaded(measured, tmp_path):
    tables = {"aggregation": measured.aggregation, "head": measured.head}
    write(tmp_path / "one", secure_sums._LAYOUT, Content(tables, measured.facts))
    again = load(tmp_path / "one", secure_sums._LAYOUT)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table)
    assert again.facts == measured.facts
    (tmp_path / "one" / "facts.json").write_text("{")
    with pytest.raises(RecordError, match="one cannot be read: .*Delete it and run again"):
        load(tmp_path / "one", secure_sums._LAYOUT)


def test_measurements_are_written_whole_or_not_at_all(measured, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    content = Content({"aggregation": measured.aggregation, "head": measured.head}, measured.facts)
    with pytest.raises(RecordError, match="The measurements one could not be written .*No space left on device"):
        write(tmp_path / "sums" / "one", secure_sums._LAYOUT, content)
    assert list((tmp_path / "sums").iterdir()) == []


def test_nothing_is_measured_where_that_is_forbidden(record, measured, monkeypatch):
    monkeypatch.setenv("FL_UTILS_NO_TRAINING", "1")
    with pytest.raises(RecordError, match="no measurements phantom_chest_s0_.*make reproduce PROFILE=quick"):
        measure("quick", record=record)
    monkeypatch.setattr(secure_sums, "VERSION", -1)  # another meaning is another record
    with pytest.raises(RecordError, match="no measurements phantom_chest_s0_.*make reproduce PROFILE=smoke"):
        measure("smoke", record=record)


@pytest.mark.parametrize("fields", [
    {"method": "centralized"}, {"method": "scaffold", "client_momentum": 0.0},
    {"method": "local_norm", "model": "norm_cnn_group", "client_learning_rate": 0.05},
    {"method": "fedavg", "privacy_unit": "hospital", "epsilon": 8.0, "delta": 1e-3, "clipping_norm": 1.0,
     "class_weighting": False},
])
def test_runs_of_another_kind_are_refused(record, fields):
    config = base_config("smoke", "phantom_chest", **fields)
    other = records.RunRecord(config.model_dump(), *[record.metrics] * 2, {}, record.path.with_name("other"))
    with pytest.raises(ValueError, match=f"The run other is of method '{fields['method']}'.*expected a federated"):
        measure("smoke", record=other)


# --- the number 5 ---


def test_five_is_split_and_any_two_parties_rebuild_it():
    table = five_in_shares()
    assert table["party"].tolist() == [1, 2, 3] and table["share"].between(0, 100).all()
    assert recombined(table) == 5
    for left_out in range(3):
        assert recombined(table.drop(left_out)) == 5
    with pytest.raises(ShareError, match="There are 1 shares"):
        recombined(table[:1])
    with pytest.raises(ShareError, match="do not lie on one polynomial"):
        recombined(table.assign(share=(table["share"] + [1, 0, 0]) % 101))


@settings(deadline=None, max_examples=8)
@given(secret=st.integers(0, 100), parties_=st.integers(2, 6), party=st.data())
def test_one_share_is_a_share_of_every_secret(secret, parties_, party):
    table = five_in_shares(secret, parties=parties_)
    known = party.draw(st.integers(1, parties_))
    told = what_one_share_tells(table, range(101), party=known)
    share = table.set_index("party")["share"]
    assert (told[f"share of party {known}"] == share[known]).all()
    # Each candidate's line is one of its own, and recombines to it; the true one has all shares.
    assert told["polynomial"].nunique() == 101
    columns = [f"share of party {x}" for x in range(1, parties_ + 1)]
    for _, row in told.iterrows():
        line = pd.DataFrame({"party": range(1, parties_ + 1), "share": row[columns].astype(int).tolist()})
        assert recombined(line) == row["secret"]
    assert told.set_index("secret").loc[secret, columns].tolist() == share.tolist()
    # What another party holds tells them apart: no two candidates agree there.
    other = next(x for x in range(1, parties_ + 1) if x != known)
    assert told[f"share of party {other}"].nunique() == 101


@settings(deadline=None, max_examples=30)
@given(numbers=st.lists(st.integers(0, 20), min_size=2, max_size=5), data=st.data())
def test_a_sum_of_added_shares_is_the_sum(numbers, data):
    threshold = data.draw(st.integers(1, len(numbers) - 1))
    named = {f"h{i}": number for i, number in enumerate(numbers)}
    table = sum_in_shares(named, threshold=threshold)
    assert table["hospital"].tolist() == [*named, "sum"] and table["number"].tolist() == [*numbers, sum(numbers)]
    columns = table[[f"share of {name}" for name in named]]
    # Each column adds up by itself, and each row is shares of its number.
    np.testing.assert_array_equal(columns[:-1].sum() % 101, columns.iloc[-1])
    for number, row in zip(table["number"], columns.to_numpy(), strict=True):
        line = pd.DataFrame({"party": range(1, len(numbers) + 1), "share": row})
        assert recombined(line, threshold=threshold) == number


def test_the_story_refuses_what_does_not_fit():
    assert sum_in_shares()["number"].tolist() == [5, 12, 30, 47]
    with pytest.raises(ValueError, match="below the modulus 101"):
        sum_in_shares({"a": 60, "b": 41})
    with pytest.raises(ValueError, match="0 or more"):
        sum_in_shares({"a": -1, "b": 4})
    with pytest.raises(ValueError, match="integers from 0 to 100"):
        five_in_shares(101)
    for wrong in ({"party": 4}, {"secrets": [101]}):
        with pytest.raises(ValueError, match="one of the parties"):
            what_one_share_tells(five_in_shares(), **wrong)
