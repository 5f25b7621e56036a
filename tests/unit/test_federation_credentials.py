"""Credentials of the Flower federation: files and their modes, every way a handshake can fail, and what gRPC and Flower take."""

import argparse
import contextlib
import ipaddress
import os
import re
import socket
import ssl
import stat
import struct
import threading
from base64 import b64decode, encodebytes
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID

from fl_utils import files
from fl_utils.deployment.flower import credentials, key_files
from fl_utils.deployment.flower.credentials import (
    CredentialError, check_certificate, check_server, expires, load_hospital_key, load_public_key, make_authority, make_hospital_key,
    make_server_certificate,
)

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
OPENSSH = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation") / "authority"
    make_authority(folder)
    return folder


@pytest.fixture(scope="module")
def server(authority, tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation") / "server"
    make_server_certificate(authority, folder, hosts=["federation.example.org", "192.0.2.7"])
    return folder


@pytest.fixture
def hospital(tmp_path):
    make_hospital_key(tmp_path / "hospital_0")
    return tmp_path / "hospital_0"


def certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def private(path):
    return serialization.load_pem_private_key(path.read_bytes(), None)


def extension(path, kind):
    return certificate(path).extensions.get_extension_for_class(kind)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def write_secret(path, content):
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)


def says(*texts):
    """All of these stand in the message, in this order."""
    return "(?s)" + ".*".join(map(re.escape, texts))


# --- making ---


def test_the_authority_signs_and_does_nothing_else(authority):
    basic, usage = extension(authority / "ca.crt", x509.BasicConstraints), extension(authority / "ca.crt", x509.KeyUsage)
    assert basic.critical and basic.value.ca and basic.value.path_length == 0
    assert usage.critical and usage.value.key_cert_sign and not usage.value.digital_signature
    assert isinstance(private(authority / "ca.key").curve, ec.SECP384R1)
    assert private(authority / "ca.key").public_key() == certificate(authority / "ca.crt").public_key()
    assert NOW + 824 * DAY < expires(authority / "ca.crt") <= datetime.now(UTC) + 825 * DAY
    assert expires(authority / "ca.crt").tzinfo is UTC or expires(authority / "ca.crt").utcoffset() == timedelta()


def test_the_servers_certificate_names_hosts_and_addresses_and_is_for_servers(authority, server):
    names = extension(server / "server.crt", x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "federation.example.org"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("192.0.2.7")]
    assert list(extension(server / "server.crt", x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not extension(server / "server.crt", x509.BasicConstraints).value.ca
    certificate(server / "server.crt").verify_directly_issued_by(certificate(authority / "ca.crt"))
    assert (server / "ca.crt").read_bytes() == (authority / "ca.crt").read_bytes()
    assert NOW + 364 * DAY < expires(server / "server.crt") <= datetime.now(UTC) + 365 * DAY
    assert certificate(server / "server.crt").not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=59)  # for slow clocks


def test_the_chain_passes_openssls_strict_rules_of_newer_pythons(server):
    context = ssl.create_default_context(cadata=(server / "ca.crt").read_text())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with tls_server(server) as port, socket.create_connection(("127.0.0.1", port), 30) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
            assert secure.version() == "TLSv1.3"


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_private_keys_are_their_owners_alone_and_the_rest_is_public_whatever_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        make_authority(tmp_path / "a")
        make_server_certificate(tmp_path / "a", tmp_path / "s", hosts=[])
        make_hospital_key(tmp_path / "h")
    finally:
        os.umask(before)
    assert {mode(tmp_path / folder) for folder in "ash"} == {0o700}
    modes = {path.name: mode(path) for folder in "ash" for path in (tmp_path / folder).iterdir()}
    assert modes == {"ca.key": 0o600, "server.key": 0o600, "key": 0o600, "ca.crt": 0o644, "server.crt": 0o644, "key.pub": 0o644}


def test_the_mode_is_set_before_the_secret_is_in_the_file(tmp_path, monkeypatch):
    seen = {}

    def watched(path, write):
        class File:  # the temporary file is opened as wide as can be, to see that the writer closes it first
            def __init__(self, file):
                self.fileno = file.fileno
                self.write = lambda content: (
                    seen.__setitem__(path.name, stat.S_IMODE(os.fstat(file.fileno()).st_mode)), file.write(content)
                )

        def opened_wide(file):
            os.fchmod(file.fileno(), 0o666)
            write(File(file))

        files.write_atomically(path, opened_wide)

    monkeypatch.setattr(key_files, "write_atomically", watched)
    make_authority(tmp_path / "a")
    make_server_certificate(tmp_path / "a", tmp_path / "s", hosts=[])
    make_hospital_key(tmp_path / "h")
    assert {name: seen[name] for name in key_files.SECRET} == dict.fromkeys(key_files.SECRET, 0o600)


def test_no_secret_stands_in_a_public_file(tmp_path, authority, server, hospital):
    secrets = [private(authority / "ca.key"), private(server / "server.key"), load_hospital_key(hospital)[0]]
    for folder in (authority, server, hospital):
        for path in folder.iterdir():
            if path.name not in key_files.SECRET:
                content = path.read_bytes()
                assert b"PRIVATE" not in content
                plain = content + b64decode(b"".join(re.findall(rb"^[A-Za-z0-9+/=]{20,}$", content, re.M)) or b"")
                assert not any(key.private_numbers().private_value.to_bytes(48, "big") in plain for key in secrets)
    assert sorted(path.name for path in authority.iterdir()) == ["ca.crt", "ca.key"]
    assert sorted(path.name for path in server.iterdir()) == ["ca.crt", "server.crt", "server.key"]
    assert sorted(path.name for path in hospital.iterdir()) == ["key", "key.pub"]


@pytest.mark.parametrize("gone", [0, 1])
@pytest.mark.parametrize("kind", ["authority", "server", "hospital"])
def test_nothing_is_overwritten_not_even_half_a_pair(tmp_path, authority, kind, gone):
    make, pair = {
        "authority": (lambda: make_authority(tmp_path / "x"), ("ca.key", "ca.crt")),
        "server": (lambda: make_server_certificate(authority, tmp_path / "x", hosts=[]), ("server.key", "server.crt")),
        "hospital": (lambda: make_hospital_key(tmp_path / "x"), ("key", "key.pub")),
    }[kind]
    make()
    (tmp_path / "x" / pair[gone]).unlink()
    kept = tmp_path / "x" / pair[1 - gone]
    content = kept.read_bytes()
    with pytest.raises(CredentialError, match=says(str(kept), "is there already", "move")):
        make()
    assert kept.read_bytes() == content and not (tmp_path / "x" / pair[gone]).exists()


def test_the_servers_certificate_is_renewed_once_the_old_pair_is_moved_away(tmp_path, authority):
    make_server_certificate(authority, tmp_path, hosts=[], days=5)
    (tmp_path / "server.key").unlink()
    (tmp_path / "server.crt").unlink()
    make_server_certificate(authority, tmp_path, hosts=[], days=50)  # ca.crt is the same one, and stays
    assert expires(tmp_path / "server.crt") > NOW + 49 * DAY


def test_a_server_that_knows_another_authority_keeps_it(tmp_path, authority):
    make_authority(tmp_path / "other")
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "ca.crt").write_bytes((tmp_path / "other" / "ca.crt").read_bytes())
    with pytest.raises(CredentialError, match=says("ca.crt", "is there already")):
        make_server_certificate(authority, tmp_path / "server", hosts=[])
    assert [path.name for path in (tmp_path / "server").iterdir()] == ["ca.crt"]


def test_a_disk_that_fails_leaves_no_half_pair(tmp_path, monkeypatch):
    real = files.write_atomically

    def fails_on_public(path, write):
        if path.name == "key.pub":
            raise OSError(28, "No space left on device")
        real(path, write)

    monkeypatch.setattr(key_files, "write_atomically", fails_on_public)
    with pytest.raises(OSError, match="No space"):
        make_hospital_key(tmp_path / "h")
    assert list((tmp_path / "h").iterdir()) == []


@pytest.mark.parametrize("host", ["", "host:9092", "https://a.org", "a b", "-a.org", "a..org", "1.2.3", "999.1.1.1", "büro.de", "[::1]"])
def test_a_host_that_is_neither_name_nor_address_is_refused(tmp_path, authority, host):
    with pytest.raises(CredentialError, match=says(repr(host), "without port")):
        make_server_certificate(authority, tmp_path / "s", hosts=["a.org", host])
    assert not (tmp_path / "s").exists()


def test_hosts_may_be_one_text_and_repeat_themselves(tmp_path, authority):
    make_server_certificate(authority, tmp_path / "one", hosts="a.org")
    make_server_certificate(authority, tmp_path / "two", hosts=["localhost", "::1", "*.a.org", "127.0.0.1", "::1"])
    names = [extension(tmp_path / folder / "server.crt", x509.SubjectAlternativeName).value for folder in ("one", "two")]
    assert [name.value for name in names[0]] == ["localhost", ipaddress.ip_address("127.0.0.1"), "a.org"]
    assert [str(name.value) for name in names[1]] == ["localhost", "127.0.0.1", "::1", "*.a.org"]


@pytest.mark.parametrize("days", [0, -1, 36_501])
def test_days_out_of_range_are_refused(tmp_path, authority, days):
    for make in (lambda: make_authority(tmp_path / "x", days=days),
                 lambda: make_server_certificate(authority, tmp_path / "x", hosts=[], days=days)):
        with pytest.raises(CredentialError, match=says(f"days is {days}", "1 to 36500")):
            make()


def test_the_certificate_does_not_outlive_its_authority(tmp_path):
    make_authority(tmp_path / "a", days=10)
    make_server_certificate(tmp_path / "a", tmp_path / "s", hosts=[], days=365)
    assert expires(tmp_path / "s" / "server.crt") == expires(tmp_path / "a" / "ca.crt")
    with pytest.raises(CredentialError, match=says("authority", "has expired")):
        make_server_certificate(tmp_path / "a", tmp_path / "later", hosts=[], not_before=NOW + 20 * DAY)


def test_an_authority_that_cannot_sign_is_refused(tmp_path, authority):
    make_authority(tmp_path / "old", days=5, not_before=NOW - 9 * DAY)
    with pytest.raises(CredentialError, match=says("authority's certificate", "expired on", f"{NOW - 4 * DAY:%Y-%m-%d}")):
        make_server_certificate(tmp_path / "old", tmp_path / "s", hosts=[])
    make_authority(tmp_path / "mixed")
    (tmp_path / "mixed" / "ca.crt").write_bytes((authority / "ca.crt").read_bytes())
    with pytest.raises(CredentialError, match=says("ca.key does not belong to ca.crt")):
        make_server_certificate(tmp_path / "mixed", tmp_path / "s", hosts=[])
    (tmp_path / "mixed" / "ca.key").unlink()
    with pytest.raises(CredentialError, match=says("There is no", "ca.key")):
        make_server_certificate(tmp_path / "mixed", tmp_path / "s", hosts=[])
    make_authority(tmp_path / "open")
    (tmp_path / "open" / "ca.key").chmod(0o640)
    with pytest.raises(CredentialError, match=says("mode 0640", "chmod 600")):
        make_server_certificate(tmp_path / "open", tmp_path / "s", hosts=[])
    assert not (tmp_path / "s").exists()


# --- a hospital's key ---


def with_passphrase(content):
    """An OpenSSH key file that says it is encrypted; the real bytes do not matter before the passphrase is asked for."""
    lines = content.splitlines()
    body = b64decode(b"".join(lines[1:-1]))
    magic, rest = body[:15], body[15:]
    text = lambda data: struct.pack(">I", len(data)) + data  # noqa: E731
    assert magic == b"openssh-key-v1\0" and rest.startswith(text(b"none") + text(b"none") + text(b""))
    header = text(b"aes256-ctr") + text(b"bcrypt") + text(text(bytes(16)) + struct.pack(">I", 16))
    return lines[0] + b"\n" + encodebytes(magic + header + rest[len(text(b"none")) * 2 + 4:]) + lines[-1] + b"\n"


def test_a_hospitals_pair_comes_back(hospital):
    key, public = load_hospital_key(hospital)
    assert isinstance(key.curve, ec.SECP384R1) and key.public_key() == public
    public.verify(key.sign(b"message", ec.ECDSA(hashes.SHA256())), b"message", ec.ECDSA(hashes.SHA256()))
    assert serialization.load_pem_public_key(load_public_key(hospital / "key.pub")) == public
    (hospital / "key.pub").unlink()  # it was handed over
    assert load_hospital_key(hospital)[1] == public


def test_flower_reads_the_same_pair(hospital):
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes, uses_nist_ec_curve
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

    key, public = load_hospital_key(hospital)
    args = argparse.Namespace(auth_supernode_private_key=str(hospital / "key"), auth_supernode_public_key=None)
    theirs, their_public = _try_setup_client_authentication(args)
    assert theirs.private_numbers() == key.private_numbers() and their_public == public
    pem = load_public_key(hospital / "key.pub")
    assert pem == public_key_to_bytes(public) == try_load_public_key(hospital / "key.pub")
    assert bytes_to_public_key(pem) == public and uses_nist_ec_curve(public)


def test_a_public_key_with_a_comment_is_read(hospital):
    plain = load_public_key(hospital / "key.pub")
    (hospital / "key.pub").write_bytes((hospital / "key.pub").read_bytes().strip() + b" data.team@hospital\n")
    assert load_public_key(hospital / "key.pub") == plain


@pytest.mark.parametrize("wide", [0o604, 0o640, 0o660, 0o601, 0o777])
def test_a_key_open_to_others_is_refused_and_the_way_out_is_named(hospital, wide):
    (hospital / "key").chmod(wide)
    with pytest.raises(CredentialError, match=says(f"mode {wide:04o}", f"chmod 600 {hospital / 'key'}")):
        load_hospital_key(hospital)
    (hospital / "key").chmod(0o400)
    load_hospital_key(hospital)


def test_a_missing_key_is_named(tmp_path, hospital):
    for call in (lambda: load_hospital_key(tmp_path / "nowhere"), lambda: load_public_key(tmp_path / "nowhere" / "key.pub"),
                 lambda: expires(tmp_path / "nowhere" / "ca.crt")):
        with pytest.raises(CredentialError, match=says("There is no", "nowhere")):
            call()
    (hospital / "key").unlink()
    (hospital / "key").mkdir(mode=0o700)
    with pytest.raises(CredentialError, match=says("key cannot be read", "directory")):
        load_hospital_key(hospital)


def test_a_passphrase_is_named_as_the_reason(hospital):
    write_secret(hospital / "key", with_passphrase((hospital / "key").read_bytes()))
    with pytest.raises(CredentialError, match=says("passphrase", "ssh-keygen -p")):
        load_hospital_key(hospital)
    key = ec.generate_private_key(ec.SECP384R1())
    write_secret(hospital / "server.key", key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")))
    with pytest.raises(CredentialError, match=says("server.key", "passphrase")):
        key_files.read_private_key(hospital / "server.key", serialization.load_pem_private_key, "PEM")


def test_keys_of_another_kind_are_refused(hospital, authority):
    other = ed25519.Ed25519PrivateKey.generate()
    (hospital / "key.pub").write_bytes(other.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH))
    with pytest.raises(CredentialError, match=says("another kind", "Ed25519PublicKey", "ecdsa-sha2-nistp384")):
        load_public_key(hospital / "key.pub")
    write_secret(hospital / "key", other.private_bytes(*OPENSSH))
    with pytest.raises(CredentialError, match=says("another kind", "Ed25519PrivateKey")):
        load_hospital_key(hospital)
    write_secret(hospital / "key", (authority / "ca.key").read_bytes())  # a good key, in another format
    with pytest.raises(CredentialError, match=says("not a private key in OpenSSH's format")):
        load_hospital_key(hospital)


def test_the_halves_of_two_pairs_are_refused(tmp_path, hospital):
    make_hospital_key(tmp_path / "other")
    (hospital / "key.pub").write_bytes((tmp_path / "other" / "key.pub").read_bytes())
    with pytest.raises(CredentialError, match=says("key.pub does not belong to", "ssh-keygen -y")):
        load_hospital_key(hospital)


def test_a_private_key_is_not_taken_for_the_public_one(hospital):
    with pytest.raises(CredentialError, match=says("is a private key", "key.pub")):
        load_public_key(hospital / "key")


def test_damaged_files_give_no_other_error_wherever_the_damage_is(hospital, server):
    """Cut at every place and with bytes changed: a CredentialError, or (in comments and padding) the same key."""
    _, public = load_hospital_key(hospital)
    (hospital / "ca.crt").write_bytes((server / "ca.crt").read_bytes())
    kept = (hospital / "key.pub").read_bytes()
    for name, load in (("key", lambda: load_hospital_key(hospital)), ("key.pub", lambda: load_public_key(hospital / "key.pub")),
                       ("ca.crt", lambda: expires(hospital / "ca.crt"))):
        whole, refused = (hospital / name).read_bytes(), 0
        cut = [whole[:size] for size in range(0, len(whole), 7)]
        changed = [whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1:] for at in range(0, len(whole), 3) for flip in (1, 0x80)]
        for content in (*cut, *changed, b"", b"\xff\xfe" * 50, kept * 2):
            (hospital / name).write_bytes(content)
            try:
                load()
            except CredentialError as error:
                assert str(hospital / name) in str(error)
                refused += 1
        (hospital / name).write_bytes(whole)
        assert refused >= len(cut), name
    assert load_hospital_key(hospital)[1] == public


def test_a_changed_private_number_is_noticed_by_the_public_half(hospital):
    key, _ = load_hospital_key(hospital)
    content = (hospital / "key").read_bytes()
    lines = content.splitlines()
    body = b64decode(b"".join(lines[1:-1]))
    number = key.private_numbers().private_value.to_bytes(48, "big")
    assert body.count(number) == 1
    body = body.replace(number, number[:-1] + bytes([number[-1] ^ 1]))
    write_secret(hospital / "key", lines[0] + b"\n" + encodebytes(body) + lines[-1] + b"\n")
    with pytest.raises(CredentialError):
        load_hospital_key(hospital)


# --- the server's own look at its certificate ---


def copy(source, target):
    target.mkdir()
    for path in source.iterdir():
        write_secret(target / path.name, path.read_bytes())
    return target


def test_a_good_server_passes(server):
    check_certificate(server)


def test_a_server_refuses_what_does_not_belong_together(tmp_path, authority, server):
    make_authority(tmp_path / "other")
    make_server_certificate(tmp_path / "other", tmp_path / "stranger", hosts=[])
    for name, text in (("server.key", "server.key does not belong to server.crt"), ("ca.crt", "another authority than ca.crt")):
        mixed = copy(server, tmp_path / name)
        write_secret(mixed / name, (tmp_path / "stranger" / name).read_bytes())
        with pytest.raises(CredentialError, match=says(text)):
            check_certificate(mixed)
    for name in ("server.key", "server.crt", "ca.crt"):
        broken = copy(server, tmp_path / f"broken_{name}")
        (broken / name).write_bytes(b"-----BEGIN NOTHING-----\n")
        with pytest.raises(CredentialError, match=says(f"broken_{name}/{name} is not a", "damaged")):
            check_certificate(broken)
        (broken / name).unlink()
        with pytest.raises(CredentialError, match=says("There is no", f"broken_{name}/{name}")):
            check_certificate(broken)
    opened = copy(server, tmp_path / "opened")
    (opened / "server.key").chmod(0o644)
    with pytest.raises(CredentialError, match=says("mode 0644", "chmod 600")):
        check_certificate(opened)


def test_a_server_refuses_a_certificate_that_is_not_valid_today_and_says_the_dates(tmp_path, authority):
    make_server_certificate(authority, tmp_path / "old", hosts=[], days=5, not_before=NOW - 9 * DAY)
    with pytest.raises(CredentialError, match=says("server.crt expired on", f"{NOW - 4 * DAY:%Y-%m-%d}", f"{NOW - 9 * DAY:%Y-%m-%d}", "clock")):
        check_certificate(tmp_path / "old")
    make_server_certificate(authority, tmp_path / "new", hosts=[], days=5, not_before=NOW + 9 * DAY)
    with pytest.raises(CredentialError, match=says("not yet valid", f"{NOW + 9 * DAY:%Y-%m-%d}", f"{NOW + 14 * DAY:%Y-%m-%d}")):
        check_certificate(tmp_path / "new")


# --- a hospital's look at the server ---


@contextlib.contextmanager
def listening(serve):
    """A port of this computer at which `serve(socket)` is called with every connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept():
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer, contextlib.suppress(OSError):
                serve(peer)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(30)


def tls_server(folder, protocols=("h2",)):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    if protocols:
        context.set_alpn_protocols(protocols)

    def serve(peer):
        peer.settimeout(30)
        with context.wrap_socket(peer, server_side=True) as secure:
            secure.recv(1)

    return listening(serve)


def sign_by_hand(authority, folder, *names, start=NOW - DAY, end=NOW + DAY, ca=None):
    """A server's folder whose certificate `make_server_certificate` would not make."""
    folder.mkdir()
    key, issuer = ec.generate_private_key(ec.SECP256R1()), ca or certificate(authority / "ca.crt")
    builder = x509.CertificateBuilder(issuer.subject, x509.Name([]), key.public_key(), 7, start, end)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), True)
    (folder / "server.crt").write_bytes(
        builder.sign(private(authority / "ca.key"), hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    write_secret(folder / "server.key", key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return folder


LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


def test_a_hospital_finds_nothing_wrong_with_the_right_server(authority, server):
    with tls_server(server) as port:
        for host in ("127.0.0.1", "localhost"):
            check_server(f"{host}:{port}", (authority / "ca.crt").read_bytes(), timeout_s=30)


def test_a_bundle_of_an_old_and_a_new_authority_is_trusted(tmp_path, authority, server):
    make_authority(tmp_path / "old")
    bundle = (tmp_path / "old" / "ca.crt").read_bytes() + (authority / "ca.crt").read_bytes()
    with tls_server(server) as port:
        check_server(f"127.0.0.1:{port}", bundle, timeout_s=30)


def test_another_authority_is_refused_though_it_has_the_same_name(tmp_path, authority, server):
    make_authority(tmp_path / "other")
    assert certificate(tmp_path / "other" / "ca.crt").subject == certificate(authority / "ca.crt").subject
    with tls_server(server) as port, pytest.raises(CredentialError, match=says(f"127.0.0.1:{port}", "another authority", "ca.crt")):
        check_server(f"127.0.0.1:{port}", (tmp_path / "other" / "ca.crt").read_bytes(), timeout_s=30)


def test_a_server_that_signed_for_itself_is_refused(tmp_path, authority):
    make_authority(tmp_path)
    (tmp_path / "ca.crt").rename(tmp_path / "server.crt")
    (tmp_path / "ca.key").rename(tmp_path / "server.key")
    with tls_server(tmp_path) as port, pytest.raises(CredentialError, match="another authority"):
        check_server(f"127.0.0.1:{port}", (authority / "ca.crt").read_bytes(), timeout_s=30)


@pytest.mark.parametrize(("begins", "text"), [(-9, "expired on"), (9, "is not yet valid")])
def test_a_certificate_that_is_not_valid_today_is_refused_with_its_dates(tmp_path, authority, begins, text):
    start, end = NOW + begins * DAY, NOW + (begins + 5) * DAY
    make_server_certificate(authority, tmp_path / "s", hosts=[], days=5, not_before=start)
    with tls_server(tmp_path / "s") as port, pytest.raises(CredentialError, match=says("certificate of the server at", text)) as caught:
        check_server(f"127.0.0.1:{port}", (authority / "ca.crt").read_bytes(), timeout_s=30)
    assert f"{start:%Y-%m-%d %H:%M UTC}" in str(caught.value) and f"{end:%Y-%m-%d %H:%M UTC}" in str(caught.value)


def test_an_expired_authority_is_named_as_such(tmp_path):
    make_authority(tmp_path / "a", days=5, not_before=NOW - 9 * DAY)
    folder = sign_by_hand(tmp_path / "a", tmp_path / "s", LOOPBACK)
    with tls_server(folder) as port, pytest.raises(CredentialError, match=says("an authority whose own (ca.crt) expired on")):
        check_server(f"127.0.0.1:{port}", (tmp_path / "a" / "ca.crt").read_bytes(), timeout_s=30)
    write_secret(folder / "ca.crt", (tmp_path / "a" / "ca.crt").read_bytes())
    with pytest.raises(CredentialError, match=says("authority's certificate", "expired on")):
        check_certificate(folder)


def test_a_certificate_for_other_hosts_is_refused_with_its_names(tmp_path, authority):
    folder = sign_by_hand(authority, tmp_path / "s", x509.DNSName("a.example.org"), x509.IPAddress(ipaddress.ip_address("192.0.2.9")))
    with tls_server(folder) as port:
        for host in ("127.0.0.1", "localhost"):  # an address and a name: two codes of OpenSSL
            with pytest.raises(CredentialError, match=says(f"{host}:{port}", "for other names: a.example.org, 192.0.2.9.")):
                check_server(f"{host}:{port}", (authority / "ca.crt").read_bytes(), timeout_s=30)
    nameless = sign_by_hand(authority, tmp_path / "nameless")
    with tls_server(nameless) as port, pytest.raises(CredentialError, match="for other names: none at all"):
        check_server(f"127.0.0.1:{port}", (authority / "ca.crt").read_bytes(), timeout_s=30)


def test_an_authority_that_may_not_sign_is_refused_by_openssls_reason(tmp_path, authority):
    """ca.crt is a server's certificate: it did sign, and the dates fit, but it is no authority."""
    make_server_certificate(authority, tmp_path / "s", hosts=[])
    (tmp_path / "s" / "server.key").rename(tmp_path / "s" / "ca.key")
    (tmp_path / "s" / "server.crt").replace(tmp_path / "s" / "ca.crt")
    folder = sign_by_hand(tmp_path / "s", tmp_path / "t", LOOPBACK)
    with tls_server(folder) as port, pytest.raises(CredentialError, match="was refused: unable to get issuer"):
        check_server(f"127.0.0.1:{port}", (tmp_path / "s" / "ca.crt").read_bytes(), timeout_s=30)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail.example.org\r\n", b"\0" * 40,
                                    b"\x16\x03\x03\xff\xff" + bytes(70_000)])
def test_a_peer_without_tls_is_named_as_such(authority, answer):
    def serve(peer):
        peer.recv(4096)
        peer.sendall(answer)
        peer.recv(4096)

    with listening(serve) as port, pytest.raises(CredentialError, match=says(f"127.0.0.1:{port} does not speak TLS", "started with its")):
        check_server(f"127.0.0.1:{port}", (authority / "ca.crt").read_bytes(), timeout_s=30)


def test_a_peer_that_refuses_in_tls_is_quoted(authority):
    def serve(peer):
        peer.recv(4096)
        peer.sendall(b"\x15\x03\x03\x00\x02\x02\x28")  # alert: fatal, handshake_failure
        peer.recv(4096)

    with listening(serve) as port, pytest.raises(CredentialError, match=says("refused the TLS handshake", "handshake failure")):
        check_server(f"127.0.0.1:{port}", (authority / "ca.crt").read_bytes(), timeout_s=30)


@pytest.mark.parametrize("protocols", [(), ("http/1.1", "h2c")])
def test_a_web_server_with_the_right_certificate_is_not_the_grpc_server(authority, server, protocols):
    with tls_server(server, protocols) as port, pytest.raises(CredentialError, match="does not speak gRPC"):
        check_server(f"127.0.0.1:{port}", (authority / "ca.crt").read_bytes(), timeout_s=30)


def test_no_answer_is_no_matter_of_credentials(authority, monkeypatch):
    pem = (authority / "ca.crt").read_bytes()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        with pytest.raises(ConnectionError, match=says(f"127.0.0.1:{unused.getsockname()[1]}", "Is the server up")):
            check_server(f"127.0.0.1:{unused.getsockname()[1]}", pem, timeout_s=30)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes the connection, nobody answers
        with pytest.raises(ConnectionError, match="timed out"):
            check_server(f"127.0.0.1:{silent.getsockname()[1]}", pem, timeout_s=0.2)
    with listening(lambda peer: peer.recv(4096)) as port:  # closes, as a gateway does whose server is not up
        with pytest.raises(ConnectionError, match=f"127.0.0.1:{port}"):
            check_server(f"127.0.0.1:{port}", pem, timeout_s=30)

    def no_such_name(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    with pytest.raises(ConnectionError, match=says("federation.invalid:9092", "not known", "is the address right")):
        check_server("federation.invalid:9092", pem, timeout_s=30)


@pytest.mark.parametrize("address", ["", "localhost", ":9092", "localhost:", "localhost:0", "localhost:70000", "localhost:http", "a..b:9092"])
def test_an_address_that_is_none_is_refused(authority, address):
    with pytest.raises(CredentialError, match=says(repr(address), "host:port")):
        check_server(address, (authority / "ca.crt").read_bytes())


@pytest.mark.parametrize("pem", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_without_the_federations_authority_no_other_is_asked(server, pem):
    """An empty ca.crt would make Python trust every authority that the computer knows."""
    with tls_server(server) as port, pytest.raises(CredentialError, match=says("ca.crt", "cannot be read")):
        check_server(f"127.0.0.1:{port}", pem, timeout_s=30)


def test_ipv6_addresses_stand_in_brackets(authority, monkeypatch):
    asked = []

    def refuse(address, timeout):
        asked.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(ConnectionError, match=re.escape("[::1]:9092")):
        check_server("[::1]:9092", (authority / "ca.crt").read_bytes())
    assert asked == [("::1", 9092)]


# --- gRPC itself ---


@contextlib.contextmanager
def grpc_server(folder=None):
    """A gRPC server that answers every call with what it was sent."""
    server = grpc.server(ThreadPoolExecutor(1))
    method = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Echo", {"Say": method})])
    if folder is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        pair = ((folder / "server.key").read_bytes(), (folder / "server.crt").read_bytes())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def say(host, port, authority_pem):
    trust = grpc.ssl_channel_credentials(root_certificates=authority_pem)
    with grpc.secure_channel(f"{host}:{port}", trust, options=[("grpc.enable_http_proxy", 0)]) as channel:
        return channel.unary_unary("/Echo/Say")(b"hello", timeout=60)


def test_grpc_takes_the_certificates_and_check_server_agrees(authority, server):
    pem = (authority / "ca.crt").read_bytes()
    with grpc_server(server) as port:
        for host in ("127.0.0.1", "localhost"):
            assert say(host, port, pem) == b"hello"
            check_server(f"{host}:{port}", pem, timeout_s=30)


def test_grpc_refuses_what_check_server_refuses(tmp_path, authority, server):
    make_authority(tmp_path / "other")
    make_server_certificate(authority, tmp_path / "old", hosts=[], days=5, not_before=NOW - 9 * DAY)
    elsewhere = sign_by_hand(authority, tmp_path / "elsewhere", x509.DNSName("a.example.org"))
    for folder, trusted, text in ((server, tmp_path / "other", "another authority"), (tmp_path / "old", authority, "expired on"),
                                  (elsewhere, authority, "other names: a.example.org")):
        pem = (trusted / "ca.crt").read_bytes()
        with grpc_server(folder) as port:
            with pytest.raises(grpc.RpcError) as caught:
                say("127.0.0.1", port, pem)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert re.search("(?i)certificate|ssl|peer name|hostname", caught.value.details())
            with pytest.raises(CredentialError, match=says(text)):
                check_server(f"127.0.0.1:{port}", pem, timeout_s=30)


def test_a_grpc_server_without_tls_is_named_as_such(authority):
    with grpc_server() as port, pytest.raises(CredentialError, match="does not speak TLS"):
        check_server(f"127.0.0.1:{port}", (authority / "ca.crt").read_bytes(), timeout_s=30)


def test_all_of_the_errors_are_one_class():
    assert credentials.CredentialError is key_files.CredentialError and issubclass(CredentialError, ValueError)
