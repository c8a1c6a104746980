"""Output of the command: tables for people, JSON for programs, errors for both.

The only module of the command that prints. Text may come from a server, a model's files or the hub, and root's terminal
would obey its control characters: each line is escaped here, before it is coloured.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Self

import click

from hxp_enterprise_llm.control.service import Service, State
from hxp_enterprise_llm.settings.address import Address
from hxp_enterprise_llm.settings.grammar import printable, printable_line, shown
from hxp_enterprise_llm.settings.keys import GIBIBYTE
from hxp_enterprise_llm.settings.values import HostLabels

COLOURS = {
    State.READY: "green",
    State.FAILED: "red",
    **dict.fromkeys((State.STARTING, State.RESTARTING, State.RECOVERING), "yellow"),
}
"""Colours of states on a terminal; click leaves them out elsewhere."""
NOTHING = "-"


class Coloured(NamedTuple):
    """Text with a colour, if it goes to a terminal."""

    text: str
    colour: str | None


Part = str | Coloured


def say(*parts: Part) -> None:
    """Print one line."""
    click.echo("".join(map(_styled, parts)))


def note(text: str) -> None:
    """Print one line about the progress of a command to standard error."""
    click.echo(printable_line(text), err=True)


class Progress:
    """Progress of downloads, on standard error: a bar on a terminal, else one line for each file."""

    def __init__(self) -> None:
        self._shown = ExitStack()
        self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self, title: str, size: int, arrived: int) -> None:
        """A file of `size` bytes is being downloaded; `arrived` bytes are there already."""
        self.end()
        title = printable_line(title)
        if not sys.stderr.isatty():
            note(f"{title} ({size / 1e9:.2g} GB)")
            return
        self._bar = self._shown.enter_context(click.progressbar(length=size, label=shown(title), file=sys.stderr))
        self.reach(arrived)

    def reach(self, arrived: int) -> None:
        """How much of the file has arrived (bytes)."""
        if self._bar:
            self._bar.update(arrived - self._bar.pos)

    def end(self) -> None:
        """End the line of the bar."""
        self._bar = None
        self._shown.close()


def _styled(part: Part) -> str:
    if isinstance(part, Coloured):
        return click.style(printable_line(part.text), fg=part.colour)
    return printable_line(part)


def table(titles: Sequence[str], rows: Iterable[Sequence[Part]]) -> None:
    """Print aligned columns."""
    lines: list[Sequence[Part]] = [titles, *rows]
    styled = [list(map(_styled, line)) for line in lines]
    widths = [max(len(click.unstyle(line[column])) for line in styled) for column in range(len(titles))]
    for line in styled:
        cells = (cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def for_program(service: Service) -> dict[str, Any]:
    """An instance as JSON, with its settings."""
    config = service.config.model_dump(mode="json") if service.config else None
    return service.model_dump(mode="json") | {"config": config}


def as_json(value: Any) -> None:
    """Print `value` as JSON. Of the control characters, json escapes all but DEL."""
    click.echo(json.dumps(value, indent=2, sort_keys=True).replace("\x7f", "\\u007f"))


def state(service: Service) -> Coloured:
    """The state in its colour."""
    return Coloured(service.state.value, COLOURS.get(service.state))


def gigabytes(size: int | None) -> str:
    """A size in bytes, in GiB for people."""
    return NOTHING if size is None else f"{size / GIBIBYTE:.1f}"


def services(found: Sequence[Service], host: HostLabels) -> None:
    """The table of `citadel-llm list`, and the host below it."""
    rows = []
    for service in found:
        config = service.config
        rows.append(
            (
                service.name,
                state(service),
                "yes" if service.enabled else "no",
                str(service.port or NOTHING),
                f"{gigabytes(service.memory_bytes)}/{gigabytes(service.memory_limit_bytes)}",
                f"{service.cpu_limit_cores:g}" if service.cpu_limit_cores else NOTHING,
                str(service.restarts),
                config.model if config else f"settings refused: citadel-llm check {service.name}",
            )
        )
    table(("NAME", "STATE", "ENABLED", "PORT", "MEMORY GB", "CORES", "RESTARTS", "MODEL"), rows)
    of_host(host)


def of_host(host: HostLabels) -> None:
    """The line that names the host."""
    say(f"Host: {host}")


def one_service(service: Service) -> None:
    """The lines of `citadel-llm status M`."""
    config = service.config
    since = service.since.astimezone().strftime(" since %Y-%m-%d %H:%M:%S") if service.since else ""
    restarts = f"{service.restarts} restarts by systemd" if service.restarts else ""
    process = ", ".join(filter(None, [str(service.pid or ""), restarts]))
    say(service.name)
    say(_title("State"), state(service), since, ", enabled" if service.enabled else ", not enabled")
    lines = {
        "Status": service.reason,
        "Process": process,
        "Memory": _of(gigabytes(service.memory_bytes), gigabytes(service.memory_limit_bytes), " GB"),
        "Tasks": _of(*(NOTHING if number is None else str(number) for number in (service.tasks, service.tasks_limit))),
    }
    if config:
        lines |= {"Address": Address.of(config).url, "Model": f"{config.model} as {config.api_name}"}
    for title, text in lines.items():
        if text:
            say(_title(title), text)
    for finding in service.findings:
        say("  ", Coloured("Settings:", "red"), f" {finding}")


def _title(text: str) -> str:
    return f"  {text + ':':9}"


def _of(used: str, limit: str, unit: str = "") -> str:
    """A figure and its limit, either unknown; empty if both are."""
    if used == NOTHING:
        return "" if limit == NOTHING else f"up to {limit}{unit}"
    return f"{used}{unit}" if limit == NOTHING else f"{used} of {limit}{unit}"


def complain(text: str) -> None:
    """Print an error to standard error, each line with the name of the command."""
    for line in printable(text).splitlines():
        print(f"citadel-llm: {line}", file=sys.stderr)
