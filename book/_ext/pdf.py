"""The book as one PDF: parts, boxes and figures for LaTeX, and the link to the PDF on the pages
once it has been made.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import desc, desc_parameterlist, number_reference, start_of_file, toctree
from sphinx.application import Sphinx
from sphinx.builders.latex.nodes import thebibliography
from sphinx.config import Config
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms.images import ImageConverter

NAME = "book.pdf"
BOXES = {
    "claim-paper": "7A3E9D",
    "claim-proved": "00674B",
    "claim-measured": "8A5300",
    "theorem": "1F5F99",
    "proposition": "1F5F99",
    "lemma": "1F5F99",
    "corollary": "1F5F99",
}
LINE = 90  # characters that fit the width of the page
WIDTH = 447  # of the page's text, in points
ROWS = 25  # of a table that may have to be broken
# Letters of wide tables: how they are set, the width of a digit, the space between two columns
# (both in points).
LETTER_SIZES = [
    (r"\normalsize\setlength{\tabcolsep}{5pt}", 5.0, 10),
    (r"\footnotesize\setlength{\tabcolsep}{4pt}", 4.3, 8),
    (r"\scriptsize\setlength{\tabcolsep}{2.5pt}", 4.0, 5),
    (r"\scriptsize\setlength{\tabcolsep}{1.5pt}", 3.85, 3),
]
BREAK_NAMES = r"\renewcommand{\_}{\textunderscore\allowbreak}"
FEW, MANY = 5, 7  # columns that need smaller letters, and the smallest ones but one
REFERENCE = "The library"  # the part in small letters
FIGURE = 21  # lines that a wide figure and its caption take
# Letters that authors may type as they are, and Latin Modern lacks.
LETTERS = (
    r"α\alpha β\beta γ\gamma δ\delta ε\varepsilon ζ\zeta η\eta θ\theta κ\kappa λ\lambda μ\mu ν\nu"
    r" ξ\xi π\pi ρ\rho σ\sigma"
    r" τ\tau φ\varphi χ\chi ψ\psi ω\omega Γ\Gamma Δ\Delta Θ\Theta Λ\Lambda Ξ\Xi Π\Pi Σ\Sigma Φ\Phi"
    r" Ψ\Psi Ω\Omega"
    r" ≤\le ≥\ge ≈\approx →\to ×\times −- ∞\infty ₀_0 ₁_1 ₂_2 ⱼ_j ₗ_l"
).split()
PREAMBLE = r"""
\usepackage[breakable,skins]{tcolorbox}
\usepackage{newunicodechar}
\definecolor{bookbox}{HTML}{666666}
\newcommand{\bookneed}[1]{\Needspace*{#1\baselineskip}} % \needspace would also end pages half empty before a figure
\newif\ifbookplain % solutions: no box, for code in a box cannot go over two pages
\newenvironment{sphinxclasssolution}{\bookplaintrue}{}
\renewenvironment{sphinxadmonition}[2]{%
  \bookneed{6}%
  \ifbookplain\medskip\noindent\textcolor{bookbox}{\rule[-0.3ex]{2pt}{2ex}}\hspace{6pt}\else
    \begin{tcolorbox}[enhanced, breakable, sharp corners, frame hidden, boxrule=0pt, borderline west={2pt}{0pt}{bookbox},
      colback=bookbox!5!white, left=8pt, right=6pt, top=4pt, bottom=4pt, before skip=10pt, after skip=10pt]\fi
  \textbf{#2}\par\nobreak\smallskip}{\ifbookplain\par\medskip\else\end{tcolorbox}\fi}
\usepackage{multicol}
\fvset{fontsize=\footnotesize}
\setlength{\emergencystretch}{3em}
\allowdisplaybreaks[1]
\setcounter{tocdepth}{1}
% Figures and equations of pages without a chapter's number count on from one such part to the next, as on the pages.
\newcommand{\counters}{\do{figure}\do{table}\do{equation}}
\newcommand{\keepcounters}{\def\do##1{\newcounter{kept##1}\setcounter{kept##1}{\value{##1}}}\counters}
\newcommand{\backcounters}{\setcounter{chapter}{0}\def\do##1{\setcounter{##1}{\value{kept##1}}}\counters}
% A part's title stands over its first chapter, which would begin a page.
\newcommand{\bookpart}[1]{\clearpage\phantomsection\addcontentsline{toc}{part}{#1}\markboth{}{}%
  {\centering\LARGE\bfseries\color{bookbox}#1\par}\let\bookclearpage\clearpage\def\clearpage{\global\let\clearpage\bookclearpage}}
% The library's part, to look things up: smaller letters, denser lists.
\newcommand{\bookreference}{\footnotesize\setlength{\parskip}{1.5pt plus 0.5pt}\let\normalsize\footnotesize
  \renewcommand{\itemize}{\booklist{\labelitemi}}\def\enditemize{\endlist}}
\newcommand{\booklist}[1]{\list{#1}{\leftmargin1.4em\labelwidth0.9em\topsep0pt\parsep0pt\itemsep0.5pt\partopsep0pt}}
\hypersetup{pdftitle={TITLE},pdfauthor={AUTHOR}}
\addto\captionsenglish{\renewcommand{\contentsname}{Contents}}
\renewenvironment{sphinxthebibliography}[1]{\renewcommand{\chapter}[2]{}\small\begin{thebibliography}{#1}\setlength{\itemsep}{2pt}}%
  {\end{thebibliography}} % its page has the title
\renewcommand{\sphinxtablecontinued}[1]{\textit{\small continued}}
\makeatletter
\usepackage{etoolbox}
\patchcmd{\@makechapterhead}{50\p@}{10\p@}{}{} % white above a chapter's title
\patchcmd{\@makeschapterhead}{50\p@}{10\p@}{}{}
\renewcommand{\@pnumwidth}{2.6em} % room for three bold digits in the contents
\renewcommand{\@tocrmarg}{3.4em}
\clubpenalty=10000 \@clubpenalty=10000 % nor does the first line of a paragraph, as the word "Parameters", end a page
\@beginparpenalty=10000 % a list stays with the line before it
\setlength{\abovecaptionskip}{0pt}
\setlength{\belowcaptionskip}{0pt}
\AtBeginDocument{\spx@image@maxheight0.9\textheight} % its caption stands on the same page
% cells of tables: not stretched to the width of their column
\newcolumntype{\X}[2]{>{\raggedright\arraybackslash}p{\dimexpr
  (\linewidth-\spx@arrayrulewidth)*#1/#2-\tw@\tabcolsep-\spx@arrayrulewidth\relax}}
\newcolumntype{T}{L}
\makeatother
"""
TITLE_PAGE = r"""
\hypersetup{pageanchor=false}
\pagenumbering{Alph}
\begin{titlepage}
\null\vfill
{\Huge\bfseries\raggedright TITLE\par}
\vskip 2em
{\Large An executable companion to the paper of Y.~Slutzky, Y.~Alexander, N.~Razin and N.~Cohen (NeurIPS 2025)\par}
\vskip 3em
{\large AUTHOR\par}
\vskip 1em
{Version VERSION\par}
\vfill
{\small\raggedright This is the printed form of the book's pages. Code that the pages fold away, most of it for drawing, is left
out here; it is in the notebooks, with which every number and every figure can be computed again. Names of functions in
the text lead to their descriptions at the end.\par}
\end{titlepage}
\hypersetup{pageanchor=true}
"""


class VectorFigures(ImageConverter):
    """Convert the notebooks' SVG figures to PDF, in their light colours."""

    conversion_rules = [("image/svg+xml", "application/pdf")]  # noqa: RUF012

    def is_available(self) -> bool:
        """Ask for the converter by the name of its Debian package."""
        if shutil.which("rsvg-convert") is None:
            raise ExtensionError("rsvg-convert not found: install the package librsvg2-bin")
        return True

    def convert(self, _from: str, _to: str) -> bool:
        """Convert one file; a failure ends the build."""
        svg = light_colours(Path(_from).read_text("utf-8"))
        subprocess.run(
            ["rsvg-convert", "--format", "pdf", "--output", _to], input=svg.encode(), check=True
        )
        return True


def light_colours(svg: str) -> str:
    """Write the colours of light mode in place of the style sheet by which an SVG follows the
    reader's theme.
    """
    sheet = re.search(r"<style>:root\{([^}]*)\}.*?</style>", svg)
    if sheet is None:
        return svg
    svg = svg.replace(sheet[0], "")
    for name, colour in (rule.split(":") for rule in sheet[1].split(";")):
        svg = svg.replace(f"var({name})", colour)
    return svg


def set_latex(app: Sphinx, config: Config) -> None:
    """Set what LaTeX needs: one document, fonts, page, title page, boxes."""
    words = {
        "TITLE": config["project"],
        "AUTHOR": config["author"],
        "VERSION": version("ssm-poison-lib"),
    }

    def fill(text: str) -> str:
        return re.sub("|".join(words), lambda found: words[found[0]], text)

    boxes = "".join(
        rf"\newenvironment{{sphinxclass{name}}}{{\definecolor{{bookbox}}{{HTML}}{{{colour}}}}}{{}}"
        + "\n"
        for name, colour in BOXES.items()
    )
    letters = "".join(
        rf"\newunicodechar{{{letter[0]}}}{{\ensuremath{{{letter[1:]}}}}}" + "\n"
        for letter in LETTERS
    )
    config["latex_documents"] = [
        (
            config["root_doc"],
            f"{Path(NAME).stem}.tex",
            words["TITLE"],
            words["AUTHOR"],
            "manual",
            False,
        )
    ]
    config["latex_elements"] = {
        "papersize": "a4paper",
        "pointsize": "10pt",
        "extraclassoptions": "openany,oneside",
        "fncychap": "",
        "fontpkg": r"\setmonofont{DejaVu Sans Mono}[Scale=0.8]",
        "figure_align": "H",  # where the text speaks of it, and inside boxes
        "printindex": "",
        "tableofcontents": (
            r"\pagenumbering{roman}\chapter*{\contentsname}\begin{multicols}{2}\footnotesize"
            r"\makeatletter\@starttoc{toc}\makeatother\end{multicols}\clearpage\pagenumbering{arabic}"
        ),
        "sphinxsetup": (
            "hmargin={26mm,26mm}, vmargin={18mm,20mm}, verbatimwithframe=false,"
            " VerbatimColor={gray}{0.96}, verbatimforcewraps=true, verbatimmaxunderfull=30"
        ),
        "preamble": fill(PREAMBLE) + boxes + letters,
        "maketitle": fill(TITLE_PAGE),
    }
    config["latex_use_xindy"] = config["latex_domain_indices"] = False


def arrange(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Give the assembled book its parts, its first chapter, boxes of the right colour, and take
    hidden code away.
    """
    if app.builder.format != "latex":
        return
    for cell in list(doctree.findall(nodes.container)):
        if {"tag_hide-input", "tag_hide-cell"} & set(cell["classes"]):
            for part in [part for part in cell if "cell_input" in part["classes"]]:
                cell.remove(part)
    for box in list(doctree.findall(lambda node: isinstance(node, nodes.Admonition))):
        for kind in (BOXES.keys() | {"solution"}) & set(box["classes"]):
            place = box.parent.index(box)
            parent = box.parent
            parent[place] = nodes.container("", box, classes=[kind])
    for kind in doctree.findall(
        lambda node: "claim-kind" in getattr(node, "attributes", {}).get("classes", [])
    ):
        kind += nodes.Text(":")  # colour and weight part it from the title on the pages
    for table in list(doctree.findall(nodes.table)):
        fit(table)
    keep_together(doctree)
    exercises = getattr(app.env, "sphinx_exercise_registry", {})
    for reference in list(doctree.findall(number_reference)):
        label = reference.get("refuri", "").partition("#")[2]
        # of another chapter: LaTeX would give the number of the section there
        if label in exercises:
            number = app.env.toc_fignumbers[exercises[label]["docname"]]["exercise"][label]
            text = rf"\hyperref[exercise:{label}]{{Exercise {'.'.join(map(str, number))}}}"
            reference.replace_self(nodes.raw("", text, format="latex"))
    sources = next(doctree.findall(thebibliography))  # at the end: from there to their own page
    sources.parent.remove(sources)
    for file in doctree.findall(start_of_file):
        if file["docname"].endswith("/bibliography"):
            file.next_node(nodes.section).append(sources)
    book = next(doctree.findall(nodes.section))
    title, *content = book
    chapters = [node for node in content if "toctree-wrapper" in node.get("classes", [])]
    first = nodes.section(
        "", title.deepcopy(), *[node for node in content if node not in chapters], ids=book["ids"]
    )
    book["ids"] = []
    book[:] = [title, latex(r"\setcounter{secnumdepth}{-1}"), first]
    numbered = False
    for toc, part in zip(app.env.get_doctree(page).findall(toctree), chapters, strict=True):
        depth = 2 if toc["numbered"] else -1
        turn = {(False, True): r"\keepcounters", (True, False): r"\backcounters"}.get(
            (numbered, bool(toc["numbered"])), ""
        )
        numbered = bool(toc["numbered"])
        book += [
            latex(
                rf"\setcounter{{secnumdepth}}{{{depth}}}{turn}\bookpart{{{toc['caption']}}}"
                + (r"\bookreference" if toc["caption"] == REFERENCE else "")
            ),
            part,
        ]


def keep_together(doctree: nodes.document) -> None:
    """Start a new page where a signature, or one line of code, would be parted from what belongs to
    it.
    """
    for entry in list(doctree.findall(desc)):
        lines = 3
        for parameters in entry[0].findall(desc_parameterlist):
            lines += len(parameters) + 1 if parameters.get("multi_line_parameter_list") else 0
        entry.parent.insert(entry.parent.index(entry), need(lines))
    for cell in list(doctree.findall(nodes.container)):
        code = [part for part in cell if "cell_input" in part.get("classes", [])]
        if code and next(cell.findall(nodes.image), None) is not None and len(cell) == 2:
            lines = len(code[0].astext().splitlines())
            if lines <= 3:
                cell.insert(0, need(FIGURE + lines))


def fit(table: nodes.table) -> None:
    """Give a table that is wider than the page columns as wide as their content, and let it go over
    several pages.
    """
    for text in list(
        table.findall(nodes.Text)
    ):  # lists of numbers are held together by hard spaces on the pages
        text.parent.replace(text, nodes.Text(text.replace("\xa0", " ")))
    for entry in table.findall(nodes.entry):
        if entry.next_node(lambda node: not isinstance(node, nodes.paragraph)) is None:
            entry.clear()  # an empty paragraph would make the row a line higher
    wide = len(table.next_node(nodes.row)) >= MANY
    rows = [[visible(entry, wide) for entry in row] for row in table.findall(nodes.row)]
    columns = list(zip(*rows, strict=True))
    natural = [max(map(len, column)) for column in columns]
    if sum(natural) <= LINE and len(rows) <= ROWS:
        return
    words = [
        max(len(word) for cell in column for word in cell.split() or ["-"]) for column in columns
    ]
    if not wide:  # room enough for short cells in one line
        words = [
            whole if whole <= LINE // 5 else word
            for whole, word in zip(natural, words, strict=True)
        ]
    sizes = LETTER_SIZES[(len(columns) >= FEW) + wide :]
    letters, digit, between = next(
        (size for size in sizes if sum(size[1] * word + size[2] for word in words) <= WIDTH),
        sizes[-1],
    )
    room = int((WIDTH - len(words) * between) / digit) - sum(words)
    widths = share(rows, words, room)
    for spec, width in zip(table.findall(nodes.colspec), widths, strict=True):
        spec["colwidth"] = round(10 * (digit * width + between))
    table["classes"] += ["longtable", "colwidths-given"]
    place = table.parent.index(table)
    table.parent.insert(place + 1, latex(r"\endgroup"))
    lines = 3 + sum(max(map(wrapped, row, widths)) for row in rows)
    if lines <= ROWS:  # small enough for one page
        under_title(table, need(lines + 3))
        place = table.parent.index(table)
    table.parent.insert(place, latex(rf"\begingroup{letters}{BREAK_NAMES if wide else ''}"))


def share(rows: list[list[str]], least: list[int], room: int) -> list[int]:
    """Return the columns' widths in characters: the least ones, and what room there is where it
    makes the table lower.
    """
    widths = list(least)

    def height(widths: list[int]) -> float:
        lines = [list(map(wrapped, row, widths)) for row in rows]
        return sum(max(row) + sum(row) / len(row) for row in lines)

    now = height(widths)
    while room:
        steps = []
        for column, width in enumerate(widths):
            cells = [row[column] for row in rows]
            before = [wrapped(cell, width) for cell in cells]
            for more in range(1, room + 1):
                lines = [wrapped(cell, width + more) for cell in cells]
                if lines != before:
                    before = lines
                    wider = [*widths[:column], width + more, *widths[column + 1 :]]
                    lower = height(wider)
                    steps.append(((now - lower) / more, more, lower, wider))
        if not steps:  # what is left, to the column with most lines
            natural = [max(map(len, column)) for column in zip(*rows, strict=True)]
            shares = [whole / width for whole, width in zip(natural, widths, strict=True)]
            widths[shares.index(max(shares))] += 1
            room -= 1
            continue
        _, more, now, widths = max(steps)
        room -= more
    return widths


@cache
def wrapped(cell: str, width: int) -> int:
    """Return how many lines of so many characters a text takes."""
    lines, used = 1, 0
    for word in map(len, cell.split()):
        if used and used + 1 + word > width:
            lines, used = lines + 1, 0
        used += word + bool(used)
    return lines


def under_title(table: nodes.table, request: nodes.raw) -> None:
    """Ask for a table's room before the title that it stands under, if nothing is between them."""
    node: nodes.Element = table
    while not node.parent.index(node) or isinstance(
        node.parent[node.parent.index(node) - 1], nodes.title
    ):
        if isinstance(node.parent, nodes.document | start_of_file):
            break
        node = node.parent
    parent, place = node.parent, node.parent.index(node)
    # Not between a label and its section, where it would be set twice; the label may be the last
    # of the section before.
    while place and isinstance(parent[place - 1], nodes.section | nodes.target):
        if isinstance(parent[place - 1], nodes.target):
            place -= 1
        else:
            parent = parent[place - 1]
            place = len(parent)
    parent.insert(place, request)


def visible(entry: nodes.Element, names_break: bool) -> str:
    """Return a text about as wide as what a cell shows, with spaces where it may break: not within
    a short formula.
    """
    shown = ""
    for text in entry.findall(nodes.Text):
        if isinstance(text.parent, nodes.math):
            formula = re.sub(
                r"\\(exp|log|max|min|tanh)", r"\1", re.sub(r"\\mathrm|[{}$^_]", "", text)
            )
            formula = re.sub(r"\\[A-Za-z]+ ?", "x", formula)
            shown += formula.replace(" ", "") if len(formula) <= LINE // 3 else formula
        else:
            shown += text.replace("_", "_ ") if names_break else text
    return re.sub(r"([mw%])", r"\1\1", shown)  # wide signs


def need(lines: int) -> nodes.raw:
    """Return the LaTeX that starts a new page unless so many lines fit on this one."""
    return latex(rf"\bookneed{{{lines}}}")


def latex(text: str) -> nodes.raw:
    """Return a piece of LaTeX."""
    return nodes.raw("", text + "\n", format="latex")


def offer(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Add the whole book to a page's download buttons, if `make pdf` has made it from the present
    texts.
    """
    for group in context.get("header_buttons", []):
        if group.get("label") == "download-buttons" and made(app) is not None:
            group["buttons"].append(
                {
                    "type": "link",
                    "url": context["pathto"](f"_static/{NAME}", 1),
                    "text": "Whole book (.pdf)",
                    "tooltip": "Download the whole book as PDF",
                    "icon": "fas fa-book",
                    "label": "download-book",
                }
            )


def made(app: Sphinx) -> Path | None:
    """Return the PDF if it is there and no text or setting is younger."""
    pdf, source = Path(app.outdir).parent / "latex" / NAME, Path(app.srcdir)
    texts = [
        *source.glob("book/*.ipynb"),
        *source.glob("book/*.md"),
        source / "_toc.yml",
        source / "_config.yml",
    ]
    if pdf.exists() and pdf.stat().st_mtime > max(
        path.stat().st_mtime for path in texts if path.exists()
    ):
        return pdf
    return None


def copy_pdf(app: Sphinx, error: Exception | None) -> None:
    """Put the PDF where the buttons lead."""
    if error is None and app.builder.format == "html" and (pdf := made(app)) is not None:
        shutil.copyfile(pdf, Path(app.outdir) / "_static" / NAME)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the above to a build."""
    app.connect("config-inited", set_latex, priority=950)  # when the toc has named the first page
    app.connect("doctree-resolved", arrange)
    app.connect("html-page-context", offer, priority=950)  # when the theme has made its buttons
    app.connect("build-finished", copy_pdf)
    app.add_post_transform(VectorFigures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
