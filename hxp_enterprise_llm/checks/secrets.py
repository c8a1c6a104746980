"""Whether the files with keys, certificate and token are usable, and not readable by other users."""

import os
import stat
import time
from pathlib import Path

from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.protocol import credentials
from hxp_enterprise_llm.settings.credential_files import API_KEY, KEYS, read
from hxp_enterprise_llm.settings.errors import SettingsRefused
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

RENEW_DAYS, DAY_SEC = 14, 86400.0
"""The check warns this long before a certificate expires; automatic renewal happens a month before."""


def findings(config: ServiceConfigSchema) -> list[Finding]:
    """Findings about the files, as far as this user can read them."""
    found, contents = [], {}
    named = credentials.files_of(config)
    for name, file in named.items():
        what = f"{KEYS[name]}={file}"
        try:
            mode = Path(file).stat().st_mode
        except PermissionError:
            continue
        except FileNotFoundError:
            remedy = f"copy the file there, or correct {KEYS[name]}"
            if name == API_KEY:
                remedy = f"create it with: citadel-llm key add {config.name}"
            found.append(Finding(config.name, f"{what} does not exist; {remedy}"))
            continue
        except OSError as error:
            found.append(Finding(config.name, f"{what}: {error.strerror}; correct {KEYS[name]}"))
            continue
        if not stat.S_ISREG(mode):
            found.append(Finding(config.name, f"{what} is not a regular file"))
            continue
        if mode & stat.S_IROTH and name != "tls-cert":
            found.append(Finding(config.name, f"{what} can be read by every user; chmod 600 {file}", fatal=False))
        if os.access(file, os.R_OK):
            contents[name] = read(file).decode("latin-1")
    if contents.keys() != named.keys():
        return found
    try:
        given = credentials.validate(config, contents)
    except SettingsRefused as error:
        return [*found, *(Finding(config.name, finding.text) for finding in error.findings)]
    left = (given.expires - time.time()) / DAY_SEC
    if given.certificate and left < RENEW_DAYS:
        text = f"TLS_CERT_FILE={config.tls_cert_file} expires in {left:.0f} days; renew it, then citadel-llm reload"
        found.append(Finding(config.name, f"{text} {config.name}", fatal=False))
    return found
