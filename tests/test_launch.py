"""The hidden first cell: absent without an address; with one, it fetches the library where there is
none, and only there.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import notebooks
import pytest
from conftest import ROOT

ADDRESS = "https://github.com/someone/ssm-poison"


@pytest.fixture
def text(tmp_path, monkeypatch) -> Path:
    """Lay out a project with one text and an address; return the text's path."""
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    path = tmp_path / "trial.md"
    cell = "```{code-cell} ipython3\nfrom ssm_poison_lib import ssm\n```\n"
    path.write_text(f"{notebooks.HEADER}\n# Trial\n\n{cell}", "utf-8")
    configure(tmp_path, ADDRESS)
    return path


def configure(folder: Path, address: str) -> None:
    (folder / "_config.yml").write_text(
        f'repository:\n  url: "{address}"\n  branch: main\n', "utf-8"
    )


def first_cell(text: Path) -> nbformat.NotebookNode:
    return notebooks.read_text(text).cells[0]


def test_without_an_address_there_is_no_such_cell(text, tmp_path):
    configure(tmp_path, "")
    assert first_cell(text).cell_type == "markdown"
    (tmp_path / "_config.yml").unlink()
    assert first_cell(text).cell_type == "markdown"


def test_a_chapter_that_does_without_the_library_has_none(text, tmp_path):
    style = "try:\n    from ssm_poison_lib import figures\nexcept ImportError:\n    pass\n"
    text.write_text(
        f"{notebooks.HEADER}\n# Trial\n\n```{{code-cell}} ipython3\n{style}```\n", "utf-8"
    )
    assert first_cell(text).cell_type == "markdown"
    own = notebooks.read_text(ROOT / "book" / "sixty_lines.md")
    assert not any("git" in cell.source for cell in own.cells)


def test_with_an_address_it_is_the_first_and_off_the_page(text):
    cell = first_cell(text)
    assert "remove-cell" in cell.metadata.tags
    assert f'"{ADDRESS}", "ssm-poison"' in cell.source


def test_a_text_saved_by_jupyterlab_does_not_get_a_second_one(text, tmp_path):
    once = notebooks.read_text(text)
    jupytext.write(once, text, fmt="md:myst")
    configure(tmp_path, f"{ADDRESS}-two")
    again = notebooks.read_text(text)
    assert len(again.cells) == len(once.cells)
    assert f"{ADDRESS}-two" in again.cells[0].source


def test_a_new_address_makes_every_chapter_run_again(text, tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "BOOK", tmp_path)
    monkeypatch.setattr(notebooks, "LIBRARY", tmp_path / "nothing")
    before = notebooks.fingerprint("trial")
    configure(tmp_path, f"{ADDRESS}-two")
    assert notebooks.fingerprint("trial")["launch cell"] != before["launch cell"]


def run_cell(source: str, folder: Path, monkeypatch, *, installed: bool) -> list[list[str]]:
    """Run the cell in a folder with or without the library; return the commands that it gave, which
    are not executed.
    """
    commands: list[list[str]] = []

    def record(command: list[str], *, check: bool) -> None:
        assert check
        commands.append(command)
        if command[0] == "git":
            (folder / command[-1] / "book").mkdir(parents=True)

    monkeypatch.chdir(folder)
    monkeypatch.setattr(subprocess, "run", record)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if installed else None)
    exec(source, {})
    return commands


def test_where_the_library_is_missing_it_is_fetched_without_a_word(
    text, tmp_path, monkeypatch, capsys
):
    home = tmp_path / "content"
    home.mkdir()
    clone, install = run_cell(first_cell(text).source, home, monkeypatch, installed=False)
    assert clone == ["git", "clone", "--quiet", "--depth=1", "--branch=main", ADDRESS, "ssm-poison"]
    assert install == [sys.executable, "-m", "pip", "install", "--quiet", "./ssm-poison[all]"]
    assert Path.cwd() == home / "ssm-poison" / "book"  # where the chapters' data lie
    assert capsys.readouterr() == ("", "")


def test_where_the_library_is_installed_nothing_happens(text, tmp_path, monkeypatch):
    assert run_cell(first_cell(text).source, tmp_path, monkeypatch, installed=True) == []
    assert os.fspath(tmp_path) == os.getcwd()


def test_binder_installs_the_packages_and_the_library():
    lines = (ROOT / ".binder" / "requirements.txt").read_text("utf-8").split("\n")
    assert "-r ../requirements.txt" in lines
    assert "-e ." in lines
    assert "jupyterlab==" in (ROOT / "requirements.txt").read_text("utf-8")
