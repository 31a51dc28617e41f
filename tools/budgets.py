"""What each page asks of its reader: words, numbers, visible cells, and visible checks and prints
among them.

python tools/budgets.py            print the table, beside the budgets in book/budgets.json
python tools/budgets.py shrink     lower the budgets to what the pages need now; a budget never
                                   grows

A cell is visible if its code is: not folded (hide-input, hide-cell), not removed, and not tagged
"checks".
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from pathlib import Path

import jupytext
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = ROOT / "book" / "budgets.json"
HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell", "checks"}
COUNTS = ("words", "numbers", "cells", "asserts", "prints")
# Not words on the page: comments, directive lines and their options, labels, targets of links and
# roles, formulas.
LINES = re.compile(r"^%.*$|^\+\+\+.*$|^[`:]{3,}.*$|^:[\w-]+:.*$|^\([\w-]+\)=$", re.MULTILINE)
MARKUP = re.compile(r"\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|\{[\w:-]+\}`[^`<]*`|</?\w[^>]*>", re.DOTALL)


def visible(cell: NotebookNode) -> bool:
    """Return whether a reader sees the code of a cell."""
    return cell.cell_type == "code" and not HIDDEN & set(cell.metadata.get("tags", []))


def count(notebook: NotebookNode) -> dict[str, int]:
    """Return the counts of a page by name (see COUNTS)."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    captions = [
        str(cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", ""))
        for cell in notebook.cells
    ]
    words = MARKUP.sub(" ", LINES.sub("", "\n".join([text, *captions]))).split()
    trees = [ast.parse(cell.source) for cell in notebook.cells if visible(cell)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return {
        "words": sum(bool(re.search(r"[A-Za-z]{2}|\b[aI]\b", word)) for word in words),
        "numbers": len(re.findall(r"(?<![\w{-])\d[\d,.]*", " ".join([text, *captions]))),
        "cells": len(trees),
        "asserts": sum(isinstance(node, ast.Assert) for node in nodes),
        "prints": sum(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
            for node in nodes
        ),
    }


def counts() -> dict[str, dict[str, int]]:
    """Return the counts of every page with code, by its name."""
    texts = [
        text
        for text in sorted((ROOT / "book").glob("*.md"))
        if text.read_text("utf-8").startswith("---\njupytext:")
    ]
    return {text.stem: count(jupytext.read(text)) for text in texts}


def budgets() -> dict[str, dict[str, int]]:
    """Return the stored budgets: page -> count -> the most that it may have."""
    return json.loads(BUDGETS.read_text("utf-8")) if BUDGETS.exists() else {}


def over(found: dict[str, dict[str, int]], allowed: dict[str, dict[str, int]]) -> list[str]:
    """Return a line for each count above its budget, and for each page without one."""
    lines = [
        f"{page} has no budget: python tools/budgets.py shrink"
        for page in found.keys() - allowed.keys()
    ]
    for page in sorted(found.keys() & allowed.keys()):
        lines += [
            f"{page}: {found[page][name]} {name}, budget {allowed[page][name]}"
            for name in COUNTS
            if found[page][name] > allowed[page][name]
        ]
    return lines


def shrunk(
    found: dict[str, dict[str, int]], allowed: dict[str, dict[str, int]]
) -> dict[str, dict[str, int]]:
    """Return the budgets with each lowered to its count; a new page gets what it has, a page that
    is gone goes.
    """
    return {
        page: {
            name: min(value, allowed.get(page, {}).get(name, value)) for name, value in row.items()
        }
        for page, row in found.items()
    }


def main() -> int:
    """Print the table, or lower the budgets; return 1 if a page is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="?", choices=["show", "shrink"], default="show")
    found, allowed = counts(), budgets()
    if parser.parse_args().command == "shrink":
        allowed = shrunk(found, allowed)
        rows = (f"{json.dumps(page)}: {json.dumps(row)}" for page, row in allowed.items())
        BUDGETS.write_text("{\n" + ",\n".join(rows) + "\n}\n", "utf-8")
    print(f"{'page':22s}" + "".join(f"{name:>16s}" for name in COUNTS))
    for page, row in found.items():
        cells = (f"{row[name]} of {allowed.get(page, {}).get(name, '-')}" for name in COUNTS)
        print(f"{page:22s}" + "".join(f"{cell:>16s}" for cell in cells))
    lines = over(found, allowed)
    print(*lines, sep="\n")
    return int(bool(lines))


if __name__ == "__main__":
    raise SystemExit(main())
