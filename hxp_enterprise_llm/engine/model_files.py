"""Which files of a model's directory vLLM loads, and how a check reads them.

A check also runs as root, and the author of a model may want to harm the host. So the size and the number of the files
that a check reads are bounded, and so are the depth of their JSON and the memory that it takes.
"""

import errno
import json
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from hxp_enterprise_llm.settings import regular_files

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
"""Formats of weights, in the order in which vLLM looks for them (model_executor/model_loader/default_loader.py of
0.32), then gguf. A repository may hold the same weights in several formats; vLLM loads the first. """
NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
"""Files that training leaves behind (weight_utils.py of vLLM 0.32, filter_files_not_needed_for_inference)."""
OTHERS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
"""Configuration, tokenizer and chat template."""
CODE = "*.py"
INDEX = "model.safetensors.index.json"
LARGEST_INDEX_BYTES = 32 << 20
"""The largest models have an index of 14 MB."""
MOST_FILES = 10_000
"""Number of files in a directory, or in an index, above which it is no model's."""
MOST_PARTS = 2_000_000
"""Number of objects, lists and commas above which JSON is not parsed: a short key has 4 bytes in a file and 170 in
memory. The header of a safetensors file has eight for each tensor."""


def weights(directory: Path) -> list[Path]:
    """The weight files that vLLM loads from a directory.

    These are the shards in the index, present or not; without an index, all files of the first format. A consolidated
    file repeats the shards beside it. Raises OSError if the directory cannot be listed.
    """
    files = listed(directory)
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
        names = set(parsed(regular_files.read(directory / INDEX, LARGEST_INDEX_BYTES))["weight_map"].values())
        files = [directory / name for name in sorted(names) if "/" not in name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return files if len(files) <= MOST_FILES else []


def loaded(directory: Path, with_code: bool) -> list[Path]:
    """Every file of a directory that vLLM reads; Python files only with `--trust-remote-code`. Raises OSError."""
    patterns = (*OTHERS, CODE) if with_code else OTHERS
    others = [file for file in listed(directory) if _matches(file, patterns)]
    return [*others, *(file for file in weights(directory) if os.path.lexists(file))]


def listed(directory: Path) -> list[Path]:
    """The files of a directory, sorted. Raises OSError, also if there are more than MOST_FILES."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in islice(entries, MOST_FILES + 1)]
    if len(names) > MOST_FILES:
        raise OSError(errno.E2BIG, f"has more than {MOST_FILES} files; is it the directory of a model?", str(directory))
    return [directory / name for name in sorted(names)]


def parsed(content: bytes) -> Any:
    """The value of a JSON text. Raises ValueError, also if it is nested too deeply or has too many parts."""
    if sum(map(content.count, (b"{", b"[", b","))) > MOST_PARTS:
        raise ValueError(f"it has more than {MOST_PARTS} objects, lists and commas")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _matches(file: Path, patterns: Sequence[str]) -> bool:
    return any(file.match(pattern) for pattern in patterns)


def weights_bytes(model: str) -> int:
    """Size of the weight files that vLLM would load (bytes), 0 for a model that is not on this host."""
    try:
        # A link may be dangling; vLLM reports that when it loads the file.
        return sum(file.stat().st_size for file in weights(Path(model)) if file.is_file())
    except OSError:
        return 0
