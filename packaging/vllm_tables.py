"""Write tables of vLLM's flags, variables and architectures, beside the modules that read them.

The check before a start reads these tables, because importing vLLM takes seconds. They change only with the package.
"""

import argparse
import dataclasses
import inspect
import json
import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any

import annotated_types
import vllm.config
import vllm.envs
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from vllm.engine.arg_utils import union_dict_and_str
from vllm.entrypoints.launchers.cli_args import LoRAParserAction, make_arg_parser
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.model_executor.models import ModelRegistry
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser, human_readable_int, human_readable_int_or_auto

from hxp_enterprise_llm.engine import flags, model_config, variables

KINDS = {
    int: "int",
    float: "float",
    json.loads: "json",
    human_readable_int: "size",
    human_readable_int_or_auto: "size-or-auto",
    union_dict_and_str: "json-or-text",
}
BOUNDS = {
    annotated_types.Ge: "ge",
    annotated_types.Gt: "gt",
    annotated_types.Le: "le",
    annotated_types.Lt: "lt",
}
REGISTERED = {
    "quantization": lambda: QUANTIZATION_METHODS,
    "reasoning_parser": ReasoningParserManager.list_registered,
    "tool_call_parser": ToolParserManager.list_registered,
}
"""Flags whose value is a name in a registry of vLLM, which its parser does not look up."""


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


def bounds(dest: str, field: FieldInfo | None) -> dict[str, float] | None:
    """The limits that a field of vLLM's configuration sets: {"ge": 1}. None if there are none."""
    if dest == "sse_keep_alive_interval":
        # vllm/entrypoints/launchers/cli_args.py, validate_parsed_serve_args
        return {"ge": 0}
    limits = {
        name: getattr(rule, name)
        for rule in (field.metadata if field else [])
        for kind, name in BOUNDS.items()
        if isinstance(rule, kind)
    }
    return limits or None


def takes_text(field: FieldInfo) -> bool:
    """Whether a field that takes an object accepts a string too."""
    adapter: TypeAdapter[Any] = TypeAdapter(field.annotation, config=ConfigDict(arbitrary_types_allowed=True))
    try:
        adapter.validate_python("text")
    except ValidationError:
        return False
    return True


def entry(action: argparse.Action, field: FieldInfo | None) -> dict[str, Any]:
    names = list(action.option_strings)
    if isinstance(action, argparse.BooleanOptionalAction):
        # argparse adds the --no- forms itself.
        negative = {f"--no-{name.removeprefix('--')}" for name in names if name.startswith("--")}
        names = [name for name in names if name not in negative]
    read, optional = unwrapped(action.type)
    kind = "lora" if isinstance(action, LoRAParserAction) else KINDS.get(read, "text")
    if kind == "json-or-text" and field and not takes_text(field):
        kind = "object"
    registered = REGISTERED.get(action.dest, list)()
    return {
        "names": names,
        "dest": action.dest,
        "action": action_of(action),
        "nargs": action.nargs,
        "kind": kind,
        "optional": optional,
        "fields": fields_of(read),
        "choices": sorted(map(str, action.choices)) if action.choices else None,
        "bounds": bounds(action.dest, field),
        "registered": sorted(registered) or None,
    }


def table() -> list[dict[str, Any]]:
    parser = make_arg_parser(FlexibleArgumentParser())
    # vLLM names a group of flags after the class that has their fields.
    classes = {action.dest: group.title or "" for group in parser._action_groups for action in group._group_actions}
    fields = {
        dest: getattr(getattr(vllm.config, name, None), "__pydantic_fields__", {}).get(dest)
        for dest, name in classes.items()
    }
    return [
        entry(action, fields[action.dest])
        for action in parser._actions
        if action.option_strings and not isinstance(action, argparse._HelpAction)
    ]


def accepts(name: str, value: str) -> bool:
    """Whether vLLM can read the value of a variable."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        vllm.envs.environment_variables[name]()
    except ValueError:
        return False
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
    return True


def variable(name: str) -> dict[str, Any] | None:
    """The values that vLLM accepts for a variable, as its getter shows; None if it accepts any text."""
    if name == "VLLM_LOGGING_LEVEL":
        # The getter accepts any text; logging refuses unknown names when vllm/logger.py is imported.
        levels = list(logging.getLevelNamesMapping())
        return {"name": name, "kind": "choice", "choices": levels, "case": False, "empty": False}
    if accepts(name, "x") or accepts(name, "{}"):
        # Text, or JSON that may be in a file instead.
        return None
    found = {"name": name, "empty": accepts(name, "")}
    for kind, example in (("float", "1.5"), ("int", "1")):
        if accepts(name, example):
            return found | {"kind": kind}
    # vllm/envs.py, env_with_choices and env_list_with_choices
    given = inspect.getclosurevars(vllm.envs.environment_variables[name]).nonlocals
    choices = list(given["choices"]() if callable(given["choices"]) else given["choices"])
    kind = "list" if accepts(name, ",".join(choices)) else "choice"
    return found | {"kind": kind, "choices": choices, "case": given["case_sensitive"]}


def variables_table() -> Iterator[dict[str, Any]]:
    for name in sorted(vllm.envs.environment_variables):
        if name.startswith("VLLM_") and (found := variable(name)):
            yield found


def lines(entries: Iterable[Any]) -> str:
    """JSON with an entry a line, so that two versions can be compared."""
    return "[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n"


if __name__ == "__main__":
    flags.TABLE.write_text(lines(table()), encoding="utf-8")
    variables.TABLE.write_text(lines(variables_table()), encoding="utf-8")
    model_config.TABLE.write_text(lines(sorted(ModelRegistry.get_supported_archs())), encoding="utf-8")
