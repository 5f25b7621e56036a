"""Cards and addresses that are refused, Kaggle and its credentials, and what `verify` sees. No network."""

import base64
import gzip
import json
import logging
import os
import shutil
import stat
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import kagglehub
import nibabel
import numpy as np
import pooch
import pytest
import requests
from kagglehub.exceptions import DataCorruptionError, KaggleApiHTTPError, UnauthenticatedError
from PIL import Image

from fl_utils.data import DataError, card, downloads, kaggle
from fl_utils.data.archives import ArchiveError
from fl_utils.data.catalogue import CARDS, DatasetCard, Download
from fl_utils.data.fetch import MARKER, ChecksumError, FetchError, fetch, verify

SECRET = "a-secret-key-that-nobody-must-see"
TOKEN = "KGAT-a-token-that-nobody-must-see"
TREE = {"top/train/a/1.jpg": b"one", "top/train/b/2.jpg": b"two", "top/list.csv": b"a,b\n"}


def make_card(*items, **fields):
    given = dict(
        name="tiny", label="Tiny", title="Tiny", task="multi-class", modality="X-ray", layout="class_folders",
        folder="tiny", classes={"NORMAL": "normal", "SICK": "sick"}, licence="none", citation="none",
        source="https://example.org/tiny", ethics="none", downloads=items,
    )  # fmt: skip
    return DatasetCard(**{**given, **fields})


KAGGLE = make_card(Download("kaggle", "owner/tiny", strip=1))


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# --- what is refused before anything is asked ---


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://example.org/a.zip", "expected https"),
        ("http://localhost.example.org/a.zip", "expected https"),
        ("ftp://example.org/a.zip", "expected https"),
        ("file:///etc/passwd", "expected https"),
        ("example.org/a.zip", "expected https"),
        ("https:///a.zip", "expected https"),
        (f"https://me:{SECRET}@example.org/a.zip", "holds a user name or a password"),
    ],
)
def test_addresses_that_are_not_taken(tmp_path, address, said):
    with pytest.raises(FetchError, match=said) as caught:
        fetch(make_card(Download("url", address, "a.zip")), root=tmp_path)
    assert SECRET not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "address", ["https://example.org/a", "http://localhost:8/a", "http://127.0.0.5/a", "http://[::1]/a"]
)
def test_addresses_that_are_taken(address):
    downloads.check_address(address)


@pytest.mark.parametrize(
    ("item", "fields", "said"),
    [
        (Download("url", "https://example.org/a", "../a.zip"), {}, "no plain file name"),
        (Download("url", "https://example.org/a", "sub/a.zip"), {}, "no plain file name"),
        (Download("url", "https://example.org/a", ""), {}, "no plain file name"),
        (Download("url", "https://example.org/a", ".fetched.json"), {}, "no plain file name"),
        (Download("url", "https://example.org/a", "a", "md5:123"), {}, "not md5:<32 digits>"),
        (Download("url", "https://example.org/a", "a", "sha1:" + "0" * 40), {}, "not md5:<32 digits>"),
        (Download("kaggle", "https://kaggle.com/owner/name"), {}, "no Kaggle handle"),
        (Download("kaggle", "owner"), {}, "no Kaggle handle"),
        (Download("kaggle", "owner/name"), {"folder": "../out"}, "not a path below"),
        (Download("kaggle", "owner/name"), {"folder": "/out"}, "not a path below"),
        (Download("kaggle", "owner/name"), {"synthetic": True}, "nothing to fetch"),
    ],
)
def test_cards_that_make_no_sense(tmp_path, item, fields, said):
    with pytest.raises(FetchError, match=said):
        fetch(make_card(item, **fields), root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_without_a_download_tells_what_to_do(tmp_path):
    with pytest.raises(FetchError, match="Sign the form.*example.org/tiny.*Put it into tiny/"):
        fetch(make_card(access="Sign the form."), root=tmp_path)
    with pytest.raises(DataError, match="no dataset 'brain'"):
        fetch("brain", root=tmp_path)
    with pytest.raises(FetchError, match="nothing to fetch"):
        fetch("phantom_brain", root=tmp_path)


@pytest.mark.parametrize("name", [name for name, info in CARDS.items() if info.downloads])
def test_the_cards_of_the_catalogue_are_well_formed(tmp_path, monkeypatch, name):
    """Every card's addresses, names and checksums are well-formed; no card gets as far as the network here."""
    asked = []
    monkeypatch.setattr("fl_utils.data.fetch._Fetch.run", lambda self: asked.append(self.info.name) or self.folder)
    assert fetch(name, root=tmp_path) == tmp_path / card(name).folder and asked == [name]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FetchError, match="could not be written: .*set FL_UTILS_DATA to another folder"):
        fetch(KAGGLE, root=tmp_path / "file")


# --- Kaggle ---


@pytest.fixture
def account(monkeypatch, tmp_path):
    """Credentials in every place at once, and a home without real ones."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "home" / ".kaggle"))
    monkeypatch.setenv("KAGGLE_USERNAME", "somebody")
    monkeypatch.setenv("KAGGLE_KEY", SECRET)
    monkeypatch.delenv("KAGGLE_API_TOKEN", raising=False)
    monkeypatch.delenv("KAGGLEHUB_CACHE", raising=False)
    monkeypatch.setattr(downloads, "FIRST_WAIT_S", 0.001)


@pytest.fixture
def no_account(account, monkeypatch):
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")


class Hub:
    """Stands in for kagglehub.dataset_download: fails as told, then writes a tree where kagglehub would."""

    def __init__(self, monkeypatch, files=TREE, errors=()):
        self.files, self.errors, self.calls = files, list(errors), []
        monkeypatch.setattr(kagglehub, "dataset_download", self)

    def __call__(self, handle, path=None, *, force_download=False, output_dir=None):
        self.calls.append((handle, force_download))
        if self.errors:
            raise self.errors.pop(0)
        folder = Path(os.environ["KAGGLEHUB_CACHE"]) / "datasets" / handle / "versions" / "3"
        for name, data in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return str(folder)


def refusal(status, text="Client Error"):
    response = requests.Response()
    response.status_code = status
    return KaggleApiHTTPError(text, response=response)


def nowhere(root, capfd, caplog, *texts):
    """No output, log or file holds the credentials."""
    out = capfd.readouterr()
    seen = [out.out, out.err, caplog.text, *texts]
    seen += [path.read_bytes().decode("latin-1") for path in root.rglob("*") if path.is_file()]
    basic = base64.b64encode(f"somebody:{SECRET}".encode()).decode()
    assert not [text for text in seen if any(secret in text for secret in (SECRET, TOKEN, basic))]


def test_a_kaggle_dataset_comes_and_is_noted(account, tmp_path, monkeypatch, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    hub = Hub(monkeypatch)
    root = tmp_path / "data"
    folder = fetch(KAGGLE, root=root)
    assert content(folder) == {"train/a/1.jpg": b"one", "train/b/2.jpg": b"two", "list.csv": b"a,b\n"}
    assert hub.calls == [("owner/tiny", False)] and "KAGGLEHUB_CACHE" not in os.environ
    entry = json.loads((folder / MARKER).read_text())["downloads"][0]
    assert entry["version"] == "owner/tiny/versions/3" and len(entry["sha256"]) == 64 and entry["size_bytes"] == 10
    assert {path.name for path in (root / ".fetching").iterdir()} == {"tiny.lock"}  # no second copy stays
    fetch(KAGGLE, root=root)
    assert len(hub.calls) == 1
    nowhere(root, capfd, caplog)


def test_a_changed_kaggle_dataset_is_noticed(account, tmp_path, monkeypatch):
    Hub(monkeypatch)
    folder = fetch(KAGGLE, root=tmp_path, progress=False)
    before = content(folder)
    Hub(monkeypatch, {**TREE, "top/list.csv": b"new"})
    with pytest.raises(ChecksumError, match="expected sha256:.* but got .*earlier fetch.*delete that file"):
        fetch(KAGGLE, root=tmp_path, progress=False, force=True)
    assert content(folder) == before and (folder / MARKER).exists()
    (folder / MARKER).unlink()
    fetch(KAGGLE, root=tmp_path, progress=False, force=True)
    assert content(folder)["list.csv"] == b"new"


def test_a_cache_elsewhere_is_copied_not_taken_apart(account, tmp_path, monkeypatch):
    """In Kaggle's own notebooks the data is mounted, not downloaded."""
    mounted = tmp_path / "input"
    (mounted / "top").mkdir(parents=True)
    (mounted / "top" / "list.csv").write_bytes(b"a,b\n")
    monkeypatch.setattr(kagglehub, "dataset_download", lambda *_, **__: str(mounted))
    folder = fetch(KAGGLE, root=tmp_path / "data", progress=False)
    assert content(folder) == {"list.csv": b"a,b\n"} and (mounted / "top" / "list.csv").exists()
    assert (folder / "list.csv").stat().st_ino != (mounted / "top" / "list.csv").stat().st_ino


@pytest.mark.parametrize("status", [401, 403])
def test_no_credentials_tells_how_to_set_them(no_account, tmp_path, monkeypatch, status):
    hub = Hub(monkeypatch, errors=[refusal(status)])
    said = f"HTTP {status}.*no credentials were found.*KAGGLE_API_TOKEN.*KAGGLE_KEY.*kaggle.json"
    with pytest.raises(FetchError, match=said):
        fetch(KAGGLE, root=tmp_path / "data", progress=False)
    assert len(hub.calls) == 1  # asking again does not help
    Hub(monkeypatch, errors=[UnauthenticatedError()])
    with pytest.raises(FetchError, match="no credentials were found"):
        fetch(KAGGLE, root=tmp_path / "data", progress=False)


@pytest.mark.parametrize("place", ["variables", "token", "file"])
def test_credentials_are_in_no_message_log_or_file(account, tmp_path, monkeypatch, capfd, caplog, place):
    caplog.set_level(logging.DEBUG)
    used = TOKEN if place == "token" else SECRET
    if place == "token":
        monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    if place == "file":
        monkeypatch.delenv("KAGGLE_KEY")
        (tmp_path / "home" / ".kaggle").mkdir(parents=True)
        text = json.dumps({"username": "somebody", "key": SECRET})
        (tmp_path / "home" / ".kaggle" / "kaggle.json").write_text(text)
    basic = base64.b64encode(f"somebody:{SECRET}".encode()).decode()
    told = []
    for error in (
        refusal(403, f"denied for {used}"),
        RuntimeError(f"headers: Bearer {used}, Basic {basic if place != 'token' else used}"),
        requests.ConnectionError(f"https://somebody:{used}@www.kaggle.com"),
        ValueError(f"Invalid Kaggle credentials file: {used}"),
    ):
        Hub(monkeypatch, errors=[error] * downloads.MAX_FAILURES)
        with pytest.raises(FetchError) as caught:
            fetch(KAGGLE, root=tmp_path / "data")
        whole = caught.getrepr(style="long", showlocals=False, chain=True)
        told.append(f"{caught.value} {caught.value.__cause__} {caught.value.__context__} {whole}")
        assert "Kaggle dataset owner/tiny" in told[-1]
    assert "credentials that were found are not accepted" in told[0] and "***" in told[1]
    nowhere(tmp_path / "data", capfd, caplog, *told)


def test_an_unknown_handle_and_a_lost_connection(account, tmp_path, monkeypatch):
    Hub(monkeypatch, errors=[refusal(404)])
    with pytest.raises(FetchError, match="no such dataset"):
        fetch(KAGGLE, root=tmp_path, progress=False)
    hub = Hub(monkeypatch, errors=[requests.ReadTimeout(), refusal(503)])
    fetch(KAGGLE, root=tmp_path, progress=False)
    assert len(hub.calls) == 3  # it was asked again until it answered
    hub = Hub(monkeypatch, errors=[requests.ConnectionError()] * 99)
    with pytest.raises(FetchError, match="connection failed or was cut. Fetch again; it goes on"):
        fetch(KAGGLE, root=tmp_path, progress=False, force=True)
    assert len(hub.calls) == downloads.MAX_FAILURES


@pytest.mark.parametrize("error", [zipfile.BadZipFile("x"), DataCorruptionError("x")])
def test_a_damaged_archive_of_kaggle_is_removed(account, tmp_path, monkeypatch, error):
    archive = tmp_path / ".fetching" / "tiny" / "kaggle" / "3.archive"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"damaged")
    Hub(monkeypatch, errors=[error])
    with pytest.raises(FetchError, match="damaged and was removed"):
        fetch(KAGGLE, root=tmp_path, progress=False)
    assert not archive.exists()


def test_an_unfinished_kaggle_archive_is_left_for_kagglehub(account, tmp_path, monkeypatch):
    archive = tmp_path / ".fetching" / "tiny" / "kaggle" / "3.archive"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"half")
    Hub(monkeypatch, errors=[requests.ConnectionError()] * 99)
    with pytest.raises(FetchError):
        fetch(KAGGLE, root=tmp_path, progress=False)
    assert archive.read_bytes() == b"half"


def test_links_and_collisions_in_a_kaggle_dataset_are_refused(account, tmp_path, monkeypatch):
    hub = Hub(monkeypatch, {"train/1": b"1", "test/1": b"2"})
    with pytest.raises(FetchError, match="two files for 1 when strip is 1"):
        fetch(KAGGLE, root=tmp_path / "data", progress=False)

    def with_link(*args, **kwargs):
        folder = Path(hub(*args, **kwargs))
        (folder / "odd").symlink_to("/etc/passwd")
        return str(folder)

    monkeypatch.setattr(kagglehub, "dataset_download", with_link)
    with pytest.raises(FetchError, match="holds a link, 'odd'"):
        fetch(KAGGLE, root=tmp_path / "data", progress=False)
    assert not (tmp_path / "data" / "tiny").exists()


def test_files_of_others_stay_beside_a_kaggle_dataset(account, tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "list.csv").write_bytes(b"mine")
    hub = Hub(monkeypatch)
    with pytest.raises(ArchiveError, match="list.csv"):
        fetch(KAGGLE, root=tmp_path, progress=False)
    assert content(tmp_path / "tiny") == {"list.csv": b"mine"}
    fetch(KAGGLE, root=tmp_path, progress=False, force=True)
    assert len(content(tmp_path / "tiny")) == 3 and len(hub.calls) == 1


def test_a_full_disk_is_told_before_kaggle_is_asked(account, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 80 * 10**9))
    hub = Hub(monkeypatch)
    with pytest.raises(FetchError, match="needs 90.00 GB, but the disk of .* has 80.00 GB left"):
        fetch(make_card(*KAGGLE.downloads, size_bytes=45 * 10**9), root=tmp_path)
    assert hub.calls == []


def test_a_missing_kagglehub_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(FetchError, match="kagglehub cannot be imported"):
        fetch(KAGGLE, root=tmp_path)


def test_short_variables_do_not_garble_messages(no_account, monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", "a")
    assert kaggle.scrub("a banana") == "a banana"
    monkeypatch.setenv("KAGGLE_KEY", SECRET)
    assert kaggle.scrub(f"a {SECRET}!") == "a ***!"


# --- verify ---


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 30), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def images(tmp_path):
    for part, count in (("train", 3), ("val", 1), ("test", 2)):
        for kind in ("NORMAL", "SICK"):
            for i in range(count):
                picture(tmp_path / "tiny" / part / kind / f"{i}.{'png' if i else 'jpeg'}", i)
    (tmp_path / "tiny" / "list.csv").write_text("a,b\n")
    (tmp_path / "tiny" / ".DS_Store").write_bytes(b"")
    (tmp_path / "tiny" / "train" / "NORMAL" / "._0.jpeg").write_bytes(b"x")
    (tmp_path / "tiny" / "Thumbs.db").write_bytes(b"x")
    return tmp_path


PARTS = make_card(splits={"train": ("train", "val"), "test": ("test",)}, counts={"train": 8, "test": 4, "test/SICK": 2})


def test_whole_images_are_counted(images):
    report = verify(PARTS, root=images, progress=False)
    assert report.ok and report.problems == () and report.files == 13
    assert (report.name, report.folder) == ("tiny", images / "tiny")
    assert report.size_bytes == sum(len(data) for name, data in content(images / "tiny").items() if "." not in name[:1]
                                    and "._" not in name and "Thumbs" not in name)  # fmt: skip
    expected = {"train": 8, "val": 2, "test": 4, "train/SICK": 3, "SICK": 6, "sick": 6, "normal": 6, "total": 12}
    assert {key: report.found[key] for key in expected} == expected
    assert report.published == PARTS.counts
    assert report.notes == ("Not put there by `fetch`: there is no list of files to compare with.",)


def test_another_number_of_images_is_a_note(images):
    (images / "tiny" / "test" / "SICK" / "0.jpeg").unlink()
    report = verify(PARTS, root=images, progress=False)
    assert report.ok
    assert report.notes[1:] == ("test: 3 found, 4 published.", "test/SICK: 1 found, 2 published.")


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[len(data) // 2 :]
    elif how == "empty":
        data.clear()
    elif how == "flipped":
        data[len(data) // 2] ^= 0xFF
    else:
        data[:] = b"<html>not an image</html>"
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "how"),
    [*(("0.jpeg", how) for how in ("cut", "empty", "page")), *(("1.png", how) for how in ("cut", "flipped", "page"))],
)
def test_damaged_images_are_named_with_the_reason(images, name, how):
    damage(images / "tiny" / "train" / "SICK" / name, how)
    report = verify(PARTS, root=images, progress=False)
    (path, reason), = report.problems  # fmt: skip
    assert not report.ok and path == f"train/SICK/{name}" and reason and str(images) not in reason


def test_all_damaged_files_are_listed(images):
    for name in ("train/NORMAL/1.png", "test/SICK/0.jpeg"):
        damage(images / "tiny" / name, "page")
    problems = verify(PARTS, root=images, progress=False).problems
    assert [path for path, _ in problems] == ["test/SICK/0.jpeg", "train/NORMAL/1.png"]


def test_a_bar_is_shown_on_request(images, capfd):
    verify(PARTS, root=images, progress=False)
    assert capfd.readouterr() == ("", "")
    verify(PARTS, root=images)
    assert "Verifying" in capfd.readouterr().err


@pytest.mark.parametrize("how", ["", "cut", "flipped"])
def test_npz_files_are_compared_with_their_checksums(tmp_path, how):
    for size in (8, 16):  # the same images in two sizes count once
        path = tmp_path / "tiny" / f"tiny_{size}.npz"
        path.parent.mkdir(exist_ok=True)
        arrays = {"train_images": 30, "val_images": 4, "test_images": 6, "train_labels": 30}
        np.savez(path, **{key: np.zeros((count, size, size), np.uint8) for key, count in arrays.items()})
    item = Download("url", "https://example.org/a", path.name, "md5:" + pooch.file_hash(str(path), "md5"), unpack=False)
    if how:
        damage(path, how)
    info = make_card(item, layout="medmnist", counts={"train": 30, "val": 4, "test": 6})
    report = verify(info, root=tmp_path, progress=False)
    assert report.ok == (not how) and [path for path, _ in report.problems] == ["tiny_16.npz"] * bool(how)
    assert {key: report.found[key] for key in info.counts} == dict(info.counts)
    assert any("is not the published file: its md5 is" in note for note in report.notes) == bool(how)


def volume(path, dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).integers(0, 1000, (12, 10, 8)).astype(dtype)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), path)
    return path


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("how", ["", "cut", "empty", "page"])
def test_volumes_are_read_to_their_end(tmp_path, ending, how):
    path = volume(tmp_path / "tiny" / "imagesTr" / f"case{ending}")
    volume(tmp_path / "tiny" / "labelsTr" / f"case{ending}", np.uint8)
    if how:
        damage(path, how)
    info = make_card(task="segmentation", layout="msd", splits={"train": ("imagesTr",)}, counts={"train": 1, "test": 1})
    report = verify(info, root=tmp_path, progress=False)
    assert [path for path, _ in report.problems] == [f"imagesTr/case{ending}"] * bool(how)
    assert report.found["train"] == 1 and report.notes[1:] == ("test: 0 found, 1 published.",)


@pytest.mark.parametrize("how", ["checksum", "short"])
def test_a_gzip_stream_that_does_not_hold_what_it_says(tmp_path, how):
    path = volume(tmp_path / "tiny" / "imagesTr" / "case.nii.gz")
    if how == "checksum":
        data = bytearray(path.read_bytes())
        data[-6] ^= 0xFF  # in the checksum at the end: the content itself is whole
        path.write_bytes(data)
    else:
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-500]))  # a whole stream of too little
    report = verify(make_card(task="segmentation", layout="msd"), root=tmp_path, progress=False)
    assert [path for path, _ in report.problems] == ["imagesTr/case.nii.gz"]
    assert ("CRC" if how == "checksum" else "its header announces") in report.problems[0][1]


def test_subjects_of_brats_are_folders_with_a_segmentation(tmp_path):
    for subject, kinds in (("T_001", ("flair", "t1", "seg")), ("T_002", ("flair", "seg")), ("V_001", ("flair",))):
        for kind in kinds:
            volume(tmp_path / "tiny" / "all" / subject / f"{subject}_{kind}.nii")
    info = make_card(task="segmentation", layout="brats", splits={"train": (".",)}, counts={"train": 3})
    report = verify(info, root=tmp_path, progress=False)
    assert report.ok and report.found["train"] == 2 and report.notes[1:] == ("train: 2 found, 3 published.",)


def test_parts_that_are_lists_of_images(images):
    (images / "tiny" / "test_list.txt").write_text("0.jpeg\n1.png\nnot_there.png\n")
    info = make_card(layout="nih", counts={"test_list.txt": 3, "train_list.txt": 5})
    report = verify(info, root=images, progress=False)
    assert report.notes[1:] == ("test_list.txt: 2 found, 3 published.", "train_list.txt: 0 found, 5 published.")


def test_the_list_of_a_fetch_is_compared(account, tmp_path, monkeypatch):
    png = picture(tmp_path / "source.png").read_bytes()
    Hub(monkeypatch, {"top/train/SICK/1.png": png, "top/train/SICK/2.png": png, "top/list.csv": b"a,b\n"})
    folder = fetch(KAGGLE, root=tmp_path, progress=False)
    report = verify(KAGGLE, root=tmp_path, progress=False)
    assert report.ok and report.notes == () and report.files == 3
    (folder / "train" / "SICK" / "1.png").unlink()
    (folder / "list.csv").write_bytes(b"longer than it was")
    assert verify(KAGGLE, root=tmp_path, progress=False).problems == (
        ("list.csv", "has 18 bytes, had 4 when it was fetched"), ("train/SICK/1.png", "missing"),
    )  # fmt: skip


def test_a_kept_file_is_compared_with_its_checksum(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "list.csv").write_bytes(b"a,b\n")
    sha256 = pooch.file_hash(str(folder / "list.csv"))
    entry = {"address": "https://example.org/list.csv", "file_name": "list.csv", "sha256": sha256, "unpacked": False}
    (folder / MARKER).write_text(json.dumps({"downloads": [entry], "files": {"list.csv": 4}}))
    assert verify(make_card(), root=tmp_path, progress=False).ok
    (folder / "list.csv").write_bytes(b"b,a\n")  # as long as it was
    (name, reason), = verify(make_card(), root=tmp_path, progress=False).problems  # fmt: skip
    assert name == "list.csv" and reason.endswith(f"was {sha256} when it was fetched")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 1, "downloads": []}'])
def test_a_damaged_list_counts_as_none(images, text):
    (images / "tiny" / MARKER).write_text(text)
    assert "Not put there by `fetch`" in verify(PARTS, root=images, progress=False).notes[0]


def test_a_folder_that_is_missing_or_empty(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no files in .*tiny.*Source: https://example.org/tiny"):
        verify(PARTS, root=tmp_path)
    monkeypatch.setenv("FL_UTILS_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"no files in {tmp_path / 'brain_mri'}"):
        verify("brain_mri")
    with pytest.raises(DataError, match="is generated"):
        verify("phantom_brain")
    with pytest.raises(DataError, match="no folder of its own"):
        verify(make_card(folder=""))


def test_a_link_that_leads_back_is_entered_once(images):
    (images / "tiny" / "train" / "loop").symlink_to(images / "tiny")
    assert verify(PARTS, root=images, progress=False).files == 13


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(images):
    path = images / "tiny" / "train" / "SICK" / "1.png"
    path.chmod(0)
    assert [name for name, _ in verify(PARTS, root=images, progress=False).problems] == ["train/SICK/1.png"]
    path.chmod(stat.S_IRUSR)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["covid19", "hippocampus", "pneumoniamnist"])
def test_real_data_is_whole(name):
    root = os.environ.get("FL_UTILS_DATA", "").strip()
    if not root or not (Path(root) / card(name).folder).is_dir():
        pytest.skip("needs FL_UTILS_DATA")
    report = verify(name, progress=False)
    assert report.ok and report.files > 0 and report.found["train"] > 0
