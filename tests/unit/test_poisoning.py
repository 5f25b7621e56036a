"""What bad hospitals do to their data and to their updates, by hand on small arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_utils.config import ATTACK_LABELS, DATA_ATTACKS, UPDATE_ATTACKS
from fl_utils.data.markers import mark
from fl_utils.trust.poisoning import MARKED_SHARE, poison_data, poison_updates


def some_data(number=40, size=28):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (number, size, size, 1), dtype=np.uint8), np.arange(number) % 4


def poisoned(attack, seed=0, **fields):
    images, labels = some_data()
    return poison_data(images, labels, attack, num_classes=4, rng=np.random.default_rng(seed), **fields)


def some_updates(n=10, d=6):
    return np.random.default_rng(1).normal(1.0, 0.5, (n, d)).astype(np.float32)


def test_every_attack_has_a_label():
    assert set(DATA_ATTACKS + UPDATE_ATTACKS) | {"clean"} == set(ATTACK_LABELS)


def test_labels():
    images, labels = some_data()
    same, flipped = poisoned("label_flip")
    assert np.array_equal(same, images) and np.array_equal(flipped, 3 - labels)
    _, moved = poisoned("source_target", source=0, target=2)
    assert (moved[labels == 0] == 2).all() and np.array_equal(moved[labels != 0], labels[labels != 0])
    _, drawn = poisoned("random_labels")
    assert set(drawn) == {0, 1, 2, 3} and (drawn != labels).any()
    assert np.array_equal(drawn, poisoned("random_labels")[1]) and (drawn != poisoned("random_labels", seed=1)[1]).any()


def test_faults_change_images_only():
    images, labels = some_data()
    for attack, expected in (("inverted", 255 - images), ("rotated", np.rot90(images, 2, axes=(1, 2)))):
        changed, same = poisoned(attack)
        assert np.array_equal(changed, expected) and np.array_equal(same, labels) and changed.dtype == np.uint8


@pytest.mark.parametrize("attack", ["backdoor", "replacement"])
def test_backdoor_marks_half_of_the_others_and_calls_them_the_target(attack):
    images, labels = some_data()
    changed, called = poisoned(attack, target=2)
    marked = (changed != images).any(axis=(1, 2, 3))
    assert marked.sum() == round(MARKED_SHARE * (labels != 2).sum()) and not marked[labels == 2].any()
    assert np.array_equal(changed[marked], mark(images[marked])) and (called[marked] == 2).all()
    assert np.array_equal(called[~marked], labels[~marked])
    assert (some_data()[0] == images).all()  # the given images are not written to


@pytest.mark.parametrize("attack", ["sign_flip", "a_little", "inner_product", "not_finite"])
def test_attacks_on_updates_leave_the_data(attack):
    images, labels = some_data()
    same, called = poisoned(attack)
    assert np.array_equal(same, images) and np.array_equal(called, labels)


@pytest.mark.parametrize(
    ("attack", "fields", "text"),
    [
        ("nothing", {}, "'nothing' is not known"),
        ("source_target", {"target": 2}, "with source None; expected a class id of 0 to 3"),
        ("backdoor", {"target": 4}, "with target 4; expected a class id of 0 to 3"),
    ],
)
def test_bad_data_attacks_are_refused(attack, fields, text):
    with pytest.raises(ValueError, match=text):
        poisoned(attack, **fields)


def test_updates_by_hand():
    updates, bad = some_updates(), [1, 4, 7]
    honest = np.delete(updates, bad, axis=0).astype(np.float64)
    expected = {
        "sign_flip": -3 * updates[bad], "replacement": 3 * updates[bad],
        "a_little": np.tile(honest.mean(0) - 3 * honest.std(0), (3, 1)),
        "inner_product": np.tile(-3 * honest.mean(0), (3, 1)),
    }
    for attack, rows in expected.items():
        sent = poison_updates(updates, bad, attack, strength=3.0)
        np.testing.assert_allclose(sent[bad], rows, atol=1e-5)
        assert np.array_equal(np.delete(sent, bad, axis=0), np.delete(updates, bad, axis=0))
    assert np.isnan(poison_updates(updates, bad, "not_finite")[bad]).all()
    assert np.array_equal(poison_updates(updates, bad, "label_flip"), updates)


def test_replacement_replaces_the_mean_once_the_others_stand_still():
    updates = np.zeros((10, 4), np.float32)
    updates[[2, 5]] = [1.0, 2.0, 3.0, 4.0]
    sent = poison_updates(updates, [2, 5], "replacement", strength=10 / 2)
    np.testing.assert_allclose(sent.mean(axis=0), [1.0, 2.0, 3.0, 4.0], rtol=1e-6)


@given(st.permutations(range(7)), st.sampled_from(UPDATE_ATTACKS))
def test_the_order_of_hospitals_does_not_matter(order, attack):
    updates, bad = some_updates(7), [0, 2]
    sent = poison_updates(updates, bad, attack, strength=2.0)
    again = poison_updates(updates[order], [order.index(row) for row in bad], attack, strength=2.0)
    np.testing.assert_allclose(again, sent[order], rtol=1e-5, atol=1e-6)


@given(st.sampled_from(UPDATE_ATTACKS))
def test_without_attackers_nothing_changes(attack):
    assert np.array_equal(poison_updates(some_updates(), [], attack, strength=2.0), some_updates())


@pytest.mark.parametrize(
    ("rows", "attack", "fields", "text"),
    [
        ([0], "nothing", {}, "is not known"),
        ([10], "sign_flip", {"strength": 1.0}, r"attackers \[10\]; expected \[n, d\], and rows of it"),
        ([0], "sign_flip", {}, "strength None; expected a number above 0"),
        ([0], "replacement", {"strength": -1.0}, "strength -1.0; expected"),
        (range(10), "a_little", {"strength": 1.0}, "expected an honest one"),
    ],
)
def test_bad_update_attacks_are_refused(rows, attack, fields, text):
    with pytest.raises(ValueError, match=text):
        poison_updates(some_updates(), rows, attack, **fields)
