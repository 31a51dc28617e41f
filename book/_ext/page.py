"""What a page says about itself (description, run time, downloads), and what it need not load."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
import textwrap
import xml.etree.ElementTree as ElementTree
from datetime import date
from pathlib import Path
from typing import Any

import pydata_sphinx_theme
import yaml
from docutils import nodes
from docutils.statemachine import StringList
from fontTools import subset
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.osutil import relative_uri

GREEK = dict(
    alpha="α",
    beta="β",
    gamma="γ",
    delta="δ",
    varepsilon="ε",
    kappa="κ",
    lambda_="λ",
    mu="μ",
    tau="τ",
    phi="φ",
)
LENGTH = 180  # of a description, in characters: about what search engines show
IMAGE = re.compile(r'<img (?![^>]*\bwidth=)([^>]*?\bsrc="((?:\.\./)*_images/([^"]+))"[^>]*>)')
# A figure's second drawing, for phones, which `figures` hides in the first.
FOR_PHONE = re.compile(r'<svg class="phone" display="none" (.*)(?=</svg>\s*$)', re.DOTALL)
PHONE = "(max-width: 600px)"  # as in book.css
COORDINATES = re.compile(r'\b(?:d|x|y|points)="[^"]*"')
LONG = re.compile(r"-?\d+\.\d{3,}(?!\d|e)")
REPEATED = re.compile(r"(\n<use (?![^>]*opacity)[^>]*/>)\1+")
# Scripts that a page loads and does not use: the icons come from the theme's fonts; the search has
# a page of its own.
ICON_SCRIPT = re.compile(r"\s*<script[^>]*scripts/fontawesome\.js[^>]*></script>")
SEARCH_SCRIPTS = re.compile(
    r'\s*<script src="[^"]*(?:searchtools|language_data|searchindex)\.js[^"]*"></script>'
)
# All others run after the text is shown, in their order, but for two that set things up for what
# follows.
BLOCKING = re.compile(
    r'<script ((?:data-[\w-]+="[^"]*"'
    r' )?src="(?![^"]*(?:documentation_options|/book)\.js)[^"]*")></script>'
)
ICON_FONT = "vendor/fontawesome/webfonts/fa-solid-900.woff2"
# In style sheets: the glyph of the icons of these classes; a glyph that belongs to no icon class.
ICON_RULE = re.compile(r'([^{}]*):before\{content:"\\([0-9a-f]+)"\}')
ICON_TEXT = re.compile(r'content:\s*"\\([ef][0-9a-f]{3})"')
# This one, a quarter of a megabyte, is fetched first, and runs when it is there: the others do not
# wait for it. (It stands after book.js, where it finds its settings.)
MATHEMATICS = re.compile(r'<script[^>]*src="([^"]*mathjax/[^"]*)"></script>')
OPENING = "\n:class: opening\n"
LOGGER = logging.getLogger(__name__)
QUESTION = re.compile(r"^- \*\*Question\.\*\* (.*?)(?=^- \*\*)", re.MULTILINE | re.DOTALL)
AFTERWARDS = re.compile(r"^- \*\*Afterwards you can\*\* ", re.MULTILINE)
NEEDS = re.compile(r"^- \*\*Needs\*\* (.*?)\. \*\*Runs", re.MULTILINE | re.DOTALL)
UNUSED = (
    "_static/**/*.map",
    "_static/scripts/fontawesome.js*",
    "_static/vendor/**/*.ttf",
    "_static/sphinx-thebe.*",
    "_static/locales/**/*.*",
    # offered as downloads, or built into pages
    "_static/race.*",
    "_static/cheat_sheet.pdf",
    "_static/poisoned.py",
    "_static/mymodel.py",
    "_static/talk.md",
    "_static/*webpack-macros.html",
)


# ---- descriptions --------------------------------------------------------------------------------


def in_letters(tex: str) -> str:
    """Write a short formula in plain letters: Greek ones as such, without TeX's braces and
    commands.
    """
    for name, letter in GREEK.items():
        tex = re.sub(rf"\\{name.rstrip('_')}\b", letter, tex)
    tex = re.sub(r"\\(?:mathrm|operatorname|text)\b", "", tex)
    tex = tex.replace(r"\dots", "…").replace(r"\le", "≤").replace(r"\ge", "≥").replace("^*", "*")
    return re.sub(r"[{}\\]", "", tex)


def in_words(node: nodes.Node) -> str:
    """Return the text of a paragraph, its formulas in letters, without footnotes and citations."""
    if isinstance(node, nodes.math):
        return in_letters(node.astext())
    if isinstance(node, nodes.Text):
        return node.astext()
    return "".join(map(in_words, node.children))


def shorten(text: str, length: int = LENGTH) -> str:
    """Return the first whole sentences that fit, or as many words."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    ends = [match.end() for match in re.finditer(r"[.?!](?= |$)", text[: length + 1])]
    return text[: ends[-1]].rstrip() if ends else text[: text.rindex(" ", 0, length)] + " …"


def description(doctree: nodes.document) -> str:
    """Return what a page is about: the question in its opening box, or its first paragraph."""
    for box in doctree.findall(nodes.admonition):
        if "opening" in box["classes"]:
            question = in_words(next(box.findall(nodes.paragraph)))
            return shorten(question.removeprefix("Question.").strip())
    plain = (
        paragraph
        for paragraph in doctree.findall(nodes.paragraph)
        if isinstance(paragraph.parent, nodes.section)
    )
    first = next(plain, None)
    return shorten(in_words(first)) if first is not None else ""


# ---- run time and downloads ----------------------------------------------------------------------


def facts(app: Sphinx, page: str) -> str:
    """Return the line under a page made from a notebook: when it ran, for how long, and where its
    sources are.
    """
    noted = json.loads((Path(app.srcdir) / "book" / "status.json").read_text("utf-8")).get(
        Path(page).name
    )
    if noted is None:
        return ""
    day, name = date.fromisoformat(noted["executed"]), Path(page).name
    return (
        f'<p class="page-facts">This page ran in {noted["seconds"]:.0f} s on two cores on'
        f' {day:%-d %B %Y} (<a href="status.html">status</a>). Download it as <a'
        f' href="../_sources/book/{name}.ipynb" download>notebook without outputs</a> or <a'
        f' href="../_sources/book/{name}.md" download>text</a>.</p>'
    )


def add_text_download(context: dict[str, Any], page: str) -> None:
    """Offer the text beside the notebook in the menu of downloads."""
    for group in context.get("header_buttons", []):
        if group.get("label") == "download-buttons":
            button = {
                "type": "link",
                "url": f"{context['pathto']('_sources', 1)}/{page}.md",
                "text": ".md",
                "tooltip": "Download the text of this page",
                "icon": "fas fa-file",
                "label": "download-text-button",
            }
            group["buttons"].insert(1, button)


# ---- the map of the book -------------------------------------------------------------------------


# of the map, in its own units: room for arrows, width, space between chapters
LEFT, WIDE, GAP = 56, 360, 22


def arrows(places: dict[str, tuple[int, int]], needs: dict[str, list[str]]) -> str:
    """Draw an arrow from each chapter to those that need it: straight to the next one, to later
    ones in lanes at the left.
    """
    order = list(places)
    steps = {a: [order.index(b) for b in order if a in needs[b]] for a in order}
    paths: list[str] = []
    taken: list[tuple[int, int, int]] = []  # lane, first and last chapter beside it
    # A short way keeps near the chapters, a long one goes around it.
    for a in sorted(order, key=lambda name: max(steps[name], default=0) - order.index(name)):
        here, far = order.index(a), [step for step in steps[a] if step > order.index(a) + 1]
        if here + 1 in steps[a]:
            paths.append(f"M{LEFT + 20} {places[a][1]}V{places[order[here + 1]][0] - 1}")
        if far:
            busy = {lane for lane, first, last in taken if first < max(far) and here < last}
            lane = next(lane for lane in range(len(order)) if lane not in busy)
            taken.append((lane, here, max(far)))
            for step in far:
                x = LEFT - 14 - 12 * lane
                paths.append(
                    f"M{LEFT} {places[a][1] - 9}H{x}V{places[order[step]][0] + 9}H{LEFT - 1}"
                )
    return "".join(f'<path d="{path}" marker-end="url(#needed-by)"/>' for path in paths)


def drawing(parts: dict[str, dict[str, str]], page: str) -> str:
    """Return the map as SVG: the parts as fields, the chapters in them as links, what needs what as
    arrows.
    """
    y, bands, boxes, places, needs = 0, [], [], {}, {}
    for part, texts in parts.items():
        top, y = y, y + 30
        for file, text in texts.items():
            name = Path(file).name.replace("_", "-")
            words = textwrap.wrap(re.search(r"^# (.*)", text, re.MULTILINE)[1], 40)  # type: ignore[index]
            places[name] = (y, y + 12 + 17 * len(words))
            needs[name] = re.findall(r"{ref}`ch-([\w-]+)`", NEEDS.search(text)[1])  # type: ignore[index]
            title = "".join(
                f'<tspan x="{LEFT + 12}" y="{y + 19 + 17 * line}">{html.escape(row)} </tspan>'
                for line, row in enumerate(words)
            )
            boxes.append(
                f'<a href="{relative_uri(page, file)}.html"><rect x="{LEFT}" y="{y}" rx="4"'
                f' width="{WIDE - LEFT - 10}"'
                f' height="{places[name][1] - y}"/><text>{title}</text></a>'
            )
            y = places[name][1] + GAP
        bands.append(f'<rect y="{top}" width="{WIDE}" height="{y - top - 10}" rx="6"/>')
        bands.append(
            f'<text x="{WIDE - 10}" y="{top + 19}" text-anchor="end">{html.escape(part)}</text>'
        )
    return (
        f'<svg class="chapter-drawing" viewBox="0 0 {WIDE} {y - 8}" role="group" aria-label="Map of'
        " the chapters. An arrow"
        " leads from each to those that need it; the list after it says the same in"
        ' words."><defs><marker id="needed-by"'
        ' viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path'
        ' d="M0 0L8 4L0 8z"/>'
        f"</marker></defs>{''.join(bands)}{arrows(places, needs)}{''.join(boxes)}</svg>"
    )


def box_fault(text: str, *, asked: bool) -> str:
    """Return what is wrong with the opening box of a chapter, empty if nothing is, or if it has
    none and need not have one.
    """
    if OPENING not in text:
        return "it has no opening box (:class: opening)" if asked else ""
    lines = {
        "- **Question.** ...": QUESTION,
        "- **Afterwards you can** ...": AFTERWARDS,
        "- **Needs** .... **Runs in** ...": NEEDS,
    }
    lacking = [shape for shape, pattern in lines.items() if not pattern.search(text)]
    return f"its opening box has no line like {lacking[0]!r}" if lacking else ""


class ChapterMap(SphinxDirective):
    """The chapters in their order, drawn and each with its question, what it needs and its run
    time, from the opening boxes.
    """

    def run(self) -> list[nodes.Node]:
        """Return the drawing, for HTML, and a list of chapters for each part of the book."""
        root = Path(self.env.srcdir)
        seconds = json.loads((root / "book" / "status.json").read_text("utf-8"))
        parts: dict[str, dict[str, str]] = {}
        for part in yaml.safe_load((root / "_toc.yml").read_text("utf-8"))["parts"]:
            for file in (chapter["file"] for chapter in part["chapters"]):
                text = (root / f"{file}.md").read_text("utf-8")
                if fault := box_fault(text, asked=part.get("numbered", False)):
                    LOGGER.warning("not on the map of the chapters: %s", fault, location=file)
                elif OPENING in text:
                    parts.setdefault(part["caption"], {})[file] = text
                    self.env.note_dependency(f"{file}.md")
        lines: list[str] = []
        for part, texts in parts.items():
            lines += [
                f"**{part}**",
                "",
                *(self.line(file, text, seconds) for file, text in texts.items()),
                "",
            ]
        box = nodes.container(classes=["chapter-map"])
        self.state.nested_parse(StringList(lines, source="chapter-map"), self.content_offset, box)
        return [nodes.raw("", drawing(parts, self.env.docname), format="html"), box]

    def line(self, file: str, text: str, seconds: dict[str, Any]) -> str:
        """Return a chapter's line."""
        name = Path(file).name
        time = f" Runs in {seconds[name]['seconds']:.0f} s." if name in seconds else ""
        words = " ".join(f"{QUESTION.search(text)[1]} Needs {NEEDS.search(text)[1]}.".split())  # type: ignore[index]
        return f"- {{ref}}`ch-{name.replace('_', '-')}`: {words}{time}"


# ---- size of figures -----------------------------------------------------------------------------


def size(path: Path) -> tuple[int, int] | None:
    """Return width and height of a picture in CSS pixels; None for a kind that is not measured."""
    if path.suffix == ".svg":
        return svg_size(path.read_text("utf-8"))
    if path.suffix == ".png":
        head = path.read_bytes()[16:24]
        return int.from_bytes(head[:4], "big"), int.from_bytes(head[4:], "big")
    return None


def svg_size(svg: str) -> tuple[int, int] | None:
    """Return width and height of an SVG in CSS pixels; None if it does not say them."""
    root = ElementTree.fromstring(svg.encode())
    units = {"pt": 4 / 3, "px": 1.0, "": 1.0}
    found = [re.fullmatch(r"([\d.]+)(pt|px|)", root.get(side, "")) for side in ("width", "height")]
    return tuple(round(float(m[1]) * units[m[2]]) for m in found) if all(found) else None  # type: ignore[return-value]


def for_phone(svg: str) -> str | None:
    """Return the drawing for phones that a figure hides, as a file of its own; None if it has
    none.
    """
    found = FOR_PHONE.search(svg)
    return f"<svg {found[1]}" if found else None


def lighter(svg: str) -> str:
    """Return an SVG that looks the same: coordinates to a hundredth of a point, no indentation, a
    marker once where many opaque ones lie on each other.
    """
    svg = COORDINATES.sub(lambda found: LONG.sub(lambda n: f"{float(n[0]):.2f}", found[0]), svg)
    return REPEATED.sub(r"\1", re.sub(r"\n +", "\n", svg))


def part_drawings(out: Path) -> None:
    """Write the drawings for phones beside the figures, and take them out of these."""
    for path in out.glob("_images/*.svg"):
        svg = path.read_text("utf-8")
        if phone := for_phone(svg):
            path.with_suffix(".phone.svg").write_text(lighter(phone), "utf-8")
            svg = FOR_PHONE.sub("", svg)
        path.write_text(lighter(svg), "utf-8")


def give_sizes(app: Sphinx, body: str) -> str:
    """Write its size into every picture, so that the text keeps its place when it arrives, which it
    does when it is near; offer the drawing for phones where there is one.
    """
    paths = {name: Path(app.srcdir) / path for path, name in app.builder.images.items()}

    def measured(found: re.Match[str]) -> str:
        rest, address, name = found.groups()
        path = paths.get(name)
        pixels = size(path) if path is not None and path.exists() else None
        if pixels is None:
            return found[0]
        image = f'<img width="{pixels[0]}" height="{pixels[1]}" loading="lazy" {rest}'
        phone = for_phone(path.read_text("utf-8")) if path.suffix == ".svg" else None
        if phone is None:
            return image
        wide, high = svg_size(phone)
        return (
            f'<picture><source media="{PHONE}" srcset="{address.removesuffix(".svg")}.phone.svg"'
            f' width="{wide}" height="{high}"/>{image}</picture>'
        )

    return IMAGE.sub(measured, body)


# ---- room for formulas ---------------------------------------------------------------------------

FORMULA = re.compile(
    r'<(span|div) class="math notranslate nohighlight"([^>]*)>(.*?)</\1>', re.DOTALL
)
MARKS = re.compile(
    r"\\(?:[()!]|(?:[bB]ig[lr]?|left|right|bar|hat|tilde|dot|text|mathrm|mathbb|mathcal|sqrt)"
    r"(?![a-zA-Z]))"
)
FRACTION = re.compile(r"\\[td]?frac\s*(\{[^{}]*\}|\w|\\[a-z]+)\s*(\{[^{}]*\}|\w|\\[a-z]+)")
SPACED = re.compile(  # what stands between spaces, or is wide
    r"\\(?:le|ge|ne|approx|to|in|sim|ll|gg|mapsto|cdot|times|pm|sum|prod|int|quad)(?![a-zA-Z])"
    r"|[=<>]|(?<=[\w})|])\s*[+-]"
)
SCRIPT = re.compile(r"[\^_]\s*(?:\{([^{}]*)\}|(\\[a-zA-Z]+|[^\s\\{]))")
ROW = re.compile(r"\\\\(?![a-zA-Z])")
PHONE_COLUMN = 19.0  # em, less the number of an equation
LARGE = re.compile(r"\\(?:sum|prod|int)(?![a-zA-Z])")


def width(tex: str) -> float:
    """Return about how wide the letters and signs of a formula are in a row, in em."""
    signs = re.sub(r"[{}\s^_]", "", re.sub(r"\\[lr][vV]ert|\\.(?![a-z])", "|", tex))
    signs = re.sub(r"\\[a-zA-Z]+", "x", signs)
    return sum(
        0.45
        if sign in "ijlft"
        else 1.08
        if sign.isupper() or sign in "mw"
        else 0.65
        if sign.isalnum()
        else 0.5
        for sign in signs
    )


def inline_width(tex: str) -> float:
    """Return about how wide a formula in a line will be, in em (fitted to the book's own)."""
    tex = FRACTION.sub(lambda found: max(found[1], found[2], key=width), MARKS.sub("", tex))
    spaced, tex = len(SPACED.findall(tex)), SPACED.sub("", tex)
    scripts = sum(width(long or short) for long, short in SCRIPT.findall(tex))
    return 1.7 * spaced + 0.7 * scripts + width(SCRIPT.sub("", tex))


def display_height(tex: str, column: float = math.inf) -> float:
    """Return about how high a displayed formula will be with its margins, in em, where it is broken
    into rows as wide as a column.
    """
    rows = ROW.split(tex)
    if column < math.inf:
        rows = [
            part
            for row in rows
            for piece in re.split(r"\\q?quad", row)
            for part in [piece] * math.ceil(inline_width(piece) / column)
        ]
    return 2.6 + sum(1.8 + 1.2 * ("frac" in row) + 0.9 * bool(LARGE.search(row)) for row in rows)


def give_room(body: str) -> str:
    """Write into every formula about how much room it will take: TeX, which stands there until the
    mathematics is set, breaks lines elsewhere, and all below would move then.
    """

    def measured(found: re.Match[str]) -> str:
        kind, attributes, content = found.groups()
        tex = html.unescape(re.sub(r"<[^>]*>", "", content))
        if kind == "span":
            room = f"--room: {inline_width(tex):.3g}em"
        else:
            phone = display_height(tex, PHONE_COLUMN)
            room = f"--room: {display_height(tex):.3g}em; --phone: {phone:.3g}em"
        return (
            f'<{kind} class="math notranslate nohighlight"{attributes} style="{room}">'
            f"{content}</{kind}>"
        )

    return FORMULA.sub(measured, body)


# ---- the page ------------------------------------------------------------------------------------


def complete_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Add description, sizes of figures and formulas, run time and downloads to a page."""
    if doctree is None or "body" not in context:
        return
    words = html.escape(description(doctree), quote=True)
    context["metatags"] = (
        context.get("metatags", "") + f'\n<meta name="description" content="{words}" />'
    )
    if app.config.html_baseurl:
        context["metatags"] += f'\n<meta property="og:description" content="{words}" />'
    context["body"] = give_room(give_sizes(app, context["body"]))
    if (Path(app.srcdir) / f"{page}.ipynb").exists():
        context["body"] += facts(app, page)
        add_text_download(context, page)


def strip_outputs(path: Path) -> None:
    """Take the outputs out of a notebook to download: they are on its page, and a quarter of the
    site.
    """
    notebook = json.loads(path.read_text("utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", "utf-8")


def icons(out: Path) -> set[int]:
    """Return the glyphs of the icon font that the built pages show: by the classes in pages and
    scripts, and by their styles.
    """
    used = {
        name
        for pattern in ("**/*.html", "_static/**/*.js")
        for path in out.glob(pattern)
        for name in re.findall(r"\bfa-[a-z0-9-]+", path.read_text("utf-8"))
    }
    glyphs = set()
    for path in out.glob("_static/**/*.css"):
        styles = path.read_text("utf-8")
        for selectors, glyph in ICON_RULE.findall(styles):
            if used & set(re.findall(r"\bfa-[a-z0-9-]+", selectors)):
                glyphs.add(int(glyph, 16))
        glyphs |= {int(glyph, 16) for glyph in ICON_TEXT.findall(ICON_RULE.sub("", styles))}
    return glyphs


def subset_icons(out: Path) -> None:
    """Keep in the icon font what the pages show: it is loaded before the mathematics, and a dozen
    of its 1400 icons are used.
    """
    theme = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static"
    font = subset.load_font(theme / ICON_FONT, subset.Options())
    font.flavor = "woff2"
    chosen = subset.Subsetter()
    chosen.populate(unicodes=icons(out))
    chosen.subset(font)
    font.save(out / "_static" / ICON_FONT)


def lighten_pages(app: Sphinx, error: Exception | None) -> None:
    """Take out of the built pages what they do not need, let scripts wait for the text, and add the
    texts of the notebooks.
    """
    if error or app.builder.format != "html":
        return
    out = Path(app.outdir)
    for path in out.rglob("*.html"):
        page = ICON_SCRIPT.sub("", path.read_text("utf-8"))
        if path.name != "search.html":
            page = BLOCKING.sub(r"<script defer \1></script>", SEARCH_SCRIPTS.sub("", page))
        if tag := MATHEMATICS.search(page):
            page = MATHEMATICS.sub(r'<link rel="preload" as="script" href="\1" />', page)
            page = page.replace("</body>", f'<script async src="{tag[1]}"></script>\n</body>')
        path.write_text(page, "utf-8")
    for pattern in UNUSED:
        for path in out.glob(pattern):
            path.unlink()
    subset_icons(out)
    part_drawings(out)
    for notebook in (out / "_sources" / "book").glob("*.ipynb"):
        strip_outputs(notebook)
        text = Path(app.srcdir) / "book" / f"{notebook.stem}.md"
        if text.exists():
            shutil.copyfile(text, notebook.with_suffix(".md"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the above to a Jupyter Book build."""
    app.add_directive("chapter-map", ChapterMap)
    app.connect("html-page-context", complete_page, priority=850)
    app.connect("build-finished", lighten_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
