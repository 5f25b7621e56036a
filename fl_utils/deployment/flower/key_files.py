"""Files of keys and certificates: read with a sentence for what is wrong with them, written for the right readers only."""

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from fl_utils.files import write_atomically

#: Private keys, for their owner alone (mode 0600); all other files are public (0644).
SECRET = ("ca.key", "server.key", "key")
#: What `cryptography` raises on files that are damaged or of another kind.
UNREADABLE = (ValueError, UnsupportedAlgorithm, NotImplementedError)


class CredentialError(ValueError):
    """Keys or certificates that cannot be used; the text says which, why and what to do."""


def read_file(path: Path, *, secret: bool = False) -> bytes:
    """A file's content; a secret one that others may open is refused, as ssh does.

    Raises:
      CredentialError: the file is missing, cannot be read, or is secret and open to others.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if secret and mode & 0o077:
                raise CredentialError(
                    f"{path} is open to others (mode {mode:04o}); a private key is for its owner alone. Run "
                    f"`chmod 600 {path}`; if others may have read it, have a new one made."
                )
            return file.read()
    except FileNotFoundError:
        raise CredentialError(f"There is no {path}. Name the folder that holds {path.name}, or have the file made.") from None
    except OSError as error:
        raise CredentialError(f"{path} cannot be read: {error.strerror}.") from None


def read_certificate(path: Path) -> x509.Certificate:
    """The (first) certificate of a PEM file.

    Raises:
      CredentialError: the file is missing or no certificate.
    """
    content = read_file(path)
    try:
        return x509.load_pem_x509_certificate(content)
    except UNREADABLE:
        raise CredentialError(
            f"{path} is not a certificate: damaged, or another file. Copy it again; expected a text that begins with "
            "-----BEGIN CERTIFICATE-----."
        ) from None


def read_private_key(path: Path, load: Callable[[bytes, None], PrivateKeyTypes], file_format: str) -> PrivateKeyTypes:
    """A private key without a passphrase.

    Args:
      path: the file.
      load: reads a key from (content, no passphrase).
      file_format: what `load` expects, in words.
    Raises:
      CredentialError: the file is missing, open to others, protected with a passphrase, or not such a key.
    """
    content = read_file(path, secret=True)
    try:
        return load(content, None)
    except TypeError:  # raised for this alone
        raise CredentialError(
            f"{path} is protected with a passphrase, which nobody is there to type. Take it off with "
            f"`ssh-keygen -p -N '' -f {path}`, or have a key made without."
        ) from None
    except UNREADABLE as error:
        raise CredentialError(
            f"{path} is not a private key in {file_format} ({error}): damaged, or another file. Copy it again, or have a new "
            "one made."
        ) from None


def write_new(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes all of the files or none. What is there is never overwritten; a file with just this content stays.

    Args:
      folder: made with mode 0700 where it is missing.
      contents: name -> content; names of `SECRET` get mode 0600, others 0644.
    Raises:
      CredentialError: another file of such a name is there.
      OSError: the folder cannot be written; nothing is left behind.
    """
    missing = [name for name in contents if not (folder / name).exists()]
    for name in contents.keys() - missing:
        if (folder / name).read_bytes() != contents[name]:
            raise CredentialError(
                f"{folder / name} is there already, and is not overwritten: who relies on it would be locked out. Name another "
                f"folder, or move {', '.join(contents)} away first."
            )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    written = []
    try:
        for name in missing:
            write_atomically(folder / name, lambda file, name=name: _write(file, contents[name], name in SECRET))
            written.append(folder / name)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def _write(file, content: bytes, secret: bool) -> None:
    os.fchmod(file.fileno(), 0o600 if secret else 0o644)  # before the content is in the file
    file.write(content)


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the authority's key signed the certificate, and the names agree; dates are not looked at."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (TypeError, InvalidSignature, *UNREADABLE):
        return False
    return True


def check_period(certificate: x509.Certificate, what: str) -> None:
    """Raises unless the certificate is valid now by this computer's clock.

    Args:
      certificate: to look at.
      what: its name at the beginning of the sentence.
    Raises:
      CredentialError: it expired, or is not yet valid; with the dates.
    """
    start, end, now = certificate.not_valid_before_utc, certificate.not_valid_after_utc, datetime.now(UTC)
    if now > end:
        raise CredentialError(
            f"{what} expired on {in_words(end)} (it was valid from {in_words(start)}). Have it made anew; or set this computer's "
            f"clock, which says {in_words(now)}."
        )
    if now < start:
        raise CredentialError(
            f"{what} is not yet valid: only from {in_words(start)} to {in_words(end)}. Have it made anew; or set this computer's "
            f"clock, which says {in_words(now)}."
        )


def in_words(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
