"""Sweeps: one function over a grid of named axes, in chunks that Dask schedules and Zarr keeps as they finish.

Only glue: xarray labels the grid, dask.distributed runs the chunks (threads, processes, or a cluster that is already there), Zarr
stores them. A sweep that was interrupted goes on with the chunks that its store lacks.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import itertools
import json
import math
import sys
import tomllib
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from distributed import Client, as_completed
from jaxtyping import Float
from tqdm import tqdm

from ssm_poison_lib._checks import ArrayLike, as_array, as_choice, as_integer, as_scalar
from ssm_poison_lib.flows import near_tie_starts, theorem_flows
from ssm_poison_lib.parametrizations import PARAMETRIZATIONS, parametrized_flow
from ssm_poison_lib.ssm import near_zero

__all__ = [
    "ORDERS",
    "SweepError",
    "add_sweep_command",
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
_FINISHED = "finished"  # name of the stored array that tells which chunks are complete
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
    """A chunk failed; the others are in the store."""


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
) -> xr.Dataset:
    """Run `function` on every point of a grid and return the results as labelled arrays.

    function: gets a Dataset whose coordinates are a chunk of each axis (1-d) and the fixed values (0-d), and returns a
    Dataset with variables over all axes; it must be importable on the workers. axes: name -> (m,) numbers, in the order of
    the result's dimensions. store: folder of the Zarr store, new or of the same sweep: then only chunks that it lacks are
    run. chunks: name -> chunk length of an axis (default: the whole axis). scheduler: "threads" or "processes" of this
    machine, or the address of a running Dask scheduler. workers: number of threads or processes (default: one per core).

    Returns the stored Dataset (float64, opened lazily); its attribute chunks_run counts the chunks that this call has run.

    Raises ValueError for bad arguments or the store of another sweep, SweepError if chunks fail (after the others ended).
    """
    grid = {name: as_array(f"axes[{name!r}]", values, ndim=1) for name, values in axes.items()}
    if not grid:
        raise ValueError("axes must name at least one axis")
    fixed = {name: as_scalar(f"fixed[{name!r}]", value) for name, value in (fixed or {}).items()}
    if twice := sorted(set(grid) & set(fixed)):
        raise ValueError(f"fixed must not name an axis; got {twice[0]!r}")
    lengths = {name: len(values) for name, values in grid.items()}
    chunks = dict(chunks or {})
    if strange := sorted(set(chunks) - set(grid)):
        raise ValueError(f"chunks must name axes ({', '.join(grid)}); got {strange[0]!r}")
    for name, size in chunks.items():
        as_integer(f"chunks[{name!r}]", size, low=1)
    sizes = {name: min(chunks.get(name, length), length) for name, length in lengths.items()}
    if workers is not None:
        workers = as_integer("workers", workers, low=1)
    if "://" not in scheduler:
        as_choice("scheduler", scheduler, ("threads", "processes"))
    regions = [
        dict(zip(grid, slices, strict=True))
        for slices in itertools.product(
            *([slice(i, i + sizes[k]) for i in range(0, lengths[k], sizes[k])] for k in grid)
        )
    ]
    path = Path(store)
    identity = json.dumps(
        {
            "function": f"{function.__module__}:{function.__qualname__}",
            "axes": {k: v.tolist() for k, v in grid.items()},
            "fixed": fixed,
            "chunks": sizes,
        }
    )
    missing = list(range(len(regions)))
    if path.exists():
        missing = _missing(path, identity)

    failures: list[tuple[int, Exception]] = []
    if missing:
        points = [xr.Dataset(coords={**{k: grid[k][region[k]] for k in grid}, **fixed}) for region in regions]
        with _client(scheduler, workers) as client:
            numbers = {
                client.submit(function, points[i], key=f"{path.name}-{i}-{id(points)}", pure=False): i
                for i in missing
            }
            done = as_completed(list(numbers))
            for future in tqdm(done, total=len(missing), unit="chunk", disable=not progress, file=sys.stderr):
                i = numbers.pop(future)
                try:
                    part = future.result()
                except Exception as reason:  # a chunk's own error: report it when the others are safe
                    failures.append((i, reason))
                else:
                    _write(path, identity, part, grid, sizes, regions, i)
                future.release()
    if failures:
        i, error = min(failures, key=lambda failure: failure[0])
        where = ", ".join(f"{k} {grid[k][s][0]:g}..{grid[k][s][-1]:g}" for k, s in regions[i].items())
        raise SweepError(
            f"{len(failures)} of {len(missing)} chunks failed, the first at {where}: {error!r}"
        ) from error
    result = xr.open_zarr(path, consolidated=False, chunks=None).drop_vars(_FINISHED)
    return result.assign_attrs(chunks_run=len(missing))


def _client(scheduler: str, workers: int | None) -> Client:
    """Return a client of a running scheduler, or of a new one on this machine that ends with the client."""
    if "://" in scheduler:
        return Client(scheduler)
    if scheduler == "threads":
        return Client(processes=False, n_workers=1, threads_per_worker=workers, dashboard_address=":0")
    return Client(processes=True, n_workers=workers, threads_per_worker=1, dashboard_address=":0")


def _missing(path: Path, identity: str) -> list[int]:
    """Return the numbers of the chunks that a store lacks; refuse the store of another sweep."""
    try:
        known = zarr.open_group(path, mode="r").attrs["sweep"]
        finished = np.asarray(zarr.open_array(path / _FINISHED, mode="r")[:])
    except (FileNotFoundError, KeyError) as error:
        raise ValueError(f"store must be new or hold a sweep; got {str(path)!r} ({error!r})") from None
    if known != identity:
        raise ValueError(
            f"store must be new or hold this very sweep; {str(path)!r} holds {known}, asked for is {identity}"
        )
    return np.flatnonzero(np.nan_to_num(finished) == 0).tolist()


def _write(
    path: Path,
    identity: str,
    part: xr.Dataset,
    grid: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    regions: list[dict[str, slice]],
    i: int,
) -> None:
    """Write one chunk's variables, and after them that it is finished; the first chunk creates the store."""
    shape = tuple(len(grid[k][regions[i][k]]) for k in grid)
    arrays = {}
    for name, variable in part.data_vars.items():
        if set(variable.dims) != set(grid):
            raise SweepError(
                f"function must return variables over {', '.join(grid)}; {name!r} has {variable.dims}"
            )
        values = np.asarray(variable.transpose(*grid).values, dtype=np.float64)
        if values.shape != shape:
            raise SweepError(f"function must keep the chunk's shape {shape}; {name!r} has {values.shape}")
        arrays[str(name)] = values
    if not path.exists():
        _create(path, identity, list(arrays), grid, sizes, len(regions))
    for name, values in arrays.items():
        zarr.open_array(path / name, mode="r+")[tuple(regions[i].values())] = values
    zarr.open_array(path / _FINISHED, mode="r+")[i] = 1.0


def _create(
    path: Path,
    identity: str,
    names: list[str],
    grid: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    count: int,
) -> None:
    """Create the store under another name and move it into place, so that a half-made store is never met."""
    new = path.with_name(path.name + ".new")
    shape = tuple(len(v) for v in grid.values())
    packages = ("ssm-poison-lib", "numpy", "numba")
    group = zarr.open_group(
        new,
        mode="w",
        attributes={"sweep": identity, "versions": {k: importlib.metadata.version(k) for k in packages}},
    )
    for name in names:
        group.create_array(
            name,
            shape=shape,
            chunks=tuple(sizes[k] for k in grid),
            dtype="float64",
            fill_value=math.nan,
            dimension_names=tuple(grid),
        )
    for name, values in grid.items():
        group.create_array(name, data=values, dimension_names=(name,))
    group.create_array(
        _FINISHED, shape=(count,), chunks=(1,), dtype="float64", fill_value=0.0, dimension_names=("chunk",)
    )
    new.rename(path)


def _points(
    points: xr.Dataset, needed: tuple[str, ...], optional: tuple[str, ...], name: str
) -> tuple[dict[str, Float[np.ndarray, " n"]], tuple[Hashable, ...], tuple[int, ...]]:
    """Return every coordinate at every point of a grid, flat, with the grid's dimensions and shape; refuse other coordinates."""
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
        A0 = [near_zero(int(d), eps, seed=np.random.RandomState(int(seed))) for eps, seed in starts]
        batch = theorem_flows(
            np.array(A0), length=int(length), alpha=1.0, beta=beta, t_end=_time_to_fit(scale, beta, d, length),
            workers=1, on_failure="nan",
        )  # fmt: skip
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


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the arguments of `sweep` that a TOML file describes.

    Tables axes (name -> numbers, or {linspace | geomspace | arange = [arguments of NumPy's function of that name]}), fixed,
    chunks; function = "module:name" (default: `theorem_errors`); store = folder (default: the file's name with .zarr).

    Raises ValueError if the file cannot be read or has other keys.
    """
    path = Path(path)
    try:
        config = tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"CONFIG must be a TOML file; {str(path)!r}: {error}") from None
    if strange := sorted(set(config) - {"axes", "fixed", "chunks", "function", "store"}):
        raise ValueError(f"CONFIG must have axes, fixed, chunks, function, store only; got {strange[0]!r}")
    module, _, name = config.get("function", _THEOREM).partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"function must be 'module:name'; got {config['function']!r} ({error})") from None
    axes: dict[str, ArrayLike] = {}
    for axis, values in config.get("axes", {}).items():
        if isinstance(values, dict):
            spacing, arguments = next(iter(values.items()), ("", []))
            as_choice(f"spacing of axis {axis!r}", spacing, ("linspace", "geomspace", "arange"))
            values = getattr(np, spacing)(*arguments)
        axes[axis] = values
    return {
        "function": function,
        "axes": axes,
        "store": Path(config.get("store", path.with_suffix(".zarr"))),
        "fixed": config.get("fixed", {}),
        "chunks": config.get("chunks", {}),
    }


def add_sweep_command(subparsers: Any) -> None:
    """Add `sweep CONFIG` to the subparsers of an argparse parser; its function is the parser's default `run`."""
    parser = subparsers.add_parser(
        "sweep",
        help="run a grid of settings in chunks that are kept as they finish",
        description=f"CONFIG is a TOML file. {(read_config.__doc__ or '').split(chr(10) * 2)[1].strip()}",
    )
    parser.add_argument("config", metavar="CONFIG", help="TOML file that describes the grid")
    parser.add_argument(
        "--scheduler",
        default="threads",
        metavar="WHERE",
        help="'threads' (default) or 'processes' of this machine, or the address of a Dask scheduler",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="threads or processes (default: one per core)"
    )
    parser.set_defaults(run=_run_command)


def _run_command(options: argparse.Namespace) -> int:
    """Run one sweep and print what it holds; the exit status is 1 if chunks failed."""
    config = read_config(options.config)
    try:
        result = sweep(**config, scheduler=options.scheduler, workers=options.workers, progress=True)
    except SweepError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{config['store']}: {result.chunks_run} chunks run now, {dict(result.sizes)}")
    for name, variable in result.data_vars.items():
        values = variable.values
        print(
            f"  {name}: median {np.nanmedian(values):.4g}, NaN in {np.isnan(values).sum()} of {values.size}"
        )
    return 0
