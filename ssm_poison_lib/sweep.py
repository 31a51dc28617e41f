"""Sweeps: one function over a grid of named axes, in chunks that Dask schedules and Zarr keeps as they finish.

Only glue: xarray labels the grid, dask.distributed runs the chunks (threads, processes, or a cluster that is already there), Zarr
stores them. A sweep that was interrupted goes on with the chunks that its store lacks. Beside each chunk of each variable lies a
checksum of its values, its place and the sweep: what was lost, changed, cut off or copied from elsewhere is found and run again.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import itertools
import json
import math
import multiprocessing
import shutil
import sys
import tomllib
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import xarray as xr
import zarr
from jaxtyping import Float
from tqdm import tqdm

from ssm_poison_lib._checks import (
    MAX_COUNT,
    MAX_LENGTH,
    ArrayLike,
    as_array,
    as_choice,
    as_flag,
    as_function,
    as_instance,
    as_integer,
    as_mapping,
    as_path,
    as_scalar,
    as_text,
    as_workers,
)
from ssm_poison_lib._code import code_digests
from ssm_poison_lib._files import locked
from ssm_poison_lib.flows import near_tie_starts, theorem_flows
from ssm_poison_lib.parametrizations import PARAMETRIZATIONS, parametrized_flow
from ssm_poison_lib.ssm import near_zero

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "ORDERS",
    "SweepError",
    "load",
    "order_errors",
    "parametrization_errors",
    "read_config",
    "sweep",
    "theorem_errors",
    "uniform_errors",
]

ORDERS = ("mixed", "baseline only", "special, then baseline", "baseline, then both", "interleaved")
"""The orders that `order_errors` knows, by their numbers."""

Function = Callable[[xr.Dataset], xr.Dataset]
_FORMAT = 2
_CHECKSUM = "checksum"  # name of the stored array that tells which chunks are complete, and what they hold
_THEOREM = "ssm_poison_lib.sweep:theorem_errors"
_PHASES = {
    "mixed": ("both",),
    "baseline only": ("baseline",),
    "special, then baseline": ("special", "baseline"),
    "baseline, then both": ("baseline", "both"),
}
_INTERLEAVED_FITTED, _MOST_ROUNDS = 1e-16, 10_000
_START_AXES = ("scale", "tie_gap", "state_dim", "length", "seed")


class SweepError(RuntimeError):
    """Chunks failed, are missing or damaged, or the store is in use; whatever is whole in the store stays there."""


def sweep(
    function: Function,
    axes: Mapping[str, ArrayLike],
    store: str | Path,
    *,
    fixed: Mapping[str, float] | None = None,
    chunks: Mapping[str, int] | None = None,
    scheduler: str = "threads",
    workers: int | None = None,
    progress: bool = False,
    accept_changes: bool = False,
    report: Callable[[str], None] = print,
) -> xr.Dataset:
    """Run `function` on every point of a grid and return the results as labelled arrays.

    function: gets a Dataset whose coordinates are a chunk of each axis (1-d) and the fixed values (0-d), and returns a Dataset
    with real variables over all axes, labelled by them in any order; a function of a module's top level, which the workers can
    import. axes: name -> (m,) different numbers, in the order of the result's dimensions. store: folder of the Zarr store, new
    or of the same sweep: then only chunks that it lacks are run, and damaged ones, of which `report` is told. chunks: name ->
    chunk length of an axis (default: the whole axis). scheduler: "threads" or "processes" of this machine, which listen on the
    loopback interface at most and show no dashboard, or the address of a running Dask scheduler. workers: number of
    threads or processes (default: one per core).

    A store knows the code that made it (the function, and what it uses of its own package) and the versions of the packages.
    Chunks of other code or versions are not mixed with new ones, and those of a function whose module has changed are not
    returned, unless accept_changes=True; the store then names both, and is that of the present code from there on.

    Returns the stored Dataset (float64, opened lazily); its attribute chunks_run counts the chunks that this call has run.

    Raises ValueError or TypeError for bad arguments, the store of another sweep or of other code; SweepError if chunks fail
    (after the others ended) or another process writes the store; OSError with the store's name if it cannot be written.
    """
    name = _importable(function)
    grid = {
        as_text("each name of axes", axis): as_array(f"axes[{axis!r}]", values, ndim=1)
        for axis, values in as_mapping("axes", axes).items()
    }
    if not grid:
        raise ValueError("axes must name at least one axis")
    for axis, values in grid.items():
        if len(np.unique(values)) < len(values):
            raise ValueError(f"axes[{axis!r}] must hold different numbers; got {values}")
    fixed = {
        k: as_scalar(f"fixed[{k!r}]", value)
        for k, value in as_mapping("fixed", {} if fixed is None else fixed).items()
    }
    if twice := sorted(set(grid) & set(fixed)):
        raise ValueError(f"fixed must not name an axis; got {twice[0]!r}")
    lengths = {axis: len(values) for axis, values in grid.items()}
    as_integer("the number of points of axes", math.prod(lengths.values()), low=1, high=MAX_COUNT)
    chunks = dict(as_mapping("chunks", {} if chunks is None else chunks))
    if strange := sorted(set(chunks) - set(grid)):
        raise ValueError(f"chunks must name axes ({', '.join(grid)}); got {strange[0]!r}")
    for axis, size in chunks.items():
        as_integer(f"chunks[{axis!r}]", size, low=1)
    workers = as_workers("workers", workers)
    if "://" not in as_text("scheduler", scheduler):
        as_choice("scheduler", scheduler, ("threads", "processes"))
    progress, accept_changes = as_flag("progress", progress), as_flag("accept_changes", accept_changes)
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)  # a worker that runs its parent's script: the parent says what is wrong (`_client`)

    sizes = {k: int(min(chunks.get(k, length), length)) for k, length in lengths.items()}
    lists = {k: values.tolist() for k, values in grid.items()}
    identity = json.dumps({"function": name, "axes": lists, "fixed": fixed, "chunks": sizes})
    made_by = {"code": code_digests(function), "versions": _versions(function)}
    target = _Store(as_path("store", store), identity, grid, fixed, sizes)
    missing, damaged = target.lacking()
    changes = target.changes(made_by) if len(missing) < len(target.regions) else []
    if (
        changes
        and not accept_changes
        and (missing or any(k.startswith(f"{function.__module__}:") for k in changes))
    ):
        raise ValueError(
            f"{target.path} was made by other code or versions ({', '.join(changes)}): move it away to run everything again,"
            " or keep its chunks with accept_changes=True (--accept-changes)"
        )
    if missing or damaged or (changes and accept_changes):
        try:
            with locked(target.lock):
                missing, damaged = target.lacking()
                for message in damaged:
                    report(f"{message}; run again")
                target.prepare(made_by, missing, damaged)
                if missing:
                    with _client(scheduler, workers) as client:
                        _run(function, target, missing, client, made_by, progress)
        except BlockingIOError:
            raise SweepError(f"another process writes {target.path} (it holds {target.lock})") from None
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(target.path)) from error
        if still := target.lacking()[1]:
            raise SweepError(f"{still[0]}, although it has just been written")
    elif changes:
        report(f"{target.path} was made with other versions of {', '.join(changes)}")
    result = xr.open_zarr(target.path, consolidated=False, chunks=None)[target.variables()]
    return result.assign_attrs(chunks_run=len(missing))


def load(store: str | Path) -> xr.Dataset:
    """Return a finished sweep from its store, in memory (float64), every chunk compared with its checksum.

    store: folder that `sweep` has filled. Its attribute sweep says what was asked for (JSON: function, axes, fixed, chunks).

    Raises ValueError if no sweep is there, SweepError that names the file if a chunk is missing or damaged: the sweep's own
    command runs it again.
    """
    target = _Store.at(_of_the_book(as_path("store", store)))
    missing, damaged = target.lacking()
    if damaged:
        raise SweepError(f"{damaged[0]}: run this sweep again, which mends it")
    if missing:
        raise SweepError(
            f"{target.path} lacks {len(missing)} of {len(target.regions)} chunks: run this sweep again"
        )
    data = {
        k: (tuple(target.grid), zarr.open_array(target.path / k, mode="r")[:]) for k in target.variables()
    }
    return xr.Dataset(data, coords=target.grid, attrs={"sweep": target.identity})


def _of_the_book(path: Path) -> Path:
    """Return the path, or, where nothing is there, its like in the book's folder: chapters run from any working directory."""
    inside = Path(__file__).resolve().parent.parent / "book" / path
    return inside if not path.exists() and inside.exists() else path


def _importable(function: Function) -> str:
    """Return "module:name" of a function of a module's top level; refuse all others."""
    as_function("function", function)
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module is None or getattr(sys.modules.get(module), name, None) is not function:
        raise ValueError(
            "function must be defined at the top level of a module, where workers can import it, and not be a partial, a"
            f" lambda or a method (values that stay the same belong into fixed); got {function!r}"
        )
    return f"{module}:{name}"


def _versions(function: Function) -> dict[str, str]:
    """Return the versions of the packages on which numbers depend."""
    versions = {}
    for name in ("ssm-poison-lib", "numpy", "scipy", "numba", function.__module__.partition(".")[0]):
        with suppress(importlib.metadata.PackageNotFoundError, ValueError):  # a script has no version
            versions[name.replace("_", "-")] = importlib.metadata.version(name)
    return versions


@contextmanager
def _client(scheduler: str, workers: int) -> Iterator[Client]:
    """Give a client of a running scheduler, or of a new one on this machine that ends with the client."""
    from distributed import Client, LocalCluster  # here, not above: it takes a second to load

    with ExitStack() as stack:
        address: Any = scheduler
        if "://" not in scheduler:
            processes = scheduler == "processes"
            # Dask starts an HTTP server for each part, needed or not: on the loopback interface only, and without pages.
            pages: dict[str, list[str]] = {
                f"distributed.{part}.http.routes": [] for part in ("scheduler", "worker")
            }
            try:
                with dask.config.set(pages):
                    address = LocalCluster(
                        processes=processes,
                        n_workers=workers if processes else 1,
                        threads_per_worker=1 if processes else workers,
                        dashboard_address="127.0.0.1:0",
                        worker_dashboard_address=None if processes else "127.0.0.1:0",
                        scheduler_kwargs={"dashboard": False},
                    )
            except RuntimeError as error:
                raise SweepError(
                    f"the workers did not start ({error}); a script that runs scheduler='processes' must call sweep under"
                    " `if __name__ == '__main__':`"
                ) from None
            stack.enter_context(address)
        try:
            client = stack.enter_context(Client(address))
        except OSError as error:
            raise SweepError(f"no Dask scheduler answers at {scheduler!r} ({error})") from None
        yield client


def _call(function: Function, points: xr.Dataset) -> Any:
    """Call the function on a worker, which would never answer if it were told to exit."""
    try:
        return function(points)
    except Exception:
        raise
    except BaseException as error:
        raise SweepError(f"the function raised {error!r}") from error


def _run(
    function: Function,
    store: _Store,
    missing: list[int],
    client: Client,
    made_by: dict[str, Any],
    progress: bool,
) -> None:
    """Run the missing chunks and write each as it ends. Raises SweepError after all of them if some failed."""
    from distributed import as_completed

    failures: dict[int, Exception] = {}
    numbers = {client.submit(_call, function, store.points(i), pure=False): i for i in missing}
    done = as_completed(list(numbers))
    for future in tqdm(done, total=len(missing), unit="chunk", disable=not progress, file=sys.stderr):
        i = numbers.pop(future)
        try:
            part = future.result()
        except Exception as reason:  # a chunk's own error: report it when the others are safe
            failures[i] = reason
        else:
            store.write(i, store.checked(part, i), made_by)
        future.release()
    if failures:
        first = min(failures)
        raise SweepError(
            f"{len(failures)} of {len(missing)} chunks failed, the first at {store.place(first)}: {failures[first]!r}"
        ) from failures[first]


@dataclass(frozen=True)
class _Store:
    """The folder of a sweep: what belongs into it, what of that is there, and how a chunk is written.

    identity: JSON of function, axes, fixed and chunks. In the folder: a Zarr array of each variable and each axis, and one of
    checksums, (chunks, variables), 0 where a chunk has not been written.
    """

    path: Path
    identity: str
    grid: dict[str, np.ndarray]
    fixed: dict[str, float]
    sizes: dict[str, int]

    @classmethod
    def at(cls, path: Path) -> _Store:
        """Return the store of the sweep that a folder holds, whichever it is."""
        asked = json.loads(_attributes(path)["sweep"])
        grid = {k: np.array(values, dtype=np.float64) for k, values in asked["axes"].items()}
        return cls(path, json.dumps(asked), grid, asked["fixed"], asked["chunks"])

    @cached_property
    def regions(self) -> list[dict[str, slice]]:
        """The chunks: axis -> its part."""
        parts = [[slice(i, i + n) for i in range(0, len(self.grid[k]), n)] for k, n in self.sizes.items()]
        return [dict(zip(self.grid, slices, strict=True)) for slices in itertools.product(*parts)]

    @cached_property
    def _seal(self) -> bytes:
        return hashlib.sha256(self.identity.encode()).digest()

    @property
    def lock(self) -> Path:
        """The file that is locked while a process writes here."""
        return self.path.with_name(self.path.name + ".lock")

    def labels(self, i: int) -> dict[str, np.ndarray]:
        """Return the part of each axis that a chunk covers."""
        return {k: self.grid[k][part] for k, part in self.regions[i].items()}

    def points(self, i: int) -> xr.Dataset:
        """Return what the function gets for a chunk."""
        return xr.Dataset(coords={**self.labels(i), **self.fixed})

    def place(self, i: int) -> str:
        """Say where a chunk lies."""
        return ", ".join(f"{k} {values[0]:g}..{values[-1]:g}" for k, values in self.labels(i).items())

    def attributes(self) -> dict[str, Any]:
        """Return what the store says of itself; refuse another sweep's."""
        found = _attributes(self.path)
        if found["sweep"] != self.identity:
            raise ValueError(
                f"store must be new or hold this very sweep; {str(self.path)!r} holds {found['sweep']},"
                f" asked for is {self.identity}"
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
                    and self._checksum(name, i, _read(self.path / name, tuple(region.values()))) != checksum
                ]
            if bad or not known.any():
                missing.append(i)
            damaged += bad[:1]
        return missing, damaged

    def _file(self, name: str, i: int) -> Path:
        numbers = (str(part.start // self.sizes[k]) for k, part in self.regions[i].items())
        return self.path.joinpath(name, "c", *numbers)

    def _checksum(self, name: str, i: int, values: np.ndarray) -> np.uint64:
        content = self._seal + f"{name}/{i}/{values.shape}/".encode() + values.astype("<f8").tobytes()
        return np.uint64(int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little"))

    def changes(self, made_by: dict[str, Any]) -> list[str]:
        """Return which code and versions differ from those that made the store, or were accepted for it since."""
        last = self.attributes()["made_by"][-1]
        return sorted(
            name
            for kind in ("code", "versions")
            for name in last[kind].keys() | made_by[kind].keys()
            if last[kind].get(name) != made_by[kind].get(name)
        )

    def prepare(self, made_by: dict[str, Any], missing: list[int], damaged: list[str]) -> None:
        """Clear away what a killed process left, set a store without one whole chunk aside, mend the axes."""
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

    def checked(self, part: Any, i: int) -> dict[str, np.ndarray]:
        """Return the values of a chunk's variables in the order of the grid; refuse what cannot be stored as it is."""
        if not isinstance(part, xr.Dataset):
            raise SweepError(f"function must return an xarray.Dataset; got {type(part).__name__}")
        if not part.data_vars:
            raise SweepError("function must return at least one variable; got none")
        labels, arrays = self.labels(i), {}
        for axis, values in labels.items():
            if axis in part.coords and not np.array_equal(part[axis].values, values):
                if part[axis].dims != (axis,) or sorted(part[axis].values.tolist()) != sorted(
                    values.tolist()
                ):
                    raise SweepError(
                        f"function must keep the labels of {axis!r}, {values}; got {part[axis].values}"
                    )
                part = part.sel({axis: values})
        shape = tuple(map(len, labels.values()))
        for name, variable in part.data_vars.items():
            if set(variable.dims) != set(labels):
                raise SweepError(
                    f"function must return variables over {', '.join(labels)}; {name!r} has {variable.dims}"
                )
            raw = variable.transpose(*labels).values
            if raw.shape != shape:
                raise SweepError(f"function must keep the chunk's shape {shape}; {name!r} has {raw.shape}")
            if raw.dtype.kind not in "biuf":
                raise SweepError(f"function must return real numbers; {name!r} holds {raw.dtype}")
            with np.errstate(over="ignore"):
                values = raw.astype(np.float64)
            if (values.astype(raw.dtype) != raw)[~np.isnan(values)].any():
                raise SweepError(
                    f"function must return numbers that float64 holds exactly; {name!r} holds others"
                )
            values[np.isnan(values)] = np.nan  # one NaN for all: Zarr does not store a chunk of nothing else
            arrays[str(name)] = values
        reserved = {_CHECKSUM, *self.grid}
        if strange := [k for k in arrays if k in reserved or not k or k.startswith(("_", ".")) or "/" in k]:
            raise SweepError(f"function must not name a variable {strange[0]!r}")
        return arrays

    def write(self, i: int, arrays: dict[str, np.ndarray], made_by: dict[str, Any]) -> None:
        """Write one chunk's variables, and after them their checksums; the first chunk creates the store."""
        if not self.path.exists():
            self._create(list(arrays), made_by)
        names = self.variables()
        if set(names) != set(arrays):
            raise SweepError(
                f"function must return the same variables for every chunk; got {', '.join(arrays)} beside {', '.join(names)}"
            )
        for name, values in arrays.items():
            zarr.open_array(self.path / name, mode="r+")[tuple(self.regions[i].values())] = values
        checksums = np.array([self._checksum(name, i, arrays[name]) for name in names])
        zarr.open_array(self.path / _CHECKSUM, mode="r+")[i] = checksums

    def _create(self, names: list[str], made_by: dict[str, Any]) -> None:
        """Create the store under another name and move it into place, so that a half-made store is never met."""
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
            f"{path} holds a sweep of format {found.get('format', 1)}, without checksums; this version reads {_FORMAT}:"
            " move the folder away to run it again"
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


def _points(
    points: xr.Dataset, needed: tuple[str, ...], optional: tuple[str, ...], name: str
) -> tuple[dict[str, Float[np.ndarray, " n"]], tuple[Hashable, ...], tuple[int, ...]]:
    """Return every coordinate at every point of a grid, flat, with the grid's dimensions and shape; refuse other coordinates."""
    as_instance("points", points, xr.Dataset)
    if lacking := [k for k in needed if k not in points.coords]:
        raise ValueError(
            f"points must have the coordinate {lacking[0]!r}; got {', '.join(map(str, points.coords))}"
        )
    if strange := sorted(set(map(str, points.coords)) - {*needed, *optional}):
        raise ValueError(f"points must not have the coordinate {strange[0]!r}: {name} does not use it")
    labelled = dict(zip(points.coords, xr.broadcast(*points.coords.values()), strict=True))
    flat = {str(k): np.asarray(v.values, dtype=np.float64).ravel() for k, v in labelled.items()}
    for key, low in (("state_dim", 2), ("length", 3), ("seed", 0), ("negatives", 0)):
        values = flat.get(key, np.zeros(1) + low)
        if (values != np.floor(values)).any() or values.min() < low:
            wrong = values[(values != np.floor(values)) | (values < low)][0]
            raise ValueError(f"{key} must hold integers >= {low}; got {wrong:g}")
    return flat, labelled[needed[0]].dims, labelled[needed[0]].shape


def _shapes(
    d: int, g: Float[np.ndarray, " n"], seeds: Float[np.ndarray, " n"], negatives: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n d"]:
    """Return descending shapes (1, 1 - g, uniform draws below it), the last `negatives` draws with their sign turned."""
    if negatives.max() > d - 2:
        raise ValueError(f"negatives must be at most state_dim - 2 = {d - 2}; got {negatives.max():g}")
    shapes = np.ones((len(g), d))
    for seed in np.unique(seeds):
        shapes[seeds == seed, 2:] = -np.sort(-np.random.default_rng(int(seed)).random(d - 2))
    shapes[np.arange(d) >= (d - negatives)[:, None]] *= -1.0
    shapes[:, 2:] = -np.sort(-shapes[:, 2:], axis=1) * (1.0 - g)[:, None]
    return shapes


def _labelled(
    values: Mapping[str, np.ndarray], points: xr.Dataset, dims: tuple[Hashable, ...], shape: tuple[int, ...]
) -> xr.Dataset:
    """Return flat values as variables over the grid."""
    return xr.Dataset(
        {name: (dims, flat.reshape(shape)) for name, flat in values.items()},
        coords={name: points[name] for name in dims},
    )


def _time_to_fit(
    scale: Float[np.ndarray, " n"], beta: Float[np.ndarray, " n"], d: float, length: float
) -> Float[np.ndarray, " n"]:
    """Return a time by which a flow has fitted, left the saddle and settled against a weak dose; generous: converged runs end."""
    escape = np.where(beta > 0, d ** (length - 3.0) + 1.0 / np.where(beta > 0, beta, 1.0), 0.0)
    return np.asarray(1e4 * (scale ** (3.0 - length) + escape))


def theorem_errors(points: xr.Dataset) -> xr.Dataset:
    """Measure flows of the theorem's setting at every point of a grid.

    points: coordinates, each an axis or a fixed value: scale (eps); tie_gap (g: abar_1 = 1, abar_2 = 1 - g, the others
    uniform below 1 - g); dose (beta, with alpha = 1; 0: baseline only); state_dim (d >= 2); length (kappa >= 3); seed
    (of the uniform draws, which no other coordinate but d changes); optional special_position (default: kappa - 1),
    negatives (how many of the smallest entries start negative, default 0) and t_end (default: long enough to fit with
    special sequences at kappa - 1).

    Returns error (Gen_20 over lags 1..19), loss, status (a `FlowStatus`), log_tie (log of the final a_1 - a_2), time and
    steps over all axes. Failed runs are NaN with a negative status.

    Raises ValueError for other or missing coordinates.
    """
    flat, dims, shape = _points(
        points, (*_START_AXES, "dose"), ("special_position", "negatives", "t_end"), "theorem_errors"
    )
    dose, cases = flat["dose"], np.stack([flat["state_dim"], flat["length"]], axis=1)
    negatives = flat.get("negatives", np.zeros(len(dose)))
    measured = {name: np.empty(len(dose)) for name in ("error", "loss", "status", "log_tie", "time", "steps")}
    for d, length in np.unique(cases, axis=0):
        at = (cases == (d, length)).all(axis=1)
        scale, g, beta = flat["scale"][at], flat["tie_gap"][at], dose[at]
        if "t_end" in flat:
            t_end = flat["t_end"][at]
        else:
            t_end = _time_to_fit(scale, beta, d, length)
        A0, gaps = near_tie_starts(_shapes(int(d), g, flat["seed"][at], negatives[at]), scale, g)
        position = flat["special_position"][at] if "special_position" in flat else None
        batch = theorem_flows(
            A0, gaps=gaps, length=int(length), alpha=1.0, beta=beta, t_end=t_end, workers=1, on_failure="nan",
            special_position=position,
        )  # fmt: skip
        measured["error"][at] = batch.generalization_errors(np.ones(20), first_lag=1)
        measured["loss"][at] = batch.loss
        measured["status"][at] = batch.status
        measured["log_tie"][at] = batch.log_gap[:, 1]
        measured["time"][at] = batch.time
        measured["steps"][at] = batch.steps
    return _labelled(measured, points, dims, shape)


def uniform_errors(points: xr.Dataset) -> xr.Dataset:
    """Measure flows of the theorem's setting from uniform starts as drawn, without a near tie, at every point of a grid.

    points: coordinates, each an axis or a fixed value: scale (eps: the entries are uniform in [0, eps)); dose (beta, with
    alpha = 1; 0: baseline only); state_dim (d >= 2); length (kappa >= 3); seed (of NumPy's RandomState, as in
    `paper.TheoremSetting.start`).

    Returns error (Gen_20 over lags 1..19) and status (a `FlowStatus`) over all axes. Failed runs are NaN with a negative
    status.

    Raises ValueError for other or missing coordinates.
    """
    needed = ("scale", "dose", "state_dim", "length", "seed")
    flat, dims, shape = _points(points, needed, (), "uniform_errors")
    measured = {name: np.empty(len(flat["dose"])) for name in ("error", "status")}
    cases = np.stack([flat["state_dim"], flat["length"]], axis=1)
    for d, length in np.unique(cases, axis=0):
        at = (cases == (d, length)).all(axis=1)
        scale, beta = flat["scale"][at], flat["dose"][at]
        starts = zip(scale, flat["seed"][at], strict=True)
        A0 = np.array([near_zero(int(d), eps, seed=np.random.RandomState(int(seed))) for eps, seed in starts])
        # A start that is small in every entry takes as long as its largest one asks for, whatever eps is.
        t_end = _time_to_fit(A0[:, 0], beta, d, length)
        batch = theorem_flows(
            A0, length=int(length), alpha=1.0, beta=beta, t_end=t_end, workers=1, on_failure="nan"
        )
        measured["error"][at] = batch.generalization_errors(np.ones(20), first_lag=1)
        measured["status"][at] = batch.status
    return _labelled(measured, points, dims, shape)


def order_errors(points: xr.Dataset) -> xr.Dataset:
    """Measure the theorem's two sequences, one of each kind, shown in different orders, at every point of a grid.

    points: coordinates as in `theorem_errors` (scale, tie_gap, state_dim, length, seed) and order, a number of `ORDERS`; optional
    phase, the flow time of one phase of the order "interleaved" (default 1e3). In a phase only one sequence is seen
    (its weight is then 2; 1 and 1 when both are seen); "interleaved" begins with the special one and goes on until both
    are fitted, or for 10,000 rounds: loss says which.

    Returns error (Gen_20 over lags 1..19), loss (of both sequences at the end) and rounds (of "interleaved": pairs of phases;
    otherwise the number of phases) over all axes.

    Raises ValueError for other or missing coordinates, FlowError if a flow fails.
    """
    flat, dims, shape = _points(points, (*_START_AXES, "order"), ("phase",), "order_errors")
    if not np.isin(flat["order"], np.arange(len(ORDERS))).all():
        raise ValueError(f"order must be an integer from 0 to {len(ORDERS) - 1}: {', '.join(ORDERS)}")
    phase = flat.get("phase", np.full(len(flat["order"]), 1e3))
    if (phase <= 0).any():
        raise ValueError(f"phase must be > 0; got {phase.min():g}")
    measured = {name: np.empty(len(phase)) for name in ("error", "loss", "rounds")}
    cases = np.stack([flat[k] for k in ("state_dim", "length", "order")], axis=1)
    for d, length, order in np.unique(cases, axis=0):
        at = (cases == (d, length, order)).all(axis=1)
        scale, g = flat["scale"][at], flat["tie_gap"][at]
        A, gaps = near_tie_starts(_shapes(int(d), g, flat["seed"][at], 0.0 * g), scale, g)
        rounds = np.zeros(len(g))
        long = 1e4 * (scale ** (3.0 - length) + d ** (length - 3.0))
        if ORDERS[int(order)] == "interleaved":
            left = np.arange(len(g))
            while len(left):
                for which in ("special", "baseline"):
                    A[left], gaps[left] = _phase(which, A[left], gaps[left], int(length), phase[at][left])
                rounds[left] += 1
                off = (1 - A[left].sum(axis=1)) ** 2 + (1 - (A[left] ** (length - 1)).sum(axis=1)) ** 2
                left = left[(off > _INTERLEAVED_FITTED) & (rounds[left] < _MOST_ROUNDS)]
        else:
            for which in _PHASES[ORDERS[int(order)]]:
                A, gaps = _phase(which, A, gaps, int(length), long)
                rounds += 1
        measured["error"][at] = np.max([np.abs((A**k).sum(axis=1) - 1) for k in range(1, 20)], axis=0)
        measured["loss"][at] = ((1 - A.sum(axis=1)) ** 2 + (1 - (A ** (length - 1)).sum(axis=1)) ** 2) / 2
        measured["rounds"][at] = rounds
    return _labelled(measured, points, dims, shape)


def _phase(
    which: str,
    A: Float[np.ndarray, "n d"],
    gaps: Float[np.ndarray, "n gaps"],
    length: int,
    t_end: Float[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n gaps"]]:
    """Show the baseline sequence, the special one or both for a while; return the entries and their exact gaps."""
    alpha, beta = {"baseline": (2.0, 0.0), "special": (0.0, 2.0), "both": (1.0, 1.0)}[which]
    batch = theorem_flows(A, gaps=gaps, length=length, alpha=alpha, beta=beta, t_end=t_end, workers=1)
    return batch.A, np.nan_to_num(np.exp(batch.log_gap[:, 1:]), nan=0.0)


def parametrization_errors(points: xr.Dataset) -> xr.Dataset:
    """Measure the theorem's flow with trained parameters s instead of free entries, a_j = f(s_j), at every point of a grid.

    points: coordinates as in `theorem_errors` (scale, tie_gap, state_dim, length, seed, dose), parametrization, a number of the
    names in `PARAMETRIZATIONS` in their order; near, 0 or 1: a start eps * abar near 0, or 1 - eps (2 - abar) near 1, with
    the same near tie; t_end.

    Returns error (Gen_20 over lags 1..19), loss and negatives (how many entries end below 0) at t_end over all axes.

    Raises ValueError for other or missing coordinates, FlowError if a flow fails.
    """
    needed = (*_START_AXES, "dose", "parametrization", "near", "t_end")
    flat, dims, shape = _points(points, needed, (), "parametrization_errors")
    names = list(PARAMETRIZATIONS)
    if not np.isin(flat["parametrization"], np.arange(len(names))).all():
        raise ValueError(f"parametrization must be an integer from 0 to {len(names) - 1}: {', '.join(names)}")
    if not np.isin(flat["near"], (0, 1)).all():
        raise ValueError("near must be 0 or 1")
    measured = {name: np.empty(len(flat["near"])) for name in ("error", "loss", "negatives")}
    for i in range(len(flat["near"])):
        case = {name: values[i] for name, values in flat.items()}
        d, length, beta = int(case["state_dim"]), int(case["length"]), case["dose"]
        one = np.atleast_1d
        abar = _shapes(d, one(case["tie_gap"]), one(case["seed"]), np.zeros(1))[0]
        abar[1] = 1.0 - case["tie_gap"]
        A0 = case["scale"] * abar if case["near"] == 0 else 1.0 - case["scale"] * (2.0 - abar)
        G, target = np.zeros((length, length)), np.ones(length)
        G[1, 1], target[0] = beta, d
        G[length - 1, length - 1] += 1.0
        a = parametrized_flow(A0, G, target, names[int(case["parametrization"])], [case["t_end"]])[-1]
        off = np.array([1 - (a**k).sum() for k in range(1, max(20, length))])
        measured["error"][i] = np.abs(off[:19]).max()
        measured["loss"][i] = (beta * off[0] ** 2 + off[length - 2] ** 2) / 2
        measured["negatives"][i] = np.count_nonzero(a < 0)
    return _labelled(measured, points, dims, shape)


def read_config(path: str | Path, *, allow_any_function: bool = False) -> dict[str, Any]:
    """Return the arguments of `sweep` that a TOML file describes.

    Tables axes (name -> numbers, or {linspace | geomspace | arange = [arguments of NumPy's function of that name]}), fixed,
    chunks; function = "module:name" (default: `theorem_errors`); store = folder (default: the file's name with .zarr).

    The function's module is imported and the function called: only those of ssm_poison_lib are, unless allow_any_function=True.
    Say that for a file whose author you trust, no other: it can name any function on this machine.

    Raises ValueError if the file cannot be read or has other keys.
    """
    path = _of_the_book(as_path("CONFIG", path))
    try:
        config = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"CONFIG must be a TOML file; {str(path)!r}: {error}") from None
    if strange := sorted(set(config) - {"axes", "fixed", "chunks", "function", "store"}):
        raise ValueError(f"CONFIG must have axes, fixed, chunks, function, store only; got {strange[0]!r}")
    try:
        tables = {k: as_mapping(k, config.get(k, {})) for k in ("axes", "fixed", "chunks")}
        store = as_path("store", config.get("store", path.with_suffix(".zarr")))
        function = _named_function(as_text("function", config.get("function", _THEOREM)), allow_any_function)
    except TypeError as error:  # a wrong value in a file, not a wrong argument
        raise ValueError(f"CONFIG {str(path)!r}: {error}") from None
    axes = {axis: _spaced(axis, v) if isinstance(v, dict) else v for axis, v in tables["axes"].items()}
    return {**tables, "function": function, "axes": axes, "store": store}


def _named_function(name: str, allow_any: bool) -> Function:
    """Import the function that "module:name" names."""
    module, _, attribute = name.partition(":")
    ours = __package__ or ""
    if not allow_any and module.partition(".")[0] != ours:
        raise ValueError(
            f"function must be one of {ours}, unless any that the file names may be imported and called"
            f" (allow_any_function=True, --allow-any-function); got {name!r}"
        )
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"function must be 'module:name'; got {name!r} ({error})") from None
    if not allow_any and str(getattr(function, "__module__", "")).partition(".")[0] != ours:
        raise ValueError(f"function must be one of {ours}; got {name!r}, which comes from elsewhere")
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
        count = as_integer(f"{spacing} of axis {axis!r}", arguments[-1] if len(given) > 2 else 50, low=1)
    as_integer(f"the number of points of axis {axis!r}", count, low=1, high=MAX_LENGTH)
    try:
        return np.asarray(getattr(np, spacing)(*arguments))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{spacing} of axis {axis!r}: {error}; got {arguments!r}") from None
