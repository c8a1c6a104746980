"""Where a model is on this host, and whether its service can see and read it there."""

import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from hxp_enterprise_llm.engine import flags, model_files
from hxp_enterprise_llm.settings.errors import ModelMissing
from hxp_enterprise_llm.settings.grammar import printable_line, shown
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.settings.values import MODELS as SERVED_FROM

MODELS = Path(SERVED_FROM)
CACHE = Path("/var/cache/citadel-llm")
HIDDEN = (
    "/home", "/root", "/run", "/var/lib", "/var/cache", "/var/log", "/var/spool", "/var/mail", "/var/backups",
    "/var/www", "/var/opt", "/var/local",
)  # fmt: skip
"""Directories that the template hides from services, except MODELS and the service's own cache."""
PRIVATE = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  compared with, not written to
"""Directories that each service has for itself, empty at its start: writable, but not a place for a model."""
PATHS = re.compile(r"""(?:^|[=:,"'\[\s])(/[A-Za-z0-9._@+/-]+)""")
"""What may be the path of a file in a flag or a variable, also within JSON."""


def find_model(config: ServiceConfigSchema, models: Path = MODELS) -> str:
    """The model to pass to vLLM: a directory of this host, or the hub id if a download is allowed.

    The model with the hub id `organisation/name` is in the subdirectory of that name in `models`. Raises ModelMissing.
    """
    directory = Path(config.model) if config.model.startswith("/") else models / config.model
    visible = models, CACHE / config.name
    hidden = hidden_in(directory, HIDDEN + PRIVATE, visible)
    if hidden:
        raise ModelMissing(f"MODEL={config.model}: services cannot see {hidden}; copy the model to {models}")
    try:
        if stat.S_ISREG((directory / "config.json").stat().st_mode):
            _check_files(config, directory, models, visible)
            return str(directory)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except PermissionError as error:
        # Never advise opening a directory that may hold other things than models.
        ours = directory.is_relative_to(models)
        advice = f"let every user read it: chmod -R u=rwX,go=rX {directory}" if ours else f"copy the model to {models}"
        if ours and os.path.isfile(error.filename):  # noqa: PTH113  raises nothing
            advice = f"let every user read it: chmod 644 {error.filename}"
        raise ModelMissing(
            f"MODEL={config.model}: {error.filename} cannot be read by this service's user; {advice}"
        ) from None
    except OSError as error:
        raise ModelMissing(f"MODEL={config.model}: {directory}: {error.strerror}") from None
    if directory.exists():
        raise ModelMissing(f"MODEL={config.model}: {directory} has no config.json, so it is not a complete model")
    if config.model.startswith("/"):
        raise ModelMissing(f"MODEL={config.model}: there is no such directory; copy the model there or correct MODEL")
    if config.allow_download:
        return config.model
    raise ModelMissing(
        f"MODEL={config.model}: not on this host; fetch it with `citadel-llm pull {config.name}`, "
        f"or copy it to {directory}"
    )


def loaded_files(config: ServiceConfigSchema, directory: Path) -> list[Path]:
    """The files of a directory that the service reads with these settings. Raises OSError."""
    return model_files.loaded(directory, with_code=bool(flags.parse(config.vllm_args).get("trust_remote_code")))


def _check_files(config: ServiceConfigSchema, directory: Path, models: Path, visible: Iterable[Path]) -> None:
    """Check that the service can see and read each file that vLLM loads. Raises ModelMissing or OSError.

    Other files do not matter: a model may be in the root directory of a disk, beside lost+found.
    """
    for file in loaded_files(config, directory):
        if not file.name.isprintable():
            raise ModelMissing(
                f"MODEL={config.model}: the file name {shown(file.name)} cannot be printed; rename the file"
            )
        if hidden := hidden_in(file, HIDDEN + PRIVATE, visible):
            target = printable_line(os.path.realpath(file))
            raise ModelMissing(
                f"MODEL={config.model}: {file.name} is a link to {target}, and services cannot see {hidden}; "
                f"copy the model to {models} together with the targets of its links (cp -rL)"
            )
        if not os.access(file, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            # vLLM would wait for a FIFO, or read a device without end.
            raise ModelMissing(
                f"MODEL={config.model}: {file.name} cannot be read (is not a regular file); copy the model again"
            )


def hidden_in(path: Path, places: Iterable[str], visible: Iterable[Path]) -> str:
    """The one of `places` in which a path really lies, empty if none; `visible` are exceptions."""
    real = Path(os.path.realpath(path))
    if any(real.is_relative_to(os.path.realpath(directory)) for directory in visible):
        return ""
    return next((place for place in places if real.is_relative_to(place)), "")


def unseen(config: ServiceConfigSchema, models: Path = MODELS, cache: Path = CACHE) -> list[str]:
    """Files in VLLM_ARGS and variables that services cannot see, one sentence each.

    To be called as root, who sees the whole host: a service cannot distinguish a hidden file from a missing one.
    """
    words = [("VLLM_ARGS", word) for word in config.vllm_args] + list(config.environment.items())
    return [
        f"{key}: services cannot see {hidden}, so not {path}; copy it beside the model"
        for key, word in words
        for path in PATHS.findall(word)
        # A path that is not a file may be part of a URL.
        if (hidden := hidden_in(Path(path), HIDDEN, (models, cache / config.name))) and os.path.exists(path)  # noqa: PTH110  raises nothing
    ]
