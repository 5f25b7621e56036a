"""A governed consortium of real processes (NVFlare's server and hospitals, mutual TLS on loopback) trains what was approved, as
the same code does without them; it outlives a hospital that is killed, and leaves no process behind.

Tolerances: the sums are the same code's in the same order, so the model is that of one process bit by bit. TFF adds in float32
where `ServerStep` adds in float64: see `test_federation.AGREE`.
"""

import fcntl
import shutil
import sys

import numpy as np
import psutil
import pytest
import tenseal

from fl_utils.deployment.nvflare.audit import verify_log
from fl_utils.deployment.nvflare.line import Line
from fl_utils.deployment.nvflare.processes import Running
from fl_utils.deployment.nvflare.settings import AUDIT, MODELS, member_folder
from fl_utils.federation_agreement import agreement_config, by_tff
from fl_utils.trust.accounting import epsilon_of
from tests.end_to_end import consortium_helpers as helpers
from tests.end_to_end.consortium_helpers import (
    LIMIT_S, NOISE, PLAIN, PRIVATE, RESEARCHER, Gate, Meanwhile, left_over, plan_of, sign, store, timed, weights_in,
)
from tests.end_to_end.federation_faults_helpers import pieces
from tests.end_to_end.federation_helpers import commands, distance, same_bits

pytestmark = pytest.mark.usefixtures("folders")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A consortium whose members' folders were sent to places of their own: nothing may hold the path where it was made."""
    root = tmp_path_factory.mktemp("consortium")
    folder = helpers.made(root / "made", [PLAIN, PRIVATE])
    for member in [*folder.glob("*/startup"), *folder.glob("people/*/startup")]:
        away = root / "away" / f"of {member.parent.name}"
        shutil.copytree(member.parent, away)
        shutil.rmtree(member.parent)
        member.parent.symlink_to(away)
    return folder


@pytest.fixture(scope="module")
def running(folders, place):
    with Running(place) as running:
        yield running


@pytest.fixture(scope="module")
def line(running, place):
    with Line(member_folder(place, RESEARCHER)) as line:
        with timed("hospitals connected"):
            line.wait_for(3, timeout_s=LIMIT_S)
        yield line


@pytest.fixture(scope="module")
def trained(place, line, tmp_path_factory):
    """A plan and what came of it."""
    plan = plan_of(title="Plain")
    signed = sign(place, plan)
    helpers.approve(place, signed, plan)
    with timed("training of 3 rounds"):
        answer = line.hand_in(signed, tmp_path_factory.mktemp("plain") / "came")
    assert answer.finished, (answer, helpers.last_words(place))
    return plan, answer


def test_an_approved_plan_trains_what_one_process_and_the_simulation_do(place, trained):
    plan, answer = trained
    assert answer.hospitals == dict.fromkeys(plan.hospitals, "accepted")
    outcome, events = answer.outcome("outcome"), answer.outcome("events")
    assert (outcome["plan"], outcome["rounds"]) == (plan.hash, 3)
    assert [event["hospitals"] for event in events if "hospitals" in event] == [list(plan.hospitals)] * 3
    assert events[-1]["text"] == "Finished."

    alone = helpers.in_one_process(place, plan)
    last, simulated = weights_in(answer.folder / "last.npz"), by_tff(PLAIN)
    print(f"NVFlare-one process {distance(last, alone[-1]):.1e}, NVFlare-TFF {distance(last, simulated):.1e}, "
          f"moved {distance(last, alone[0]):.1e}")
    assert same_bits(last, alone[-1])
    assert same_bits(weights_in(answer.folder / "model.npz"), alone[outcome["selected_round"]])
    assert distance(last, simulated) < 1e-5
    assert distance(last, alone[0]) > 1e-3
    for name in plan.hospitals:
        assert same_bits(weights_in(place / name / MODELS / f"{plan.hash[:12]}.npz"), last)
        number, head = outcome["log_heads"][name].split(":")
        assert verify_log(place / name / AUDIT, known=[(int(number), head)]) == []
        assert [run.state for run in store(place, name).runs(plan.hash)] == ["finished"]
        assert len(helpers.log_of(place, name, "sent", plan=plan.hash)) == 4  # three updates, and the last counts


def test_encrypted_the_same_model_comes_and_the_server_never_holds_it(place, line, trained, tmp_path):
    """CKKS adds noise. Of a fresh ciphertext it is, but with a chance that can be forgotten, at most 8 sqrt(2) s N +
    6 s sqrt(N) + 16 s sqrt(h N) (Gentry, Halevi and Smart 2012; s = 3.2, N = 8192, h = 2 N / 3 of a ternary key): 6.4e5 in units
    of the scale 2^-40, 5.8e-7. What is encrypted is n times a hospital's change; the sum of three is divided by all n, 80 here:
    2.2e-8. The product with 1 / n is rounded to the scale: 2.8e-8. So 5e-8 a round and 1.5e-7 in three, to which float32 adds
    less. The tolerance leaves room for what a training does to its start, and is a ten thousandth of what this one moves.
    """
    tolerance = 1e-6
    plan = plan_of(PLAIN.model_copy(update={"client_learning_rate": 0.03}), title="Hidden", encrypted=True)
    signed = sign(place, plan)
    helpers.approve(place, signed, plan)
    with timed("encrypted training of 3 rounds"):
        answer = line.hand_in(signed, tmp_path / "came")
    assert answer.finished, (answer, helpers.last_words(place))
    assert not list(answer.folder.glob("*.npz"))
    models = [weights_in(place / name / MODELS / f"{plan.hash[:12]}.npz") for name in plan.hospitals]
    alone = helpers.in_one_process(place, plan)
    print(f"encrypted-one process {distance(models[0], alone[-1]):.1e}, moved {distance(models[0], alone[0]):.1e}")
    assert 0 < distance(models[0], alone[-1]) < tolerance
    assert distance(models[0], alone[0]) > 1e-3
    assert all(same_bits(model, models[0]) for model in models)

    held = list(helpers.contents(place / "server"))
    not_hidden = pieces(weights_in(trained[1].folder / "last.npz"))
    assert any(piece in content for content in held for piece in not_hidden)  # the other plan's model lies there
    for kind in (np.float32, np.float64):
        hidden = pieces(models[0], kind)
        assert hidden and not any(piece in content for content in held for piece in hidden)
    keys = {member: tenseal.context_from(file.read_bytes()).is_private() for member in ("server", "hospital_1")
            for file in (place / member / "startup").glob("*.tenseal")}
    assert keys == {"server": False, "hospital_1": True}  # who could decrypt


def test_killed_hospitals_hold_up_nobody_and_forget_no_charge(place, running, line, tmp_path):
    """In round 3 of a training with differential privacy: one whole hospital, as by a power cut, in the moment in which the round
    is charged, and not yet told in the log nor computed; and the process of another one's job, as by a lack of memory.
    `round_timeout_s` is what the others wait for them; a round takes a second.
    """
    plan = plan_of(PRIVATE, title="Two are killed", min_hospitals=1, round_timeout_s=90)
    signed, dataset = sign(place, plan), PRIVATE.dataset
    helpers.approve(place, signed, plan)
    cut, broken = Gate(place, "hospital_2"), Gate(place, "hospital_3")
    console = place / cut.hospital / "console.log"
    registered = console.read_text().count("Successfully registered")
    owner = store(place, cut.hospital)
    training = Meanwhile(line, signed, tmp_path / "came")
    for _ in range(3):  # of the submission and of two rounds
        cut.let_in()
        broken.let_in()
    cut.arrived()
    broken.arrived()
    with (place / cut.hospital / AUDIT).open() as log:
        fcntl.flock(log, fcntl.LOCK_SH)  # it can be read, and not written
        cut.let_in()
        helpers.wait_until(lambda: len(owner.charges(dataset)) == 3, "the charge of round 3", place)
        running.kill(cut.hospital)
    assert len(helpers.log_of(place, cut.hospital, "budget charged")) == 2
    for process in psutil.Process(running.processes[broken.hospital].pid).children():
        process.kill()
    cut.open()
    broken.open()
    running.start(cut.hospital)
    helpers.wait_until(lambda: console.read_text().count("Successfully registered") > registered, "the hospital again", place)
    with timed("the rest of the training"):
        answer = training.result()
    assert answer.finished, (answer, helpers.last_words(place))
    rounds = [event["hospitals"] for event in answer.outcome("events") if "hospitals" in event]
    assert rounds == [list(plan.hospitals)] * 2 + [["hospital_1"]] * 2
    for name, charged in {"hospital_1": 4, cut.hospital: 3, broken.hospital: 2}.items():
        assert [charge.round_num for charge in store(place, name).charges(dataset)] == list(range(1, charged + 1))
        cost = epsilon_of(NOISE.noise_multiplier, plan.round_terms(charged))
        assert store(place, name).spent(dataset) == pytest.approx(cost, rel=1e-3)
        assert len(helpers.log_of(place, name, "budget charged")) == charged
        assert len(helpers.log_of(place, name, "sent", plan=plan.hash)) == {4: 5, 3: 2, 2: 2}[charged]
        state = "finished" if charged == 4 else "lost"
        helpers.wait_until(lambda: [run.state for run in store(place, name).runs(plan.hash)] == [state], "the end", place)
        assert verify_log(place / name / AUDIT) == []

    following = plan_of(title="After that")
    signed = sign(place, following)
    helpers.approve(place, signed, following)
    with timed("a training after that"):
        answer = line.hand_in(signed, tmp_path / "following")
    assert answer.finished, (answer, helpers.last_words(place))
    assert answer.outcome("events")[-2]["hospitals"] == list(following.hospitals)


#: What a notebook is, or a terminal: it starts the consortium, hands a plan in and waits.
_PARENT = """
import sys
from pathlib import Path
from fl_utils.deployment.nvflare.line import Line
from fl_utils.deployment.nvflare.processes import Running
folder, kit, plan = map(Path, sys.argv[1:])
with Running(folder), Line(kit) as line:
    line.wait_for(2, timeout_s=200)
    line.hand_in(plan.read_bytes(), folder / "came")
"""


def test_no_process_outlives_who_started_it_nor_down(tmp_path):
    """Jobs have processes of their own, started by NVFlare: 2 hospitals and a server are 6 in a training."""
    config = agreement_config("fedavg", num_clients=2, total_rounds=1000)
    folder = helpers.made(tmp_path / "consortium", [config])
    plan = plan_of(config, title="Long")
    signed = sign(folder, plan)
    helpers.approve(folder, signed, plan)
    (tmp_path / "plan.json").write_bytes(signed)

    def at_work(runs):
        started = [len(helpers.log_of(folder, name, "run started")) for name in plan.hospitals]
        return started == [runs, runs] and len(left_over(folder)) == 6

    with commands() as start:
        arguments = folder, member_folder(folder, RESEARCHER), tmp_path / "plan.json"
        parent = start([sys.executable, "-c", _PARENT, *map(str, arguments)], tmp_path / "parent.log")
        helpers.wait_until(lambda: parent.poll() is not None or at_work(1), "a training", folder)
        assert parent.poll() is None, (tmp_path / "parent.log").read_text()
        parent.kill()
        parent.wait()
        with timed("gone after the parent"):
            helpers.wait_until(lambda: not left_over(folder), "the end of all", folder)

    with Running(folder) as running, Line(member_folder(folder, RESEARCHER)) as line:
        line.wait_for(2, timeout_s=LIMIT_S)
        states = [run.state for name in plan.hospitals for run in store(folder, name).runs(plan.hash)]
        assert len(states) == 2 and set(states) <= {"lost", "ended early"}  # what still could say so did
        Meanwhile(line, signed, tmp_path / "came")
        helpers.wait_until(lambda: at_work(2), "a training", folder)
        with timed("down"):
            running.down()
        assert not left_over(folder)
