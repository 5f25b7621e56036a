"""Who may enter the server: NVFlare's login, with the list of revoked certificates looked at before every command.

NVFlare has no such list; a certificate would hold until it ends. Its server asks a login module about each command, and
that is where this one stands. The list is read anew each time: a person who is revoked is out at once.
"""

import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from nvflare.apis.app_validation import AppValidator
from nvflare.fuel.hci.conn import Connection
from nvflare.fuel.hci.proto import MetaKey, MetaStatusValue, ProtoKey, ReplyKeyword
from nvflare.fuel.hci.server.authz import AuthzFilter
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.hci.server.login import LoginModule
from nvflare.lighter.utils import load_crt_chain_bytes
from nvflare.private.fed.server import admin

from fl_utils.deployment.nvflare.audit import AuditLog
from fl_utils.deployment.nvflare.identity import person_of, read_revocations
from fl_utils.deployment.nvflare.jobs import SERVER_CONFIG, server_configs
from fl_utils.deployment.nvflare.settings import AUDIT, REVOKED, ROLES, RuleBroken

#: Commands that a program sends by itself, too many for a log.
_QUIET = ("_check_session", "check_status", "get_job_meta", "list_jobs", "_commands")


class Gate(LoginModule):
    """NVFlare's login module that knows of revoked certificates, and logs who came and what was asked."""

    folder: Path

    def __init__(self, session_mgr):
        super().__init__(session_mgr)
        self._authority = (self.folder / "startup" / "rootCA.pem").read_bytes()
        self._log = AuditLog(self.folder / AUDIT)
        self._serials: dict[str, str] = {}  # of a session's token
        self._lock = threading.Lock()

    def handle_cert_login(self, conn: Connection, args: list[str]) -> None:
        try:
            chain = load_crt_chain_bytes(conn.get_prop(ConnProps.CMD_HEADERS)["cert"])
            person = person_of(_pem(chain[0]), self._authority)
            self._refuse_revoked(person.serial, person.name)
        except RuleBroken as error:
            self._log.write("refused", rule=error.rule, reason=str(error), command="login")
            conn.append_string(f"REJECT: AUTH_{error.rule.upper()}: {error}")
            return
        except Exception as error:
            conn.append_string(f"REJECT: AUTH_IDENTITY: the certificate cannot be read ({type(error).__name__})")
            return
        super().handle_cert_login(conn, args)
        token = next((item[ProtoKey.DATA] for item in conn.buffer.data if item[ProtoKey.TYPE] == ProtoKey.TOKEN), None)
        if token is None:  # a certificate is no secret; its key is
            self._log.write("refused", rule="identity", reason=f"who came with the certificate of {person.name} did not prove it", command="login")
            return
        with self._lock:
            self._serials[token] = person.serial
        self._log.write("signed in", person=person.name, role=person.role)

    def pre_command(self, conn: Connection, args: list[str]) -> bool:
        if not super().pre_command(conn, args):
            return False
        name = conn.get_prop(ConnProps.USER_NAME)
        if not name:  # the login itself
            return True
        try:
            with self._lock:
                serial = self._serials.get(conn.get_token())
            if serial is None:  # signed in before the server started anew: whose certificate it was is not known any more
                conn.append_error(ReplyKeyword.SESSION_INACTIVE)
                return False
            self._refuse_revoked(serial, name)
        except RuleBroken as error:
            self._log.write("refused", rule=error.rule, reason=str(error), person=name, command=args[0])
            conn.append_error(str(error))
            return False
        if args[0] not in _QUIET:
            self._log.write("command", person=name, role=conn.get_prop(ConnProps.USER_ROLE), command=args[0])
        return True

    def _refuse_revoked(self, serial: str, name: str) -> None:
        if serial in read_revocations(self.folder / REVOKED, self._authority)[1]:
            raise RuleBroken("revoked", f"the certificate of {name} has been revoked.")


class Roles(AuthzFilter):
    """NVFlare's look at what a role may do, which logs its refusals."""

    def pre_command(self, conn: Connection, args: list[str]) -> bool:
        allowed = super().pre_command(conn, args)
        if not allowed and conn.buffer.meta.get(MetaKey.STATUS) == MetaStatusValue.NOT_AUTHORIZED:
            name, role = conn.get_prop(ConnProps.USER_NAME), conn.get_prop(ConnProps.USER_ROLE)
            AuditLog(Gate.folder / AUDIT).write(
                "refused", rule="role", reason=f"{name} is {ROLES.get(role, role)}, who may not do this.", person=name, role=role, command=args[0]
            )
        return allowed


class JobRule(AppValidator):
    """Lets the server run the rounds of a plan, or the question for cards, and no other workflow; hospitals look for themselves."""

    def validate(self, app_folder: str) -> tuple[str, dict]:
        """See `nvflare.apis.app_validation.AppValidator`: ("", {}) lets it in, a text refuses it."""
        own = Path(app_folder) / "config" / SERVER_CONFIG
        found = sorted(Path(app_folder).rglob(Path(SERVER_CONFIG).stem + ".*"))
        if found == [own] and own.read_bytes() in server_configs():
            return "", {}
        error = RuleBroken("job", f"{SERVER_CONFIG} is none that a plan stands for. Submit the plan with `fl-utils consortium train`.")
        AuditLog(Gate.folder / AUDIT).write("refused", rule=error.rule, reason=str(error), command="submit_job")
        return str(error), {}


def install(folder: Path) -> None:
    """NVFlare's server of this process lets people in by this gate."""
    Gate.folder = Path(folder)
    admin.LoginModule, admin.AuthzFilter = Gate, Roles


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
