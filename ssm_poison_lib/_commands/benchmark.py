"""Command `benchmark`: somebody's defence on the book's cases, beside the book's defences."""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

from ssm_poison_lib._checks import as_path, as_seed

EPILOG = """example: python -m ssm_poison_lib benchmark my_module:defence --json mine.json

A defence is a function of x (n, length), y (n,) and a seed that returns n truth values, True =
clean, or a `studies.benchmark.Plan`. It is tried on 24 cases, half of them harmless, with five
seeds of the book's and five of yours. "repaired" is the share of attacked runs that err by more
than 0.1 without the defence and do not with it, "spoilt" that of harmless runs that do with it
alone.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "defence", metavar="MODULE:FUNCTION", help="or the name of one of the book's defences"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs=5,
        metavar="SEED",
        help="five seeds of yours (default: drawn anew, and printed)",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write all rows, with versions, to this file"
    )


def run(options: argparse.Namespace) -> int:
    """Try the defence, print its rows beside the book's table, write its file."""
    # where the reader's module lies; `python -m` may leave it out
    sys.path.insert(0, str(Path.cwd()))
    from ssm_poison_lib.studies import benchmark, store

    defence = benchmark.named(options.defence)
    seeds = options.seeds or [secrets.randbelow(2**31) for _ in range(5)]
    yours = [as_seed("each of --seeds", seed) for seed in seeds]
    if set(yours) & set(benchmark.BOOK_SEEDS):
        raise ValueError(
            f"--seeds must differ from the book's, {benchmark.BOOK_SEEDS}; got {yours}"
        )
    path = None if options.json is None else as_path("--json", options.json)
    book, _ = store.load("benchmark")
    known, fresh = (benchmark.score(defence, some) for some in (benchmark.BOOK_SEEDS, yours))
    summaries = {
        **book["summaries"],
        f"{options.defence}, book's seeds"[-40:]: benchmark.summary(known),
        f"{options.defence}, your seeds"[-40:]: benchmark.summary(fresh),
    }
    print(benchmark.table({"summaries": summaries}))
    print("your seeds:", *yours)
    if path is not None:
        rows = [{"defence": options.defence, **vars(row)} for row in [*known, *fresh]]
        head = {"command": store.command_line(), **store.stamp()}
        store.write_json(path, {**head, "summaries": summaries, "rows": rows})
    return 0
