"""Write tables of vLLM's flags and architectures, beside the modules that read them.

The check before a start reads these tables, because importing vLLM takes seconds. They change only with the package.
"""

import argparse
import dataclasses
import inspect
import json
from collections.abc import Iterable
from typing import Any

from vllm.entrypoints.launchers.cli_args import LoRAParserAction, make_arg_parser
from vllm.model_executor.models import ModelRegistry
from vllm.utils.argparse_utils import FlexibleArgumentParser, human_readable_int, human_readable_int_or_auto

from hxp_enterprise_llm.engine import flags, model_config

KINDS = {
    int: "int",
    float: "float",
    json.loads: "json",
    human_readable_int: "size",
    human_readable_int_or_auto: "size-or-auto",
}


def unwrapped(read: Any) -> tuple[Any, bool]:
    """The type that optional_type and parse_type of vLLM wrap, and whether its value may be "None" instead."""
    optional = False
    while getattr(read, "__name__", "") in ("_optional_type", "_parse_type"):
        optional |= read.__name__ == "_optional_type"
        read = inspect.getclosurevars(read).nonlocals["return_type"]
    return read, optional


def fields_of(read: Any) -> list[str] | None:
    """The fields of the dataclass that a flag's JSON object becomes (vllm/engine/arg_utils.py, parse_dataclass)."""
    if getattr(read, "__name__", "") != "parse_dataclass":
        return None
    (dataclass,) = read.__defaults__
    return sorted(field.name for field in dataclasses.fields(dataclass) if field.init)


def action_of(action: argparse.Action) -> str:
    """How a flag takes its value: "boolean" has a --no- form, "append" may be repeated."""
    if isinstance(action, argparse.BooleanOptionalAction):
        return "boolean"
    if isinstance(action, argparse._AppendAction):
        return "append"
    return "store_true" if action.nargs == 0 else "store"


def entry(action: argparse.Action) -> dict[str, Any]:
    names = list(action.option_strings)
    if isinstance(action, argparse.BooleanOptionalAction):
        # argparse adds the --no- forms itself.
        negative = {f"--no-{name.removeprefix('--')}" for name in names if name.startswith("--")}
        names = [name for name in names if name not in negative]
    read, optional = unwrapped(action.type)
    return {
        "names": names,
        "dest": action.dest,
        "action": action_of(action),
        "nargs": action.nargs,
        "kind": "lora" if isinstance(action, LoRAParserAction) else KINDS.get(read, "text"),
        "optional": optional,
        "fields": fields_of(read),
        "choices": sorted(map(str, action.choices)) if action.choices else None,
    }


def table() -> list[dict[str, Any]]:
    parser = make_arg_parser(FlexibleArgumentParser())
    return [
        entry(action)
        for action in parser._actions
        if action.option_strings and not isinstance(action, argparse._HelpAction)
    ]


def lines(entries: Iterable[Any]) -> str:
    """JSON with an entry a line, so that two versions can be compared."""
    return "[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n"


if __name__ == "__main__":
    flags.TABLE.write_text(lines(table()), encoding="utf-8")
    model_config.TABLE.write_text(lines(sorted(ModelRegistry.get_supported_archs())), encoding="utf-8")
