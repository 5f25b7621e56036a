"""The interactive cell as a user meets it: JupyterLab in headless Chromium; a slider is moved, a run is trained."""

import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import psutil
import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (make setup installs it)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium (Debian: apt-get install chromium)")

LIMIT_S = 240  # for any one thing; on a free machine all of it takes less than that, beside a training much more
ROUNDS = 8
CELLS = (
    "from fl_utils import interactive",
    f'interactive.playground("smoke", num_clients=4, alpha=1.0, total_rounds={ROUNDS})',
)
#: Notes every status and every new picture of the curves from now on.
WATCH = """() => {
    window.seenTexts = []; window.seenPictures = [];
    const status = document.querySelector(".fl-status"), curves = document.querySelector("img.fl-curves");
    new MutationObserver(() => window.seenTexts.push(status.innerText.trim()))
        .observe(status, {subtree: true, childList: true, characterData: true});
    new MutationObserver(() => window.seenPictures.push(curves.src)).observe(curves, {attributeFilter: ["src"]});
}"""


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab of its own, with settings, cache and results in a temporary folder."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(notebook, folder / "play.ipynb")
    own = ("config", "data", "lab_settings", "lab_workspaces", "ipython", "cache", "results")
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTERLAB_SETTINGS_DIR",
             "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR", "FL_UTILS_CACHE", "FL_UTILS_RESULTS")  # fmt: skip
    environment = {**os.environ, **{name: str(tmp_path / part) for name, part in zip(names, own, strict=True)}}
    environment.pop("FL_UTILS_STATIC", None)
    # The kernel's sockets lie there, and a socket's path holds 107 characters; pytest's folders are too long.
    runtime = Path(tempfile.mkdtemp(prefix="fl-"))
    environment["JUPYTER_RUNTIME_DIR"] = str(runtime)
    quiet = tmp_path / "lab_settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # no question over the page, no calls home
    token = secrets.token_hex(16)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
        "--ServerApp.port=0", f"--ServerApp.root_dir={folder}",
        f"--IdentityProvider.token={token}", "--KernelManager.transport=ipc",
    ]
    with (tmp_path / "lab.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )
    try:
        yield f"{address(server, tmp_path, runtime)}lab/tree/play.ipynb?token={token}"
    finally:
        end(server)
        shutil.rmtree(runtime)
    assert not list(tmp_path.glob("results/**/*"))


def address(server: subprocess.Popen, folder: Path, runtime: Path) -> str:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        assert server.poll() is None, (folder / "lab.log").read_text()[-3000:]
        for file in runtime.glob("jpserver-*.json"):
            try:
                return json.loads(file.read_text())["url"]
            except ValueError:
                pass  # half-written
        time.sleep(0.1)
    raise AssertionError(f"JupyterLab did not start:\n{(folder / 'lab.log').read_text()[-3000:]}")


def end(server: subprocess.Popen) -> None:
    """Ends the server, which ends its kernel, which ends TFF's worker; whatever is left is ended, too."""
    family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    server.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=20)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=10)
    server.wait(timeout=10)


@pytest.fixture
def page(tmp_path):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1500})
        page.set_default_timeout(1000 * LIMIT_S)
        try:
            yield page
        finally:
            page.screenshot(path=tmp_path / "last.png")  # pytest keeps the folder: see it after a failure
            browser.close()


def picture(page, name: str) -> str:
    """The digest of the bytes that an image shows."""
    content = page.evaluate(
        """async (name) => {
            const bytes = await (await fetch(document.querySelector(`img.${name}`).src)).arrayBuffer();
            return Array.from(new Uint8Array(bytes));
        }""",
        name,
    )
    assert bytes(content[:4]) == b"\x89PNG"
    return hashlib.sha256(bytes(content)).hexdigest()


def changed(page, name: str, before: str) -> str:
    """Waits until an image shows something else; returns the new digest."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        now = picture(page, name)
        if now != before:
            return now
        page.wait_for_timeout(100)
    raise AssertionError(f"{name} did not change; see last.png")


@pytest.mark.timeout(1500)
def test_slider_and_live_run(lab, page, tmp_path):
    page.goto(lab)
    page.locator(".jp-NotebookPanel .jp-InputArea").last.wait_for()  # the menu is the notebook's from here on
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    box = page.locator(".fl-playground")
    box.wait_for()
    page.locator("img.fl-curves").wait_for()

    partition, curves = picture(page, "fl-partition"), picture(page, "fl-curves")
    handle = box.locator(".fl-alpha .noUi-handle")
    handle.focus()
    readout = box.locator(".fl-alpha .widget-readout").text_content()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    partition = changed(page, "fl-partition", partition)
    assert float(box.locator(".fl-alpha .widget-readout").text_content()) < float(readout)

    # More hospitals than images: a sentence in place of the picture, and back.
    hospitals = box.locator(".fl-num_clients .noUi-handle")
    hospitals.focus()
    page.keyboard.press("End")
    box.get_by_text("Use fewer hospitals or more images").wait_for()
    assert not page.locator("img.fl-partition").is_visible()
    hospitals.focus()
    page.keyboard.press("Home")
    page.locator("img.fl-partition").wait_for()
    changed(page, "fl-partition", partition)

    assert picture(page, "fl-curves") == curves
    page.evaluate(WATCH)
    box.get_by_role("button", name="Train", exact=True).click()
    box.locator(".fl-status").get_by_text(f"Done: {ROUNDS} rounds").wait_for()
    changed(page, "fl-curves", curves)
    page.screenshot(path=tmp_path / "done.png")
    texts, pictures = page.evaluate("[window.seenTexts, window.seenPictures]")
    # How many of the rounds a busy machine shows is its own affair; that the curve grew on the way is not.
    assert any(text.startswith("Round ") for text in texts), texts
    assert len(set(pictures)) >= 3, pictures
    assert box.get_by_role("button", name="Train", exact=True).is_enabled()
