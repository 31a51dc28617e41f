"""The command line: `python -m ssm_poison_lib reproduce [SETTING ...|all|convergence]` and `... sweep CONFIG`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ssm_poison_lib import convergence, results
from ssm_poison_lib.sweep import add_sweep_command


def _parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m ssm_poison_lib", description="Run the experiments of the book."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    again = commands.add_parser(
        "reproduce",
        help="run the paper's settings beside the authors' values",
        epilog="settings: " + ", ".join(results.SETTINGS),
    )
    again.add_argument(
        "settings",
        nargs="*",
        default=["all"],
        metavar="SETTING",
        help="settings of the paper, 'all' (the default), or 'convergence': far past the authors' stop, with controls",
    )
    again.add_argument(
        "--seeds",
        type=int,
        default=0,
        metavar="N",
        help="add N consecutive fresh seeds beyond the authors' own",
    )
    again.add_argument(
        "--results", default="results", metavar="FOLDER", help="where results are kept (default: results)"
    )
    again.add_argument(
        "--summary",
        metavar="FILE",
        help="where to write one JSON of all runs (default: FOLDER/reproduce.json, or convergence.json)",
    )
    again.add_argument("--threads", type=int, metavar="N", help="runs at once (default: one per core)")
    again.set_defaults(run=_reproduce)
    add_sweep_command(commands)
    return parser


def _reproduce(options: argparse.Namespace) -> int:
    """Run settings, print their tables, write the summary."""
    if options.settings == ["convergence"]:
        return _converge(options)
    names = list(results.SETTINGS) if options.settings == ["all"] else options.settings
    unknown = [name for name in names if name not in results.SETTINGS]
    if unknown:
        print(
            f"unknown setting {unknown[0]!r}; known are 'all', {', '.join(results.SETTINGS)}", file=sys.stderr
        )
        return 2
    began = time.perf_counter()

    def report(message: str) -> None:
        print(message, file=sys.stderr)

    records = results.reproduce(
        names, seeds=options.seeds, folder=options.results, threads=options.threads, report=report
    )
    seconds = time.perf_counter() - began
    for name in names:
        print(results.table(name, records), end="\n\n")
    path = Path(options.summary or Path(options.results) / "reproduce.json")
    results.write_json(path, results.summary(records, seconds=seconds))
    print(f"{len(records)} runs in {seconds:.1f} s; all of them are in {path}")
    return 0


def _converge(options: argparse.Namespace) -> int:
    """Do the convergence study, print its table, write its summary."""
    if options.seeds:
        raise ValueError(
            f"--seeds must be left out for the convergence study, whose seeds are fixed; got {options.seeds}"
        )
    began = time.perf_counter()
    cells = convergence.converge(
        folder=options.results,
        processes=options.threads,
        report=lambda message: print(message, file=sys.stderr),
    )
    seconds = time.perf_counter() - began
    print(convergence.table(cells))
    path = Path(options.summary or Path(options.results) / "convergence.json")
    times = {"seconds": round(seconds, 1), "processor_seconds": round(sum(os.times()[:4]), 1)}
    head = {"schema": results.SCHEMA, "command": results.command_line(), **times}
    results.write_json(path, {**head, **results.stamp(), "cells": cells})
    print(f"{len(cells)} cells in {seconds:.0f} s (this call); all of them are in {path}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, 2 for a wrong argument, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what is finished is kept, the same command goes on from there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
