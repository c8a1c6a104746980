"""What a test needs of the host. A run that lacks it fails at once: a skipped test looks like one that passed.

    @pytest.mark.needs("root", "package", "shellcheck")

Besides the names of REASONS, a need is a program on the PATH.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(os.environ.get("CITADEL_TEST_PACKAGE", "none"))
"""The .deb to test."""
MODEL_WHEELS = Path(os.environ.get("CITADEL_TEST_MODEL_WHEELS", "none"))
"""The folder with the wheels of the demo's model."""

REASONS = {
    "root": "root boots machines and mounts file systems",
    "package": "CITADEL_TEST_PACKAGE must be the path of a citadel-llm .deb",
    "model wheels": "CITADEL_TEST_MODEL_WHEELS must be the folder with the wheels of the demo's model",
}


def _met(need: str) -> bool:
    match need:
        case "root":
            return os.geteuid() == 0
        case "package":
            return PACKAGE.is_file()
        case "model wheels":
            return MODEL_WHEELS.is_dir()
        case program:
            return shutil.which(program) is not None


def unmet(needs: Iterable[str]) -> str:
    """The reasons why this host cannot run a test with these needs, each on a line; "" if it can."""
    missing = sorted(need for need in set(needs) if not _met(need))
    return "\n".join(f"{need}: {REASONS.get(need, 'no such program on the PATH')}" for need in missing)
