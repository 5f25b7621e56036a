"""Secure sums between real processes: the plain mean within the quantisation error, no update in what is sent, drop-outs.

Each hospital's own process writes down which weights it was given and what it computed, so that every round is checked by
itself, from the very weights that it began with.
"""

import io

import numpy as np
from scipy import stats

from fl_utils.deployment.flower.secure import SecureSettings
from tests.end_to_end.federation_faults_helpers import (
    LIMIT_S, RECORD, STOP, Obedient, Reference, await_, checkpoint_of, distance, first_round_after, is_stopped, new_federation,
    order, pieces, recorded, rounds_of, said_of, sent_by, used_updates, whole_events,
)

STEPS = SecureSettings(threshold=3).quantization_range
#: Of a test that is right; the masks are different each time.
UNLIKELY = 1e-9


def bound(reference: Reference, hospitals, weights) -> float:
    """How far one round may be off, by the docstring of `secure`: 1.5 n / r steps of 2 * clipping_range / quantization_range.

    n hospitals, r the sum of their examples over those of the largest; and the two roundings to float32 of the new weights.
    """
    counts = np.array([introduced["num_examples"] for introduced in reference.introduced])
    step = 2 * reference.federation.secure.clipping_range / STEPS
    ratios = counts[list(hospitals)].sum() / counts.max()
    rounding = 2 * np.spacing(np.float32(max(np.abs(part).max() for part in weights)))
    return 1.5 * len(hospitals) / ratios * step + rounding


def check_rounds(reference: Reference, given: dict[int, list], used: list[list[int]]) -> list[float]:
    """Each round against the plain mean from the same weights; how far off each was, as a part of its bound.

    Args:
      given: round -> the weights that it began with; and one more, what the last one led to.
      used: of each round, the hospitals in the sum.
    """
    parts = []
    for number, hospitals in enumerate(used, 1):
        plain = reference.after([hospitals], given[number], number)
        parts.append(distance(given[number + 1], plain) / bound(reference, hospitals, plain))
        fewer = reference.after([hospitals[1:]], given[number], number)
        assert distance(given[number + 1], fewer) > 50 * bound(reference, hospitals, plain), "a missing hospital would show"
    assert 0 < max(parts) < 1, parts
    return parts


def test_secure_rounds_give_the_plain_mean_and_what_is_sent_shows_no_update(folders):
    folder, rounds, everybody = folders / "secure", 3, [0, 1, 2, 3]
    new_federation(
        folder, hospitals=4, total_rounds=rounds, min_hospitals=3, secure={"threshold": 3, "stage_timeout_s": 120.0}
    )
    for hospital in everybody:
        order(folder, hospital, RECORD)
    with Obedient(folder, hospitals=[]) as federation:
        for hospital in everybody:
            federation.start_hospital(hospital, "--keep-sent", str(folder / f"sent_{hospital}"))
        assert federation.wait(timeout_s=LIMIT_S)["state"] == "finished"
        assert set(federation.exit_codes().values()) == {0}
    done, weights = checkpoint_of(folder)
    assert done == rounds and used_updates(folder) == [everybody] * rounds
    reference, computed = Reference(folder), {hospital: recorded(folder, hospital) for hospital in everybody}
    given = {number: computed[0][number]["weights"] for number in range(1, rounds + 1)} | {rounds + 1: weights}
    for number in range(1, rounds + 1):
        assert {distance(given[number], computed[hospital][number]["weights"]) for hospital in everybody} == {0.0}
    parts = check_rounds(reference, given, [everybody] * rounds)
    plain = reference.after([everybody] * rounds)
    far, most = distance(weights, plain), rounds * bound(reference, everybody, plain)
    print(f"Distance: {far:.2g} after {rounds} rounds, bound {most:.2g}; rounds by themselves {np.round(parts, 2)} of it")
    assert 0 < far < most < 0.001 * distance(plain, reference.initial)

    masked = []
    for hospital in everybody:
        sent = b"".join(sent_by(folder / f"sent_{hospital}"))
        arrays = [array for array in arrays_in(sent) if array.size > 100]
        # Nothing as large as the model but one masked vector a round: all weights and the number that checks the sum.
        assert [array.shape for array in arrays] == [(sum(part.size for part in weights) + 1,)] * rounds
        masked += [array.astype(np.uint32) for array in arrays]
        assert all((array == words).all() for array, words in zip(arrays, masked[-rounds:], strict=True)), "of 32 bits"
        deltas = [computed[hospital][number]["delta"] for number in range(1, rounds + 1)]
        # `test_federation_faults` finds them in what a hospital sends without a secure sum.
        written = [piece for delta in deltas for kind in (np.float32, np.float64) for piece in pieces(delta, kind)]
        assert len(written) > 100 and not [piece for piece in written if piece in sent]
    assert unevenness(masked) > UNLIKELY
    unmasked = [np.round((np.concatenate([part.ravel() for part in one["delta"]]) + 3.0) / 6.0 * STEPS).astype(np.uint32)
                for one in computed[0].values()]
    assert unevenness(unmasked) < UNLIKELY, "what is not masked does not look like chance"


def arrays_in(sent: bytes) -> list[np.ndarray]:
    """Arrays that were sent in NumPy's format, wherever they stand."""
    starts = [place for place in range(len(sent)) if sent.startswith(b"\x93NUMPY", place)]
    return [np.load(io.BytesIO(sent[place:]), allow_pickle=False) for place in starts]


def unevenness(words: list[np.ndarray]) -> float:
    """How likely even bytes would be found as uneven as these, 0 to 1 (chi-squared)."""
    counts = np.bincount(np.concatenate([array.view(np.uint8).ravel() for array in words]), minlength=256)
    return float(stats.chisquare(counts).pvalue)


def test_the_sum_goes_on_without_one_hospital_and_without_two_nothing_is_published(folders):
    folder = folders / "secure_drop_out"
    new_federation(
        folder, hospitals=4, min_hospitals=3, max_void_rounds=2, round_timeout_s=8.0,
        secure={"threshold": 3, "stage_timeout_s": 8.0},
    )
    order(folder, 0, RECORD)
    order(folder, 1, STOP, "2")
    order(folder, 2, STOP, "4")
    with Obedient(folder) as federation:
        await_(lambda: is_stopped(federation.hospitals[1]), "hospital 1 in the training of round 2", federation)
        federation.kill_hospital(1)
        dropped = await_(lambda: said_of(folder, 1, "dropped out"), "its drop-out", federation)[0]
        await_(lambda: is_stopped(federation.hospitals[2]), "hospital 2 in the training of round 4", federation)
        federation.kill_hospital(2)
        second = await_(lambda: said_of(folder, 2, "dropped out"), "the second drop-out", federation)[0]
        assert federation.server.wait(LIMIT_S) == 1
        words = federation.last_words(folder / "server")
    assert (dropped["text"], second["text"]) == tuple(f"dropped out of the secure sum of round {number}." for number in (2, 4))
    assert rounds_of(folder) == {1: [0, 1, 2, 3], 2: [0, 2, 3], 3: [0, 2, 3]}
    assert first_round_after(folder, dropped)["hospitals"] == [0, 2, 3]
    failed = [event["text"] for event in whole_events(folder) if "the secure sum failed" in event["text"]]
    assert failed == [
        "Round 4: the secure sum failed: 2 of 3 hospitals answered in the collect_masked_vectors stage; 3 are needed. Nothing was "
        "published.",
        "Round 4: the secure sum failed: 2 of 2 hospitals answered in the setup stage; 3 are needed. Nothing was published.",
    ]
    assert words.startswith("Error: 2 rounds in a row had fewer than 3 updates; the training stops with the model of round 3.")

    done, weights = checkpoint_of(folder)
    given = {number: one["weights"] for number, one in recorded(folder, 0).items()}
    assert done == 3 and sorted(given) == [1, 2, 3, 4]
    assert distance(weights, given[4]) == 0, "the checkpoint is what the last good round led to"
    parts = check_rounds(Reference(folder), given, used_updates(folder))
    print(f"Distance: the rounds {np.round(parts, 2)} of their bounds")
