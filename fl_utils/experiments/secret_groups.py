"""Secret sums against robust rules: a server that cannot read single updates cannot tell the bad one either.

What is left, on one round's real updates of a trained federation: sums over small groups, which the server may read and
takes the median of, and a bound on every update's norm that the hospitals prove without showing the update (RoFL, Lycklama
et al. 2023, arXiv:2107.03311; here the bound is applied, nothing is proven).
"""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fl_utils import paths, seeding
from fl_utils.config import ExperimentConfig
from fl_utils.experiments.hospitals import share_out
from fl_utils.experiments.measured import Content, Layout, digest, load_or_compute
from fl_utils.experiments.poisoning_plan import STRENGTHS
from fl_utils.experiments.run import data_of, selected_weights
from fl_utils.records import RunRecord
from fl_utils.trust.poisoning import poison_updates

#: Folder of the measurements, beside the runs'.
SECRET_GROUPS = "secret_groups"
VERSION = 1  # raise it when measurements change their meaning: old ones are then ignored
ATTACK = "sign_flip"
#: Draws of who is bad and who is in which group, for each number of bad hospitals.
NUM_DRAWS = 20
#: Of float32 updates.
ROUNDING = 1e-6
#: Of the example in which sums are really encrypted.
GROUP_SIZE = 2
_LAYOUT = Layout("measurements", ("errors", "seen", "groups"), "%.5g", verb="make")


@dataclasses.dataclass(frozen=True, eq=False)
class SecretGroups:
    """What robust rules can still do over secret sums.

    Attributes:
      errors: rule, group_size, attackers, error: the distance of the combined update to the mean of all updates as they
        would have been honestly, over that mean's length; mean over draws. Below ROUNDING it is 0.
      seen: of one draw, a row a hospital: hospital, attacker, norm (of its update, which only it knows), upload_bytes and
        mean_byte (of its ciphertext, which the server gets).
      groups: of the same draw, a row a group whose sum was encrypted: group, hospitals, attackers, norm (of the decrypted
        mean), difference (largest, to the plain mean), seconds.
      facts: run, dataset, synthetic, attack, strength, num_parameters, draws.
    """

    errors: pd.DataFrame
    seen: pd.DataFrame
    groups: pd.DataFrame
    facts: dict


def measure(profile: str, *, record: RunRecord, progress: bool = True) -> SecretGroups:
    """The measurements on a run of notebook 07 without an attack: loaded if they are there, otherwise made.

    Raises:
      RecordError: they are not there, and this command does not make them; or they cannot be written or read.
      DataError: they must be made, and the images are not at hand.
    """
    name = f"{record.config['dataset']}_s{record.config['seed']}_{digest([VERSION, NUM_DRAWS, record.path.name])}"
    folder = paths.runs_root(profile) / SECRET_GROUPS / name
    found = load_or_compute(folder, _LAYOUT, profile, lambda: _measured(record, progress))
    return SecretGroups(**found.tables, facts=found.facts)


def _measured(record: RunRecord, progress: bool) -> Content:
    from fl_utils.experiments.training import hospital_updates  # loads TensorFlow

    config = ExperimentConfig(**record.config)
    data = data_of(config)
    weights = selected_weights(record, progress=progress)["all"]
    sent = hospital_updates(config, data, share_out(data, config), weights, record.environment["selected_round"]["all"] + 1)
    honest = np.stack([np.concatenate([part.ravel() for part in parts]) for parts in sent])
    seen, groups = encrypted_groups(honest, num_attackers=3 * len(honest) // 10, seed=config.seed)
    facts = {
        "version": VERSION, "run": record.path.name, "dataset": config.dataset, "synthetic": data.synthetic,
        "attack": ATTACK, "strength": STRENGTHS[ATTACK], "num_parameters": honest.shape[1], "draws": NUM_DRAWS,
    }
    return Content({"errors": errors(honest, seed=config.seed), "seen": seen, "groups": groups}, facts)


def errors(honest: np.ndarray, *, seed: int) -> pd.DataFrame:
    """See `SecretGroups.errors`.

    Args:
      honest: float32 [n, d], the updates as they would be honestly; hospitals count alike.
      seed: of the draws.
    """
    n, wanted = len(honest), honest.mean(axis=0)
    sizes = [size for size in range(1, n + 1) if n % size == 0]
    bound, rows = float(np.median(np.linalg.norm(honest, axis=1))), []
    for num in range(n // 2):
        for draw in range(NUM_DRAWS):
            rng = seeding.generator(seed, "secret_groups", num, draw)
            updates = poison_updates(honest, rng.permutation(n)[:num], ATTACK, strength=STRENGTHS[ATTACK])
            order = rng.permutation(n)
            combined = {("Median of group sums", size): np.median(_means(updates, order, size), axis=0) for size in sizes}
            # A mean is the same over any groups.
            combined |= dict.fromkeys((("Mean, norms bounded", size) for size in sizes), _bounded(updates, bound).mean(axis=0))
            rows += [
                (*key, num, float(np.linalg.norm(update - wanted) / np.linalg.norm(wanted))) for key, update in combined.items()
            ]
    table = pd.DataFrame(rows, columns=["rule", "group_size", "attackers", "error"])
    table = table.groupby(["rule", "group_size", "attackers"], as_index=False, sort=False)["error"].mean()
    return table.assign(error=table["error"].where(table["error"] >= ROUNDING, 0.0))


def encrypted_groups(honest: np.ndarray, *, num_attackers: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One draw whose group sums are really encrypted; see `SecretGroups.seen` and `groups`."""
    from fl_utils.trust.encrypted import new_federation  # loads TenSEAL

    n, rng = len(honest), seeding.generator(seed, "secret_groups", "encrypted")
    bad = rng.permutation(n)[:num_attackers]
    updates, order = poison_updates(honest, bad, ATTACK, strength=STRENGTHS[ATTACK]), rng.permutation(n)
    seen, groups = {}, []
    for number, members in enumerate(np.array_split(order, max(1, n // GROUP_SIZE))):
        start = time.perf_counter()
        names = {f"hospital {client}": client for client in sorted(members.tolist())}
        hospitals, server = new_federation(list(names))
        sent = {
            name: hospitals[name].encrypt_update([updates[client]], weight=1.0, round_num=1) for name, client in names.items()
        }
        back, first = server.add(sent, round_num=1), next(iter(names))
        (mean,) = hospitals[first].decrypt_mean(back[first], round_num=1, shapes=[updates[0].shape])
        groups.append((
            number, " and ".join(str(client) for client in names.values()), int(np.isin(members, bad).sum()),
            np.linalg.norm(mean), np.abs(mean - updates[members].mean(axis=0)).max(), time.perf_counter() - start,
        ))
        for name, client in names.items():
            content = np.frombuffer(sent[name], np.uint8)
            norm = np.linalg.norm(updates[client])
            seen[client] = (client, int(client in bad), norm, len(content), content.mean())
    return (
        pd.DataFrame([seen[client] for client in range(n)], columns=["hospital", "attacker", "norm", "upload_bytes", "mean_byte"]),
        pd.DataFrame(groups, columns=["group", "hospitals", "attackers", "norm", "difference", "seconds"]),
    )


def _means(updates: np.ndarray, order: Sequence[int], size: int) -> np.ndarray:
    """float [groups, d]: the mean of each group of neighbours in the order."""
    return updates[order].reshape(len(updates) // size, size, -1).mean(axis=1)


def _bounded(updates: np.ndarray, bound: float) -> np.ndarray:
    norms = np.linalg.norm(updates, axis=1, keepdims=True)
    return updates * np.minimum(1.0, bound / np.maximum(norms, 1e-12))
