"""Cells that only check: folded on the page, under a line that says how many checks they hold."""

from __future__ import annotations

import ast
import json
from typing import Any

from sphinx.application import Sphinx

TAG = "checks"


def count_checks(source: str) -> int:
    """Return how many assert statements a cell of Python holds."""
    return sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(source)))


def fold(notebook: dict[str, Any], *, drop: bool = False) -> bool:
    """Fold the cells tagged "checks" of a notebook in its JSON form, or drop them; say whether
    there were any.
    """
    cells = [cell for cell in notebook["cells"] if TAG in cell["metadata"].get("tags", [])]
    for cell in cells:
        count = count_checks("".join(cell["source"]))
        if not count:
            raise ValueError(
                f"a cell tagged {TAG!r} must hold an assert; got {''.join(cell['source'])[:60]!r}"
            )
        tag = "remove-cell" if drop else "hide-input"
        if tag not in cell["metadata"]["tags"]:
            cell["metadata"]["tags"].append(tag)
        what = f"{count} checks" if count > 1 else "1 check"
        cell["metadata"].setdefault("mystnb", {}).update(
            code_prompt_show=f"{what} of this section", code_prompt_hide=f"{what} of this section"
        )
    return bool(cells)


def fold_source(app: Sphinx, page: str, source: list[str]) -> None:
    """Do so with a notebook that Sphinx is about to read; a printed book leaves the cells out."""
    if str(app.env.doc2path(page)).endswith(".ipynb"):
        notebook = json.loads(source[0])
        if fold(notebook, drop=app.builder.format != "html"):
            source[0] = json.dumps(notebook)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the above to a Jupyter Book build."""
    app.connect("source-read", fold_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
