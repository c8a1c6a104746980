"""`citadel-llm pull`: which instances want which models, one fetched after another."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from hxp_enterprise_llm.cli import output
from hxp_enterprise_llm.engine.model_directory import MODELS
from hxp_enterprise_llm.settings import config as settings
from hxp_enterprise_llm.settings.errors import CitadelError, NotPermitted, SeveralFailed
from hxp_enterprise_llm.settings.host import ServiceManagerConfig

if TYPE_CHECKING:
    from hxp_enterprise_llm.cli.hub import Hub

LONGEST_TOKEN = 4096
"""Characters; the hub's have 37."""


class Wanted(NamedTuple):
    """A model to fetch: for which instance, with which token, and from where.

    Without an endpoint that is what the caller's HF_ENDPOINT names, or the hub.
    """

    repository: str
    instance: str
    endpoint: str | None
    token: str | None


def read_token(file: Path, named_by: str = "--token-file ") -> str:
    """The token in a file. Raises CitadelError, which does not repeat what is in it."""
    what = f"{named_by}{file}"
    try:
        with file.open("rb") as stream:
            text = stream.read(LONGEST_TOKEN + 1).decode("ascii").strip()
    except PermissionError:
        raise NotPermitted(f"{what} can be read by root only; run it with sudo") from None
    except OSError as error:
        raise CitadelError(f"{what}: {error.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if not text:
        raise CitadelError(f"{what}: the file is empty; write the token into it, and nothing else")
    if len(text) > LONGEST_TOKEN or not text.isprintable() or " " in text:
        raise CitadelError(f"{what}: this is no token; write the token into it, and nothing else")
    return text


def pull(names: Sequence[str] | None, verify: bool, token_file: Path | None) -> None:
    """Fetch, or verify, the models of instances; of all with a hub id if `names` is None.

    `token_file` goes before the HUB_TOKEN_FILE of each. As root it goes on as the services' user, once they are read.
    Raises PullFailed, NoSuchInstance, SettingsRefused or, of several models, SeveralFailed: one that cannot be fetched
    does not keep back the others.
    """
    token = read_token(token_file) if token_file else None
    errors: list[CitadelError] = []
    wanted = _wanted(names, token, errors)
    from hxp_enterprise_llm.cli import hub

    hub.drop_privileges(ServiceManagerConfig.load().user)
    for repository, name, endpoint, token in wanted:
        source = hub.Hub(MODELS, endpoint, token)
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


def _wanted(names: Sequence[str] | None, token: str | None, errors: list[CitadelError]) -> list[Wanted]:
    """The models that instances want, each once; with names, what is wrong with one of them is raised at once.

    Without a `token` each has that of its settings.
    """
    found: dict[str, Wanted] = {}
    for name in names if names is not None else settings.instance_names():
        settings.require(name)
        try:
            config, _ = settings.load(name)
            own = None
            if config.hub_token_file and not token and not config.model.startswith("/"):
                own = read_token(Path(config.hub_token_file), f"{name}: HUB_TOKEN_FILE=")
        except CitadelError as error:
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
        endpoint = config.environment.get("HF_ENDPOINT")
        found.setdefault(config.model, Wanted(config.model, name, endpoint, token or own))
        # Its time-outs and the like, which the hub's library reads when it is imported.
        os.environ.update({key: value for key, value in config.environment.items() if key.startswith("HF_HUB_")})
    os.environ["HF_HUB_OFFLINE"] = "0"
    return list(found.values())


def _verify(source: "Hub", name: str, repository: str) -> None:
    wrong = source.verify(repository)
    if wrong:
        raise CitadelError(
            f"{repository}: missing or damaged: {', '.join(wrong)}; delete {MODELS / repository} and pull again"
        )
    click.echo(f"{name}: {repository} is as on the hub")
