"""The points of a grid as a sweep's function gets them: checked and flat, and labelled again."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import xarray as xr
from jaxtyping import Float

from ssm_poison_lib._checks import as_instance

__all__ = ["flattened", "labelled", "near_tie_shapes"]


def flattened(
    points: xr.Dataset, needed: tuple[str, ...], optional: tuple[str, ...], name: str
) -> tuple[dict[str, Float[np.ndarray, " n"]], tuple[Hashable, ...], tuple[int, ...]]:
    """Return every coordinate at every point of a grid, flat, and the grid's dims and shape."""
    as_instance("points", points, xr.Dataset)
    if lacking := [k for k in needed if k not in points.coords]:
        raise ValueError(
            f"points must have the coordinate {lacking[0]!r}; got"
            f" {', '.join(map(str, points.coords))}"
        )
    if strange := sorted(set(map(str, points.coords)) - {*needed, *optional}):
        raise ValueError(
            f"points must not have the coordinate {strange[0]!r}: {name} does not use it"
        )
    axes = dict(zip(points.coords, xr.broadcast(*points.coords.values()), strict=True))
    flat = {str(k): np.asarray(v.values, dtype=np.float64).ravel() for k, v in axes.items()}
    for key, low in (("state_dim", 2), ("length", 3), ("seed", 0), ("negatives", 0)):
        values = flat.get(key, np.zeros(1) + low)
        if (values != np.floor(values)).any() or values.min() < low:
            wrong = values[(values != np.floor(values)) | (values < low)][0]
            raise ValueError(f"{key} must hold integers >= {low}; got {wrong:g}")
    return flat, axes[needed[0]].dims, axes[needed[0]].shape


def near_tie_shapes(
    d: int,
    g: Float[np.ndarray, " n"],
    seeds: Float[np.ndarray, " n"],
    negatives: Float[np.ndarray, " n"],
) -> Float[np.ndarray, "n d"]:
    """Return descending shapes (1, 1 - g, uniform draws below it).

    Args:
        negatives: so many of the smallest draws have their sign turned.
    """
    if negatives.max() > d - 2:
        raise ValueError(
            f"negatives must be at most state_dim - 2 = {d - 2}; got {negatives.max():g}"
        )
    shapes = np.ones((len(g), d))
    for seed in np.unique(seeds):
        shapes[seeds == seed, 2:] = -np.sort(-np.random.default_rng(int(seed)).random(d - 2))
    shapes[np.arange(d) >= (d - negatives)[:, None]] *= -1.0
    shapes[:, 2:] = -np.sort(-shapes[:, 2:], axis=1) * (1.0 - g)[:, None]
    return shapes


def labelled(
    values: Mapping[str, np.ndarray],
    points: xr.Dataset,
    dims: tuple[Hashable, ...],
    shape: tuple[int, ...],
) -> xr.Dataset:
    """Return flat values as variables over the grid."""
    return xr.Dataset(
        {name: (dims, flat.reshape(shape)) for name, flat in values.items()},
        coords={name: points[name] for name in dims},
    )
