"""Every page of the strictly built book in headless Chromium: offline, quiet, typeset, drawn, and no wider than a phone."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT, build
from playwright.sync_api import Browser, sync_playwright

pytestmark = pytest.mark.browser

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()
DESK, PHONE = 1440, 390  # widths in pixels

# What a page shows, after its mathematics is typeset.
LOOK = """async () => {
  await document.fonts.ready;
  if (window.MathJax) await MathJax.startup.promise;
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
  const article = document.querySelector("article, main");
  const shown = [...article.querySelectorAll("mjx-container")].filter(e => e.checkVisibility());
  const root = document.documentElement;
  return {
    sources: article.querySelectorAll(".math").length,
    formulas: article.querySelectorAll("mjx-container").length,
    flat: shown.filter(e => e.getBoundingClientRect().height < 4).length,
    errors: article.querySelectorAll("mjx-merror, [data-mjx-error]").length,
    missing: [...document.images].filter(i => i.naturalWidth === 0).map(i => i.src),
    unnamed: [...document.images].filter(i => !i.alt.trim()).map(i => i.src),
    overflow: root.scrollWidth - root.clientWidth,
    theme: root.dataset.theme,
    schemes: [...article.querySelectorAll("img")].map(i => getComputedStyle(i).colorScheme),
    cards: [...article.querySelectorAll('img[src$=".svg"]')].map(i => getComputedStyle(i).backgroundColor),
  };
}"""


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    """Build the book strictly and return the folder of its pages."""
    target = tmp_path_factory.mktemp("pages")
    build(ROOT, target)
    return Path(target) / "_build" / "html"


@pytest.fixture(scope="module")
def address(html) -> Iterator[str]:
    """Serve the pages on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


def page_names(html: Path) -> list[str]:
    return sorted(path.relative_to(html).as_posix() for path in html.glob("book/*.html"))


def visit(browser: Browser, base: str, name: str, width: int, theme: Any) -> dict[str, Any]:
    """Open a page and return what it shows, with its foreign requests and console errors."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    foreign: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: request.url.startswith((base, "data:")) or foreign.append(request.url))
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.on(
        "console", lambda message: message.type in ("error", "warning") and complaints.append(message.text)
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{base}/{name}", wait_until="load")
    seen = page.evaluate(LOOK)
    context.close()
    return seen | {"foreign": foreign, "complaints": complaints}


def faults(seen: dict[str, Any], theme: str) -> list[str]:
    """Return what is wrong with a page, one line each."""
    found = [f"requests {url}" for url in seen["foreign"]]
    found += [f"console: {text}" for text in seen["complaints"]]
    found += [f"not drawn: {url}" for url in seen["missing"]]
    found += [f"no alternative text: {url}" for url in seen["unnamed"]]
    if seen["formulas"] < seen["sources"]:
        found.append(f"{seen['sources'] - seen['formulas']} of {seen['sources']} formulas are not typeset")
    if seen["flat"] or seen["errors"]:
        found.append(f"{seen['flat']} formulas without height, {seen['errors']} with a TeX error")
    if seen["overflow"] > 0:
        found.append(f"{seen['overflow']} pixels wider than the window")
    if seen["theme"] != theme or set(seen["schemes"]) - {theme}:
        found.append(f"theme {seen['theme']}, figures in {set(seen['schemes'])}, wanted {theme}")
    if set(seen["cards"]) - {"rgba(0, 0, 0, 0)"}:
        found.append("a card behind a figure")
    return found


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_every_page_is_whole(browser, address, html, width, theme):
    names = page_names(html)
    assert "book/intro.html" in names
    found = {name: faults(visit(browser, address, name, width, theme), theme) for name in names}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_every_page_is_whole_when_opened_as_a_file(browser, html):
    found = {
        name: faults(visit(browser, html.as_uri(), name, DESK, "light"), "light") for name in page_names(html)
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize("where", ["served", "file"])
def test_search_finds_a_word_of_the_book(browser, address, html, where):
    base = address if where == "served" else html.as_uri()
    page = browser.new_page()
    page.goto(f"{base}/search.html?q=bibliography")
    page.wait_for_selector("#search-results li a")
    assert "book/bibliography.html" in page.locator("#search-results").inner_html()
    page.close()


def test_no_page_breaks_a_rule_of_accessibility(browser, address, html):
    # Left out for speed: the thousands of elements inside formulas and coloured code.
    inside = {"exclude": [["mjx-math"], [".highlight"]]}
    contrast = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
    found = {}
    for name in page_names(html):
        page = browser.new_page(viewport={"width": DESK, "height": 900}, color_scheme="light")
        page.goto(f"{address}/{name}")
        page.evaluate(LOOK)
        broken = Axe().run(page, inside).response["violations"]
        page.emulate_media(color_scheme="dark")  # which can change nothing but contrast
        page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
        page.evaluate("document.getAnimations().forEach(fading => fading.finish())")
        broken += Axe().run(page, inside, contrast).response["violations"]
        found[name] = [f"{rule['id']}: {node['html'][:120]}" for rule in broken for node in rule["nodes"][:3]]
        page.close()
    assert {name: lines for name, lines in found.items() if lines} == {}


SPOILED = {
    "requests": '<img alt="x" src="https://example.org/x.png">',
    "console": "<script>console.error('x')</script>",
    "not drawn": '<img alt="x" src="nowhere.png">',
    "no alternative text": '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=">',
    "formulas are not typeset": '<div class="math"></div>',
    "with a TeX error": r'<script src="../_static/mathjax/tex-chtml.js"></script><div class="math">\[\frac{1}\]</div>',
    "wider than the window": '<div style="width: 3000px">x</div>',
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_spoiled_page_is_noticed(browser, html, tmp_path, fault):
    text = (html / "book" / "bibliography.html").read_text("utf-8")
    text = text.replace("</article>", f"{SPOILED[fault]}</article>").replace("../", f"{html.as_uri()}/")
    (tmp_path / "page.html").write_text(text, "utf-8")
    seen = visit(browser, "file://", f"{tmp_path}/page.html", DESK, "light")
    assert any(fault in line for line in faults(seen, "light")), seen
