"""vLLM's OpenAI server on a socket that the main process owns: what a newly started process runs."""

import asyncio
import signal
import socket
import sys
import traceback
from collections.abc import Sequence

import setproctitle

from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.settings.errors import ExitStatus
from hxp_enterprise_llm.worker.traffic import Traffic


def serve(
    arguments: Sequence[str],
    forked: bool,
    *,
    private: socket.socket,
    listener: socket.socket,
    channel: socket.socket,
    credentials: Credentials,
) -> None:
    """Run vLLM's API server until SIGTERM, then drain it; `channel` takes its heartbeat to the main process.

    `arguments` are flags of `vllm serve`; its `--host` and `--port` are for messages only. The first connections come
    from `private`, where the main process asks over plain HTTP whether the model answers, and those of `listener`,
    with TLS if `credentials` have a certificate, once it says so.
    """
    # Until vLLM installs its own handler, an early stop ends the process at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if forked:
        # Also where the fork server could not: this shows why an import fails.
        from hxp_enterprise_llm.worker import preload  # noqa: F401

    setproctitle.setproctitle("VLLM::APIServer")
    # Imported here: in a fork these are in memory already, in a spawned process this is where the time goes.
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server_worker
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import validate_api_server_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from hxp_enterprise_llm.worker import heartbeat

    async def run() -> None:
        beating = asyncio.create_task(heartbeat.beat(channel, listener))
        try:
            await run_server_worker(f"http://{options.host}:{options.port}", private, options)
        finally:
            beating.cancel()

    options = make_arg_parser(FlexibleArgumentParser(prog="VLLM_ARGS")).parse_args(list(arguments))
    Traffic.take(credentials)
    heartbeat.tell_reasons(channel)
    try:
        validate_parsed_serve_args(options)
        validate_api_server_args(options)
        uvloop.run(run())
    except Exception as error:
        heartbeat.tell_failure(channel, error)
        traceback.print_exc()
        sys.exit(ExitStatus.SOFTWARE)
