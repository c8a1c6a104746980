"""Shared by the tests of the generator: a valid settings file, and the output of a run."""

from pathlib import Path

from hxp_enterprise_llm.generator.drop_ins import DROP_IN, generate

from .conftest import Root

GOOD = "MODEL=/srv/m\nPORT=11500\n"


def drop_in(root: Root, name: str) -> str:
    output = root.path / "run"
    generate(str(output), str(root))
    return Path(output, f"citadel-llm@{name}.service.d", DROP_IN).read_text()


def files(directory: Path) -> dict[str, str]:
    return {str(file.relative_to(directory)): file.read_text() for file in directory.rglob("*") if not file.is_dir()}


def path_of(name: str) -> str:
    return f"citadel-llm@{name}.service.d/{DROP_IN}"


def made(root: Root) -> tuple[dict[str, str], list[str]]:
    """The files that a run writes, and its messages."""
    said: list[str] = []
    generate(str(root.path / "run"), str(root), lambda finding: said.append(str(finding)))
    return files(root.path / "run"), said
