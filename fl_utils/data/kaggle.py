"""Datasets of Kaggle, through kagglehub; credentials stay between it and Kaggle."""

import base64
import os
import shutil
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from fl_utils.data import archives, downloads
from fl_utils.data.downloads import FetchError

LOG_IN = (
    "Kaggle wants to know who asks. Make a token at https://www.kaggle.com/settings (API, Create new token), then "
    "either set KAGGLE_API_TOKEN to it, or set KAGGLE_USERNAME and KAGGLE_KEY, or put the downloaded kaggle.json into "
    "~/.kaggle/ (chmod 600). Some datasets also ask you to accept their terms on their page first."
)

_SECRET_VARIABLES = ("KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_USER_SECRETS_TOKEN", "KAGGLE_DATA_PROXY_TOKEN")
_MIN_SECRET = 6  # anything shorter is no key, and taking it out would garble the text


def download_dataset(
    handle: str, cache: Path, target: Path, *, strip: int, force: bool = False
) -> tuple[str, list[str]]:
    """Downloads a dataset of Kaggle into a folder.

    kagglehub keeps its archive below `cache`, on the disk of the dataset, and goes on there after an
    interruption; its bars and messages are shown. It unpacks without the limits of
    `archives.unpack`; links are refused here.

    Args:
      handle: "owner/name" or "owner/name/versions/<number>".
      cache: a folder for kagglehub alone; the caller removes it when the files are safe.
      target: where the files go, as with `archives.unpack`; on the disk of `cache`.
      strip: this many leading folders of each path are left out.
      force: ask Kaggle again, even if the cache is whole.
    Returns:
      The handle with the version that was downloaded, where kagglehub tells it; the POSIX paths of the files.
    Raises:
      ArchiveError: a file of other content is in the way.
      FetchError: no or wrong credentials, terms not accepted, no such dataset, no connection, damaged
        archive; the text never holds credentials.
    """
    _require_package()
    failures = 0
    while True:
        found, problem, again = _ask(handle, cache, force)
        if found is not None:
            break
        failures += 1
        if not again or failures >= downloads.MAX_FAILURES:
            raise FetchError(f"Kaggle dataset {handle}: {problem}")
        time.sleep(downloads.FIRST_WAIT_S * 2 ** (failures - 1))
    with archives.building(target) as tree:
        _copy(found, tree, strip, linked=found.resolve().is_relative_to(cache.resolve()))
        names = archives.list_files(tree)
        archives.move_into(tree, target)
    version = found.name if found.parent.name == "versions" and found.name.isdigit() else ""
    return (f"{handle}/versions/{version}" if version and "/versions/" not in handle else handle), names


def scrub(text: str) -> str:
    """The text without the credentials that this process could know."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _require_package() -> None:
    try:
        import kagglehub  # noqa: F401
    except ImportError as error:
        raise FetchError(f"kagglehub cannot be imported ({error}). Run `make setup` again.") from None


def _ask(handle: str, cache: Path, force: bool) -> tuple[Path | None, str, bool]:
    """(folder, "", False), or (None, what went wrong, whether another try may help).

    Returned, not raised: the exception and its context hold requests with their headers.
    """
    import kagglehub

    try:
        with _cache_at(cache):
            return Path(kagglehub.dataset_download(handle, force_download=force)), "", False
    except Exception as error:  # kagglehub raises its own, those of requests, of zipfile, plain ValueError ...
        return None, *_explained(error, cache)


def _explained(error: Exception, cache: Path) -> tuple[str, bool]:
    from kagglehub.exceptions import DataCorruptionError, UnauthenticatedError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or isinstance(error, UnauthenticatedError):
        given = "the credentials that were found are not accepted" if _secrets() else "no credentials were found"
        return f"no access (HTTP {status or 401}), {given}. {LOG_IN}", False
    if status == 404:
        return "there is no such dataset (HTTP 404): the card's handle is wrong, or it was removed.", False
    if status is not None and (status >= 500 or status in (408, 429)):
        return f"Kaggle answers HTTP {status}. Fetch again later; it goes on where it was.", True
    network = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    if isinstance(error, network):
        return "the connection failed or was cut. Fetch again; it goes on where it was.", True
    if isinstance(error, (DataCorruptionError, zipfile.BadZipFile, tarfile.TarError, EOFError)):
        shutil.rmtree(cache, ignore_errors=True)  # or kagglehub would take the damaged archive for whole
        return "the archive that came is damaged and was removed. Fetch again.", False
    reason = scrub(str(error)) or type(error).__name__
    if isinstance(error, ValueError) and "credentials file" in reason:
        return f"{reason}. {LOG_IN}", False
    return f"{type(error).__name__}: {reason}", False


@contextmanager
def _cache_at(folder: Path) -> Iterator[None]:
    # Not kagglehub's `output_dir`: it refuses a folder with an unfinished download in it.
    before = os.environ.get("KAGGLEHUB_CACHE")
    os.environ["KAGGLEHUB_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["KAGGLEHUB_CACHE"]
        else:
            os.environ["KAGGLEHUB_CACHE"] = before


def _copy(source: Path, tree: Path, strip: int, linked: bool) -> None:
    """Copies a folder; from our own cache by hard links, which cost no space and leave the cache whole."""
    for name in archives.list_files(source):
        path, goal = source / name, tree / archives.stripped(name, strip)
        if path.is_symlink():
            raise FetchError(f"The Kaggle dataset holds a link, {name!r}; only files and folders are taken.")
        if goal.exists():
            raise FetchError(f"The Kaggle dataset has two files for {goal.relative_to(tree)} when strip is {strip}.")
        goal.parent.mkdir(parents=True, exist_ok=True)
        try:
            (os.link if linked else shutil.copyfile)(path, goal)
        except OSError:  # a disk without links
            shutil.copyfile(path, goal)


def _secrets() -> set[str]:
    found = {os.environ.get(variable, "") for variable in _SECRET_VARIABLES}
    try:
        from kagglehub.config import get_kaggle_credentials

        credentials = get_kaggle_credentials()
    except Exception:  # no kagglehub, or a kaggle.json that it cannot read
        credentials = None
    if credentials:
        found |= {credentials.key or "", credentials.api_key or ""}
        pair = f"{credentials.username}:{credentials.key}"
        found.add(base64.b64encode(pair.encode()).decode())  # as it travels
    return {secret for secret in found if len(secret) >= _MIN_SECRET}
