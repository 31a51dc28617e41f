"""How the authors' program draws starting weights: a seed gives the same float32 digits."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from ssm_poison_lib._checks import MAX_LENGTH, as_array, as_instance, as_integer, as_scalar

__all__ = ["stateless_normal", "tied_weights"]

Vector32 = Float32[np.ndarray, " n"]

# Philox 4x32-10: multipliers and key increments (Salmon et al., 2011), and the key with which
# TensorFlow scrambles a seed.
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_INCREMENTS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_SCRAMBLE = (np.uint64(0x3EC8F720), np.uint64(0x02461E29))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def _philox(counter: list[np.ndarray], key: tuple[np.uint64, np.uint64]) -> list[np.ndarray]:
    """Return four 32-bit words per counter;

    Args:
        counter: four arrays of 32-bit words, kept in uint64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _INCREMENTS[0]) & _LOW, (k1 + _INCREMENTS[1]) & _LOW
    return [c0, c1, c2, c3]


def _c_function(name: str) -> Callable[[Vector32], Vector32]:
    """Return log, sin or cos in float32 as glibc rounds it, or correctly rounded where there is no
    glibc.
    """
    try:
        function: Any = getattr(ctypes.CDLL("libm.so.6"), name + "f")
    except (OSError, AttributeError):
        exact = getattr(np, name)
        return lambda values: exact(values.astype(np.float64)).astype(np.float32)
    function.restype, function.argtypes = ctypes.c_float, [ctypes.c_float]
    return lambda values: np.array([function(float(value)) for value in values], dtype=np.float32)


def _unit(words: np.ndarray) -> Vector32:
    """Return uniform numbers in [0, 1) from 23 bits of each word."""
    bits = (words & np.uint64(0x7FFFFF)).astype(np.uint32) | np.uint32(127 << 23)
    return np.asarray(bits.view(np.float32) - np.float32(1))


def stateless_normal(seed: int, shape: Sequence[int]) -> Float32[np.ndarray, "..."]:
    """Return standard normal float32 numbers as TensorFlow's stateless generator draws them for the
    seed (seed, 0).

    The last digit follows the C library's float32 sine, cosine and logarithm: with glibc the
    authors' starts come out exactly, elsewhere about 1 number in 100 differs by its last digit.

    Args:
        seed: 0 .. 2^31-1
        shape: of the array (at most 10^6 numbers), filled in row-major order. A smaller array
            starts with the same numbers, which is why all weight arrays of one run of the authors
            begin alike.

    Source: Philox 4x32-10 and Box-Muller as in TensorFlow 2.4; checked against the authors'
    starting weights.
    """
    seed = as_integer("seed", seed, low=0, high=2**31 - 1)
    if not isinstance(shape, Sequence):
        raise ValueError(f"shape must be a list of sizes, such as (3,); got {shape!r}")
    count = math.prod(as_integer("each entry of shape", size, low=1) for size in shape)
    as_integer("the product of shape", count, low=1, high=MAX_LENGTH)
    zero = np.zeros(1, np.uint64)
    mix = _philox([zero + np.uint64(seed), zero, zero, zero], _SCRAMBLE)
    index = np.arange(-(-count // 4), dtype=np.uint64)
    words = np.stack(
        _philox([index, 0 * index, 0 * index + mix[2], 0 * index + mix[3]], (mix[0][0], mix[1][0])),
        axis=1,
    )
    pairs = words.reshape(-1, 2)  # (n, 2): radius and angle
    radius = np.maximum(_unit(pairs[:, 0]), np.float32(1e-7))
    angle = (2 * np.pi * _unit(pairs[:, 1]).astype(np.float64)).astype(np.float32)
    length = np.sqrt(np.float32(-2) * _c_function("log")(radius))
    normal = np.stack(
        [_c_function("sin")(angle) * length, _c_function("cos")(angle) * length], axis=1
    )
    return np.asarray(normal.ravel()[:count].reshape(tuple(shape)))


def tied_weights(
    raw: Vector32,
    scale: float,
    *,
    warm_init: float,
    tie_gap: float | None,
    tie_factors: Sequence[float],
) -> Vector32:
    """Return a start for A or B: sizes of `raw` times `scale`, from largest to smallest, near ties
    put in, warm_init added.

    Args:
        raw: (n,) standard normal numbers.
        scale: standard deviation of the draw
        warm_init: added to every entry
        tie_gap: entry k+1 is set to the largest one minus tie_factors[k] tie_gap, whatever that
            does to the order (the authors do so too); None leaves the draw as it is. Rounded to
            float32 where the authors do.
        tie_factors: of the entries that are nearly tied with the largest, by rank
    """
    raw = as_array("raw", raw, ndim=1).astype(np.float32)
    scale, warm_init = (
        as_scalar("scale", scale, low=0.0, strict=True),
        as_scalar("warm_init", warm_init),
    )
    tie_gap = None if tie_gap is None else as_scalar("tie_gap", tie_gap)
    factors = [
        as_scalar("each entry of tie_factors", factor)
        for factor in as_instance("tie_factors", tie_factors, tuple, list)
    ]
    if len(factors) >= len(raw):
        raise ValueError(
            f"tie_factors must be fewer than the {len(raw)} entries; got {len(factors)}"
        )
    values = np.sort(np.abs(raw * np.float32(scale)))[::-1].copy()
    if tie_gap is not None:
        for k, factor in enumerate(factors):
            values[k + 1] = np.float32(float(values[0]) - factor * tie_gap)
    return np.asarray((values.astype(np.float64) + warm_init).astype(np.float32))
