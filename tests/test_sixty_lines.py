"""The sixty lines to take along: they run with NumPy alone, are sixty, and are what their page
shows.
"""

import subprocess
import sys
from pathlib import Path

import jupytext

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "book" / "assets" / "poisoned.py"
# Runs a file where nothing can be imported but NumPy and what comes with Python.
ALONE = """
import runpy, sys

class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top != "numpy" and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"{name} is not NumPy")

sys.meta_path.insert(0, Only())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def test_they_reproduce_the_first_page_with_numpy_alone():
    run = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, FILE],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    lines = run.stdout.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["0.012", "0.492"]
    assert all("loss 0" in line or float(line.split()[4].strip(",")) < 1e-28 for line in lines), (
        lines
    )


def test_they_are_sixty_and_those_of_the_page():
    text = FILE.read_text("utf-8")
    assert len(text.splitlines()) <= 60
    assert max(map(len, text.splitlines())) <= 100
    cells = [cell.source for cell in jupytext.read(ROOT / "book" / "sixty_lines.md").cells]
    shown = "\n\n\n".join(cells)
    pieces = text.split("\n\n\n")
    assert len(pieces) == 9
    for piece in [*pieces[1:8], pieces[8].partition("\nfor X in")[0]]:
        assert piece.strip() in shown
    assert not any("ssm_poison_lib" in cell for cell in cells if "try:" not in cell)
