"""The parts of the deployed federation, each by itself: no server, no network; processes only where one is put down."""

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from flwr.common import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node

from fl_utils import children
from fl_utils.config import ConfigError, make_config
from fl_utils.deployment.flower import Local, board, fingerprint, journal, local, messages, put_down, read_federation, read_status
from fl_utils.deployment.flower.board import Board, read_events
from fl_utils.deployment.flower.coordinator import Coordinator
from fl_utils.deployment.flower.journal import Journal, read_journal
from fl_utils.deployment.flower.members import Members
from fl_utils.deployment.flower.office import Office, StageGrid
from fl_utils.deployment.server_step import ServerStep, misfit
from fl_utils.deployment.flower.settings import FederationError, hospital_folder, make_federation, write_federation
from fl_utils.deployment.tally import read_judged, tally
from fl_utils.learning.evaluation import curve_metrics
from fl_utils.learning.rounds import load_checkpoint


def config_of(**fields):
    usual = {
        "dataset": "phantom_brain", "method": "fedavg", "partition": "iid", "num_clients": 4, "seed": 0, "profile": "smoke",
        "image_size_px": 24, "model": "softmax_regression", "total_rounds": 3, "client_learning_rate": 0.05,
    }
    return make_config(**usual | fields)


def federation_of(run=None, **fields):
    return make_federation(**{"config": config_of(**run or {}), "class_names": ("no", "yes"), "min_hospitals": 3} | fields)


# --- settings ---

PRIVATE = {"epsilon": 3.0, "delta": 1e-3, "clipping_norm": 1.0}


@pytest.mark.parametrize(("run", "fields", "text"), [
    ({"method": "scaffold", "client_momentum": 0.0}, {}, "method 'scaffold' with model 'softmax_regression' cannot be deployed"),
    ({"method": "centralized", "partition": "pooled", "num_clients": 1}, {"min_hospitals": 1}, "method 'centralized'"),
    ({"encrypted": True}, {}, "without CKKS"),
    ({"attack": "sign_flip", "attack_fraction": 0.25, "attack_strength": 5.0, "aggregator": "mean"}, {}, "without an attack"),
    ({"clients_per_round": 2}, {}, "clients_per_round is set; all hospitals"),
    ({"privacy_unit": "hospital", **PRIVATE}, {}, "privacy_unit 'hospital' cannot be deployed; expected 'patient' or none"),
    ({"aggregator": "fltrust", "root_examples": 10}, {}, "aggregator 'fltrust' cannot be deployed; expected one of coordinate_median"),
    ({}, {"min_hospitals": 5}, "min_hospitals is 5 of 4 hospitals"),
    ({"aggregator": "coordinate_median"}, {"secure": {"threshold": 3}}, "a rule needs to see each update, a secure sum hides them"),
    ({}, {"secure": {"threshold": 2}, "min_hospitals": 2}, "secure.threshold is 2 of 4 hospitals; expected more than half, to all"),
    ({}, {"secure": {"threshold": 5}}, "secure.threshold is 5 of 4 hospitals"),
    ({}, {"secure": {"threshold": 3}, "min_hospitals": 4}, "min_hospitals is 4 and secure.threshold 3"),
    ({}, {"secure": {"threshold": 3, "clipping_range": float("inf")}}, "secure.clipping_range"),
    ({}, {"address": "127.0.0.1"}, "address is '127.0.0.1'; expected host:port"),
    ({}, {"address": "127.0.0.1:0"}, "expected host:port"),
    ({}, {"address": ":9092"}, "expected host:port"),
    ({}, {"address": "10.0.0.1:9092", "transport": "plain"}, "transport 'plain' at 10.0.0.1:9092: what is neither encrypted nor"),
    ({}, {"round_timeout_s": 0}, "round_timeout_s"),
    ({}, {"max_void_rounds": 0}, "max_void_rounds"),
    ({}, {"class_names": ("one",)}, "class_names"),
    ({}, {"format": 2}, "format"),
    ({}, {"patience": 3}, "patience"),
])
def test_what_cannot_be_deployed_is_refused_in_words(run, fields, text):
    with pytest.raises(ConfigError, match="This federation cannot be: ") as refused:
        federation_of(run, **fields)
    assert text in str(refused.value)


@pytest.mark.parametrize("fields", [
    {"secure": {"threshold": 3}}, {"secure": {"threshold": 4}}, {"transport": "plain"}, {"transport": "plain", "address": "[::1]:9092"},
    {"address": "server.example.org:9092"}, {"min_hospitals": 4}, {"join_timeout_s": 1.0},
])
def test_what_can_be_deployed_is_not_refused(fields):
    assert federation_of(**fields).min_hospitals


def test_the_fingerprint_tells_agreements_apart_but_not_addresses():
    one = federation_of()
    assert len(one.fingerprint) == 64 and one.fingerprint == federation_of(address="10.1.2.3:9999").fingerprint
    others = [
        federation_of({"client_learning_rate": 0.06}), federation_of({"seed": 1}), federation_of({"total_rounds": 4}),
        federation_of(class_names=("yes", "no")), federation_of(min_hospitals=2), federation_of(secure={"threshold": 3}),
        federation_of(secure={"threshold": 4}), federation_of(transport="plain"), federation_of(round_timeout_s=1.0),
    ]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)


@pytest.mark.parametrize("fields", [
    {}, {"secure": {"threshold": 3, "clipping_range": 0.1}, "join_timeout_s": 2.5, "address": "[::1]:9092", "transport": "plain"},
])
def test_what_was_written_down_is_read_again(tmp_path, fields):
    written = federation_of(**fields)
    write_federation(tmp_path, written)
    again = read_federation(tmp_path)
    assert again == written and again.fingerprint == written.fingerprint
    assert again.image_shape == (24, 24, 1) and again.host_and_port == ({True: "::1", False: "127.0.0.1"}[bool(fields)], 9092)


def test_a_missing_or_damaged_agreement_is_said_in_words(tmp_path):
    with pytest.raises(FederationError, match="There is no federation.json in .* Make a federation with `fl-utils federation init`"):
        read_federation(tmp_path)
    write_federation(tmp_path, federation_of())
    path, whole = tmp_path / "federation.json", (tmp_path / "federation.json").read_text()
    for damaged in (whole[:-20], "[]", "null", "\0\0", whole.replace("0.05", "-1"), whole.replace('"format"', '"formats"')):
        path.write_text(damaged)
        with pytest.raises(FederationError, match="federation.json cannot be used: "):
            read_federation(tmp_path)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(FederationError, match="cannot be used"):
        read_federation(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(FederationError, match="cannot be used"):
        read_federation(tmp_path)


def test_a_hospital_finds_its_folder_below_the_federations_or_is_given_it_alone(tmp_path):
    (tmp_path / "hospital_2").mkdir()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "key").touch()
    assert hospital_folder(tmp_path, 2) == tmp_path / "hospital_2"
    assert hospital_folder(tmp_path / "alone", 2) == tmp_path / "alone"
    assert hospital_folder(tmp_path, 3) == tmp_path / "hospital_3"  # where it would be


# --- messages ---


def over_the_line(message):
    """As Flower's serialisation hands it on."""
    return message_from_proto(message_to_proto(message))


def test_what_is_put_into_a_message_comes_out_of_it():
    facts = {"round": 3, "loss": 0.5, "text": "{}", "many": [1, 2, 3], "yes": True, "raw": b"\0\1"}
    arrays = [
        np.arange(6, dtype=np.float32).reshape(2, 3), np.float32(2.5), np.zeros((0, 4), np.float32), np.array([1, 2], np.int32),
        np.arange(12.0).reshape(3, 4).T,
    ]
    message = over_the_line(Message(messages.content_of(facts, arrays), dst_node_id=7, message_type="train", group_id="3"))
    again = messages.arrays_of(message)
    assert messages.facts_of(message) == facts and len(again) == len(arrays)
    for sent, received in zip(arrays, again, strict=True):
        assert sent.dtype == received.dtype and sent.shape == received.shape and (sent == received).all()
    bare = over_the_line(Message(messages.content_of({}), dst_node_id=7, message_type="query.finish"))
    assert messages.facts_of(bare) == {} and messages.arrays_of(bare) == []
    empty = over_the_line(Message(RecordDict(), dst_node_id=7, message_type="train"))
    assert messages.facts_of(empty) == {} and messages.arrays_of(empty) == []


def test_arrays_that_do_not_fit_the_model_are_described():
    model = [np.zeros((2, 3), np.float32), np.zeros(3, np.float32)]
    bad = model[0].copy()
    bad[0, 1], bad[1, 2] = np.nan, -np.inf
    assert misfit([array + 1 for array in model], model) is None
    assert misfit([], []) is None
    assert misfit(model[:1], model) == "1 arrays were sent, the model has 2"
    assert misfit([model[0].T, model[1]], model) == "array 0 is float32 (3, 2), the model's is float32 (2, 3)"
    assert misfit([model[0], model[1].astype(np.float64)], model) == "array 1 is float64 (3,), the model's is float32 (3,)"
    assert misfit([bad, model[1]], model) == "array 0 of shape (2, 3) holds 2 numbers that are not finite"
    texts = np.array([["a"] * 3] * 2)
    assert "array 0 is <U1 (2, 3)" in misfit([texts, model[1]], model)


# --- tally ---


def judged_text(labels, probabilities, part="test"):
    """What `Hospital.judge` says of these predictions."""
    number = probabilities.shape[1]
    confusion = np.bincount(labels * number + probabilities.argmax(axis=1), minlength=number**2)
    loss = -np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-7, 1.0)).sum()
    return {f"{part}_confusion": confusion.tolist(), f"{part}_loss": float(loss)}


@pytest.mark.parametrize("seed", range(5))
def test_scores_from_the_hospitals_sums_are_those_of_all_their_predictions(seed):
    rng = np.random.default_rng(seed)
    judged, everything, own = {}, {}, {}
    for part in ("validation", "test"):
        total, classes = 300, 4
        labels, probabilities = rng.integers(0, classes - 1, total), rng.dirichlet(np.full(classes, 0.3), total)  # the last is absent
        probabilities[0] = np.eye(classes)[(labels[0] + 1) % classes]  # a sure mistake: its loss is clipped
        everything[part] = curve_metrics(labels, probabilities)
        whose = rng.choice([0, 1, 2, 7], total)
        whose[:4] = 0, 1, 2, 7
        for hospital in (0, 1, 2, 7):
            mine = whose == hospital
            judged.setdefault(hospital, {}).update(judged_text(labels[mine], probabilities[mine], part))
            own[hospital, part] = curve_metrics(labels[mine], probabilities[mine])
    rows, score = tally(12, {hospital: read_judged(json.dumps(sums), 4) for hospital, sums in judged.items()})
    found = {(client, split, metric): value for _, client, split, metric, value in rows}
    assert len(found) == len(rows) == 2 * 5 * 3 and {row[0] for row in rows} == {12}
    for part, split in (("validation", "validation"), ("test", "own_test")):
        for metric, value in everything[part].items():
            assert found["all", part, metric] == pytest.approx(value, abs=1e-9)
            for hospital in (0, 1, 2, 7):
                assert found[str(hospital), split, metric] == pytest.approx(own[hospital, part][metric], abs=1e-9)
    assert score == pytest.approx((everything["validation"]["balanced_accuracy"], -everything["validation"]["loss"]), abs=1e-9)


def test_hospitals_without_validation_images_do_not_select():
    test_only = read_judged(json.dumps({"test_confusion": [1, 0, 0, 2], "test_loss": 0.3}), 2)
    rows, score = tally(1, {0: test_only, 1: {}})
    assert score == (-np.inf, -np.inf) and {row[1:3] for row in rows} == {("all", "test"), ("0", "own_test")}
    assert tally(1, {}) == ([], (-np.inf, -np.inf))


@pytest.mark.parametrize("text", [
    "", "no json", "[]", "3", "null", '{"test_confusion": [1, 2, 3], "test_loss": 1}', '{"test_confusion": [1, 2, 3, 4]}',
    '{"test_confusion": [1, 2, 3, -1], "test_loss": 1}', '{"test_confusion": [1, 2, 3, 4], "test_loss": NaN}',
    '{"test_confusion": "many", "test_loss": 1}',
    '{"test_confusion": [1, 2, 3, 4], "test_loss": "x"}', '{"test_confusion": [1, 2, 3, 1e999], "test_loss": 1}',
    '{"test_confusion": [1, 2, 3, 99999999999999999999999], "test_loss": 1}', '{"test_confusion": null, "test_loss": null}',
    '{"test_confusion": [0, 0, 0, 0], "test_loss": 0}', '{"test_confusion": [1, 2, 3, 9223372036854775807], "test_loss": 1}',
    '{"test_confusion": [[1, 2], [3]], "test_loss": 1}', pytest.param("[" * 100_000, id="deep"),
])
def test_scores_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="its scores cannot be read: "):
        read_judged(text, 2)


# --- the server's step ---

SHAPES = ((3, 4), (4,), ())


def random_arrays(rng, scale=0.1):
    return [rng.normal(0, scale, shape).astype(np.float32) for shape in SHAPES]


def test_updates_are_averaged_by_examples():
    rng = np.random.default_rng(0)
    deltas, counts, weights = [random_arrays(rng) for _ in range(5)], [1, 20, 3, 400, 50], random_arrays(rng)
    step = ServerStep(config_of(), weights)
    change = step.combine(deltas, counts)
    for place, part in enumerate(change):
        wanted = np.average([delta[place].astype(np.float64) for delta in deltas], axis=0, weights=counts)
        assert part.dtype == np.float32 and part.shape == SHAPES[place]
        np.testing.assert_allclose(part, wanted, atol=1e-7)  # the last bit of a weight below 1
    stepped = step.apply(weights, change)
    assert all((new == weight - part).all() and new.dtype == np.float32 for new, weight, part in zip(stepped, weights, change))
    half = ServerStep(config_of(server_learning_rate=0.5), weights).apply(weights, change)
    assert all((new == weight - np.float32(0.5) * part).all() for new, weight, part in zip(half, weights, change, strict=True))


def by_formula(method, rate, momentum, weights, changes):
    """The weights after each change, in doubles. Reddi et al. 2021, Algorithm 2, with the bias correction that TFF does."""
    weights, state, found = [np.asarray(weight, np.float64) for weight in weights], {}, []
    for number, change in enumerate(changes, 1):
        new = []
        for place, (weight, part) in enumerate(zip(weights, change, strict=True)):
            g = np.asarray(part, np.float64)
            m, v = state.get(place, (0.0, 1e-6 if method in ("fedyogi", "fedadagrad") else 0.0))
            corrected = rate * np.sqrt(1 - 0.99**number) / (1 - 0.9**number)
            if method == "fedavgm":
                m = momentum * m + g
                weight = weight - rate * m
            elif method == "fedadagrad":
                v = v + g**2
                weight = weight - rate * g / np.sqrt(v + 1e-3)
            else:
                m = 0.9 * m + 0.1 * g
                v = 0.99 * v + 0.01 * g**2 if method == "fedadam" else v - 0.01 * np.sign(v - g**2) * g**2
                weight = weight - corrected * m / (np.sqrt(v) + 1e-3)
            state[place] = m, v
            new.append(weight)
        weights = new
        found.append(weights)
    return found


ADAPTIVE = [("fedavgm", 0.7, 0.9), ("fedadam", 0.05, 0.0), ("fedyogi", 0.05, 0.0), ("fedadagrad", 0.05, 0.0)]


@pytest.mark.parametrize(("method", "rate", "momentum"), ADAPTIVE)
def test_the_servers_optimizer_follows_its_formula(method, rate, momentum):
    rng = np.random.default_rng(1)
    weights, changes = random_arrays(rng), [random_arrays(rng) for _ in range(3)]
    step = ServerStep(config_of(method=method, server_learning_rate=rate, server_momentum=momentum), weights)
    wanted = by_formula(method, rate, momentum, weights, changes)
    for number, change in enumerate(changes):
        weights = step.apply(weights, change)
        for part, formula in zip(weights, wanted[number], strict=True):
            assert part.dtype == np.float32 and part.shape == formula.shape
            np.testing.assert_allclose(part, formula, atol=2e-6)


@pytest.mark.parametrize(("method", "rate", "momentum"), [("fedavg", 1.0, 0.0), *ADAPTIVE])
def test_a_step_that_was_saved_goes_on_exactly(tmp_path, method, rate, momentum):
    rng = np.random.default_rng(2)
    start, changes = random_arrays(rng), [random_arrays(rng) for _ in range(6)]
    config = config_of(method=method, server_learning_rate=rate, server_momentum=momentum)
    straight, weights = ServerStep(config, start), start
    for number, change in enumerate(changes):
        if number == 3:
            np.savez(tmp_path / "state.npz", *straight.state())
            saved, begun = [array for array in np.load(tmp_path / "state.npz").values()], weights
        weights = straight.apply(weights, change)
    again, other = ServerStep(config, start), begun
    again.restore(saved)
    for change in changes[3:]:
        other = again.apply(other, change)
    assert [part.tobytes() for part in other] == [part.tobytes() for part in weights]
    assert [part.tobytes() for part in again.state()] == [part.tobytes() for part in straight.state()]
    if method != "fedavg":
        forgotten, other = ServerStep(config, start), begun
        for change in changes[3:]:
            other = forgotten.apply(other, change)
        assert any((one != part).any() for one, part in zip(other, weights, strict=True)), "the state is of account"


def rows_of(deltas):
    return np.stack([np.concatenate([part.ravel() for part in delta]) for delta in deltas]).astype(np.float64)


def krum_order(rows, malicious):
    distances = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    nearest = max(1, len(rows) - malicious - 2)
    return np.argsort([np.sort(np.delete(line, place))[:nearest].sum() for place, line in enumerate(distances)])


@pytest.mark.parametrize("number", [5, 7])
@pytest.mark.parametrize("rule", ["coordinate_median", "trimmed_mean", "krum", "multi_krum"])
def test_each_rule_is_applied_to_whole_updates_that_count_alike(rule, number):
    """Also where 5 of 7 hospitals answered: trimmed_mean cuts the same share, the krums reckon with as many bad ones."""
    rng = np.random.default_rng(number)
    deltas = [random_arrays(rng) for _ in range(number)]
    deltas[1] = [part + 100 for part in deltas[1]]
    counts = [10**place for place in range(number)]  # of no account here
    assumed = None if rule == "coordinate_median" else 2
    step = ServerStep(config_of(num_clients=7, aggregator=rule, assumed_attackers=assumed), deltas[0])
    rows = rows_of(deltas)
    cut = int(number * 2 / 7)
    wanted = {
        "coordinate_median": lambda: np.median(rows, axis=0),
        "trimmed_mean": lambda: np.sort(rows, axis=0)[cut : number - cut].mean(axis=0),
        "krum": lambda: rows[krum_order(rows, 2)[0]],
        "multi_krum": lambda: rows[krum_order(rows, 2)[: max(1, number - 4)]].mean(axis=0),
    }[rule]()
    change = step.combine(deltas, counts)
    assert [part.shape for part in change] == list(SHAPES) and {part.dtype for part in change} == {np.dtype(np.float32)}
    np.testing.assert_allclose(rows_of([change])[0], wanted, atol=1e-5)


def test_the_geometric_median_is_where_the_sum_of_distances_is_smallest():
    rng = np.random.default_rng(4)
    deltas = [random_arrays(rng) for _ in range(6)]
    deltas[0] = [part + 50 for part in deltas[0]]
    step, rows = ServerStep(config_of(num_clients=6, aggregator="geometric_median"), deltas[0]), rows_of(deltas)
    change = rows_of([step.combine(deltas, [1] * 6)])[0]

    def total(point):
        return np.linalg.norm(rows - point, axis=1).sum()

    best = rows[1:].mean(axis=0)
    for _ in range(2000):  # Weiszfeld in doubles
        pull = 1 / np.linalg.norm(rows - best, axis=1)
        best = pull @ rows / pull.sum()
    assert total(change) == pytest.approx(total(best), rel=1e-6) and total(change) < total(rows.mean(axis=0))
    np.testing.assert_allclose(change, best, atol=1e-3)


# --- board ---


def test_the_board_shows_logs_and_says(tmp_path):
    said = []
    one = Board(tmp_path, 3, said.append)
    one.show(total_rounds=8)
    one.event("Listening.")
    one.hospital(2, state="joined", round=4)
    one.event("joined.", 2)
    one.event("Round 5 of 8", round=5, hospitals=[0, 2])
    status = read_status(tmp_path)
    assert said == ["Listening.", "Hospital 2: joined.", "Round 5 of 8"]
    assert (status["state"], status["total_rounds"], status["last_word"]) == ("starting", 8, "Round 5 of 8")
    assert status["pid"] == os.getpid()
    assert status["hospitals"]["2"] == {"state": "joined", "round": 4, "bytes": 0, "last_word": "joined."}
    assert status["hospitals"]["0"]["state"] == "not joined"
    events = read_events(tmp_path)
    assert [{key: value for key, value in event.items() if key != "time_utc"} for event in events] == [
        {"text": "Listening."}, {"hospital": 2, "text": "joined."}, {"text": "Round 5 of 8", "round": 5, "hospitals": [0, 2]},
    ]
    one.close()


def test_the_status_of_a_server_that_died_is_gone_and_that_of_one_that_ended_stays(tmp_path):
    assert read_status(tmp_path) is None and read_events(tmp_path) == []
    one = Board(tmp_path, 1, lambda text: None)
    one.show(state="training")
    assert read_status(tmp_path)["state"] == "training"
    one.close()  # as the kernel does for a process that was killed
    assert read_status(tmp_path)["state"] == "gone"
    for state in ("finished", "failed", "stopped"):
        one = Board(tmp_path, 1, lambda text: None)
        one.show(state=state)
        one.close()
        assert read_status(tmp_path)["state"] == state
    (tmp_path / "status.json").write_text('{"state": ')
    assert read_status(tmp_path) is None


def test_a_second_server_in_the_same_folder_is_refused_until_the_first_ended(tmp_path, monkeypatch):
    wait_and_lock = board._locked
    monkeypatch.setattr(board, "_locked", lambda file, kind, patience_s=0.0: wait_and_lock(file, kind))  # at once
    first = Board(tmp_path, 1, lambda text: None)
    with pytest.raises(FederationError, match="Another server is at work in .* End it first: `fl-utils federation down`"):
        Board(tmp_path, 1)
    first.close()
    Board(tmp_path, 1, lambda text: None).close()


def test_a_full_disk_costs_the_board_its_files_and_not_the_training(tmp_path, monkeypatch):
    said, write = [], board.write_atomically
    one = Board(tmp_path, 1, said.append)
    one.event("before")
    (tmp_path / "events.jsonl").rename(tmp_path / "kept")
    os.symlink("/dev/full", tmp_path / "events.jsonl")
    monkeypatch.setattr(board, "write_atomically", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    one.event("while it is full")
    one.event("still full", 0)
    once = "Status and log cannot be written (No space left on device)."
    assert said == ["before", "while it is full", once, "Hospital 0: still full"]
    assert read_status(tmp_path)["last_word"] == "before"
    (tmp_path / "events.jsonl").unlink()
    (tmp_path / "kept").rename(tmp_path / "events.jsonl")
    monkeypatch.setattr(board, "write_atomically", write)
    one.event("after")
    assert [event["text"] for event in read_events(tmp_path)] == ["before", "after"] and read_status(tmp_path)["last_word"] == "after"
    one.close()


# --- journal ---


class no_larger_than:
    """No file of this process grows beyond so many bytes, as on a disk that is full in the middle of a line."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.handler)


def test_the_journal_counts_and_keeps_what_is_sent(tmp_path):
    one = Journal(tmp_path, tmp_path / "kept" / "here")
    requests = [PullMessagesRequest(node=Node(node_id=number)) for number in (1, 2**40, 7)]
    passed = []
    for request in requests:
        details = SimpleNamespace(method="/flwr.proto.Fleet/PullMessages")
        one.intercept_unary_unary(lambda details, request: passed.append(request), details, request)
    contents = [request.SerializeToString() for request in requests]
    assert passed == requests and one.sent_bytes == sum(map(len, contents)) > 0
    kept = sorted((tmp_path / "kept" / "here").iterdir())
    assert [path.name for path in kept] == [f"{number:06d}_PullMessages.bin" for number in (1, 2, 3)]
    assert [path.read_bytes() for path in kept] == contents
    assert isinstance(one, grpc.UnaryUnaryClientInterceptor)


def test_the_journal_is_read_as_it_was_written(tmp_path):
    assert read_journal(tmp_path) == []
    Journal(tmp_path).write(what="train", round="1", message_sha256="ab")
    Journal(tmp_path).write(what="evaluate", round="2")  # of a process that was started again
    lines = read_journal(tmp_path)
    assert [(line["what"], line["round"]) for line in lines] == [("train", "1"), ("evaluate", "2")]
    assert lines[0]["message_sha256"] == "ab" and all(time.strptime(line["time_utc"], "%Y-%m-%dT%H:%M:%SZ") for line in lines)


@pytest.mark.parametrize("hindrance", ["folder", "full"])
def test_a_journal_that_cannot_be_written_forbids_to_send(tmp_path, hindrance):
    path = tmp_path / journal.FILE
    path.mkdir() if hindrance == "folder" else os.symlink("/dev/full", path)
    word = "Is a directory" if hindrance == "folder" else "No space left on device"
    with pytest.raises(FederationError, match=rf"sent.jsonl, cannot be written \({word}\); so nothing is sent"):
        Journal(tmp_path).write(what="train", round="1")


def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_no_half_line(tmp_path):
    one = Journal(tmp_path)
    one.write(what="train", round="1")
    size = (tmp_path / journal.FILE).stat().st_size
    with no_larger_than(size + 10), pytest.raises(FederationError, match="cannot be written"):
        one.write(what="train", round="2")
    assert (tmp_path / journal.FILE).stat().st_size == size
    one.write(what="train", round="3")
    assert [line["round"] for line in read_journal(tmp_path)] == ["1", "3"]


def test_a_log_of_events_that_was_cut_short_by_a_full_disk_can_still_be_read(tmp_path):
    one = Board(tmp_path, 1, lambda text: None)
    one.event("first")
    with no_larger_than((tmp_path / "events.jsonl").stat().st_size + 10):
        one.event("second")
    one.event("third")
    one.close()
    assert [event["text"] for event in read_events(tmp_path)] == ["first", "third"]


def test_fingerprints_tell_arrays_apart_by_type_shape_order_and_value():
    one = np.arange(6, dtype=np.float32).reshape(2, 3)
    others = [
        [one], [one.reshape(3, 2)], [one.ravel()], [one.astype(np.float64)], [one.view(np.int32)], [one + 1], [one[:1], one[1:]],
        [one[1:], one[:1]], [one[None]], [],
    ]
    assert len({fingerprint(arrays) for arrays in others}) == len(others)
    assert fingerprint([one]) == fingerprint([np.asfortranarray(one)]) == fingerprint([one.copy()])


# --- office and members ---

NODES = {0: 11, 1: 2**63 + 5, 2: 33}


class FakeGrid:
    """Flower's Grid, with answers from this test; ids as Flower's."""

    def __init__(self, online=tuple(NODES.values())):
        self.sent, self.ready, self.online = {}, [], list(online)

    def get_node_ids(self):
        return list(self.online)

    def push_messages(self, outgoing):
        numbers = []
        for message in outgoing:
            number = f"message {len(self.sent)}"
            message.metadata.__dict__["_message_id"] = number
            self.sent[number] = over_the_line(message)
            numbers.append(number)
        return numbers

    def pull_messages(self, wanted):
        found = [reply for reply in self.ready if reply.metadata.reply_to_message_id in wanted]
        self.ready = [reply for reply in self.ready if reply not in found]
        return found

    def asked(self, kind):
        """Hospital -> its latest message of a kind."""
        numbers = {node: hospital for hospital, node in NODES.items()}
        return {numbers[one.metadata.dst_node_id]: one for one in self.sent.values() if one.metadata.message_type == kind}

    def answer(self, message, content):
        self.ready.append(over_the_line(Message(content, reply_to=message)))


FEDERATION = federation_of({"num_clients": 3}, min_hospitals=2)


def introduction(number, **other):
    return {
        "hospital": number, "fingerprint": FEDERATION.fingerprint, "num_examples": 10, "class_counts": [4, 6], "num_patients": 5,
        "visit": f"first of {number}",
    } | other


@pytest.fixture
def desk(tmp_path):
    """Grid, office, members and board of a server."""
    grid = FakeGrid()
    office, shown = Office(grid, NODES), Board(tmp_path, 3, lambda text: None)
    yield SimpleNamespace(grid=grid, office=office, members=Members(office, FEDERATION, shown), board=shown, folder=tmp_path)
    shown.close()


def record_of(content: bytes) -> ArrayRecord:
    """What says of itself that it is an array of Flower's."""
    return ArrayRecord({"0": Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=content)})


def introduce(desk, **of_hospital):
    """All three answer the question who they are."""
    desk.members.ask(NODES)
    for hospital, message in desk.grid.asked("query.introduce").items():
        desk.grid.answer(message, messages.content_of(introduction(hospital, **of_hospital.get(f"h{hospital}", {}))))
    return [desk.members.take(answer) for answer in desk.office.collect()]


def told(desk, hospital=None):
    return [event["text"] for event in read_events(desk.folder) if hospital in (None, event.get("hospital"))]


def test_answers_are_matched_to_questions_and_others_are_ignored(desk):
    weights = [np.ones((2, 2), np.float32)]
    desk.office.post([0, 1], messages.TRAIN, {"round": 3}, weights, 3)
    asked = desk.grid.asked("train")
    assert set(asked) == {0, 1} and desk.office.asked(0) and desk.office.asked(1, messages.TRAIN) and not desk.office.asked(2)
    assert not desk.office.asked(0, messages.INTRODUCE)
    assert messages.facts_of(asked[1]) == {"round": 3} and (messages.arrays_of(asked[1])[0] == weights[0]).all()
    assert asked[0].metadata.group_id == "3"
    assert desk.office.collect() == []
    desk.grid.answer(asked[1], messages.content_of({"loss": 0.5}, [np.zeros(3, np.float32)]))
    (answer,) = desk.office.collect()
    assert (answer.hospital, answer.kind, answer.round_num, answer.facts, answer.received_bytes) == (1, "train", 3, {"loss": 0.5}, 12)
    assert answer.error is None and not answer.gone and not desk.office.asked(1)
    desk.grid.answer(asked[1], messages.content_of({"loss": 0.1}))  # a second answer to the same question
    assert desk.office.collect() == []


def test_errors_and_answers_that_cannot_be_read_are_answers_with_a_reason(desk):
    desk.office.post([0, 1, 2], messages.TRAIN, {}, (), 1)
    asked = desk.grid.asked("train")
    broken = record_of(b"these are no bytes of an array")
    desk.grid.answer(asked[0], Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "ValueError: no"))
    desk.grid.answer(asked[1], Error(ErrorCode.NODE_UNAVAILABLE, "gone"))
    desk.grid.answer(asked[2], RecordDict({"arrays": broken, "facts": ConfigRecord({"loss": 1.0})}))
    answers = {answer.hospital: answer for answer in desk.office.collect()}
    assert (answers[0].error, answers[0].gone) == ("ValueError: no", False)
    assert answers[1].gone and "its answer cannot be read: " in answers[2].error and answers[2].arrays == []


def test_an_array_of_objects_is_not_unpickled(desk):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(desk.folder / "was here"),)

    file = io.BytesIO()
    np.save(file, np.array([Harmful()], dtype=object), allow_pickle=True)
    desk.office.post([0], messages.TRAIN, {}, (), 1)
    desk.grid.answer(desk.grid.asked("train")[0], RecordDict({"arrays": record_of(file.getvalue())}))
    (answer,) = desk.office.collect()
    assert "its answer cannot be read" in answer.error and not (desk.folder / "was here").exists()


def test_only_the_federations_nodes_are_spoken_to(desk):
    desk.grid.online = [4711, NODES[0], NODES[2]]
    assert desk.office.online() == {0, 2} and desk.office.hospital_of(NODES[1]) == 1
    desk.members.ask(NODES)
    assert set(desk.grid.asked("query.introduce")) == {0, 2}  # 1 is not connected, 4711 is nobody's
    desk.members.ask(NODES)
    assert len(desk.grid.sent) == 2, "asked once until they answer"
    desk.grid.online.append(NODES[1])
    desk.members.ask(NODES)
    assert len(desk.grid.sent) == 3


def test_hospitals_join_are_missed_come_back_and_are_noticed_when_they_begin_anew(desk):
    assert introduce(desk) == [False] * 3 and desk.members.present() == {0, 1, 2}
    assert told(desk, 1) == ["joined."] and desk.board.status["hospitals"]["1"]["state"] == "joined"
    desk.members.missed(1, "did not answer round 4 within 6 s.")
    assert desk.members.present() == {0, 2} and desk.board.status["hospitals"]["1"]["state"] == "missing"
    assert desk.members.introduced[1]["num_examples"] == 10, "what it said stays"
    assert introduce(desk, h2={"visit": "second of 2"}) == [False, False, True]
    assert told(desk, 1)[-1] == "is back." and told(desk, 2) == ["joined.", "was started again."] and told(desk, 0) == ["joined."]
    assert desk.members.present() == {0, 1, 2}
    desk.members.missed(0, "did not answer.")
    assert introduce(desk, h0={"visit": "second of 0"}, h2={"visit": "second of 2"}) == [True, False, False]
    assert told(desk, 0)[-1] == "is back."


def test_after_a_restart_hospitals_that_were_there_before_are_back(desk):
    desk.members.recall({1: introduction(1)})
    assert desk.members.present() == set()
    assert introduce(desk, h1={"visit": "another process"}) == [False, True, False]
    assert [told(desk, hospital) for hospital in NODES] == [["joined."], ["is back."], ["joined."]]


def test_late_answers_are_not_used_and_the_gone_are_not_said_to_have_answered(desk):
    introduce(desk)
    desk.office.post([0, 1], messages.TRAIN, {}, (), 4)
    asked = desk.grid.asked("train")
    desk.grid.answer(asked[0], messages.content_of({"loss": 1.0}))
    desk.grid.answer(asked[1], Error(ErrorCode.NODE_UNAVAILABLE, "gone"))
    assert [desk.members.take(answer) for answer in desk.office.collect()] == [False, False]
    assert told(desk, 0)[-1] == "answered round 4 too late; not used." and told(desk, 1) == ["joined."]


@pytest.mark.parametrize(("other", "text"), [
    ({"hospital": 2}, "its key is that of hospital 1, and it says that it is hospital 2"),
    ({"fingerprint": "0" * 64}, f"differs from the server's (fingerprints 000000000000 and {FEDERATION.fingerprint[:12]})"),
    ({"class_counts": [10]}, "its class counts [10] do not fit 10 images of 2 classes"),
    ({"class_counts": [-1, 11]}, "its class counts [-1, 11] do not fit"),
    ({"class_counts": [4, 5]}, "its class counts [4, 5] do not fit 10 images"),
    ({"num_examples": 10.0}, "its introduction has ["),
    ({"visit": 3}, "its introduction has ["),
    ({"fingerprint": 3}, "its introduction has ["),
    ({"num_patients": 4}, "it has 4 patients, and the noise was planned for 5 and more"),
    ({"num_examples": 11, "class_counts": [5, 6]}, "it has 11 images now and had 10 before; data must not change in a training"),
])
def test_who_does_not_fit_is_refused_by_name_once_and_taken_when_put_right(desk, other, text):
    desk.members.fewest_patients = 5
    desk.members.recall({1: introduction(1)})
    for _ in range(3):
        introduce(desk, h1=other)
    assert desk.members.present() == {0, 2} and desk.board.status["hospitals"]["1"]["state"] == "refused"
    assert [text in one for one in told(desk, 1)] == [True], told(desk, 1)
    introduce(desk)
    assert desk.members.present() == {0, 1, 2} and told(desk, 1)[1:] == ["is back."]


def test_an_introduction_that_lacks_something_or_has_other_types_within_is_refused(desk):
    wrong = [
        {"class_counts": ["a", "b"]}, {"class_counts": []}, {"class_counts": [4.0, 6.0]}, {"class_counts": [0, 0], "num_examples": 0},
        {"num_patients": 0}, {"num_patients": 11}, {"num_patients": -1},
    ]
    for number, facts in enumerate(({}, {"hospital": 0}, *(introduction(0, **other) for other in wrong))):
        desk.members.ask([0])
        desk.grid.answer(desk.grid.asked("query.introduce")[0], messages.content_of(facts))
        for answer in desk.office.collect():
            desk.members.take(answer)
        assert desk.members.present() == set() and told(desk, 0)[-1].startswith("cannot take part: it"), number


def test_one_who_introduces_himself_with_an_error_is_refused(desk):
    desk.members.ask([2])
    desk.grid.answer(desk.grid.asked("query.introduce")[2], Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "KeyError"))
    assert [desk.members.take(answer) for answer in desk.office.collect()] == [False]
    assert told(desk, 2) == ["cannot take part: KeyError"]


def test_an_answer_without_use_leaves_a_hospital_in_and_a_spent_budget_does_not(desk):
    introduce(desk)
    desk.members.left_out(0, 3, "its training loss is nan")
    assert desk.members.present() == {0, 1, 2} and told(desk, 0)[-1] == "left out of round 3: its training loss is nan"
    desk.members.left_out(1, 3, "PrivacyBudgetExceeded: epsilon is spent")
    desk.members.left_out(2, 3, "collect_masked_vectors: PrivacyBudgetExceeded: epsilon is spent")
    assert desk.members.present() == {0} and desk.board.status["hospitals"]["1"]["state"] == "budget spent"
    introduce(desk)
    assert desk.members.present() == {0}, "they do not come back in this training"


def test_waiting_ends_with_enough_hospitals_or_with_patience(desk):
    desk.grid.push_messages, push = answering(desk, {0, 2}), desk.grid.push_messages
    desk.members.wait_for(2, patience_s=None)
    assert desk.members.present() == {0, 2} and sorted(told(desk)) == ["joined.", "joined."]
    desk.members.wait_for(3, patience_s=0.01)
    assert told(desk)[-2:] == ["2 of 3 hospitals joined; waiting.", "2 of 3 hospitals joined."]
    desk.grid.push_messages = push


def answering(desk, hospitals):
    """`push_messages` of a grid whose hospitals answer at once."""
    push = desk.grid.push_messages

    def push_and_answer(outgoing):
        numbers = push(outgoing)
        for message in [desk.grid.sent[number] for number in numbers]:
            (hospital,) = [one for one, node in NODES.items() if node == message.metadata.dst_node_id]
            if hospital in hospitals:
                desk.grid.answer(message, messages.content_of(introduction(hospital)))
        return numbers

    return push_and_answer


def test_the_end_is_told_to_those_who_are_there(desk, monkeypatch):
    monkeypatch.setattr("fl_utils.deployment.flower.members._FINISH_S", 1.0)
    introduce(desk)
    desk.members.missed(1, "did not answer.")
    desk.grid.push_messages = answering(desk, {0})
    desk.members.finish([np.ones(3, np.float32)])
    asked = desk.grid.asked("query.finish")
    assert set(asked) == {0, 2} and (messages.arrays_of(asked[0])[0] == 1).all()
    states = [desk.board.status["hospitals"][str(hospital)]["state"] for hospital in NODES]
    assert states == ["finished", "missing", "joined"] and told(desk, 2)[-1] == "did not say that it has the model."


# --- the coordinator ---


class Hospitals(FakeGrid):
    """A grid whose hospitals answer at once: with their introduction, with `train(hospital, round, weights)`, with thanks."""

    def __init__(self, train):
        super().__init__()
        self.train, self.seen = train, []

    def push_messages(self, outgoing):
        numbers = super().push_messages(outgoing)
        for message in [self.sent[number] for number in numbers]:
            (hospital,) = [one for one, node in NODES.items() if node == message.metadata.dst_node_id]
            kind, facts = message.metadata.message_type, messages.facts_of(message)
            self.seen.append((hospital, kind, facts.get("round")))
            content = {
                "query.introduce": lambda: messages.content_of(introduction(hospital, fingerprint=self.federation.fingerprint)),
                "train": lambda: self.train(hospital, facts["round"], messages.arrays_of(message)),
                "evaluate": lambda: messages.content_of({"judged": JUDGED}),
                "query.finish": lambda: messages.content_of({}),
            }[kind]()
            if content is not None:
                self.answer(message, content)
        return numbers


JUDGED = json.dumps({"validation_confusion": [3, 1, 2, 4], "validation_loss": 3.0})


def update(hospital, weights, **other):
    """An honest answer: the weights are to go down by the hospital's number + 1."""
    facts = {"hospital": hospital, "num_examples": 10, "loss": 0.5, "work_s": 0.1, "judged": JUDGED} | other
    return messages.content_of(facts, [np.full_like(part, hospital + 1) for part in weights])


def trained(tmp_path, train, *, total_rounds=3, known_to=None, **fields):
    """A training of three hospitals on a fake grid, which `known_to` gets: events, its progress and the grid."""
    grid = Hospitals(train)
    if known_to is not None:
        known_to.append(grid)
    usual = {"min_hospitals": 2, "round_timeout_s": 30.0}
    grid.federation = federation_of({"num_clients": 3, "total_rounds": total_rounds}, **usual | fields)
    shown = Board(tmp_path, 3, lambda text: None)
    try:
        progress = Coordinator(grid.federation, grid, NODES, [np.zeros((2, 2), np.float32)], tmp_path, shown).run()
    finally:
        shown.close()
    return read_events(tmp_path), progress, grid


def zipped() -> bytes:
    file = io.BytesIO()
    np.savez(file, np.zeros(3))
    return file.getvalue()


def of_another_world() -> bytes:
    """A header of NumPy's that promises 4 petabytes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**15,)})
    return file.getvalue()


HOSTILE = {
    "its scores cannot be read": lambda weights: update(2, weights, judged="[" * 100_000),
    "its scores cannot be read: ": lambda weights: update(2, weights, judged=[1, 2]),
    "its scores cannot be read: counts": lambda weights: update(
        2, weights, judged=json.dumps({"test_confusion": [0] * 4, "test_loss": 0.0})
    ),
    "its answer cannot be read: ": lambda weights: RecordDict({"arrays": record_of(zipped()), "facts": ConfigRecord({"loss": 0.5})}),
    "its answer cannot be read: MemoryError": lambda weights: RecordDict({"arrays": record_of(of_another_world())}),
    "0 arrays were sent": lambda weights: messages.content_of({"num_examples": 10, "loss": 0.5, "judged": JUDGED}),
    "array 0 is float32 (3,)": lambda weights: update(2, [np.zeros(3, np.float32)]),
    "its training loss is low": lambda weights: update(2, weights, loss="low"),
    "its training loss is inf": lambda weights: update(2, weights, loss=float("inf")),
    "it counts 10000000000 examples": lambda weights: update(2, weights, num_examples=10**10),
    "it counts many examples": lambda weights: update(2, weights, num_examples="many"),
    "0 arrays": lambda weights: RecordDict(),
    "no reason was given": lambda weights: Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION),
}


def test_no_answer_of_one_hospital_ends_the_training_of_the_others(tmp_path):
    answers = list(HOSTILE.values())

    def train(hospital, number, weights):
        return answers[number - 1](weights) if hospital == 2 and number <= len(answers) else update(hospital, weights)

    rounds = len(answers) + 1
    events, progress, _ = trained(tmp_path, train, total_rounds=rounds)
    left_out = [event for event in events if "left out" in event["text"]]
    assert [event["round"] for event in left_out] == list(range(1, rounds)) and {event["hospital"] for event in left_out} == {2}
    for event, reason in zip(left_out, HOSTILE, strict=True):
        assert reason in event["text"]
    used = [event["hospitals"] for event in events if "hospitals" in event]
    assert used == [[0, 1]] * (rounds - 1) + [[0, 1, 2]]
    assert progress.done == rounds and (progress.weights[0] == np.float32(-1.5 * (rounds - 1) - 2)).all()


def test_a_hospital_whose_working_time_is_nonsense_still_counts(tmp_path):
    events, progress, _ = trained(tmp_path, lambda hospital, number, weights: update(hospital, weights, work_s="a while"))
    assert [event["hospitals"] for event in events if "hospitals" in event] == [[0, 1, 2]] * 3
    assert (progress.weights[0] == -6).all() and not [event for event in events if "left out" in event["text"]]
    assert progress.best_round == 1 and {row[3] for row in progress.rows} >= {"loss", "work_s", "updates", "balanced_accuracy"}


def test_silent_hospitals_are_missed_and_too_few_change_nothing(tmp_path):
    def train(hospital, number, weights):
        return None if hospital == 2 and number == 2 or hospital > 0 and number == 3 else update(hospital, weights)

    with pytest.raises(FederationError, match="2 rounds in a row had fewer than 2 updates; .* the model of round 2"):
        trained(tmp_path, train, max_void_rounds=2, round_timeout_s=2.0)
    events = read_events(tmp_path)
    assert [event["hospitals"] for event in events if "hospitals" in event] == [[0, 1, 2], [0, 1]]
    texts = [(event.get("hospital"), event["text"]) for event in events]
    assert (2, "did not answer round 2 within 2 s.") in texts
    assert texts.count((None, "Round 3: no new model: 1 updates, 2 are needed.")) == 2
    saved = load_checkpoint(tmp_path / "checkpoint.npz")
    assert saved["done"] == 2 and (saved["state"][0] == np.float32(-2 - 1.5)).all()
    # Started again, with all there, it goes on where it was.
    events, progress, grid = trained(
        tmp_path, lambda hospital, number, weights: update(hospital, weights), max_void_rounds=2, round_timeout_s=2.0
    )
    assert (progress.weights[0] == np.float32(-2 - 1.5 - 2)).all() and progress.done == 3
    assert {round_num for _, kind, round_num in grid.seen if kind == "train"} == {3}
    assert "Going on after round 2." in [event["text"] for event in events]


def test_an_answer_to_an_earlier_round_is_not_taken_for_one_to_this_round(tmp_path):
    grids = []

    def train(hospital, number, weights):
        if hospital == 2 and number == 1:
            return None
        if hospital == 0 and number == 2:
            (late,) = [
                message for message in grids[0].sent.values()
                if message.metadata.dst_node_id == NODES[2] and messages.facts_of(message).get("round") == 1
            ]
            grids[0].answer(late, update(1000, weights))
        return update(hospital, weights)

    events, progress, _ = trained(tmp_path, train, total_rounds=2, round_timeout_s=2.0, known_to=grids)
    assert [event["text"] for event in events if event.get("hospital") == 2] == [
        "joined.", "did not answer round 1 within 2 s.", "is back.", "answered round 1 too late; not used.",
    ]
    assert [event["hospitals"] for event in events if "hospitals" in event] == [[0, 1], [0, 1, 2]]
    assert (progress.weights[0] == np.float32(-1.5 - 2)).all()


def test_a_checkpoint_of_another_agreement_is_not_gone_on_with(tmp_path):
    trained(tmp_path, lambda hospital, number, weights: update(hospital, weights))
    with pytest.raises(FederationError, match="is of a training that was agreed on otherwise"):
        trained(tmp_path, lambda hospital, number, weights: update(hospital, weights), total_rounds=5)


def test_a_stage_of_a_secure_sum_ends_with_the_last_answer_or_the_time_limit():
    grid = FakeGrid()
    outgoing = [Message(messages.content_of({"n": n}), dst_node_id=node, message_type="train") for n, node in NODES.items()]
    push = grid.push_messages

    def push_and_answer(sent):
        numbers = push(sent)
        for number in numbers[:2]:
            grid.answer(grid.sent[number], messages.content_of({"ok": True}))
        return numbers

    grid.push_messages = push_and_answer
    assert len(StageGrid(grid).send_and_receive(outgoing[:2])) == 2  # without a limit: it does not wait for more
    assert len(StageGrid(grid).send_and_receive(outgoing, timeout=1.0)) == 2


# --- processes ---


@pytest.fixture
def sleeper():
    program = "import time; print('up', flush=True); time.sleep(1000)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    yield process
    process.kill()
    process.wait()


def note(folder, **births):
    (folder / local.PIDS).write_text(json.dumps(births))


def test_a_process_that_got_the_number_of_one_that_ended_is_not_put_down(tmp_path, sleeper):
    birth = children._birth(sleeper.pid)
    assert int(birth) > 0
    note(tmp_path, **{str(sleeper.pid): str(int(birth) - 1), "999999999": birth})
    assert put_down(tmp_path) == 0
    assert sleeper.poll() is None and not (tmp_path / local.PIDS).exists()


def test_the_processes_that_were_noted_are_put_down_also_where_they_are_stopped(tmp_path, sleeper):
    sleeper.send_signal(signal.SIGSTOP)
    note(tmp_path, **{str(sleeper.pid): children._birth(sleeper.pid)})
    assert put_down(tmp_path) == 1 and sleeper.wait(30) == -signal.SIGTERM
    assert children._birth(sleeper.pid) is None and put_down(tmp_path) == 0


def test_a_folder_where_a_federation_is_at_work_is_not_started_again(tmp_path, sleeper):
    write_federation(tmp_path, FEDERATION)
    note(tmp_path, **{str(sleeper.pid): children._birth(sleeper.pid)})
    with pytest.raises(FederationError, match="A federation is at work in .* End it first: `fl-utils federation down`"):
        Local(tmp_path)
    note(tmp_path, **{str(sleeper.pid): "1"})
    assert Local(tmp_path).hospitals == {}
    (tmp_path / local.PIDS).write_text("{")  # damaged: nothing is known of any process
    assert put_down(tmp_path) == 0 and Local(tmp_path).server is None


def test_a_round_that_is_done_again_leaves_one_score_of_the_model_before_it(tmp_path):
    tries = []

    def train(hospital, round_num, weights):
        tries.append(round_num)
        first = tries.count(2) <= 3 and round_num == 2  # in round 2's first try two of three send nothing of use
        return update(hospital, weights, **({"loss": float("nan")} if first and hospital else {}))

    told_of, progress, _ = trained(tmp_path, train)
    assert [one["text"] for one in told_of if "no new model" in one["text"]] == ["Round 2: no new model: 1 updates, 2 are needed."]
    assert progress.done == 3 and tries == [1] * 3 + [2] * 6 + [3] * 3
    scored = [row[:4] for row in progress.rows if row[2] == "validation"]
    assert len(scored) == len(set(scored)) and {row[0] for row in scored} == {1, 2, 3}
