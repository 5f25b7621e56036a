"""The hospital that a page is about."""

import dataclasses
import json
from pathlib import Path

import flask

from fl_utils.deployment.nvflare.identity import read_revocations
from fl_utils.deployment.nvflare.settings import REVOKED, ConsortiumError, RuleBroken
from fl_utils.deployment.nvflare.store import Store


@dataclasses.dataclass(frozen=True)
class Owner:
    """A hospital's folder, as its owner sees it.

    Attributes:
      folder: NVFlare's workspace of the hospital.
      hospital: its name.
      authority: the consortium's certificate, PEM bytes.
      store: what the owner decided.
    """

    folder: Path
    hospital: str
    authority: bytes
    store: Store

    def revoked_serials(self) -> frozenset[str]:
        """Of the consortium's list; RuleBroken, "revoked", where it cannot be trusted."""
        number, serials = read_revocations(self.folder / REVOKED, self.authority)
        newest = self.store.newest_revocations(number)
        if number < newest:
            raise RuleBroken(
                "revoked", f"{REVOKED} is list {number}, and list {newest} was seen here before; get the newest from the project admin."
            )
        return serials


def hospital_of(folder: Path) -> str:
    """The name of the hospital whose folder this is.

    Raises:
      ConsortiumError: it is no hospital's.
    """
    try:
        return json.loads((Path(folder) / "startup" / "fed_client.json").read_text())["client"]["fqsn"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ConsortiumError(f"{folder} is no hospital's folder ({why}). Name the one that holds the hospital's startup/.") from None


def open_owner(folder: Path) -> Owner:
    """Opens a hospital's folder.

    Raises:
      ConsortiumError: it is no hospital's, or its store cannot be opened.
    """
    folder = Path(folder).resolve()
    hospital = hospital_of(folder)
    return Owner(folder, hospital, (folder / "startup" / "rootCA.pem").read_bytes(), Store(folder))


def owner() -> Owner:
    """The one that the present app is about."""
    return flask.current_app.extensions["owner"]
