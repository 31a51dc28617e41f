"""Figures on a phone: each one's letters are large enough, and the pages show its narrow drawing.

What a browser makes of tables, outputs and formulas there is in test_browser.
"""

import json
import re
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))
import page

from ssm_poison_lib import figures

COLUMN = 342  # CSS pixels of a figure on a window of 390
LEAST = 9  # CSS pixels of its smallest letters, as their font's size
CHAPTERS = sorted((ROOT / "book").glob("*.ipynb"))


def letters(svg: str) -> float:
    """Return the size of the smallest words in a figure on a phone, in CSS pixels."""
    drawing = page.for_phone(svg) or svg
    width = float(re.search(r'viewBox="0 0 ([\d.]+) ', drawing)[1])
    # Matplotlib writes a word as outlines of 100 units a point.
    sizes = [100 * float(scale) for scale in re.findall(r" scale\(([\d.]+) -", drawing)]
    return min(COLUMN / width, 4 / 3) * min(size for size in sizes if size >= 1)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_letters_of_figures_are_legible(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    drawn = ["".join(data["image/svg+xml"]) for data in outputs if "image/svg+xml" in data]
    assert [size for svg in drawn if (size := letters(svg)) < LEAST] == []


def test_a_figure_without_a_narrow_drawing_is_noticed():
    figure, (ax,) = figures.new()
    ax.set_title("small letters", fontsize=8)
    assert letters(figures.to_svg(figure)) < 6
    assert letters(figures._for_page(figure)) < LEAST
    ax.set_title("larger ones", fontsize=9)
    assert letters(figures._for_page(figure)) > LEAST


def test_a_page_offers_the_narrow_drawing_to_phones_and_neither_file_holds_both(tmp_path):
    figure, (ax,) = figures.new()
    ax.plot([0, 1])
    narrow, _ = figures.new(width=4.0)
    (tmp_path / "wide.svg").write_text(figures._for_page(figure), "utf-8")
    (tmp_path / "narrow.svg").write_text(figures._for_page(narrow), "utf-8")
    images = {name: name for name in ("wide.svg", "narrow.svg")}
    app = SimpleNamespace(srcdir=tmp_path, builder=SimpleNamespace(images=images))
    wide, plain = (
        page.give_sizes(app, f'<a><img alt="a &gt; b" src="../_images/{name}" /></a>')
        for name in images
    )
    assert re.fullmatch(
        r'<a><picture><source media="\(max-width: 600px\)" srcset="\.\./_images/wide\.phone\.svg"'
        r' width="422" height="278"/><img width="691" height="278" loading="lazy" alt="a &gt; b"'
        r' src="\.\./_images/wide\.svg" /></picture></a>',
        wide,
    )
    assert plain.startswith('<a><img width="384" height="278" loading="lazy" alt=')

    (tmp_path / "out" / "_images").mkdir(parents=True)
    for name in images:
        (tmp_path / name).rename(tmp_path / "out" / "_images" / name)
    page.part_drawings(tmp_path / "out")
    page.part_drawings(tmp_path / "out")  # a later build finds some parted
    written = {path.name: path.read_text("utf-8") for path in (tmp_path / "out").rglob("*.svg")}
    assert written.keys() == {"wide.svg", "wide.phone.svg", "narrow.svg"}
    assert page.svg_size(written["wide.phone.svg"]) == (422, 278)
    assert "display" not in written["wide.phone.svg"].partition(">")[0]
    assert all("phone" not in svg for svg in written.values())
    assert page.svg_size(written["wide.svg"]) == (691, 278)
