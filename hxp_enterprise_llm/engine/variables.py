"""Environment variables of vLLM: which values it can read, without importing vLLM.

vLLM reads most variables when it first needs them, so an invalid value ends a start late, or fails a request.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("vllm_variables.json")
"""The variables of which vLLM refuses some values; the build writes this file (packaging/vllm_tables.py)."""

KINDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
}


def findings(environment: Mapping[str, str]) -> list[str]:
    """Reasons to refuse values of vLLM's variables, one sentence each."""
    if not any(name.startswith("VLLM_") for name in environment):
        return []
    known: list[dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return [
        f"{entry['name']}={environment[entry['name']]} is not {expected}"
        for entry in known
        if entry["name"] in environment and (expected := _expected(entry, environment[entry["name"]]))
    ]


def _expected(entry: Mapping[str, Any], value: str) -> str:
    """The values that vLLM accepts for a variable; empty if `value` is such a value."""
    if not value and entry["empty"]:
        return ""
    if entry["kind"] in ("choice", "list"):
        choices = entry["choices"]
        values = [part.strip() for part in value.split(",")] if entry["kind"] == "list" else [value]
        known = choices if entry["case"] else [choice.lower() for choice in choices]
        good = all((part if entry["case"] else part.lower()) in known for part in values)
        return "" if good else f"one of {', '.join(choices)}"
    read, expected = KINDS[entry["kind"]]
    try:
        read(value)
    except ValueError:
        return expected
    return ""
