"""Runs, and what they cost: how often a plan was trained, and what its data sets' patients have given away."""

import dataclasses
import json
import math

from fl_utils.deployment.nvflare import database
from fl_utils.deployment.nvflare.database import Database, time_text
from fl_utils.deployment.nvflare.settings import ConsortiumError, RuleBroken
from fl_utils.trust.accounting import composed_epsilon
from fl_utils.trust.terms import PrivacyTerms

RUNNING = "running"
#: Below this noise epsilon is in the thousands, and working it out takes minutes and more memory than there is.
MIN_NOISE = 0.01


@dataclasses.dataclass(frozen=True)
class Run:
    """A training, in this hospital.

    Attributes:
      run_id: of the job.
      hash, person, dataset: the plan's, who submitted it, what it trains on.
      state: "running", or how it ended.
      started_utc, ended_utc: the second one empty while it runs.
      facts: what `end_run` was told.
    """

    run_id: str
    hash: str
    dataset: str
    person: str
    state: str
    started_utc: str
    ended_utc: str
    facts: dict


@dataclasses.dataclass(frozen=True)
class Charge:
    """A release that was booked.

    Attributes:
      run_id, round_num: whose.
      noise_multiplier, terms: what was released.
      epsilon: spent after it, by all charges of the data set.
      delta: that this epsilon is at.
      time_utc: when.
    """

    run_id: str
    round_num: int
    noise_multiplier: float
    terms: PrivacyTerms
    epsilon: float
    delta: float
    time_utc: str


class Spending(Database):
    """The part of the store that counts."""

    def start_run(self, run_id: str, hash: str, person: str) -> None:
        """Begins a run of an approved plan; a run that fails counts as well.

        Raises:
          RuleBroken: "plan", "dataset" or "runs"; then nothing is counted.
          ConsortiumError: there is a run of this id already.
        """
        with self._change() as (db, tell):
            request = db.execute("SELECT * FROM requests WHERE hash = ? AND person = ?", (hash, person)).fetchone()
            if request is None or request["state"] != "approved":
                raise RuleBroken("plan", f"the plan {hash[:12]} of {person} is not approved.")
            rules = _published(db, request["dataset"])
            if rules is None:
                raise RuleBroken("dataset", f"there is no data set {request['dataset']!r} here.")
            if db.execute("SELECT 1 FROM runs WHERE run_id = ?", (run_id,)).fetchone():
                raise ConsortiumError(f"There has been a run {run_id} already; a run is started once.")
            before = db.execute("SELECT COUNT(*) FROM runs WHERE hash = ?", (hash,)).fetchone()[0]
            if before >= rules["max_runs"]:
                raise RuleBroken("runs", f"the plan {hash[:12]} has had {before} runs of {rules['max_runs']}. Ask the owner for more.")
            now = time_text(database.utc_now())
            db.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, '', '{}')", (run_id, hash, request["dataset"], person, RUNNING, now))
            tell("run started", run_id=run_id, plan=hash, person=person, dataset=request["dataset"], run_of_plan=before + 1,
                 max_runs=rules["max_runs"])

    def end_run(self, run_id: str, state: str, **facts) -> bool:
        """Ends a run.

        Args:
          run_id: of `start_run`.
          state: how it ended, e.g. "finished", "failed", "stopped".
          facts: JSON types, kept and logged.
        Returns:
          False if it had ended before: the first word stands.
        Raises:
          ConsortiumError: there is no such run.
        """
        if state == RUNNING or not state.strip():
            raise ValueError(f"The run's state is {state!r}; expected how it ended.")
        with self._change() as (db, tell):
            row = db.execute("SELECT * FROM runs WHERE run_id = ?", (run_id,)).fetchone()
            if row is None:
                raise ConsortiumError(f"There is no run {run_id}.")
            if row["state"] != RUNNING:
                return False
            values = (state, time_text(database.utc_now()), json.dumps(facts, allow_nan=False), run_id)
            db.execute("UPDATE runs SET state = ?, ended_utc = ?, facts = ? WHERE run_id = ?", values)
            tell("run ended", run_id=run_id, plan=row["hash"], state=state, facts=facts)
        return True

    def runs(self, hash: str | None = None) -> list[Run]:
        """Of a plan, or all, in order."""
        rows = self._rows("SELECT * FROM runs WHERE ? IS NULL OR hash = ? ORDER BY rowid", hash, hash)
        return [Run(**dict(row) | {"facts": json.loads(row["facts"])}) for row in rows]

    def charge(self, dataset: str, run_id: str, round_num: int, noise_multiplier: float, terms: PrivacyTerms) -> float:
        """Books a release before it is made, on disk before it returns; one that is made again is charged again.

        Args:
          dataset: that is published here.
          run_id, round_num: for whom.
          noise_multiplier: of the release.
          terms: its terms; `steps` of this charge only. Epsilon is counted at the data set's own delta, where it has a budget.
        Returns:
          Epsilon spent after it.
        Raises:
          RuleBroken: "budget": it would overspend, has no noise, or is not about patients; "dataset": there is none. Nothing was
            charged then, and the release must not be made.
        """
        _check_release(noise_multiplier, terms)
        self.would_spend(dataset, noise_multiplier, terms)  # takes a moment, and is remembered: others need not wait for it
        with self._change() as (db, tell):
            rules = _published(db, dataset)
            if rules is None:
                raise RuleBroken("dataset", f"there is no data set {dataset!r} here.")
            before = _charges(db, dataset)
            delta = _delta(rules, before, terms)
            asked = _composed(before, delta, (noise_multiplier, terms))
            if rules["epsilon"] is not None and not asked <= rules["epsilon"]:
                who = f"round {round_num} of run {run_id}"
                raise RuleBroken("budget", _overspent(who, dataset, asked, _composed(before, delta), rules))
            values = (dataset, run_id, round_num, float(noise_multiplier), json.dumps(dataclasses.asdict(terms)), asked, delta,
                      time_text(database.utc_now()))
            db.execute("INSERT INTO charges (dataset, run_id, round_num, noise_multiplier, terms, epsilon, delta, time_utc) "
                       "VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
            tell("budget charged", dataset=dataset, run_id=run_id, round=round_num, noise_multiplier=float(noise_multiplier),
                 terms=dataclasses.asdict(terms), epsilon_spent=asked, delta=delta, epsilon_of_budget=rules["epsilon"])
        return asked

    def would_spend(self, dataset: str, noise_multiplier: float, terms: PrivacyTerms) -> float:
        """Epsilon of all charges and this one, at the data set's delta; charges nothing."""
        with self._connected() as db:
            rules, before = _published(db, dataset), _charges(db, dataset)
        return _composed(before, _delta(rules, before, terms), (noise_multiplier, terms))

    def check_fits(self, dataset: str, noise_multiplier: float, terms: PrivacyTerms) -> None:
        """Raises RuleBroken, "budget", if a release could not be charged to a published data set; charges nothing."""
        _check_release(noise_multiplier, terms)
        with self._connected() as db:
            rules, before = _published(db, dataset), _charges(db, dataset)
        if rules is not None and rules["epsilon"] is not None:
            asked = _composed(before, rules["delta"], (noise_multiplier, terms))
            if not asked <= rules["epsilon"]:
                raise RuleBroken("budget", _overspent("the plan", dataset, asked, _composed(before, rules["delta"]), rules))

    def spent(self, dataset: str) -> float:
        """Epsilon of all charges of a data set, at the delta of its budget (without a budget, at the smallest delta charged)."""
        with self._connected() as db:
            rules, before = _published(db, dataset, withdrawn=True), _charges(db, dataset)
        return _composed(before, _delta(rules, before)) if before else 0.0

    def left(self, dataset: str) -> float:
        """The budget's epsilon minus what is spent; infinity where there is no budget.

        Raises:
          ConsortiumError: no such data set was ever published.
        """
        with self._connected() as db:
            rules = _published(db, dataset, withdrawn=True)
        if rules is None:
            raise ConsortiumError(f"There is no data set {dataset!r} here.")
        return math.inf if rules["epsilon"] is None else rules["epsilon"] - self.spent(dataset)

    def charges(self, dataset: str) -> list[Charge]:
        """In order, over all runs and plans."""
        with self._connected() as db:
            return _charges(db, dataset)


def _check_release(noise_multiplier: float, terms: PrivacyTerms) -> None:
    if not MIN_NOISE <= noise_multiplier < math.inf or terms.unit != "patient" or terms.neighbours != "add_or_remove":
        raise RuleBroken("budget", f"a release with noise multiplier {noise_multiplier:g} for one {terms.unit} ({terms.neighbours}) cannot be "
                         f"charged; expected noise of at least {MIN_NOISE}, for one patient who is added or removed.")


def _published(db, dataset: str, withdrawn: bool = False) -> dict | None:
    row = db.execute("SELECT rules FROM datasets WHERE name = ? AND (published OR ?)", (dataset, withdrawn)).fetchone()
    return json.loads(row["rules"]) if row else None


def _charges(db, dataset: str) -> list[Charge]:
    rows = db.execute("SELECT * FROM charges WHERE dataset = ? ORDER BY number", (dataset,)).fetchall()
    return [Charge(row["run_id"], row["round_num"], row["noise_multiplier"], PrivacyTerms(**json.loads(row["terms"])), row["epsilon"],
                   row["delta"], row["time_utc"]) for row in rows]


def _delta(rules: dict | None, charges: list[Charge], terms: PrivacyTerms | None = None) -> float:
    """At which epsilon is counted: the budget's, else the smallest, whose epsilon is the largest."""
    if rules is not None and rules["delta"] is not None:
        return rules["delta"]
    return min(one.delta for one in [*(charge.terms for charge in charges), *([terms] if terms else [])])


def _composed(charges: list[Charge], delta: float, *more: tuple[float, PrivacyTerms]) -> float:
    """Epsilon of all releases. What was released does not depend on delta, so all are counted at the same one."""
    releases = [(one.noise_multiplier, one.terms) for one in charges] + list(more)
    epsilon = composed_epsilon([(noise, dataclasses.replace(terms, delta=delta)) for noise, terms in releases])
    # The accountant's bound is good to a thousandth of it; what was shown once as spent does not shrink.
    return max([epsilon, *(one.epsilon for one in charges if one.delta == delta)])


def _overspent(who: str, dataset: str, asked: float, spent: float, rules: dict) -> str:
    return (f"{who} would bring epsilon of {dataset!r} to {asked:.4g} at delta {rules['delta']:g}. Spent is {spent:.4g} of "
            f"{rules['epsilon']:g}, left {rules['epsilon'] - spent:.4g}. Plan with more noise or fewer rounds, or ask the owner.")
