"""Many gradient flows at once, by a compiled Rosenbrock method.

With B and C fixed, da_j/dt = w_j f(a_j), where f(x) = sum_l gamma_l x^l is shared by all entries.
With G = L L^T (L: r columns) and rho = L^T (M* - M), f = sum_c rho_c P_c, where
P_c(x) = sum_l (l+1) L_{l+1,c} x^l, and

    J = diag(w_j f'(a_j)) - V V^T,    V_jc = w_j P_c(a_j):

a linear system of an implicit step costs O(d r^2) by the Sherman-Morrison-Woodbury formula instead
of O(d^3); with more columns than entries, the latter.

Entries of equal weight never cross, so each is followed as the *gap* to the next larger one: the
unknowns of a run are u_1 = a_1 and u_j = a_{j-1} - a_j, with du_j/dt = w f[a_{j-1}, a_j] u_j, f[x,
y] = (f(x) - f(y)) / (x - y) the divided difference, which Horner's scheme gives without a
subtraction. A gap keeps its relative accuracy whatever its size, as its logarithm would: the error
control on it is relative.

The method is Kaps and Rentrop's GRK4T (order 4, error estimate of order 3; Hairer and Wanner,
Solving Ordinary Differential Equations II, section IV.7). Up to 64 runs ("lanes") advance side by
side, each with its own step size, so that the innermost loop of every operation runs over lanes and
is compiled to vector instructions. That, not the method, is most of the speed:
`benchmarks/flows.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ssm_poison_lib._checks import (
    MAX_COUNT,
    MAX_ENTRIES,
    ArrayLike,
    as_array,
    as_choice,
    as_integer,
    as_scalar,
    as_workers,
    contiguous,
    in_range,
    shown,
)
from ssm_poison_lib._engines.rosenbrock import Results, Runs, factor_gram, integrate
from ssm_poison_lib._trajectory import FlowError, FlowStatus, Trajectory
from ssm_poison_lib.flow import gradient_flow, moments
from ssm_poison_lib.parametrizations import PARAMETRIZATIONS
from ssm_poison_lib.sequences import TrainingSet
from ssm_poison_lib.ssm import DiagonalSSM

__all__ = ["many_flows", "near_tie_starts", "theorem_flows"]


_REASONS = {
    FlowStatus.FAILED_STEP_SIZE: (
        "the step size vanished (the flow blows up or leaves the range of float64)"
    ),
    FlowStatus.FAILED_STEP_LIMIT: "max_steps steps did not reach t_end or a minimum",
}


def near_tie_starts(
    shape: ArrayLike, scales: ArrayLike, tie_gaps: ArrayLike
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n gaps"]]:
    """Return starts eps * abar with a relative gap g between the first two, and their exact gaps.

    Args:
        shape: (d,) or (n, d) descending abar, d >= 2 (its second entry is replaced by abar_1 (1 -
            g))
        scales: eps > 0, a number or (n,)
        tie_gaps: g >= 0, a number or (n,), as small as a float can be.

    Returns:
        A0 (n, d) and gaps (n, d-1) with gaps[:, j] = a_j - a_{j+1}; gaps[:, 0] = eps g abar_1 is
        exact even where A0 cannot show it. Hand both to `many_flows` or `theorem_flows`.

    Raises:
        ValueError: if the tie would push the second entry below the third, or if an entry or gap
            leaves the normal numbers of float64 (2.2e-308 to 1.8e308): a gap below them would lose
            its digits or become an exact tie.
    """
    abar = np.atleast_2d(as_array("shape", shape, ndim=(1, 2)))
    eps = np.atleast_1d(as_array("scales", scales, ndim=(0, 1)))
    g = np.atleast_1d(as_array("tie_gaps", tie_gaps, ndim=(0, 1)))
    sizes = {len(abar), len(eps), len(g)} - {1}
    if len(sizes) > 1:
        raise ValueError(
            "shape, scales and tie_gaps must have one row each per run (or one for all);"
            f" got {len(abar)}, {len(eps)} and {len(g)}"
        )
    if abar.shape[1] < 2:
        raise ValueError(f"shape must have at least 2 entries for a near tie; got {abar.shape[1]}")
    if (eps <= 0).any():
        raise ValueError(f"scales must be > 0; got {eps.min():g}")
    if (g < 0).any():
        raise ValueError(f"tie_gaps must be >= 0; got {g.min():g}")
    n = sizes.pop() if sizes else 1
    A0 = np.array(np.broadcast_to(abar, (n, abar.shape[1])))
    with np.errstate(over="ignore", under="ignore"):
        A0[:, 1] = A0[:, 0] * (1.0 - g)
        gaps = A0[:, :-1] - A0[:, 1:]
        gaps[:, 0] = g * A0[:, 0]
    if (gaps < 0).any():
        raise ValueError(
            "shape must stay descending with its second entry at abar_1 (1 - g), g among tie_gaps;"
            f" got a gap of {gaps.min():.6g}"
        )
    with np.errstate(over="ignore", under="ignore"):
        starts, exact = A0 * eps[:, None], gaps * eps[:, None]
    in_range("scales", "the start", starts)
    least = np.finfo(float).tiny
    if ((np.abs(starts) < least) & (A0 != 0)).any():
        raise ValueError(
            f"scales must be larger: the start would fall below {least:.2g}; got {eps.min():g}"
        )
    if ((exact[:, 0] < least) & (g > 0) & (A0[:, 0] > 0)).any():
        raise ValueError(
            "tie_gaps must be larger, or 0 for an exact tie: eps g abar_1 would fall below"
            f" {least:.2g} and lose its digits; got {g[g > 0].min():g}"
        )
    return starts, exact


def theorem_flows(
    start: ArrayLike,
    *,
    length: int,
    alpha: ArrayLike,
    beta: ArrayLike,
    t_end: ArrayLike,
    gaps: ArrayLike | None = None,
    special_position: ArrayLike | None = None,
    **options: Any,
) -> Trajectory:
    """Follow flows of the theorem's setting.

    There da_j/dt = alpha (kappa-1) a_j^{kappa-2} r_{kappa-1} + beta r_1.

    Args:
        start: (n, d) entries at t = 0.
        length: kappa from 3 to 10,000
        alpha: weights >= 0 of baseline and special sequences, (2/n) times the sum of their squared
            coefficients, numbers or (n,) (beta = 0: baseline only)
        beta: weights >= 0 of baseline and special sequences, (2/n) times the sum of their squared
            coefficients, numbers or (n,) (beta = 0: baseline only)
        t_end: as in `many_flows`.
        gaps: as in `many_flows`.
        options: as in `many_flows`.
        special_position: where, from 1 to kappa-1, the special sequences are non-zero, a number or
            (n,) (default: kappa-1, the theorem's); at position i their term is beta m a_j^{m-1} r_m
            with m = kappa-i, and i = 1 adds to the baseline ones.

    Source: section "The setting" of chapter "One clean example too many".
    """
    starts = np.atleast_2d(as_array("start", start, ndim=(1, 2)))
    n, d = starts.shape
    length = as_integer("length", length, low=3, high=10_000)
    positions = as_array(
        "special_position",
        length - 1 if special_position is None else special_position,
        ndim=(0, 1),
    )
    if positions.ndim == 1 and len(positions) != n:
        raise ValueError(f"special_position must be a number, or one for each of the {n} runs")
    if not np.isin(positions, np.arange(1, length)).all():
        raise ValueError(
            f"special_position must be a position from 1 to {length - 1}; got"
            f" {shown(special_position)}"
        )
    weights = {}
    for name, value in (("alpha", alpha), ("beta", beta)):
        weights[name] = weight = as_array(name, value, ndim=(0, 1))
        if (weight < 0).any() or (weight.ndim == 1 and len(weight) != n):
            raise ValueError(
                f"{name} must be a number >= 0, or one for each of the {n} runs; got {shown(value)}"
            )
    cases = np.stack([np.broadcast_to(x, n) for x in (positions, *weights.values())])  # (3, n)
    if (cases == cases[:, :1]).all():
        cases = cases[:, :1]  # one Gram matrix for all
    # G is diagonal with two entries, so its factor is known: memory O(length), not O(length^2).
    m = cases.shape[1]
    if 4 * m * length > MAX_ENTRIES:
        raise ValueError(
            f"length must be at most {MAX_ENTRIES // (4 * m)} for {m} runs of different weights;"
            f" got {length}"
        )
    lags, row, p = length - cases[0].astype(int), np.arange(m), length - 1
    doses = np.stack(
        [np.where(lags == p, 0.0, cases[2]), cases[1] + np.where(lags == p, cases[2], 0.0)]
    )
    first = (doses[1] > doses[0]).astype(int)  # columns in the order of `factor_gram`
    L = np.zeros((m, length, 2))
    L[row, lags, first] = np.sqrt(doses[0])
    L[row, p, 1 - first] = np.sqrt(doses[1])
    rank = int((doses > 0).sum(axis=0).max())
    target = np.ones(length)
    target[0] = d  # what w = ones gives at lag 0 whatever A is

    def loss(M: Float[np.ndarray, "n kappa"]) -> Float[np.ndarray, " n"]:
        missing = 1.0 - np.stack([M[np.arange(n), np.broadcast_to(lags, n)], M[:, p]])
        return np.asarray((missing * doses * missing).sum(axis=0) / 2)

    return _follow(starts, np.ones(d), gaps, L[:, :, :rank], target, loss, t_end=t_end, **options)


def many_flows(
    start: ArrayLike,
    training_set: TrainingSet | tuple[ArrayLike, ArrayLike],
    *,
    t_end: ArrayLike,
    w: ArrayLike | None = None,
    train: str = "A",
    parametrization: str = "free",
    gaps: ArrayLike | None = None,
    loss_tol: float = 1e-12,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 100_000,
    workers: int | None = None,
    on_failure: str = "raise",
) -> Trajectory:
    """Follow n gradient flows, from t = 0 to their limits or to t_end, and keep their ends.

    The arguments are those of `flow.gradient_flow`, with a leading axis n.

    Args:
        start: (n, d) entries at t = 0.
        training_set: one training set for all; or (G, M*), (kappa, kappa) or (n, kappa, kappa),
            `TrainingSet.gram()`, and (kappa,) or (n, kappa), the teacher's impulse response.
        t_end: end of the flow time, a number or (n,).
        w: (d,) or (n, d) weights b_j c_j (default: ones); where B and C are trained they start
            from w and ones.
        train: "A", or "ABC" to move B and C too.
        parametrization: a name in `parametrizations.PARAMETRIZATIONS`.
        gaps: (n, d-1) exact differences a_j - a_{j+1} >= 0 for starts whose near ties are below
            the rounding of `start` (see `near_tie_starts`); it must then be descending in each row,
            agree with them up to rounding, and w be equal.
        loss_tol: a run whose last loss is at most this counts as fitted.
        rtol: error allowed per step relative to each gap and to the first entry of each group of
            equal weights, in 1e-13..1e-3. Default 1e-6: 963 of 972 random cases end with a
            generalization error within 1e-6, all within 5e-6 (`benchmarks/flows.py --tolerances`).
        atol: absolute error allowed for those first entries (default 1e-12).
        max_steps: from 1 to 1e9.
        workers: threads (default: all cores of this process).
        on_failure: "raise", or "nan" to keep the other runs and fill failed rows with NaN (their
            status says why).

    Returns:
        a `Trajectory` of n rows. A run ends early, as CONVERGED, once every residual that A can
        change is below 1e-12 (or its rounding) and the rest of the motion is negligible; the last
        1e-5 of the way is taken by Gauss-Newton steps instead of by time.

    Raises:
        ValueError: for inputs of other shapes or ranges, or a G with an eigenvalue below
            -1e-10 kappa once its diagonal is scaled to ones (rounding in X^T X stays far above).
        FlowError: if a run fails and on_failure is "raise".

    The method of the module's docstring follows free entries with B and C fixed; other runs are
    those of `gradient_flow`, one after the other, with its tolerances where none are given.

    Source: Proposition 1 of chapter "Which way does training move?".
    """
    starts = np.atleast_2d(as_array("start", start, ndim=(1, 2)))
    n, d = starts.shape
    if isinstance(training_set, tuple) and len(training_set) == 2:
        gram = as_array("training_set's G", training_set[0], ndim=(2, 3))
        length = gram.shape[-1]
        response = as_array("training_set's M*", training_set[1], ndim=(1, 2), last=length)
    else:
        gram, response = moments(training_set)
        length = len(gram)
    gram, response = gram if gram.ndim == 3 else gram[None], np.atleast_2d(response)
    weights = np.ones(d) if w is None else as_array("w", w, ndim=(1, 2), last=d)
    _shapes(
        ("training_set's G", gram.shape, {(1, length, length), (n, length, length)}),
        ("training_set's M*", response.shape, {(1, length), (n, length)}),
        ("w", weights.shape, {(d,), (n, d)}),
    )
    train = as_choice("train", train, ("A", "ABC"))
    parametrization = as_choice("parametrization", parametrization, PARAMETRIZATIONS)
    options: dict[str, Any] = {"t_end": t_end, "loss_tol": loss_tol, "max_steps": max_steps}
    options |= {
        name: value for name, value in (("rtol", rtol), ("atol", atol)) if value is not None
    }
    options["on_failure"] = on_failure
    if train == "ABC" or parametrization != "free":
        if gaps is not None:
            raise ValueError("gaps must be left out unless train='A' and entries are free")
        options |= {"train": train, "parametrization": parametrization}
        return _one_by_one(starts, weights, gram, response, **options)
    if length < 2:
        raise ValueError(
            "training_set must have kappa >= 2 (at 1, A never matters); got G of shape"
            f" {gram.shape}"
        )

    def loss(M: Float[np.ndarray, "n kappa"]) -> Float[np.ndarray, " n"]:
        missing = response - M
        gram_of = np.broadcast_to(gram, (n, length, length))
        return np.asarray(np.einsum("ni,nij,nj->n", missing, gram_of, missing) / 2)

    return _follow(
        starts, weights, gaps, lambda: _factor(gram), response, loss, workers=workers, **options
    )


def _one_by_one(
    starts: Float[np.ndarray, "n d"],
    weights: Float[np.ndarray, "..."],
    gram: Float[np.ndarray, "m kappa kappa"],
    response: Float[np.ndarray, "m kappa"],
    *,
    t_end: ArrayLike,
    on_failure: str,
    **options: Any,
) -> Trajectory:
    """Follow runs that `gradient_flow` alone can follow, and keep their ends."""
    n, d = starts.shape
    ends = as_array("t_end", t_end, ndim=(0, 1))
    _shapes(("t_end", ends.shape, {(), (n,)}))
    on_failure = as_choice("on_failure", on_failure, ("raise", "nan"))
    rows = np.full((3, n, d), np.nan)
    times, losses, status = (
        np.full(n, np.nan),
        np.full(n, np.nan),
        np.full(n, FlowStatus.FAILED_STEP_SIZE),
    )
    fitted = np.zeros(n, dtype=bool)
    weights, ends = np.broadcast_to(weights, (n, d)), np.broadcast_to(ends, n)
    for i in range(n):
        data = gram[min(i, len(gram) - 1)], response[min(i, len(response) - 1)]
        student = DiagonalSSM(starts[i], weights[i], np.ones(d))
        try:
            run = gradient_flow(student, data, t_end=float(ends[i]), **options)
        except FlowError:
            if on_failure == "raise":
                raise
            continue
        rows[:, i] = run.A[-1], run.B[-1], run.C[-1]
        times[i], losses[i], status[i], fitted[i] = (
            run.times[-1],
            run.loss[-1],
            run.status,
            run.fitted,
        )
    A, B, C = rows
    return Trajectory(times, A, B, C, losses, status, fitted)


def _shapes(*cases: tuple[str, tuple[int, ...], set[tuple[int, ...]]]) -> None:
    """Raise ValueError unless each array, (name, shape, shapes allowed), has one of its shapes."""
    for name, given, allowed in cases:
        if given not in allowed:
            raise ValueError(
                f"{name} must have shape {' or '.join(map(str, sorted(allowed)))}; got {given}"
            )


def _follow(
    starts: Float[np.ndarray, "n d"],
    weights: Float[np.ndarray, "..."],
    gaps: ArrayLike | None,
    factor: Float[np.ndarray, "m kappa r"] | Callable[[], Float[np.ndarray, "m kappa r"]],
    target: Float[np.ndarray, "..."],
    loss: Callable[[Float[np.ndarray, "n kappa"]], Float[np.ndarray, " n"]],
    *,
    t_end: ArrayLike,
    loss_tol: float = 1e-12,
    rtol: float = 1e-6,
    atol: float = 1e-12,
    max_steps: int = 100_000,
    workers: int | None = None,
    on_failure: str = "raise",
) -> Trajectory:
    """Check what all ways to start have in common, and integrate.

    Args:
        factor: L with G = L L^T on lags >= 1, or what makes it
        loss: of the impulse responses (n, kappa).
    """
    n, d = starts.shape
    response = np.atleast_2d(target)
    length = response.shape[1]
    ends = as_array("t_end", t_end, ndim=(0, 1))
    _shapes(("t_end", ends.shape, {(), (n,)}))
    if (ends <= 0).any():
        raise ValueError(f"t_end must be > 0; got {ends.min():g}")
    rtol = as_scalar("rtol", rtol)
    if not 1e-13 <= rtol <= 1e-3:
        raise ValueError(f"rtol must be from 1e-13 to 1e-3; got {rtol:g}")
    atol = as_scalar("atol", atol, low=0.0, strict=True)
    loss_tol = as_scalar("loss_tol", loss_tol, low=0.0)
    max_steps = as_integer("max_steps", max_steps, low=1, high=MAX_COUNT)
    workers = as_workers("workers", workers)
    on_failure = as_choice("on_failure", on_failure, ("raise", "nan"))

    weights = np.ascontiguousarray(np.broadcast_to(weights, (n, d)))
    order, unknowns, chain = _gap_coordinates(starts, weights, gaps)
    L = factor() if callable(factor) else factor
    P = np.swapaxes(np.arange(1.0, length)[:, None] * L[:, 1:], 1, 2)  # coefficients of the P_c
    times = np.broadcast_to(ends, (n,))
    runs = Runs(
        *(contiguous(x) for x in (unknowns, chain, np.take_along_axis(weights, order, axis=1))),
        *(contiguous(x) for x in (L, P, response, times)),
    )
    results = Results(
        *(np.empty(shape) for shape in ((n, d), (n, d), (n, length))),
        *(np.empty(n, kind) for kind in (np.int64, np.float64, np.int64, np.int64)),
    )
    lanes = _lanes(d)

    def integrate_block(first: int) -> None:
        integrate(runs, first, min(first + size, n), lanes, rtol, atol, max_steps, results)

    # A few blocks per thread, because runs differ in length, but never so small that lanes stand
    # idle.
    size = max(2 * lanes, -(-n // (4 * workers)))
    if workers == 1:
        size = n
    with ThreadPoolExecutor(min(workers, -(-n // size))) as pool:
        list(pool.map(integrate_block, range(0, n, size)))

    end_u, status = results.u, results.status
    failed = np.flatnonzero(status < 0)
    if len(failed) and on_failure == "raise":
        i = failed[0]
        raise FlowError(
            f"{len(failed)} of {n} runs failed, first run {i} at t = {results.time[i]:g} of"
            f" {times[i]:g} after {results.steps[i]} steps: {_REASONS[FlowStatus(status[i])]};"
            " on_failure='nan' keeps the others"
        )
    end_u[failed] = np.nan
    # Below the normal numbers of float64 a gap has no digits left, not even its sign: an exact tie.
    end_u[(chain > 0) & (np.abs(end_u) < np.finfo(float).tiny)] = 0.0
    with np.errstate(divide="ignore"):
        sorted_log_gap = np.where(chain > 0, np.log(np.where(chain > 0, end_u, 1.0)), np.nan)
    A, log_gap = np.empty((n, d)), np.empty((n, d))
    np.put_along_axis(A, order, results.a, axis=1)
    np.put_along_axis(log_gap, order, sorted_log_gap, axis=1)
    losses = loss(results.M)
    for array in (A, log_gap, losses):
        array[failed] = np.nan
    fitted = losses <= loss_tol
    return Trajectory(
        times=results.time,
        A=A,
        B=weights,
        C=np.ones((n, d)),
        loss=losses,
        status=status,
        fitted=fitted,
        log_gap=log_gap,
        steps=results.steps,
        rejected=results.rejected,
    )


def _lanes(d: int) -> int:
    """Return how many runs advance side by side: enough to fill vector instructions, few enough for
    a core's cache.
    """
    return 64 if d <= 64 else 32


def _gap_coordinates(
    starts: Float[np.ndarray, "n d"], weights: Float[np.ndarray, "n d"], gaps: ArrayLike | None
) -> tuple[Int[np.ndarray, "n d"], Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
    """Return the order that sorts each run (by weight, then largest entry first), the unknowns u,
    and chain.

    chain is 1 where u is the gap to the entry before, 0 where it is the entry itself (the largest
    of its weight).
    """
    n, d = starts.shape
    order = np.lexsort((-starts, weights), axis=1)
    a, w = (np.take_along_axis(x, order, axis=1) for x in (starts, weights))
    chain = np.zeros((n, d))
    chain[:, 1:] = w[:, 1:] == w[:, :-1]
    unknowns = np.array(a)
    unknowns[:, 1:] = np.where(chain[:, 1:] > 0, a[:, :-1] - a[:, 1:], a[:, 1:])
    if gaps is None:
        return order, unknowns, chain
    exact = np.atleast_2d(as_array("gaps", gaps, ndim=(1, 2)))
    if exact.shape != (n, d - 1):
        raise ValueError(f"gaps must have shape {(n, d - 1)}; got {exact.shape}")
    if (exact < 0).any():
        raise ValueError(f"gaps must be >= 0; got {exact.min():g}")
    if (starts[:, 1:] > starts[:, :-1]).any() or not chain[:, 1:].all():
        raise ValueError(
            "gaps must come with rows of start in descending order and equal weights w"
        )
    off = np.abs(exact - (starts[:, :-1] - starts[:, 1:]))
    allowed = 8 * np.finfo(float).eps * np.abs(starts).max(axis=1, keepdims=True)
    if (off > allowed).any():
        i, j = np.argwhere(off > allowed)[0]
        raise ValueError(
            f"gaps must agree with start up to rounding; got {exact[i, j]:.17g} between entries {j}"
            f" and {j + 1} of run {i}, where start gives {starts[i, j] - starts[i, j + 1]:.17g}"
        )
    unknowns[:, 1:] = exact
    return order, unknowns, chain


def _factor(gram: Float[np.ndarray, "m kappa kappa"]) -> Float[np.ndarray, "m kappa r"]:
    """Return L with G = L L^T on lags >= 1, r the largest rank of the batch."""
    _check_semidefinite(gram)
    L = np.zeros(gram.shape)
    rank = factor_gram(contiguous(gram), L, np.empty(len(L[0])))
    return L[:, :, :rank]


def _check_semidefinite(gram: Float[np.ndarray, "m kappa kappa"]) -> None:
    """Raise ValueError unless each matrix is symmetric and positive semidefinite up to the rounding
    of X^T X.

    Entry (i, j) of X^T X is off by at most n eps sqrt(G_ii G_jj): rounding is small beside a
    diagonal scaled to ones, whatever the scales of the positions and however many of them depend on
    each other.
    """
    length = gram.shape[-1]
    diagonal = np.diagonal(gram, axis1=1, axis2=2)
    # Below 1e-300 a square has lost its digits to underflow. Any positive scale keeps the signs of
    # the eigenvalues.
    scale = np.sqrt(np.maximum(diagonal, 1e-300))  # (m, kappa)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = gram / scale[:, :, None] / scale[:, None, :]
        off = np.abs(scaled - np.swapaxes(scaled, 1, 2))
    lopsided = (off > 1e-12 * np.maximum(np.abs(scaled), 1.0)).any(axis=(1, 2))
    if lopsided.any():
        raise ValueError(f"G must be symmetric; G of run {np.argmax(lopsided)} is not")
    wrong = (diagonal < 0).any(axis=1) | (np.abs(scaled) > 1.0 + 1e-9).any(axis=(1, 2))
    if not wrong.any() and np.count_nonzero(gram) > np.count_nonzero(diagonal):
        wrong = np.linalg.eigvalsh(scaled)[:, 0] < -1e-10 * length
    if wrong.any():
        raise ValueError(
            f"G must be positive semidefinite, as (2/n) X^T X is; G of run {np.argmax(wrong)}"
            " is not"
        )
