"""The folders of a consortium: who is given which key, what a member allows, who is added, revoked and renewed."""

import json
import logging
import os
import re
import stat
import types
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest
import tenseal
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fl_utils.deployment.nvflare import consortium
from fl_utils.deployment.nvflare.consortium import (
    add_person, authority_of, default_people, distribute_revocations, hospitals_in, new_consortium, person_in, revoke,
)
from fl_utils.deployment.nvflare.identity import is_signed, person_of, read_revocations, sign
from fl_utils.deployment.nvflare.line import Line
from fl_utils.deployment.nvflare.settings import REVOKED, ROLES, ConsortiumError, RuleBroken, member_folder

RESEARCHER, ADMIN, OBSERVER, OWNER = "researcher@university.org", "admin@consortium.org", "observer@authority.org", "owner@hospital1.org"
HOSPITALS = ("hospital_1", "hospital_2")
MEMBERS = ("server", *HOSPITALS)
DAY = timedelta(days=1)


def made(folder, **changed):
    """A consortium, made where new files can be read by everybody unless somebody takes care."""
    before = os.umask(0)
    try:
        new_consortium(folder, **{"hospitals": 2} | changed)
    finally:
        os.umask(before)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One that no test changes."""
    return made(tmp_path_factory.mktemp("place") / "consortium", host_names=["federation.example.org"])


@pytest.fixture(scope="module")
def changing(tmp_path_factory):
    """One in which people come and go; each test has its own."""
    return made(tmp_path_factory.mktemp("changing") / "consortium", hospitals=1, people={ADMIN: "project_admin"})


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def files(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}


def certificate(folder, name):
    return x509.load_pem_x509_certificate((member_folder(folder, name) / "startup" / "client.crt").read_bytes())


def serial(folder, name):
    return f"{certificate(folder, name).serial_number:x}"


def listed(folder, member="authority"):
    return read_revocations(folder / member / REVOKED, authority_of(folder))


def told(*texts):
    """All of these stand in the message, in this order."""
    return "(?s)" + ".*".join(map(re.escape, texts))


# --- keys and modes ---


def test_who_there_is(place):
    people = default_people(2)
    assert people == {ADMIN: "project_admin", RESEARCHER: "lead", OBSERVER: "member", OWNER: "org_admin", "owner@hospital2.org": "org_admin"}
    assert sorted(path.name for path in place.iterdir()) == sorted([*MEMBERS, "authority", "people"])
    assert sorted(path.name for path in (place / "people").iterdir()) == sorted(people) and hospitals_in(place) == HOSPITALS
    for name, role in people.items():
        found = person_in(member_folder(place, name), place)
        assert (found.name, found.role) == (name, role)


def test_each_folder_is_its_owners_alone(place):
    assert mode(place) == 0o700
    for folder in (*(place / name for name in (*MEMBERS, "authority", "people")), *(place / "people").iterdir()):
        assert mode(folder) == 0o700, folder


def secrets(folder):
    """Path -> content of all that is secret by its form: private keys in PEM, contexts of encryption that hold the key."""
    found = {}
    for path in files(folder):
        content = path.read_bytes()
        if b"PRIVATE KEY" in content or (path.suffix == ".tenseal" and tenseal.context_from(content).is_private()):
            found[str(path.relative_to(folder))] = content
    return found


def test_each_member_has_its_own_key_and_no_other(place):
    contexts = {f"{name}/startup/client_context.tenseal" for name in HOSPITALS}
    keys = {"authority/rootCA.key", "server/startup/server.key", *(f"{name}/startup/client.key" for name in HOSPITALS)}
    keys |= {f"people/{name}/startup/client.key" for name in default_people(2)}
    found = secrets(place)
    assert set(found) == keys | contexts
    assert all(mode(place / name) == 0o600 for name in found)
    publics = {}
    for name in keys:
        (pem,) = re.findall(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", found[name], re.DOTALL)
        own = place / name.replace(".key", ".pem" if "rootCA" in name else ".crt")
        key = serialization.load_pem_private_key(pem, None).public_key()
        assert x509.load_pem_x509_certificate(own.read_bytes()).public_key() == key
        publics[name] = key.public_numbers().n
    assert len(set(publics.values())) == len(keys)  # no two have the same


def test_hospitals_share_the_key_of_encrypted_sums_and_the_server_has_none(place):
    contexts = [(place / name / "startup" / "client_context.tenseal").read_bytes() for name in HOSPITALS]
    assert contexts[0] == contexts[1] and tenseal.context_from(contexts[0]).is_private()
    assert tenseal.context_from((place / "server" / "startup" / "server_context.tenseal").read_bytes()).is_public()
    assert not [path for path in files(place) if path.suffix == ".tenseal" and path.parts[-3] not in MEMBERS]


def test_the_authority_keeps_no_more_than_it_needs(place):
    assert sorted(path.name for path in (place / "authority").iterdir()) == [
        "fed_admin.json", "resources.json", REVOKED, "rootCA.key", "rootCA.pem"
    ]  # fmt: skip
    root = x509.load_pem_x509_certificate(authority_of(place))
    root.verify_directly_issued_by(root)
    assert root.not_valid_after_utc - datetime.now(UTC) > 3000 * DAY
    assert is_signed(b"text", sign(b"text", (place / "authority" / "rootCA.key").read_bytes()), authority_of(place))


def test_every_certificate_is_the_authoritys_and_everybody_knows_it(place):
    root = x509.load_pem_x509_certificate(authority_of(place))
    found = [path for path in files(place) if path.suffix == ".crt"]
    assert len(found) == 3 + len(default_people(2))
    for path in found:
        x509.load_pem_x509_certificate(path.read_bytes()).verify_directly_issued_by(root)
        assert (path.parent / "rootCA.pem").read_bytes() == authority_of(place)


def test_members_certificates_are_no_persons(place):
    """The key of the server or of a hospital cannot sign a plan."""
    for path in (place / "server" / "startup" / "server.crt", *(place / name / "startup" / "client.crt" for name in HOSPITALS)):
        with pytest.raises(RuleBroken, match="names the role") as error:
            person_of(path.read_bytes(), authority_of(place))
        assert error.value.rule == "identity"


def test_the_server_is_known_by_all_its_names(place):
    server = x509.load_pem_x509_certificate((place / "server" / "startup" / "server.crt").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"server", "federation.example.org", "127.0.0.1"} <= {str(name.value) for name in names}


def test_a_persons_kit_is_complete(place):
    kit = member_folder(place, RESEARCHER)
    assert [str(path.relative_to(kit)) for path in files(kit)] == [
        "local/resources.json", "startup/client.crt", "startup/client.key", "startup/fed_admin.json", "startup/rootCA.pem"
    ]  # fmt: skip
    admin = json.loads((kit / "startup" / "fed_admin.json").read_text())["admin"]
    assert (admin["username"], admin["host"], admin["port"]) == (RESEARCHER, "127.0.0.1", 8002) and (kit / "transfer").is_dir()
    line = Line(kit)
    assert line.name == RESEARCHER and line.authority == authority_of(place)
    assert b"nobody@nowhere.org" not in b"".join(contents(place / "people").values())


# --- what members allow ---


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_builds_the_suites_own_classes_and_encryption_only(place, member):
    resources = json.loads((place / member / "local" / "resources.json").read_text())
    allowed = resources["class_allow_list"]
    assert resources["class_list_enforcement_mode"] == "enforce" and resources["allow_log_streaming"] is False
    ours = {f"fl_utils.deployment.nvflare.{name}" for name in ("site_parts", "server_parts", "storage")}
    assert ours <= set(allowed) and all(name in ours or name.startswith("nvflare.app_") for name in allowed)
    assert not [component for component in resources["components"] if "log" in component["id"]]
    assert resources["app_validator"]["path"].startswith("fl_utils.deployment.nvflare.")


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_enforces_the_list_on_what_a_job_names(place, member):
    """As NVFlare reads it: the names that jobs use pass, and others do not, however near they are."""
    from nvflare.apis.fl_exception import UnsafeComponentError
    from nvflare.apis.workspace import Workspace
    from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer

    looks, workspace = ComponentPathAuthorizer(), Workspace(str(place / member), member)
    for name in ("fl_utils.deployment.nvflare.site_parts.PlanExecutor", "nvflare.app_opt.he.model_encryptor.HEModelEncryptor"):
        looks.authorize_component_config({"path": name, "args": {}}, workspace=workspace)
    for name in ("subprocess.Popen", "os.system", "fl_utils.deployment.nvflare.site_parts_.X", "fl_utils.children.X", "custom.code.X",
                 "nvflare.app_common.executors.launcher_executor.LauncherExecutor", "nvflare.app_opt.head.X"):  # fmt: skip
        with pytest.raises(UnsafeComponentError, match="not in allow_list"):
            looks.authorize_component_config({"path": name, "args": {}}, workspace=workspace)


@pytest.mark.parametrize("member", MEMBERS)
def test_what_roles_may_do(place, member):
    permissions = json.loads((place / member / "local" / "authorization.json").read_text())["permissions"]
    assert set(permissions) == set(ROLES)
    for role, rights in permissions.items():
        assert {rights[right] for right in ("byoc", "shell_commands", "clone_job", "server-predeployed-flwr")} == {"none"}
        assert rights["submit_job"] == ("any" if role == "lead" else "none") and rights["view"] == "any"
        assert rights["download_job"] == ("n:submitter" if role == "lead" else "none")  # one's own
        assert rights["manage_job"] == {"lead": "n:submitter", "project_admin": "any"}.get(role, "none")
        assert rights["operate"] == ("any" if role == "project_admin" else "none")


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_a_hospital_looks_at_what_comes_and_at_what_leaves(place, hospital):
    resources = json.loads((place / hospital / "local" / "resources.json").read_text())
    assert resources["app_validator"] == {"path": "fl_utils.deployment.nvflare.site_parts.SubmissionRules", "args": {}}
    privacy = json.loads((place / hospital / "local" / "privacy.json").read_text())
    (scope,) = privacy["scopes"]
    assert privacy["default_scope"] == scope["name"]
    assert [one["path"] for one in scope["task_result_filters"]] == ["fl_utils.deployment.nvflare.site_parts.OutputRule"]


def test_only_signed_jobs_over_proven_connections(place):
    for member, file in (("server", "fed_server.json"), *((name, "fed_client.json") for name in HOSPITALS)):
        settings = json.loads((place / member / "startup" / file).read_text())
        assert settings["require_signed_jobs"] is True
        assert (settings["servers"][0] if member == "server" else settings["client"])["connection_security"] == "mtls"


def test_the_server_keeps_jobs_in_its_own_folder(place):
    """Not below /tmp, where those of another consortium would lie."""
    text = (place / "server" / "local" / "resources.json").read_text()
    assert "/tmp" not in text and text.count("fl_utils.deployment.nvflare.storage.OwnStorage") == 2
    (manager,) = [one for one in json.loads(text)["components"] if one["id"] == "job_manager"]
    assert manager["args"]["uri_root"] == "/jobs"


class Deployed(Exception):
    pass


def listens_at(folder, monkeypatch):
    """The host at which NVFlare's server would listen, by its own reading of the kit; "0" is every interface."""
    from nvflare.private.fed.server import fed_server

    def cell(root_url, **_):
        raise Deployed(*root_url)

    monkeypatch.setattr(fed_server, "Cell", cell)
    settings = json.loads((folder / "server" / "startup" / "fed_server.json").read_text())["servers"][0]
    with pytest.raises(Deployed) as found:
        fed_server.BaseServer.deploy(types.SimpleNamespace(logger=logging.getLogger()), None, settings, secure_train=True)
    return {urlsplit(url).hostname for url in found.value.args}, {urlsplit(url).port for url in found.value.args}


@pytest.mark.parametrize(
    ("address", "host"), [("127.0.0.1:8102", "127.0.0.1"), ("localhost:8102", "127.0.0.1"), ("192.0.2.7:8102", "0"), ("federation.example.org:8102", "0")]
)
def test_the_server_listens_on_loopback_or_on_all_interfaces(tmp_path, monkeypatch, address, host):
    made(tmp_path / "one", hospitals=1, people={}, address=address)
    assert listens_at(tmp_path / "one", monkeypatch) == ({host}, {8102})
    client = json.loads((tmp_path / "one" / "hospital_1" / "startup" / "fed_client.json").read_text())
    assert client["servers"][0]["service"]["target"] == address  # where the hospitals look for it


# --- making one ---


@pytest.mark.parametrize("address", [
    "", "8002", ":8002", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:0", "127.0.0.1:65536", "[::1]:8002", "::1:8002", "a b:8002",
    "127.0.0.1:²", "http://x:8002"
])  # fmt: skip
def test_an_address_that_cannot_be_is_refused(tmp_path, address):
    with pytest.raises(ConsortiumError, match=told(repr(address), "host:port")):
        new_consortium(tmp_path / "one", address=address)
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("hospitals", [0, -1, 101])
def test_a_number_of_hospitals_that_cannot_be_is_refused(tmp_path, hospitals):
    with pytest.raises(ConsortiumError, match="expected 1 to 100"):
        new_consortium(tmp_path / "one", hospitals=hospitals)
    assert not (tmp_path / "one").exists()


def test_a_folder_in_use_is_left_as_it_is(tmp_path, changing):
    (tmp_path / "own.txt").write_text("mine")
    with pytest.raises(ConsortiumError, match="is not empty"):
        new_consortium(tmp_path, hospitals=1)
    assert (tmp_path / "own.txt").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    before = contents(changing)
    with pytest.raises(ConsortiumError, match="is not empty"):
        new_consortium(changing, hospitals=1)
    assert contents(changing) == before


def test_an_empty_folder_is_taken_and_closed(tmp_path):
    (tmp_path / "one").mkdir(mode=0o755)
    made(tmp_path / "one", hospitals=1, people={})
    assert mode(tmp_path / "one") == 0o700 and hospitals_in(tmp_path / "one") == ("hospital_1",)


@pytest.mark.parametrize("people", [{"nobody": "lead"}, {ADMIN: "project_admin", RESEARCHER: "king"}, {ADMIN: "project_admin", "../x@y": "lead"}])
def test_a_consortium_with_somebody_impossible_is_not_made_at_all(tmp_path, people):
    with pytest.raises(ConsortiumError, match="expected one"):
        new_consortium(tmp_path / "one", hospitals=1, people=people)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["_provision", "_place", "add_person", "write_revocations", "distribute_revocations"])
@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_what_fails_half_way_leaves_nothing(tmp_path, monkeypatch, where, error):
    """Keys above all; and the same command works afterwards."""
    real = getattr(consortium, where)

    def fails(*arguments, **named):
        real(*arguments, **named)
        raise error

    monkeypatch.setattr(consortium, where, fails)
    with pytest.raises(type(error)):
        new_consortium(tmp_path / "one", hospitals=1, people={ADMIN: "project_admin"})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    if where == "add_person":
        new_consortium(tmp_path / "one", hospitals=1, people={ADMIN: "project_admin"})
        assert person_in(member_folder(tmp_path / "one", ADMIN), tmp_path / "one").role == "project_admin"


def test_what_nvflare_says_is_told_where_it_fails(tmp_path, monkeypatch):
    from nvflare.lighter.impl.workspace import WorkspaceBuilder

    def fails(*_):
        raise RuntimeError("no room for it")

    monkeypatch.setattr(WorkspaceBuilder, "build", fails)
    with pytest.raises(ConsortiumError, match="NVFlare did not make the kits: .*no room for it"):
        new_consortium(tmp_path / "one", hospitals=1)
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_none_is_told(tmp_path):
    for act in (lambda: authority_of(tmp_path), lambda: add_person(tmp_path, RESEARCHER, "lead")):
        with pytest.raises(ConsortiumError, match=told("There is no consortium in", "fl-utils consortium init", "--folder")):
            act()
    assert list(tmp_path.iterdir()) == []


def test_hospitals_are_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 1, 9):
        (tmp_path / f"hospital_{number}" / "startup").mkdir(parents=True)
    (tmp_path / "hospital_3").mkdir()  # without a kit
    assert hospitals_in(tmp_path) == ("hospital_1", "hospital_2", "hospital_9", "hospital_10")


def test_a_moved_folder_is_the_same_consortium(tmp_path):
    old, new = tmp_path / "a place with a long name", tmp_path / "elsewhere" / "moved"
    made(old, hospitals=1)
    named = [str(path) for path in files(old) if str(old).encode() in path.read_bytes() or tmp_path.name.encode() in path.read_bytes()]
    assert named == []
    new.parent.mkdir()
    old.rename(new)
    assert hospitals_in(new) == ("hospital_1",) and Line(member_folder(new, RESEARCHER)).name == RESEARCHER
    revoke(new, RESEARCHER)
    assert listed(new, "hospital_1") == listed(new) == (2, {serial(new, RESEARCHER)})
    assert person_in(add_person(new, RESEARCHER, "lead"), new).name == RESEARCHER and not old.exists()


# --- people ---


@pytest.mark.parametrize("role", ROLES)
def test_a_person_is_added_with_a_role_and_an_end(changing, role):
    name = f"{role}@added.org"
    before = contents(changing)
    kit = add_person(changing, name, role, days=3)
    found = person_in(kit, changing)
    assert kit == changing / "people" / name and (found.name, found.role) == (name, role)
    assert abs(found.expires - datetime.now(UTC) - 3 * DAY) < timedelta(minutes=10) and mode(kit) == 0o700
    assert mode(kit / "startup" / "client.key") == 0o600 and f"people/{name}/startup/client.key" in secrets(changing)
    assert {name: content for name, content in contents(changing).items() if name in before} == before  # nobody else is touched


@pytest.mark.parametrize("role", ["", "researcher", "LEAD", "server", "client"])
def test_a_role_that_is_none_is_refused_and_all_are_named(changing, role):
    with pytest.raises(ConsortiumError, match=told(repr(role), "lead (researcher)", "member (observer)")):
        add_person(changing, "somebody@added.org", role)
    assert not member_folder(changing, "somebody@added.org").exists()


@pytest.mark.parametrize(
    "name", ["", "nobody", "@", "a@", "@b", "../x@y", "../../server@y", "..@y/..", "/etc/x@y", "a@b/c", "a\\b@c",
    "a b@c", ".a@b", "a@b\n", "a@b\0", "a@.b", "a@b@c", "a@..",
             "-x@y", "ä@b", "a" * 60 + "@b.org", "a@b;rm", "people/a@b"]
)  # fmt: skip
def test_a_name_that_cannot_be_a_folders_is_refused(changing, name):
    before = contents(changing.parent)
    with pytest.raises(ConsortiumError, match=told("expected one like researcher@university.org")):
        add_person(changing, name, "lead")
    assert contents(changing.parent) == before


@pytest.mark.parametrize("name", ["a@b", "o'brien@hospital-1.org", "first.last+tag@sub.example.org", "A_1@x"])
def test_usual_names_are_taken(changing, name):
    assert person_in(add_person(changing, name, "member"), changing).name == name


def test_no_certificate_outlives_the_authoritys(changing):
    kit = add_person(changing, "forever@added.org", "member", days=1e9)
    root = x509.load_pem_x509_certificate(authority_of(changing))
    assert person_in(kit, changing).expires <= root.not_valid_after_utc


def test_a_person_is_made_anew_only_after_a_revocation(changing):
    """Else a second key would be in the world for the same name."""
    name = "twice@added.org"
    add_person(changing, name, "lead")
    first, before = serial(changing, name), contents(changing)
    with pytest.raises(ConsortiumError, match=told(name, "has a certificate until", f"fl-utils consortium revoke {name}")):
        add_person(changing, name, "lead")
    assert contents(changing) == before
    revoke(changing, name)
    kit = add_person(changing, name, "member")
    assert person_in(kit, changing).role == "member" and serial(changing, name) != first
    assert first in listed(changing)[1] and serial(changing, name) not in listed(changing)[1]
    with pytest.raises(ConsortiumError, match="Revoke it first"):
        add_person(changing, name, "lead")


def test_a_person_whose_certificate_has_ended_is_made_anew(changing):
    name = "late@added.org"
    kit = add_person(changing, name, "lead", days=-0.002)  # until three minutes ago
    assert person_in(kit, changing) is None
    before = listed(changing)
    assert person_in(add_person(changing, name, "lead"), changing).name == name and listed(changing) == before


def test_a_kit_that_was_only_half_written_is_made_anew(changing):
    name = "half@added.org"
    kit = add_person(changing, name, "lead")
    (kit / "startup" / "client.crt").write_text("")
    assert person_in(add_person(changing, name, "lead"), changing).name == name


# --- revocation ---


def test_at_first_nobody_is_revoked_and_everybody_has_the_list(place):
    for member in ("authority", *MEMBERS):
        assert listed(place, member) == (1, frozenset())


def test_numbers_of_lists_grow_and_nobody_falls_out_of_them(changing):
    names = [f"revoked{number}@added.org" for number in range(3)]
    number, before = listed(changing)
    for name in names:
        add_person(changing, name, "lead")
    for count, name in enumerate(names, 1):
        revoke(changing, name)
        assert listed(changing) == (number + count, before | {serial(changing, one) for one in names[:count]})
        for member in ("server", "hospital_1"):
            assert (changing / member / REVOKED).read_bytes() == (changing / "authority" / REVOKED).read_bytes()
    revoke(changing, names[0])
    assert listed(changing) == (number + 4, before | {serial(changing, one) for one in names})
    assert len(json.loads((changing / "authority" / REVOKED).read_text())["serials"]) == len(listed(changing)[1])  # each once


def test_who_reads_the_list_this_moment_reads_a_whole_one(changing):
    add_person(changing, "read@added.org", "lead")
    path = changing / "hospital_1" / REVOKED
    before = path.read_bytes()
    with path.open("rb") as reader:
        head = reader.read(10)
        revoke(changing, "read@added.org")
        assert head + reader.read() == before != path.read_bytes()


@pytest.mark.parametrize("name", ["nobody@added.org", "hospital_1", "server", "../authority", "people/admin@consortium.org", ""])
def test_only_people_are_revoked(changing, name):
    """A hospital's certificate is in no list that its connection would be looked at for."""
    before = contents(changing)
    with pytest.raises(ConsortiumError, match="There is nobody called"):
        revoke(changing, name)
    assert contents(changing) == before


def test_without_the_last_list_nobody_is_revoked(changing):
    """A new list without those of before would let them in again."""
    add_person(changing, "lost@added.org", "lead")
    own = changing / "authority" / REVOKED
    content = own.read_bytes()
    own.unlink()
    with pytest.raises(ConsortiumError, match=told("is missing", "would come back")):
        revoke(changing, "lost@added.org")
    assert not own.exists() and (changing / "server" / REVOKED).read_bytes() == content
    own.write_bytes(content)
    revoke(changing, "lost@added.org")


def test_a_list_that_somebody_changed_is_not_signed_anew(changing):
    add_person(changing, "forged@added.org", "lead")
    own = changing / "authority" / REVOKED
    content = own.read_text()
    own.write_text(json.dumps(json.loads(content) | {"serials": []}))
    with pytest.raises(RuleBroken, match="not signed"):
        revoke(changing, "forged@added.org")
    own.write_text(content)


def test_members_that_lie_elsewhere_are_left_out(tmp_path):
    made(tmp_path / "one", hospitals=2)
    (tmp_path / "one" / "hospital_2").rename(tmp_path / "gone")
    revoke(tmp_path / "one", RESEARCHER)
    assert read_revocations(tmp_path / "gone" / REVOKED, authority_of(tmp_path / "one"))[0] == 1
    (tmp_path / "gone").rename(tmp_path / "one" / "hospital_2")
    distribute_revocations(tmp_path / "one")
    assert listed(tmp_path / "one", "hospital_2") == listed(tmp_path / "one") and not (tmp_path / "one" / "people" / REVOKED).exists()
