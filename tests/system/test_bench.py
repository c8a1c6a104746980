"""A short benchmark: ratios to plain `vllm serve` on the same machine, with a margin for a noisy machine."""

import statistics

from bench.measure import PLAIN_START, RECOVERY, THROUGHPUT, load
from bench.sides import sides

from .conftest import SUMMARY, TINY_MODEL, Host

MARGIN = 1.5
"""Factor by which a quick measurement may miss the project's bounds, which `./build.sh bench` checks exactly."""


def test_ratios_to_plain_vllm_are_within_bounds(host: Host) -> None:
    host.made.add("ratio")
    pair = plain, ours = sides(host.machine, "ratio", MODEL=TINY_MODEL, PORT=21900, KV_CACHE_GB=0.25)
    try:
        # The first start of a model differs from later starts, to which the bounds apply.
        plain.start()
        plain.stop()
        theirs = plain.start()[1]
        start, recovery = ours.start()[0] / theirs, ours.kill_engine() / theirs
        rows = load(pair, tokenizer=TINY_MODEL, loads=[(8, 400)], rounds=2, say=print, title="test")
    finally:
        plain.stop()
        host.machine.run("rm", "/etc/systemd/system/plain-ratio.service")
    (throughput,) = [row.ratio for row in rows if row.unit == "tokens/s"]
    assert throughput is not None
    tokens = statistics.median(rows[0].ours)
    SUMMARY.append(
        f"beside plain vllm serve ({theirs:.1f} s to its first token): start {start:.2f}, "
        f"killed engine {recovery:.2f}, tokens a second {throughput:.2f} ({tokens:.0f})"
    )
    assert start <= PLAIN_START * MARGIN
    assert recovery <= RECOVERY * MARGIN
    assert throughput >= THROUGHPUT / MARGIN
