import sys
from pathlib import Path

import pytest

from hxp_enterprise_llm.engine.middleware import refusal

SOURCE = """
import logging
from elsewhere import Imported
raise SystemExit("nobody may import this")
class Class: pass
async def coroutine(request, call_next): pass
def function(): pass
@decorated
def decorated_function(): pass
if True:
    class Conditional: pass
assigned = Class
def other():
    class Inner: pass
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "site/pkg"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('nobody may import this')")
    (package / "own.py").write_text(SOURCE)
    (package / "open.py").write_text("from elsewhere import *")
    (package / "lazy.py").write_text("def __getattr__(name): pass")
    (package / "broken.py").write_text("class X(")
    (package / "deep.py").write_text("if a: pass\n" + "elif a: pass\n" * 60 + "else:\n class X: pass\n")
    monkeypatch.syspath_prepend(str(package.parent))
    return package


@pytest.mark.parametrize(
    "name",
    [
        "own.Class",
        "own.coroutine",
        "own.decorated_function",
        "own.Conditional",
        "own.assigned",
        "own.Imported",
        "open.X",
        "lazy.X",
        "deep.X",
    ],
)
def test_importable_middleware_is_accepted(package: Path, name: str) -> None:
    assert refusal(f"pkg.{name}") == ""
    assert "pkg" not in sys.modules


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("os.system", "standard library"),
        ("builtins.print", "standard library"),
        ("Class", "is not a dotted name"),
        ("pkg..X", "is not a dotted name"),
        ("pkg.own.function", "is a plain function"),
        ("pkg.own.Inner", "defines no Inner"),
        ("pkg.own.None1", "defines no None1"),
        ("pkg.broken.X", "cannot be imported"),
        ("pkg.none.X", "there is no module pkg.none"),
        ("pkg.own.deeper.X", "there is no module pkg.own.deeper"),
        ("no_such_package.X", "there is no module no_such_package"),
    ],
)
def test_unusable_middleware_is_refused(package: Path, name: str, why: str) -> None:
    assert why in refusal(name)
    assert "pkg" not in sys.modules
