"""One root seed, many named generators.

Every random choice of a run is drawn from a generator named after its purpose (partition,
init, cohort, batch order, noise), so that adding one choice never shifts another, and a
round's choices are a pure function of (seed, round): a resumed run equals an uninterrupted one.
"""

import hashlib

import numpy as np


def _sequence(root_seed: int, names: tuple) -> np.random.SeedSequence:
    if not names:
        raise ValueError("Name the purpose of the generator, e.g. generator(seed, 'partition').")
    if root_seed < 0:
        raise ValueError(f"The root seed is {root_seed}; it must be 0 or greater.")
    # repr keeps 1 and "1" apart; the unit separator keeps ("ab", "c") and ("a", "bc") apart.
    key = "\x1f".join(repr(name) for name in names).encode()
    words = np.frombuffer(hashlib.sha256(key).digest(), dtype="<u4")
    return np.random.SeedSequence([int(root_seed), *map(int, words)])


def generator(root_seed: int, *names) -> np.random.Generator:
    """A NumPy generator for one named purpose.

    Args:
      root_seed: the run's seed, >= 0.
      *names: what the numbers are for, e.g. "batch_order", client, round_num.
    Returns:
      A generator that depends on the seed and the names only.
    Raises:
      ValueError: no name given, or a negative seed.
    """
    return np.random.default_rng(_sequence(root_seed, names))


def derive_seed(root_seed: int, *names) -> int:
    """A seed in [0, 2**31) for libraries that take an integer; see `generator`."""
    return int(_sequence(root_seed, names).generate_state(1, np.uint32)[0] >> 1)


def tf_seed(root_seed: int, *names) -> np.ndarray:
    """An int32 [2] seed for `tf.random.stateless_*`; see `generator`."""
    return _sequence(root_seed, names).generate_state(2, np.uint32).view(np.int32).copy()


def cohort(root_seed: int, round_num: int, *, num_clients: int, clients_per_round: int) -> np.ndarray:
    """The clients of one round, drawn without replacement: a pure function of (seed, round).

    Returns:
      Sorted int64 array [clients_per_round] of client indices.
    Raises:
      ValueError: clients_per_round not in 1..num_clients.
    """
    if not 1 <= clients_per_round <= num_clients:
        raise ValueError(
            f"clients_per_round is {clients_per_round}; expected 1 to num_clients = {num_clients}."
        )
    if clients_per_round == num_clients:
        return np.arange(num_clients)
    rng = generator(root_seed, "cohort", round_num)
    return np.sort(rng.choice(num_clients, size=clients_per_round, replace=False))
