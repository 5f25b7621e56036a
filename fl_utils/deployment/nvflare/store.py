"""What a hospital's owner has decided: people, data sets, who may do what with them, plans, runs and budgets.

`Store` is one object over one SQLite file; its parts are `accounts` (people), `spending` (runs and budgets) and, here,
data sets, access and plans.
"""

import dataclasses
import json
import math
from collections.abc import Sequence

from fl_utils.deployment.nvflare import database
from fl_utils.deployment.nvflare.accounts import Accounts
from fl_utils.deployment.nvflare.database import time_text
from fl_utils.deployment.nvflare.plan import SignedPlan, TrainingPlan, make_plan
from fl_utils.deployment.nvflare.settings import ACTIONS, NEVER, OUTPUTS, ROLES, ConsortiumError
from fl_utils.deployment.nvflare.spending import RUNNING, Spending

STATES = ("waiting", "approved", "denied")


@dataclasses.dataclass(frozen=True)
class DatasetRules:
    """A published data set, and what its owner asks of trainings on it.

    Attributes:
      card: what others may know of it; see `Store.publish`.
      min_patients: who must stand behind what is sent.
      max_runs: of a plan.
      outputs: that may leave, of `settings.OUTPUTS`.
      epsilon, delta: the patients' budget over all plans and runs; None: there is none.
    """

    card: dict
    min_patients: int
    max_runs: int
    outputs: tuple[str, ...]
    epsilon: float | None
    delta: float | None

    @property
    def name(self) -> str:
        return self.card["name"]


@dataclasses.dataclass(frozen=True)
class Request:
    """A plan that was handed in.

    Attributes:
      hash: the plan's.
      person, role: who signed it, and this person's role.
      dataset: that it trains on.
      content: the signed file.
      state: of `STATES`.
      reason, decided_by, decided_utc: of the last decision; empty before it.
      received_utc: when it came.
    """

    hash: str
    person: str
    role: str
    dataset: str
    content: bytes
    state: str
    reason: str
    decided_by: str
    received_utc: str
    decided_utc: str

    @property
    def plan(self) -> TrainingPlan:
        return make_plan(**json.loads(self.content)["plan"])


class Store(Accounts, Spending):
    """All of it; see `database.Database` for how changes are made and told."""

    def newest_revocations(self, number: int) -> int:
        """Remembers the number of a list of revoked certificates that was seen; returns the greatest so far."""
        if (found := self._rows("SELECT number FROM newest WHERE what = 'revocations'")) and found[0]["number"] >= number:
            return found[0]["number"]
        with self._change() as (db, tell):
            db.execute("INSERT INTO newest VALUES ('revocations', ?) ON CONFLICT DO UPDATE SET number = MAX(number, excluded.number)", (number,))
            tell("revocation list", list=number)
        return number

    def publish(self, card: dict, *, min_patients: int, max_runs: int, outputs: Sequence[str], epsilon: float | None, delta: float | None,
                by: str) -> DatasetRules:
        """Publishes a data set, or changes the card and rules of one; what was charged stays charged, also under new rules.

        Args:
          card: {"name", "title", "class_names", "image_size_px", "counts": {split: {class: n}}, "patients": {split: n}, "source",
            "synthetic"}.
          min_patients, max_runs, outputs, epsilon, delta: see `DatasetRules`.
          by: who decided it.
        Raises:
          ValueError: a rule cannot be, or an output can never be allowed.
        """
        rules = DatasetRules(card, min_patients, max_runs, tuple(outputs), epsilon, delta)
        _check_rules(rules)
        name = rules.name
        with self._change() as (db, tell):
            before = db.execute("SELECT rules FROM datasets WHERE name = ?", (name,)).fetchone()
            charged = db.execute("SELECT COUNT(*) FROM charges WHERE dataset = ?", (name,)).fetchone()[0]
            if epsilon is None and charged and before and json.loads(before["rules"])["epsilon"] is not None:
                raise ValueError(f"{name!r} has a budget, of which {charged} charges were made; it can be changed, and not dropped.")
            text = json.dumps(dataclasses.asdict(rules), allow_nan=False)
            db.execute("INSERT OR REPLACE INTO datasets VALUES (?, 1, ?)", (name, text))
            tell("data set published", dataset=name, **json.loads(text), by=by)
        return rules

    def withdraw(self, dataset: str, by: str) -> None:
        """Takes a data set back: nobody sees it or trains on it, and all access to it ends. Charges and decisions are kept.

        Raises:
          ConsortiumError: there is no such data set.
        """
        with self._change() as (db, tell):
            if not db.execute("UPDATE datasets SET published = 0 WHERE name = ? AND published", (dataset,)).rowcount:
                raise ConsortiumError(f"There is no data set {dataset!r} here.")
            ended = db.execute("DELETE FROM grants WHERE dataset = ?", (dataset,)).rowcount
            tell("data set withdrawn", dataset=dataset, access_ended=ended, by=by)

    def dataset(self, name: str) -> DatasetRules | None:
        """None where it is not published."""
        return next((rules for rules in self.datasets() if rules.name == name), None)

    def datasets(self) -> list[DatasetRules]:
        """All that are published, by name."""
        rows = self._rows("SELECT rules FROM datasets WHERE published ORDER BY name")
        return [DatasetRules(**{**(rules := json.loads(row["rules"])), "outputs": tuple(rules["outputs"])}) for row in rows]

    def grant(self, dataset: str, role: str, action: str, by: str) -> None:
        """Lets a role do something with a data set.

        Raises:
          ValueError: there is no such role or action.
          ConsortiumError: there is no such data set.
        """
        _check_access(role, action)
        with self._change() as (db, tell):
            if not db.execute("SELECT 1 FROM datasets WHERE name = ? AND published", (dataset,)).fetchone():
                raise ConsortiumError(f"There is no data set {dataset!r} here; publish it first.")
            if db.execute("INSERT OR IGNORE INTO grants VALUES (?, ?, ?)", (dataset, role, action)).rowcount:
                tell("access granted", dataset=dataset, role=role, action=action, by=by)

    def deny_access(self, dataset: str, role: str, action: str, by: str) -> None:
        """Takes an access back; a training that is under way stops before its next round."""
        _check_access(role, action)
        with self._change() as (db, tell):
            if db.execute("DELETE FROM grants WHERE (dataset, role, action) = (?, ?, ?)", (dataset, role, action)).rowcount:
                tell("access denied", dataset=dataset, role=role, action=action, by=by)

    def may(self, dataset: str, role: str, action: str) -> bool:
        """Whether the data set is published, and its owner lets this role do this with it."""
        return (dataset, role, action) in self.grants()

    def grants(self) -> list[tuple[str, str, str]]:
        """(data set, role, action) of all that is granted."""
        return [tuple(row) for row in self._rows("SELECT dataset, role, action FROM grants ORDER BY dataset, role, action")]

    def file_request(self, signed: SignedPlan) -> Request:
        """Keeps a plan for decision; one that the same person handed in before is as it was."""
        plan, person = signed.plan, signed.person
        with self._change() as (db, tell):
            values = (plan.hash, person.name, person.role, plan.config.dataset, signed.content, time_text(database.utc_now()))
            if db.execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?, ?, ?, 'waiting', '', '', ?, '', 0)", values).rowcount:
                tell("plan received", plan=plan.hash, title=plan.title, person=person.name, role=person.role, dataset=plan.config.dataset)
        return self.request(plan.hash, person.name)

    def requests(self, state: str | None = None) -> list[Request]:
        """All, or those of a state, in the order in which they came."""
        rows = self._rows("SELECT * FROM requests WHERE ? IS NULL OR state = ? ORDER BY rowid", state, state)
        return [_request(row) for row in rows]

    def request(self, hash: str, person: str | None = None) -> Request | None:
        """A plan's; the person's own where several handed in the same plan, else the first."""
        rows = self._rows("SELECT * FROM requests WHERE hash = ? AND (? IS NULL OR person = ?) ORDER BY rowid", hash, person, person)
        return _request(rows[0]) if rows else None

    def decide(self, hash: str, approve: bool, reason: str, by: str, person: str | None = None) -> Request:
        """Approves or denies a plan, to the letter: any other plan has another hash.

        A denial holds at once: a run that is under way stops before its next round. What was decided can be decided anew, but no
        plan is approved while one of its runs is under way.

        Args:
          hash: the plan's.
          approve: or deny.
          reason: needed to deny.
          by: who decides.
          person: whose; needed only where several have handed in the same plan.
        Raises:
          ValueError: there is no reason.
          ConsortiumError: there is no such plan, several people's, or one of its runs is under way.
        """
        if not approve and not reason.strip():
            raise ValueError("A plan is denied for a reason; the researcher is told it.")
        with self._change() as (db, tell):
            rows = db.execute("SELECT * FROM requests WHERE hash = ? AND (? IS NULL OR person = ?)", (hash, person, person)).fetchall()
            if not rows:
                raise ConsortiumError(f"There is no plan {hash[:12]}" + (f" of {person}." if person else "."))
            if len(rows) > 1:
                raise ConsortiumError(f"Plan {hash[:12]} was handed in by {', '.join(row['person'] for row in rows)}; say whose is meant.")
            (row,) = rows
            run = db.execute("SELECT run_id FROM runs WHERE hash = ? AND state = ?", (hash, RUNNING)).fetchone()
            if approve and row["state"] != "waiting" and run:
                raise ConsortiumError(f"Run {run['run_id']} of plan {hash[:12]} is under way; the plan can be denied now, and approved again "
                                      "when the run has ended.")
            state = "approved" if approve else "denied"
            last = db.execute("SELECT MAX(decision) FROM requests").fetchone()[0]
            values = (state, reason.strip(), by, time_text(database.utc_now()), last + 1, hash, row["person"])
            db.execute("UPDATE requests SET state = ?, reason = ?, decided_by = ?, decided_utc = ?, decision = ? "
                       "WHERE hash = ? AND person = ?", values)
            tell(f"plan {state}", plan=hash, person=row["person"], dataset=row["dataset"], reason=reason.strip(), before=row["state"], by=by)
        return self.request(hash, row["person"])

    def last_approved(self, dataset: str) -> TrainingPlan | None:
        """The plan on a data set that was approved last and still is; what a new one is compared with."""
        rows = self._rows("SELECT * FROM requests WHERE dataset = ? AND state = 'approved' ORDER BY decision DESC LIMIT 1", dataset)
        return _request(rows[0]).plan if rows else None


def _request(row) -> Request:
    return Request(**{field.name: row[field.name] for field in dataclasses.fields(Request)})


def _check_access(role: str, action: str) -> None:
    if role not in ROLES or action not in ACTIONS:
        raise ValueError(f"Role and action are {role!r}, {action!r}; expected one of {', '.join(ROLES)}, and one of {', '.join(ACTIONS)}.")


def _check_rules(rules: DatasetRules) -> None:
    try:
        name, patients = rules.card["name"], rules.card["patients"]["train"]
    except (KeyError, TypeError):
        raise ValueError("The card tells no name, or no number of patients to train on; expected card['name'] and "
                         "card['patients']['train'].") from None
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"The data set's name is {name!r}; expected a word.")
    if rules.min_patients < 1 or rules.max_runs < 1:
        raise ValueError(f"min_patients is {rules.min_patients}, max_runs {rules.max_runs}; expected at least 1 each.")
    if forbidden := set(rules.outputs) & set(NEVER):
        raise ValueError(f"{', '.join(sorted(forbidden))} can never leave a hospital.")
    if unknown := set(rules.outputs) - set(OUTPUTS):
        known = ", ".join(name for name in OUTPUTS if name not in NEVER)
        raise ValueError(f"There is no output {', '.join(sorted(unknown))}; expected some of {known}.")
    if (rules.epsilon is None) != (rules.delta is None):
        raise ValueError(f"epsilon is {rules.epsilon}, delta {rules.delta}; expected both, or neither.")
    if rules.epsilon is not None and not (0 < rules.epsilon < math.inf and 0 < rules.delta < 1 / max(patients, 1)):
        raise ValueError(f"epsilon is {rules.epsilon}, delta {rules.delta} for {patients} patients; expected a finite epsilon above 0, and "
                         "delta above 0 and below 1 / patients, or the promise would allow one patient's data to be published.")
