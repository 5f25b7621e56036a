"""Notebook 07's runs as data: attack x aggregator x share of bad hospitals x partition x seed.

Ten hospitals train one small CNN by FedAvg. Nobody chooses a round: the score of a run is the mean over its last rounds,
as one round's score jumps. The rate is chosen on validation data for the mean without an attack and taken by all, as a
server does that does not know of one. The rules that must be told are told three of ten, whatever the truth.
"""

import dataclasses
from collections.abc import Callable, Iterator

import pandas as pd

from fl_utils.config import AGGREGATOR_FIELDS, ATTACK_FIELDS, ATTACK_LABELS, ExperimentConfig, make_config
from fl_utils.experiments.plans import TUNING_SEED, best_trial
from fl_utils.records import RunRecord

#: Experiment folders of the runs and of those that chose their rate.
POISONING, POISONING_TUNING = "poisoning", "poisoning_tuning"
DIRICHLET_ALPHA = 0.5
ROOT_EXAMPLES = 100
#: Rounds at the end whose scores are averaged, where there are as many.
LAST_ROUNDS = 4
RATES = (0.1, 0.2, 0.4)
UNTUNED_RATE = 0.1
#: What is attacked: (source, target). Images of the source are called the target, or marked ones are; it is the class
#: of the healthy, so that a sick patient is sent home.
CLASSES = {"brain_mri": (0, 2), "phantom_brain": (0, 2)}
#: Attacks that send updates of their own making: how strong they are. "replacement" is (hospitals / attackers).
STRENGTHS = {"sign_flip": 5.0, "a_little": 1.5, "inner_product": 0.5}

_MAIN = ("mean", "coordinate_median", "multi_krum", "geometric_median", "fltrust")
_RULES = ("mean", "norm_clipping", "coordinate_median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "fltrust")
_ALL = (*_RULES, "norm_zeroing")
_DELIBERATE = ("label_flip", "source_target", "sign_flip", "replacement", "a_little", "inner_product")


@dataclasses.dataclass(frozen=True)
class Block:
    """Cells of the grid: every attack with every rule.

    Attributes:
      attacks: keys of `config.ATTACK_LABELS`.
      aggregators: keys of `config.AGGREGATOR_LABELS`.
      fraction: of bad hospitals.
      partition: "iid" or "dirichlet".
      schedule: see `ExperimentConfig.attack_schedule`.
    """

    attacks: tuple[str, ...]
    aggregators: tuple[str, ...]
    fraction: float = 0.3
    partition: str = "iid"
    schedule: str = "fixed"


@dataclasses.dataclass(frozen=True)
class PoisoningSettings:
    """How large a profile is.

    Attributes:
      dataset: one of `CLASSES`.
      seeds: of the reported runs.
      num_clients, assumed_attackers, total_rounds, image_size_px, num_images, client_batch_size: see `ExperimentConfig`.
      blocks: of the grid, the most wanted first.
      tuned: whether the rate is chosen by trials (else `UNTUNED_RATE`).
    """

    dataset: str
    seeds: tuple[int, ...]
    num_clients: int
    assumed_attackers: int
    total_rounds: int
    blocks: tuple[Block, ...]
    image_size_px: int = 32
    num_images: int | None = None
    client_batch_size: int = 16
    tuned: bool = False


SETTINGS = {
    "smoke": PoisoningSettings(
        "phantom_brain", (0, 1), 5, 1, 2,
        (
            Block(("clean", "sign_flip", "replacement"), ("mean", "multi_krum"), 0.2),
            Block(("clean",), ("mean", "multi_krum"), 0.2, "dirichlet"),
        ),
        image_size_px=28, num_images=200,
    ),
    "quick": PoisoningSettings(
        "phantom_brain", (0, 1), 5, 1, 16,
        (
            Block(("clean", "label_flip", "sign_flip", "replacement"), ("mean", "coordinate_median", "multi_krum"), 0.2),
            Block(("clean",), ("mean", "coordinate_median", "multi_krum"), 0.2, "dirichlet"),
        ),
        num_images=800, client_batch_size=8,
    ),
    "paper": PoisoningSettings(
        "brain_mri", (0, 1, 2, 3, 4), 10, 3, 16,
        (
            Block(("clean",), _ALL),
            Block(("clean",), _ALL, partition="dirichlet"),
            Block((*_DELIBERATE, "backdoor"), _RULES),
            Block(("sign_flip", "replacement"), ("norm_zeroing",)),
            Block(("label_flip", "sign_flip", "replacement"), _MAIN, 0.1),
            Block(("sign_flip", "replacement"), _MAIN, 0.4),
            Block(("label_flip", "sign_flip", "replacement", "a_little"), _MAIN, partition="dirichlet"),
            Block(("random_labels", "inverted", "rotated"), ("mean", "multi_krum")),
            Block(("sign_flip",), ("mean", "multi_krum"), schedule="changing"),
        ),
        tuned=True,
    ),
}


def cells(profile: str) -> Iterator[dict]:
    """Every cell of the grid once, in the order of the blocks: fields of `cell_config`."""
    for block in SETTINGS[profile].blocks:
        for attack in block.attacks:
            for aggregator in block.aggregators:
                yield {
                    "attack": attack, "aggregator": aggregator, "fraction": block.fraction, "partition": block.partition,
                    "schedule": block.schedule,
                }


def cell_config(
    profile: str, seed: int, *, attack: str, aggregator: str, client_learning_rate: float, fraction: float = 0.3,
    partition: str = "iid", schedule: str = "fixed",
) -> ExperimentConfig:
    """The configuration of one cell and seed; "clean" has no bad hospital, whatever the fraction.

    Raises:
      ConfigError: see `make_config`.
    """
    settings = SETTINGS[profile]
    return make_config(**{
        "dataset": settings.dataset, "profile": profile, "seed": seed, "method": "fedavg", "partition": partition,
        "num_clients": settings.num_clients, "model": "small_cnn", "image_size_px": settings.image_size_px,
        "num_images": settings.num_images, "total_rounds": settings.total_rounds, "client_batch_size": settings.client_batch_size,
        "client_momentum": 0.0, "augment": False, "client_learning_rate": client_learning_rate,
        "dirichlet_alpha": DIRICHLET_ALPHA if partition == "dirichlet" else None, "aggregator": aggregator,
        "assumed_attackers": settings.assumed_attackers if aggregator in AGGREGATOR_FIELDS["assumed_attackers"] else None,
        "root_examples": ROOT_EXAMPLES if aggregator in AGGREGATOR_FIELDS["root_examples"] else None,
        **({} if attack == "clean" else _attack_fields(settings, attack, fraction, schedule)),
    })


def _attack_fields(settings: PoisoningSettings, attack: str, fraction: float, schedule: str) -> dict:
    source, target = CLASSES[settings.dataset]
    bad = round(fraction * settings.num_clients)
    strength = settings.num_clients / bad if attack == "replacement" else STRENGTHS.get(attack)
    return {
        "attack": attack, "attack_fraction": fraction, "attack_schedule": schedule, "attack_strength": strength,
        "attack_source": source if attack in ATTACK_FIELDS["attack_source"] else None,
        "attack_target": target if attack in ATTACK_FIELDS["attack_target"] else None,
    }


def followed(record: RunRecord, metric: str, split: str, client: str = "all") -> pd.Series:
    """Round -> value, in order."""
    rows = record.metrics
    rows = rows[(rows["client"] == client) & (rows["split"] == split) & (rows["metric"] == metric)]
    return rows.groupby("round")["value"].mean()


def late_score(record: RunRecord, split: str = "validation", metric: str = "balanced_accuracy", client: str = "all") -> float:
    """The mean over a run's last `LAST_ROUNDS` rounds; those of a run that broke down are its last ones before."""
    last = followed(record, metric, split, client).tail(LAST_ROUNDS)
    if last.empty:
        raise ValueError(f"{record.path.name} has no {metric} of {client}, {split}.")
    return float(last.mean())


def tuning_configs(profile: str) -> list[ExperimentConfig]:
    """The trials; none where the profile is not tuned."""
    rates = RATES if SETTINGS[profile].tuned else ()
    return [cell_config(profile, TUNING_SEED, attack="clean", aggregator="mean", client_learning_rate=rate) for rate in rates]


def tuned(profile: str, progress: bool = False) -> tuple[float, dict]:
    """The rate, and how it was found, for the record."""
    configs = tuning_configs(profile)
    if not configs:
        return UNTUNED_RATE, {}
    fields, facts = best_trial(
        [{"client_learning_rate": rate} for rate in RATES], configs, name=f"{SETTINGS[profile].dataset}, mean",
        experiment=POISONING_TUNING, score=late_score, progress=progress,
    )
    return fields["client_learning_rate"], facts


def tuning_facts(profile: str) -> Callable[[ExperimentConfig], dict]:
    """A function of a configuration: how its rate was chosen, for its record."""
    facts = tuned(profile)[1]
    return lambda config: facts


def configs_07(profile: str, progress: bool = False) -> list[ExperimentConfig]:
    """All runs of the grid, block by block; every cell in all seeds."""
    rate, _ = tuned(profile, progress)
    return [
        cell_config(profile, seed, client_learning_rate=rate, **cell) for cell in cells(profile)
        for seed in SETTINGS[profile].seeds
    ]


def overview(profile: str) -> pd.DataFrame:
    """The plan of a profile, a row a block."""
    return pd.DataFrame([
        {
            "partition": "IID" if block.partition == "iid" else f"Dirichlet {DIRICHLET_ALPHA}",
            "attacks": ", ".join(ATTACK_LABELS[attack] for attack in block.attacks), "rules": len(block.aggregators),
            "bad hospitals": "none" if block.attacks == ("clean",) else f"{block.fraction:.0%}, {block.schedule}",
            "runs": len(block.attacks) * len(block.aggregators) * len(SETTINGS[profile].seeds),
        }
        for block in SETTINGS[profile].blocks
    ])
