"""The library's reference pages: docstrings and signatures for autodoc, and links to them from
prose and from code cells.
"""

from __future__ import annotations

import ast
import builtins
import functools
import html
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.nodes import make_refnode

LIBRARY = "ssm_poison_lib"
HEADER = re.compile(r"(Args|Attributes|Returns|Yields|Raises):")
SECTION = re.compile(r"(?:^|(?<=[.;)] ))(Returns |Raises (?=[A-Z]\w+Error |[A-Z]\w+ )|Source: )")
RAISES = re.compile(r"(\w+) (.*)", re.DOTALL)
CHAPTER = re.compile(r'chapter "([^"]+)"')
CALLABLE = {"function", "class", "exception", "method"}
VALUE = re.compile(
    r'(?<!section )(?<!proposition )(?<!settings, )(?<!meaning of )(?<!runs \()("[^"`]*")'
)  # text that Python would get
HEADING = re.compile(r"^\((ch-[\w-]+)\)=\n# (.+)$", re.MULTILINE)
CODE_CELL = re.compile(r"^```\{code-cell\}.*?^```$", re.MULTILINE | re.DOTALL)
ARGUMENTS = re.compile(r"<dl>\n((?:<dd><em class=\"sig-param\">.*</dd>\n)+)</dl>")
# In coloured code a name is an element of its own: flow.gradient_flow is three.
CODE_NAME = re.compile(
    r'<span class="n">(\w+)</span><span class="o">\.</span><span class="n">(\w+)</span>'
)


# --- docstrings: Google's sections, which sphinx.ext.napoleon turns into fields, with this
# project's abbreviations


def blocks(lines: list[str]) -> list[tuple[str, str]]:
    """Return the lines of a docstring, each paragraph and each entry of a section in one: (kind,
    text).

    Kinds: "text", "formula" (indented, outside of sections), "example", "item" of a list, "header",
    "entry" of a section.
    """
    found: list[tuple[str, str]] = []
    section, joins = "", False
    for line in lines:
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if not text:
            found.append(("text", ""))
            joins = False
            continue
        if indent == 0:
            section = ""
        whole = section in ("Returns:", "Yields:")  # one entry, however it is written
        if joins and (not section or indent > 4 or whole):
            found[-1] = (found[-1][0], f"{found[-1][1]} {text}")
            continue
        joins = True
        if HEADER.fullmatch(line):
            section, joins = text, False
            found.append(("header", text))
        elif section:
            # Napoleon takes what stands before a colon for a name or a type.
            found.append(("entry", f": {text}" if whole else text))
        elif text.startswith(">>> ") or (found[-1:] and found[-1][0] == "example"):
            found.append(("example", line))
            joins = False
        elif indent:
            found.append(("formula", line))
            joins = False
        else:
            found.append(("item" if text.startswith("- ") else "text", text))
    return found


def split_docstring(text: str, names: set[str]) -> dict[str, list[Any]]:
    """Sort the sentences of a docstring into prose, params (names, meaning), returns, raises,
    source and examples.
    """
    found: dict[str, list[Any]] = {
        "prose": [],
        "params": [],
        "returns": [],
        "raises": [],
        "source": [],
        "examples": [],
    }
    word = "|".join(sorted(map(re.escape, names), key=len, reverse=True)) or "(?!)"
    # Whatever begins a new entry: the start of a sentence that is "a, b: " for arguments a and b.
    entry = re.compile(rf"(?:^|(?<=[.;)] ))((?:{word})(?:(?:, | and )(?:{word}))*): ")
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if paragraph.startswith("    "):  # a displayed formula
            found["prose"].append("::\n\n" + paragraph)
            continue
        if paragraph.startswith(">>> "):
            found["examples"].append(paragraph)
            continue
        joined = " ".join(paragraph.split())
        marks = sorted(
            [*entry.finditer(joined), *SECTION.finditer(joined)], key=lambda mark: mark.start()
        )
        ends = [*(mark.start() for mark in marks), len(joined)][1:]
        if before := joined[: marks[0].start() if marks else None].strip():
            found["prose"].append(before)
        for mark, end in zip(marks, ends, strict=True):
            meaning = joined[mark.end() : end].strip().rstrip(";")
            match mark[1].split()[0]:
                case "Returns" | "Raises" | "Source:" as kind:
                    found[kind.lower().rstrip(":")].append(meaning)
                case _:
                    found["params"].append((re.split(r", | and ", mark[1]), meaning))
    return found


@functools.cache
def chapter_labels(book: Path) -> dict[str, str]:
    """Return title -> label of the chapters, from their texts."""
    texts = (path.read_text("utf-8") for path in sorted(book.glob("*.md")))
    return {
        title: label
        for text in texts
        if (found := HEADING.search(text))
        for label, title in [found.groups()]
    }


@functools.cache
def uses(book: Path) -> dict[str, list[str]]:
    """Return "module.name" -> labels of the chapters whose code cells use it."""
    found: dict[str, list[str]] = {}
    for path in sorted(book.glob("*.md")):
        text = path.read_text("utf-8")
        if heading := HEADING.search(text):
            code = "\n".join(CODE_CELL.findall(text))
            for name in sorted(set(re.findall(r"\b([a-z]\w*\.[A-Za-z]\w*)", code))):
                found.setdefault(name, []).append(heading[1])
    return found


def argument_names(obj: Any) -> tuple[set[str], set[str]]:
    """Return the names of an object's arguments, and of the attributes that are none."""
    try:
        arguments = set(inspect.signature(obj).parameters)
    except (TypeError, ValueError):
        return set(), set()
    return arguments, (
        set(getattr(obj, "__annotations__", {})) - arguments if inspect.isclass(obj) else set()
    )


def compose(lines: list[str], dress: Callable[[str], str]) -> list[str]:
    """Return a docstring as napoleon reads it, all but formulas and examples dressed."""
    result: list[str] = []
    before = ""
    for kind, text in blocks(lines):
        if kind == "formula" and before != "formula":
            result += ["::", ""]
        plain = kind in ("formula", "example", "header")
        result.append(text if plain else "    " * (kind == "entry") + dress(text))
        before = kind
    return [*result, ""]


def uses_of(what: str, name: str, book: Path) -> list[str]:
    """Return the line that names the chapters which use an object, if any."""
    labels = [] if what == "module" else uses(book).get(name.removeprefix(f"{LIBRARY}."), [])
    return (
        ["*Used in* " + ", ".join(f":ref:`{label}`" for label in labels) + ".", ""]
        if labels
        else []
    )


def write_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Rewrite a docstring in place: prose first, then arguments, result, errors, source, and the
    chapters that use it.
    """
    if lines and lines[0].startswith("Alias for field number"):  # a named tuple's: no words of ours
        lines.clear()
        return
    book = Path(app.srcdir) / "book"
    titles = chapter_labels(book)

    def dress(text: str) -> str:
        text = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", text)
        text = CHAPTER.sub(lambda found: f"chapter :ref:`{titles.get(found[1], found[1])}`", text)
        text = re.sub(r"^(\w+: )?(\w)\.$", r"\1\2", text)  # "d." would begin an enumeration
        text = re.sub(r"^Source: ", "*Source:* ", text)
        parts = re.split(r"(``.*?``)", text)  # what is code already stays
        parts[::2] = [VALUE.sub(r"``\1``", part) for part in parts[::2]]
        return "".join(parts)

    if any(map(HEADER.fullmatch, lines)):
        lines[:] = compose(lines, dress)
        lines += uses_of(what, name, book)
        return
    if what in ("attribute", "data", "property") and ":" in lines[0]:
        lines[0] = f": {lines[0]}"  # else napoleon takes what stands before the colon for the type
    arguments, attributes = argument_names(obj)
    parts = split_docstring("\n".join(lines), arguments | attributes)
    result: list[str] = []
    for paragraph in parts["prose"]:
        result += [*dress(paragraph).split("\n"), ""]
    for several, meaning in parts["params"]:
        for one in several:
            result.append(f":{'param' if one in arguments else 'ivar'} {one}: {dress(meaning)}")
    result += [f":returns: {dress(text)}" for text in parts["returns"]]
    for text in parts["raises"]:
        if (found := RAISES.match(text)) is None:
            raise ExtensionError(f"{name}: cannot read 'Raises {text}'")
        result.append(f":raises {found[1]}: {dress(found[2])}")
    result.append("")
    result += [line for text in parts["source"] for line in (f"*Source:* {dress(text)}", "")]
    result += [line for text in parts["examples"] for line in (*text.split("\n"), "")]
    lines[:] = result + uses_of(what, name, book)


# --- signatures: as written, with the module's own abbreviations spelt out


@functools.cache
def aliases(module: str) -> dict[str, ast.expr]:
    """Return the abbreviations of types that a module defines, such as Vector = Float[np.ndarray, "
    d"].
    """
    found: dict[str, ast.expr] = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if (
            isinstance(target, ast.Name)
            and target.id[0].isupper()
            and isinstance(value, ast.Subscript | ast.BinOp)
        ):
            found[target.id] = value
    return found


class Spell(ast.NodeTransformer):
    """Write np.ndarray as ndarray, shapes without their leading space, and abbreviations in full
    (but not ArrayLike).
    """

    def __init__(self, module: str) -> None:
        self.aliases = aliases(f"{LIBRARY}._checks") | aliases(module)
        self.aliases.pop("ArrayLike", None)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Replace an abbreviation."""
        known = self.aliases.get(node.id)
        return (
            node if known is None else self.visit(ast.parse(ast.unparse(known), mode="eval").body)
        )

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        """Shorten np.ndarray."""
        return ast.Name("ndarray") if ast.unparse(node) == "np.ndarray" else node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        """Strip a shape."""
        return ast.Constant(node.value.strip()) if isinstance(node.value, str) else node


def write_signature(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    arguments: str | None,
    result: str | None,
) -> tuple[str, str] | None:
    """Return arguments and result as the source writes them: jaxtyping's shapes stay readable."""
    if what not in ("function", "method", "class"):
        return None
    if what == "class" and (issubclass(obj, Exception) or hasattr(obj, "__members__")):
        return "", ""
    spell = Spell(obj.__module__)

    def annotation(value: Any) -> str:
        return ast.unparse(spell.visit(ast.parse(str(value), mode="eval").body))

    signature = inspect.signature(obj)
    shown = []
    star = False
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            shown.append("*")
        star = star or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        text = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(
            parameter.kind, ""
        ) + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            default = parameter.default  # of a dataclass's field: a function's repr is an address
            text += f" = {default.__name__ if inspect.isfunction(default) else repr(default)}"
        shown.append(text)
    empty = signature.return_annotation in (signature.empty, None, "None")
    returned = "" if empty or what == "class" else annotation(signature.return_annotation)
    return f"({', '.join(shown)})", returned


# --- links


@functools.cache  # asked for only when all pages have been read
def targets(env: BuildEnvironment) -> dict[str, Any]:
    """Return every way in which prose or code names a public object of the library -> where it is
    described.
    """
    objects = {
        name.removeprefix(f"{LIBRARY}."): entry
        for name, entry in env.get_domain("py").data["objects"].items()
        if name.startswith(f"{LIBRARY}.")
    }
    found = objects | {f"{LIBRARY}.{name}": entry for name, entry in objects.items()}
    last: dict[str, list[str]] = {}
    for name, entry in objects.items():
        if (
            not name.startswith(("algebra.", "figures."))
            and entry.objtype in CALLABLE
            and "." in name
        ):
            last.setdefault(name.rsplit(".", 1)[1], []).append(name)
    # A bare name is that of a function or class, else of a method, if there is just one.
    for word, names in last.items():
        chosen = [name for name in names if name.count(".") == 1] or names
        if len(chosen) == 1:
            found.setdefault(word, objects[chosen[0]])
    return found


@functools.cache
def foreign_types() -> set[str]:
    """Return the names of types that the library uses and does not define: built in or imported by
    its modules.
    """
    spec = importlib.util.find_spec(LIBRARY)
    locations = (spec and spec.submodule_search_locations) or []
    names = {"jaxtyping", "ndarray", *vars(builtins)}
    for path in chain.from_iterable(Path(location).rglob("*.py") for location in locations):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
            if isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names


def link_type(
    app: Sphinx, env: BuildEnvironment, node: nodes.Element, content: nodes.Element
) -> nodes.Element | None:
    """Resolve a type in a signature: the library's by its short name, another package's as plain
    text.
    """
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"]
    if entry := targets(env).get(name):
        return make_refnode(
            app.builder, node["refdoc"], entry.docname, entry.node_id, content, name
        )
    return content if name.split(".")[0] in foreign_types() else None


def find_target(known: dict[str, Any], name: str, described: nodes.Element | None) -> Any:
    """Return where a name leads from the description of an object (its own members and module come
    first), or None.
    """
    if described is None:
        return known.get(name)
    if name in {argument[0].astext() for argument in described.findall(addnodes.desc_parameter)}:
        return None
    module, scope = described.get("module"), described.get("class") or described.get("fullname")
    candidates = (
        known.get(full) for full in (f"{module}.{scope}.{name}", f"{module}.{name}", name)
    )
    return next(
        (entry for entry in candidates if entry and entry.node_id not in described["ids"]), None
    )


def link_names(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Turn inline code that names a public object, such as `flow.gradient_flow`, into a link."""
    for shape in doctree.findall(addnodes.desc_sig_literal_string):  # of a property: ' d'
        shape[:] = [nodes.Text(re.sub(r"^' ", "'", shape.astext()))]
    known = targets(app.env)
    for literal in list(doctree.findall(nodes.literal)):
        above = list(ancestors(literal))
        if any(
            isinstance(node, nodes.reference | nodes.title | addnodes.desc_signature)
            for node in above
        ):
            continue
        name = re.sub(r"\(.*\)$", "", literal.astext())
        described = next((node[0] for node in above if isinstance(node, addnodes.desc)), None)
        entry = find_target(known, name, described)
        if entry is None:
            continue
        parent, place = literal.parent, literal.parent.index(literal)
        parent[place] = make_refnode(
            app.builder, page, entry.docname, entry.node_id, literal, f"{LIBRARY}: {name}"
        )


def ancestors(node: nodes.Node) -> Iterator[nodes.Node]:
    """Yield the parent, its parent, and so on."""
    while node.parent is not None:
        node = node.parent
        yield node


def link_code(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Link `module.name` in the coloured code of a page to its description."""
    known = targets(app.env)

    def link(found: re.Match[str]) -> str:
        name = f"{found[1]}.{found[2]}"
        entry = known.get(name)
        if entry is None or entry.docname == page:
            return found[0]
        address = f"{app.builder.get_relative_uri(page, entry.docname)}#{entry.node_id}"
        return (
            f'<a class="api" href="{html.escape(address)}" title="{LIBRARY}.{name}">{found[0]}</a>'
        )

    def mend(found: re.Match[str]) -> str:  # Sphinx writes a definition list that has no terms
        return re.sub(r"<dd>(.*)</dd>", r'<span class="argument">\1</span>', found[1])

    if doctree is not None and "body" in context:
        context["body"] = CODE_NAME.sub(link, ARGUMENTS.sub(mend, context["body"]))


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the above to a build."""
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")
    app.setup_extension("sphinx.ext.viewcode")
    app.connect("autodoc-process-docstring", write_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", write_signature)
    app.connect("missing-reference", link_type)
    app.connect("doctree-resolved", link_names)
    app.connect("html-page-context", link_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
