"""TLS for the API: validates a certificate and its key, and describes their errors."""

import os
import re
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

OLDEST = ssl.TLSVersion.TLSv1_2
PROTOCOL = "http/1.1"  # what uvicorn speaks
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

OF_ANOTHER = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""OpenSSL's errors for a key that does not belong to the certificate; the last if their kinds differ."""


class CertificateRefused(Exception):
    """A certificate or its key is unusable. `key` is the setting with the error."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class _Encrypted(Exception):
    pass


def server(certificate: str, private_key: str) -> ssl.SSLContext:
    """The TLS context of a server.

    `certificate` is PEM, followed by the certificates of its issuers; `private_key` is PEM too.
    Raises CertificateRefused.
    """
    if not CERTIFICATE.search(certificate):
        raise CertificateRefused("TLS_CERT_FILE", "holds no certificate; write it in PEM, followed by its issuers")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = OLDEST
    # Otherwise a client could request any number of handshakes on one connection.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([PROTOCOL])
    try:
        # The library reads them from files only; these files never reach a disk.
        with _in_file(certificate) as first, _in_file(private_key) as second:
            context.load_cert_chain(first, second, password=_ask)
    except _Encrypted:
        text = "is encrypted, but a service cannot ask for a pass phrase; openssl pkey -in OLD -out NEW removes it"
        raise CertificateRefused("TLS_KEY_FILE", text) from None
    except ssl.SSLError as error:
        reason = error.reason or ""
        if reason in OF_ANOTHER:
            text = "holds the key of another certificate than TLS_CERT_FILE; write the key of that certificate"
            raise CertificateRefused("TLS_KEY_FILE", text) from None
        if reason.startswith("EE_"):
            text = f"is too weak for OpenSSL ({reason.replace('_', ' ').lower()}); create a new one"
            raise CertificateRefused("TLS_CERT_FILE", text) from None
        key, what = ("TLS_KEY_FILE", "private key") if _can_be_read(certificate) else ("TLS_CERT_FILE", "certificate")
        raise CertificateRefused(key, f"holds no {what} that OpenSSL can read; write it in PEM") from None
    return context


def expires(certificate: str, private_key: str) -> float:
    """When the certificate expires (seconds since the epoch). Raises CertificateRefused.

    Performs a handshake in memory, in which OpenSSL verifies the certificate as a client does.
    """
    own = CERTIFICATE.search(certificate)
    # Without the certificates of its issuers: a client may have other ones.
    context = server(own[0] if own else "", private_key)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(cadata=own[0] if own else "")
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    far = context.wrap_bio(there, back, server_side=True)
    near = trusting.wrap_bio(back, there)
    try:
        for _ in range(2):
            for side in (near, far):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        found = near.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        raise CertificateRefused(
            "TLS_CERT_FILE", f"clients would refuse it: {error.verify_message}; renew it"
        ) from None
    except (ssl.SSLError, ValueError) as error:
        raise CertificateRefused("TLS_CERT_FILE", f"no client could use it: {error}; renew it") from None
    return float(ssl.cert_time_to_seconds(str(found["notAfter"])))


def _can_be_read(certificate: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=certificate)
    except ssl.SSLError:
        return False
    return True


def _ask() -> NoReturn:
    raise _Encrypted


@contextmanager
def _in_file(text: str) -> Iterator[str]:
    """The path of a file in memory with the content `text`. It never has a name, by which others could open it."""
    try:
        descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    except PermissionError:
        # In the sandbox of a model on the CPU; TMPDIR is in memory there.
        descriptor = os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="latin-1", closefd=False) as stream:
            stream.write(text)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
