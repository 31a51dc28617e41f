"""Sweeps: one function over a grid of named axes, as labelled arrays whose chunks are jobs.

The grid's store is a Zarr group with labels that xarray reads; a chunk of it is a job of `store`'s
runner. Beside each chunk of each variable lies a checksum of its values, its place and the sweep:
what was lost, changed, cut off or copied from elsewhere is found and run again.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import math
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from ssm_poison_lib._checks import (
    MAX_COUNT,
    MAX_LENGTH,
    ArrayLike,
    as_array,
    as_choice,
    as_function,
    as_integer,
    as_mapping,
    as_path,
    as_scalar,
    as_text,
)
from ssm_poison_lib.studies.store import StudyError, as_scheduler, differences, finish, importable

__all__ = ["load", "read_config", "sweep"]

Function = Callable[[xr.Dataset], xr.Dataset]
_FORMAT = 2
# name of the stored array that tells which chunks are complete, and what they hold
_CHECKSUM = "checksum"
_THEOREM = "ssm_poison_lib.studies.theorem:theorem_errors"


def _grid(
    axes: Any, fixed: Any, chunks: Any
) -> tuple[dict[str, np.ndarray], dict[str, float], dict[str, int]]:
    """Return the axes, the fixed values and the length of a chunk of each axis, checked."""
    grid = {
        as_text("each name of axes", axis): as_array(f"axes[{axis!r}]", values, ndim=1)
        for axis, values in as_mapping("axes", axes).items()
    }
    if not grid:
        raise ValueError("axes must name at least one axis")
    for axis, values in grid.items():
        if len(np.unique(values)) < len(values):
            raise ValueError(f"axes[{axis!r}] must hold different numbers; got {values}")
    given = as_mapping("fixed", {} if fixed is None else fixed)
    fixed = {k: as_scalar(f"fixed[{k!r}]", value) for k, value in given.items()}
    if twice := sorted(set(grid) & set(fixed)):
        raise ValueError(f"fixed must not name an axis; got {twice[0]!r}")
    as_integer(
        "the number of points of axes", math.prod(map(len, grid.values())), low=1, high=MAX_COUNT
    )
    chunks = dict(as_mapping("chunks", {} if chunks is None else chunks))
    if strange := sorted(set(chunks) - set(grid)):
        raise ValueError(f"chunks must name axes ({', '.join(grid)}); got {strange[0]!r}")
    for axis, size in chunks.items():
        as_integer(f"chunks[{axis!r}]", size, low=1)
    return grid, fixed, {k: int(min(chunks.get(k, len(v)), len(v))) for k, v in grid.items()}


def sweep(
    function: Function,
    axes: Mapping[str, ArrayLike],
    store: str | Path,
    *,
    fixed: Mapping[str, float] | None = None,
    chunks: Mapping[str, int] | None = None,
    scheduler: str = "threads",
    progress: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Run `function` on every point of a grid and return the results as labelled arrays.

    Args:
        function: of a module's top level. Gets `points`, a Dataset whose coordinates are a chunk of
            each axis (1-d) and the fixed values (0-d), and returns a Dataset with real variables
            over
            all axes, labelled by them in any order.
        axes: name -> (m,) different numbers, in the order of the result's dimensions.
        store: folder of the Zarr store, new or of the same sweep: then only chunks that it lacks
            are
            run, and damaged ones.
        fixed: name -> number, the same at every point.
        chunks: name -> chunk length of an axis, the whole axis by default.
        scheduler: "threads" or "processes" of this machine, or the address of a Dask scheduler.
        progress: whether to show a bar.
        options: workers, accept_changes, report: see `studies.store.finish`.

    Returns:
        The stored Dataset (float64, opened lazily); its attribute chunks_run counts the chunks that
        this call has run.

    Raises:
        ValueError, TypeError: for bad arguments, the store of another sweep or of other code.
        StudyError: if chunks failed (after the others ended), or another process writes the store.
        OSError: with the store's name if it cannot be written.
    """
    name = importable(function)
    grid, fixed, sizes = _grid(axes, fixed, chunks)
    lists = {k: values.tolist() for k, values in grid.items()}
    identity = json.dumps({"function": name, "axes": lists, "fixed": fixed, "chunks": sizes})
    as_scheduler(scheduler)
    target = _Store(as_path("store", store), identity, grid, fixed, sizes)
    try:
        run = finish(target, function, scheduler=scheduler, progress=progress, **options)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(target.path)) from error
    result = xr.open_zarr(target.path, consolidated=False, chunks=None)[target.variables()]
    return result.assign_attrs(chunks_run=run)


def load(store: str | Path) -> xr.Dataset:
    """Return a finished sweep from its store, in memory (float64), every chunk compared with its
    checksum.

    Args:
        store: folder that `sweep` has filled. Its attribute sweep says what was asked for (JSON:
            function, axes, fixed, chunks).

    Raises:
        ValueError: if no sweep is there.
        StudyError: that names the file if a chunk is missing or damaged: the sweep's own command
            runs it again.
    """
    target = _Store.at(_of_the_book(as_path("store", store)))
    missing, damaged = target.lacking()
    if damaged:
        raise StudyError(f"{damaged[0]}: run this sweep again, which mends it")
    if missing:
        raise StudyError(
            f"{target.path} lacks {len(missing)} of {len(target.regions)} chunks: run this sweep"
            " again"
        )
    data = {
        k: (tuple(target.grid), zarr.open_array(target.path / k, mode="r")[:])
        for k in target.variables()
    }
    return xr.Dataset(data, coords=target.grid, attrs={"sweep": target.identity})


def _of_the_book(path: Path) -> Path:
    """Return the path, or, where nothing is there, its like in the book's folder: chapters run from
    any working directory.
    """
    inside = Path(__file__).resolve().parents[2] / "book" / path
    return inside if not path.exists() and inside.exists() else path


@dataclass(frozen=True)
class _Store:
    """The folder of a sweep: what belongs into it, what of that is there, and how a chunk is
    written.

    Attributes:
        identity: JSON of function, axes, fixed and chunks. In the folder: a Zarr array of each
            variable and each axis, and one of checksums, (chunks, variables), 0 where a chunk has
            not been written.
    """

    path: Path
    identity: str
    grid: dict[str, np.ndarray]
    fixed: dict[str, float]
    sizes: dict[str, int]

    @classmethod
    def at(cls, path: Path) -> _Store:
        """Return the store of the sweep that a folder holds, whichever it is.

        Args:
            path: the TOML file
        """
        asked = json.loads(_attributes(path)["sweep"])
        grid = {k: np.array(values, dtype=np.float64) for k, values in asked["axes"].items()}
        return cls(path, json.dumps(asked), grid, asked["fixed"], asked["chunks"])

    @cached_property
    def regions(self) -> list[dict[str, slice]]:
        """The chunks: axis -> its part."""
        parts = [
            [slice(i, i + n) for i in range(0, len(self.grid[k]), n)] for k, n in self.sizes.items()
        ]
        return [dict(zip(self.grid, slices, strict=True)) for slices in itertools.product(*parts)]

    @cached_property
    def _seal(self) -> bytes:
        return hashlib.sha256(self.identity.encode()).digest()

    def labels(self, i: int) -> dict[str, np.ndarray]:
        """Return the part of each axis that a chunk covers."""
        return {k: self.grid[k][part] for k, part in self.regions[i].items()}

    def __len__(self) -> int:
        return len(self.regions)

    def call(self, function: Function, i: int) -> partial[xr.Dataset]:
        """Return the call of the function with a chunk's points."""
        return partial(function, xr.Dataset(coords={**self.labels(i), **self.fixed}))

    def place(self, i: int) -> str:
        """Say where a chunk lies."""
        return ", ".join(
            f"{k} {values[0]:g}..{values[-1]:g}" for k, values in self.labels(i).items()
        )

    def attributes(self) -> dict[str, Any]:
        """Return what the store says of itself; refuse another sweep's."""
        found = _attributes(self.path)
        if found["sweep"] != self.identity:
            raise ValueError(
                f"store must be new or hold this very sweep; {str(self.path)!r} holds"
                f" {found['sweep']}, asked for is {self.identity}"
            )
        return found

    def variables(self) -> list[str]:
        """Return the names of the variables."""
        return list(self.attributes()["variables"])

    def lacking(self) -> tuple[list[int], list[str]]:
        """Return the numbers of the chunks to be run, and what is damaged (its files named)."""
        if not self.path.exists():
            return list(range(len(self.regions))), []
        names, missing, damaged = self.variables(), [], []
        for k, values in self.grid.items():
            if not np.array_equal(_read(self.path / k, np.s_[:]), values):
                damaged.append(f"{self.path / k} is damaged")
        for i, region in enumerate(self.regions):
            known = _read(self.path / _CHECKSUM, np.s_[i])
            if known.shape != (len(names),):
                bad = [f"{self.path / _CHECKSUM} is damaged"]
            else:
                bad = [
                    f"{self._file(name, i)} is damaged or lost"
                    for name, checksum in zip(names, known, strict=True)
                    if known.any()
                    and self._checksum(name, i, _read(self.path / name, tuple(region.values())))
                    != checksum
                ]
            if bad or not known.any():
                missing.append(i)
            damaged += bad[:1]
        return missing, damaged

    def _file(self, name: str, i: int) -> Path:
        numbers = (str(part.start // self.sizes[k]) for k, part in self.regions[i].items())
        return self.path.joinpath(name, "c", *numbers)

    def _checksum(self, name: str, i: int, values: np.ndarray) -> np.uint64:
        content = (
            self._seal + f"{name}/{i}/{values.shape}/".encode() + values.astype("<f8").tobytes()
        )
        return np.uint64(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little"))

    def changes(self, made_by: dict[str, Any]) -> list[str]:
        """Return which code and versions differ from those that made the store, or were accepted
        for it.
        """
        return sorted(differences(self.attributes()["made_by"][-1], made_by))

    def prepare(self, made_by: dict[str, Any], missing: list[int], damaged: list[str]) -> None:
        """Clear away what a killed process left, set a store without one whole chunk aside, mend
        the axes.
        """
        shutil.rmtree(self._new, ignore_errors=True)
        if not self.path.exists():
            return
        if len(missing) == len(self.regions):
            aside = self.path.with_name(self.path.name + ".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            self.path.rename(aside)
            if not damaged:  # nothing was in it
                shutil.rmtree(aside)
            return
        for left in self.path.rglob("*.partial"):
            left.unlink()
        group = zarr.open_group(self.path, mode="r+")
        for k, values in self.grid.items():
            if not np.array_equal(_read(self.path / k, np.s_[:]), values):
                group.create_array(k, data=values, dimension_names=(k,), overwrite=True)
        past = self.attributes()["made_by"]
        if made_by != past[-1]:
            group.attrs["made_by"] = [*past, made_by]

    @property
    def _new(self) -> Path:
        return self.path.with_name(self.path.name + ".new")

    def _checked(self, part: Any, i: int) -> dict[str, np.ndarray]:
        """Return the values of a chunk's variables in the order of the grid; refuse what cannot be
        stored as it is.
        """
        if not isinstance(part, xr.Dataset):
            raise StudyError(f"function must return an xarray.Dataset; got {type(part).__name__}")
        if not part.data_vars:
            raise StudyError("function must return at least one variable; got none")
        labels, arrays = self.labels(i), {}
        for axis, values in labels.items():
            if axis in part.coords and not np.array_equal(part[axis].values, values):
                if part[axis].dims != (axis,) or sorted(part[axis].values.tolist()) != sorted(
                    values.tolist()
                ):
                    raise StudyError(
                        f"function must keep the labels of {axis!r}, {values}; got"
                        f" {part[axis].values}"
                    )
                part = part.sel({axis: values})
        shape = tuple(map(len, labels.values()))
        for name, variable in part.data_vars.items():
            if set(variable.dims) != set(labels):
                raise StudyError(
                    f"function must return variables over {', '.join(labels)}; {name!r} has"
                    f" {variable.dims}"
                )
            raw = variable.transpose(*labels).values
            if raw.shape != shape:
                raise StudyError(
                    f"function must keep the chunk's shape {shape}; {name!r} has {raw.shape}"
                )
            if raw.dtype.kind not in "biuf":
                raise StudyError(f"function must return real numbers; {name!r} holds {raw.dtype}")
            with np.errstate(over="ignore"):
                values = raw.astype(np.float64)
            if (values.astype(raw.dtype) != raw)[~np.isnan(values)].any():
                raise StudyError(
                    f"function must return numbers that float64 holds exactly; {name!r} holds"
                    " others"
                )
            # one NaN for all: Zarr does not store a chunk of nothing else
            values[np.isnan(values)] = np.nan
            arrays[str(name)] = values
        reserved = {_CHECKSUM, *self.grid}
        if strange := [
            k for k in arrays if k in reserved or not k or k.startswith(("_", ".")) or "/" in k
        ]:
            raise StudyError(f"function must not name a variable {strange[0]!r}")
        return arrays

    def write(self, i: int, result: Any, made_by: dict[str, Any]) -> None:
        """Write one chunk's variables, and after them their checksums; the first chunk creates the
        store.
        """
        arrays = self._checked(result, i)
        if not self.path.exists():
            self._create(list(arrays), made_by)
        names = self.variables()
        if set(names) != set(arrays):
            raise StudyError(
                f"function must return the same variables for every chunk; got {', '.join(arrays)}"
                f" beside {', '.join(names)}"
            )
        for name, values in arrays.items():
            zarr.open_array(self.path / name, mode="r+")[tuple(self.regions[i].values())] = values
        checksums = np.array([self._checksum(name, i, arrays[name]) for name in names])
        zarr.open_array(self.path / _CHECKSUM, mode="r+")[i] = checksums

    def _create(self, names: list[str], made_by: dict[str, Any]) -> None:
        """Create the store under another name and move it into place, so that a half-made store is
        never met.
        """
        attributes: dict[str, Any] = {
            "format": _FORMAT,
            "sweep": self.identity,
            "variables": names,
            "made_by": [made_by],
        }
        group = zarr.open_group(self._new, mode="w", attributes=attributes)
        for name in names:
            group.create_array(
                name,
                shape=tuple(map(len, self.grid.values())),
                chunks=tuple(self.sizes.values()),
                dtype="float64",
                fill_value=math.nan,
                dimension_names=tuple(self.grid),
            )
        for k, values in self.grid.items():
            group.create_array(k, data=values, dimension_names=(k,))
        group.create_array(
            _CHECKSUM,
            shape=(len(self.regions), len(names)),
            chunks=(1, len(names)),
            dtype="uint64",
            fill_value=0,
            dimension_names=("chunk", "variable"),
        )
        self._new.rename(self.path)


def _attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of a sweep's store; refuse other folders."""
    try:
        found = dict(zarr.open_group(path, mode="r").attrs)
    except (FileNotFoundError, NotADirectoryError):
        found = {}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path / 'zarr.json'} is damaged ({error}): move the folder away to begin anew"
        ) from None
    if "sweep" not in found:
        raise ValueError(f"store must be new or hold a sweep; got {str(path)!r}")
    if found.get("format") != _FORMAT:
        raise ValueError(
            f"{path} holds a sweep of format {found.get('format', 1)}, without checksums; this"
            f" version reads {_FORMAT}: move the folder away to run it again"
        )
    return found


def _read(path: Path, part: Any) -> np.ndarray:
    """Return a part of a stored array, and an empty one where it cannot be read."""
    try:
        return np.asarray(zarr.open_array(path, mode="r")[part])
    except (
        Exception
    ):  # damage shows as almost any error; only what is read in full is compared with its checksum
        return np.empty(0)


def read_config(path: str | Path, *, allow_any_function: bool = False) -> dict[str, Any]:
    """Return the arguments of `sweep` that a TOML file describes.

    Tables axes (name -> numbers, or {linspace | geomspace | arange = [arguments of NumPy's function
    of that name]}), fixed, chunks; function = "module:name" (default: `theorem_errors`); store =
    folder (default: the file's name with .zarr).

    The function's module is imported and the function called: only those of ssm_poison_lib are,
    unless allow_any_function=True. Say that for a file whose author you trust, no other: it can
    name any function on this machine.

    Args:
        path: the TOML file
        allow_any_function: whether the function may be of any module

    Raises:
        ValueError: if the file cannot be read or has other keys.
    """
    path = _of_the_book(as_path("CONFIG", path))
    try:
        config = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"CONFIG must be a TOML file; {str(path)!r}: {error}") from None
    if strange := sorted(set(config) - {"axes", "fixed", "chunks", "function", "store"}):
        raise ValueError(
            f"CONFIG must have axes, fixed, chunks, function, store only; got {strange[0]!r}"
        )
    try:
        tables = {k: as_mapping(k, config.get(k, {})) for k in ("axes", "fixed", "chunks")}
        store = as_path("store", config.get("store", path.with_suffix(".zarr")))
        function = _named_function(
            as_text("function", config.get("function", _THEOREM)), allow_any_function
        )
    except TypeError as error:  # a wrong value in a file, not a wrong argument
        raise ValueError(f"CONFIG {str(path)!r}: {error}") from None
    axes = {
        axis: _spaced(axis, v) if isinstance(v, dict) else v for axis, v in tables["axes"].items()
    }
    return {**tables, "function": function, "axes": axes, "store": store}


def _named_function(name: str, allow_any: bool) -> Function:
    """Import the function that "module:name" names."""
    module, _, attribute = name.partition(":")
    ours = __name__.partition(".")[0]
    if not allow_any and module.partition(".")[0] != ours:
        raise ValueError(
            f"function must be one of {ours}, unless any that the file names may be imported and"
            f" called (allow_any_function=True, --allow-any-function); got {name!r}"
        )
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"function must be 'module:name'; got {name!r} ({error})") from None
    if not allow_any and str(getattr(function, "__module__", "")).partition(".")[0] != ours:
        raise ValueError(
            f"function must be one of {ours}; got {name!r}, which comes from elsewhere"
        )
    return as_function("function", function)


def _spaced(axis: str, values: dict[str, Any]) -> np.ndarray:
    """Return the numbers of an axis that is given by one of NumPy's functions."""
    if len(values) != 1:
        raise ValueError(f"axis {axis!r} must have one spacing; got {', '.join(values) or 'none'}")
    [(spacing, arguments)] = values.items()
    as_choice(f"spacing of axis {axis!r}", spacing, ("linspace", "geomspace", "arange"))
    given = as_array(f"{spacing} of axis {axis!r}", arguments, ndim=1)
    if spacing == "arange":
        start, stop, step = (0.0, *given, 1.0)[-3:] if len(given) < 2 else (*given, 1.0)[:3]
        count = math.ceil((stop - start) / step) if step else 0
    else:
        count = as_integer(
            f"{spacing} of axis {axis!r}", arguments[-1] if len(given) > 2 else 50, low=1
        )
    as_integer(f"the number of points of axis {axis!r}", count, low=1, high=MAX_LENGTH)
    try:
        return np.asarray(getattr(np, spacing)(*arguments))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{spacing} of axis {axis!r}: {error}; got {arguments!r}") from None
