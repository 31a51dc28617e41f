"""Arrays as an address and a shape: compiled code finds and changes what NumPy would."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssm_poison_lib._engines.rows import rows
from ssm_poison_lib._jit import compiled


def through(array, counts, i, j, k):
    """Read and change items in every way that engines do, by index, by row and flat."""
    x, n = rows(array), rows(counts)
    table, row, flat = x[i], x[i, j], x.flat
    found = x[i, j, k] + 10.0 * table[j, k] + 100.0 * row[k] + 1000.0 * table[0][k]
    x[i, j, k] = 2.0
    row[0] += 3.0
    table[j, k] *= 5.0
    for m in range(len(flat)):
        flat[m] += m
    n[k] = i > 0  # a truth value in an array of integers
    a, b = table.shape
    return found, len(x) + 10 * a + 100 * b + 1000 * x.size + 10_000 * table.size, x.shape[1]


engine = compiled(apart=True, _nrt=False)(through)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.data())
def test_rows_are_the_arrays_of_numpy(a, b, c, data):
    """The same function, compiled and not."""
    i, j, k = (data.draw(st.integers(0, size - 1)) for size in (a, b, c))
    arrays = [np.arange(1.0, a * b * c + 1).reshape(a, b, c) for _ in range(2)]
    counts = [np.arange(c), np.arange(c)]
    assert engine(arrays[0], counts[0], i, j, k) == through(arrays[1], counts[1], i, j, k)
    assert np.array_equal(arrays[0], arrays[1])
    assert np.array_equal(counts[0], counts[1])


@pytest.mark.parametrize(
    ("array", "index"),
    [
        pytest.param(np.zeros((3, 4)).T, 0, id="rows that are not contiguous"),
        pytest.param(np.zeros((3, 4)), (0, 0, 0), id="more indices than axes"),
        pytest.param(np.zeros(3), 0.5, id="an index that is no integer"),
    ],
)
def test_what_rows_are_not_is_not_compiled(array, index):
    """An error at compile time, in place of another number."""
    taken = compiled()(lambda array, index: rows(array)[index])
    with pytest.raises(numba.TypingError):
        taken(array, index)


def test_a_row_is_no_number_to_write():
    """NumPy would fill it."""

    def fill(array):
        rows(array)[0] = 1.0

    with pytest.raises(numba.TypingError):
        compiled()(fill)(np.zeros((2, 2)))
