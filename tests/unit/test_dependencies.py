"""pyproject.toml declares what the code imports, and nothing else."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "hxp_enterprise_llm"
DISTRIBUTIONS = {"dotenv": "python-dotenv"}
"""Modules whose distribution has another name."""
NOT_DECLARED = {"transformers", "vllm"}
"""vLLM depends on transformers; its own distribution differs by flavour. requirements/ pins both."""


def imported() -> Iterator[str]:
    """The top-level name of every module that the package imports."""
    for file in (ROOT / PACKAGE).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def test_declared_dependencies_match_the_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[<>=!~ \[;]", requirement)[0] for requirement in project["dependencies"]}
    others = set(imported()) - set(sys.stdlib_module_names) - {PACKAGE} - NOT_DECLARED
    assert declared == {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in others}
