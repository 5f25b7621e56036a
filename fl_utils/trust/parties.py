"""A sum that nobody sees the terms of: every party is a process, and Shamir shares go between them by MPyC.

    result = secure_sum({"north": x, "south": y, "east": z}, threshold=1)
    result.total                     # x + y + z

For a weighted mean each party gives weight * update and, as one value more, its weight; the sum is then divided.

Each party splits its own numbers among all (see `shares`), adds up the shares it holds, and gives its share of the
sum to the aggregator (this process), which rebuilds the sum alone and checks that all shares fit together.

Who must collude to break it: threshold + 1 parties together read every single input; any `threshold` of them and the
aggregator learn nothing but the sum. There is no key that opens everything. The parties must follow the protocol: a
wrong input goes unnoticed, and MPyC unpickles what its peers send. All parties must be online to the end.

Here all run on one machine over Unix sockets that only this user can open, and this process hands each its input, so
it shows the protocol and its costs, not a defence against this machine. Between machines MPyC runs over TLS.

Precision: fixed point, `shares.FRACTION_BITS`; the sum of m inputs is off by at most m * 2^-25.
Sources: Shamir 1979, doi:10.1145/359168.359176; MPyC, github.com/lschoe/mpyc (secure against passive adversaries).
"""

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fl_utils.children import new_socket_folder
from fl_utils.trust import shares as shares_lib

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_LOG_LINES = 5


class PartyError(RuntimeError):
    """A secure sum failed; the text names the parties with exit codes and last words. `parties` are their names."""

    def __init__(self, message: str, parties: tuple[str, ...]):
        super().__init__(message)
        self.parties = parties


@dataclasses.dataclass(frozen=True)
class SecureSum:
    """What came of a secure sum.

    Attributes:
      total: float64, shape of the inputs.
      shares: int64 [m, *shape]: each party's share of the sum, as the aggregator got it.
      bytes_sent: by party, to all others.
      protocol_s: seconds from the last connection to the last share (of the slowest party).
      duration_s: seconds in all, with the start of the processes.
    """

    total: np.ndarray
    shares: np.ndarray
    bytes_sent: Mapping[str, int]
    protocol_s: float
    duration_s: float


def secure_sum(values: Mapping[str, np.ndarray], *, threshold: int, timeout_s: float = 60.0,
               started: Callable[[Mapping[str, int]], None] | None = None) -> SecureSum:
    """The sum of all parties' arrays, computed by processes that share them.

    Must be called on a thread that lives until it returns: the kernel ends the processes when that thread ends.

    Args:
      values: each party's floats, by name; equal shapes, |value| below `shares.largest_value(m)`.
      threshold: t, 1 <= t < m: so many parties together learn nothing. Up to t = m - 2 a wrong share of the sum is
        noticed, up to t = m - 3 it is named.
      timeout_s: time limit, with the start of the processes.
      started: told the process id of each party once they run.
    Raises:
      PartyError: a party ended early or the time is up; names it. No process is left.
      shares.ShareError: the shares of the sum do not fit together.
      ValueError: shapes differ, a value is not finite or too large, or the threshold does not fit.
    """
    began, names = time.perf_counter(), list(values)
    shares_lib.check_parties(len(names), threshold)
    shape = np.shape(values[names[0]])
    inputs = []
    for name in names:
        if np.shape(values[name]) != shape or not np.size(values[name]):
            raise ValueError(f"The values of {name!r} have shape {np.shape(values[name])}; expected {shape} like those "
                             f"of {names[0]!r}, and at least one value.")
        try:
            inputs.append(shares_lib.to_field(np.ravel(values[name]), terms=len(names)))
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error
    results = _run(names, inputs, threshold, timeout_s, started)
    of_sum = np.stack([result["share"] for result in results])
    total = shares_lib.from_field(shares_lib.recombine(of_sum, threshold=threshold))
    return SecureSum(
        total=total.reshape(shape), shares=of_sum.reshape(len(names), *shape),
        bytes_sent={name: int(result["bytes_sent"]) for name, result in zip(names, results)},
        protocol_s=max(float(result["duration_s"]) for result in results), duration_s=time.perf_counter() - began)


def _run(names: Sequence[str], inputs: Sequence[np.ndarray], threshold: int, timeout_s: float, started) -> list[dict]:
    deadline = time.monotonic() + timeout_s
    folder = new_socket_folder("parties")
    parties: list[_Party] = []
    try:
        for index, (name, numbers) in enumerate(zip(names, inputs)):
            parties.append(_Party(name, index, len(names), threshold, numbers, folder))
        if started is not None:
            started({party.name: party.process.pid for party in parties})
        while any(party.process.poll() is None for party in parties):
            if any(party.process.poll() for party in parties):
                break
            if time.monotonic() > deadline:
                late = [party for party in parties if party.process.poll() is None]
                raise PartyError(f"The secure sum did not end within {timeout_s:g} s. Not finished:"
                                 + "".join(party.last_words("still running") for party in late)
                                 + "\nAll were ended. A party that said less than the others is the one they wait "
                                 "for; on a busy machine give a larger timeout_s.", tuple(p.name for p in late))
            time.sleep(0.01)
        # Those that a signal ended come first: the others fail because a peer is gone.
        failed = sorted((party for party in parties if party.process.poll()), key=lambda p: p.process.returncode > 0)
        if failed:
            raise PartyError("A party of the secure sum ended early, and no sum was made:"
                             + "".join(party.last_words(f"exit code {party.process.returncode}") for party in failed)
                             + "\nThe others were ended. All parties must be online; start again.",
                             tuple(party.name for party in failed))
        return [party.result() for party in parties]
    finally:
        for party in parties:
            party.end()
        shutil.rmtree(folder, ignore_errors=True)


class _Party:
    """A process and its files. Input and output are kept in memory, never on a disk."""

    def __init__(self, name: str, index: int, count: int, threshold: int, numbers: np.ndarray, folder: Path):
        self.name = name
        self.input = os.fdopen(os.memfd_create("input"), "w+b")
        self.output = os.fdopen(os.memfd_create("output"), "w+b")
        self.log = folder / f"{index}.log"
        np.save(self.input, numbers)
        self.input.flush()
        self.input.seek(0)
        path = os.pathsep.join(filter(None, [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fl_utils.trust.party_process", str(os.getpid()), str(index), str(count),
                 str(threshold), str(shares_lib.MODULUS), str(folder)],
                stdin=self.input, stdout=self.output, stderr=log, env={**os.environ, "PYTHONPATH": path},
                start_new_session=True)  # Ctrl-C in a terminal reaches this process only, which ends them

    def result(self) -> dict:
        try:
            self.output.seek(0)
            with np.load(self.output) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError) as error:
            raise PartyError(f"The result of a party cannot be read ({error}):{self.last_words('exit code 0')}",
                             (self.name,)) from error

    def last_words(self, state: str) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES:] or ["(said nothing)"]
        return f"\n  {self.name!r}, process {self.process.pid}, {state}:" + "".join(f"\n    {line}" for line in lines)

    def end(self) -> None:
        self.process.kill()  # nothing happens where it has ended
        self.process.wait()
        self.input.close()
        self.output.close()
