"""Downloads of models from a hub, with huggingface_hub. A model appears when it is complete.

This module is imported late: huggingface_hub reads its settings (HF_HUB_DOWNLOAD_TIMEOUT …) when it is imported.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers

from hxp_enterprise_llm.cli import output
from hxp_enterprise_llm.settings.errors import CitadelError, NotPermitted

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pth", "*.pt", "*.msgpack", "*.h5", "*.onnx", "*.ot")
"""Formats of weights. Of several formats in a repository, the first is downloaded, which is the one vLLM loads."""
SPARE_BYTES = 1 << 30
"""Disk space that stays free after the download (bytes)."""
PARTS = ".parts"
"""Directory of incomplete files. `chosen` returns no file of the hub with this name."""
REFUSED_STATUSES = (401, 403)


class PullFailed(CitadelError):
    """A model could not be downloaded; the partial download is kept for the next attempt."""

    code = "pull-failed"


class Hub:
    """A hub, or the mirror at `endpoint`, with the rights of `token`. Methods raise PullFailed.

    Models are in subdirectories of `models`, which have the models' names on the hub.
    """

    def __init__(self, models: Path, endpoint: str | None = None, token: str | None = None) -> None:
        # False: do not use a token that the library finds on this host.
        self._api = HfApi(endpoint=endpoint, token=token or False)
        self._token = token
        self._models = models

    def pull(self, repository: str) -> Path:
        """Download a repository and return its directory.

        Shows progress on standard error, resumes a partial download, and compares each file with the checksum of the
        hub before the directory appears.
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
                    self._fetch(repository, revision, file, partial, f"{number}/{len(files)} {file.path}")
                self._complete(repository, revision, files, partial)
                partial.rename(target)
        return target

    def verify(self, repository: str) -> list[str]:
        """Compare a model with the checksums of the hub; returns the names of files that are missing or differ."""
        directory = self._models / repository
        if not directory.is_dir():
            raise PullFailed(f"{repository} is not on this host: there is no {directory}; run pull without --verify")
        with self._in_words(repository):
            revision, files = self._look(repository)
            return self._wrong(repository, revision, directory, files)

    def _look(self, repository: str) -> tuple[str, list[RepoFile]]:
        revision = str(self._api.repo_info(repository).sha)
        tree = self._api.list_repo_tree(repository, recursive=True, revision=revision)
        files = chosen(entry for entry in tree if isinstance(entry, RepoFile))
        if not any(file.path == "config.json" for file in files):
            raise PullFailed(f"{repository} has no config.json on the hub, so vLLM cannot load it")
        return revision, files

    def _fetch(self, repository: str, revision: str, file: RepoFile, partial: Path, title: str) -> None:
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
        if not sys.stderr.isatty():  # the library shows a progress bar on terminals only
            output.note(f"{title} ({file.size / 1e9:.2g} GB)")
        # Not compressed: a range counts the bytes of the file.
        headers = build_hf_headers(token=self._token or False) | {"Accept-Encoding": "identity"}
        url = hf_hub_url(repository, file.path, revision=revision, endpoint=self._api.endpoint)
        with part.open("ab") as content:
            http_get(
                url,
                content,
                resume_size=content.tell(),
                headers=headers,
                expected_size=file.size,
                displayed_filename=title,
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        part.replace(place)

    def _complete(self, repository: str, revision: str, files: Sequence[RepoFile], partial: Path) -> None:
        """Verify the download and make it readable. Deletes damaged files, and raises PullFailed if there are any."""
        wrong = self._wrong(repository, revision, partial, files)
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

    def _wrong(self, repository: str, revision: str, directory: Path, files: Sequence[RepoFile]) -> list[str]:
        found = self._api.verify_repo_checksums(repository, revision=revision, local_dir=directory)
        bad = {mismatch["path"] for mismatch in found.mismatches} | set(found.missing_paths)
        return sorted(bad & {file.path for file in files})

    @contextmanager
    def _in_words(self, repository: str) -> Iterator[None]:
        """Turn an error of the hub, the network or the disk into a CitadelError."""
        try:
            yield
        except (HfHubHTTPError, HTTPError, OSError, RuntimeError, ValueError) as error:
            raise self._as_failure(error, repository) from None

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
        return PullFailed(f"{repository}: {lines[0] if lines else type(error).__name__}; {kept}")


def partial_of(target: Path) -> Path:
    """The directory of an incomplete model, beside its final place. No setting can have this name."""
    return target.with_name(f".{target.name}.partial")


def chosen(files: Iterable[RepoFile]) -> list[RepoFile]:
    """The files that vLLM needs: all except weights in a second format.

    Raises PullFailed for a name outside the model's directory.
    """
    files = [file for file in files if not file.path.startswith((".", "original/"))]
    for file in files:
        place = PurePosixPath(file.path)
        if place.is_absolute() or ".." in place.parts or "\0" in file.path:
            raise PullFailed(f"the hub lists a file outside the model: {file.path!r}; do not trust this hub")
    for kind in WEIGHTS:
        of_kind = [file for file in files if fnmatch(file.path, kind)]
        if of_kind:
            shards = [file for file in of_kind if not Path(file.path).name.startswith("consolidated")]
            others = [file for file in files if not any(fnmatch(file.path, pattern) for pattern in WEIGHTS)]
            return [*others, *(shards or of_kind)]
    return files


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


def drop_privileges(user: str) -> None:
    """Become `user`: root must not process, or own, data from the network."""
    import pwd

    if os.geteuid() == 0:
        account = pwd.getpwnam(user)
        os.initgroups(user, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
