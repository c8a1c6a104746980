"""Whether a model's weight files are complete, by their headers: vLLM would find out only after its import.

A safetensors file begins with the length of its header (8 bytes, little-endian) and the header, a JSON object with the
position of each tensor in the data that follows. The last tensor ends at the end of the file (the format's README,
"Format"). Headers that are unusually large are left to vLLM, which reads them within the limits of its unit.
"""

import os
from pathlib import Path
from typing import Any

from hxp_enterprise_llm.engine import flags, model_files
from hxp_enterprise_llm.settings import regular_files
from hxp_enterprise_llm.settings.errors import ModelMissing
from hxp_enterprise_llm.settings.grammar import shown
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

LENGTH_BYTES = 8
LARGEST_HEADER = 100_000_000
"""The longest header that the safetensors library accepts (bytes)."""
CHECKED_BYTES = 64 << 20
"""How much of the headers of one model is read; the largest models have 15 MB in all."""
LARGEST_FILE = 1 << 63
DAMAGED = "is damaged, its header cannot be read"
METADATA = "__metadata__"
SHOWN_FILES = 5
"""Number of files that a message names."""


def check(config: ServiceConfigSchema, model: str) -> None:
    """Check the safetensors files that vLLM would load from a model's directory. Raises ModelMissing.

    If VLLM_ARGS has a --load-format other than auto, vLLM may load other files.
    """
    if flags.parse(config.vllm_args).get("load_format", "auto") != "auto":
        return
    directory = Path(model)
    files = model_files.weights(directory)
    if not files:
        formats = ", ".join(model_files.WEIGHTS)
        raise ModelMissing(f"MODEL={config.model}: there are no weights ({formats}); {_remedy(config, directory)}")
    left = CHECKED_BYTES
    damaged = []
    for file in files:
        if file.match(model_files.WEIGHTS[0]):
            error, used = _error(file, left)
            left -= used
            damaged += [f"{shown(file.name)} {error}"] if error else []
    if damaged:
        more = f"; {len(damaged) - SHOWN_FILES} more" if len(damaged) > SHOWN_FILES else ""
        remedy = _remedy(config, directory)
        raise ModelMissing(f"MODEL={config.model}: {'; '.join(damaged[:SHOWN_FILES])}{more}; {remedy}")


def _remedy(config: ServiceConfigSchema, directory: Path) -> str:
    if config.model.startswith("/"):
        return "copy the model there again"
    return f"delete {directory} and fetch it again with `citadel-llm pull {config.name}`"


def _error(file: Path, most: int) -> tuple[str, int]:
    """The error in a file, empty if there is none, and the size of the header that was read, at most `most` (bytes)."""
    try:
        descriptor = regular_files.opened(file)
        with os.fdopen(descriptor, "rb") as stream:
            size = os.fstat(descriptor).st_size
            length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
            if length > min(size, LARGEST_HEADER):
                return DAMAGED, 0
            if length > most:
                return "", 0
            header = stream.read(length)
        expected = LENGTH_BYTES + length + _data_bytes(model_files.parsed(header))
    except FileNotFoundError:
        return "is missing", 0
    except OSError as error:
        return f"cannot be read ({error.strerror})", 0
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return DAMAGED, length
    return "" if size == expected else f"has {size} bytes instead of {expected}", length


def _data_bytes(header: dict[str, dict[str, Any]]) -> int:
    """The size of the data after a header. Raises an error of Python's own if the header is not of that form."""
    ends = [place["data_offsets"][1] for name, place in header.items() if name != METADATA]
    if not all(type(end) is int and 0 <= end < LARGEST_FILE for end in ends):
        raise ValueError("no position in a file")
    return max(ends, default=0)
