"""Who is signed in: a short-lived JWT (HS256) in a cookie that scripts cannot read and other sites cannot send.

The key is made anew each time the page is started and is never on disk: there is nothing to steal, and a restart signs
everybody out. The token says only who signed in; what the person may do is read from the store at each request, so that a
removed account, a new password or a changed role counts at once. Each form repeats a value of the token (`csrf_token`).
"""

import hashlib
import secrets
import time
from datetime import timedelta
from urllib.parse import urlsplit

import flask
from flask_jwt_extended import (
    JWTManager, create_access_token, get_current_user, get_jwt, set_access_cookies, unset_access_cookies, verify_jwt_in_request,
)
from flask_jwt_extended.exceptions import JWTExtendedException
from jwt.exceptions import PyJWTError

from fl_utils.deployment.nvflare.accounts import Account
from fl_utils.deployment.nvflare.page.owner import Owner, owner

#: Roles that can sign in; only the first decides. A researcher asks, and has no business here.
ROLES_HERE = ("org_admin", "member", "project_admin")
OWNER = ROLES_HERE[0]
#: Then a person signs in again, however busy the session was.
_LONGEST_S = 8 * 3600
_WITHOUT_SESSION = ("reading.sign_in_page", "deciding.sign_in", "static")
#: What changes nothing but the session; whatever else is sent, or is in the second, is the owner's alone.
_ANYBODYS, OWNERS_TO_READ = ("deciding.sign_out",), ("reading.accounts_page",)
#: Session -> until when its tokens would hold.
_signed_out: dict[str, float] = {}


def protect(app: flask.Flask, here: Owner, *, secret: bytes | None, session_minutes: float, secure: bool) -> None:
    """Puts the guard before every page of an app.

    Args:
      app: nothing of it is reached without a session, but `_WITHOUT_SESSION`.
      here: the hospital.
      secret: key of the tokens; default a new one.
      session_minutes: a session ends so long after the last page that was opened.
      secure: whether browsers may send the cookie through TLS only.
    Raises:
      ValueError: the secret is short, or the time is not above 0.
    """
    if secret is not None and len(secret) < 32:
        raise ValueError(f"The secret has {len(secret)} bytes; HS256 needs at least 32 (RFC 7518, 3.2).")
    if not 0 < session_minutes <= _LONGEST_S / 60:
        raise ValueError(f"session_minutes is {session_minutes}; expected more than 0, at most {_LONGEST_S // 60}.")
    # Cookies know no ports: pages of several hospitals on one machine must not take each other's.
    mine = hashlib.sha256(str(here.folder).encode()).hexdigest()[:12]
    app.config.update(
        JWT_SECRET_KEY=secret or secrets.token_bytes(32), JWT_ALGORITHM="HS256", JWT_DECODE_ALGORITHMS=["HS256"],
        JWT_ENCODE_AUDIENCE=mine, JWT_DECODE_AUDIENCE=mine, JWT_ACCESS_TOKEN_EXPIRES=timedelta(minutes=session_minutes),
        JWT_TOKEN_LOCATION=["cookies"], JWT_ACCESS_COOKIE_NAME=f"owner_{mine}", JWT_SESSION_COOKIE=True, JWT_COOKIE_SECURE=secure,
        JWT_COOKIE_SAMESITE="Strict", JWT_COOKIE_CSRF_PROTECT=True, JWT_CSRF_CHECK_FORM=True, JWT_CSRF_IN_COOKIES=False,
        SESSION_MINUTES=session_minutes,
    )
    jwt = JWTManager(app)
    jwt.token_verification_loader(lambda header, claims: {"exp", "session", "since", "stamp", "csrf"} <= claims.keys())
    jwt.token_in_blocklist_loader(lambda header, claims: claims.get("session") in _signed_out)
    jwt.user_lookup_loader(lambda header, claims: _account_of(here, claims))
    jwt.unauthorized_loader(lambda text: ended(""))
    jwt.invalid_token_loader(lambda text: ended("This session cannot be used."))
    jwt.token_verification_failed_loader(lambda header, claims: ended("This session cannot be used."))
    jwt.expired_token_loader(lambda header, claims: ended("Your session has ended."))
    jwt.revoked_token_loader(lambda header, claims: ended("You have signed out."))
    jwt.user_lookup_error_loader(lambda header, claims: ended("This account was changed, or it has ended."))
    app.before_request(_guard)
    app.after_request(_renewed)


def begin(response: flask.Response, account: Account, claims: dict | None = None) -> None:
    """Gives the browser a token: of a new session, or further time for one."""
    now = time.time()
    since = claims["since"] if claims else now
    lasts = min(flask.current_app.config["SESSION_MINUTES"] * 60, since + _LONGEST_S - now)
    if lasts <= 1:
        return
    session = claims["session"] if claims else secrets.token_hex(16)
    said = {"since": since, "session": session, "stamp": owner().store.password_stamp(account.name)}
    if claims:
        said["csrf"] = claims["csrf"]  # a form that is open in another tab stays good
    set_access_cookies(response, create_access_token(account.name, expires_delta=timedelta(seconds=lasts), additional_claims=said))


def end(response: flask.Response) -> None:
    """Ends the session of this request: none of its tokens is good any more, not even a copy."""
    now = time.time()
    for session in [session for session, until in list(_signed_out.items()) if until < now]:
        _signed_out.pop(session, None)
    _signed_out[flask.g.claims["session"]] = now + flask.current_app.config["SESSION_MINUTES"] * 60 + 60
    flask.g.claims = None
    unset_access_cookies(response)


def ended(why: str, status: int = 401):
    """The page to sign in, in place of what was asked for."""
    request = flask.request
    if request.method == "POST":
        why = f"{why or 'Nobody is signed in.'} Nothing was done."
    response = flask.make_response(flask.render_template("sign_in.html", why=why, next=page_path()), status)
    unset_access_cookies(response)
    return response


def is_signed_in() -> bool:
    """Whether the request comes with a good session, on a page that asks for none."""
    try:
        verify_jwt_in_request()
        return True
    except (JWTExtendedException, PyJWTError):
        return False


def page_path() -> str:
    """The page that is shown, or from which a form came."""
    request = flask.request
    return within(request.path if request.method == "GET" else urlsplit(request.referrer or "").path)


def within(path: str) -> str:
    """A path of this page; the first one where it is no path, or would lead elsewhere."""
    good = path.startswith("/") and path.isprintable() and "\\" not in path and not path.startswith(("//", "/sign-"))
    return path if good else "/"


def refuse_and_log(reason: str) -> None:
    """Ends the request, and tells the log who tried what."""
    account = flask.g.account
    owner().store.log.write("page refused", by=account.name, role=account.role, path=flask.request.path, reason=reason)
    flask.abort(403, reason)


def _guard() -> None:
    request = flask.request
    flask.g.account = flask.g.claims = None
    if request.routing_exception is not None:
        return  # there is no such page; Flask says so next
    # Tells where a form was sent from, also the one to sign in, which has no session to protect it.
    origin = request.headers.get("Origin")
    elsewhere = origin and urlsplit(origin).netloc != request.host or request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
    if request.method == "POST" and elsewhere:
        flask.abort(403, "This form was sent from another site.")
    if request.endpoint in _WITHOUT_SESSION:
        return
    verify_jwt_in_request()  # signature, time, CSRF value, not signed out, and `_account_of`
    flask.g.account, flask.g.claims = get_current_user(), get_jwt()
    owners = request.method not in ("GET", "HEAD") and request.endpoint not in _ANYBODYS or request.endpoint in OWNERS_TO_READ
    if owners and flask.g.account.role != OWNER:
        refuse_and_log("Only the data owner may do this.")


def _renewed(response: flask.Response) -> flask.Response:
    if flask.g.get("claims"):
        begin(response, flask.g.account, flask.g.claims)
    return response


def _account_of(here: Owner, claims: dict) -> Account | None:
    """The account as it is now; None if it is gone, over, has a new password or another's role, or its person is revoked."""
    account = here.store.account(claims["sub"])
    if account is None or account.expired or account.role not in ROLES_HERE or here.store.is_revoked(account.name):
        return None
    return account if secrets.compare_digest(claims["stamp"], here.store.password_stamp(account.name)) else None
