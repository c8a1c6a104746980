"""What the main process has to tell the monitor beyond what systemd knows: `state.json` in the run-time directory."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from hxp_enterprise_llm.settings.address import Address

log = logging.getLogger(__name__)

NAME = "state.json"


class StateFile:
    """Keeps the file up to date; it goes with the run-time directory when the unit stops.

    `failures` counts, by the code of the error, what the main process has mended itself since it started. Everybody may
    read the file: it holds no secret, and the monitor is another user.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / NAME
        self._state: dict[str, Any] = {"address": None, "startup_seconds": None, "failures": {}, "last_failure": None}

    def started(self, seconds: float, address: Address, expires: float) -> None:
        """Note how long the last start, or recovery, took until the model had answered; the others as in `serves`."""
        self._state["startup_seconds"] = round(seconds, 3)
        self.serves(address, expires)

    def serves(self, address: Address, expires: float) -> None:
        """Note where clients reach it, and when its certificate expires (seconds since the epoch, 0 for none).

        The settings and their files may say something else by now.
        """
        self._state["address"] = address.model_dump()
        self._state["certificate_expires"] = expires or None
        self._write()

    def failed(self, kind: str, reason: str) -> None:
        """Count a failure that is about to be mended."""
        self._state["failures"][kind] = self._state["failures"].get(kind, 0) + 1
        self._state["last_failure"] = {"kind": kind, "reason": reason, "at": time.time()}
        self._write()

    def _write(self) -> None:
        draft = self._file.with_suffix(".new")
        try:
            with draft.open("w", encoding="utf-8") as stream:
                os.fchmod(stream.fileno(), 0o644)
                json.dump(self._state, stream)
            draft.rename(self._file)
        except OSError as error:
            # No reason to stop serving.
            log.warning("%s cannot be written, so the monitor will miss something: %s", self._file, error.strerror)
