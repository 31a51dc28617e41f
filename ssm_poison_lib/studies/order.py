"""Sweeps over the order of the data, for every parametrization and for complex poles.

In one phase only one of the theorem's two sequences is seen (its weight is then 2), or both (1 and
1).
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.integrate import LSODA

from ssm_poison_lib import equations
from ssm_poison_lib.flow import FlowError, gradient_flow
from ssm_poison_lib.flows import near_tie_starts, theorem_flows
from ssm_poison_lib.parametrizations import PARAMETRIZATIONS, phase_limit
from ssm_poison_lib.studies._points import flattened, labelled, near_tie_shapes

__all__ = ["ORDERS", "complex_order_errors", "parametrized_order_errors"]

#: The orders by name, with their phases; a sweep's axis `order` holds their numbers.
ORDERS = {
    "baseline only": ("baseline",),
    "special, then baseline": ("special", "baseline"),
    "both": ("both",),
    "baseline, then both": ("baseline", "both"),
    "special, then baseline, then both": ("special", "baseline", "both"),
}
_WEIGHTS = {"baseline": (2.0, 0.0), "special": (0.0, 2.0), "both": (1.0, 1.0)}  # alpha, beta
_FITTED = 1e-14  # loss at which a phase of complex poles ends
_MOST_STEPS = 20_000


def parametrized_order_errors(points: xr.Dataset) -> xr.Dataset:
    """Measure the theorem's two sequences in different orders, a_j = f(s_j), at every point of a
    grid.

    Args:
        points: coordinates, each an axis or a fixed value: parametrization, a number of the names
            in `PARAMETRIZATIONS` in their order; order, a number of `ORDERS`; scale (eps);
            state_dim (d >= 2); length (kappa >= 4); seed; optional tie_gap (the shape is then (1, 1
            - g, uniform draws below); without it uniform draws in [0, 1)); phase (flow time of the
            special phase; without it, and of all baseline phases, they run to their limits); t_end
            (flow time of phases that show both, default 1e12).

    Returns:
        error (Gen_20 over lags 1..19), loss (of both sequences at the end) and large (how many
        entries end above 0.1) over all axes.

    Raises:
        ValueError: for other or missing coordinates.
        FlowError: if a flow fails.
    """
    needed = ("parametrization", "order", "scale", "state_dim", "length", "seed")
    flat, dims, shape = flattened(
        points, needed, ("tie_gap", "phase", "t_end"), "parametrized_order_errors"
    )
    names = _numbered("parametrization", flat["parametrization"], list(PARAMETRIZATIONS))
    orders = _numbered("order", flat["order"], list(ORDERS))
    for name in ("scale", "phase", "t_end"):
        if name in flat and (flat[name] <= 0).any():
            raise ValueError(f"{name} must be > 0; got {flat[name].min():g}")
    t_end = flat.get("t_end", np.full(len(names), 1e12))
    phase = flat.get("phase", np.full(len(names), np.inf))
    measured = {name: np.empty(len(names)) for name in ("error", "loss", "large")}
    cases = np.stack([flat[k] for k in ("parametrization", "order", "state_dim", "length")], axis=1)
    for case in np.unique(cases, axis=0):
        at = (cases == case).all(axis=1)
        first, d, length = np.flatnonzero(at)[0], int(case[2]), int(case[3])
        name, order = names[first], orders[first]
        A = _starts(
            d,
            flat["scale"][at],
            flat["seed"][at],
            flat["tie_gap"][at] if "tie_gap" in flat else None,
        )
        for which in ORDERS[order]:
            A = _phase(which, name, A, length, phase[at], t_end[at])
        off = 1.0 - (A[:, None, :] ** np.arange(1, max(20, length))[:, None]).sum(axis=2)
        measured["error"][at] = np.abs(off[:, :19]).max(axis=1)
        measured["loss"][at] = (off[:, 0] ** 2 + off[:, length - 2] ** 2) / 2.0
        measured["large"][at] = (A > 0.1).sum(axis=1)
    return labelled(measured, points, dims, shape)


def _numbered(name: str, numbers: Float[np.ndarray, " n"], names: list[str]) -> list[str]:
    if not np.isin(numbers, np.arange(len(names))).all():
        raise ValueError(
            f"{name} must be an integer from 0 to {len(names) - 1}: {', '.join(names)}"
        )
    return [names[int(number)] for number in numbers]


def _starts(
    d: int,
    scale: Float[np.ndarray, " n"],
    seed: Float[np.ndarray, " n"],
    g: Float[np.ndarray, " n"] | None,
) -> Float[np.ndarray, "n d"]:
    if g is not None:
        return near_tie_starts(near_tie_shapes(d, g, seed, 0.0 * g), scale, g)[0]
    draws = {int(k): -np.sort(-np.random.default_rng(int(k)).random(d)) for k in np.unique(seed)}
    return scale[:, None] * np.array([draws[int(k)] for k in seed])


def _phase(
    which: str,
    name: str,
    A: Float[np.ndarray, "n d"],
    length: int,
    phase: Float[np.ndarray, " n"],
    t_end: Float[np.ndarray, " n"],
) -> Float[np.ndarray, "n d"]:
    alpha, beta = _WEIGHTS[which]
    if which == "baseline" or (which == "special" and np.isinf(phase).all()):
        return phase_limit(A, name, lag=length - 1 if which == "baseline" else 1)
    ends = phase if which == "special" else t_end
    if name == "free":
        return theorem_flows(A, length=length, alpha=alpha, beta=beta, t_end=ends, workers=1).A
    G, target = np.zeros((length, length)), np.ones(length)
    G[1, 1], G[-1, -1], target[0] = beta, alpha, A.shape[1]
    reached = np.empty_like(A)
    starts, group = np.unique(A, axis=0, return_inverse=True)
    # one flow passes through all lengths of a phase from the same start
    for i, start in enumerate(starts):
        rows = np.flatnonzero(group.ravel() == i)
        times, place = np.unique(ends[rows], return_inverse=True)
        reached[rows] = gradient_flow(start, (G, target), parametrization=name, times=times).A[
            place.ravel()
        ]
    return reached


def complex_order_errors(points: xr.Dataset) -> xr.Dataset:
    """Measure the theorem's two sequences in different orders, complex poles made as in LRU, at
    every point of a grid.

    The student: d poles a_j = r_j e^(i theta_j), r_j = exp(-exp(nu_j)), and M_m = Re sum_j b_j c_j
    a_j^m; nu, theta are trained, and b, c as well where trained is 1. Start: r_j = eps times
    uniform draws in [0, 1), theta_j uniform in [-spread, spread], b_j = c_j = 1.

    Args:
        points: coordinates, each an axis or a fixed value: order, a number of `ORDERS`; trained, 0
            or 1; spread, from 0 to pi; scale (eps); state_dim (d >= 2); length (kappa >= 4); seed.

    Returns:
        error (Gen_20 over lags 1..19), loss (of both sequences at the end) and loss_shown (of what
        the last phase shows: 1e-14 where it fits) over all axes.

    Raises:
        ValueError: for other or missing coordinates.
    """
    needed = ("order", "trained", "spread", "scale", "state_dim", "length", "seed")
    flat, dims, shape = flattened(points, needed, (), "complex_order_errors")
    orders = _numbered("order", flat["order"], list(ORDERS))
    if not np.isin(flat["trained"], (0, 1)).all():
        raise ValueError("trained must be 0 or 1")
    if (flat["spread"] < 0).any() or (flat["spread"] > np.pi).any():
        raise ValueError(f"spread must be from 0 to pi; got {flat['spread'].max():g}")
    if (flat["scale"] <= 0).any() or (flat["scale"] >= 1).any():
        raise ValueError(f"scale must be between 0 and 1; got {flat['scale'].max():g}")
    measured = {name: np.empty(len(orders)) for name in ("error", "loss", "loss_shown")}
    # the end of a phase that several orders begin with
    known: dict[tuple[Hashable, ...], np.ndarray] = {}
    for i, order in enumerate(orders):
        case = {name: values[i] for name, values in flat.items() if name != "order"}
        d, p = int(case["state_dim"]), int(case["length"]) - 1
        rng = np.random.default_rng(int(case["seed"]))
        r, theta = case["scale"] * rng.random(d), case["spread"] * rng.uniform(-1.0, 1.0, d)
        y, past = (
            np.array([np.log(-np.log(r)), theta, r**0, 0 * r, r**0, 0 * r]),
            tuple(case.values()),
        )
        for which in ORDERS[order]:
            past = (*past, which)
            if past not in known:
                known[past] = _follow_complex(y, _WEIGHTS[which], p, bool(case["trained"]))
            y = known[past]
        off = [1.0 - _complex_response(y, lag) for lag in range(1, max(20, p + 1))]
        alpha, beta = _WEIGHTS[which]
        measured["error"][i] = np.abs(off[:19]).max()
        measured["loss"][i] = (off[0] ** 2 + off[p - 1] ** 2) / 2.0
        measured["loss_shown"][i] = (beta * off[0] ** 2 + alpha * off[p - 1] ** 2) / 2.0
    return labelled(measured, points, dims, shape)


def _complex_response(y: Float[np.ndarray, "*n 6 d"], lag: int) -> Float[np.ndarray, "*n"]:
    """Return M_m = Re sum_j b_j c_j a_j^m of parameters (nu, theta, Re b, Im b, Re c, Im c)."""
    a_m = np.exp(lag * (-np.exp(y[..., 0, :]) + 1j * y[..., 1, :]))
    b, c = y[..., 2, :] + 1j * y[..., 3, :], y[..., 4, :] + 1j * y[..., 5, :]
    return np.asarray((b * c * a_m).real.sum(axis=-1))


def _complex_velocity(
    y: Float[np.ndarray, "*n 6 d"], weights: tuple[float, float], p: int, train_bc: bool
) -> Float[np.ndarray, "*n 6 d"]:
    """Return minus the gradient of (alpha r_p^2 + beta r_1^2) / 2 by the six rows of parameters."""
    rate, theta = np.exp(y[..., 0, :]), y[..., 1, :]
    b, c = y[..., 2, :] + 1j * y[..., 3, :], y[..., 4, :] + 1j * y[..., 5, :]
    a = np.exp(-rate + 1j * theta)
    power, e = equations.powers(a, p + 1), np.zeros((*a.shape[:-1], p + 1), dtype=complex)
    for weight, lag in zip(weights, (p, 1), strict=True):
        e[..., lag] = weight * (1.0 - (b * c * power[..., lag, :]).real.sum(axis=-1))
    by_a, by_w = equations.pull(power, e)
    turned = b * c * a * by_a  # by log a = -rate + i theta
    out = np.zeros_like(y)
    out[..., 0, :], out[..., 1, :] = -rate * turned.real, -turned.imag
    if train_bc:
        for row, factor in ((2, c), (4, b)):
            slope = np.conj(factor * by_w)
            out[..., row, :], out[..., row + 1, :] = slope.real, slope.imag
    return out


def _follow_complex(
    y0: Float[np.ndarray, "6 d"], weights: tuple[float, float], p: int, train_bc: bool
) -> Float[np.ndarray, "6 d"]:
    shape = y0.shape

    def speed(_t: float, y: np.ndarray) -> np.ndarray:
        return _complex_velocity(y.reshape(shape), weights, p, train_bc).ravel()

    def jacobian(_t: float, y: np.ndarray) -> np.ndarray:
        steps = 1e-7 * (1.0 + np.abs(y))
        moved = (y + np.diag(steps)).reshape(-1, *shape)
        change = _complex_velocity(moved, weights, p, train_bc).reshape(len(y), -1) - speed(0.0, y)
        return np.asarray((change / steps[:, None]).T)

    solver = LSODA(speed, 0.0, y0.ravel(), 1e30, jac=jacobian, rtol=1e-9, atol=1e-12)
    for _ in range(_MOST_STEPS):
        message = solver.step()
        y = solver.y.reshape(shape)
        if solver.status == "failed" or not np.isfinite(y).all():
            raise FlowError(f"LSODA gave up at t = {solver.t:g}: {message or 'not finite'}")
        r_p, r_1 = (1.0 - float(_complex_response(y, lag)) for lag in (p, 1))
        if (
            weights[0] * r_p**2 + weights[1] * r_1**2
        ) / 2.0 <= _FITTED or solver.status == "finished":
            break
    return y.copy()
