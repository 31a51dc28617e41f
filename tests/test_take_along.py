"""What readers take along: slides from the book's own figures, a cheat sheet of one page, the race
as a GIF.
"""

import re
import sys
import unicodedata
from pathlib import Path

import pytest
from PIL import Image
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "book" / "assets"
sys.path[:0] = [str(ROOT / "book" / "_ext"), str(ROOT / "tools")]

import take_along  # noqa: E402
import talk  # noqa: E402


def test_every_slide_is_made_from_the_books_figures():
    drawn = talk.figures(ROOT / "book")
    sections = talk.slides((ASSETS / "talk.md").read_text("utf-8"), drawn)
    assert 15 <= len(sections) <= 22  # about a minute each
    assert sum("<img" in section for section in sections) >= 5
    assert sum('class="notes"' in section for section in sections) >= 5
    assert not re.search(r"https?://", "".join(sections))
    minutes = [int(re.search(r"<p>Minute (\d+)\.", section)[1]) for section in sections]
    assert minutes == sorted(set(minutes))
    assert minutes[-1] < 20


@pytest.mark.parametrize("number", [1, 4])
def test_a_panel_is_shown_alone(number):
    whole = talk.figures(ROOT / "book")["fig-summary-scale"]
    cut = talk.panel(whole, number)
    shown = [k for k in range(1, 5) if f'<g id="axes_{k}">' in cut]
    assert shown == [number]
    assert cut.count('display="none"') == 3
    x, y, width, height = map(float, re.search(r'viewBox="([^"]*)"', cut)[1].split())
    _, _, whole_width, whole_height = map(float, re.search(r'viewBox="([^"]*)"', whole)[1].split())
    assert 0.4 < width / whole_width < 0.6
    assert 0.4 < height / whole_height < 0.6
    assert (x < whole_width / 4) == (number == 1) == (y < whole_height / 4)


def test_formulas_figures_and_notes():
    (slide,) = talk.slides("# T\n\n$a<b$\n\n![words](figure:f)\n\nNote: said\n", {"f": "<svg/>"})
    assert r"\(a&lt;b\)" in slide
    assert '<img src="_static/talk/f.svg" alt="words">' in slide
    assert '<aside class="notes"><p>said</p>' in slide


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("![x](figure:gone)", "'gone' is not one of the book's"),
        ("![](figure:f)", "must have an alternative"),
        ("![x](figure:f/3)", "'f': panel must be one of the figure's; got 3"),
    ],
)
def test_a_figure_that_is_missing_or_mute_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        talk.slides(text, {"f": "<svg/>"})


def test_the_cheat_sheet_is_one_page_and_up_to_date():
    reader = PdfReader(ASSETS / "cheat_sheet.pdf")
    assert len(reader.pages) == 1
    printed = unicodedata.normalize("NFKC", reader.pages[0].extract_text())
    printed = re.sub(r"\s", "", printed)  # links of the glossary break lines and words
    text = (ROOT / "book" / "cheat_sheet.md").read_text("utf-8").partition("## The setting")[2]
    text = re.sub(r"\{[\w:-]+\}`[^`]*`|\$[^$]*\$", " ", text)
    missing = {word for word in re.findall(r"[A-Za-z]{4,}", text) if word not in printed}
    assert not missing, "make book; python tools/take_along.py"


def test_the_race_moves():
    with Image.open(ASSETS / "race.gif") as film:
        assert film.n_frames > 100
        assert 10_000 < film.n_frames * film.info["duration"] < 15_000


def test_the_embedded_report_is_that_of_this_code():
    shown = (ASSETS / "audit_poisoned.html").read_text("utf-8")
    plain = [
        re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL) for text in (shown, take_along.report())
    ]
    assert plain[0] == plain[1], "python tools/take_along.py"
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", shown)
