"""vLLM's OpenAI server on a socket that the main process owns: what a newly started process runs."""

import asyncio
import os
import signal
import socket
import sys
import traceback
from argparse import Namespace
from collections.abc import Sequence

import setproctitle

from hxp_enterprise_llm.protocol.credentials import Credentials
from hxp_enterprise_llm.protocol.worker import HUB_TOKEN_PATH, Limits
from hxp_enterprise_llm.settings.errors import ExitStatus
from hxp_enterprise_llm.system import event_loop
from hxp_enterprise_llm.worker.bounded import WEBSOCKET_MESSAGE_BYTES, BoundedHttp, BoundedWebSocket
from hxp_enterprise_llm.worker.connections import PRIVATE_BACKLOG
from hxp_enterprise_llm.worker.traffic import Traffic, outermost

USAGE_STATUS = 2
"""Exit status of argparse for wrong flags."""


def serve(
    arguments: Sequence[str],
    forked: bool,
    *,
    private: socket.socket,
    listener: socket.socket,
    channel: socket.socket,
    failed: socket.socket,
    credentials: Credentials,
    limits: Limits,
) -> None:
    """Run vLLM's API server until SIGTERM, then drain it; `channel` carries its heartbeats to the main process.

    `arguments` are flags of `vllm serve`; `--host` and `--port` only appear in messages. The server first accepts
    connections on `private`, where the main process probes the model over plain HTTP, and after the main process's
    command on `listener`, with TLS if the main process has given it a certificate. `failed` carries the reasons of a
    failure to the main process, also those of the engine, which has no other socket of the server. So `credentials`
    have no certificate: the server gets it once its engine runs.
    """
    # Until vLLM installs its own handler, a stop ends the process at once.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if forked:
        # Imported already, unless the fork server failed to: then the traceback shows why.
        from hxp_enterprise_llm.worker import preload  # noqa: F401

    setproctitle.setproctitle("VLLM::APIServer")
    # A fork has these in memory already; a spawned process takes most of its start to import them.
    from vllm.entrypoints.launchers.api_server.entry import run_server_worker
    from vllm.platforms import current_platform

    from hxp_enterprise_llm.worker import access_log, engine, failures, fetch, heartbeat, long_texts

    async def run() -> None:
        beating = asyncio.create_task(heartbeat.beat(channel, listener))
        try:
            await run_server_worker(
                f"http://{options.host}:{options.port}",
                private,
                options,
                http=BoundedHttp,
                ws=BoundedWebSocket,
                ws_max_size=min(WEBSOCKET_MESSAGE_BYTES, limits.request_bytes),
                backlog=PRIVATE_BACKLOG,
            )
        finally:
            beating.cancel()
            # An error of the heartbeat was sent when it was raised.
            await asyncio.gather(beating, return_exceptions=True)

    gpu = not current_platform.is_cpu()
    token_file = os.environ.pop(HUB_TOKEN_PATH, "")
    if token_file:
        fetch.fetch(
            token_file,
            lambda: _parse(arguments, failed),
            lambda error: heartbeat.tell_failure(failed, error, gpu=gpu),
        )
    options = _parse(arguments, failed)
    # Here and not among the flags: nothing in VLLM_ARGS can come after it.
    options.middleware = outermost(options.middleware)
    heartbeat.tell_reasons(failed, gpu=gpu)
    engine.install(private, listener, channel)
    try:
        access_log.limit()
        long_texts.limit()
        Traffic.limit(limits)
        Traffic.take(credentials)
        # Not vLLM's uvloop, which aborts this process when the kernel refuses to watch a connection.
        with asyncio.Runner(loop_factory=event_loop.new) as runner:
            runner.run(run())
    except Exception as error:
        heartbeat.tell_failure(failed, error, gpu=gpu)
        if not failures.is_final(error, gpu=gpu):
            # The main process logs an error in the settings in one line; any other may need its traceback.
            traceback.print_exc()
        sys.exit(ExitStatus.SOFTWARE)


def _parse(arguments: Sequence[str], failed: socket.socket) -> Namespace:
    """The options of vLLM's server. If vLLM refuses the flags, tell the main process the reason and exit."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import validate_api_server_args
    from vllm.exceptions import VLLMError
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from hxp_enterprise_llm.worker import failures, heartbeat

    try:
        options: Namespace = make_arg_parser(FlexibleArgumentParser(prog="VLLM_ARGS")).parse_args(list(arguments))
        validate_parsed_serve_args(options)
        # Names that plugins register are valid too (vllm/entrypoints/launchers/launcher.py, setup_server).
        if options.tool_parser_plugin:
            ToolParserManager.import_tool_parser(options.tool_parser_plugin)
        if options.reasoning_parser_plugin:
            ReasoningParserManager.import_reasoning_parser(options.reasoning_parser_plugin)
        validate_api_server_args(options)
    except SystemExit as end:
        # argparse has printed the reason.
        if end.code == USAGE_STATUS:
            heartbeat.tell_end(failed, "wrong flags; the lines above name them", final=True)
        raise
    except (ValueError, TypeError, KeyError, VLLMError) as error:
        # The main process logs this reason, in one line.
        heartbeat.tell_end(failed, failures.description(error), final=True)
        sys.exit(ExitStatus.SOFTWARE)
    return options
