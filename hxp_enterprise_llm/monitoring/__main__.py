"""Main process of citadel-llm-monitor.service: `python -m hxp_enterprise_llm.monitoring`."""

import asyncio
import logging
import os
import sys
from importlib.metadata import version


def main() -> None:
    """Watch until told to stop."""
    # pydantic looks for plugins in the metadata of all 150 distributions of the environment; there are none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # httpx's command line, and with it click, rich and pygments: 4 MB that nobody asks for. httpx goes without.
    sys.modules["httpx._main"] = None  # type: ignore[assignment]  # None is what "there is none" is written as
    from hxp_enterprise_llm.monitoring.daemon import Monitor
    from hxp_enterprise_llm.monitoring.store import Store
    from hxp_enterprise_llm.system.journal import JournalHandler
    from hxp_enterprise_llm.system.notify import Notifier

    handler: logging.Handler = logging.StreamHandler(sys.stdout)
    if "JOURNAL_STREAM" in os.environ:
        handler = JournalHandler("monitor")
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # It says a line for each bad request that somebody sends.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)

    async def run() -> None:
        await Monitor(Store(), Notifier.take(), version("hxp-enterprise-llm")).run()

    asyncio.run(run())


if __name__ == "__main__":
    main()
