"""Every key of the settings changes something outside the settings: none is accepted and then ignored."""

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

import hxp_enterprise_llm
from hxp_enterprise_llm.engine import launch
from hxp_enterprise_llm.generator import drop_ins
from hxp_enterprise_llm.protocol import credentials
from hxp_enterprise_llm.settings import config
from hxp_enterprise_llm.settings.address import Address
from hxp_enterprise_llm.settings.errors import SettingsRefused
from hxp_enterprise_llm.settings.keys import HOST_KEYS, INSTANCE_KEYS
from hxp_enterprise_llm.settings.values import HostLabels, load_host, load_instance
from hxp_enterprise_llm.supervisor import reload

from .conftest import Root

PACKAGE = Path(hxp_enterprise_llm.__file__).parent
OTHER_VALUES = {
    "MODEL": "org/name",
    "PORT": "11401",
    "HOST": "::",
    "SERVED_MODEL_NAME": "other",
    "MEMORY_LIMIT_GB": "8",
    "CPU_CORES": "1",
    "MAX_TASKS": "500",
    "RESTART_POLICY": "no",
    "RESTART_SEC": "1",
    "START_TIMEOUT_SEC": "100",
    "DRAIN_TIMEOUT_SEC": "10",
    "MAX_MODEL_LEN": "100",
    "KV_CACHE_GB": "0.5",
    "GPU_DEVICES": "0",
    "REQUIRES": "b",
    "AFTER": "b",
    "API_KEY_FILE": "/etc/citadel-llm/a.keys",
    "ALLOW_UNAUTHENTICATED": "no",
    "TLS_CERT_FILE": "/etc/other.pem",
    "TLS_KEY_FILE": "/etc/other.key",
    "ALLOW_DOWNLOAD": "no",
    "HUB_TOKEN_FILE": "/etc/other.token",
    "START_METHOD": "spawn",
    "RELOAD_METHOD": "restart",
    "VLLM_ARGS": "--seed=1",
}
"""For each key a value that differs from that of the instance below."""
OTHER_HOST_VALUES = {
    "CITADEL_ENV": "test",
    "SERVER_HOSTNAME": "other",
    "SERVER_IP": "::",
    "VLLM_USER": "other",
    "VLLM_GROUP": "other",
    "VLLM_PID_PATH": "/run/other",
    "DEFAULT_MEMORY_LIMIT_GB": "8",
    "DEFAULT_CPU_CORES": "1",
    "DEFAULT_MAX_TASKS": "500",
    "DEFAULT_RESTART_POLICY": "no",
    "DEFAULT_RESTART_SEC": "1",
    "ALLOW_UNAUTHENTICATED": "yes",
    "TLS_CERT_FILE": "/etc/other.pem",
    "TLS_KEY_FILE": "/etc/other.key",
    "HUB_TOKEN_FILE": "/etc/other.token",
}
INSTANCE = {
    "MODEL": "/srv/m", "PORT": "11400", "HOST": "192.0.2.1", "KV_CACHE_GB": "0.25", "ALLOW_UNAUTHENTICATED": "yes",
    "TLS_CERT_FILE": "/etc/m.pem", "TLS_KEY_FILE": "/etc/m.key", "ALLOW_DOWNLOAD": "yes",
    "HUB_TOKEN_FILE": "/etc/m.token",
}  # fmt: skip
SILENT = {"MODEL": "/srv/m", "PORT": "11400", "KV_CACHE_GB": "0.25", "ALLOW_DOWNLOAD": "yes"}
"""An instance that leaves all possible settings to the host."""


class Outside(NamedTuple):
    """The results of the settings: the host's labels, and the unit, vLLM, files, address and reload of instance `a`."""

    labels: str
    unit: str
    vllm: object
    files: object
    address: object
    reload: object


def outside(root: Root, instance: dict[str, str], host: dict[str, str]) -> Outside:
    root.host("".join(f"{key}={value}\n" for key, value in host.items()))
    root.instance("a", "".join(f"{key}={value}\n" for key, value in instance.items()))
    settings_of_host = load_host(str(root))
    labels = str(HostLabels.of(settings_of_host))
    sections = drop_ins.sections(load_instance("a", settings_of_host, str(root)), settings_of_host)
    unit = "\n".join(str(directive) for directives in sections.values() for directive in directives)
    try:
        settings, _ = config.load("a", str(root))
    except SettingsRefused as error:
        return Outside(labels, unit, str(error), None, None, None)
    vllm = launch.arguments(settings, settings.model), launch.environment(settings, settings.model, {}, root.path)
    apart = reload.apart(settings, settings.model, settings, settings.model)
    return Outside(labels, unit, vllm, credentials.files_of(settings), Address.of(settings), apart)


def names_used_outside() -> set[str]:
    """Attributes and whole strings in the modules outside settings/."""
    names: set[str] = set()
    for file in PACKAGE.rglob("*.py"):
        if file.is_relative_to(PACKAGE / "settings"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return names


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_every_instance_key_changes_a_result(root: Root, key: str) -> None:
    before = outside(root, INSTANCE, {})
    assert before != outside(root, INSTANCE | {key: OTHER_VALUES[key]}, {})


@pytest.mark.parametrize("key", OTHER_HOST_VALUES)
def test_every_host_key_changes_a_result(root: Root, key: str) -> None:
    pair = {"TLS_CERT_FILE": "/etc/m.pem", "TLS_KEY_FILE": "/etc/m.key"}
    host = {"SERVER_IP": "192.0.2.1"} | (pair if key in pair else {})
    assert outside(root, SILENT, host) != outside(root, SILENT, host | {key: OTHER_HOST_VALUES[key]})


def test_every_other_key_is_read_by_name() -> None:
    """Processes read the other keys by name; a failure lists the keys that no code reads."""
    used = names_used_outside()
    of_instances = [key for key in INSTANCE_KEYS.keys() - OTHER_VALUES if key.lower() not in used]
    of_the_host = [key for key in HOST_KEYS.keys() - OTHER_HOST_VALUES if not used & readers(key)]
    assert (of_instances, of_the_host) == ([], [])


def readers(key: str) -> set[str]:
    """The names by which code reads a key of the host: itself, or its field of ServiceManagerConfig."""
    return {key, key.lower(), key.removeprefix("VLLM_").lower()}
