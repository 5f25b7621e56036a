"""A person's line to the consortium: sees who is there, asks for cards, hands in plans, fetches what came of them."""

import contextlib
import dataclasses
import io
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nvflare.fuel.flare_api.api_spec import AuthenticationError, AuthorizationError, InternalError, NoConnection
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from fl_utils.deployment.nvflare.identity import person_of
from fl_utils.deployment.nvflare.jobs import write_cards_job, write_training_job
from fl_utils.deployment.nvflare.plan import TrainingPlan, read_signed
from fl_utils.deployment.nvflare.settings import RULES, ConsortiumError, RuleBroken

_ENDED = ("FINISHED", "FAILED", "ABANDONED", "ABORTED")
_RULE = re.compile(r"Rule '(\w+)': ", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came of something that was handed in.

    Attributes:
      job: NVFlare's id; "" where no run began.
      status: NVFlare's word for how it ended.
      hospitals: name -> "accepted", or the words in which the hospital refused; "server" too, where that did.
      folder: with what came of it (`server_parts.OUTCOME`); None where nothing came.
    """

    job: str
    status: str
    hospitals: dict[str, str]
    folder: Path | None = None

    @property
    def finished(self) -> bool:
        return self.status == "FINISHED:COMPLETED"

    def rule_of(self, hospital: str) -> str | None:
        """By which rule a hospital refused; None where it did not."""
        found = _RULE.search(self.hospitals.get(hospital, ""))
        return found.group(1) if found else None

    def outcome(self, name: str) -> dict | list:
        """A JSON file of the outcome: "outcome", "events", or "cards"."""
        return json.loads((self.folder / f"{name}.json").read_text())


class Line:
    """An authenticated line, from `__enter__` to `__exit__`.

    Args:
      kit: folder of the person: startup/, local/, transfer/.
      wait_s: how long to try.
    Raises:
      RuleBroken: "identity", the certificate has ended; or the server refuses this person.
      ConsortiumError: the server cannot be reached, or does not take the certificate.
    """

    def __init__(self, kit: Path, *, wait_s: float = 15.0):
        self.kit, self._wait_s = Path(kit).resolve(), wait_s
        try:
            settings = json.loads((self.kit / "startup" / "fed_admin.json").read_text())["admin"]
            self.name, self._server = settings["username"], f"{settings['host']}:{settings['port']}"
            self._key, self._certificate = ((self.kit / "startup" / f"client.{end}").read_bytes() for end in ("key", "crt"))
            self.authority = (self.kit / "startup" / "rootCA.pem").read_bytes()
        except (OSError, ValueError, KeyError) as error:
            raise ConsortiumError(f"{kit} is no person's folder ({error}). It is below people/ in the consortium's.") from None
        person_of(self._certificate, self.authority)
        self._session: Session | None = None

    def __enter__(self):
        logging.getLogger("nvflare").setLevel(logging.CRITICAL)
        with _in(self.kit), self._told(), contextlib.redirect_stdout(io.StringIO()):
            self._session = new_secure_session(self.name, str(self.kit), timeout=self._wait_s, auto_login_max_tries=2)
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            self._session.close()

    def hospitals(self) -> list[str]:
        """Those whose site is connected."""
        with self._told():
            return sorted(one.name for one in self._session.get_connected_client_list())

    def wait_for(self, number: int, *, timeout_s: float = 60.0) -> list[str]:
        """Waits until so many hospitals are connected.

        Raises:
          ConsortiumError: they did not come in time.
        """
        end = time.monotonic() + timeout_s
        while len(found := self.hospitals()) < number:
            if time.monotonic() > end:
                raise ConsortiumError(f"{len(found)} of {number} hospitals are connected after {timeout_s:g} s: {', '.join(found) or 'none'}.")
            time.sleep(0.3)
        return found

    def cards(self) -> dict[str, list[dict]]:
        """The cards of the data sets that this person may see: hospital -> cards. A run without training, some seconds.

        Raises:
          RuleBroken: no hospital answers this person; the rule of the first.
        """
        with tempfile.TemporaryDirectory(prefix="fl_utils_cards_") as work:
            job = write_cards_job(Path(work), self.hospitals(), self._key, self._certificate)
            answer = self._run(job, Path(work) / "came", None)
            if answer.folder is None:
                raise next(iter(_rules_broken(answer)), ConsortiumError(f"No cards came: {answer.status}."))
            return answer.outcome("cards")["cards"]

    def hand_in(self, signed: bytes, into: Path, *, show: Callable[[str], None] | None = None) -> Answer:
        """Hands a signed plan in: a hospital that has not decided on it keeps it as a request; if enough let it in, it is trained.

        Args:
          signed: the file that `plan.sign_plan` gave.
          into: new folder for what comes of it.
          show: is handed NVFlare's status whenever it changes.
        Raises:
          RuleBroken: "role" or "revoked", of the server; "signature" or "identity", of the plan.
        """
        plan: TrainingPlan = read_signed(signed, self.authority).plan
        with tempfile.TemporaryDirectory(prefix="fl_utils_plan_") as work:
            return self._run(write_training_job(Path(work), signed, plan), Path(into), show)

    def abort(self, job: str) -> None:
        """Ends a run of this person."""
        with self._told():
            self._session.abort_job(job)

    def submit_folder(self, job: Path, into: Path) -> Answer:
        """Hands any NVFlare job in; hospitals refuse what no plan stands for. For those who try the rules."""
        return self._run(Path(job), Path(into), None)

    def _run(self, job: Path, into: Path, show: Callable[[str], None] | None) -> Answer:
        with self._told(), contextlib.redirect_stdout(io.StringIO()):
            number = self._session.submit_job(str(job))
        before = None
        while True:
            with self._told():
                meta = self._session.get_job_meta(number)
            status = meta.get("status", "")
            if status != before and show is not None:
                show(status)
            before = status
            if status.startswith(_ENDED):
                break
            time.sleep(0.4)
        said = dict(_said(one) for one in meta.get("job_deploy_detail", []))
        hospitals = {
            name: "accepted" if text == "OK" else text.removeprefix("NVFLARE_ERROR: ") for name, text in said.items()
            if name.startswith("hospital_") or (name == "server" and text != "OK")
        }
        return Answer(number, status, hospitals, self._fetched(number, into))

    def _fetched(self, number: str, into: Path) -> Path | None:
        with tempfile.TemporaryDirectory(prefix="fl_utils_fetched_") as work:
            try:
                with self._told(), contextlib.redirect_stdout(io.StringIO()):
                    self._session.download_job_result(number, work)
            except (ConsortiumError, RuntimeError):
                return None
            found = next((path for path in Path(work).rglob("outcome") if path.is_dir()), None)
            if found is None:
                return None
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(found, into, dirs_exist_ok=True)
        return into

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """NVFlare's errors, in this package's words."""
        try:
            yield
        except AuthorizationError:
            raise RuleBroken("role", f"{self.name} may not do this with the role in the certificate; the server refused.") from None
        except AuthenticationError as error:
            rule = next((rule for rule in RULES if f"AUTH_{rule.upper()}" in f"{error} {getattr(error, 'auth_code', '')}" or f"Rule '{rule}'" in str(error)), None)
            if rule is None:
                raise ConsortiumError(f"The server at {self._server} does not take the certificate of {self.name}: {error}") from None
            raise RuleBroken(rule, f"the server refused {self.name}: {_plain(str(error))}") from None
        except NoConnection as error:
            raise ConsortiumError(
                f"The server at {self._server} cannot be reached, or is of another consortium ({error}). Start it with `fl-utils consortium up`, "
                "or use the folder that this consortium's project admin made for you."
            ) from None
        except (InternalError, RuntimeError) as error:
            found = _RULE.search(str(error))
            if found and not isinstance(error, RuleBroken):
                raise RuleBroken(found.group(1), _plain(str(error))) from None
            raise


def _said(detail: str) -> tuple[str, str]:
    name, _, text = detail.partition(": ")
    return name, text


def _rules_broken(answer: Answer) -> list[RuleBroken]:
    return [RuleBroken(rule, _plain(text)) for name, text in answer.hospitals.items() if (rule := answer.rule_of(name))]


def _plain(text: str) -> str:
    """A refusal without the rule's name, and without what NVFlare put before it."""
    return _RULE.split(text)[-1]


@contextlib.contextmanager
def _in(folder: Path) -> Iterator[None]:
    """NVFlare makes its transfer folder where the process stands."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
