"""Shamir's secret sharing in small numbers, as tables: the number 5 in shares, what one share tells, a sum in secret.

The shares are random, so the tables differ from time to time; what is recombined does not. The field is a small one
(MODULUS), so that shares can be read; real sums use `trust.shares.MODULUS`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fl_utils.trust import shares

#: A prime above every number and sum of the story.
MODULUS = 101
#: Patients with a finding, say, that no hospital tells the others.
NUMBERS = {"hospital 0": 5, "hospital 1": 12, "hospital 2": 30}


def five_in_shares(
    secret: int = 5, *, parties: int = 3, threshold: int = 1, modulus: int = MODULUS
) -> pd.DataFrame:
    """A number split into random shares: values of a random polynomial whose value at 0 is the secret.

    Args:
      secret: 0 .. modulus - 1.
      parties: m; party i holds the value at i, i = 1..m.
      threshold: the polynomial's degree, 1..m-1: so many shares tell nothing, one more tells all.
      modulus: a prime above `parties`.
    Returns:
      Columns party (1..m), share (0 .. modulus - 1).
    Raises:
      ValueError: a value is out of its range.
    Source: Shamir 1979, doi:10.1145/359168.359176.
    """
    split = shares.split(secret, parties=parties, threshold=threshold, modulus=modulus)
    return pd.DataFrame({"party": range(1, parties + 1), "share": split})


def recombined(table: pd.DataFrame, *, threshold: int = 1, modulus: int = MODULUS) -> int:
    """The secret, from threshold + 1 or more rows of `five_in_shares`.

    Raises:
      ShareError: too few rows, or a share that does not fit to the others.
    """
    rows = {int(party) - 1: np.int64(share) for party, share in zip(table["party"], table["share"], strict=True)}
    return int(shares.recombine(rows, threshold=threshold, modulus=modulus))


def what_one_share_tells(
    table: pd.DataFrame, secrets: Sequence[int] = (5, 42), *, party: int = 1, modulus: int = MODULUS
) -> pd.DataFrame:
    """Nothing: through one party's share goes exactly one line (threshold 1) for every secret that there is.

    Args:
      table: of `five_in_shares` with threshold 1.
      secrets: candidates, 0 .. modulus - 1.
      party: whose share is known.
      modulus: that of the shares.
    Returns:
      A row a candidate; columns secret, polynomial (text), and for each party its share, were that the secret.
    Raises:
      ValueError: no such party, or a candidate that is out of range.
    """
    known = dict(zip(table["party"], table["share"], strict=True))
    if party not in known or not all(0 <= secret < modulus for secret in secrets):
        raise ValueError(
            f"Party {party} and secrets {list(secrets)}; expected one of the parties {list(known)} and secrets from 0 "
            f"to {modulus - 1}."
        )
    rows = []
    for secret in secrets:
        slope = (int(known[party]) - secret) * pow(party, -1, modulus) % modulus
        line = {f"share of party {x}": (secret + slope * x) % modulus for x in known}
        rows.append({"secret": secret, "polynomial": f"{secret} + {slope} x mod {modulus}"} | line)
    return pd.DataFrame(rows)


def sum_in_shares(
    numbers: Mapping[str, int] = NUMBERS, *, threshold: int = 1, modulus: int = MODULUS
) -> pd.DataFrame:
    """A sum that nobody sees the terms of: each hospital shares its number out, each adds up the shares that it holds.

    Args:
      numbers: each hospital's secret, 0 or more; their sum below the modulus.
      threshold: see `five_in_shares`; the hospitals are the parties.
      modulus: a prime.
    Returns:
      A row a hospital and a last one "sum"; columns hospital, number (known to that hospital only; in the last row
      recombined from the added shares alone), and "share of" each hospital: a column is all that this hospital gets.
    Raises:
      ValueError: a number is negative, the sum does not fit below the modulus, or there is one hospital only.
    """
    if any(number < 0 for number in numbers.values()) or sum(numbers.values()) >= modulus:
        raise ValueError(f"The numbers {dict(numbers)} must be 0 or more, their sum below the modulus {modulus}.")
    split = [shares.split(n, parties=len(numbers), threshold=threshold, modulus=modulus) for n in numbers.values()]
    added = shares.add(*split, modulus=modulus)
    total = int(shares.recombine(added, threshold=threshold, modulus=modulus))
    table = pd.DataFrame([*split, added], columns=[f"share of {name}" for name in numbers])
    table.insert(0, "hospital", [*numbers, "sum"])
    table.insert(1, "number", [*numbers.values(), total])
    return table
