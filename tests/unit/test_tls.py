"""Certificates from files, errors of unusable certificates, and a handshake with a valid certificate."""

import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import certificates as made
import pytest

from hxp_enterprise_llm.checks import secrets
from hxp_enterprise_llm.protocol import credentials
from hxp_enterprise_llm.settings.api_keys import digest
from hxp_enterprise_llm.settings.credential_files import MISSING
from hxp_enterprise_llm.settings.errors import SettingsRefused
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.system import tls

END = 4102444800.0  # 2100-01-01


def config(**more: object) -> ServiceConfigSchema:
    values = {"tls_cert_file": "/c", "tls_key_file": "/k", **more}
    return ServiceConfigSchema(name="m", model="/m", port=11500, **values)  # type: ignore[arg-type]


def handshake(server: ssl.SSLContext, change: Callable[[ssl.SSLContext], None] = lambda _: None) -> ssl.SSLObject:
    """The end of a connection with `server` of a client that trusts the server's certificate."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations(cadata=made.CERTIFICATE)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    change(client)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True)
    for _ in range(2):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[0]


def test_valid_certificate_is_served_and_its_expiry_known() -> None:
    client = handshake(tls.server(made.CERTIFICATE, made.KEY))
    assert client.version() == "TLSv1.3"
    assert tls.expires(made.CERTIFICATE, made.KEY) == END


def test_expiry_of_issuer_certificates_is_ignored() -> None:
    assert tls.expires(made.CERTIFICATE + made.EXPIRED, made.KEY) == END
    with pytest.raises(tls.CertificateRefused, match="no certificate that OpenSSL"):
        tls.server(made.CERTIFICATE + made.EXPIRED[:200] + made.EXPIRED[260:], made.KEY)


def test_certificate_and_key_may_be_one_file() -> None:
    both = made.KEY + made.CERTIFICATE
    assert tls.expires(both, both) == END


def test_tls_below_1_2_is_refused() -> None:
    def old(client: ssl.SSLContext) -> None:
        with pytest.warns(DeprecationWarning):
            client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
        client.set_ciphers("ALL:@SECLEVEL=0")

    with pytest.raises(ssl.SSLError):
        handshake(tls.server(made.CERTIFICATE, made.KEY), old)


@pytest.mark.parametrize(
    ("certificate", "key", "setting", "said"),
    [
        ("", made.KEY, "TLS_CERT_FILE", "holds no certificate"),
        (made.KEY, made.KEY, "TLS_CERT_FILE", "holds no certificate"),
        (made.CERTIFICATE[:99] + made.CERTIFICATE[160:], made.KEY, "TLS_CERT_FILE", "no certificate that OpenSSL"),
        (made.CERTIFICATE, "", "TLS_KEY_FILE", "no private key"),
        (made.CERTIFICATE, made.CERTIFICATE, "TLS_KEY_FILE", "no private key"),
        (made.CERTIFICATE, made.OTHER_KEY, "TLS_KEY_FILE", "the key of another certificate"),
        (made.RSA_CERTIFICATE, made.KEY, "TLS_KEY_FILE", "the key of another certificate"),
        (made.CERTIFICATE, made.ENCRYPTED_KEY, "TLS_KEY_FILE", "is encrypted"),
        (made.EXPIRED, made.KEY, "TLS_CERT_FILE", "certificate has expired"),
        (made.OF_A_CLIENT, made.KEY, "TLS_CERT_FILE", "unsuitable certificate purpose"),
        (made.WEAK, made.WEAK_KEY, "TLS_CERT_FILE", "too weak"),
        (MISSING, made.KEY, "TLS_CERT_FILE", "is missing"),
        (made.CERTIFICATE, MISSING, "TLS_KEY_FILE", "is missing"),
        (None, made.KEY, "TLS_CERT_FILE", "daemon-reload"),
    ],
)
def test_unusable_certificate_or_key_names_its_setting(
    certificate: str | None, key: str, setting: str, said: str
) -> None:
    contents = {"tls-cert": certificate, "tls-key": key}
    with pytest.raises(SettingsRefused) as refused:
        credentials.validate(config(), {name: text for name, text in contents.items() if text is not None})
    (finding,) = refused.value.findings
    assert f"{setting}=/{'c' if 'CERT' in setting else 'k'} " in str(finding) and said in str(finding)
    assert "BEGIN" not in str(finding)


def test_errors_of_all_credential_files_are_reported_together() -> None:
    with pytest.raises(SettingsRefused) as refused:
        credentials.validate(config(api_key_file="/a", hub_token_file="/t", allow_download=True), {"hub-token": "\n"})  # noqa: S106
    assert [str(finding).split(": ", 1)[1].split("=")[0] for finding in refused.value.findings] == [
        "API_KEY_FILE",
        "TLS_CERT_FILE",
        "TLS_KEY_FILE",
        "HUB_TOKEN_FILE",
    ]


def test_key_file_without_keys_admits_no_client() -> None:
    keyed = ServiceConfigSchema(name="m", model="/m", port=11500, api_key_file="/a")
    with pytest.raises(SettingsRefused, match="holds no key"):
        credentials.validate(keyed, {"api-key": "# none\n"})
    given = credentials.validate(keyed, {"api-key": "# none\n"}, running=True)
    assert given.key_digests == (credentials.OF_NO_KEY,), "an empty list would let everybody in"
    assert digest("") not in given.key_digests
    # A key for /metrics lets no client use the model.
    only_metrics = f"sha256:{digest('a')} prometheus 2026-01-01 metrics\n"
    with pytest.raises(SettingsRefused, match="holds only keys for /metrics"):
        credentials.validate(keyed, {"api-key": only_metrics})
    given = credentials.validate(keyed, {"api-key": only_metrics}, running=True)
    assert (given.key_digests, given.metrics_digests) == ((credentials.OF_NO_KEY,), (digest("a"),))
    given = credentials.validate(keyed, {"api-key": f"{only_metrics}by-hand\n"})
    assert (given.key_digests, given.metrics_digests) == ((digest("by-hand"),), (digest("a"),))


def test_certificate_can_be_used_where_the_sandbox_refuses_files_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file must never have a name: not even where one without a name cannot be made."""

    def refuse(*_: object) -> NoReturn:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert tls.expires(made.CERTIFICATE, made.KEY) == END
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    with pytest.raises(IsADirectoryError):
        tls.server(made.CERTIFICATE, made.KEY)
    assert not list(tmp_path.iterdir())


def test_private_key_is_not_in_repr() -> None:
    given = credentials.validate(config(), {"tls-cert": made.CERTIFICATE, "tls-key": made.KEY})
    assert given.expires == END and "BEGIN" not in repr(given)


def test_check_reports_certificate_errors_and_near_expiry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = tmp_path / "c", tmp_path / "k"
    settings = config(tls_cert_file=str(certificate), tls_key_file=str(key))
    assert len(secrets.findings(settings)) == 2
    certificate.write_text(made.CERTIFICATE)
    key.write_text(made.OTHER_KEY)
    key.chmod(0o600)
    (finding,) = secrets.findings(settings)
    assert finding.fatal and "the key of another certificate" in finding.text
    key.write_text(made.KEY)
    assert secrets.findings(settings) == []
    monkeypatch.setattr("time.time", lambda: END - 3 * 86400)
    (warning,) = secrets.findings(settings)
    assert not warning.fatal and "expires in 3 days" in warning.text
    key.chmod(0o640)
    assert len(secrets.findings(settings)) == 1
    key.chmod(0o644)
    assert "chmod 600" in secrets.findings(settings)[0].text
