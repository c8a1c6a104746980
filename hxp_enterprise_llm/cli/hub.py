"""Downloads of models from a hub, with huggingface_hub. A model appears when it is complete.

This module is imported late: huggingface_hub reads its settings (HF_HUB_DOWNLOAD_TIMEOUT …) when it is imported. Only
the process of `download` imports it, because a hub may be hostile.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers

from hxp_enterprise_llm.cli.announced import LimitedFile, MoreThanAnnounced, refusal
from hxp_enterprise_llm.engine.model_files import MOST_FILES
from hxp_enterprise_llm.protocol.download import Arrived, Begun, Message, PullFailed
from hxp_enterprise_llm.settings import regular_files
from hxp_enterprise_llm.settings.errors import CitadelError, NotPermitted
from hxp_enterprise_llm.settings.grammar import printable_line

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pth", "*.pt", "*.msgpack", "*.h5", "*.onnx", "*.ot")
"""Formats of weights. Of several formats in a repository, the first is downloaded, which is the one vLLM loads."""
SPARE_BYTES = 1 << 30
"""Disk space that stays free after the download (bytes)."""
PARTS = ".parts"
"""Directory of incomplete files. `chosen` returns no file of the hub with this name."""
REFUSED_STATUSES = (401, 403)
REVISION = re.compile(r"[0-9a-f]{7,64}")
READ_BYTES = 1 << 20
LONGEST_ERROR = 500


class Hub:
    """A hub, or the mirror at `endpoint`, with the rights of `token`. Methods raise PullFailed.

    Models are in subdirectories of `models`, which have the models' names on the hub. `tell` gets the progress.
    """

    def __init__(
        self,
        models: Path,
        endpoint: str | None = None,
        token: str | None = None,
        tell: Callable[[Message], object] = lambda _: None,
    ) -> None:
        # False: do not use a token that the library finds on this host.
        self._api = HfApi(endpoint=endpoint, token=token or False)
        self._token = token
        self._models = models
        self._tell = tell

    def pull(self, repository: str) -> Path:
        """Download a repository and return its directory.

        Resumes a partial download, and compares each file with the checksum of the hub before the directory appears.
        """
        target = self._models / repository
        if (target / "config.json").exists():
            return target
        with self._in_words(repository):
            if target.is_dir() and any(target.iterdir()):
                raise PullFailed(f"{target} already exists and has no config.json; move it away and run pull again")
            revision, files = self._look(repository)
            partial = partial_of(target)
            partial.mkdir(parents=True, exist_ok=True)
            with _alone(partial, repository):
                if target.exists():  # another pull has completed it
                    with suppress(OSError):
                        partial.rmdir()
                    return target
                _forget_others(partial, files)
                _require_space(files, partial, self._models)
                for number, file in enumerate(files, 1):
                    self._fetch(repository, revision, file, partial, (number, len(files)))
                self._complete(repository, files, partial)
                partial.rename(target)
        return target

    def verify(self, repository: str) -> list[str]:
        """Compare a model with the checksums of the hub; returns the names of files that are missing or differ."""
        directory = self._models / repository
        if not directory.is_dir():
            raise PullFailed(f"{repository} is not on this host: there is no {directory}; run pull without --verify")
        with self._in_words(repository):
            _, files = self._look(repository)
            return _wrong(directory, files)

    def _look(self, repository: str) -> tuple[str, list[RepoFile]]:
        revision = str(self._api.repo_info(repository).sha)
        if not REVISION.fullmatch(revision):
            raise PullFailed(f"{repository}: the hub names no commit: {revision[:LONGEST_ERROR]!r}")
        tree = self._api.list_repo_tree(repository, recursive=True, revision=revision)
        entries = list(islice(tree, MOST_FILES + 1))
        if len(entries) > MOST_FILES:
            raise PullFailed(f"{repository}: the hub lists more than {MOST_FILES} files; do not trust this hub")
        files = chosen(entry for entry in entries if isinstance(entry, RepoFile))
        if not any(file.path == "config.json" for file in files):
            raise PullFailed(f"{repository} has no config.json on the hub, so vLLM cannot load it")
        return revision, files

    def _fetch(self, repository: str, revision: str, file: RepoFile, partial: Path, position: tuple[int, int]) -> None:
        """Download one file, or the rest of it.

        snapshot_download would not do: since 2.0 it deletes a partial file when it is interrupted.
        """
        place, part = partial / file.path, _part(partial, file)
        if place.is_file() and place.stat().st_size == file.size:
            return
        if part.exists() and part.stat().st_size > file.size:
            part.unlink()
        if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
            limit = constants.MAX_HTTP_DOWNLOAD_SIZE / 1e9
            raise PullFailed(
                f"{repository}: {file.path} has {file.size / 1e9:.0f} GB, but the hub's limit for HTTP is {limit:.0f} "
                f"GB; download the model in another way and copy it to {self._models / repository}"
            )
        part.parent.mkdir(exist_ok=True)
        # Not compressed: a range counts the bytes of the file.
        headers = build_hf_headers(token=self._token or False) | {"Accept-Encoding": "identity"}
        url = hf_hub_url(repository, file.path, revision=revision, endpoint=self._api.endpoint)
        with part.open("ab") as stream:
            before = stream.tell()
            number, count = position
            self._tell(Begun(number=number, count=count, path=file.path, size=file.size, arrived=before))
            content = LimitedFile(stream, file.size, lambda size: self._tell(Arrived(arrived=size)))
            try:
                http_get(url, content, resume_size=before, headers=headers, expected_size=file.size)
            except MoreThanAnnounced:
                part.unlink()
                raise PullFailed(
                    f"{repository}: the hub sends more than the {file.size} bytes that it has announced for "
                    f"{file.path}; what has arrived of this file is deleted; do not trust this hub"
                ) from None
        place.parent.mkdir(parents=True, exist_ok=True)
        part.replace(place)

    def _complete(self, repository: str, files: Sequence[RepoFile], partial: Path) -> None:
        """Verify the download and make it readable. Deletes damaged files, and raises PullFailed if there are any."""
        wrong = _wrong(partial, files)
        for name in wrong:
            (partial / name).unlink(missing_ok=True)
        if wrong:
            raise PullFailed(
                f"{repository}: these files were damaged in the download and are deleted: {', '.join(wrong)}; "
                "run pull again"
            )
        shutil.rmtree(partial / PARTS, ignore_errors=True)
        for path in [partial, *partial.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        # The content must be on the disk before the name is.
        os.sync()

    @contextmanager
    def _in_words(self, repository: str) -> Iterator[None]:
        """Turn an error of the hub, the network or the disk into a CitadelError."""
        try:
            yield
        except (HfHubHTTPError, HTTPError, OSError, RuntimeError, ValueError) as error:
            raise self._as_failure(error, repository) from None
        except (LookupError, TypeError, AttributeError) as error:
            text = printable_line(f"{type(error).__name__}: {error}")[:LONGEST_ERROR]
            raise PullFailed(f"{repository}: the answer of the hub is not as expected ({text})") from None

    def _as_failure(self, error: Exception, repository: str) -> CitadelError:
        kept = "partial download kept; run the same command to resume"
        if isinstance(error, GatedRepoError):
            advice = (
                "the account of the token"
                if self._token
                else "your account, and give a token of it with --token-file or HUB_TOKEN_FILE"
            )
            return PullFailed(f"{repository} has conditions; accept them on the hub with {advice}")
        if isinstance(error, HfHubHTTPError) and error.response.status_code in REFUSED_STATUSES and self._token:
            return PullFailed(f"{repository}: the hub refuses the token; create a token that may read this model")
        if isinstance(error, RepositoryNotFoundError):
            return PullFailed(f"{repository}: the hub has no such model, or requires a token for it (--token-file)")
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT):
            return PullFailed(
                f"{repository}: the disk with {self._models} is full ({_free(self._models)}); make room; {kept}"
            )
        if number in (errno.EACCES, errno.EPERM):
            return NotPermitted(f"{self._models} can be written by root and the services' user only; run it with sudo")
        lines = [line for line in str(error).splitlines() if line.strip()]
        text = lines[0][:LONGEST_ERROR] if lines else type(error).__name__
        return PullFailed(f"{repository}: {text}; {kept}")


def partial_of(target: Path) -> Path:
    """The directory of an incomplete model, beside its final place. No setting can have this name."""
    return target.with_name(f".{target.name}.partial")


def chosen(files: Iterable[RepoFile]) -> list[RepoFile]:
    """The files that vLLM needs: all except weights in a second format.

    Raises PullFailed for a name outside the model's directory, or that cannot be printed.
    """
    listed = list(files)
    for file in listed:
        if reason := refusal(file.path, file.size):
            raise PullFailed(f"the hub lists {reason}; do not trust this hub")
    files = [file for file in listed if not file.path.startswith((".", "original/"))]
    for kind in WEIGHTS:
        of_kind = [file for file in files if fnmatch(file.path, kind)]
        if of_kind:
            shards = [file for file in of_kind if not Path(file.path).name.startswith("consolidated")]
            others = [file for file in files if not any(fnmatch(file.path, pattern) for pattern in WEIGHTS)]
            return [*others, *(shards or of_kind)]
    return files


def _wrong(directory: Path, files: Sequence[RepoFile]) -> list[str]:
    """The names of the files that are missing or differ from the hub's.

    verify_repo_checksums of huggingface_hub would list the repository a second time, when the hub may answer
    differently, and would wait for a FIFO.
    """
    return sorted(file.path for file in files if not _is_intact(directory / file.path, file))


def _is_intact(path: Path, file: RepoFile) -> bool:
    if file.lfs:
        digest, expected = hashlib.sha256(), str(file.lfs.sha256)
    else:
        # git's checksum of a file
        digest, expected = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False), str(file.blob_id)
    try:
        with os.fdopen(regular_files.opened(path), "rb") as stream:
            if os.fstat(stream.fileno()).st_size != file.size:
                return False
            while piece := stream.read(READ_BYTES):
                digest.update(piece)
    except OSError:
        return False
    return digest.hexdigest() == expected


def _part(partial: Path, file: RepoFile) -> Path:
    """The path of an incomplete file. Another version on the hub has another path."""
    return partial / PARTS / hashlib.sha256(f"{file.blob_id} {file.path}".encode()).hexdigest()


@contextmanager
def _alone(partial: Path, repository: str) -> Iterator[None]:
    """Lock the directory of a model. Raises PullFailed if another pull has locked it."""
    folder = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise PullFailed(f"{repository} is being downloaded by another citadel-llm pull; wait until it ends") from None
    finally:
        os.close(folder)


def _forget_others(partial: Path, files: Sequence[RepoFile]) -> None:
    """Delete files of an earlier attempt that are no longer on the hub."""
    wanted = {partial / file.path for file in files} | {_part(partial, file) for file in files}
    for path in list(partial.rglob("*")):
        if path not in wanted and not path.is_dir():
            path.unlink()


def _require_space(files: Sequence[RepoFile], partial: Path, models: Path) -> None:
    there = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    needed = sum(file.size for file in files) - there + SPARE_BYTES
    if needed > shutil.disk_usage(models).free:
        raise PullFailed(
            f"{models} has {_free(models)}; {needed / 1e9:.1f} GB are needed (the rest of the model and "
            f"{SPARE_BYTES / 1e9:.1f} GB to spare); make room"
        )


def _free(directory: Path) -> str:
    return f"{shutil.disk_usage(directory).free / 1e9:.1f} GB free"
