"""Whether the server can load what `--middleware` in VLLM_ARGS names, without importing it.

Root checks too, and importing would run the module's code. So its source is looked for where the server would look,
and read. vLLM wants a class or a coroutine function (vllm/entrypoints/serve/middleware/register.py of 0.32).
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path


def refusal(name: str) -> str:
    """Why the server would refuse a middleware, empty if it takes it or if the source does not tell."""
    module, _, attribute = name.rpartition(".")
    if not module or not all(part.isidentifier() for part in name.split(".")):
        return "is not a dotted name such as package.module.Class"
    if module.partition(".")[0] in sys.stdlib_module_names:
        return "is in Python's standard library, which has no middleware"
    try:
        spec = _find(module)
    except KeyError:
        # A namespace package within another knows its folders only once it is imported.
        return ""
    if spec is None:
        return f"cannot be imported: there is no module {module} in {sys.prefix}"
    if not spec.origin or not spec.origin.endswith(".py"):
        return ""
    return _refusal_by_source(Path(spec.origin), attribute)


def _find(module: str) -> ModuleSpec | None:
    """As importlib.util.find_spec, which would import the packages above the module."""
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
            # Within if, try and with, definitions are the module's too.
            waiting += ast.iter_child_nodes(node)
        elif node.name == attribute:
            plain = isinstance(node, ast.FunctionDef) and not node.decorator_list
            return "is a plain function; write a class or a coroutine function" if plain else ""
    # It may be assigned, imported, or made by the module's __getattr__: only an import would tell what it is.
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {name for node in ast.walk(tree) if isinstance(node, ast.alias) for name in (node.name, node.asname or "")}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)} & {"__getattr__"}
    return "" if names & {attribute, "*", "__getattr__"} else f"cannot be imported: {file} defines no {attribute}"
