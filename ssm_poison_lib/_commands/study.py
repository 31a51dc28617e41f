"""Command `study`: the studies of the book."""

from __future__ import annotations

import argparse
import importlib
import os
import time

from ssm_poison_lib._checks import as_choice, as_path
from ssm_poison_lib._commands import add_results_options, add_runner_options, runner_options

#: Each study's name, that of its module in `ssm_poison_lib.studies`, with one line of help.
STUDIES = {
    "defences": "detectors and training rules, against attackers who know them (five minutes)",
    "benchmark": "the book's defences on the cases of the benchmark (a minute)",
    "convergence": (
        "all comparisons far past the authors' stop, with controls (21 minutes on two cores)"
    ),
    "detectors": "detectors of other packages, and S4D, LRU, Mamba-2 students (ten minutes)",
    "false_findings": "how often the audit finds something in harmless training sets (a minute)",
    "gradient_matching": (
        "poisons for S4D, LRU, Mamba-2 and two others, with controls (25 minutes on two cores)"
    ),
}
EPILOG = "example: python -m ssm_poison_lib study convergence --workers 8\n" + "\n".join(
    f"{name}: {text}" for name, text in STUDIES.items()
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(STUDIES)}")
    add_results_options(parser, "one JSON of what came out (default: FOLDER/NAME.json)")
    add_runner_options(parser)


def run(options: argparse.Namespace) -> int:
    """Run a study, print its table, write its file."""
    from ssm_poison_lib.studies import store  # here: an unknown name is said at once

    name = as_choice("NAME", options.name, STUDIES)
    folder = as_path("--results", options.results)
    path = as_path("--summary", options.summary or folder / f"{name}.json")
    study = importlib.import_module(f"ssm_poison_lib.studies.{name}").STUDY
    began = time.perf_counter()
    content = study.run(folder, **runner_options(options))
    seconds = time.perf_counter() - began
    if study.table is not None:
        print(study.table(content))
    times = {"seconds": round(seconds, 1), "processor_seconds": round(sum(os.times()[:4]), 1)}
    head = {"command": store.command_line(), **times, **store.stamp()}
    store.write_json(path, {**head, **content})
    print(f"{len(study.jobs)} jobs in {seconds:.0f} s (this call); all of them are in {path}")
    return 0
