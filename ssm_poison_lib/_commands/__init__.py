"""The commands of `python -m ssm_poison_lib`, one module each, imported only when asked for.

A module has EPILOG (an example), `configure(parser)`, which adds its arguments, and `run(options)`,
which returns the exit status: 0, or 1 if something failed. Wrong use is a ValueError, status 2.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

__all__ = ["COMMANDS", "add_results_options", "add_runner_options", "report", "runner_options"]

#: Each command's name, that of its module, with one line of help.
COMMANDS = {
    "audit": "look for what in a training set could lead a state space model astray",
    "images": "attack an image classifier at the authors' sizes, on files such as CIFAR-10's",
    "benchmark": "try a defence of yours on the book's cases",
    "reproduce": "run the paper's settings beside the authors' values",
    "study": "run a study of the book, such as training far past the authors' stop",
    "sweep": "run a function on every point of a grid",
}


def report(message: str) -> None:
    """Print a message beside the results."""
    print(message, file=sys.stderr)


def add_results_options(parser: argparse.ArgumentParser, summary: str) -> None:
    """Add where results are kept, and the one file of what came out: `summary` says which."""
    parser.add_argument(
        "--results",
        default="results",
        metavar="FOLDER",
        help="where results are kept (default: results)",
    )
    parser.add_argument("--summary", metavar="FILE", help=summary)


def add_runner_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `studies.store.finish`."""
    parser.add_argument(
        "--scheduler",
        metavar="WHERE",
        help="'threads' or 'processes' of this machine, or the address of a Dask scheduler",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="jobs at once (default: one per core)"
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with results of other code or versions; the store then names both",
    )


def runner_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_runner_options` as arguments of `studies.store.finish`."""
    where = {} if options.scheduler is None else {"scheduler": options.scheduler}
    return {
        **where,
        "workers": options.workers,
        "accept_changes": options.accept_changes,
        "progress": True,
        "report": report,
    }
