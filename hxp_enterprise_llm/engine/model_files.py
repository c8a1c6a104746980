"""Which files of a model's directory vLLM loads, and how a check opens them."""

import errno
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from hxp_enterprise_llm.settings.grammar import READING

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
"""Formats of weights, in the order in which vLLM looks for them (model_executor/model_loader/default_loader.py of
0.32), then gguf. A repository may hold the same weights in several formats; vLLM loads the first. """
NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
"""Files that training leaves behind (weight_utils.py of vLLM 0.32, filter_files_not_needed_for_inference)."""
OTHERS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
"""Configuration, tokenizer and chat template."""
CODE = "*.py"
INDEX = "model.safetensors.index.json"
LARGEST_INDEX_BYTES = 64 << 20


def weights(directory: Path) -> list[Path]:
    """The weight files that vLLM loads from a directory.

    These are the shards in the index, present or not; without an index, all files of the first format. A consolidated
    file repeats the shards beside it. Raises OSError if the directory cannot be listed.
    """
    files = sorted(directory.iterdir())
    for pattern in WEIGHTS:
        found = [file for file in files if file.match(pattern) and file.name not in NOT_WEIGHTS]
        if not found:
            continue
        if pattern == WEIGHTS[0] and directory / INDEX in files:
            found = _of_index(directory) or found
        return [file for file in found if not file.name.startswith("consolidated")] or found
    return []


def _of_index(directory: Path) -> list[Path]:
    """The shards in the index; empty if it cannot be read, which vLLM then reports."""
    try:
        names = json.loads(read(directory / INDEX, LARGEST_INDEX_BYTES))["weight_map"].values()
        return [directory / name for name in sorted(set(names)) if "/" not in name]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return []


def loaded(directory: Path, with_code: bool) -> list[Path]:
    """Every file of a directory that vLLM reads; Python files only with `--trust-remote-code`. Raises OSError."""
    patterns = (*OTHERS, CODE) if with_code else OTHERS
    others = [file for file in sorted(directory.iterdir()) if _matches(file, patterns)]
    return [*others, *(file for file in weights(directory) if os.path.lexists(file))]


def _matches(file: Path, patterns: Sequence[str]) -> bool:
    return any(file.match(pattern) for pattern in patterns)


def weights_bytes(model: str) -> int:
    """Size of the weight files that vLLM would load (bytes), 0 for a model that is not on this host."""
    try:
        # A link may be dangling; vLLM reports that when it loads the file.
        return sum(file.stat().st_size for file in weights(Path(model)) if file.is_file())
    except OSError:
        return 0


def opened(file: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError, also for any other kind of file: a FIFO would block."""
    # Check before opening, because opening a device can have an effect, and after: the file may have been replaced.
    _check_kind(file.stat())
    stream = os.fdopen(os.open(file, READING), "rb")
    try:
        _check_kind(os.fstat(stream.fileno()))
    except OSError:
        stream.close()
        raise
    return stream


def read(file: Path, largest_bytes: int) -> bytes:
    """The content of a regular file. Raises OSError, also if the file is larger than `largest_bytes`."""
    with opened(file) as stream:
        content = stream.read(largest_bytes + 1)
    if len(content) > largest_bytes:
        raise OSError(errno.EFBIG, f"is larger than {largest_bytes >> 20} MB")
    return content


def _check_kind(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file")
