"""What the hospitals of a governed consortium refuse, by which rule, that they log it, and that it does not disturb the others.
Real processes: NVFlare's server and three hospitals, mutual TLS on loopback.
"""

import dataclasses
import json
import shutil
import socket
import ssl
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.shareable import Shareable, make_reply

from fl_utils.config import ExperimentConfig
from fl_utils.deployment.nvflare.audit import read_log, verify_log
from fl_utils.deployment.nvflare.consortium import add_person, new_consortium, revoke
from fl_utils.deployment.nvflare.jobs import CARDS, FINISH, TRAIN
from fl_utils.deployment.nvflare.line import Line
from fl_utils.deployment.nvflare.processes import Running
from fl_utils.deployment.nvflare.settings import AUDIT, ConsortiumError, RuleBroken, member_folder
from fl_utils.deployment.nvflare.site_parts import JUDGED, LOSS, REASON, OutputRule, PlanExecutor, initial_weights
from tests.end_to_end import consortium_helpers as helpers
from tests.end_to_end.consortium_helpers import (
    LIMIT_S, NOISE, OBSERVER, OUTPUTS, PLAIN, PRIVATE, RESEARCHER, Gate, Meanwhile, log_of, plan_of, publish, sign, store, submitted,
    timed,
)

pytestmark = pytest.mark.usefixtures("folders")
ALL = ("hospital_1", "hospital_2", "hospital_3")
ONE, OTHERS = "hospital_2", ("hospital_1", "hospital_3")  # who refuses, and who does not
OWNER, SECOND, LATE, FOREIGN = "owner", "second@university.org", "late@university.org", "foreign@university.org"


@pytest.fixture(scope="module")
def place(folders, tmp_path_factory):
    return helpers.made(tmp_path_factory.mktemp("consortium") / "folder", [PLAIN, PRIVATE])


@pytest.fixture(scope="module")
def line(place):
    with Running(place), Line(member_folder(place, RESEARCHER)) as line:
        line.wait_for(3, timeout_s=LIMIT_S)
        yield line


@pytest.fixture
def unlike(place):
    """Hospital 2, whose owner decides otherwise; afterwards all is as it was."""
    own = store(place, ONE)
    cards = {config: own.dataset(config.dataset).card for config in (PLAIN, PRIVATE)}
    yield own
    for config, card in cards.items():
        publish(place, ONE, config, card)
    if own.is_revoked(RESEARCHER):
        own.restore(RESEARCHER, OWNER)


def spent(place):
    """What was charged and run in each hospital."""
    stores = [store(place, name) for name in ALL]
    return [[one.charges(config.dataset) for config in (PLAIN, PRIVATE)] + [one.runs()] for one in stores]


def refused(place, answer, rule, since, hospitals=ALL, words=""):
    """Nothing ran: these hospitals refused by the rule, and their logs say so; the others have nothing but the submission."""
    assert answer.folder is None and answer.status == "FINISHED:FAILED_TO_RUN", (answer, helpers.last_words(place))
    for name in ALL:
        beside = ("plan received", "revocation list")
        logged = [entry for entry in log_of(place, name, since=since[name]) if entry["event"] not in beside]
        if name in hospitals:
            assert answer.rule_of(name) == rule and words in answer.hospitals[name], answer
            assert [(entry["event"], entry["rule"]) for entry in logged] == [("refused", rule)]
            assert words in logged[0]["reason"]
        else:
            assert answer.hospitals[name] == "accepted"
            assert [entry["event"] for entry in logged] == ["submission accepted"]


# --- plans ---


def test_a_plan_that_nobody_has_decided_on_is_filed_once(place, line, tmp_path):
    plan, before = plan_of(title="New"), spent(place)
    signed = sign(place, plan)
    for _ in range(2):
        since = helpers.heads(place)
        refused(place, line.hand_in(signed, tmp_path / "came"), "plan", since)
    for name in ALL:
        assert [request.state for request in store(place, name).requests() if request.hash == plan.hash] == ["waiting"]
        assert len(log_of(place, name, "plan received", plan=plan.hash)) == 1
    assert spent(place) == before


@dataclasses.dataclass(frozen=True)
class Case:
    """A reason of hospital 2's to refuse.

    Attributes:
      rule: by which it does.
      words: of its answer.
      decide: what its owner has decided before the submission; called with folder, the hospital's store, and the plan.
      config: of the plan.
      approved: whether it has approved the plan.
    """

    rule: str
    words: str
    decide: Callable
    config: ExperimentConfig = PLAIN
    approved: bool = True


def other_plan(folder, own, plan):
    """The owner has approved a plan of this title, and not this one."""
    approved = plan_of(PLAIN.model_copy(update={"client_learning_rate": 0.01}), title=plan.title)
    helpers.approve(folder, sign(folder, approved), approved, [ONE])


def used_up(folder, own, plan):
    """The plan has had its only run."""
    publish(folder, ONE, PLAIN, max_runs=1)
    own.start_run("by hand", plan.hash, RESEARCHER)
    own.end_run("by hand", "finished")


def fewer_outputs(folder, own, plan):
    publish(folder, ONE, PLAIN, outputs=("model_update", "num_examples"))


def access_denied(folder, own, plan):
    own.deny_access(PLAIN.dataset, "lead", "train", OWNER)


def budget_set(folder, own, plan):
    publish(folder, ONE, PLAIN, epsilon=1.0, delta=1e-3)


CASES = {
    "changed after approval": Case("plan", "approved another plan of this title", other_plan, approved=False),
    "denied": Case("plan", "not here", lambda folder, own, plan: own.decide(plan.hash, False, "not here", OWNER)),
    "over budget": Case("budget", "bring epsilon", lambda folder, own, plan: publish(folder, ONE, PRIVATE, epsilon=0.2), PRIVATE),
    "no privacy": Case("budget", "no differential privacy", budget_set),
    "revoked by its owner": Case("revoked", "left us", lambda folder, own, plan: own.revoke(RESEARCHER, "left us", OWNER)),
    "no permission": Case("dataset", "no researcher train", access_denied),
    "withdrawn": Case("dataset", "there is no data set", lambda folder, own, plan: own.withdraw(PLAIN.dataset, OWNER)),
    "few patients": Case("patients", "at least 9999", lambda folder, own, plan: publish(folder, ONE, PLAIN, min_patients=9999)),
    "runs used up": Case("runs", "1 runs of 1", used_up),
    "output": Case("outputs", "training_loss", fewer_outputs),
}


@pytest.mark.parametrize("name", CASES)
def test_one_hospital_refuses_and_nothing_runs_where_all_are_needed(place, line, unlike, tmp_path, name):
    case = CASES[name]
    plan = plan_of(case.config, title=name)
    signed = sign(place, plan)
    helpers.approve(place, signed, plan, ALL if case.approved else OTHERS)
    case.decide(place, unlike, plan)
    since, before = helpers.heads(place), spent(place)
    answer = line.hand_in(signed, tmp_path / "came")
    refused(place, answer, case.rule, since, [ONE], case.words)
    assert spent(place) == before


def test_one_hospital_refuses_and_the_others_train_where_they_are_enough(place, line, unlike, tmp_path):
    plan = plan_of(title="Two are enough", min_hospitals=2)
    signed = sign(place, plan)
    helpers.approve(place, signed, plan)
    publish(place, ONE, PLAIN, min_patients=9999)
    with timed("training of two"):
        answer = line.hand_in(signed, tmp_path / "came")
    assert answer.finished and answer.rule_of(ONE) == "patients", (answer, helpers.last_words(place))
    assert [event["hospitals"] for event in answer.outcome("events") if "hospitals" in event] == [list(OTHERS)] * 3
    assert [len(store(place, name).runs(plan.hash)) for name in ALL] == [1, 0, 1]


def test_what_no_owner_can_allow(place, line, tmp_path):
    plan = plan_of(title="Everything", outputs=(*OUTPUTS, "patient_scores"))
    signed = sign(place, plan)
    helpers.approve(place, signed, plan)
    since = helpers.heads(place)
    refused(place, line.hand_in(signed, tmp_path / "came"), "outputs", since, words="patient_scores")


# --- people ---


def test_a_plan_that_was_changed_by_hand(place, line, tmp_path):
    plan = plan_of(title="To the letter")
    signed = sign(place, plan)
    helpers.approve(place, signed, plan)
    changed = signed.replace(b'"title": "To the letter"', b'"title": "To another letter"')
    assert changed != signed
    with pytest.raises(RuleBroken, match="changed afterwards") as error:
        line.hand_in(changed, tmp_path / "came")
    assert error.value.rule == "signature"
    since = helpers.heads(place)
    refused(place, submitted(line, changed, plan, tmp_path), "signature", since)  # whoever does not look at it


def test_an_observer_is_refused_by_the_server_and_an_observers_plan_by_the_hospitals(place, line, tmp_path):
    plan = plan_of(title="Of an observer")
    signed = sign(place, plan, OBSERVER)
    helpers.approve(place, signed, plan)
    since = len(log_of(place, "server"))
    with Line(member_folder(place, OBSERVER)) as observer:
        assert observer.hospitals() == list(ALL)  # which an observer may see
        with pytest.raises(RuleBroken) as error:
            observer.hand_in(signed, tmp_path / "came")
    assert error.value.rule == "role"
    (entry,) = log_of(place, "server", "refused", since=since)
    assert (entry["rule"], entry["person"]) == ("role", OBSERVER)
    since = helpers.heads(place)
    refused(place, line.hand_in(signed, tmp_path / "came"), "role", since)


def test_a_certificate_that_has_ended_or_is_of_another_consortium(place, line, tmp_path):
    add_person(place, LATE, "lead", days=-0.002)  # held until three minutes ago
    other = tmp_path / "other"
    new_consortium(other, hospitals=1, people={FOREIGN: "lead"}, address=address_of(member_folder(place, RESEARCHER)))
    with pytest.raises(RuleBroken) as error:
        Line(member_folder(place, LATE))
    assert error.value.rule == "identity"
    with pytest.raises(ConsortiumError, match="another consortium"), Line(member_folder(other, FOREIGN), wait_s=5.0):
        pass
    assert answers(member_folder(place, RESEARCHER))
    for folder, name in ((place, LATE), (other, FOREIGN)):
        assert not answers(member_folder(folder, name))  # whoever's own programs ask no questions
        plan = plan_of(title=name)
        signed = sign(folder, plan, name)
        since = helpers.heads(place)
        refused(place, submitted(line, signed, plan, tmp_path / name), "identity", since)


def address_of(kit):
    settings = json.loads((kit / "startup" / "fed_admin.json").read_text())["admin"]
    return f"{settings['host']}:{settings['port']}"


def answers(kit):
    """Whether the server says anything to the owner of a certificate, who takes the server's for good."""
    host, port = address_of(kit).split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(kit / "startup" / "client.crt", kit / "startup" / "client.key")
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, int(port)), LIMIT_S) as plain, context.wrap_socket(plain) as line:
            line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # HTTP/2, without settings
            return bool(line.recv(1))
    except (ssl.SSLError, ConnectionError):
        return False


def test_a_person_whom_the_consortium_revokes_is_out_at_once_and_the_training_stops(place, line, tmp_path):
    add_person(place, SECOND, "lead")
    kit = member_folder(place, SECOND)
    plan = plan_of(PRIVATE, title="Of somebody who will be revoked", min_hospitals=1)
    signed = sign(place, plan, SECOND)
    helpers.approve(place, signed, plan)
    gate = Gate(place, ONE)
    with Line(kit) as second:
        training = Meanwhile(second, signed, tmp_path / "came")
        for _ in range(2):  # of the submission and of round 1
            gate.let_in()
        gate.arrived()  # in round 2, in which the others have sent theirs
        for name in OTHERS:
            helpers.wait_until(lambda: len(log_of(place, name, "sent", plan=plan.hash)) == 2, "two rounds", place)
        gate.put_back()
        since = len(log_of(place, "server"))
        revoke(place, SECOND)
        gate.open()
        with pytest.raises(RuleBroken) as error:
            training.result()  # it asks the server how things stand
        assert error.value.rule == "revoked"
        with pytest.raises(RuleBroken) as error:
            second.hospitals()
        assert error.value.rule == "revoked"
    with pytest.raises(RuleBroken) as error, Line(kit):
        pass
    assert error.value.rule == "revoked"
    asked = {entry["command"] for entry in log_of(place, "server", "refused", since=since, rule="revoked")}
    assert "login" in asked and len(asked) > 1
    # Nobody computes for this person any more, whoever hands the plan in.
    for name in ALL:
        helpers.wait_until(lambda: [run.state for run in store(place, name).runs(plan.hash)] == ["ended early"], "the end", place)
        (run,) = store(place, name).runs(plan.hash)
        rounds = [entry["round"] for entry in log_of(place, name, "budget charged", run_id=run.run_id)]
        assert rounds == ([1] if name == ONE else [1, 2])
        assert log_of(place, name, "refused", plan=plan.hash, rule="revoked", run=run.run_id)
    since = helpers.heads(place)
    refused(place, line.hand_in(signed, tmp_path / "handed on"), "revoked", since)
    add_person(place, SECOND, "lead")  # the same person, another certificate
    with Line(kit) as second:
        assert second.hospitals() == list(ALL)


# --- jobs ---


def extra_file(app):
    (app / "config" / "more.json").write_text("{}")


def own_code(app):
    (app / "custom").mkdir()
    (app / "custom" / "mine.py").write_text("print('here')")


def other_settings(app):
    change_client(app, lambda executor: executor["args"].update(epochs=99))


def other_class(app):
    change_client(app, lambda executor: executor.update(path="fl_utils.deployment.nvflare.site_parts.CardsExecutor"))


def change_client(app, change):
    file = app / "config" / "config_fed_client.json"
    config = json.loads(file.read_text())
    change(config["executors"][0]["executor"])
    file.write_text(json.dumps(config, indent=2) + "\n")


@pytest.mark.parametrize("change", [extra_file, other_settings, other_class], ids=lambda change: change.__name__)
def test_a_job_that_is_not_the_plans_own(place, line, tmp_path, change):
    plan, before = plan_of(title="Whose job is another"), spent(place)
    signed = sign(place, plan)
    helpers.approve(place, signed, plan)
    since = helpers.heads(place)
    refused(place, submitted(line, signed, plan, tmp_path, lambda job: change(job / "app")), "job", since)
    assert spent(place) == before


def test_code_is_not_brought_along(place, line, tmp_path):
    """NVFlare refuses it before a hospital is asked: nobody has the right."""
    plan = plan_of(title="With code")
    signed = sign(place, plan)
    helpers.approve(place, signed, plan)
    since = helpers.heads(place)
    answer = submitted(line, signed, plan, tmp_path, lambda job: own_code(job / "app"))
    assert answer.folder is None and answer.status == "FINISHED:FAILED_TO_RUN" and "BYOC" in answer.hospitals["server"], answer
    assert helpers.heads(place) == since


@pytest.mark.parametrize("workflow", [
    {"path": "subprocess.Popen", "args": {"args": ["touch", "was_here"]}},
    {"path": "fl_utils.deployment.nvflare.server_parts.CardsRound", "args": {}},  # which a plan has nothing to do with
], ids=lambda workflow: workflow["path"].split(".")[-1])
def test_the_server_runs_no_other_workflow_either(place, line, tmp_path, workflow):
    """The server is sent another app than the hospitals, which see only theirs."""
    plan, before = plan_of(title=f"With {workflow['path']}"), spent(place)
    signed = sign(place, plan)
    helpers.approve(place, signed, plan)

    def for_the_server(job):
        file = shutil.copytree(job / "app", job / "other") / "config" / "config_fed_server.json"
        config = json.loads(file.read_text())
        config["workflows"][0] |= workflow
        file.write_text(json.dumps(config, indent=2) + "\n")
        meta = json.loads((job / "meta.json").read_text())
        (job / "meta.json").write_text(json.dumps(meta | {"deploy_map": {"app": list(ALL), "other": ["server"]}}))

    since, told = helpers.heads(place), len(log_of(place, "server"))
    answer = submitted(line, signed, plan, tmp_path, for_the_server)
    assert answer.folder is None and answer.status == "FINISHED:FAILED_TO_RUN" and answer.rule_of("server") == "job", answer
    assert [entry["rule"] for entry in log_of(place, "server", "refused", since=told)] == ["job"]
    assert not list(place.rglob("was_here"))
    for name in ALL:  # some may have been asked before the server looked at its own
        assert {entry["event"] for entry in log_of(place, name, since=since[name])} <= {"submission accepted"}
    assert spent(place) == before


# --- in the middle of a training ---


def test_whom_a_rule_stops_in_a_training_drops_out_and_the_others_go_on(place, line, tmp_path):
    """Before round 2 another run uses up hospital 2's budget, before round 3 hospital 3's owner revokes the researcher."""
    plan, dataset = plan_of(PRIVATE, title="Two drop out", min_hospitals=1), PRIVATE.dataset
    signed = sign(place, plan)
    helpers.approve(place, signed, plan)
    gates = {name: Gate(place, name) for name in ("hospital_2", "hospital_3")}
    second, third = (store(place, name) for name in gates)
    already = {name: len(store(place, name).charges(dataset)) for name in ALL}
    training = Meanwhile(line, signed, tmp_path / "came")
    for _ in range(2):  # of the submission and of round 1
        for gate in gates.values():
            gate.let_in()
    gates["hospital_2"].arrived()
    with pytest.raises(RuleBroken, match="left"):
        for number in range(100):
            second.charge(dataset, "by hand", number, NOISE.noise_multiplier, plan.round_terms())
    full = second.charges(dataset)
    gates["hospital_2"].open()
    gates["hospital_3"].let_in()  # to round 2
    gates["hospital_3"].arrived()
    third.revoke(RESEARCHER, "left us", OWNER)
    gates["hospital_3"].open()
    with timed("the rest of the training"):
        answer = training.result()
    third.restore(RESEARCHER, OWNER)
    assert answer.finished, (answer, helpers.last_words(place))
    events = answer.outcome("events")
    rounds = [event["hospitals"] for event in events if "hospitals" in event]
    assert rounds == [list(ALL), list(OTHERS), ["hospital_1"], ["hospital_1"]]
    for name, rule, charged in (("hospital_2", "budget", 1), ("hospital_3", "revoked", 2)):
        (said,) = [event["text"] for event in events if event.get("hospital") == name]
        (entry,) = log_of(place, name, "refused", plan=plan.hash)
        assert f"Rule '{rule}'" in said and entry["rule"] == rule and entry["round"] == charged + 1
        assert len(log_of(place, name, "sent", plan=plan.hash)) == charged
        helpers.wait_until(lambda: [run.state for run in store(place, name).runs(plan.hash)] == ["ended early"], "the end", place)
    assert second.charges(dataset) == full and second.spent(dataset) <= helpers.EPSILON
    assert [len(store(place, name).charges(dataset)) - already[name] for name in OTHERS] == [4, 2]
    assert not log_of(place, "hospital_1", "refused", plan=plan.hash)


def test_after_all_of_that_an_approved_plan_trains_and_every_log_is_whole(place, line, tmp_path):
    plan = plan_of(title="After all of that")
    signed = sign(place, plan)
    helpers.approve(place, signed, plan)
    with timed("training"):
        answer = line.hand_in(signed, tmp_path / "came")
    assert answer.finished, (answer, helpers.last_words(place))
    assert [event["hospitals"] for event in answer.outcome("events") if "hospitals" in event] == [list(ALL)] * 3
    for name in ("server", *ALL):
        assert verify_log(place / name / AUDIT) == []


# --- what a server may ask for, and what leaves a hospital: the two parts on their own ---


def test_a_server_cannot_ask_for_more_than_the_plan_has(tmp_path):
    """With models of its own choice, and answers to each, it would learn more than was approved."""
    executor, plan = PlanExecutor(), plan_of(title="Three rounds")
    for number in (1, 2):
        executor._check_asked(TRAIN, number, plan.config.total_rounds)
    for number in (2, 1, 0, 4, None, True, "3"):
        with pytest.raises(RuleBroken, match="each once") as error:
            executor._check_asked(TRAIN, number, plan.config.total_rounds)
        assert error.value.rule == "plan"
    executor._check_asked(TRAIN, 3, plan.config.total_rounds)
    executor._check_asked(FINISH, 3, plan.config.total_rounds)
    executor._ended = True
    for task in (TRAIN, FINISH):
        with pytest.raises(RuleBroken, match="the end"):
            executor._check_asked(task, 3, plan.config.total_rounds)


IMAGES = np.zeros((40, 24, 24, 1), np.uint8)


@pytest.fixture
def way_out(tmp_path):
    """Gives a function: what leaves of an answer, the parts of a good one changed by a function, and the hospital's log."""
    own = store(tmp_path, "hospital")
    plan = plan_of(title="What leaves")
    publish(tmp_path, "hospital", PLAIN, helpers.card_of(PLAIN, 50), outputs=("model_update", "num_examples", "score_counts"))
    rule, job = OutputRule(), SimpleNamespace(get_job_id=lambda: "run")
    rule._site, rule._signed, rule.content = SimpleNamespace(store=own), SimpleNamespace(plan=plan), lambda fl_ctx: b"{}"
    judged = {"validation_confusion": [1] * len(plan.class_names) ** 2, "validation_loss": 0.5}

    def leaves(change):
        data = {f"w{n}": np.zeros_like(weight) for n, weight in enumerate(initial_weights(plan))}
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: 20, JUDGED: json.dumps(judged), "work_s": 0.1, "log_head": f"3:{'0' * 64}"}
        answer = DXO(DataKind.WEIGHT_DIFF, data=data, meta=meta).to_shareable()
        answer = change(SimpleNamespace(data=data, meta=meta, answer=answer, judged=judged)) or answer
        return rule.process(answer, job), own.log

    return leaves


def test_an_update_leaves_and_nothing_that_lies_beside_it(way_out):
    def more(parts):
        parts.answer["images"] = IMAGES
        parts.answer.set_header("images", IMAGES.tobytes())

    for change in (lambda parts: None, more):
        left, log = way_out(change)
        assert left.get_return_code() in (None, "OK")
        assert set(left) == set(DXO(DataKind.WEIGHT_DIFF, data={"w": IMAGES}).to_shareable())
        assert "images" not in left["__headers__"]
        entry = read_log(log.path)[-1]
        assert (entry["event"], entry["run"]) == ("sent", "run")


#: What an executor might try to send, in the parts of a good answer.
TRIES = {
    "images": lambda parts: parts.data.update(w0=IMAGES),
    "a number a patient": lambda parts: parts.data.update(scores=np.zeros(50, np.float32)),
    "another shape": lambda parts: parts.data.update(w0=parts.data["w0"][1:]),
    "more precision": lambda parts: parts.data.update(w0=parts.data["w0"].astype(np.float64)),
    "not finite": lambda parts: parts.data.update(w0=np.full_like(parts.data["w0"], np.nan)),
    "a list": lambda parts: parts.data.update(w0=parts.data["w0"].tolist()),
    "no weights": lambda parts: parts.data.clear(),
    "in the loss, which is not allowed": lambda parts: parts.meta.update({LOSS: 0.5}),
    "in the time": lambda parts: parts.meta.update(work_s=np.zeros(10_000)),
    "in the number of examples": lambda parts: parts.meta.update({MetaKey.NUM_STEPS_CURRENT_ROUND: 10**500}),
    "beside the counts": lambda parts: parts.meta.update(patient_scores=[0.5] * 50),
    "a long text": lambda parts: parts.meta.update(log_head="3:" + "0" * 5000),
    "a short text": lambda parts: parts.meta.update(log_head="Jane Doe"),
    "scores with more": lambda parts: parts.meta.update({JUDGED: json.dumps(parts.judged | {"patients": [0.5] * 50})}),
    "scores said twice": lambda parts: parts.meta.update({JUDGED: '{"validation_loss": 123.25, ' + json.dumps(parts.judged)[1:]}),
    "scores that are not counts": lambda parts: parts.meta.update({JUDGED: json.dumps(parts.judged).replace("[1,", "[1.25,")}),
    "weights": lambda parts: DXO(DataKind.WEIGHTS, data=parts.data, meta=parts.meta).to_shareable(),
    "a table": lambda parts: DXO(DataKind.METRICS, data={"auc": IMAGES}).to_shareable(),
    "as cards": lambda parts: Shareable({CARDS: json.dumps([0.5] * 50)}),
    "with the last counts": lambda parts: Shareable({"log_head": "Jane Doe"}),
    "nothing that can be read": lambda parts: Shareable({"images": IMAGES}),
}


@pytest.mark.parametrize("name", TRIES)
def test_nothing_else_leaves(way_out, name):
    left, log = way_out(TRIES[name])
    entry = read_log(log.path)[-1]
    assert (entry["event"], entry["rule"]) == ("refused", "outputs")
    assert set(left) == {"__headers__"} and left.get_header(REASON).startswith("Rule 'outputs'") and len(str(left)) < 1500
    assert left.get_return_code() == "EXECUTION_EXCEPTION"


def test_an_error_says_no_more_than_a_sentence(way_out):
    left, _ = way_out(lambda parts: make_reply("x" * 5000, {REASON: "y" * 5000, "images": IMAGES}))
    assert set(left) == {"__headers__"} and len(str(left)) < 1500 and left.get_return_code() == "EXECUTION_EXCEPTION"
