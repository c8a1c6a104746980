"""What the API server waits for: requests that the engine has been given and has not finished.

A request that is being tokenized, or whose client does not read its answer, waits for somebody else.
The names are those of vLLM 0.32: AsyncLLM (vllm/v1/engine/async_llm.py) and its output processor.
"""

from typing import Any, NamedTuple


class Waiting(NamedTuple):
    """`requests` wait for the engine. `figures` change with every token and every request that begins or ends."""

    requests: int
    figures: list[float]


NOTHING = Waiting(0, [])
"""A server that has not been asked yet."""


def at(engine: Any) -> Waiting:
    """What waits for the engine of `engine`, an AsyncLLM."""
    states = list(engine.output_processor.request_states.values())
    # Each of the n answers to a request has a state.
    requests = {state.external_req_id for state in states if not _waits_for_client(state)}
    calls = len(engine.engine_core.utility_results)
    tokens = sum(state.detokenizer.num_output_tokens() for state in states if state.detokenizer)
    return Waiting(len(requests) + calls, [len(states), calls, tokens])


def _waits_for_client(state: Any) -> bool:
    """Whether the engine has processed all input of a request whose input is a stream that goes on."""
    return bool(state.streaming_input) and state.input_chunk_queue is None
