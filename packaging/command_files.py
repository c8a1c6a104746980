"""Write shell completions and man pages of the citadel-llm command.

Usage: command_files.py STAGE

STAGE is debian/citadel-llm. Completions for bash, zsh and fish go below STAGE/usr/share, and so do the man pages:
citadel-llm.8, and citadel-llm-VERB.8 for each verb.
"""

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import ShellComplete, get_completion_class

from hxp_enterprise_llm.cli.commands import cli

NAME = "citadel-llm"
COMPLETIONS = {
    "bash": f"bash-completion/completions/{NAME}",
    "zsh": f"zsh/vendor-completions/_{NAME}",
    "fish": f"fish/vendor_completions.d/{NAME}.fish",
}
FILES = {
    "/etc/default/citadel-llm": "settings of the host",
    "/etc/default/citadel-llm-NAME": "settings of one instance",
    "/etc/citadel-llm/NAME.keys": "digests of the keys that requests may carry",
    "/var/lib/citadel-llm/models": "models",
}
STATUSES = {
    "0": "done",
    "1": "failed",
    "2": "wrong usage",
    "3": "not running",
    "4": "no such instance",
    "78": "settings refused",
    "130": "interrupted",
}


def roff(text: str) -> str:
    """Text with troff's special characters escaped."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return "\\&" + escaped if escaped.startswith((".", "'")) else escaped


def options(command: click.Command, context: click.Context) -> Iterator[str]:
    """Lines for the options of a command."""
    for record in (parameter.get_help_record(context) for parameter in command.get_params(context)):
        # An argument without a description is in the synopsis.
        if record and record[1]:
            yield f".TP\n.B {roff(record[0])}\n{roff(record[1])}"


def page(name: str, command: click.Command, context: click.Context) -> Iterator[str]:
    """Lines of the man page of one command."""
    summary = command.get_short_help_str(limit=200).rstrip(".")
    yield f'.TH {name.upper()} 8 "" "citadel-llm" "citadel-llm"'
    yield f".SH NAME\n{roff(name)} \\- {roff(summary[:1].lower() + summary[1:])}"
    usage = " ".join(command.collect_usage_pieces(context))
    words = f"{NAME} {name.removeprefix(NAME).lstrip('-')}".strip()
    yield f".SH SYNOPSIS\n.B {roff(words)}\n{roff(usage)}"
    # Without the indentation of the source: troff would start a new line at each indented one.
    yield f".SH DESCRIPTION\n{roff(inspect.cleandoc(command.help or ''))}"
    yield ".SH OPTIONS"
    yield from options(command, context)
    if isinstance(command, click.Group):
        yield ".SH COMMANDS"
        for verb, child in sorted(command.commands.items()):
            # Only the verbs of the command itself have pages of their own.
            usage = " ".join(child.collect_usage_pieces(click.Context(child, context, verb)))
            title = f".BR {roff(f'{NAME}-{verb}')} (8)" if name == NAME else f".B {roff(f'{words} {verb} {usage}')}"
            yield f".TP\n{title}\n{roff(child.get_short_help_str(limit=200))}"
            if name != NAME:
                yield ".RS"
                yield from options(child, click.Context(child, context, verb))
                yield ".RE"
    if name == NAME:
        yield ".SH FILES"
        for file, what in FILES.items():
            yield f".TP\n.I {roff(file)}\n{what}"
    yield ".SH EXIT STATUS"
    for status, what in STATUSES.items():
        yield f".TP\n.B {status}\n{what}"
    yield ".SH SEE ALSO\n.BR systemctl (1),\n.BR journalctl (1)"


def main(stage: Path) -> None:
    share = stage / "usr/share"
    for shell, path in COMPLETIONS.items():
        kind = get_completion_class(shell) or ShellComplete
        file = share / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(kind(cli, {}, NAME, "_CITADEL_LLM_COMPLETE").source())
    manual = share / "man/man8"
    manual.mkdir(parents=True, exist_ok=True)
    context = click.Context(cli, info_name=NAME)
    (manual / f"{NAME}.8").write_text("\n".join(page(NAME, cli, context)) + "\n")
    for verb, command in cli.commands.items():
        name = f"{NAME}-{verb}"
        (manual / f"{name}.8").write_text("\n".join(page(name, command, click.Context(command, context, verb))) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
