"""Find where a test uses a private name of the product."""

import ast
from collections.abc import Iterator

OF_NAMED_TUPLES = {"_asdict", "_replace"}
"""Public methods (collections.namedtuple), with names that no field can have."""


def uses(source: str) -> Iterator[tuple[int, str]]:
    """The line and the text of each use of a private name that the source does not define itself.

    A use is an attribute (`server._process`), its name in a string (`setattr(server, "_process", …)`), or an import.
    """
    tree = ast.parse(source)
    own = set(_defined(tree))
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr="_exit"):
                continue
            case ast.Attribute(attr=name) if _private(name) and name not in own:
                yield node.lineno, ast.unparse(node)
            case ast.Call(func=function, args=arguments) if ast.unparse(function).endswith("attr"):
                words = [word.value for word in arguments[:2] if isinstance(word, ast.Constant)]
                if any(_private(part) for word in words for part in str(word).split(".")):
                    yield node.lineno, ast.unparse(node)
            case ast.ImportFrom(names=names) if any(_private(alias.name) for alias in names):
                yield node.lineno, ast.unparse(node)


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_" and name not in OF_NAMED_TUPLES


def _defined(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
