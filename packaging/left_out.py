"""Remove files that an environment does not need: `python left_out.py SITE_PACKAGES LIST`.

LIST has one pattern per line, relative to SITE_PACKAGES, and comments. A pattern that matches no file is an error: the
distribution has moved the files, and the list needs their new place.
"""

import shutil
import sys
from pathlib import Path


def patterns(listing: Path) -> list[str]:
    lines = (line.strip() for line in listing.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def files_of(path: Path) -> list[Path]:
    """The files to remove with `path`: those below a directory, and the bytecode of a module."""
    if path.is_dir():
        return [file for file in path.rglob("*") if not file.is_dir()]
    byte_code = path.parent.glob(f"__pycache__/{path.stem}.cpython-*.pyc") if path.suffix == ".py" else ()
    return [path, *byte_code]


def remove(pattern: str, packages: Path) -> tuple[int, int]:
    """Remove the files that match; returns their number and size (bytes)."""
    paths = list(packages.glob(pattern))
    files = {file for path in paths for file in files_of(path)}
    size = sum(file.lstat().st_size for file in files)
    for file in files:
        file.unlink()
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
    return len(files), size


def main(packages: Path, listing: Path) -> None:
    for pattern in patterns(listing):
        count, size = remove(pattern, packages)
        if not count:
            sys.exit(f"left out: {listing}: {pattern} matches no file; has a distribution moved it?")
        print(f"left out: {count:5d} files, {size / 1e6:5.1f} MB: {pattern}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
