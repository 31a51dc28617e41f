"""The book as a PDF, made by XeLaTeX: complete, nothing outside the page, text that can be searched
and copied.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "book" / "_ext"))

import pdf

TOOLS = {
    "latexmk": "latexmk",
    "xelatex": "texlive-xetex",
    "rsvg-convert": "librsvg2-bin",
    "pdftotext": "poppler-utils",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Make the PDF as `make pdf` does; return its folder."""
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    assert not missing, (
        f"install {' '.join(missing)} (README names all packages), or leave out tests/test_pdf.py"
    )
    target = tmp_path_factory.mktemp("pdf")
    book = [
        "build",
        ROOT,
        "-W",
        "-n",
        "--keep-going",
        "--all",
        "--builder",
        "latex",
        "--path-output",
        target,
    ]
    done = subprocess.run(
        [Path(sys.executable).parent / "jupyter-book", *book],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr or done.stdout
    latexmk = [
        "latexmk",
        "-pdfxe",
        "-silent",
        "-interaction=nonstopmode",
        "-halt-on-error",
        "book.tex",
    ]
    assert " ".join(latexmk) in (ROOT / "Makefile").read_text("utf-8")
    folder = target / "_build" / "latex"
    done = subprocess.run(latexmk, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    return folder


@pytest.fixture(scope="module")
def log(folder) -> str:
    return (folder / "book.log").read_text("utf-8", errors="replace")


@pytest.fixture(scope="module")
def text(folder) -> str:
    return subprocess.run(
        ["pdftotext", "-layout", folder / "book.pdf", "-"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_a_table_is_as_low_as_its_widths_allow():
    rows = [["not known", "1.00, 0.02, 0.01, 0.01"], ["x", "1.00, 0.02, 0.01, 0.01"]]
    assert pdf.wrapped("not known", 9) == 1
    assert pdf.wrapped("not known", 8) == 2
    assert pdf.wrapped("", 3) == 1
    # 16 more make both rows one line; 4 would only spare the first column its second line
    assert pdf.share(rows, [5, 5], 21) == [9, 22]
    # too little for that: two lines, by 5 letters, and all that is left is used
    assert sum(pdf.share(rows, [5, 5], 9)) == 19
    assert pdf.share(rows, [5, 5], 0) == [5, 5]


def test_nothing_is_missing(log):
    # Line breaks of the log fall anywhere: look for words without them.
    joined = re.sub(r"\s+", "", log)
    faults = (
        r".{60}(?:Missingcharacter|undefinedonpage|multiplydefined|File`[^']*'notfound"
        r"|Undefinedcontrol).{60}"
    )
    assert re.findall(faults, joined) == []


def test_nothing_runs_over(log):
    # In a table two points more would touch or hide the next column's first digits.
    wide = [float(size) for size in re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide\)", log)]
    assert [size for size in wide if size > 2] == []
    high = [float(size) for size in re.findall(r"Overfull \\vbox \(([\d.]+)pt too high\)", log)]
    assert [size for size in high if size > 20] == []


def test_pages_break_between_things_that_do_not_belong_together(text):
    for page in text.split("\f"):
        lines = [line.strip() for line in page.splitlines() if line.strip()]
        assert lines[-2:-1] not in (["Parameters"], ["Returns"], ["Raises"]), page
        _, found, after = page.rpartition("figures.dynamics(stored_pair")
        assert not found or "Fig. " in after, page


def test_kind_of_a_claim_is_parted_from_its_title(text):
    assert "Claim of the paper: Correct labels can poison" in text
    assert (
        re.findall(r"(?:Claim of the paper|Proved in this book|Measured here) [A-Z].*", text) == []
    )


def test_every_figure_of_the_chapters_is_there(folder):
    source = (folder / "book.tex").read_text("utf-8")
    chapters = [path.read_text("utf-8") for path in (ROOT / "book").glob("*.ipynb")]
    used = re.findall(r"sphinxincludegraphics(?:\[[^]]*\])?\{\{([^}]+)\}(\.\w+)\}", source)
    assert all((folder / f"{name}{suffix}").stat().st_size > 2000 for name, suffix in used)
    assert len(used) >= sum(chapter.count('"image/svg+xml"') for chapter in chapters) > 50
    assert r"\PYG{n}{figures}\PYG{o}{.}\PYG{n}{use\PYGZus{}style}" in source  # shown code is there


def test_pages_and_words(folder, text):
    pages = text.count("\f")
    assert 150 < pages <= 350
    for words in (
        "Poisoned in five minutes",
        "Special sequences",
        "Bibliography",
        "gradient_flow(",
        "κ = 7",
    ):
        assert words in text, words
    contents = text[text.index("Contents") :][:60000]
    for title in (
        "Linear state space models",
        "What is a state space model?",
        "Proofs",
        "The library",
    ):
        assert title in contents
    assert "figures.use_style()" in text
    assert "prefers-color-scheme" not in text
    # in a table: a cell of nothing but an equation's number
    assert re.search(r" \(\d+\) +SymPy \(", text)
    # a source with a letter of its own
    assert re.search(r"Gaussian matrix has k\s+real eigenvalues", text)


def test_links_lead_somewhere(folder):
    info = subprocess.run(
        ["pdfinfo", "-dests", folder / "book.pdf"], capture_output=True, text=True, check=True
    )
    assert info.stdout.count("section*") + info.stdout.count('"section.') > 50
