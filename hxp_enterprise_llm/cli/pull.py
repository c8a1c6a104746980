"""`citadel-llm pull`: which instances want which models, one fetched after another."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from hxp_enterprise_llm.cli import output
from hxp_enterprise_llm.services.core.service_manager import engine
from hxp_enterprise_llm.services.core.service_manager.config import ServiceManagerConfig
from hxp_enterprise_llm.utils import config as settings
from hxp_enterprise_llm.utils.errors import CitadelError, NoSuchInstance, SettingsRefused, SeveralFailed

if TYPE_CHECKING:
    from hxp_enterprise_llm.models.hub import Hub

LONGEST_TOKEN = 4096
"""Characters; the hub's have 37."""


class Wanted(NamedTuple):
    """A model to fetch: for which instance, and from where (None: what the caller's HF_ENDPOINT names, or the hub)."""

    repository: str
    instance: str
    endpoint: str | None


def read_token(file: Path) -> str:
    """The token in a file. Raises CitadelError, which does not repeat what is in it."""
    try:
        with file.open("rb") as stream:
            text = stream.read(LONGEST_TOKEN + 1).decode("ascii").strip()
    except OSError as error:
        raise CitadelError(f"--token-file {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if not text:
        raise CitadelError(f"--token-file {file}: the file is empty; write the token into it, and nothing else")
    if len(text) > LONGEST_TOKEN or not text.isprintable() or " " in text:
        raise CitadelError(f"--token-file {file}: this is no token; write the token into it, and nothing else")
    return text


def pull(names: Sequence[str] | None, verify: bool, token_file: Path | None) -> None:
    """Fetch, or verify, the models of instances; of all with a hub id if `names` is None.

    As root it goes on as the services' user, once the token is read. Raises PullFailed, NoSuchInstance, SettingsRefused
    or, of several models, SeveralFailed: one that cannot be fetched does not keep back the others.
    """
    token = read_token(token_file) if token_file else None
    errors: list[CitadelError] = []
    wanted = _wanted(names, errors)
    from hxp_enterprise_llm.models import hub

    hub.drop_privileges(ServiceManagerConfig.load().user)
    for repository, name, endpoint in wanted:
        source = hub.Hub(engine.MODELS, endpoint, token)
        try:
            if verify:
                _verify(source, name, repository)
            else:
                print(f"{name}: fetching {repository}", file=sys.stderr)
                click.echo(f"{name}: {source.pull(repository)}")
        except CitadelError as error:
            errors.append(error)
        except KeyboardInterrupt:
            print(file=sys.stderr)  # ends the line of the progress bar
            output.complain(f"stopped; what has arrived of {repository} is kept, the same command goes on from there")
            raise click.exceptions.Exit(130) from None  # as a shell says of a program that SIGINT has ended
    if errors:
        raise errors[0] if len(errors) == 1 else SeveralFailed(errors)


def _wanted(names: Sequence[str] | None, errors: list[CitadelError]) -> list[Wanted]:
    """The models that instances want, each once; with names, what is wrong with one of them is raised at once."""
    found: dict[str, Wanted] = {}
    for name in names if names is not None else settings.instance_names():
        if not settings.exists(name):
            raise NoSuchInstance(f"there is no instance {name!r}; citadel-llm list shows those that there are")
        try:
            config, _ = settings.load(name)
        except SettingsRefused as error:
            if names is not None:
                raise
            errors.append(error)
            continue
        if config.model.startswith("/"):
            if names is not None:
                raise CitadelError(
                    f"{name}: MODEL={config.model} is a directory of this host; there is nothing to fetch"
                )
            continue
        found.setdefault(config.model, Wanted(config.model, name, config.environment.get("HF_ENDPOINT")))
        # Its time-outs and the like, which the hub's library reads when it is imported.
        os.environ.update({key: value for key, value in config.environment.items() if key.startswith("HF_HUB_")})
    os.environ["HF_HUB_OFFLINE"] = "0"
    return list(found.values())


def _verify(source: "Hub", name: str, repository: str) -> None:
    wrong = source.verify(repository)
    if wrong:
        raise CitadelError(
            f"{repository}: missing or damaged: {', '.join(wrong)}; delete {engine.MODELS / repository} and pull again"
        )
    click.echo(f"{name}: {repository} is as on the hub")
