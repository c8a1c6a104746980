"""VLLM_ARGS, parsed as vLLM's own parser does, without importing vLLM.

That import takes seconds. So the build extracts the flags of vLLM's parser into a table beside this module
(packaging/vllm_tables.py), with which argparse, the library under vLLM's parser, parses the words in milliseconds.
`parse` is the only parser of the words: every other module uses its result. See docs/decisions/0022.
"""

import argparse
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

TABLE = Path(__file__).with_name("vllm_flags.json")
OURS = {
    "model": "MODEL",
    "host": "HOST",
    "port": "PORT",
    "served_model_name": "SERVED_MODEL_NAME",
    "api_key": "API_KEY_FILE",
    "ssl_keyfile": "TLS_KEY_FILE",
    "ssl_certfile": "TLS_CERT_FILE",
    "hf_token": "HUB_TOKEN_FILE",
}
"""Flags whose value the main process determines, and the key that sets each."""
IMPOSSIBLE = {
    "uds": "the main process listens on PORT",
    "headless": "an instance has an API",
    "grpc": "an instance has an HTTP API",
    "grpc_port": "an instance has an HTTP API",
    "data_parallel_multi_port_external_lb": "an instance has one port",
    "config": "its file could set any other flag; write the flags into VLLM_ARGS",
    "enable_ssl_refresh": "a reload reads TLS_CERT_FILE and TLS_KEY_FILE again",
    "ssl_ca_certs": "clients authenticate with a key of API_KEY_FILE",
    "ssl_cert_reqs": "clients authenticate with a key of API_KEY_FILE",
    "ssl_ciphers": "the server speaks TLS 1.2 and 1.3 with Python's default ciphers",
}
REFUSED = {name: f"set {key}= instead" for name, key in OURS.items()} | IMPOSSIBLE
PLUGINS = {"tool_call_parser": "tool_parser_plugin", "reasoning_parser": "reasoning_parser_plugin"}
"""Flags whose value may also be a name that a plugin registers, and the flag that names the plugin's file."""
REQUIRED = {
    "enable_auto_tool_choice": "tool_call_parser",
    "enable_log_outputs": "enable_log_requests",
}
"""Flags that vLLM accepts only with another flag (entrypoints/launchers/cli_args.py, validate_parsed_serve_args)."""
BOUNDS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "more than"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "less than"),
}
"""Limits of numbers, by their names in pydantic and in the table."""
NUMBER = re.compile(r"-\d+|-\d*\.\d+")
"""Words that argparse takes for negative numbers instead of flags."""
NUMBER_WITH_SUFFIX = re.compile(r"[0-9][kKmMgGtT]\b")
SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
"""Suffixes of vLLM's human-readable numbers (vllm/utils/argparse_utils.py, human_readable_int)."""


@dataclass(frozen=True)
class Flags:
    """The flags of one instance.

    `values` has the value of each given flag by the flag's name in vLLM's code (`max_model_len`): a bool if the flag
    takes no value, a list if it takes several. `findings` are reasons to refuse the words, one sentence each; if there
    are any, `values` may be incomplete.
    """

    values: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    findings: tuple[str, ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a flag, or `default` if the flag is not given."""
        return self.values.get(name, default)


@lru_cache(maxsize=64)
def parse(words: tuple[str, ...], table: Path = TABLE) -> Flags:
    """Parse the words of VLLM_ARGS.

    Finds only errors in the words themselves: vLLM decides whether they suit the model.
    """
    if not words:
        return Flags()
    known: list[dict[str, Any]] = json.loads(table.read_text(encoding="utf-8"))
    parser = _parser(known)
    given = argparse.Namespace()
    unknown: list[str] = []
    findings: list[str] = []
    try:
        simple = _as_argparse(words)
        try:
            _, unknown = parser.parse_known_args(simple, given)
        except ValueError as error:
            # argparse stops at the first error, but there may be more.
            given = argparse.Namespace()
            findings, unknown = _one_by_one(parser, simple, given)
            findings = findings or [str(error)]
    except RecursionError:
        findings = ["a flag such as --flag.key has too many keys"]
    except ValueError as error:
        findings = [str(error)]
    values = vars(given)
    refused = [flag for flag in known if values.get(flag["dest"], False) is not False and flag["dest"] in REFUSED]
    findings = [f"{flag['names'][0]} cannot be used: {REFUSED[flag['dest']]}" for flag in refused] + findings
    findings += _unregistered(known, values) + _incomplete(known, values)
    for before, word in zip(["", *unknown], unknown, strict=False):
        # The words after an unknown flag may be its values.
        if word.startswith("-") or not before.startswith("-"):
            findings.append(_unknown(word, known))
    return Flags(MappingProxyType(values), tuple(f"VLLM_ARGS: {finding}" for finding in findings))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _size(text: str) -> int:
    sized = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT])", text.strip())
    try:
        if not sized:
            return int(text)
        number, unit = sized.groups()
        return int(float(number) * SUFFIXES[unit]) if unit.islower() else int(number) * SUFFIXES[unit]
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 4096, 4k or 4K") from None


def _size_or_auto(text: str) -> int:
    size = -1 if text.strip().lower() in ("-1", "auto") else _size(text)
    if not size:
        # The field's bound is -1, for "auto" (vllm/config/model.py, validate_model_config_after).
        raise argparse.ArgumentTypeError(f"must be at least 1, or auto, not {text}")
    return size


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from None


def _object(text: str) -> Any:
    content = _json(text)
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return content


def _json_object_or_text(text: str) -> Any:
    """vllm/engine/arg_utils.py, union_dict_and_str"""
    return _json(text) if re.fullmatch(r"\s*{.*}\s*", text, re.DOTALL) else text


def _object_of(fields: Sequence[str]) -> Any:
    """The type of a flag that takes a JSON object, given the fields that vLLM knows."""

    def read(text: str) -> Any:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            if text.lstrip().startswith("{") and NUMBER_WITH_SUFFIX.search(text):
                # vLLM accepts numbers such as 4k within JSON too.
                return {}
            raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from None
        if not isinstance(content, dict):
            raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
        for key in content:
            if key not in fields:
                raise argparse.ArgumentTypeError(f"there is no {key!r}; there are {', '.join(fields)}")
        return content

    return read


def _lora(text: str) -> Any:
    if not text or ("=" in text and "," not in text):
        return text
    content = _object_of(("base_model_name", "is_3d_lora_weight", "name", "path"))(text)
    if not {"name", "path"} <= content.keys():
        raise argparse.ArgumentTypeError(f"{text!r} is neither NAME=PATH nor a JSON object with name and path")
    return content


KINDS: dict[str, Any] = {
    "int": int,
    "float": float,
    "size": _size,
    "size-or-auto": _size_or_auto,
    "json": _json,
    "json-or-text": _json_object_or_text,
    "object": _object,
    "lora": _lora,
    "text": str,
}


def _optional(kind: Any) -> Any:
    def read(text: str) -> Any:
        return None if text in ("", "None") else kind(text)

    # argparse shows the name of the type in its message.
    read.__name__ = kind.__name__
    return read


def _bounded(kind: Any, bounds: Mapping[str, float]) -> Any:
    def read(text: str) -> Any:
        value = kind(text)
        for name, limit in bounds.items():
            holds, words = BOUNDS[name]
            if not holds(value, limit):
                raise argparse.ArgumentTypeError(f"must be {words} {limit:g}, not {text}")
        return value

    read.__name__ = kind.__name__
    return read


def _type(flag: Mapping[str, Any]) -> Any:
    """The function that reads a flag's value."""
    read = _object_of(flag["fields"]) if flag["fields"] else KINDS[flag["kind"]]
    if flag["bounds"]:
        read = _bounded(read, flag["bounds"])
    return _optional(read) if flag["optional"] else read


def _unregistered(known: Sequence[dict[str, Any]], values: Mapping[str, Any]) -> list[str]:
    """Errors about names of parsers and quantization methods that vLLM does not have."""
    errors = []
    for flag in known:
        dest, names = flag["dest"], flag["registered"]
        value = values.get(dest)
        if not names or not value or values.get(PLUGINS.get(dest, "")):
            continue
        if dest == "tool_call_parser" and not values.get("enable_auto_tool_choice"):
            # vLLM does not use the parser then, and does not look it up.
            continue
        # vLLM ignores the case of quantization methods (vllm/config/model.py, validate_quantization_before).
        if (value.lower() if dest == "quantization" else value) not in names:
            errors.append(f"argument {'/'.join(flag['names'])}: there is no {value!r}; there are {', '.join(names)}")
    return errors


def _incomplete(known: Sequence[dict[str, Any]], values: Mapping[str, Any]) -> list[str]:
    """Errors about flags that need another flag, or exclude one (validate_parsed_serve_args of vLLM 0.32)."""
    names = {flag["dest"]: flag["names"][0] for flag in known}
    errors = [
        f"{names[flag]} requires {names[needed]}"
        for flag, needed in REQUIRED.items()
        if values.get(flag) and not values.get(needed)
    ]
    if values.get("enable_per_request_metrics") and values.get("disable_log_stats"):
        errors.append("--enable-per-request-metrics and --disable-log-stats exclude each other")
    return errors


def _parser(known: Sequence[dict[str, Any]]) -> _Parser:
    # With argparse.SUPPRESS a flag that is not given leaves no value.
    parser = _Parser(add_help=False, usage="", prog="vllm serve", argument_default=argparse.SUPPRESS)
    for flag in known:
        names, dest = flag["names"], flag["dest"]
        if flag["action"] == "store_true":
            parser.add_argument(*names, dest=dest, action="store_true", default=argparse.SUPPRESS)
        elif flag["action"] == "boolean":
            parser.add_argument(*names, dest=dest, action=argparse.BooleanOptionalAction)
        else:
            read = _type(flag)
            options: dict[str, Any] = {"type": read}
            if flag["choices"]:
                options["choices"] = [read(choice) for choice in flag["choices"]]
            if flag["action"] == "store":
                options["nargs"] = flag["nargs"]
            if flag["nargs"] == "?":
                options["const"] = True
            parser.add_argument(*names, dest=dest, action=flag["action"], **options)
    return parser


def _one_by_one(
    parser: argparse.ArgumentParser, words: Sequence[str], given: argparse.Namespace
) -> tuple[list[str], list[str]]:
    """Parse each flag by itself into `given`; returns all errors, and the words that belong to no flag."""
    groups: list[list[str]] = [[]]
    for word in words:
        if word.startswith("-") and not NUMBER.fullmatch(word):
            groups.append([])
        groups[-1].append(word)
    errors, unknown = [], []
    for group in groups:
        try:
            unknown += parser.parse_known_args(group, given)[1]
        except ValueError as error:
            errors.append(str(error))
    return errors, unknown


def _as_argparse(words: Sequence[str]) -> list[str]:
    """The words with vLLM's own forms replaced by argparse's, as FlexibleArgumentParser.parse_args of vLLM 0.32 does.

    These forms are underscores in flags, -O3, and --flag.key value for JSON. Raises ValueError.
    """
    simple: list[str] = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            simple.append(_dashes(word))
        elif word.startswith("-O") and word != "-O":
            simple += ["--optimization-level", word[2:].removeprefix("=")]
        elif word == "-O" and following in ("0", "1", "2", "3"):
            simple.append("--optimization-level")
        else:
            simple.append(word)
    return _undotted(simple)


def _dashes(word: str) -> str:
    """A flag with dashes instead of the underscores in its name; keys after a dot and the value stay as they are."""
    flag, equals, value = word.partition("=")
    name, dot, keys = flag.partition(".")
    return name.replace("_", "-") + dot + keys + equals + value


def _undotted(words: Sequence[str]) -> list[str]:
    """The words with all --flag.key values combined at the end, as one --flag with JSON for each flag."""
    plain: list[str] = []
    objects: dict[str, dict[str, Any]] = {}
    rest = iter(words)
    for word in rest:
        flag, equals, given = word.partition("=")
        if not word.startswith("-") or "." not in flag:
            plain.append(word)
            continue
        value = given if equals else next(rest, None)
        if value is None:
            raise ValueError(f"argument {flag}: expected one argument")
        name, *keys = flag.removesuffix("+").split(".")
        content: Any = value.split(",") if flag.endswith("+") else _json_or_text(value)
        for key in reversed(keys):
            content = {key: content}
        _merge(objects.setdefault(name, {}), content)
    return [*plain, *(word for name, content in objects.items() for word in (name, json.dumps(content)))]


def _json_or_text(value: str) -> Any:
    for read in (json.loads, _size):
        try:
            return read(value)
        except (ValueError, RecursionError, argparse.ArgumentTypeError):
            continue
    return value


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        earlier = into.get(key)
        if isinstance(value, dict) and isinstance(earlier, dict):
            _merge(earlier, value)
        elif isinstance(value, list) and isinstance(earlier, list):
            earlier += value
        else:
            into[key] = value


def _unknown(word: str, known: Sequence[dict[str, Any]]) -> str:
    # Imported here, because only a refused start needs it.
    import difflib

    flag = word.partition("=")[0]
    if not flag.startswith("-"):
        return f"{word} belongs to no flag; put quotes around a value with spaces"
    usable = [entry for entry in known if entry["dest"] not in REFUSED]
    names = [name for entry in usable for name in entry["names"]]
    names += [f"--no-{entry['names'][0].removeprefix('--')}" for entry in usable if entry["action"] == "boolean"]
    # A short flag is never what a long flag was meant to be.
    names = [name for name in names if name.startswith("--") == flag.startswith("--")]
    near = difflib.get_close_matches(flag, names, n=1)
    return f"vLLM has no flag {flag}" + (f"; did you mean {near[0]}?" if near else "")
