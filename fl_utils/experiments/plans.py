"""Which runs a notebook needs, by profile: the one place where sizes, rounds and seeds are set."""

import dataclasses
from collections.abc import Callable, Sequence

from tqdm.auto import tqdm

from fl_utils.config import ConfigError, ExperimentConfig, make_config
from fl_utils.experiments.run import run
from fl_utils.learning.errors import TrainingError
from fl_utils.records import RunRecord

#: The experiment of notebooks 01 and 02: both draw on the same records.
CLASSIFICATION = "classification"
TUNING = "tuning"
#: Every method, model and data set is tuned over the same grid, with a seed of its own.
LEARNING_RATES = (0.005, 0.015, 0.05)
TUNING_SEED = 1000


@dataclasses.dataclass(frozen=True)
class ProfileSettings:
    """How large a profile is.

    Attributes:
      seeds: of the reported runs.
      image_size_px, num_images, client_batch_size: see `ExperimentConfig`.
      pooled_epochs: by data set, passes of the centralized model; `equal_steps` derives the rest.
      tuned: whether learning rates are tuned (else the fixed ones below are used).
    """

    seeds: tuple[int, ...]
    image_size_px: int
    pooled_epochs: dict[str, int]
    client_batch_size: int = 16
    num_images: int | None = None
    tuned: bool = False


PROFILES = {
    "smoke": ProfileSettings((0, 1), 24, {"phantom_brain": 2, "phantom_chest": 2}, num_images=96),
    "quick": ProfileSettings((0, 1), 32, {"phantom_brain": 14, "phantom_chest": 14}, num_images=600),
    "paper": ProfileSettings((0, 1, 2, 3, 4), 48, {"brain_mri": 10, "chest_xray": 4}, tuned=True),
}
#: Used where nothing is tuned (profiles on phantoms): good middle values, said so in the notebooks.
FIXED_LEARNING_RATE = {"seed_cnn": 0.015, "residual_gn": 0.015}


def settings_of(profile: str) -> ProfileSettings:
    """The sizes of a profile.

    Raises:
      ConfigError: no such profile.
    """
    if profile not in PROFILES:
        raise ConfigError(f"Profile {profile!r} is not known; expected one of {', '.join(PROFILES)}.")
    return PROFILES[profile]


def parts_of(profile: str) -> tuple[str, ...]:
    """The profiles that a notebook shows in a profile: with "paper" also what can only be shown on phantoms."""
    return ("paper", "phantoms") if profile == "paper" else (profile,)


def datasets_of(profile: str) -> tuple[str, ...]:
    """The data sets of a profile: real ones for "paper", phantoms for the others."""
    return tuple(settings_of(profile).pooled_epochs)


def base_config(profile: str, dataset: str, **fields) -> ExperimentConfig:
    """A configuration with the profile's sizes; `fields` adds and overrides.

    Raises:
      ConfigError: see `make_config`.
    """
    settings = settings_of(profile)
    if dataset not in settings.pooled_epochs:
        known = ", ".join(settings.pooled_epochs)
        raise ConfigError(f"Profile {profile!r} has no data set {dataset!r}; it has {known}.")
    method = fields.get("method")
    fields = {"num_clients": 1 if method == "centralized" else 4} | fields
    rounds, epochs = equal_steps(method, fields["num_clients"], settings.pooled_epochs[dataset])
    fields = {
        "dataset": dataset,
        "profile": profile,
        "image_size_px": settings.image_size_px,
        "num_images": settings.num_images,
        "total_rounds": rounds,
        "client_epochs_per_round": epochs,
        "client_batch_size": settings.client_batch_size,
        "partition": "pooled" if method == "centralized" else "iid",
        "seed": 0,
        **fields,
    }
    model = fields.get("model", "seed_cnn")
    if model in FIXED_LEARNING_RATE:  # another model needs the rate among `fields`, or make_config says so
        fields.setdefault("client_learning_rate", FIXED_LEARNING_RATE[model])
    return make_config(**fields)


def equal_steps(method: str, num_clients: int, pooled_epochs: int) -> tuple[int, int]:
    """Rounds and passes a round that give every model the same number of gradient steps one after another.

    A hospital holds 1/C of the data, so C passes over its data are as many steps as one pass
    over the pooled data: E passes pooled, E rounds of C passes alone, E C rounds of one pass federated.

    Returns:
      (total_rounds, client_epochs_per_round).
    """
    if method == "local":
        return pooled_epochs, num_clients
    return pooled_epochs * num_clients, 1


def tuning_configs(
    profile: str, dataset: str, method: str, model: str = "seed_cnn", augment: bool = True
) -> list[ExperimentConfig]:
    """The runs that choose the learning rate of a method: one a rate, on the tuning seed."""
    return [
        base_config(
            profile, dataset, method=method, model=model, augment=augment, seed=TUNING_SEED,
            client_learning_rate=learning_rate,
        )
        for learning_rate in LEARNING_RATES
    ]


def validation_score(record: RunRecord, metric: str = "balanced_accuracy") -> float:
    """What selects: a metric of the curve on validation data at the best round, mean over models."""
    curve = record.metrics.query("split == 'validation' and metric == @metric")
    selected = record.environment["selected_round"]
    at_best = [
        curve.query("client == @client and round == @round_num")["value"].item()
        for client, round_num in selected.items()
    ]
    return float(sum(at_best) / len(at_best))


def tuned_augmentation(profile: str, dataset: str, progress: bool = True) -> bool:
    """Whether augmentation pays at the profile's number of passes: chosen on the centralized seed CNN."""
    if not settings_of(profile).tuned:
        return False
    best = {
        augment: max(_tuning_scores(tuning_configs(profile, dataset, "centralized", augment=augment), progress).values())
        for augment in (True, False)
    }
    return best[True] > best[False]


def tuned(profile: str, dataset: str, method: str, model: str = "seed_cnn", progress: bool = True) -> dict:
    """The settings with the best validation score; fixed ones where the profile does not tune.

    Trains the tuning runs that are not there yet.

    Returns:
      The fields client_learning_rate and augment of a configuration.
    """
    augment = tuned_augmentation(profile, dataset, progress)
    if not settings_of(profile).tuned:
        return {"client_learning_rate": FIXED_LEARNING_RATE[model], "augment": augment}
    scores = _tuning_scores(tuning_configs(profile, dataset, method, model, augment), progress)
    return {"client_learning_rate": max(scores, key=scores.get), "augment": augment}


def _tuning_scores(configs: list[ExperimentConfig], progress: bool) -> dict[float, float]:
    scores = {}
    for config in configs:
        try:
            scores[config.client_learning_rate] = validation_score(run(config, experiment=TUNING, progress=progress))
        except TrainingError as error:
            tqdm.write(f"{config.dataset} {config.method}: rate {config.client_learning_rate} is out. {error}")
    if not scores:
        raise TrainingError(f"{configs[0].dataset} {configs[0].method}: training diverged at each of {LEARNING_RATES}.")
    return scores


def trial_score(
    config: ExperimentConfig, *, experiment: str, score: Callable[[RunRecord], float] = validation_score,
    progress: bool = True,
) -> float | None:
    """How well a trial did, training it if need be; None where training diverged, whatever its score before that.

    Args:
      config: of the trial.
      experiment: folder of its record.
      score: what selects, higher is better.
      progress: show a bar.
    Raises:
      TrainingError: it diverged in its first round, so that there is no record to keep.
      RecordError: it is not there, and this command does not train.
    """
    # A diverged one is kept, so that it is not trained again whenever somebody asks.
    record = run(config, experiment=experiment, progress=progress, keep_diverged=True)
    return None if "diverged_at_round" in record.environment else score(record)


def best_trial(
    trials: Sequence[dict], configs: Sequence[ExperimentConfig], *, name: str, facts: dict | None = None, **options
) -> tuple[dict, dict]:
    """The trial with the best score, and how it was found, for the record.

    Args:
      trials: the fields that each one tries.
      configs: the trials' runs, in the same order.
      name: whose settings are chosen, for errors.
      facts: further facts on the trials.
      options: see `trial_score`.
    Returns:
      (fields of a configuration, {"tuning": {seed, ..., trials: [{..., score}]}}); a score of None means it diverged.
    Raises:
      TrainingError: every trial diverged, or one did in its first round.
    """
    scores = [trial_score(config, **options) for config in configs]
    if all(score is None for score in scores):
        raise TrainingError(f"{name}: training diverged in each of {len(scores)} trials.")
    tried = [{**trial, "score": score} for trial, score in zip(trials, scores, strict=True)]
    best = max((place for place, score in enumerate(scores) if score is not None), key=scores.__getitem__)
    return dict(trials[best]), {"tuning": {"seed": TUNING_SEED, **(facts or {}), "trials": tried}}


def configs_01(profile: str, dataset: str, progress: bool = True) -> list[ExperimentConfig]:
    """Notebook 01: both models, trained on pooled data."""
    return [
        base_config(
            profile, dataset, method="centralized", model=model, seed=seed,
            **tuned(profile, dataset, "centralized", model, progress),
        )
        for model in ("seed_cnn", "residual_gn")
        for seed in settings_of(profile).seeds
    ]


def configs_02(profile: str, dataset: str, progress: bool = True) -> list[ExperimentConfig]:
    """Notebook 02: centralized, each of 4 hospitals alone, and federated with 4 and 5; the main comparison first."""
    methods = [
        {"method": method, **tuned(profile, dataset, method, progress=progress)}
        for method in ("centralized", "local", "fedavg")
    ]
    federated = methods[-1]
    stages = [methods]
    if dataset == "brain_mri":
        # The split that others report, copies included; without the hospitals alone, for its time.
        stages.append([{**arm, "split": "published"} for arm in methods if arm["method"] != "local"])
    if profile != "paper":  # Left out of the published sweep for its time: three of five hospitals a round.
        stages.append([{**federated, "num_clients": 5, "clients_per_round": 3}])
    return [
        base_config(profile, dataset, seed=seed, **arm)
        for arms in stages
        for seed in settings_of(profile).seeds
        for arm in arms
    ]


#: The runs of notebooks 01 and 02, by their numbers; those of 00 are in `leakage`.
NOTEBOOK_CONFIGS = {"01": configs_01, "02": configs_02}


def sweep(
    configs: list[ExperimentConfig], *, experiment: str = CLASSIFICATION, progress: bool = True,
    facts: Callable[[ExperimentConfig], dict] = lambda config: {}, keep_diverged: bool = False,
) -> list[RunRecord]:
    """Runs a list of configurations, or loads what is there; a killed sweep goes on where it was.

    For notebooks: one run after another, with a bar. `parallel.sweep` trains several at a time.

    Args:
      configs: what to run.
      experiment: folder of the records.
      progress: show bars.
      facts: further facts for a run's record.
      keep_diverged: see `run`.
    """
    bar = tqdm(configs, desc=experiment, unit="run", disable=not progress, leave=False)
    return [
        run(config, experiment=experiment, progress=progress, facts=facts(config), keep_diverged=keep_diverged)
        for config in bar
    ]
