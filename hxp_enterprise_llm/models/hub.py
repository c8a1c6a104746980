"""Models from a hub: fetched whole or not at all, through huggingface_hub.

Imported late: huggingface_hub reads its settings (HF_ENDPOINT …) when it is imported.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from hxp_enterprise_llm.utils.errors import CitadelError

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pth", "*.pt", "*.msgpack", "*.h5", "*.onnx", "*.ot")
"""Formats of weights; of a repository with several we take the first, as vLLM does."""
SPARE_BYTES = 1 << 30
"""What stays free on the disk beside the model."""


class PullFailed(CitadelError):
    """A model could not be fetched; what has arrived is kept for the next try."""

    code = "pull-failed"


def partial_of(target: Path) -> Path:
    """Where a model lies until it is complete: beside its place, under a name that no setting can have."""
    return target.with_name(f".{target.name}.partial")


def chosen(files: Iterable[RepoFile]) -> list[RepoFile]:
    """The files that serving needs: everything but weights in a second format."""
    files = [file for file in files if not file.path.startswith((".", "original/"))]
    for kind in WEIGHTS:
        of_kind = [file for file in files if fnmatch(file.path, kind)]
        if of_kind:
            shards = [file for file in of_kind if not Path(file.path).name.startswith("consolidated")]
            others = [file for file in files if not any(fnmatch(file.path, pattern) for pattern in WEIGHTS)]
            return [*others, *(shards or of_kind)]
    return files


def pull(repository: str, models: Path, token: str | None = None) -> Path:
    """Fetch a repository into its directory below `models`, and return that.

    It shows progress on standard error, goes on where an earlier try stopped, and compares every file with the hub's
    checksum before the directory appears. Raises PullFailed with what to do.
    """
    target = models / repository
    if (target / "config.json").exists():
        return target
    api = HfApi(token=token or False)
    try:
        # Asked first: snapshot_download takes an unreachable hub for a reason to be content with what is there.
        revision, files = _look(api, repository)
        partial = partial_of(target)
        _require_space(files, partial, models)
        partial.mkdir(parents=True, exist_ok=True)
        names = [file.path for file in files]
        snapshot_download(repository, revision=revision, local_dir=partial, allow_patterns=names, token=token or False)
        wrong = _wrong(api, repository, revision, partial, names)
    except GatedRepoError:
        raise PullFailed(
            f"{repository} wants its conditions accepted on the hub; do that, and give a token with --token-file"
        ) from None
    except RepositoryNotFoundError:
        raise PullFailed(
            f"{repository}: the hub has no such model, or shows it only to those with a token (--token-file)"
        ) from None
    except (HfHubHTTPError, HTTPError, OSError, RuntimeError) as error:
        raise PullFailed(
            f"{repository}: {str(error).splitlines()[0]}; what has arrived is kept, the same command goes on from there"
        ) from None
    if wrong:
        for name in wrong:
            (partial / name).unlink(missing_ok=True)
        raise PullFailed(f"{repository}: these files arrived damaged and are deleted: {', '.join(wrong)}; pull again")
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    for path in [partial, *partial.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    partial.rename(target)
    return target


def verify(repository: str, models: Path, token: str | None = None) -> list[str]:
    """Compare a fetched model with the hub's checksums; the names of files that are missing or differ."""
    api = HfApi(token=token or False)
    try:
        revision, files = _look(api, repository)
        return _wrong(api, repository, revision, models / repository, [file.path for file in files])
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise PullFailed(f"{repository}: {str(error).splitlines()[0]}") from None


def _look(api: HfApi, repository: str) -> tuple[str, list[RepoFile]]:
    revision = api.repo_info(repository).sha
    tree = api.list_repo_tree(repository, recursive=True, revision=revision)
    return str(revision), chosen(entry for entry in tree if isinstance(entry, RepoFile))


def _require_space(files: Sequence[RepoFile], partial: Path, models: Path) -> None:
    size = sum(file.size for file in files)
    there = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()) if partial.is_dir() else 0
    free = shutil.disk_usage(models).free
    if size - there + SPARE_BYTES > free:
        raise PullFailed(
            f"{models} has {free / 1e9:.1f} GB free, and {(size - there + SPARE_BYTES) / 1e9:.1f} GB are needed "
            f"(the model, and {SPARE_BYTES / 1e9:.0f} GB to spare); make room"
        )


def _wrong(api: HfApi, repository: str, revision: str, directory: Path, names: Sequence[str]) -> list[str]:
    found = api.verify_repo_checksums(repository, revision=revision, local_dir=directory)
    bad = {mismatch["path"] for mismatch in found.mismatches} | set(found.missing_paths)
    return sorted(bad & set(names))


def drop_privileges(user: str) -> None:
    """Go on as `user`: what comes from the network is not handled, nor owned, by root."""
    import pwd

    if os.geteuid() == 0:
        account = pwd.getpwnam(user)
        os.initgroups(user, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
