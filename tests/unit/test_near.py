"""Near-duplicates: pairs of hashes, what the perceptual hash forgives, blocks of a series, and the judged pairs."""

import io

import numpy as np
import pytest
from PIL import Image

from fl_utils import paths
from fl_utils.data import decode, load, near
from fl_utils.data.catalogue import card
from fl_utils.data.near import BLOCK_FILES, NEAR_DISTANCE, RUN_DISTANCE, looked_at, near_pairs, series_blocks
from fl_utils.data.phantoms import generate_chest

# --- pairs ---


def brute_force(hashes, max_distance):
    bits = np.unpackbits(hashes, axis=1)
    return [
        (i, j, distance)
        for i in range(len(bits))
        for j in range(i + 1, len(bits))
        if (distance := int(np.sum(bits[i] != bits[j]))) <= max_distance
    ]


def flipped(bits, places):
    bits = bits.copy()
    bits[list(places)] ^= 1
    return bits


def clustered_hashes(num, rng):
    """Hashes around three centres, so that pairs lie on both sides of the threshold."""
    centres = rng.integers(0, 2, (3, 256), dtype=np.uint8)
    rows = [flipped(centres[i % 3], rng.choice(256, rng.integers(0, 40), replace=False)) for i in range(num)]
    return np.packbits(np.array(rows), axis=1)


@pytest.mark.parametrize("block", [1, 3, 7, 30, 31, 4096])
def test_pairs_are_those_of_a_loop_over_all_bits(monkeypatch, block):
    monkeypatch.setattr(near, "_BLOCK", block)
    hashes = clustered_hashes(30, np.random.default_rng(0))
    expected = brute_force(hashes, NEAR_DISTANCE)
    assert 20 < len(expected) < 145  # some near, some not, of the 145 pairs around one centre
    first, second, distance = near_pairs(hashes)
    assert list(zip(first, second, distance, strict=True)) == expected == sorted(expected)
    assert first.dtype == second.dtype == distance.dtype == np.int64


def test_the_threshold_is_inclusive():
    bits = np.random.default_rng(1).integers(0, 2, 256, dtype=np.uint8)
    rows = [bits, flipped(bits, range(36)), flipped(bits, range(37)), bits]
    first, second, distance = near_pairs(np.packbits(np.array(rows), axis=1))
    assert list(zip(first, second, distance, strict=True)) == [(0, 1, 36), (0, 3, 0), (1, 2, 1), (1, 3, 36)]
    first, second, distance = near_pairs(np.packbits(np.array(rows), axis=1), max_distance=0)
    assert list(zip(first, second, distance, strict=True)) == [(0, 3, 0)]


@pytest.mark.parametrize("num", [0, 1])
def test_no_pair_without_two_pictures(num):
    columns = near_pairs(np.zeros((num, 32), np.uint8))
    assert [column.tolist() for column in columns] == [[], [], []]
    assert all(column.dtype == np.int64 for column in columns)


def test_pairs_are_counted_by_distance_once_a_picture():
    bits = np.random.default_rng(1).integers(0, 2, 256, dtype=np.uint8)
    rows = [bits, bits, flipped(bits, range(10)), flipped(bits, range(4)), flipped(bits, range(50))]
    table = near.pair_distances(np.packbits(np.array(rows), axis=1), np.array([7, 7, 3, 5, 1]), max_distance=40)
    assert table["distance"].tolist() == list(range(0, 41, 2))
    # The second image of picture 7 does not count; 50 and 46 bits are beyond the last step.
    assert table[table["pairs"] > 0].to_dict("list") == {"distance": [4, 6, 10, 40], "pairs": [1, 1, 1, 1]}


# --- what the hash forgives ---


@pytest.fixture(scope="module")
def chests():
    images, _, _ = generate_chest(20, image_size_px=64, rng=np.random.default_rng(0))
    return [Image.fromarray(image[..., 0]) for image in images]


def re_encoded(picture):
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=40)
    return Image.open(io.BytesIO(stream.getvalue())).convert("L")


CHANGES = {
    "brighter": lambda picture: picture.point(lambda value: min(255, int(1.2 * value + 10))),
    "darker": lambda picture: picture.point(lambda value: int(0.6 * value)),
    "larger": lambda picture: picture.resize((150, 150), Image.Resampling.BILINEAR),
    "smaller": lambda picture: picture.resize((40, 40), Image.Resampling.BILINEAR),
    "re-encoded": re_encoded,
    "cropped": lambda picture: picture.crop((0, 0, 63, 64)),  # 1.6 % of the width
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_stays_near_and_strangers_do_not(chests, change):
    pictures = [*chests, *map(CHANGES[change], chests)]
    assert not any(np.array_equal(*pair) for pair in zip(pictures[:20], pictures[20:], strict=True))
    hashes = np.array([np.packbits(decode.perceptual_hash(picture)) for picture in pictures])
    first, second, _ = near_pairs(hashes)
    assert (second - first == 20).sum() == 20  # each with its changed self,
    assert len(first) == 20  # and no stranger with another


def test_hashes_of_images_are_those_of_the_pictures(chests):
    images = np.stack([np.asarray(picture)[..., np.newaxis] for picture in chests[:3]])
    expected = [np.packbits(decode.perceptual_hash(picture)) for picture in chests[:3]]
    np.testing.assert_array_equal(decode.hashes_of(images), expected)


# --- blocks of a series ---


def walk(steps):
    """Hashes of consecutive files; each differs from the one before in the stated number of bits."""
    rng = np.random.default_rng(2)
    rows = [rng.integers(0, 2, 256, dtype=np.uint8)]
    for step in steps:
        rows.append(flipped(rows[-1], rng.choice(256, step, replace=False)))
    return np.packbits(np.array(rows), axis=1)


def lengths(blocks):
    """Files in each block, in the order of appearance."""
    return [int(np.sum(blocks == name)) for name in dict.fromkeys(blocks.tolist())]


def test_a_block_ends_after_eight_files():
    blocks = series_blocks(np.full(20, "m"), np.arange(20), walk([128] * 19))
    assert lengths(blocks) == [8, 8, 4] == [BLOCK_FILES, BLOCK_FILES, 20 - 2 * BLOCK_FILES]


@pytest.mark.parametrize(("step", "expected"), [(RUN_DISTANCE, [11, 8, 1]), (RUN_DISTANCE + 1, [8, 8, 4])])
def test_a_block_does_not_end_within_a_run(step, expected):
    steps = [128] * 19
    steps[7] = steps[8] = steps[9] = step  # files 7 to 10 are one run, at the threshold or just beyond it
    assert lengths(series_blocks(np.full(20, "m"), np.arange(20), walk(steps))) == expected


def test_a_block_never_holds_two_series_however_alike():
    series = np.array(["a"] * 3 + ["b"] * 10 + ["c"] * 2)
    blocks = series_blocks(series, np.arange(15), walk([0] * 14))
    assert lengths(blocks) == [3, 10, 2]
    assert [len(set(series[blocks == name])) for name in set(blocks)] == [1, 1, 1]


def test_files_outside_any_series_are_in_no_block():
    series = np.array(["", "a", "", "a", "a"])
    blocks = series_blocks(series, np.array([0, 3, 0, 1, 2]), walk([0] * 4))
    assert blocks[0] == blocks[2] == "" and len({blocks[1], blocks[3], blocks[4]} - {""}) == 1


def test_numbers_count_as_numbers_and_not_in_the_order_of_the_files():
    steps = [128] * 19
    steps[7] = 3
    in_order = walk(steps)
    names = sorted(range(20), key=str)  # 0, 1, 10, 11, ..., 19, 2: as paths are sorted
    blocks = series_blocks(np.full(20, "m"), np.array(names), in_order[names])
    by_number = dict(zip(names, blocks, strict=True))
    assert lengths(np.array([by_number[number] for number in range(20)])) == [9, 8, 3]


def test_no_files_no_blocks():
    assert series_blocks(np.zeros(0, str), np.zeros(0, int), np.zeros((0, 32), np.uint8)).tolist() == []


# --- the judged pairs ---


def test_the_table_of_judged_pairs():
    table = looked_at()
    assert list(table.columns) == ["dataset", "distance", "first", "second", "verdict"] and len(table) == 120
    assert set(table["dataset"]) == {"brain_mri"}
    assert set(table["verdict"]) == {"same picture", "same patient", "different"}
    assert not table.duplicated(["first", "second"]).any() and (table["first"] != table["second"]).all()
    bands = [(2, 12), (14, 24), (26, 30), (32, 36), (38, 42), (44, 48)]
    assert [int(table["distance"].between(*band).sum()) for band in bands] == [20] * 6


def test_one_of_eighty_pairs_within_the_threshold_is_a_mistake():
    table = looked_at()
    near_ones = table[table["distance"] <= NEAR_DISTANCE]
    assert len(near_ones) == 80 and (near_ones["verdict"] == "different").sum() == 1
    beyond = table[table["distance"] > NEAR_DISTANCE]
    assert (beyond["verdict"] == "different").sum() == 5  # of 40: beyond it, strangers become frequent


@pytest.mark.real_data
def test_real_distances_of_the_judged_pairs():
    root = paths.dataset_root(card("brain_mri").folder)
    if root is None:
        pytest.skip("no real data: set FL_UTILS_DATA to a folder that holds brain_mri/")
    table = looked_at()
    sources = sorted({*table["first"], *table["second"]})
    hashes, bad = decode.decode_images(root, sources, np.zeros((len(sources), 16, 16, 1), np.uint8))
    assert bad == []
    bits = dict(zip(sources, np.unpackbits(hashes, axis=1), strict=True))
    measured = [int(np.sum(bits[a] != bits[b])) for a, b in zip(table["first"], table["second"], strict=True)]
    assert measured == table["distance"].tolist()


@pytest.mark.real_data
def test_real_strangers_in_chest_xray_are_beyond_the_threshold(monkeypatch):
    if paths.dataset_root(card("chest_xray").folder) is None:
        pytest.skip("no real data: set FL_UTILS_DATA to a folder that holds chest_xray/")
    seen = []
    monkeypatch.setattr(load, "near_pairs", lambda bits: seen.append(bits) or near_pairs(bits))
    data = load.load_dataset("chest_xray", image_size_px=64)
    (hashes,) = seen
    first, second, distance = near_pairs(hashes, max_distance=38)
    other_picture = data.picture_groups[first] != data.picture_groups[second]
    assert set(distance[other_picture].tolist()) == {38}  # nothing nearer, and the threshold could not be higher
    strangers = data.patients[first] != data.patients[second]
    assert (strangers & other_picture).any()
