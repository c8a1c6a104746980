"""What root's files give a service: the keys that requests may carry, and the certificate that it shows."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hxp_enterprise_llm.settings import api_keys
from hxp_enterprise_llm.settings.credential_files import API_KEY, HUB_TOKEN, KEYS, LARGEST_BYTES, MISSING, files
from hxp_enterprise_llm.settings.errors import SettingsRefused
from hxp_enterprise_llm.settings.grammar import SettingsFinding
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.settings.values import instance_file
from hxp_enterprise_llm.system import tls

log = logging.getLogger(__name__)

NOBODYS = ""
"""In the place of a digest: what no key has."""
MEGABYTE = LARGEST_BYTES >> 20


@dataclass(frozen=True)
class Credentials:
    """Digests of the keys that requests may carry, none if all may ask; certificate and its key in PEM, "" for no TLS.

    `expires` is when the certificate does (seconds since the epoch).
    """

    key_digests: tuple[str, ...] = ()
    certificate: str = field(default="", repr=False)
    private_key: str = field(default="", repr=False)
    expires: float = 0.0

    def and_key(self, digest: str) -> "Credentials":
        """With one key more, if they ask for any."""
        return replace(self, key_digests=(*self.key_digests, digest)) if self.key_digests else self


def files_of(config: ServiceConfigSchema) -> dict[str, str]:
    """The files that the settings name, by the name of the credential."""
    return files({key: getattr(config, key.lower()) for key in (*KEYS.values(), "ALLOW_DOWNLOAD")})


def handed_over(config: ServiceConfigSchema) -> dict[str, str]:
    """What systemd handed over at this process's start, as Latin-1; nothing for what it did not know of."""
    directory = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nowhere"))
    found = {}
    for name in files_of(config):
        try:
            found[name] = (directory / name).read_text(encoding="latin-1")
        except OSError:
            continue
    return found


def judge(config: ServiceConfigSchema, contents: Mapping[str, str], running: bool = False) -> Credentials:
    """Make of the files' contents what the settings say they are.

    A file without a key keeps a model from starting, and closes one that is `running` to all: its last key was revoked.
    Raises SettingsRefused with what is wrong: a model whose files are not good does not serve everybody instead.
    """
    errors: list[str] = []
    keys: tuple[str, ...] = ()
    expires, given = 0.0, {}
    for name, file in files_of(config).items():
        content = contents.get(name)
        if content is None:
            errors.append(f"{KEYS[name]}={file} is new to systemd: run systemctl daemon-reload")
        elif content == MISSING:
            errors.append(f"{KEYS[name]}={file} is not there, no file, or larger than {MEGABYTE} MB; put it there")
        else:
            given[name] = content
    if API_KEY in given:
        try:
            found = api_keys.read(given[API_KEY].encode("latin-1").decode("utf-8", "replace"))
            keys = tuple(key.digest for key in found)
            said = "" if keys else f"holds no key; make one with citadel-llm key add {config.name}"
            if said and running:
                log.warning("API_KEY_FILE=%s %s; until then nobody may ask", config.api_key_file, said)
                keys, said = (NOBODYS,), ""
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
        errors.append(f"HUB_TOKEN_FILE={config.hub_token_file} is empty; write the token into it, and nothing else")
    if errors:
        raise SettingsRefused([SettingsFinding(instance_file(config.name), 0, text) for text in errors])
    return Credentials(keys, given.get("tls-cert", ""), given.get("tls-key", ""), expires)
