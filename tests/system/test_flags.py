"""VLLM_ARGS as the check reads them beside vLLM's own parser and validation, over random words."""

from .conftest import Host

COMPARE = """
import contextlib, io, json, random
from typing import Annotated
import vllm.config
from pydantic import ConfigDict, TypeAdapter
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser
from hxp_enterprise_llm.engine import flags

parser = make_arg_parser(FlexibleArgumentParser())
fields = {action.dest: getattr(vllm.config, group.title or "", None)
          for group in parser._action_groups for action in group._group_actions}
fields = {dest: getattr(kind, "__pydantic_fields__", {}).get(dest) for dest, kind in fields.items()}
draw = random.Random(1)
VALUES = ["0", "1", "2", "7", "4k", "4K", "1.5", "-1", "-0.5", "auto", "None", "", "true", '{"a":1}', "[1]", "x",
          "x=/y", "all"]
# DeprecatedLogConfigFileAction changes another flag.
table = [flag for flag in json.loads(flags.TABLE.read_text())
         if flag["dest"] not in flags.REFUSED and flag["dest"] != "log_config_file"]

def drawn():
    flag = draw.choice(table)
    values = VALUES + 5 * (flag["choices"] or []) + (flag["registered"] or [])
    name, value = draw.choice(flag["names"]), draw.choice(values)
    if name.startswith("--"):
        name = name[: draw.randint(4, 2 * len(name))]
        name = "--no-" + name[2:] if flag["action"] == "boolean" and draw.random() < 0.4 else name
        name = "--" + name[2:].replace("-", "_") if draw.random() < 0.2 else name
        name += draw.choice([".a", ".a.b", ".a+", ".a_b-c"]) if draw.random() < 0.15 else ""
    if flag["nargs"] == 0 and draw.random() < 0.8:
        return [name]
    return [name + "=" + value] if name.startswith("--") and draw.random() < 0.5 else [name, value]

def validate(read):
    for name, value in vars(read).items():
        field = fields.get(name)
        if field and (field.metadata and value is not None or name in ("additional_config", "hf_overrides")):
            kind = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    # The validation of the model's configuration.
    assert read.max_model_len != 0
    read.chat_template = None
    validate_parsed_serve_args(read)
    known = ToolParserManager.list_registered()
    assert not read.enable_auto_tool_choice or read.tool_parser_plugin or read.tool_call_parser in known
    known = ReasoningParserManager.list_registered()
    assert not read.reasoning_parser or read.reasoning_parser_plugin or read.reasoning_parser in known
    assert read.quantization is None or read.quantization.lower() in QUANTIZATION_METHODS

def by_vllm(words):
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parsed = parser.parse_args(words)
            read = dict(vars(parsed))
            validate(parsed)
    except (SystemExit, Exception):
        return None
    # A word that belongs to no flag is vLLM's model, and an error here.
    return None if read["model_tag"] is not None else read

accepted = 0
for _ in range(3000):
    words = [word for _ in range(draw.randint(1, 2)) for word in drawn()]
    ours, theirs = flags.parse(tuple(words)), by_vllm(list(words))
    if any("cannot be used" in finding for finding in ours.findings):
        continue
    assert (theirs is None) == bool(ours.findings), (words, ours.findings)
    if theirs is not None:
        accepted += 1
        plain = {name: theirs[name] for name in ours.values if isinstance(theirs[name], int | float | None)}
        assert plain == {name: ours.values[name] for name in plain}, words
print(accepted)
"""


def test_the_check_accepts_and_refuses_what_vllm_does(host: Host) -> None:
    python = ("env", "VLLM_TARGET_DEVICE=cpu", "/opt/citadel/env/bin/python", "-I", "-c")
    accepted = int(host.machine.output(*python, COMPARE, timeout=300).splitlines()[-1])
    assert accepted > 500
