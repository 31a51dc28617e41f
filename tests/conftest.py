"""What several test modules share."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import Phase, settings

ROOT = Path(__file__).resolve().parent.parent

# Machines differ in speed; a test may fail for what it computes, never for how long that took.
settings.register_profile("book", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
settings.load_profile("book")
# A mutant need not be shown in its smallest failing case.
settings.register_profile(
    "mutation", deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the quickest tests first where a mutant is tested (tools/mutation.py), which ends with the first that fails."""
    measured = ROOT / "mutmut-stats.json"
    if measured.exists():
        seconds = json.loads(measured.read_text("utf-8"))["duration_by_test"]
        items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return the path of a Chromium; a missing one is a failure, not a skip (leave these tests out with -m "not browser")."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail(
            "no Chromium found: install the package chromium (apt-get install chromium), or set CHROMIUM to its path"
        )
    return found


def build(sources: Path, target: Path | None = None) -> dict[str, str]:
    """Build the book of a folder as `make book` does; return the text of its pages by name."""
    target = target or sources
    command = ["build", str(sources), "-W", "-n", "--keep-going", "--all", "--path-output", str(target)]
    done = subprocess.run(
        [Path(sys.executable).parent / "jupyter-book", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr or done.stdout
    return {
        page.stem: page.read_text("utf-8") for page in (target / "_build" / "html" / "book").glob("*.html")
    }
