"""The README's example prints what the README says, and its commands are those of the Makefile."""

import re
import shutil
import subprocess
import sys

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
    plain = [command.strip() for line in blocks("console")[1].splitlines() for command in line.split("&&")]
    assert len(plain) == 10
    assert [command for command in plain if command not in ours] == []
