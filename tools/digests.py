"""On what a chapter's stored outputs depend: its text, the data it opens, the code it imports; each
with a digest.

The code of a module counts without comments and docstrings, and with every module of the library
that it imports, and so on.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ssm_poison_lib._code import without_docstrings, written

PACKAGE = "ssm_poison_lib"


def digest(*contents: bytes) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the contents, each preceded by its
    length.
    """
    sha = hashlib.sha256()
    for content in contents:
        sha.update(b"%d:" % len(content) + content)
    return sha.hexdigest()[:16]


# ---- code ----------------------------------------------------------------------------------------


class Code(NamedTuple):
    """What counts of a module."""

    imports: frozenset[Path]
    digest: str
    texts: frozenset[str]


@cache
def code_of(path: Path, library: Path) -> Code:
    """Read a module once for all chapters that import it."""
    tree = tree_of(path)
    return Code(
        frozenset(imported(tree, library)),
        digest(written(tree).encode()),
        frozenset(texts(tree)),
    )


def tree_of(path: Path) -> ast.AST:
    """Return the syntax tree of a module, without docstrings."""
    return without_docstrings(ast.parse(path.read_text("utf-8")))


def imported(tree: ast.AST, library: Path) -> Iterator[Path]:
    """Yield the files of the library that a syntax tree imports, packages by `__init__.py`."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            first, *parts = name.split(".")
            if first != PACKAGE:
                continue
            for length in range(len(parts) + 1):  # a module runs its packages too
                place = library.joinpath(*parts[:length])
                for path in (place / "__init__.py", place.with_suffix(".py")):
                    if path.is_file():
                        yield path


def modules(tree: ast.AST, library: Path) -> list[Path]:
    """Return all files of the library that run when this code does, sorted."""
    found: set[Path] = set()
    waiting = list(imported(tree, library))
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(code_of(path, library).imports)
    return sorted(found)


def texts(tree: ast.AST) -> set[str]:
    """Return all texts in a syntax tree, but not the names in `__all__`."""
    exported: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
        ):
            exported.update(ast.walk(node.value))
    constants = (
        node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in exported
    )
    return {node.value for node in constants if isinstance(node.value, str)}


# ---- a chapter -----------------------------------------------------------------------------------


def opened(source: str, named: set[str], book: Path) -> list[Path]:
    """Return the data in folders of the book that a chapter's text names, as files.

    source: the text. named: all texts in its code, among which a part in braces
    ("sweeps/{name}.zarr") is looked for; where none fits, it stands for anything.
    """
    found: set[Path] = set()
    for folder in sorted(
        path for path in book.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))
    ):
        inside = sorted(folder.iterdir())
        for rest in re.findall(rf'["\']{re.escape(folder.name)}/([^"\'/]*)', source):
            pattern = re.compile("(.+)".join(map(re.escape, re.split(r"\{[^}]*\}", rest))))
            fits = {
                path: match.groups() for path in inside if (match := pattern.fullmatch(path.name))
            }
            exact = [path for path, parts in fits.items() if set(parts) <= named]
            for path in exact or fits or [folder]:
                found |= (
                    {file for file in path.rglob("*") if file.is_file()}
                    if path.is_dir()
                    else {path}
                )
    return sorted(found)


def dependencies(text: Path, code: str, library: Path) -> dict[str, str]:
    """Return what a chapter depends on, by name, with its digest.

    text: the chapter's file, in the folder of the book. code: all of its code cells. Names are
    "text", paths of data from the folder of the book, and paths of modules and data from that of
    the library.
    """
    tree = ast.parse(
        "\n".join(line for line in code.splitlines() if not line.lstrip().startswith(("%", "!")))
    )
    source = text.read_text("utf-8")
    found = {"text": digest(source.encode())}
    named = texts(tree)
    data = opened(source, named, text.parent)
    for store in sorted({path.relative_to(text.parent).parts[:2] for path in data}):
        inside = [path for path in data if path.relative_to(text.parent).parts[:2] == store]
        parts = [
            (path.relative_to(text.parent).as_posix().encode(), path.read_bytes())
            for path in inside
        ]
        found["/".join(store)] = digest(*(part for pair in parts for part in pair))
    for module in modules(tree, library):
        code_there = code_of(module, library)
        found[module.relative_to(library).as_posix()] = code_there.digest
        named |= code_there.texts
    for path in sorted((library / "data").rglob("*.json")):
        if named & {path.stem, path.name}:
            found[path.relative_to(library).as_posix()] = digest(path.read_bytes())
    return found


def changed(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return the names of what differs, is new or is gone."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
