"""What adding updates in secret costs and how exact it is, beside adding them in plain; and a last layer under CKKS."""

import dataclasses
import functools
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np
import pandas as pd

from fl_utils.trust import encrypted, parties, shares
from fl_utils.trust.encrypted_head import LOGIT_ERROR, DataOwner, EncryptedHead

WAYS = ("plain", "CKKS", "Shamir")
REPETITIONS = 3
_COLLUDE = {
    "plain": "Nobody needs to: the server reads every update.",
    "CKKS": "The server and any one hospital together read every update, and so does a hospital that taps the others' "
            "lines; the server alone reads nothing, not even the mean.",
    "Shamir": "Any {more} hospitals together read every update; {fewer} of them and the aggregator together learn the "
              "sum only.",
}  # fmt: skip
_TWO = " With two hospitals, the mean tells each of them the other's update."
_NEEDS = {
    "plain": "The server, and each hospital until it has sent its update.",
    "CKKS": "All hospitals once, to make the keys; in a round the server, and each hospital until it has sent its "
            "update.",
    "Shamir": "All hospitals and the aggregator at the same time, to the end of the sum.",
}
#: Largest rounding of one operation, relative.
_FLOAT32, _FLOAT64 = 2.0**-24, 2.0**-53


class _Clock:
    """Wall and CPU seconds of a block; the CPU's with those of child processes that ended in it."""

    def __init__(self, wall_s: float = np.nan, cpu_s: float = np.nan):
        self.wall_s, self.cpu_s = wall_s, cpu_s

    def __enter__(self) -> Self:
        self._began = time.perf_counter(), _cpu_s()
        return self

    def __exit__(self, *_) -> None:
        self.wall_s, self.cpu_s = time.perf_counter() - self._began[0], _cpu_s() - self._began[1]


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@dataclasses.dataclass(frozen=True)
class _Round:
    """One weighted mean and its costs; `client` has one clock a hospital that was timed."""

    mean: np.ndarray
    client: list[_Clock]
    server: _Clock
    decrypt: _Clock
    whole: _Clock
    upload_bytes: int
    download_bytes: int


def aggregation(
    updates: Mapping[str, Sequence[np.ndarray]], num_examples: Mapping[str, int], *, threshold: int | None = None,
    repetitions: int = REPETITIONS, timeout_s: float = 600.0,
) -> pd.DataFrame:
    """The mean of the hospitals' updates, weighted by examples, in plain, by CKKS and by Shamir shares.

    All runs on this machine, one hospital after another (Shamir: real processes at the same time). Times are medians
    of the repetitions, wall and CPU; where the CPU's are far below, the machine was busy with other work.

    Args:
      updates: float arrays of each hospital, by its name; the same shapes everywhere.
      num_examples: by name, the weights.
      threshold: hospitals that learn nothing together from Shamir shares; None takes m - 2 of m (at least 1), the
        most with which a wrong share of the sum is noticed.
      repetitions: how often each way is done.
      timeout_s: for one Shamir sum.
    Returns:
      A row a way, in order of WAYS; columns way, hospitals, values, client_seconds (a hospital's own work: to write,
      encrypt or share its update; the sharing is timed in this process, apart from the protocol), server_seconds (to
      add; with Shamir the wall time of the protocol, from the last connection to the last share of the sum),
      decrypt_seconds (to read, decrypt or recombine the mean, once), wall_seconds (a round of all hospitals, decrypted
      once; with Shamir the start of the processes is in it, with CKKS the keys are not), the CPU's seconds of the same
      four, client_cpu_seconds, server_cpu_seconds (with Shamir of all processes, with their start),
      decrypt_cpu_seconds and cpu_seconds,
      upload_bytes and download_bytes (of a hospital in a round; with Shamir what goes to and comes from the other
      hospitals is in them, and the mean comes back as float32), max_error (largest absolute one of all repetitions,
      against the mean in float64), relative_error (that over the largest |mean|), error_bound (what max_error is at
      most by what the methods state and by rounding), who_must_collude, needs.
    Raises:
      ValueError: fewer than two hospitals, names or shapes that differ, a value that is not finite or too large.
      MessageError, ShareError, PartyError: see `trust.encrypted` and `trust.parties`.
    """
    names = list(updates)
    if len(names) < 2 or set(names) != set(num_examples) or repetitions < 1:
        raise ValueError(
            f"Updates are of {names}, numbers of examples of {list(num_examples)}, repetitions {repetitions}; expected "
            "the same two or more hospitals and at least one repetition."
        )
    shapes = {name: [np.shape(part) for part in update] for name, update in updates.items()}
    for name in names:
        if shapes[name] != shapes[names[0]]:
            raise ValueError(
                f"The update of {name!r} has the shapes {shapes[name]}, that of {names[0]!r} {shapes[names[0]]}; "
                "expected the same: all hospitals must train the same model."
            )
    flat = {name: encrypted.flattened(update, f"The update of {name!r}") for name, update in updates.items()}
    weights = {name: float(num_examples[name]) for name in names}
    threshold = max(1, len(names) - 2) if threshold is None else threshold
    ways = {
        "plain": functools.partial(_plain, flat, weights),
        "CKKS": functools.partial(_ckks, flat, weights),
        "Shamir": functools.partial(_shamir, flat, weights, threshold, timeout_s),
    }
    total = sum(weights.values())
    exact = sum(weights[name] * flat[name] for name in names) / total
    bounds = _bounds(flat, weights, exact)
    rows = [_row(way, ways[way], repetitions, exact) for way in WAYS]
    return pd.DataFrame([
        {"way": way, "hospitals": len(names), "values": len(exact)} | row | {
            "error_bound": bounds[way],
            "who_must_collude": _COLLUDE[way].format(more=threshold + 1, fewer=_fewer(threshold))
            + (_TWO if len(names) == 2 else ""),
            "needs": _NEEDS[way],
        }
        for way, row in zip(WAYS, rows, strict=True)
    ])  # fmt: skip


def encrypted_head_table(
    features: np.ndarray, kernel: np.ndarray, bias: np.ndarray, labels: np.ndarray, *, repetitions: int = REPETITIONS
) -> pd.DataFrame:
    """A classifier's last layer on features that its owner encrypts (`trust.encrypted_head`), beside the plain one.

    Args:
      features: float [N, F], what the layer is given.
      kernel: float [F, K].
      bias: float [K].
      labels: int [N], the true classes.
      repetitions: how often each image is done.
    Returns:
      A row an image; columns image (0..N-1), label, predicted (by the plain layer), same_prediction, max_error (of all
      logits and repetitions, absolute), error_bound (what it is at most, as stated), seconds (median of encrypting,
      computing and decrypting together), upload_bytes, download_bytes (of the image), context_bytes (sent once for all
      images, the same in every row).
    Raises:
      ValueError: shapes do not fit, or values are not finite or too large.
    """
    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(features) or repetitions < 1:
        raise ValueError(
            f"Features have shape {features.shape}, labels {labels.shape}, repetitions {repetitions}; expected [N, F] "
            "and [N], N and repetitions at least 1."
        )
    owner = DataOwner()
    context = owner.public_context()
    head = EncryptedHead(kernel, bias, context)
    plain = features @ np.asarray(kernel, np.float64) + bias
    size = np.maximum(1.0, (np.abs(features) @ np.abs(np.asarray(kernel, np.float64))).max(axis=1))
    rows = []
    for image, one in enumerate(features):
        seconds, found = [], []
        for _ in range(repetitions):
            with _Clock() as whole:
                sent = owner.encrypt(one)
                back = head.logits(sent)
                found.append(owner.decrypt(back))
            seconds.append(whole.wall_s)
        predicted = int(plain[image].argmax())
        rows.append({
            "image": image, "label": int(labels[image]), "predicted": predicted,
            "same_prediction": all(int(logits.argmax()) == predicted for logits in found),
            "max_error": float(np.abs(np.stack(found) - plain[image]).max()),
            "error_bound": LOGIT_ERROR * float(size[image]), "seconds": float(np.median(seconds)),
            "upload_bytes": len(sent), "download_bytes": sum(map(len, back)), "context_bytes": len(context),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _row(way: str, do_round: Callable[[int], _Round], repetitions: int, exact: np.ndarray) -> dict:
    rounds = [do_round(number) for number in range(1, repetitions + 1)]
    largest, error = float(np.abs(exact).max()), max(float(np.abs(one.mean - exact).max()) for one in rounds)
    clocks = {
        "client_": [clock for one in rounds for clock in one.client], "server_": [one.server for one in rounds],
        "decrypt_": [one.decrypt for one in rounds], "": [one.whole for one in rounds],
    }  # fmt: skip
    wall = {f"{part or 'wall_'}seconds": np.median([clock.wall_s for clock in clocks[part]]) for part in clocks}
    cpu = {f"{part}cpu_seconds": np.median([clock.cpu_s for clock in clocks[part]]) for part in clocks}
    return wall | cpu | {
        "upload_bytes": rounds[-1].upload_bytes,
        "download_bytes": rounds[-1].download_bytes,
        "max_error": error,
        "relative_error": error / largest if largest else np.nan,
    }


def _plain(flat: Mapping[str, np.ndarray], weights: Mapping[str, float], round_num: int) -> _Round:
    """As federations do it today: float32 on the line and in the sum."""
    sent, client = {}, []
    with _Clock() as whole:
        for name, values in flat.items():
            with _Clock() as own:
                sent[name] = values.astype(np.float32).tobytes()
            client.append(own)
        with _Clock() as server:
            total = sum(np.float32(weights[name]) * np.frombuffer(sent[name], np.float32) for name in flat)
            back = (total / np.float32(sum(weights.values()))).tobytes()
        with _Clock() as read:
            mean = np.frombuffer(back, np.float32)
    return _Round(mean, client, server, read, whole, len(sent[name]), len(back))


def _ckks(flat: Mapping[str, np.ndarray], weights: Mapping[str, float], round_num: int) -> _Round:
    hospitals, server = encrypted.new_federation(list(flat))
    sent, client = {}, []
    with _Clock() as whole:
        for name, hospital in hospitals.items():
            with _Clock() as own:
                sent[name] = hospital.encrypt_update([flat[name]], weight=weights[name], round_num=round_num)
            client.append(own)
        with _Clock() as added:
            back = server.add(sent, round_num=round_num)
        with _Clock() as read:
            (mean,) = hospital.decrypt_mean(back[name], round_num=round_num, shapes=[flat[name].shape])
    upload = max(map(len, sent.values()))
    return _Round(mean, client, added, read, whole, upload, len(back[name]))


def _shamir(
    flat: Mapping[str, np.ndarray], weights: Mapping[str, float], threshold: int, timeout_s: float, round_num: int
) -> _Round:
    # One value more than the model has: the weight.
    values = {name: np.append(weights[name] * update, weights[name]) for name, update in flat.items()}
    first = values[next(iter(values))]
    with _Clock() as own:
        shares.split(shares.to_field(first, terms=len(values)), parties=len(values), threshold=threshold)
    with _Clock() as whole:
        result = parties.secure_sum(values, threshold=threshold, timeout_s=timeout_s)
    with _Clock() as read:
        total = shares.from_field(shares.recombine(result.shares, threshold=threshold))
        mean = total[:-1] / total[-1]
    to_others = max(result.bytes_sent.values())
    upload, download = to_others + result.shares[0].nbytes, to_others + mean.astype(np.float32).nbytes
    return _Round(mean, [own], _Clock(result.protocol_s, whole.cpu_s), read, whole, upload, download)


def _bounds(flat: Mapping[str, np.ndarray], weights: Mapping[str, float], exact: np.ndarray) -> dict[str, float]:
    """The largest error of the mean that each way allows, with the rounding of the exact mean itself."""
    total, largest = sum(weights.values()), float(np.abs(exact).max())
    terms = float(sum(weights[name] * np.abs(update) for name, update in flat.items()).max()) / total
    # A value is rounded when it is sent, weighted, added up to m - 1 times, and divided; numbers of examples are exact.
    # n roundings of u each come to n u / (1 - n u) at most (Higham 2002, section 3.1).
    float32, float64 = (n / (1 - n) * terms for n in (_FLOAT32 * (len(flat) + 2), _FLOAT64 * 2 * (len(flat) + 2)))
    return {
        "plain": float32 + float64,
        "CKKS": encrypted.SUM_ERROR / total + 1e-6 * largest + float64,
        "Shamir": len(flat) * 2.0 ** -(shares.FRACTION_BITS + 1) / total + float64,
    }


def _fewer(threshold: int) -> str:
    return "one" if threshold == 1 else f"up to {threshold}"
