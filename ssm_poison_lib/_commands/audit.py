"""Command `audit`: what in a training set could lead a state space model astray."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from ssm_poison_lib._checks import as_path

__all__ = ["EPILOG", "configure", "run"]


EPILOG = """exit status: 0 nothing found, be it undecided or not; 1 findings; 2 wrong use
example: python -m ssm_poison_lib audit train.csv --label y --report report.html"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments.

    Args:
        parser: of the command.
    """
    parser.description = (
        "FILE is .npy (inputs alone), .npz (x and labels), .csv or .parquet (a sequence in each"
        " row), or a folder of such. Nothing leaves this machine; no pickle is read."
    )
    parser.add_argument("file", metavar="FILE", help="the training set")
    parser.add_argument(
        "--model",
        default="free",
        metavar="NAME",
        help=(
            "free (the default: a small linear student), s4d, lru, mamba2, or module:factory, which"
            " is imported and called with (channels, outputs): only code that you trust"
        ),
    )
    parser.add_argument(
        "--label",
        metavar="COLUMN",
        help=(
            "column or array of labels, for a .npy file another file (.npy or .csv); 'none': there"
            " are none"
        ),
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="COLUMN",
        help="column that is no input, such as an index or a time; once for each; 'none': all are",
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help=(
            "of each training of --model, which is trained four or five times on batches of 64"
            " (default: as many as take some two minutes in all, 20 to 200)"
        ),
    )
    parser.add_argument(
        "--order",
        metavar="COLUMN",
        help="what training sorts by; 'rows': it does not shuffle the rows",
    )
    parser.add_argument(
        "--task", choices=("auto", "classes", "numbers"), default="auto", help="kind of labels"
    )
    parser.add_argument(
        "--pad",
        choices=("refuse", "front", "end"),
        default="refuse",
        help="zeros for shorter sequences, and where",
    )
    parser.add_argument(
        "--layout",
        choices=("rows", "series"),
        help=(
            "rows: each row is one sequence; series: each file of a folder is one, a time step in"
            " each row; labels from labels.csv (columns file, label) or from the folders' names"
        ),
    )
    parser.add_argument("--report", metavar="FILE", help="write the report, one HTML page")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON")
    parser.add_argument(
        "--book", default="", metavar="ADDRESS", help="of the book's pages, for links in the report"
    )
    parser.add_argument(
        "--scheduler",
        metavar="WHERE",
        help=(
            "read the parts of a large set in parallel: 'threads', 'processes', or the address of a"
            " Dask scheduler"
        ),
    )


def run(options: argparse.Namespace) -> int:
    """Run the command.

    Args:
        options: as `configure` has them parsed.

    Returns:
        The exit status.
    """
    from ssm_poison_lib._files import replacing  # all this takes seconds to load
    from ssm_poison_lib.audit import audit_parts
    from ssm_poison_lib.audit._models import MODELS
    from ssm_poison_lib.audit._read import from_path

    if ":" in options.model:
        from ssm_poison_lib.audit._trial import factory_of

        sys.path.insert(0, "")  # as for python -m: a module in this folder is found
        model: Any = factory_of(options.model)
    elif options.model in MODELS:
        model = options.model
    else:
        raise ValueError(
            f"--model must be one of {', '.join(MODELS)} or module:factory; got {options.model!r}"
        )
    files = {
        name: as_path(f"--{name}", value)
        for name in ("report", "json")
        if (value := getattr(options, name)) is not None
    }
    for name, path in files.items():
        try:
            usable = path.parent.is_dir() and (path.is_file() or not path.exists())
        except OSError as error:
            raise ValueError(f"--{name} {path}: {error.strerror or error}") from None
        if not usable:  # nor a device, which the report would take the place of
            raise ValueError(f"--{name} must be a file in a folder that exists; got {str(path)!r}")
    if re.match(r"(?!https?:)[a-z][a-z0-9+.-]*:", options.book.strip(), re.IGNORECASE):
        raise ValueError(
            f"--book must be a path, or an address with http or https; got {options.book!r}"
        )
    try:
        parts = from_path(
            options.file,
            label=options.label,
            order=options.order,
            pad=options.pad,
            layout=options.layout,
            skip=options.skip,
        )
        found = audit_parts(
            parts,
            task=options.task,
            model=model,
            steps=options.steps,
            scheduler=_scheduler(options.scheduler),
            progress=_say,
        )
    except OSError as error:
        raise ValueError(f"{error.filename or options.file}: {error.strerror or error}") from None
    print(_safe(str(found)))
    written: dict[str, str] = {}
    if "report" in files:
        written["report"] = found.to_html(book=options.book)
    if "json" in files:
        written["json"] = json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n"
    for name, text in written.items():
        try:
            with replacing(Path(files[name])) as file:
                file.write(text.encode("utf-8", "replace"))
        except OSError as error:  # status 1 would say that something was found
            raise ValueError(f"--{name} {files[name]}: {error.strerror or error}") from None
        _say(f"{name}: {files[name]}")
    return found.status


def _say(text: str) -> None:
    print(_safe(text), file=sys.stderr, flush=True)


def _safe(text: str) -> str:
    """Return text without what a terminal would take for commands."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _scheduler(where: str | None) -> Any:
    if where is None or where in ("threads", "processes", "synchronous"):
        return where
    if ":" not in where:
        raise ValueError(
            "--scheduler must be 'threads', 'processes' or an address such as tcp://host:8786; got"
            f" {where!r}"
        )
    from distributed import Client

    return Client(where, timeout=10)
