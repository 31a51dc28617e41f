"""Input checks that name the argument, the value that came, and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from jaxtyping import Float

__all__ = ["ArrayLike", "as_array", "as_choice", "as_integer", "as_positions", "as_rng", "as_scalar"]

# Narrower than NumPy's ArrayLike on purpose: text, bytes and objects are no arrays of real numbers.
ArrayLike = np.ndarray | np.generic | Sequence[Any] | float | int
Seed = int | np.random.Generator | np.random.RandomState


def as_array(
    name: str, value: ArrayLike, *, ndim: int | tuple[int, ...], last: int | None = None, frozen: bool = False
) -> Float[np.ndarray, "..."]:
    """Return `value` as a finite, non-empty float64 array (a read-only copy if `frozen`).

    ndim: the number(s) of axes allowed; last: the length that the last axis must have, if any.
    Raises ValueError for a wrong number of axes, a wrong length, an empty array, complex numbers, NaN or infinity.
    """
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    try:
        raw = np.asarray(value)
        if raw.dtype.kind not in "biuf":
            raise TypeError(f"dtype {raw.dtype}")
        array = np.array(raw, dtype=np.float64) if frozen else np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of real numbers; got {value!r} ({error})") from None
    if array.ndim not in allowed:
        axes = " or ".join(str(n) for n in allowed)
        raise ValueError(f"{name} must have {axes} axes; got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty; got shape {array.shape}")
    if last is not None and array.shape[-1] != last:
        raise ValueError(f"{name} must have length {last} along its last axis; got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite; got {array[~np.isfinite(array)][0]} among its entries")
    if frozen:
        array.setflags(write=False)
    return array


def as_integer(name: str, value: Any, *, low: int, high: int | None = None) -> int:
    """Return `value` as an int in low..high (no upper limit if None); bools and fractions are refused."""
    allowed = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be {allowed}; got {value!r}")
    number = int(value)
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {allowed}; got {value!r}")
    return number


def as_scalar(name: str, value: Any, *, low: float = -math.inf, strict: bool = False) -> float:
    """Return `value` as a finite float that is >= low (> low if `strict`)."""
    bound = "" if low == -math.inf else f" {'>' if strict else '>='} {low:g}"
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number{bound}; got {value!r}")
    if value < low or (strict and value == low):
        raise ValueError(f"{name} must be a finite number{bound}; got {value!r}")
    return float(value)


def as_choice(name: str, value: Any, allowed: Collection[str]) -> str:
    """Return `value` if it is one of the `allowed` names."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(sorted(allowed))}; got {value!r}")
    return value


def as_positions(name: str, value: Any, *, length: int) -> tuple[int, ...]:
    """Return 1-based positions as a tuple of distinct integers from 1 to `length`."""
    try:
        items = tuple(value)
    except TypeError:
        raise ValueError(
            f"{name} must be positions from 1 to {length}, such as (1,); got {value!r}"
        ) from None
    positions = tuple(as_integer(f"each entry of {name}", item, low=1, high=length) for item in items)
    if not positions or len(set(positions)) < len(positions):
        raise ValueError(f"{name} must name at least one position, each once; got {value!r}")
    return positions


def as_rng(name: str, value: Any) -> np.random.Generator | np.random.RandomState:
    """Return a random source: an integer seeds `numpy.random.default_rng`; a Generator or RandomState is used as it is."""
    if isinstance(value, np.random.Generator | np.random.RandomState):
        return value
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0:
        return np.random.default_rng(int(value))
    raise ValueError(f"{name} must be an integer >= 0, a numpy Generator or a RandomState; got {value!r}")
