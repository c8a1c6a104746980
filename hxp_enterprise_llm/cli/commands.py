"""The verbs of the `citadel-llm` command: parse, call the library, print."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from hxp_enterprise_llm.cli import output, strays
from hxp_enterprise_llm.cli.names import Assignment, InstanceName, KeyName, SettingKey
from hxp_enterprise_llm.control.service import Service
from hxp_enterprise_llm.control.service_manager import ServiceManager
from hxp_enterprise_llm.settings import config as settings
from hxp_enterprise_llm.settings.errors import CitadelError, ExitStatus, SettingsRefused
from hxp_enterprise_llm.settings.units import unit_name
from hxp_enterprise_llm.settings.values import HostLabels, load_host, load_instance

NAME = InstanceName()
json_option = click.option("--json", "for_program", is_flag=True, help="Print JSON for a program.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="hxp-enterprise-llm", prog_name="citadel-llm")
def cli() -> None:
    """Run language models as systemd services: /etc/default/citadel-llm-NAME configures the unit citadel-llm@NAME."""


@cli.command("list")
@json_option
def list_command(for_program: bool) -> None:
    """Show every instance, running or not."""
    for warning in strays.warnings():
        output.complain(warning)
    found = ServiceManager().list_services()
    if for_program:
        output.as_json([output.for_program(service) for service in found])
    else:
        output.services(found, HostLabels.of(load_host()))


@cli.command()
@click.argument("name", type=NAME, required=False)
@json_option
def status(name: str | None, for_program: bool) -> None:
    """Show all instances, or one, with exit status 3 if it is not running."""
    manager = ServiceManager()
    found = [manager.status(name)] if name else manager.list_services()
    if for_program:
        shown = [output.for_program(service) for service in found]
        output.as_json(shown[0] if name else shown)
    else:
        for service in found:
            output.one_service(service)
        output.of_host(HostLabels.of(load_host()))
    if name and not found[0].up:
        raise click.exceptions.Exit(ExitStatus.NOT_RUNNING)


def _verb(verb: str, summary: str, done: str) -> None:
    """Add a command that runs an action on instances and confirms it."""

    @cli.command(verb, help=summary)
    @click.argument("names", type=NAME, nargs=-1, required=True, metavar="NAME...")
    def command(names: tuple[str, ...]) -> None:
        method: Callable[..., None] = getattr(ServiceManager(), verb)
        names = tuple(dict.fromkeys(names))
        begin = time.monotonic()
        method(*names)
        output.say(f"{', '.join(names)}: {done} ({time.monotonic() - begin:.1f} s)")


_verb("start", "Start instances, after the instances that they require; return when all are ready.", "ready")
_verb("stop", "Stop instances, after requests in flight have finished or DRAIN_TIMEOUT_SEC is over.", "stopped")
_verb("restart", "Restart instances, one after another.", "ready again")
_verb("reload", "Apply changed settings, keys and certificates to running instances.", "reloaded")
_verb("enable", "Start instances at boot.", "will start at boot")
_verb("disable", "Do not start instances at boot; running instances keep running.", "will not start at boot")


@cli.command()
@click.argument("names", type=NAME, nargs=-1, metavar="[NAME...]")
@json_option
def check(names: tuple[str, ...], for_program: bool) -> None:
    """Check instances, or all, as a start would, and report all errors at once."""
    from hxp_enterprise_llm.cli.checks import check as run

    raise click.exceptions.Exit(run(names, for_program))


@cli.command()
@click.argument("name", type=NAME)
@json_option
def show(name: str, for_program: bool) -> None:
    """Show every setting in effect and its origin."""
    settings.require(name)
    config, _ = settings.load(name)
    found = load_instance(name, load_host())
    values = found.values | {"SERVED_MODEL_NAME": config.api_name}
    rows = [(key, _written(value), found.origins[key]) for key, value in values.items()]
    rows += [(key, value, found.file) for key, value in found.environment.items()]
    if for_program:
        output.as_json({key: {"value": value, "origin": origin} for key, value, origin in rows})
    else:
        output.table(("KEY", "VALUE", "FROM"), rows)


def _written(value: Any) -> str:
    """A value as it is written in a settings file."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@cli.command()
@click.argument("name")
@click.option("--model", required=True, help="Directory of the model, or its hub id.")
@click.option("--port", type=int, help="Port of the API; by default the first free port.")
@click.option(
    "--set", "others", type=Assignment(), multiple=True, metavar="KEY=VALUE", help="Another setting; can be repeated."
)
def create(name: str, model: str, port: int | None, others: tuple[tuple[str, str], ...]) -> None:
    """Create an instance: write its settings file. The instance is not started."""
    from hxp_enterprise_llm.cli import create
    from hxp_enterprise_llm.cli.checks import before_a_start

    values = create.values(model, port, others)
    file = create.create(name, values)
    ServiceManager().settings_changed()
    output.say(f"{file}: written, PORT={values['PORT']}")
    for finding in before_a_start(name):
        output.complain(f"warning: {finding.text}")
    output.say(f"To start it: citadel-llm start {name}")


dry_run_option = click.option("--dry-run", is_flag=True, help="Check the change without writing it.")


@cli.command("set")
@click.argument("name", type=NAME)
@click.argument("values", type=Assignment(), nargs=-1, required=True, metavar="KEY=VALUE...")
@dry_run_option
@json_option
def set_command(name: str, values: tuple[tuple[str, str], ...], dry_run: bool, for_program: bool) -> None:
    """Change settings in the file of an instance. A change that a start would refuse is not made.

    Comments and the order of the lines are kept. The limits of a running instance change at once; the output names the
    command that applies the other settings.
    """
    if len(dict(values)) < len(values):
        raise click.UsageError("write each key once")
    _edit(name, dict(values), dry_run, for_program)


@cli.command("unset")
@click.argument("name", type=NAME)
@click.argument("keys", type=SettingKey(), nargs=-1, required=True, metavar="KEY...")
@dry_run_option
@json_option
def unset_command(name: str, keys: tuple[str, ...], dry_run: bool, for_program: bool) -> None:
    """Delete settings from the file of an instance. A change that a start would refuse is not made."""
    _edit(name, dict.fromkeys(keys), dry_run, for_program)


def _edit(name: str, values: Mapping[str, str | None], dry_run: bool, for_program: bool) -> None:
    from hxp_enterprise_llm.cli import edit

    change = edit.change(name, values, only_try=dry_run)
    if for_program:
        output.as_json({"file": str(change.file), "changed": change.effects, "warnings": change.warnings})
        return
    if not change.effects:
        output.say(f"{change.file}: nothing to change")
        return
    output.say(f"{change.file}: {'good, not written' if dry_run else 'written'}")
    for warning in change.warnings:
        output.complain(f"warning: {warning}")
    for effect, words in edit.EFFECTS.items():
        keys = ", ".join(key for key, when in change.effects.items() if when is effect)
        if keys:
            output.say(f"{keys}: {words.format(name=name)}")


@cli.command()
@click.argument("names", type=NAME, nargs=-1, metavar="[NAME...]")
@click.option("--all", "every", is_flag=True, help="All instances whose MODEL is a hub id.")
@click.option("--verify", is_flag=True, help="Compare the files here with the checksums of the hub; download nothing.")
@click.option(
    "--token-file", type=click.Path(path_type=Path), help="File with a token for the hub; by default HUB_TOKEN_FILE."
)
def pull(names: tuple[str, ...], every: bool, verify: bool, token_file: Path | None) -> None:
    """Download the models of instances from the hub, or from the mirror in HF_ENDPOINT."""
    if every == bool(names):
        raise click.UsageError("write the names of instances, or --all")
    from hxp_enterprise_llm.cli.pull import pull as run

    run(names or None, verify, token_file)


@cli.command()
@click.argument("name", type=NAME)
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines.")
@click.option("-n", "--lines", type=int, default=100, show_default=True, help="Number of lines to show.")
def logs(name: str, follow: bool, lines: int) -> None:
    """Show the journal of an instance."""
    settings.require(name)
    command = ["journalctl", f"--unit={unit_name(name)}", f"--lines={lines}", *(["--follow"] if follow else [])]
    os.execvp(command[0], command)  # noqa: S606  journalctl replaces this process, and has its pager and signals


@cli.command()
@click.argument("name", type=NAME)
@click.option("--timeout", type=click.FloatRange(min=0), help="Seconds after which to fail.")
def wait(name: str, timeout: float | None) -> None:
    """Wait until an instance is ready, and show its progress."""
    begin, said = time.monotonic(), ""

    def look(service: Service) -> None:
        nonlocal said
        if service.reason not in ("", said):
            said = service.reason
            output.note(f"[{time.monotonic() - begin:5.1f}s] {said}")

    try:
        service = ServiceManager().wait(name, look, timeout)
    except TimeoutError:
        raise CitadelError(f"{name} is not ready after {timeout:g} s: {said}") from None
    if not service.ready:
        output.complain(f"{name} is {service.state}; start it with: citadel-llm start {name}")
        raise click.exceptions.Exit(ExitStatus.NOT_RUNNING)


@cli.command()
@click.option(
    "--days",
    type=click.FloatRange(0, 400, min_open=True),
    default=30,
    show_default=True,
    help="Number of days to report.",
)
@json_option
def report(days: float, for_program: bool) -> None:
    """Report uptime, start-up times, restarts, failures and peak memory, from the records of the monitor."""
    from hxp_enterprise_llm.cli.report import report as run

    run(days, for_program)


@cli.group()
def key() -> None:
    """Manage the API keys of an instance. With its first key, it refuses requests without a key."""


@key.command("add")
@click.argument("name", type=NAME)
@click.option(
    "--name",
    "label",
    type=KeyName(),
    help="Name of the key, for key revoke. Its default is default, or metrics with --metrics.",
)
@click.option(
    "--metrics",
    is_flag=True,
    help="Create a key that is valid for /metrics only, and print a job for Prometheus that uses it.",
)
def key_add(name: str, label: str | None, metrics: bool) -> None:
    """Create a key and print it. It cannot be shown again, since only its digest is stored."""
    from hxp_enterprise_llm.cli import keys, scrape_job
    from hxp_enterprise_llm.settings.api_keys import KeyKind

    kind = KeyKind.METRICS if metrics else KeyKind.API
    made, changed = keys.add(name, label or ("metrics" if metrics else "default"), kind=kind)
    if changed:
        ServiceManager().settings_changed()
    output.say(made)
    output.complain(f"to put the key into effect: citadel-llm reload {name}")
    if metrics:
        output.complain(f"write the key to {scrape_job.key_file(name)}, and add to scrape_configs: in prometheus.yml:")
        for line in scrape_job.text(name).splitlines():
            output.note(line)


@key.command("list")
@click.argument("name", type=NAME)
@json_option
def key_list(name: str, for_program: bool) -> None:
    """Show the names, kinds and dates of the keys of an instance."""
    from hxp_enterprise_llm.cli import keys

    found = keys.listed(name)
    if for_program:
        output.as_json([{"name": one.name, "kind": one.kind, "made": one.made} for one in found])
    else:
        rows = [(one.name or "(written by hand)", one.kind.value, one.made or "-") for one in found]
        output.table(("NAME", "KIND", "CREATED"), rows)


@key.command("revoke")
@click.argument("name", type=NAME)
@click.argument("label", type=KeyName())
def key_revoke(name: str, label: str) -> None:
    """Revoke the key LABEL, at once also for running instances."""
    from hxp_enterprise_llm.cli import keys
    from hxp_enterprise_llm.settings.api_keys import KeyKind

    left = keys.revoke(name, label)
    output.say(f"{name}: key {label} revoked, {len(left)} left")
    failed = []
    for each in keys.sharing(name):
        try:
            keys.hand_over(each)
        except SettingsRefused as error:
            failed.append(f"{each} is running and may still accept the key, since its settings cannot be read: {error}")
        except CitadelError as error:
            failed.append(str(error))
    if failed:
        raise CitadelError("\n".join(failed))
    if not any(one.kind is KeyKind.API for one in left):
        refuses = "all requests but those for /metrics" if left else "all requests"
        output.complain(f"{name} has no API key left and refuses {refuses}; to create one: citadel-llm key add {name}")


@cli.command()
@json_option
def doctor(for_program: bool) -> None:
    """Check this host: systemd, limits, GPU, memory, clock, hub and the files of the package."""
    from hxp_enterprise_llm.cli.doctor import LOOKS, Verdict

    colours = {Verdict.GOOD: "green", Verdict.WARNING: "yellow", Verdict.ERROR: "red"}
    found = []
    for look in LOOKS:
        diagnosis = look()
        found.append(diagnosis)
        if not for_program:
            # Printed one by one, because the last check takes some seconds.
            verdict = output.Coloured(f"{diagnosis.verdict:8}", colours[diagnosis.verdict])
            output.say(verdict, f" {diagnosis.what}: {diagnosis.text}")
    if for_program:
        output.as_json([diagnosis._asdict() for diagnosis in found])
    if any(diagnosis.verdict is Verdict.ERROR for diagnosis in found):
        raise click.exceptions.Exit(ExitStatus.FAILED)
