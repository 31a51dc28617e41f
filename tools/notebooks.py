"""Execute the chapters and check their notebooks; the only writer of `book/*.ipynb`,
`book/status.json`, `book/digests.json`.

python tools/notebooks.py execute            re-run the chapters whose text, data or imported code
                                             changed
python tools/notebooks.py execute NAME ...   re-run these chapters (their file names without ending)
python tools/notebooks.py execute --all      re-run every chapter
python tools/notebooks.py execute --fresh    write also times and drawings anew that came out as
                                             before
python tools/notebooks.py check              name stale chapters, compare texts with notebooks, look
                                             at the stored outputs

A notebook with edits that its text lacks is copied to _build/edited before it is written anew.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jupytext
import kernels
import nbformat
import yaml
from digests import changed, dependencies, digest
from jupyter_client.kernelspec import NoSuchKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from outputs import settle

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
EDITED = ROOT / "_build" / "edited"
LIBRARY = ROOT / "ssm_poison_lib"
STATUS_PAGE = "status"  # prints status.json, so it runs last
PACKAGES = ("numpy", "scipy", "torch", "sympy", "matplotlib")
# What nbformat raises for a damaged notebook.
UNREADABLE = (ValueError, AttributeError, nbformat.ValidationError)
CELL_TIMEOUT = 300  # seconds
CODE_WIDTH = 92  # characters of code that a page shows without scrolling, in a solution's box too
LAUNCH_TAG = "make-importable"
# The first lines of a text with code: by them it is known to have a notebook.
HEADER = """\
---
jupytext:
  formats: ipynb,md:myst
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3 (ipykernel)
  language: python
  name: python3
---
"""
# First cell of a notebook that needs the library, while the repository's address is set: where the
# library is missing, such as on Colab, fetch the project. The folder is the book's own afterwards,
# because chapters read data beside them.
LAUNCH = """\
import importlib.util, os, subprocess, sys

if importlib.util.find_spec("ssm_poison_lib") is None:
    fetch = ["git", "clone", "--quiet", "--depth=1", "--branch={branch}", "{address}", "{folder}"]
    subprocess.run(fetch, check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "./{folder}[all]"], \
check=True)
    importlib.invalidate_caches()
if os.path.isdir("{folder}/book"):
    os.chdir("{folder}/book")"""
# Indented, as in "All of it in sixty lines", it is for the style of figures alone.
LIBRARY_IMPORT = re.compile(r"^(?:from|import) ssm_poison_lib\b", re.MULTILINE)
# What a reader's machine would print differently: absolute paths of common roots, kernel files,
# object addresses.
MACHINE = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|work|Users|usr|opt|var|mnt|builds)/|[A-Z]:\\|ipykernel_\d|\bat"
    r" 0x[0-9a-f]{6,}"
)


# ---- what changed --------------------------------------------------------------------------------


def chapters() -> list[str]:
    """Return the names of the texts with a header, that is, of the chapters with code; the status
    page last.
    """
    texts = sorted(BOOK.glob("*.md"))
    names = [text.stem for text in texts if text.read_text("utf-8").startswith(HEADER)]
    return sorted(names, key=lambda name: (name == STATUS_PAGE, name))


def read_status() -> dict[str, dict[str, Any]]:
    """Return what was noted at the last execution of each chapter (empty before the first)."""
    path = BOOK / "status.json"
    try:
        return json.loads(path.read_text("utf-8")) if path.exists() else {}
    except ValueError as error:
        raise OSError(
            f"{path} is damaged ({error}); without it, every chapter runs again"
        ) from None


def read_digests() -> dict[str, dict[str, str]]:
    """Return on what the stored notebook of each chapter depended when it was made (see
    `digests.dependencies`).
    """
    path = BOOK / "digests.json"
    try:
        return json.loads(path.read_text("utf-8")) if path.exists() else {}
    except ValueError as error:
        raise OSError(
            f"{path} is damaged ({error}); without it, every chapter runs again"
        ) from None


def fingerprint(name: str) -> dict[str, str]:
    """Return on what a chapter depends, with digests."""
    text = BOOK / f"{name}.md"
    cells = read_text(text).cells
    found = dependencies(
        text, "\n".join(cell.source for cell in cells if cell.cell_type == "code"), LIBRARY
    )
    # Not the bytes: JupyterLab writes the same captions in another way.
    own = [cell for cell in cells if LAUNCH_TAG not in cell.metadata.get("tags", [])]
    written = [[cell.cell_type, cell.source, cell.metadata] for cell in own]
    found["text"] = digest(json.dumps(written, ensure_ascii=False, sort_keys=True).encode())
    if launch := launch_cells(own):
        found["launch cell"] = digest(*(cell.source.encode() for cell in launch))
    if name == STATUS_PAGE:
        others = {other: entry for other, entry in read_status().items() if other != STATUS_PAGE}
        found["other chapters"] = digest(json.dumps(others, sort_keys=True).encode())
    return found


def stale(name: str) -> list[str]:
    """Return what changed since a chapter's notebook was made: names of texts, data and modules."""
    return changed(read_digests().get(name, {}), fingerprint(name))


def is_current(name: str) -> bool:
    """Say whether the notebook is there and nothing on which it depends changed since."""
    return (BOOK / f"{name}.ipynb").exists() and not stale(name)


# ---- execution -----------------------------------------------------------------------------------


def launch_cells(cells: list[NotebookNode]) -> list[NotebookNode]:
    """Return the cell that makes the library importable for the cells of a chapter; none if they do
    without it, or while _config.yml names no repository.
    """
    if not any(c.cell_type == "code" and LIBRARY_IMPORT.search(c.source) for c in cells):
        return []
    config = ROOT / "_config.yml"
    setting = yaml.safe_load(config.read_text("utf-8"))["repository"] if config.exists() else {}
    address = str(setting.get("url") or "").rstrip("/")
    if not address:
        return []
    source = LAUNCH.format(
        branch=setting["branch"], address=address, folder=address.rsplit("/", 1)[1]
    )
    return [nbformat.v4.new_code_cell(source, metadata={"tags": ["remove-cell", LAUNCH_TAG]})]


def set_cell_ids(notebook: NotebookNode) -> None:
    """Give each cell an id made from its content (jupytext's are random), so that a re-run changes
    nothing.
    """
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        key = digest(cell.cell_type.encode(), cell.source.encode())[:8]
        seen[key] += 1
        cell["id"] = key if seen[key] == 1 else f"{key}-{seen[key]}"


def read_text(path: Path) -> NotebookNode:
    """Return the notebook, not executed, that a MyST text stands for."""
    notebook = jupytext.read(path)
    notebook.metadata.get("jupytext", {}).get("text_representation", {}).pop(
        "jupytext_version", None
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    # JupyterLab may have saved the cell into the text, with an older address.
    own = [cell for cell in notebook.cells if LAUNCH_TAG not in cell.metadata.get("tags", [])]
    notebook.cells = launch_cells(own) + own
    set_cell_ids(notebook)
    return notebook


def run_chapter(name: str) -> tuple[NotebookNode, float]:
    """Execute a chapter from its text in the folder of the book; return the notebook and the
    seconds it took.
    """
    notebook = read_text(BOOK / f"{name}.md")
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": str(BOOK)}},
    )
    start = time.perf_counter()
    try:
        client.execute()
    except (
        AssertionError
    ):  # nbclient handles Ctrl-C itself: it ends the kernel and then misses its kernel manager
        raise KeyboardInterrupt from None
    seconds = time.perf_counter() - start
    notebook.metadata.pop("language_info", None)
    nbformat.validate(notebook)
    return notebook, seconds


def replace_file(path: Path, content: str) -> None:
    """Write a file at once or not at all."""
    new = path.with_name(path.name + ".new")
    try:
        new.write_text(content, "utf-8")
        new.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written and is as it was: {error.strerror}") from error


def edits(name: str) -> list[str]:
    """Return the first lines of the cells that were edited in a chapter's notebook and are not in
    its text.

    The id of a cell is made from its content, by which an edited or added one is known.
    """
    path = BOOK / f"{name}.ipynb"
    if not path.exists():
        return []
    try:
        notebook = nbformat.read(path, as_version=4)
    except UNREADABLE as error:
        return [f"(not readable: {str(error).splitlines()[0]})"]
    as_written = [cell.get("id") for cell in notebook.cells]
    set_cell_ids(notebook)
    changed = [
        cell
        for cell, old in zip(notebook.cells, as_written, strict=True)
        if cell.id[:8] != str(old)[:8]
    ]
    text = {(cell.cell_type, cell.source) for cell in read_text(BOOK / f"{name}.md").cells}
    lost = [cell for cell in changed if (cell.cell_type, cell.source) not in text]
    return [(cell.source.strip().splitlines() or ["(empty)"])[0] for cell in lost]


def keep_edits(name: str) -> None:
    """Copy a notebook with edits that its text lacks to a new file, and say so."""
    if lost := edits(name):
        EDITED.mkdir(parents=True, exist_ok=True)
        number = 1
        while (copy := EDITED / f"{name}-{number}.ipynb").exists():
            number += 1
        shutil.copy(BOOK / f"{name}.ipynb", copy)
        print(
            f"{name}.ipynb had edits that {name}.md lacks, kept as {copy.relative_to(ROOT)}: "
            + ", ".join(repr(line[:60]) for line in lost[:5]),
            flush=True,
        )


def store(name: str, notebook: NotebookNode, seconds: float, found: dict[str, str]) -> None:
    """Write the notebook and its entries in status.json and digests.json (a chapter a line)."""
    versions = {"python": platform.python_version()}
    # A local part such as "+cpu" tells how a package was built, which differs between machines.
    versions |= {package: importlib.metadata.version(package).split("+")[0] for package in PACKAGES}
    entry = {
        "executed": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds, 1),
        "versions": versions,
    }
    replace_file(BOOK / f"{name}.ipynb", nbformat.writes(notebook) + "\n")
    names = sorted(chapters())
    status = read_status() | {name: entry}
    kept = {chapter: status[chapter] for chapter in names if chapter in status}
    replace_file(BOOK / "status.json", json.dumps(kept, indent=1, sort_keys=True) + "\n")
    digests = read_digests() | {name: found}
    lines = [
        f'"{chapter}": {json.dumps(digests[chapter])}' for chapter in names if chapter in digests
    ]
    replace_file(BOOK / "digests.json", "{\n" + ",\n".join(lines) + "\n}\n")


def stored_notebook(name: str) -> NotebookNode | None:
    """Return the notebook of a chapter as it is, None if there is none that can be read."""
    try:
        return nbformat.read(BOOK / f"{name}.ipynb", as_version=4)
    except (*UNREADABLE, FileNotFoundError):
        return None


def execute(names: list[str], *, everything: bool = False, fresh: bool = False) -> int:
    """Re-run the named chapters, or all, or those that changed; return the exit status.

    A chapter that fails is not written. `fresh` writes measured times and drawings anew also where
    nothing else changed.
    """
    allowed = chapters()
    if unknown := [name for name in names if name not in allowed]:
        print(
            f"unknown chapter {', '.join(map(repr, unknown))}; allowed: {', '.join(allowed)}",
            file=sys.stderr,
        )
        for path in [BOOK / f"{name}.md" for name in unknown]:
            for problem in heading_problems(path) if path.is_file() else []:
                print(f"{path.name}: {problem}", file=sys.stderr)
        return 2
    wanted = (
        allowed
        if everything
        else [name for name in allowed if name in names or not (names or is_current(name))]
    )
    if names and STATUS_PAGE in allowed and STATUS_PAGE not in wanted:
        wanted.append(STATUS_PAGE)
    if not wanted:
        print(f"all {len(allowed)} chapters are up to date")
    else:
        kernels.use_plain_settings()
        if not os.access(BOOK, os.W_OK):
            raise OSError(f"{BOOK} cannot be written")  # before a chapter runs in vain
        if not (BOOK / "status.json").exists():
            replace_file(BOOK / "status.json", "{}\n")  # the status page reads it
    for number, name in enumerate(wanted, start=1):
        print(f"[{number}/{len(wanted)}] {name} ...", end=" ", flush=True)
        found = fingerprint(name)
        try:
            notebook, seconds = run_chapter(name)
            problems = output_problems(notebook)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            print("failed; its notebook is as it was", flush=True)
            print(error, file=sys.stderr)
            return 1
        except NoSuchKernel as error:
            print("not run", flush=True)
            print(
                f"{name}.md asks for the Jupyter kernel {error.name!r}, which is not installed"
                " here",
                file=sys.stderr,
            )
            return 1
        if problems:
            print("not written:", *problems, sep="\n  ", flush=True)
            return 1
        print(f"{seconds:.1f} s", flush=True)
        keep_edits(name)
        if not fresh and (before := stored_notebook(name)) is not None:
            settle(notebook, before)
        store(name, notebook, seconds, found)
    return 0


# ---- checks --------------------------------------------------------------------------------------


def prints(source: str) -> bool:
    """Say whether a cell certainly prints: `print` or `display` called outside functions, or a bare
    value at its end.
    """
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    body = ast.parse("\n".join(lines)).body
    flow = [node for node in body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    called = [call.func for node in flow for call in ast.walk(node) if isinstance(call, ast.Call)]
    if any(
        isinstance(function, ast.Name) and function.id in ("print", "display")
        for function in called
    ):
        return True
    last = body[-1] if body else None
    # A call may return None; anything else that stands alone at the end of a cell is shown.
    shown = isinstance(last, ast.Expr) and not isinstance(last.value, ast.Call | ast.Constant)
    return shown and not source.rstrip().endswith(";")


def output_problems(notebook: NotebookNode) -> list[str]:
    """Return what is wrong with the stored outputs of a notebook, one line each."""
    problems = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for number, cell in enumerate(code, start=1):
        where = f"code cell {number} ({cell.source.strip().splitlines()[0][:60]!r})"
        if cell.execution_count != number:
            problems.append(
                f"{where}: run as {cell.execution_count}, not as {number}, so not from top to"
                " bottom"
            )
        if prints(cell.source) and not cell.outputs:
            problems.append(f"{where}: prints, but has no stored output")
        for output in cell.outputs:
            if output.output_type == "error":
                problems.append(f"{where}: stored error {output.ename}")
            if output.get("name") == "stderr":
                problems.append(f"{where}: writes to stderr: {output.text.strip()[:200]!r}")
            if any(kind.startswith("image/") for kind in output.get("data", {})) and re.fullmatch(
                r"<.*>", output.data.get("text/plain", "<>").strip()
            ):
                problems.append(
                    f"{where}: figure without a summary of its numbers; call figures.use_style()"
                    " first"
                )
            table = output.get("data", {}).get("text/markdown", "").lstrip().startswith("|")
            if table and cell.metadata.get("mystnb", {}).get("markdown_format") != "myst":
                problems.append(
                    f"{where}: table that the page shows raw: add markdown_format: myst"
                )
            if found := MACHINE.search(json.dumps(output, ensure_ascii=False)):
                problems.append(
                    f"{where}: stored output names something of this machine: {found.group()!r}"
                )
    return problems


def heading_problems(path: Path) -> list[str]:
    """Return what keeps a text with code from being a chapter: its header, its label, its place in
    the book.
    """
    text = path.read_text("utf-8")
    if not text.startswith("---") and not re.search(r"^```+\{code-cell\}", text, re.MULTILINE):
        return []
    if not text.startswith(HEADER):
        pairs = zip_longest(HEADER.splitlines(), text.splitlines()[: HEADER.count("\n")])
        number, (asked, found) = next(
            (k, pair) for k, pair in enumerate(pairs, 1) if pair[0] != pair[1]
        )
        return [
            f"line {number} of the header is {found!r}, not {asked!r}, so that its code is not run"
        ]
    problems = []
    label = f"(ch-{path.stem.replace('_', '-')})="
    if not re.match(rf"\s*{re.escape(label)}\n# \S", text.removeprefix(HEADER)):
        problems.append(f"{label} and the title must follow the header, for the map and the index")
    toc = BOOK.parent / "_toc.yml"
    if toc.exists() and not re.search(
        rf"^\s*[\w -]+: book/{path.stem}\s*$", toc.read_text("utf-8"), re.MULTILINE
    ):
        problems.append("is not in _toc.yml, so that it is on no page")
    return problems


def wide_lines(notebook: NotebookNode) -> list[str]:
    """Return the lines of code wider than a page's column; the launch cell is on no page."""
    problems = []
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code" or LAUNCH_TAG in cell.metadata.get("tags", []):
            continue
        wide = [line for line in cell.source.splitlines() if len(line) > CODE_WIDTH]
        problems += [
            f"cell {number}: {len(line)} characters in a line, not at most {CODE_WIDTH}:"
            f" {line.strip()[:60]!r}"
            for line in wide
        ]
    return problems


def plain_metadata(notebook: NotebookNode) -> dict[str, Any]:
    """Return a notebook's metadata without what JupyterLab adds or leaves out when it saves the
    pair.
    """
    kept = {key: value for key, value in notebook.metadata.items() if key != "language_info"}
    own = {
        key: value
        for key, value in kept.get("jupytext", {}).items()
        if key != "text_representation"
    }
    return kept | {"jupytext": own}


def pair_problems(text: NotebookNode, notebook: NotebookNode) -> list[str]:
    """Return where a notebook differs from its text: number of cells, type, source, metadata (with
    tags), id.
    """
    problems = []
    ours, theirs = plain_metadata(text), plain_metadata(notebook)
    if ours != theirs:
        problems.append(f"metadata: text {ours}, notebook {theirs}")
    if len(text.cells) != len(notebook.cells):
        problems.append(f"number of cells: text {len(text.cells)}, notebook {len(notebook.cells)}")
    for number, (one, other) in enumerate(zip(text.cells, notebook.cells, strict=False), start=1):
        if key := next(
            (key for key in ("cell_type", "source", "metadata", "id") if one[key] != other[key]),
            None,
        ):
            problems.append(
                f"cell {number}, {key}: text {one[key]!r:.70}, notebook {other[key]!r:.70}"
            )
    return problems


def all_problems() -> list[str]:
    """Return every problem of every pair of text and notebook, one line each."""
    problems = []
    names = chapters()
    for path in sorted(BOOK.glob("*.md")):
        problems += [f"{path.stem}: {problem}" for problem in heading_problems(path)]
    for stray in sorted({path.stem for path in BOOK.glob("*.ipynb")} - set(names)):
        problems.append(f"{stray}.ipynb: no text with a jupytext header beside it")
    for name in names:
        path = BOOK / f"{name}.ipynb"
        if not path.exists():
            problems.append(f"{name}: not executed (python tools/notebooks.py execute {name})")
            continue
        try:
            notebook = nbformat.read(path, as_version=4)
        except UNREADABLE as error:
            problems.append(
                f"{name}: {path.name} is not readable: {str(error).splitlines()[0]:.70}"
            )
            continue
        text = read_text(BOOK / f"{name}.md")
        if what := stale(name):
            listed = ", ".join(what if len(what) <= 6 else [*what[:5], f"and {len(what) - 5} more"])
            problems.append(
                f"{name}: older than {listed} (python tools/notebooks.py execute {name})"
            )
        found = pair_problems(text, notebook) + wide_lines(text) + output_problems(notebook)
        shown = found if len(found) <= 5 else [*found[:4], f"and {len(found) - 4} more"]
        problems += [f"{name}: {problem}" for problem in shown]
    return problems


def check() -> int:
    """Print every problem of the stored notebooks; return the exit status."""
    problems = all_problems()
    print(
        *(
            problems
            or [f"{len(chapters())} chapters: text and notebook agree, outputs are complete"]
        ),
        sep="\n",
    )
    return 1 if problems else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python tools/notebooks.py", description=(__doc__ or "").partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "execute", help="re-run the chapters that changed, or the named ones, or all"
    )
    run.add_argument(
        "names", nargs="*", metavar="NAME", help="file name of a chapter without its ending"
    )
    run.add_argument("--all", action="store_true", help="re-run every chapter")
    run.add_argument(
        "--fresh",
        action="store_true",
        help="write also times and drawings anew that came out as before",
    )
    commands.add_parser("check", help="compare texts with notebooks and look at the stored outputs")
    options = parser.parse_args(arguments)
    try:
        if options.command == "check":
            return check()
        return execute(options.names, everything=options.all, fresh=options.fresh)
    except KeyboardInterrupt:
        print("interrupted; the chapters finished before are kept", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"{error}; the chapters finished before are kept", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
