"""`citadel-llm pull`: download the models of instances, one after another."""

import os
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
"""The longest token (characters); those of the hub have 37."""


class Wanted(NamedTuple):
    """A model to download, the instance that uses it, and the address and token for the download.

    Without an endpoint, the address is that of HF_ENDPOINT in the caller's environment, or the hub.
    """

    repository: str
    instance: str
    endpoint: str | None
    token: str | None


def read_token(file: Path, named_by: str = "--token-file ") -> str:
    """The token in a file. Raises CitadelError, whose message does not repeat the content."""
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
        raise CitadelError(f"{what}: the file is empty; write only the token into it")
    if len(text) > LONGEST_TOKEN or not text.isprintable() or " " in text:
        raise CitadelError(f"{what}: the content is not a token; write only the token into the file")
    return text


def pull(names: Sequence[str] | None, verify: bool, token_file: Path | None) -> None:
    """Download, or verify, the models of instances; of all instances with a hub id if `names` is None.

    `token_file` has precedence over HUB_TOKEN_FILE in the settings. Root reads settings and tokens, and the download
    then runs as the services' user. A model that cannot be downloaded does not prevent the download of the others.
    Raises PullFailed, NoSuchInstance or SettingsRefused, and SeveralFailed for several models.
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
                output.note(f"{name}: downloading {repository}")
                output.say(f"{name}: {source.pull(repository)}")
        except CitadelError as error:
            errors.append(error)
        except KeyboardInterrupt:
            output.note("")  # ends the line of the progress bar
            output.complain(f"stopped; partial download of {repository} kept; run the same command to resume")
            raise click.exceptions.Exit(130) from None  # the status of a shell for a program that SIGINT ended
    if errors:
        raise errors[0] if len(errors) == 1 else SeveralFailed(errors)


def _wanted(names: Sequence[str] | None, token: str | None, errors: list[CitadelError]) -> list[Wanted]:
    """The models of instances, each once. With `names`, an error of an instance is raised, else added to `errors`.

    Without `token`, the token in the settings of the instance is used.
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
                    f"{name}: MODEL={config.model} is a directory of this host; there is nothing to download"
                )
            continue
        endpoint = config.environment.get("HF_ENDPOINT")
        found.setdefault(config.model, Wanted(config.model, name, endpoint, token or own))
        # Such as timeouts: the library of the hub reads them when it is imported.
        os.environ.update({key: value for key, value in config.environment.items() if key.startswith("HF_HUB_")})
    os.environ["HF_HUB_OFFLINE"] = "0"
    return list(found.values())


def _verify(source: "Hub", name: str, repository: str) -> None:
    wrong = source.verify(repository)
    if wrong:
        raise CitadelError(
            f"{repository}: missing or damaged: {', '.join(wrong)}; delete {MODELS / repository} and run pull again"
        )
    output.say(f"{name}: {repository} is the same as on the hub")
