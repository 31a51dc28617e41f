"""Mutation tests: change one thing in a formula and see whether a test fails.

    python tools/mutation.py all      every mutant; writes tests/mutation/report.json
    python tools/mutation.py sample   the fixed sample that .ci/run takes

mutmut (settings: [tool.mutmut] in pyproject.toml) makes the mutants in the folder mutants/ and runs
the tests. A mutant that no test kills must stand in tests/mutation/survivors.toml with the reason
why that is right.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code

ROOT = Path(__file__).resolve().parent.parent
MUTANTS = Path("mutants")
LISTED = Path("tests/mutation/survivors.toml")
REPORT = Path("tests/mutation/report.json")
LEAST_KILLED = 0.95
PROCESSES = 2

# mutmut numbers the mutants of a function from 1; these numbers are the sample, whatever the
# function.
SAMPLE = (
    "*__mutmut_7",
    "*__mutmut_37",
    "*__mutmut_67",
    "*__mutmut_97",
    "*__mutmut_[1-9]37",
    "*__mutmut_[1-9]87",
)


class Mutant(NamedTuple):
    """A mutant by what it changes: its number would change with every line added above."""

    function: str
    was: str
    becomes: str


def run_mutmut(patterns: tuple[str, ...]) -> dict[str, float]:
    """Make all mutants, run those that match the patterns (all if there are none), return the
    seconds it took.
    """
    shutil.rmtree(MUTANTS, ignore_errors=True)
    command = [
        str(Path(sys.executable).parent / "mutmut"),
        "run",
        "--max-children",
        str(PROCESSES),
        *patterns,
    ]
    # Sets are iterated in the order of their hashes: fixed, so that the tests always run in the
    # same order.
    environment = os.environ | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    begin = time.monotonic()
    done = subprocess.run(
        command,
        env=environment,
        text=True,
        check=False,
        stdout=None if sys.stdout.isatty() else subprocess.PIPE,
        stderr=None if sys.stdout.isatty() else subprocess.STDOUT,
    )
    if done.returncode:
        sys.exit(f"{(done.stdout or '').replace(chr(13), chr(10))[-5000:]}\nmutmut failed")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall": round(time.monotonic() - begin),
        "processor": round(used.ru_utime + used.ru_stime),
    }


def outcomes() -> dict[str, list[str]]:
    """Return the names of the mutants that were run, by outcome: killed, survived, timeout, no
    tests, ...
    """
    names = defaultdict(list)
    for path in sorted(MUTANTS.rglob("*.meta")):
        for name, code in json.loads(path.read_text("utf-8"))["exit_code_by_key"].items():
            if code is not None:
                names[status_by_exit_code[code]].append(name)
    return names


def module_of(name: str) -> str:
    return name.split(".")[1]


def describe(name: str) -> Mutant:
    """Return what a mutant changes, by its difference from the original function."""
    path = Path(*name.split(".")[:-1]).with_suffix(".py")
    lines = get_diff_for_mutant(name, path=path).splitlines()
    lines = lines[next(i for i, line in enumerate(lines) if line.startswith("@@")) :]
    was, becomes = (
        "\n".join(line[1:].strip() for line in lines if line.startswith(sign))
        for sign in ("-", "+")
    )
    function = (
        name.rpartition(".")[2].partition("__mutmut")[0].removeprefix("x_").removeprefix("xǁ")
    )
    return Mutant(f"{module_of(name)}.{function.replace('ǁ', '.')}", was, becomes)


def listed() -> dict[Mutant, str]:
    """Return the reason of every survivor that is listed."""
    groups = tomllib.loads(LISTED.read_text("utf-8"))["because"]
    return {
        Mutant(*mutant): f"{group['kind']}: {group['reason']}"
        for group in groups
        for mutant in group["mutants"]
    }


def unlisted_survivors(names: dict[str, list[str]]) -> list[tuple[str, Mutant]]:
    """Return the mutants that were neither killed nor timed out and are not listed."""
    known = listed()
    alive = [
        name
        for outcome, some in names.items()
        if outcome not in ("killed", "timeout")
        for name in some
    ]
    return [(name, mutant) for name in alive if (mutant := describe(name)) not in known]


def write_report(names: dict[str, list[str]], seconds: dict[str, float]) -> float:
    """Write the report of a full run; return the share of mutants that a test killed (timeouts
    apart).
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome, some in names.items():
        for name in some:
            counts[module_of(name)][outcome] += 1
    total = sum(counts.values(), Counter())
    share = total["killed"] / total.total()
    report = {
        "command": "make mutation",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": seconds,
        "processes": PROCESSES,
        "versions": (
            {"python": platform.python_version()}
            | {
                package: importlib.metadata.version(package)
                for package in ("mutmut", "pytest", "numpy", "sympy")
            }
        ),
        "modules": {
            m: {"mutants": c.total(), **dict(sorted(c.items()))} for m, c in sorted(counts.items())
        },
        "all": {"mutants": total.total(), **dict(sorted(total.items()))},
        "killed percent": round(100 * share, 2),
        "survivors by kind": dict(
            sorted(Counter(reason.partition(":")[0] for reason in listed().values()).items())
        ),
        "timeouts": [describe(name)._asdict() for name in names["timeout"]],
    }
    REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return share


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["all", "sample"])
    what = parser.parse_args().what
    os.chdir(ROOT)
    seconds = run_mutmut(() if what == "all" else SAMPLE)
    names = outcomes()
    faults = [
        f"survived, but is not in {LISTED}: {name}\n  in {mutant.function}\n"
        f"  - {mutant.was}\n  + {mutant.becomes}"
        for name, mutant in unlisted_survivors(names)
    ]
    if what == "all":
        share = write_report(names, seconds)
        if share < LEAST_KILLED:
            faults.append(
                f"{share:.1%} of the mutants were killed; {LEAST_KILLED:.0%} are asked for"
            )
        alive = {
            describe(name)
            for outcome, some in names.items()
            if outcome != "killed"
            for name in some
        }
        faults += [
            f"in {LISTED}, but killed now, or no mutant any more: {m}"
            for m in listed()
            if m not in alive
        ]
    print(
        ", ".join(f"{len(some)} {outcome}" for outcome, some in sorted(names.items()) if some),
        f"in {seconds['wall']} s, {seconds['processor']} s of processor time",
    )
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
