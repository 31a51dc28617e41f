"""The command line: `python -m ssm_poison_lib reproduce [SETTING ...|all|convergence]` and `... sweep CONFIG`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

import numpy as np

from ssm_poison_lib import convergence, results
from ssm_poison_lib._checks import as_path, as_workers
from ssm_poison_lib.descent import DescentError
from ssm_poison_lib.flow import FlowError

_FAILURES = (results.DamagedResult, DescentError, FlowError)


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
    grid = commands.add_parser(
        "sweep",
        help="run a grid of settings in chunks that are kept as they finish",
        description="CONFIG is a TOML file with the tables axes (name -> numbers, or {linspace | geomspace | arange = [arguments"
        " of NumPy's function of that name]}), fixed, chunks; function = 'module:name' (default: theorem_errors of"
        " ssm_poison_lib.sweep); store = folder (default: the file's name with .zarr). The function's module is imported and the"
        " function called: only those of ssm_poison_lib are, unless --allow-any-function says otherwise.",
    )
    grid.add_argument("config", metavar="CONFIG", help="TOML file that describes the grid")
    grid.add_argument(
        "--scheduler",
        default="threads",
        metavar="WHERE",
        help="'threads' (default) or 'processes' of this machine, or the address of a Dask scheduler",
    )
    grid.add_argument("--workers", type=int, metavar="N", help="threads or processes (default: one per core)")
    grid.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with a store that other code or versions began; the store then names both",
    )
    grid.add_argument(
        "--allow-any-function",
        action="store_true",
        help="import and call whatever function CONFIG names; only for a file whose author you trust",
    )
    grid.set_defaults(run=_sweep)
    return parser


def _report(message: str) -> None:
    """Print a message beside the results."""
    print(message, file=sys.stderr)


def _reproduce(options: argparse.Namespace) -> int:
    """Run settings, print their tables, write the summary."""
    for alone in ("all", "convergence"):
        if alone in options.settings and options.settings != [alone]:
            raise ValueError(f"{alone!r} must stand alone; got {' '.join(options.settings)}")
    if options.settings == ["convergence"]:
        return _converge(options)
    names = list(results.SETTINGS) if options.settings == ["all"] else options.settings
    if unknown := [name for name in names if name not in results.SETTINGS]:
        raise ValueError(f"unknown setting {unknown[0]!r}; known are 'all', {', '.join(results.SETTINGS)}")
    began = time.perf_counter()
    folder = as_path("--results", options.results)
    records = results.reproduce(
        names, seeds=options.seeds, folder=folder, threads=options.threads, report=_report
    )
    seconds = time.perf_counter() - began
    for name in names:
        print(results.table(name, records), end="\n\n")
    path = as_path("--summary", options.summary or folder / "reproduce.json")
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
    folder = as_path("--results", options.results)
    processes = as_workers("--threads", options.threads)
    cells = convergence.converge(folder=folder, processes=processes, report=_report)
    seconds = time.perf_counter() - began
    print(convergence.table(cells))
    path = as_path("--summary", options.summary or folder / "convergence.json")
    times = {"seconds": round(seconds, 1), "processor_seconds": round(sum(os.times()[:4]), 1)}
    head = {"schema": results.SCHEMA, "command": results.command_line(), **times}
    results.write_json(path, {**head, **results.stamp(), "cells": cells})
    print(f"{len(cells)} cells in {seconds:.0f} s (this call); all of them are in {path}")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    """Run one sweep and print what its store holds; the exit status is 1 if chunks failed."""
    from ssm_poison_lib import sweep  # here, not above: Dask and xarray take seconds to load

    config = sweep.read_config(options.config, allow_any_function=options.allow_any_function)
    try:
        result = sweep.sweep(
            **config,
            scheduler=options.scheduler,
            workers=options.workers,
            progress=True,
            accept_changes=options.accept_changes,
            report=_report,
        )
    except sweep.SweepError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{config['store']}: {result.chunks_run} chunks run now, {dict(result.sizes)}")
    for name, variable in result.data_vars.items():
        values = variable.values
        known = values[~np.isnan(values)]
        median = f"{np.median(known):.4g}" if known.size else "-"
        print(f"  {name}: median {median}, NaN in {values.size - known.size} of {values.size}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0, 1 if a run or file failed, 2 for a wrong argument, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except _FAILURES as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{where}{error.strerror or error}; what is finished is kept", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what is finished is kept, the same command goes on from there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
