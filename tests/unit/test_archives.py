"""Unpacking: the three formats, everything that must be refused, and that nothing half-written stays."""

import errno
import gzip
import io
import shutil
import stat
import tarfile
import zipfile
from collections import namedtuple

import pytest

from fl_utils.data import DataError, archives
from fl_utils.data.archives import ArchiveError, unpack

FILES = {"set/Training/a/1.jpg": b"one" * 1000, "set/Training/b/2.jpg": b"two", "set/empty.csv": b""}


def make_zip(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def member(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def make(kind, folder, files):
    path = folder / f"made.{kind}"
    return make_zip(path, files) if kind == "zip" else make_tar(path, files, "w:gz" if kind == "tar.gz" else "w")


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def target(tmp_path):
    return tmp_path / "root" / "data"


def refused(archive, target, said, **limits):
    """Refuses, and leaves the target, what lies beside it and what lies above it as they were."""
    target.mkdir(parents=True)
    (target / "mine.txt").write_text("mine")
    above = {path for path in target.parent.parent.rglob("*")}
    with pytest.raises(ArchiveError, match=said) as caught:
        unpack(archive, target, **limits)
    assert archive.name in str(caught.value) and isinstance(caught.value, DataError)
    assert content(target) == {"mine.txt": b"mine"}
    assert {path for path in target.parent.parent.rglob("*")} == above


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_whole_archive_is_unpacked(tmp_path, target, kind):
    names = unpack(make(kind, tmp_path, FILES), target)
    assert names == sorted(FILES) and content(target) == FILES
    assert [path.name for path in target.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_leading_folders_are_left_out_but_never_a_file(tmp_path, target, kind):
    names = unpack(make(kind, tmp_path, {**FILES, "README": b"top"}), target, strip=1)
    assert names == ["README", "Training/a/1.jpg", "Training/b/2.jpg", "empty.csv"]
    assert unpack(make(kind, tmp_path, FILES), tmp_path / "deep", strip=9) == ["1.jpg", "2.jpg", "empty.csv"]


def test_the_format_is_told_from_the_content(tmp_path, target):
    assert unpack(make_zip(tmp_path / "download", FILES), target) == sorted(FILES)
    assert unpack(make_tar(tmp_path / "wrong.zip", FILES), tmp_path / "other") == sorted(FILES)


def test_what_macos_adds_is_left_out(tmp_path, target):
    clutter = {"__MACOSX/set/._1.jpg": b"x", "set/._1.jpg": b"x", "set/.DS_Store": b"x"}
    assert unpack(make_zip(tmp_path / "a.zip", {**FILES, **clutter}), target) == sorted(FILES)


def test_a_tar_made_of_a_folder_itself(tmp_path, target):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "a").write_bytes(b"a")
    with tarfile.open(tmp_path / "dot.tar.gz", "w:gz") as archive:
        archive.add(source, arcname=".")
    assert unpack(tmp_path / "dot.tar.gz", target) == ["sub/a"]


def test_permissions_of_the_archive_are_not_taken_over(tmp_path, target):
    info = tarfile.TarInfo("tool")
    info.mode = 0o4777
    unpack(make_tar(tmp_path / "a.tar", {info: b"x"}, "w"), target)
    assert not (target / "tool").stat().st_mode & (stat.S_ISUID | stat.S_IXUSR)
    plain = tmp_path / "plain"
    plain.mkdir()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_other_files_of_the_target_stay(tmp_path, target):
    (target / "set" / "Training" / "a").mkdir(parents=True)
    (target / "set" / "Training" / "a" / "mine.jpg").write_bytes(b"mine")
    (target / "set" / "Training" / "b").mkdir()
    (target / "set" / "Training" / "b" / "2.jpg").write_bytes(b"two")  # the same content: no clash
    unpack(make_zip(tmp_path / "a.zip", FILES), target)
    assert content(target) == {**FILES, "set/Training/a/mine.jpg": b"mine"}


@pytest.mark.parametrize("in_the_way", ["set/empty.csv", "set", "set/Training/a/1.jpg/folder"])
def test_a_file_in_the_way_is_not_overwritten(tmp_path, target, in_the_way):
    path = target / in_the_way
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(ArchiveError, match="already holds other files of the same names"):
        unpack(make_zip(tmp_path / "a.zip", FILES), target)
    assert content(target) == {in_the_way: b"mine"}
    assert [p.name for p in target.parent.iterdir()] == ["data"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../outside.txt", "leads out"),
        ("set/../../outside.txt", "leads out"),
        ("set/a/..", "leads out"),
        ("/outside.txt", "is absolute"),
        ("//host/outside.txt", "is absolute"),
        ("C:/outside.txt", "drive letter"),
        ("c:outside.txt", "drive letter"),
        ("..\\outside.txt", "backslash"),
        ("set\\..\\..\\outside.txt", "backslash"),
        ("set/a\nb", "control characters"),
    ],
)
@pytest.mark.parametrize("strip", [0, 1])
def test_paths_that_lead_out_are_refused(tmp_path, target, kind, name, said, strip):
    refused(make(kind, tmp_path, {**FILES, name: b"evil"}), target, said, strip=strip)


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "../../outside"),
        (tarfile.SYMTYPE, "1.jpg"),  # a link that stays inside is refused as well
        (tarfile.LNKTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "set/empty.csv"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, target, kind, link):
    refused(make_tar(tmp_path / "a.tar.gz", {**FILES, member("set/odd", kind, link): b""}), target, "link or a device")


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_refused(tmp_path, target, mode):
    info = zipfile.ZipInfo("set/odd")
    info.external_attr = (mode | 0o777) << 16
    refused(make_zip(tmp_path / "a.zip", {**FILES, info: b"/etc/passwd"}), target, "link or a device")


def test_writing_through_a_link_of_the_archive_is_impossible(tmp_path, target):
    through = {member("set", tarfile.SYMTYPE, str(tmp_path)): b"", "set/outside.txt": b"evil"}
    refused(make_tar(tmp_path / "a.tar", through, "w"), target, "link or a device")
    assert not (tmp_path / "outside.txt").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_two_entries_for_one_path_are_refused(tmp_path, target, kind):
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("a", "1")
            archive.writestr("a", "2")
        refused(tmp_path / "a.zip", target, "two entries for the path 'a'")
    else:
        files = {tarfile.TarInfo("a"): b"1", tarfile.TarInfo("a"): b"2"}
        refused(make_tar(tmp_path / "a.tar", files, "w"), target, "two entries for the path 'a'")


def test_parts_that_collide_without_their_folders_are_refused(tmp_path, target):
    refused(make_zip(tmp_path / "a.zip", {"train/1": b"1", "test/1": b"2"}), target, "two entries", strip=1)


def test_a_file_and_a_folder_of_one_name_are_refused(tmp_path, target):
    refused(make_zip(tmp_path / "a.zip", {"a": b"1", "a/b": b"2"}), target, "was not unpacked")


def test_an_encrypted_zip_is_refused(tmp_path, target):
    path = make_zip(tmp_path / "a.zip", {"a": b"secret"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[6] |= 1  # flags of the local header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # flags of the central directory
    path.write_bytes(data)
    refused(path, target, "encrypted")


BOMB = {"bomb": bytes(30_000_000)}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_bomb_is_stopped(tmp_path, target, kind):
    path = make(kind, tmp_path, BOMB)
    assert kind == "tar" or path.stat().st_size < 100_000
    refused(path, target, "more than the allowed 1,000,000 bytes", max_bytes=1_000_000)


def test_many_small_files_count_together(tmp_path, target):
    files = {f"{i}": bytes(1000) for i in range(20)}
    refused(make("tar.gz", tmp_path, files), target, "more than the allowed 15,000", max_bytes=15_000)


def test_the_limit_counts_what_is_written_not_what_headers_say(tmp_path, target, monkeypatch):
    """As if a header hid its size from the first look: the copying itself must stop, and early."""
    path, read = make_zip(tmp_path / "a.zip", BOMB), []

    class Watched(zipfile.ZipExtFile):
        def read(self, n=-1):
            chunk = super().read(n)
            read.append(len(chunk))
            return chunk

    monkeypatch.setattr(zipfile, "ZipExtFile", Watched)
    monkeypatch.setattr(archives._Budget, "announce", lambda self, num_bytes: None)
    refused(path, target, "more than the allowed 1,000,000 bytes", max_bytes=1_000_000)
    assert 0 < sum(read) < 4_000_000


def lying(path, size):
    """A zip whose headers give another size than its only file has."""
    make_zip(path, BOMB)
    data = bytearray(path.read_bytes())
    for start, offset in ((0, 22), (data.index(b"PK\x01\x02"), 24)):
        data[start + offset : start + offset + 4] = size.to_bytes(4, "little")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("size", [10, 40_000_000])
def test_a_lying_header_is_an_error(tmp_path, target, size):
    refused(lying(tmp_path / "a.zip", size), target, "was not unpacked", max_bytes=100_000_000)


def test_entries_that_share_their_data_are_counted_one_by_one(tmp_path, target):
    """The zip bomb without nesting: many directory entries for one run of compressed bytes."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(500_000))
        first = archive.infolist()[0]
        archive.filelist += [first] * 30
    with pytest.raises(ArchiveError):
        unpack(tmp_path / "a.zip", target, max_bytes=1_000_000)
    assert not target.exists()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_too_many_files_are_refused(tmp_path, target, kind):
    files = {f"f/{i}": b"" for i in range(11)}
    refused(make(kind, tmp_path, files), target, "more than 10 entries", max_files=10)
    assert len(unpack(make(kind, tmp_path, files), tmp_path / "enough", max_files=11)) == 11


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path, target):
    path = tmp_path / "a.tar.gz"
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 17 << 20
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT) + bytes(17 << 20))
    refused(path, target, "a header of")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "cut early"])
def test_a_damaged_archive_is_an_error(tmp_path, target, kind, damage):
    noise = bytes(i * i % 251 for i in range(20_000))
    path = make(kind, tmp_path, {"a": noise, "b": noise[::-1]})
    data = bytearray(path.read_bytes())
    if kind == "tar" and damage == "flipped":
        data[20_480 + 512 + 5] ^= 0xFF  # the name in the second header; a tar has no checksum of contents
    elif damage == "flipped":
        data[len(data) // 3] ^= 0xFF
    else:
        del data[len(data) * (7 if damage == "cut" else 3) // 10 :]
    path.write_bytes(data)
    refused(path, target, "was not unpacked")


def test_the_checksum_at_the_end_of_a_tar_gz_is_compared(tmp_path, target):
    path = make_tar(tmp_path / "a.tar.gz", FILES)
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF
    path.write_bytes(data)
    refused(path, target, "CRC")


def test_a_tar_without_its_end_is_an_error(tmp_path, target):
    path = make_tar(tmp_path / "a.tar", {"a": bytes(512), "b": bytes(512)}, "w")
    path.write_bytes(path.read_bytes()[:1024])  # exactly the first file
    refused(path, target, "breaks off")


@pytest.mark.parametrize("text", [b"<!DOCTYPE html><html>Please log in</html>", b"", b"PK", bytes(2000)])
def test_other_formats_are_named(tmp_path, target, text):
    (tmp_path / "a.zip").write_bytes(text)
    refused(tmp_path / "a.zip", target, "web page" if b"html" in text else "was not unpacked")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_without_files_is_an_error(tmp_path, target, kind):
    refused(make(kind, tmp_path, {}), target, "was not unpacked")


def test_a_missing_archive_is_an_error(tmp_path, target):
    refused(tmp_path / "none.zip", target, "No such file")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_full_disk_is_told_before_anything_is_written(tmp_path, target, kind, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    opened = []
    monkeypatch.setattr(archives._Budget, "write", lambda *args: opened.append(args))
    refused(make(kind, tmp_path, BOMB), target, "needs 0.03 GB, but the disk .* has 0.00 GB left")
    assert not opened


def test_a_disk_that_fills_up_while_writing(tmp_path, target, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives._Budget, "write", full)
    refused(make_zip(tmp_path / "a.zip", FILES), target, "The disk is full")


def test_an_interruption_leaves_nothing_behind(tmp_path, target, monkeypatch):
    write, count = archives._Budget.write, []

    def interrupted(self, *args):
        write(self, *args)
        count.append(args)
        if len(count) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(archives._Budget, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(make_zip(tmp_path / "a.zip", FILES), target)
    assert not target.exists() and list(target.parent.iterdir()) == []


def test_a_bar_is_shown_on_request(tmp_path, target, capfd):
    unpack(make_zip(tmp_path / "quiet.zip", FILES), target)
    assert capfd.readouterr() == ("", "")
    unpack(make_zip(tmp_path / "told.zip", FILES), tmp_path / "other", progress=True)
    assert "Unpacking told.zip" in capfd.readouterr().err
