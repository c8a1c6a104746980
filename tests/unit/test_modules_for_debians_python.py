"""debian/citadel-llm.install lists the modules that the generator and the reload request import, also late ones."""

import ast
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PROGRAMS = "hxp_enterprise_llm/generator/command.py", "hxp_enterprise_llm/protocol/reload_request.py"


def imported(file: str) -> Iterator[str]:
    """Files of this project that a module needs: the modules that it imports, and their packages."""
    for node in ast.walk(ast.parse((PROJECT / file).read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            module = name.replace(".", "/")
            if (PROJECT / f"{module}.py").exists():
                yield f"{module}.py"
                yield from (f"{parent}/__init__.py" for parent in Path(module).parents if parent != Path())


def test_package_installs_exactly_the_imported_modules() -> None:
    needed: set[str] = set()
    todo = list(PROGRAMS)
    while todo:
        file = todo.pop()
        if file not in needed:
            needed.add(file)
            todo += imported(file)
    needed |= {f"{parent}/__init__.py" for file in PROGRAMS for parent in Path(file).parents if parent != Path()}
    lines = (PROJECT / "debian/citadel-llm.install").read_text(encoding="utf-8").splitlines()
    installed = {source: target for source, target in map(str.split, lines) if source.startswith("hxp_enterprise_llm")}
    assert set(installed) == needed
    assert all(target == f"usr/lib/citadel-llm/{Path(source).parent}" for source, target in installed.items())
