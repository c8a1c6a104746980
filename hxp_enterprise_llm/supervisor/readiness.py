"""Readiness: the model has answered a request."""

PROMPT = [0]
"""A prompt by token id: text would become several tokens, and MAX_MODEL_LEN may leave room for one. Every vocabulary
has a token 0."""
REQUESTS: tuple[tuple[str, dict[str, object]], ...] = (
    ("/v1/completions", {"prompt": PROMPT, "max_tokens": 1}),
    # A pooling model has no completions; vLLM then answers 404 to the first.
    ("/v1/embeddings", {"input": PROMPT}),
    ("/pooling", {"input": PROMPT}),
)


class NotAnswered(Exception):
    """The server is up but does not answer as a model should; the message is what it said."""


async def first_answer(url: str, model: str, key: str) -> None:
    """Ask the model at `url`, by the name that requests carry, for one token with `key`, and return when it has
    answered.

    It does not poll: the main process holds the listening socket, so the request waits in its queue until the server
    accepts it. Raises NotAnswered if the answer is not one.
    """
    # Imported here, while the server loads: it takes a third of what the main process takes to start.
    import httpx

    headers = {"Authorization": f"Bearer {key}"}
    said = ""
    # The environment's proxies are for other hosts than this one.
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=None, trust_env=False) as client:  # noqa: S113  the caller ends the wait
        for path, body in REQUESTS:
            try:
                answer = await client.post(path, json={"model": model, **body})
            except httpx.HTTPError as error:
                raise NotAnswered(f"{path}: {error or type(error).__name__}") from error
            if answer.is_success:
                return
            said = f"{path}: {answer.status_code} {answer.text[:200]}"
            if answer.status_code != httpx.codes.NOT_FOUND:
                break
    raise NotAnswered(said)
