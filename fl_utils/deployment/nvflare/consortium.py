"""Sets a consortium up: NVFlare's start-up kits for server and hospitals, people with roles, who ends and who is revoked."""

import contextlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from nvflare.lighter.entity import Project
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.impl.he import HEBuilder
from nvflare.lighter.impl.signature import SignatureBuilder
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner
from nvflare.lighter.spec import Builder
from nvflare.lighter.utils import Identity, generate_cert, generate_keys, serialize_cert, serialize_pri_key

from fl_utils.deployment.nvflare.identity import person_of, read_revocations, write_revocations
from fl_utils.deployment.nvflare.settings import REVOKED, ROLES, ConsortiumError, RuleBroken, hospital_names, member_folder
from fl_utils.files import write_atomically

PROJECT = "consortium"
_NAME = re.compile(r"[a-zA-Z0-9_][\w.+'-]*@[a-zA-Z0-9][\w.-]*", re.ASCII)
_HERE = "fl_utils.deployment.nvflare"
#: What a job may be made of; NVFlare builds no other class for it.
ALLOWED = (
    f"{_HERE}.server_parts", f"{_HERE}.site_parts", f"{_HERE}.storage", "nvflare.app_opt.he",
)
_NOTHING = {right: "none" for right in (
    "submit_job", "clone_job", "manage_job", "download_job", "operate", "shell_commands", "byoc", "server-predeployed-flwr"
)}  # fmt: skip
#: Who may do what over NVFlare's line. Nobody may read files of a hospital or bring code along.
PERMISSIONS = {
    "project_admin": _NOTHING | {"view": "any", "manage_job": "any", "operate": "any"},
    "org_admin": _NOTHING | {"view": "any"},
    "lead": _NOTHING | {"view": "any", "submit_job": "any", "manage_job": "n:submitter", "download_job": "n:submitter"},
    "member": _NOTHING | {"view": "any"},
}


class _OwnFiles(Builder):
    """Puts the consortium's own settings into the kits, before they are signed."""

    def __init__(self, address: tuple[str, int]):
        self._host, self._port = address

    def build(self, project, ctx):
        server = project.get_server()
        for member in (server, *project.get_clients()):
            local = Path(ctx.get_local_dir(member))
            resources = json.loads((local / "resources.json.default").read_text())
            resources |= {"class_allow_list": list(ALLOWED), "allow_log_streaming": False} | (
                _server_resources(resources) if member is server else _hospital_resources(resources)
            )
            _write(local / "resources.json", resources)
            _write(local / "authorization.json", {"format_version": "1.0", "permissions": PERMISSIONS})
            if member is not server:
                _write(local / "privacy.json", {
                    "scopes": [{"name": "consortium", "properties": {}, "task_data_filters": [],
                                "task_result_filters": [{"path": f"{_HERE}.site_parts.OutputRule", "args": {}}]}],
                    "default_scope": "consortium",
                })
        started = Path(ctx.get_kit_dir(server)) / "fed_server.json"
        settings = json.loads(started.read_text())
        settings["servers"][0]["service"]["target"] = f"{self._host}:{self._port}"  # where to listen: loopback, if it is one
        _write(started, settings)


def _server_resources(default: dict) -> dict:
    # NVFlare would keep jobs below /tmp, where the servers of two consortia would meet.
    store = {"path": f"{_HERE}.storage.OwnStorage", "args": {}}
    components = [one for one in default["components"] if one["id"] != "log_receiver"]
    for one in components:
        if one["id"] == "job_manager":
            one["args"]["uri_root"] = "/jobs"
        if one["id"] == "job_store":
            one |= store
        if one["id"] == "process_launcher":
            one["path"] = f"{_HERE}.launch.ServerLauncher"
        if one["id"] == "job_scheduler":
            one["args"] |= {"max_jobs": 1, "min_schedule_interval": 0.5, "max_schedule_interval": 2.0}
    keeper = {"path": "nvflare.app_common.state_persistors.storage_state_persistor.StorageStatePersistor", "args": {"uri_root": "/", "storage": store}}
    return {"components": components, "snapshot_persistor": keeper, "app_validator": {"path": f"{_HERE}.gate.JobRule", "args": {}}}


def _hospital_resources(default: dict) -> dict:
    components = [one for one in default["components"] if one["id"] not in ("site_log_streamer",)]
    for one in components:
        if one["id"] == "process_launcher":
            one["path"] = f"{_HERE}.launch.ClientLauncher"
    return {"components": components, "app_validator": {"path": f"{_HERE}.site_parts.SubmissionRules", "args": {}}}


def new_consortium(
    folder: Path, *, hospitals: int = 4, address: str = "127.0.0.1:8002", host_names: Sequence[str] = (),
    people: Mapping[str, str] | None = None, days: int = 90,
) -> None:
    """Makes the folders of all members.

    Args:
      folder: must be new or empty; only its owner can enter it.
      hospitals: how many, named hospital_1, ...
      address: host:port of the server; it listens on loopback where this is loopback, else on all interfaces.
      host_names: further names by which members reach the server.
      people: name -> role (of `ROLES`); default one of each role, and a data owner a hospital.
      days: how long a person's certificate holds.
    Raises:
      ConsortiumError: the folder is in use, or a name, role or the address cannot be.
    """
    folder, (host, port) = Path(folder), _host_and_port(address)
    if folder.exists() and any(folder.iterdir()):
        raise ConsortiumError(f"{folder} is not empty. Name a new folder with --folder, or remove that one.")
    if not 1 <= hospitals <= 100:
        raise ConsortiumError(f"hospitals is {hospitals}; expected 1 to 100.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".new_") as work:
            root = _provision(Path(work), hospital_names(hospitals), (host, port), host_names)
            _place(root, folder)
        everybody = default_people(hospitals) if people is None else people
        for name, role in everybody.items():
            add_person(folder, name, role, days=days)
        write_revocations(folder / "authority" / REVOKED, [], 1, _authority_key(folder))
        distribute_revocations(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # nothing half-made
        raise


def default_people(hospitals: int) -> dict[str, str]:
    """One of each role, and a data owner a hospital: name -> role."""
    owners = {f"owner@{name.replace('_', '')}.org": "org_admin" for name in hospital_names(hospitals)}
    return {"admin@consortium.org": "project_admin", "researcher@university.org": "lead", "observer@authority.org": "member"} | owners


def add_person(folder: Path, name: str, role: str, *, days: float = 90) -> Path:
    """Makes a person's kit: key, certificate with name and role, and where the server is. Returns its folder.

    Raises:
      ConsortiumError: there is one of this name whose certificate was not revoked, or name or role cannot be.
    """
    folder = Path(folder)
    if role not in ROLES:
        raise ConsortiumError(f"The role is {role!r}; expected one of {', '.join(f'{key} ({word})' for key, word in ROLES.items())}.")
    if not _NAME.fullmatch(name) or len(name) > 64:  # it is a folder's name too
        raise ConsortiumError(f"The person's name is {name!r}; expected one like researcher@university.org.")
    kit = member_folder(folder, name)
    if kit.exists():
        known = person_in(kit, folder)
        if known is not None and known.serial not in read_revocations(folder / "authority" / REVOKED, authority_of(folder))[1]:
            raise ConsortiumError(f"{name} has a certificate until {known.expires:%Y-%m-%d}. Revoke it first: `fl-utils consortium revoke {name}`.")
        shutil.rmtree(kit)
    authority = x509.load_pem_x509_certificate(authority_of(folder))
    key, public = generate_keys()
    now = datetime.now(UTC)
    certificate = generate_cert(
        subject=Identity(name, name.split("@")[1], role), issuer=Identity(PROJECT),
        signing_pri_key=serialization.load_pem_private_key(_authority_key(folder), None), subject_pub_key=public,
        not_valid_before=now - timedelta(minutes=5), not_valid_after=min(now + timedelta(days=min(days, 3650)), authority.not_valid_after_utc),
    )
    for place in (kit.parent, kit, *(kit / part for part in ("startup", "local", "transfer"))):
        place.mkdir(mode=0o700, exist_ok=True)
    (kit / "startup" / "client.crt").write_bytes(serialize_cert(certificate))
    with os.fdopen(os.open(kit / "startup" / "client.key", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(serialize_pri_key(key))
    (kit / "startup" / "rootCA.pem").write_bytes(authority_of(folder))
    for place, file in (("startup", "fed_admin.json"), ("local", "resources.json")):
        settings = json.loads((folder / "authority" / file).read_text())
        settings["admin"] |= {"username": name} if file == "fed_admin.json" else {}
        _write(kit / place / file, settings)
    return kit


def person_in(kit: Path, folder: Path):
    """Whose kit this is; None where the certificate has ended or is none."""
    try:
        return person_of((Path(kit) / "startup" / "client.crt").read_bytes(), authority_of(folder))
    except (RuleBroken, OSError):
        return None


def revoke(folder: Path, name: str) -> None:
    """Ends a person's certificate now: the list is signed, numbered and given to the server and the hospitals here.

    Raises:
      ConsortiumError: there is no such person.
    """
    folder = Path(folder)
    path = member_folder(folder, name) / "startup" / "client.crt"
    if not _NAME.fullmatch(name) or not path.is_file():
        raise ConsortiumError(f"There is nobody called {name} in {folder}.")
    serial = f"{x509.load_pem_x509_certificate(path.read_bytes()).serial_number:x}"
    own = folder / "authority" / REVOKED
    if not own.is_file():
        raise ConsortiumError(f"{own} is missing, and who was revoked before would come back. Put it there again: members have copies.")
    number, serials = read_revocations(own, authority_of(folder))
    write_revocations(own, sorted({*serials, serial}), number + 1, _authority_key(folder))
    distribute_revocations(folder)


def distribute_revocations(folder: Path) -> None:
    """Copies the list to the members that lie below this folder; others are sent the file."""
    content = (Path(folder) / "authority" / REVOKED).read_bytes()
    for member in sorted(Path(folder).glob("*/startup")):
        write_atomically(member.parent / REVOKED, lambda file: file.write(content))  # it may be read this moment


def authority_of(folder: Path) -> bytes:
    """The consortium's certificate, PEM bytes, from the project admin's folder."""
    try:
        return (Path(folder) / "authority" / "rootCA.pem").read_bytes()
    except OSError:
        raise ConsortiumError(f"There is no consortium in {folder}. Make one with `fl-utils consortium init`, or name its folder with --folder.") from None


def hospitals_in(folder: Path) -> tuple[str, ...]:
    """The hospitals whose folders lie here, in order."""
    found = [path.parent.name for path in Path(folder).glob("hospital_*/startup")]
    return tuple(sorted(found, key=lambda name: int(name.split("_")[1])))


def _authority_key(folder: Path) -> bytes:
    return (Path(folder) / "authority" / "rootCA.key").read_bytes()


def _provision(work: Path, hospitals: Sequence[str], address: tuple[str, int], host_names: Sequence[str]) -> Path:
    host, port = address
    project = Project(PROJECT, "", props={"api_version": 3})
    names = [*host_names] if host_names else []
    project.set_server("server", PROJECT, {"fed_learn_port": port, "admin_port": port, "default_host": host, "host_names": ["server", *names]})
    for name in hospitals:
        project.add_client(name, name, {})
    # A person of no use, for the file that says where the server is; real ones are made by `add_person`.
    project.add_admin("nobody@nowhere.org", PROJECT, {"role": "member"})
    builders = [
        WorkspaceBuilder(), StaticFileBuilder(scheme="grpc", config_folder="config", require_signed_jobs=True), CertBuilder(root_valid_days=3650),
        HEBuilder(), _OwnFiles(address), SignatureBuilder(),
    ]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        ctx = Provisioner(str(work), builders).provision(project)
    if ctx.get("build_error") or not (work / PROJECT / "prod_00").is_dir():
        raise ConsortiumError(f"NVFlare did not make the kits: {said.getvalue().strip().splitlines()[-1]}")
    return work / PROJECT


def _place(root: Path, folder: Path) -> None:
    made, authority = root / "prod_00", folder / "authority"
    authority.mkdir(mode=0o700)
    # NVFlare's state holds every private key; only the authority's is needed again.
    state = json.loads((root / "state" / "cert.json").read_text())
    (authority / "rootCA.pem").write_text(state["root_cert"])
    with os.fdopen(os.open(authority / "rootCA.key", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(state["root_pri_key"])
    nobody = made / "nobody@nowhere.org"
    shutil.copyfile(nobody / "startup" / "fed_admin.json", authority / "fed_admin.json")
    shutil.copyfile(nobody / "local" / "resources.json.default", authority / "resources.json")
    for kit in made.iterdir():
        if kit != nobody:
            kit.rename(folder / kit.name)
            (folder / kit.name).chmod(0o700)
            for secret in (folder / kit.name / "startup").glob("*.tenseal"):
                secret.chmod(0o600)  # a hospital's holds the key of the encrypted sums


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[\w.-]+", host) or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ConsortiumError(f"address is {address!r}; expected host:port, e.g. 127.0.0.1:8002; NVFlare's server takes no IPv6 address.")
    return host, int(port)


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
