"""What the code of a function is, for results that must not be mixed with those of other code."""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import threading
from collections.abc import Callable
from importlib.util import resolve_name
from typing import Any

__all__ = ["code_digests", "without_docstrings", "written"]

_PARSING = threading.Lock()  # in Python 3.11 the parser fails in two threads at once


def code_digests(function: Callable[..., Any]) -> dict[str, str]:
    """Return "module:name" -> digest for a function and all functions, classes and constants of its
    package that it uses.

    The package is the part of the module's name before the first dot. Comments, docstrings and
    layout do not count. Where a module has no file (in a notebook), the function's own code is all
    that is known.
    """
    package = function.__module__.partition(".")[0]
    left = [(function.__module__, function.__qualname__.partition(".")[0])]
    digests: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()  # a package may import its own modules: a circle
    modules: dict[str, tuple[dict[str, ast.stmt], dict[str, tuple[str, str]]]] = {}
    while left:
        module, name = left.pop()
        if module.partition(".")[0] != package or (module, name) in seen:
            continue
        seen.add((module, name))
        if module not in modules:
            modules[module] = _names(module)
        defined, imported = modules[module]
        if name in defined:
            node = defined[name]
            digests[f"{module}:{name}"] = _digest(written(node))
            for part in ast.walk(node):
                if isinstance(part, ast.Name):
                    left.append((module, part.id))
                elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                    left.append(
                        (".".join(filter(None, imported.get(part.value.id, ()))), part.attr)
                    )
        elif all(imported.get(name, ("", ""))):
            left.append(imported[name])
    return digests or {
        f"{function.__module__}:{function.__qualname__}": _digest(_own_code(function))
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def written(node: Any) -> str:
    """Write a syntax tree as text that is the same in every version of Python.

    `ast.dump` and `ast.unparse` are not.
    """
    if isinstance(node, list):
        return f"[{','.join(map(written, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.JoinedStr):  # some versions add an empty text
        node = ast.JoinedStr([part for part in node.values if getattr(part, "value", None) != ""])
    fields = [
        f"{name}={written(value)}"
        for name, value in ast.iter_fields(node)
        if value not in (None, [])
    ]
    return f"{type(node).__name__}({','.join(fields)})"


def without_docstrings(tree: ast.Module) -> ast.Module:
    """Take the docstrings, and other texts that stand alone, out of a module, in place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
    return tree


def _is_text(line: ast.stmt) -> bool:
    value = line.value if isinstance(line, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _own_code(function: Callable[..., Any]) -> str:
    """Return the code of a function of a module without a file."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # typed at a prompt
        code: Any = getattr(inspect.unwrap(function), "__code__", None)
        constants = [value for value in getattr(code, "co_consts", ()) if not inspect.iscode(value)]
        return repr((getattr(code, "co_code", None), getattr(code, "co_names", None), constants))


def _names(module: str) -> tuple[dict[str, ast.stmt], dict[str, tuple[str, str]]]:
    """Return what a module defines at its top, without docstrings, and what it imports: name ->
    (module, name there or "").
    """
    try:
        with _PARSING:
            loaded = importlib.import_module(module)
            tree = without_docstrings(ast.parse(inspect.getsource(loaded)))
    except (ImportError, OSError, TypeError):  # no module, or one without a file
        return {}, {}
    imported: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = resolve_name(
                "." * node.level + (node.module or ""), loaded.__package__ or module
            )
            imported |= {name.asname or name.name: (base, name.name) for name in node.names}
        elif isinstance(node, ast.Import):
            imported |= {name.asname: (name.name, "") for name in node.names if name.asname}
    defined: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in (part for whole in targets for part in ast.walk(whole)):
                if isinstance(target, ast.Name):
                    defined[target.id] = node
    return defined, imported
