"""Gradient flow of layers, many runs side by side, by a Rosenbrock method.

For parameters that no formula of `flow` or `parametrizations` covers; those are faster and follow
ties exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ssm_poison_lib._checks import ArrayLike, as_array, as_flag, as_instance, as_scalar
from ssm_poison_lib._engines.rosenbrock import (
    _A,
    _B1,
    _B2,
    _B3,
    _B4,
    _C,
    _E1,
    _E2,
    _E3,
    _E4,
    GAMMA,
)
from ssm_poison_lib.architectures.channel import Channel
from ssm_poison_lib.flow import FlowError

__all__ = ["ChannelEnd", "channel_flow", "many_gradient_flows"]

_WEIGHTS, _ERRORS = (_B1, _B2, _B3, _B4), (_E1, _E2, _E3, _E4)

Rows = Int[np.ndarray, " n"]
Solve = Callable[[np.ndarray], np.ndarray]
Force = Callable[[np.ndarray, Rows], tuple[np.ndarray, np.ndarray]]
System = Callable[[np.ndarray, np.ndarray, Rows], Solve]
Watch = Callable[[np.ndarray, Rows], None]


def many_gradient_flows(
    start: Float[np.ndarray, "n k"],
    force: Force,
    system: System,
    *,
    t_end: float,
    fitted: float = 1e-14,
    rtol: float = 1e-5,
    atol: float = 1e-8,
    max_steps: int = 5000,
    watch: Watch | None = None,
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return where gradient flows end, from their loss, its gradient and its Hessian.

    Each run has its own time and step, and ends when its loss is at most `fitted`, or at `t_end`.

    Args:
        start: (n, k).
        force: of parameters (m, k) and the numbers of their runs (m,): loss (m,) and minus its
            gradient (m, k).
        system: of parameters (m, k), shifts (m,) and the numbers of their runs: a function from
            right-hand
            sides (m, k) to solutions of (shift I + Hessian) x = right-hand side.
        t_end: flow time, > 0.
        fitted: loss at which a run ends.
        rtol: tolerance of a step relative to each parameter.
        atol: absolute tolerance of a step.
        max_steps: most steps tried.
        watch: is called after each step with the parameters (m, k) of the runs that took it and
            their numbers (m,).

    Returns:
        Parameters (n, k), losses (n,), times (n,).

    Raises:
        FlowError: if a run is not finite at its start or needs more than max_steps steps.

    Source: GRK4T of Kaps and Rentrop (1979).
    """
    y, time = start.copy(), np.zeros(len(start))
    everyone = np.arange(len(start))
    loss, slope = force(y, everyone)
    if not np.isfinite(loss).all():
        raise FlowError(
            f"the loss of run {int(np.flatnonzero(~np.isfinite(loss))[0])} is not finite"
        )
    with np.errstate(all="ignore"):  # steps that are not finite are not taken
        step = np.minimum(1e-3 / np.abs(slope).max(axis=1), t_end)
        going = everyone[loss > fitted]
        for _ in range(max_steps):
            if not len(going):
                return y, loss, time
            here, h = y[going], step[going]
            solve = system(here, 1.0 / (GAMMA * h), going)
            stages: list[np.ndarray] = []
            pull = slope[going]
            for i in range(4):
                if i in (1, 2):  # the fourth stage is taken where the third is
                    pull = force(here + sum(_A[i, m] * k for m, k in enumerate(stages)), going)[1]
                right = pull + sum(_C[i, m] * k for m, k in enumerate(stages)) / h[:, None]
                stages.append(solve(right))
            new = here + sum(b * k for b, k in zip(_WEIGHTS, stages, strict=True))
            error = sum(e * k for e, k in zip(_ERRORS, stages, strict=True))
            scale = atol + rtol * np.maximum(np.abs(here), np.abs(new))
            size = np.sqrt(np.square(error / scale).mean(axis=1))
            there, turned = force(new, going)
            size[~np.isfinite(size) | ~np.isfinite(there)] = np.inf
            taken = size <= 1.0
            rows = going[taken]
            y[rows], loss[rows], slope[rows] = new[taken], there[taken], turned[taken]
            time[rows] += h[taken]
            if watch is not None:
                watch(y[rows], rows)
            step[going] = h * np.clip(0.9 * np.maximum(size, 1e-12) ** -0.25, 0.2, 6.0)
            step[going] = np.minimum(step[going], np.maximum(t_end - time[going], 1e-12 * t_end))
            going = going[(loss[going] > fitted) & (time[going] < t_end * (1 - 1e-9))]
    first = int(going[0])
    raise FlowError(
        f"no end after max_steps={max_steps} steps: run {first} is at t = {time[first]:g} of"
        f" {t_end:g}"
    )


class ChannelEnd(NamedTuple):
    """Where flows of a channel ended.

    Attributes:
        parameters: (n, rows, d).
        loss: (n,).
        time: (n,) flow time.
    """

    parameters: Float[np.ndarray, "n rows d"]
    loss: Float[np.ndarray, " n"]
    time: Float[np.ndarray, " n"]


def channel_flow(
    channel: Channel,
    start: ArrayLike,
    weights: ArrayLike,
    target: ArrayLike,
    *,
    poles_only: bool,
    t_end: float,
    rtol: float = 1e-5,
    max_steps: int = 5000,
    watch: Watch | None = None,
) -> ChannelEnd:
    """Return where gradient flow of (M* - M)^T G (M* - M) / 2 leads, M the impulse response of a
    channel.

    The Hessian is a block for each pole and one term of rank 1 for each direction of G, so a step
    of d poles takes O(d).

    Args:
        channel: one of `CHANNELS`.
        start: (n, rows, d) parameters.
        weights: (n, lags) the diagonal g_m >= 0 of G at lags 1 .. lags, for each run, where each
            sequence shows one lag; or all of G, (n, lags, lags), positive semidefinite.
        target: (lags,) the teacher's response M*_m at these lags.
        poles_only: whether B, C and the step are fixed.
        t_end: flow time, > 0; a run whose loss reaches 1e-14 ends before.
        rtol: tolerance of a step relative to each parameter.
        max_steps: most steps tried.
        watch: is called after each step with the parameters (m, rows, d) of the runs that took it
            and their numbers (m,).

    Returns:
        Parameters, losses and times.

    Raises:
        TypeError: if `channel` is something else, such as a name.
        ValueError: if an argument is out of range.
        FlowError: if a run fails.
    """
    channel = as_instance("channel", channel, Channel)
    whole = as_array("start", start, ndim=3)
    g = as_array("weights", weights, ndim=(2, 3))
    goal = as_array("target", target, ndim=1)
    if whole.shape[1] != len(channel.rows):
        raise ValueError(f"start must have {len(channel.rows)} rows; got {whole.shape[1]}")
    shape = (len(whole), *(len(goal),) * (g.ndim - 1))
    if g.shape != shape:
        raise ValueError(f"weights must be of shape {shape}; got {g.shape}")
    if g.ndim == 2:
        if (g < 0).any():
            raise ValueError(f"weights must be >= 0; got {g.min():g} among them")
        shown = np.asarray((g > 0).any(axis=0))
        g, root = g[:, shown], np.sqrt(g[:, shown])
    else:
        shown = np.asarray(np.diagonal(g, axis1=1, axis2=2).any(axis=0))
        root = _root(g)[:, :, shown]
        g, root = g[:, shown][:, :, shown], root[:, root.any(axis=(0, 2))]
    t_end = as_scalar("t_end", t_end, low=0.0, strict=True)
    rtol = as_scalar("rtol", rtol, low=1e-12)
    names = channel.poles_only if as_flag("poles_only", poles_only) else channel.all_rows
    made = channel.derivatives(poles_only=poles_only)
    place = [channel.rows.index(name) for name in names]
    q, d = len(names), whole.shape[2]
    pairs = [(i, j) for i in range(q) for j in range(i, q)]
    lags, goal = np.arange(1, len(goal) + 1)[shown], goal[shown]

    def weighted(off: np.ndarray, rows: Rows) -> np.ndarray:
        """G (M* - M), (n, lags)."""
        return g[rows] * off if g.ndim == 2 else (g[rows] @ off[..., None])[..., 0]

    def directions(slopes: np.ndarray, rows: Rows) -> np.ndarray:
        """Slopes (n, d, q, directions) along the directions of G, times their roots."""
        if g.ndim == 2:
            return (root[rows][:, :, None, None] * slopes).transpose(0, 2, 3, 1)
        return slopes.transpose(0, 2, 3, 1) @ root[rows].mT[:, None]

    def at(y: np.ndarray, rows: Rows) -> np.ndarray:
        p = whole[rows].copy()
        p[:, place] = y.reshape(len(rows), q, d)
        return p

    def local(y: np.ndarray, rows: Rows, second: bool) -> tuple[np.ndarray, ...]:
        """Residuals (n, lags), slopes of each lag (n, lags, d, q), and the poles' blocks (n, d, q,
        q).
        """
        p = at(y, rows)
        parts = made(*np.moveaxis(p + 0j, 1, 0))
        z, w, first = parts[0] + 0j * p[:, 0], parts[1] + 0j * p[:, 0], parts[2 : 2 + 2 * q]
        power = np.exp(lags[:, None] * z[:, None, :])  # (n, lags, d)
        off = goal - (power * w[:, None]).real.sum(axis=2)
        dz = np.stack([v + 0j * z for v in first[:q]], axis=-1)  # (n, d, q)
        dw = np.stack([v + 0j * z for v in first[q:]], axis=-1)
        grown = lags[:, None, None] * (w[..., None] * dz)[:, None]
        slopes = (power[..., None] * (dw[:, None] + grown)).real
        if not second:
            return off, slopes
        pulls = weighted(off, rows)[..., None] * power
        s0, s1, s2 = (np.einsum("nld,l->nd", pulls, lags**k) for k in (0, 1, 2))
        block = np.einsum("nd,ndi,ndj->ndij", s2 * w, dz, dz)
        cross = np.einsum("nd,ndi,ndj->ndij", s1, dw, dz)
        block = block + cross + cross.swapaxes(2, 3)
        twice = parts[2 + 2 * q :]
        for k, (i, j) in enumerate(pairs):
            bend = s1 * w * twice[k] + s0 * twice[k + len(pairs)]
            block[:, :, i, j] += bend
            if i != j:
                block[:, :, j, i] += bend
        return off, slopes, block.real

    def force(y: np.ndarray, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        off, slopes = local(y, rows, second=False)
        pulled = weighted(off, rows)
        pulls = np.einsum("nl,nldq->nqd", pulled, slopes)
        return (pulled * off).sum(axis=1) / 2, pulls.reshape(len(rows), -1)

    def system(y: np.ndarray, shift: np.ndarray, rows: Rows) -> Solve:
        _, slopes, block = local(y, rows, second=True)
        n = len(rows)
        inverse = np.linalg.inv(shift[:, None, None, None] * np.eye(q) - block)  # (n, d, q, q)
        V = directions(slopes, rows)
        W = inverse @ V
        small = np.eye(root.shape[1]) + np.einsum("ndql,ndqk->nlk", V, W)

        def solve(right: np.ndarray) -> np.ndarray:
            b = right.reshape(n, q, d).swapaxes(1, 2)[..., None]
            x = inverse @ b
            between = np.linalg.solve(small, np.einsum("ndql,ndqo->nlo", V, x))
            x = x - np.einsum("ndql,nlo->ndqo", W, between)
            return np.asarray(x[..., 0].swapaxes(1, 2).reshape(n, -1))

        return solve

    y, loss, time = many_gradient_flows(
        whole[:, place].reshape(len(whole), -1),
        force,
        system,
        t_end=t_end,
        rtol=rtol,
        max_steps=max_steps,
        watch=None if watch is None else lambda y, rows: watch(at(y, rows), rows),
    )
    return ChannelEnd(at(y, np.arange(len(whole))), loss, time)


def _root(gram: Float[np.ndarray, "n lags lags"]) -> Float[np.ndarray, "n lags lags"]:
    """Return a matrix R with R^T R = G, for each run."""
    if not np.allclose(gram, gram.mT, rtol=0.0, atol=1e-9 * np.abs(gram).max()):
        raise ValueError("weights must be symmetric matrices; got one that is not")
    size, directions = np.linalg.eigh(gram)
    if (size < -1e-9 * np.abs(size).max(axis=1, keepdims=True)).any():
        raise ValueError(
            f"weights must be positive semidefinite; got an eigenvalue {size.min():g} among them"
        )
    return np.sqrt(np.maximum(size, 0.0))[..., None] * directions.mT
