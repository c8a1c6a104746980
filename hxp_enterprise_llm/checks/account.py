"""Whether the user and group of the services exist."""

import grp
import pwd

from hxp_enterprise_llm.checks.finding import Finding
from hxp_enterprise_llm.settings.host import ServiceManagerConfig


def findings(name: str, manager: ServiceManagerConfig) -> list[Finding]:
    """Findings about the accounts in the host's settings, for instance `name`."""
    found = []
    for kind, account, look_up in (("user", manager.owner, pwd.getpwnam), ("group", manager.group, grp.getgrnam)):
        try:
            look_up(account)
        except KeyError:
            text = f"the {kind} {account} does not exist; create it (adduser --system --group {account})"
            found.append(Finding(name, text))
    return found
