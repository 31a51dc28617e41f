"""Command `reproduce`: the paper's settings again."""

from __future__ import annotations

import argparse
import time

from ssm_poison_lib._checks import as_path
from ssm_poison_lib._commands import add_results_options, add_runner_options, runner_options
from ssm_poison_lib.studies import reproduce, store

EPILOG = (
    "example: python -m ssm_poison_lib reproduce standalone_ssm_poison__s0 --seeds 20\n"
    f"settings: {', '.join(reproduce.SETTINGS)}"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "settings",
        nargs="*",
        default=["all"],
        metavar="SETTING",
        help="settings of the paper, or 'all' (the default)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=0,
        metavar="N",
        help="add N consecutive fresh seeds beyond the authors' own",
    )
    add_results_options(parser, "one JSON of all runs (default: FOLDER/reproduce.json)")
    add_runner_options(parser)


def run(options: argparse.Namespace) -> int:
    """Run settings, print their tables, write the summary."""
    if "all" in options.settings and options.settings != ["all"]:
        raise ValueError(f"'all' must stand alone; got {' '.join(options.settings)}")
    names = list(reproduce.SETTINGS) if options.settings == ["all"] else options.settings
    if unknown := [name for name in names if name not in reproduce.SETTINGS]:
        known = ", ".join(reproduce.SETTINGS)
        raise ValueError(f"unknown setting {unknown[0]!r}; known are 'all', {known}")
    began = time.perf_counter()
    folder = as_path("--results", options.results)
    path = as_path("--summary", options.summary or folder / "reproduce.json")
    records = reproduce.reproduce(
        names, seeds=options.seeds, folder=folder, **runner_options(options)
    )
    seconds = time.perf_counter() - began
    for name in names:
        print(reproduce.table(name, records), end="\n\n")
    store.write_json(path, reproduce.summary(records, seconds=seconds))
    print(f"{len(records)} runs in {seconds:.1f} s; all of them are in {path}")
    return 0
