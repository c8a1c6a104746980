"""The `citadel-llm` command. Only this and the unit's main process exit."""

import logging
import os
import sys


def main() -> None:
    """Entry point: run the command, and turn an error into words and an exit status."""
    # pydantic looks for plugins in the metadata of all 150 distributions of the environment, for as long as the whole
    # command may take; there are none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from hxp_enterprise_llm.cli.commands import cli
    from hxp_enterprise_llm.cli.output import complain
    from hxp_enterprise_llm.utils.errors import CitadelError

    logging.basicConfig(level=logging.WARNING, format="citadel-llm: %(message)s")
    try:
        cli(prog_name="citadel-llm")
    except CitadelError as error:
        complain(str(error))
        sys.exit(error.exit_status)
