"""Send twenty requests a second, every other one streamed, until a file appears; print the outcomes as JSON.

Runs in a test machine with the package's environment: steady_client.py URL MODEL FILE
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import httpx

TOKENS = 40
PAUSE_SEC = 0.05

counts = {"plain": 0, "streamed": 0}
failures: list[str] = []
took: list[float] = []  # duration of each answered request (seconds)


async def ask(client: httpx.AsyncClient, url: str, model: str, kind: str) -> None:
    # A model with random weights sometimes draws its end-of-text token, hence ignore_eos.
    begin = time.monotonic()
    body = {"model": model, "prompt": "License", "max_tokens": TOKENS, "ignore_eos": True}
    try:
        if kind == "plain":
            answer = await client.post(url, json=body)
            right = answer.status_code == httpx.codes.OK and answer.json()["usage"]["completion_tokens"] == TOKENS
            said = answer.text
        else:
            # A busy server sends many tokens in one chunk: the last chunk but one has the total.
            streamed = {"stream": True, "stream_options": {"include_usage": True}}
            async with client.stream("POST", url, json=body | streamed) as answer:
                lines = [line async for line in answer.aiter_lines() if line]
            right = answer.status_code == httpx.codes.OK and lines[-1] == "data: [DONE]"
            right = right and json.loads(lines[-2].removeprefix("data: "))["usage"]["completion_tokens"] == TOKENS
            said = str(lines[-3:])
        if right:
            counts[kind] += 1
            took.append(time.monotonic() - begin)
        else:
            failures.append(f"{time.strftime('%T')} {kind}: {answer.status_code} {said[:200]}")
    except (httpx.HTTPError, ValueError, LookupError) as error:
        failures.append(f"{time.strftime('%T')} {kind}: {type(error).__name__} {error}")


async def main(url: str, model: str, enough: Path) -> None:
    # No connection limit and a long timeout: on a slow machine this client must not cause failures.
    client = httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=None))
    async with client:
        tasks: list[asyncio.Task[None]] = []
        while not enough.exists():
            tasks.append(asyncio.create_task(ask(client, url, model, "plain" if len(tasks) % 2 else "streamed")))
            await asyncio.sleep(PAUSE_SEC)
        await asyncio.gather(*tasks)
    print(json.dumps({"counts": counts, "failures": failures, "longest": max(took, default=0.0)}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
