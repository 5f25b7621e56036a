"""Unpacking archives that others made: nothing outside the target, nothing without end, all or nothing."""

import errno
import filecmp
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tqdm.auto import tqdm

from fl_utils.data.types import DataError

# The largest dataset that we know of, NIH ChestX-ray14, unpacks to 45 GB in 112,120 files, BraTS to
# about the same: four times and nine times that is room for all, and still an end.
MAX_BYTES = 200 * 10**9
MAX_FILES = 1_000_000

_CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 16 << 20  # tarfile reads an extended header at once, however large it says it is
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError,
    ValueError,
)  # fmt: skip


class ArchiveError(DataError):
    """An archive that is damaged, or that must not be unpacked; nothing of it was left behind."""


class DamagedArchiveError(ArchiveError):
    """An archive that another download may mend."""


def unpack(
    archive: Path,
    target: Path,
    *,
    strip: int = 0,
    max_bytes: int = MAX_BYTES,
    max_files: int = MAX_FILES,
    progress: bool = False,
) -> list[str]:
    """Unpacks a zip, tar or tar.gz as a whole or not at all.

    The format is told from the content, not from the name. Everything is written to a temporary folder
    beside the target and moved when it is whole. Files get new permissions and times. What macOS adds to
    archives (`__MACOSX/`, `._*`, `.DS_Store`) is left out.

    Args:
      archive: the file.
      target: the folder to unpack into; made if need be. Other files in it stay.
      strip: this many leading folders of each path are left out; a file's own name always stays.
      max_bytes: of all unpacked files together; counted while writing, whatever the headers say.
      max_files: entries of the archive, folders included.
      progress: show a bar.
    Returns:
      The POSIX paths of the unpacked files relative to the target, sorted.
    Raises:
      DamagedArchiveError: damaged, cut off, or of another format.
      ArchiveError: encrypted; more than the limits or than the free disk
        space; absolute paths, "..", drive letters, backslashes, links, devices; two entries for one path;
        a file of other content already lies in the target. What was in the target is unchanged.
    """
    archive, target = Path(archive), Path(target)
    with _explained(archive), building(target) as tree:
        budget = _Budget(tree, max_bytes, max_files)
        kind = _kind(archive)
        read = _unpack_zip if kind == "zip" else _unpack_tar
        with tqdm(desc=f"Unpacking {archive.name}", unit="file", disable=not progress) as bar:
            read(archive, kind, tree, strip, budget, bar)
        names = list_files(tree)
        if not names:
            raise ArchiveError(f"{archive.name}: the archive holds no files.")
        move_into(tree, target)
    return names


def list_files(folder: Path) -> list[str]:
    """The POSIX paths of all files below a folder, relative to it, sorted. Links to folders are not entered."""
    found = []
    for parent, _, names in os.walk(folder):
        base = Path(parent).relative_to(folder).as_posix()
        found += [name if base == "." else f"{base}/{name}" for name in names]
    return sorted(found)


def stripped(name: str, strip: int) -> str:
    """A path of an archive without its leading folders; the file's own name always stays.

    Raises:
      ArchiveError: the path is absolute or leads, by whatever system's rules, out of the target.
    """
    if name in (".", "./"):  # the folder itself: a tar made of "." begins with it
        return ""
    parts = PurePosixPath(name).parts
    if not parts or any(ord(letter) < 32 for letter in name):
        raise ArchiveError(f"the path {name!r} is empty or has control characters")
    if name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name):
        raise ArchiveError(f"the path {name!r} is absolute, has a drive letter or a backslash")
    if ".." in parts:
        raise ArchiveError(f"the path {name!r} leads out of the folder")
    return "/".join(parts[min(strip, len(parts) - 1) :])


@contextmanager
def building(target: Path) -> Iterator[Path]:
    """A new empty folder on the target's disk, for `move_into`; what is left of it at the end is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
    try:
        tree = temporary / "tree"  # mkdtemp's own folder can be read by its owner only
        tree.mkdir()
        yield tree
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def move_into(
    tree: Path, target: Path, *, replace: bool = False, before: Callable[[], None] = lambda: None
) -> None:
    """Moves a folder's content into another on the same disk; other files there stay.

    Args:
      tree: the folder; empty or gone afterwards.
      target: made if need be, then by a single rename.
      replace: files of the same name and other content are replaced.
      before: called when nothing is in the way, before the first of several files is moved.
    Raises:
      ArchiveError: a file of other content is in the way and `replace` is not set, or a file stands where a
        folder must go; nothing was moved.
    """
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(tree, target)
        return
    clashes = [name for name in list_files(tree) if _clashes(tree / name, target, name, replace)]
    if clashes:
        shown = ", ".join(clashes[:10]) + (f" and {len(clashes) - 10} more" if len(clashes) > 10 else "")
        raise ArchiveError(
            f"{target} already holds other files of the same names: {shown}. Nothing was changed. Move them away first."
        )
    before()
    _move(tree, target)


def check_free_space(folder: Path, needed_bytes: int, what: str) -> None:
    """
    Raises:
      ArchiveError: the disk of `folder` (which need not exist) has less than `needed_bytes` left.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed_bytes > free:
        raise ArchiveError(
            f"{what} needs {needed_bytes / 1e9:.2f} GB, but the disk of {existing} has {free / 1e9:.2f} GB left. Free "
            "some space, or set FL_UTILS_DATA to a folder on a larger disk."
        )


def _clashes(source: Path, target: Path, name: str, replace: bool) -> bool:
    destination = target / name
    if any(above.exists() and not above.is_dir() for above in (target / p for p in PurePosixPath(name).parents)):
        return True
    if destination.is_dir():
        return True
    return destination.exists() and not replace and not filecmp.cmp(source, destination, shallow=False)


def _move(source: Path, target: Path) -> None:
    for entry in list(os.scandir(source)):
        destination = target / entry.name
        if entry.is_dir(follow_symlinks=False) and destination.is_dir():
            _move(Path(entry.path), destination)
        else:
            os.replace(entry.path, destination)


class _Budget:
    """Counts what is written, and makes sure that each path is written once."""

    def __init__(self, tree: Path, max_bytes: int, max_files: int):
        self.tree, self.max_bytes, self.max_files = tree, max_bytes, max_files
        self.num_entries = self.num_bytes = 0
        self.seen: set[str] = set()

    def announce(self, num_bytes: int) -> None:
        """What the headers say: enough to refuse, never enough to trust."""
        self._limit(self.num_bytes + num_bytes)
        check_free_space(self.tree, num_bytes, "it")

    def entry(self) -> None:
        self.num_entries += 1
        if self.num_entries > self.max_files:
            raise ArchiveError(f"more than {self.max_files:,} entries")

    def write(self, source: BinaryIO, name: str, strip: int, size: int) -> None:
        name = stripped(name, strip)
        if name in self.seen:
            raise ArchiveError(f"two entries for the path {name!r}")
        self.seen.add(name)
        path, written = self.tree / name, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            while chunk := source.read(_CHUNK_BYTES):
                written += len(chunk)
                self._limit(self.num_bytes + written)
                file.write(chunk)
        self.num_bytes += written
        if written != size:
            raise DamagedArchiveError(f"{name!r} has {written:,} bytes, its header says {size:,}")

    def _limit(self, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            raise ArchiveError(f"it unpacks to more than the allowed {self.max_bytes:,} bytes")


def _kind(archive: Path) -> str:
    with archive.open("rb") as file:
        start = file.read(512)
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if start.startswith(b"\x1f\x8b"):
        return "tar.gz"
    if start[257:262] == b"ustar" or tarfile.is_tarfile(archive):
        return "tar"
    page = " It looks like a web page: the address may ask for a log-in." if b"<html" in start.lower() else ""
    raise DamagedArchiveError(f"it is neither a zip nor a tar nor a tar.gz; it starts with {start[:16]!r}.{page}")


def _is_clutter(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1] == ".DS_Store"


def _unpack_zip(archive: Path, kind: str, tree: Path, strip: int, budget: _Budget, bar: tqdm) -> None:
    with zipfile.ZipFile(archive) as opened:
        entries = opened.infolist()
        for info in entries:  # all are judged before the first is written
            budget.entry()
            if "\0" in info.orig_filename:
                raise ArchiveError(f"the path {info.orig_filename!r} has control characters")
            stripped(info.filename, strip)
            mode = stat.S_IFMT(info.external_attr >> 16)
            if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(f"{info.filename!r} is a link or a device; only files and folders are unpacked")
            if info.flag_bits & 1:
                raise ArchiveError(f"{info.filename!r} is encrypted; get an archive that is not")
        budget.announce(sum(info.file_size for info in entries))
        for info in entries:
            if not info.is_dir() and not _is_clutter(info.filename):
                with opened.open(info) as source:
                    budget.write(source, info.filename, strip, info.file_size)
                bar.update()


def _unpack_tar(archive: Path, kind: str, tree: Path, strip: int, budget: _Budget, bar: tqdm) -> None:
    with archive.open("rb") as raw:
        # The size that gzip notes at the end is modulo 4 GiB and of the last part: a lower bound.
        raw.seek(-4, os.SEEK_END)
        noted = int.from_bytes(raw.read(4), "little") if kind == "tar.gz" else 0
        check_free_space(tree, max(noted, archive.stat().st_size), "it")
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if kind == "tar.gz" else raw
        source = _Stream(stream)
        with tarfile.open(fileobj=source, mode="r:") as opened:
            for member in opened:
                budget.entry()
                if not (member.isfile() or member.isdir()):
                    raise ArchiveError(f"{member.name!r} is a link or a device; only files and folders are unpacked")
                stripped(member.name, strip)
                tarfile.data_filter(member, str(tree))
                if member.isfile() and not _is_clutter(member.name):
                    budget.announce(member.size)
                    budget.write(opened.extractfile(member), member.name, strip, member.size)
                    bar.update()
        if source.last.strip(b"\0") or len(source.last) < tarfile.BLOCKSIZE:
            raise DamagedArchiveError("it breaks off or has a damaged header; delete it and download it again")
        while stream.read(_CHUNK_BYTES):  # to the end: only there gzip's own checksum is compared
            if stream.tell() > budget.max_bytes + _MAX_HEADER_BYTES:
                raise ArchiveError("it goes on behind its end")


class _Stream(io.RawIOBase):
    """What tarfile reads from. Refuses a single read that would fill the memory.

    Keeps the last read: tarfile takes a damaged header for the end of the archive, where two blocks
    of zeros should be.
    """

    def __init__(self, stream: BinaryIO):
        self.stream, self.last = stream, b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise ArchiveError(f"a header of {size:,} bytes")
        self.last = self.stream.read(size)
        return self.last

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    """Gives every failure the archive's name and a way on."""
    try:
        yield
    except ArchiveError as error:
        raise type(error)(f"{archive.name} was not unpacked: {str(error).rstrip('.')}.") from None
    except _DAMAGED as error:
        reason = str(error) or type(error).__name__
        raise DamagedArchiveError(
            f"{archive.name} was not unpacked: {reason}. The archive is damaged or of a kind that cannot be read; "
            "delete it and download it again."
        ) from None
    except OSError as error:
        full = " The disk is full: free some space." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise ArchiveError(f"{archive.name} was not unpacked: {error.strerror or error}.{full}") from None
