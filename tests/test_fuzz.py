"""How properties are tested: the same examples in every ordinary run, many others and a time limit
in `make fuzz`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make

PROPERTIES = """
import time
import pytest
from hypothesis import given, settings, strategies as st

SEEN = open("seen.txt", "a")
CLOCK, AHEAD = time.monotonic, [0]
time.monotonic = lambda: CLOCK() + AHEAD[0]

@settings(max_examples=3)
@given(st.integers(0, 10**9))
def test_few(n):
    SEEN.write(f"{n}\\n")

@given(st.integers(0, 10**9), st.data())
def test_slow(n, data):
    data.draw(st.lists(st.integers()))
    AHEAD[0] += 100_000

@given(st.integers(0, 10**9))
@settings(max_examples=3)
def test_rare(n):
    assert n % 97 != 5

@given(st.integers(0, 10**9))
def test_slow_failure(n):
    AHEAD[0] += 600_000
    assert n < 1000

@pytest.mark.fuzz
def test_own_cases(fuzz_seed, record_property):
    record_property("cases", 5000)
    record_property("note", f"seed {fuzz_seed}")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    (folder / "tests" / "test_properties.py").write_text(PROPERTIES, "utf-8")
    (folder / "pytest.ini").write_text("[pytest]\ntestpaths = tests\nmarkers = fuzz\n", "utf-8")
    return folder


def run(folder: Path, *arguments: str, fails: bool) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    environment |= {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "FUZZ_SECONDS": "950000",
    }  # most plugins take long to load
    plugins = ("-p", "xdist", "-p", "_hypothesis_pytestplugin", "-p", "no:cacheprovider")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == int(fails), done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def fuzzed(project) -> str:
    return run(
        project,
        "-n1",
        "--hypothesis-profile=fuzz",
        "--hypothesis-seed=7",
        "-mhypothesis or fuzz",
        fails=True,
    )


def test_fuzzing_takes_many_examples_whatever_a_property_asks_for(fuzzed):
    line = next(line for line in fuzzed.splitlines() if "::test_few" in line)
    assert line.split()[0] == "2,000"
    assert "FAILED tests/test_properties.py::test_rare" in fuzzed


def test_a_property_that_takes_long_ends_without_a_failure_and_is_named(fuzzed):
    (line,) = (line for line in fuzzed.splitlines() if "::test_slow," in line)
    assert line.endswith("out of time")
    assert line.split()[0] == "10"  # by its own clock, 100,000 s each


def test_a_failure_found_when_time_is_over_stays_one(fuzzed):
    assert "FAILED tests/test_properties.py::test_slow_failure" in fuzzed


def test_the_numbers_are_printed(fuzzed):
    assert "5,000 in" in fuzzed
    assert "test_own_cases; seed 7" in fuzzed
    total = next(line for line in fuzzed.splitlines() if line.startswith("4 properties, "))
    assert "(1 properties ended by the time limit), and 5,000 other cases; seed 7" in total


def test_ordinary_runs_take_the_same_few_examples_whatever_is_on_disk(project):
    seen = []
    for content in ("", "not a database"):
        shutil.rmtree(project / ".hypothesis", ignore_errors=True)
        (project / ".hypothesis").mkdir()
        (project / ".hypothesis" / "examples").write_text(content, "utf-8")
        (project / "seen.txt").unlink(missing_ok=True)
        printed = run(project, "-k", "few or own_cases or rare", fails=False)
        assert "2 passed" in printed  # the cases of make fuzz are not among them
        seen.append((project / "seen.txt").read_text("utf-8").split())
    assert seen[0] == seen[1]
    assert len(seen[0]) == 3


def test_make_fuzz_hands_on_seed_and_limit():
    printed = make(ROOT, "--dry-run", "fuzz", "SEED=12", "LIMIT=3")
    assert "FUZZ_SECONDS=3 " in printed
    assert "--hypothesis-seed=12 " in printed
    assert "--hypothesis-profile=fuzz" in printed
