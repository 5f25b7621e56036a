"""The owner's page as a Flask app: which answers bear which headers, and what an error looks like."""

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import flask
from flask_jwt_extended.exceptions import CSRFError
from werkzeug.exceptions import HTTPException, SecurityError

from fl_utils.deployment.nvflare.page import deciding, reading, sessions
from fl_utils.deployment.nvflare.page.owner import open_owner, owner
from fl_utils.deployment.nvflare.plan import visible
from fl_utils.deployment.nvflare.settings import ROLES, ConsortiumError

#: Host names under which browsers on this machine ask for the page. Any other is another site's, which was made to lead here.
LOOPBACK = ("127.0.0.1", "localhost")
_HEADERS = {
    "Content-Security-Policy":
        "default-src 'self'; script-src 'none'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",  # with none at all, browsers hide from a page where its own forms come from
    "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
}
_LARGEST_FORM = 64 * 1024
_TITLES = {
    400: "This cannot be read", 403: "Not allowed", 404: "There is no such page", 405: "There is no such page",
    409: "This cannot be done now", 413: "This is too long", 500: "The page failed", 503: "Not now",
}


def make_app(
    folder: Path, *, secret: bytes | None = None, session_minutes: float = 15, hosts: Sequence[str] = LOOPBACK,
    secure: bool = False,
) -> flask.Flask:
    """The page of a hospital.

    Args:
      folder: the hospital's.
      secret: key of the sessions' tokens, at least 32 bytes; default a new one, kept in memory only.
      session_minutes: how long a session lasts after the last page that was opened.
      hosts: names under which the page may be asked for.
      secure: whether browsers may send the session's cookie through TLS only.
    Raises:
      ConsortiumError: the folder is no hospital's, or its store cannot be opened.
      ValueError: the secret is short, or the time is not above 0.
    """
    app = flask.Flask(__name__)
    app.jinja_options = {"finalize": lambda value: visible(value) if type(value) is str else value}  # Markup is ours
    here = app.extensions["owner"] = open_owner(folder)
    app.config.update(
        TRUSTED_HOSTS=list(hosts), MAX_CONTENT_LENGTH=_LARGEST_FORM, MAX_FORM_MEMORY_SIZE=_LARGEST_FORM, PROVIDE_AUTOMATIC_OPTIONS=False,
    )
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters["when"] = _when
    app.context_processor(lambda: _everywhere(session_minutes))
    sessions.protect(app, here, secret=secret, session_minutes=session_minutes, secure=secure)
    app.register_blueprint(reading.pages)
    app.register_blueprint(deciding.forms)
    app.register_error_handler(SecurityError, lambda error: flask.Response("There is no page of this name.\n", 400, mimetype="text/plain"))
    app.register_error_handler(CSRFError, lambda error: _refused(403, "The form is not of your present session. Nothing was done."))
    app.register_error_handler(ConsortiumError, _not_now)
    app.register_error_handler(HTTPException, lambda error: _refused(error.code, error.description))
    app.register_error_handler(Exception, _failed)
    app.after_request(_with_headers)
    return app


def _with_headers(response: flask.Response) -> flask.Response:
    response.headers.update(_HEADERS)
    return response


def _refused(code: int, text: str):
    return flask.render_template("refused.html", title=_TITLES.get(code, f"Error {code}"), text=text), code


def _not_now(error: ConsortiumError):
    if flask.g.get("account"):
        return _refused(409, str(error))
    flask.current_app.logger.error("%s", error)
    return _refused(503, "The page cannot answer now; what it printed says why.")


def _failed(error: Exception):
    flask.current_app.logger.exception("The page failed")
    return _refused(500, f"A defect of the page ({type(error).__name__}); what it printed says more. Nothing was decided by it.")


def _everywhere(session_minutes: float) -> dict:
    """What each template can name."""
    account, claims = flask.g.get("account"), flask.g.get("claims")
    shown = {"hospital": owner().hospital, "role_words": ROLES, "account": None, "may_decide": False}
    if account and claims:
        decides = account.role == sessions.OWNER
        shown |= {
            "account": account, "may_decide": decides, "csrf_value": claims["csrf"], "session_minutes": f"{session_minutes:g}",
            "session_ends_s": math.ceil(session_minutes * 60) + 1, "shown_path": sessions.page_path(),
            "done": reading.DONE.get(flask.request.args.get("done")), "num_waiting": len(owner().store.requests("waiting")),
            "pages": [page for page in reading.PAGES if decides or f"reading.{page[0]}" not in sessions.OWNERS_TO_READ],
        }
    return shown


def _when(moment: datetime | str, seconds: bool = False) -> str:
    """A time as it is shown, UTC."""
    if not moment:
        return ""
    moment = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return f"{moment:%Y-%m-%d %H:%M:%S}" if seconds else f"{moment:%Y-%m-%d %H:%M}"
