"""A plan that its owner reads and approves in a browser is trained by real processes, and the page shows that it was."""

import contextlib
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fl_utils import consortia
from fl_utils.deployment import nvflare as governed
from fl_utils.experiments.governance_plan import plain_config

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (make setup installs it)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium (Debian: apt-get install chromium)"), pytest.mark.timeout(900),
]
LIMIT_MS = 120_000


@contextlib.contextmanager
def owners_page(hospital: Path):
    """Gives the address of the page, served by the command that an owner types; it must end well."""
    command = [str(Path(sys.executable).with_name("fl-utils")), "owner", "page", "--hospital", str(hospital), "--port", "0"]
    with (hospital / "page.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        said = process.stdout.readline()
        assert "http://127.0.0.1:" in said, (hospital / "page.log").read_text()
        yield re.search(r"http://\S+/", said)[0]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@contextlib.contextmanager
def browser_page(picture: Path):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.set_default_timeout(LIMIT_MS)
        try:
            yield page
        finally:
            page.screenshot(path=picture, full_page=True)
            browser.close()


def test_what_is_approved_in_the_browser_is_trained_and_shown(tmp_path):
    config = plain_config("smoke", 0)
    with consortia.running_consortium(config, consortia.OwnerRules()) as (folder, _):
        password = consortia.add_owner_account(folder, "hospital_1").read_text().strip()
        stores = {name: governed.Store(folder / name) for name in governed.hospital_names(config.num_clients)}
        plan = governed.plan_of(consortia.cards_of(folder, config), config, title="Pneumonia in phantoms", purpose="To see it go through.", min_hospitals=2)
        signed = consortia.sign(folder, plan)
        with (
            owners_page(folder / "hospital_1") as url, browser_page(tmp_path / "last.png") as page,
            governed.Line(governed.member_folder(folder, consortia.RESEARCHER)) as line,
        ):
            line.wait_for(2)
            assert {line.hand_in(signed, tmp_path / "first").rule_of(name) for name in stores} == {"plan"}
            stores["hospital_2"].decide(plan.hash, True, "", consortia.owner_of("hospital_2"))
            page.goto(url)
            page.get_by_label("Name").fill(consortia.owner_of("hospital_1"))
            page.get_by_label("Password").fill(password)
            page.get_by_role("button", name="Sign in").click()
            page.get_by_role("link", name=plan.title).click()
            form = page.get_by_role("form", name="Approve")
            form.get_by_role("checkbox").check()
            form.get_by_role("button").click()
            page.get_by_text("The plan is approved").wait_for()
            assert stores["hospital_1"].request(plan.hash).decided_by == consortia.owner_of("hospital_1")

            answer = line.hand_in(signed, tmp_path / "came")
            assert answer.finished and set(answer.hospitals.values()) == {"accepted"}
            page.get_by_role("link", name="Runs").click()
            row = page.get_by_role("row", name=answer.job[:8])
            assert [cell.strip() for cell in row.get_by_role("cell").all_inner_texts()][:4] == [
                plan.title, consortia.RESEARCHER, "finished", str(config.total_rounds)
            ]
            page.get_by_role("link", name="Log").click()
            page.get_by_text("The chain holds:").wait_for()
