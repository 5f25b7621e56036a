"""What is submitted: the job that a plan or a question stands for, and nothing beside it, less, or else."""

import base64
import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from nvflare.lighter.tool_consts import NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE

from fl_utils.deployment.nvflare.identity import sign
from fl_utils.deployment.nvflare.jobs import (
    APP, ASKED, CARDS, FINISH, SERVER_CONFIG, TRAIN, cards_configs, check_job, is_cards_question, read_cards_question, server_configs,
    training_configs, write_cards_job, write_training_job,
)
from fl_utils.deployment.nvflare.plan import sign_plan
from fl_utils.deployment.nvflare.settings import RuleBroken
from tests.unit.made_governance import OBSERVER, OTHER, RESEARCHER, authority, person, plan_of

PLANS = {"plain": plan_of(), "private": plan_of(private=True), "encrypted": plan_of().model_copy(update={"encrypted": True})}
KINDS = (*PLANS, "cards")
HOSPITALS = ("hospital_1", "hospital_2", "hospital_3")
FILES = ("config/asked.json", "config/config_fed_client.json", "config/config_fed_server.json")


def signed(plan, name=RESEARCHER):
    certificate, key = person(name, "lead")
    return sign_plan(plan, key, certificate)


def question(name=OBSERVER, role="member"):
    """Arguments of `write_cards_job` after the hospitals."""
    certificate, key = person(name, role)
    return key, certificate


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """A job a kind, as it is submitted."""
    root = tmp_path_factory.mktemp("jobs")
    made = {kind: write_training_job(root / kind, signed(plan), plan) for kind, plan in PLANS.items()}
    return made | {"cards": write_cards_job(root / "cards", HOSPITALS, *question())}


@pytest.fixture
def app(jobs, request, tmp_path):
    """What a hospital is sent of the job of a kind; by default that of the plain plan."""
    return shutil.copytree(jobs[getattr(request, "param", "plain")] / APP, tmp_path / "app")


every_kind = pytest.mark.parametrize("app", KINDS, indirect=True)


def asked(app):
    return (app / "config" / ASKED).read_bytes()


def refused(app, content=None):
    """The text of the refusal by rule "job"."""
    with pytest.raises(RuleBroken) as error:
        check_job(app, asked(app) if content is None else content, authority())
    assert error.value.rule == "job"
    return str(error.value)


# --- what is written ---


@pytest.mark.parametrize("kind", PLANS)
def test_a_job_is_for_the_server_and_the_plans_hospitals_only(jobs, kind):
    job, plan = jobs[kind], PLANS[kind]
    meta = json.loads((job / "meta.json").read_text())
    assert job.name == meta["name"] == f"train_{plan.hash[:12]}" and meta["min_clients"] == plan.min_hospitals
    assert meta["deploy_map"] == {APP: ["server", *plan.hospitals]} and meta["resource_spec"] == {}
    assert asked(job / APP) == signed(plan)
    assert sorted(str(path.relative_to(job)) for path in job.rglob("*") if path.is_file()) == sorted([*(f"app/{name}" for name in FILES), "meta.json"])


def test_the_question_goes_to_the_hospitals_that_are_there(jobs):
    meta = json.loads((jobs["cards"] / "meta.json").read_text())
    assert meta["deploy_map"] == {APP: ["server", *HOSPITALS]} and meta["min_clients"] == 1


def classes(configs):
    """Every class that NVFlare would build, and every argument that one would be given."""
    found, arguments = set(), []

    def look(part):
        for one in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            look(one)
        if isinstance(part, dict) and "path" in part:
            found.add(part["path"])
            arguments.append(part.get("args"))

    look(configs)
    return found, arguments


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_names_only_classes_that_members_allow(kind):
    from fl_utils.deployment.nvflare.consortium import ALLOWED

    configs = cards_configs() if kind == "cards" else training_configs(PLANS[kind].encrypted)
    found, arguments = classes(configs)
    assert found and all(any(path.startswith(f"{allowed}.") for allowed in ALLOWED) for path in found)
    ours = [one for one in arguments if one]
    assert (kind == "encrypted") == bool(ours) == any("app_opt.he" in path for path in found)


def test_the_server_may_run_no_other_configuration_than_these(jobs):
    """A server looks at the configuration before it runs a job; only encryption changes it, whatever else the plan is."""
    assert {(jobs[kind] / APP / "config" / SERVER_CONFIG).read_bytes() for kind in KINDS} == set(server_configs())
    assert len(set(server_configs())) == 3
    client = [(jobs[kind] / APP / "config" / "config_fed_client.json").read_bytes() for kind in KINDS]
    assert client[0] == client[1] and len(set(client)) == 3


def test_updates_of_an_encrypted_plan_leave_encrypted_and_no_model_is_sent_in_the_clear():
    client = training_configs(True)["config_fed_client.json"]
    assert client["task_result_filters"] == [{"tasks": [TRAIN], "filters": [
        {"path": "nvflare.app_opt.he.model_encryptor.HEModelEncryptor", "args": {"weigh_by_local_iter": True}}
    ]}]  # fmt: skip
    ((decrypted,),) = [one["filters"] for one in client["task_data_filters"]]
    assert decrypted["path"].endswith("HEModelDecryptor") and client["task_data_filters"][0]["tasks"] == [TRAIN, FINISH]
    plain = training_configs(False)["config_fed_client.json"]
    assert plain["task_result_filters"] == plain["task_data_filters"] == []


# --- what a hospital accepts ---


@every_kind
def test_a_hospital_accepts_its_own_job(app):
    assert check_job(app, asked(app), authority()) is None


@every_kind
def test_what_nvflare_adds_to_signed_folders_is_no_part_of_it(app):
    for place in (app, app / "config"):
        (place / NVFLARE_SIG_FILE).write_text("{}")
        (place / NVFLARE_SUBMITTER_CRT_FILE).write_bytes(b"a certificate")
    assert check_job(app, asked(app), authority()) is None


@every_kind
@pytest.mark.parametrize("name", [
    "more.json", "config/more.json", "config/.hidden", "custom/code.py", "custom/deep/er/code.py", "config/config_fed_client.conf", "meta.json",
    "config/config_fed_client.json.default"
])  # fmt: skip
def test_a_file_more_is_refused(app, name):
    (app / name).parent.mkdir(parents=True, exist_ok=True)
    (app / name).write_text("")
    said = refused(app)
    assert f"it holds {name}, which no plan asks for" in said


@every_kind
@pytest.mark.parametrize("name", FILES)
def test_a_file_less_is_refused(app, name):
    content = asked(app)
    (app / name).unlink()
    assert f"{name} is not what the plan stands for" in refused(app, content)


@every_kind
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [
    lambda text: text + b"\n", lambda text: text[:-1], lambda text: text.replace(b"2", b"3", 1), lambda text: b""], ids=["more", "cut", "a digit", "empty"
])  # fmt: skip
def test_a_changed_file_is_refused(app, name, change):
    content = asked(app)
    (app / name).write_bytes(change((app / name).read_bytes()))
    assert f"{name} is not what the plan stands for" in refused(app, content)


def test_another_class_or_argument_is_refused(app):
    path = app / "config" / "config_fed_client.json"
    config = json.loads(path.read_text())
    config["executors"][0]["executor"] = {"path": "subprocess.Popen", "args": {"args": ["sh"]}}
    path.write_text(json.dumps(config, indent=2) + "\n")
    assert "config/config_fed_client.json is not what" in refused(app)


@every_kind
@pytest.mark.parametrize("name", FILES)
def test_a_link_in_place_of_a_file_is_refused_even_to_the_same_content(app, tmp_path, name):
    content = asked(app)
    elsewhere = tmp_path / "elsewhere"
    (app / name).rename(elsewhere)
    (app / name).symlink_to(elsewhere)
    assert f"{name} is not what the plan stands for" in refused(app, content)


@every_kind
@pytest.mark.parametrize("name", ["custom", "config/more"])
def test_a_link_to_a_folder_is_refused(app, tmp_path, name):
    """NVFlare would look for code behind it."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "code.py").write_text("")
    (app / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert f"it holds {name}" in refused(app)


def test_a_link_to_nowhere_is_refused(app, tmp_path):
    (app / "custom").symlink_to(tmp_path / "nowhere")
    assert "it holds custom" in refused(app)


def test_a_folder_in_place_of_a_file_is_refused(app):
    content = asked(app)
    (app / FILES[1]).unlink()
    (app / FILES[1]).mkdir()
    assert f"{FILES[1]} is not what" in refused(app, content)


def test_the_job_of_another_plan_is_refused(jobs, tmp_path):
    """The encrypted plan with the job of the plain one: updates would travel in the clear."""
    app = shutil.copytree(jobs["plain"] / APP, tmp_path / "app")
    (app / "config" / ASKED).write_bytes(asked(jobs["encrypted"] / APP))
    assert "config_fed_client.json is not what" in refused(app)
    (app / "config" / ASKED).write_bytes(asked(jobs["cards"] / APP))
    refused(app)
    training = shutil.copytree(jobs["cards"] / APP, tmp_path / "cards")
    (training / "config" / ASKED).write_bytes(signed(PLANS["plain"]))
    refused(training)


def test_what_lies_there_must_be_what_was_looked_at(app, jobs):
    """The content is read once and handed on; another file may not stand there meanwhile."""
    assert "config/asked.json is not what" in refused(app, signed(PLANS["plain"], OTHER))


def test_a_plan_that_is_not_signed_is_refused_as_such(app):
    body = json.loads(asked(app))
    body["plan"]["title"] = "Another"
    with pytest.raises(RuleBroken) as error:
        check_job(app, json.dumps(body, indent=2).encode() + b"\n", authority())
    assert error.value.rule == "signature"
    with pytest.raises(RuleBroken) as error:
        check_job(app, asked(app), authority("theirs"))
    assert error.value.rule == "identity"


# --- the question for cards ---


@pytest.fixture(scope="module")
def content(jobs):
    return asked(jobs["cards"] / APP)


def said_at(content):
    return datetime.fromisoformat(json.loads(json.loads(content)["cards"])["time_utc"])


def posed(text, name=OBSERVER, role="member", signer=None, **changed):
    """A question with this text, signed."""
    certificate, key = person(name, role)
    signature = base64.b64encode(sign(text.encode(), person(signer, role)[1] if signer else key)).decode()
    return json.dumps({"cards": text, "certificate": certificate.decode(), "signature": signature} | changed).encode()


def text_at(moment):
    return json.dumps({"ask": CARDS, "time_utc": moment.isoformat(), "nonce": "0"})


def not_taken(content, rule, now=None, authorities=None):
    with pytest.raises(RuleBroken) as error:
        read_cards_question(content, authorities or authority(), now)
    assert error.value.rule == rule
    return str(error.value)


def test_a_question_is_told_from_a_plan(content):
    assert is_cards_question(content) and not is_cards_question(signed(PLANS["plain"]))
    for other in (b"", b"{}", b"[]", b"3", b"null", b"\xff", b"{"):
        assert not is_cards_question(other)


def test_who_asks_is_the_signer(content):
    found = read_cards_question(content, authority())
    assert (found.name, found.role) == (OBSERVER, "member")


def test_each_question_is_another(jobs, tmp_path, content):
    again = asked(write_cards_job(tmp_path, HOSPITALS, *question()) / APP)
    texts = [json.loads(json.loads(one)["cards"]) for one in (content, again)]
    assert texts[0]["nonce"] != texts[1]["nonce"] and {text["ask"] for text in texts} == {CARDS}


def test_a_question_holds_for_a_quarter_of_an_hour(content):
    """Whoever heard it cannot put it later; clocks may differ that much in both directions."""
    said, limit, second = said_at(content), timedelta(minutes=15), timedelta(seconds=1)
    for now in (said, said + limit, said - limit):
        assert read_cards_question(content, authority(), now).name == OBSERVER
    for now in (said + limit + second, said - limit - second, said + timedelta(hours=10)):
        told = not_taken(content, "signature", now)
        assert "ask anew" in told and f"{said:%Y-%m-%d %H:%M} UTC" in told


def test_the_time_of_a_question_cannot_be_put_forward(content):
    """The time is within what was signed."""
    body = json.loads(content)
    body["cards"] = text_at(datetime.now(UTC) + timedelta(minutes=1))
    assert "not what" in not_taken(json.dumps(body).encode(), "signature")


@pytest.mark.parametrize("moment", ["", "yesterday", "2026-13-01T00:00:00+00:00", datetime.now(UTC).replace(tzinfo=None).isoformat(), None, 5], ids=range(6))
def test_a_question_without_a_time_that_can_be_compared_is_refused(moment):
    assert "no question for cards" in not_taken(posed(json.dumps({"ask": CARDS, "time_utc": moment})), "signature")


def test_strangers_ended_certificates_and_forged_questions_are_refused(content):
    not_taken(content, "identity", authorities=authority("theirs"))
    not_taken(content, "identity", now=datetime.now(UTC) + timedelta(days=31))
    now = text_at(datetime.now(UTC))
    assert read_cards_question(posed(now), authority()).name == OBSERVER
    assert OBSERVER in not_taken(posed(now, signer="other@authority.org"), "signature")
    not_taken(posed(now, certificate="nobody"), "identity")


@pytest.mark.parametrize(
    "body", [
        '["cards"]', '"cards"', '{"cards": 3}', '{"cards": null, "certificate": "", "signature": ""}', '{"cards": "{}", "certificate": "", "signature": ""}',
        '{"cards": "[]", "certificate": "", "signature": ""}', '{"cards": "{", "certificate": "", "signature": ""}',
        '{"cards": "{}", "certificate": 3, "signature": ""}',
    ]
)  # fmt: skip
def test_what_only_looks_like_a_question_is_refused(body):
    assert is_cards_question(body.encode()) and "no question for cards" in not_taken(body.encode(), "signature")


def test_a_signed_plan_cannot_be_put_as_a_question():
    """Both are signed with the same key: what was signed as one must not be the other."""
    from fl_utils.deployment.nvflare.plan import canonical

    plan = PLANS["plain"]
    certificate, key = person(RESEARCHER, "lead")
    signature = base64.b64encode(sign(canonical(plan), key)).decode()
    body = {"cards": canonical(plan).decode(), "certificate": certificate.decode(), "signature": signature}
    assert "no question for cards" in not_taken(json.dumps(body).encode(), "signature")
    both = json.loads(signed(plan)) | {"cards": "{}"}
    assert is_cards_question(json.dumps(both).encode())
    not_taken(json.dumps(both).encode(), "signature")
