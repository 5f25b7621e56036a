"""Who somebody is: certificates of the consortium's authority, what is signed with them, and who has been revoked.

A person signs with the key of the NVFlare kit (RSA, PKCS#1 v1.5 with SHA-256, as NVFlare signs jobs). The list of revoked
certificates is signed by the authority and numbered, so that a hospital takes neither a forged nor an older one.
"""

import dataclasses
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.x509.oid import NameOID

from fl_utils.deployment.nvflare.settings import ROLES, RuleBroken
from fl_utils.files import write_atomically


@dataclasses.dataclass(frozen=True)
class Person:
    """Somebody with a certificate of the consortium.

    Attributes:
      name: as it stands in the certificate, e.g. researcher@university.org.
      role: of `settings.ROLES`, NVFlare's word.
      serial: the certificate's number, hex: what is revoked.
      expires: when the certificate ends, UTC.
    """

    name: str
    role: str
    serial: str
    expires: datetime

    @property
    def role_word(self) -> str:
        return ROLES[self.role]


def person_of(certificate: bytes, authority: bytes, now: datetime | None = None) -> Person:
    """Whose certificate this is.

    Args:
      certificate: PEM bytes.
      authority: the consortium's, PEM bytes.
      now: default the present.
    Raises:
      RuleBroken: "identity": it is no certificate, of another authority, out of its time, or names no role.
    """
    now = now or datetime.now(UTC)
    try:
        one, root = x509.load_pem_x509_certificate(certificate), x509.load_pem_x509_certificate(authority)
        name, role = _field(one, NameOID.COMMON_NAME), _field(one, NameOID.UNSTRUCTURED_NAME)
        if not one.public_bytes(serialization.Encoding.DER).endswith(b"\0" + one.signature):
            raise ValueError("the byte before its signature is not 0")  # which nothing else looks at: so there is one text only
    except Exception as error:  # parts are read only when they are asked for, and what is no certificate fails in many ways
        raise RuleBroken("identity", f"there is no certificate ({error}). Take the one of the kit, startup/client.crt.") from None
    try:
        one.verify_directly_issued_by(root)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        raise RuleBroken("identity", f"the certificate of {name or 'nobody'} is not of this consortium's authority.") from None
    if role not in ROLES:
        raise RuleBroken("identity", f"the certificate of {name} names the role {role!r}; expected one of {', '.join(ROLES)}.")
    if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
        raise RuleBroken(
            "identity", f"the certificate of {name} holds from {one.not_valid_before_utc:%Y-%m-%d} to {one.not_valid_after_utc:%Y-%m-%d}, "
            f"and today is {now:%Y-%m-%d}. Ask the project admin for a new one."
        )
    return Person(name, role, f"{one.serial_number:x}", one.not_valid_after_utc)


def sign(content: bytes, key: bytes) -> bytes:
    """A signature.

    Args:
      content: what is signed.
      key: PEM bytes of a private RSA key.
    """
    return serialization.load_pem_private_key(key, None).sign(content, padding.PKCS1v15(), hashes.SHA256())


def is_signed(content: bytes, signature: bytes, certificate: bytes) -> bool:
    """Whether the owner of the certificate signed this."""
    try:
        public = x509.load_pem_x509_certificate(certificate).public_key()
        public.verify(signature, content, padding.PKCS1v15(), hashes.SHA256())
        return True
    except (InvalidSignature, ValueError, AttributeError, TypeError):
        return False


def write_revocations(path: Path, serials: Sequence[str], number: int, key: bytes) -> None:
    """Writes the list of revoked certificates.

    Args:
      path: of the file.
      serials: of all that are revoked.
      number: greater than that of the list before.
      key: the authority's, PEM bytes.
    """
    listed = {"number": number, "serials": sorted(serials)}
    signature = sign(_canonical(listed), key).hex()
    write_atomically(Path(path), lambda file: file.write(json.dumps(listed | {"signature": signature}, indent=2).encode()))


def read_revocations(path: Path, authority: bytes) -> tuple[int, frozenset[str]]:
    """The number of the list, and the revoked certificates' serials; (0, none) where there is no list.

    Raises:
      RuleBroken: "revoked": the list is not the authority's. Nobody can be trusted then.
    """
    try:
        found = json.loads(Path(path).read_text())
        listed, signature = {name: found[name] for name in ("number", "serials")}, bytes.fromhex(found["signature"])
    except FileNotFoundError:
        return 0, frozenset()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RuleBroken("revoked", f"{Path(path).name} cannot be read ({error}); get it from the project admin again.") from None
    if not is_signed(_canonical(listed), signature, authority):
        raise RuleBroken("revoked", f"{Path(path).name} is not signed by the consortium's authority; get it from the project admin again.")
    return listed["number"], frozenset(listed["serials"])


def _canonical(content: dict) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _field(certificate: x509.Certificate, kind) -> str:
    found = certificate.subject.get_attributes_for_oid(kind)
    return str(found[0].value) if found else ""
