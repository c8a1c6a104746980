"""Models from a hub: fetched whole or not at all, through huggingface_hub.

Imported late: huggingface_hub reads its settings (HF_HUB_DOWNLOAD_TIMEOUT …) when it is imported.
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

from hxp_enterprise_llm.settings.errors import CitadelError, NotPermitted

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pth", "*.pt", "*.msgpack", "*.h5", "*.onnx", "*.ot")
"""Formats of weights; of a repository with several we take the first, as vLLM does."""
SPARE_BYTES = 1 << 30
"""What stays free on the disk beside the model."""
PARTS = ".parts"
"""Folder of the files that have not arrived in full; `chosen` admits no file of the hub of that name."""
REFUSED_STATUSES = (401, 403)


class PullFailed(CitadelError):
    """A model could not be fetched; what has arrived is kept for the next try."""

    code = "pull-failed"


class Hub:
    """A hub, or the mirror at `endpoint`, as the holder of `token` sees it. Methods raise PullFailed with what to do.

    Models are kept below the directory `models`, each under its name on the hub.
    """

    def __init__(self, models: Path, endpoint: str | None = None, token: str | None = None) -> None:
        # False: never a token that lies about on this host and was not asked for.
        self._api = HfApi(endpoint=endpoint, token=token or False)
        self._token = token
        self._models = models

    def pull(self, repository: str) -> Path:
        """Fetch a repository into its directory, and return that.

        It shows progress on standard error, goes on where an earlier try stopped, and compares every file with the
        hub's checksum before the directory appears.
        """
        target = self._models / repository
        if (target / "config.json").exists():
            return target
        with self._in_words(repository):
            if target.is_dir() and any(target.iterdir()):
                raise PullFailed(f"{target} is there already, without a config.json; move it away, then pull again")
            revision, files = self._look(repository)
            partial = partial_of(target)
            partial.mkdir(parents=True, exist_ok=True)
            with _alone(partial, repository):
                if target.exists():  # another pull has just brought it
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
        """Compare a fetched model with the hub's checksums; the names of files that are missing or differ."""
        directory = self._models / repository
        if not directory.is_dir():
            raise PullFailed(f"{repository} is not on this host ({directory}); there is nothing to verify, pull it")
        with self._in_words(repository):
            revision, files = self._look(repository)
            return self._wrong(repository, revision, directory, files)

    def _look(self, repository: str) -> tuple[str, list[RepoFile]]:
        revision = str(self._api.repo_info(repository).sha)
        tree = self._api.list_repo_tree(repository, recursive=True, revision=revision)
        files = chosen(entry for entry in tree if isinstance(entry, RepoFile))
        if not any(file.path == "config.json" for file in files):
            raise PullFailed(f"{repository} has no config.json on the hub, so it is no model that vLLM can load")
        return revision, files

    def _fetch(self, repository: str, revision: str, file: RepoFile, partial: Path, title: str) -> None:
        """Bring one file, from where an earlier try stopped.

        Not by snapshot_download: since 2.0 it deletes what has arrived when it is interrupted, and begins again.
        """
        place, part = partial / file.path, _part(partial, file)
        if place.is_file() and place.stat().st_size == file.size:
            return
        if part.exists() and part.stat().st_size > file.size:
            part.unlink()
        if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
            limit = constants.MAX_HTTP_DOWNLOAD_SIZE / 1e9
            raise PullFailed(
                f"{repository}: {file.path} has {file.size / 1e9:.0f} GB, and the hub gives no file beyond {limit:.0f} "
                f"over HTTP; fetch the model by other means and copy it to {self._models / repository}"
            )
        part.parent.mkdir(exist_ok=True)
        if not sys.stderr.isatty():  # where the library shows no bar
            print(f"{title} ({file.size / 1e9:.2g} GB)", file=sys.stderr, flush=True)
        # As it is, not compressed: a range counts the bytes of the file.
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
        """Check what has arrived and make it fit to be seen. Raises PullFailed for files that arrived damaged."""
        wrong = self._wrong(repository, revision, partial, files)
        for name in wrong:
            (partial / name).unlink(missing_ok=True)
        if wrong:
            raise PullFailed(
                f"{repository}: these files arrived damaged and are deleted: {', '.join(wrong)}; pull again"
            )
        shutil.rmtree(partial / PARTS, ignore_errors=True)
        for path in [partial, *partial.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        # The name must not reach the disk before the content does.
        os.sync()

    def _wrong(self, repository: str, revision: str, directory: Path, files: Sequence[RepoFile]) -> list[str]:
        found = self._api.verify_repo_checksums(repository, revision=revision, local_dir=directory)
        bad = {mismatch["path"] for mismatch in found.mismatches} | set(found.missing_paths)
        return sorted(bad & {file.path for file in files})

    @contextmanager
    def _in_words(self, repository: str) -> Iterator[None]:
        """Raises PullFailed for what the hub, the network or the disk says."""
        try:
            yield
        except (HfHubHTTPError, HTTPError, OSError, RuntimeError, ValueError) as error:
            raise self._as_failure(error, repository) from None

    def _as_failure(self, error: Exception, repository: str) -> CitadelError:
        kept = "what has arrived is kept, the same command goes on from there"
        if isinstance(error, GatedRepoError):
            advice = (
                "that account"
                if self._token
                else "your account there, and give a token of it with --token-file or HUB_TOKEN_FILE"
            )
            return PullFailed(f"{repository} wants its conditions accepted on the hub; do that with {advice}")
        if isinstance(error, HfHubHTTPError) and error.response.status_code in REFUSED_STATUSES and self._token:
            return PullFailed(f"{repository}: the hub refuses the token; make one that may read this model")
        if isinstance(error, RepositoryNotFoundError):
            return PullFailed(
                f"{repository}: the hub has no such model, or shows it to those with a token only (--token-file)"
            )
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT):
            return PullFailed(
                f"{repository}: the disk of {self._models} is full ({_free(self._models)}); make room; {kept}"
            )
        if number in (errno.EACCES, errno.EPERM):
            return NotPermitted(f"{self._models} can be written by root and the services' user only; run it with sudo")
        lines = [line for line in str(error).splitlines() if line.strip()]
        return PullFailed(f"{repository}: {lines[0] if lines else type(error).__name__}; {kept}")


def partial_of(target: Path) -> Path:
    """Where a model lies until it is complete: beside its place, under a name that no setting can have."""
    return target.with_name(f".{target.name}.partial")


def chosen(files: Iterable[RepoFile]) -> list[RepoFile]:
    """The files that serving needs: everything but weights in a second format.

    Raises PullFailed if a name leads out of the model's directory.
    """
    files = [file for file in files if not file.path.startswith((".", "original/"))]
    for file in files:
        place = PurePosixPath(file.path)
        if place.is_absolute() or ".." in place.parts or "\0" in file.path:
            raise PullFailed(f"the hub names a file outside of the model: {file.path!r}; do not trust this hub")
    for kind in WEIGHTS:
        of_kind = [file for file in files if fnmatch(file.path, kind)]
        if of_kind:
            shards = [file for file in of_kind if not Path(file.path).name.startswith("consolidated")]
            others = [file for file in files if not any(fnmatch(file.path, pattern) for pattern in WEIGHTS)]
            return [*others, *(shards or of_kind)]
    return files


def _part(partial: Path, file: RepoFile) -> Path:
    """Where a file lies until it has arrived; a new version on the hub has a new place."""
    return partial / PARTS / hashlib.sha256(f"{file.blob_id} {file.path}".encode()).hexdigest()


@contextmanager
def _alone(partial: Path, repository: str) -> Iterator[None]:
    """Hold a model's directory, so that a second pull does not write the same files. Raises PullFailed if one does."""
    folder = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise PullFailed(f"{repository} is being fetched by another citadel-llm pull; wait for that") from None
    finally:
        os.close(folder)


def _forget_others(partial: Path, files: Sequence[RepoFile]) -> None:
    """Delete what an earlier try brought that the hub has no longer."""
    wanted = {partial / file.path for file in files} | {_part(partial, file) for file in files}
    for path in list(partial.rglob("*")):
        if path not in wanted and not path.is_dir():
            path.unlink()


def _require_space(files: Sequence[RepoFile], partial: Path, models: Path) -> None:
    there = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    needed = sum(file.size for file in files) - there + SPARE_BYTES
    if needed > shutil.disk_usage(models).free:
        raise PullFailed(
            f"{models} has {_free(models)}, and {needed / 1e9:.1f} GB are needed (what is missing of the model, and "
            f"{SPARE_BYTES / 1e9:.1f} GB to spare); make room"
        )


def _free(directory: Path) -> str:
    return f"{shutil.disk_usage(directory).free / 1e9:.1f} GB free"


def drop_privileges(user: str) -> None:
    """Go on as `user`: what comes from the network is not handled, nor owned, by root."""
    import pwd

    if os.geteuid() == 0:
        account = pwd.getpwnam(user)
        os.initgroups(user, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
