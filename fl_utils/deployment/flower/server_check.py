"""A hospital's look at the server before gRPC connects, which itself only says "unavailable", whatever is wrong."""

import socket
import ssl
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fl_utils.deployment.flower.key_files import UNREADABLE, CredentialError, check_period, is_issued_by

_WRONG_DATE, _WRONG_NAME = (9, 10), (62, 64)  # X509_V_ERR_... of OpenSSL, for which the ssl module has no names


def check_server(address: str, authority_pem: bytes, *, timeout_s: float = 5) -> None:
    """A TLS handshake on the terms of a hospital's gRPC client, with a sentence for what is wrong.

    Args:
      address: host:port of the server.
      authority_pem: content of ca.crt. The authorities that the computer trusts otherwise are not asked.
      timeout_s: time limit of the connection, and again of the handshake.
    Raises:
      CredentialError: the address or ca.crt cannot be used; the server's certificate was signed by another authority, is not
        valid today or is for other names; the peer speaks no TLS, or no gRPC.
      ConnectionError: no answer (refused, timed out, closed, no such host), so nothing is known about credentials: the server
        may not be up yet.
    """
    try:
        authorities = x509.load_pem_x509_certificates(authority_pem)
    except UNREADABLE:
        raise CredentialError(
            "The authority's certificate (ca.crt) cannot be read: damaged, or another file. Ask those who run the server for it."
        ) from None
    trusted = "".join(authority.public_bytes(Encoding.PEM).decode() for authority in authorities)
    try:
        _, protocol = _handshake(address, ssl.create_default_context(cadata=trusted), timeout_s)
    except ssl.SSLCertVerificationError as error:
        unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # only to read the certificate that was refused
        unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
        shown, _ = _handshake(address, unchecked, timeout_s)
        raise CredentialError(f"The certificate of the server at {address} {_reason(error, shown, authorities)}") from None
    if protocol != "h2":  # gRPC insists on it
        raise CredentialError(
            f"{address} has the right certificate, but does not speak gRPC (HTTP/2). Is it the server's port, or a gateway that "
            "does not pass HTTP/2 on?"
        )


def _handshake(address: str, context: ssl.SSLContext, timeout_s: float) -> tuple[bytes, str | None]:
    """The peer's certificate (DER), and the protocol that it chose."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise CredentialError(f"The server's address is {address!r}; expected host:port, e.g. 127.0.0.1:9092.")
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host, int(port)), timeout_s) as plain:
            with context.wrap_socket(plain, server_hostname=host) as secure:
                return secure.getpeercert(binary_form=True), secure.selected_alpn_protocol()
    except ssl.SSLCertVerificationError:
        raise
    except ssl.SSLEOFError:  # a gateway does that whose server is not up
        raise ConnectionError(
            f"{address} closed the connection within the TLS handshake: the server is not up yet, or does not speak TLS."
        ) from None
    except ssl.SSLError as error:
        if "alert" in str(error).lower():  # the peer's own words, in TLS
            raise CredentialError(f"{address} refused the TLS handshake: {error}.") from None
        raise CredentialError(
            f"{address} does not speak TLS ({error.reason or error}). Is it the server's port, and was the server started with "
            "its certificate?"
        ) from None
    except OSError as error:
        raise ConnectionError(f"No connection to {address}: {error}. Is the server up, and is the address right?") from error
    except ValueError as error:  # no name that can be looked up
        raise CredentialError(f"The server's address {address!r} holds no host name: {error}. Expected host:port.") from None


def _reason(error: ssl.SSLCertVerificationError, shown: bytes, authorities: Sequence[x509.Certificate]) -> str:
    try:
        certificate = x509.load_der_x509_certificate(shown)
        names = _names(certificate)
    except UNREADABLE:
        return f"cannot be read, and was refused: {error.verify_message}."
    if error.verify_code in _WRONG_NAME:
        return (f"is for other names: {names}. Use one of these in the address, or have the certificate made anew with this "
                "host among its names.")
    if error.verify_code in _WRONG_DATE:
        try:
            check_period(certificate, "")
            for authority in authorities:
                check_period(authority, "was signed by an authority whose own (ca.crt)")
        except CredentialError as outdated:
            return str(outdated).strip()
    elif not any(is_issued_by(certificate, authority) for authority in authorities):
        return ("was signed by another authority than the one in ca.crt. Either this is not your federation's server, or ca.crt "
                "is another federation's or an old one: ask those who run the server for theirs.")
    return f"was refused: {error.verify_message}."


def _names(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "none at all"
    return ", ".join(map(str, names.get_values_for_type(x509.DNSName) + names.get_values_for_type(x509.IPAddress)))
