"""Readiness: the model has answered a request."""

PROMPT = [0]
"""A prompt of one token id: text would become several tokens, and MAX_MODEL_LEN may leave room for one only. Every
vocabulary has a token 0."""
REQUESTS: tuple[tuple[str, dict[str, object]], ...] = (
    ("/v1/completions", {"prompt": PROMPT, "max_tokens": 1}),
    # A pooling model has no completions; vLLM then answers 404 to the first.
    ("/v1/embeddings", {"input": PROMPT}),
    ("/pooling", {"input": PROMPT}),
)


class NotAnswered(Exception):
    """The server is up but does not answer a request to the model; the message has its answer or the error."""


async def first_answer(url: str, model: str, key: str) -> None:
    """Request one token from `model` at `url` with `key`, and return when it has answered.

    `model` is the name that requests use. There is no polling: the main process holds the listening socket, so the
    request waits in its queue until the server accepts it. Raises NotAnswered if the request fails.
    """
    # Imported here, while the server loads: the import takes a third of the main process's start.
    import httpx

    headers = {"Authorization": f"Bearer {key}"}
    said = ""
    # Proxies in the environment are for other hosts.
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
