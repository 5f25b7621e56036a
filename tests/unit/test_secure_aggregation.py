"""Secure rounds: the mean of the survivors, nothing where too few are left, masks that hide, and what hospitals refuse.

The network is a dictionary: each message goes through Flower's serialisation to the node's ClientApp and back.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import math

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from flwr.client import ClientApp
from flwr.common import ConfigRecord, Context, Error, Message, RecordDict, bytes_to_ndarray, ndarray_to_bytes
from flwr.common.secure_aggregation.quantization import quantize
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, RECORD_KEY_STATE
from flwr.common.serde import message_from_proto, message_to_proto

from fl_utils.deployment.flower.secure import SecureSettings, fit_reply, fit_request, mask_integers, secure_mod, secure_round

STAGES = ("setup", "share_keys", "collect_masked_vectors", "unmask")
COLLECT, UNMASK = STAGES[2:]
#: Flower's ids are any 64 bits: some are beyond int64.
NODES = (7, 2**40 + 1, 2**63 - 2, 2**64 - 5)
COUNTS = dict(zip(NODES, (11, 60, 417, 1000), strict=True))
SHAPES = ((4, 3, 2), (), (5,), (0, 2))
WEIGHTS = [np.full(shape, 0.5, np.float32) for shape in SHAPES]
SETTINGS = SecureSettings(threshold=3, timeout_s=5.0)


def changes(size=0.1, nodes=NODES):
    """Node -> its change of the model."""
    rng = np.random.default_rng(3)
    return {node: [rng.normal(0, size, shape).astype(np.float32) for shape in SHAPES] for node in nodes}


def app_of(change, num_examples, mods=(secure_mod,)):
    """A hospital that answers with this change, whatever it is asked to train."""
    app = ClientApp(mods=list(mods))
    app.trained = 0

    @app.train()
    def train(message, context):
        app.trained += 1
        weights, config = fit_request(message)
        assert [array.shape for array in weights] == list(SHAPES) and config == {"lr": 0.5, "round": 4}
        return fit_reply(message, change, num_examples, {"loss": 1.0 / max(num_examples, 1), "name": "h"})

    @app.evaluate()
    def judge(message, context):
        return Message(RecordDict({"told": ConfigRecord({"accuracy": 0.5})}), reply_to=message)

    return app


class Line:
    """A grid of four or so apps; nodes in `leaves` are silent from that stage on. Keeps what passes."""

    def __init__(self, apps, leaves=None, error=None, tamper=None):
        self.apps, self.leaves, self.error, self.tamper = apps, leaves or {}, error, tamper
        self.contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in apps}
        self.passed, self.timeouts = [], []

    def send_and_receive(self, messages, *, timeout=None):
        self.timeouts.append(timeout)
        return [reply for message in messages if (reply := self.one(copied(message))) is not None]

    def one(self, message):
        node, stage = message.metadata.dst_node_id, message.content.config_records[RECORD_KEY_CONFIGS]["stage"]
        asked = copied(message)
        if node in self.leaves and STAGES.index(stage) >= STAGES.index(self.leaves[node]):
            return Message(Error(2, self.error), reply_to=message) if self.error else None
        try:
            reply = copied(self.apps[node](message, self.contexts[node]))
        except Exception as error:
            reply = Message(Error(2, str(error)), reply_to=asked)
        if self.tamper:
            self.tamper(stage, node, reply)
        self.passed.append((stage, node, asked, reply))
        return reply

    def vectors(self):
        """Node -> the masked update that it sent."""
        return {node: bytes_to_ndarray(reply.content.config_records[RECORD_KEY_CONFIGS]["masked_params"][1])
                for stage, node, _, reply in self.passed if stage == COLLECT}


def copied(message):
    return message_from_proto(message_to_proto(message))


def line(change=None, **more):
    change = change or changes()
    return Line({node: app_of(change[node], COUNTS[node]) for node in change}, **more)


def play(grid, settings=SETTINGS, nodes=None, **more):
    usual = {"weights": WEIGHTS, "node_ids": list(nodes or grid.apps), "round_num": 4, "settings": settings,
             "config": {"lr": 0.5, "round": 4}, "max_examples": max(COUNTS.values())}  # fmt: skip
    return secure_round(grid, **{**usual, **more})


def plain_mean(change, nodes=NODES):
    total = sum(COUNTS[node] for node in nodes)
    return [sum(COUNTS[node] / total * change[node][i].astype(np.float64) for node in nodes) for i in range(len(SHAPES))]


def bound(settings=SETTINGS, nodes=NODES):
    """How far the mean may be off.

    Each of n hospitals rounds r_k * x to a step of 2c/R, off by less than one step; the sum of n is divided by sum(r).
    Each rounds r_k = n_k / max to 1/R, off by half of that; as no x is farther than 2c from the mean, this moves the mean by
    less than n * (1 / 2R) * 2c / sum(r): half as much again.
    """
    steps = settings.quantization_range
    ratios = sum(round(COUNTS[node] / max(COUNTS.values()) * steps) for node in nodes) / steps
    step = 2 * settings.clipping_range / steps
    return 1.5 * len(nodes) * step / ratios + 1e-12  # and doubles


def off(mean, wanted):
    assert [a.shape for a in mean] == list(SHAPES)
    return max(np.abs(a - b).max() for a, b in zip(mean, wanted, strict=True) if a.size)


# --- the mean ---


@pytest.mark.parametrize("steps", [2**22, 2**10, 1000])
def test_the_mean_is_the_weighted_mean_but_for_quantisation(steps):
    settings = dataclasses.replace(SETTINGS, quantization_range=steps)
    grid, change = line(), changes()
    result = play(grid, settings)
    assert off(result.mean, plain_mean(change)) <= bound(settings)
    assert off(result.mean, plain_mean(change)) > bound(settings) / 1000  # the bound says something
    assert off(result.mean, [np.mean([change[n][i] for n in NODES], axis=0) for i in range(4)]) > 0.05  # it is weighted
    assert result.failures == [] and result.stage == UNMASK and "4 of 4" in result.reason
    assert result.answered == {node: {"num_examples": n, "loss": 1.0 / n, "name": "h"} for node, n in COUNTS.items()}
    assert grid.timeouts == [5.0] * 4 and [app.trained for app in grid.apps.values()] == [1] * 4


def test_counts_that_do_not_divide_the_range_are_within_the_bound():
    assert off(play(line(), max_examples=1237).mean, plain_mean(changes())) <= bound() * 1237 / 1000


def test_rounds_follow_one_another_on_the_same_line():
    grid = line()
    for _ in range(3):
        assert off(play(grid).mean, plain_mean(changes())) <= bound()


@pytest.mark.parametrize(("hospitals", "threshold"), [(2, 2), (3, 2), (3, 3), (4, 3), (4, 4)])
def test_every_allowed_threshold_works_when_all_stay(hospitals, threshold):
    nodes = NODES[-hospitals:]
    result = play(line(changes(nodes=NODES)), SecureSettings(threshold), nodes)
    assert off(result.mean, plain_mean(changes(), nodes)) <= bound(nodes=nodes)


def test_each_number_is_clipped_before_it_is_weighted():
    change = changes(size=2.0)
    change[NODES[0]][0][0] = 50.0
    change[NODES[3]][2][:2] = -7.0, 3.5
    clipped = {node: [np.clip(array, -3.0, 3.0) for array in arrays] for node, arrays in change.items()}
    result = play(line(change))
    assert off(result.mean, plain_mean(clipped)) <= bound()
    assert off(result.mean, plain_mean(change)) > 0.1
    wider = play(line(change), dataclasses.replace(SETTINGS, clipping_range=60.0))
    assert off(wider.mean, plain_mean(change)) <= 20 * bound()


# --- hospitals that leave ---


@pytest.mark.parametrize("error", [None, "the disk is full"])
@pytest.mark.parametrize("who", [NODES[0], NODES[2], NODES[3]])
@pytest.mark.parametrize("stage", STAGES)
def test_one_that_leaves_in_any_stage_does_not_stop_a_threshold_of_three(stage, who, error):
    result = play(line(leaves={who: stage}, error=error))
    summed = NODES if stage == UNMASK else tuple(node for node in NODES if node != who)
    assert result.mean is not None, result
    assert off(result.mean, plain_mean(changes(), summed)) <= bound(nodes=summed)
    assert set(result.answered) == set(summed) and f"{len(summed)} of 4" in result.reason
    assert result.failures == [(who, f"{stage}: {error or 'no answer within 5 s'}")]


@pytest.mark.parametrize("stages", [(a, b) for a in STAGES for b in STAGES if STAGES.index(a) <= STAGES.index(b)])
def test_two_that_leave_are_too_many_for_a_threshold_of_three(stages):
    result = play(line(leaves=dict(zip(NODES[1:3], stages, strict=True))))
    assert result.mean is None and result.stage == stages[1]
    assert result.reason == f"2 of 4 hospitals answered in the {stages[1]} stage; 3 are needed. Nothing was published."
    assert {node for node, _ in result.failures} == set(NODES[1:3])


def test_two_of_five_may_leave_at_different_times_with_a_threshold_of_three():
    nodes = (*NODES, 99)
    change, counts = changes(nodes=nodes), {**COUNTS, 99: 300}
    times = [("setup", COLLECT), ("share_keys", COLLECT), (COLLECT, COLLECT), (COLLECT, UNMASK), ("setup", UNMASK)]
    for first, second in times:
        apps = {node: app_of(change[node], counts[node]) for node in nodes}
        result = play(Line(apps, leaves={NODES[3]: first, NODES[0]: second}))
        summed = [n for n in nodes if n != NODES[3] and (n != NODES[0] or second == UNMASK)]
        total = sum(counts[node] for node in summed)
        wanted = [sum(counts[n] / total * change[n][i].astype(float) for n in summed) for i in range(4)]
        assert off(result.mean, wanted) < 1e-4, (first, second)


@pytest.mark.parametrize("stage", STAGES)
def test_all_are_needed_where_the_threshold_is_all(stage):
    result = play(line(leaves={NODES[1]: stage}), SecureSettings(4, timeout_s=1.5))
    assert result.mean is None and result.stage == stage and "3 of 4" in result.reason and "4 are needed" in result.reason
    assert result.failures == [(NODES[1], f"{stage}: no answer within 1.5 s")]


def test_a_lost_round_does_not_hinder_the_next():
    grid = line()
    for stage in STAGES:
        grid.leaves = dict.fromkeys(NODES[:2], stage)
        assert play(grid).mean is None
        grid.leaves = {}
        assert off(play(grid).mean, plain_mean(changes())) <= bound()


def test_fewer_hospitals_than_the_threshold_are_not_asked():
    grid = line()
    result = play(grid, nodes=NODES[:2])
    assert result.mean is None and grid.passed == [] and "3 are needed" in result.reason and result.stage == "setup"
    assert play(grid, nodes=[], node_ids=[]).mean is None


# --- hospitals and servers that do something else ---


@pytest.mark.parametrize(
    ("change", "num_examples", "said"),
    [
        ([np.full(shape, np.nan, np.float32) for shape in SHAPES], 60, "30 numbers of the update are not finite"),
        ([np.full((4, 3, 2), np.inf), *WEIGHTS[1:]], 60, "24 numbers of the update are not finite"),
        (WEIGHTS, 1001, "num_examples is 1001; expected from 1 to max_examples, 1000"),
        (WEIGHTS, 0, "num_examples is 0"),
        (WEIGHTS, -5, "num_examples is -5"),
        (WEIGHTS[:1], 60, "masked arrays of shapes [(1,), (25,)]; expected [(1,), (31,)]"),
    ],
)
def test_an_update_that_cannot_be_summed_is_left_out_and_named(change, num_examples, said):
    grid = line()
    grid.apps[NODES[1]] = app_of(change, num_examples)
    result = play(grid)
    summed = (NODES[0], *NODES[2:])
    assert off(result.mean, plain_mean(changes(), summed)) <= bound(nodes=summed) and set(result.answered) == set(summed)
    (failure,) = result.failures
    assert failure[0] == NODES[1] and said in failure[1] and failure[1].startswith(COLLECT)


def test_a_hospital_without_data_enough_to_weigh_anything_is_left_out():
    settings = dataclasses.replace(SETTINGS, quantization_range=40)  # 11 of 1000 rounds to 0 of 40 steps
    result = play(line(), settings)
    assert set(result.answered) == set(NODES[1:]) and "make it 0" in result.failures[0][1]


def test_training_that_ends_in_an_error_message_is_told():
    grid, app = line(), ClientApp(mods=[secure_mod])

    @app.train()
    def train(message, context):
        return Message(Error(2, "the privacy budget is spent"), reply_to=message)

    grid.apps[NODES[0]] = app
    result = play(grid)
    assert result.mean is not None
    assert result.failures == [(NODES[0], f"{COLLECT}: Training gave no update: the privacy budget is spent")]


def test_a_sum_that_other_masks_have_spoilt_is_not_published():
    def other_masks(stage, node, reply):
        if stage == COLLECT and node == NODES[2]:
            record = reply.content.config_records[RECORD_KEY_CONFIGS]
            factor, vector = (bytes_to_ndarray(data) for data in record["masked_params"])
            noise = np.random.default_rng(0).integers(0, 2**32, vector.shape)
            record["masked_params"] = [ndarray_to_bytes(factor), ndarray_to_bytes((vector + noise) % 2**32)]

    result = play(line(tamper=other_masks))
    assert result.mean is None and "number that checks the sum" in result.reason and len(result.answered) == 4


@pytest.mark.parametrize("stage", STAGES)
def test_answers_that_cannot_be_read_end_the_round_and_not_the_server(stage):
    def empty(at, node, reply):
        if at == stage and node == NODES[0]:
            reply.content.config_records[RECORD_KEY_CONFIGS] = ConfigRecord({"pk1": b"x"})

    result = play(line(tamper=empty))
    if stage == COLLECT:  # this one can be told from the shapes, and does as if it had left
        assert set(result.answered) == set(NODES[1:]) and result.mean is not None
    else:
        assert result.mean is None and result.stage == stage and "KeyError" in result.reason
    assert len(result.failures) == 1


def test_the_servers_word_about_a_hospital_is_put_to_its_name():
    grid = line()
    send = grid.send_and_receive

    def with_ids(messages, *, timeout=None):
        """As Flower's server: messages get an id, errors come from node 1 and name the message."""
        replies = send([m for m in messages if m.metadata.dst_node_id != NODES[1]], timeout=timeout)
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = f"m{number}"
            if message.metadata.dst_node_id == NODES[1]:
                error = Message(Error(5, "node unavailable"), reply_to=message)
                error.metadata.__dict__["_src_node_id"] = 1
                replies.append(error)
        return [*replies, *replies[:1]]  # and one twice

    grid.send_and_receive = with_ids
    result = play(grid)
    assert result.mean is not None and set(result.answered) == {NODES[0], *NODES[2:]}
    assert (NODES[1], "setup: node unavailable") in result.failures
    twice = [text for _, text in result.failures if "not asked for" in text]
    assert twice == [f"{stage}: an answer that was not asked for" for stage in STAGES]


def test_a_line_that_breaks_is_a_failed_round():
    class Broken:
        def send_and_receive(self, messages, *, timeout=None):
            raise ConnectionError("gone")

    result = play(Broken(), nodes=NODES)
    assert result.mean is None and result.failures == [(None, "setup: ConnectionError: gone")] and "gone" in result.reason


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"node_ids": [1, 2, 2, 3]}, "different ids"),
        ({"weights": []}, "0 arrays of weights"),
        ({"max_examples": 0}, "max_examples 0"),
        ({"settings": SecureSettings(2)}, "threshold is 2 of 4 hospitals; expected at least 2, and more than half"),
        ({"settings": SecureSettings(3, quantization_range=2**30)}, "does not fit below 2.32"),
    ],
)
def test_arguments_that_make_no_round_are_refused(more, said):
    with pytest.raises(ValueError, match=said):
        play(line(), **more)


@pytest.mark.parametrize("wrong", [
    {"threshold": 1}, {"quantization_range": 1}, {"timeout_s": 0.0},
    {"clipping_range": 0.0}, {"clipping_range": math.nan}, {"clipping_range": math.inf},
])  # fmt: skip
def test_settings_that_hide_nothing_or_sum_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        SecureSettings(**{"threshold": 3, **wrong})


# --- what leaves a hospital ---


def test_masked_updates_look_like_nothing_and_no_mask_comes_twice():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(0, 0.1, 3000)]
    weights = [np.zeros(3000)]
    app = ClientApp(mods=[secure_mod])
    app.train()(lambda message, context: fit_reply(message, arrays, 1000, {}))
    grid = Line(dict.fromkeys(NODES, app))
    quantised = quantize(arrays, 3.0, 2**22)[0].astype(np.int64)  # what each of them hides, give or take 1
    sent = []
    for _ in range(2):
        assert play(grid, weights=weights).mean is not None
        sent += [vector[:-1] for vector in grid.vectors().values()]
    assert len(sent) == 8
    for i, vector in enumerate(sent):
        assert 0 <= vector.min() and 2**31 < vector.max() < 2**32
        for other in [quantised, *sent[:i]]:
            apart = (vector - other) % 2**32
            assert (vector == other).mean() < 0.002 and len(np.unique(apart)) > 2990  # no shift of one another either
            assert abs(np.corrcoef(vector, other)[0, 1]) < 0.1


def test_nothing_but_counts_and_metrics_leaves_in_the_clear():
    change = changes()
    grid = line(change)
    play(grid)
    telling = {array[:1].tobytes() for arrays in change.values() for array in arrays if array.ndim and array.size}
    telling |= {np.float64(array.ravel()[0]).tobytes() for arrays in change.values() for array in arrays if array.size}
    for stage, _, _, reply in grid.passed:
        raw = message_to_proto(reply).SerializeToString()
        assert not [data for data in telling if data in raw]
        assert all(len(record) == 0 for record in reply.content.array_records.values())
        names = {f"fitres.{n}" for n in ("metrics", "num_examples", "parameters", "status")} if stage == COLLECT else set()
        assert set(reply.content) == {RECORD_KEY_CONFIGS} | names


@pytest.mark.parametrize("message_type", ["train", "train.default"])
def test_a_hospital_does_not_train_for_a_server_that_asks_in_the_clear(message_type):
    app = app_of(WEIGHTS, 60)
    content = copied(line_request(COLLECT)).content
    if message_type == "train":
        del content[RECORD_KEY_CONFIGS]
    with pytest.raises(ValueError, match="no update in the clear"):
        app(Message(content, NODES[0], message_type), Context(1, NODES[0], {}, RecordDict(), {}))
    assert app.trained == 0


def test_other_messages_pass():
    reply = app_of(WEIGHTS, 60)(Message(RecordDict(), NODES[0], "evaluate"), Context(1, NODES[0], {}, RecordDict(), {}))
    assert reply.content.config_records["told"]["accuracy"] == 0.5


# --- what hospitals refuse to a server that lies ---


def line_request(stage, node=NODES[0], grid=None):
    """What the server sends to a node in a stage of an ordinary round."""
    grid = grid or line()
    play(grid)
    return next(asked for at, to, asked, _ in grid.passed if (at, to) == (stage, node))


def before_unmasking():
    """A line whose hospitals have sent their masked vectors and wait for the list of survivors."""
    grid = line(leaves=dict.fromkeys(NODES, UNMASK))
    assert play(grid).stage == UNMASK
    grid.leaves = {}
    return grid


def unmask(grid, active, dropped, node=NODES[0]):
    record = ConfigRecord({"stage": UNMASK, "active_nids": list(active), "dead_nids": list(dropped)})
    return grid.apps[node](copied(Message(RecordDict({RECORD_KEY_CONFIGS: record}), node, "train")), grid.contexts[node])


@pytest.mark.parametrize(
    ("active", "dropped", "said"),
    [
        (NODES, NODES[1:2], rf"\[{NODES[1]}\] are listed both as active and as dropped"),
        (NODES[:3], NODES[2:], rf"\[{NODES[2]}\] are listed both"),
        ([NODES[0]] * 3, NODES[1:], "names one twice"),  # counts as three, is one: its update would be the sum
        (NODES[1:], NODES[:1], f"lacks {NODES[0]}"),
        (NODES[:2], NODES[2:], "smaller than threshold"),
    ],
)
def test_lists_that_would_uncover_an_update_are_refused(active, dropped, said):
    grid = before_unmasking()
    before = dict(grid.contexts[NODES[0]].state[RECORD_KEY_STATE])
    with pytest.raises(ValueError, match=said):
        unmask(grid, active, dropped)
    assert dict(grid.contexts[NODES[0]].state[RECORD_KEY_STATE]) == before
    shares = unmask(grid, NODES[:3], NODES[3:]).content.config_records[RECORD_KEY_CONFIGS]  # a proper list still passes
    assert shares["nids"] == list(NODES) and len(shares["shares"]) == 4


@pytest.mark.parametrize(("active", "dropped"), [(NODES[:3], NODES[3:]), (NODES, ())])
def test_a_second_list_of_survivors_is_refused(active, dropped):
    grid = before_unmasking()
    unmask(grid, NODES, ())
    with pytest.raises(ValueError, match="unmasked already; a second list of survivors is refused"):
        unmask(grid, active, dropped)


@pytest.mark.parametrize(("threshold", "shares"), [(1, 4), (2, 4), (1, 1), (5, 4)])
def test_a_hospital_refuses_a_threshold_that_two_sets_of_hospitals_could_meet(threshold, shares):
    request = line_request("setup")
    request.content.config_records[RECORD_KEY_CONFIGS].update({"threshold": threshold, "share_num": shares})
    with pytest.raises(ValueError, match="more than half"):
        app_of(WEIGHTS, 60)(request, Context(1, NODES[0], {}, RecordDict(), {}))


# --- the masks ---

FLOWER = importlib.import_module("flwr.common.secure_aggregation.secaggplus_utils")


def flowers_own():
    """Flower's generator, from a second copy of its module: the first may hold ours."""
    spec = importlib.util.spec_from_file_location("second_copy", FLOWER.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pseudo_rand_gen


def test_flower_takes_its_masks_from_here():
    names = ("common.secure_aggregation.secaggplus_utils", "client.mod.secure_aggregation.secaggplus_mod",
             "server.workflow.secure_aggregation.secaggplus_workflow")  # fmt: skip
    modules = [importlib.import_module(f"flwr.{name}") for name in names]
    own, request = flowers_own(), line_request("setup")

    class NoHospital:
        def send_and_receive(self, messages, *, timeout=None):
            return []

    hospital_alone = lambda: app_of(WEIGHTS, 60)(request, Context(1, 1, {}, RecordDict(), {}))  # noqa: E731
    server_alone = lambda: play(NoHospital(), nodes=NODES)  # noqa: E731
    for call in (hospital_alone, server_alone):
        for module in modules:
            module.pseudo_rand_gen = own
        call()
        assert [module.pseudo_rand_gen for module in modules] == [mask_integers] * 3


def test_the_stream_is_chacha20_under_the_hashed_seed():
    seed = bytes(range(44))
    key = hashlib.sha256(b"fl_utils secure aggregation mask, version 1\0" + seed).digest()
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(4 * 11))
    words = [int.from_bytes(stream[i : i + 4], "little") for i in range(0, 44, 4)]
    masks = mask_integers(seed, 2**32, [(2, 3), (), (0,), (4,)])
    assert [mask.shape for mask in masks] == [(2, 3), (), (0,), (4,)]
    assert {mask.dtype for mask in masks} == {np.dtype(np.int64)}
    assert [int(number) for mask in masks for number in mask.ravel()] == words
    assert mask_integers(seed, 2**5, [(11,)])[0].tolist() == [word % 32 for word in words]
    assert mask_integers(seed, 1, [(3,)])[0].tolist() == [0, 0, 0] and mask_integers(seed, 4, []) == []


def test_every_bit_of_the_seed_counts():
    seed = bytes(32)
    streams = {mask_integers(seed, 2**32, [(8,)])[0].tobytes()}
    for bit in range(256):
        streams.add(mask_integers((1 << bit).to_bytes(32, "little"), 2**32, [(8,)])[0].tobytes())
    assert len(streams) == 257
    np.testing.assert_array_equal(*(mask_integers(seed, 2**32, [(8,)])[0] for _ in range(2)))


def test_seeds_that_flower_takes_for_one_give_different_masks_here():
    words = [bytes([i] * 4) for i in range(1, 9)]
    a, b = b"".join(words), b"".join(words[::-1])  # the same words in another order: the XOR of all is the same
    own = flowers_own()
    np.testing.assert_array_equal(own(a, 2**32, [(500,)])[0], own(b, 2**32, [(500,)])[0])
    assert not (mask_integers(a, 2**32, [(500,)])[0] == mask_integers(b, 2**32, [(500,)])[0]).any()


def test_masks_are_uniform():
    for seed in (b"", b"one", bytes(32)):
        numbers = mask_integers(seed, 2**32, [(2**16,)])[0]
        counts = np.bincount(numbers.astype("<u4").view(np.uint8), minlength=256)
        assert 150 < ((counts - 1024.0) ** 2 / 1024).sum() < 400  # chi-square, 255 degrees of freedom: 255 +- 23
    # Flower's never gives the largest number of a range.
    assert set(mask_integers(b"x", 4, [(400,)])[0]) == {0, 1, 2, 3} and set(flowers_own()(b"", 4, [(400,)])[0]) == {0, 1, 2}


@pytest.mark.parametrize("num_range", [0, -4, 3, 2**32 - 1, 2**33, 1000])
def test_only_powers_of_two_are_ranges(num_range):
    with pytest.raises(ValueError, match=f"num_range is {num_range}; expected a power of two"):
        mask_integers(bytes(32), num_range, [(2,)])
