"""The built pages: strict, with nothing that depends on the repository's address until that is set,
and then all of it.
"""

import html
import importlib
import json
import os
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import anchors
import nbformat
import pybtex.database
import pytest
import yaml
from conftest import ROOT, build, pages_of, public_modules
from fontTools.ttLib import TTFont

ADDRESS = "https://github.com/someone/ssm-poison"
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def copy_sources(folder: Path, address: str) -> Path:
    """Copy what a build reads and set the repository's address in the copy."""
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "_toc.yml", folder)
    text = (ROOT / "_config.yml").read_text("utf-8")
    text, count = re.subn(r"(?m)^  url: .*$", f'  url: "{address}"', text)
    assert count == 1
    (folder / "_config.yml").write_text(text, "utf-8")
    return folder


# With an address: the front page, a page without code, that which names it, chapters with
# and without the library. The buttons of all chapters come from one template.
SOME = ("intro", "bibliography", "citing", "proofs", "sixty_lines")


def chapters() -> list[str]:
    return sorted(path.stem for path in (ROOT / "book").glob("*.ipynb"))


@pytest.fixture(scope="module")
def site(request, tmp_path_factory) -> Path:
    """Return the folder of the pages without an address: those of the book while it has none."""
    if not CONFIG["repository"]["url"]:
        return request.getfixturevalue("html")
    folder = copy_sources(tmp_path_factory.mktemp("without"), "")
    build(folder)
    return folder / "_build" / "html"


@pytest.fixture(scope="module")
def without_address(site) -> dict[str, str]:
    return pages_of(site)


@pytest.fixture(scope="module")
def with_all(tmp_path_factory) -> Path:
    """Build some pages with an address and a PDF younger than the texts; return their folder."""
    folder = copy_sources(tmp_path_factory.mktemp("with"), ADDRESS)
    first, *others = [f"book/{name}" for name in SOME]
    contents = {
        "format": "jb-book",
        "root": first,
        "chapters": [{"file": name} for name in others],
    }
    (folder / "_toc.yml").write_text(yaml.safe_dump(contents), "utf-8")
    pdf = folder / "_build" / "latex" / "book.pdf"  # where tests/test_pdf.py has it made
    pdf.parent.mkdir(parents=True)
    pdf.write_bytes(b"%PDF")
    later = time.time() + 1
    os.utime(pdf, (later, later))
    assert build(folder, strict=False).keys() == set(SOME)
    return folder / "_build" / "html"


@pytest.fixture(scope="module")
def with_address(with_all) -> dict[str, str]:
    return pages_of(with_all)


FORMULA = re.compile(r'<(?:span|div) class="math notranslate[^>]*>')


def links(page: str) -> set[str]:
    return set(re.findall(r'href="(https?://[^"]*)"', page))


def test_without_an_address_nothing_that_depends_on_it_is_there(without_address):
    for name, page in without_address.items():
        for word in (
            "og:",
            "twitter:",
            "mybinder",
            "colab",
            "source-buttons",
            "launch-buttons",
            'rel="canonical"',
        ):
            assert word not in page.split("<article")[0], f"{word} on {name}"
    assert "someone" not in without_address["citing"]


def test_every_formula_keeps_its_room_until_it_is_set(without_address):
    texts = [
        page.split("<article", 1)[1].split("</article>")[0] for page in without_address.values()
    ]
    found = [tag for text in texts for tag in FORMULA.findall(text)]
    rooms = [float(room) for tag in found for room in re.findall(r'style="--room: (.+?)em', tag)]
    assert len(rooms) == len(found) > 1000
    assert 0 < min(rooms) < max(rooms) < 100


@pytest.mark.parametrize("name", sorted({*SOME} & {*chapters()}))
def test_with_an_address_the_buttons_lead_to_the_chapter(with_address, name):
    found = links(with_address[name])
    assert {
        ADDRESS,
        f"{ADDRESS}/edit/main/book/{name}.md",
        f"https://mybinder.org/v2/gh/someone/ssm-poison/main?urlpath=lab/tree/book/{name}.ipynb",
        f"https://colab.research.google.com/github/someone/ssm-poison/blob/main/book/{name}.ipynb",
    } <= found
    assert any(link.startswith(f"{ADDRESS}/issues/new?title=") for link in found)


def test_with_an_address_a_page_without_code_can_be_edited_and_not_launched(with_address):
    page = with_address["bibliography"]
    assert f"{ADDRESS}/edit/main/book/bibliography.md" in links(page)
    assert "mybinder" not in page
    assert "colab" not in page


def test_with_an_address_social_tags_and_citation_name_it(with_address):
    page = with_address["citing"]
    own = "https://someone.github.io/ssm-poison/book/citing.html"
    assert f'<meta property="og:url" content="{own}"' in page
    assert f'<link rel="canonical" href="{own}"' in page
    image = '<meta property="og:image" content="https://someone.github.io/ssm-poison/_static/preview.png"'
    assert image in page
    assert f"Version {CITATION['version']}." in page
    assert (
        f'<a class="reference external" href="{ADDRESS}">github.com/someone/ssm-poison</a>' in page
    )
    assert entries(page)["ssmpoison2026"].fields["url"] == ADDRESS
    about = description(with_address["proofs"])
    assert f'<meta property="og:description" content="{about}"' in with_address["proofs"]


def test_every_page_offers_a_pdf_that_is_there(with_all, with_address, without_address):
    offer = 'href="../_static/book.pdf"'
    assert [name for name, page in with_address.items() if offer not in page] == []
    assert (with_all / "_static" / "book.pdf").read_bytes() == b"%PDF"
    assert [name for name, page in without_address.items() if offer in page] == []


def test_the_picture_for_links_has_the_size_that_sites_show():
    head = (ROOT / "book" / "assets" / "preview.png").read_bytes()[:24]
    assert (int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")) == (1200, 630)


# ---- how to cite ---------------------------------------------------------------------------------


def entries(page: str) -> dict[str, Any]:
    """Return the BibTeX entries that a page shows, read as a reference manager would."""
    blocks = re.findall(r'<div class="highlight-bibtex.*?<pre>(.*?)</pre>', page, re.DOTALL)
    text = "\n".join(html.unescape(re.sub(r"<[^>]*>", "", block)) for block in blocks)
    return dict(pybtex.database.parse_string(text, "bibtex").entries)


def test_the_entries_to_copy_agree_with_the_citation_file(without_address):
    book, paper = (
        entries(without_address["citing"])[key] for key in ("ssmpoison2026", "slutzky2025")
    )
    assert book.fields["title"] == CITATION["title"]
    assert book.fields["version"] == str(CITATION["version"])
    assert [str(person) for person in book.persons["author"]] == [
        f"{{{CITATION['authors'][0]['name']}}}"
    ]
    assert "url" not in book.fields
    (reference,) = CITATION["references"]
    assert paper.fields["title"] == reference["title"]
    assert int(paper.fields["year"]) == reference["year"]
    assert paper.fields["booktitle"] == reference["collection-title"]
    assert paper.fields["note"] == reference["identifiers"][0]["value"]
    names = [
        f"{author['family-names']}, {author['given-names']}" for author in reference["authors"]
    ]
    assert [str(person) for person in paper.persons["author"]] == names


# ---- what a page says about itself ---------------------------------------------------------------


def description(page: str) -> str:
    (found,) = re.findall(r'<meta name="description" content="([^"]*)"', page)
    return found


def test_every_page_has_a_description_of_its_own_in_plain_words(without_address):
    found = {name: html.unescape(description(page)) for name, page in without_address.items()}
    assert {name: text for name, text in found.items() if not 15 <= len(text) <= 182} == {}
    assert {name: text for name, text in found.items() if set(text) & set("\\${}")} == {}
    assert len(set(found.values())) == len(found)


def test_every_chapter_says_how_long_it_ran_and_offers_its_sources(site, without_address):
    noted = json.loads((ROOT / "book" / "status.json").read_text("utf-8"))
    for name in chapters():
        page = without_address[name]
        assert f"This page ran in {noted[name]['seconds']:.0f} s" in page
        for ending in ("ipynb", "md"):
            # in the menu and under the text
            assert page.count(f"_sources/book/{name}.{ending}") == 2, ending
        notebook = nbformat.read(site / "_sources" / "book" / f"{name}.ipynb", as_version=4)
        assert not any(cell.get("outputs") for cell in notebook.cells)  # they are on the page
        text = (site / "_sources" / "book" / f"{name}.md").read_bytes()
        assert text == (ROOT / "book" / f"{name}.md").read_bytes()
    assert "page-facts" not in without_address["notation"]


# ---- the way through the book --------------------------------------------------------------------


def test_the_map_names_every_chapter_and_needs_come_first(without_address):
    order = re.findall(
        r"^\s*- file: book/(\w+)", (ROOT / "_toc.yml").read_text("utf-8"), re.MULTILINE
    )
    found = without_address["summary"].split('class="chapter-map', 1)[1].split("</section>", 1)[0]
    mapped = re.findall(r'<li><p><a class="reference internal" href="(\w+)\.html', found)
    opened = [name for name in order if '"opening admonition"' in without_address[name]]
    assert mapped == opened
    for line in re.findall(r"<li>.*?</li>", found, re.DOTALL):
        chapter, *needs = re.findall(r'href="(\w+)\.html#ch-', line)
        for other in needs:
            assert order.index(other) < order.index(chapter), (
                f"{chapter} needs {other}, which comes later"
            )


def test_the_drawn_map_has_the_chapters_and_the_arrows_of_the_list(without_address):
    page = without_address["summary"]
    (drawn,) = re.findall(r'<svg class="chapter-drawing".*?</svg>', page, re.DOTALL)
    box = r'<a href="(\w+)\.html"><rect x="\d+" y="(\d+)" .*? height="(\d+)"/>'
    boxes = {
        name: range(int(top), int(top) + int(height) + 1)
        for name, top, height in re.findall(box, drawn)
    }
    ends = re.findall(r'<path d="M\d+ (\d+)\S*V(\d+)(?:H\d+)?" marker-end', drawn)
    # A straight arrow ends one unit above its box, for the arrowhead.
    arrows = [
        (start, end)
        for y, to in ends
        for start in boxes
        for end in boxes
        if int(y) in boxes[start] and (int(to) in boxes[end] or int(to) + 1 == boxes[end][0])
    ]
    listed = re.findall(r"<li>.*?</li>", page.split('class="chapter-map', 1)[1], re.DOTALL)
    named = [re.findall(r'href="(\w+)\.html#ch-', line) for line in listed]
    assert list(boxes) == [chapter for chapter, *_ in named]
    assert sorted(arrows) == sorted(
        (other, chapter) for chapter, *needs in named for other in needs
    )


class Addresses(HTMLParser):
    """Collects the anchors of a page and the addresses that it names."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.named: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.anchors |= {given[key] for key in ("id", "name") if key in given}
        self.named |= {given[key] for key in ("href", "src") if key in given}


@pytest.fixture(scope="module")
def read_pages(site) -> dict[Path, Addresses]:
    found = {}
    for path in site.rglob("*.html"):
        found[path] = Addresses()
        found[path].feed(path.read_text("utf-8"))
    return found


def dead_links(pages: dict[Path, Addresses], site: Path) -> list[str]:
    """Return the addresses inside the book at which there is nothing, with the pages that name
    them.
    """
    dead = []
    for path, page in pages.items():
        for address in page.named:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].anchors if target in pages else None
            if not target.exists() or (
                parts.fragment and known is not None and unquote(parts.fragment) not in known
            ):
                dead.append(f"{path.relative_to(site)}: {address}")
    return sorted(dead)


def test_every_internal_link_and_anchor_resolves(site, read_pages):
    assert len(read_pages) > 20
    assert dead_links(read_pages, site) == []


def test_a_dead_link_is_noticed(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here"></a><a href="#x"></a><img src="b.png"></p>', "utf-8"
    )
    page = Addresses()
    page.feed((tmp_path / "a.html").read_text("utf-8"))
    assert dead_links({tmp_path / "a.html": page}, tmp_path) == ["a.html: #x", "a.html: b.png"]


def test_anchors_stay(site, read_pages):
    published = {
        f"{path.stem}#{anchor}"
        for path, page in read_pages.items()
        if path.parent.name == "book"
        for anchor in anchors.labels(page.anchors)
    }
    listed, moved = anchors.read_list()
    assert (
        sorted(listed - published - moved.keys()) == []
    )  # gone: give the old label back, or list where it moved
    assert sorted(set(moved.values()) - published) == []
    assert len(listed) > 600  # new ones enter by tools/anchors.py


def test_a_letter_with_a_meaning_of_its_own_gets_none_and_a_longer_term_comes_first(
    without_address,
):
    assert "symbol-lambda" in without_address["special_sequences"]
    assert "symbol-lambda" not in without_address["linear_ssm"]
    links = re.findall(
        r'<a class="[^"]*\bterm-extrapolation\b[^>]*>.{0,60}', without_address["many_datasets"]
    )
    assert not any("loss" in link for link in links)
    assert re.search(
        r'class="[^"]*symbol-extrapolation-loss[^>]*><span>extrapolation loss',
        without_address["many_datasets"],
    )


def test_the_icon_font_has_the_icons_of_the_pages_and_no_others(site):
    """The pages' classes give the glyphs by the style sheet; some more belong to the theme's
    scripts and styles.
    """
    style = (site / "_static" / "styles" / "pydata-sphinx-theme.css").read_text("utf-8")
    shown = {
        name
        for path in site.rglob("*.html")
        for name in re.findall(r"fa-solid (fa-[\w-]+)", path.read_text("utf-8"))
    }
    needed = {
        int(re.search(rf'\.{name}:before(?:,[^{{}}]*)?\{{content:"\\([0-9a-f]+)"', style)[1], 16)
        for name in shown
    }
    font = TTFont(site / "_static" / "vendor" / "fontawesome" / "webfonts" / "fa-solid-900.woff2")
    assert len(needed) >= 8
    assert needed <= font.getBestCmap().keys()
    assert len(font.getBestCmap()) < 30


def test_the_site_is_small(site):
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    # 3 MB of mathematics, 5 of interactive figures, 15 of drawings for desks and phones, half a
    # megabyte a page.
    assert size < 40e6


# ---- settings of the whole book ------------------------------------------------------------------


def test_the_citation_file_names_the_address_title_and_version_of_the_book():
    assert CITATION.get("repository-code", "") == CONFIG["repository"]["url"]
    assert CITATION["title"] == CONFIG["title"]
    assert [author["name"] for author in CITATION["authors"]] == [CONFIG["author"]]
    assert f'version = "{CITATION["version"]}"' in (ROOT / "pyproject.toml").read_text("utf-8")


BROKEN = {
    "image_without_alt_text": "![](assets/dot.svg)",
    "unknown_reference": "{ref}`nowhere`",
    "unknown_source": "{cite:p}`nobody1900`",
    "unknown_directive": "```{no-such-directive}\n```",
    "half_an_opening_box": """\
:::{admonition} In this chapter
:class: opening

- **Question.** Why?
- **Needs** {ref}`ch-good`. **Runs in** about 5 s.
:::""",
    "chapter_without_opening_box": "Text.",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> str:
    """Build a book of one page per fault, and one without; return what the failing build said."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(ROOT / "book" / "_ext", folder / "book" / "_ext")
    shutil.copytree(ROOT / "book" / "assets", folder / "book" / "assets")
    shutil.copy(ROOT / "book" / "references.bib", folder / "book")
    shutil.copy(ROOT / "_config.yml", folder)
    (folder / "book" / "assets" / "dot.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg"/>', "utf-8"
    )
    (folder / "book" / "status.json").write_text("{}", "utf-8")
    pages = {"good": "```{bibliography}\n:all:\n```\n\n```{chapter-map}\n```"} | BROKEN
    for name, text in pages.items():
        label = f"(ch-{name.replace('_', '-')})="
        (folder / "book" / f"{name}.md").write_text(f"{label}\n# Page\n\n{text}\n", "utf-8")
    files = [{"file": f"book/{name}"} for name in BROKEN]  # the last stands in a part with numbers
    parts = [
        {"caption": "One", "chapters": files[:-1]},
        {"caption": "Two", "numbered": True, "chapters": files[-1:]},
    ]
    contents = {"format": "jb-book", "root": "book/good", "parts": parts}
    (folder / "_toc.yml").write_text(yaml.safe_dump(contents), "utf-8")
    with pytest.raises(AssertionError) as failure:
        build(folder)
    return str(failure.value)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_build_fails_and_names_the_page(report, fault):
    assert re.search(rf"{fault}\.md:.*WARNING", report)


def test_a_build_objects_to_nothing_else(report):
    assert not re.search(r"good\.md:.*WARNING", report)


def test_a_build_says_which_line_of_an_opening_box_is_missing(report):
    assert "no line like '- **Afterwards you can** ...'" in report
    assert "it has no opening box (:class: opening)" in report


@pytest.mark.parametrize("name", public_modules())
def test_every_public_name_of_a_module_is_described(without_address, name):
    module = importlib.import_module(f"ssm_poison_lib.{name}")
    pages = "".join(page for title, page in without_address.items() if title.startswith("api"))
    described = set(re.findall(r'id="ssm_poison_lib\.([\w.]+)"', pages))
    assert {f"{name}.{public}" for public in module.__all__} - described == set()


def test_a_description_has_shapes_arguments_errors_source_and_uses(without_address):
    page = without_address["api_model"]
    words = " ".join(html.unescape(re.sub(r"<[^>]+>", "", page)).split())
    text = words[words.index("impulse_response( A: ") :]
    assert text.startswith(
        "impulse_response( A: ArrayLike, w: ArrayLike, length: int, ) → Float[ndarray, 'length']"
    )
    assert re.search(
        r"Parameters: A – \(d,\) diagonal .* w – .* length – .* Raises: ValueError – if", text[:700]
    )
    assert "Source: the model of the paper; chapter What is a state space model?" in words
    assert re.search(r'<em>Used in</em> <a class="reference internal" href="\w+\.html#ch-', page)


def test_names_in_prose_and_in_code_lead_to_their_descriptions(without_address):
    page = without_address["gradient_flow"]
    assert re.search(r'href="api_training.html#ssm_poison_lib.flow.gradient_flow"[^>]*><code', page)
    in_code = 'class="api" href="api_model.html#ssm_poison_lib.metrics.gamma"'
    assert in_code in page
    pages = {
        name: set(re.findall(r' id="([^"]+)"', text)) for name, text in without_address.items()
    }
    links = [
        link
        for text in without_address.values()
        for link in re.findall(r'"(api\w*)\.html#([^"]+)"', text)
    ]
    assert len(links) > 500
    assert [link for link in links if link[1] not in pages[link[0]]] == []
