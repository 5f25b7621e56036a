"""What notebook 09 shows, as far as no process is needed for it: tables of runs, tampered logs, and that a refusal was one."""

import json
import math
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fl_utils import consortium_studies
from fl_utils.config import make_config
from fl_utils.consortium_studies import _job, _Refusals, _story_content, _tampered, accuracy_table
from fl_utils.deployment.nvflare.audit import AuditLog, verify_log
from fl_utils.deployment.nvflare.jobs import APP, ASKED, check_job
from fl_utils.deployment.nvflare.line import Answer
from fl_utils.deployment.nvflare.settings import AUDIT, ConsortiumError, RuleBroken
from fl_utils.deployment.nvflare.store import Store
from fl_utils.experiments.measured import Content
from fl_utils.records import RunRecord
from tests.unit.made_governance import CARD, NOISE, RESEARCHER, TERMS, approved, authority, open_store, plan_of, signed_by
from tests.unit.made_tables import interval, row

HOSPITALS = ("hospital_1", "hospital_2")
DATA = CARD["name"]


# --- tables of runs ---


def run(seed, right, method="fedavg"):
    """A record of eight test images of four patients, so many of which are judged rightly."""
    config = make_config(
        dataset=DATA, method=method, partition="pooled" if method == "centralized" else "iid", num_clients=1 if method == "centralized" else 2, seed=seed,
        profile="smoke", total_rounds=1, client_learning_rate=0.1,
    )  # fmt: skip
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    wrong = np.arange(8) >= right
    p1 = np.where(labels ^ wrong, 0.9, 0.1)
    table = pd.DataFrame({"client": "all", "split": "test", "example": np.arange(8), "group": np.arange(8) // 2, "label": labels, "p0": 1 - p1, "p1": p1})
    return RunRecord(config.model_dump(), pd.DataFrame(), table, {}, Path(f"{method}_{seed}"))


def test_each_group_of_runs_is_a_row_under_its_own_name():
    rights = {"Pooled": [8, 8, 7, 8], "NVFlare": [6, 7, 6, 5], "Simulation": [6, 7, 6, 5]}
    groups = {name: [run(seed, right, "centralized" if name == "Pooled" else "fedavg") for seed, right in enumerate(found)] for name, found in rights.items()}
    table = accuracy_table(groups, "accuracy")
    assert table["label"].tolist() == list(groups) and table.index.tolist() == [0, 1, 2]
    for name, found in rights.items():
        one = row(table, label=name)
        assert one["seeds"] == 4 and (one["mean"], one["low"], one["high"]) == pytest.approx(interval(np.array(found) / 8))
        assert one["patients"] == 4 and one["method"] == ("centralized" if name == "Pooled" else "fedavg")
    assert row(table, label="NVFlare")["patient_low"] <= row(table, label="NVFlare")["mean"] <= row(table, label="NVFlare")["patient_high"]


def test_the_metric_is_the_one_that_was_asked_for():
    groups = {"One": [run(seed, 6) for seed in range(4)]}  # both images of the rare class are wrong
    assert row(accuracy_table(groups, "accuracy"), label="One")["mean"] == 0.75
    assert row(accuracy_table(groups, "balanced_accuracy"), label="One")["mean"] == 0.5


# --- tampered logs ---


@pytest.mark.parametrize("entries", [8, 9, 40])
def test_each_hand_that_is_put_to_a_log_is_found(tmp_path, entries):
    log = AuditLog(tmp_path / AUDIT)
    for number in range(entries):
        log.write("plan received", plan=f"plan {number}")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    said = _tampered(log.path)
    assert list(said) == ["one word of an entry changed", "an entry taken out", "two entries swapped", "the last three entries cut off"]
    assert all(said.values())
    middle = entries // 2 + 1
    assert f"Line {middle}: this is no entry, or it was changed" in said["one word of an entry changed"][0]
    assert f"entry {middle + 1} follows entry {middle - 1}" in said["an entry taken out"][0]
    assert f"entry {middle + 1} follows entry {middle - 1}" in said["two entries swapped"][0]
    assert any(f"Entry {entries} is missing or was changed: the anchor" in one for one in said["the last three entries cut off"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before and verify_log(log.path) == []  # the log itself is as it was


# --- refusals ---


@pytest.fixture
def folder(tmp_path):
    """Two hospitals with an approved plan with privacy."""
    for name in HOSPITALS:
        approved(open_store(tmp_path / name, 2.0), plan_of(private=True))
    return tmp_path


@pytest.fixture
def told(folder):
    return _Refusals(folder, HOSPITALS)


def answer(status="FINISHED:CAN'T_SCHEDULE", **hospitals):
    return Answer("job", status, {"hospital_1": "accepted", "hospital_2": "accepted"} | hospitals)


NOT_REFUSED = {
    "all hospitals let it in": answer(), "it was trained": answer("FINISHED:COMPLETED"),
    "it was trained though a hospital refused": answer("FINISHED:COMPLETED", hospital_1="Rule 'plan': it waits."),
    "it failed for another reason": answer("FINISHED:EXECUTION_EXCEPTION", hospital_1="the hospital failed: ValueError"),
    "nobody said anything": Answer("", "ABANDONED", {}), "somebody else refused": Answer("job", "FAILED", {"hospital_9": "Rule 'plan': it waits."}),
    "hospitals were listed": ["hospital_1"], "a line was opened": object(), "nothing came": None,
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_REFUSED)
def test_what_was_not_refused_stops_the_story(told, case):
    with pytest.raises(AssertionError, match="a forged plan was not refused"):
        told.attempt("a forged plan", lambda: NOT_REFUSED[case])
    assert told.rows == []


def test_each_hospital_that_refuses_is_a_row(told):
    told.attempt("a forged plan", lambda: answer(hospital_2="Rule 'budget': round 1: it's too much."))
    told.attempt("an old plan", lambda: answer(hospital_1="Rule 'plan': it waits.", hospital_2="Rule 'runs': no more."))
    assert told.rows == [
        ("a forged plan", "hospital_2", "budget", "round 1: it's too much.", True), ("an old plan", "hospital_1", "plan", "it waits.", True),
        ("an old plan", "hospital_2", "runs", "no more.", True),
    ]  # fmt: skip


def test_the_servers_refusals_are_rows_too(told):
    def raises(error):
        raise error

    told.attempt("a job of one's own", lambda: answer(server="Rule 'job': none that a plan stands for."))
    told.attempt("by an observer", lambda: raises(RuleBroken("role", "an observer may not do this.")))
    told.attempt("by a stranger", lambda: raises(ConsortiumError("The server does not take the certificate.")))
    assert told.rows == [
        ("a job of one's own", "server", "job", "none that a plan stands for.", True), ("by an observer", "server", "role", "an observer may not do this.", True),
        ("by a stranger", "server", "identity", "The server does not take the certificate.", True),
    ]  # fmt: skip


def test_any_other_error_is_no_refusal(told):
    with pytest.raises(ZeroDivisionError):
        told.attempt("a forged plan", lambda: 1 / 0)
    assert told.rows == []


@pytest.mark.parametrize("what", ["run", "charge"])
def test_a_refusal_that_disturbs_a_hospital_is_told_as_such(folder, told, what):
    plan, store = plan_of(private=True), Store(folder / HOSPITALS[1])
    store.start_run("before", plan.hash, RESEARCHER)

    def act():
        if what == "run":
            store.start_run("during", plan.hash, RESEARCHER)
        else:
            store.charge(DATA, "before", 0, NOISE, TERMS)
        return answer(hospital_1="Rule 'plan': it waits.")

    told.attempt("with a side effect", act)
    assert told.rows == [("with a side effect", "hospital_1", "plan", "it waits.", False)]
    told.attempt("without one", lambda: answer(hospital_1="Rule 'plan': it waits."))
    assert told.rows[1][-1] is True


def test_owners_approve_first_where_another_rule_is_to_be_met(folder, told, monkeypatch):
    plan = plan_of("Beyond the budget", private=True)
    handed = []

    def hand_in(content, into):
        handed.append(content)
        for name in HOSPITALS[: 1 if len(handed) == 1 else 2]:
            Store(folder / name).file_request(signed_by(plan))
        states = [Store(folder / name).request(plan.hash) for name in HOSPITALS]
        return answer(hospital_1=f"Rule 'budget': {[one and one.state for one in states]}")

    monkeypatch.setattr(consortium_studies, "sign", lambda folder, plan: f"signed {plan.title}".encode())
    told.hand_in("beyond the budget", types.SimpleNamespace(hand_in=hand_in), plan, approve=True)
    assert handed == [b"signed Beyond the budget"] * 2
    assert told.rows == [("beyond the budget", "hospital_1", "budget", "['approved', 'waiting']", True)]  # the second had never seen it before
    told.hand_in("once more", types.SimpleNamespace(hand_in=hand_in), plan)
    assert len(handed) == 3


def test_a_job_with_a_file_more_is_one_that_hospitals_refuse(tmp_path):
    plan = plan_of()
    content = signed_by(plan).content
    good, bad = _job(tmp_path, content, plan), _job(tmp_path, content, plan, extra=True)
    assert check_job(good / APP, (good / APP / "config" / ASKED).read_bytes(), authority()) is None
    with pytest.raises(RuleBroken, match="more.json, which no plan asks for") as error:
        check_job(bad / APP, content, authority())
    assert error.value.rule == "job"


# --- the tables of the story ---


@pytest.fixture
def content(folder, tmp_path):
    """The story of one training of two rounds, which was refused once before."""
    plan, first = plan_of(private=True), plan_of("A first try")
    heads = {}
    for number, name in enumerate(HOSPITALS):
        store = Store(folder / name)
        store.file_request(signed_by(first))
        store.decide(first.hash, False, "No privacy.", "owner")
        store.start_run("run", plan.hash, RESEARCHER)
        for round_num in range(2):
            store.charge(DATA, "run", round_num, NOISE, TERMS)
            store.log.write("sent", run="run", plan=plan.hash, bytes=1000 + number, round=round_num)
        store.end_run("run", "finished")
        heads[name] = ":".join(map(str, store.log.head()))
    came = tmp_path / "came"
    came.mkdir()
    (came / "outcome.json").write_text(json.dumps({"log_heads": heads}))
    (came / "events.json").write_text(json.dumps([{"text": "round 1"}]))
    found = {"first": first, "plan": plan, "answer": Answer("run", "FINISHED:COMPLETED", {}, came), "cards": dict.fromkeys(HOSPITALS, CARD)}
    refusals = [("a plan that waits", "hospital_1", "plan", "it waits.", True)]
    return lambda: _story_content(folder, HOSPITALS, plan.config, found, refusals)


def test_the_story_tells_what_stores_and_logs_hold(content, folder):
    made = content()
    assert isinstance(made, Content) and set(made.tables) == {"cards", "requests", "refusals", "charges", "log", "sent"}
    assert row(made.tables["cards"], hospital="hospital_1")[["images", "patients", "none", "tumour"]].tolist() == [50, 50, 30, 20]
    requests = made.tables["requests"]
    assert len(requests) == 4 and set(requests["state"]) == {"approved", "denied"}
    assert row(requests, hospital="hospital_2", state="denied")["reason"] == "No privacy."
    charges = made.tables["charges"]
    spent = Store(folder / "hospital_1").spent(DATA)
    assert charges["round"].tolist() == [0, 1, 0, 1] and charges["epsilon"].iloc[1] == pytest.approx(spent) and not math.isinf(spent)
    assert made.tables["sent"].groupby("hospital")["bytes"].sum().to_dict() == {"hospital_1": 2000, "hospital_2": 2002}
    log = made.tables["log"]
    assert log["number"].tolist() == list(range(1, len(log) + 1)) and "budget charged" in set(log["event"])
    assert made.tables["refusals"].to_dict("records") == [
        {"tried": "a plan that waits", "by": "hospital_1", "rule": "plan", "said": "it waits.", "undisturbed": True}
    ]
    facts = made.facts
    assert facts["problems"] == {"hospital_1": [], "hospital_2": []} and len(facts["tampered"]) == 4 and all(facts["tampered"].values())
    assert facts["hash"] == plan_of(private=True).hash and facts["plan"][0] == "Title: A model" and facts["events"] == ["round 1"]
    assert any(line.startswith("+ Differential privacy: DP-SGD") for line in facts["difference"]) and facts["status"] == "FINISHED:COMPLETED"
    json.dumps(facts)


def test_a_log_that_was_changed_after_the_training_has_problems_in_the_story(content, folder):
    """Even with its anchor made to fit: the server holds the heads that hospitals sent with their answers."""
    log = folder / "hospital_2" / AUDIT
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-2]))
    kept = json.loads(lines[-3])
    log.with_suffix(".head").write_text(f"{kept['number']}:{kept['hash']}\n")
    assert verify_log(log) == []
    problems = content().facts["problems"]
    assert problems["hospital_1"] == [] and any("somebody has noted" in one for one in problems["hospital_2"])
