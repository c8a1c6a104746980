"""Whether vLLM would accept VLLM_ARGS, without importing vLLM.

vLLM's own parser takes seconds to import, so the build writes what it accepts into a table beside this module
(packaging/vllm_tables.py), and argparse, which vLLM's parser is made of, reads the words by it in milliseconds.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

TABLE = Path(__file__).with_name("vllm_flags.json")
SHORTEST_ABBREVIATION = len("--x")
OURS = {
    "--model": "MODEL",
    "--host": "HOST",
    "--port": "PORT",
    "--served-model-name": "SERVED_MODEL_NAME",
    "--api-key": "API_KEY_FILE",
    "--ssl-keyfile": "TLS_KEY_FILE",
    "--ssl-certfile": "TLS_CERT_FILE",
    "--hf-token": "HUB_TOKEN_FILE",
}
"""Flags whose value the main process has to know, and the key that sets each."""
IMPOSSIBLE = {
    "--uds": "the main process listens, on PORT",
    "--headless": "an instance has an API",
    "--grpc": "an instance has an HTTP API",
    "--config": "its file could set any of the others; write the flags here",
    "--enable-ssl-refresh": "TLS_CERT_FILE and TLS_KEY_FILE are read again at every reload",
    "--ssl-ca-certs": "clients show a key of API_KEY_FILE, not a certificate",
    "--ssl-cert-reqs": "clients show a key of API_KEY_FILE, not a certificate",
    "--ssl-ciphers": "TLS 1.2 and 1.3 are spoken with the ciphers that Python holds to be safe",
}
REFUSED = {flag: f"set {key}= instead" for flag, key in OURS.items()} | IMPOSSIBLE
TYPES = {"int": int, "float": float, "text": str}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def faults(words: Sequence[str], table: Path = TABLE) -> list[str]:
    """What is wrong with the flags, one sentence each; nothing if all is well, or if there is no table (in a checkout).

    Only what the words themselves show: that a combination suits the model is for vLLM to say.
    """
    if not words:
        return []
    known: list[dict[str, Any]] = json.loads(table.read_text(encoding="utf-8")) if table.exists() else []
    names = [name for flag in known for name in flag["names"]]
    # argparse takes an abbreviation for the flag.
    plain = [word for word in map(_plain, words) if len(word) > SHORTEST_ABBREVIATION]
    given = {word for word in plain if word not in names} | {word for word in plain if word in {*OURS, *IMPOSSIBLE}}
    found = [
        f"VLLM_ARGS: {flag} cannot be used: {why}"
        for flag, why in REFUSED.items()
        if any(flag.startswith(word) for word in given)
    ]
    if found or not known:
        return found
    try:
        _, unknown = _parser(known).parse_known_args(_simple(words))
    except ValueError as error:
        return [f"VLLM_ARGS: {error}"]
    return [f"VLLM_ARGS: {_unknown(word, names)}" for word in unknown]


def _parser(known: Sequence[dict[str, Any]]) -> _Parser:
    parser = _Parser(add_help=False, usage="", prog="vllm serve")
    for flag in known:
        if flag["values"] == 0:
            parser.add_argument(*flag["names"], action="store_true")
        else:
            nargs = None if flag["values"] == 1 else flag["values"]
            kind = str if flag["choices"] else TYPES[flag["kind"]]
            parser.add_argument(*flag["names"], nargs=nargs, type=kind, choices=flag["choices"])
    return parser


def _plain(word: str) -> str:
    """The flag in a word, as vLLM reads it: --max_model_len=5 is --max-model-len."""
    return word.partition("=")[0].replace("_", "-") if word.startswith("--") else word


def _simple(words: Sequence[str]) -> list[str]:
    """The words with vLLM's own forms made into argparse's: underscores in flags, and --flag.key value for JSON."""
    simple = []
    for word in words:
        flag, equals, value = word.partition("=")
        dotted = re.match(r"(--[a-zA-Z][\w-]*)\.[\w.+-]+$", flag)
        if dotted:
            flag = dotted[1]
        simple.append(_plain(flag) + equals + value if word.startswith("--") else word)
    return simple


def _unknown(word: str, names: Sequence[str]) -> str:
    # Imported here: only a refused start needs it.
    import difflib

    flag = _plain(word)
    if not flag.startswith("-"):
        return f"{word} belongs to no flag; put quotes around a value with spaces"
    near = difflib.get_close_matches(flag, names, n=1)
    return f"vLLM has no flag {flag}" + (f"; did you mean {near[0]}?" if near else "")
