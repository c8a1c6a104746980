from hxp_enterprise_llm.supervisor.readiness import REQUESTS


def test_a_request_and_its_answer_fit_two_tokens() -> None:
    """For MAX_MODEL_LEN=2. Prompts are token ids: only the model's tokenizer knows the length of a text."""
    for _, body in REQUESTS:
        prompt = body.get("prompt", body.get("input"))
        assert isinstance(prompt, list) and len(prompt) + int(str(body.get("max_tokens", 1))) <= 2
