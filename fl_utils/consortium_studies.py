"""What notebook 09 shows of the governed consortium, measured once and kept beside the runs' records."""

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fl_utils import paths
from fl_utils.children import free_addresses
from fl_utils.config import ExperimentConfig
from fl_utils.consortia import (
    RESEARCHER, OwnerRules, approved_training, cards_of, governed_run, owner_of, running_consortium, sign,
)
from fl_utils.deployment import nvflare as governed
from fl_utils.experiments import analysis, governance_plan, plans
from fl_utils.experiments.measured import Content, Layout, digest, load_or_compute
from fl_utils.federation_agreement import agreement_config, by_numpy, by_tff, distance_table, in_one_process
from fl_utils.federations import quiet
from fl_utils.records import RunRecord, describe_environment

#: Folder of the studies, below `results/runs/`.
STUDIES = "governance_studies"
VERSION = 1  # raise it when what is measured changes its meaning: old studies are then ignored
#: Largest distance of a small training's weights that counts as agreement after three rounds.
TOLERANCE = 1e-5
OBSERVER = "observer@authority.org"


def simulated_runs(profile: str, progress: bool = True) -> list[RunRecord]:
    """Pooled, each hospital alone, and FedAvg in the simulation; in profile "paper" those of notebook 03."""
    experiment = "heterogeneity" if profile == "paper" else governance_plan.PRIVATE
    return plans.sweep(governance_plan.simulated_configs(profile), experiment=experiment, progress=progress, keep_diverged=True)


def private_simulated(profile: str, progress: bool = True) -> list[RunRecord]:
    """The plan with patient-level privacy in the simulation."""
    facts = governance_plan.tuned_private(profile)[1]
    return plans.sweep(governance_plan.private_configs(profile), experiment=governance_plan.PRIVATE, progress=progress, facts=lambda config: facts)


def governed_runs(profile: str, *, private: bool, progress: bool = True) -> list[RunRecord]:
    """Approved plans by real processes, one a seed; see `consortia.governed_run`."""
    seeds = governance_plan.SETTINGS[profile].seeds
    configs = governance_plan.private_configs(profile) if private else [governance_plan.plain_config(profile, seed) for seed in seeds]
    return [governed_run(config, progress=progress) for config in configs]


def accuracy_table(groups: dict[str, Sequence[RunRecord]], metric: str) -> pd.DataFrame:
    """Mean and interval of each group of runs, as `analysis.summary`, a row a group; "label" and "method" are the group's."""
    return pd.concat([analysis.summary(runs, metric).assign(label=label) for label, runs in groups.items()], ignore_index=True)


def story(profile: str) -> Content:
    """A consortium from the first card to the verified log, with everything that is refused on the way.

    Returns:
      Tables: cards, requests, refusals (tried, by, rule, said, undisturbed: no run was counted and no budget spent by it), charges, log (of the first hospital), sent; facts: plan and
      difference (text lines), log problems as it is and after it was tampered with, the training's status and events.
    """
    config = governance_plan.private_configs(profile)[0]

    def made() -> Content:
        quiet()
        rules = OwnerRules(epsilon=config.epsilon * 1.25, delta=config.delta, max_runs=1)
        with running_consortium(config, rules) as (folder, _):
            return _told_story(folder, config)

    tables = ("cards", "requests", "refusals", "charges", "log", "sent")
    return _study(profile, "story", tables, [config.model_dump(mode="json")], made)


def agreement(profile: str) -> pd.DataFrame:
    """How far the weights of NVFlare, plain and encrypted, are from the same code in one process, TFF and NumPy, after three rounds of
    small trainings on phantoms; columns as `federation_agreement.distances`."""

    def made() -> Content:
        quiet()
        config = agreement_config("fedavg")
        plain = by_governed(config)
        pairs = {
            "NVFlare – the same code in one process": (plain, in_one_process(config)), "NVFlare – TFF": (plain, by_tff(config)),
            "NVFlare – NumPy": (plain, by_numpy(config)),
        }
        if profile != "smoke":  # for its time; `encrypted_run` is made there as well
            pairs["NVFlare encrypted (CKKS) – NVFlare"] = by_governed(config, encrypted=True), plain
        return Content({"agreement": distance_table(config, pairs)}, describe_environment())

    return _study(profile, "agreement", ("agreement",), [agreement_config("fedavg").model_dump(mode="json")], made).tables["agreement"]


def by_governed(config: ExperimentConfig, *, encrypted: bool = False) -> list[np.ndarray]:
    """The common weights after the last round of an approved plan, as the first hospital keeps them."""
    with running_consortium(config, OwnerRules()) as (folder, _):
        plan = governed.plan_of(
            cards_of(folder, config), config, title="Agreement", purpose="To compare weights.", encrypted=encrypted, min_hospitals=config.num_clients
        )
        with governed.Line(governed.member_folder(folder, RESEARCHER)) as line:
            line.wait_for(config.num_clients)
            answer = approved_training(folder, line, plan, folder / "came")
        if not answer.finished:
            raise governed.ConsortiumError(f"The training ended with {answer.status}: {answer.hospitals}")
        with np.load(folder / "hospital_1" / "models" / f"{plan.hash[:12]}.npz") as arrays:
            return [arrays[name] for name in arrays.files]


def encrypted_run(profile: str) -> Content:
    """The plan without privacy, encrypted: table metrics (as a record's); facts: bytes and seconds of both ways, files at the server."""
    config = governance_plan.plain_config(profile, governance_plan.SETTINGS[profile].seeds[0])

    def made() -> Content:
        quiet()
        with running_consortium(config, OwnerRules()) as (folder, _):
            plan = governed.plan_of(
                cards_of(folder, config), config, title="Encrypted", purpose="To compare with plain sums.", encrypted=True, min_hospitals=config.num_clients
            )
            with governed.Line(governed.member_folder(folder, RESEARCHER)) as line:
                line.wait_for(config.num_clients)
                answer = approved_training(folder, line, plan, folder / "came")
            metrics = pd.read_csv(answer.folder / "metrics.csv", dtype={"client": str})
            facts = {"files": sorted(path.name for path in answer.folder.iterdir()), "status": answer.status, "plan": plan.hash}
        return Content({"metrics": metrics}, facts | describe_environment())

    return _study(profile, "encrypted", ("metrics",), [config.model_dump(mode="json")], made)


def _told_story(folder: Path, config: ExperimentConfig) -> Content:
    hospitals = governed.hospital_names(config.num_clients)
    stores = {name: governed.Store(folder / name) for name in hospitals}
    told = _Refusals(folder, hospitals)
    with governed.Line(governed.member_folder(folder, RESEARCHER)) as line:
        line.wait_for(len(hospitals))
        cards = {name: own[0] for name, own in line.cards().items()}
        free = config.model_copy(update={"privacy_unit": None, "epsilon": None, "delta": None, "clipping_norm": None})
        first = governed.plan_of(cards, free, title="Pneumonia, all hospitals", purpose="A first try.", min_hospitals=len(hospitals))
        told.hand_in("a plan that no owner has decided on", line, first)
        for name in hospitals:
            stores[name].decide(first.hash, False, "No differential privacy: our patients have a budget.", owner_of(name))
        told.hand_in("a plan that the owners denied", line, first)
        plan = governed.plan_of(cards, config, title="Pneumonia, all hospitals", purpose="The first try, with privacy.", min_hospitals=len(hospitals))
        line.hand_in(sign(folder, plan), folder / "asked")
        for name in hospitals:
            stores[name].decide(plan.hash, True, "", owner_of(name))
        more = plan.model_copy(update={"config": config.model_copy(update={"client_epochs_per_round": 2})})
        told.hand_in("the approved plan, changed afterwards", line, more)
        edited = json.loads(sign(folder, plan))
        edited["plan"]["config"]["total_rounds"] += 1
        told.attempt("the signed file, edited by hand", lambda: line.submit_folder(_job(folder, json.dumps(edited).encode(), plan), folder / "x"))
        told.hand_in("a plan that asks for predictions patient by patient", line, plan.model_copy(update={"outputs": (*plan.outputs, "patient_scores")}), approve=True)
        told.attempt("the approved plan's job with a file more", lambda: line.submit_folder(_job(folder, sign(folder, plan), plan, extra=True), folder / "x"))
        answer = line.hand_in(sign(folder, plan), folder / "came")
        told.hand_in("the same plan a second time", line, plan)
        again = plan.model_copy(update={"title": "Pneumonia, once more"})
        told.hand_in("another training like it, beyond the budget", line, again, approve=True)
        stores[hospitals[0]].deny_access(config.dataset, "lead", "train", owner_of(hospitals[0]))
        told.hand_in("the same, after one owner took access back", line, again)
        governed.revoke(folder, RESEARCHER)
        told.attempt("anything, by a researcher who was just revoked", lambda: line.hospitals())
    told.attempt("a new line by the revoked researcher", lambda: governed.Line(governed.member_folder(folder, RESEARCHER)).__enter__())
    with governed.Line(governed.member_folder(folder, OBSERVER)) as line:
        told.attempt("an observer hands a plan in", lambda: line.hand_in(sign(folder, plan, OBSERVER), folder / "x"))
    told.attempt("a stranger with a certificate of another authority", lambda: _stranger(folder))
    return _story_content(folder, hospitals, config, {"first": first, "plan": plan, "answer": answer, "cards": cards}, told.rows)


class _Refusals:
    """Tries what must be refused, and writes down who refused it, by which rule, and whether anybody else was disturbed."""

    def __init__(self, folder: Path, hospitals: Sequence[str]):
        self._folder, self._hospitals, self.rows = folder, hospitals, []

    def hand_in(self, tried: str, line: "governed.Line", plan, *, approve: bool = False) -> None:
        """Hands a plan in that must be refused; approve: the owners approve it first, so that another rule is met."""
        if approve:
            line.hand_in(sign(self._folder, plan), self._folder / "x")
            for name in self._hospitals:
                store = governed.Store(self._folder / name)
                if store.request(plan.hash) is not None:
                    store.decide(plan.hash, True, "", owner_of(name))
        self.attempt(tried, lambda: line.hand_in(sign(self._folder, plan), self._folder / "x"))

    def attempt(self, tried: str, act: Callable[[], object]) -> None:
        """Does something that must be refused, by hospitals or by the server."""
        spent = self._spent()
        try:
            answer = act()
        except governed.RuleBroken as error:
            self.rows.append((tried, "server", error.rule, str(error).split("': ", 1)[-1], self._spent() == spent))
            return
        except governed.ConsortiumError as error:
            self.rows.append((tried, "server", "identity", str(error), self._spent() == spent))
            return
        refusing = [name for name in ("server", *self._hospitals) if answer.rule_of(name)] if isinstance(answer, governed.Answer) else []
        if not refusing or answer.finished:
            raise AssertionError(f"{tried} was not refused.")
        for name in refusing:
            self.rows.append((tried, name, answer.rule_of(name), answer.hospitals[name].split("': ", 1)[-1], self._spent() == spent))

    def _spent(self) -> list:
        stores = [governed.Store(self._folder / name) for name in self._hospitals]
        return [(len(store.runs()), [store.spent(one.name) for one in store.datasets()]) for store in stores]


def _job(folder: Path, signed: bytes, plan, *, extra: bool = False) -> Path:
    from fl_utils.deployment.nvflare import write_training_job

    work = Path(tempfile.mkdtemp(dir=folder, prefix="job_"))
    job = write_training_job(work, signed, plan)
    if extra:
        (job / "app" / "config" / "more.json").write_text("{}")
    return job


def _stranger(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        other = Path(work) / "other"
        governed.new_consortium(other, hospitals=1, address=free_addresses(1)[0])
        kit = governed.member_folder(other, RESEARCHER)
        own = governed.member_folder(folder, OBSERVER) / "startup" / "fed_admin.json"
        settings = json.loads(own.read_text())
        settings["admin"]["username"] = RESEARCHER
        (kit / "startup" / "fed_admin.json").write_text(json.dumps(settings))
        governed.Line(kit, wait_s=5.0).__enter__()


def _story_content(folder: Path, hospitals: Sequence[str], config: ExperimentConfig, found: dict, refusals: list) -> Content:
    stores = {name: governed.Store(folder / name) for name in hospitals}
    cards = pd.DataFrame([
        {"hospital": name, "images": sum(card["counts"]["train"].values()), "patients": card["patients"]["train"]} | card["counts"]["train"]
        for name, card in found["cards"].items()
    ])
    requests = pd.DataFrame([
        (name, one.hash[:12], " ".join(one.plan.purpose.split()), one.state, one.reason, one.decided_by) for name in hospitals for one in stores[name].requests()
    ], columns=["hospital", "plan", "purpose", "state", "reason", "decided_by"])  # fmt: skip
    charges = pd.DataFrame([
        (name, one.round_num, one.epsilon, one.noise_multiplier) for name in hospitals for one in stores[name].charges(config.dataset)
    ], columns=["hospital", "round", "epsilon", "noise_multiplier"])  # fmt: skip
    first = folder / hospitals[0] / governed.AUDIT
    log = pd.DataFrame([
        (one["number"], one["event"], one.get("rule", ""), one.get("by", one.get("person", "")), str(one.get("plan", ""))[:12], one["hash"][:12])
        for one in governed.read_log(first)
    ], columns=["number", "event", "rule", "who", "plan", "hash"])  # fmt: skip
    sent = pd.DataFrame([
        (name, one["bytes"]) for name in hospitals for one in governed.read_log(folder / name / governed.AUDIT) if one["event"] == "sent"
    ], columns=["hospital", "bytes"])  # fmt: skip
    outcome = found["answer"].outcome("outcome")
    heads = {name: [(int(head.split(":")[0]), head.split(":")[1])] for name, head in outcome["log_heads"].items()}
    facts = {
        "first_plan": governed.rendered(found["first"]).splitlines(), "plan": governed.rendered(found["plan"]).splitlines(), "hash": found["plan"].hash,
        "difference": governed.difference(found["plan"], found["first"]), "status": found["answer"].status,
        "events": [one["text"] for one in found["answer"].outcome("events")], "epsilon": config.epsilon * 1.25, "delta": config.delta,
        "problems": {name: governed.verify_log(folder / name / governed.AUDIT, heads.get(name, [])) for name in hospitals},
        "tampered": _tampered(first),
    }
    tables = {"cards": cards, "requests": requests, "charges": charges, "log": log, "sent": sent}
    tables["refusals"] = pd.DataFrame(refusals, columns=["tried", "by", "rule", "said", "undisturbed"])
    return Content(tables, facts | describe_environment())


def _tampered(log: Path) -> dict[str, list[str]]:
    """What the check says of copies of a log that somebody put a hand to."""
    lines = log.read_text().splitlines()
    middle = len(lines) // 2
    hands = {
        "one word of an entry changed": [*lines[:middle], lines[middle].replace('"event":"', '"event":"not ', 1), *lines[middle + 1 :]],
        "an entry taken out": [*lines[:middle], *lines[middle + 1 :]],
        "two entries swapped": [*lines[:middle], lines[middle + 1], lines[middle], *lines[middle + 2 :]],
        "the last three entries cut off": lines[:-3],
    }
    said = {}
    for hand, changed in hands.items():
        with tempfile.TemporaryDirectory() as work:
            copy = Path(work) / log.name
            copy.write_text("\n".join(changed) + "\n")
            for beside in log.parent.glob("audit*head*"):
                shutil.copyfile(beside, Path(work) / beside.name)
            said[hand] = governed.verify_log(copy)
    return said


def _study(profile: str, name: str, tables: tuple[str, ...], decided_by: list, made: Callable[[], Content]) -> Content:
    layout = Layout("studies", tables, "%.8g", dtype={"client": str, "split": str, "metric": str, "plan": str, "hash": str}, verb="make")
    folder = paths.runs_root(profile) / STUDIES / f"{name}_{digest([VERSION, name, *decided_by])}"
    return load_or_compute(folder, layout, profile, made)
