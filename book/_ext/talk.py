"""The slides of a talk, from one text and the book's own figures, shown by reveal.js from local
files.
"""

from __future__ import annotations

import html
import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from page import FOR_PHONE
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

SOURCE = Path("book") / "assets" / "talk.md"
# of the built book: the slides are talk.html beside its first page
TARGET = Path("_static") / "talk"
REVEAL = ("reset.css", "reveal.css", "reveal.js")
FIGURE = re.compile(r'<img src="figure:([\w-]+)(?:/(\d+))?" alt="([^"]*)"\s*/?>')
# Around a panel's frame, in points: room for its numbers, its words and what stands at line ends.
MARGINS = {"left": 44, "top": 20, "right": 22, "bottom": 34}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="_static/favicon.svg">
<script>
// Without scripts the slides stand below one another; the styles of reveal.js hide all but one.
document.documentElement.classList.add("slides-show");
// As light or dark as the book is (its own setting, or the system's); T switches.
const theme = document.documentElement.dataset;
try {{ theme.theme = localStorage.getItem("mode"); }} catch {{}}
if (!["light", "dark"].includes(theme.theme)) {{
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const follow = () => {{ theme.theme = dark.matches ? "dark" : "light"; }};
  follow();
  dark.addEventListener("change", follow);
}}
</script>
<link rel="stylesheet" href="_static/talk/reset.css">
<link rel="stylesheet" href="_static/talk/reveal.css" media="not all" id="reveal">
<script>document.getElementById("reveal").media = "all";</script>
<link rel="stylesheet" href="_static/talk.css">
</head>
<body>
<main><div class="reveal"><div class="slides">
{slides}
</div></div></main>
<script>
window.MathJax = {{ startup: {{ typeset: false }}, options: {{ enableMenu: false }} }};
</script>
<script src="_static/mathjax/tex-chtml.js"></script>
<script src="_static/talk/reveal.js"></script>
<script src="_static/talk/notes.js"></script>
<script>
// Held upright, a phone gets upright slides: the same letters, figures below each other.
const upright = matchMedia("(max-aspect-ratio: 3/4)");
const size = () =>
  upright.matches ? {{ width: 640, height: 1280 }} : {{ width: 1280, height: 720 }};
MathJax.startup.promise
  .then(() => MathJax.typesetPromise())
  .then(() => Reveal.initialize({{
    ...size(), hash: true, margin: 0.04, center: false, transition: "none", slideNumber: "c/t",
    keyboard: {{ 84: () => {{ theme.theme = theme.theme === "dark" ? "light" : "dark"; }} }},
    plugins: [RevealNotes],
  }}))
  .then(() => {{
    upright.addEventListener("change", () => Reveal.configure(size()));
    if (Reveal.isScrollView()) document.body.tabIndex = 0; // on a phone slides are scrolled
  }});
</script>
</body>
</html>
"""


def figures(book: Path) -> dict[str, str]:
    """Return the drawn figures of all chapters, as SVG for wide screens, by their names."""
    found = {}
    for notebook in sorted(book.glob("*.ipynb")):
        for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
            name = cell["metadata"].get("mystnb", {}).get("figure", {}).get("name")
            for output in cell.get("outputs", []):
                if name and "image/svg+xml" in output.get("data", {}):
                    found[name] = FOR_PHONE.sub("", "".join(output["data"]["image/svg+xml"]))
    return found


def panel(svg: str, number: int) -> str:
    """Return a figure's SVG cut to one of its panels, without the others: what fills half a page
    has letters that the last row cannot read.

    Args:
        svg: as Matplotlib draws it.
        number: of the panel, from 1.

    Raises:
        ValueError: if the figure has no such panel.
    """
    frame = re.search(rf'<g id="axes_{number}">\s*<g id="patch_\d+">\s*<path d="([^"]*)"', svg)
    if frame is None:
        raise ValueError(f"panel must be one of the figure's; got {number}")
    numbers = np.array(re.findall(r"-?\d+(?:\.\d+)?", frame[1]), dtype=float).reshape(-1, 2)
    (x, y), (right, bottom) = numbers.min(axis=0), numbers.max(axis=0)
    x, y = x - MARGINS["left"], y - MARGINS["top"]
    width, height = right + MARGINS["right"] - x, bottom + MARGINS["bottom"] - y
    size = f'width="{width:g}pt" height="{height:g}pt" viewBox="{x:g} {y:g} {width:g} {height:g}"'
    svg = re.sub(r'width="[^"]*pt" height="[^"]*pt" viewBox="[^"]*"', size, svg, count=1)
    for other in re.findall(rf'<g id="axes_(?!{number}")\d+">', svg):
        start = svg.index(other) + len(other)
        end = _closing(svg, start)
        # What it draws goes; the shapes of letters stay, which stand where they are used first.
        kept = "".join(re.findall(r"<defs>.*?</defs>", svg[start:end], re.DOTALL))
        svg = f'{svg[: start - 1]} display="none">{kept}{svg[end:]}'
    return svg


def _closing(svg: str, start: int) -> int:
    """Return where the group ends whose inside begins at `start`."""
    depth = 1
    for tag in re.finditer(r"<(/?)g[ >]", svg[start:]):
        depth += -1 if tag[1] else 1
        if not depth:
            return start + tag.start()
    raise ValueError("svg must close its groups")


def slides(text: str, drawn: dict[str, str]) -> list[str]:
    """Return the slides of a text, parted by lines of three hyphens; what follows "Note:" is for
    the speaker.

    Args:
        text: in Markdown, with formulas between dollars and figures as ![alternative
            text](figure:NAME), or /2 after the name for the second panel alone.
        drawn: SVG of the figures by NAME; panels that are shown join it as NAME-2.

    Returns:
        A section of HTML for each slide.

    Raises:
        ValueError: if a figure is not one of the book's, or has no alternative text.
    """
    md = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin, double_inline=True)
    md.add_render_rule("math_inline", lambda self, t, i, *_: rf"\({html.escape(t[i].content)}\)")
    md.add_render_rule(
        "math_inline_double", lambda self, t, i, *_: rf"\[{html.escape(t[i].content)}\]"
    )
    md.add_render_rule("math_block", lambda self, t, i, *_: rf"\[{html.escape(t[i].content)}\]")

    def figure(found: re.Match[str]) -> str:
        name, number, words = found.groups()
        if name not in drawn:
            raise ValueError(
                f"the talk's figure {name!r} is not one of the book's: {sorted(drawn)}"
            )
        if not words:
            raise ValueError(f"the talk's figure {name!r} must have an alternative text")
        if number:
            try:
                drawn[f"{name}-{number}"] = panel(drawn[name], int(number))
            except ValueError as error:
                raise ValueError(f"the talk's figure {name!r}: {error}") from None
            name = f"{name}-{number}"
        # A file of its own in an image: the ids of two figures on one page would mix.
        return f'<img src="_static/talk/{name}.svg" alt="{words}">'

    sections = []
    for part in re.split(r"^---$", text, flags=re.MULTILINE):
        shown, _, note = part.partition("\nNote:")
        aside = f'<aside class="notes">{md.render(note.strip())}</aside>' if note else ""
        sections.append(f"<section>{FIGURE.sub(figure, md.render(shown))}{aside}</section>")
    return sections


def write(app: Sphinx, error: Exception | None) -> None:
    """Write talk.html into the built book, with its figures and reveal.js."""
    source = Path(app.srcdir) / SOURCE
    whole = (
        app.env is not None and "book/cheat_sheet" in app.env.found_docs
    )  # not a part, for a test
    if error or app.builder.format != "html" or not source.exists() or not whole:
        return
    spec = importlib.util.find_spec("sphinx_revealjs")
    if spec is None or spec.origin is None:
        raise ExtensionError("sphinx-revealjs is not installed: pip install -r requirements.txt")
    reveal = Path(spec.origin).parent / "_static" / "revealjs"
    target = Path(app.outdir) / TARGET
    target.mkdir(parents=True, exist_ok=True)
    drawn = figures(source.parent.parent)
    try:
        sections = slides(source.read_text("utf-8"), drawn)
    except ValueError as wrong:
        raise ExtensionError(str(wrong)) from None
    for name in REVEAL:
        shutil.copyfile(reveal / "dist" / name, target / name)
    shutil.copyfile(reveal / "plugin" / "notes" / "notes.js", target / "notes.js")
    shutil.copyfile(reveal / "LICENSE", target / "LICENSE")
    for name in set(re.findall(r'src="_static/talk/([\w-]+)\.svg"', "".join(sections))):
        (target / f"{name}.svg").write_text(drawn[name], "utf-8")
    page = PAGE.format(title=html.escape(app.config["project"]), slides="\n".join(sections))
    (Path(app.outdir) / "talk.html").write_text(page, "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the above to a Jupyter Book build."""
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
