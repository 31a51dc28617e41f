"""What several test modules share."""

import functools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import StopTest, UnsatisfiedAssumption

ROOT = Path(__file__).resolve().parent.parent

# Machines differ in speed; a test may fail for what it computes, never for how long that took, nor
# by luck.
settings.register_profile("book", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("book")
# A mutant need not be shown in its smallest failing case.
settings.register_profile(
    "mutation",
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
# make fuzz: other examples in every run, and many of them.
settings.register_profile(
    "fuzz",
    deadline=None,
    derandomize=False,
    database=None,
    print_blob=True,
    max_examples=2000,
    suppress_health_check=[HealthCheck.too_slow],
)


LONGEST = ("browser", "pdf", "notebooks", "explorable", "build", "sweep", "convergence", "audit")


def fuzzing(config: pytest.Config) -> bool:
    """Say whether this is `make fuzz`."""
    return config.getoption("--hypothesis-profile", None) == "fuzz"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests marked `fuzz` for `make fuzz`, with the profile's number of examples for each
    property there.

    The longest modules come first, so that no worker is left alone with one at the end. Where a
    mutant is tested (tools/mutation.py), which ends with the first test that fails, the quickest
    tests do.
    """
    if fuzzing(config):
        for function in {
            getattr(item.obj, "__func__", item.obj) for item in items if is_property(item)
        }:
            own = function._hypothesis_internal_use_settings  # what @settings left there
            function._hypothesis_internal_use_settings = settings(
                own,
                max_examples=settings.default.max_examples,
                suppress_health_check=[HealthCheck.too_slow],
            )
    else:
        items[:] = [item for item in items if item.get_closest_marker("fuzz") is None]
    for item in items:
        if item.get_closest_marker("untyped") is not None:
            item.add_marker("no_cover")  # nor are its lines traced, one by one
    names = [f"test_{name}.py" for name in LONGEST]
    items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else 99)
    measured = ROOT / "mutmut-stats.json"
    if measured.exists():
        seconds = json.loads(measured.read_text("utf-8"))["duration_by_test"]
        items.sort(key=lambda item: seconds.get(item.nodeid, 0.0))


# ---- make fuzz -----------------------------------------------------------------------------------


def is_property(item: pytest.Item) -> bool:
    return hasattr(getattr(item, "obj", None), "hypothesis")


class OutOfTime(KeyboardInterrupt):
    """Ends a property without a failure, as Ctrl-C would: Hypothesis takes down nothing and passes
    it on.
    """


class Counted:
    """Counts the examples on which a property is tested, and ends it when its time is over."""

    def __init__(self, body: Callable[..., None], seconds: float) -> None:
        self.body, self.seconds, self.end = body, seconds, math.inf
        self.examples, self.failed = 0, False

    def __call__(self, *arguments: Any, **named: Any) -> None:
        if not self.examples:
            self.end = time.monotonic() + self.seconds
        # A failure is repeated to find its smallest case, however late it is.
        if time.monotonic() > self.end and not self.failed:
            raise OutOfTime
        try:
            self.body(*arguments, **named)
        except (StopTest, UnsatisfiedAssumption):
            raise
        except BaseException:
            self.failed = True
            raise
        self.examples += 1


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Count the examples of a property, and give it the time that `make fuzz LIMIT=...` names."""
    if not (fuzzing(pyfuncitem.config) and is_property(pyfuncitem)):
        return (yield)
    handle = pyfuncitem.obj.hypothesis
    body = handle.inner_test
    counted = Counted(body, float(os.environ.get("FUZZ_SECONDS", "60")))
    handle.inner_test = functools.wraps(body)(
        lambda *arguments, **named: counted(*arguments, **named)
    )
    late = False
    try:
        return (yield)
    except OutOfTime:
        late = True
        return True
    finally:
        handle.inner_test = body
        pyfuncitem.user_properties += [("examples", counted.examples), ("out of time", late)]


@pytest.fixture
def fuzz_seed(request: pytest.FixtureRequest) -> int:
    """Return the seed of `make fuzz`, for a test that draws its cases itself and is marked `fuzz`.

    It says how many with `record_property("cases", 5000)`, and what else it found with
    `record_property("note", "...")`.
    """
    return int(request.config.getoption("--hypothesis-seed") or 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print how much was tried, property by property."""
    if not fuzzing(config):
        return
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
    ]
    found = {report.nodeid: (dict(report.user_properties), report.duration) for report in reports}
    properties = {name: noted for name, (noted, _) in found.items() if "examples" in noted}
    for name, (noted, seconds) in sorted(found.items()):
        number = noted.get("examples", noted.get("cases", 0))
        more = ", out of time" * noted.get("out of time", False) + "".join(
            f"; {noted[key]}" for key in noted if key == "note"
        )
        terminalreporter.write_line(f"{number:7,} in {seconds:5.1f} s  {name}{more}")
    examples = sum(noted["examples"] for noted in properties.values())
    late = sum(noted["out of time"] for noted in properties.values())
    cases = sum(noted.get("cases", 0) for noted, _ in found.values())
    terminalreporter.write_line(
        f"{len(properties)} properties, {examples:,} examples ({late} properties ended by the time"
        f" limit), and {cases:,} other cases; seed {config.getoption('--hypothesis-seed')}"
    )


# ---- what tests share ----------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Leave out the checks of types in a test marked `untyped`: thousands of steps of a solver,
    each of which they would make six times as long. Shorter tests of the same functions have them,
    and are the ones whose lines count for the coverage.
    """
    untyped = item.get_closest_marker("untyped") is not None
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", untyped or before)
    try:
        return (yield)
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return the path of a Chromium; a missing one is a failure, not a skip (leave these tests out
    with -m "not browser").
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail(
            "no Chromium found: install the package chromium (apt-get install chromium), or set"
            " CHROMIUM to its path"
        )
    return found


def build(sources: Path, target: Path | None = None, *, strict: bool = True) -> dict[str, str]:
    """Build the book of a folder as `make book` does; return the text of its pages by name.

    A part of the book (not strict) may only warn of links to pages that are not there.
    """
    target = target or sources
    command = [
        "build",
        str(sources),
        *(["-W"] if strict else []),
        "-n",
        "--keep-going",
        "--all",
        "--path-output",
        str(target),
    ]
    done = subprocess.run(
        [Path(sys.executable).parent / "jupyter-book", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr or done.stdout
    if not strict:
        warnings = [line for line in done.stderr.splitlines() if "WARNING" in line]
        link = re.compile("WARNING: .*(not found|undefined label)")
        assert [line for line in warnings if not link.search(line)] == []
    return pages_of(target / "_build" / "html")


def pages_of(html: Path) -> dict[str, str]:
    """Return the text of the built pages by name."""
    return {page.stem: page.read_text("utf-8") for page in (html / "book").glob("*.html")}


@pytest.fixture(scope="session")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the book strictly, once for all workers; return the folder of its pages."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # which the workers share
    target, done = base / "site", base / "site.done"
    with FileLock(base / "site.lock"):
        if not done.exists():
            build(ROOT, target)
            done.touch()
    return target / "_build" / "html"


def make(folder: Path, *arguments: str, expected: int = 0) -> str:
    """Run make as at a terminal, whatever make runs the tests; return what it printed."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if key
        not in (
            "MAKEFLAGS",
            "MFLAGS",
            "MAKELEVEL",
            "MAKEOVERRIDES",
            "PYTHON",
            "CHROMIUM",
            "LATEX",
        )
    }
    done = subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout + done.stderr


def public_modules() -> dict[str, Path]:
    """Return the library's public modules, by name after `ssm_poison_lib.`, and their files."""
    library = ROOT / "ssm_poison_lib"
    found = {
        path.relative_to(library).with_suffix(""): path for path in sorted(library.rglob("*.py"))
    }
    return {
        ".".join(name.parts): path
        for name, path in found.items()
        if not any(part.startswith("_") for part in name.parts)
    }
