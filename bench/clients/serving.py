"""Run vLLM's own `bench serve` on both sides in turn; print its results as JSON lines. serving.py SPECIFICATION

SPECIFICATION is JSON: {"tokenizer": DIRECTORY, "model": NAME, "ports": [PORT, …], "rounds": N, "loads": [[C, N], …]}
with C concurrent and N total requests. Runs in the machine with the package's environment. One process runs all loads,
because importing vLLM takes as long as a measurement.
"""

import argparse
import contextlib
import json
import sys
from typing import Any

from vllm.benchmarks.serve import add_cli_args, main


def measure(what: dict[str, Any], port: int, at_once: int, requests: int, seed: int) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    words = [
        "--backend", "openai", "--base-url", f"http://127.0.0.1:{port}", "--endpoint", "/v1/completions",
        "--model", what["model"], "--tokenizer", what["tokenizer"], "--dataset-name", "random",
        "--random-input-len", "64", "--random-output-len", "64", "--ignore-eos", "--disable-tqdm",
        "--max-concurrency", str(at_once), "--num-prompts", str(requests), "--seed", str(seed),
        "--num-warmups", "1",
    ]  # fmt: skip
    with contextlib.redirect_stdout(sys.stderr):
        found: dict[str, Any] = main(parser.parse_args(words))
    return found


def run(what: dict[str, Any]) -> None:
    for turn in range(what["rounds"]):
        for at_once, requests in what["loads"]:
            for port in what["ports"]:
                # Both sides get the same prompts, and no prompt is repeated: the prefix cache would answer it.
                found = measure(what, port, at_once, requests, 1000 * turn + at_once)
                wanted = ("completed", "request_throughput", "output_throughput", "median_ttft_ms", "median_tpot_ms")
                line = {"port": port, "at_once": at_once} | {name: found[name] for name in wanted}
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
