"""The README's example prints what it says, its commands are those of the Makefile, its lists are
those of the files.
"""

import re
import shutil
import subprocess
import sys

import modules
import pytest
import readme
from conftest import ROOT, make

README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_example_prints_what_is_shown(tmp_path):
    (code,), (shown,) = blocks("python"), blocks("text")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == shown


def test_plain_commands_are_those_of_the_makefile(tmp_path):
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    recipes = make(tmp_path, "--dry-run", "CHROMIUM=", "LATEX=", "book", "test", "lab", "execute")
    for word in ("--quiet ", "--disable-pip-version-check ", "--clear "):
        recipes = recipes.replace(word, "")
    ours = " ".join(recipes.split())
    plain = [
        command.strip()
        for line in blocks("console")[1].splitlines()
        for command in line.split("&&")
    ]
    assert len(plain) == 10
    assert [command for command in plain if command not in ours] == []


def test_badges_and_modules_are_those_of_the_files():
    assert readme.written(README) == README  # else: python tools/readme.py
    for name in modules.modules():
        assert f"| `{name}` | {modules.sentence(name)}"[:60] in README


def test_badges_are_there_only_if_the_address_is_set():
    assert readme.badges({"url": "", "branch": "main"}, "Title") == ""
    shown = readme.badges(
        {"url": "https://github.com/Someone/ssm-poison/", "branch": "main"}, "Title"
    )
    assert len(shown.splitlines()) == 4
    for address in (
        "(https://github.com/Someone/ssm-poison/actions/workflows/book.yml)",
        "(https://someone.github.io/ssm-poison/)",
        "(https://mybinder.org/v2/gh/Someone/ssm-poison/main?urlpath=lab%2Ftree%2Fbook%2Fintro.ipynb)",
        "(https://colab.research.google.com/github/Someone/ssm-poison/blob/main/book/intro.ipynb)",
    ):
        assert address in shown


def test_a_readme_without_its_places_is_refused():
    with pytest.raises(ValueError, match=r"README.md must have one place for badges; it has 0"):
        readme.written("no places")


def test_what_the_readme_links_to_is_there_and_its_first_screen_has_three_ways_in():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    assert [
        link for link in links if not link.startswith("http") and not (ROOT / link).exists()
    ] == []
    first = README.splitlines()[:30]
    assert sum(line.startswith("| ") and "](book/" in line for line in first) == 3
    assert any(line.startswith("![") for line in first)
