"""Every page of the strictly built book in headless Chromium: offline, quiet, typeset, drawn,
light, no wider than a phone.

Each page is opened twice, on a desk (served, compressed) and on a phone (as a file), and looked at
in both themes, and once without JavaScript. Times depend on the machine: benchmarks/pages.py
measures them.
"""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from pages import BUDGET, OBSERVE, Gzipped
from playwright.sync_api import Browser, Page, sync_playwright

pytestmark = pytest.mark.browser

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()
DESK, PHONE = 1440, 390  # widths in pixels
SLOW = 120_000  # milliseconds that a busy machine may take for a page

# What a page shows, after its mathematics is typeset.
LOOK = """async () => {
  await document.fonts.ready;
  if (window.MathJax) await MathJax.startup.promise;  // set by assets/book.js: all is typeset
  window.shifted ??= window.shift;  // on the way here, not by what this function does
  const fonts = [...document.querySelectorAll("article p")]
    .map(p => getComputedStyle(p).fontFamily);
  const late = "laid-out-late";  // as for a reader who comes there
  for (const block of document.querySelectorAll(`.${late}`)) block.classList.remove(late);
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
    cards: [...article.querySelectorAll('img[src$=".svg"]')]
      .map(i => getComputedStyle(i).backgroundColor),
    fonts: [...new Set(fonts)],
    sideways: [...article.querySelectorAll(
      ".cell_output, .cell_output pre, .pst-scrollable-table-container, mjx-container[display]")]
      .filter(e => e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 2)
      .map(e => e.textContent.trim().slice(0, 60)),
    cut: shown.filter(e => !e.hasAttribute("display") && !e.closest("table, .highlight"))
      .filter(e => e.getBoundingClientRect().right
        > e.parentElement.closest("p, li, dd, figcaption, div").getBoundingClientRect().right + 2)
      .map(e => e.textContent.trim().slice(0, 60)),
    shift: window.shifted,
    megabytes: performance.getEntriesByType("navigation")
      .concat(performance.getEntriesByType("resource"))
      .reduce((sum, entry) => sum + entry.transferSize, 0) / 1e6,
  };
}"""


@pytest.fixture(scope="module")
def address(html) -> Iterator[str]:
    """Serve the pages on this machine, compressed."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Gzipped, directory=html)
    )
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
    return [
        *sorted(path.relative_to(html).as_posix() for path in html.glob("book/*.html")),
        "search.html",
        "genindex.html",
    ]


def visit(
    browser: Browser, base: str, name: str, width: int, *, axe: bool = False
) -> dict[str, list[str]]:
    """Open a page, look at it in the light and in the dark; return what is wrong by theme."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="light")
    context.set_default_timeout(SLOW)
    page = context.new_page()
    page.add_init_script(OBSERVE)
    foreign: list[str] = []
    complaints: list[str] = []
    page.on(
        "request",
        lambda request: request.url.startswith((base, "data:")) or foreign.append(request.url),
    )
    page.on("requestfailed", lambda request: complaints.append(f"failed: {request.url}"))
    page.on(
        "console",
        lambda message: message.type in ("error", "warning") and complaints.append(message.text),
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{base}/{name}", wait_until="load")
    found: dict[str, list[str]] = {}
    for theme in ("light", "dark"):
        show(page, theme)
        seen = page.evaluate(LOOK)
        seen |= {"foreign": foreign, "complaints": complaints}
        found[theme] = faults(seen, theme, narrow=width == PHONE)
    if axe:
        page.evaluate(FLATTEN)
        found["dark"] += broken_rules(page, "dark")
        show(page, "light")
        found["light"] += broken_rules(page, "light")
    context.close()
    return {theme: lines for theme, lines in found.items() if lines}


def show(page: Page, theme: str) -> None:
    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
    page.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")


# axe walks through the inside of what it is to leave out as well, nine tenths of a page's elements:
# formulas become their words in a box of their size, coloured code becomes plain.
FLATTEN = """() => {
  const formulas = [...document.querySelectorAll("mjx-container")].map(formula => {
    const { width, height } = formula.getBoundingClientRect();
    const block = getComputedStyle(formula).display === "block";
    return { formula, width, height, block };
  });
  for (const { formula, width, height, block } of formulas) {
    formula.textContent = formula.textContent;
    formula.style.cssText = `display: ${block ? "block" : "inline-block"}; overflow: hidden;`
      + `font-size: 0; width: ${width}px; height: ${height}px`;
  }
  for (const code of document.querySelectorAll(".highlight pre")) {
    code.textContent = code.textContent;
  }
}"""


def broken_rules(page: Page, theme: str) -> list[str]:
    """Return the rules of accessibility that a page breaks; the dark theme can change nothing but
    contrast.
    """
    page.evaluate("document.getAnimations().forEach(fading => fading.finish())")
    # Left out for speed: the thousands of elements inside formulas and coloured code; and headers
    # of tables that are formulas, of which axe sees no text.
    where: dict[str, Any] = {"exclude": [["mjx-container"], [".highlight"], ["th:has(.math)"]]}
    # preload would fetch style sheets from wrong places; what is right need not be reported
    how: dict[str, Any] = {"preload": False, "resultTypes": ["violations"]}
    if theme == "dark":
        how["runOnly"] = {"type": "rule", "values": ["color-contrast"]}
    broken = Axe().run(page, where, how).response["violations"]
    return [f"{rule['id']}: {node['html'][:120]}" for rule in broken for node in rule["nodes"][:3]]


def faults(seen: dict[str, Any], theme: str, *, narrow: bool) -> list[str]:
    """Return what is wrong with a page, one line each."""
    found = [f"requests {url}" for url in seen["foreign"]]
    found += [f"console: {text}" for text in seen["complaints"]]
    found += [f"not drawn: {url}" for url in seen["missing"]]
    found += [f"no alternative text: {url}" for url in seen["unnamed"]]
    if seen["formulas"] < seen["sources"]:
        found.append(
            f"{seen['sources'] - seen['formulas']} of {seen['sources']} formulas are not typeset"
        )
    if seen["flat"] or seen["errors"]:
        found.append(f"{seen['flat']} formulas without height, {seen['errors']} with a TeX error")
    if seen["overflow"] > 0:
        found.append(f"{seen['overflow']} pixels wider than the window")
    if narrow:  # code may scroll
        found += [f"scrolls sideways: {words}" for words in seen["sideways"]]
        found += [f"formula cut off at the right: {words}" for words in seen["cut"]]
    if seen["theme"] != theme or set(seen["schemes"]) - {theme}:
        found.append(f"theme {seen['theme']}, figures in {set(seen['schemes'])}, wanted {theme}")
    if set(seen["cards"]) - {"rgba(0, 0, 0, 0)"}:
        found.append("a card behind a figure")
    if len(seen["fonts"]) > 1:
        found.append(f"paragraphs in {len(seen['fonts'])} fonts: {seen['fonts']}")
    if seen["shift"] > BUDGET["shift"]:
        found.append(f"layout shift {seen['shift']:.3f}")
    if seen["megabytes"] > BUDGET["page"]:
        found.append(f"loads {seen['megabytes']:.2f} MB, compressed")
    return found


def test_every_page_is_whole_and_accessible_on_a_desk(browser, address, html):
    names = [*page_names(html), "talk.html"]
    found = {name: visit(browser, address, name, DESK, axe=True) for name in names}
    assert "book/intro.html" in found
    assert {name: faults for name, faults in found.items() if faults} == {}


def test_every_page_is_whole_on_a_phone_and_as_a_file(browser, html):
    names = [*page_names(html), "talk.html"]
    found = {name: visit(browser, html.as_uri(), name, PHONE) for name in names}
    assert {name: faults for name, faults in found.items() if faults} == {}


# ---- without JavaScript --------------------------------------------------------------------------

BARE = """() => {
  const article = document.querySelector("article, main"), root = document.documentElement;
  return {
    words: article.innerText.split(/\\s+/).length,
    theme: getComputedStyle(document.body).colorScheme,
    unread: [...article.querySelectorAll(".math")].filter(e => !/\\S/.test(e.textContent)).length,
    hidden: [...article.querySelectorAll("p, pre, h1, h2, h3, img, td")]
      .filter(e => !e.closest("details:not([open]), template, noscript, dialog, .onlyprint"))
      .filter(e => !e.checkVisibility()).length,
    missing: [...document.images].filter(i => i.complete && i.naturalWidth === 0).map(i => i.src),
    overflow: root.scrollWidth - root.clientWidth,
  };
}"""


def bare_faults(browser: Browser, base: str, name: str) -> list[str]:
    """Open a page without JavaScript on a phone; return what a reader misses."""
    context = browser.new_context(
        viewport={"width": PHONE, "height": 900}, java_script_enabled=False
    )
    page = context.new_page()
    page.goto(f"{base}/{name}", wait_until="load", timeout=SLOW)
    seen = page.evaluate(BARE)
    context.close()
    found = [f"not drawn: {url}" for url in seen["missing"]]
    if seen["words"] < 10:
        found.append(f"{seen['words']} words")
    if seen["unread"] or seen["hidden"]:
        found.append(f"{seen['unread']} formulas without text, {seen['hidden']} elements hidden")
    if seen["overflow"] > 0:
        found.append(f"{seen['overflow']} pixels wider than the window")
    return found


def test_every_page_is_readable_without_javascript(browser, html):
    # which says that it needs it
    names = [*(name for name in page_names(html) if name != "search.html"), "talk.html"]
    found = {name: bare_faults(browser, html.as_uri(), name) for name in names}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_slides_are_printed_one_below_the_other(browser, html):
    page = browser.new_page(viewport={"width": DESK, "height": 900}, color_scheme="dark")
    page.set_default_timeout(SLOW)
    page.goto((html / "talk.html").as_uri())
    page.wait_for_function("window.Reveal?.isReady()")
    tops = "[...document.querySelectorAll('section')].map(e => [e.offsetTop, e.offsetHeight])"
    assert sum(height > 0 for _, height in page.evaluate(tops)) < 5  # on the screen
    page.emulate_media(media="print")
    places = page.evaluate(tops)
    assert all(low + height <= below + 1 for (low, height), (below, _) in pairwise(places))
    assert min(height for _, height in places) > 50
    page.close()


# ---- finding one's way ---------------------------------------------------------------------------

SOUGHT = {
    "effective rank": "notation.html#term-effective-rank",
    "extrapolation": "notation.html#term-extrapolation",
    "tie gap": "notation.html#term-tie-gap",
    "kappa": "notation.html#symbol-kappa",
    "Gen": "notation.html#symbol-gen",
    "bibliography": "bibliography.html",
}


@pytest.mark.parametrize("words", SOUGHT)
@pytest.mark.parametrize("where", ["served", "file"])
def test_search_finds_symbols_and_terms_by_name(browser, address, html, where, words):
    base = address if where == "served" else html.as_uri()
    page = browser.new_page()
    page.goto(f"{base}/search.html?q={words.replace(' ', '+')}", timeout=SLOW)
    page.wait_for_function(
        "document.querySelector('#search-results .search-summary')?.textContent.includes('found')"
    )
    links = page.eval_on_selector_all("#search-results li a", "all => all.map(a => a.href)")
    assert any(SOUGHT[words] in link for link in links), links
    page.close()


@pytest.fixture
def chapter(browser, address) -> Iterator[Page]:
    """Open a chapter with many symbols, typeset."""
    page = browser.new_page(viewport={"width": DESK, "height": 900})
    page.set_default_timeout(SLOW)
    page.goto(f"{address}/book/special_sequences.html")
    page.evaluate("MathJax.startup.promise.then(() => null)")
    yield page
    page.close()


def test_a_symbol_shows_its_meaning_on_focus_and_hides_it_on_escape(chapter):
    symbol = chapter.locator("a.symbol-epsilon")
    assert symbol.count() == 1
    symbol.focus()
    tip = chapter.locator("#meaning")
    tip.wait_for(state="visible")
    assert "scale of the start" in tip.inner_text()
    assert symbol.get_attribute("aria-describedby") == "meaning"
    chapter.wait_for_function("document.querySelectorAll('#meaning mjx-container').length === 4")
    chapter.keyboard.press("Escape")
    tip.wait_for(state="hidden")


def test_a_later_use_and_a_word_show_their_meaning_under_the_pointer(chapter):
    tip = chapter.locator("#meaning")
    for place, words in (
        ("span.symbol-kappa", "length of the training sequences"),
        ("a.term-dose", "relative to"),
    ):
        chapter.locator(place).first.hover()
        tip.get_by_text(words).wait_for(state="visible")
        chapter.mouse.move(0, 0)
        tip.wait_for(state="hidden")


def test_an_address_with_an_anchor_shows_its_place(browser, address):
    page = browser.new_page(viewport={"width": DESK, "height": 900})
    page.goto(f"{address}/book/special_sequences.html#thm-special-separation", timeout=SLOW)
    page.evaluate("MathJax.startup.promise.then(() => null)")
    page.wait_for_function(
        "(() => { const box ="
        " document.getElementById('thm-special-separation').getBoundingClientRect(); return box.top"
        " > -50 && box.top < 600; })()"
    )
    page.close()


# ---- Plotly figures ------------------------------------------------------------------------------

LAST = """figure => {
  const plot = figure.querySelector(".interactive-plot"), root = document.documentElement;
  const source = document.querySelector(`script.interactive-figure[data-figure="${figure.id}"]`);
  const last = JSON.parse(source.textContent).frames.at(-1);
  return {
    shown: figure.querySelector("input").getAttribute("aria-valuetext") === last.name
      && last.data.every((change, i) => Object.keys(change)
        .every(key => String(plot.data[i][key]) === String(change[key]))),
    fits: root.scrollWidth <= root.clientWidth
      && plot.querySelector(".main-svg").clientWidth >= 250,
  };
}"""


def test_every_interactive_figure_follows_its_slider_on_a_phone(browser, html):
    marks = {
        path.stem: path.read_text("utf-8").count('class="interactive-figure"')
        for path in html.glob("book/*.html")
    }
    found = {}
    for name in (name for name, number in marks.items() if number):
        page = browser.new_page(viewport={"width": PHONE, "height": 900})
        page.set_default_timeout(SLOW)
        page.goto((html / "book" / f"{name}.html").as_uri())
        for source in page.locator("script.interactive-figure").all():
            figure = page.locator(f"#{source.get_attribute('data-figure')}")
            figure.evaluate("figure => figure.scrollIntoView()")
            figure.locator(".main-svg").first.wait_for()
            figure.get_by_role("slider").press("End")
            found[f"{name}#{source.get_attribute('data-figure')}"] = figure.evaluate(LAST)
        page.close()
    assert {
        "greedy_learning#fig-greedy-learning-responses",
        "evidence_special#fig-special-map",
    } <= found.keys()
    assert {name: seen for name, seen in found.items() if not all(seen.values())} == {}


# ---- the tests notice ----------------------------------------------------------------------------

SPOILED = {
    "requests": '<img alt="x" src="https://example.org/x.png">',
    "console": "<script>console.error('x')</script>",
    "not drawn": '<img alt="x" src="nowhere.png">',
    "no alternative text": '<img src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=">',
    "formulas are not typeset": '<div class="math"></div>',
    "with a TeX error": (
        r'<script src="../_static/mathjax/tex-chtml.js"></script><div'
        r' class="math">\[\frac{1}\]</div>'
    ),
    "paragraphs in 2 fonts": '<p class="far">x</p>',  # a class of the theme's icons
    "wider than the window": '<div style="width: 3000px">x</div>',
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_spoiled_page_is_noticed(browser, html, tmp_path, fault):
    text = (html / "book" / "bibliography.html").read_text("utf-8")
    text = text.replace("</article>", f"{SPOILED[fault]}</article>").replace(
        "../", f"{html.as_uri()}/"
    )
    (tmp_path / "page.html").write_text(text, "utf-8")
    seen = visit(browser, "file://", f"{tmp_path}/page.html", DESK)
    assert any(fault in line for line in seen["light"]), seen
