"""TLS for the API: a certificate and its key as OpenSSL takes them, and what is wrong with them in words."""

import os
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

OLDEST = ssl.TLSVersion.TLSv1_2
PROTOCOL = "http/1.1"  # what uvicorn speaks
CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

OF_ANOTHER = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""What OpenSSL says of a key that does not belong to the certificate; the last where they are of different kinds."""


class CertificateRefused(Exception):
    """It is of no use; the message says why and what to do. `key` is the setting that is at fault."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


class _Encrypted(Exception):
    pass


def server(certificate: str, private_key: str) -> ssl.SSLContext:
    """What a server speaks TLS with. `certificate` is PEM, with those of its issuers after it, and so is `private_key`.

    Raises CertificateRefused.
    """
    if not CERTIFICATE.search(certificate):
        raise CertificateRefused("TLS_CERT_FILE", "holds no certificate; write it in PEM, with its issuers' after it")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = OLDEST
    # A client could ask for one handshake after another over one connection.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([PROTOCOL])
    try:
        # The library takes them from files only; these never reach a disk.
        with _in_memory(certificate) as first, _in_memory(private_key) as second:
            context.load_cert_chain(first, second, password=_ask)
    except _Encrypted:
        text = "is encrypted, and nobody is there to type the pass phrase; openssl pkey -in OLD -out NEW takes it away"
        raise CertificateRefused("TLS_KEY_FILE", text) from None
    except ssl.SSLError as error:
        reason = error.reason or ""
        if reason in OF_ANOTHER:
            text = "holds the key of another certificate than TLS_CERT_FILE; write the one it was made with"
            raise CertificateRefused("TLS_KEY_FILE", text) from None
        if reason.startswith("EE_"):
            text = f"is too weak for OpenSSL ({reason.replace('_', ' ').lower()}); make a new one"
            raise CertificateRefused("TLS_CERT_FILE", text) from None
        key, what = ("TLS_KEY_FILE", "private key") if _can_be_read(certificate) else ("TLS_CERT_FILE", "certificate")
        raise CertificateRefused(key, f"holds no {what} that OpenSSL can read; write it in PEM") from None
    return context


def expires(certificate: str, private_key: str) -> float:
    """When the certificate expires (seconds since the epoch). Raises CertificateRefused, also if clients would.

    By a handshake with itself in memory: what a client would say of it, OpenSSL says, and says when it ends.
    """
    own = CERTIFICATE.search(certificate)
    # Its issuers' are left out, for they are not ours to judge: a client may know them by others.
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
def _in_memory(text: str) -> Iterator[str]:
    """The path of a file that holds `text` in memory."""
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "w", encoding="latin-1", closefd=False) as stream:
            stream.write(text)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
