"""`citadel-llm pull`: download the models of instances, one after another.

This process reads settings and tokens. Another process, in the unit of `sandbox`, talks to the hub; this one shows what
that one reports.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import click
from pydantic import ValidationError

from hxp_enterprise_llm.cli import output, sandbox
from hxp_enterprise_llm.engine.model_directory import MODELS
from hxp_enterprise_llm.protocol.download import (
    LONGEST_LINE,
    MESSAGES,
    Arrived,
    Begun,
    Done,
    Failed,
    Job,
    PullFailed,
)
from hxp_enterprise_llm.settings import config as settings
from hxp_enterprise_llm.settings import credential_files
from hxp_enterprise_llm.settings.errors import CitadelError, NotPermitted, SeveralFailed
from hxp_enterprise_llm.settings.grammar import printable_line
from hxp_enterprise_llm.settings.host import ServiceManagerConfig

LONGEST_TOKEN = 4096
"""The longest token (characters); those of the hub have 37."""
PASSED_ON = re.compile(r"HF_HUB_\w+|HF_ENDPOINT|(?i:(https?|all|no)_proxy)|SSL_CERT_(FILE|DIR)")
"""Variables of the caller's environment that the library of the hub gets."""
MOST_LINES = 1000
"""Number of lines, besides messages, that are printed of the downloading process."""


class Wanted(NamedTuple):
    """A model to download, the instance that uses it, and the address and token for the download.

    Without an endpoint, the address is that of HF_ENDPOINT in the caller's environment, or the hub.
    """

    repository: str
    instance: str
    endpoint: str | None
    token: str | None
    environment: Mapping[str, str]


def read_token(file: Path, named_by: str = "--token-file ") -> str:
    """The token in a file. Raises CitadelError, whose message does not repeat the content."""
    what = f"{named_by}{file}"
    try:
        text = credential_files.content(str(file)).decode("ascii").strip()
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

    `token_file` has precedence over HUB_TOKEN_FILE in the settings. A model that cannot be downloaded does not prevent
    the download of the others. Raises PullFailed, NoSuchInstance or SettingsRefused, and SeveralFailed for several
    models.
    """
    token = read_token(token_file) if token_file else None
    errors: list[CitadelError] = []
    wanted = _wanted(names, token, errors)
    user = ServiceManagerConfig.load().owner
    for one in wanted:
        try:
            if not verify:
                output.note(f"{one.instance}: downloading {one.repository}")
            wrong = _run(one, user, verify).wrong
            target = MODELS / one.repository
            if wrong:
                raise CitadelError(
                    f"{one.repository}: missing or damaged: {', '.join(wrong)}; delete {target} and run pull again"
                )
            output.say(f"{one.instance}: {f'{one.repository} is the same as on the hub' if verify else target}")
        except CitadelError as error:
            errors.append(error)
        except KeyboardInterrupt:
            output.complain(f"stopped; partial download of {one.repository} kept; run the same command to resume")
            raise click.exceptions.Exit(130) from None  # the status of a shell for a program that SIGINT ended
    if errors:
        raise errors[0] if len(errors) == 1 else SeveralFailed(errors)


def _run(wanted: Wanted, user: str, verify: bool) -> Done:
    """Let the downloading process do one job."""
    job = Job(
        repository=wanted.repository,
        endpoint=wanted.endpoint,
        token=wanted.token,
        verify=verify,
        environment=dict(wanted.environment),
    )
    with sandbox.downloader(user, writable=not verify) as process:
        assert process.stdin and process.stdout  # noqa: S101  pipes
        # The token is not in the environment or the command line, which others can read.
        with suppress(BrokenPipeError):  # if it has ended, its output says why
            process.stdin.write(job.model_dump_json().encode() + b"\n")
            process.stdin.flush()
        lines = iter(lambda: process.stdout.readline(LONGEST_LINE), b"")  # type: ignore[union-attr]
        done = follow(lines, wanted.repository)
    if done is None:
        raise PullFailed(
            f"{wanted.repository}: the downloading process ended with status {process.returncode} before it was done; "
            "partial download kept; run the same command to resume"
        )
    return done


def follow(lines: Iterable[bytes], repository: str) -> Done | None:
    """Show the progress that the downloading process reports; returns its result, None if there is none.

    Raises PullFailed or NotPermitted if it reports a failure. Other lines are those of systemd-run, or warnings.
    """
    others = 0
    with output.Progress() as progress:
        for line in lines:
            try:
                message = MESSAGES.validate_json(line)
            except ValidationError:
                others += bool(line.strip())
                if line.strip() and others <= MOST_LINES:
                    progress.end()
                    output.complain(printable_line(line.decode("utf-8", "backslashreplace").rstrip("\n")))
                continue
            match message:
                case Begun():
                    title = f"{message.number}/{message.count} {message.path}"
                    progress.begin(title, message.size, message.arrived)
                case Arrived():
                    progress.reach(message.arrived)
                case Done():
                    return message
                case Failed():
                    text = printable_line(message.message)
                    raise NotPermitted(text) if message.code == NotPermitted.code else PullFailed(text)
    return None


def _wanted(names: Sequence[str] | None, token: str | None, errors: list[CitadelError]) -> list[Wanted]:
    """The models of instances, each once. With `names`, an error of an instance is raised, else added to `errors`.

    Without `token`, the token in the settings of the instance is used.
    """
    found: dict[str, Wanted] = {}
    caller = {key: value for key, value in os.environ.items() if PASSED_ON.fullmatch(key)}
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
        # Such as timeouts.
        environment = caller | {key: value for key, value in config.environment.items() if key.startswith("HF_HUB_")}
        environment["HF_HUB_OFFLINE"] = "0"
        found.setdefault(config.model, Wanted(config.model, name, endpoint, token or own, environment))
    return list(found.values())
