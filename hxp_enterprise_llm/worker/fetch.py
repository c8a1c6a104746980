"""Fetches what a start needs from the hub, in a process of its own.

The API server must not read the token itself: the engine is a fork of it and would have the token in memory.
"""

import multiprocessing
import os
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable

import setproctitle

from hxp_enterprise_llm.settings.errors import ExitStatus

TITLE = "citadel-llm: download"
"""Not like the title of an engine, whose end would be that of the server."""


def fetch(token_file: str, parse: Callable[[], Namespace], report: Callable[[BaseException], None]) -> None:
    """Fetch all files of the model in `parse()`, the options of vLLM's server, with the token in `token_file`.

    An error is reported and ends this process. Afterwards this process works offline, as it did before.
    """
    title = setproctitle.getproctitle()
    setproctitle.setproctitle(TITLE)
    child = multiprocessing.get_context("fork").Process(target=_fetch, args=(token_file, parse, report))
    child.start()
    child.join()
    setproctitle.setproctitle(title)
    if child.exitcode:
        sys.exit(ExitStatus.SOFTWARE)


def _fetch(token_file: str, parse: Callable[[], Namespace], report: Callable[[BaseException], None]) -> None:
    from huggingface_hub import constants

    # It has read its variables already.
    os.environ["HF_HUB_OFFLINE"], os.environ["HF_TOKEN_PATH"] = "0", token_file
    constants.HF_HUB_OFFLINE, constants.HF_TOKEN_PATH = False, token_file
    try:
        _download(parse())
    except Exception as error:
        report(error)
        traceback.print_exc()
        sys.exit(ExitStatus.SOFTWARE)


def _download(options: Namespace) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.lora.utils import get_adapter_absolute_path
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.transformers_utils.repo_utils import get_non_weight_snapshot_path

    config = AsyncEngineArgs.from_cli_args(options).create_engine_config()
    models = [config.model_config]
    if config.speculative_config and config.speculative_config.draft_model_config:
        models.append(config.speculative_config.draft_model_config)
    for model in models:
        others = ((model.tokenizer, model.tokenizer_revision), (model.hf_config_path, None))
        for repository, revision in ((model.model, model.revision), *others):
            if repository:
                get_non_weight_snapshot_path(str(repository), revision)
        get_model_loader(config.load_config).download_model(model)
    for adapter in options.lora_modules or ():
        get_adapter_absolute_path(adapter.path)
