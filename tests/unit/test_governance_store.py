"""The owner's store: what was decided holds, is told in the log once, and survives any kill; nobody wins a race twice."""

import datetime
import json
import random
import signal
import sqlite3
import threading
import time

import pytest

from fl_utils.deployment.nvflare import accounts, database
from fl_utils.deployment.nvflare.audit import AuditLog, read_log, verify_log
from fl_utils.deployment.nvflare.settings import NEVER, ROLES, ConsortiumError, RuleBroken
from fl_utils.deployment.nvflare.store import Store
from fl_utils.trust.accounting import composed_epsilon
from fl_utils.trust.terms import PrivacyTerms
from tests.unit.made_governance import (
    CARD, DELTA, NOISE, OTHER, RESEARCHER, TERMS, approved, begin, kill_after, open_store, plan_of, publish, race, signed_by,
)

DATA = CARD["name"]
PASSWORD = "a long password"


def events(store):
    return [entry["event"] for entry in read_log(store.log.path)]


def epsilon_of(charges):
    """Of so many rounds of TERMS."""
    return composed_epsilon([(NOISE, TERMS)] * charges)


@pytest.fixture
def quick_scrypt(monkeypatch):
    """As the real one, with less work."""
    real = accounts.generate_password_hash
    monkeypatch.setattr(accounts, "generate_password_hash", lambda password, method: real(password, method + ":1024:8:1"))
    accounts._nobodys.cache_clear()
    yield
    accounts._nobodys.cache_clear()


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets: `clock.tick(seconds)`."""

    class Clock:
        now = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)

        def tick(self, seconds):
            self.now += datetime.timedelta(seconds=seconds)

    one = Clock()
    monkeypatch.setattr(database, "utc_now", lambda: one.now)
    return one


# --- the database ---


def test_only_this_user_reads_the_database(tmp_path):
    store = open_store(tmp_path / "hospital_1")
    with sqlite3.connect(store.folder / "owner.sqlite") as held:  # keeps the files next to it alive
        held.execute("SELECT * FROM datasets").fetchall()
        publish(store)
        modes = {path.name: path.stat().st_mode & 0o777 for path in store.folder.iterdir()}
    held.close()
    assert {"owner.sqlite", "owner.sqlite-wal", "owner.sqlite-shm", "audit.jsonl", "audit.head"} == set(modes) and set(modes.values()) == {0o600}


def test_a_database_of_another_format_and_a_file_that_is_none_are_refused(tmp_path):
    open_store(tmp_path / "a")
    with sqlite3.connect(tmp_path / "a" / "owner.sqlite") as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(ConsortiumError, match="format 2, expected 1"):
        Store(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "owner.sqlite").write_bytes(b"This is no database, and long enough to be sure of that. " * 20)
    with pytest.raises(ConsortiumError, match="not a database"):
        Store(tmp_path / "b")


@pytest.mark.parametrize("older", ["gone", "put back"])
def test_a_database_that_forgot_charges_is_refused(tmp_path, older):
    """A copy put back, or a new one, would give the patients' budget away a second time."""
    store = open_store(tmp_path / "now", 2.0)
    kept = {path.name: path.read_bytes() for path in store.folder.glob("owner.sqlite*")}
    store.charge(DATA, "run", 1, NOISE, TERMS)
    for path in store.folder.glob("owner.sqlite*"):
        path.unlink()
    if older == "put back":
        for name, content in kept.items():
            (store.folder / name).write_bytes(content)
        assert len(store.problems()) == 1 and "put back from an older copy" in store.problems()[0]
    with pytest.raises(ConsortiumError, match="would forget what was decided and spent"):
        Store(store.folder)


def test_every_change_is_one_entry_and_what_changes_nothing_is_none(tmp_path, quick_scrypt):
    store, told = Store(tmp_path), 0

    def changes(event, do, *arguments, **named):
        nonlocal told
        found = do(*arguments, **named)
        if event is not None:
            told += 1
            assert events(store)[told - 1] == event
        assert len(events(store)) == told and verify_log(store.log.path) == []
        return found

    changes("data set published", publish, store, 2.0)
    changes("access granted", store.grant, DATA, "lead", "train", "owner")
    changes(None, store.grant, DATA, "lead", "train", "owner")
    changes("access denied", store.deny_access, DATA, "lead", "train", "owner")
    changes(None, store.deny_access, DATA, "lead", "train", "owner")
    changes("account added", store.add_account, "ann", PASSWORD, "org_admin", 3)
    changes("signed in", store.sign_in, "ann", PASSWORD)
    changes("sign-in refused", store.sign_in, "ann", "wrong")
    changes("sign-in refused", store.sign_in, "nobody", "wrong")
    changes("password changed", store.set_password, "ann", PASSWORD + "!")
    changes("account removed", store.remove_account, "ann")
    changes("person revoked", store.revoke, RESEARCHER, "left", "owner")
    changes("person restored", store.restore, RESEARCHER, "owner")
    signed = signed_by(plan_of())
    changes("plan received", store.file_request, signed)
    changes(None, store.file_request, signed)
    changes("plan denied", store.decide, signed.plan.hash, False, "too long", "owner")
    changes("plan approved", store.decide, signed.plan.hash, True, "", "owner")
    changes("run started", store.start_run, "run", signed.plan.hash, RESEARCHER)
    changes("budget charged", store.charge, DATA, "run", 1, NOISE, TERMS)
    changes("run ended", store.end_run, "run", "finished", rounds=10)
    changes(None, store.end_run, "run", "failed")
    changes("data set withdrawn", store.withdraw, DATA, "owner")
    changes(None, lambda: [store.accounts(), store.datasets(), store.requests(), store.runs(), store.spent(DATA), store.grants(), Store(tmp_path)])
    assert [entry["change"] for entry in read_log(store.log.path)] == list(range(1, told + 1)) and store.problems() == []
    assert store._rows("SELECT * FROM untold") == []  # nothing is left to tell


@pytest.mark.parametrize("moment", ["before the log", "after the log"])
def test_what_an_ended_process_did_not_tell_is_told_once_by_the_next(tmp_path, monkeypatch, moment):
    """Between the change and the log, or between the log and the note that it was told."""

    class Killed(BaseException):
        pass

    store = open_store(tmp_path, 2.0)
    before, write = len(events(store)), AuditLog.write

    def killed(self, *arguments, **facts):
        if moment == "after the log":
            write(self, *arguments, **facts)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(AuditLog, "write", killed)
        store.charge(DATA, "run", 1, NOISE, TERMS)
    assert len(events(store)) == before + (moment == "after the log")
    store.log.write("refused", rule="role")  # by another process, meanwhile
    again = Store(tmp_path)
    assert events(again).count("budget charged") == 1 and again.spent(DATA) == epsilon_of(1) and again.problems() == []
    again.charge(DATA, "run", 2, NOISE, TERMS)
    assert events(again).count("budget charged") == 2 and again.spent(DATA) == epsilon_of(2)


def test_a_change_is_kept_and_told_later_when_the_log_cannot_be_written(tmp_path, monkeypatch):
    store = open_store(tmp_path, 2.0)

    def full(self, event, **facts):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(ConsortiumError, match="No space left"):
        patch.setattr(AuditLog, "write", full)
        store.charge(DATA, "run", 1, NOISE, TERMS)
    assert store.spent(DATA) == epsilon_of(1)  # the release may not be made, and stays charged
    store.grant(DATA, "member", "see", "owner")
    assert events(store)[-2:] == ["budget charged", "access granted"]


def test_an_error_in_a_change_leaves_all_as_it_was(tmp_path):
    store = open_store(tmp_path)
    with pytest.raises(ZeroDivisionError):
        with store._change() as (db, tell):
            db.execute("DELETE FROM datasets")
            tell("data set withdrawn")
            1 / 0
    assert store.dataset(DATA) is not None and "data set withdrawn" not in events(store)


# --- accounts ---


def test_who_has_name_and_password_signs_in_until_the_account_is_over(tmp_path, quick_scrypt, clock):
    store = Store(tmp_path)
    made = store.add_account("ann", PASSWORD, "org_admin", 3)
    assert made.role_word == "data owner" and not made.expired and store.accounts() == [made]
    assert store.sign_in("ann", PASSWORD) == made == store.account("ann")
    for name, password in (("ann", PASSWORD + " "), ("ann", ""), ("Ann", PASSWORD), ("", PASSWORD), ("bob", PASSWORD)):
        assert store.sign_in(name, password) is None
    clock.tick(3 * 86400 - 1)
    assert store.sign_in("ann", PASSWORD) == made
    clock.tick(1)
    assert store.sign_in("ann", PASSWORD) is None and store.account("ann").expired
    assert read_log(store.log.path)[-1]["reason"] == "account is over"


def test_passwords_and_unknown_names_are_written_nowhere(tmp_path):
    """People type a password where the name belongs. With the real scrypt, and as many bytes of it as there are."""
    store = Store(tmp_path)
    store.add_account("ann", PASSWORD, "org_admin", 3)
    store.sign_in("ann", "almost " + PASSWORD)
    store.sign_in("typed into the wrong field", "ann")
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"ann" in content and PASSWORD.encode() not in content and b"typed into" not in content
    (stored,) = sqlite3.connect(tmp_path / "owner.sqlite").execute("SELECT password FROM accounts").fetchone()
    assert stored.startswith("scrypt:32768:8:1$")


def test_an_unknown_name_costs_the_same_work(tmp_path, quick_scrypt, monkeypatch):
    store, checked = Store(tmp_path), []
    store.add_account("ann", PASSWORD, "org_admin", 3)
    real = accounts.check_password_hash
    monkeypatch.setattr(accounts, "check_password_hash", lambda hashed, password: checked.append(hashed.split("$")[0]) or real(hashed, password))
    for name, password in (("ann", PASSWORD), ("ann", "wrong"), ("bob", "wrong"), *[("ann", "wrong")] * 4, ("ann", PASSWORD)):
        store.sign_in(name, password)  # the last one on a locked account
    assert len(checked) == 8 and len(set(checked)) == 1


def test_five_wrong_tries_lock_an_account_for_a_minute(tmp_path, quick_scrypt, clock):
    store = Store(tmp_path)
    store.add_account("ann", PASSWORD, "org_admin", 3)
    store.add_account("bob", PASSWORD, "member", 3)
    for _ in range(4):
        assert store.sign_in("ann", "wrong") is None
    assert store.sign_in("ann", PASSWORD)  # the count begins anew
    for _ in range(5):
        assert store.sign_in("ann", "wrong") is None
    clock.tick(59)
    assert Store(tmp_path).sign_in("ann", PASSWORD) is None and store.sign_in("bob", PASSWORD)
    assert [entry for entry in read_log(store.log.path) if entry.get("reason") == "locked"]
    clock.tick(2)
    assert store.sign_in("ann", "wrong") is None and store.sign_in("ann", PASSWORD)
    for _ in range(5):
        store.sign_in("ann", "wrong")
    store.set_password("ann", "quite another one")
    assert store.sign_in("ann", "quite another one") and store.sign_in("ann", PASSWORD) is None


def test_many_guesses_at_once_are_no_way_round_the_lock(tmp_path, quick_scrypt, clock, monkeypatch):
    """All of them are counted before the first password was looked at."""
    store, looked, together = Store(tmp_path), [], threading.Barrier(12)
    store.add_account("ann", PASSWORD, "org_admin", 3)

    def late(hashed, password):
        together.wait()
        return looked.append(password) or password == PASSWORD

    monkeypatch.setattr(accounts, "check_password_hash", late)
    found = []
    guesses = [threading.Thread(target=lambda one=one: found.append(store.sign_in("ann", PASSWORD if one == 11 else "wrong"))) for one in range(12)]
    for one in guesses[:11]:
        one.start()
    while sum(row["wrong"] for row in store._rows("SELECT * FROM tries")) < 5:
        time.sleep(0.01)
    guesses[11].start()
    for one in guesses:
        one.join()
    assert len(looked) == 12 and found == [None] * 12


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ann", "short", "lead", 3), "at least 8"), (("ann", PASSWORD, "boss", 3), "expected one of project_admin"),
        ((" ", PASSWORD, "lead", 3), "expected a name"), (("ann", PASSWORD, "lead", 0), "at least 1 day"), (("known", PASSWORD, "lead", 3), "already"),
    ],
)
def test_an_account_that_cannot_be_is_refused(tmp_path, quick_scrypt, arguments, said):
    store = Store(tmp_path)
    store.add_account("known", PASSWORD, "member", 1)
    with pytest.raises(ValueError, match=said):
        store.add_account(*arguments)
    assert len(store.accounts()) == 1 and events(store) == ["account added"]


def test_what_is_not_there_cannot_be_changed(tmp_path):
    store = open_store(tmp_path)
    for do in (
        lambda: store.set_password("ann", PASSWORD), lambda: store.remove_account("ann"), lambda: store.restore("ann", "owner"),
        lambda: store.withdraw("none", "owner"), lambda: store.grant("none", "lead", "see", "owner"), lambda: store.end_run("none", "failed"),
        lambda: store.decide("0" * 64, True, "", "owner"), lambda: store.left("none"),
    ):
        with pytest.raises(ConsortiumError, match="no account|not been revoked|no data set|no run|no plan"):
            do()
    with pytest.raises(ValueError):
        store.revoke("ann", "  ", "owner")


def test_a_revoked_person_is_let_in_nowhere_until_restored(tmp_path, quick_scrypt):
    store = Store(tmp_path)
    store.add_account(RESEARCHER, PASSWORD, "lead", 3)
    store.revoke(RESEARCHER, "left the university", "owner")
    assert Store(tmp_path).is_revoked(RESEARCHER) and not store.is_revoked(OTHER) and store.revoked() == {RESEARCHER: "left the university"}
    assert store.sign_in(RESEARCHER, PASSWORD) is None
    store.restore(RESEARCHER, "owner")
    assert not store.is_revoked(RESEARCHER) and store.sign_in(RESEARCHER, PASSWORD)


# --- data sets and access ---


@pytest.mark.parametrize(
    "changed",
    [
        {"outputs": ("model_update", name)} for name in NEVER
    ] + [
        {"outputs": ("weights",)}, {"min_patients": 0}, {"max_runs": 0}, {"card": {"name": "x"}}, {"card": {**CARD, "name": ""}},
        {"card": {**CARD, "patients": {"train": 1000}}, "epsilon": 1.0}, {"epsilon": 0.0}, {"epsilon": float("inf")}, {"epsilon": -1.0},
    ],
)
def test_rules_that_cannot_be_are_refused(tmp_path, changed):
    """Of outputs, whatever the owner says; of epsilon and delta, whatever would promise the patients nothing."""
    store = Store(tmp_path)
    with pytest.raises(ValueError):
        publish(store, **changed)
    assert store.datasets() == [] and events(store) == []


def test_a_budget_has_both_numbers_or_none(tmp_path):
    for epsilon, delta in ((1.0, None), (None, 1e-3)):
        with pytest.raises(ValueError, match="both, or neither"):
            Store(tmp_path).publish(CARD, min_patients=1, max_runs=1, outputs=(), epsilon=epsilon, delta=delta, by="owner")


def test_a_data_set_is_there_as_published_until_it_is_withdrawn(tmp_path):
    store = open_store(tmp_path, 2.0)
    found = Store(tmp_path).dataset(DATA)
    assert (found.card, found.name, found.outputs, found.epsilon, found.delta) == (CARD, DATA, ("model_update", "num_examples"), 2.0, DELTA)
    publish(store, 3.0, min_patients=40)
    assert store.dataset(DATA).min_patients == 40 and len(store.datasets()) == 1 and store.may(DATA, "lead", "train")
    store.withdraw(DATA, "owner")
    assert store.dataset(DATA) is None and store.datasets() == [] and not store.may(DATA, "lead", "see")
    publish(store, 2.0)
    assert store.grants() == []  # whom it was opened to before is not let in again without a word


def test_access_is_what_was_granted_and_no_more(tmp_path):
    store = open_store(tmp_path)
    assert [(role, action) for role in ROLES for action in ("see", "train") if store.may(DATA, role, action)] == [("lead", "see"), ("lead", "train")]
    assert not store.may("another", "lead", "see")
    store.deny_access(DATA, "lead", "train", "owner")
    assert not Store(tmp_path).may(DATA, "lead", "train") and store.may(DATA, "lead", "see")
    for role, action in (("boss", "see"), ("lead", "delete")):
        with pytest.raises(ValueError, match="expected one of"):
            store.grant(DATA, role, action, "owner")


# --- plans ---


def test_a_plan_waits_until_it_is_decided_on_and_that_can_be_changed(tmp_path):
    store, signed = open_store(tmp_path), signed_by(plan_of())
    assert store.request(signed.plan.hash) is None
    request = store.file_request(signed)
    assert (request.hash, request.person, request.role, request.state, request.content) == (signed.plan.hash, RESEARCHER, "lead", "waiting", signed.content)
    assert request.plan == signed.plan and request.received_utc and request.decided_utc == request.decided_by == ""
    assert store.file_request(signed) == request and store.requests() == store.requests("waiting") == [request]
    with pytest.raises(ValueError, match="for a reason"):
        store.decide(signed.plan.hash, False, " ", "owner")
    denied = store.decide(signed.plan.hash, False, "too long", "owner")
    assert (denied.state, denied.reason, denied.decided_by) == ("denied", "too long", "owner") and denied.decided_utc
    assert store.file_request(signed) == denied  # handing it in again is no new chance
    assert store.decide(signed.plan.hash, True, "", "deputy").state == "approved" and store.requests("denied") == []


def test_the_last_approved_plan_of_a_data_set(tmp_path):
    store = open_store(tmp_path)
    first, second = approved(store, plan_of("first")), approved(store, plan_of("second"))
    approved(store, plan_of("elsewhere", dataset="phantom_oct"))
    assert store.last_approved(DATA) == second.plan and store.last_approved("none") is None
    store.decide(first.plan.hash, True, "", "owner")
    assert store.last_approved(DATA) == first.plan
    store.decide(first.plan.hash, False, "no more", "owner")
    assert store.last_approved(DATA) == second.plan


def test_the_same_plan_of_two_people_is_decided_for_each(tmp_path):
    store, plan = open_store(tmp_path), plan_of()
    store.file_request(signed_by(plan))
    store.file_request(signed_by(plan, OTHER))
    with pytest.raises(ConsortiumError, match="say whose"):
        store.decide(plan.hash, True, "", "owner")
    store.decide(plan.hash, True, "", "owner", OTHER)
    assert [(one.person, one.state) for one in store.requests()] == [(RESEARCHER, "waiting"), (OTHER, "approved")]
    assert store.request(plan.hash, OTHER).state == "approved" and store.request(plan.hash).person == RESEARCHER


def test_a_plan_can_be_denied_but_not_approved_while_it_runs(tmp_path):
    store = open_store(tmp_path)
    signed = approved(store)
    store.start_run("run", signed.plan.hash, RESEARCHER)
    with pytest.raises(ConsortiumError, match="under way"):
        store.decide(signed.plan.hash, True, "", "owner")
    store.decide(signed.plan.hash, False, "stop it", "owner")
    with pytest.raises(ConsortiumError, match="under way"):
        store.decide(signed.plan.hash, True, "", "owner")
    store.end_run("run", "stopped")
    assert store.decide(signed.plan.hash, True, "", "owner").state == "approved"


# --- runs ---


def test_runs_are_counted_a_plan_and_failed_ones_too(tmp_path):
    store = open_store(tmp_path, max_runs=2)
    signed, another = approved(store), approved(store, plan_of("another"))
    store.start_run("one", signed.plan.hash, RESEARCHER)
    with pytest.raises(ConsortiumError, match="started once"):
        store.start_run("one", signed.plan.hash, RESEARCHER)
    assert store.end_run("one", "failed", rounds=3) and not store.end_run("one", "finished")
    store.start_run("two", signed.plan.hash, RESEARCHER)
    with pytest.raises(RuleBroken, match="2 runs of 2") as refused:
        store.start_run("three", signed.plan.hash, RESEARCHER)
    assert refused.value.rule == "runs"
    store.start_run("three", another.plan.hash, RESEARCHER)
    first, second = store.runs(signed.plan.hash)
    assert (first.run_id, first.state, first.facts, first.dataset, first.person) == ("one", "failed", {"rounds": 3}, DATA, RESEARCHER)
    assert first.ended_utc and second.state == "running" and second.ended_utc == "" and len(store.runs()) == 3
    publish(store, max_runs=3)
    store.start_run("four", signed.plan.hash, RESEARCHER)


@pytest.mark.parametrize(("change", "rule"), [("waiting", "plan"), ("denied", "plan"), ("other person", "plan"), ("withdrawn", "dataset")])
def test_no_run_of_what_is_not_approved_or_not_there(tmp_path, change, rule):
    store, signed = open_store(tmp_path), signed_by(plan_of())
    store.file_request(signed)
    if change != "waiting":
        store.decide(signed.plan.hash, change != "denied", "so it is", "owner")
    if change == "withdrawn":
        store.withdraw(DATA, "owner")
    with pytest.raises(RuleBroken) as refused:
        store.start_run("run", signed.plan.hash, OTHER if change == "other person" else RESEARCHER)
    assert refused.value.rule == rule and store.runs() == []


# --- the budget ---


def test_charges_compose_over_runs_and_plans_and_are_refused_when_too_much(tmp_path):
    store = open_store(tmp_path, epsilon_of(3))
    assert store.spent(DATA) == 0.0 and store.left(DATA) == epsilon_of(3) and store.charges(DATA) == []
    after = [store.charge(DATA, f"run {one % 2}", one, NOISE, TERMS) for one in range(3)]
    assert after == [epsilon_of(1), epsilon_of(2), epsilon_of(3)] and after[2] < 3 * after[0]
    with pytest.raises(RuleBroken, match="left 0") as refused:
        store.charge(DATA, "run 1", 3, NOISE, TERMS)
    assert refused.value.rule == "budget" and store.spent(DATA) == after[2] and store.left(DATA) == 0
    charges = Store(tmp_path).charges(DATA)
    assert [(one.run_id, one.round_num, one.noise_multiplier, one.terms, one.epsilon) for one in charges] == [
        (f"run {one % 2}", one, NOISE, TERMS, after[one]) for one in range(3)
    ]
    publish(store, epsilon_of(4))
    assert store.charge(DATA, "run 1", 2, NOISE, TERMS) == epsilon_of(4)  # the same round again is another release
    publish(store, 0.1)
    assert store.left(DATA) < 0
    store.withdraw(DATA, "owner")
    assert store.spent(DATA) == epsilon_of(4)
    with pytest.raises(RuleBroken) as refused:
        store.charge(DATA, "run 1", 4, NOISE, TERMS)
    assert refused.value.rule == "dataset"


@pytest.mark.parametrize(
    ("noise", "terms"),
    [(0.0, TERMS), (-1.0, TERMS), (float("nan"), TERMS), (float("inf"), TERMS), (1e-9, TERMS), (NOISE, PrivacyTerms("hospital", DELTA, 1)),
     (NOISE, PrivacyTerms("patient", DELTA, 1, neighbours="replace"))],
)
@pytest.mark.parametrize("epsilon", [None, 2.0])
def test_what_is_no_noisy_release_about_patients_cannot_be_charged(tmp_path, noise, terms, epsilon):
    store = open_store(tmp_path, epsilon)
    for do in (lambda: store.charge(DATA, "run", 1, noise, terms), lambda: store.check_fits(DATA, noise, terms)):
        with pytest.raises(RuleBroken) as refused:
            do()
        assert refused.value.rule == "budget"
    assert store.charges(DATA) == []


def test_epsilon_is_counted_at_the_budgets_own_delta(tmp_path):
    """The researcher's delta is larger here: at the owner's, the same noise costs more."""
    store = open_store(tmp_path, 5.0)
    looser = PrivacyTerms("patient", 1e-2, TERMS.steps, TERMS.sampling, TERMS.rate)
    assert composed_epsilon([(NOISE, looser)]) < epsilon_of(1) == store.charge(DATA, "run", 1, NOISE, looser)
    assert store.charge(DATA, "run", 2, NOISE, TERMS) == epsilon_of(2)


def test_without_a_budget_charges_are_kept_and_count_when_there_is_one(tmp_path):
    store = open_store(tmp_path)
    store.charge(DATA, "run", 1, NOISE, TERMS)
    assert store.left(DATA) == float("inf") and store.spent(DATA) == epsilon_of(1)
    publish(store, epsilon_of(2))
    store.charge(DATA, "run", 2, NOISE, TERMS)
    with pytest.raises(RuleBroken):
        store.charge(DATA, "run", 3, NOISE, TERMS)
    with pytest.raises(ValueError, match="not dropped"):
        publish(store, None)


def test_budgets_of_two_data_sets_are_apart(tmp_path):
    store = open_store(tmp_path, epsilon_of(1))
    publish(store, epsilon_of(1), card={**CARD, "name": "another"})
    store.charge(DATA, "run", 1, NOISE, TERMS)
    assert store.spent("another") == 0 and store.charge("another", "run", 1, NOISE, TERMS) == epsilon_of(1)


# --- real processes ---

RACE = """
from fl_utils.deployment.nvflare.settings import RuleBroken
from fl_utils.deployment.nvflare.store import Store
from fl_utils.trust.terms import PrivacyTerms
store, what, plan, person, who = Store(sys.argv[1]), *sys.argv[2:6]
print("ready", flush=True)
sys.stdin.readline()
try:
    if what == "run":
        store.start_run("run " + who, plan, person)
    else:
        store.charge("phantom_brain", "run " + who, 1, 2.5, PrivacyTerms("patient", 1e-3, 5, "poisson", 0.2))
    print("got")
except RuleBroken as error:
    print(error.rule)
"""


@pytest.mark.parametrize("what", ["run", "budget"])
@pytest.mark.parametrize("attempt", range(3))
def test_of_processes_that_race_for_the_last_one_gets_it(tmp_path, what, attempt):
    number = (2, 3, 5)[attempt]
    store = open_store(tmp_path, epsilon_of(3), max_runs=2)
    signed = approved(store, plan_of(private=True))
    store.start_run("before", signed.plan.hash, RESEARCHER)
    store.charge(DATA, "before", 1, NOISE, TERMS)
    store.charge(DATA, "before", 2, NOISE, TERMS)
    said = race(RACE, [tmp_path, what, signed.plan.hash, RESEARCHER], number)
    assert sorted(said) == sorted([["got"]] + [["runs" if what == "run" else "budget"]] * (number - 1))
    assert len(store.runs()) == (2 if what == "run" else 1) and len(store.charges(DATA)) == (2 if what == "run" else 3)
    assert store.spent(DATA) <= epsilon_of(3) and store.problems() == []


MAKE = """
from fl_utils.deployment.nvflare.store import Store
print("ready", flush=True)
sys.stdin.readline()
Store(sys.argv[1]).revoke("person " + sys.argv[2], "to try it", "owner")
"""


def test_processes_that_make_the_store_at_once_make_one(tmp_path):
    race(MAKE, [tmp_path / "new"], 5)
    store = Store(tmp_path / "new")
    assert len(store.revoked()) == 5 and events(store) == ["person revoked"] * 5 and store.problems() == []


LOOP = """
from fl_utils.deployment.nvflare.store import Store
from fl_utils.trust.terms import PrivacyTerms
store, run = Store(sys.argv[1]), sys.argv[2]
number = 0
while True:
    number += 1
    epsilon = store.charge("phantom_brain", run, number, 40.0, PrivacyTerms("patient", 1e-3, 1))
    print(json.dumps([run, number, epsilon]), flush=True)
""".replace("from fl_utils.deployment", "import json\nfrom fl_utils.deployment", 1)


def test_a_killed_process_leaves_every_charge_that_returned(tmp_path):
    """Kill after kill on the same store: the database opens, nothing that was promised is forgotten, and the log tells all of it."""
    choose, store, returned, shown = random.Random(0), open_store(tmp_path, 500.0), [], 0.0
    for attempt in range(8):
        process = begin(LOOP, tmp_path, f"run {attempt}")
        said = kill_after(process, choose.randint(1, 5), choose.random() * 0.03)
        assert process.returncode == -signal.SIGKILL
        returned += map(json.loads, said)
        again = Store(tmp_path)
        charges = again.charges(DATA)
        booked = {(one.run_id, one.round_num) for one in charges}
        assert {(run, number) for run, number, _ in returned} <= booked and len(booked) == len(charges)
        spent = again.spent(DATA)
        assert spent >= max(epsilon for *_, epsilon in returned) and spent >= shown
        shown = spent
        logged = [(entry["run_id"], entry["round"]) for entry in read_log(store.log.path) if entry["event"] == "budget charged"]
        assert sorted(logged) == sorted(booked)
        assert all("a process was ended while it wrote" in problem for problem in again.problems())
    again.log.write("after the last kill")
    assert again.problems() == [] and len(returned) >= 20
    print(f"{len(returned)} charges returned, {len(charges)} booked, epsilon {spent:.4g}")


def test_processes_killed_while_others_charge_leave_them_unharmed(tmp_path):
    store = open_store(tmp_path, 500.0)
    others, returned = [begin(LOOP, tmp_path, f"other {one}") for one in range(2)], []
    for attempt in range(4):
        said = kill_after(begin(LOOP, tmp_path, f"killed {attempt}"), 1 + attempt % 3, 0.001 * attempt)
        returned += map(json.loads, said)
    assert [one.poll() for one in others] == [None, None]
    for one in others:
        returned += map(json.loads, kill_after(one, 1, 0))
    booked = [(one.run_id, one.round_num) for one in Store(tmp_path).charges(DATA)]
    assert {(run, number) for run, number, _ in returned} <= set(booked) and len(set(booked)) == len(booked)
    assert store.spent(DATA) >= max(epsilon for *_, epsilon in returned)
    assert sorted(set(run for run, _ in booked)) == sorted({f"other {one}" for one in range(2)} | {f"killed {one}" for one in range(4)})
    logged = [(entry["run_id"], entry["round"]) for entry in read_log(store.log.path) if entry["event"] == "budget charged"]
    assert sorted(logged) == sorted(booked)
    store.log.write("after the last kill")
    assert store.problems() == []
