"""Which runs each notebook needs, by its number: what is trained before the notebooks are executed."""

import dataclasses
from collections.abc import Callable, Iterator

from fl_utils.config import ExperimentConfig
from fl_utils.experiments import explain_plan, governance_plan, grid, leakage, plans, poisoning_plan, privacy_plan, segment_plan


@dataclasses.dataclass(frozen=True)
class Stage:
    """Runs that can be trained side by side.

    Attributes:
      experiment: folder of their records.
      configs: the runs.
      facts: further facts for a run's record, by configuration.
      keep_diverged: a run that diverges is an answer (a learning rate that is out), not an error; see `run`.
    """

    experiment: str
    configs: list[ExperimentConfig]
    facts: Callable[[ExperimentConfig], dict] | None = None
    keep_diverged: bool = False


#: Notebooks that train beforehand; the others train nothing, or by themselves.
NUMBERS = ("00", "01", "02", "03", "04", "05", "06", "07", "08", "09")


def datasets_of(number: str, profile: str) -> tuple[str, ...]:
    """The data sets of a notebook in a profile."""
    if number == "04":
        return tuple(name for part in plans.parts_of(profile) for name in explain_plan.datasets_of(part))
    if number == "05":
        return tuple(segment_plan.SETTINGS[part].dataset for part in plans.parts_of(profile))
    if number == "06":
        return privacy_plan.datasets_of(profile)
    if number == "07":
        return (poisoning_plan.SETTINGS[profile].dataset,)
    if number == "08":  # the simulation beside the real processes, which the notebook starts by itself
        return plans.datasets_of(profile)[:1]
    if number == "09":
        return (governance_plan.SETTINGS[profile].dataset,)
    return tuple(grid.GRIDS[profile].total_rounds) if number == "03" else plans.datasets_of(profile)


def stages(number: str, profile: str, dataset: str, progress: bool = True) -> Iterator[Stage]:
    """The runs of a notebook on a data set, one stage after another: a stage may need that the one before is there.

    Raises:
      ConfigError: no such profile, or a notebook that trains nothing.
    """
    if number == "00":
        yield Stage(leakage.LEAKAGE, leakage.configs_00(profile, dataset, progress))
    elif number == "08":
        yield Stage(plans.CLASSIFICATION, plans.configs_02(profile, dataset, progress))
    elif number in plans.NOTEBOOK_CONFIGS:
        yield Stage(plans.CLASSIFICATION, plans.NOTEBOOK_CONFIGS[number](profile, dataset, progress))
    elif number == "03":
        yield Stage(grid.GRID_TUNING, grid.tuning_03(profile, dataset), keep_diverged=True)
        yield Stage(grid.GRID, grid.configs_03(profile, dataset, progress), facts=grid.tuning_facts(), keep_diverged=True)
    elif number == "04":
        (part,) = (part for part in plans.parts_of(profile) if dataset in explain_plan.datasets_of(part))
        yield Stage(explain_plan.EXPLAIN, explain_plan.configs_04(part, dataset))
    elif number == "05":
        (part,) = (part for part in plans.parts_of(profile) if dataset == segment_plan.SETTINGS[part].dataset)
        yield Stage(segment_plan.SEGMENTATION_TUNING, segment_plan.tuning_configs(part), keep_diverged=True)
        yield Stage(segment_plan.SEGMENTATION, segment_plan.configs_05(part))
    elif number == "06":
        yield Stage(privacy_plan.PRIVACY_TUNING, privacy_plan.tuning_configs(profile, dataset), keep_diverged=True)
        facts = privacy_plan.tuning_facts(profile, dataset)
        yield Stage(privacy_plan.PRIVACY, privacy_plan.configs_06(profile, dataset), facts=facts, keep_diverged=True)
        yield Stage(privacy_plan.PRIVACY_SHADOWS, privacy_plan.shadow_configs(profile, dataset), keep_diverged=True)
    elif number == "07":
        yield Stage(poisoning_plan.POISONING_TUNING, poisoning_plan.tuning_configs(profile), keep_diverged=True)
        facts = poisoning_plan.tuning_facts(profile)
        yield Stage(poisoning_plan.POISONING, poisoning_plan.configs_07(profile), facts=facts, keep_diverged=True)
    elif number == "09":  # in profile "paper" what is not private is notebook 03's
        yield Stage(governance_plan.PRIVATE_TUNING, governance_plan.tuning_configs(profile), keep_diverged=True)
        simulated = [] if profile == "paper" else governance_plan.simulated_configs(profile)
        facts = governance_plan.tuned_private(profile)[1]
        yield Stage(governance_plan.PRIVATE, [*simulated, *governance_plan.private_configs(profile)], facts=lambda config: facts, keep_diverged=True)
    else:
        raise plans.ConfigError(f"Notebook {number!r} trains nothing beforehand; those that do are {', '.join(NUMBERS)}.")
