"""The impulse response by cumulative products against the power of every entry at every lag.

python benchmarks/impulse_response.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ssm_poison_lib._checks import as_array
from ssm_poison_lib.ssm import impulse_response

SIZES = ((10, 20), (20, 40), (64, 500), (10, 10_000), (1000, 1000))  # (d, lags)


def by_powers(A: np.ndarray, w: np.ndarray, length: int) -> np.ndarray:
    """Return sum_j w_j a_j^m for m < length, each power by itself; the same checks of the input."""
    A, w = as_array("A", A, ndim=1), as_array("w", w, ndim=1, last=len(A))
    return (A ** np.arange(length)[:, None]) @ w


def seconds(call: Callable[[], object]) -> float:
    """Return the shortest time of one call, over at least a tenth of a second and five calls."""
    best, calls, began = np.inf, 0, time.perf_counter()
    while calls < 5 or time.perf_counter() - began < 0.1:
        before = time.perf_counter()
        call()
        best, calls = min(best, time.perf_counter() - before), calls + 1
    return best


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"{'d':>5} {'lags':>6} {'powers':>12} {'ours':>12} {'ratio':>7} {'difference':>11}")
    for d, length in SIZES:
        A, w = rng.uniform(-1, 1, d), rng.normal(size=d)
        powers = seconds(lambda: by_powers(A, w, length))  # noqa: B023
        ours = seconds(lambda: impulse_response(A, w, length))  # noqa: B023
        scale = np.abs(A) ** np.arange(length)[:, None] @ np.abs(w) + np.finfo(float).tiny
        off = np.abs(impulse_response(A, w, length) - by_powers(A, w, length)) / scale
        times = f"{powers * 1e6:>9.1f} us {ours * 1e6:>9.1f} us {powers / ours:>7.1f}"
        print(f"{d:>5} {length:>6} {times} {off.max():>11.1e}")


if __name__ == "__main__":
    main()
