"""A chapter in JupyterLab: it opens whatever the times of its two files, and saving it leaves a
pair that the checks accept.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import notebooks
import pytest
from conftest import ROOT
from test_notebooks import execute, make_project, run

# JupyterLab quotes the caption and breaks its lines.
CAPTION = """
```{code-cell} ipython3
---
tags: [hide-input]
mystnb:
  figure:
    caption: |
      What two trained models answer: $m$ steps later ($m$ is the *lag*), after training from the \
same start.
      A second line.
---
1 + 1
```
"""
TOKEN = "for-the-tests"
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = make_project(tmp_path_factory.mktemp("lab"))
    shutil.copy(ROOT / "jupytext.toml", folder)
    text = (folder / "book" / "trial.md").read_text("utf-8")
    (folder / "book" / "trial.md").write_text(text + CAPTION, "utf-8")
    execute(folder)
    return folder


@pytest.fixture(scope="module")
def call(project, tmp_path_factory) -> Iterator[Call]:
    """Start a server as `make lab` does, on a free port; return what asks it for a path of its
    contents.
    """
    own = tmp_path_factory.mktemp("jupyter")
    places = {f"JUPYTER_{name}_DIR": str(own / name) for name in ("RUNTIME", "CONFIG", "DATA")}
    command = [
        sys.executable,
        "-m",
        "jupyter_server",
        "--allow-root",
        "--no-browser",
        "--ServerApp.port=0",
    ]
    command += [
        f"--IdentityProvider.token={TOKEN}",
        "--ServerApp.ip=127.0.0.1",
        "--Application.log_level=WARN",
    ]
    log = own / "log"
    with log.open("w", encoding="utf-8") as output:
        server = subprocess.Popen(
            command, cwd=project, env=os.environ | places, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield connect(server, own / "RUNTIME", log)
    finally:
        server.terminate()
        server.wait()


def connect(server: subprocess.Popen[bytes], runtime: Path, log: Path) -> Call:
    """Wait until the server answers; return a function that sends it one request."""
    base = None

    def send(path: str, content: Any = None) -> Any:
        data = (
            None
            if content is None
            else json.dumps({"type": "notebook", "content": content}).encode()
        )
        request = urllib.request.Request(
            f"{base}api/{path}",
            data,
            {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"},
            method="GET" if data is None else "PUT",
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            pytest.fail(f"{path}: {error.code} {error.read().decode()[:500]}")

    while server.poll() is None:
        time.sleep(0.05)
        with contextlib.suppress(OSError, ValueError, StopIteration):
            base = json.loads(next(runtime.glob("jpserver-*.json")).read_text("utf-8"))["url"]
            send("status")
            return send
    pytest.fail(log.read_text("utf-8"))


@pytest.mark.parametrize("ending", ["ipynb", "md"])
@pytest.mark.parametrize(("text", "notebook"), [(600, 0), (0, 600), (600, 590), (86400, 0)])
def test_a_chapter_opens_however_old_its_files_are(project, call, ending, text, notebook):
    now = time.time()
    os.utime(project / "book" / "trial.md", (now - text, now - text))
    os.utime(project / "book" / "trial.ipynb", (now - notebook, now - notebook))
    opened = call(f"contents/book/trial.{ending}?type=notebook")
    assert opened["type"] == "notebook"
    assert any(cell.get("outputs") for cell in opened["content"]["cells"])


def save(call: Call, change: Callable[[Any], None] = lambda cells: None) -> None:
    """Open the chapter, change its cells, save it with what JupyterLab adds."""
    content = call("contents/book/trial.ipynb")["content"]
    content["metadata"]["language_info"] = {"name": "python", "version": "3.12.1"}
    change(content["cells"])
    call("contents/book/trial.ipynb", content)


def test_saving_an_unchanged_chapter_leaves_a_pair_that_the_check_accepts(project, call):
    before = (project / "book" / "trial.md").read_text("utf-8")
    save(call)
    after = (project / "book" / "trial.md").read_text("utf-8")
    # all but the cell with the caption
    assert after.split("---\ntags")[0] == before.split("---\ntags")[0]
    assert "caption: |" not in after
    assert "language_info" in (project / "book" / "trial.ipynb").read_text("utf-8")
    run(project, "tools/notebooks.py", "check")


def test_an_edit_made_in_lab_is_in_the_text_and_executed(project, call):
    save(call, lambda cells: cells[-1].update(source=cells[-1]["source"] + "\nprint('edited')"))
    assert "print('edited')" in (project / "book" / "trial.md").read_text("utf-8")
    printed = execute(project)
    assert "had edits" not in printed
    assert '"edited\\n"' in (project / "book" / "trial.ipynb").read_text("utf-8")


@pytest.fixture
def here(project, tmp_path, monkeypatch) -> Path:
    """Let the tool, in this process, work on a copy of the project; return the copy."""
    folder = Path(shutil.copytree(project, tmp_path / "copy"))
    for name, place in {
        "ROOT": folder,
        "BOOK": folder / "book",
        "EDITED": folder / "_build" / "edited",
    }.items():
        monkeypatch.setattr(notebooks, name, place)
    monkeypatch.setattr(notebooks.kernels, "use_plain_settings", lambda: None)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_an_edit_made_in_the_notebook_alone_is_kept_before_it_is_written_anew(here, capsys):
    path = here / "book" / "trial.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].source = "print('only in the notebook')"
    notebook.cells.append(nbformat.v4.new_code_cell("added = 1"))
    nbformat.write(notebook, path)
    edited = path.read_bytes()
    assert notebooks.execute(["trial"]) == 0
    assert (
        "trial.ipynb had edits that trial.md lacks, kept as _build/edited/trial-1.ipynb: "
        "\"print('only in the notebook')\", 'added = 1'" in capsys.readouterr().out
    )
    assert (here / "_build" / "edited" / "trial-1.ipynb").read_bytes() == edited
    assert notebooks.edits("trial") == []


def test_a_damaged_notebook_is_named_and_kept(here, capsys):
    (here / "book" / "trial.ipynb").write_text("<<<<<<< HEAD\n", "utf-8")
    assert any("trial.ipynb is not readable" in problem for problem in notebooks.all_problems())
    for number in (1, 2):  # a copy never replaces another
        notebooks.keep_edits("trial")
        assert (
            f'kept as _build/edited/trial-{number}.ipynb: "(not readable' in capsys.readouterr().out
        )


def test_a_missing_kernel_is_named(here, capsys, monkeypatch):
    path = here / "book" / "other.md"
    text = (here / "book" / "trial.md").read_text("utf-8")
    path.write_text(text.replace("name: python3", "name: python-of-the-moon"), "utf-8")
    assert notebooks.execute(["other"]) == 2  # no chapter: the line that differs is named
    assert "line 10 of the header is '  name: python-of-the-moon'" in capsys.readouterr().err
    header = notebooks.HEADER.replace("name: python3", "name: python-of-the-moon")
    monkeypatch.setattr(notebooks, "HEADER", header)
    assert notebooks.execute(["other"]) == 1
    message = (
        "other.md asks for the Jupyter kernel 'python-of-the-moon', which is not installed here"
    )
    assert message in capsys.readouterr().err


# ---- disks that are full or cannot be written ----------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("name", ["trial.ipynb", "status.json", "digests.json"])
def test_on_a_full_disk_the_old_file_stays_and_is_named(here, capsys, monkeypatch, name):
    book = here / "book"
    stored = nbformat.read(book / "trial.ipynb", as_version=4)
    monkeypatch.setattr(notebooks, "run_chapter", lambda name: (stored, 1.0))
    before = (book / name).read_bytes()
    (book / f"{name}.new").symlink_to("/dev/full")
    assert notebooks.main(["execute", "trial"]) == 1
    said = capsys.readouterr().err
    assert f"{book / name} cannot be written and is as it was: No space left on device" in said
    assert (book / name).read_bytes() == before
    assert not list(book.glob("*.new"))
    assert notebooks.main(["execute", "trial"]) == 0


def test_a_book_that_cannot_be_written_is_named_before_a_chapter_runs(here, capsys, monkeypatch):
    monkeypatch.setattr(notebooks.os, "access", lambda path, mode: False)
    monkeypatch.setattr(notebooks, "run_chapter", lambda name: pytest.fail("ran in vain"))
    assert notebooks.main(["execute", "trial"]) == 1
    assert f"{here / 'book'} cannot be written" in capsys.readouterr().err


def test_a_damaged_status_is_named(here, capsys):
    for name in ("status.json", "digests.json"):
        content = (here / "book" / name).read_text("utf-8")
        (here / "book" / name).write_text("{", "utf-8")
        assert notebooks.main(["execute"]) == 1
        assert f"{here / 'book' / name} is damaged" in capsys.readouterr().err
        (here / "book" / name).write_text(content, "utf-8")
