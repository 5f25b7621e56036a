"""Each rule refuses what it is there for, in the order of the table, and nothing else; what changes on the way is seen."""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from fl_utils.deployment.nvflare.audit import read_log
from fl_utils.deployment.nvflare.identity import person_of
from fl_utils.deployment.nvflare.plan import difference, sign_plan
from fl_utils.deployment.nvflare.rules import check_person, check_still, check_submission
from fl_utils.deployment.nvflare.settings import ROLES, RULES, RuleBroken
from tests.unit.made_governance import (
    CARD, NOISE, OTHER, RESEARCHER, TERMS, approved, authority, open_store, person, plan_of, publish, signed_by,
)

DATA = CARD["name"]


def refusal(store, signed, hospital="hospital_1", revoked_serials=(), now=None):
    """The rule and text that refuse a submission; None if all let it in. A check changes nothing and logs nothing."""
    before = store.log.head()
    try:
        check_submission(store, signed, hospital=hospital, authority=authority(), revoked_serials=revoked_serials, now=now)
        found = None
    except RuleBroken as error:
        found = (error.rule, str(error))
    assert store.log.head() == before
    return found


def still(store, signed, now=None, revoked_serials=(), hospital="hospital_1"):
    """The rule that refuses the next round; None if it may be done."""
    try:
        check_still(store, signed.person, signed.plan, hospital=hospital, revoked_serials=revoked_serials, now=now)
    except RuleBroken as error:
        return error.rule


def late():
    return datetime.now(UTC) + timedelta(days=31)


@pytest.mark.parametrize("private", [False, True])
def test_an_approved_plan_of_a_researcher_is_let_in(tmp_path, private):
    store = open_store(tmp_path, 2.0 if private else None)
    signed = approved(store, plan_of(private=private))
    assert refusal(store, signed) is None and refusal(store, signed, "hospital_2") is None and still(store, signed) is None


def test_a_plan_with_noise_is_let_in_where_there_is_no_budget(tmp_path):
    store = open_store(tmp_path)
    assert refusal(store, approved(store, plan_of(private=True))) is None


def broken(rule, store, signed, rules):
    """Breaks a rule, and keeps those broken that `rules`, the owner's of the data set, break; named arguments of `refusal`."""
    owners = {"budget": {"epsilon": 0.1}, "outputs": {"outputs": ("model_update",)}, "patients": {"min_patients": 51}, "runs": {"max_runs": 1}}
    rules |= owners.get(rule, {})
    publish(store, **rules)
    if rule == "runs":
        store.start_run("run", signed.plan.hash, RESEARCHER)
    elif rule == "plan":
        store.decide(signed.plan.hash, False, "too long", "owner")
    elif rule == "dataset":
        store.deny_access(DATA, "lead", "train", "owner")
    return {"revoked": {"revoked_serials": {signed.person.serial}}, "identity": {"now": late()}}.get(rule, {})


#: The role is the person's own, and tried below; signature and job are looked at before.
BREAKABLE = [rule for rule in RULES if rule not in ("signature", "role", "job")]


@pytest.mark.parametrize("rule", BREAKABLE)
def test_a_rule_refuses_by_itself(tmp_path, rule):
    store = open_store(tmp_path, 2.0)
    signed = approved(store, plan_of(private=True))
    assert refusal(store, signed, **broken(rule, store, signed, {"epsilon": 2.0}))[0] == rule


def test_the_first_broken_rule_is_told_in_the_order_of_the_table(tmp_path):
    """From the last rule to the first: one more is broken each time, and that one is told."""
    store, rules, named = open_store(tmp_path, 2.0), {"epsilon": 2.0}, {}
    signed = approved(store, plan_of(private=True))
    for rule in reversed(BREAKABLE):
        named |= broken(rule, store, signed, rules)
        assert refusal(store, signed, **named)[0] == rule


def test_people_of_other_authorities_and_changed_files_are_refused(tmp_path):
    """Whatever stands in the object that is handed in: what is signed counts."""
    store = open_store(tmp_path)
    signed = approved(store)
    certificate, key = person(RESEARCHER, "lead", "theirs")
    assert refusal(store, dataclasses.replace(signed, content=sign_plan(signed.plan, key, certificate)))[0] == "identity"
    assert refusal(store, dataclasses.replace(signed, content=signed.content.replace(b'"seed": 0', b'"seed": 1')))[0] == "signature"
    assert refusal(store, dataclasses.replace(signed, content=b"{}"))[0] == "signature"
    other = signed_by(plan_of("never approved"))
    assert refusal(store, dataclasses.replace(other, plan=signed.plan))[0] == "plan"
    observer = signed_by(plan_of(), "observer@university.org", "member")
    assert refusal(store, dataclasses.replace(observer, person=signed.person))[0] == "role"


def test_who_is_revoked_by_this_owner_is_told_why(tmp_path):
    store = open_store(tmp_path)
    signed, another = approved(store), approved(store, plan_of("another"), OTHER)
    store.revoke(RESEARCHER, "left the university", "owner")
    rule, text = refusal(store, signed)
    assert rule == "revoked" and "left the university" in text and still(store, signed) == "revoked"
    assert refusal(store, another) is None and refusal(store, another, revoked_serials={another.person.serial})[0] == "revoked"
    store.restore(RESEARCHER, "owner")
    assert refusal(store, signed) is None


@pytest.mark.parametrize("role", [role for role in ROLES if role != "lead"])
def test_nobody_but_a_researcher_trains_even_where_the_owner_granted_it(tmp_path, role):
    store, name = open_store(tmp_path), f"{role}@somewhere.org"
    store.grant(DATA, role, "train", "owner")
    signed = signed_by(plan_of(), name, role)
    store.file_request(signed)
    store.decide(signed.plan.hash, True, "", "owner")
    assert refusal(store, signed)[0] == "role" and still(store, signed) == "role"


def test_whoever_may_not_see_a_data_set_is_not_told_that_it_is_there(tmp_path):
    store = open_store(tmp_path)
    there, elsewhere = approved(store), approved(store, plan_of(dataset="phantom_oct"))
    store.deny_access(DATA, "lead", "train", "owner")
    assert "lets no researcher train" in refusal(store, there)[1]
    store.deny_access(DATA, "lead", "see", "owner")
    assert refusal(store, there)[1].replace(DATA, "it") == refusal(store, elsewhere)[1].replace("phantom_oct", "it")
    store.grant(DATA, "lead", "train", "owner")
    assert refusal(store, there) is None
    store.withdraw(DATA, "owner")
    assert refusal(store, there)[0] == "dataset" and still(store, there) == "dataset"


def test_a_hospital_that_the_plan_does_not_name_refuses(tmp_path):
    store = open_store(tmp_path)
    signed = approved(store)
    rule, text = refusal(store, signed, "hospital_3")
    assert rule == "dataset" and "hospital_1, hospital_2" in text and still(store, signed, hospital="hospital_3") == "dataset"


def test_a_plan_is_refused_until_it_is_approved_and_after_it_is_denied(tmp_path):
    store, signed = open_store(tmp_path), signed_by(plan_of())
    for step, said in (
        (lambda: None, "not approved yet"), (lambda: store.file_request(signed), "not approved yet"),
        (lambda: store.decide(signed.plan.hash, False, "too many rounds", "owner"), "too many rounds"),
    ):
        step()
        rule, text = refusal(store, signed)
        assert rule == "plan" and said in text and still(store, signed) == "plan"
    store.decide(signed.plan.hash, True, "", "owner")
    assert refusal(store, signed) is None


def test_the_approval_of_one_person_is_none_for_another(tmp_path):
    store = open_store(tmp_path)
    approved(store)
    assert refusal(store, signed_by(plan_of(), OTHER))[0] == "plan"


def test_a_plan_that_differs_from_the_approved_one_says_in_how_much(tmp_path):
    store = open_store(tmp_path)
    first = approved(store)
    changed = signed_by(plan_of(total_rounds=11, client_learning_rate=0.06))
    rule, text = refusal(store, changed)
    lines = len(difference(changed.plan, first.plan))
    assert rule == "plan" and lines == 4 and f"differs from it in {lines} lines" in text and first.plan.hash[:12] in text
    assert "differs" not in refusal(store, signed_by(plan_of("another title", total_rounds=11)))[1]
    assert "differs" not in refusal(store, signed_by(plan_of(total_rounds=11), OTHER))[1]


def test_as_many_patients_as_are_asked_for_are_enough(tmp_path):
    store = open_store(tmp_path, min_patients=50)
    signed = approved(store)
    assert refusal(store, signed) is None
    publish(store, min_patients=51)
    assert refusal(store, signed)[0] == "patients"


def test_a_budget_asks_for_noise_and_for_the_whole_plan_to_fit(tmp_path):
    store = open_store(tmp_path, 2.0)
    rule, text = refusal(store, approved(store))
    assert rule == "budget" and "no differential privacy" in text
    signed = approved(store, plan_of(private=True))
    assert refusal(store, signed) is None
    for number in range(2):
        store.charge(DATA, "run", number, NOISE, TERMS)
    assert refusal(store, signed) is None  # 2 rounds and the plan's 10 fit, 3 and 10 do not
    store.charge(DATA, "run", 2, NOISE, TERMS)
    rule, text = refusal(store, signed)
    assert rule == "budget" and "Spent is" in text and still(store, signed) is None  # that is the charge's to say


def test_runs_of_a_plan_end_with_the_owners_number(tmp_path):
    store = open_store(tmp_path, max_runs=2)
    signed, another = approved(store), approved(store, plan_of("another"))
    for number in range(2):
        assert refusal(store, signed) is None
        store.start_run(f"run {number}", signed.plan.hash, RESEARCHER)
    rule, text = refusal(store, signed)
    assert rule == "runs" and "2 runs of 2" in text and refusal(store, another) is None
    assert still(store, signed) is None  # the run that is under way goes on


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda store, signed: store.revoke(RESEARCHER, "why", "owner"), "revoked"), (lambda store, signed: store.withdraw(DATA, "owner"), "dataset"),
        (lambda store, signed: store.deny_access(DATA, "lead", "train", "owner"), "dataset"),
        (lambda store, signed: store.decide(signed.plan.hash, False, "stop", "owner"), "plan"), (lambda store, signed: publish(store, max_runs=1), None),
    ],
)
def test_what_changes_between_rounds_is_seen_before_the_next(tmp_path, change, rule):
    store = open_store(tmp_path)
    signed = approved(store)
    store.start_run("run", signed.plan.hash, RESEARCHER)
    assert still(store, signed) is None
    change(store, signed)
    assert still(store, signed) == rule


def test_a_certificate_that_ends_or_is_revoked_between_rounds_stops_the_training(tmp_path):
    store = open_store(tmp_path)
    signed = approved(store)
    assert still(store, signed, now=late()) == "identity" and still(store, signed, revoked_serials={signed.person.serial}) == "revoked"
    assert still(store, signed, revoked_serials={"abc"}) is None


def test_somebody_who_only_asks_needs_a_good_certificate_and_nothing_more(tmp_path):
    store = open_store(tmp_path)
    observer = person_of(person("observer@university.org", "member")[0], authority())
    check_person(store, observer, hospital="hospital_1", revoked_serials=())
    for named, rule in (({"revoked_serials": {observer.serial}}, "revoked"), ({"revoked_serials": (), "now": late()}, "identity")):
        with pytest.raises(RuleBroken) as refused:
            check_person(store, observer, hospital="hospital_1", **named)
        assert refused.value.rule == rule
    store.revoke(observer.name, "why", "owner")
    with pytest.raises(RuleBroken, match="why"):
        check_person(store, observer, hospital="hospital_1", revoked_serials=())


def test_nothing_of_a_refusal_is_in_the_log_of_the_store(tmp_path):
    """Who asked logs it, with what it knows of the asker."""
    store = open_store(tmp_path)
    signed = signed_by(plan_of())
    before = read_log(store.log.path)
    assert refusal(store, signed) and still(store, signed) and read_log(store.log.path) == before
