"""Notebook 06's gradient inversions as data: what the attacker sees, and how much is attacked."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Condition:
    """What the attacker sees, and how it attacks.

    Attributes:
      label: for tables and figures.
      images: behind the update.
      batch, passes: local steps of the update; batch None is one gradient of all images.
      noise: of what is seen, which is clipped first: an arm of `privacy_plan` with its noise multiplier, or a noise
        multiplier; None: it is seen as it is.
      attack: "cosine_tv", "dlg", or "dlg_smooth" (DLG on the same model with sigmoids and average pooling, as in its paper).
      trained: the model at the end of the unprotected training in place of its start.
      plain: the same network without GroupNorm, whose gradient is easier to invert.
      repeats: with one image, how many are attacked, each by itself.
    """

    label: str
    images: int = 1
    batch: int | None = None
    passes: int = 1
    noise: str | float | None = None
    attack: str = "cosine_tv"
    trained: bool = False
    plain: bool = False
    repeats: int = 1


CONDITIONS: Mapping[str, Condition] = {
    "one": Condition("one gradient, 1 image", repeats=4),
    "four": Condition("one gradient, 4 images", images=4),
    "sixteen": Condition("one gradient, 16 images", images=16),
    "update": Condition("FedAvg update, 4 images, 4 steps", images=4, batch=2, passes=2),
    "longer": Condition("FedAvg update, 4 images, 8 steps", images=4, batch=2, passes=4),
    "plain": Condition("one gradient, 1 image, no GroupNorm", plain=True, repeats=4),
    "four_plain": Condition("one gradient, 4 images, no GroupNorm", images=4, plain=True),
    "trained": Condition("one gradient, 1 image, trained model", trained=True),
    "dlg": Condition("DLG, one gradient, 1 image", attack="dlg"),
    "dlg_smooth": Condition("DLG, 1 image, smooth model", attack="dlg_smooth", repeats=4),
    "noise_0.01": Condition("clipped, noise multiplier 0.01", noise=0.01, repeats=4),
    "patient_8": Condition("patient-level DP, epsilon 8", noise="patient_8", repeats=4),
    "patient_1": Condition("patient-level DP, epsilon 1", noise="patient_1"),
    "hospital_few": Condition("hospital-level DP, epsilon 8", noise="hospital_few"),
}
#: Total variation's weight in "cosine_tv", chosen among 0.001 to 0.3 on other images (the tuning seed's).
TV_WEIGHT = 0.3
#: Shown as pictures: a condition that hides nothing, larger batches, several steps, and with noise.
SHOWN = ("one", "plain", "dlg_smooth", "four_plain", "update", "noise_0.01", "patient_8")


@dataclasses.dataclass(frozen=True)
class AttackSettings:
    """How much is attacked in a profile: iterations of each search, and the conditions."""

    iterations: int
    conditions: tuple[str, ...]


ATTACKS = {
    "smoke": AttackSettings(15, ("one", "patient_8")),
    "quick": AttackSettings(200, ("one", "four", "noise_0.01", "patient_8")),
    "paper": AttackSettings(300, tuple(CONDITIONS)),
}
