"""Write the tables that the pre-start check reads, beside the modules that read them: vLLM's flags and architectures.

Importing vLLM takes seconds at every start; what it accepts changes only with the package.
"""

import argparse
import json
from typing import Any

from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.model_executor.models import ModelRegistry
from vllm.utils.argparse_utils import FlexibleArgumentParser

from hxp_enterprise_llm.engine import flags, model_config


def kind(action: argparse.Action) -> str:
    """What a value of the flag must be: "int" or "float" where that is all there is to it, else "text"."""
    return {int: "int", float: "float"}.get(action.type, "text")  # type: ignore[arg-type]


def table() -> list[dict[str, Any]]:
    parser = make_arg_parser(FlexibleArgumentParser())
    return [
        {
            "names": action.option_strings,
            "values": action.nargs if action.nargs is not None else 1,
            "kind": kind(action),
            "choices": sorted(map(str, action.choices)) if action.choices else None,
        }
        for action in parser._actions
        if action.option_strings and not isinstance(action, argparse._HelpAction)
    ]


if __name__ == "__main__":
    flags.TABLE.write_text(json.dumps(table(), indent=0), encoding="utf-8")
    model_config.TABLE.write_text(json.dumps(sorted(ModelRegistry.get_supported_archs()), indent=0), encoding="utf-8")
