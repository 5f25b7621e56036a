"""One file over HTTPS: resumed after a cut, never waiting for ever, compared with its checksum before it is used."""

import ipaddress
import json
import os
import time
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pooch
import requests
import urllib3
from tqdm.auto import tqdm

from fl_utils.data.archives import ArchiveError, check_free_space
from fl_utils.data.types import DataError
from fl_utils.files import write_atomically

CONNECT_TIMEOUT_S = 15.0
READ_TIMEOUT_S = 60.0  # between two pieces of the answer, not for the whole
MAX_FAILURES = 5  # in a row; a try that brought PROGRESS_BYTES starts the count anew
PROGRESS_BYTES = 1 << 20
FIRST_WAIT_S = 1.0  # before the second try; doubled for each further one

_CHUNK_BYTES = 1 << 16
_MAX_REDIRECTS = 10


class FetchError(DataError):
    """A dataset could not be fetched; the text says what was asked, what came and what to do."""


class ChecksumError(FetchError):
    """What came is not the expected file; it was removed."""


class _TryAgain(Exception):
    """A failure that another try may mend."""


def check_address(address: str) -> None:
    """
    Raises:
      FetchError: not https (http is taken for this machine only), no host, or a password in the address.
    """
    parts = urlsplit(address)
    if parts.username or parts.password:
        raise FetchError(f"The address of a file on {parts.hostname} holds a user name or a password; take them out.")
    if not parts.hostname or not (parts.scheme == "https" or parts.scheme == "http" and _is_loopback(parts.hostname)):
        raise FetchError(
            f"The address {_shown(address)} is not taken: expected https://. Over plain http anyone on the way could "
            "change the file."
        )


def download_file(
    address: str, path: Path, *, checksum: str | None, unpacked: bool = False, progress: bool = False
) -> None:
    """Downloads a file; it takes its name only when it is whole and has the checksum.

    What has come so far lies in `<path>.part`, with notes in `<path>.part.json`. A later call asks only for the
    rest, if the server can do that and still has the same file; otherwise it starts anew.

    Args:
      address: https://...
      path: where the file goes; nothing is done if it is there with the checksum.
      checksum: "md5:<hex>", "sha256:<hex>", or None for none.
      unpacked: the file will be unpacked beside itself, so twice its size must be free.
      progress: show a bar.
    Raises:
      FetchError: see `check_address`; the server says no, does not answer or breaks off MAX_FAILURES times in a
        row (what came is kept); the disk is full; the checksum is another (what came is removed).
    """
    check_address(address)
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")  # it would name files and give advice that is not for our users
    transfer = _Transfer(path, checksum, unpacked, progress)
    try:
        pooch.retrieve(address, checksum, path.name, path.parent, downloader=transfer)
    except FetchError:
        raise
    except ArchiveError as error:
        raise FetchError(str(error)) from None
    except ValueError as error:  # pooch's word for another checksum; it has removed its copy
        transfer.forget()
        raise ChecksumError(
            f"{path.name} from {_shown(address)} is not the expected file: {_hashes(str(error))}. What came was "
            "removed. Fetch again; if that gives the same, the publisher has changed the file: do not use it "
            "before you know why."
        ) from None
    except OSError as error:
        raise FetchError(
            f"{path.name} could not be written to {path.parent}: {error.strerror or error}. What came is kept; free "
            "some space or make the folder writable, then fetch again."
        ) from None
    finally:
        logger.setLevel(level)
    transfer.forget()


class _Transfer:
    """A downloader for pooch: `(url, output_file, pooch)`."""

    def __init__(self, path: Path, checksum: str | None, unpacked: bool, progress: bool):
        self.path, self.checksum, self.unpacked, self.progress = path, checksum, unpacked, progress
        self.part = path.with_name(path.name + ".part")
        self.notes = path.with_name(path.name + ".part.json")

    def forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)

    def __call__(self, url: str, output_file: str, mother: object) -> None:
        failures, best = 0, self._size()
        with requests.Session() as session:
            session.max_redirects = _MAX_REDIRECTS
            session.hooks["response"].append(_check_redirect)
            while not self._is_whole(url):
                try:
                    self._try(session, url)
                except _TryAgain as problem:
                    failures = 1 if self._size() >= best + PROGRESS_BYTES else failures + 1
                    best = max(best, self._size())
                    if failures >= MAX_FAILURES:
                        total = self._known(url).get("total_bytes")
                        kept = f"{self._size():,}" + (f" of {total:,}" if total is not None else "")
                        raise FetchError(
                            f"{_shown(url)}: {problem}; tried {failures} times without getting further. "
                            f"{kept} bytes are kept. Look at the connection and fetch again: it goes on there."
                        ) from None
                    time.sleep(FIRST_WAIT_S * 2 ** (failures - 1))
        # Linked, not renamed: whoever is interrupted while the checksum is computed need not download again.
        os.unlink(output_file)
        try:
            os.link(self.part, output_file)
        except OSError:  # a disk without links
            os.replace(self.part, output_file)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _known(self, url: str) -> dict:
        """The notes on the unfinished file; empty if there are none or they are about another one."""
        try:
            notes = json.loads(self.notes.read_text(encoding="utf-8"))
            same = notes["address"] == url and notes["checksum"] == self.checksum
            return notes if same and self.part.exists() else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _is_whole(self, url: str) -> bool:
        notes = self._known(url)
        return bool(notes) and (notes.get("whole") is True or notes["total_bytes"] == self._size())

    def _try(self, session: requests.Session, url: str) -> None:
        """Gets the rest of the file, or all of it."""
        notes, have = self._known(url), self._size()
        # Compressed on the way, a file would have another length than the one that is announced.
        headers = {"Accept-Encoding": "identity"}
        if notes and have:
            headers["Range"] = f"bytes={have}-"
            if notes["validator"]:
                headers["If-Range"] = notes["validator"]
        try:
            with session.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S)) as answer:
                self._take(answer, url, notes, have if "Range" in headers else 0)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            if isinstance(error, OSError) and not isinstance(error, requests.RequestException) and error.errno:
                raise  # our disk, not the network
            raise _TryAgain(_reason(error)) from None

    def _take(self, answer: requests.Response, url: str, notes: dict, have: int) -> None:
        if answer.status_code == 416 or (answer.status_code == 206 and not _continues(answer, have, notes)):
            self.forget()
            raise _TryAgain("the server no longer has the file whose first part came")
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            raise _TryAgain(f"the server answers HTTP {answer.status_code} {answer.reason}")
        if answer.status_code not in (200, 206):
            raise FetchError(
                f"{_shown(url)}: the server answers HTTP {answer.status_code} {answer.reason}. "
                + ("The file has moved or the address is wrong; see the card's source." if answer.status_code == 404
                   else "See the card's source for what must be done before the download.")
            )  # fmt: skip
        if answer.status_code == 200:  # the whole file, asked for or not
            have, length = 0, answer.headers.get("Content-Length")
            notes = {
                "address": url,
                "checksum": self.checksum,
                "total_bytes": int(length) if length and length.isdigit() else None,
                "validator": _validator(answer),
            }
            self.part.unlink(missing_ok=True)
            write_atomically(self.notes, lambda file: file.write(json.dumps(notes).encode()))
        total = notes["total_bytes"]
        if total is not None:
            check_free_space(self.path.parent, total - have + (total if self.unpacked else 0), self.path.name)
        self._write(answer, have, total)
        if total is None:  # the server did not say how much there is, but it ended the answer in order
            notes["whole"] = True
            write_atomically(self.notes, lambda file: file.write(json.dumps(notes).encode()))
        elif self._size() != total:
            raise _TryAgain("the server broke off")

    def _write(self, answer: requests.Response, have: int, total: int | None) -> None:
        bar = tqdm(
            desc=self.path.name, total=total, initial=have, unit="B", unit_scale=True, disable=not self.progress
        )
        with bar, self.part.open("ab") as file:
            # As sent: some servers label a .tar.gz as compressed, and requests would unpack it.
            for chunk in answer.raw.stream(_CHUNK_BYTES, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))


def _continues(answer: requests.Response, have: int, notes: dict) -> bool:
    total = notes.get("total_bytes")
    return answer.headers.get("Content-Range", "") in {
        f"bytes {have}-{total - 1}/{total}" if total is not None else "", f"bytes {have}-{(total or 0) - 1}/*"
    }  # fmt: skip


def _validator(answer: requests.Response) -> str | None:
    """What `If-Range` may carry: a strong ETag, else the date."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified")


def _check_redirect(answer: requests.Response, **_) -> None:
    if answer.is_redirect:
        check_address(urljoin(answer.url, answer.headers["Location"]))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(address: str) -> str:
    """Without the query, which may carry a signature or a token."""
    return urlsplit(address)._replace(query="", fragment="").geturl()


def _reason(error: Exception) -> str:
    """In our words: those of the libraries hold whole addresses."""
    text = f"{type(error).__name__} {error}"
    if "timed out" in text or "Timeout" in text:
        return f"the server sent nothing for {READ_TIMEOUT_S:g} s"
    if "Name or service not known" in text or "name resolution" in text.lower() or "NameResolution" in text:
        return "the name of the server is not known"
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate is not accepted"
    if isinstance(error, requests.exceptions.TooManyRedirects):
        return f"more than {_MAX_REDIRECTS} redirects"
    return "the server broke off" if "IncompleteRead" in text else "the connection was refused or cut"


def _hashes(text: str) -> str:
    """From pooch's sentence the part with the two checksums."""
    start, end = text.find("expected "), text.find(". Deleted")
    return text[start:end] if 0 <= start < end else "its checksum is another"
