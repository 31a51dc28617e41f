"""Sweeps over the theorem's setting: near ties, uniform starts, orders, parametrizations."""

from __future__ import annotations

import numpy as np
import xarray as xr
from jaxtyping import Float

from ssm_poison_lib.flow import gradient_flow
from ssm_poison_lib.flows import near_tie_starts, theorem_flows
from ssm_poison_lib.parametrizations import PARAMETRIZATIONS
from ssm_poison_lib.ssm import near_zero
from ssm_poison_lib.studies._points import flattened, labelled, near_tie_shapes

__all__ = ["ORDERS", "order_errors", "parametrization_errors", "theorem_errors", "uniform_errors"]

ORDERS = ("mixed", "baseline only", "special, then baseline", "baseline, then both", "interleaved")
"""The orders that `order_errors` knows, by their numbers."""

_PHASES = {
    "mixed": ("both",),
    "baseline only": ("baseline",),
    "special, then baseline": ("special", "baseline"),
    "baseline, then both": ("baseline", "both"),
}
_INTERLEAVED_FITTED, _MOST_ROUNDS = 1e-16, 10_000
_START_AXES = ("scale", "tie_gap", "state_dim", "length", "seed")


def _time_to_fit(
    scale: Float[np.ndarray, " n"], beta: Float[np.ndarray, " n"], d: float, length: float
) -> Float[np.ndarray, " n"]:
    """Return a time by which a flow has fitted, left the saddle and settled against a weak dose;
    generous: converged runs end.
    """
    escape = np.where(beta > 0, d ** (length - 3.0) + 1.0 / np.where(beta > 0, beta, 1.0), 0.0)
    return np.asarray(1e4 * (scale ** (3.0 - length) + escape))


def theorem_errors(points: xr.Dataset) -> xr.Dataset:
    """Measure flows of the theorem's setting at every point of a grid.

    Args:
        points: coordinates, each an axis or a fixed value: scale (eps); tie_gap (g: abar_1 = 1,
            abar_2 = 1 - g, the others uniform below 1 - g); dose (beta, with alpha = 1; 0: baseline
            only); state_dim (d >= 2); length (kappa >= 3); seed (of the uniform draws, which no
            other coordinate but d changes); optional special_position (default: kappa - 1),
            negatives (how many of the smallest entries start negative, default 0) and t_end
            (default: long enough to fit with special sequences at kappa - 1).

    Returns:
        error (Gen_20 over lags 1..19), loss, status (a `FlowStatus`), log_tie (log of the final a_1
        - a_2), time and steps over all axes. Failed runs are NaN with a negative status.

    Raises:
        ValueError: for other or missing coordinates.
    """
    flat, dims, shape = flattened(
        points, (*_START_AXES, "dose"), ("special_position", "negatives", "t_end"), "theorem_errors"
    )
    dose, cases = flat["dose"], np.stack([flat["state_dim"], flat["length"]], axis=1)
    negatives = flat.get("negatives", np.zeros(len(dose)))
    measured = {
        name: np.empty(len(dose))
        for name in ("error", "loss", "status", "log_tie", "time", "steps")
    }
    for d, length in np.unique(cases, axis=0):
        at = (cases == (d, length)).all(axis=1)
        scale, g, beta = flat["scale"][at], flat["tie_gap"][at], dose[at]
        if "t_end" in flat:
            t_end = flat["t_end"][at]
        else:
            t_end = _time_to_fit(scale, beta, d, length)
        A0, gaps = near_tie_starts(
            near_tie_shapes(int(d), g, flat["seed"][at], negatives[at]), scale, g
        )
        position = flat["special_position"][at] if "special_position" in flat else None
        batch = theorem_flows(
            A0,
            gaps=gaps,
            length=int(length),
            alpha=1.0,
            beta=beta,
            t_end=t_end,
            workers=1,
            on_failure="nan",
            special_position=position,
        )
        measured["error"][at] = batch.generalization_errors(np.ones(20), first_lag=1)
        measured["loss"][at] = batch.loss
        measured["status"][at] = batch.status
        measured["log_tie"][at] = np.asarray(batch.log_gap)[:, 1]
        measured["time"][at] = batch.times
        measured["steps"][at] = batch.steps
    return labelled(measured, points, dims, shape)


def uniform_errors(points: xr.Dataset) -> xr.Dataset:
    """Measure flows of the theorem's setting from uniform starts as drawn, without a near tie, at
    every point of a grid.

    Args:
        points: coordinates, each an axis or a fixed value: scale (eps: the entries are uniform in
            [0, eps)); dose (beta, with alpha = 1; 0: baseline only); state_dim (d >= 2); length
            (kappa >= 3); seed (of NumPy's RandomState, as in `paper.TheoremSetting.start`).

    Returns:
        error (Gen_20 over lags 1..19) and status (a `FlowStatus`) over all axes. Failed runs are
        NaN with a negative status.

    Raises:
        ValueError: for other or missing coordinates.
    """
    needed = ("scale", "dose", "state_dim", "length", "seed")
    flat, dims, shape = flattened(points, needed, (), "uniform_errors")
    measured = {name: np.empty(len(flat["dose"])) for name in ("error", "status")}
    cases = np.stack([flat["state_dim"], flat["length"]], axis=1)
    for d, length in np.unique(cases, axis=0):
        at = (cases == (d, length)).all(axis=1)
        scale, beta = flat["scale"][at], flat["dose"][at]
        starts = zip(scale, flat["seed"][at], strict=True)
        A0 = np.array(
            [near_zero(int(d), eps, seed=np.random.RandomState(int(seed))) for eps, seed in starts]
        )
        # A start that is small in every entry takes as long as its largest one asks for, whatever
        # eps is.
        t_end = _time_to_fit(A0[:, 0], beta, d, length)
        batch = theorem_flows(
            A0, length=int(length), alpha=1.0, beta=beta, t_end=t_end, workers=1, on_failure="nan"
        )
        measured["error"][at] = batch.generalization_errors(np.ones(20), first_lag=1)
        measured["status"][at] = batch.status
    return labelled(measured, points, dims, shape)


def order_errors(points: xr.Dataset) -> xr.Dataset:
    """Measure the theorem's two sequences, one of each kind, shown in different orders, at every
    point of a grid.

    Args:
        points: coordinates as in `theorem_errors` (scale, tie_gap, state_dim, length, seed) and
            order, a number of `ORDERS`; optional phase, the flow time of one phase of the order
            "interleaved" (default 1e3). In a phase only one sequence is seen (its weight is then 2;
            1 and 1 when both are seen); "interleaved" begins with the special one and goes on until
            both are fitted, or for 10,000 rounds: loss says which.

    Returns:
        error (Gen_20 over lags 1..19), loss (of both sequences at the end) and rounds (of
        "interleaved": pairs of phases; otherwise the number of phases) over all axes.

    Raises:
        ValueError: for other or missing coordinates.
        FlowError: if a flow fails.
    """
    flat, dims, shape = flattened(points, (*_START_AXES, "order"), ("phase",), "order_errors")
    if not np.isin(flat["order"], np.arange(len(ORDERS))).all():
        raise ValueError(
            f"order must be an integer from 0 to {len(ORDERS) - 1}: {', '.join(ORDERS)}"
        )
    phase = flat.get("phase", np.full(len(flat["order"]), 1e3))
    if (phase <= 0).any():
        raise ValueError(f"phase must be > 0; got {phase.min():g}")
    measured = {name: np.empty(len(phase)) for name in ("error", "loss", "rounds")}
    cases = np.stack([flat[k] for k in ("state_dim", "length", "order")], axis=1)
    for d, length, order in np.unique(cases, axis=0):
        at = (cases == (d, length, order)).all(axis=1)
        scale, g = flat["scale"][at], flat["tie_gap"][at]
        A, gaps = near_tie_starts(near_tie_shapes(int(d), g, flat["seed"][at], 0.0 * g), scale, g)
        rounds = np.zeros(len(g))
        long = 1e4 * (scale ** (3.0 - length) + d ** (length - 3.0))
        if ORDERS[int(order)] == "interleaved":
            left = np.arange(len(g))
            while len(left):
                for which in ("special", "baseline"):
                    A[left], gaps[left] = _phase(
                        which, A[left], gaps[left], int(length), phase[at][left]
                    )
                rounds[left] += 1
                off = (1 - A[left].sum(axis=1)) ** 2 + (
                    1 - (A[left] ** (length - 1)).sum(axis=1)
                ) ** 2
                left = left[(off > _INTERLEAVED_FITTED) & (rounds[left] < _MOST_ROUNDS)]
        else:
            for which in _PHASES[ORDERS[int(order)]]:
                A, gaps = _phase(which, A, gaps, int(length), long)
                rounds += 1
        measured["error"][at] = np.max(
            [np.abs((A**k).sum(axis=1) - 1) for k in range(1, 20)], axis=0
        )
        measured["loss"][at] = (
            (1 - A.sum(axis=1)) ** 2 + (1 - (A ** (length - 1)).sum(axis=1)) ** 2
        ) / 2
        measured["rounds"][at] = rounds
    return labelled(measured, points, dims, shape)


def _phase(
    which: str,
    A: Float[np.ndarray, "n d"],
    gaps: Float[np.ndarray, "n gaps"],
    length: int,
    t_end: Float[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n gaps"]]:
    """Show the baseline sequence, the special one or both for a while; return the entries and their
    exact gaps.
    """
    alpha, beta = {"baseline": (2.0, 0.0), "special": (0.0, 2.0), "both": (1.0, 1.0)}[which]
    batch = theorem_flows(
        A, gaps=gaps, length=length, alpha=alpha, beta=beta, t_end=t_end, workers=1
    )
    return batch.A, np.nan_to_num(np.exp(np.asarray(batch.log_gap)[:, 1:]), nan=0.0)


def parametrization_errors(points: xr.Dataset) -> xr.Dataset:
    """Measure the theorem's flow with trained parameters s instead of free entries, a_j = f(s_j),
    at every point of a grid.

    Args:
        points: coordinates as in `theorem_errors` (scale, tie_gap, state_dim, length, seed, dose),
            parametrization, a number of the names in `PARAMETRIZATIONS` in their order; near, 0 or
            1: a start eps * abar near 0, or 1 - eps (2 - abar) near 1, with the same near tie;
            t_end.

    Returns:
        error (Gen_20 over lags 1..19), loss and negatives (how many entries end below 0) at t_end
        over all axes.

    Raises:
        ValueError: for other or missing coordinates.
        FlowError: if a flow fails.
    """
    needed = (*_START_AXES, "dose", "parametrization", "near", "t_end")
    flat, dims, shape = flattened(points, needed, (), "parametrization_errors")
    names = list(PARAMETRIZATIONS)
    if not np.isin(flat["parametrization"], np.arange(len(names))).all():
        raise ValueError(
            f"parametrization must be an integer from 0 to {len(names) - 1}: {', '.join(names)}"
        )
    if not np.isin(flat["near"], (0, 1)).all():
        raise ValueError("near must be 0 or 1")
    measured = {name: np.empty(len(flat["near"])) for name in ("error", "loss", "negatives")}
    for i in range(len(flat["near"])):
        case = {name: values[i] for name, values in flat.items()}
        d, length, beta = int(case["state_dim"]), int(case["length"]), case["dose"]
        one = np.atleast_1d
        abar = near_tie_shapes(d, one(case["tie_gap"]), one(case["seed"]), np.zeros(1))[0]
        abar[1] = 1.0 - case["tie_gap"]
        A0 = case["scale"] * abar if case["near"] == 0 else 1.0 - case["scale"] * (2.0 - abar)
        G, target = np.zeros((length, length)), np.ones(length)
        G[1, 1], target[0] = beta, d
        G[length - 1, length - 1] += 1.0
        a = gradient_flow(
            A0,
            (G, target),
            parametrization=names[int(case["parametrization"])],
            times=[case["t_end"]],
        ).A[-1]
        off = np.array([1 - (a**k).sum() for k in range(1, max(20, length))])
        measured["error"][i] = np.abs(off[:19]).max()
        measured["loss"][i] = (beta * off[0] ** 2 + off[length - 2] ** 2) / 2
        measured["negatives"][i] = np.count_nonzero(a < 0)
    return labelled(measured, points, dims, shape)
