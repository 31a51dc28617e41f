"""The stored notebooks, the tool that writes them, and nbval: each must notice what it is there to
notice.
"""

import ast
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any
from unittest import mock

import digests
import kernels
import nbformat
import notebooks
import pytest
from conftest import ROOT

from ssm_poison_lib.studies import sweep

CHAPTER = f"""{notebooks.HEADER}
(ch-trial)=
# A chapter for the tests

```{{code-cell}} ipython3
from fractions import Fraction

import helper
from IPython.display import Math, display
from ssm_poison_lib import ssm
```

```{{code-cell}} ipython3
print("limit", helper.LIMIT)
print("took 1.5 s")
```

```{{code-cell}} ipython3
Fraction(1, 3)
```

```{{code-cell}} ipython3
Math(r"a_1 = {{}}".format(helper.LIMIT))
```

```{{code-cell}} ipython3
:tags: [hide-input]

drawing = f'<svg xmlns="http://www.w3.org/2000/svg" width="{{helper.LIMIT}}"/>'
numbers = f"line a_1: largest {{helper.LIMIT:.2e}}"
display({{"image/svg+xml": drawing, "text/plain": numbers}}, raw=True)
```
"""

# A library: ssm imports _inner and a folder's module and opens data; nobody imports other.
LIBRARY = {
    "__init__.py": "",
    "ssm.py": (
        '"""Models."""\nfrom ssm_poison_lib._inner import SIGN\n'
        'from ssm_poison_lib.deep import rule\n\nDATA = "numbers"\n'
    ),
    "_inner.py": "SIGN = 1 - 2  # a comment\n",
    "deep/__init__.py": "",
    "deep/rule.py": 'def rule(x):\n    """Say how."""\n    return -x\n',
    "other.py": "X = 1\n",
    "data/numbers.json": "[1]",
    "data/unused.json": "[1]",
}


def run(project: Path, *command: str, expected: int | None = 0) -> str:
    """Run Python in a project, as at a terminal; return what it printed."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=project,
        env=settings_of(project),
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected is None or done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr


def settings_of(project: Path) -> dict[str, str]:
    """Return the environment of a project's commands: without the outer pytest's settings."""
    outer = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    return outer | {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}


def tool(project: Path, *arguments: str, expected: int = 0) -> str:
    """Call the tool on a project in this process, where its imports (2 s) are made; return what it
    printed.
    """
    places = {
        "ROOT": project,
        "BOOK": project / "book",
        "EDITED": project / "_build" / "edited",
        "LIBRARY": project / "ssm_poison_lib",
    }
    printed = io.StringIO()
    digests.code_of.cache_clear()
    kernels.use_plain_settings.cache_clear()
    with (
        mock.patch.multiple(notebooks, **places),
        mock.patch.dict(os.environ, settings_of(project), clear=True),
        contextlib.chdir(project),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        status = notebooks.main(list(arguments))
        kernels.use_plain_settings().cleanup()
    kernels.use_plain_settings.cache_clear()
    assert status == expected, printed.getvalue()
    return printed.getvalue()


def execute(project: Path, *arguments: str, expected: int = 0) -> str:
    return tool(project, "execute", *arguments, expected=expected)


def make_project(folder: Path) -> Path:
    """Lay out a small book with one chapter, the tool and nbval's settings."""
    for name in ("book", "tools", "ssm_poison_lib"):
        (folder / name).mkdir(parents=True)
    for name in ("notebooks.py", "kernels.py", "digests.py", "outputs.py"):
        shutil.copy(ROOT / "tools" / name, folder / "tools")
    shutil.copy(ROOT / "book" / "conftest.py", folder / "book")
    (folder / "helper.py").write_text("LIMIT = 0.375\n", "utf-8")
    for name, code in LIBRARY.items():
        path = folder / "ssm_poison_lib" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, "utf-8")
    shutil.copy(ROOT / "ssm_poison_lib" / "_code.py", folder / "ssm_poison_lib")
    (folder / "book" / "trial.md").write_text(CHAPTER, "utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> Path:
    """Return a small project whose chapter was executed; tests copy it before they change it."""
    project = make_project(tmp_path_factory.mktemp("executed"))
    run(project, "tools/notebooks.py", "execute")
    return project


@pytest.fixture
def project(executed, tmp_path) -> Path:
    return Path(shutil.copytree(executed, tmp_path / "project"))


# ---- the book's own notebooks --------------------------------------------------------------------


@pytest.mark.untyped
def test_texts_and_notebooks_agree_and_outputs_are_complete():
    assert notebooks.all_problems() == []


def chapter_code(name: str) -> str:
    cells = notebooks.read_text(notebooks.BOOK / f"{name}.md").cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def test_chapters_open_their_data_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = {name: chapter_code(name) for name in notebooks.chapters()}
    opened = [
        found
        for source in code.values()
        for found in re.findall(r'([\w.]+)\(f?"(sweeps/[^"]*)"', source)
    ]
    assert len(opened) > 5
    assert {how for how, _ in opened} == {"sweep.load", "sweep.read_config"}
    assert sweep.load("sweeps/scale.zarr").sizes["seed"] == 1000
    assert (
        sweep.read_config("sweeps/scale.toml")["store"] == ROOT / "book" / "sweeps" / "scale.zarr"
    )
    assert [name for name in code if re.search(r"\bopen\(|\bPath\(\W", code[name])] == []
    names: dict[str, Any] = {}
    exec(code[notebooks.STATUS_PAGE], names)
    assert names["total"] > 1


# ---- what nbval compares -------------------------------------------------------------------------

# name -> (what is replaced in the stored notebook, by what, whether nbval must object)
ALTERATIONS = {
    "untouched": ("limit 0.375", "limit 0.375", False),
    "printed_digit": ("limit 0.375", "limit 0.376", True),
    "value": ("Fraction(1, 3)\"\n", "Fraction(1, 4)\"\n", True),
    "latex": ("a_1 = 0.375", "a_1 = 0.376", True),
    "figure_summary": ("largest 3.75e-01", "largest 3.76e-01", True),
    "figure_drawing": ("width=\\\"0.375\\\"", "width=\\\"0.376\\\"", False),
    "seconds": ("took 1.5 s\\n", "took 2.25 s\\n", False),
    "seconds_in_other_words": ("took 1.5 s\\n", "ran 1.5 s\\n", True),
}  # fmt: skip


@pytest.fixture(scope="module")
def verdicts(executed, tmp_path_factory) -> dict[str, bool]:
    """Run nbval once over altered copies of the notebook; return for each whether a cell failed."""
    project = Path(shutil.copytree(executed, tmp_path_factory.mktemp("nbval") / "project"))
    stored = (project / "book" / "trial.ipynb").read_text("utf-8")
    for name, (old, new, _) in ALTERATIONS.items():
        at = stored.rindex(old)  # the output comes after the source
        (project / "book" / f"{name}.ipynb").write_text(
            stored[:at] + new + stored[at + len(old) :], "utf-8"
        )
    (project / "book" / "trial.ipynb").unlink()
    options = [
        "--nbval",
        "--nbval-current-env",
        "-p",
        "no:cacheprovider",
        "--junitxml=verdicts.xml",
    ]
    run(project, "-m", "pytest", "book", *options, expected=None)
    cases = ElementTree.parse(project / "verdicts.xml").iter("testcase")
    found: dict[str, list[bool]] = {}
    for case in cases:
        name = case.attrib["classname"].removesuffix(".ipynb").split(".")[-1]
        found.setdefault(name, []).append(case.find("failure") is not None)
    assert {name: len(cells) for name, cells in found.items()} == dict.fromkeys(ALTERATIONS, 5)
    return {name: any(cells) for name, cells in found.items()}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_nbval_objects_to_an_altered_output_and_to_nothing_else(verdicts, name):
    assert verdicts[name] is ALTERATIONS[name][2]


def test_nbval_objects_when_the_library_gives_another_number(project):
    (project / "helper.py").write_text("LIMIT = 0.376\n", "utf-8")
    printed = run(project, "-m", "pytest", "book", "--nbval", "--nbval-current-env", expected=1)
    assert "3 failed, 2 passed" in printed  # printed number, formula, figure


# ---- what the check finds ------------------------------------------------------------------------


def break_cell(notebook, number, **changes):
    notebook.cells[number].update(changes)


STREAM = {"output_type": "stream", "name": "stdout"}
FAULTS = {
    "another_source": (lambda nb: break_cell(nb, 2, source="print(1)"), "cell 3, source"),
    "another_tag": (
        lambda nb: nb.cells[5].metadata.update(tags=["nbval-skip"]),
        "cell 6, metadata",
    ),
    "another_type": (lambda nb: break_cell(nb, 0, cell_type="raw"), "cell 1, cell_type"),
    "one_cell_less": (lambda nb: nb.cells.pop(), "number of cells: text 6, notebook 5"),
    "other_kernel": (lambda nb: nb.metadata.kernelspec.update(name="other"), "metadata"),
    "never_ran": (lambda nb: break_cell(nb, 3, execution_count=None), "run as None, not as 3"),
    "printing_cell_without_output": (
        lambda nb: break_cell(nb, 2, outputs=[]),
        "prints, but has no stored output",
    ),
    "value_without_output": (
        lambda nb: nb.cells[1].update(source="x", outputs=[]),
        "prints, but has no stored output",
    ),
    "path": (
        lambda nb: nb.cells[2].outputs[0].update(text="see /home/somebody/x.py"),
        "names something of this machine: '/home/'",
    ),
    "address": (
        lambda nb: nb.cells[2].outputs[0].update(text="<Line2D at 0x7f12a4b5c6d7>"),
        "names something of this machine",
    ),
    "stderr": (lambda nb: nb.cells[2].outputs[0].update(name="stderr"), "writes to stderr"),
    "figure_without_numbers": (
        lambda nb: (
            nb.cells[5].outputs[0].data.update({"text/plain": "<Figure size 640x480 with 1 Axes>"})
        ),
        "figure without a summary",
    ),
    "error": (
        lambda nb: break_cell(
            nb,
            2,
            outputs=[nbformat.v4.new_output("error", ename="KeyError", evalue="", traceback=[])],
        ),
        "stored error KeyError",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_check_names_the_fault(executed, tmp_path, monkeypatch, name):
    spoil, message = FAULTS[name]
    book = Path(shutil.copytree(executed / "book", tmp_path / "book"))
    monkeypatch.setattr(notebooks, "BOOK", book)
    monkeypatch.setattr(notebooks, "LIBRARY", executed / "ssm_poison_lib")
    assert notebooks.all_problems() == []
    notebook = nbformat.read(book / "trial.ipynb", as_version=4)
    spoil(notebook)
    (book / "trial.ipynb").write_text(json.dumps(notebook), "utf-8")
    problems = notebooks.all_problems()
    assert any(message in problem and problem.startswith("trial: ") for problem in problems), (
        problems
    )


# name -> (what is replaced in the text, by what, what the check says)
HEADINGS = {
    "no_header": (
        notebooks.HEADER,
        "",
        "line 1 of the header is '', not '---', so that its code is not run",
    ),
    "another_format": (
        "md:myst",
        "md",
        "line 3 of the header is '  formats: ipynb,md', not '  formats: ipynb,md:myst'",
    ),
    "another_kernel": (
        "name: python3",
        "name: other",
        "line 10 of the header is '  name: other', not '  name: python3'",
    ),
    "no_label": (
        "(ch-trial)=\n",
        "",
        "(ch-trial)= and the title must follow the header, for the map and the index",
    ),
    "another_label": (
        "(ch-trial)=",
        "(ch-trail)=",
        "(ch-trial)= and the title must follow the header",
    ),
    "in_no_contents": ("", "", "is not in _toc.yml, so that it is on no page"),
}


@pytest.mark.parametrize("name", HEADINGS)
def test_check_names_what_keeps_a_text_from_being_a_chapter(tmp_path, monkeypatch, name):
    old, new, message = HEADINGS[name]
    monkeypatch.setattr(notebooks, "BOOK", tmp_path / "book")
    path = tmp_path / "book" / "trial.md"
    path.parent.mkdir()
    path.write_text(CHAPTER, "utf-8")
    contents = "root: book/intro\nchapters:\n  - file: book/{}\n"
    (tmp_path / "_toc.yml").write_text(contents.format("trial"), "utf-8")
    assert notebooks.all_problems() == [
        "trial: not executed (python tools/notebooks.py execute trial)"
    ]
    path.write_text(CHAPTER.replace(old, new, 1), "utf-8")
    if name == "in_no_contents":
        (tmp_path / "_toc.yml").write_text(contents.format("trials"), "utf-8")
    assert notebooks.all_problems()[0].startswith(f"trial: {message}")


def test_a_text_without_code_needs_no_header(tmp_path):
    path = tmp_path / "plain.md"
    path.write_text("# Title\n\nCode in prose: `{code-cell}`\n", "utf-8")
    assert notebooks.heading_problems(path) == []


@pytest.mark.parametrize(("width", "found"), [(92, 0), (93, 1)])
def test_check_names_a_line_of_code_that_is_wider_than_the_page(
    executed, tmp_path, monkeypatch, width, found
):
    book = Path(shutil.copytree(executed / "book", tmp_path / "book"))
    monkeypatch.setattr(notebooks, "BOOK", book)
    monkeypatch.setattr(notebooks, "LIBRARY", executed / "ssm_poison_lib")
    line = "Fraction(1, 3)  # ".ljust(width, "x")
    (book / "trial.md").write_text(CHAPTER.replace("Fraction(1, 3)", line), "utf-8")
    message = f"trial: cell 4: {width} characters in a line, not at most 92: 'Fraction(1, 3)"
    assert sum(problem.startswith(message) for problem in notebooks.all_problems()) == found


def test_check_command_fails_for_a_missing_and_for_a_stray_notebook(project):
    (project / "book" / "trial.ipynb").rename(project / "book" / "other.ipynb")
    printed = run(project, "tools/notebooks.py", "check", expected=1)
    assert "other.ipynb: no text" in printed
    assert "trial: not executed (python tools/notebooks.py execute trial)" in printed


# ---- what the tool executes ----------------------------------------------------------------------


def test_a_second_run_has_nothing_to_do_and_a_forced_one_changes_nothing(project):
    stored = (project / "book" / "trial.ipynb").read_bytes()
    assert "up to date" in execute(project)
    assert "[1/1] trial ..." in execute(project, "--all")
    assert (project / "book" / "trial.ipynb").read_bytes() == stored


def test_a_time_and_last_digits_of_a_drawing_leave_the_file_unless_asked_to_be_fresh(project):
    path = project / "book" / "trial.ipynb"
    other = path.read_text("utf-8").replace("took 1.5 s\\n", "took 2.5 s\\n")
    other = other.replace('width=\\"0.375\\"', 'width=\\"0.3750001\\"')
    path.write_text(other, "utf-8")
    execute(project, "--all")
    assert path.read_text("utf-8") == other
    execute(project, "--all", "--fresh")
    assert path.read_text("utf-8") != other


def test_only_chapters_that_ran_change_in_the_status(project):
    (project / "book" / "second.md").write_text(CHAPTER, "utf-8")
    execute(project, "second")
    path = project / "book" / "status.json"
    noted = json.loads(path.read_text("utf-8"))
    noted["trial"]["executed"] = "2001-01-01"
    path.write_text(json.dumps(noted), "utf-8")
    execute(project, "second")
    assert json.loads(path.read_text("utf-8"))["trial"] == noted["trial"]
    before = path.read_bytes()
    assert "up to date" in execute(project)
    assert path.read_bytes() == before


# file -> (what is replaced in it, by what, what the check says)
CHANGES = {
    "a sign": ("ssm_poison_lib/_inner.py", "1 - 2", "1 + 2", "_inner.py"),
    "a sign in a folder": ("ssm_poison_lib/deep/rule.py", "-x", "+x", "deep/rule.py"),
    "data of the library": ("ssm_poison_lib/data/numbers.json", "1", "2", "data/numbers.json"),
    "the text": ("book/trial.md", "A chapter for", "The chapter for", "text"),
    "a docstring": ("ssm_poison_lib/deep/rule.py", "Say how", "Say why", None),
    "a comment": ("ssm_poison_lib/_inner.py", "a comment", "another", None),
    "a module that nobody imports": ("ssm_poison_lib/other.py", "1", "2", None),
    "data that nobody opens": ("ssm_poison_lib/data/unused.json", "1", "2", None),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_a_chapter_depends_on_makes_it_stale_and_nothing_else(
    executed, tmp_path, monkeypatch, case
):
    file, old, new, said = CHANGES[case]
    copy = Path(shutil.copytree(executed, tmp_path / "project"))
    monkeypatch.setattr(notebooks, "BOOK", copy / "book")
    monkeypatch.setattr(notebooks, "LIBRARY", copy / "ssm_poison_lib")
    assert notebooks.stale("trial") == []
    source = (copy / file).read_text("utf-8")
    assert old in source
    (copy / file).write_text(source.replace(old, new), "utf-8")
    digests.code_of.cache_clear()
    assert notebooks.stale("trial") == ([] if said is None else [said])
    problems = [problem for problem in notebooks.all_problems() if "older than" in problem]
    again = "(python tools/notebooks.py execute trial)"
    assert problems == ([] if said is None else [f"trial: older than {said} {again}"])


def test_a_stale_chapter_runs_again_and_is_current_then(project):
    path = project / "ssm_poison_lib" / "_inner.py"
    path.write_text("SIGN = 1\n", "utf-8")
    assert "trial: older than _inner.py" in tool(project, "check", expected=1)
    before = json.loads((project / "book" / "digests.json").read_text("utf-8"))
    assert "[1/1] trial ..." in execute(project)
    after = json.loads((project / "book" / "digests.json").read_text("utf-8"))
    assert [key for key in after["trial"] if after["trial"][key] != before["trial"][key]] == [
        "_inner.py"
    ]
    assert "up to date" in execute(project)


def test_a_copy_of_the_files_alone_is_current(project, tmp_path):
    # A clone has other times of change, and no more than what is committed.
    clone = make_project(tmp_path / "clone")
    for name in ("trial.ipynb", "status.json", "digests.json"):
        shutil.copy(project / "book" / name, clone / "book")
    assert "up to date" in execute(clone)
    tool(clone, "check")


EVERY_SYNTAX = """
from a import b as c

def f(x: int = 1, *y, z=2, **w) -> "text":
    'Documentation.'
    return f"{x!r:>{z}} {y}" "joined" if x else [i for i in y if i] and (lambda q, /: -q)

class G:
    match = {"a": 1, **{}}
    async def g(self): return await self
"""


def test_a_digest_is_the_same_in_every_version_of_python():
    tree = digests.without_docstrings(ast.parse(EVERY_SYNTAX))
    assert "Documentation" not in digests.written(tree)
    assert (
        digests.digest(digests.written(tree).encode()) == "731186f62f377229"
    )  # as 3.11, 3.12 and 3.13 give it


def test_a_change_of_data_that_a_chapter_opens_is_noticed(project):
    (project / "book" / "sweeps").mkdir()
    data = project / "book" / "sweeps" / "numbers.txt"
    data.write_text("1", "utf-8")
    text = CHAPTER.replace("Fraction(1, 3)", 'Fraction(open("sweeps/numbers.txt").read())')
    (project / "book" / "trial.md").write_text(text, "utf-8")
    assert "[1/1] trial ..." in execute(project)
    assert "up to date" in execute(project)
    data.write_text("2", "utf-8")
    assert "[1/1] trial ..." in execute(project)


def test_status_records_seconds_date_and_versions(project):
    entry = json.loads((project / "book" / "status.json").read_text("utf-8"))["trial"]
    assert set(entry["versions"]) == {"python", "numpy", "scipy", "torch", "sympy", "matplotlib"}
    assert 0 < entry["seconds"] < 300
    assert time.strptime(entry["executed"], "%Y-%m-%d")


def test_an_unknown_name_is_refused_with_what_is_allowed(project):
    assert "unknown chapter 'trail'; allowed: trial" in execute(project, "trail", expected=2)


def test_a_failing_chapter_is_shown_and_not_written_and_the_one_before_is_kept(project):
    stored = (project / "book" / "trial.ipynb").read_bytes()
    broken = CHAPTER.replace("Fraction(1, 3)", "Fraction(1, 0)")
    (project / "book" / "trial.md").write_text(broken, "utf-8")
    (project / "book" / "before.md").write_text(CHAPTER, "utf-8")
    printed = execute(project, expected=1)
    assert "ZeroDivisionError" in printed
    assert "Fraction(1, 0)" in printed
    assert (project / "book" / "before.ipynb").exists()
    assert (project / "book" / "trial.ipynb").read_bytes() == stored
    assert "[1/1] trial" in execute(project, expected=1)


def test_a_chapter_that_prints_a_path_is_not_written(project):
    (project / "book" / "trial.md").write_text(
        CHAPTER.replace("helper.LIMIT)\n", "helper.__file__)\n"), "utf-8"
    )
    stored = (project / "book" / "trial.ipynb").read_bytes()
    assert "names something of this machine" in execute(project, expected=1)
    assert (project / "book" / "trial.ipynb").read_bytes() == stored


def test_an_interrupted_run_leaves_the_notebook_as_it_was(project):
    stored = (project / "book" / "trial.ipynb").read_bytes()
    slow = CHAPTER.replace(
        "Fraction(1, 3)", 'open("started", "w").close(); import time; time.sleep(60)'
    )
    (project / "book" / "trial.md").write_text(slow, "utf-8")
    tool = subprocess.Popen(
        [sys.executable, "tools/notebooks.py", "execute"],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while tool.poll() is None and not (project / "book" / "started").exists():
        time.sleep(0.05)
    tool.send_signal(signal.SIGINT)
    printed, _ = tool.communicate(timeout=60)
    assert tool.returncode == 130, printed
    assert "interrupted" in printed
    assert (project / "book" / "trial.ipynb").read_bytes() == stored
