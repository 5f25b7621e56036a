"""Who may talk to whom: the federation's certificate authority, the server's certificate, one key pair a hospital.

    authority/    ca.key, ca.crt                    signs the server's certificate; stays with who set the federation up
    server/       server.key, server.crt, ca.crt    the server shows server.crt in the TLS handshake
    hospital_0/   key, key.pub                      the hospital signs its messages; the server knows key.pub

All keys are of the curve P-384. A private key never leaves its folder: a hospital hands over key.pub, and is given ca.crt.
"""

import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding, NoEncryption, PrivateFormat, PublicFormat, load_pem_private_key, load_ssh_private_key, load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_utils.deployment.flower.key_files import (
    UNREADABLE, CredentialError, check_period, in_words, is_issued_by, read_certificate, read_file, read_private_key, write_new,
)
from fl_utils.deployment.flower.server_check import check_server

__all__ = [
    "CredentialError", "check_certificate", "check_server", "expires", "load_hospital_key", "load_public_key", "make_authority",
    "make_hospital_key", "make_server_certificate",
]

_MAX_DAYS = 36_500
_CLOCK_SKEW = timedelta(hours=1)  # certificates begin so much earlier: a hospital's clock may be slow
_HOST_NAME = re.compile(r"(\*\.)?([A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?\.)*[A-Za-z_]([A-Za-z0-9_-]*[A-Za-z0-9_])?")
_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign",
    "crl_sign", "encipher_only", "decipher_only",
)
_PEM = "PEM (-----BEGIN PRIVATE KEY-----)"
_OPENSSH = "OpenSSH's format (-----BEGIN OPENSSH PRIVATE KEY-----)"


def make_authority(folder: Path, *, days: int = 825, not_before: datetime | None = None) -> None:
    """Makes the federation's authority: ca.key and ca.crt.

    Args:
      folder: made with mode 0700 where it is missing.
      days: validity, 1 to 36500.
      not_before: start of validity, with time zone; None: an hour ago, for slow clocks.
    Raises:
      CredentialError: there is an authority already, or `days` is out of range.
      OSError: the folder cannot be written; nothing is left behind.
    """
    start, end = _period(days, not_before)
    key, name = ec.generate_private_key(ec.SECP384R1()), _name("Federation authority")
    certificate = _sign(
        name, key.public_key(), name, key, start, end,
        (x509.BasicConstraints(ca=True, path_length=0), True), (_usage("key_cert_sign", "crl_sign"), True),
    )
    write_new(Path(folder), {"ca.key": _pem(key), "ca.crt": certificate.public_bytes(Encoding.PEM)})


def make_server_certificate(
    authority: Path, folder: Path, *, hosts: Sequence[str], days: int = 365, not_before: datetime | None = None
) -> None:
    """Makes what the server needs for TLS: server.key, server.crt and a copy of ca.crt.

    Args:
      authority: folder with ca.key and ca.crt.
      folder: made with mode 0700 where it is missing.
      hosts: names and IP addresses by which hospitals reach the server, without port; localhost and 127.0.0.1 are added.
      days: validity, 1 to 36500; cut to the authority's.
      not_before: start of validity, with time zone; None: an hour ago, for slow clocks.
    Raises:
      CredentialError: the authority cannot be used, a host is neither name nor address, `days` is out of range, or there is
        a server's key or certificate already.
      OSError: the folder cannot be written; nothing is left behind.
    """
    names, (start, end), authority = _alternative_names(hosts), _period(days, not_before), Path(authority)
    issuer = read_certificate(authority / "ca.crt")
    issuer_key = read_private_key(authority / "ca.key", load_pem_private_key, _PEM)
    if issuer_key.public_key() != issuer.public_key():
        raise CredentialError(f"{authority}: ca.key does not belong to ca.crt. Take both from the same authority.")
    check_period(issuer, f"The authority's certificate {authority / 'ca.crt'}")
    end = min(end, issuer.not_valid_after_utc)
    if start >= end:
        raise CredentialError(
            f"The certificate is to begin on {in_words(start)}, when its authority {authority / 'ca.crt'} has expired "
            f"({in_words(end)}). Let it begin earlier."
        )
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = _sign(
        _name("Federation server"), key.public_key(), issuer.subject, issuer_key, start, end,
        (x509.BasicConstraints(ca=False, path_length=None), True), (_usage("digital_signature"), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False), (x509.SubjectAlternativeName(names), False),
    )
    write_new(Path(folder), {
        "server.key": _pem(key), "server.crt": certificate.public_bytes(Encoding.PEM),
        "ca.crt": issuer.public_bytes(Encoding.PEM),
    })


def make_hospital_key(folder: Path) -> None:
    """Makes a hospital's pair, `key` (private) and `key.pub`, in OpenSSH's format as Flower's SuperNode reads it.

    Args:
      folder: made with mode 0700 where it is missing.
    Raises:
      CredentialError: there is a key already.
      OSError: the folder cannot be written; nothing is left behind.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    write_new(Path(folder), {
        "key": key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
        "key.pub": key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n",
    })


def load_hospital_key(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]:
    """A hospital's pair; the public key is computed from the private one.

    Raises:
      CredentialError: `key` is missing, open to others, protected with a passphrase, damaged, or not of an elliptic curve; or
        the `key.pub` beside it, if there is one, is of another pair.
    """
    path, public_path = Path(folder) / "key", Path(folder) / "key.pub"
    key = read_private_key(path, load_ssh_private_key, _OPENSSH)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CredentialError(
            f"{path} is a key of another kind ({type(key).__name__}); expected one of an elliptic curve, as make_hospital_key or "
            "`ssh-keygen -t ecdsa -b 384` makes it."
        )
    if public_path.exists() and load_public_key(public_path) != _public_pem(key.public_key()):
        raise CredentialError(
            f"{public_path} does not belong to {path}: the server would not know this hospital. Take both from the same pair; "
            f"`ssh-keygen -y -f {path}` prints the right key.pub."
        )
    return key, key.public_key()


def load_public_key(path: Path) -> bytes:
    """A hospital's public key (key.pub) as PEM, in the bytes that RegisterNode of Flower's Control API takes.

    Raises:
      CredentialError: the file is missing, damaged, a private key, or not of an elliptic curve.
    """
    content = read_file(Path(path))
    if b"PRIVATE KEY" in content:
        raise CredentialError(f"{path} is a private key, which is its hospital's alone; expected the public one, key.pub.")
    try:
        key = load_ssh_public_key(content)
    except UNREADABLE as error:
        raise CredentialError(
            f"{path} is not a public key in OpenSSH's format ({error}): damaged, or another file. Copy it again; expected one "
            "line that begins with ecdsa-sha2-nistp384."
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CredentialError(
            f"{path} is a key of another kind ({type(key).__name__}); expected one of an elliptic curve, a line that begins with "
            "ecdsa-sha2-nistp384."
        )
    return _public_pem(key)


def expires(path: Path) -> datetime:
    """When a certificate ends, in UTC.

    Raises:
      CredentialError: the file is missing or no certificate.
    """
    return read_certificate(Path(path)).not_valid_after_utc


def check_certificate(folder: Path) -> None:
    """Asked at the server's start: server.key, server.crt and ca.crt belong together, and are valid today.

    Raises:
      CredentialError: which of them cannot be used, and why.
    """
    folder = Path(folder)
    certificate, authority = read_certificate(folder / "server.crt"), read_certificate(folder / "ca.crt")
    if read_private_key(folder / "server.key", load_pem_private_key, _PEM).public_key() != certificate.public_key():
        raise CredentialError(f"{folder}: server.key does not belong to server.crt. Take both from the same server.")
    if not is_issued_by(certificate, authority):
        raise CredentialError(
            f"{folder}: server.crt was signed by another authority than ca.crt, so every hospital would refuse it. Take ca.crt "
            "of the federation's authority, and have server.crt made with it."
        )
    check_period(certificate, f"The server's certificate {folder / 'server.crt'}")
    check_period(authority, f"The authority's certificate {folder / 'ca.crt'}")


def _alternative_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    names = []
    for host in dict.fromkeys(("localhost", "127.0.0.1", *([hosts] if isinstance(hosts, str) else hosts))):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            if not _HOST_NAME.fullmatch(host):
                raise CredentialError(
                    f"{host!r} is neither a host name nor an IP address. Write it as hospitals reach the server, without port, "
                    "e.g. federation.example.org or 192.0.2.7."
                ) from None
            names.append(x509.DNSName(host))
    return names


def _period(days: int, not_before: datetime | None) -> tuple[datetime, datetime]:
    if not 1 <= days <= _MAX_DAYS:
        raise CredentialError(f"days is {days}; expected 1 to {_MAX_DAYS}.")
    now = datetime.now(UTC)
    return not_before or now - _CLOCK_SKEW, (not_before or now) + timedelta(days=days)


def _sign(subject, public_key, issuer, issuer_key, start, end, *extensions) -> x509.Certificate:
    builder = x509.CertificateBuilder(issuer, subject, public_key, x509.random_serial_number(), start, end)
    identifiers = (
        (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False),
    )
    for extension, critical in (*extensions, *identifiers):
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA384())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in allowed for usage in _USAGES})


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
