"""Compiled sums whose order of addition is fixed: the digits are the same on every processor."""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np

from ssm_poison_lib._jit import compiled

__all__ = ["aligned", "dot", "product"]

_LINE = 64  # bytes of a cache line


def aligned(shape: tuple[int, ...], dtype: Any = np.float64) -> Any:
    """Return zeros that begin with a cache line: rows of whole registers then never cross one."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.zeros(size + _LINE, np.uint8)
    begin = -room.ctypes.data % _LINE
    return room[begin : begin + size].view(dtype).reshape(shape)


@compiled(apart=True, forceinline=True)
@no_type_check
def product(left, right, out):
    """Fill out = left @ right, shapes (n, i), (i, k), (n, k), each sum in the order of i."""
    for n in range(out.shape[0]):
        out[n] = 0
        for i in range(right.shape[0]):
            factor = left[n, i]
            if factor != 0:
                for k in range(out.shape[1]):
                    out[n, k] += factor * right[i, k]


@compiled(apart=True, forceinline=True)
@no_type_check
def dot(left, right, count, in_lanes):
    """Return sum_k left[k] right[k] for k < count.

    Args:
        in_lanes: add in eight running sums, joined before the rest, instead of one after the other.
            This is how the authors' program multiplies a matrix by a vector: their float32 labels
            come out in every digit.
    """
    zero = left.dtype.type(0)
    s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
    whole = count - count % 8 if in_lanes else 0
    for k in range(0, whole, 8):
        s0 += left[k] * right[k]
        s1 += left[k + 1] * right[k + 1]
        s2 += left[k + 2] * right[k + 2]
        s3 += left[k + 3] * right[k + 3]
        s4 += left[k + 4] * right[k + 4]
        s5 += left[k + 5] * right[k + 5]
        s6 += left[k + 6] * right[k + 6]
        s7 += left[k + 7] * right[k + 7]
    total = ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7))
    for k in range(whole, count):
        total += left[k] * right[k]
    return total
