"""Main process of citadel-llm-monitor.service: `python -m hxp_enterprise_llm.monitoring`."""

import asyncio
import logging
import os
import sys
from importlib.metadata import version


def main() -> None:
    """Run the monitor until SIGTERM or SIGINT."""
    # pydantic would search the metadata of all 150 distributions of the environment for plugins; there are none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # Saves 4 MB: httpx works without its command line, which would import click, rich and pygments.
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # None makes the import fail
    from hxp_enterprise_llm.monitoring.daemon import Monitor
    from hxp_enterprise_llm.monitoring.store import Store
    from hxp_enterprise_llm.system.journal import JournalHandler, LineFormatter
    from hxp_enterprise_llm.system.notify import Notifier

    handler: logging.Handler = logging.StreamHandler(sys.stdout)
    if "JOURNAL_STREAM" in os.environ:
        handler = JournalHandler("monitor")
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # uvicorn logs a warning for each malformed request.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)

    async def run() -> None:
        await Monitor(Store(), Notifier.take(), version("hxp-enterprise-llm")).run()

    asyncio.run(run())


if __name__ == "__main__":
    main()
