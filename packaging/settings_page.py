"""Print docs/settings.md, from the table of keys: `python packaging/settings_page.py >docs/settings.md`."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hxp_enterprise_llm.settings.keys import HOST_KEYS, INSTANCE_KEYS, PASSED_THROUGH, Key, allowed

HEAD = """\
# Settings

<!-- Made from hxp_enterprise_llm/settings/keys.py by packaging/settings_page.py; edit there. -->

`/etc/default/citadel-llm` holds the settings of the host, `/etc/default/citadel-llm-NAME` those of the instance NAME.
`citadel-llm show NAME` prints the settings in effect and where each comes from.

`citadel-llm set NAME KEY=VALUE…` and `citadel-llm unset NAME KEY…` change an instance's file. They check the result as
a start would, keep comments and order, and leave the file unchanged if a start would refuse it. After an edit by hand,
run `systemctl daemon-reload`. Then:

| changed | takes effect |
|---|---|
| `MAX_TASKS`, `RESTART_POLICY`, `RESTART_SEC`, `REQUIRES`, `AFTER`, `RELOAD_METHOD` | at once |
| `MEMORY_LIMIT_GB`, `CPU_CORES` | the limit at once; KV cache and threads with `citadel-llm reload NAME` |
| `PORT`, `HOST`, `HUB_TOKEN_FILE`; `GPU_DEVICES`, between none and some | with `citadel-llm restart NAME` |
| flags and variables with which vLLM opens further ports | with `citadel-llm restart NAME` |
| all others | with `citadel-llm reload NAME`, without a failed request |

`set` refuses a `MEMORY_LIMIT_GB` or `MAX_TASKS` below what a running instance uses, since systemd applies it at once.

A line is `KEY=value`. A value with characters other than letters, digits and `_ . / : @ % + , = ^ -` must be in single
or double quotes. Nothing is expanded: `$`, a backslash and, in double quotes, a backtick are refused. A comment is a
separate line that starts with `#`. Sizes in GB are GiB (2^30 bytes), sizes in MB are MiB (2^20 bytes).
"""


def rows(keys: Iterable[Key]) -> Iterator[str]:
    yield "| key | meaning | allowed | default |"
    yield "|---|---|---|---|"
    for key in keys:
        default = (
            "required"
            if key.required
            else "none"
            if key.default is None
            else f"`{key.default}`"
            if key.default
            else "empty"
        )
        if key.host_key:
            default = f"`{key.host_key}` of the host"
        yield f"| `{key.name}` | {key.meaning} | {allowed(key)} | {default} |"


def page() -> str:
    prefixes = ", ".join(f"`{prefix}`" for prefix in PASSED_THROUGH)
    parts = [
        HEAD,
        "## Instance settings\n",
        *rows(INSTANCE_KEYS.values()),
        f"\nVariables that start with {prefixes} go to the engine as they are.",
        "Any other key is ignored with a warning.\n",
        "## Host settings\n",
        *rows(HOST_KEYS.values()),
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
