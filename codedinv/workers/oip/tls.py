"""TLS to a worker: its files checked before anything connects, and plain words for what fails.

gRPC and OpenSSL name the same mistake differently, and some versions of gRPC not at all. So a
connection that failed is tried once more with Python's own TLS, which says why.
"""

from __future__ import annotations

import socket
import ssl

from codedinv.workers.oip.endpoint import Endpoint, Security

_ALERT_S = 0.5  # TLS 1.3: a server refuses a client's certificate after the handshake
_EXPIRED, _NOT_YET = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, ..._NOT_YET_VALID
_OTHER_NAME = (62, 63, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, EMAIL, IP_ADDRESS
_NOT_TRUSTED = (2, 18, 19, 20, 21)  # no issuer, self-signed, self-signed in chain, ...


def tls_context(security: Security) -> ssl.SSLContext:
    """How to connect.

    Raises:
        ValueError: a file is not there, or not what it should be; it names the field.
    """
    for name in ("ca", "certificate", "key"):
        path = getattr(security, name)
        if path is not None and not path.is_file():
            raise ValueError(f"security: {name}: no such file: {path}")
    try:
        context = ssl.create_default_context(cafile=security.ca)
    except OSError as error:
        raise ValueError(f"security: ca: expected PEM certificates: {error}") from None
    if security.certificate is not None:
        try:
            context.load_cert_chain(security.certificate, security.key, password=_no_password)
        except OSError as error:
            raise ValueError(
                f"security: certificate and key: expected a PEM pair: {error}"
            ) from None
    return context


def tls_problem(
    endpoint: Endpoint, security: Security, timeout_s: float, protocols: list[str]
) -> str:
    """What is wrong with the TLS of a server; empty: nothing, or it cannot be reached.

    Args:
        timeout_s: for the handshake.
        protocols: to be agreed on by ALPN.
    """
    context = tls_context(security)
    context.set_alpn_protocols(protocols)
    try:
        plain = socket.create_connection((endpoint.host, endpoint.port), timeout_s)
    except OSError:
        return ""
    try:
        with plain, context.wrap_socket(plain, server_hostname=endpoint.host) as encrypted:
            encrypted.settimeout(min(timeout_s, _ALERT_S))
            is_open = bool(encrypted.recv(1))
    except TimeoutError:  # it waits for us to speak, as it should
        return ""
    except ssl.SSLEOFError:
        is_open = False
    except ssl.SSLError as error:
        return words_of(error, endpoint)
    except OSError:
        is_open = False
    return "" if is_open else _hung_up(security)


def words_of(error: ssl.SSLError, endpoint: Endpoint) -> str:
    """What a failed handshake means."""
    reason = error.reason or str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: the server's certificate {_verdict(error, endpoint)}"
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        return "TLS: the server wants a certificate of ours: security: certificate, key"
    if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        return f"TLS: the server refuses our certificate: {reason}"
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return f"TLS: the server at {endpoint.address} does not speak it"
    return f"TLS: {reason}"


def _hung_up(security: Security) -> str:
    if security.certificate is None:
        return (
            "TLS: the server hangs up during the handshake; it may want a certificate of ours: "
            "security: certificate, key"
        )
    return "TLS: the server hangs up during the handshake; it may refuse our certificate"


def _verdict(error: ssl.SSLCertVerificationError, endpoint: Endpoint) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "has expired"
    if code == _NOT_YET:
        return "is not valid yet"
    if code in _OTHER_NAME:
        return f"is not for {endpoint.host}"
    if code in _NOT_TRUSTED:
        return f"is signed by nobody whom we trust (security: ca): {error.verify_message}"
    return f"is refused: {error.verify_message}"


def _no_password() -> str:
    raise ValueError("security: key: expected a key without a password")
