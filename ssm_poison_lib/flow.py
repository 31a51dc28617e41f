"""Gradient flow, the limit of small steps: stiff integration, and the solved baseline case."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.integrate import LSODA
from scipy.optimize import brentq

from ssm_poison_lib import equations
from ssm_poison_lib._checks import (
    MAX_COUNT,
    MAX_LENGTH,
    ArrayLike,
    as_array,
    as_choice,
    as_flag,
    as_instance,
    as_integer,
    as_scalar,
    in_range,
    shown,
)
from ssm_poison_lib._trajectory import FlowError, FlowStatus, Trajectory
from ssm_poison_lib.parametrizations import PARAMETRIZATIONS
from ssm_poison_lib.sequences import TrainingSet
from ssm_poison_lib.ssm import DiagonalSSM

__all__ = [
    "FlowError",
    "FlowStatus",
    "Trajectory",
    "baseline_closed_form",
    "baseline_limit",
    "gradient_flow",
    "jacobian",
    "velocity",
]

# The loss at which a flow has arrived: after it LSODA would only follow rounding errors.
_SETTLED = 1e-24

Vector = Float[np.ndarray, " p"]
Matrix = Float[np.ndarray, "p p"]
DataSet = TrainingSet | tuple[ArrayLike, ArrayLike]
Parts = tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"], Float[np.ndarray, " d"]]  # A, B, C
Moments = tuple[Float[np.ndarray, "kappa kappa"], Float[np.ndarray, " kappa"]]  # G and M*


def velocity(student: DiagonalSSM, training_set: DataSet, *, train: str = "A") -> Vector:
    """Return the velocity of the flow, minus the gradient of the loss.

    With e = G (M* - M), indexed by lag: da_j/dt = w_j sum_m m e_m a_j^{m-1}, db_j/dt = c_j sum_m
    e_m a_j^m, dc_j/dt = b_j sum_m e_m a_j^m. The cost is O(d kappa + kappa^2), whatever the number
    of sequences.

    Args:
        student: where.
        training_set: what it is trained on; or (G, M*), as in `gradient_flow`.
        train: "A" gives da/dt, shape (d,); "ABC" gives (da/dt, db/dt, dc/dt), shape (3d,).

    Raises:
        ValueError: for another `train`, or if a value overflows.
        TypeError: for a student or training set of another class.

    Source: Proposition 1 of chapter "Which way does training move?".
    """
    problem = _problem(student, training_set, train)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(in_range("student", "the velocity", _stacked(*problem)))


def _problem(student: Any, training_set: Any, train: Any) -> tuple[Any, Any, Any, Any, Any, str]:
    """Return A, B, C, the Gram matrix, the teacher's impulse response and `train`, checked."""
    student = as_instance("student", student, DiagonalSSM)
    G, target = moments(training_set)
    return student.A, student.B, student.C, G, target, as_choice("train", train, ("A", "ABC"))


def _stacked(
    A: Float[np.ndarray, " d"],
    B: Float[np.ndarray, " d"],
    C: Float[np.ndarray, " d"],
    G: Float[np.ndarray, "kappa kappa"],
    target: Float[np.ndarray, " kappa"],
    train: str,
) -> Vector:
    """Return the velocity of what is trained as one vector."""
    moving = equations.velocity(A, B, C, G, target)
    return moving[0] if train == "A" else np.concatenate(moving)


def jacobian(student: DiagonalSSM, training_set: DataSet, *, train: str = "A") -> Matrix:
    """Return the Jacobian of `velocity`, minus the Hessian of the loss.

    With D = dM/d(parameters) it is -D^T G D plus a part that couples only the a, b, c of one index
    j. Errors as for `velocity`.

    Args:
        student: where.
        training_set: what it is trained on; or (G, M*), as in `gradient_flow`.
        train: "A" gives (d, d), "ABC" gives (3d, 3d).

    Source: Proposition 1 of chapter "Which way does training move?".
    """
    problem = _problem(student, training_set, train)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(
            in_range(
                "student", "the Jacobian", equations.jacobian(*problem[:-1], train=problem[-1])
            )
        )


class _Coordinates(NamedTuple):
    """The unknowns y in which a solver follows a flow.

    Attributes:
        velocity: of (t, y)
        jacobian: of (t, y)
        split: y -> A, B, C
        gaps: (T, p) y -> (T, d-1).
    """

    start: Vector
    rtol: float | Vector
    atol: float | Vector
    velocity: Callable[[float, Vector], Vector]
    jacobian: Callable[[float, Vector], Matrix] | None
    split: Callable[[Vector], Parts]
    gaps: Callable[[Float[np.ndarray, "T p"]], Float[np.ndarray, "T gaps"]] | None = None


def _plain(
    student: DiagonalSSM, data: Moments, train: str, rtol: float, atol: float, decay: float
) -> _Coordinates:
    """Follow the entries themselves."""
    d = student.state_dim

    def split(y: Vector) -> Parts:
        return (y, student.B, student.C) if train == "A" else (y[:d], y[d : 2 * d], y[2 * d :])

    def velocity(_t: float, y: Vector) -> Vector:
        moving = _stacked(*split(y), *data, train)
        return moving - decay * y if decay else moving

    def jacobian(_t: float, y: Vector) -> Matrix:
        return equations.jacobian(*split(y), *data, train=train) - decay * np.eye(len(y))

    start = (
        np.array(student.A) if train == "A" else np.concatenate([student.A, student.B, student.C])
    )
    return _Coordinates(start, rtol, atol, velocity, jacobian, split)


def _in_gaps(
    student: DiagonalSSM,
    data: Moments,
    gaps: Float[np.ndarray, " gaps"] | None,
    rtol: float,
    atol: float,
) -> _Coordinates:
    """Follow (a_1, log gaps) of equal weights; entries equal at the start are one unknown."""
    d, w = student.state_dim, float(student.w[0])
    order = np.argsort(-student.A, kind="stable")
    ordered = student.A[order]
    at_start = ordered[:-1] - ordered[1:] if gaps is None else gaps
    apart = at_start > 0
    # which distinct value an entry has, in sorted order
    group = np.concatenate([[0], np.cumsum(apart)])
    counts = np.bincount(group).astype(np.float64)

    def split(y: Vector) -> Parts:
        A = np.empty(d)
        A[order] = (y[0] - np.concatenate([[0.0], np.cumsum(np.exp(y[1:]))]))[group]
        return A, student.B, student.C

    def all_gaps(states: Float[np.ndarray, "T p"]) -> Float[np.ndarray, "T gaps"]:
        found = np.zeros((len(states), d - 1))
        found[:, apart] = np.exp(states[:, 1:])
        return found

    start = np.concatenate([ordered[:1], np.log(at_start[apart])])
    # rtol asks the same of every gap itself: an absolute error in its logarithm (2.3e-14 is the
    # least that SciPy takes).
    rtols, atols = np.full(len(start), 2.3e-14), np.full(len(start), rtol)
    rtols[0], atols[0] = rtol, atol
    return _Coordinates(
        start,
        rtols,
        atols,
        lambda _t, y: equations.gap_velocity(y, counts, w, *data, with_jacobian=False)[0],
        lambda _t, y: equations.gap_velocity(y, counts, w, *data, with_jacobian=True)[1],
        split,
        all_gaps,
    )


def _through(
    parametrization: str,
    student: DiagonalSSM,
    data: Moments,
    rtol: float,
    atol: float,
    decay: float,
) -> _Coordinates:
    """Follow s, a = f(s)."""
    kind = PARAMETRIZATIONS[parametrization]
    A, B, C = student.A, student.B, student.C
    if not (A > kind.low).all() or not (A < kind.high).all():
        raise ValueError(
            f"start must have entries between {kind.low:g} and {kind.high:g} for"
            f" {parametrization!r}; got {A.min():g} to {A.max():g}"
        )

    def velocity(_t: float, s: Vector) -> Vector:
        a = kind.entry(s)
        slope = kind.slope(a)
        return equations.velocity(a, B, C, *data, slope=slope)[0] - decay * slope * a

    return _Coordinates(
        kind.parameter(A), rtol, atol, velocity, None, lambda s: (np.asarray(kind.entry(s)), B, C)
    )


def gradient_flow(
    start: DiagonalSSM | ArrayLike,
    training_set: DataSet,
    *,
    t_end: float | None = None,
    times: ArrayLike | None = None,
    train: str = "A",
    parametrization: str = "free",
    gaps: ArrayLike | None = None,
    decay: float = 0.0,
    loss_tol: float = 1e-12,
    stop_at_loss: bool = False,
    stationary_tol: float | None = None,
    rtol: float = 1e-11,
    atol: float | None = None,
    max_steps: int = 200_000,
) -> Trajectory:
    """Follow the gradient flow of the training loss, d(parameter)/dt = -gradient.

    Args:
        start: the student at t = 0, or its entries (d,) with B = C = ones.
        training_set: a training set, or all that the flow needs of one, (G, M*): its Gram matrix
            (kappa, kappa) and the teacher's impulse response (kappa,).
        t_end: end time; the rows of the result are then the solver's steps.
        times: (T,) > 0, increasing, instead of t_end; the rows are then these times.
        train: "A", or "ABC" to move B and C too.
        parametrization: a name in `PARAMETRIZATIONS`; a_j = f(s_j) and s is trained.
        gaps: (d-1,) differences between neighbours of the start's A, largest first, when they are
            too small to be found by subtraction (train "A", free entries and equal weights only;
            the largest entry of A is kept, the others follow from the gaps).
        decay: >= 0, weight of the penalty decay/2 sum a_j^2 (train "A" only).
        loss_tol: a run whose last loss is at most this counts as fitted.
        stop_at_loss: stop there instead of going on to the end time.
        stationary_tol: stop once no unknown moves faster than this per unit of time. Mind that a
            near-zero start and a saddle are slow too: choose it far below the speed of the start.
        rtol: local error tolerance, relative, at least 2.3e-14.
        atol: the same, absolute (default: 1e-20; 1e-13 for parameters s or with decay).
        max_steps: most steps, at most 1e9.

    Returns:
        a `Trajectory`; a run that has not fitted by its end says so in `fitted`.

    Raises:
        FlowError: if the solver gives up or needs more than max_steps steps.
        ValueError: for bad arguments or a start whose loss overflows.
        TypeError: for a training set of another class.

    SciPy's LSODA does the work: beside being fast, it is the one of SciPy's stiff solvers that
    passes the end of the race, where steps must be shorter than the last digit of t (BDF and Radau
    refuse such steps). With fixed, equal weights b_j c_j all entries obey one scalar equation and
    never cross; then the solver runs in (a_1, log gaps), which follows near ties exactly, and
    entries that are equal at the start stay equal to the last digit. Through s a tie is a
    difference of the s_j: near ties below about 1e-8 are lost. With `times`, a flow without decay
    whose loss reaches 1e-24 stays where it is.
    """
    if not isinstance(start, DiagonalSSM):
        start = DiagonalSSM.ones(as_array("start", start, ndim=1))
    data = moments(training_set)
    train = as_choice("train", train, ("A", "ABC"))
    parametrization = as_choice("parametrization", parametrization, PARAMETRIZATIONS)
    if (t_end is None) == (times is None):
        raise ValueError("t_end must be given, or times instead of it")
    stops = None if times is None else as_array("times", times, ndim=1)
    if stops is not None and (stops[0] <= 0 or (np.diff(stops) <= 0).any()):
        raise ValueError(f"times must be > 0 and increasing; got {shown(times)}")
    end = as_scalar("t_end", t_end, low=0.0, strict=True) if stops is None else float(stops[-1])
    stop_at_loss = as_flag("stop_at_loss", stop_at_loss)
    loss_tol = as_scalar("loss_tol", loss_tol, low=0.0)
    if stationary_tol is not None:
        stationary_tol = as_scalar("stationary_tol", stationary_tol, low=0.0, strict=True)
    rtol = as_scalar("rtol", rtol, low=2.3e-14)
    decay = as_scalar("decay", decay, low=0.0)
    default = 1e-20 if parametrization == "free" and not decay else 1e-13
    atol = default if atol is None else as_scalar("atol", atol, low=0.0, strict=True)
    max_steps = as_integer("max_steps", max_steps, low=1, high=MAX_COUNT)
    if train == "ABC" and (decay or parametrization != "free"):
        raise ValueError("train must be 'A' where decay or a parametrization is given")
    equal = train == "A" and bool((start.w == start.w[0]).all())
    in_gaps = equal and parametrization == "free" and not decay
    if gaps is not None:
        if not in_gaps or start.state_dim == 1:
            raise ValueError(
                "gaps must be left out unless train='A', entries are free, d >= 2 and all b_j c_j"
                " are equal"
            )
        gaps = as_array("gaps", gaps, ndim=1, last=start.state_dim - 1)
        if (gaps < 0).any():
            raise ValueError(f"gaps must be >= 0; got {gaps.min():g} among them")
    if parametrization != "free":
        followed = _through(parametrization, start, data, rtol, atol, decay)
    elif in_gaps:
        followed = _in_gaps(start, data, gaps, rtol, atol)
    else:
        followed = _plain(start, data, train, rtol, atol, decay)
    stop = _Stop(
        end, stops, loss_tol if stop_at_loss else None, stationary_tol, max_steps, not decay
    )
    at, states, losses, status = _follow(followed, data, train, stop)
    A, B, C = (np.array(part) for part in zip(*map(followed.split, states), strict=True))
    found = None if followed.gaps is None else followed.gaps(states)
    return Trajectory(at, A, B, C, losses, status, bool(losses[-1] <= loss_tol), found)


def moments(training_set: Any) -> Moments:
    """Return all that a linear flow needs of a training set: G and M*, checked if given as such.

    Args:
        training_set: as in `gradient_flow`.
    """
    if not isinstance(training_set, tuple):
        training_set = as_instance("training_set", training_set, TrainingSet)
        teacher = as_instance("the teacher of training_set", training_set.teacher, DiagonalSSM)
        return training_set.gram(), teacher.impulse_response(training_set.length)
    if len(training_set) != 2:
        raise ValueError(
            f"training_set must be a TrainingSet or (G, M*); got {len(training_set)} parts"
        )
    target = as_array("training_set's M*", training_set[1], ndim=1)
    gram = as_array("training_set's G", training_set[0], ndim=2, last=len(target))
    if len(gram) != len(target):
        raise ValueError(
            f"training_set's G must be {len(target)} x {len(target)}; got shape {gram.shape}"
        )
    if not np.allclose(gram, gram.T, rtol=1e-12, atol=0.0):
        raise ValueError("training_set's G must be symmetric")
    if not np.linalg.eigvalsh(gram)[0] >= -1e-9 * np.abs(gram).max():
        raise ValueError(
            "training_set's G must be positive semidefinite, as the Gram matrix of sequences is"
        )
    return gram, target


class _Stop(NamedTuple):
    """When a solver ends, and what it keeps."""

    end: float
    times: Vector | None
    loss: float | None
    speed: float | None
    max_steps: int
    settles: bool


def _follow(
    followed: _Coordinates, data: Moments, train: str, stop: _Stop
) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, "T y"], Float[np.ndarray, " T"], FlowStatus]:
    """Return times, states, losses, and why the solver stopped."""
    G, target = data

    def loss_of(y: Vector) -> float:
        A, B, C = followed.split(y)
        r = equations.residual(A, B * C, target)[0]
        return float(r @ G @ r) / 2.0

    def speed(y: Vector) -> float:
        return float(np.abs(_stacked(*followed.split(y), G, target, train)).max())

    with np.errstate(over="ignore", invalid="ignore"):  # what leaves float64 ends in a FlowError
        options = {} if followed.jacobian is None else {"jac": followed.jacobian}
        solver = LSODA(
            followed.velocity,
            0.0,
            followed.start,
            stop.end,
            rtol=followed.rtol,
            atol=followed.atol,
            **options,
        )
        y, t, taken, status = followed.start, 0.0, 0, None
        loss = float(in_range("start", "the loss at the start", loss_of(y)))
        rows = [] if stop.times is not None else [(t, y, loss)]
        while status is None:
            if stop.loss is not None and loss <= stop.loss:
                status = FlowStatus.REACHED_LOSS
            elif stop.speed is not None and speed(y) <= stop.speed:
                status = FlowStatus.STATIONARY
            elif solver.status == "finished":
                status = FlowStatus.END_OF_TIME
            elif stop.times is not None and stop.settles and loss <= _SETTLED:
                status = FlowStatus.CONVERGED
            elif taken == stop.max_steps:
                raise FlowError(
                    f"no end after max_steps={stop.max_steps} steps: t = {t:g} of {stop.end:g}"
                )
            else:
                message, taken = solver.step(), taken + 1
                y, t = np.array(solver.y), float(solver.t)
                if solver.status == "failed" or not np.isfinite(y).all():
                    raise FlowError(
                        f"LSODA gave up at t = {t:g} of {stop.end:g}: {message or 'not finite'}"
                    )
                loss = loss_of(y)
                if stop.times is None:
                    rows.append((t, y, loss))
                    continue
                path = solver.dense_output()
                while len(rows) < len(stop.times) and stop.times[len(rows)] <= t:
                    then = path(stop.times[len(rows)])
                    rows.append((stop.times[len(rows)], then, loss_of(then)))
        for time in () if stop.times is None else stop.times[len(rows) :]:
            rows.append((time, y, loss))
    times, states, losses = zip(*rows, strict=True)
    return np.array(times), np.array(states), np.array(losses), status


def _positive_start(A0: ArrayLike) -> Float[np.ndarray, " d"]:
    A0 = as_array("A0", A0, ndim=1)
    if (A0 <= 0).any():
        raise ValueError(f"A0 must be positive in every entry; got {A0.min():g} among them")
    return A0


def baseline_closed_form(A0: ArrayLike, length: int, tau: ArrayLike) -> Float[np.ndarray, "T d"]:
    """Return the entries of A at rescaled times tau where baseline sequences alone train it.

    Args:
        A0: (d,) positive start
        length: kappa >= 2
        tau: (T,) times with d tau = alpha p r_p dt, in which da_j/d tau = a_j^q: a_j^{-(q-1)} =
            a_j(0)^{-(q-1)} - (q-1) tau for kappa >= 4, a_j(0) exp(tau) for kappa = 3, a_j(0) + tau
            for kappa = 2.

    Raises:
        ValueError: for a start that is not positive, or a tau at or beyond the blow-up of the
            largest entry (kappa <= 3: one at which an entry leaves the range of float64).

    Source: chapter "Why does it generalize?" (closed form). B = C^T = ones.
    """
    A0 = _positive_start(A0)
    length = as_integer("length", length, low=2, high=MAX_LENGTH)
    tau = as_array("tau", tau, ndim=1)[:, None]
    n = length - 3  # q - 1
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        if n == -1:
            return np.asarray(in_range("tau", "an entry", A0 + tau))
        if n == 0:
            return np.asarray(in_range("tau", "an entry", A0 * np.exp(tau)))
        log_start, log_time = np.log(A0), np.log(n) + np.log(np.abs(tau))
        log_share = log_time + n * log_start  # of the time until entry j blows up, (T, d)
        powers = A0 ** -float(n)
        direct = bool((np.isfinite(powers) & (powers >= np.finfo(float).tiny)).all())
        past = (
            tau >= A0.max() ** -float(n) / n
            if direct
            else (tau > 0) & (log_share.max(axis=1) >= 0)[:, None]
        )
        if past.any():
            log_end = -n * float(np.log10(A0.max())) - math.log10(n)
            end = f"{A0.max() ** -float(n) / n:.6g}" if direct else f"10^{log_end:.6g}"
            raise ValueError(
                f"tau must stay below {end}, where the largest entry blows up; got {tau.max():.6g}"
            )
        if direct:
            return np.asarray((powers - n * tau) ** (-1.0 / n))
        # The powers leave the range of float64: 1 - n tau a_j^n in logarithms, below 1 for tau > 0
        # and above for tau < 0.
        log_factor = np.where(
            tau > 0, np.log(-np.expm1(np.minimum(log_share, 0.0))), np.logaddexp(0.0, log_share)
        )
        return np.asarray(A0 * np.exp(-log_factor / n))


def baseline_limit(
    A0: ArrayLike, length: int, *, gaps: ArrayLike | None = None
) -> Float[np.ndarray, " d"]:
    """Return where baseline training ends: where the closed form has sum_j a_j^p = 1.

    B = C^T = ones; near ties keep their digits. From a start with sum a_j(0)^p > 1 the clock of the
    closed form runs backwards; at kappa = 2 all entries then shift, and some may end negative.

    Args:
        A0: (d,) positive start
        length: kappa >= 2
        gaps: (d-1,) exact differences a_j - a_{j+1} of a descending A0, when they are too small to
            be found by subtraction.

    Raises:
        ValueError: if the start is not positive, or for gaps that are negative or disagree with A0.

    Source: as `baseline_closed_form`.
    """
    A0 = _positive_start(A0)
    length = as_integer("length", length, low=2, high=MAX_LENGTH)
    p, n = length - 1, length - 3
    d, largest = len(A0), A0.max()
    behind = largest - A0  # how far behind the largest entry
    if gaps is not None:
        if d == 1:
            raise ValueError(f"gaps must be left out for a single entry; got {shown(gaps)}")
        exact = as_array("gaps", gaps, ndim=1, last=d - 1)
        behind = np.concatenate([[0.0], np.cumsum(exact)])
        if (exact < 0).any() or (np.abs(behind - (A0[0] - A0)) > 8 * d * np.spacing(largest)).any():
            raise ValueError("gaps must be >= 0 and agree up to rounding with a descending A0")
    if n == -1:
        return np.asarray(A0 + (1.0 - A0.sum()) / d)
    # log(a_j / a_1): a near tie keeps its digits in the difference, a far entry in the quotient of
    # logarithms.
    far = behind > 0.5 * largest
    log_ratio = np.where(
        far, np.log(A0) - np.log(largest), np.log1p(-np.where(far, 0.0, behind) / largest)
    )
    with np.errstate(divide="ignore", under="ignore", over="ignore"):
        # a_j^{-n} - a_1^{-n} in logarithms: the powers themselves leave the range of float64 for
        # long sequences.
        log_excess = -n * (np.log(largest) + log_ratio) + np.log(-np.expm1(n * log_ratio))

        def log_entries(log_s: float) -> Float[np.ndarray, " d"]:
            """Return log a_j where the largest entry has come to s."""
            return np.asarray(
                log_s + log_ratio if n == 0 else -np.logaddexp(-n * log_s, log_excess) / n
            )

        def missing(log_s: float) -> float:
            return float(np.exp(p * log_entries(log_s)).sum()) - 1.0

        # The unknown is where the largest entry ends: between 1/d^(1/p), all tied, and 1, all
        # others zero.
        start, tied = float(np.log(largest)), -math.log(d) / p - 1e-12
        low, high = (max(start, tied), 1e-12) if missing(start) < 0.0 else (tied, start)
        found = brentq(missing, low, high, xtol=1e-15, rtol=4 * np.finfo(float).eps)
        return np.exp(log_entries(float(found)))
