"""What the API server waits for: requests that the engine has been given and has not finished.

A request that is being tokenized, or whose client does not read its answer, does not wait for the engine.
The names are those of vLLM 0.32: AsyncLLM (vllm/v1/engine/async_llm.py) and its output processor.
"""

from typing import Any


class Engine:
    """The engine as its client, an AsyncLLM, sees it.

    `outputs` counts how often it has sent tokens or results; `longest_prompt` is a number of tokens.
    """

    def __init__(self, client: Any) -> None:
        self.outputs = 0
        self.longest_prompt: int = client.model_config.max_model_len
        self._processor, self._core = client.output_processor, client.engine_core
        process = self._processor.process_outputs

        def counted(*arguments: Any, **named: Any) -> Any:
            self.outputs += 1
            return process(*arguments, **named)

        self._processor.process_outputs = counted

    def waiting(self) -> int:
        """How many requests wait for the engine."""
        states = list(self._processor.request_states.values())
        # Each of the n answers to a request has a state.
        requests = {state.external_req_id for state in states if not _waits_for_client(state)}
        return len(requests) + len(self._core.utility_results)


def _waits_for_client(state: Any) -> bool:
    """Whether the engine has processed all input of a request whose input is a stream that goes on."""
    return bool(state.streaming_input) and state.input_chunk_queue is None
