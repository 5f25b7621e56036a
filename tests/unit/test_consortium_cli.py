"""The commands of a consortium, an owner and an audit log, as people call them; no process is started, no line is opened."""

import contextlib
import json
import re
import shutil
import stat
import sys

import pytest
from typer.testing import CliRunner

from fl_utils import cli
from fl_utils.consortia import owner_of
from fl_utils.deployment.hospital_data import load_hospital
from fl_utils.deployment.nvflare import line as lines
from fl_utils.deployment.nvflare.audit import read_log
from fl_utils.deployment.nvflare.consortium import add_person, authority_of, person_in
from fl_utils.deployment.nvflare.identity import read_revocations
from fl_utils.deployment.nvflare.line import Answer
from fl_utils.deployment.nvflare.plan import read_signed, sign_plan
from fl_utils.deployment.nvflare.settings import AUDIT, REVOKED, data_folder, member_folder
from fl_utils.deployment.nvflare.store import Store

DATASET, SIZE, IMAGES = "phantom_chest", 32, 40
CLASSES = ("normal", "pneumonia")
HOSPITALS = ("hospital_1", "hospital_2")
RESEARCHER, OTHER = "researcher@university.org", "other@university.org"


def called(*arguments):
    """In this process, on a wide terminal; what has a traceback is raised."""
    return CliRunner().invoke(cli.app, [str(one) for one in arguments], catch_exceptions=False, env={"COLUMNS": "250"})


def done(*arguments):
    result = called(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def failed(capsys, monkeypatch):
    """Calls a command that ends with exit code 1 and one sentence on stderr; returns the sentence."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fl-utils", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        assert ended.value.code == 1 and told.out == "" and told.err.startswith("Error: ") and "Traceback" not in told.err
        return told.err.removeprefix("Error: ")

    return call


@pytest.fixture(scope="module")
def begun(folders):
    """A consortium as `init` leaves it, and what the command said."""
    place = folders / "begun"
    return place, done("consortium", "init", "--folder", place, "--hospitals", 2, "--num-images", IMAGES)


@pytest.fixture(scope="module")
def published(begun, folders):
    """Published by both owners for researchers; with the cards as a researcher gets them, and a plan that both have as a request."""
    place = shutil.copytree(begun[0], folders / "published")
    for name in HOSPITALS:
        done("owner", "publish", "--hospital", place / name, "--dataset", DATASET)
        for action in ("see", "train"):
            done("owner", "grant", "--hospital", place / name, "--dataset", DATASET, "--action", action)
    cards = {name: [Store(place / name).dataset(DATASET).card] for name in HOSPITALS}
    (place / "cards.json").write_text(json.dumps(cards))
    done("consortium", "plan", place / "plan.json", *plan_options(place))
    file(place, (place / "plan.json").read_bytes())
    return place


@pytest.fixture
def fresh(begun, tmp_path):
    return shutil.copytree(begun[0], tmp_path / "consortium")


@pytest.fixture
def place(published, tmp_path):
    return shutil.copytree(published, tmp_path / "consortium")


def plan_options(place, title="Pneumonia", **changed):
    options = {"cards": place / "cards.json", "dataset": DATASET, "title": title, "purpose": "To try it.", "as": member_folder(place, RESEARCHER)} | changed
    return [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", value)]


def file(place, content, hospitals=HOSPITALS):
    """What a hospital does with a plan on which its owner has not decided."""
    signed = read_signed(content, authority_of(place))
    for name in hospitals:
        Store(place / name).file_request(signed)
    return signed.plan


def plan_in(place, name="plan.json"):
    return read_signed((place / name).read_bytes(), authority_of(place)).plan


def planned(place, title="Pneumonia", **changed):
    """Another plan, which both hospitals have as a request."""
    done("consortium", "plan", place / "another.json", *plan_options(place, title, **changed))
    return file(place, (place / "another.json").read_bytes())


def first(place):
    return place / HOSPITALS[0]


def last_entry(hospital):
    return read_log(hospital / AUDIT)[-1]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- init ---


def test_init_makes_a_consortium_whose_hospitals_hold_all_images_once(begun):
    place, said = begun
    assert f"{place}: a server, 2 hospitals, 5 people." in said and f"fl-utils consortium up --folder {place}" in said
    assert f"fl-utils owner publish --hospital {place / 'hospital_1'} --dataset {DATASET}" in said
    pictures = []
    for name in HOSPITALS:
        assert f"{place / name}: the owner's password for the page is in owner_password.txt" in said
        parts = load_hospital(data_folder(place, name, DATASET), class_names=CLASSES, image_size_px=SIZE)
        assert len(parts["train"].labels) > 5
        pictures.append({image.tobytes() for part in parts.values() for image in part.images})
    assert not pictures[0] & pictures[1] and IMAGES * 0.7 < len(pictures[0] | pictures[1]) <= IMAGES


def test_at_first_nothing_is_published_and_nobody_may_do_anything(begun):
    for name in HOSPITALS:
        store = Store(begun[0] / name)
        assert store.datasets() == store.grants() == store.requests() == [] and store.problems() == []


def test_each_owner_has_a_password_of_the_own(fresh):
    passwords = []
    for name in HOSPITALS:
        file = fresh / name / "owner_password.txt"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        passwords.append(file.read_text().strip())
        assert Store(fresh / name).sign_in(owner_of(name), passwords[-1]).role == "org_admin"
    assert passwords[0] != passwords[1] and min(map(len, passwords)) >= 16
    assert Store(fresh / HOSPITALS[0]).sign_in(owner_of(HOSPITALS[0]), passwords[1]) is None


def test_init_without_a_data_set_leaves_the_images_to_the_hospitals(folders, tmp_path):
    said = done("consortium", "init", "--folder", tmp_path / "one", "--hospitals", 2, "--dataset", "", "--days", 5)
    assert "--dataset NAME" in said and not (tmp_path / "one" / "hospital_1" / "data").exists()
    until = person_in(member_folder(tmp_path / "one", RESEARCHER), tmp_path / "one").expires
    admitted = person_in(member_folder(tmp_path / "one", owner_of("hospital_1")), tmp_path / "one").expires
    assert abs((until - admitted).total_seconds()) < 60


def test_init_deals_unevenly_where_asked_to(folders, tmp_path):
    done("consortium", "init", "--folder", tmp_path / "one", "--hospitals", 2, "--num-images", IMAGES, "--partition", "quantity")
    sizes = [len(list(data_folder(tmp_path / "one", name, DATASET).rglob("*.png"))) for name in HOSPITALS]
    assert abs(sizes[0] - sizes[1]) > 2


@pytest.mark.parametrize(
    ("options", "said"), [
        (["--dataset", "nowhere"], "nowhere"), (["--partition", "natural"], "4 natural hospitals"), (["--partition", "pooled"], "pooled"),
        (["--image-size-px", 8], "image_size_px"), (["--address", "nowhere"], "host:port"), (["--num-images", 3], "leaves no image for test"),
    ]
)  # fmt: skip
def test_an_init_that_fails_leaves_nothing_and_can_be_tried_again(folders, tmp_path, failed, options, said):
    assert said in failed("consortium", "init", "--folder", tmp_path / "one", "--hospitals", 2, "--num-images", IMAGES, *options)
    assert list(tmp_path.iterdir()) == []


def test_init_touches_no_folder_that_is_in_use(place, failed):
    before = files(place)
    assert "is not empty" in failed("consortium", "init", "--folder", place, "--hospitals", 2)
    assert files(place) == before


# --- publish, grant, budget ---


def test_publish_shows_the_card_and_keeps_the_rules(fresh):
    card = json.loads(done("owner", "publish", "--hospital", first(fresh), "--dataset", DATASET))
    rules = Store(first(fresh)).dataset(DATASET)
    parts = load_hospital(data_folder(fresh, HOSPITALS[0], DATASET), class_names=CLASSES, image_size_px=SIZE)
    assert rules.card == card and card["name"] == DATASET and card["class_names"] == list(CLASSES) and card["synthetic"] is True
    assert {part: sum(found.values()) for part, found in card["counts"].items()} == {part: len(found.labels) for part, found in parts.items()}
    assert (rules.min_patients, rules.max_runs, rules.epsilon, rules.delta) == (5, 3, None, None)
    assert rules.outputs == ("model_update", "num_examples", "training_loss", "score_counts") and Store(first(fresh)).grants() == []
    assert last_entry(first(fresh))["event"] == "data set published" and last_entry(first(fresh))["by"] == "owner@hospital1.org"
    assert Store(fresh / HOSPITALS[1]).datasets() == []


def test_publish_with_other_rules(fresh):
    done("owner", "publish", "--hospital", first(fresh), "--dataset", DATASET, "--min-patients", 7, "--max-runs", 1, "--epsilon", 4, "--delta", 0.01,
         "--output", "model_update", "--output", "num_examples", "--by", "deputy")  # fmt: skip
    rules = Store(first(fresh)).dataset(DATASET)
    assert (rules.min_patients, rules.max_runs, rules.epsilon, rules.delta) == (7, 1, 4, 0.01)
    assert rules.outputs == ("model_update", "num_examples") and last_entry(first(fresh))["by"] == "deputy"


@pytest.mark.parametrize(
    ("options", "said"), [
        (["--output", "images"], "images can never leave a hospital"), (["--output", "patient_scores"], "patient_scores can never leave"),
        (["--output", "gradients"], "There is no output gradients"), (["--epsilon", 1, "--delta", 0.5], "below 1 / patients"),
        (["--dataset", "nowhere"], "nowhere"), (["--dataset", "phantom_brain"], "There is no folder"),
    ]
)  # fmt: skip
def test_rules_that_cannot_be_are_refused(fresh, failed, options, said):
    assert said in failed("owner", "publish", "--hospital", first(fresh), "--dataset", DATASET, *options)
    assert Store(first(fresh)).datasets() == []


def test_access_is_given_and_taken_back(fresh, failed):
    done("owner", "publish", "--hospital", first(fresh), "--dataset", DATASET)
    about = ("--hospital", first(fresh), "--dataset", DATASET)
    assert done("owner", "grant", *about, "--action", "see") == f"{DATASET} lead see\n"
    assert done("owner", "grant", *about, "--action", "see", "--role", "member") == f"{DATASET} lead see\n{DATASET} member see\n"
    assert done("owner", "grant", *about, "--action", "see", "--take-back") == f"{DATASET} member see\n"
    assert Store(first(fresh)).grants() == [(DATASET, "member", "see")] and last_entry(first(fresh))["event"] == "access denied"
    assert "expected one of" in failed("owner", "grant", *about, "--action", "copy")
    assert "expected one of" in failed("owner", "grant", *about, "--action", "see", "--role", "researcher")
    assert "publish it first" in failed("owner", "grant", "--hospital", first(fresh), "--dataset", "other", "--action", "see")
    assert Store(first(fresh)).grants() == [(DATASET, "member", "see")]


def test_the_budget_says_what_is_spent(place):
    assert done("owner", "budget", "--hospital", first(place)) == f"{DATASET}: no budget is kept\n"
    done("owner", "publish", "--hospital", first(place), "--dataset", DATASET, "--epsilon", 4)
    assert done("owner", "budget", "--hospital", first(place)) == f"{DATASET}: 0.000 of 4 at delta 0.001, 0 charges\n"
    plan = planned(place, "Private", epsilon=2)
    store = Store(first(place))
    store.decide(plan.hash, True, "", "owner")
    store.start_run("run", plan.hash, RESEARCHER)
    spent = store.charge(DATASET, "run", 0, plan.noise.noise_multiplier, plan.round_terms())
    assert spent > 0 and done("owner", "budget", "--hospital", first(place)) == f"{DATASET}: {spent:.3f} of 4 at delta 0.001, 1 charges\n"


def test_an_owner_lets_somebody_in_no_more(place, failed):
    assert "needs a name and a reason" in failed("owner", "revoke", RESEARCHER, "--hospital", first(place), "--reason", " ")
    assert not Store(first(place)).is_revoked(RESEARCHER)
    done("owner", "revoke", RESEARCHER, "--hospital", first(place), "--reason", "Left us.")
    assert Store(first(place)).revoked() == {RESEARCHER: "Left us."} and Store(place / HOSPITALS[1]).revoked() == {}
    assert last_entry(first(place))["by"] == "owner@hospital1.org"


# --- plan ---


def test_a_plan_comes_of_the_cards_and_is_shown_as_owners_read_it(published):
    said = done("consortium", "plan", published / "again.json", *plan_options(published))
    signed = read_signed((published / "again.json").read_bytes(), authority_of(published))
    assert signed.person.name == RESEARCHER and signed.plan == plan_in(published)
    assert f"Hash {signed.plan.hash}" in said and "Title: Pneumonia\n" in said and "Hospitals: hospital_1, hospital_2\n" in said
    assert f"fl-utils consortium train {published / 'again.json'}" in said
    plan = signed.plan
    assert plan.hospitals == HOSPITALS and plan.class_names == CLASSES and plan.min_hospitals == 2 and not plan.encrypted and plan.noise is None
    assert (plan.config.dataset, plan.config.image_size_px, plan.config.total_rounds, plan.config.model) == (DATASET, SIZE, 10, "small_cnn")
    assert show(published, plan) in said


def show(place, plan):
    return done("owner", "show", plan.hash, "--hospital", first(place)).split("\n\nDifference")[0]


def test_options_of_a_plan_are_taken_over(place):
    done("consortium", "plan", place / "p.json", *plan_options(
        place, model="norm_cnn_group", rounds=3, learning_rate=0.02, batch_size=5, seed=4, epsilon=3, delta=0.002, clipping_norm=0.7, min_hospitals=1
    ), "--encrypted")  # fmt: skip
    plan, config = plan_in(place, "p.json"), plan_in(place, "p.json").config
    assert (config.model, config.total_rounds, config.client_learning_rate, config.client_batch_size, config.seed) == ("norm_cnn_group", 3, 0.02, 5, 4)
    assert (config.privacy_unit, config.epsilon, config.delta, config.clipping_norm) == ("patient", 3, 0.002, 0.7)
    assert plan.encrypted and plan.min_hospitals == 1 and plan.noise.steps >= 1 and "training_loss" not in plan.outputs


def test_a_plan_is_for_the_hospitals_that_have_the_data_set(place):
    cards = json.loads((place / "cards.json").read_text())
    (place / "cards.json").write_text(json.dumps({"hospital_3": [cards["hospital_1"][0] | {"name": "others"}], "hospital_4": []} | cards))
    done("consortium", "plan", place / "p.json", *plan_options(place))
    assert plan_in(place, "p.json").hospitals == HOSPITALS


@pytest.mark.parametrize(
    ("content", "changed", "said"), [
        (None, {"dataset": "phantom_brain"}, "0 hospitals have a card of 'phantom_brain' in"),
        ({"hospital_2": []}, {}, "1 hospitals have a card of 'phantom_chest'"),
        (None, {"cards": "nowhere.json"}, "nowhere.json holds no cards"), ("no JSON", {}, "holds no cards"),
        ("[]", {}, "holds no cards"), ('{"hospital_1": 3}', {}, "holds no cards"),
        ('{"hospital_1": [{}]}', {}, "holds no cards"), (None, {"as": "nobody"}, "nobody is no person's folder"), (None, {"model": "gpt"}, "model: "),
        (None, {"model": "norm_cnn_batch", "epsilon": 1}, "norm_cnn_batch"), (None, {"epsilon": 1, "delta": 0.2}, "No noise can be planned: delta is 0.2"),
        (None, {"title": ""}, "title: "), (None, {"min_hospitals": 3}, "min_hospitals is 3 of 2"), (None, {"learning_rate": 0}, "client_learning_rate"),
    ]
)  # fmt: skip
def test_a_plan_that_cannot_be_is_not_written(place, failed, content, changed, said):
    path = place / "cards.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content))
    assert said in failed("consortium", "plan", place / "p.json", *plan_options(place, **changed))
    assert not (place / "p.json").exists()


def test_hospitals_with_other_classes_have_no_plan(place, failed):
    cards = json.loads((place / "cards.json").read_text())
    cards["hospital_2"][0]["class_names"] = ["pneumonia", "normal"]
    (place / "cards.json").write_text(json.dumps(cards))
    assert "classes differ" in failed("consortium", "plan", place / "p.json", *plan_options(place))


# --- requests ---


def test_requests_are_listed_with_state_and_reason(place):
    plan, other = plan_in(place), planned(place, "Another")
    Store(first(place)).decide(other.hash, False, "Too long.", "owner")
    lines = done("owner", "requests", "--hospital", first(place)).splitlines()
    assert re.fullmatch(rf"{plan.hash[:12]}  waiting   \S+Z  {RESEARCHER}  Pneumonia", lines[0])
    assert re.fullmatch(rf"{other.hash[:12]}  denied    \S+Z  {RESEARCHER}  Another  \(Too long.\)", lines[1]) and len(lines) == 2


def test_a_title_can_neither_drive_a_terminal_nor_look_like_another_request(place):
    plan = planned(place, "Good\x1b[2J\u202e\n000000000000  approved  now  " + RESEARCHER)
    for said in (done("owner", "requests", "--hospital", first(place)), done("owner", "show", plan.hash, "--hospital", first(place))):
        assert "\x1b" not in said and "\u202e" not in said and r"Good\x1b[2J\u202e 000000000000" in said
        assert not any(line.startswith("000000000000") for line in said.splitlines())


def test_a_plan_is_shown_with_its_difference_to_the_last_approved(place):
    plan = plan_in(place)
    said = done("owner", "show", plan.hash[:12], "--hospital", first(place))
    assert said.startswith("Title: Pneumonia\nPurpose: To try it.\n") and said.endswith("Difference to the last approved plan:\n  there is none yet\n")
    done("owner", "approve", plan.hash[:12], "--hospital", first(place))
    longer = planned(place, rounds=12)
    difference = done("owner", "show", longer.hash[:12], "--hospital", first(place)).split("Difference to the last approved plan:\n")[1]
    assert difference == "- Rounds: 10, each with at least 2 hospitals, at most 300 s\n+ Rounds: 12, each with at least 2 hospitals, at most 300 s\n"
    assert "there is none yet" in done("owner", "show", longer.hash[:12], "--hospital", place / HOSPITALS[1])  # the other owner has approved nothing


def test_an_approval_is_of_one_hospital_and_in_its_log(place):
    plan = plan_in(place)
    said = done("owner", "approve", plan.hash[:8], "--hospital", first(place), "--reason", "As agreed.")
    assert said == f"{plan.hash[:12]} of {RESEARCHER} is approved in hospital_1.\n"
    request = Store(first(place)).request(plan.hash)
    assert (request.state, request.reason, request.decided_by) == ("approved", "As agreed.", "owner@hospital1.org")
    assert Store(place / HOSPITALS[1]).request(plan.hash).state == "waiting"
    entry = last_entry(first(place))
    assert (entry["event"], entry["plan"], entry["by"], entry["person"]) == ("plan approved", plan.hash, "owner@hospital1.org", RESEARCHER)


def test_a_denial_has_a_reason(place, failed):
    plan = plan_in(place)
    assert called("owner", "deny", plan.hash, "--hospital", first(place)).exit_code == 2
    assert "for a reason" in failed("owner", "deny", plan.hash, "--hospital", first(place), "--reason", " ")
    assert Store(first(place)).request(plan.hash).state == "waiting"
    assert "is denied in hospital_1" in done("owner", "deny", plan.hash, "--hospital", first(place), "--reason", "Too long.", "--by", "deputy")
    assert Store(first(place)).request(plan.hash).decided_by == "deputy" and Store(first(place)).request(plan.hash).reason == "Too long."


@pytest.mark.parametrize("command", [["show"], ["approve"], ["deny", "--reason", "No."]], ids=lambda command: command[0])
def test_an_unknown_or_too_short_hash_decides_nothing(place, failed, command):
    name, *options = command
    about = ("--hospital", first(place), *options)
    said = failed("owner", name, "000000000000", *about)
    assert said == f"0 requests begin with '000000000000'; `fl-utils owner requests --hospital {first(place).resolve()}` lists them.\n"
    for short in ("", plan_in(place).hash[:5]):  # an empty one would mean every plan
        assert "at least the first 6 signs" in failed("owner", name, short, *about)
    assert Store(first(place)).request(plan_in(place).hash).state == "waiting"


def test_a_plan_of_two_people_is_decided_for_one(place, failed):
    plan, kit = plan_in(place), add_person(place, OTHER, "lead")
    file(place, sign_plan(plan, (kit / "startup" / "client.key").read_bytes(), (kit / "startup" / "client.crt").read_bytes()))
    said = failed("owner", "approve", plan.hash, "--hospital", first(place))
    assert "2 requests begin with" in said and RESEARCHER in said and OTHER in said and "--person" in said
    done("owner", "approve", plan.hash, "--hospital", first(place), "--person", OTHER)
    store = Store(first(place))
    assert store.request(plan.hash, OTHER).state == "approved" and store.request(plan.hash, RESEARCHER).state == "waiting"
    assert "0 requests" in failed("owner", "approve", plan.hash, "--hospital", first(place), "--person", "nobody@university.org")


OWNERS = [
    ["publish", "--dataset", DATASET], ["grant", "--dataset", DATASET, "--action", "see"], ["requests"], ["show", "0" * 12], ["approve", "0" * 12],
    ["deny", "0" * 12, "--reason", "No."], ["revoke", RESEARCHER, "--reason", "Left us."], ["budget"],
]  # fmt: skip


@pytest.mark.parametrize("command", OWNERS, ids=lambda command: command[0])
@pytest.mark.parametrize("where", ["", "nowhere", "server", "people"])
def test_where_no_hospital_is_none_is_begun(published, failed, command, where):
    before = files(published)
    assert "There is no hospital in" in failed("owner", *command, "--hospital", published / where)
    assert files(published) == before


# --- status, people ---


def test_status_shows_what_each_owner_has_decided(place, failed):
    done("owner", "publish", "--hospital", first(place), "--dataset", DATASET, "--epsilon", 4)
    done("owner", "approve", plan_in(place).hash, "--hospital", first(place))
    said = done("consortium", "status", "--folder", place)
    rows = {name: next(line for line in said.splitlines() if name in line) for name in HOSPITALS}
    cells = {name: [cell.strip() for cell in re.split("[│┃]", row)[1:-1]] for name, row in rows.items()}
    assert cells["hospital_1"] == ["hospital_1", "not running", DATASET, "0 waiting, 1 approved, 0 denied", "0", f"{DATASET} 0.00 of 4", "whole"]
    assert cells["hospital_2"] == ["hospital_2", "not running", DATASET, "1 waiting, 0 approved, 0 denied", "0", "none kept", "whole"]
    assert "server not running" in said
    log = first(place) / AUDIT
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    assert re.search(r"hospital_1 .*\d problem\(s\)", done("consortium", "status", "--folder", place))


def test_status_of_a_hospital_whose_server_is_elsewhere(place, tmp_path):
    shutil.copytree(first(place), tmp_path / "mine" / "hospital_1")
    said = done("consortium", "status", "--folder", tmp_path / "mine")
    assert "server elsewhere" in said and "1 waiting" in said


def test_where_there_is_no_consortium(tmp_path, failed):
    for command in (["status"], ["up"], ["add-person", RESEARCHER]):
        said = failed("consortium", *command, "--folder", tmp_path / "nowhere")
        assert "There is no consortium in" in said and "fl-utils consortium init" in said
    assert "There is nobody called" in failed("consortium", "revoke", RESEARCHER, "--folder", tmp_path / "nowhere")
    assert done("consortium", "down", "--folder", tmp_path) == "0 processes ended.\n"
    assert "neither a server's nor a hospital's folder" in failed("consortium", "run", tmp_path)
    for command in (["connect"], ["cards", tmp_path / "c.json"]):
        assert "is no person's folder" in failed("consortium", *command, "--as", tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_people_come_and_go(place, failed):
    said = done("consortium", "add-person", OTHER, "--folder", place, "--days", 2)
    assert said == f"{place / 'people' / OTHER}: hand this folder to {OTHER}, and nobody else.\n"
    assert person_in(member_folder(place, OTHER), place).role == "lead"
    assert "Revoke it first" in failed("consortium", "add-person", OTHER, "--folder", place)
    said = done("consortium", "revoke", OTHER, "--folder", place)
    assert f"{OTHER} is revoked" in said and str(place / "authority" / REVOKED) in said
    serials = read_revocations(first(place) / REVOKED, authority_of(place))[1]
    assert person_in(member_folder(place, OTHER), place).serial in serials
    done("consortium", "add-person", OTHER, "--folder", place, "--role", "member")
    assert person_in(member_folder(place, OTHER), place).role == "member"
    assert called("consortium", "add-person", "new@university.org", "--days", -1, "--folder", place).exit_code == 2
    assert "expected one of" in failed("consortium", "add-person", "new@university.org", "--role", "king", "--folder", place)
    assert "expected one like" in failed("consortium", "add-person", "../new@university.org", "--folder", place)


# --- over a line ---


@pytest.fixture
def line(monkeypatch):
    """What the researcher's line answers, in place of a server."""
    answers = {"cards": {}, "hospitals": ["hospital_1"], "hand_in": None, "asked": []}

    @contextlib.contextmanager
    def opened(kit):
        class Line:
            name = RESEARCHER

            def cards(self):
                return answers["cards"]

            def hospitals(self):
                return answers["hospitals"]

            def hand_in(self, content, into, show):
                answers["asked"].append((content, into))
                show("RUNNING_NOW")
                return answers["hand_in"]

        yield Line()

    monkeypatch.setattr(lines, "Line", opened)
    return answers


def test_connect_says_who_is_there(line):
    assert done("consortium", "connect") == f"{RESEARCHER}: connected. Hospitals: hospital_1\n"
    line["hospitals"] = []
    assert done("consortium", "connect").endswith("Hospitals: none\n")


def test_cards_are_written_with_mocks_to_develop_on(line, place, tmp_path):
    line["cards"] = json.loads((place / "cards.json").read_text())
    said = done("consortium", "cards", tmp_path / "cards.json", "--mock", tmp_path / "mock")
    card = line["cards"]["hospital_1"][0]
    count = sum(card["counts"]["train"].values())
    assert f"hospital_1: {DATASET}, {count} training images of {card['patients']['train']} patients" in said
    assert json.loads((tmp_path / "cards.json").read_text()) == line["cards"]
    for name in HOSPITALS:
        parts = load_hospital(tmp_path / "mock" / name / DATASET, class_names=CLASSES, image_size_px=SIZE)
        assert len(parts["train"].labels) == sum(line["cards"][name][0]["counts"]["train"].values())


@pytest.mark.parametrize(("hospital", "name"), [
    ("hospital_1", "../../outside"), ("hospital_1", ".."), ("hospital_1", ""), ("hospital_1", "/tmp/outside"), ("../outside", DATASET)
])  # fmt: skip
def test_a_card_cannot_put_a_mock_outside_its_folder(line, place, tmp_path, monkeypatch, capsys, hospital, name):
    card = json.loads((place / "cards.json").read_text())["hospital_1"][0]
    line["cards"] = {hospital: [card | {"name": name}]}
    monkeypatch.setattr(sys, "argv", ["fl-utils", "consortium", "cards", str(tmp_path / "c.json"), "--mock", str(tmp_path / "a" / "mock")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1 and "expected a word" in capsys.readouterr().err
    assert not (tmp_path / "a").exists() and not (tmp_path / "outside").exists()


def test_what_became_of_a_plan_is_told(line, place, tmp_path):
    (tmp_path / "came").mkdir()
    (tmp_path / "came" / "events.json").write_text(json.dumps([{"text": "round 1 is over"}, {"text": "answered too late", "hospital": "hospital_2"}]))
    line["hand_in"] = Answer("job", "FINISHED:COMPLETED", {"hospital_1": "accepted", "hospital_2": "accepted"}, tmp_path / "came")
    said = done("consortium", "train", place / "plan.json", "--into", tmp_path / "came")
    assert said.splitlines() == [
        "running now", "hospital_1: accepted", "hospital_2: accepted", "round 1 is over", "hospital_2: answered too late", f"{tmp_path / 'came'}: events.json"
    ]  # fmt: skip
    assert line["asked"] == [((place / "plan.json").read_bytes(), tmp_path / "came")]


def test_a_plan_that_waits_ends_with_1_and_each_hospitals_words(line, place, tmp_path):
    line["hand_in"] = Answer("", "FAILED_TO_RUN", {"hospital_1": "Rule 'plan': it waits for the owner's decision.", "hospital_2": "accepted"})
    result = called("consortium", "train", place / "plan.json", "--into", tmp_path / "came")
    assert result.exit_code == 1 and "hospital_1: Rule 'plan': it waits for the owner's decision." in result.output and not (tmp_path / "came").exists()
    assert called("consortium", "train", tmp_path / "nowhere.json").exit_code == 2


# --- the log ---


def test_verify_ends_with_0_for_a_whole_log_and_1_for_a_changed_one(place):
    done("owner", "approve", plan_in(place).hash, "--hospital", first(place))
    log = first(place) / AUDIT
    number, seal = Store(first(place)).log.head()
    whole = called("audit-log", "verify", log, "--head", f"{number}:{seal}")
    assert whole.exit_code == 0 and f"{number} entries, head {number}:{seal}" in whole.output and "holds the 1 noted head(s)" in whole.output
    content = log.read_text()
    for changed in (content.replace("plan approved", "plan denied"), "".join(content.splitlines(keepends=True)[:-1])):
        assert changed != content
        log.write_text(changed)
        wrong = called("audit-log", "verify", log)
        assert wrong.exit_code == 1 and re.search(r"^\d+ problem\(s\)\.$", wrong.output, re.MULTILINE)
    log.write_text(content)
    assert called("audit-log", "verify", log).exit_code == 0
    assert called("audit-log", "verify", log, "--head", f"{number}:{'0' * 64}").exit_code == 1


def test_verify_of_no_log_or_a_wrong_head_is_a_wrong_call(place, tmp_path):
    assert called("audit-log", "verify", tmp_path / "nowhere.jsonl").exit_code == 2
    assert called("audit-log", "verify", first(place) / AUDIT, "--head", "3").exit_code == 2


def test_the_log_tells_of_each_decision(place):
    done("owner", "approve", plan_in(place).hash, "--hospital", first(place))
    said = done("audit-log", "show", first(place) / AUDIT, "--event", "plan approved")
    assert len(said.splitlines()) == 1 and plan_in(place).hash in said and "owner@hospital1.org" in said
    events = [entry["event"] for entry in read_log(first(place) / AUDIT)]
    assert events == ["account added", "data set published", "access granted", "access granted", "plan received", "plan approved"]
