"""VLLM_ARGS as the check reads them beside vLLM's own parser, over random words."""

from .conftest import Host

COMPARE = """
import contextlib, io, json, random
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from hxp_enterprise_llm.engine import flags

parser = make_arg_parser(FlexibleArgumentParser())
draw = random.Random(1)
VALUES = ["1", "2", "4k", "4K", "1.5", "-1", "auto", "None", "", "true", '{"a":1}', "[1]", "x", "x=/y", "-0.5", "all"]
# DeprecatedLogConfigFileAction changes another flag.
table = [flag for flag in json.loads(flags.TABLE.read_text())
         if flag["dest"] not in flags.REFUSED and flag["dest"] != "log_config_file"]

def drawn():
    flag = draw.choice(table)
    name, value = draw.choice(flag["names"]), draw.choice(VALUES + 5 * (flag["choices"] or []))
    if name.startswith("--"):
        name = name[: draw.randint(4, 2 * len(name))]
        name = "--no-" + name[2:] if flag["action"] == "boolean" and draw.random() < 0.4 else name
        name = "--" + name[2:].replace("-", "_") if draw.random() < 0.2 else name
        name += draw.choice([".a", ".a.b", ".a+", ".a_b-c"]) if draw.random() < 0.15 else ""
    if flag["nargs"] == 0 and draw.random() < 0.8:
        return [name]
    return [name + "=" + value] if name.startswith("--") and draw.random() < 0.5 else [name, value]

def by_vllm(words):
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            read = vars(parser.parse_args(words))
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
