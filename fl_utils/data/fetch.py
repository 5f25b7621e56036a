"""Fetching datasets: a card's downloads become its folder, which appears when it is whole.

Unfinished work lies in `<data root>/.fetching/<folder>/`: files under way (`.part`), unpacked ones
(`tree/`), and `state.json`, which says what is done. A fetch that was interrupted or killed goes on there.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pooch
from tqdm.auto import tqdm

from fl_utils import paths
from fl_utils.data import archives, kaggle
from fl_utils.data.catalogue import DatasetCard, Download, card
from fl_utils.data.downloads import ChecksumError, FetchError, check_address, download_file
from fl_utils.data.verify import MARKER, VerifyReport, changed_files, read_marker, verify
from fl_utils.files import write_atomically

__all__ = ["ChecksumError", "FetchError", "VerifyReport", "fetch", "verify"]

# An archive of images unpacks to about its own size, one of raw volumes to ten times that.
MAX_UNPACKING_RATIO = 20
MIN_UNPACKING_LIMIT_BYTES = 10**9

_WORK = ".fetching"
_TREE = "tree"


def fetch(
    name_or_card: str | DatasetCard, *, root: Path | None = None, progress: bool = True, force: bool = False
) -> Path:
    """Downloads a dataset, compares it with its checksums and unpacks it; does nothing if it is there.

    The dataset's folder appears, or changes, when everything has come and is in order. Files of others in it
    stay. `<folder>/.fetched.json` then lists what was fetched, with the SHA-256 of each download; where the
    publisher gives no checksum, later fetches compare with that one.

    Args:
      name_or_card: a name of `catalogue.CARDS`, or a card.
      root: the folder that holds the datasets; default `paths.data_root()`.
      progress: show bars and say what is done, on stderr.
      force: fetch again what is there, and replace files of the same names.
    Returns:
      The dataset's folder.
    Raises:
      FetchError: nothing to fetch; an address that is not https; no connection, no access, not found; another
        checksum; too little disk space; another fetch of it is running. See `downloads`, `kaggle`.
      ArchiveError: an archive that is damaged or must not be unpacked; files of others are in the way.
      DataError: unknown name.
    """
    info = card(name_or_card) if isinstance(name_or_card, str) else name_or_card
    _check_card(info)
    root = Path(root) if root is not None else paths.data_root()
    work = root / _WORK / info.folder.replace("/", "__")
    try:
        with _lock(info, work):
            return _Fetch(info, root / info.folder, work, progress, force).run()
    except OSError as error:
        raise FetchError(
            f"{info.name}: {root} could not be written: {error.strerror or error}. Free some space, make it writable, "
            "or set FL_UTILS_DATA to another folder; then fetch again: it goes on where it was."
        ) from None


class _Fetch:
    """One fetch of one dataset; its lock is held."""

    def __init__(self, info: DatasetCard, folder: Path, work: Path, progress: bool, force: bool):
        self.info, self.folder, self.work, self.progress, self.force = info, folder, work, progress, force
        self.tree = work / _TREE
        self.marker = read_marker(folder)
        self.state = self._read_state()

    def run(self) -> Path:
        if self._is_there():
            return self.folder
        self._clean()
        self._check_space()
        for download in self.info.downloads:
            if _key(download) not in self.state["done"]:
                self.state["done"][_key(download)] = self._get(download)
                self._write_state()
                shutil.rmtree(self.work / "kaggle", ignore_errors=True)
                if download.unpack and download.file_name:
                    (self.work / download.file_name).unlink(missing_ok=True)
        self._deliver()
        return self.folder

    def _is_there(self) -> bool:
        if not self.marker:
            return False
        changed = changed_files(self.folder, self.marker["files"])
        if not changed and not self.force:
            self._tell(f"already in {self.folder} ({len(self.marker['files']):,} files). Nothing is done.")
            shutil.rmtree(self.work, ignore_errors=True)
            return True
        if changed and not self.force:
            name, reason = changed[0]
            self._tell(f"{len(changed):,} files are missing or changed ({name}: {reason}): fetching again.")
        if self.state["files"] is not None and not self.tree.exists():  # of a fetch that had ended
            shutil.rmtree(self.work)
            self.state = self._read_state()
        return False

    def _clean(self) -> None:
        """Removes what a killed fetch left besides what can be gone on with."""
        self.work.mkdir(parents=True, exist_ok=True)
        names = {download.file_name for download in self.info.downloads if download.file_name}
        kept = {_TREE, "state.json", "kaggle", *(n + end for n in names for end in ("", ".part", ".part.json"))}
        for path in self.work.iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _check_space(self) -> None:
        """For everything that is still to come, where its size is known."""
        waiting = [download for download in self.info.downloads if _key(download) not in self.state["done"]]
        only = len(self.info.downloads) == 1
        sizes = [download.size_bytes or (only and self.info.size_bytes) or 0 for download in waiting]
        packed = [size for size, d in zip(sizes, waiting, strict=True) if d.unpack or d.kind == "kaggle"]
        have = sum(path.stat().st_size for path in self.work.glob("*.part"))
        needed = max(0, sum(sizes) + max(packed, default=0) - have)
        try:
            archives.check_free_space(self.work, needed, self.info.name)
        except archives.ArchiveError as error:
            raise FetchError(str(error)) from None

    def _get(self, download: Download) -> dict:
        """Brings one download's files into the tree; returns what is noted about it."""
        before = next((e for e in self.marker.get("downloads", []) if e.get("address") == download.address), {})
        try:
            if download.kind == "kaggle":
                entry = self._get_from_kaggle(download)
                if before.get("sha256") not in (None, entry["sha256"]):
                    raise ChecksumError(
                        f"Kaggle dataset {download.address}: expected sha256:{before['sha256']} but got "
                        f"{entry['sha256']} (over all files)."
                    )
                return entry
            return self._get_file(download, before.get("sha256"))
        except ChecksumError as error:
            if download.checksum or not before:
                raise
            if download.kind == "kaggle":  # its files are in the tree already
                shutil.rmtree(self.work, ignore_errors=True)
            raise ChecksumError(
                f"{error} Expected is what came with the earlier fetch, as noted in {self.folder / MARKER}; delete "
                "that file to accept what is published now."
            ) from None
        except FetchError as error:
            access = f" Access to {self.info.name}: {self.info.access}" if self.info.access else ""
            raise FetchError(f"{error}{access}") from None

    def _get_file(self, download: Download, sha256_before: str | None) -> dict:
        path = self.work / download.file_name
        expected = download.checksum or (f"sha256:{sha256_before}" if sha256_before else None)
        download_file(
            download.address, path, checksum=expected, unpacked=download.unpack, progress=self.progress
        )
        size = path.stat().st_size
        known = expected.lower() if expected else ""
        sha256 = known.removeprefix("sha256:") if known.startswith("sha256:") else pooch.file_hash(str(path), "sha256")
        if expected is None:
            self._tell(
                f"its publisher gives no checksum for {download.file_name}. What came has sha256:{sha256}; it is "
                f"noted in {MARKER}, and later fetches are compared with it."
            )
        if download.unpack:
            limit = MAX_UNPACKING_RATIO * (download.size_bytes or size)
            limit = min(archives.MAX_BYTES, max(limit, MIN_UNPACKING_LIMIT_BYTES))
            try:
                names = archives.unpack(
                    path, self.tree, strip=download.strip, max_bytes=limit, progress=self.progress
                )
            except archives.DamagedArchiveError:
                path.unlink(missing_ok=True)
                raise
        else:
            names = [download.file_name]
            self.tree.mkdir(exist_ok=True)
            os.replace(path, self.tree / download.file_name)
        return _entry(download, download.address, sha256, size, names)

    def _get_from_kaggle(self, download: Download) -> dict:
        address, names = kaggle.download_dataset(
            download.address, self.work / "kaggle", self.tree, strip=download.strip, force=self.force
        )
        lines, total = [], 0
        for name in tqdm(names, desc="Checksums", unit="file", disable=not self.progress):
            size = (self.tree / name).stat().st_size
            total += size
            lines.append(f"{name}\0{size}\0{pooch.file_hash(str(self.tree / name), alg='sha256')}\n")
        sha256 = hashlib.sha256("".join(lines).encode()).hexdigest()
        self._tell(f"{address}: {len(names):,} files, sha256:{sha256} over all of them, noted in {MARKER}.")
        return {**_entry(download, download.address, sha256, total, names), "version": address}

    def _deliver(self) -> None:
        """Moves the whole tree to its place."""
        done = [self.state["done"][_key(download)] for download in self.info.downloads]
        if self.state["files"] is None:
            names = sorted({name for entry in done for name in entry["names"]})
            missing = [name for name in names if not (self.tree / name).is_file()]
            if missing:
                shutil.rmtree(self.work)
                raise FetchError(
                    f"{self.info.name}: {len(missing)} unpacked files are gone from {self.tree} ({missing[0]}). The "
                    "folder was removed; fetch again."
                )
            self.state["files"] = {name: (self.tree / name).stat().st_size for name in names}
            self.state["replace"] = self.force or bool(self.marker)
            self.state["stale"] = self.marker.get("files", {})
            self._write_state()
        marker = {
            "dataset": self.info.name,
            "downloads": [{key: value for key, value in entry.items() if key != "names"} for entry in done],
            "files": self.state["files"],
        }
        if self.tree.exists():
            if not self.folder.exists():
                _write_json(self.tree / MARKER, marker)  # the folder appears whole, with its list
            replace = self.state["replace"] or self.force
            archives.move_into(self.tree, self.folder, replace=replace, before=self._open_folder)
        lost = changed_files(self.folder, self.state["files"])
        if lost:
            shutil.rmtree(self.work)
            raise FetchError(
                f"{self.info.name}: {len(lost)} files were changed in {self.folder} while it was written "
                f"({lost[0][0]}: {lost[0][1]}). Fetch again."
            )
        self._remove_stale()
        _write_json(self.folder / MARKER, marker)
        shutil.rmtree(self.work, ignore_errors=True)
        self._tell(f"{len(self.state['files']):,} files are in {self.folder}.")

    def _open_folder(self) -> None:
        """From here on the folder is not whole, until the new list is written."""
        (self.folder / MARKER).unlink(missing_ok=True)

    def _remove_stale(self) -> None:
        """Files of the earlier fetch that are no longer part of the dataset and that nobody changed."""
        for name, size in self.state["stale"].items():
            path = self.folder / name
            if name not in self.state["files"] and path.is_file() and path.stat().st_size == size:
                path.unlink()

    def _read_state(self) -> dict:
        try:
            state = json.loads((self.work / "state.json").read_text(encoding="utf-8"))
            if isinstance(state["done"], dict) and {"files", "replace", "stale"} <= set(state):
                return state
        except (OSError, ValueError, KeyError, TypeError):
            pass
        # Without the notes nobody knows what the unpacked files are.
        shutil.rmtree(self.tree, ignore_errors=True)
        return {"done": {}, "files": None, "replace": False, "stale": {}}

    def _write_state(self) -> None:
        _write_json(self.work / "state.json", self.state)

    def _tell(self, text: str) -> None:
        if self.progress:
            tqdm.write(f"{self.info.name}: {text}", file=sys.stderr)


def _check_card(info: DatasetCard) -> None:
    if info.synthetic:
        raise FetchError(f"{info.name} is generated by this project: there is nothing to fetch.")
    if not info.downloads:
        place = f" Put it into {info.folder}/ below the data folder." if info.folder else ""
        raise FetchError(
            f"{info.name} cannot be fetched by itself. {info.access or 'Download it by hand.'} Source: {info.source}."
            f"{place}"
        )
    if not _is_inside(info.folder):
        raise FetchError(f"{info.name}: the folder {info.folder!r} of the card is not a path below the data folder.")
    for download in info.downloads:
        if download.kind == "kaggle":
            if not re.fullmatch(r"[\w.-]+/[\w.-]+(/versions/\d+)?", download.address):
                raise FetchError(f"{info.name}: {download.address!r} is no Kaggle handle; expected owner/name.")
            continue
        check_address(download.address)
        if not _is_inside(download.file_name) or "/" in download.file_name or download.file_name.startswith("."):
            raise FetchError(f"{info.name}: {download.file_name!r} is no plain file name.")
        if download.checksum and not re.fullmatch(r"(?i)md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", download.checksum):
            raise FetchError(
                f"{info.name}: the checksum {download.checksum!r} is not md5:<32 digits> or sha256:<64 digits>."
            )


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\\" not in name


def _key(download: Download) -> str:
    return json.dumps([download.kind, download.address, download.checksum, download.unpack, download.strip])


def _entry(download: Download, address: str, sha256: str, size_bytes: int, names: list[str]) -> dict:
    return {
        "kind": download.kind, "address": address, "file_name": download.file_name, "sha256": sha256,
        "size_bytes": size_bytes, "unpacked": download.unpack or download.kind == "kaggle", "names": names,
    }  # fmt: skip


def _write_json(path: Path, content: Mapping) -> None:
    write_atomically(path, lambda file: file.write(json.dumps(content, indent=1).encode()))


@contextmanager
def _lock(info: DatasetCard, work: Path) -> Iterator[None]:
    """One fetch of a dataset at a time. The system frees the lock when its holder ends, however it ends."""
    path = work.with_name(work.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise FetchError(
                f"{info.name} is being fetched already, by process {file.read().strip() or 'unknown'}. Wait for it to "
                "end, or end it."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
