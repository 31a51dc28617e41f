"""Whether .venv is kept or made anew: moved, half installed, of another Python; and what the
Makefile does then.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make

SCRIPT = ROOT / "tools" / "environment.py"
BASE = os.path.realpath(sys._base_executable)


@pytest.fixture
def project(tmp_path) -> Path:
    """Lay out a project with an environment that is complete, by its mark at least."""
    folder = tmp_path / "a project"
    (folder / "tools").mkdir(parents=True)
    for name in ("Makefile", "requirements.txt", "pyproject.toml", "tools/environment.py"):
        shutil.copy(ROOT / name, folder / name)
    subprocess.run(
        [BASE, "-m", "venv", "--clear", "--without-pip", ".venv"], cwd=folder, check=True
    )
    (folder / ".venv" / ".installed").touch()
    return folder


def reason(folder: Path, *words: str, by: str = ".venv/bin/python") -> str:
    return subprocess.run(
        [by, "tools/environment.py", "stale", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_a_whole_environment_is_kept(project):
    assert reason(project) == ""
    assert reason(project, "given", by=BASE) == ""
    assert reason(project, "given") == ""  # PYTHON=.venv/bin/python
    assert "-m venv" not in make(project, "--dry-run", "execute")


def test_another_one_is_made_anew_and_why_is_said(project):
    environment = project / ".venv"
    notes = (environment / "pyvenv.cfg").read_text("utf-8")
    (environment / "pyvenv.cfg").write_text(notes.replace(BASE, "/opt/python3.0"), "utf-8")
    assert reason(project) == ""  # nobody asked for another
    assert reason(project, "given", by=BASE).endswith("(/opt/python3.0)")
    printed = make(project, "--dry-run", f"PYTHON={BASE}", "execute")
    assert f"{BASE} -m venv --clear .venv" in printed
    (environment / "pyvenv.cfg").write_text(notes.replace("version = 3.", "version = 2."), "utf-8")
    assert reason(project).startswith("its Python was 2.")
    (environment / "pyvenv.cfg").unlink()
    assert reason(project, by=BASE) == "it was made in another folder"


def test_a_half_installed_one_is_made_anew(project):
    (project / ".venv" / ".installed").unlink()
    assert reason(project) == "its installation did not end"
    assert "-m venv --clear .venv" in make(project, "--dry-run", "execute")


def test_a_moved_one_is_made_anew(project):
    moved = project.rename(project.with_name("moved"))
    assert reason(moved) == "it was made in another folder"
    assert "Making .venv: it was made in another folder." in make(moved, "--dry-run", "execute")


def test_one_whose_python_went_away_is_made_anew(project):
    for name in ("python", "python3", f"python3.{sys.version_info[1]}"):
        (project / ".venv" / "bin" / name).unlink()
    assert reason(project, by=BASE) == "its Python is gone"
    (project / ".venv" / "bin" / "python").symlink_to("/nowhere/python")
    assert "-m venv --clear .venv" in make(project, "--dry-run", "execute")


def test_new_requirements_are_installed_into_a_whole_one(project):
    os.utime(project / "requirements.txt", (2e9, 2e9))
    printed = make(project, "--dry-run", "execute")
    assert "pip install" in printed
    assert "-m venv" not in printed


def test_an_old_python_is_refused_in_one_line_and_nothing_is_touched(project, tmp_path):
    old = tmp_path / "python3.10"
    old.write_text(
        f"#!/bin/sh\nshift; exec '{BASE}' - \"$@\" <<'END'\n"
        "import sys\nsys.version_info = (3, 10, 13, 'final', 0)"
        "; sys._base_executable = '/usr/bin/python3.10'\n"
        "exec(open('tools/environment.py').read())\nEND\n",
        "utf-8",
    )
    old.chmod(0o755)
    printed = make(project, f"PYTHON={old}", "execute", expected=2)
    assert "Python 3.10.13 is too old: the book needs Python 3.11 or newer" in printed
    assert "Traceback" not in printed
    assert reason(project) == ""


def test_a_python_that_is_not_there_is_named_and_nothing_is_touched(project):
    printed = make(project, "PYTHON=no-such-python", "execute", expected=2)
    assert "no-such-python" in printed
    assert reason(project) == ""


def test_the_oldest_version_is_that_of_the_package():
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text("utf-8")
    assert "OLDEST, NEWEST_RUN = (3, 11), (3, 13)" in SCRIPT.read_text("utf-8")
