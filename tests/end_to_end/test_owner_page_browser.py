"""The data owner's page as its users meet it: a real server process, headless Chromium, people who sign in and decide."""

import re
import shutil
import signal
import subprocess

import psutil
import pytest

from fl_utils.children import owned_python
from fl_utils.deployment.nvflare.page import summaries
from fl_utils.deployment.nvflare.settings import RuleBroken
from fl_utils.deployment.nvflare.store import Store
from tests.unit import made_governance as made
from tests.unit.made_hospital import OBSERVER, OWNER, PASSWORD, ask, fill, make_folder, train

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (make setup installs it)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium (Debian: apt-get install chromium)")

LIMIT_S = 120  # for any one thing; on a free machine each takes less than one second
PROGRAM = """
from pathlib import Path
from fl_utils.deployment.nvflare.page import serve
serve(Path(sys.argv[1]), 0, lambda text: print(text, flush=True), session_minutes=float(sys.argv[2]))
print("ended by itself", flush=True)
"""
#: The smallest contrast of a page's texts with what is behind them (WCAG 2.2, 1.4.3).
CONTRAST = """() => {
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((x) => x / 255).map((x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
        .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (element) => {
        for (; element; element = element.parentElement) {
            const colour = parts(getComputedStyle(element).backgroundColor);
            if (colour.length === 3 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
    };
    const worst = [21, ""];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.textContent).join("").trim();
        if (!own || !element.getClientRects().length) continue;
        const pair = [light(parts(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
        const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
        if (contrast < worst[0]) worst.splice(0, 2, contrast, own);
    }
    return worst;
}"""


@pytest.fixture
def folder(tmp_path):
    """A hospital's folder after a working day: two plans wait."""
    path = tmp_path / "hospital_1"
    fill(make_folder(path))
    return path


@pytest.fixture
def store(folder):
    return Store(folder)


@pytest.fixture
def serve(folder, tmp_path):
    """Starts the page in a process of its own and gives its address; ends all that were started, which must go cleanly."""
    started = []

    def start(session_minutes=15.0):
        log = (tmp_path / f"page_{len(started)}.log").open("wb")
        process = subprocess.Popen(
            [*owned_python(PROGRAM), str(folder), str(session_minutes)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
        )
        started.append((process, log))
        said = process.stdout.readline()
        assert "http://127.0.0.1:" in said, (tmp_path / f"page_{len(started) - 1}.log").read_text()
        return re.search(r"http://\S+/", said)[0]

    yield start
    for process, log in started:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=LIMIT_S)[0]
        assert (process.returncode, said) == (0, "ended by itself\n"), log.name
        assert len(family) == 2 and not any(one.is_running() for one in family)
        log.close()


@pytest.fixture
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture
def page(browser, tmp_path):
    page = browser.new_context(viewport={"width": 1000, "height": 900}).new_page()
    page.set_default_timeout(1000 * LIMIT_S)
    yield page
    page.screenshot(path=tmp_path / "last.png", full_page=True)  # pytest keeps the folder: see it after a failure


def sign_in(page, url, name=OWNER):
    page.goto(url)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Waiting for a decision").wait_for()


def section(page, name):
    return page.get_by_role("region", name=name, exact=True)


def test_the_owner_reads_denies_approves_and_sees_the_run(serve, store, page):
    longer, hostile = store.requests("waiting")
    with pytest.raises(RuleBroken, match="not approved"):
        store.start_run("early", longer.hash, longer.person)
    url = serve()
    sign_in(page, url)
    assert page.evaluate("document.cookie") == ""  # no script could take the session

    # The plan, line by line; what is new in it; what it costs.
    waiting = section(page, "Waiting for a decision")
    assert waiting.get_by_role("row").count() == 3
    waiting.get_by_role("link", name=longer.plan.title).click()
    page.get_by_role("heading", name=longer.plan.title).wait_for()
    plan = section(page, "The plan")
    for name, value in summaries.plan_lines(longer.plan):
        assert plan.locator("tr", has=page.locator(f'th:text-is("{name}")')).filter(has_text=value).count() >= 1, name
    change = section(page, "Difference to the plan approved last")
    assert change.get_by_role("row", name="+ added Rounds 15,").count() == change.get_by_role("row", name="− removed Rounds 10,").count() == 1
    assert page.get_by_role("img", name="Spent is epsilon").locator("rect").count() == 3
    page.get_by_text("Apart from the approval, the plan meets every rule now.").wait_for()

    # Denied, but not without a reason, and not unconfirmed.
    page.goto(f"{url}requests/{hostile.hash}/{hostile.person}")
    page.get_by_text('nothing runs while rule "outputs" is not met').wait_for()
    form = page.get_by_role("form", name="Deny")
    form.get_by_role("button").click()
    assert form.get_by_label("Reason").evaluate("field => field.validity.valueMissing")
    form.get_by_label("Reason").fill("The training loss stays here.")
    form.get_by_role("button").click()
    assert form.get_by_role("checkbox").evaluate("box => box.validity.valueMissing") and store.request(hostile.hash).state == "waiting"
    form.get_by_role("checkbox").check()
    form.get_by_role("button").click()
    page.get_by_text("The plan is denied.").wait_for()
    decided = store.request(hostile.hash)
    assert (decided.state, decided.reason, decided.decided_by) == ("denied", "The training loss stays here.", OWNER)

    # Approved, by the keyboard alone.
    page.goto(f"{url}requests/{longer.hash}/{longer.person}")
    page.get_by_role("form", name="Approve").get_by_label("Note").focus()
    page.keyboard.type("As agreed.")
    for key in ("Tab", "Space", "Tab", "Enter"):
        page.keyboard.press(key)
    page.get_by_text("The plan is approved").wait_for()
    assert store.request(longer.hash).state == "approved" and store.request(longer.hash).reason == "As agreed."

    # The run goes through, in another process than the page's.
    train(store, longer, "9b1c0000-run", 3)
    page.get_by_role("link", name="Runs").click()
    row = page.get_by_role("row", name="9b1c0000-run")
    row.wait_for()
    assert [cell.strip() for cell in row.get_by_role("cell").all_inner_texts()][:5] == [longer.plan.title, longer.person, "finished", "3", "123,100"]
    page.get_by_role("link", name="Budget").click()
    page.get_by_text(f"Spent is epsilon {store.spent('phantom_brain'):.3g} of 4, left").wait_for()
    page.get_by_role("link", name="Log").click()
    page.get_by_text("The chain holds:").wait_for()
    assert page.get_by_role("row", name=re.compile(f"plan approved.*by: {OWNER}")).count() == 2
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()
    page.goto(f"{url}log")
    page.get_by_role("heading", name="Sign in").wait_for()


def test_an_observer_reads_and_a_form_made_by_hand_is_refused(serve, store, page):
    asked = store.requests("waiting")[0]
    url = serve()
    sign_in(page, url, OBSERVER)
    for path in ("", f"requests/{asked.hash}/{asked.person}", "datasets", "budget", "runs", "log"):
        page.goto(url + path)
        assert page.get_by_role("button").all_inner_texts() == ["Sign out"], path
        assert page.get_by_role("link", name="Accounts").count() == 0
    page.goto(f"{url}requests/{asked.hash}/{asked.person}")
    page.get_by_text("Only the data owner decides.").wait_for()
    # The observer knows the page, and builds the owner's form into it, with the right token.
    with page.expect_navigation() as answer:
        page.evaluate("""() => {
            const form = document.querySelector("form");
            form.action = location.pathname;
            for (const [name, value] of Object.entries({decision: "approve", confirmed: "yes", seen: "waiting", reason: ""}))
                form.append(Object.assign(document.createElement("input"), {name, value, type: "hidden"}));
            form.submit();
        }""")
    assert answer.value.status == 403
    page.get_by_text("Only the data owner may do this.").wait_for()
    assert store.request(asked.hash).state == "waiting"
    page.goto(f"{url}accounts")
    page.get_by_role("heading", name="Not allowed").wait_for()


def test_a_session_that_ends_leads_to_sign_in_and_back(serve, store, page):
    asked = store.requests("waiting")[0]
    url = serve(session_minutes=0.1)
    page.goto(f"{url}requests/{asked.hash}/{asked.person}")
    page.get_by_label("Name").fill(OWNER)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("Your session has ended.").wait_for()  # nobody touched anything: what was on the screen is gone
    assert page.get_by_role("heading", name=asked.plan.title).count() == 0
    assert page.locator("input[name=next]").input_value() == f"/requests/{asked.hash}/{asked.person}"


def test_a_form_that_is_sent_after_the_end_does_nothing(serve, store, page):
    asked = store.requests("waiting")[0]
    url = serve()
    sign_in(page, url)
    page.goto(f"{url}requests/{asked.hash}/{asked.person}")
    page.context.clear_cookies()
    form = page.get_by_role("form", name="Approve")
    form.get_by_role("checkbox").check()
    form.get_by_role("button").click()
    page.get_by_text("Nothing was done.").wait_for()
    assert store.request(asked.hash).state == "waiting"
    page.get_by_label("Name").fill(OWNER)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name=asked.plan.title).wait_for()  # back where the form was


def test_another_site_can_neither_frame_the_page_nor_send_its_forms(serve, store, page):
    asked = store.requests("waiting")[0]
    url = serve()
    sign_in(page, url)
    token = page.locator("input[name=csrf_token]").first.input_value()
    other = page.context.new_page()  # of no site, with the owner's cookies in the same browser; it even knows the token
    fields = "".join(f"<input name='{name}' value='{value}'>" for name, value in
                     {"decision": "approve", "confirmed": "yes", "seen": "waiting", "csrf_token": token}.items())
    other.set_content(f"<iframe src='{url}'></iframe><form method='post' action='{url}requests/{asked.hash}/{asked.person}'>{fields}<button>Win</button></form>")
    (frame,) = (frame for frame in other.frames if frame != other.main_frame)
    frame.wait_for_url("chrome-error://**")  # where the browser shows that it may not show the page
    with other.expect_navigation() as answer:
        other.get_by_role("button", name="Win").click()
    assert answer.value.status == 403
    assert store.request(asked.hash).state == "waiting"


@pytest.mark.parametrize("width", [1000, 400])
def test_every_page_fits_and_can_be_read(serve, store, browser, width):
    ask(store, made.plan_of("x" * 120, private=True, total_rounds=200))
    url = serve()
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(1000 * LIMIT_S)
    refused = []
    page.on("console", lambda message: refused.append(message.text) if "Content Security Policy" in message.text else None)
    page.goto(url)
    assert page.evaluate(CONTRAST)[0] >= 4.5
    sign_in(page, url)
    paths = ["", "datasets", "budget", "runs", "log", "accounts", "nowhere", *(f"requests/{one.hash}/{one.person}" for one in store.requests())]
    for path in paths:
        page.goto(url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        contrast, text = page.evaluate(CONTRAST)
        assert contrast >= 4.5, (path, text)
        if path != "nowhere":
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.textContent") == "To the content"
    assert refused == []
