"""Whether the server can load the middleware in VLLM_ARGS, without importing it.

The check also runs as root, and an import would run the module's code. So this module finds the source where the
server would find it, and parses it. vLLM requires a class or a coroutine function
(vllm/entrypoints/serve/middleware/register.py of 0.32).
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


def refusal(name: str) -> str:
    """Why the server would refuse a middleware; empty if it would not, or if the source does not show it."""
    module, _, attribute = name.rpartition(".")
    if not module or not all(part.isidentifier() for part in name.split(".")):
        return "is not a dotted name such as package.module.Class"
    if module.partition(".")[0] in sys.stdlib_module_names:
        return "is in Python's standard library, which has no middleware"
    try:
        spec = _find(module)
    except KeyError:
        # The directories of a namespace package within another package are known only after an import.
        return ""
    if spec is None:
        return f"cannot be imported: there is no module {module} in {sys.prefix}"
    if not spec.origin or not spec.origin.endswith(".py"):
        return ""
    return _refusal_by_source(Path(spec.origin), attribute)


def _find(module: str) -> ModuleSpec | None:
    """Like importlib.util.find_spec, which however would import the packages above the module."""
    spec, places = None, None
    parts = module.split(".")
    for number in range(len(parts)):
        if number and places is None:
            return None
        spec = PathFinder.find_spec(".".join(parts[: number + 1]), places)
        if spec is None:
            return None
        found = spec.submodule_search_locations
        places = None if found is None else list(found)
    return spec


def _refusal_by_source(file: Path, attribute: str) -> str:
    # Imported here: few instances have middleware of their own.
    import ast

    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError) as error:
        return f"cannot be imported: {file}: {error}"
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, definitions):
            # Definitions within if, try and with belong to the module too.
            waiting += ast.iter_child_nodes(node)
        elif node.name == attribute:
            plain = isinstance(node, ast.FunctionDef) and not node.decorator_list
            return "is a plain function; write a class or a coroutine function" if plain else ""
    # It may be assigned, imported, or made by the module's __getattr__: only an import would show what it is.
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {name for node in ast.walk(tree) if isinstance(node, ast.alias) for name in (node.name, node.asname or "")}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)} & {"__getattr__"}
    return "" if names & {attribute, "*", "__getattr__"} else f"cannot be imported: {file} defines no {attribute}"
