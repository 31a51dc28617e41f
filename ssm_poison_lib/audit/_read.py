"""Training sets from files that are not trusted: no pickles, sizes checked, files named in errors.

A training set is a list of parts. A part is read when it is needed, so that a set that does not fit
in memory is read several times, part by part, here or by the workers of a Dask cluster.
"""

from __future__ import annotations

import math
import os
import shlex
import stat
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssm_poison_lib._checks import as_choice, as_path, shown

__all__ = ["PADDING", "Part", "Rows", "from_arrays", "from_path"]

#: What to do with sequences of different lengths: zeros before the first step, zeros after the last
#: one, or an error.
PADDING = ("refuse", "front", "end")

_LARGEST = 2**32  # bytes of one file's numbers in memory
_PART = 2**26  # bytes of numbers in a part of an array
_LABELS = ("y", "label", "labels", "target", "class")
_KINDS = (".npy", ".npz", ".csv", ".parquet")
_SERIES = (".npy", ".csv", ".parquet")
# Names of columns that pandas or a logger writes beside the data; one that never falls is asked
# about.
_INDEX = ("", "unnamed: 0", "__index_level_0__", "index", "id", "time", "timestamp", "date",
          "datetime")  # fmt: skip
_MOST_FILES = 100_000


class Rows(NamedTuple):
    """Some rows of a training set: x (n, kappa, channels), y (n,) or None, order (n,) or None."""

    x: np.ndarray
    y: np.ndarray | None
    order: np.ndarray | None


@dataclass(frozen=True)
class Part:
    """Rows that are read when they are needed.

    Attributes:
        load: returns them.
        name: of the file, for messages.
        series: for each row its file, where each file is one sequence; else empty.
    """

    load: Callable[[], Rows]
    name: str
    series: tuple[str, ...] = ()


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iufb":
        raise ValueError(f"{name} must hold real numbers; got dtype {array.dtype}")
    values = np.asarray(array, dtype=np.float64)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))[0])
        raise ValueError(f"{name} must be finite; row {row} is not")
    largest = float(np.abs(values).max(initial=0.0))
    if largest and not 1e-100 < largest < 1e100:  # squares of such numbers are infinite, or zero
        raise ValueError(
            f"{name} must have its largest number between 1e-100 and 1e100; got {largest:.1e}"
        )
    return values


def _sequences(name: str, x: Any, pad: str) -> np.ndarray:
    """Return (n, kappa, channels) of an array, or of a list of sequences of different lengths."""
    if isinstance(x, list | tuple) and any(len(np.shape(row)) for row in x):
        rows = [np.asarray(row) for row in x]
        if len({row.shape for row in rows}) > 1:
            return _padded(name, rows, pad)
        x = np.stack(rows)
    array = np.asarray(x)
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(
            f"{name} must be (n, length) or (n, length, channels), not empty; got shape"
            f" {array.shape}"
        )
    array = _numbers(name, array)
    return array[..., None] if array.ndim == 2 else array


def _padded(name: str, rows: list[np.ndarray], pad: str, length: int | None = None) -> np.ndarray:
    lengths = sorted({len(row) for row in rows})
    if pad == "refuse":
        raise ValueError(
            f"{name} holds sequences of {len(lengths)} lengths, {lengths[0]} to {lengths[-1]}: pad"
            " with zeros at the front (--pad front: the last steps then stand below each other) or"
            " at the end (--pad end)"
        )
    rows = [_numbers(name, row[:, None] if row.ndim == 1 else row) for row in rows]
    channels = {row.shape[1:] for row in rows}
    if len(channels) > 1 or len(next(iter(channels))) != 1:
        raise ValueError(
            f"{name} must hold sequences with the same channels; got {sorted(channels)}"
        )
    x = np.zeros((len(rows), length or lengths[-1], *next(iter(channels))))
    for i, row in enumerate(rows):
        x[i, slice(-len(row), None) if pad == "front" else slice(len(row))] = row
    return x


def from_arrays(
    x: Any,
    y: Any,
    order: Any,
    *,
    pad: str = "refuse",
    name: str = "x",
    whole: bool = False,
    series: tuple[str, ...] = (),
) -> list[Part]:
    """Return the parts of arrays in memory, or of a Dask array cut along its first axis."""
    if hasattr(x, "dask"):
        return _from_dask(x, y, order)
    x = _sequences(name, x, as_choice("pad", pad, PADDING))
    labels = None if y is None else np.asarray(y)
    ranks = None if order is None else np.asarray(order)
    for what, values in (("y", labels), ("order", ranks)):
        if values is not None and (values.ndim not in (1, 2) or len(values) != len(x)):
            raise ValueError(
                f"{what} must have one entry for each of the {len(x)} sequences; got shape"
                f" {values.shape}"
            )
        if values is not None and values.dtype.kind not in "iufbUS":
            raise ValueError(f"{what} must be numbers or text; got dtype {values.dtype}")
    step = len(x) if whole else max(1, _PART // (8 * x[0].size))
    cuts = range(0, len(x), step)
    return [
        Part(partial(_slice, x, labels, ranks, slice(i, i + step)), name, series[i : i + step])
        for i in cuts
    ]


def _slice(x: np.ndarray, y: np.ndarray | None, order: np.ndarray | None, rows: slice) -> Rows:
    return Rows(x[rows], None if y is None else y[rows], None if order is None else order[rows])


def _from_dask(x: Any, y: Any, order: Any) -> list[Part]:
    if any(n != 1 for n in x.numblocks[1:]):
        raise ValueError(f"x must be cut along its first axis only; got {x.numblocks} blocks")
    ends = np.cumsum((0, *x.chunks[0]))
    labels = None if y is None else np.asarray(y)
    ranks = None if order is None else np.asarray(order)
    parts = []
    for k, (a, b) in enumerate(pairwise(ends)):
        here = [None if v is None else v[a:b] for v in (labels, ranks)]
        parts.append(Part(partial(_block, x.blocks[k], *here), f"block {k}"))
    return parts


def _block(block: Any, y: np.ndarray | None, order: np.ndarray | None) -> Rows:
    return Rows(_sequences("x", block.compute(scheduler="synchronous"), "refuse"), y, order)


# ---- files ---------------------------------------------------------------------------------------


def from_path(
    path: str | os.PathLike[str],
    *,
    label: str | None = None,
    order: str | None = None,
    pad: str = "refuse",
    layout: str | None = None,
    skip: Sequence[str] = (),
) -> list[Part]:
    """Return the parts of a file or a folder of files.

    Args:
        path: .npy (inputs alone), .npz (x and labels), .csv, .parquet, or a folder of such.
        label: name of the labels; None: y, label, labels, target or class, whichever is there;
            "none": there are none. For a .npy file: another file, .npy or .csv, of labels.
        order: name of a column to sort by, "rows" for the order of the rows; None: no order.
        pad: a name in `PADDING`.
        layout: "rows", a sequence in each row; "series": each file is one sequence, a time step in
            each row; None: rows, where it is clear, because there is one file or each has labels.
        skip: columns of .csv and .parquet files that are no inputs, such as an index or a time;
            ("none",): every column is an input, whatever it looks like.
    """
    place = as_path("FILE", path)
    as_choice("pad", pad, PADDING)
    if layout is not None:
        as_choice("layout", layout, ("rows", "series"))
    if not place.exists():
        raise ValueError(f"FILE must exist; got {shown(str(place))}")
    if place.is_dir():
        parts = _from_folder(place, label, order, pad, layout, skip)
    elif layout == "series":
        raise ValueError("FILE must be a folder if each file is one sequence (layout 'series')")
    else:
        parts = _from_file(place, label, order, pad, skip)
    return _numbered(parts) if order == "rows" else parts


def _numbered(parts: list[Part]) -> list[Part]:
    return [replace(part, load=partial(_with_order, part.load, k)) for k, part in enumerate(parts)]


def _with_order(load: Callable[[], Rows], k: int) -> Rows:
    rows = load()
    return rows._replace(order=k * 1e9 + np.arange(len(rows.x)))


def _regular(path: Path) -> Path:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path.name} must be a plain file")
    if not path.stat().st_size:
        raise ValueError(f"{path.name} is empty")
    return path


def _from_folder(
    folder: Path,
    label: str | None,
    order: str | None,
    pad: str,
    layout: str | None,
    skip: Sequence[str],
) -> list[Part]:
    os.listdir(folder)  # rglob passes over what it must not read
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _KINDS and f.is_file())
    if not files or len(files) > _MOST_FILES:
        raise ValueError(
            f"FILE must be a folder with 1 to {_MOST_FILES} files of the kinds {', '.join(_KINDS)};"
            f" got {len(files)}"
        )
    if layout == "series":
        return _from_series(folder, files, label, order, pad, skip)
    names = {f.name: f for f in files}
    if set(names) == {"x.npy", "y.npy"}:
        x, y = (_array(_regular(names[name])) for name in ("x.npy", "y.npy"))
        if order not in (None, "rows"):
            raise ValueError(
                f"order must be 'rows' for a folder of x.npy and y.npy; got {shown(order)}"
            )
        return from_arrays(x, None if label == "none" else y, None, pad=pad, name="x.npy")
    if layout is None and len(files) > 1 and _may_be_series(files, label):
        raise ValueError(
            f"{folder.name} has {len(files)} files: say --layout series (each file is one"
            " sequence, a time step in each row) or --layout rows (each row is one sequence);"
            " labels of one array in another file: x.npy --label y.npy"
        )
    return [
        replace(part, name=f.relative_to(folder).as_posix())
        for f in files
        for part in _from_file(f, label, order, pad, skip)
    ]


def _may_be_series(files: Sequence[Path], label: str | None) -> bool:
    """Whether the rows of these files may be time steps: nothing in the first one labels a row."""
    first = files[0]
    kind = first.suffix.lower()
    if kind not in _SERIES or any(f.name == "labels.csv" for f in files):
        return kind in _SERIES
    if kind == ".npy" or label == "none":
        return True
    columns = _csv(first).column_names if kind == ".csv" else _groups(_regular(first))[1]
    return label not in columns if label else not any(c.lower() in _LABELS for c in columns)


def _from_series(
    folder: Path,
    files: list[Path],
    label: str | None,
    order: str | None,
    pad: str,
    skip: Sequence[str],
) -> list[Part]:
    if order not in (None, "rows"):
        raise ValueError(f"order must be 'rows' for a folder of series; got {shown(order)}")
    listed = folder / "labels.csv"
    named: dict[str, Any] | None = None
    if listed in files:
        files.remove(listed)
        named = _named_labels(listed, label)
    elif label not in (None, "none"):
        raise ValueError(
            f"label {shown(label)} is looked for in labels.csv, beside a column 'file'; there is no"
            " labels.csv"
        )
    inside = {f: f.relative_to(folder).as_posix() for f in files}
    y: list[Any] | None = None
    if label != "none":
        if named is not None:
            y = []
            for n in inside.values():
                key = n if n in named else n.rsplit(".", 1)[0]
                if key not in named:
                    raise ValueError(f"labels.csv must name every file; {shown(n)} is missing")
                y.append(named[key])
        elif all("/" in n for n in inside.values()):
            y = [n.split("/")[0] for n in inside.values()]
        else:
            raise ValueError(
                f"{folder.name} must hold labels.csv (columns file, label: one line for each file)"
                " or one folder for each class; --label none does without; if each row of a file is"
                " a sequence: --layout rows"
            )
    rows = [_one_series(f, n, skip) for f, n in inside.items()]
    channels = {f: r.shape[1] for f, r in zip(inside.values(), rows, strict=True)}
    first = next(iter(channels))
    if other := next((f for f in channels if channels[f] != channels[first]), None):
        raise ValueError(
            f"all series must have the same channels; {shown(first)} has {channels[first]},"
            f" {shown(other)} {channels[other]}"
        )
    lengths = {r.shape for r in rows}
    x: Any = np.stack(rows) if len(lengths) == 1 else rows
    labels = None if y is None else np.array(y)
    return from_arrays(x, labels, None, pad=pad, name=folder.name, series=tuple(inside.values()))


def _named_labels(path: Path, label: str | None) -> dict[str, Any]:
    """Return the labels of labels.csv by file."""
    read = _csv(path, text=("file",))
    columns = [c for c in read.column_names if c.lower() not in _INDEX]
    if "file" in columns:
        name = "file"
        wanted = _chosen("labels.csv", [c for c in columns if c != "file"], label)
    elif len(columns) == 2 and label in (None, "none"):
        name, wanted = columns
    else:
        raise ValueError(
            f"labels.csv must have two columns, file and label; it has {shown(columns)}"
        )
    files = [str(f) for f in read[name].to_pylist()]
    if twice := next((f for f, g in pairwise(sorted(files)) if f == g), None):
        raise ValueError(f"labels.csv must name each file once; {shown(twice)} is there twice")
    if wanted is None:
        return dict.fromkeys(files)
    return dict(zip(files, _labels("labels.csv", wanted, read[wanted]).tolist(), strict=True))


def _one_series(path: Path, name: str, skip: Sequence[str]) -> np.ndarray:
    kind = path.suffix.lower()
    if kind == ".npy":
        array = _numbers(name, _array(_regular(path)))
    elif kind in _SERIES:
        table = _table(path)
        if not table.num_rows:
            raise ValueError(f"{name} has no rows")
        array = np.stack(
            [_column(name, c, table[c]) for c in _inputs(name, table, (), skip, series=True)],
            axis=1,
        )
    else:
        raise ValueError(f"{name}: a series is a file of the kinds {', '.join(_SERIES)}")
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name} must be (length,) or (length, channels); got shape {array.shape}")
    return _numbers(name, array)


def _table(path: Path) -> Any:
    """Return a whole .csv or .parquet file."""
    import pyarrow as pa

    if path.suffix.lower() == ".csv":
        return _csv(path)
    groups, _ = _groups(_regular(path))
    return pa.concat_tables(
        table for g in groups for table in _batches(path, g.number, _rows_at_once(g))
    )


def _inputs(
    name: str,
    table: Any,
    taken: Sequence[str | None],
    skip: Sequence[str],
    *,
    series: bool = False,
) -> list[str]:
    """Return the columns of inputs; ask about those that look like an index or a time."""
    import pyarrow as pa

    columns = table.column_names
    if len(set(columns)) < len(columns):
        raise ValueError(f"{name} has two columns of the same name")
    every = tuple(skip) == ("none",)
    if not every and (missing := [c for c in skip if c not in columns]):
        raise ValueError(
            f"skip must name columns of {name}, {shown(columns)}; got {shown(missing[0])}"
        )
    inputs = [c for c in columns if c not in taken and (every or c not in skip)]
    doubtful = [
        c
        for c in inputs
        if pa.types.is_temporal(table[c].type) or (c.lower() in _INDEX and _never_falls(table[c]))
    ]
    if doubtful and not every:
        raise ValueError(
            f"{name}: leave out what is an index or a time:"
            f" {' '.join(map(_skip, doubtful))}; if all columns are inputs: --skip none"
            + (
                ""
                if series
                else "; if the rows are steps of several sequences: a file for each"
                " sequence in a folder, --layout series"
            )
        )
    if not inputs:
        raise ValueError(f"{name} must have columns of inputs")
    return inputs


def _skip(column: str) -> str:
    """Return the option that leaves a column out, without what a terminal would obey."""
    return f"--skip {shlex.quote(column) if column.isprintable() else shown(column)}"


def _never_falls(values: Any) -> bool:
    import pyarrow as pa

    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return False
    return bool((np.diff(np.asarray(values.to_numpy(), dtype=np.float64)) >= 0).all())


def _from_file(
    path: Path, label: str | None, order: str | None, pad: str, skip: Sequence[str]
) -> list[Part]:
    kind = path.suffix.lower()
    if kind not in _KINDS:
        raise ValueError(f"FILE must be one of {', '.join(_KINDS)}; got {shown(path.name)}")
    _regular(path)
    if kind == ".parquet":
        return _from_parquet(path, label, order, pad, skip)
    if skip and kind != ".csv":
        raise ValueError(f"skip is about columns of .csv and .parquet files; got {path.name}")
    if kind == ".npy":
        if order not in (None, "rows"):
            raise ValueError(f"{path.name} holds inputs alone: no order {shown(order)}")
        labels = None if label in (None, "none") else _label_file(path.name, label)
        return from_arrays(_array(path), labels, None, pad=pad, name=path.name)
    if kind == ".npz":
        found = _archive(path)
        if "x" not in found:
            raise ValueError(f"{path.name} must hold an array 'x'; it has {shown(sorted(found))}")
        y = _chosen(path.name, [k for k in found if k != "x"], label)
        ranks = _order_of(path.name, found, order)
        return from_arrays(
            found["x"], None if y is None else found[y], ranks, pad=pad, name=path.name
        )
    return [
        Part(
            partial(_table_rows, path.name, partial(_csv, path), label, order, pad, None, skip),
            path.name,
        )
    ]


def _label_file(name: str, label: str | None) -> np.ndarray:
    """Return labels that stand in a file of their own."""
    path = Path(str(label))
    if path.suffix.lower() not in (".npy", ".csv") or not path.is_file():
        raise ValueError(
            f"{name} holds inputs alone: label must be a .npy or .csv file of labels, or 'none';"
            f" got {shown(label)}"
        )
    if path.suffix.lower() == ".npy":
        return _array(_regular(path))
    table = _csv(path)
    columns = [c for c in table.column_names if c.lower() not in _INDEX]
    column = columns[0] if len(columns) == 1 else _chosen(path.name, columns, None)
    assert column is not None
    return _labels(path.name, column, table[column])


def _chosen(name: str, columns: Sequence[str], label: str | None) -> str | None:
    if label == "none":
        return None
    if label is not None:
        if label not in columns:
            raise ValueError(
                f"{name} must have the label {shown(label)}; it has {shown(list(columns))}"
            )
        return label
    found = [c for c in columns if c.lower() in _LABELS]
    if len(found) != 1:
        raise ValueError(
            f"{name}: name the column of the labels (--label COLUMN), or 'none'; columns are"
            f" {shown(list(columns))}"
        )
    return found[0]


def _order_of(name: str, columns: Any, order: str | None) -> Any:
    if order in (None, "rows"):
        return None
    if order not in columns:
        raise ValueError(
            f"{name} must have the order column {shown(order)}; it has {shown(sorted(columns))}"
        )
    return columns[order]


def _checked_header(name: str, file: Any, size: int) -> None:
    """Refuse objects, and headers that promise another size than there is."""
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in read:
            raise ValueError(f"format version {version}")
        shape, _, dtype = read[version](file)
    except Exception as error:
        raise ValueError(f"{name} is no NumPy array: {shown(str(error))}") from None
    if dtype.hasobject:
        raise ValueError(
            f"{name} holds Python objects, which can run code when they are read: refused"
        )
    wanted = math.prod(shape) * dtype.itemsize
    if wanted > _LARGEST:
        raise ValueError(
            f"{name} promises {wanted:,} bytes; at most {_LARGEST:,} are read, larger sets as"
            " parquet"
        )
    if wanted != size - file.tell():
        raise ValueError(
            f"{name} promises {wanted:,} bytes of numbers and has {size - file.tell():,}"
        )


def _array(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        _checked_header(path.name, file, path.stat().st_size)
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _archive(path: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(m.file_size for m in members) > _LARGEST or len(members) > 1000:
                raise ValueError(
                    f"{path.name} unpacks to more than {_LARGEST:,} bytes or 1000 arrays"
                )
            for member in members:
                if not member.filename.endswith(".npy"):
                    raise ValueError(
                        f"{path.name} must hold arrays alone; got {shown(member.filename)}"
                    )
                name = member.filename.removesuffix(".npy")
                if name in found:
                    raise ValueError(f"{path.name} holds {shown(name)} twice")
                with archive.open(member) as file:
                    _checked_header(f"{path.name}: {shown(name)}", file, member.file_size)
                with archive.open(member) as file:
                    found[name] = np.lib.format.read_array(file, allow_pickle=False)
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        EOFError,
        OSError,
        RuntimeError,
        NotImplementedError,
    ) as e:
        raise ValueError(f"{path.name} cannot be read: {shown(str(e))}") from None
    except Exception as e:
        if isinstance(e, ValueError):
            raise
        raise ValueError(f"{path.name} cannot be read: {type(e).__name__}") from None
    return found


def _csv(path: Path, text: Sequence[str] = ()) -> Any:
    """Return a table; of a file without names, the columns are f0, f1, ...

    Args:
        path: of the file.
        text: columns that are text, whatever is in them.
    """
    import pyarrow as pa
    from pyarrow import csv

    _regular(path)
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path.name} must be at most {_LARGEST:,} bytes; larger sets as parquet")
    with open(path, "rb") as file:
        first = file.read(1 << 20).split(b"\n", 1)[0]
    try:
        cells = [
            cell.strip().strip('"') for cell in first.decode("utf-8-sig").rstrip("\r").split(",")
        ]
        other = next((mark for mark in ";\t|" if len(cells) == 1 and mark in cells[0]), None)
        if other:
            raise ValueError(f"cells must be separated by commas, not by {other!r}")
        counted = len(cells) > 1 and [c for c in cells if c] == [
            str(k) for k in range(len(cells) - (not cells[0]))
        ]  # as pandas names columns
        bare = all(_is_number(cell) for cell in cells) and not counted
        return csv.read_csv(
            path,
            read_options=csv.ReadOptions(autogenerate_column_names=bare, block_size=1 << 24),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(text, pa.string())),
        )
    except (pa.ArrowException, UnicodeError, ValueError) as error:
        raise ValueError(
            f"{path.name} cannot be read: {shown(str(error).splitlines()[0])}"
        ) from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return not cell
    return True


def _column(name: str, column: str, values: Any) -> np.ndarray:
    import pyarrow as pa

    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        example = next((v for v in values.to_pylist() if v is not None), None)
        raise ValueError(
            f"{name}: column {shown(column)} must hold numbers; got {shown(example)}"
            f" (a column that is no input: {_skip(column)})"
        )
    return np.asarray(values.to_numpy(), dtype=np.float64)


@dataclass(frozen=True)
class _Group:
    """A row group of a parquet file: its number, rows, and bytes of its numbers in memory."""

    number: int
    rows: int
    size: int


def _groups(path: Path) -> tuple[list[_Group], list[str]]:
    """Return the row groups that have rows, and the columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = []
    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            for k in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(k)
                # A column that repeats itself is small in the file; a list has several values.
                values = sum(group.column(j).num_values for j in range(group.num_columns))
                size = max(group.total_byte_size, 8 * values)
                if size > _LARGEST:
                    raise ValueError(
                        f"{path.name}: row group {k} has {size:,} bytes; at most {_LARGEST:,} are"
                        " read"
                    )
                if group.num_rows:
                    found.append(_Group(k, group.num_rows, size))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path.name} cannot be read: {shown(str(error).splitlines()[0])}"
        ) from None
    if not found:
        raise ValueError(f"{path.name} has no rows")
    return found, columns


def _from_parquet(
    path: Path, label: str | None, order: str | None, pad: str, skip: Sequence[str]
) -> list[Part]:
    groups, columns = _groups(path)
    _chosen(path.name, columns, label)
    _order_of(path.name, dict.fromkeys(columns), order)
    longest = _longest_list(path, groups) if pad != "refuse" else None
    parts = []
    for group in groups:
        step = _rows_at_once(group)
        for i in range(-(-group.rows // step)):
            read = partial(_batch, path, group.number, step, i)
            load = partial(_table_rows, path.name, read, label, order, pad, longest, skip)
            parts.append(Part(load, path.name))
    return parts


def _rows_at_once(group: _Group) -> int:
    return max(1, group.rows * _PART // group.size)


def _longest_list(path: Path, groups: Sequence[_Group]) -> int | None:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        lists = [f.name for f in file.schema_arrow if pa.types.is_list(f.type)]
    if not lists:
        return None
    ends = [
        pc.max(pc.list_value_length(table[lists[0]])).as_py() or 0
        for group in groups
        for table in _batches(path, group.number, _rows_at_once(group), lists[:1])
    ]
    return max(ends)


def _batches(
    path: Path, group: int, rows: int, columns: Sequence[str] | None = None
) -> Iterator[Any]:
    """Give a row group as tables of so many rows, the last one of fewer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, buffer_size=1 << 20) as file:  # bytes of a column read at once
            for batch in file.iter_batches(
                rows, row_groups=[group], columns=columns, use_threads=False
            ):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path.name} cannot be read: {shown(str(error).splitlines()[0])}"
        ) from None


class _Place(threading.local):
    """Where this thread stopped reading: parts are mostly read one after the other."""

    key: tuple[Any, ...] = ()
    rest: Iterator[Any] = iter(())


_place = _Place()


def _batch(path: Path, group: int, rows: int, i: int) -> Any:
    """Return the i-th table of a row group, read from where this thread stopped if that is it."""
    if _place.key != (path, group, rows, i):
        _place.rest = islice(_batches(path, group, rows), i, None)
    _place.key = ()
    found = next(_place.rest)
    _place.key = (path, group, rows, i + 1)
    return found


def _table_rows(
    name: str,
    read: Callable[[], Any],
    label: str | None,
    order: str | None,
    pad: str,
    length: int | None,
    skip: Sequence[str],
) -> Rows:
    """Return the rows of a table: a column for each step, or one column of lists."""
    import pyarrow as pa

    table = read()
    if not table.num_rows:
        raise ValueError(f"{name} has no rows")
    if len(set(table.column_names)) < table.num_columns:
        raise ValueError(f"{name} has two columns of the same name")
    y = _chosen(name, table.column_names, label)
    _order_of(name, dict.fromkeys(table.column_names), order)
    by = None if order in (None, "rows") else order
    inputs = _inputs(name, table, (y, by), skip)
    labels = None if y is None else _labels(name, y, table[y])
    keys = None if by is None else _column(name, by, table[by])
    if len(inputs) == 1 and pa.types.is_list(table[inputs[0]].type):
        found = table[inputs[0]].to_pylist()
        if any(row is None or not row for row in found):
            raise ValueError(f"{name}: column {shown(inputs[0])} has empty sequences")
        try:
            rows = [np.asarray(row) for row in found]
        except ValueError:  # lists within of different lengths
            raise ValueError(
                f"{name}: column {shown(inputs[0])} must have as many channels at each step"
            ) from None
        if len({row.shape for row in rows}) > 1 or (length and length != len(rows[0])):
            x = _padded(name, rows, pad, length)
        else:
            x = _sequences(name, np.stack(rows), pad)
        return Rows(x, labels, keys)
    columns = np.stack([_column(name, c, table[c]) for c in inputs], axis=1)
    if np.isnan(columns).any():
        columns = _ragged(name, columns, pad)
    return Rows(_sequences(name, columns, pad), labels, keys)


def _ragged(name: str, columns: np.ndarray, pad: str) -> np.ndarray:
    """Take empty cells at a row's end as a shorter sequence."""
    there = ~np.isnan(columns)
    count = there.sum(axis=1)
    whole = (np.arange(columns.shape[1]) < count[:, None]) == there
    if not whole.all() or not count.all():
        row = int(np.flatnonzero(~whole.all(axis=1) | (count == 0))[0])
        raise ValueError(f"{name}: row {row} has empty cells or NaN that are not at its end")
    rows = [row[:n] for row, n in zip(columns, count, strict=True)]
    return _padded(name, rows, pad, columns.shape[1])[..., 0]


def _labels(name: str, column: str, values: Any) -> np.ndarray:
    import pyarrow as pa

    if values.null_count:
        raise ValueError(f"{name}: column {shown(column)} has empty labels")
    numbers = any(
        kind(values.type)
        for kind in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    )
    found = values.to_numpy() if numbers else np.array(values.to_pylist())
    if found.dtype.kind not in "iufbU" or found.ndim != 1:
        raise ValueError(
            f"{name}: column {shown(column)} must hold numbers or text; got dtype {found.dtype}"
        )
    return found


def names_of(parts: Iterable[Part]) -> list[str]:
    """Return the names of the files, each once."""
    return list(dict.fromkeys(part.name for part in parts))
