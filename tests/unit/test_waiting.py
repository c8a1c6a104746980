"""Which requests wait for the engine; the engine client is made up, with the names of vLLM 0.32."""

import itertools
from collections import deque
from types import SimpleNamespace
from typing import Any

from hxp_enterprise_llm.worker import waiting


def state(request: str, tokens: int | None = 0, streaming: bool = False, chunks: Any = None) -> SimpleNamespace:
    """One answer that vLLM's output processor expects; `tokens` is None for a pooling model."""
    detokenizer = None if tokens is None else SimpleNamespace(num_output_tokens=lambda: tokens)
    return SimpleNamespace(
        external_req_id=request, detokenizer=detokenizer, streaming_input=streaming, input_chunk_queue=chunks
    )


def engine(*states: SimpleNamespace, calls: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        output_processor=SimpleNamespace(request_states=dict(enumerate(states))),
        engine_core=SimpleNamespace(utility_results=dict.fromkeys(range(calls))),
    )


def test_answers_to_one_request_count_once() -> None:
    assert waiting.at(engine(state("a"), state("a"), state("b", None))).requests == 2


def test_calls_of_the_engine_wait_for_it() -> None:
    """Loading an adapter, for example."""
    assert waiting.at(engine(calls=1)).requests == 1


def test_stream_whose_client_is_silent_does_not_wait_for_the_engine() -> None:
    talks, listens = state("a", streaming=True, chunks=deque()), state("b", streaming=True)
    assert waiting.at(engine(talks, listens)).requests == 1


def test_every_token_begin_and_end_is_progress() -> None:
    figures = [
        waiting.at(engine(*states)).figures
        for states in ((), (state("a"),), (state("a", 1),), (state("a", 1), state("b")), (state("b"),))
    ]
    assert all(before != after for before, after in itertools.pairwise(figures))
