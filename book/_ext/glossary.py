"""Symbols and terms of the page Notation: anchors, entries for the search, and links with their
meaning from all other pages.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import NamedTuple

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.domains.index import IndexDomain
from sphinx.domains.std import StandardDomain
from sphinx.errors import ExtensionError

PAGE = "book/notation"
# Letters that a chapter also uses for something else (a threshold, an index): anchors, but no links
# to them.
COMMON = {"x", "s_j"}
# Letters that have a meaning of their own on a page where the book's does not occur.
OWN = {"book/linear_ssm": {r"\lambda", r"\varepsilon", "s", "n"}}
NO_LINKS = ("book/api", "book/bibliography", "book/citing", "book/status", PAGE)
NO_TEXT = (
    nodes.title,
    nodes.caption,
    nodes.literal,
    nodes.literal_block,
    nodes.reference,
    nodes.raw,
    nodes.rubric,
    addnodes.pending_xref,
)


class Entry(NamedTuple):
    """A line of the page: anchor, name, the TeX or the words that mean it, meaning as HTML with TeX
    between \\( and \\).
    """

    anchor: str
    name: str
    forms: tuple[str, ...]
    meaning: str


def symbol(tex: str) -> str:
    """Return the symbol that a formula of the first column defines: what stands before its equals
    or element sign.
    """
    return re.split(r"=|\\in\b", tex, maxsplit=1)[0].strip()


def to_html(node: nodes.Node) -> str:
    """Return a definition as HTML without links: text, emphasis, code, and formulas as TeX."""
    if isinstance(node, nodes.math):
        return rf'<span class="math">\({html.escape(node.astext())}\)</span>'
    if isinstance(node, nodes.Text):
        return html.escape(node.astext())
    inner = "".join(map(to_html, node.children))
    tag = {nodes.literal: "code", nodes.emphasis: "em", nodes.strong: "strong"}.get(type(node))
    return f"<{tag}>{inner}</{tag}>" if tag else inner


def read_symbols(doctree: nodes.document) -> Iterator[tuple[nodes.row, Entry]]:
    """Yield row and entry of each line of the tables of symbols."""
    for table in doctree.findall(nodes.table):
        heads = [cell.astext() for cell in next(table.findall(nodes.thead)).findall(nodes.entry)]
        rows = list(next(table.findall(nodes.tbody)).findall(nodes.row))
        if heads[:3] != ["symbol", "name", "meaning"]:
            if any(next(row.findall(nodes.entry)).next_node(nodes.math) for row in rows):
                raise ExtensionError(
                    f"{PAGE}: a table of symbols has the columns symbol, name, meaning, not"
                    f" {', '.join(heads)}"
                )
            continue
        for row in rows:
            cells = list(row.findall(nodes.entry))
            formulas = list(cells[0].findall(nodes.math))
            if len(formulas) != 1:
                raise ExtensionError(
                    f"{PAGE}: a line of a table defines one symbol, not {cells[0].astext()!r}"
                )
            tex, name = formulas[0].astext(), cells[1].astext()
            anchor = "symbol-" + nodes.make_id(name)
            defined = rf'<span class="math">\({html.escape(tex)}\)</span>: '
            yield row, Entry(anchor, name, (symbol(tex),), defined + to_html(cells[2]))


def read_terms(doctree: nodes.document) -> Iterator[Entry]:
    """Yield the entry of each term of the glossary; the first of several words for it is its
    anchor.
    """
    for glossary in doctree.findall(addnodes.glossary):
        for item in glossary.findall(nodes.definition_list_item):
            terms = list(item.findall(nodes.term))
            words = tuple(term.astext() for term in terms)
            meaning = to_html(next(item.findall(nodes.definition))).strip()
            yield Entry(
                terms[0]["ids"][0],
                words[0],
                words,
                f"<strong>{html.escape(words[0])}</strong>: {meaning}",
            )


def name_symbols(app: Sphinx, doctree: nodes.document) -> None:
    """Give each line of the tables of symbols an anchor, and its name to the index, the search and
    the references.
    """
    if app.env.docname != PAGE:
        return
    domain, index = app.env.get_domain("std"), app.env.get_domain("index")
    assert isinstance(domain, StandardDomain)
    assert isinstance(index, IndexDomain)
    names = []
    for row, entry in read_symbols(doctree):
        first = next(row.findall(nodes.entry))
        first.insert(0, nodes.target("", "", ids=[entry.anchor]))
        domain.note_object("term", entry.name, entry.anchor, location=row)
        names.append(("single", entry.name, entry.anchor, "main", None))
    index.entries[PAGE].extend(names)
    doctree.insert(0, addnodes.index(entries=names))  # which the search reads


def entries(app: Sphinx) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """Return the entries by TeX and by lower-case words, read from the page once per build."""
    if not hasattr(app, "_book_glossary"):
        doctree = app.env.get_doctree(PAGE)
        symbols = [entry for _, entry in read_symbols(doctree)]
        by_tex = {entry.forms[0]: entry for entry in symbols if entry.forms[0] not in COMMON}
        by_word = {word.lower(): entry for entry in read_terms(doctree) for word in entry.forms}
        # A symbol whose name is a term, such as "extrapolation loss", not the reading of a letter,
        # such as "a bar".
        by_word |= {
            entry.name: entry for entry in symbols if re.fullmatch(r"\w{3,} \w{3,}", entry.name)
        }
        app._book_glossary = by_tex, by_word
    return app._book_glossary


def inside(node: nodes.Node, kinds: tuple[type, ...]) -> bool:
    """Say whether a node stands in one of these."""
    while node.parent is not None:
        node = node.parent
        if isinstance(node, kinds):
            return True
    return False


def link(app: Sphinx, docname: str, entry: Entry, *content: nodes.Node) -> nodes.reference:
    """Return a link from a page to a line of the page of symbols."""
    address = app.builder.get_relative_uri(docname, PAGE) + "#" + entry.anchor
    return nodes.reference(
        "", "", *content, internal=True, refuri=address, classes=["term", entry.anchor]
    )


def link_symbols(
    app: Sphinx, doctree: nodes.document, docname: str, by_tex: dict[str, Entry]
) -> set[Entry]:
    """Link the first formula that is a symbol alone, mark the later ones; return what was found."""
    found: set[Entry] = set()
    for formula in list(doctree.findall(nodes.math)):
        entry = by_tex.get(formula.astext().strip())
        if entry is None or inside(formula, (nodes.title, nodes.reference, nodes.raw)):
            continue
        if entry in found or inside(formula, (nodes.caption,)):
            formula["classes"] += ["term", entry.anchor]
        else:
            # A screen reader says the name of the link; most do not take one from a formula.
            name = nodes.inline("", entry.name, classes=["symbol-name"])
            formula.replace_self(link(app, docname, entry, name, formula.deepcopy()))
        found.add(entry)
    return found


def link_terms(
    app: Sphinx, doctree: nodes.document, docname: str, by_word: dict[str, Entry]
) -> set[Entry]:
    """Link the first use of each term in running text; return what was found."""
    found: set[Entry] = set()
    words = "|".join(map(re.escape, sorted(by_word, key=len, reverse=True)))
    pattern = re.compile(rf"\b(?:({words})s?)\b(?!-)", re.IGNORECASE)
    for text in list(doctree.findall(nodes.Text)):
        if (
            inside(text, NO_TEXT)
            or not inside(text, (nodes.paragraph,))
            or isinstance(text.parent, nodes.math)
        ):
            continue
        parts: list[nodes.Node] = []
        end = 0
        for match in pattern.finditer(text):
            entry = by_word[match[1].lower()]
            if entry in found:
                continue
            found.add(entry)
            parts += [
                nodes.Text(text[end : match.start()]),
                link(app, docname, entry, nodes.inline("", match[0])),
            ]
            end = match.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(text[end:])])
    return found


def link_page(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Link a page's symbols and terms, and put the meaning of each into the page for assets/book.js
    to show.
    """
    if (
        app.builder.format != "html"
        or docname.startswith(NO_LINKS)
        or PAGE not in app.env.found_docs
    ):
        return
    by_tex, by_word = entries(app)
    by_tex = {tex: entry for tex, entry in by_tex.items() if tex not in OWN.get(docname, ())}
    found = link_symbols(app, doctree, docname, by_tex) | link_terms(app, doctree, docname, by_word)
    for entry in sorted(found):
        meaning = (
            f'<template class="meaning" id="meaning-{entry.anchor}">{entry.meaning}</template>'
        )
        doctree += nodes.raw("", meaning, format="html")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the above to a build."""
    app.connect("doctree-read", name_symbols)
    app.connect("doctree-resolved", link_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
