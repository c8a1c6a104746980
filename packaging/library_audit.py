"""Compare the system libraries that an environment's binaries need with what the package depends on.

Usage: library_audit.py ENVIRONMENT CONTROL

Wheels do not declare system libraries, and a missing library shows only when the engine starts: without `libnuma.so.1`,
it ends in an AttributeError far from the cause. So every NEEDED entry of every ELF file must be a library of the
environment itself, or of a Debian package in Depends of CONTROL. Otherwise the exit status is 1.
"""

import re
import subprocess
import sys
from pathlib import Path

ELF_MAGIC = b"\x7fELF"
# CPU instances do not load these: they are for hardware or software that is absent.
OPTIONAL = {
    "libcuda.so.1": "part of the NVIDIA driver, on hosts with a GPU",
}


def elf_files(environment: Path) -> list[Path]:
    found = []
    for file in environment.rglob("*"):
        if file.is_file() and not file.is_symlink() and (".so" in file.name or file.parent.name == "bin"):
            with file.open("rb") as content:
                if content.read(4) == ELF_MAGIC:
                    found.append(file)
    return found


def needed(files: list[Path]) -> dict[str, Path]:
    """Each NEEDED name, with a file that needs it."""
    names: dict[str, Path] = {}
    for file in files:
        dynamic = subprocess.run(["readelf", "-d", "-W", file], capture_output=True, text=True, check=True).stdout
        for name in re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic):
            names.setdefault(name, file)
    return names


def owner(library: str) -> str | None:
    """The Debian package that contains `library` on the build host."""
    cache = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    for line in cache.splitlines():
        if line.strip().startswith(library + " ") and "x86-64" in line:
            path = Path(line.rpartition("=> ")[2])
            for candidate in (path, Path("/usr") / path.relative_to("/"), path.resolve()):
                query = subprocess.run(["dpkg", "-S", candidate], capture_output=True, text=True, check=False)
                if query.returncode == 0:
                    return query.stdout.partition(":")[0]
    return None


def depends(control: Path) -> set[str]:
    text = control.read_text(encoding="utf-8")
    field = re.search(r"^Depends:(.*(?:\n[ \t].*)*)", text, re.MULTILINE)
    return set(re.findall(r"(?:^|[,|\s])([a-z0-9][a-z0-9+.-]+)", field[1])) if field else set()


def main(environment: Path, control: Path) -> int:
    files = elf_files(environment)
    own = {file.name for file in environment.rglob("*.so*")}
    named = depends(control)
    missing = 0
    system: set[str] = set()
    for library, file in sorted(needed(files).items()):
        if library in own or library in OPTIONAL:
            continue
        package = owner(library)
        if package in named:
            system.add(str(package))
            continue
        missing += 1
        where = f"package {package}, which debian/control does not depend on" if package else "no package on this host"
        print(f"library audit: {file.relative_to(environment)} needs {library}: {where}", file=sys.stderr)
    print(f"library audit: {len(files)} ELF files; from the system: {' '.join(sorted(system))}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
