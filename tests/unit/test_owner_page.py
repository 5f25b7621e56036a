"""The data owner's page: who gets in, what a session is worth, who may change what, and what is shown."""

import html.parser
import re
import shutil
import sqlite3
import time
from datetime import timedelta

import jwt
import markupsafe
import pytest

from fl_utils.deployment.nvflare import accounts as accounts_module
from fl_utils.deployment.nvflare.audit import read_log
from fl_utils.deployment.nvflare.identity import write_revocations
from fl_utils.deployment.nvflare.page import make_app, sessions, summaries
from fl_utils.deployment.nvflare.page.serving import serve
from fl_utils.deployment.nvflare.plan import visible
from fl_utils.deployment.nvflare.settings import DATABASE, REVOKED, ConsortiumError
from fl_utils.deployment.nvflare.store import Store
from tests.unit import made_governance as made
from tests.unit.made_hospital import ACCOUNTS, ADMIN, HOSTILE, OBSERVER, OWNER, PASSWORD, RESEARCHER, ask, fill, make_folder, train

SECRET = b"a secret that only these tests know, and long enough"
READ = ("/", "/datasets", "/budget", "/runs", "/log")
#: Every form, as its page would send it; `asked` stands for the address of the request that waits.
FORMS = {
    "asked": {"decision": "approve", "reason": "", "confirmed": "yes", "seen": "waiting"},
    "/datasets/access": {"dataset": "phantom_brain", "role": "member", "action": "see", "allow": "yes"},
    "/datasets/withdraw": {"dataset": "phantom_brain", "confirmed": "yes"},
    "/accounts/add": {"name": "new@hospital1.org", "password": PASSWORD, "role": "member", "days": "30"},
    "/accounts/remove": {"name": ADMIN, "confirmed": "yes"},
    "/people/revoke": {"name": made.RESEARCHER, "reason": "No longer.", "confirmed": "yes"},
    "/people/restore": {"name": made.OTHER, "confirmed": "yes"},
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A hospital's folder after a working day."""
    folder = tmp_path_factory.mktemp("filled") / "hospital_1"
    fill(make_folder(folder))
    return folder


@pytest.fixture
def folder(filled, tmp_path):
    return shutil.copytree(filled, tmp_path / "hospital_1")


@pytest.fixture
def store(folder):
    return Store(folder)


@pytest.fixture
def app(folder):
    return make_app(folder, secret=SECRET)


@pytest.fixture
def waiting(store):
    return store.requests("waiting")[0]


def signed_in(app, name=OWNER):
    client = app.test_client()
    answer = client.post("/sign-in", data={"name": name, "password": PASSWORD, "next": "/"})
    assert answer.status_code == 303 and answer.location == "/"
    return client


def token_of(client):
    return cookie(client).value


def cookie(client):
    return client.get_cookie(client.application.config["JWT_ACCESS_COOKIE_NAME"])


def with_token(app, token):
    """A browser that brings this token along."""
    client = app.test_client()
    client.set_cookie(app.config["JWT_ACCESS_COOKIE_NAME"], token)
    return client


def csrf(client):
    """The value that forms of this session repeat, as it stands in a page."""
    return re.search(r'name="csrf_token" value="([^"]+)"', client.get("/").text)[1]


def address(asked):
    return f"/requests/{asked.hash}/{asked.person}"


def send(client, path, data, asked=None, **changed):
    return client.post(address(asked) if path == "asked" else path, data=data | {"csrf_token": csrf(client)} | changed)


def claims_of(app, client):
    return jwt.decode(token_of(client), SECRET, ["HS256"], audience=app.config["JWT_DECODE_AUDIENCE"])


def events(store, *names):
    return [entry for entry in read_log(store.log.path) if entry["event"] in names]


def state(store):
    """All that a form can change."""
    return (store.requests(), store.datasets(), store.grants(), store.accounts(), store.revoked())


class _Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def tags(text):
    """(tag, attributes) of a page, as a browser reads them."""
    parser = _Tags()
    parser.feed(text)
    return parser.found


# Without a session


def every_page(app):
    return [rule for rule in app.url_map.iter_rules() if "GET" in rule.methods and rule.endpoint not in ("static", "reading.sign_in_page")]


def filled_path(rule, asked):
    return rule.rule.replace("<hash>", asked.hash).replace("<path:person>", asked.person)


def test_without_a_session_there_is_only_the_page_to_sign_in(app, store, waiting):
    before = state(store)
    assert len(every_page(app)) == 7
    for rule in every_page(app):
        answer = app.test_client().get(filled_path(rule, waiting))
        assert answer.status_code == 401 and "<h1>Sign in</h1>" in answer.text, rule
        assert waiting.plan.title not in answer.text and "phantom_brain" not in answer.text
    for path, data in FORMS.items():
        answer = app.test_client().post(address(waiting) if path == "asked" else path, data=data)
        assert answer.status_code == 401 and "Nothing was done" in answer.text, path
    assert state(store) == before


def test_every_form_is_in_the_list_of_these_tests(app):
    posts = {rule.rule for rule in app.url_map.iter_rules() if "POST" in rule.methods}
    assert posts == {path.replace("asked", "/requests/<hash>/<path:person>") for path in FORMS} | {"/sign-in", "/sign-out"}


def test_the_owner_signs_in_and_reads_every_page(app, store, waiting):
    client = signed_in(app)
    for rule in every_page(app):
        assert client.get(filled_path(rule, waiting)).status_code == 200, rule
    assert events(store, "signed in")[-1]["name"] == OWNER


@pytest.mark.parametrize("name", [OBSERVER, ADMIN])
def test_others_read_but_see_no_form_and_no_accounts(app, waiting, name):
    client = signed_in(app, name)
    for path in (*READ, address(waiting)):
        answer = client.get(path)
        assert answer.status_code == 200
        forms = re.findall(r'<form[^>]*action="([^"]+)"', answer.text) if path != "/datasets" else re.findall(r"<button[^>]*>([^<]*)", answer.text)
        assert forms in (["/sign-out"], ["Sign out"]), path
        assert "/accounts" not in answer.text
    assert client.get("/accounts").status_code == 403


def test_a_researcher_has_no_page(app, store):
    client = app.test_client()
    answer = client.post("/sign-in", data={"name": RESEARCHER, "password": PASSWORD})
    assert answer.status_code == 403 and cookie(client) is None
    assert events(store, "page refused")[-1]["by"] == RESEARCHER
    assert client.get("/").status_code == 401


@pytest.mark.parametrize("data", [
    {"name": OWNER, "password": "wrong password"}, {"name": "nobody@nowhere.org", "password": PASSWORD}, {"name": OWNER}, {},
])  # fmt: skip
def test_a_wrong_name_or_password_opens_nothing(app, data):
    client = app.test_client()
    answer = client.post("/sign-in", data=data)
    assert answer.status_code == 401 and "do not fit" in answer.text and cookie(client) is None


def test_after_five_wrong_passwords_the_right_one_is_refused_too(app, store, monkeypatch):
    client = app.test_client()
    for _ in range(accounts_module.MAX_TRIES):
        assert client.post("/sign-in", data={"name": OWNER, "password": "guess"}).status_code == 401
    assert client.post("/sign-in", data={"name": OWNER, "password": PASSWORD}).status_code == 401
    assert cookie(client) is None and events(store, "sign-in refused")[-1]["reason"] == "locked"
    signed_in(app, OBSERVER)  # others are not locked out
    now = accounts_module.database.utc_now()
    monkeypatch.setattr(accounts_module.database, "utc_now", lambda: now + timedelta(seconds=accounts_module.LOCKED_S + 1))
    signed_in(app)


@pytest.mark.parametrize("wanted", ["//evil.org", "https://evil.org/", "/\\evil.org", "/\t/evil.org", "evil", "", "javascript:alert(1)", "/sign-in"])
def test_signing_in_leads_nowhere_else(app, wanted):
    answer = app.test_client().post("/sign-in", data={"name": OWNER, "password": PASSWORD, "next": wanted})
    assert answer.status_code == 303 and answer.location == "/"


def test_signing_in_leads_back_to_the_page_that_was_asked_for(app, waiting):
    client = app.test_client()
    wanted = re.search(r'name="next" value="([^"]+)"', client.get(address(waiting)).text)[1]
    assert client.post("/sign-in", data={"name": OWNER, "password": PASSWORD, "next": wanted}).location == address(waiting)


# What a session is worth


def test_the_token_is_short_lived_and_its_cookie_strict(app):
    client = app.test_client()
    before = time.time()
    said = client.post("/sign-in", data={"name": OWNER, "password": PASSWORD}).headers["Set-Cookie"]
    assert "HttpOnly" in said and "SameSite=Strict" in said and "Path=/" in said and "Secure" not in said and "Expires" not in said
    assert jwt.get_unverified_header(token_of(client))["alg"] == "HS256"
    claims = claims_of(app, client)
    assert claims["sub"] == OWNER and before + 890 <= claims["exp"] <= time.time() + 900
    assert "role" not in claims  # it is read anew at each request


def test_beyond_loopback_the_cookie_travels_by_tls_only(folder):
    client = make_app(folder, secure=True, hosts=("owner.hospital1.org",)).test_client()
    answer = client.post("/sign-in", data={"name": OWNER, "password": PASSWORD}, base_url="https://owner.hospital1.org")
    assert "Secure" in answer.headers["Set-Cookie"]


def forged(app, claims, kind):
    audience = app.config["JWT_DECODE_AUDIENCE"]
    now = int(time.time())
    if kind == "other key":
        return jwt.encode(claims, b"another key, which is long enough as well", "HS256")
    if kind == "alg none":
        return jwt.encode(claims, None, "none")
    if kind == "alg none with a signature":
        return jwt.encode(claims, None, "none") + jwt.encode(claims, SECRET, "HS256").rpartition(".")[2]
    if kind == "changed afterwards":
        head, _, seal = jwt.encode(claims, SECRET, "HS256").split(".")
        return f"{head}.{jwt.encode(claims | {'sub': OBSERVER}, SECRET, 'HS256').split('.')[1]}.{seal}"
    if kind == "other algorithm":
        return jwt.encode(claims, SECRET, "HS384")
    changed = {
        "expired": {"exp": now - 1}, "not yet": {"nbf": now + 60}, "other hospital": {"aud": audience[::-1]}, "refresh token": {"type": "refresh"},
        "nobody": {"sub": "nobody@nowhere.org"}, "no text": {"sub": 1},
    }
    if kind in changed:
        return jwt.encode(claims | changed[kind], SECRET, "HS256")
    missing = kind.removeprefix("without ")
    return jwt.encode({name: value for name, value in claims.items() if name != missing}, SECRET, "HS256")


@pytest.mark.parametrize("kind", [
    "other key", "alg none", "alg none with a signature", "changed afterwards", "other algorithm", "expired", "not yet", "other hospital",
    "refresh token", "nobody", "no text", "without exp", "without aud", "without sub", "without session", "without since", "without stamp", "without csrf",
])  # fmt: skip
def test_a_token_that_is_not_of_this_page_is_refused(app, store, waiting, kind):
    honest = signed_in(app)
    claims = claims_of(app, honest)
    assert with_token(app, jwt.encode(claims, SECRET, "HS256")).get("/").status_code == 200  # what follows is its forgery alone
    client, before = with_token(app, forged(app, claims, kind)), state(store)
    answer = client.get("/")
    assert answer.status_code == 401 and waiting.plan.title not in answer.text
    client = with_token(app, forged(app, claims, kind))
    answer = client.post(address(waiting), data=FORMS["asked"] | {"csrf_token": claims["csrf"]})
    assert answer.status_code == 401 and state(store) == before


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "e30.e30.", "\u00e9", "x" * 3000], ids=range(6))
def test_what_is_no_token_is_refused(app, text):
    assert with_token(app, text).get("/").status_code == 401


def test_an_expired_session_is_told_so(app):
    client = signed_in(app)
    expired = with_token(app, forged(app, claims_of(app, client), "expired"))
    assert "Your session has ended." in expired.get("/budget").text


def test_a_token_is_taken_from_the_cookie_only(app):
    token = token_of(signed_in(app))
    client = app.test_client()
    assert client.get("/", headers={"Authorization": f"Bearer {token}"}).status_code == 401
    assert client.get("/", query_string={"jwt": token}).status_code == 401


def test_a_restart_ends_all_sessions_and_a_session_is_of_one_hospital(folder, tmp_path):
    first = make_app(folder)
    token = token_of(signed_in(first))
    assert with_token(first, token).get("/").status_code == 200
    assert with_token(make_app(folder), token).get("/").status_code == 401
    other = make_app(shutil.copytree(folder, tmp_path / "hospital_2"), secret=SECRET)
    mine = make_app(folder, secret=SECRET)
    assert mine.config["JWT_ACCESS_COOKIE_NAME"] != other.config["JWT_ACCESS_COOKIE_NAME"]
    assert with_token(other, token_of(signed_in(mine))).get("/").status_code == 401


def test_each_page_gives_further_time_and_forms_in_other_tabs_stay_good(app, store, waiting):
    client = signed_in(app)
    claims = claims_of(app, client)
    old = with_token(app, jwt.encode(claims | {"exp": int(time.time()) + 60}, SECRET, "HS256"))
    form = csrf(old)
    later = claims_of(app, old)
    assert later["exp"] > time.time() + 800 and later["csrf"] == form == claims["csrf"] and later["session"] == claims["session"]
    assert old.post(address(waiting), data=FORMS["asked"] | {"csrf_token": form}).status_code == 303


def test_no_session_lasts_longer_than_a_working_day(app):
    claims = claims_of(app, signed_in(app))
    last = int(time.time()) + 60
    client = with_token(app, jwt.encode(claims | {"since": last - 8 * 3600, "exp": last}, SECRET, "HS256"))
    assert client.get("/").status_code == 200
    assert claims_of(app, client)["exp"] <= last


def test_signing_out_ends_the_session_and_every_copy_of_its_token(app, store):
    client = signed_in(app)
    copy, form = token_of(client), csrf(client)
    renewed = token_of(client)
    assert client.post("/sign-out", data={"csrf_token": form}).status_code == 303
    assert cookie(client) is None and events(store, "signed out")[-1]["name"] == OWNER
    for token in (copy, renewed):
        answer = with_token(app, token).get("/")
        assert answer.status_code == 401 and "signed out" in answer.text
    signed_in(app)


def test_a_form_of_another_session_of_the_same_person_is_refused(app, store, waiting):
    one, other, before = signed_in(app), signed_in(app), state(store)
    answer = one.post(address(waiting), data=FORMS["asked"] | {"csrf_token": csrf(other)})
    assert answer.status_code == 403 and state(store) == before


@pytest.mark.parametrize("token", [None, "", "wrong"])
def test_no_form_is_taken_without_the_sessions_csrf_value(app, store, waiting, token):
    client, before = signed_in(app), state(store)
    for path, data in {**FORMS, "/sign-out": {}}.items():
        given = data if token is None else data | {"csrf_token": token}
        assert client.post(address(waiting) if path == "asked" else path, data=given).status_code == 403, path
    assert state(store) == before
    assert client.get("/").status_code == 200  # nor was anybody signed out


@pytest.mark.parametrize("headers", [
    {"Origin": "http://evil.org"}, {"Origin": "null"}, {"Origin": "http://localhost:9999"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
])  # fmt: skip
def test_forms_from_other_sites_are_refused_even_to_sign_in(app, store, waiting, headers):
    client, before = signed_in(app), state(store)
    data = FORMS["asked"] | {"csrf_token": csrf(client)}
    assert client.post(address(waiting), data=data, headers=headers).status_code == 403
    stranger = app.test_client()
    assert stranger.post("/sign-in", data={"name": OWNER, "password": PASSWORD}, headers=headers).status_code == 403
    assert cookie(stranger) is None and state(store) == before
    assert client.post(address(waiting), data=data, headers={"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}).status_code == 303


# What counts is what the store says now


def sql(store, text, *values):
    with sqlite3.connect(store.folder / DATABASE) as db:
        db.execute(text, values)
    db.close()


def removed(store):
    store.remove_account(OWNER)


def made_anew(store):
    store.remove_account(OWNER)
    store.add_account(OWNER, PASSWORD, "org_admin", 30)


CHANGES = {
    "removed": removed, "made anew": made_anew, "new password": lambda store: store.set_password(OWNER, "another long password"),
    "over": lambda store: sql(store, "UPDATE accounts SET expires_utc = '2020-01-01T00:00:00Z' WHERE name = ?", OWNER),
    "now a researcher": lambda store: sql(store, "UPDATE accounts SET role = 'lead' WHERE name = ?", OWNER),
    "revoked": lambda store: store.revoke(OWNER, "Left.", "another owner"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_account_ends_its_sessions_at_once(app, store, waiting, change):
    client = signed_in(app)
    form = csrf(client)
    CHANGES[change](store)
    before = state(store)
    assert client.post(address(waiting), data=FORMS["asked"] | {"csrf_token": form}).status_code == 401
    assert client.get("/").status_code == 401 and state(store) == before


def test_an_owner_who_became_an_observer_reads_and_decides_no_more(app, store, waiting):
    client = signed_in(app)
    form = csrf(client)
    sql(store, "UPDATE accounts SET role = 'member' WHERE name = ?", OWNER)
    assert client.post(address(waiting), data=FORMS["asked"] | {"csrf_token": form}).status_code == 403
    assert client.get("/").status_code == 200 and client.get("/accounts").status_code == 403
    assert store.request(waiting.hash).state == "waiting"


@pytest.mark.parametrize("name", [OBSERVER, ADMIN])
@pytest.mark.parametrize("path", FORMS)
def test_who_only_reads_changes_nothing_with_a_form_made_by_hand(app, store, waiting, name, path):
    client, before = signed_in(app, name), state(store)
    answer = send(client, path, FORMS[path], waiting)
    assert answer.status_code == 403 and "Only the data owner" in answer.text
    assert state(store) == before
    told = events(store, "page refused")[-1]
    assert (told["by"], told["role"]) == (name, ACCOUNTS[name]) and told["path"] == (address(waiting) if path == "asked" else path)


# Deciding


def test_an_approval_is_the_owners_and_stands_in_the_log(app, store, waiting):
    answer = send(signed_in(app), "asked", FORMS["asked"], waiting, reason="  Fits the   agreement. ")
    assert answer.status_code == 303 and answer.location == address(waiting) + "?done=approved"
    decided = store.request(waiting.hash)
    assert (decided.state, decided.decided_by, decided.reason) == ("approved", OWNER, "Fits the agreement.")
    told = events(store, "plan approved")[-1]
    assert (told["plan"], told["by"]) == (waiting.hash, OWNER)
    assert "The plan is approved" in signed_in(app).get(answer.location).text


def test_a_denial_needs_a_reason(app, store, waiting):
    client = signed_in(app)
    for reason in ("", " \n "):
        answer = send(client, "asked", FORMS["asked"], waiting, decision="deny", reason=reason)
        assert answer.status_code == 400 and "Give a reason" in answer.text and store.request(waiting.hash).state == "waiting"
    assert send(client, "asked", FORMS["asked"], waiting, decision="deny", reason="Too many rounds.").status_code == 303
    assert (store.request(waiting.hash).state, store.request(waiting.hash).reason) == ("denied", "Too many rounds.")
    assert "Too many rounds." in client.get(address(waiting)).text


@pytest.mark.parametrize("changed, said", [
    ({"confirmed": ""}, "Tick the box"), ({"decision": "perhaps"}, "neither"), ({"seen": "denied 2026-01-01"}, "Meanwhile"), ({"reason": "x" * 1001}, "1001 characters"),
])  # fmt: skip
def test_a_decision_is_complete_or_is_none(app, store, waiting, changed, said):
    answer = send(signed_in(app), "asked", FORMS["asked"] | {"reason": "As typed."}, waiting, **changed)
    assert answer.status_code == 400 and said in answer.text and "Nothing was done" in answer.text
    assert store.request(waiting.hash).state == "waiting"
    if "reason" not in changed and changed.get("decision") != "perhaps":
        assert "As typed.</textarea>" in answer.text  # nothing has to be typed twice


def test_nobody_overrules_another_owner_unknowingly(app, store, waiting):
    client = signed_in(app)
    form = re.search(r'name="seen" value="([^"]+)"', client.get(address(waiting)).text)[1]
    store.decide(waiting.hash, False, "Too many rounds.", "another owner")
    answer = send(client, "asked", FORMS["asked"], waiting, seen=form)
    assert answer.status_code == 400 and "another owner has decided" in answer.text and store.request(waiting.hash).state == "denied"
    form = re.search(r'name="seen" value="([^"]+)"', answer.text)[1]
    assert send(client, "asked", FORMS["asked"], waiting, seen=form).status_code == 303
    assert store.request(waiting.hash).state == "approved"


def test_a_plan_of_two_people_is_decided_for_one(app, store, waiting):
    store.restore(made.OTHER, OWNER)
    other = ask(store, waiting.plan, made.OTHER)
    assert send(signed_in(app), "asked", FORMS["asked"], other).status_code == 303
    assert store.request(waiting.hash, made.OTHER).state == "approved" and store.request(waiting.hash, made.RESEARCHER).state == "waiting"


def test_a_plan_that_runs_can_be_denied_and_approved_again_when_it_has_ended(app, store, waiting):
    store.decide(waiting.hash, True, "", OWNER)
    train(store, waiting, "now", 1, state="")
    client = signed_in(app)
    text = client.get(address(waiting)).text
    assert "A run of this plan is under way" in text and "Approve this plan" not in text and "Deny this plan" in text
    assert send(client, "asked", FORMS["asked"], waiting, decision="deny", reason="Stop.", seen=seen(text)).status_code == 303
    text = client.get(address(waiting)).text
    assert "Approve this plan" not in text
    answer = send(client, "asked", FORMS["asked"], waiting, seen="denied " + store.request(waiting.hash).decided_utc)
    assert answer.status_code == 400 and "under way" in answer.text
    store.end_run("now", "stopped")
    assert send(client, "asked", FORMS["asked"], waiting, seen=seen(client.get(address(waiting)).text)).status_code == 303


def seen(text):
    return re.search(r'name="seen" value="([^"]+)"', text)[1]


@pytest.mark.parametrize("path", ["/requests/" + "0" * 64 + "/nobody@nowhere.org", "/requests/x/y", "/nowhere", "/requests"])
def test_what_is_not_there_is_not_found(app, path):
    assert signed_in(app).get(path).status_code == 404


# What is shown


def test_the_difference_is_marked_by_signs_and_not_by_colour_alone(app, store, waiting):
    text = signed_in(app).get(address(waiting)).text
    rows = re.findall(r'<tr class="(added|removed)"><td class="mark">(.*?)</td><td class="what">(.*?)</td><td>(.*?)</td></tr>', text)
    assert ("removed", "− removed", "Title", "Tumours in drawn brains") in rows and ("added", "+ added", "Title", waiting.plan.title) in rows
    assert {kind for kind, mark, _, _ in rows if mark == "+ added"} == {"added"}
    assert "4 lines added, 4 removed" in text and len(rows) == 8  # title, rounds, rate, and what epsilon comes to by the rounds
    for name, value in summaries.plan_lines(waiting.plan):
        assert f'<tr><th scope="row">{name}</th><td>{markupsafe.escape(value)}</td></tr>' in text


def test_the_plan_approved_last_and_the_first_plan_of_all_say_so(app, store, waiting):
    client = signed_in(app)
    first = store.requests("approved")[0]
    assert "This is the plan that was approved last" in client.get(address(first)).text
    store.decide(first.hash, False, "Over.", OWNER)
    assert "every line below is new" in client.get(address(waiting)).text


def test_rules_are_shown_as_they_would_decide_if_the_plan_were_approved(app, store, waiting):
    here = app.extensions["owner"]
    states, broken = summaries.rules_now(here, waiting)
    assert broken is None and {one["rule"]: one["state"] for one in states} == {
        **dict.fromkeys(("signature", "identity", "revoked", "role", "dataset", "runs", "patients", "outputs", "budget"), "met"),
        "job": "looked at when it is submitted", "plan": "waits for the owner",
    }
    assert store.request(waiting.hash).state == "waiting"  # it was only looked at
    assert "Apart from the approval, the plan meets every rule now." in signed_in(app).get(address(waiting)).text


def refused_output(store, folder):
    return store.requests("waiting")[1]


def revoked_here(store, folder):
    store.revoke(made.RESEARCHER, "Left.", OWNER)
    return store.requests("waiting")[0]


def revoked_by_the_consortium(store, folder):
    asked = store.requests("waiting")[0]
    serial = made.signed_by(asked.plan).person.serial
    key = made.authority_key().private_bytes(
        made.serialization.Encoding.PEM, made.serialization.PrivateFormat.TraditionalOpenSSL, made.serialization.NoEncryption()
    )
    write_revocations(folder / REVOKED, [serial], 2, key)
    return asked


def no_access(store, folder):
    store.deny_access("phantom_brain", "lead", "train", OWNER)
    return store.requests("waiting")[0]


def overspent(store, folder):
    return ask(store, made.plan_of("Very long", private=True, total_rounds=200))


def without_noise(store, folder):
    return ask(store, made.plan_of("Without noise"))


def of_an_observer(store, folder):
    return ask(store, made.plan_of("By an observer", private=True), made.OBSERVER, "member")


@pytest.mark.parametrize("rule, make", [
    ("outputs", refused_output), ("revoked", revoked_here), ("revoked", revoked_by_the_consortium), ("dataset", no_access), ("budget", overspent),
    ("budget", without_noise), ("role", of_an_observer),
])  # fmt: skip
def test_the_first_rule_that_refuses_is_named_and_those_behind_it_are_open(app, store, folder, rule, make):
    asked = make(store, folder)
    states, broken = summaries.rules_now(app.extensions["owner"], asked)
    assert broken.rule == rule
    places = [one["rule"] for one in states]
    assert [one["state"] for one in states if one["rule"] not in ("plan", "job")] == [
        "met" if places.index(one["rule"]) < places.index(rule) else "not met" if one["rule"] == rule else "not looked at"
        for one in states if one["rule"] not in ("plan", "job")
    ]
    text = signed_in(app).get(address(asked)).text
    assert f"Now rule &#34;{rule}&#34; would refuse it" in text or f'Now rule "{rule}" would refuse it' in text
    assert f'nothing runs while rule "{rule}" is not met' in text


def test_the_cost_of_a_plan_is_what_the_store_would_charge(app, store, waiting):
    plan = waiting.plan
    spent = store.spent("phantom_brain")
    after = store.would_spend("phantom_brain", plan.noise.noise_multiplier, plan.round_terms(plan.config.total_rounds))
    cost, words = summaries.plan_cost(store, plan)
    assert words == "" and [part.kind for part in cost.parts] == ["spent", "asked", "left"]
    assert [part.epsilon for part in cost.parts] == pytest.approx([spent, after - spent, 4 - after])
    assert 0 < spent < after < 4 and sum(part.width for part in cost.parts) == pytest.approx(100)
    text = signed_in(app).get(address(waiting)).text
    assert f"Spent is epsilon {spent:.3g} of 4. A run of this plan would bring it to {after:.3g}, and leave {4 - after:.3g}." in text
    assert text.count("<rect ") == 3


def test_a_plan_beyond_the_budget_shows_by_how_much(store):
    cost, _ = summaries.plan_cost(store, made.plan_of("Very long", private=True, total_rounds=200))
    kinds = {part.kind: part for part in cost.parts}
    assert kinds["left"].epsilon == 0 and kinds["over"].epsilon > 0 and cost.limit < 100
    assert kinds["over"].start == pytest.approx(cost.limit) and "too much" in cost.words


def test_without_a_budget_there_is_a_sentence_in_place_of_the_bar(store):
    assert "No data set other is published" in summaries.plan_cost(store, made.plan_of(dataset="other"))[1]
    made.publish(store, None, card=made.CARD | {"name": "open"})
    assert "set no budget for open" in summaries.plan_cost(store, made.plan_of(dataset="open"))[1]
    cost, _ = summaries.plan_cost(store, made.plan_of())
    assert [part.kind for part in cost.parts] == ["spent", "left"] and "no differential privacy" in cost.words


def test_texts_from_outside_are_text(app, store, folder):
    hostile = next(one for one in store.requests() if one.plan.title == HOSTILE)
    store.decide(hostile.hash, False, HOSTILE, OWNER)
    store.log.write("told", text=HOSTILE)
    made.publish(store, 4.0, card=made.CARD | {"title": HOSTILE, "source": HOSTILE, "class_names": [HOSTILE], "counts": {"train": {HOSTILE: 1}}})
    store.revoke(HOSTILE[:60], HOSTILE, OWNER)
    store.add_account(HOSTILE[:60], PASSWORD, "member", 3)
    client = signed_in(app)
    for path in (*READ, "/accounts", address(hostile)):
        text = client.get(path).text
        assert not any(tag == "script" or "onmouseover" in attributes for tag, attributes in tags(text)), path
        assert text.count("&lt;script&gt;") or path in ("/budget", "/runs")
    answer = client.post("/sign-in", data={"name": HOSTILE, "password": "x", "next": HOSTILE})
    assert "<script" not in answer.text and "&lt;script&gt;" in answer.text


def test_signs_that_cannot_be_seen_or_turn_the_text_are_shown(app, store):
    title = "ten \u202eruof\u202c rounds \u200b\x1b[31m"
    assert visible(title) == "ten \\u202eruof\\u202c rounds \\u200b\\x1b[31m"
    asked = ask(store, made.plan_of(title, private=True))
    client = signed_in(app)
    for path in ("/", address(asked), "/log"):
        text = client.get(path).text
        assert "\\u202eruof" in text and not set("\u202e\u202c\u200b\x1b") & set(text), path


def test_only_known_sentences_follow_a_form(app):
    text = signed_in(app).get("/?done=You+have+won").text
    assert "You have won" not in text and 'role="status"' not in text


def test_runs_tell_state_rounds_and_bytes(app, store, waiting):
    store.decide(waiting.hash, True, "", OWNER)
    train(store, waiting, "second", 2, state="", size=1_500)
    newest, before = summaries.runs_shown(store)
    assert (newest["run_id"], newest["state"], newest["rounds"], newest["bytes"]) == ("second", "running", 2, 3_000)
    assert (before["state"], before["rounds"], before["bytes"]) == ("finished", 10, 410_100)
    text = signed_in(app).get("/runs").text
    assert "410,100" in text and "finished" in text and "running" in text


def test_rounds_are_those_that_the_log_names_if_it_does(store, waiting):
    store.decide(waiting.hash, True, "", OWNER)
    store.start_run("named", waiting.hash, waiting.person)
    for number in (0, 1, 1, None):
        store.log.write("sent", run="named", plan=waiting.hash, bytes=10, round=number)
    store.start_run("told", waiting.hash, waiting.person)
    store.end_run("told", "failed", rounds=7)
    assert [run["rounds"] for run in summaries.runs_shown(store, waiting.hash)] == [7, 2]


def test_the_budget_page_counts_each_runs_charges(app, store, waiting):
    (charged,) = summaries.charges_shown(store, "phantom_brain", made.DELTA)
    assert (charged["rounds"], charged["noise"], charged["title"]) == (10, "2.5", "Tumours in drawn brains")
    assert charged["epsilon"] == pytest.approx(store.spent("phantom_brain"))
    client = signed_in(app)
    text = client.get("/budget").text
    assert f"Spent is epsilon {store.spent('phantom_brain'):.3g} of 4, left" in text
    assert client.get(re.search(r'href="(/requests/[^"]+)"', text)[1]).status_code == 200


def test_the_log_tells_whether_its_chain_holds(app, store, folder):
    client = signed_in(app)
    text = client.get("/log").text
    assert "The chain holds:" in text and store.log.head()[1] in text and "plan denied" in text
    path = folder / "audit.jsonl"
    path.write_text(path.read_text().replace("Left the university.", "Left the University.", 1))
    text = client.get("/log").text
    assert "The log is not as it was written." in text and "its hash does not fit" in text and "The chain holds" not in text


def test_a_long_log_is_read_page_by_page(app, store):
    for number in range(150):
        store.log.write("counted", what=number)
    client = signed_in(app)
    total, numbers, path = store.log.head()[0], [], "/log"
    while path:
        text = client.get(path).text
        numbers += [int(number) for number in re.findall(r'data-label="No\.">(\d+)<', text)]
        older = re.search(r'href="(/log\?before=\d+)"', text)
        path = older and older[1]
    assert numbers == list(range(total, 0, -1))
    assert client.get("/log?before=nonsense").status_code == 200 and client.get("/log?before=0").status_code == 200


# Managing


def test_access_is_given_and_taken_and_logged(app, store):
    client = signed_in(app)
    assert send(client, "/datasets/access", FORMS["/datasets/access"]).status_code == 303
    assert store.may("phantom_brain", "member", "see") and events(store, "access granted")[-1]["by"] == OWNER
    assert send(client, "/datasets/access", FORMS["/datasets/access"], role="lead", action="train", allow="no").status_code == 303
    assert not store.may("phantom_brain", "lead", "train") and events(store, "access denied")[-1]["by"] == OWNER


@pytest.mark.parametrize("changed, said", [
    ({"role": "member", "action": "train"}, "Only researchers train"), ({"role": "king"}, "expected one of"), ({"action": "keep"}, "expected one of"),
    ({"dataset": "other"}, "no such data set"), ({"allow": ""}, "neither"),
])  # fmt: skip
def test_access_that_cannot_be_is_refused(app, store, changed, said):
    before = state(store)
    answer = send(signed_in(app), "/datasets/access", FORMS["/datasets/access"], **changed)
    assert answer.status_code == 400 and said in answer.text and state(store) == before


def test_a_data_set_is_withdrawn_when_it_is_confirmed(app, store):
    client = signed_in(app)
    assert send(client, "/datasets/withdraw", FORMS["/datasets/withdraw"], confirmed="").status_code == 400 and store.datasets()
    assert send(client, "/datasets/withdraw", FORMS["/datasets/withdraw"]).status_code == 303
    assert not store.datasets() and events(store, "data set withdrawn")[-1]["by"] == OWNER
    assert send(client, "/datasets/withdraw", FORMS["/datasets/withdraw"]).status_code == 400
    assert client.get("/datasets").status_code == client.get("/budget").status_code == 200


def test_accounts_are_added_and_removed_by_name_of_the_owner(app, store):
    client = signed_in(app)
    assert send(client, "/accounts/add", FORMS["/accounts/add"]).status_code == 303
    assert store.account("new@hospital1.org").role == "member" and events(store, "account added")[-1]["by"] == OWNER
    signed_in(app, "new@hospital1.org")
    assert send(client, "/accounts/remove", FORMS["/accounts/remove"], confirmed="").status_code == 400 and store.account(ADMIN)
    assert send(client, "/accounts/remove", FORMS["/accounts/remove"]).status_code == 303
    assert store.account(ADMIN) is None and events(store, "account removed")[-1]["by"] == OWNER


@pytest.mark.parametrize("changed, said", [
    ({"role": "lead"}, "no page here"), ({"role": ""}, "no page here"), ({"days": "0"}, "1 to 365"), ({"days": "many"}, "1 to 365"), ({"days": "9999"}, "1 to 365"),
    ({"password": "short"}, "expected at least"), ({"name": " "}, "expected a name"), ({"name": OWNER}, "already"),
])  # fmt: skip
def test_an_account_that_cannot_be_is_refused(app, store, changed, said):
    before = state(store)
    answer = send(signed_in(app), "/accounts/add", FORMS["/accounts/add"], **changed)
    assert answer.status_code == 400 and said in answer.text and state(store) == before and PASSWORD not in answer.text


def test_owners_neither_remove_nor_revoke_themselves(app, store):
    client, before = signed_in(app), state(store)
    assert send(client, "/accounts/remove", FORMS["/accounts/remove"], name=OWNER).status_code == 400
    assert send(client, "/people/revoke", FORMS["/people/revoke"], name=OWNER).status_code == 400
    assert state(store) == before


def test_a_person_is_revoked_for_a_reason_and_let_in_again(app, store):
    client = signed_in(app)
    for changed in ({"reason": " "}, {"name": ""}, {"confirmed": ""}, {"reason": "x" * 1001}):
        assert send(client, "/people/revoke", FORMS["/people/revoke"], **changed).status_code == 400
    assert not store.is_revoked(made.RESEARCHER)
    assert send(client, "/people/revoke", FORMS["/people/revoke"]).status_code == 303
    assert store.revoked()[made.RESEARCHER] == "No longer." and events(store, "person revoked")[-1]["by"] == OWNER
    assert send(client, "/people/restore", FORMS["/people/restore"], name=made.RESEARCHER, confirmed="").status_code == 400
    assert send(client, "/people/restore", FORMS["/people/restore"], name=made.RESEARCHER).status_code == 303
    assert not store.is_revoked(made.RESEARCHER) and events(store, "person restored")[-1]["by"] == OWNER


# Answers


@pytest.mark.parametrize("host", ["evil.org", "127.0.0.1.evil.org", "hospital_1", "169.254.169.254", "evil.org:80", "127.0.0.1@evil.org", ""])
def test_under_another_name_there_is_no_page(app, store, host):
    before = len(read_log(store.log.path))
    client = app.test_client()
    assert client.get("/sign-in", headers={"Host": host}).status_code == 400
    assert client.get("/static/style.css", headers={"Host": host}).status_code == 400
    assert client.post("/sign-in", headers={"Host": host}, data={"name": OWNER, "password": PASSWORD}).status_code == 400
    assert cookie(client) is None and len(read_log(store.log.path)) == before


@pytest.mark.parametrize("host", ["127.0.0.1:8443", "localhost", "localhost:5000"])
def test_under_loopbacks_names_there_is_one(app, host):
    assert app.test_client().get("/sign-in", headers={"Host": host}).status_code == 200


def test_every_answer_forbids_frames_scripts_and_copies(app, waiting):
    client = signed_in(app)
    paths = (*READ, "/accounts", address(waiting), "/sign-in", "/static/style.css", "/nowhere", "/requests/x/y")
    answers = [client.get(path) for path in paths] + [client.post("/accounts/add"), client.delete("/"), app.test_client().get("/"), client.get("/", headers={"Host": "x.org"})]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "script-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "same-origin" and answer.headers["X-Frame-Options"] == "DENY"
    for path in (*READ, "/accounts", address(waiting)):
        for tag, attributes in tags(client.get(path).text):  # nothing that the policy would refuse
            assert tag not in ("script", "style", "iframe") and not any(name == "style" or name.startswith("on") for name in attributes), path
            assert all(attributes.get(name, "/")[0] in "/#" for name in ("src", "href", "action")), path


def test_every_input_has_a_label(app, waiting):
    client = signed_in(app)
    for path in ("/accounts", "/datasets", address(waiting), "/sign-in"):
        text = client.get(path).text
        ids = re.findall(r'<(?:input|textarea|select)(?![^>]*type="hidden")[^>]*\sid="([^"]+)"', text)
        assert len(ids) == len(re.findall(r'<(?:input|textarea|select)(?![^>]*type="hidden")', text)) == len(set(ids))
        assert set(ids) <= set(re.findall(r'<label[^>]*\sfor="([^"]+)"', text)), path


def test_other_methods_and_huge_forms_are_refused(app):
    client = signed_in(app)
    assert client.delete("/").status_code == 405 and client.options("/").status_code == 405 and client.get("/sign-out").status_code == 405
    assert client.post("/sign-in", data={"name": "x" * 100_000}).status_code == 413


def test_a_defect_is_told_without_its_insides(app, monkeypatch):
    client = signed_in(app)
    monkeypatch.setattr(summaries, "runs_shown", lambda *_: 1 / 0)
    answer = client.get("/runs")
    assert answer.status_code == 500 and "ZeroDivisionError" in answer.text and "Traceback" not in answer.text and "division by" not in answer.text


def test_a_store_that_cannot_be_read_is_told_to_those_who_are_signed_in(app, monkeypatch):
    client = signed_in(app)

    def ill(*_):
        raise ConsortiumError("/some/where/owner.sqlite cannot be read")

    monkeypatch.setattr(summaries, "runs_shown", ill)
    answer = client.get("/runs")
    assert answer.status_code == 409 and "cannot be read" in answer.text
    monkeypatch.setattr(Store, "sign_in", ill)
    answer = app.test_client().post("/sign-in", data={"name": OWNER, "password": PASSWORD})
    assert answer.status_code == 503 and "/some/where" not in answer.text


@pytest.mark.parametrize("wrong", [{"secret": b"short"}, {"session_minutes": 0}, {"session_minutes": 10_000}])
def test_a_weak_key_or_an_endless_session_is_not_set_up(folder, wrong):
    with pytest.raises(ValueError, match="expected|needs"):
        make_app(folder, **wrong)


def test_only_a_hospitals_folder_has_a_page(tmp_path, folder):
    with pytest.raises(ConsortiumError, match="no hospital's folder"):
        make_app(tmp_path)
    assert not (tmp_path / DATABASE).exists()
    with pytest.raises(ConsortiumError, match="cannot listen"):
        serve(folder, 80_000, print)
    with pytest.raises(ConsortiumError, match="no hospital's folder"):
        serve(tmp_path, 0, print)


def test_the_page_to_sign_in_says_who_is_still_signed_in(app):
    client = signed_in(app)
    assert "You are still signed in" in client.get("/sign-in?next=/budget").text
    text = app.test_client().get("/sign-in?next=/budget").text
    assert "still signed in" not in text and "Your session has ended." in text
    assert sessions.ROLES_HERE[0] == "org_admin"
