"""The configuration of one run: every field checked, none silently ignored."""

from typing import Any, Literal

import pydantic

#: "phantoms" is the published profile of what can only be shown on phantoms; it has a folder of its own.
Profile = Literal["smoke", "quick", "paper", "phantoms"]
#: `learning.algorithms` says what each federated method is, with its paper.
Method = Literal[
    "centralized", "local", "fedsgd", "fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "mimelite",
    "scaffold", "finetuned", "local_norm",
]
#: What figures and tables call them.
METHOD_LABELS = {
    "centralized": "Centralized", "local": "Alone", "fedsgd": "FedSGD", "fedavg": "FedAvg", "fedprox": "FedProx",
    "fedavgm": "FedAvgM", "fedadam": "FedAdam", "fedyogi": "FedYogi", "fedadagrad": "FedAdagrad",
    "mimelite": "Mime-lite", "scaffold": "SCAFFOLD", "finetuned": "Fine-tuned", "local_norm": "Own norm",
}
Partition = Literal["pooled", "iid", "natural", "dirichlet", "pathological", "quantity", "feature", "mixed"]
#: The field that a partition needs, and that only those take that need it.
PARTITION_FIELD = {
    "dirichlet": "dirichlet_alpha", "pathological": "classes_per_client", "quantity": "quantity_alpha",
    "mixed": "quantity_alpha",
}
#: Partitions in which each hospital has a made-up scanner; "mixed" hospitals are of unequal size as well.
SCANNER_PARTITIONS = ("feature", "mixed")
#: The fields that a method needs to be what its name says, and that no other one takes.
METHOD_FIELDS = {
    "proximal_strength": ("fedprox",),
    "server_momentum": ("fedavgm", "mimelite"),
    "personal_epochs": ("finetuned",),
}
#: Models that segment volumes slice by slice, and the fields that they need and no other model takes.
SEGMENTERS = ("unet", "attention_unet")
SEGMENTER_FIELDS = ("plane", "model_width", "model_depth")
#: Of a segmenter's GroupNorm.
NORM_GROUPS = 8
#: What a run with differential privacy needs, and no other takes.
PRIVACY_FIELDS = ("epsilon", "delta", "clipping_norm")
#: What figures and tables call the protections of notebook 06 (`experiments.privacy_plan.ARMS`).
PROTECTION_LABELS = {
    "none": "No protection", "longer": "Longer local training", "patient_8": "Patient-level DP, ε = 8",
    "patient_3": "Patient-level DP, ε = 3", "patient_1": "Patient-level DP, ε = 1",
    "hospital_few": "Hospital-level DP, 5 hospitals, fixed clip",
    "hospital_few_adaptive": "Hospital-level DP, 5 hospitals, adaptive clip", "encrypted": "Encrypted sum (CKKS)",
    "both": "Patient-level DP and CKKS", "local": "Each hospital alone", "none_many": "No protection, 50 hospitals",
    "hospital_many": "Hospital-level DP, 50 hospitals, fixed clip",
    "hospital_many_adaptive": "Hospital-level DP, 50 hospitals, adaptive clip",
}
#: Smaller images lose the strokes of a marker (`data.markers`).
MIN_MARKED_PX = 28
#: What a bad hospital does: to its training images or labels ...
DATA_ATTACKS = ("label_flip", "source_target", "random_labels", "backdoor", "inverted", "rotated")
#: ... or to what it sends (`trust.poisoning` says how); "replacement" is a backdoor whose update is scaled up.
UPDATE_ATTACKS = ("sign_flip", "replacement", "a_little", "inner_product", "not_finite")
#: What figures and tables call them; "clean" is a federation without a bad hospital.
ATTACK_LABELS = {
    "clean": "No attack", "label_flip": "All labels flipped", "source_target": "Source called target",
    "random_labels": "Random labels", "backdoor": "Backdoor marker", "inverted": "Inverted grey values (fault)",
    "rotated": "Rotated images (fault)", "sign_flip": "Sign flipped, 5 times", "replacement": "Backdoor, scaled up",
    "a_little": "A little is enough (colluding)", "inner_product": "Inner product (colluding)",
    "not_finite": "Not finite (fault)",
}
#: How the server combines updates (`learning.aggregators`), and what figures and tables call it.
AGGREGATOR_LABELS = {
    "mean": "Mean", "norm_clipping": "Norm clipping", "norm_zeroing": "Norm zeroing",
    "coordinate_median": "Coordinate median", "trimmed_mean": "Trimmed mean", "krum": "Krum",
    "multi_krum": "Multi-Krum", "geometric_median": "Geometric median", "fltrust": "FLTrust",
}
#: What an aggregator needs, and no other takes: how many hospitals it takes to be bad, or its own clean images.
AGGREGATOR_FIELDS = {
    "assumed_attackers": ("trimmed_mean", "krum", "multi_krum"), "root_examples": ("fltrust",),
}
#: What an attack needs, and no other takes.
ATTACK_FIELDS = {
    "attack_source": ("source_target",), "attack_target": ("source_target", "backdoor", "replacement"),
    "attack_strength": ("sign_flip", "replacement", "a_little", "inner_product"),
}
#: Shadow models of a membership attack: each training patient is in half of them.
NUM_SHADOWS = 12


class ConfigError(ValueError):
    """A field that does not exist, or a value that cannot be; names what was expected."""


class ExperimentConfig(pydantic.BaseModel):
    """One run. The fields follow DESIGN section 2, rule 7: the first six name the record.

    A round is `client_epochs_per_round` passes over the pooled data (centralized), over a
    hospital's own data (local), or over the data of each hospital of the cohort, then averaged (federated).
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    dataset: str
    method: Method
    partition: Partition
    num_clients: int = pydantic.Field(ge=1, le=1000)
    seed: int = pydantic.Field(ge=0)
    profile: Profile

    split: Literal[
        "deduplicated", "near", "pictures", "random", "published", "published_clean", "published_thinned"
    ] = "deduplicated"
    split_seed: int | None = pydantic.Field(default=None, ge=0)
    image_size_px: int = pydantic.Field(default=64, ge=16, le=512)
    num_images: int | None = pydantic.Field(default=None, ge=1)
    model: Literal[
        "seed_cnn", "residual_gn", "softmax_regression", "small_cnn", "norm_cnn_group", "norm_cnn_batch", "unet", "attention_unet"
    ] = "seed_cnn"
    #: Of segmenters, as are the next three; for them `num_images` counts subjects.
    plane: Literal["axial", "coronal", "sagittal"] | None = None
    model_width: int | None = pydantic.Field(default=None, ge=1)
    model_depth: int | None = pydantic.Field(default=None, ge=1)
    #: Slices without a label that training takes, for each one with a label; None takes all.
    background_ratio: float | None = pydantic.Field(default=None, ge=0, allow_inf_nan=False)
    total_rounds: int = pydantic.Field(ge=1)
    clients_per_round: int | None = pydantic.Field(default=None, ge=1)
    client_epochs_per_round: int = pydantic.Field(default=1, ge=1)
    client_batch_size: int = pydantic.Field(default=32, ge=1)
    client_learning_rate: float = pydantic.Field(gt=0, allow_inf_nan=False)
    client_momentum: float = pydantic.Field(default=0.9, ge=0, lt=1)
    server_learning_rate: float = pydantic.Field(default=1.0, gt=0, allow_inf_nan=False)
    augment: bool = True
    class_weighting: bool = True

    dirichlet_alpha: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    classes_per_client: int | None = pydantic.Field(default=None, ge=1)
    quantity_alpha: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    proximal_strength: float = pydantic.Field(default=0.0, ge=0, allow_inf_nan=False)
    server_momentum: float = pydantic.Field(default=0.0, ge=0, lt=1)
    personal_epochs: int = pydantic.Field(default=0, ge=0)
    norm_statistics: Literal["averaged", "dropped"] = "averaged"
    #: The first so many hospitals mark their training images of the last class (see `data.markers`).
    marked_hospitals: int = pydantic.Field(default=0, ge=0)
    #: Training and validation labels dealt out anew: what a model learns that has nothing to learn.
    shuffled_labels: bool = False
    #: Whose data epsilon is about: DP-SGD over patients in each hospital, or noise on the hospitals' updates. With
    #: "patient", `client_batch_size` is the expected number of patients a step. See `trust.terms`. Class weights are not
    #: covered: the federation's class shares are taken as public.
    privacy_unit: Literal["patient", "hospital"] | None = None
    #: Of all rounds together; the noise follows from it (`experiments.protection`).
    epsilon: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    delta: float | None = pydantic.Field(default=None, gt=0, lt=1)
    #: C of a patient's gradient or a hospital's update; with adaptive clipping where C starts.
    clipping_norm: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    adaptive_clipping: bool = False
    #: The hospitals' updates are added by CKKS; the server cannot read them (`trust.encrypted`).
    encrypted: bool = False
    #: Trains on that half of the training patients that shadow model number `shadow` takes (`trust.lira`).
    shadow: int | None = pydantic.Field(default=None, ge=0, lt=NUM_SHADOWS)
    #: How the server combines updates (`experiments.robust_learner`); None is the mean of every other notebook. With an
    #: aggregator the last round is reported: a server that can choose rounds on clean images would see the attack.
    aggregator: Literal[
        "mean", "norm_clipping", "norm_zeroing", "coordinate_median", "trimmed_mean", "krum", "multi_krum",
        "geometric_median", "fltrust",
    ] | None = None
    assumed_attackers: int | None = pydantic.Field(default=None, ge=0)
    #: Clean images that the server holds for FLTrust, drawn from the validation part.
    root_examples: int | None = pydantic.Field(default=None, ge=1)
    #: What bad hospitals do (`trust.poisoning`), and how many of all they are; None: there are none.
    attack: Literal[
        "label_flip", "source_target", "random_labels", "backdoor", "inverted", "rotated", "sign_flip", "replacement",
        "a_little", "inner_product", "not_finite",
    ] | None = None
    attack_fraction: float | None = pydantic.Field(default=None, gt=0, lt=1)
    #: The same hospitals in all rounds, or others in each.
    attack_schedule: Literal["fixed", "changing"] = "fixed"
    #: Factor of the sent update, or for "a_little" standard deviations; see `trust.poisoning`.
    attack_strength: float | None = pydantic.Field(default=None, gt=0, allow_inf_nan=False)
    #: Class ids: images of the source are called the target; a backdoor's marker means the target.
    attack_source: int | None = pydantic.Field(default=None, ge=0)
    attack_target: int | None = pydantic.Field(default=None, ge=0)

    @pydantic.model_validator(mode="after")
    def _fits_together(self):
        pooled = self.partition == "pooled"
        # Where hospitals change their images, the pooled images are not those of "pooled".
        changed = self.partition in SCANNER_PARTITIONS or self.marked_hospitals > 0
        if (self.method == "centralized") != pooled and not (self.method == "centralized" and changed):
            raise ValueError(
                f"partition {self.partition!r} was given with method {self.method!r}; 'pooled' belongs to "
                "'centralized', and only to it (with scanners or marks of its own, a hospital is pooled with these)"
            )
        if self.marked_hospitals > (0 if pooled else self.num_clients):
            raise ValueError(
                f"marked_hospitals is {self.marked_hospitals} with {self.num_clients} hospitals, partition "
                f"{self.partition!r}; expected at most as many, and none where images are pooled from the start"
            )
        if pooled and self.num_clients != 1:
            raise ValueError(f"num_clients {self.num_clients} was given with method 'centralized'; expected 1")
        if self.clients_per_round is not None:
            if not self.federated:
                raise ValueError(
                    f"clients_per_round {self.clients_per_round} was given with method {self.method!r}; "
                    "it is for federated methods only: leave it out"
                )
            if self.clients_per_round > self.num_clients:
                raise ValueError(
                    f"clients_per_round {self.clients_per_round} was given with num_clients {self.num_clients}; "
                    "expected at most as many"
                )
        needed = PARTITION_FIELD.get(self.partition)
        for field in dict.fromkeys(PARTITION_FIELD.values()):
            if (getattr(self, field) is not None) != (field == needed):
                raise ValueError(
                    f"{field} is {getattr(self, field)} with partition {self.partition!r}; "
                    + ("the partition needs it" if field == needed else "leave it out: no such skew there")
                )
        for field, methods in METHOD_FIELDS.items():
            if (getattr(self, field) > 0) != (self.method in methods):
                raise ValueError(
                    f"{field} is {getattr(self, field)} with method {self.method!r}; it must be above 0 for "
                    f"{' and '.join(methods)}, and is for no other method"
                )
        if self.method == "scaffold" and self.client_momentum > 0:
            raise ValueError(
                f"client_momentum is {self.client_momentum} with method 'scaffold', whose control variates stand for "
                "plain SGD; set it to 0"
            )
        if self.method == "local_norm" and not self.model.startswith("norm_cnn"):
            raise ValueError(f"model {self.model!r} has no normalisation layers for 'local_norm'; use norm_cnn_group")
        if self.partition in SCANNER_PARTITIONS and not 24 <= self.image_size_px <= 256:
            raise ValueError(f"image_size_px is {self.image_size_px}; made-up scanners take images of 24 to 256 pixels")
        self._check_segmenter()
        self._check_protection()
        self._check_attack()
        return self

    def _check_segmenter(self) -> None:
        for field in SEGMENTER_FIELDS:
            if (getattr(self, field) is not None) != self.segments:
                raise ValueError(
                    f"{field} is {getattr(self, field)} with model {self.model!r}; it belongs to "
                    f"{' and '.join(SEGMENTERS)}, which need it, and to no other model"
                )
        if not self.segments:
            if self.background_ratio is not None:
                raise ValueError(f"background_ratio {self.background_ratio} is for segmenters only: leave it out")
            return
        if self.image_size_px % 2**self.model_depth:
            raise ValueError(
                f"image_size_px {self.image_size_px} cannot be halved {self.model_depth} times (model_depth); expected a "
                f"multiple of {2**self.model_depth}"
            )
        if self.model_width % NORM_GROUPS:
            raise ValueError(f"model_width is {self.model_width}; expected a multiple of the {NORM_GROUPS} groups of GroupNorm")
        if self.model == "attention_unet" and self.model_depth < 2:
            raise ValueError("model_depth is 1 with model 'attention_unet', whose finest level has no gate; expected 2 or more")
        refused = {
            "method": self.method in ("finetuned", "local_norm"), "class_weighting": self.class_weighting,
            "marked_hospitals": self.marked_hospitals > 0, "shuffled_labels": self.shuffled_labels,
            "split": self.split != "deduplicated",
            "partition": self.partition in ("dirichlet", "pathological"),  # a subject has all classes
        }
        for field in (name for name, wrong in refused.items() if wrong):
            raise ValueError(f"{field} {getattr(self, field)!r} is not for segmenters such as {self.model!r}")

    def _check_protection(self) -> None:
        for field in PRIVACY_FIELDS:
            if (getattr(self, field) is not None) != (self.privacy_unit is not None):
                raise ValueError(
                    f"{field} is {getattr(self, field)} with privacy_unit {self.privacy_unit!r}; a run with "
                    f"differential privacy needs {', '.join(PRIVACY_FIELDS)}, and no other takes them"
                )
        wanted = {
            "privacy_unit": self.privacy_unit is not None, "encrypted": self.encrypted, "shadow": self.shadow is not None
        }
        for field in (name for name, asked in wanted.items() if asked):
            if self.method != "fedavg" or self.segments:
                raise ValueError(
                    f"{field} is {getattr(self, field)!r} with method {self.method!r} and model {self.model!r}; it is "
                    "for classifiers with method 'fedavg'"
                )
        if self.adaptive_clipping and self.privacy_unit != "hospital":
            raise ValueError(f"adaptive_clipping is for privacy_unit 'hospital', not {self.privacy_unit!r}")
        if self.privacy_unit and self.model == "norm_cnn_batch":
            raise ValueError("model 'norm_cnn_batch' sends BatchNorm statistics without noise; take norm_cnn_group with a privacy_unit")
        if self.cohort_size < self.num_clients and (self.privacy_unit or self.encrypted):
            raise ValueError(
                f"clients_per_round is {self.clients_per_round} of {self.num_clients}; privacy is accounted, and updates "
                "are added in secret, for rounds of all hospitals: leave it out"
            )
        if self.encrypted and self.privacy_unit == "hospital":
            raise ValueError(
                "encrypted with privacy_unit 'hospital': the server would have to clip and noise what it cannot read; "
                "take privacy_unit 'patient', whose noise is added in the hospitals"
            )

    def _check_attack(self) -> None:
        asked = {"aggregator": self.aggregator, "attack": self.attack}
        for field in (name for name, value in asked.items() if value):
            if self.method not in ("fedavg", "fedprox") or self.segments or self.model == "norm_cnn_batch":
                raise ValueError(
                    f"{field} is {asked[field]!r} with method {self.method!r} and model {self.model!r}; it is for "
                    "classifiers without BatchNorm and methods 'fedavg' and 'fedprox'"
                )
            if self.privacy_unit or self.encrypted or self.cohort_size < self.num_clients:
                raise ValueError(
                    f"{field} is {asked[field]!r} with privacy_unit {self.privacy_unit!r}, encrypted {self.encrypted} and "
                    f"{self.cohort_size} of {self.num_clients} hospitals a round; the server must see the update of each: "
                    "leave the other out"
                )
        if self.attack and not self.aggregator:
            raise ValueError(f"attack is {self.attack!r} without an aggregator; set one, 'mean' for plain averaging")
        if (self.attack_fraction is not None) != (self.attack is not None) or (self.attack_schedule != "fixed" and not self.attack):
            raise ValueError(
                f"attack_fraction is {self.attack_fraction}, attack_schedule {self.attack_schedule!r} with attack {self.attack!r}; "
                "an attack needs a fraction, and without one there is neither"
            )
        if self.attack and self.num_attackers == 0:
            raise ValueError(
                f"attack_fraction is {self.attack_fraction} of {self.num_clients} hospitals, which is none; expected at "
                f"least {1 / self.num_clients:g}"
            )
        owners = {**dict.fromkeys(AGGREGATOR_FIELDS, "aggregator"), **dict.fromkeys(ATTACK_FIELDS, "attack")}
        for field, whose in {**AGGREGATOR_FIELDS, **ATTACK_FIELDS}.items():
            if (getattr(self, field) is not None) != (asked[owners[field]] in whose):
                raise ValueError(
                    f"{field} is {getattr(self, field)} with {owners[field]} {asked[owners[field]]!r}; it belongs to "
                    f"{', '.join(whose)}, which need it, and to no other"
                )
        if self.assumed_attackers is not None and 2 * self.assumed_attackers >= self.num_clients:
            raise ValueError(
                f"assumed_attackers is {self.assumed_attackers} of {self.num_clients} hospitals; expected less than half"
            )
        if self.attack in ("backdoor", "replacement") and self.image_size_px < MIN_MARKED_PX:
            raise ValueError(
                f"image_size_px is {self.image_size_px} with attack {self.attack!r}; its marker needs at least {MIN_MARKED_PX}"
            )
        if self.attack_source is not None and self.attack_source == self.attack_target:
            raise ValueError(f"attack_source and attack_target are both {self.attack_source}; expected two classes")

    @property
    def num_attackers(self) -> int:
        """Hospitals that are bad in a round."""
        return round((self.attack_fraction or 0.0) * self.num_clients)

    @property
    def segments(self) -> bool:
        """Whether the model gives every pixel a class, not every image."""
        return self.model in SEGMENTERS

    @property
    def federated(self) -> bool:
        """Whether hospitals train one model together."""
        return self.method not in ("centralized", "local")

    @property
    def cohort_size(self) -> int:
        """Clients that take part in one round."""
        return self.clients_per_round or self.num_clients


def make_config(**fields: Any) -> ExperimentConfig:
    """Checks the fields and returns the configuration.

    Raises:
      ConfigError: a field is unknown, missing or out of range; the text names the field,
        what was read and what was expected.
    """
    try:
        return ExperimentConfig(**fields)
    except pydantic.ValidationError as error:
        lines = []
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"]) or "config"
            if problem["type"] == "extra_forbidden":
                known = ", ".join(sorted(ExperimentConfig.model_fields))
                lines.append(f"{name}: no such field; known fields are {known}")
            elif problem["type"] == "missing":
                lines.append(f"{name}: missing")
            else:
                read = "" if name == "config" else f" (read {problem['input']!r})"
                lines.append(f"{name}: {problem['msg'].removeprefix('Value error, ')}{read}")
        raise ConfigError("The configuration is not usable:\n  " + "\n  ".join(lines)) from None
