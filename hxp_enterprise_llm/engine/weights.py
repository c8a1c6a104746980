"""Whether a model's weight files are complete, by their headers: vLLM would find out only after its import.

A safetensors file begins with the length of its header (8 bytes, little-endian) and the header, a JSON object with the
position of each tensor in the data that follows. The last tensor ends at the end of the file (the format's README,
"Format").
"""

import json
from pathlib import Path
from typing import Any

from hxp_enterprise_llm.engine import flags, model_files
from hxp_enterprise_llm.settings.errors import ModelMissing
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

LENGTH_BYTES = 8
LARGEST_HEADER = 100_000_000
"""The longest header that the safetensors library accepts (bytes)."""
METADATA = "__metadata__"


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
    checked = [file for file in files if file.match(model_files.WEIGHTS[0])]
    damaged = [f"{file.name} {error}" for file in checked if (error := _error(file))]
    if damaged:
        raise ModelMissing(f"MODEL={config.model}: {'; '.join(damaged)}; {_remedy(config, directory)}")


def _remedy(config: ServiceConfigSchema, directory: Path) -> str:
    if config.model.startswith("/"):
        return "copy the model there again"
    return f"delete {directory} and fetch it again with `citadel-llm pull {config.name}`"


def _error(file: Path) -> str:
    """The error in a file; empty if there is none."""
    try:
        size, expected = file.stat().st_size, _expected_size(file)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
        return "is damaged, its header cannot be read"
    return "" if size == expected else f"has {size} bytes instead of {expected}"


def _expected_size(file: Path) -> int:
    """The size of the file according to its header (bytes). Raises OSError, or any error of parsing the header."""
    with model_files.opened(file) as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        if length > LARGEST_HEADER:
            raise ValueError("no header")
        tensors = json.loads(stream.read(length))
    return LENGTH_BYTES + length + max((_end(place) for name, place in tensors.items() if name != METADATA), default=0)


def _end(place: dict[str, Any]) -> int:
    end = place["data_offsets"][1]
    if type(end) is not int or end < 0:
        raise ValueError("no position in a file")
    return end
