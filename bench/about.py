"""Facts about a run that its reader needs."""

import datetime
import os
import platform
from pathlib import Path

SOURCE_DIGITS = 12
"""Number of digits of the sources' hash (packaging/deb.sh) that identify a build."""


def about(package: Path) -> dict[str, str]:
    """The package, its sources, the date and the machine."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    try:
        sources = package.with_name(f".{package.name}.source").read_text(encoding="ascii")[:SOURCE_DIGITS]
    except FileNotFoundError:  # the package was not built by build.sh
        sources = "unknown sources"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "package": package.name,
        "made from": sources,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "CPU": f"{cpu} × {len(os.sched_getaffinity(0))}",
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release().split("-")[0],
    }
