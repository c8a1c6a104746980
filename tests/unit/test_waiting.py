"""Which requests wait for the engine; the engine client is made up, with the names of vLLM 0.32."""

from collections import deque
from types import SimpleNamespace
from typing import Any

from hxp_enterprise_llm.worker import waiting


def state(request: str, streaming: bool = False, chunks: Any = None) -> SimpleNamespace:
    """One answer that vLLM's output processor expects."""
    return SimpleNamespace(external_req_id=request, streaming_input=streaming, input_chunk_queue=chunks)


def engine(*states: SimpleNamespace, calls: int = 0) -> waiting.Engine:
    processor = SimpleNamespace(request_states=dict(enumerate(states)), process_outputs=lambda outputs: outputs)
    core = SimpleNamespace(utility_results=dict.fromkeys(range(calls)))
    return client(processor, core)


def client(processor: Any, core: Any) -> waiting.Engine:
    model = SimpleNamespace(max_model_len=2048)
    return waiting.Engine(SimpleNamespace(output_processor=processor, engine_core=core, model_config=model))


def test_answers_to_one_request_count_once() -> None:
    assert engine(state("a"), state("a"), state("b")).waiting() == 2


def test_calls_of_the_engine_wait_for_it() -> None:
    """Loading an adapter, for example."""
    assert engine(calls=1).waiting() == 1


def test_stream_whose_client_is_silent_does_not_wait_for_the_engine() -> None:
    talks, listens = state("a", streaming=True, chunks=deque()), state("b", streaming=True)
    assert engine(talks, listens).waiting() == 1


def test_only_what_the_engine_sends_is_progress() -> None:
    """Requests that arrive or leave are not: the clients of a hung engine give up and ask again."""
    states: dict[str, SimpleNamespace] = {}
    processor = SimpleNamespace(request_states=states, process_outputs=lambda outputs: outputs)
    found = client(processor, SimpleNamespace(utility_results={}))
    states["a"] = state("a")
    assert (found.waiting(), found.outputs) == (1, 0)
    assert processor.process_outputs(["token"]) == ["token"]
    states["b"] = state("b")
    del states["a"]
    assert (found.waiting(), found.outputs) == (1, 1)
