"""What readers take along, made from the built book: `make book`, then `python
tools/take_along.py`.

book/assets/cheat_sheet.pdf   the page "Cheat sheet" on one sheet, printed by Chromium
book/assets/race.gif          the race of the first page, where SVG does not play
book/assets/audit_poisoned.html   the report that "Is my model at risk?" shows
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import animation
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure
from playwright.sync_api import sync_playwright

from ssm_poison_lib import audit, figures, paper, sequences, ssm

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "book" / "assets"
PAGE = ROOT / "_build" / "html" / "book" / "cheat_sheet.html"
# On paper the sheet is the article alone, small enough for one side.
SHEET = """
@page { size: A4; margin: 12mm 14mm; }
html { font-size: 13px !important; }
body * { visibility: hidden; }
article, article * { visibility: visible; }
article { position: absolute; inset: 0; margin: 0; padding: 0 !important; }
article h1 { display: block !important; font-size: 2rem; margin: 0; }
article h2 { font-size: 1.5rem; margin: 1.2rem 0 0.6rem; }
article table { font-size: 0.95rem !important; }
article a { border: 0 !important; color: inherit !important; text-decoration: none !important; }
a.headerlink, article > section > p:first-of-type, .prev-next-area, .page-facts {
  display: none !important; }
"""


def print_sheet(page: Path, target: Path) -> None:
    """Print the built page of the cheat sheet to a PDF.

    Raises:
        FileNotFoundError: if the book has not been built.
    """
    if not page.exists():
        raise FileNotFoundError(f"{page} is missing: make book")
    browsers = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    found = next(filter(None, browsers), None)
    if found is None:
        raise FileNotFoundError("chromium is missing: README names the package")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        tab = browser.new_page(color_scheme="light")
        tab.goto(page.as_uri())
        tab.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
        tab.evaluate("MathJax.startup.promise")
        tab.add_style_tag(content=SHEET)
        tab.pdf(path=target, prefer_css_page_size=True, print_background=True)
        browser.close()


def draw_race(target: Path) -> None:
    """Draw the two races as an animated GIF of twelve seconds."""
    setting = paper.THEOREM_SETTINGS["theorem_kappa7"]
    runs = {
        name: animation.frames(setting.run(animation.SEED, name)) for name in paper.TRAINING_SETS
    }
    figures.use_style()
    figure = Figure(figsize=(8, 3.2), layout="constrained", facecolor="white")
    panels = figure.subplots(1, 2, sharey=True)
    lines = []
    for ax, (name, (_, A)) in zip(panels, runs.items(), strict=True):
        colour = figures.COLOURS[name]
        lines += [
            (ax.plot([], [], color=colour, ls="--" if j == 1 else "-")[0], A[:, j])
            for j in range(A.shape[1])
        ]
        ax.set(
            xlim=(0, animation.FRAMES),
            ylim=(animation.LOW, animation.HIGH),
            title=name,
            xticks=[],
            xlabel="time, stretched",
        )
    panels[0].set_ylabel("entries of A")

    def show(frame: int) -> list[Any]:
        for line, values in lines:
            line.set_data(range(frame + 1), values[: frame + 1])
        return [line for line, _ in lines]

    film = FuncAnimation(figure, show, frames=animation.FRAMES)
    film.save(target, writer=PillowWriter(fps=animation.FRAMES // animation.SECONDS), dpi=80)


def report() -> str:
    """Return the report of the audit of five baseline sequences and a special one."""
    teacher = ssm.theorem_teacher(10)
    baseline = sequences.baseline_sequences(7, [1, 0.5, 2, 1.2, 0.7])
    x = np.vstack([baseline, sequences.special_sequences(7)])
    return audit.audit(x, teacher.last_output(x)).to_html()


def main() -> int:
    """Make all files."""
    (ASSETS / "audit_poisoned.html").write_text(report(), "utf-8")
    print_sheet(PAGE, ASSETS / "cheat_sheet.pdf")
    draw_race(ASSETS / "race.gif")
    return 0


if __name__ == "__main__":
    sys.exit(main())
