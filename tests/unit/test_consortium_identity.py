"""Who somebody is in a consortium: what a certificate must be, what is signed, and which lists of revoked ones are believed."""

import base64
import json
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fl_utils.deployment.nvflare.identity import Person, is_signed, person_of, read_revocations, sign, write_revocations
from fl_utils.deployment.nvflare.settings import REVOKED, ROLES, RuleBroken
from fl_utils.deployment.nvflare.site_parts import Site
from tests.unit.made_governance import OTHER, RESEARCHER, authority, authority_key, person

DAY = timedelta(days=1)
SERIALS = ("b2", "a1")


def pem(key):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())


@pytest.fixture(scope="module")
def certificate():
    return person(RESEARCHER, "lead")[0]


@pytest.fixture(scope="module")
def key():
    return person(RESEARCHER, "lead")[1]


@pytest.fixture(scope="module")
def their_key():
    """The authority's."""
    return pem(authority_key("ours"))


@pytest.fixture
def listed(tmp_path, their_key):
    """List 3, of two certificates."""
    write_revocations(tmp_path / REVOKED, SERIALS, 3, their_key)
    return tmp_path / REVOKED


def forged(subject, issuer, signer, public, algorithm=hashes.SHA256()):
    """A certificate as anybody can make it, with any key."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public).serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY).not_valid_after(now + 30 * DAY).sign(signer, algorithm).public_bytes(serialization.Encoding.PEM)
    )


def as_pem(content):
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(content) + b"-----END CERTIFICATE-----\n"


def refused(*arguments):
    with pytest.raises(RuleBroken) as error:
        person_of(*arguments)
    assert error.value.rule == "identity"
    return str(error.value)


# --- certificates ---


@pytest.mark.parametrize("role", ROLES)
def test_name_role_serial_and_end_are_the_certificates(role):
    certificate, _ = person(RESEARCHER, role) if role == "lead" else person(f"{role}@university.org", role)
    found, read = person_of(certificate, authority()), x509.load_pem_x509_certificate(certificate)
    name = RESEARCHER if role == "lead" else f"{role}@university.org"
    assert found == Person(name, role, f"{read.serial_number:x}", read.not_valid_after_utc) and found.role_word == ROLES[role]


def test_a_certificate_holds_from_its_first_to_its_last_second(certificate):
    read = x509.load_pem_x509_certificate(certificate)
    first, last, second = read.not_valid_before_utc, read.not_valid_after_utc, timedelta(seconds=1)
    for now in (first, last, first + second, last - second):
        assert person_of(certificate, authority(), now).name == RESEARCHER
    for now in (first - second, last + second, first - 400 * DAY, last + 400 * DAY):
        said = refused(certificate, authority(), now)
        assert f"from {first:%Y-%m-%d} to {last:%Y-%m-%d}, and today is {now:%Y-%m-%d}" in said and "project admin" in said


def test_without_a_time_it_is_now():
    ended = person(OTHER, "lead", days=-0.5)[0]
    assert "Ask the project admin for a new one" in refused(ended, authority())
    assert person_of(ended, authority(), datetime.now(UTC) - timedelta(hours=18)).name == OTHER


def test_another_authority_is_none(certificate):
    theirs, _ = person(RESEARCHER, "lead", authority="theirs")
    said = refused(theirs, authority())
    assert RESEARCHER in said and "authority" in said
    refused(certificate, authority("theirs"))
    assert person_of(theirs, authority("theirs")).name == RESEARCHER


def test_a_certificate_that_only_names_the_authority_is_refused():
    """Issuer and role can be written by anybody; the signature cannot."""
    ours = x509.load_pem_x509_certificate(authority()).subject
    subject = x509.load_pem_x509_certificate(person(RESEARCHER, "lead")[0]).subject
    refused(forged(subject, ours, authority_key("theirs"), authority_key("theirs").public_key()), authority())
    curve = ec.generate_private_key(ec.SECP256R1())
    refused(forged(subject, ours, curve, curve.public_key()), authority())


def test_a_person_is_no_authority(key, certificate):
    """Who has a certificate cannot make another one, of another role."""
    own = serialization.load_pem_private_key(key, None)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin@consortium.org"), x509.NameAttribute(NameOID.UNSTRUCTURED_NAME, "project_admin")])
    issuers = x509.load_pem_x509_certificate(certificate).subject, x509.load_pem_x509_certificate(authority()).subject
    for issuer in issuers:
        refused(forged(subject, issuer, own, own.public_key()), authority())
    assert person_of(forged(subject, issuers[1], authority_key("ours"), own.public_key()), authority()).role == "project_admin"  # all but the key is right


@pytest.mark.parametrize("role", [None, " ", "server", "client", "LEAD", "lead ", "lead,project_admin"])
def test_a_role_that_nobody_has_is_refused(role):
    fields = {NameOID.COMMON_NAME: RESEARCHER} | ({} if role is None else {NameOID.UNSTRUCTURED_NAME: role})
    subject = x509.Name([x509.NameAttribute(kind, text) for kind, text in fields.items()])
    issuer = x509.load_pem_x509_certificate(authority()).subject
    said = refused(forged(subject, issuer, authority_key("ours"), authority_key("theirs").public_key()), authority())
    assert "expected one of project_admin, org_admin, lead, member" in said


def test_the_authority_itself_is_no_person():
    assert "names the role ''" in refused(authority(), authority())


@pytest.mark.parametrize("text", [b"", b"nobody", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\x00\xff"])
def test_what_is_no_certificate_is_told_so(text):
    assert "client.crt" in refused(text, authority())


def test_a_private_key_is_no_certificate(key):
    assert "client.crt" in refused(key, authority())


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_certificate_with_any_byte_changed_is_refused(certificate):
    """Also where the parts that cannot be read are found out only when they are asked for."""
    content = x509.load_pem_x509_certificate(certificate).public_bytes(serialization.Encoding.DER)


    for place, byte in enumerate(content):
        refused(as_pem(content[:place] + bytes([byte ^ 1 << place % 8]) + content[place + 1 :]), authority())


def test_a_certificate_has_one_text_only():
    """One byte of it, before the signature, is neither signed nor read by the library: how many of the last bits do not count."""
    subject, issuer = (x509.load_pem_x509_certificate(one).subject for one in (person(RESEARCHER, "lead")[0], authority()))
    even = False
    while not even:  # one whose last bit is 0, and may be said not to count
        pem = forged(subject, issuer, authority_key("ours"), authority_key("theirs").public_key())
        content = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
        even = content[-1] % 2 == 0
    place = len(content) - 257
    changed = as_pem(content[:place] + b"\1" + content[place + 1 :])
    assert content[place] == 0 and x509.load_pem_x509_certificate(changed).serial_number == x509.load_pem_x509_certificate(pem).serial_number
    assert person_of(pem, authority()).name == RESEARCHER
    refused(changed, authority())


# --- signatures ---


def test_only_what_was_signed_is_signed(key, certificate):
    signature = sign(b"a plan", key)
    assert is_signed(b"a plan", signature, certificate) and sign(b"a plan", key) == signature
    assert not is_signed(b"a plan ", signature, certificate) and not is_signed(b"", signature, certificate)
    assert not is_signed(b"a plan", signature[:-1], certificate) and not is_signed(b"a plan", b"", certificate)
    assert not is_signed(b"a plan", bytes([signature[0] ^ 1]) + signature[1:], certificate)
    assert not is_signed(b"a plan", signature, person(OTHER, "lead")[0])


def test_a_certificate_of_another_kind_or_none_has_signed_nothing(key):
    curve = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "curve")])
    signature = sign(b"a plan", key)
    for other in (forged(name, name, curve, curve.public_key()), b"", b"nobody"):
        assert not is_signed(b"a plan", signature, other)


# --- who has been revoked ---


def test_a_list_is_read_as_it_was_written(listed):
    assert read_revocations(listed, authority()) == (3, frozenset(SERIALS))
    assert json.loads(listed.read_text())["serials"] == ["a1", "b2"] and stat.S_IMODE(listed.stat().st_mode) == 0o600


def test_where_there_is_no_list_nobody_is_revoked(tmp_path):
    assert read_revocations(tmp_path / REVOKED, authority()) == (0, frozenset())


def change(listed, **fields):
    listed.write_text(json.dumps(json.loads(listed.read_text()) | fields))


@pytest.mark.parametrize("fields", [
    {"number": 4}, {"serials": []}, {"serials": ["a1"]}, {"serials": ["a1", "b2", "c3"]}, {"serials": "a1b2"}, {"signature": "00" * 256}
])  # fmt: skip
def test_a_list_that_was_changed_is_refused(listed, fields):
    change(listed, **fields)
    with pytest.raises(RuleBroken, match="not signed by the consortium's authority") as error:
        read_revocations(listed, authority())
    assert error.value.rule == "revoked"


def test_a_list_of_another_authority_or_of_a_person_is_refused(listed, key):
    for other in (pem(authority_key("theirs")), key):
        write_revocations(listed, SERIALS, 4, other)
        with pytest.raises(RuleBroken, match="not signed") as error:
            read_revocations(listed, authority())
        assert error.value.rule == "revoked"


def test_what_a_person_signed_is_no_list(listed, key, certificate):
    """A signature of somebody else over the very same content."""
    content = {"number": 9, "serials": []}
    change(listed, **content, signature=sign(json.dumps(content, sort_keys=True, separators=(",", ":")).encode(), key).hex())
    with pytest.raises(RuleBroken, match="not signed"):
        read_revocations(listed, authority())
    assert read_revocations(listed, certificate) == (9, frozenset())  # it is theirs


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '{"number": 3, "serials": []}', '{"number": 3, "signature": ""}', '{"number": 3, "serials": [], "signature": "xyz"}',
             '{"number": 3, "serials": [], "signature": 5}']
)  # fmt: skip
def test_a_list_that_cannot_be_read_lets_nobody_in(listed, text):
    listed.write_text(text)
    with pytest.raises(RuleBroken, match="revoked.json cannot be read .*project admin") as error:
        read_revocations(listed, authority())
    assert error.value.rule == "revoked"


def test_a_folder_or_bytes_in_place_of_the_list_let_nobody_in(listed):
    listed.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RuleBroken, match="cannot be read"):
        read_revocations(listed, authority())
    listed.unlink()
    listed.mkdir()
    with pytest.raises(RuleBroken, match="cannot be read") as error:
        read_revocations(listed, authority())
    assert error.value.rule == "revoked"


@pytest.fixture
def site(listed):
    """A hospital that has seen list 3."""
    folder = listed.parent
    (folder / "startup").mkdir()
    (folder / "startup" / "rootCA.pem").write_bytes(authority())
    (folder / "startup" / "fed_client.json").write_text(json.dumps({"client": {"fqsn": "hospital_1"}}))
    found = Site(folder)
    assert found.revoked() == frozenset(SERIALS)
    return found


def test_a_hospital_takes_a_newer_list(site, listed, their_key):
    write_revocations(listed, [*SERIALS, "c3"], 4, their_key)
    assert site.revoked() == frozenset((*SERIALS, "c3")) and site.revoked() == frozenset((*SERIALS, "c3"))


@pytest.mark.parametrize("put_back", ["older", "missing"])
def test_a_hospital_takes_no_older_list_nor_none_in_place_of_one(site, listed, their_key, put_back):
    """Both are right for themselves, and would let somebody in again; also after the hospital was started anew."""
    listed.unlink() if put_back == "missing" else write_revocations(listed, [], 2, their_key)
    assert read_revocations(listed, authority())[1] == frozenset()
    for one in (site, Site(listed.parent)):
        with pytest.raises(RuleBroken, match="list 3 was seen here before") as error:
            one.revoked()
        assert error.value.rule == "revoked"
    write_revocations(listed, SERIALS, 3, their_key)
    assert site.revoked() == frozenset(SERIALS)


def test_a_forged_list_is_not_remembered_as_seen(site, listed, their_key):
    write_revocations(listed, [], 99, pem(authority_key("theirs")))
    with pytest.raises(RuleBroken, match="not signed"):
        site.revoked()
    write_revocations(listed, ["d4"], 4, their_key)
    assert site.revoked() == {"d4"}
