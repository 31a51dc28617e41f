"""The anchors that the published book promises to keep: `tests/anchors.txt`, which a test compares
with the pages.

python tools/anchors.py    add the labels of _build/html (make book) to the list; a label that went
                           away stays in it

A label that another one replaces is listed by hand as `page#old -> page#new`. The anchors that
Sphinx makes from the words of a heading are not promised: give a heading a label where others
should be able to link to it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "anchors.txt"
# Labels start with their kind (CONTRIBUTING.md); names of the library have a dot.
LABEL = re.compile(
    r"(?:ch|sec|fig|tab|equation-eq|thm|prop|lem|cor|def|rem|exm|alg|ex|term|symbol)-.+|ssm_poison_lib\..+"
)


def labels(ids: Iterable[str]) -> set[str]:
    """Return the ids of a page that are labels."""
    return {anchor for anchor in ids if LABEL.fullmatch(anchor)}


def read_list() -> tuple[set[str], dict[str, str]]:
    """Return the promised anchors, as page#label, and where the moved ones are now."""
    lines = LIST.read_text("utf-8").split("\n") if LIST.exists() else []
    pairs = [line.split(" -> ") for line in lines if line and not line.startswith("#")]
    return {old for old, *_ in pairs}, {old: new for old, *rest in pairs for new in rest}


def main() -> int:
    """Write the list."""
    pages = sorted((ROOT / "_build" / "html" / "book").glob("*.html"))
    if not pages:
        print("no pages in _build/html: make book", file=sys.stderr)
        return 1
    found = {
        f"{page.stem}#{anchor}"
        for page in pages
        for anchor in labels(re.findall(r'\sid="([^"]+)"', page.read_text("utf-8")))
    }
    listed, moved = read_list()
    lines = [f"{old} -> {moved[old]}" if old in moved else old for old in sorted(found | listed)]
    head = "# Anchors that links from outside may use; written by tools/anchors.py"
    LIST.write_text("\n".join([head, *lines, ""]), "utf-8")
    print(
        f"{len(lines)} anchors, {len(found - listed)} new; gone:"
        f" {', '.join(sorted(listed - found - moved.keys())) or 'none'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
