"""What must hold for every set of hashes: near-duplicates are those of a plain loop, blocks end only where they may."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_utils.data import near
from fl_utils.data.near import BLOCK_FILES, RUN_DISTANCE, near_pairs, series_blocks
from fl_utils.data.types import group_closure

SETTINGS = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def walks(draw, most=40):
    """Bits [N, 8 B] in which many neighbours are alike, some equal, some exactly at the thresholds."""
    num, size = draw(st.integers(0, most)), 8 * draw(st.sampled_from([1, 8, 32]))
    rng = np.random.default_rng(draw(seeds))
    bits = np.zeros((num, size), np.uint8)
    row = rng.integers(0, 2, size, dtype=np.uint8)
    for index in range(num):
        step = min(size, rng.choice([0, 1, 12, 36, 37, RUN_DISTANCE, RUN_DISTANCE + 1, 128]))
        row = row.copy()
        row[rng.choice(size, step, replace=False)] ^= 1
        bits[index] = row
    return bits


@SETTINGS
@given(walks(), st.integers(0, 64), st.integers(1, 50))
def test_near_pairs_are_those_of_a_loop(bits, max_distance, block):
    expected = [
        (i, j, int(np.sum(bits[i] != bits[j])))
        for i in range(len(bits))
        for j in range(i + 1, len(bits))
        if np.sum(bits[i] != bits[j]) <= max_distance
    ]
    before, near._BLOCK = near._BLOCK, block
    try:
        columns = near_pairs(np.packbits(bits, axis=1), max_distance)
    finally:
        near._BLOCK = before
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    assert all(column.dtype == np.int64 for column in columns)


@SETTINGS
@given(walks(), st.integers(0, 40))
def test_near_groups_are_closed_and_tie_nothing_else(bits, max_distance):
    num = len(bits)
    if num == 0:
        return
    first, second, _ = near_pairs(np.packbits(bits, axis=1), max_distance)
    groups = group_closure(np.arange(num).astype(str), pairs=(first, second))
    # From one picture, step by step to all that are near to what was reached.
    near_to = (bits[:, np.newaxis] != bits[np.newaxis]).sum(axis=2) <= max_distance
    for start in range(num):
        reached = near_to[start]
        while (more := near_to[reached].any(axis=0)).sum() > reached.sum():
            reached = more
        np.testing.assert_array_equal(groups == groups[start], reached)


@SETTINGS
@given(walks(most=80), st.integers(1, 4), st.booleans(), seeds)
def test_blocks_of_a_series(bits, num_series, some_outside, seed):
    rng = np.random.default_rng(seed)
    num = len(bits)
    series = np.sort(rng.choice(["", "a", "b", "c", "d"][0 if some_outside else 1 :][:num_series], num))
    numbers = np.sort(rng.choice(1000, num, replace=False))  # gaps, as in real series
    hashes = np.packbits(bits, axis=1)
    blocks = series_blocks(series, numbers, hashes)
    np.testing.assert_array_equal(blocks == "", series == "")
    for name in sorted(set(series) - {""}):
        places = np.flatnonzero(series == name)
        length = 0
        for place, following in zip(places, [*places[1:], None], strict=True):
            length += 1
            if following is None:
                break
            may_end = length >= BLOCK_FILES and np.sum(bits[place] != bits[following]) > RUN_DISTANCE
            assert (blocks[place] != blocks[following]) == may_end
            length = 0 if may_end else length
        others = blocks[series != name]
        assert not set(blocks[places]) & set(others)
        # Consecutive files: a name never comes back after another.
        assert len(set(blocks[places])) == 1 + int(np.sum(blocks[places][1:] != blocks[places][:-1]))
    # The order in which the files are given does not matter.
    order = rng.permutation(num)
    shuffled = series_blocks(series[order], numbers[order], hashes[order])
    np.testing.assert_array_equal(shuffled, blocks[order])
