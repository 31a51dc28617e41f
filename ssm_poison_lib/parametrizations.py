"""Gradient flow when A is not trained itself but through parameters s: a_j = f(s_j).

By the chain rule ds_j/dt = f'(s_j) v_j, v_j the velocity of a free entry, so a_j moves with f'(s_j)^2 v_j: the same data, the
same minima in reach, another geometry. A parametrization also limits which entries can be reached at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.integrate import LSODA

from ssm_poison_lib._checks import ArrayLike, as_array, as_choice, as_scalar
from ssm_poison_lib.flow import FlowError

__all__ = ["PARAMETRIZATIONS", "Parametrization", "parametrized_flow"]

_FITTED = 1e-24  # the loss at which a flow has arrived: after it LSODA would only follow rounding errors

Map = Callable[[Float[np.ndarray, "..."]], Float[np.ndarray, "..."]]


@dataclass(frozen=True)
class Parametrization:
    """An entry of A as a monotone function of a trained number s.

    entry: s -> a. parameter: a -> s, its inverse. slope: a -> f'(s) as a function of a. low, high: the open interval of the
    entries that it can give. used_by: models whose real entries are made so, by the table of chapter "What is a state space
    model?" (their other differences from this book's model are listed there).
    """

    entry: Map
    parameter: Map
    slope: Map
    low: float
    high: float
    used_by: str


#: The parametrizations of the book, by name.
PARAMETRIZATIONS = {
    "free": Parametrization(
        np.asarray, np.asarray, np.ones_like, -np.inf, np.inf, "this book, recurrent nets"
    ),
    "exp": Parametrization(np.exp, np.log, np.asarray, 0.0, np.inf, "the simplest positive one"),
    "exp(-exp)": Parametrization(
        lambda s: np.exp(-np.exp(s)),
        lambda a: np.log(-np.log(a)),
        lambda a: a * np.log(a),
        0.0,
        1.0,
        "S4D with real poles, LRU's moduli, Mamba at a fixed step",
    ),
    "tanh": Parametrization(np.tanh, np.arctanh, lambda a: 1.0 - a**2, -1.0, 1.0, "stable, both signs"),
}


def parametrized_flow(
    A0: ArrayLike,
    G: ArrayLike,
    target: ArrayLike,
    parametrization: str,
    times: ArrayLike,
    *,
    rtol: float = 1e-11,
    atol: float = 1e-13,
) -> Float[np.ndarray, "T d"]:
    """Return the entries of A at given times of the gradient flow in s, a_j = f(s_j), B = C^T = ones fixed.

    A0: (d,) start, within the parametrization's interval; G: (kappa, kappa), `TrainingSet.gram()`; target: (kappa,), the
    teacher's impulse response; parametrization: a name in `PARAMETRIZATIONS`; times: (T,) increasing, > 0. rtol, atol:
    tolerances of SciPy's LSODA for s. A flow whose loss reaches 1e-24 stays where it is. Ties are followed as differences of
    the s_j: near ties below about 1e-8 need `flows.many_flows`, which knows free entries only.

    Raises ValueError for arguments out of range, FlowError if the solver fails.

    Source: Proposition 1 of chapter "Which way does training move?" and the chain rule.
    """
    kind = PARAMETRIZATIONS[as_choice("parametrization", parametrization, PARAMETRIZATIONS)]
    start = as_array("A0", A0, ndim=1)
    response = as_array("target", target, ndim=1)
    gram = as_array("G", G, ndim=2, last=len(response))
    stops = as_array("times", times, ndim=1)
    if not (start > kind.low).all() or not (start < kind.high).all():
        raise ValueError(
            f"A0 must lie between {kind.low:g} and {kind.high:g} for {parametrization!r};"
            f" got {start.min():g} to {start.max():g}"
        )
    if gram.shape[0] != len(response):
        raise ValueError(f"G must be {len(response)} x {len(response)}; got shape {gram.shape}")
    if not np.allclose(gram, gram.T, rtol=1e-12, atol=0.0):
        raise ValueError("G must be symmetric")
    if stops[0] <= 0 or (np.diff(stops) <= 0).any():
        raise ValueError("times must be > 0 and increasing")
    rtol = as_scalar("rtol", rtol, low=2.3e-14)
    atol = as_scalar("atol", atol, low=0.0, strict=True)
    lags = np.arange(len(response))

    def speed(_t: float, s: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
        a = kind.entry(s)
        powers = a[None, :] ** lags[:, None]  # (kappa, d)
        e = gram @ (response - powers.sum(axis=1))
        return np.asarray(kind.slope(a) * ((lags[1:] * e[1:]) @ powers[:-1]))

    def loss(s: Float[np.ndarray, " d"]) -> float:
        r = response - (kind.entry(s)[None, :] ** lags[:, None]).sum(axis=1)
        return float(r @ gram @ r) / 2.0

    rows: list[Float[np.ndarray, " d"]] = []
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        solver = LSODA(speed, 0.0, kind.parameter(start), stops[-1], rtol=rtol, atol=atol)
        while len(rows) < len(stops):
            message = solver.step()
            if solver.status == "failed" or not np.isfinite(solver.y).all():
                raise FlowError(
                    f"LSODA gave up at t = {solver.t:g} of {stops[-1]:g}: {message or 'not finite'}"
                )
            path = solver.dense_output()
            while len(rows) < len(stops) and stops[len(rows)] <= solver.t:
                rows.append(path(stops[len(rows)]))
            if loss(solver.y) <= _FITTED:
                rows += [np.array(solver.y)] * (len(stops) - len(rows))
    return np.asarray(kind.entry(np.array(rows)))
