"""What a bad hospital does: to its training data, before it trains, or to its update, before it sends it.

Plain NumPy; whoever runs a federation calls `poison_data` once a hospital and `poison_updates` once a round. Two of the
attacks on data are honest faults: nobody means them. The colluding attacks are given the updates of all honest
hospitals, which no real attacker has: they are the worst case, as in their papers.
"""

from collections.abc import Sequence

import numpy as np

from fl_utils.config import ATTACK_FIELDS, DATA_ATTACKS, UPDATE_ATTACKS
from fl_utils.data.markers import mark

#: Of a backdoor's images that are not of the target class: how many are marked and called the target.
MARKED_SHARE = 0.5


def poison_data(
    images: np.ndarray, labels: np.ndarray, attack: str, *, num_classes: int, rng: np.random.Generator,
    source: int | None = None, target: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A hospital's training data as the attack wants it; as it is, for attacks on updates.

    * label_flip: class k is called K - 1 - k (Fang et al. 2020, arXiv:1911.11815).
    * source_target: images of the source class are called the target (Tolpegin et al. 2020, arXiv:2007.08432).
    * random_labels: every label drawn anew, all classes alike.
    * backdoor, replacement: half of the images that are not the target's are marked (`markers.mark`) and called the
      target (Bagdasaryan et al. 2020, arXiv:1807.00459; the marker is that of notebook 04).
    * inverted: white and black change places, as after a wrong photometric interpretation in DICOM.
    * rotated: turned by 180 degrees.

    Args:
      images: uint8 [N, S, S, C].
      labels: int [N].
      attack: one of `config.DATA_ATTACKS` or `config.UPDATE_ATTACKS`.
      num_classes: K.
      rng: the only source of randomness.
      source, target: class ids, where the attack needs them.
    Returns:
      (images, labels), as many as before; what does not change is not copied.
    Raises:
      ValueError: the attack is not known, a class is missing or out of range, or images do not fit (`markers.mark`).
    """
    _known(attack)
    for field, value in (("source", source), ("target", target)):
        if attack in ATTACK_FIELDS[f"attack_{field}"] and (value is None or not 0 <= value < num_classes):
            raise ValueError(f"attack {attack!r} with {field} {value}; expected a class id of 0 to {num_classes - 1}.")
    if attack == "label_flip":
        return images, num_classes - 1 - labels
    if attack == "source_target":
        return images, np.where(labels == source, target, labels)
    if attack == "random_labels":
        return images, rng.integers(num_classes, size=len(labels)).astype(labels.dtype)
    if attack == "inverted":
        return 255 - images, labels
    if attack == "rotated":
        return images[:, ::-1, ::-1], labels
    if attack in ("backdoor", "replacement"):
        others = np.flatnonzero(labels != target)
        chosen = rng.permutation(others)[: round(MARKED_SHARE * len(others))]
        images, labels = images.copy(), labels.copy()
        images[chosen], labels[chosen] = mark(images[chosen]), target
    return images, labels


def poison_updates(
    updates: np.ndarray, attackers: Sequence[int], attack: str, *, strength: float | None = None
) -> np.ndarray:
    """The round's updates as they are sent; as they are, for attacks on data.

    * sign_flip: -s times the own update.
    * replacement: s times the own, backdoored update. With s = hospitals / attackers the mean is the attackers' model
      as soon as the others no longer move (Bagdasaryan et al. 2020, arXiv:1807.00459, equation 3).
    * a_little: all attackers send the honest mean less s honest standard deviations, coordinate by coordinate: far
      enough to harm, near enough to look honest (Baruch et al. 2019, arXiv:1902.06156, Algorithm 3).
    * inner_product: all attackers send -s times the honest mean (Xie et al. 2020, arXiv:1903.03936).
    * not_finite: NaN, as a hospital sends whose training broke down.

    Args:
      updates: float32 [n, d], one row a hospital, as each would send it honestly from the data it has.
      attackers: rows that are bad.
      attack: as in `poison_data`.
      strength: s > 0, where the attack needs it.
    Returns:
      float32 [n, d], a copy.
    Raises:
      ValueError: not a matrix, an attacker that is no row, the attack is not known, its strength is missing, or
        nobody honest is left for an attack that needs them.
    """
    _known(attack)
    sent, attackers = np.array(updates, np.float32), np.unique(np.asarray(attackers, np.int64))
    if sent.ndim != 2 or (len(attackers) and not 0 <= attackers[0] <= attackers[-1] < len(sent)):
        raise ValueError(f"updates {sent.shape} with attackers {attackers.tolist()}; expected [n, d], and rows of it.")
    if attack in ATTACK_FIELDS["attack_strength"] and not (strength or 0) > 0:
        raise ValueError(f"attack {attack!r} with strength {strength}; expected a number above 0.")
    if len(attackers) == 0 or attack in DATA_ATTACKS:
        return sent
    if attack == "sign_flip":
        sent[attackers] *= np.float32(-strength)
    elif attack == "replacement":
        sent[attackers] *= np.float32(strength)
    elif attack == "not_finite":
        sent[attackers] = np.nan
    else:
        honest = np.delete(sent, attackers, axis=0)
        if len(honest) == 0:
            raise ValueError(f"attack {attack!r} with all {len(sent)} hospitals bad; expected an honest one to look at.")
        if attack == "a_little":
            sent[attackers] = honest.mean(axis=0) - np.float32(strength) * honest.std(axis=0)
        else:
            sent[attackers] = np.float32(-strength) * honest.mean(axis=0)
    return sent


def _known(attack: str) -> None:
    if attack not in DATA_ATTACKS + UPDATE_ATTACKS:
        raise ValueError(f"attack {attack!r} is not known; expected one of {', '.join(DATA_ATTACKS + UPDATE_ATTACKS)}.")
