"""The library's modules: what each is, which layer it stands on, what it imports (`python
tools/readme.py` writes it down).
"""

from __future__ import annotations

import ast
import html
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from digests import imported, tree_of

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "ssm_poison_lib"
PICTURE = ROOT / "book" / "assets" / "imports.svg"

# From the ground up: a module imports its own layer and those before it. A name may stand for
# several (fnmatch).
LAYERS: dict[str, tuple[str, ...]] = {
    "ground": ("_checks", "_code", "_files", "_jit"),
    "models, data, measures": ("ssm", "sequences", "networks", "metrics", "records"),
    "the equation, readable and compiled": ("_trajectory", "equations", "_engines", "_engines.*"),
    "training": (
        "flow",
        "flows",
        "parametrizations",
        "descent",
        "network_flow",
        "torch_reference",
    ),
    "theory": ("algebra", "checklist"),
    "figures": ("figures",),
    "the paper's settings": ("tensorflow_random", "paper"),
    "architectures, attacks, defences": (
        "architectures",
        "architectures.*",
        "attacks",
        "attacks.*",
        "defences",
        "defences.*",
        "audit",
        "audit.*",
    ),
    "studies": ("studies", "studies.*"),
    "command line": ("_commands", "_commands.*", "__main__"),
}
# what stands there is imported by almost all: those arrows are not drawn
GROUND = next(iter(LAYERS))


@cache
def modules() -> dict[str, Path]:
    """Return name -> file of every module, a package by its own name."""
    files = {
        path.relative_to(LIBRARY).with_suffix(""): path for path in sorted(LIBRARY.rglob("*.py"))
    }
    names = {
        ".".join(name.parts).removesuffix("__init__").rstrip("."): path
        for name, path in files.items()
    }
    return {name: path for name, path in names.items() if name}


def layer(name: str) -> str:
    """Return the layer on which a module stands."""
    found = [
        title for title, names in LAYERS.items() if any(fnmatch(name, pattern) for pattern in names)
    ]
    if len(found) != 1:
        raise ValueError(
            f"{name} must stand on one layer of LAYERS in tools/modules.py; it stands on {found}"
        )
    return found[0]


class WithoutTypes(ast.NodeTransformer):
    """Takes out what is imported for the type checker alone."""

    def visit_If(self, node: ast.If) -> ast.AST:
        """Keep the other branch."""
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return ast.If(ast.Constant(False), [ast.Pass()], node.orelse)
        return self.generic_visit(node)


@cache
def imports() -> dict[str, tuple[str, ...]]:
    """Return the names of the modules that each module imports itself, also inside functions."""
    names = {path: name for name, path in modules().items()}
    found = {}
    for name, path in modules().items():
        tree = WithoutTypes().visit(tree_of(path))
        targets = {names[file] for file in imported(tree, LIBRARY) if file in names} - {name}
        # The package of a module that is imported runs too; what it imports is its own affair.
        packages = {
            target for target in targets if any(other.startswith(f"{target}.") for other in targets)
        }
        found[name] = tuple(sorted(targets - packages))
    return found


def sentence(name: str) -> str:
    """Return the first line of a module, which says what it is."""
    text = ast.get_docstring(ast.parse(modules()[name].read_text("utf-8"))) or ""
    return text.partition("\n")[0]


# ---- the picture ---------------------------------------------------------------------------------

WIDE, ROW, BOX, LETTER = (
    380,
    26,
    18,
    5.9,
)  # units: width, distance of rows, height of a box, width of a letter


def direct(graph: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Return the imports that are not also made by something imported: enough to see who reaches
    whom.
    """

    @cache
    def below(name: str) -> frozenset[str]:
        return frozenset(graph[name]).union(*map(below, graph[name]))

    return [
        (name, target)
        for name, targets in graph.items()
        for target in targets
        if not any(target in below(other) for other in targets)
    ]


def placed() -> tuple[dict[str, tuple[float, float, float]], list[tuple[str, float, float]]]:
    """Return module -> (left, top, width) of its box, and (title, top, bottom) of each layer, the
    command line first.
    """
    boxes, bands, y = {}, [], 0.0
    for title in reversed(LAYERS):
        names = [name for name in modules() if layer(name) == title]
        if not names:
            continue
        rows: list[list[tuple[str, float]]] = [[]]
        for name in names:
            width = 10 + LETTER * len(name)
            if rows[-1] and sum(w + 6 for _, w in rows[-1]) + width > WIDE - 16:
                rows.append([])
            rows[-1].append((name, width))
        top, y = y, y + 20
        for row in rows:
            x = (WIDE - sum(w + 6 for _, w in row) + 6) / 2
            for name, width in row:
                boxes[name] = (x, y, width)
                x += width + 6
            y += ROW
        bands.append((title, top, y))
        y += 14
    return boxes, bands


STYLE = """\
.band{fill:#eef1f4}.box{fill:#fff;stroke:#767676}.private{stroke-dasharray:3 2}\
.arrow{stroke:#0072b2;stroke-width:.8;opacity:.6}
text{font:10px ui-monospace,monospace;fill:#1b1b1b}.title{font:italic 10px sans-serif;fill:#595959}
@media (prefers-color-scheme:dark){.band{fill:#23272c}.box{fill:#14181e;stroke:#9a9a9a}\
.arrow{stroke:#4aa8e0}
text{fill:#e8e8e8}.title{fill:#b0b0b0}}"""


def drawing() -> str:
    """Return the modules on their layers as SVG, with an arrow from each to what it imports."""
    boxes, bands = placed()
    parts = []
    for title, top, bottom in bands:
        parts.append(
            f'<rect class="band" y="{top:g}" width="{WIDE}" height="{bottom - top:g}" rx="5"/>'
        )
        parts.append(f'<text class="title" x="8" y="{top + 13:g}">{html.escape(title)}</text>')
    for name, target in direct(imports()):
        if layer(target) != GROUND:
            (x, y, w), (u, v, width) = boxes[name], boxes[target]
            start = (x + w / 2, y + (BOX if v > y else BOX / 2))
            end = (u + width / 2, v if v > y else v + BOX / 2)
            path = "M{:.4g} {:.4g}L{:.4g} {:.4g}".format(*start, *end)
            parts.append(f'<path class="arrow" d="{path}" marker-end="url(#end)"/>')
    for name, (x, y, w) in boxes.items():
        private = " private" if any(part.startswith("_") for part in name.split(".")) else ""
        parts.append(
            f'<rect class="box{private}" x="{x:.4g}" y="{y:g}" width="{w:.4g}" height="{BOX}"'
            ' rx="3"/>'
        )
        parts.append(f'<text x="{x + 5:.4g}" y="{y + 13:g}">{name}</text>')
    marker = (
        '<marker id="end" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="5" markerHeight="5"'
        ' orient="auto"><path d="M0 0L6 3L0 6z" fill="#0072b2"/></marker>'
    )
    height = bands[-1][2]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {height:g}"'
        f' width="{2 * WIDE}" height="{2 * height:g}"><style>{STYLE}</style><defs>{marker}</defs>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


# ---- the table -----------------------------------------------------------------------------------


def table() -> str:
    """Return the modules with their sentences as a table, layer by layer from the top, packages
    before their files.
    """
    rows = ["| module | what it is |", "| --- | --- |"]
    for title in reversed(LAYERS):
        rows += [
            f"| `{name}` | {sentence(name).replace('|', chr(92) + '|')} |"
            for name in modules()
            if layer(name) == title
        ]
    return "\n".join(rows) + "\n"
