"""Each rule against its formula in NumPy and against Flower's; each factory in one round of TFF."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_federated as tff

from fl_utils.learning import aggregators, engine, robust
from fl_utils.learning.algorithms import ServerSettings, algorithm_named
from fl_utils.learning.client_files import write_client_files
from fl_utils.learning.local import LocalSettings
from fl_utils.learning.process import build_process, client_input
from fl_utils.models.classifiers import build_model

TOLERANCE = 1e-6  # float32 values of about 1


def some_updates(n, d, seed=0):
    """Rows around a common direction, a few far off."""
    rng = np.random.default_rng(seed)
    updates = rng.normal(size=d) + 0.3 * rng.normal(size=(n, d))
    updates[: n // 4] -= 5
    return updates.astype(np.float32)


# --- formulas, in float64 ---


def krum_order(updates, f):
    """Blanchard et al.: the sum over the n - f - 2 nearest, one pair at a time."""
    rows, n = updates.astype(np.float64), len(updates)
    scores = []
    for i in range(n):
        others = sorted(((rows[i] - rows[j]) ** 2).sum() for j in range(n) if j != i)
        scores.append(sum(others[: max(n - f - 2, 1)]))
    return np.array(scores), np.argsort(scores, kind="stable")


def weiszfeld(updates, weights, passes=20_000):
    """From the mean, as in the paper, until it no longer moves."""
    rows = updates.astype(np.float64)
    point = np.average(rows, axis=0, weights=weights)
    for _ in range(passes):
        pull = weights / np.maximum(np.linalg.norm(rows - point, axis=1), 1e-9)
        after = pull @ rows / pull.sum()
        if np.linalg.norm(after - point) < 1e-13:
            break
        point = after
    return point


def fltrust_formula(updates, server):
    rows, server = updates.astype(np.float64), server.astype(np.float64)
    total, trusts = np.zeros_like(server), 0.0
    for row in rows:
        cosine = row @ server / np.linalg.norm(row) / np.linalg.norm(server)
        trust = max(0.0, cosine)
        total, trusts = total + trust * np.linalg.norm(server) / np.linalg.norm(row) * row, trusts + trust
    return total / trusts


# --- rules ---


@pytest.mark.parametrize("n", [1, 2, 7, 10])
def test_coordinate_rules_are_numpys(n):
    updates = some_updates(n, 5)
    np.testing.assert_allclose(robust.coordinate_median(updates), np.median(updates, axis=0), atol=TOLERANCE)
    for share in (0.0, 0.1, 0.29, 0.49):
        cut = int(share * n)
        expected = np.sort(updates.astype(np.float64), axis=0)[cut : n - cut].mean(axis=0)
        np.testing.assert_allclose(robust.trimmed_mean(updates, share=share), expected, atol=TOLERANCE)


def test_a_share_that_is_a_whole_number_of_rows_trims_that_many():
    updates = some_updates(100, 2)  # 0.29 * 100 is 28.999999999999996
    expected = np.sort(updates, axis=0)[29:71].mean(axis=0)
    np.testing.assert_allclose(robust.trimmed_mean(updates, share=0.29), expected, atol=TOLERANCE)


@pytest.mark.parametrize(("n", "f"), [(5, 1), (10, 3), (10, 4), (4, 3), (1, 0)])
def test_krum_is_the_papers(n, f):
    updates = some_updates(n, 6)
    scores, order = krum_order(updates, f)
    np.testing.assert_allclose(robust.krum_scores(updates, num_malicious=f), scores, rtol=1e-5)
    if n - f - 2 > 1:  # else the best two tie; see the test of permutations
        np.testing.assert_array_equal(robust.krum(updates, num_malicious=f), updates[order[0]])
    for m in (2, 3):
        if n - f - 2 > 1:
            expected = updates[order[:m]].mean(axis=0)
            found = robust.multi_krum(updates, num_malicious=f, num_selected=m)
            np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    whole = robust.multi_krum(updates, num_malicious=f, num_selected=n + 3)
    np.testing.assert_allclose(whole, updates.mean(axis=0), atol=TOLERANCE)


@pytest.mark.parametrize("weights", [None, [1, 5, 2, 2, 3, 1, 4, 2]])
def test_geometric_median_is_the_weiszfeld_algorithms(weights):
    updates = some_updates(8, 4)
    expected = weiszfeld(updates, np.ones(8) if weights is None else np.array(weights, float))
    np.testing.assert_allclose(robust.geometric_median(updates, weights), expected, atol=1e-4)
    assert np.linalg.norm(expected - updates.mean(axis=0)) > 0.1


def test_geometric_median_of_known_points():
    # Three equal weights on a line: the middle one. A heavy row: that row. Fermat's point of a right triangle.
    line = np.array([[0.0], [1.0], [9.0]], np.float32)
    assert abs(robust.geometric_median(line)[0] - 1) < 1e-3
    assert abs(robust.geometric_median(line, [1.0, 1.0, 3.0], max_iterations=1000)[0] - 9) < 1e-2
    corner = np.array([[0, 0], [1, 0], [0, 1]], np.float32)
    fermat = (3 - np.sqrt(3)) / 6
    np.testing.assert_allclose(robust.geometric_median(corner), [fermat, fermat], atol=1e-4)


def test_fltrust_is_the_papers():
    updates = some_updates(7, 6)
    server = updates[-2:].mean(axis=0) * 0.1
    updates[2] = 0.0  # no direction, no trust
    expected = fltrust_formula(np.delete(updates, 2, axis=0), server)
    np.testing.assert_allclose(robust.fltrust(updates, server), expected, atol=TOLERANCE)
    # All against the server, or a server without an update: nothing to go by.
    np.testing.assert_array_equal(robust.fltrust(-np.outer(np.arange(1, 4), server), server), np.zeros(6))
    np.testing.assert_array_equal(robust.fltrust(updates, np.zeros(6)), np.zeros(6))


@pytest.mark.parametrize("num_malicious", [1, 3])
def test_rules_are_flowers(num_malicious):
    """Flower's figures on the same updates, cut into two layers; equal numbers of examples, as it weighs Multi-Krum."""
    flower = pytest.importorskip(
        "flwr.server.strategy.aggregate", reason="Flower is not installed here; expected flwr 1.23"
    )
    updates = some_updates(10, 12)
    results = [([row[:8].reshape(2, 4), row[8:]], 5) for row in updates]

    def flat(layers):
        return np.concatenate([np.ravel(layer) for layer in layers])

    share, f = num_malicious / 10, num_malicious
    for found, expected in (
        (robust.coordinate_median(updates), flower.aggregate_median(results)),
        (robust.trimmed_mean(updates, share=share), flower.aggregate_trimmed_avg(results, share)),
        (robust.krum(updates, num_malicious=f), flower.aggregate_krum(results, f, 0)),
        (robust.multi_krum(updates, num_malicious=f, num_selected=4), flower.aggregate_krum(results, f, 4)),
    ):
        np.testing.assert_allclose(found, flat(expected), atol=TOLERANCE)


def test_bad_input_is_named():
    updates = some_updates(4, 3)
    for call, words in (
        (lambda: robust.coordinate_median(updates[0]), "expected \\[n, d\\]"),
        (lambda: robust.geometric_median(updates[:0]), "at least one"),
        (lambda: robust.trimmed_mean(updates, share=0.5), "share is 0.5"),
        (lambda: robust.krum(updates, num_malicious=-1), "num_malicious is -1"),
        (lambda: robust.multi_krum(updates, num_malicious=1, num_selected=0), "num_selected is 0"),
        (lambda: robust.fltrust(updates, updates[0, :2]), "server_update has shape"),
        (lambda: aggregators.norm_clipping(0.0), "clipping_norm is 0.0"),
        (lambda: aggregators.norm_zeroing(float("nan")), "zeroing_norm is nan"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


# --- factories, in TFF ---

WEIGHTS = np.array([3, 1, 4, 1, 5, 9, 2], np.float32)
SHAPES = [(2, 3), (4,)]


def clipped(rows, norm):
    return rows * np.minimum(1, norm / np.linalg.norm(rows, axis=1))[:, None]


def zeroed(rows, norm):
    return rows * (np.linalg.norm(rows, axis=1) <= norm)[:, None]


FACTORIES = {
    "mean": (aggregators.mean, lambda u, w: np.average(u, axis=0, weights=w)),
    "clipping": (lambda: aggregators.norm_clipping(2.0), lambda u, w: np.average(clipped(u, 2.0), axis=0, weights=w)),
    # TFF's first bounds: norm 1 for clipping; 2 * 10 + 1 for the largest value.
    "adaptive clipping": (aggregators.norm_clipping, lambda u, w: np.average(clipped(u, 1.0), axis=0, weights=w)),
    "zeroing": (lambda: aggregators.norm_zeroing(9.0), lambda u, w: np.average(zeroed(u, 9.0), axis=0, weights=w)),
    "adaptive zeroing": (aggregators.norm_zeroing, lambda u, w: np.average(u, axis=0, weights=w)),
    "median": (aggregators.coordinate_median, lambda u, w: np.median(u, axis=0)),
    "trimmed mean": (lambda: aggregators.trimmed_mean(0.25), lambda u, w: np.sort(u, axis=0)[1:-1].mean(axis=0)),
    "krum": (lambda: aggregators.krum(1), lambda u, w: u[krum_order(u, 1)[1][0]]),
    "multi-krum": (lambda: aggregators.multi_krum(1, 3), lambda u, w: u[krum_order(u, 1)[1][:3]].mean(axis=0)),
    "geometric median": (aggregators.geometric_median, lambda u, w: weiszfeld(u, np.ones(len(u)))),
    "geometric median by examples": (lambda: aggregators.geometric_median(by_examples=True), weiszfeld),
}


@pytest.fixture(scope="module")
def running(folders):
    engine.ensure_started()


def layers(row):
    return [row[:6].reshape(SHAPES[0]), row[6:]]


@pytest.mark.parametrize("name", FACTORIES)
def test_factory_leaves_out_the_broken_and_keeps_to_its_rule(running, name):
    make, formula = FACTORIES[name]
    update_type = tff.types.to_type([(np.float32, shape) for shape in SHAPES])
    process = make().create(update_type, tff.TensorType(np.float32))
    updates = some_updates(7, 10, seed=4)
    assert (np.linalg.norm(updates, axis=1) > 9).any()  # something for zeroing to do
    sent, weights, good = updates.copy(), WEIGHTS.copy(), np.array([0, 2, 4, 5, 6])
    sent[1, 7], sent[3, 0] = np.nan, -np.inf

    start = process.initialize()
    assert aggregators.left_out(start) == []
    first = process.next(start, [layers(row) for row in sent], list(weights))
    result = np.concatenate([np.ravel(part) for part in first.result])
    np.testing.assert_allclose(result, formula(updates[good], weights[good]), atol=1e-4)
    # The places are those of the list: TFF's local runtime keeps its order.
    assert aggregators.left_out(first.state) == [1, 3] and first.state["num_clients"] == 7

    # Nobody is left: a zero update, and the caller sees it.
    weights[good] = [np.nan, np.inf, -1, np.nan, np.nan]
    last = process.next(first.state, [layers(row) for row in sent], list(weights))
    assert aggregators.left_out(last.state) == list(range(7)) and last.state["num_clients"] == 7
    assert all((part == 0).all() for part in last.result)
    again = process.next(last.state, [layers(updates[0])] * 2, list(WEIGHTS[:2]))  # and the next round is sound
    assert aggregators.left_out(again.state) == [] and all(np.isfinite(part).all() for part in again.result)


def test_a_federation_goes_on_without_the_broken_hospital(running, folders):
    """Through `build_process`: the hospital's class weights are NaN, and so is its update."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 4, 4, 1), np.uint8), np.arange(20) % 2
    files = write_client_files(folders / "clients", images, labels, np.split(np.arange(20), 4))
    process = build_process(
        algorithm_named("fedavg"), lambda: build_model("softmax_regression", (4, 4, 1), 2),
        LocalSettings(learning_rate=0.1), ServerSettings(num_examples=20), aggregator=aggregators.coordinate_median(),
    )
    ones, seed = np.ones(2, np.float32), np.array([1, 2], np.int32)
    clients = [client_input(file, seed, ones * (np.nan if place == 1 else 1)) for place, file in enumerate(files)]

    def flat(state):
        return np.concatenate([np.ravel(part) for part in state["global_model_weights"]])

    start = process.initialize()
    state, outputs = process.next(start, clients)
    alone = [flat(process.next(start, [clients[place]])[0]) for place in (0, 2, 3)]
    np.testing.assert_allclose(flat(state), np.median(alone, axis=0), atol=TOLERANCE)
    assert np.abs(flat(state) - flat(start)).max() > 1e-3
    assert aggregators.left_out(state["aggregator"]) == [1]
    assert [bool(np.isfinite(output["report"][2])) for output in outputs] == [True, False, True, True]


def test_rules_run_with_an_unknown_number_of_rows():
    """As TFF traces them."""
    updates = some_updates(6, 3)
    traced = tf.function(
        lambda rows: tf.stack([
            robust.coordinate_median(rows), robust.trimmed_mean(rows, share=0.2), robust.krum(rows, num_malicious=1),
            robust.geometric_median(rows), robust.fltrust(rows, rows[0]),
        ]), input_signature=[tf.TensorSpec([None, 3])],
    )
    expected = [
        robust.coordinate_median(updates), robust.trimmed_mean(updates, share=0.2),
        robust.krum(updates, num_malicious=1), robust.geometric_median(updates), robust.fltrust(updates, updates[0]),
    ]
    np.testing.assert_allclose(traced(updates), np.stack(expected), atol=TOLERANCE)
