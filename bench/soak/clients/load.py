"""Send a steady rate of requests to several instances until a file appears. load.py PLAN OUTCOMES ENOUGH

Runs in the machine, with the package's environment. PLAN is JSON: the requests a second to each instance, and for each
instance its name, URL, key and the file of its certificate. A line of OUTCOMES is a finished request; the last line has
the number of requests sent.
"""

import asyncio
import json
import ssl
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import httpx

TOKENS = 20


class Client:
    """Sends requests to one instance, every other one streamed."""

    def __init__(self, target: dict[str, str], outcomes: TextIO) -> None:
        self.name = target["name"]
        self.sent = 0
        self._url = f"{target['url']}/v1/completions"
        self._outcomes = outcomes
        self._client = httpx.AsyncClient(
            timeout=300,
            verify=ssl.create_default_context(cafile=target["certificate"]) if target["certificate"] else False,
            headers={"Authorization": f"Bearer {target['key']}"} if target["key"] else {},
            # Shorter than the server keeps an idle connection, so that no request meets the server's close.
            limits=httpx.Limits(max_connections=None, keepalive_expiry=2),
        )

    async def ask(self) -> None:
        """Send one request and record its outcome."""
        self.sent += 1
        streamed = bool(self.sent % 2)
        begin = time.time()
        error = await self._error(streamed)
        outcome = {"instance": self.name, "begin": begin, "end": time.time(), "streamed": streamed, "error": error}
        print(json.dumps(outcome), file=self._outcomes, flush=True)

    async def _error(self, streamed: bool) -> str:
        # A model with random weights sometimes draws its end-of-text token, hence ignore_eos.
        body: dict[str, Any] = {"model": self.name, "prompt": "License", "max_tokens": TOKENS, "ignore_eos": True}
        if streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        try:
            answer = await self._client.post(self._url, json=body)
            lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
            if answer.status_code == httpx.codes.OK:
                complete = not streamed or lines[-1] == "[DONE]"
                usage = json.loads(lines[-2] if streamed else answer.text)["usage"]
                if complete and usage["completion_tokens"] == TOKENS:
                    return ""
            return f"{answer.status_code} {answer.text[-200:]}"
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            return f"{type(error).__name__} {error}"


async def main(plan: str, outcomes: str, enough: Path) -> None:
    wanted = json.loads(Path(plan).read_text(encoding="utf-8"))
    with Path(outcomes).open("w", encoding="utf-8") as written:
        clients = [Client(target, written) for target in wanted["targets"]]
        tasks: set[asyncio.Task[None]] = set()
        following = time.monotonic()
        while not enough.exists():
            for client in clients:
                task = asyncio.create_task(client.ask())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            following += 1 / wanted["rate"]
            await asyncio.sleep(max(0.0, following - time.monotonic()))
        await asyncio.gather(*tasks)
        print(json.dumps({"sent": {client.name: client.sent for client in clients}}), file=written, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
