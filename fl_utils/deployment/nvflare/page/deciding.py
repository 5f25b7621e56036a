"""Forms: each changes something, and the store's log tells who did it. Who may send them at all, `sessions` has checked."""

from collections.abc import Callable

import flask

from fl_utils.deployment.nvflare.page import reading, sessions
from fl_utils.deployment.nvflare.page.owner import owner
from fl_utils.deployment.nvflare.settings import ConsortiumError

forms = flask.Blueprint("deciding", __name__)
_LONGEST = 1000
_MAX_DAYS = 365


@forms.post("/sign-in")
def sign_in():
    form = flask.request.form
    name, store = form.get("name", "").strip()[:200], owner().store
    wanted = sessions.within(form.get("next", ""))
    account = store.sign_in(name, form.get("password", ""))
    if account is None:
        why = "Name and password do not fit, or the account has ended. After five wrong tries it is locked for a minute."
        return flask.render_template("sign_in.html", why=why, next=wanted, name=name), 401
    if account.role not in sessions.ROLES_HERE:
        reason = "The role has no page here."
        store.log.write("page refused", by=account.name, role=account.role, path=flask.request.path, reason=reason)
        return flask.render_template("sign_in.html", why=f"A {account.role_word} has no page here.", next=wanted, name=name), 403
    response = flask.redirect(wanted, 303)
    sessions.begin(response, account)
    return response


@forms.post("/sign-out")
def sign_out():
    owner().store.log.write("signed out", name=_me())
    response = flask.redirect(flask.url_for("reading.sign_in_page"), 303)
    sessions.end(response)
    return response


@forms.post("/requests/<hash>/<path:person>")
def decide(hash: str, person: str):
    form, asked = flask.request.form, reading.requested(hash, person)
    decision, reason = form.get("decision", ""), _typed("reason")
    error = _first(
        (decision not in ("approve", "deny"), "It is neither an approval nor a denial."),
        (form.get("seen") != reading.seen_of(asked), f"Meanwhile {asked.decided_by} has decided on it; look at it again."),
        (decision == "deny" and not reason, "Give a reason: the researcher is told it."),
        (len(reason) > _LONGEST, f"The text has {len(reason)} characters; {_LONGEST} are kept."),
    ) or _unconfirmed()
    if not error:
        try:
            owner().store.decide(hash, decision == "approve", reason, _me(), person)
            done = "approved" if decision == "approve" else "denied"
            return _done(flask.url_for("reading.request_page", hash=hash, person=person, done=done))
        except (ConsortiumError, ValueError) as refused:
            error = str(refused)
    return reading.show_request(asked, error=error, decision=decision, reason=reason, status=400)


@forms.post("/datasets/access")
def access():
    form, store = flask.request.form, owner().store
    dataset, role, action, allow = (form.get(name, "") for name in ("dataset", "role", "action", "allow"))
    error = _first(
        (allow not in ("yes", "no"), "It says neither to allow nor to take away."),
        (allow == "yes" and action == "train" and role != "lead", "Only researchers train."),
        (store.dataset(dataset) is None, "There is no such data set."),
    )
    change = store.grant if allow == "yes" else store.deny_access
    return _changed(reading.datasets_page, "access", error, lambda: change(dataset, role, action, _me()))


@forms.post("/datasets/withdraw")
def withdraw():
    name = flask.request.form.get("dataset", "")
    return _changed(reading.datasets_page, "withdrawn", _unconfirmed(), lambda: owner().store.withdraw(name, _me()))


@forms.post("/accounts/add")
def add_account():
    form = flask.request.form
    role, days, password = form.get("role", ""), form.get("days", 0, type=int), form.get("password", "")
    error = _first(
        (role not in sessions.ROLES_HERE, "This role has no page here."),
        (not 1 <= days <= _MAX_DAYS, f"Give a number of days from 1 to {_MAX_DAYS}."),
    )
    return _changed(reading.accounts_page, "added", error, lambda: owner().store.add_account(_typed("name"), password, role, days, by=_me()))


@forms.post("/accounts/remove")
def remove_account():
    name = flask.request.form.get("name", "")
    error = _first((name == _me(), "You cannot remove yourself; another data owner can.")) or _unconfirmed()
    return _changed(reading.accounts_page, "removed", error, lambda: owner().store.remove_account(name, by=_me()))


@forms.post("/people/revoke")
def revoke():
    name, reason = _typed("name"), _typed("reason")
    error = _first(
        (name == _me(), "You cannot revoke yourself; another data owner can."),
        (len(name) > 200 or len(reason) > _LONGEST, f"Name or reason is too long; {_LONGEST} characters of a reason are kept."),
    ) or _unconfirmed()
    return _changed(reading.accounts_page, "revoked", error, lambda: owner().store.revoke(name, reason, _me()))


@forms.post("/people/restore")
def restore():
    name = flask.request.form.get("name", "")
    return _changed(reading.accounts_page, "restored", _unconfirmed(), lambda: owner().store.restore(name, _me()))


def _changed(page: Callable, done: str, error: str, change: Callable[[], object]):
    """Makes a change, if there is no error yet, and leads to its page; else the page with the error."""
    if not error:
        try:
            change()
            return _done(flask.url_for(f"reading.{page.__name__}", done=done))
        except (ConsortiumError, ValueError) as refused:
            error = str(refused)
    return page(error, 400)


def _done(address: str):
    return flask.redirect(address, 303)


def _first(*problems: tuple[bool, str]) -> str:
    return next((text for wrong, text in problems if wrong), "")


def _typed(name: str) -> str:
    return " ".join(flask.request.form.get(name, "").split())


def _unconfirmed() -> str:
    return "" if flask.request.form.get("confirmed") == "yes" else "Tick the box above the button to confirm."


def _me() -> str:
    return flask.g.account.name
