"""Pages that are read."""

import json

import flask

from fl_utils.deployment.nvflare.accounts import MIN_PASSWORD
from fl_utils.deployment.nvflare.audit import read_log
from fl_utils.deployment.nvflare.page import sessions, summaries
from fl_utils.deployment.nvflare.page.owner import owner
from fl_utils.deployment.nvflare.settings import OUTPUTS
from fl_utils.deployment.nvflare.spending import RUNNING
from fl_utils.deployment.nvflare.store import Request

pages = flask.Blueprint("reading", __name__)
PAGES = (
    ("requests_page", "Requests"), ("datasets_page", "Data sets"), ("budget_page", "Budget"), ("runs_page", "Runs"),
    ("log_page", "Log"), ("accounts_page", "Accounts"),
)  # fmt: skip
#: What is said after a form was taken; the address names one of these, and no text of its own.
DONE = {
    "approved": "The plan is approved: it can be trained here as it stands.", "denied": "The plan is denied.",
    "access": "The access was changed.", "withdrawn": "The data set was withdrawn.", "added": "The account was added.", "removed": "The account was removed.",
    "revoked": "The person is no longer let in.", "restored": "The person is let in again.",
}
_ACTIONS = {"see": "See its card", "train": "Train on it"}
_ENTRIES = 100
_LOGS_OWN = ("number", "time_utc", "event", "previous", "hash", "change")


@pages.get("/sign-in")
def sign_in_page():
    wanted = sessions.within(flask.request.args.get("next", ""))
    still = sessions.is_signed_in()
    why = "Your session has ended." if "next" in flask.request.args and not still else ""
    return flask.render_template("sign_in.html", next=wanted, why=why, still=still)


@pages.get("/")
def requests_page():
    asked = owner().store.requests()
    decided = sorted((one for one in asked if one.state != "waiting"), key=lambda one: one.decided_utc, reverse=True)
    return flask.render_template("requests.html", waiting=[one for one in asked if one.state == "waiting"], decided=decided)


@pages.get("/requests/<hash>/<path:person>")
def request_page(hash: str, person: str):
    return show_request(requested(hash, person))


def requested(hash: str, person: str) -> Request:
    """The request that is meant; ends with 404 where there is none."""
    return owner().store.request(hash, person) or flask.abort(404, "There is no such request.")


def seen_of(asked: Request) -> str:
    """What a form says of the decision that was seen with it: nobody overrules another unknowingly."""
    return f"{asked.state} {asked.decided_utc}".strip()


def show_request(asked: Request, *, error: str = "", decision: str = "", reason: str = "", status: int = 200):
    """The page of a request, after a form that was not taken with the error and what was typed."""
    here, plan = owner(), asked.plan
    before = here.store.last_approved(plan.config.dataset)
    same = before is not None and before.hash == plan.hash
    change = summaries.marked_difference(plan, before) if before and not same else []
    added = sum(mark == "+" for mark, _, _ in change)
    states, broken = summaries.rules_now(here, asked)
    cost, no_cost = summaries.plan_cost(here.store, plan)
    runs = summaries.runs_shown(here.store, plan.hash)
    return flask.render_template(
        "request.html", asked=asked, lines=summaries.plan_lines(plan), before=before, same=same, change=change, added=added,
        removed=len(change) - added, rules=states, broken=broken and {"rule": broken.rule, "text": str(broken).partition(": ")[2]},
        cost=cost, no_cost=no_cost, runs=runs, running=any(run["state"] == RUNNING for run in runs), seen=seen_of(asked),
        error=error, decision=decision, reason=reason,
    ), status


@pages.get("/datasets")
def datasets_page(error: str = "", status: int = 200):
    store = owner().store
    granted = set(store.grants())
    return flask.render_template(
        "datasets.html", datasets=store.datasets(), outputs=OUTPUTS, actions=_ACTIONS, may=lambda *access: access in granted,
        error=error,
    ), status


@pages.get("/budget")
def budget_page():
    store, shown = owner().store, []
    for one in store.datasets():
        if one.epsilon is None:
            words = "There is no budget: training without differential privacy is allowed."
            if store.charges(one.name):
                words += f" Trainings with it have spent epsilon {store.spent(one.name):.3g}."
            shown.append({"dataset": one.name, "cost": None, "words": words, "runs": []})
        else:
            shown.append({"dataset": one.name, "cost": summaries.budget_bar(one, store.spent(one.name)),
                          "runs": summaries.charges_shown(store, one.name, one.delta)})
    return flask.render_template("budget.html", budgets=shown)


@pages.get("/runs")
def runs_page():
    store = owner().store
    return flask.render_template("runs.html", runs=summaries.runs_shown(store), titles=summaries.titles_of(store))


@pages.get("/log")
def log_page():
    store = owner().store
    entries, before = read_log(store.log.path), flask.request.args.get("before", type=int)
    wanted = [entry for entry in entries if before is None or entry["number"] < before][-_ENTRIES:]
    shown = [{**entry, "facts": [(name, _fact(entry[name])) for name in entry if name not in _LOGS_OWN]} for entry in reversed(wanted)]
    older = wanted[0]["number"] if wanted and wanted[0]["number"] > entries[0]["number"] else None
    return flask.render_template(
        "log.html", entries=shown, problems=store.problems(), total=len(entries), older=older,
        head=entries[-1]["hash"] if entries else "",
    )


@pages.get("/accounts")
def accounts_page(error: str = "", status: int = 200):
    store = owner().store
    people = sorted({one.person for one in store.requests()} - set(store.revoked()))
    return flask.render_template(
        "accounts.html", accounts=store.accounts(), revoked=store.revoked(), people=people, page_roles=sessions.ROLES_HERE,
        min_password=MIN_PASSWORD, form=flask.request.form, error=error,
    ), status


def _fact(value) -> str:
    return value if isinstance(value, str) else json.dumps(value)
