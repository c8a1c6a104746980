"""Remove the symbols that only a debugger reads from an environment's libraries: `python strip_symbols.py ENVIRONMENT`.

These symbols are a third of the size of torch's and vLLM's libraries. In a library that auditwheel has patched, strip
may move segments to which the program headers refer, which breaks the library. So a stripped library is used only if
all of its segments are where they were.
"""

import re
import subprocess
import sys
from pathlib import Path

SEGMENT = re.compile(r"^  (LOAD|DYNAMIC|TLS) +(\S+) (\S+) \S+ (\S+) (\S+) (.{3}) (\S+)$", re.MULTILINE)
SMALLEST_GAIN = 4096
"""In bytes, one page: for a smaller gain, the file of the wheel is kept."""


def loaded(library: Path) -> list[tuple[str, ...]]:
    """The segments of a library that the loader reads: kind, offset, address, sizes, flags and alignment."""
    text = subprocess.run(["readelf", "-lW", library], capture_output=True, text=True, check=True).stdout
    segments = []
    for kind, offset, address, stored, size, flags, alignment in SEGMENT.findall(text):
        # The loader rounds the size of thread-local storage up to its alignment; some linkers do so too.
        unit = int(alignment, 16) if kind == "TLS" else 1
        rounded = -(-int(size, 16) // unit) * unit
        segments.append((kind, offset, address, stored, str(rounded), flags, alignment))
    return segments


def strip(library: Path) -> int:
    """Strip a library; returns by how many bytes it has shrunk, 0 if it is unchanged."""
    stripped = library.with_name(library.name + ".stripped")
    done = subprocess.run(["strip", "--strip-unneeded", "-o", stripped, library], capture_output=True, check=False)
    try:
        gain = library.stat().st_size - stripped.stat().st_size if done.returncode == 0 else 0
        if gain < SMALLEST_GAIN or loaded(stripped) != loaded(library):
            return 0
        stripped.chmod(library.stat().st_mode)
        stripped.replace(library)
        return gain
    finally:
        stripped.unlink(missing_ok=True)


def main(environment: Path) -> None:
    gains = [strip(file) for file in sorted(environment.rglob("*.so*")) if file.is_file() and not file.is_symlink()]
    print(f"symbols: {sum(gains) / 1e6:.0f} MB out of {sum(map(bool, gains))} of {len(gains)} libraries")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
