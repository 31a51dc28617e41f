"""The equation of `ssm_poison_lib.equations` compiled, for one run: the loops of descent call it.

The batched flow (`rosenbrock`) has the same sums with many runs side by side, in gaps: there the
innermost axis is the run, here it is the entry.
"""

from __future__ import annotations

from typing import no_type_check

from ssm_poison_lib._jit import compiled

__all__ = ["fill_powers", "fill_response", "velocity"]


@compiled(apart=True, forceinline=True)
@no_type_check
def fill_powers(A, powers):
    """Fill powers (kappa, d) with a_j^m.

    Args:
        A: (d,) entries.
    """
    for j in range(len(A)):
        powers[0, j] = 1.0
    for m in range(1, len(powers)):
        for j in range(len(A)):
            powers[m, j] = powers[m - 1, j] * A[j]


@compiled(apart=True, forceinline=True)
@no_type_check
def fill_response(A, w, powers, response):
    """Fill powers as `fill_powers` does, and response (kappa,) with sum_j w_j a_j^m.

    In one pass: the sums, each in the order of the entries, wait for their last addition and leave
    time for the powers.
    """
    for m in range(len(powers)):
        total = 0.0
        for j in range(len(A)):
            power = powers[m - 1, j] * A[j] if m > 0 else 1.0
            powers[m, j] = power
            total += w[j] * power
        response[m] = total


@compiled(apart=True, forceinline=True)
@no_type_check
def velocity(B, C, e, powers, out):
    """Fill out (3, d) with (da/dt, db/dt, dc/dt), minus the gradient.

    Args:
        B: (d,) entries.
        C: (d,) entries.
        e: (kappa,) minus the derivative of the loss by M_m: G (M* - M) for a linear model.
        powers: (kappa, d) as `fill_powers` leaves them.
    """
    d = len(B)
    for j in range(d):
        out[0, j] = 0.0
        out[1, j] = e[0]
    for m in range(1, len(e)):
        factor = m * e[m]
        for j in range(d):
            out[0, j] += factor * powers[m - 1, j]
            out[1, j] += e[m] * powers[m, j]
    for j in range(d):
        pull = out[1, j]
        out[0, j] *= B[j] * C[j]
        out[1, j] = C[j] * pull
        out[2, j] = B[j] * pull
