"""Whether a model's weight files are whole, by what they say of themselves: a start would find out after its import.

A safetensors file begins with the length of its header (8 bytes, little-endian) and the header, a JSON object with the
place of each tensor in what follows; the last one ends where the file ends (the format's README, "Format").
"""

import json
from pathlib import Path
from typing import Any

from hxp_enterprise_llm.settings.errors import ModelMissing
from hxp_enterprise_llm.settings.schema import ServiceConfigSchema

LENGTH_BYTES = 8
LARGEST_HEADER = 100_000_000
"""What the safetensors library itself reads at most (bytes)."""
PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
"""What vLLM looks for weights in (model_executor/model_loader/default_loader.py of 0.32), and gguf."""
METADATA = "__metadata__"
INDEX = "model.safetensors.index.json"


def check(config: ServiceConfigSchema, model: str) -> None:
    """Look at the safetensors files that vLLM would load from a model's directory. Raises ModelMissing.

    With --load-format in VLLM_ARGS they may not be what is loaded.
    """
    if any(word.replace("_", "-").startswith("--load-format") for word in config.vllm_args):
        return
    directory = Path(model)
    if not any(next(directory.glob(pattern), None) for pattern in PATTERNS):
        raise ModelMissing(
            f"MODEL={config.model}: no weights are there ({', '.join(PATTERNS)}); {_remedy(config, directory)}"
        )
    damaged = []
    for file in _files(directory):
        fault = _fault(file)
        if fault:
            damaged.append(f"{file.name} {fault}")
    if damaged:
        raise ModelMissing(f"MODEL={config.model}: {'; '.join(damaged)}; {_remedy(config, directory)}")


def _remedy(config: ServiceConfigSchema, directory: Path) -> str:
    if config.model.startswith("/"):
        return "copy the model there again"
    return f"delete {directory} and fetch it again with `citadel-llm pull {config.name}`"


def _files(directory: Path) -> list[Path]:
    """As vLLM chooses: those that the index names, if there is one, else all; a consolidated one repeats the shards."""
    found = sorted(directory.glob("*.safetensors"))
    if found and (directory / INDEX).is_file():
        try:
            names = json.loads((directory / INDEX).read_bytes())["weight_map"].values()
            return [directory / name for name in sorted(set(names)) if "/" not in name]
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
            # vLLM has words for that.
            return found
    return [file for file in found if not file.name.startswith("consolidated")] or found


def _fault(file: Path) -> str:
    """What is wrong with a file, empty if nothing."""
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
    """What a file must have by its header (bytes). Raises OSError, and what reading a damaged one comes to."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        if length > LARGEST_HEADER:
            raise ValueError("no header")
        tensors = json.loads(stream.read(length))
    return LENGTH_BYTES + length + max((_end(place) for name, place in tensors.items() if name != METADATA), default=0)


def _end(place: dict[str, Any]) -> int:
    end = place["data_offsets"][1]
    if type(end) is not int or end < 0:
        raise ValueError("no place in a file")
    return end
