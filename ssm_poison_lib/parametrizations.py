"""Gradient flow when A is not trained itself but through parameters s: a_j = f(s_j).

By the chain rule ds_j/dt = f'(s_j) v_j, v_j the velocity of a free entry, so a_j moves with
f'(s_j)^2 v_j: the same data, the same minima in reach, another geometry. A parametrization also
limits which entries can be reached at all.

While the data show one lag m alone (special sequences: 1, baseline ones: p), v_j is the same
function of time for all entries times a_j^(m-1), so the differences of an integral of ds / (f'(s)
f(s)^(m-1)) are conserved, and where such a phase ends is the root of one scalar equation:
`phase_limit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize.elementwise import find_root
from scipy.special import expi

from ssm_poison_lib._checks import (
    MAX_LENGTH,
    ArrayLike,
    as_array,
    as_choice,
    as_function,
    as_integer,
    as_scalar,
    as_text,
    shown,
)
from ssm_poison_lib._trajectory import FlowError

__all__ = ["PARAMETRIZATIONS", "Parametrization", "phase_entries", "phase_limit"]

# the loss at which a flow has arrived: after it LSODA would only follow rounding errors
Map = Callable[[Float[np.ndarray, "..."]], Float[np.ndarray, "..."]]
Conserved = Callable[[Float[np.ndarray, "..."], int], Float[np.ndarray, "..."]]


@dataclass(frozen=True)
class Parametrization:
    """An entry of A as a monotone function of a trained number s.

    Attributes:
        entry: s -> a.
        parameter: a -> s, its inverse.
        slope: a -> f'(s) as a function of a.
        low: the open interval of the entries that it can give.
        high: the open interval of the entries that it can give.
        used_by: models whose real entries are made so, by the table of chapter "What is a state
            space model?" (their other differences from this book's model are listed there).
        log_entry: s -> log a for positive entries, which keeps its digits where a is close to 1.
        conserved: (s, m) -> an integral of ds / (f'(s) f(s)^(m-1)), whose differences between
            entries are conserved while the data show lag m >= 1 alone.
        last: the parameter of an entry so close to 1 that float64 has no closer one.

    Raises:
        TypeError: if a field is no function, no number or no text.
    """

    entry: Map
    parameter: Map
    slope: Map
    low: float
    high: float
    used_by: str
    log_entry: Map
    conserved: Conserved
    last: float

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("entry", "parameter", "slope", "log_entry", "conserved"):
            as_function(name, getattr(self, name))
        for name in ("low", "high", "last"):
            bound = getattr(self, name)
            if bound not in (-np.inf, np.inf):
                as_scalar(name, bound)
        as_text("used_by", self.used_by)


def _conserved_free(s: np.ndarray, lag: int) -> np.ndarray:
    return np.log(s) if lag == 2 else np.asarray(-(s ** (2.0 - lag)) / (lag - 2))


def _conserved_exp(s: np.ndarray, lag: int) -> np.ndarray:
    return np.asarray(-np.exp(-lag * s) / lag)


def _conserved_double_exp(s: np.ndarray, lag: int) -> np.ndarray:
    u = np.exp(s)  # -log a
    return np.asarray(np.exp(lag * u) / u - lag * expi(lag * u))


def _conserved_tanh(s: np.ndarray, lag: int) -> np.ndarray:
    # I_k and J_k, integrals of da a^-k (1-a^2)^-2 and da a^-k (1-a^2)^-1: I_k = I_{k-2} + J_k, J_k
    # = J_{k-2} - a^(1-k) / (k-1).
    a, power = np.tanh(s), (lag - 1) % 2
    if power:
        simple = np.log(np.sinh(s))
        double = np.cosh(s) ** 2 / 2.0 + simple
    else:
        simple = s
        double = (np.sinh(s) * np.cosh(s) + s) / 2.0
    for k in range(power + 2, lag, 2):
        simple = simple - a ** (1.0 - k) / (k - 1)
        double = double + simple
    return np.asarray(double)


#: The parametrizations of the book, by name.
PARAMETRIZATIONS = {
    "free": Parametrization(
        entry=np.asarray,
        parameter=np.asarray,
        slope=np.ones_like,
        low=-np.inf,
        high=np.inf,
        used_by="this book, recurrent nets",
        log_entry=np.log,
        conserved=_conserved_free,
        last=1.0,
    ),
    "exp": Parametrization(
        entry=np.exp,
        parameter=np.log,
        slope=np.asarray,
        low=0.0,
        high=np.inf,
        used_by="the simplest positive one",
        log_entry=np.asarray,
        conserved=_conserved_exp,
        last=0.0,
    ),
    "exp(-exp)": Parametrization(
        entry=lambda s: np.exp(-np.exp(s)),
        parameter=lambda a: np.log(-np.log(a)),
        slope=lambda a: a * np.log(a),
        low=0.0,
        high=1.0,
        used_by="S4D with real poles, LRU's moduli, Mamba at a fixed step",
        log_entry=lambda s: -np.exp(s),
        conserved=_conserved_double_exp,
        last=-700.0,
    ),
    "tanh": Parametrization(
        entry=np.tanh,
        parameter=np.arctanh,
        slope=lambda a: 1.0 - a**2,
        low=-1.0,
        high=1.0,
        used_by="stable, both signs",
        log_entry=lambda s: np.log1p(-2.0 / (1.0 + np.exp(2.0 * s))),
        conserved=_conserved_tanh,
        last=350.0,
    ),
}


def phase_entries(
    A0: ArrayLike, largest: ArrayLike, parametrization: str, *, lag: int
) -> Float[np.ndarray, "n d"]:
    """Return the entries at the moment of a phase at which the largest one has a given value.

    Args:
        A0: (d,) or (n, d) positive starts, within the parametrization's interval
        largest: a number or (n,), at least the largest entry of each start and within the interval
        parametrization: a name in `PARAMETRIZATIONS`
        lag: m >= 1, the only lag that the data of the phase show (1: special sequences alone, kappa
            - 1: baseline ones alone). B = C^T = ones fixed.

    Raises:
        ValueError: for arguments out of range, also where the conserved quantity leaves float64.

    Source: section "One number decides a phase" of chapter "Does the order of the data matter?".
    """
    kind = PARAMETRIZATIONS[as_choice("parametrization", parametrization, PARAMETRIZATIONS)]
    lag = as_integer("lag", lag, low=1, high=MAX_LENGTH)
    starts = _positive_starts(kind, parametrization, A0, lag)
    top = as_array("largest", largest, ndim=(0, 1))
    if top.ndim == 1 and len(top) != len(starts):
        raise ValueError(f"largest must be a number, or one for each of the {len(starts)} starts")
    if (top < starts.max(axis=1)).any() or not (top < kind.high).all():
        raise ValueError(
            f"largest must be at least the largest entry of A0 and below {kind.high:g}; got"
            f" {shown(largest)}"
        )
    s0 = kind.parameter(starts)
    s1 = kind.parameter(top) + np.zeros(len(starts))
    return np.asarray(kind.entry(_at(kind, s0, _behind(kind, s0, lag), s1, lag)))


def phase_limit(
    A0: ArrayLike, parametrization: str, *, lag: int, gaps: ArrayLike | None = None
) -> Float[np.ndarray, "n d"]:
    """Return where a phase ends whose data show one lag alone: the limit of the flow of s, a_j =
    f(s_j), B = C^T = ones fixed.

    One scalar equation, sum a_j^m = 1, for the largest entry of each start; the others follow from
    the conserved differences. An entry that rounds to 1 where the interval ends at 1 is returned as
    the float below 1, so that it can start another phase. With tanh and lag m the losers of starts
    below about 1e-8 (m = 6), 1e-7 (m = 8) are lost to rounding: for them two quantities of the size
    of a^(2-m) cancel.

    Args:
        A0: (d,) or (n, d) positive starts with sum a_j^lag < 1, within the parametrization's
            interval
        parametrization: a name in `PARAMETRIZATIONS`
        lag: m >= 1 (1: special sequences alone, kappa - 1: baseline ones alone). The teacher's
            impulse response is 1 at that lag.
        gaps: (d-1,) or (n, d-1) exact differences a_j - a_{j+1} >= 0 of descending starts whose
            near ties are below the rounding of A0 (see `flows.near_tie_starts`).

    Raises:
        ValueError: for arguments out of range, also where the conserved quantity leaves float64.

    Source: section "One number decides a phase" of chapter "Does the order of the data matter?".
    """
    kind = PARAMETRIZATIONS[as_choice("parametrization", parametrization, PARAMETRIZATIONS)]
    lag = as_integer("lag", lag, low=1, high=MAX_LENGTH)
    starts = _positive_starts(kind, parametrization, A0, lag)
    sums = (starts**lag).sum(axis=1)
    if (sums >= 1.0).any():
        raise ValueError(f"A0 must have a sum of a_j^{lag} below 1; got {sums.max():g}")
    s0 = kind.parameter(starts)
    largest, rows = starts.argmax(axis=1), np.arange(len(starts))
    behind = _behind(kind, s0, lag)
    if gaps is not None:
        exact = np.atleast_2d(as_array("gaps", gaps, ndim=(1, 2), last=starts.shape[1] - 1))
        if len(exact) not in (1, len(starts)):
            raise ValueError(
                f"gaps must have one row for each of the {len(starts)} starts; got {len(exact)}"
            )
        if (exact < 0).any():
            raise ValueError(f"gaps must be >= 0; got {exact.min():g}")
        differences = starts[:, :-1] - starts[:, 1:]
        if (np.abs(differences - exact) > 1e-15 * starts[:, :1] + 1e-9 * exact).any():
            raise ValueError("gaps must agree with A0, which must be descending")
        middle = starts[:, 1:] + exact / 2.0
        # of second order in a relative gap
        near = exact / (kind.slope(middle) ** 2 * middle ** (lag - 1))
        steps = np.where(exact < 1e-5 * middle, near, np.diff(behind, axis=1))
        behind = np.concatenate([np.zeros((len(starts), 1)), np.cumsum(steps, axis=1)], axis=1)

    def lacking(s1: np.ndarray, i: np.ndarray) -> np.ndarray:
        """Return 1 - sum a_j^m, with the digits that it has where a_1 is next to 1."""
        logs = lag * kind.log_entry(_at(kind, s0[i], behind[i], s1, lag))
        top = logs[np.arange(len(i)), largest[i]]
        logs[np.arange(len(i)), largest[i]] = -np.inf
        return np.asarray(-np.expm1(top) - np.exp(logs).sum(axis=1))

    # at the bracket's far end only the sign counts
    with np.errstate(over="ignore", divide="ignore"):
        root = find_root(lacking, (s0[rows, largest], np.full(len(rows), kind.last)), args=(rows,))
        if not root.success.all():
            raise FlowError(f"no root for row {int(np.flatnonzero(~root.success)[0])} of A0")
        a = kind.entry(_at(kind, s0, behind, root.x, lag))
    return np.asarray(np.minimum(a, np.nextafter(kind.high, 0.0)))


def _start(
    kind: Parametrization, name: str, A0: Float[np.ndarray, "*n d"]
) -> Float[np.ndarray, "*n d"]:
    if not (A0 > kind.low).all() or not (A0 < kind.high).all():
        raise ValueError(
            f"A0 must lie between {kind.low:g} and {kind.high:g} for {name!r}; got {A0.min():g} to"
            f" {A0.max():g}"
        )
    return A0


def _positive_starts(
    kind: Parametrization, name: str, A0: ArrayLike, lag: int
) -> Float[np.ndarray, "n d"]:
    starts = np.atleast_2d(_start(kind, name, as_array("A0", A0, ndim=(1, 2))))
    if (starts <= 0).any():
        raise ValueError(f"A0 must be positive; got {starts.min():g}")
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        reached = np.isfinite(kind.conserved(kind.parameter(starts), lag)).all()
    if not reached:
        raise ValueError(
            f"A0 must not be so small that its power -{lag} leaves float64; got {starts.min():g}"
        )
    return starts


def _behind(
    kind: Parametrization, s0: Float[np.ndarray, "n d"], lag: int
) -> Float[np.ndarray, "n d"]:
    """Return by how much the conserved quantity of each entry is behind that of the largest: >= 0,
    and constant.
    """
    quantity = kind.conserved(s0, lag)
    return np.asarray(quantity.max(axis=1, keepdims=True) - quantity)


def _at(
    kind: Parametrization, s0: np.ndarray, behind: np.ndarray, s1: np.ndarray, lag: int
) -> np.ndarray:
    """Return the parameters of all entries when that of the largest is s1: their conserved
    quantities moved by one number.
    """
    # arcsinh is close to linear around 0 and a logarithm far from it: the quantity runs over sixty
    # decades of both signs.
    target = np.arcsinh(kind.conserved(s1, lag)[:, None] - behind)
    low, high = s0, np.broadcast_to(s1[:, None], s0.shape)

    def off(s: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        return np.asarray(np.arcsinh(kind.conserved(s, lag)) - wanted)

    root = find_root(off, (low, high), args=(target,))
    # Where rounding leaves no change of sign the entry is at an end: it has not moved, or is with
    # the largest.
    nearer = np.where(np.abs(off(low, target)) <= np.abs(off(high, target)), low, high)
    s = np.where(root.success, root.x, nearer)
    return np.asarray(np.where(behind == 0.0, high, s))
