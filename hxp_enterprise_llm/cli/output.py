"""Output of the command: tables for people, JSON for programs, errors for both."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from hxp_enterprise_llm.control.service import Service, State
from hxp_enterprise_llm.settings.address import Address
from hxp_enterprise_llm.settings.grammar import printable
from hxp_enterprise_llm.settings.keys import GIBIBYTE
from hxp_enterprise_llm.settings.values import HostLabels

COLOURS = {
    State.READY: "green",
    State.FAILED: "red",
    **dict.fromkeys((State.STARTING, State.RESTARTING, State.RECOVERING), "yellow"),
}
"""Colours of states on a terminal; click leaves them out elsewhere."""
NOTHING = "-"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns; cells may be coloured."""
    lines = [list(titles), *map(list, rows)]
    widths = [max(len(click.unstyle(line[column])) for line in lines) for column in range(len(titles))]
    for line in lines:
        cells = (cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def for_program(service: Service) -> dict[str, Any]:
    """An instance as JSON, with its settings."""
    config = service.config.model_dump(mode="json") if service.config else None
    return service.model_dump(mode="json") | {"config": config}


def as_json(value: Any) -> None:
    """Print `value` as JSON."""
    click.echo(json.dumps(value, indent=2, sort_keys=True))


def state(service: Service) -> str:
    """The state in its colour."""
    return click.style(service.state.value, fg=COLOURS.get(service.state))


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
    click.echo(f"Host: {host}")


def one_service(service: Service) -> None:
    """The lines of `citadel-llm status M`."""
    config = service.config
    since = service.since.astimezone().strftime(" since %Y-%m-%d %H:%M:%S") if service.since else ""
    restarts = f"{service.restarts} restarts by systemd" if service.restarts else ""
    process = ", ".join(filter(None, [str(service.pid or ""), restarts]))
    lines = {
        "State": f"{state(service)}{since}" + (", enabled" if service.enabled else ", not enabled"),
        "Status": service.reason,
        "Process": process,
        "Memory": _of(gigabytes(service.memory_bytes), gigabytes(service.memory_limit_bytes), " GB"),
        "Tasks": _of(*(NOTHING if number is None else str(number) for number in (service.tasks, service.tasks_limit))),
    }
    if config:
        lines |= {"Address": Address.of(config).url, "Model": f"{config.model} as {config.api_name}"}
    click.echo(service.name)
    for title, text in lines.items():
        if text:
            click.echo(f"  {title + ':':9}{text}")
    for finding in service.findings:
        click.echo(f"  {click.style('Settings:', fg='red')} {finding}")


def _of(used: str, limit: str, unit: str = "") -> str:
    """A figure and its limit, either unknown; empty if both are."""
    if used == NOTHING:
        return "" if limit == NOTHING else f"up to {limit}{unit}"
    return f"{used}{unit}" if limit == NOTHING else f"{used} of {limit}{unit}"


def complain(text: str) -> None:
    """Print an error to standard error, each line with the name of the command."""
    for line in printable(text).splitlines():
        print(f"citadel-llm: {line}", file=sys.stderr)
