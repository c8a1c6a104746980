"""Credentials of a service from files that only root can read: API keys, and the certificate for HTTPS."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hxp_enterprise_llm.settings import api_keys
from hxp_enterprise_llm.settings.api_keys import KeyKind
from hxp_enterprise_llm.settings.credential_files import API_KEY, HUB_TOKEN, KEYS, LARGEST_BYTES, MISSING, files
from hxp_enterprise_llm.settings.errors import SettingsRefused
from hxp_enterprise_llm.settings.grammar import SettingsFinding
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.settings.values import instance_file
from hxp_enterprise_llm.system import tls

log = logging.getLogger(__name__)

OF_NO_KEY = ""
"""In place of a digest; no key has it."""
MEGABYTE = LARGEST_BYTES >> 20


@dataclass(frozen=True)
class Credentials:
    """Digests of the accepted API keys, none if requests need no key; certificate and its key in PEM, "" without TLS.

    `expires` is the time at which the certificate expires (seconds since the epoch). `metrics_digests` are digests of
    the keys for /metrics only.
    """

    key_digests: tuple[str, ...] = ()
    certificate: str = field(default="", repr=False)
    private_key: str = field(default="", repr=False)
    expires: float = 0.0
    metrics_digests: tuple[str, ...] = ()

    def and_key(self, digest: str) -> "Credentials":
        """The same with one more accepted key, if requests need a key."""
        return replace(self, key_digests=(*self.key_digests, digest)) if self.key_digests else self

    def without_certificate(self) -> "Credentials":
        """The same without the certificate and its private key."""
        return replace(self, certificate="", private_key="")

    def with_keys_of(self, other: "Credentials") -> "Credentials":
        """The same with the keys of `other`."""
        return replace(self, key_digests=other.key_digests, metrics_digests=other.metrics_digests)


def files_of(config: ServiceConfigSchema) -> dict[str, str]:
    """The files in the settings, by the names of their credentials."""
    return files({key: getattr(config, key.lower()) for key in (*KEYS.values(), "ALLOW_DOWNLOAD")})


def handed_over(config: ServiceConfigSchema) -> dict[str, str]:
    """The credentials that systemd gave to this process, as Latin-1, without those that it did not know."""
    directory = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nowhere"))
    found = {}
    for name in files_of(config):
        try:
            found[name] = (directory / name).read_text(encoding="latin-1")
        except OSError:
            continue
    return found


def validate(config: ServiceConfigSchema, contents: Mapping[str, str], running: bool = False) -> Credentials:
    """The credentials in the contents of the files. Raises SettingsRefused with all errors.

    A key file without an API key prevents a start. An instance that is `running` then refuses all requests, except
    those with a key for /metrics: its last API key was revoked.
    """
    errors: list[str] = []
    keys: tuple[str, ...] = ()
    of_metrics: tuple[str, ...] = ()
    expires, given = 0.0, {}
    for name, file in files_of(config).items():
        content = contents.get(name)
        if content is None:
            errors.append(f"{KEYS[name]}={file} is new to systemd: run systemctl daemon-reload")
        elif content == MISSING:
            errors.append(f"{KEYS[name]}={file} is missing, not a regular file, or larger than {MEGABYTE} MB")
        else:
            given[name] = content
    if API_KEY in given:
        try:
            found = api_keys.read(given[API_KEY].encode("latin-1").decode("utf-8", "replace"))
            keys = tuple(key.digest for key in found if key.kind is KeyKind.API)
            of_metrics = tuple(key.digest for key in found if key.kind is KeyKind.METRICS)
            holds = "holds only keys for /metrics" if found else "holds no key"
            said = "" if keys else f"{holds}; create an API key with citadel-llm key add {config.name}"
            if said and running:
                log.warning("API_KEY_FILE=%s %s; until then all requests are refused", config.api_key_file, said)
                keys, said = (OF_NO_KEY,), ""
        except ValueError as error:
            said = str(error)
        if said:
            errors.append(f"API_KEY_FILE={config.api_key_file} {said}")
    if {"tls-cert", "tls-key"} <= given.keys():
        try:
            tls.server(given["tls-cert"], given["tls-key"])
            expires = tls.expires(given["tls-cert"], given["tls-key"])
        except tls.CertificateRefused as error:
            errors.append(f"{error.key}={getattr(config, error.key.lower())} {error}")
    if HUB_TOKEN in given and not given[HUB_TOKEN].strip():
        errors.append(f"HUB_TOKEN_FILE={config.hub_token_file} is empty; write only the token into it")
    if errors:
        raise SettingsRefused([SettingsFinding(instance_file(config.name), 0, text) for text in errors])
    return Credentials(keys, given.get("tls-cert", ""), given.get("tls-key", ""), expires, of_metrics)
