"""What is shown of requests, rules, runs and budgets; nothing here knows of the web."""

import dataclasses
from collections import defaultdict

from fl_utils.deployment.nvflare import rules
from fl_utils.deployment.nvflare.audit import read_log
from fl_utils.deployment.nvflare.page.owner import Owner
from fl_utils.deployment.nvflare.plan import TrainingPlan, difference, read_signed, rendered
from fl_utils.deployment.nvflare.settings import RULES, RuleBroken
from fl_utils.deployment.nvflare.spending import Charge
from fl_utils.deployment.nvflare.store import DatasetRules, Request, Store
from fl_utils.trust.accounting import composed_epsilon


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a budget's bar: what it is, its epsilon, and where it stands, in hundredths of the bar's width."""

    kind: str
    name: str
    epsilon: float
    start: float
    width: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """A budget's bar: its pieces, the budget, where the budget ends in the bar, and all of it in words."""

    parts: tuple[Part, ...]
    target: float
    delta: float
    limit: float
    words: str


def plan_lines(plan: TrainingPlan) -> list[tuple[str, str]]:
    """Name and value of each line of a rendered plan."""
    return [_name_and_value(line) for line in rendered(plan).splitlines()]


def marked_difference(plan: TrainingPlan, before: TrainingPlan) -> list[tuple[str, str, str]]:
    """Mark ("+" or "-"), name and value of each line that differs."""
    return [(line[0], *_name_and_value(line[2:])) for line in difference(plan, before)]


class _IfApproved:
    """A store as it would be if one plan in it were approved; for looking only."""

    def __init__(self, store: Store, asked: Request):
        self._store, self._asked = store, asked

    def __getattr__(self, name: str):
        return getattr(self._store, name)

    def request(self, hash: str, person: str | None = None) -> Request | None:
        found = self._store.request(hash, person)
        return dataclasses.replace(found, state="approved") if found == self._asked else found


def rules_now(here: Owner, asked: Request) -> tuple[list[dict], RuleBroken | None]:
    """Where a plan stands with each rule, if it were submitted now and the owner had approved it.

    Returns:
      For each rule its name, what it asks, and the state in a word and a colour; and the first rule that refuses.
    """
    broken = None
    try:
        signed = read_signed(asked.content, here.authority)
        serials = here.revoked_serials()
        supposed = _IfApproved(here.store, asked)
        rules.check_submission(supposed, signed, hospital=here.hospital, authority=here.authority, revoked_serials=serials)
    except RuleBroken as error:
        broken = error
    names = list(RULES)
    last = names.index(broken.rule) if broken else len(names)
    shown = []
    for place, name in enumerate(names):
        state, kind = ("met", "good") if place < last else ("not met", "bad") if place == last else ("not looked at", "")
        if name == "plan" and place <= last:
            state, kind = {"waiting": ("waits for the owner", "wait"), "denied": ("denied", "bad")}.get(asked.state, ("approved", "good"))
        if name == "job" and place < last:
            state, kind = "looked at when it is submitted", ""
        shown.append({"rule": name, "words": RULES[name], "state": state, "kind": kind})
    return shown, broken


def plan_cost(store: Store, plan: TrainingPlan) -> tuple[Cost | None, str]:
    """The bar of what one more run of a plan would take of its data set's budget; without one, a sentence on why there is none."""
    name = plan.config.dataset
    found = store.dataset(name)
    if found is None:
        return None, f"No data set {name} is published here."
    if found.epsilon is None:
        noise = "The plan adds noise all the same." if plan.noise else "The plan has no differential privacy."
        return None, f"The owner has set no budget for {name}. {noise}"
    if plan.noise is None:
        refused = "The plan has no differential privacy, so this data set's budget refuses it."
        return budget_bar(found, store.spent(name), refused=refused), ""
    asked = store.would_spend(name, plan.noise.noise_multiplier, plan.round_terms(plan.config.total_rounds))
    return budget_bar(found, store.spent(name), asked), ""


def budget_bar(found: DatasetRules, spent: float, asked: float | None = None, refused: str = "") -> Cost:
    """The bar of a data set with a budget.

    Args:
      found: the data set.
      spent: epsilon of all charges.
      asked: epsilon with the plan that is looked at.
      refused: a sentence, where the plan cannot be charged at all.
    """
    target = found.epsilon
    after = spent if asked is None else max(asked, spent)
    pieces = [("spent", "Spent", 0.0, min(spent, target))]
    if asked is not None:
        pieces.append(("asked", "This plan, all rounds" if after <= target else "This plan, within the budget", min(spent, target), min(after, target)))
    pieces.append(("left", "Left" if asked is None else "Left after it", min(after, target), target))
    if after > target:
        pieces.append(("over", "Beyond the budget", target, after))
    whole = max(target, after)
    parts = tuple(Part(kind, name, end - start, 100 * start / whole, 100 * (end - start) / whole) for kind, name, start, end in pieces)
    words = f"Spent is epsilon {spent:.3g} of {target:g}"
    if asked is None:
        words += f", left {max(0.0, target - spent):.3g}." + (f" {refused}" if refused else "")
    elif after > target:
        words += f". A run of this plan would bring it to {after:.3g}, {after - target:.3g} too much: the rule 'budget' refuses it."
    else:
        words += f". A run of this plan would bring it to {after:.3g}, and leave {target - after:.3g}."
    return Cost(parts, target, found.delta, 100 * target / whole, words)


def runs_shown(store: Store, hash: str | None = None) -> list[dict]:
    """Runs of a plan or all, the newest first, with how many rounds they answered and what left the hospital in bytes."""
    sent = defaultdict(list)
    for entry in read_log(store.log.path):
        if entry["event"] == "sent":
            sent[entry.get("run")].append(entry)
    shown = []
    for run in reversed(store.runs(hash)):
        answers = sent[run.run_id]
        rounds = {entry["round"] for entry in answers if entry.get("round") is not None}
        others = len(answers) - (run.state == "finished")  # the last answer of a training that finished is of no round
        shown.append({
            "run_id": run.run_id, "hash": run.hash, "person": run.person, "state": run.state, "started": run.started_utc,
            "ended": run.ended_utc, "rounds": len(rounds) or run.facts.get("rounds", max(0, others)),
            "bytes": sum(entry.get("bytes", 0) for entry in answers),
        })
    return shown


def charges_shown(store: Store, dataset: str, delta: float) -> list[dict]:
    """What each run was charged, the newest first."""
    runs, titles, by_run = {run.run_id: run for run in store.runs()}, titles_of(store), defaultdict(list)
    for charge in store.charges(dataset):
        by_run[charge.run_id].append(charge)
    return [_charged(run_id, charges, runs.get(run_id), titles, delta) for run_id, charges in reversed(by_run.items())]


def titles_of(store: Store) -> dict[str, str]:
    """Hash -> title of each plan that was handed in."""
    return {one.hash: one.plan.title for one in store.requests()}


def _charged(run_id: str, charges: list[Charge], run, titles: dict[str, str], delta: float) -> dict:
    alone = composed_epsilon([(one.noise_multiplier, dataclasses.replace(one.terms, delta=delta)) for one in charges])
    return {
        "run_id": run_id, "hash": run.hash if run else "", "person": run.person if run else "",
        "title": titles.get(run.hash, run.hash[:12]) if run else "", "rounds": len(charges), "epsilon": alone,
        "noise": ", ".join(sorted({f"{one.noise_multiplier:.4g}" for one in charges})), "last": charges[-1].time_utc,
    }


def _name_and_value(line: str) -> tuple[str, str]:
    name, _, value = line.partition(": ")
    return name, value
