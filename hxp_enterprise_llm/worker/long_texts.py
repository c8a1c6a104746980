"""Refuses texts that a model could not take: a tokenizer takes up to 300 bytes of memory for each character.

vLLM refuses such texts before it tokenizes them, except for /tokenize, for scores, for requests with
`truncate_prompt_tokens` and for chats whose template tokenizes. All of these, and most others, meet in one method of
transformers 5: `_encode_plus`, of its tokenizers in Rust and of those in Python. vLLM tokenizes one text at a time.
"""

import functools
from collections.abc import Callable
from typing import Any

from hxp_enterprise_llm.worker.traffic import Traffic

LEAST = 2**20
"""Characters that a text may have in any case. Some clients split or truncate documents by their tokens."""
CHARACTERS_PER_TOKEN = 32
"""English prose has four. Only long runs of spaces have more than this."""


def limit() -> None:
    """Bound the texts that this process tokenizes from its first request on."""
    from transformers.tokenization_python import PythonBackend
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    for backend in (PythonBackend, TokenizersBackend):
        backend._encode_plus = bounded(backend._encode_plus)


def bounded(encode: Callable[..., Any]) -> Callable[..., Any]:
    """The method `encode` of a tokenizer, which raises ValueError if its text is too long. vLLM answers 400 then."""

    @functools.wraps(encode)
    def encode_bounded(tokenizer: Any, text: Any, text_pair: Any = None, *more: Any, **named: Any) -> Any:
        engine = Traffic.engine
        # None while the model loads.
        if engine:
            most = max(LEAST, CHARACTERS_PER_TOKEN * engine.longest_prompt)
            found = characters(text) + characters(text_pair)
            if found > most:
                raise ValueError(f"the text has {found} characters; this model takes at most {most}")
        return encode(tokenizer, text, text_pair, *more, **named)

    return encode_bounded


def characters(text: Any) -> int:
    """The number of characters of a text, or of a list of texts or pairs of texts."""
    if isinstance(text, str):
        return len(text)
    return sum(map(characters, text)) if isinstance(text, list | tuple) else 0
