"""Near-duplicates: pictures that are the same, or nearly, though no pixel need agree.

Two pictures are near-duplicates if their 256-bit perceptual hashes differ in at most `NEAR_DISTANCE` bits.

`NEAR_DISTANCE` was set on chest X-rays, whose patients are known, and looked at on brain MRI. Among the 17 million
pairs of different pictures in chest_xray, nearly all of two patients, the nearest differ in 38 bits: up to 36 bits,
not one pair of strangers is tied. Of the brain MRI pairs that were looked at (`looked_at`), those at up to 36 bits are
the same picture at another brightness, crop or size, or a neighbouring slice, with one exception in 80. Neighbouring
slices must not be split, since brain MRI bears no patient numbers.
"""

from pathlib import Path

import numpy as np
import pandas as pd

NEAR_DISTANCE = 36
#: Bits up to which two files with neighbouring numbers are taken for one run of slices; of random pairs of brain
#: MRI 0.1 % are as near, of consecutive numbers in a tumour class 25 to 72 %.
RUN_DISTANCE = 60
#: Files in a block at least: eight numbers apart, files of brain MRI are no more alike than any two of their class.
BLOCK_FILES = 8
_BLOCK = 4096  # rows compared at once: 4096 x 112,120 distances take 1.8 GB at most


def near_pairs(hashes: np.ndarray, max_distance: int = NEAR_DISTANCE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of pictures whose hashes differ in at most `max_distance` bits.

    Args:
      hashes: uint8 [N, B], 8 B bits packed.
      max_distance: in bits, >= 0.
    Returns:
      int64 arrays (first, second, distance) with first < second, sorted by first, then second.
    """
    # For signs +1 and -1 the scalar product is (bits that agree) - (bits that differ): one matrix product.
    signs = np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1
    num, bits = signs.shape
    found = []
    for start in range(0, num, _BLOCK):
        distance = (bits - signs[start : start + _BLOCK] @ signs[start:].T) / 2
        first, second = np.nonzero(distance <= max_distance + 0.25)  # the halves and sums are exact in float32
        upper = second > first
        first, second = first[upper], second[upper]
        found.append((first + start, second + start, distance[first, second].astype(np.int64)))
    if not found:
        return (np.zeros(0, np.int64),) * 3
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))


def pair_distances(hashes: np.ndarray, pictures: np.ndarray, max_distance: int = 64) -> pd.DataFrame:
    """How many pairs of different pictures there are at each distance.

    Args:
      hashes: uint8 [N, B], see `near_pairs`.
      pictures: int [N]; one image of each picture is used.
      max_distance: in bits.
    Returns:
      Columns distance (0, 2, 4, ...: a perceptual hash has as many ones as zeros), pairs.
    """
    distance = near_pairs(hashes[np.unique(pictures, return_index=True)[1]], max_distance)[2]
    steps = np.arange(0, max_distance + 1, 2)
    return pd.DataFrame({"distance": steps, "pairs": [int(np.sum(distance // 2 * 2 == step)) for step in steps]})


def series_blocks(series: np.ndarray, numbers: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Blocks of consecutively numbered files: the nearest thing to a patient where no patient is named.

    A block ends after `BLOCK_FILES` files, but never within a run of similar slices.

    Args:
      series: str [N], "" for files outside any series.
      numbers: int [N], the place in the series.
      hashes: uint8 [N, B], see `near_pairs`.
    Returns:
      str [N], equal within a block, "" outside any series.
    """
    order = np.lexsort((numbers, series))
    differ = np.unpackbits(hashes[order[1:]] ^ hashes[order[:-1]], axis=1).sum(axis=1)
    blocks = np.full(len(series), "", dtype=object)
    number = length = 0
    for place, index in enumerate(order):
        new_series = place == 0 or series[index] != series[order[place - 1]]
        if new_series or (length >= BLOCK_FILES and differ[place - 1] > RUN_DISTANCE):
            number, length = number + 1, 0
        length += 1
        if series[index]:
            blocks[index] = f"block {number}"
    return blocks.astype(str)


def looked_at() -> pd.DataFrame:
    """The 120 brain MRI pairs on which the threshold was judged, by eye, by the authors of this suite.

    Returns:
      Columns dataset, distance, first, second, verdict ("same picture", "same patient": neighbouring slices of
      one head, or "different"). Drawn at random, 20 each from 2-12, 14-24, 26-30, 32-36, 38-42 and 44-48 bits.
    """
    return pd.read_csv(Path(__file__).with_name("near_pairs.csv"))
