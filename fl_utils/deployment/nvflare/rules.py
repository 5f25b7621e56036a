"""The rules by which a hospital refuses a training: all before it begins, those that can change again before each round."""

from collections.abc import Collection
from datetime import datetime

from fl_utils.deployment.nvflare import database
from fl_utils.deployment.nvflare.identity import Person
from fl_utils.deployment.nvflare.plan import SignedPlan, TrainingPlan, difference, read_signed
from fl_utils.deployment.nvflare.settings import ROLES, RuleBroken
from fl_utils.deployment.nvflare.store import Store


def check_submission(store: Store, signed: SignedPlan, *, hospital: str, authority: bytes, revoked_serials: Collection[str],
                     now: datetime | None = None) -> None:
    """All rules for a training, in the order of `settings.RULES`; what was submitted around the plan ("job") is checked elsewhere.

    Args:
      store: of the hospital.
      signed: the plan as it was received; read and checked again here.
      hospital: its name.
      authority: the consortium's certificate, PEM bytes.
      revoked_serials: of the consortium's list.
      now: default the present, UTC.
    Raises:
      RuleBroken: the first rule that refuses.
    """
    signed = read_signed(signed.content, authority, now)
    plan = signed.plan
    check_still(store, signed.person, plan, hospital=hospital, revoked_serials=revoked_serials, now=now)
    rules = store.dataset(plan.config.dataset)
    if rules is None:  # withdrawn this moment
        raise _no_dataset(plan, signed.person)
    had = len(store.runs(plan.hash))
    if had >= rules.max_runs:
        raise RuleBroken("runs", f"the plan {plan.hash[:12]} has had {had} runs of {rules.max_runs}. Ask the owner for more.")
    patients = rules.card["patients"]["train"]
    if patients < rules.min_patients:
        raise RuleBroken("patients", f"{patients} patients of {plan.config.dataset!r} would be trained on; the owner asks for at least "
                         f"{rules.min_patients}.")
    if refused := [name for name in plan.outputs if name not in rules.outputs]:
        allowed = ", ".join(rules.outputs) or "nothing"
        raise RuleBroken("outputs", f"{', '.join(refused)} would leave the hospital; the owner allows {allowed}.")
    if rules.epsilon is not None and plan.noise is None:
        raise RuleBroken("budget", f"the patients of {plan.config.dataset!r} have a privacy budget (epsilon {rules.epsilon:g} at delta "
                         f"{rules.delta:g}), and the plan has no differential privacy. Plan with epsilon, delta and clipping_norm.")
    if plan.noise is not None:
        store.check_fits(plan.config.dataset, plan.noise.noise_multiplier, plan.round_terms(plan.config.total_rounds))


def check_still(store: Store, person: Person, plan: TrainingPlan, *, hospital: str, revoked_serials: Collection[str],
                now: datetime | None = None) -> None:
    """What can change while a training runs, asked before each round: identity, revoked, role, dataset, plan.

    Args:
      person: who signed the plan, from a certificate that was checked.
      plan: that was submitted.
      others: as in `check_submission`.
    Raises:
      RuleBroken: the first rule that refuses.
    """
    check_person(store, person, hospital=hospital, revoked_serials=revoked_serials, now=now)
    if person.role != "lead":
        raise RuleBroken("role", f"{person.name} is {ROLES[person.role]}; only a researcher may train.")
    name = plan.config.dataset
    if not store.may(name, person.role, "train"):
        raise _no_dataset(plan, person, seen=store.may(name, person.role, "see"))
    if hospital not in plan.hospitals:
        raise RuleBroken("dataset", f"the plan is for {', '.join(plan.hospitals)}, and not for {hospital}.")
    _check_approved(store, person, plan)


def check_person(store: Store, person: Person, *, hospital: str, revoked_serials: Collection[str], now: datetime | None = None) -> None:
    """Whether a person is let in at all; arguments and errors as in `check_still`: identity, revoked."""
    if (now or database.utc_now()) > person.expires:
        raise RuleBroken("identity", f"the certificate of {person.name} held until {person.expires:%Y-%m-%d}. "
                         "Ask the project admin for a new one.")
    if person.serial in revoked_serials:
        raise RuleBroken("revoked", f"the consortium has revoked the certificate of {person.name}.")
    if reason := store.revoked().get(person.name):
        raise RuleBroken("revoked", f"the owner of {hospital} no longer lets {person.name} in: {reason}")


def _no_dataset(plan: TrainingPlan, person: Person, seen: bool = False) -> RuleBroken:
    """Whoever may not see a data set is not told whether there is one."""
    if seen:
        return RuleBroken("dataset", f"the owner lets no {person.role_word} train on {plan.config.dataset!r}.")
    return RuleBroken("dataset", f"there is no data set {plan.config.dataset!r} here for a {person.role_word}.")


def _check_approved(store: Store, person: Person, plan: TrainingPlan) -> None:
    request = store.request(plan.hash, person.name)
    if request is not None and request.state == "approved":
        return
    if request is not None and request.state == "denied":
        raise RuleBroken("plan", f"the owner denied the plan {plan.hash[:12]}: {request.reason}")
    others = [one for one in store.requests("approved") if one.person == person.name]
    other = next((old for one in reversed(others) if (old := one.plan).title == plan.title), None)
    if other is not None:
        raise RuleBroken("plan", f"the owner approved another plan of this title, {other.hash[:12]}; this one, {plan.hash[:12]}, differs "
                         f"from it in {len(difference(plan, other))} lines, and is not approved.")
    raise RuleBroken("plan", f"the plan {plan.hash[:12]} is not approved yet; it waits for the owner's decision.")
