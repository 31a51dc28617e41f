"""What changed in a notebook: outputs that came out as before keep their bytes, and a review sees
texts and numbers.

As before: the same texts, but for measured times; the same drawings, but for the last digits of
coordinates and the names that Matplotlib makes from them.

python tools/outputs.py FILE    print a notebook's texts, code and printed outputs, each drawing as
                                one line
                                (`make diff`; any Python will do)
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

# A measured time, printed as "took 12.3 s": not compared.
SECONDS = r"took \d+(?:\.\d+)? (?:s|ms|µs)\b"
NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
NAME = re.compile(r'\bid="([^"]+)"')
NEAR = 1e-3  # of a point in a drawing
UNCOMPARED = "nbval-ignore-output"


def renamed(drawing: str) -> str:
    """Return an SVG whose names are numbered as they come."""
    numbers = {name: f"name-{k}" for k, name in enumerate(dict.fromkeys(NAME.findall(drawing)))}

    def number(found: re.Match[str]) -> str:
        return found[1] + numbers.get(found[2], found[2]) + found[3]

    return re.sub(r'(\bid="|href="#|url\(#)([^")]+)(["\)])', number, drawing)


def same_drawing(one: str, other: str) -> bool:
    """Say whether two SVGs show the same, to a thousandth of a point."""
    one, other = renamed(one), renamed(other)
    if NUMBER.sub("", one) != NUMBER.sub("", other):
        return False
    pairs = zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)
    return all(a == b or abs(float(a) - float(b)) <= NEAR for a, b in pairs)


def same(one: Any, other: Any) -> bool:
    """Say whether two outputs, or parts of outputs, are equal but for measured times and last
    digits.
    """
    if isinstance(one, str) and isinstance(other, str):
        if one.lstrip().startswith(("<?xml", "<svg")):
            return same_drawing(one, other)
        return re.sub(SECONDS, "", one) == re.sub(SECONDS, "", other)
    if isinstance(one, float) and isinstance(other, float):
        return one == other or math.isclose(one, other, rel_tol=1e-6)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def settle(notebook: NotebookNode, stored: NotebookNode) -> None:
    """Give the cells of a notebook that has just run the stored outputs where these are the same.

    A cell whose output is not compared keeps the stored one as long as all others do.
    """
    before = {cell.id: cell.outputs for cell in stored.cells if cell.cell_type == "code"}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    free = {cell.id for cell in code if UNCOMPARED in cell.metadata.get("tags", [])}
    new = {cell.id for cell in code if not same(cell.outputs, before.get(cell.id))}
    for cell in code:
        if cell.id in before and not (new - free if cell.id in free else cell.id in new):
            cell.outputs = before[cell.id]


# ---- what a review sees --------------------------------------------------------------------------


def joined(text: Any) -> str:
    """Return a text of a notebook, which may be stored as its lines."""
    return "".join(text) if isinstance(text, list) else str(text)


def readable(notebook: dict[str, Any]) -> Iterator[str]:
    """Yield a notebook's lines for a person: sources, texts among the outputs, a digest of whatever
    is drawn.
    """
    for cell in notebook["cells"]:
        tags = ", ".join(cell["metadata"].get("tags", []))
        yield f"---- {cell['cell_type']}{f' [{tags}]' if tags else ''}"
        yield joined(cell["source"])
        for output in cell.get("outputs", []):
            parts = output.get(
                "data", {output["output_type"]: output.get("text", output.get("evalue", ""))}
            )
            for kind, content in sorted(parts.items()):
                if kind.startswith("text/") or kind in ("stream", "error"):
                    yield f">>>> {kind}\n{joined(content).rstrip()}"
                else:
                    text = joined(content)
                    yield f">>>> {kind}, digest {hashlib.sha256(text.encode()).hexdigest()[:8]}"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print(*readable(json.loads(Path(sys.argv[1]).read_text("utf-8"))), sep="\n")
