"""What counts as a hang, from heartbeats that a test makes up."""

import asyncio
import errno
import os
from collections.abc import Iterable

import pytest

from hxp_enterprise_llm.settings.schema import ServiceConfigSchema
from hxp_enterprise_llm.supervisor import hang
from hxp_enterprise_llm.supervisor.server_process import Heartbeat

Look = tuple[int, float, str, float]
"""Requests that wait for the engine, a figure of progress, a stopped process, CPU seconds."""


def first_hang(looks: Iterable[Look], beats: bool = True, **settings: object) -> tuple[int, str]:
    """Second and reason of the first hang, with one look per second."""
    values = {"name": "m", "model": "/srv/m", "port": 11500, "hang_timeout_sec": 60, **settings}
    start = 0.0  # seconds that a float represents exactly
    config = ServiceConfigSchema.model_validate(values)
    watch = hang.HangWatch(config, None, lambda: None, start)  # type: ignore[arg-type]
    for second, (requests, figure, stopped, cpu) in enumerate(looks, 1):
        heartbeat = Heartbeat(start + (second if beats else 0), 5, requests, 5, True, 1, [figure])
        reason = watch.reason(start + second, heartbeat, stopped, cpu)
        if reason:
            return second, reason
    return 0, ""


def test_idle_server_is_never_reported_as_hung() -> None:
    assert first_hang((0, 5.0, "", 1.0) for _ in range(1000)) == (0, "")


def test_requests_in_flight_that_do_not_wait_for_the_engine_are_no_hang() -> None:
    """Clients that do not read, or a long prompt that the API server tokenizes: 5 requests are in flight."""
    looks = [(1, 5.0, "", 1.0)] * 5 + [(0, 5.0, "", 1.0)] * 1000
    assert first_hang(looks) == (0, "")


def test_server_that_yields_tokens_is_never_reported_as_hung() -> None:
    assert first_hang((1, float(second), "", 0.0) for second in range(1000)) == (0, "")


@pytest.mark.parametrize(
    ("cpu_per_second", "seconds", "words"),
    [
        (0.0, 11, "1 request waits and no process works on it"),
        (1.0, 61, r"1 request waits and no token has come for 60 s (HANG_TIMEOUT_SEC)"),
    ],
)
def test_waiting_requests_without_tokens_are_a_hang(cpu_per_second: float, seconds: int, words: str) -> None:
    assert first_hang((1, 5.0, "", second * cpu_per_second) for second in range(1000)) == (seconds, words)


def test_gpu_instance_with_idle_cpu_is_hung_only_after_timeout() -> None:
    looks = ((1, 5.0, "", 0.0) for _ in range(1000))
    assert first_hang(looks, gpu_devices=("0",))[0] == 61


def test_process_exit_lowering_cpu_time_is_no_hang() -> None:
    """CPU time drops when a process ends, and progress is measured from there."""
    looks = [(1, 5.0, "", 50.0)] * 5 + [(1, 5.0, "", 10.0 + second) for second in range(30)]
    assert first_hang(looks) == (0, "")


def test_stopped_process_is_a_hang_even_when_idle() -> None:
    assert first_hang((0, 5.0, "VLLM::EngineCore (pid 7)", 1.0) for _ in range(1000)) == (
        3,
        "VLLM::EngineCore (pid 7) is stopped by a signal",
    )


def test_blocked_event_loop_is_a_hang() -> None:
    assert first_hang(((0, 5.0, "", float(second)) for second in range(1000)), beats=False) == (
        31,
        "the API server's event loop has been blocked for 30 s",
    )


def test_idle_engine_behind_a_blocked_event_loop_is_no_hang_of_the_engine() -> None:
    """The API server computes and takes no output of the engine meanwhile, so the last heartbeat says too much."""
    config = ServiceConfigSchema.model_validate({"name": "m", "model": "/srv/m", "port": 11500})
    watch = hang.HangWatch(config, None, lambda: None, 0.0)  # type: ignore[arg-type]
    heartbeat = Heartbeat(0.0, 1, 1, 1, True, 1, [])
    assert not any(watch.reason(second, heartbeat, "", 1.0, own=float(second)) for second in range(1, 300))


@pytest.mark.parametrize(("computes", "found"), [(100, 130), (1000, 301)])
def test_event_loop_that_works_may_be_blocked_longer(computes: int, found: int) -> None:
    """The API server uses CPU time for a while, or for ever: HANG_TIMEOUT_SEC is 300 s."""
    config = ServiceConfigSchema.model_validate({"name": "m", "model": "/srv/m", "port": 11500})
    watch = hang.HangWatch(config, None, lambda: None, 0.0)  # type: ignore[arg-type]
    heartbeat = Heartbeat(0.0, 1, 0, 1, True, 1, [])
    hangs = (
        second
        for second in range(1, 1000)
        if watch.reason(second, heartbeat, "", 1.0, own=min(float(second), float(computes)))
    )
    assert next(hangs) == found


def test_failed_look_at_the_processes_is_no_hang() -> None:
    """Without free file descriptors, /proc cannot be read."""

    class Unreadable:
        heartbeat = None

        def processes(self) -> list[object]:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    fed = asyncio.Event()
    config = ServiceConfigSchema.model_validate({"name": "m", "model": "/srv/m", "port": 11500})

    async def run() -> None:
        watching = asyncio.create_task(hang.HangWatch(config, Unreadable(), fed.set, look_sec=0).run())  # type: ignore[arg-type]  # only what a look needs
        await asyncio.wait_for(fed.wait(), 60)
        assert not watching.done()
        watching.cancel()

    asyncio.run(run())
