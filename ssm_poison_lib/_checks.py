"""Input checks that name the argument, the value that came, and what is allowed.

A value that cannot be used is a ValueError; an object of another class where the library's own (a
student, a training set, a setting), a mapping or a function belongs is a TypeError.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from jaxtyping import Complex, Float

__all__ = [
    "MAX_COUNT",
    "MAX_ENTRIES",
    "MAX_LENGTH",
    "ArrayLike",
    "Seed",
    "as_array",
    "as_choice",
    "as_complex",
    "as_flag",
    "as_function",
    "as_instance",
    "as_integer",
    "as_mapping",
    "as_path",
    "as_positions",
    "as_rng",
    "as_scalar",
    "as_seed",
    "as_text",
    "as_workers",
    "available_cores",
    "contiguous",
    "in_range",
    "shown",
]

# Narrower than NumPy's ArrayLike on purpose: text, bytes and objects are no arrays of real numbers.
ArrayLike = np.ndarray | np.generic | Sequence[Any] | float | int
Seed = int | np.random.Generator | np.random.RandomState
T = TypeVar("T")

# Stated bounds, so that a slip of the keyboard (a count of 10**12) is an error and not a machine
# without memory.
MAX_LENGTH = 1_000_000
"""Largest sequence length, number of lags and state dimension."""
MAX_COUNT = 1_000_000_000
"""Largest number of steps, epochs or runs."""
MAX_ENTRIES = 2**28
"""Most entries of one array that a function makes by itself: 2 GiB of float64."""
_MAX_WORKERS = 1024
_MAX_SEED = 2**32 - 1


def shown(value: object) -> str:
    """Return the repr of a value for a message, cut where it is long."""
    try:
        text = repr(value)
    except Exception:  # a number of too many digits, or an object that cannot be shown
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:160]} ... ({len(text)} characters)"


def _refused_parts(value: object, depth: int = 0) -> str:
    """Say why a value, or what lists hold, would lose something on its way into an array; empty if
    nothing is lost.
    """
    if isinstance(value, np.ma.MaskedArray):
        masked = int(np.ma.getmaskarray(value).sum())
        return f"{masked} masked entries: fill them first, or leave them out" if masked else ""
    if getattr(value, "requires_grad", False) is True:
        return "a tensor that requires gradients: call detach() first"
    if isinstance(value, list | tuple) and depth < 8:
        for item in value:
            if reason := _refused_parts(item, depth + 1):
                return reason
    return ""


def _converted(name: str, value: Any, kinds: str, dtype: type[Any]) -> np.ndarray:
    """Return `value` as an array of `dtype` if NumPy sees one of these kinds of numbers in it,
    whatever its shape.
    """
    numbers = "complex numbers" if "c" in kinds else "real numbers"
    if reason := _refused_parts(value):
        raise ValueError(f"{name} must be an array of {numbers}; got {reason}")
    try:
        raw = np.asarray(value)
        if raw.dtype.kind not in kinds:
            raise TypeError(f"dtype {raw.dtype}")
        # a long double beyond float64 becomes inf, refused by the callers
        with np.errstate(over="ignore"):
            return np.asarray(raw, dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{name} must be an array of {numbers}; got {shown(value)} ({error})"
        ) from None


def as_array(
    name: str,
    value: ArrayLike,
    *,
    ndim: int | tuple[int, ...],
    last: int | None = None,
    frozen: bool = False,
) -> Float[np.ndarray, "..."]:
    """Return `value` as a finite, non-empty float64 array (a read-only copy if `frozen`).

    Args:
        ndim: the number(s) of axes allowed
        last: the length that the last axis must have, if any. A masked array is taken if nothing in
            it is masked.

    Raises:
        ValueError: for a wrong number of axes, a wrong length, an empty array, truth values,
            complex numbers, text, objects, NaN or infinity, masked entries, or a tensor that
            requires gradients.
    """
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    array = _converted(name, value, "iuf", np.float64)
    if frozen:
        array = np.array(array)
    if array.ndim not in allowed:
        axes = " or ".join(str(n) for n in allowed)
        raise ValueError(f"{name} must have {axes} axes; got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty; got shape {array.shape}")
    if last is not None and array.shape[-1] != last:
        raise ValueError(
            f"{name} must have length {last} along its last axis; got shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be finite; got {array[~np.isfinite(array)][0]} among its entries"
        )
    if frozen:
        array.setflags(write=False)
    return array


def as_complex(name: str, value: Any) -> Complex[np.ndarray, "..."]:
    """Return `value` as a finite complex128 array of any shape; ValueErrors as for `as_array`."""
    array = _converted(name, value, "iufc", np.complex128)
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be finite; got {array[~np.isfinite(array)][0]} among its entries"
        )
    return array


def contiguous(array: np.ndarray) -> np.ndarray:
    """Return a writable float64 copy in C order, the one layout for which compiled functions are
    compiled.
    """
    return np.array(array, dtype=np.float64, order="C")


def in_range(name: str, what: str, values: Any) -> Any:
    """Return a computed result if it is finite; a ValueError says which argument took `what` out of
    float64's range.
    """
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be smaller in size: {what} is beyond the range of float64")
    return values


def as_integer(name: str, value: Any, *, low: int, high: int | None = None) -> int:
    """Return `value` as an int in low..high (no upper limit if None); bools and fractions are
    refused.

    NumPy's integers become Python's, so that both mean the same wherever the type is looked at.
    """
    allowed = f"an integer >= {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be {allowed}; got {shown(value)}")
    number = int(value)
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} must be {allowed}; got {shown(value)}")
    return number


def as_seed(name: str, value: Any) -> int:
    """Return `value` as an int from 0 to 2^32 - 1, what NumPy's legacy RandomState takes."""
    return as_integer(name, value, low=0, high=_MAX_SEED)


def as_scalar(
    name: str, value: Any, *, low: float = -math.inf, high: float = math.inf, strict: bool = False
) -> float:
    """Return `value` as a finite float from low to high (> low if `strict`)."""
    bound = "" if low == -math.inf else f" {'>' if strict else '>='} {low:g}"
    if high != math.inf:
        bound += f"{' and' if bound else ''} <= {high:g}"
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except (OverflowError, TypeError, ValueError):  # an integer beyond float64
        number = math.nan
    if isinstance(value, bool | np.bool_) or not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number{bound}; got {shown(value)}")
    if number < low or (strict and number == low) or number > high:
        raise ValueError(f"{name} must be a finite number{bound}; got {shown(value)}")
    return number


def as_flag(name: str, value: Any) -> bool:
    """Return `value` as a bool; anything else is refused, also what Python would take for true,
    such as "no" or 1.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False; got {shown(value)}")
    return bool(value)


def as_choice(name: str, value: Any, allowed: Collection[str]) -> str:
    """Return `value` if it is one of the `allowed` names."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(sorted(allowed))}; got {shown(value)}")
    return value


def as_text(name: str, value: Any) -> str:
    """Return `value` if it is text."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text; got {shown(value)}")
    return value


def as_path(name: str, value: Any) -> Path:
    """Return `value`, a non-empty path as text or a Path, as a Path with `~` expanded."""
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise TypeError(f"{name} must be a path; got {shown(value)}")
    text = os.fspath(value)
    if not text or "\0" in text:
        raise ValueError(f"{name} must be a path; got {shown(value)}")
    return Path(text).expanduser()


def as_instance(name: str, value: Any, kind: type[T], *others: type[Any]) -> T:
    """Return `value` if it is an instance of `kind` (or of one of `others`); a TypeError names
    argument and classes.
    """
    if not isinstance(value, (kind, *others)):
        names = [one.__name__ for one in (kind, *others)]
        article = "an" if names[0][0] in "AEIOU" else "a"
        raise TypeError(f"{name} must be {article} {' or '.join(names)}; got {_described(value)}")
    return cast(T, value)


def as_mapping(name: str, value: Any) -> Mapping[Any, Any]:
    """Return `value` if it is a mapping such as a dict."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping such as a dict; got {_described(value)}")
    return value


def as_function(name: str, value: Any) -> Callable[..., Any]:
    """Return `value` if it can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function; got {_described(value)}")
    return value


def _described(value: object) -> str:
    """Return None as it is, and of other objects the class: that is what was wrong about them."""
    if value is None:
        return "None"
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def as_positions(name: str, value: Any, *, length: int) -> tuple[int, ...]:
    """Return 1-based positions as a tuple of distinct integers from 1 to `length`."""
    try:
        # one more than can be right: an endless iterator ends here
        items = tuple(islice(value, length + 1))
    except TypeError:
        raise ValueError(
            f"{name} must be positions from 1 to {length}, such as (1,); got {shown(value)}"
        ) from None
    positions = tuple(
        as_integer(f"each entry of {name}", item, low=1, high=length) for item in items
    )
    if not positions or len(set(positions)) < len(positions):
        raise ValueError(f"{name} must name at least one position, each once; got {shown(value)}")
    return positions


def as_rng(name: str, value: Any) -> np.random.Generator | np.random.RandomState:
    """Return a random source: an integer seeds `numpy.random.default_rng`; a Generator or
    RandomState is used as it is.
    """
    if isinstance(value, np.random.Generator | np.random.RandomState):
        return value
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0:
        return np.random.default_rng(int(value))
    raise ValueError(
        f"{name} must be an integer >= 0, a numpy Generator or a RandomState; got {shown(value)}"
    )


def available_cores() -> int:
    """Return how many cores this process may use; where the system does not tell (macOS, Windows),
    how many there are.
    """
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def as_workers(name: str, value: Any) -> int:
    """Return a number of threads or processes from 1 to 1024: `value`, or every core of this
    process if it is None.
    """
    return available_cores() if value is None else as_integer(name, value, low=1, high=_MAX_WORKERS)
