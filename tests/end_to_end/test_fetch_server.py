"""Fetching from a real HTTP server on this machine: whole, cut, stalled, changed, refused, killed, side by side."""

import base64
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from fl_utils.data import downloads
from fl_utils.data.archives import ArchiveError
from fl_utils.data.catalogue import DatasetCard, Download
from fl_utils.data.fetch import MARKER, ChecksumError, FetchError, fetch
from tests.end_to_end.loopback_server import PROXIES, LoopbackServer, Served, as_json

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(120)
NOISE = np.random.default_rng(0).bytes(1_000_000)  # does not shrink, so an archive of it can be cut anywhere
FILES = {"set/Training/a/1.jpg": NOISE, "set/Training/b/2.jpg": b"two", "set/list.csv": b"a,b\n"}
UNPACKED = {name.removeprefix("set/"): content for name, content in FILES.items()}


def zip_of(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


ARCHIVE = zip_of(FILES)


def make_card(*items, **fields):
    given = dict(
        name="tiny", label="Tiny", title="Tiny", task="multi-class", modality="X-ray", layout="class_folders",
        folder="tiny", classes={"a": "a", "b": "b"}, licence="none", citation="none", source="https://example.org/tiny",
        ethics="none", downloads=items,
    )  # fmt: skip
    return DatasetCard(**{**given, **fields})


@pytest.fixture
def server(monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloads, "READ_TIMEOUT_S", 0.4)
    monkeypatch.setattr(downloads, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(downloads, "MAX_FAILURES", 3)
    with LoopbackServer() as running:
        yield running


def offer(server, served=None, path="/tiny.zip", checksum=True, **fields):
    """Serves a file; gives the card's line for it."""
    served = served or Served(ARCHIVE)
    server.files[path] = served
    given = {"checksum": served.sha256 if checksum is True else checksum or None, "strip": 1}
    return Download("url", server.address(path), path[1:], **{**given, **fields})


def content(folder):
    """All files but the list that `fetch` writes."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def get(card, root, **options):
    return fetch(card, root=root, progress=False, **options)


def part(root, name="tiny.zip"):
    return root / ".fetching" / "tiny" / f"{name}.part"


def left_over(root):
    return [path for path in (root / ".fetching").rglob("*") if not path.name.endswith(".lock")]


def test_a_file_comes_is_compared_and_unpacked(server, tmp_path):
    folder = get(make_card(offer(server)), tmp_path)
    assert folder == tmp_path / "tiny" and content(folder) == UNPACKED
    assert left_over(tmp_path) == []
    marker = json.loads((folder / MARKER).read_text())
    assert marker["files"] == {name: len(data) for name, data in UNPACKED.items()}
    entry = marker["downloads"][0]
    assert (entry["address"], entry["size_bytes"]) == (server.address("/tiny.zip"), len(ARCHIVE))
    assert "sha256:" + entry["sha256"] == Served(ARCHIVE).sha256 and entry["unpacked"] is True


def test_an_md5_is_a_checksum_too_and_both_digests_are_noted(server, tmp_path):
    md5 = hashlib.md5(ARCHIVE).hexdigest()
    folder = get(make_card(offer(server, checksum=f"md5:{md5}")), tmp_path)
    assert "sha256:" + json.loads((folder / MARKER).read_text())["downloads"][0]["sha256"] == Served(ARCHIVE).sha256
    with pytest.raises(ChecksumError, match=f"expected md5:{'0' * 32} but got {md5}"):
        get(make_card(offer(server, checksum=f"md5:{'0' * 32}"), folder="other"), tmp_path)


def test_what_is_there_is_not_fetched_again_unless_forced(server, tmp_path, capfd):
    card = make_card(offer(server))
    get(card, tmp_path)
    asked = len(server.requests)
    fetch(card, root=tmp_path, progress=True)
    assert len(server.requests) == asked and "already in" in capfd.readouterr().err
    get(card, tmp_path, force=True)
    assert len(server.requests) == asked + 1 and content(tmp_path / "tiny") == UNPACKED


def test_missing_and_changed_files_are_fetched_again(server, tmp_path, capfd):
    card = make_card(offer(server))
    folder = get(card, tmp_path)
    (folder / "list.csv").unlink()
    (folder / "Training" / "b" / "2.jpg").write_bytes(b"changed")
    fetch(card, root=tmp_path, progress=True)
    assert content(folder) == UNPACKED and "2 files are missing or changed" in capfd.readouterr().err


def test_several_downloads_make_one_folder_and_appear_together(server, tmp_path):
    csv = Served(b"image,finding\n")
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        member = tarfile.TarInfo("images/3.png")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"three"))
    card = make_card(
        offer(server),
        offer(server, Served(tar.getvalue()), "/more.tar.gz", strip=0),
        offer(server, csv, "/list_2.csv", unpack=False),
    )
    server.files["/list_2.csv"].statuses = [404]
    with pytest.raises(FetchError, match="404"):
        get(card, tmp_path)
    assert not (tmp_path / "tiny").exists()  # a part of a dataset is no dataset
    folder = get(card, tmp_path)
    assert content(folder) == {**UNPACKED, "images/3.png": b"three", "list_2.csv": csv.content}
    assert server.ranges("/tiny.zip") == [None] and server.ranges("/more.tar.gz") == [None]  # once each


@pytest.mark.parametrize("etag", ["", '"v1"'])
def test_a_cut_download_goes_on_where_it_was(server, tmp_path, etag):
    line = offer(server, Served(ARCHIVE, etag=etag, cuts=[300_000, 400_000]))
    assert content(get(make_card(line), tmp_path)) == UNPACKED
    first, second, third = server.ranges("/tiny.zip")
    assert first is None and 200_000 < int(second[6:-1]) <= 300_000 and 500_000 < int(third[6:-1]) <= 700_000
    assert [h.get("if-range") for _, h in server.requests[1:]] == [etag or None] * 2


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    line = offer(server, Served(ARCHIVE, ranges=False, cuts=[300_000]))
    assert content(get(make_card(line), tmp_path)) == UNPACKED
    assert [bool(asked) for asked in server.ranges("/tiny.zip")] == [False, True]


def test_a_file_that_changed_in_between_is_taken_whole(server, tmp_path):
    old = zip_of({"set/other": NOISE[::-1]})
    line = offer(server, Served(old, etag='"old"', cuts=[300_000] * 3, ranges=False), checksum=None)
    with pytest.raises(FetchError, match="broke off"):
        get(make_card(line), tmp_path)
    assert part(tmp_path).stat().st_size > 200_000
    server.files["/tiny.zip"] = Served(ARCHIVE, etag='"new"')
    assert content(get(make_card(line), tmp_path)) == UNPACKED
    assert server.ranges("/tiny.zip")[-1] is not None  # it asked for the rest, and got the new file


@pytest.mark.parametrize("shorter", [True, False])
def test_a_changed_length_is_noticed_without_an_etag(server, tmp_path, shorter):
    line = offer(server, Served(ARCHIVE, cuts=[900_000, 0, 0]), checksum=None)
    with pytest.raises(FetchError, match="broke off"):
        get(make_card(line), tmp_path)
    other = zip_of({"set/other": NOISE[:500_000] if shorter else NOISE + NOISE})
    server.files["/tiny.zip"] = Served(other)
    asked = len(server.requests)
    assert set(content(get(make_card(line), tmp_path))) == {"other"}
    assert len(server.requests) == asked + 2  # the rest of the old file, refused; then all of the new one


def test_a_server_that_always_breaks_off_is_given_up_and_what_came_is_kept(server, tmp_path):
    line = offer(server, Served(ARCHIVE, cuts=[300_000, 0, 0, 0]))
    with pytest.raises(FetchError, match=r"broke off; tried 3 times.* 300,000 of 1,\d+,\d+ bytes are kept"):
        get(make_card(line), tmp_path)
    kept = part(tmp_path).stat().st_size
    assert 200_000 < kept <= 300_000 and len(server.requests) == 3
    assert ARCHIVE.startswith(part(tmp_path).read_bytes()) and not (tmp_path / "tiny").exists()
    server.files["/tiny.zip"].cuts = []
    assert content(get(make_card(line), tmp_path)) == UNPACKED
    assert server.ranges("/tiny.zip")[-1] == f"bytes={kept}-"


def test_tries_are_counted_anew_while_the_file_grows(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "PROGRESS_BYTES", 50_000)
    line = offer(server, Served(ARCHIVE, cuts=[150_000] * 6))
    assert content(get(make_card(line), tmp_path)) == UNPACKED
    assert len(server.requests) == 7


@pytest.mark.parametrize("sent", [0, 300_000])
def test_a_server_that_falls_silent_is_given_up(server, tmp_path, sent):
    line = offer(server, Served(ARCHIVE, stalls=[sent, 0, 0]))
    started = time.monotonic()
    with pytest.raises(FetchError, match="sent nothing for 0.4 s; tried 3 times"):
        get(make_card(line), tmp_path)
    assert 1.0 < time.monotonic() - started < 20
    assert content(get(make_card(line), tmp_path)) == UNPACKED  # it speaks again
    assert (server.ranges("/tiny.zip")[-1] is not None) == (sent > 0)


def test_a_server_in_trouble_is_asked_again_and_one_that_says_no_is_not(server, tmp_path):
    assert content(get(make_card(offer(server, Served(ARCHIVE, statuses=[503, 429]))), tmp_path)) == UNPACKED
    line = offer(server, Served(ARCHIVE, statuses=[403]), "/closed.zip")
    card = make_card(line, folder="closed", access="sign the form first")
    with pytest.raises(FetchError, match="closed.zip: the server answers HTTP 403 .*sign the form first"):
        get(card, tmp_path)
    assert len(server.ranges("/closed.zip")) == 1


def test_a_404_names_the_address(server, tmp_path):
    line = Download("url", server.address("/gone.zip"), "gone.zip")
    with pytest.raises(FetchError, match=f"{server.address('/gone.zip')}: the server answers HTTP 404"):
        get(make_card(line), tmp_path)


def test_a_server_that_is_not_there(server, tmp_path):
    line = Download("url", "http://127.0.0.1:9/a.zip", "a.zip")  # the port of "discard": nobody listens
    with pytest.raises(FetchError, match="refused or cut"):
        get(make_card(line), tmp_path)


def test_a_wrong_checksum_tells_both_and_removes_the_file(server, tmp_path):
    wrong = "sha256:" + "0" * 64
    with pytest.raises(ChecksumError, match=f"expected {wrong} but got {Served(ARCHIVE).sha256[7:]}"):
        get(make_card(offer(server, checksum=wrong)), tmp_path)
    assert not (tmp_path / "tiny").exists() and left_over(tmp_path) == [tmp_path / ".fetching" / "tiny"]


def test_without_a_published_checksum_the_first_one_is_told_noted_and_compared(server, tmp_path, capfd):
    card = make_card(offer(server, checksum=None))
    folder = fetch(card, root=tmp_path, progress=True)
    digest = Served(ARCHIVE).sha256
    assert digest in capfd.readouterr().err
    server.files["/tiny.zip"] = Served(zip_of({"set/other": b"x"}))
    with pytest.raises(ChecksumError, match=f"expected {digest} .*earlier fetch.*delete that file"):
        get(card, tmp_path, force=True)
    assert content(folder) == UNPACKED  # a failed fetch leaves the old files
    assert (folder / MARKER).exists()
    (folder / MARKER).unlink()
    assert set(content(get(card, tmp_path, force=True))) == {"other", *UNPACKED}


def test_files_of_an_earlier_version_do_not_stay_among_the_new_ones(server, tmp_path):
    folder = get(make_card(offer(server)), tmp_path)
    (folder / "mine.txt").write_bytes(b"mine")
    newer = Served(zip_of({"set/list.csv": b"other", "set/new": b"new"}))
    get(make_card(offer(server, newer)), tmp_path, force=True)
    assert content(folder) == {"list.csv": b"other", "new": b"new", "mine.txt": b"mine"}


def test_a_folder_that_is_half_replaced_is_not_called_whole(server, tmp_path, monkeypatch):
    folder = get(make_card(offer(server)), tmp_path)
    newer = make_card(offer(server, Served(zip_of({**FILES, "set/list.csv": b"new"}))))

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fl_utils.data.archives._move", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(newer, tmp_path, force=True)
    assert not (folder / MARKER).exists()
    assert content(get(newer, tmp_path)) == {**UNPACKED, "list.csv": b"new"} and (folder / MARKER).exists()
    assert len(server.requests) == 2


def test_files_of_others_stay_and_are_not_overwritten(server, tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "mine.txt").write_bytes(b"mine")
    (folder / "list.csv").write_bytes(b"mine too")
    card = make_card(offer(server))
    with pytest.raises(ArchiveError, match="already holds other files of the same names: list.csv"):
        get(card, tmp_path)
    assert content(folder) == {"mine.txt": b"mine", "list.csv": b"mine too"} and not (folder / MARKER).exists()
    get(card, tmp_path, force=True)
    assert content(folder) == {**UNPACKED, "mine.txt": b"mine"}
    assert len(server.requests) == 1  # what had come was not fetched a second time


@pytest.mark.parametrize("failure", ["cut", "checksum", "archive", "bomb"])
def test_a_failed_fetch_changes_nothing_that_was_there(server, tmp_path, monkeypatch, failure):
    card = make_card(offer(server))
    folder = get(card, tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    served = {
        "cut": Served(ARCHIVE, cuts=[0, 0, 0]),
        "checksum": Served(ARCHIVE),
        "archive": Served(zip_of({"../evil": b"x"})),
        "bomb": Served(zip_of({"bomb": bytes(5_000_000)})),
    }[failure]
    monkeypatch.setattr("fl_utils.data.fetch.MIN_UNPACKING_LIMIT_BYTES", 1_000_000)
    line = offer(server, served, checksum="md5:" + "0" * 32 if failure == "checksum" else True)
    with pytest.raises((FetchError, ArchiveError)):
        get(make_card(line), tmp_path, force=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "evil").exists()


def test_a_damaged_archive_is_not_taken_for_whole_the_next_time(server, tmp_path):
    line = offer(server, Served(ARCHIVE[:-100]), checksum=None)
    with pytest.raises(ArchiveError, match="tiny.zip was not unpacked"):
        get(make_card(line), tmp_path)
    server.files["/tiny.zip"] = Served(ARCHIVE)
    assert content(get(make_card(line), tmp_path)) == UNPACKED


def test_a_web_page_instead_of_the_file_is_named(server, tmp_path):
    line = offer(server, Served(b"<!DOCTYPE html><html><body>Please log in</body></html>"), checksum=None)
    with pytest.raises(ArchiveError, match="looks like a web page"):
        get(make_card(line), tmp_path)


@pytest.mark.parametrize("published", [True, False])
def test_a_full_disk_is_told_before_the_download(server, tmp_path, monkeypatch, published):
    usage = namedtuple("usage", "total used free")
    free = int(1.5 * len(ARCHIVE))  # enough for the file, not for the file and its content
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - free, free))
    with pytest.raises(FetchError, match="needs 0.00 GB, but the disk of"):
        get(make_card(offer(server, size_bytes=len(ARCHIVE) if published else None)), tmp_path)
    assert len(server.requests) == (0 if published else 1)
    assert not part(tmp_path).exists()
    server.files.clear()
    get(make_card(offer(server, unpack=False)), tmp_path)  # once is enough for a file that stays as it is


def test_a_disk_that_fills_up_keeps_what_came(server, tmp_path, monkeypatch):
    write = downloads._Transfer._write

    def full(self, answer, have, total):
        self.part.write_bytes(answer.raw.read(200_000))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads._Transfer, "_write", full)
    card = make_card(offer(server))
    with pytest.raises(FetchError, match="No space left on device. What came is kept"):
        get(card, tmp_path)
    monkeypatch.setattr(downloads._Transfer, "_write", write)
    assert content(get(card, tmp_path)) == UNPACKED
    assert server.ranges("/tiny.zip") == [None, "bytes=200000-"] and len(server.requests) == 2


def test_redirects_are_followed_but_not_to_plain_http_elsewhere(server, tmp_path):
    line = offer(server)
    server.files["/moved.zip"] = Served(location=server.address("/tiny.zip"))
    moved = Download("url", server.address("/moved.zip"), "moved.zip", line.checksum, strip=1)
    assert content(get(make_card(moved), tmp_path)) == UNPACKED
    server.files["/moved.zip"] = Served(location="http://192.0.2.1/tiny.zip?signature=hidden")
    with pytest.raises(FetchError, match="http://192.0.2.1/tiny.zip is not taken: expected https") as caught:
        get(make_card(moved, folder="other"), tmp_path)
    assert "hidden" not in str(caught.value)


def test_an_archive_that_is_labelled_as_compressed_is_kept_as_sent(server, tmp_path):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("empty.csv"))
    line = offer(server, Served(tar.getvalue(), encoding="gzip"), "/tiny.tar.gz", strip=0)
    assert content(get(make_card(line), tmp_path)) == {"empty.csv": b""}


def test_a_file_of_unknown_length(server, tmp_path):
    line = offer(server, Served(ARCHIVE, length=False))
    assert content(get(make_card(line), tmp_path)) == UNPACKED


CHILD = """
import sys, time
from tests.end_to_end.test_fetch_server import make_card
from fl_utils.data import downloads
from fl_utils.data.catalogue import Download
from fl_utils.data.fetch import fetch
downloads.FIRST_WAIT_S, downloads.READ_TIMEOUT_S = 0.01, 30
address, checksum, root, hold = sys.argv[1:]
if hold == "checksum":
    import pooch.core
    def waiting(*args, **kwargs):
        open(root + "/holding", "w").close()
        time.sleep(60)
    pooch.core.hash_matches = waiting
if hold == "moving":
    import os
    replace = os.replace
    def waiting(source, target):
        replace(source, target)
        if "/tiny/" in str(target) and "/.fetching/" not in str(target):
            open(root + "/holding", "w").close()
            time.sleep(60)
    os.replace = waiting
fetch(make_card(Download("url", address, "tiny.zip", checksum, strip=1)), root=root, progress=False)
"""


def start(server, root, hold="nothing"):
    environment = {key: value for key, value in os.environ.items() if key not in PROXIES}
    command = [sys.executable, "-c", CHILD, server.address("/tiny.zip"), Served(ARCHIVE).sha256, str(root), hold]
    return subprocess.Popen(command, cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)


def wait_for(condition, child):
    deadline = time.monotonic() + 60
    while not condition():
        assert child.poll() is None, child.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill(child):
    child.kill()
    child.communicate(timeout=60)


def test_a_fetch_that_is_interrupted_goes_on(server, tmp_path, monkeypatch):
    card = make_card(offer(server, Served(ARCHIVE, etag='"v1"')))

    def interrupted(bar, size):
        if part(tmp_path).stat().st_size >= 200_000:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(downloads.tqdm, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(card, tmp_path)
    have = part(tmp_path).stat().st_size
    assert 200_000 <= have < 400_000 and not (tmp_path / "tiny").exists()
    assert content(get(card, tmp_path)) == UNPACKED
    assert server.ranges("/tiny.zip") == [None, f"bytes={have}-"]


def test_a_fetch_that_is_killed_midway_goes_on(server, tmp_path):
    card = make_card(offer(server, Served(ARCHIVE, slow_s=0.2, etag='"v1"')))
    child = start(server, tmp_path)
    try:
        wait_for(lambda: part(tmp_path).exists() and part(tmp_path).stat().st_size >= 200_000, child)
    finally:
        kill(child)
    assert child.returncode == -signal.SIGKILL and not (tmp_path / "tiny").exists()
    have = part(tmp_path).stat().st_size
    assert 200_000 <= have < len(ARCHIVE) and len(server.requests) == 1
    server.files["/tiny.zip"].slow_s = 0
    assert content(get(card, tmp_path)) == UNPACKED
    assert server.ranges("/tiny.zip") == [None, f"bytes={have}-"] and left_over(tmp_path) == []


def test_a_fetch_that_is_killed_while_it_compares_need_not_download_again(server, tmp_path):
    card = make_card(offer(server))
    child = start(server, tmp_path, "checksum")
    try:
        wait_for((tmp_path / "holding").exists, child)
    finally:
        kill(child)
    assert not (tmp_path / "tiny").exists()
    assert content(get(card, tmp_path)) == UNPACKED and len(server.requests) == 1 and left_over(tmp_path) == []


def test_a_fetch_that_is_killed_while_it_moves_files_ends_whole(server, tmp_path):
    folder = tmp_path / "tiny"
    (folder / "Training" / "a").mkdir(parents=True)  # so files are moved one by one
    (folder / "Training" / "b").mkdir(parents=True)
    card = make_card(offer(server))
    child = start(server, tmp_path, "moving")
    try:
        wait_for((tmp_path / "holding").exists, child)
    finally:
        kill(child)
    assert 1 <= len(content(folder)) < 3 and not (folder / MARKER).exists()  # not whole, and not called so
    assert content(get(card, tmp_path)) == UNPACKED and (folder / MARKER).exists()
    assert len(server.requests) == 1 and left_over(tmp_path) == []


def test_two_fetches_of_one_dataset_do_not_meet(server, tmp_path):
    card = make_card(offer(server, Served(ARCHIVE, slow_s=0.05)))
    results = []
    thread = threading.Thread(target=lambda: results.append(get(card, tmp_path)))
    thread.start()
    try:
        while not part(tmp_path).exists():
            time.sleep(0.005)
        with pytest.raises(FetchError, match=f"being fetched already, by process {os.getpid()}"):
            get(card, tmp_path)
        other = make_card(offer(server, path="/other.zip"), name="other", folder="other")
        assert content(get(other, tmp_path)) == UNPACKED  # another dataset may
    finally:
        thread.join(60)
    assert content(results[0]) == UNPACKED


SECRET, WRONG = "a-secret-key-that-nobody-must-see", "another-key-that-nobody-must-see"


@pytest.fixture
def kaggle_server(server, tmp_path, monkeypatch):
    """The real kagglehub, with a server on this machine in Kaggle's place."""
    from kagglesdk import kaggle_env

    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.LOCAL, server.address(""))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "home" / ".kaggle"))
    monkeypatch.setenv("KAGGLE_USERNAME", "somebody")
    monkeypatch.setenv("KAGGLE_KEY", SECRET)
    monkeypatch.delenv("KAGGLE_API_TOKEN", raising=False)
    needs = "Basic " + base64.b64encode(f"somebody:{SECRET}".encode()).decode()
    service = "/api/v1/datasets.DatasetApiService"
    server.files[f"{service}/GetDataset"] = as_json({"currentVersionNumber": 3})
    server.files[f"{service}/DownloadDataset"] = Served(location=server.address("/bundle.zip"), needs=needs)
    server.files["/bundle.zip"] = Served(ARCHIVE)
    return server


def test_the_real_kagglehub_goes_on_after_a_cut(kaggle_server, tmp_path, capfd):
    large = {**FILES, "set/large": np.random.default_rng(1).bytes(3_000_000)}  # kagglehub writes pieces of 1 MiB
    kaggle_server.files["/bundle.zip"] = Served(zip_of(large), cuts=[2_500_000])
    root = tmp_path / "data"
    folder = fetch(make_card(Download("kaggle", "owner/tiny", strip=1)), root=root)
    assert content(folder) == {name.removeprefix("set/"): data for name, data in large.items()}
    assert json.loads((folder / MARKER).read_text())["downloads"][0]["version"] == "owner/tiny/versions/3"
    assert kaggle_server.ranges("/bundle.zip") == [None, None, f"bytes={2 << 20}-"]
    assert left_over(root) == []
    files = [path.read_bytes().decode("latin-1") for path in root.rglob("*") if path.is_file()]
    told = "".join([*capfd.readouterr(), *files])
    assert "owner/tiny" in told and SECRET not in told


def test_the_real_kagglehub_without_access(kaggle_server, tmp_path, monkeypatch, capfd):
    card = make_card(Download("kaggle", "owner/tiny", strip=1))
    monkeypatch.setenv("KAGGLE_KEY", WRONG)
    with pytest.raises(FetchError, match="HTTP 401.*that were found are not accepted.*KAGGLE_API_TOKEN") as caught:
        fetch(card, root=tmp_path / "data")
    assert WRONG not in "".join(capfd.readouterr()) + str(caught.getrepr(style="long", chain=True))
    monkeypatch.delenv("KAGGLE_KEY")
    with pytest.raises(FetchError, match="HTTP 401.*no credentials were found"):
        get(card, tmp_path / "data")
    kaggle_server.files.clear()
    with pytest.raises(FetchError, match="no such dataset"):
        get(card, tmp_path / "data")
