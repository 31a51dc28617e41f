"""Gradient flow, the limit of small steps: stiff integration, and the solved baseline case."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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
from ssm_poison_lib._trajectory import FlowError
from ssm_poison_lib.metrics import gamma
from ssm_poison_lib.sequences import TrainingSet
from ssm_poison_lib.ssm import DiagonalSSM

__all__ = [
    "FlowError",
    "Trajectory",
    "baseline_closed_form",
    "baseline_limit",
    "gradient_flow",
    "jacobian",
    "velocity",
]

Vector = Float[np.ndarray, " p"]
Matrix = Float[np.ndarray, "p p"]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A gradient flow at the T steps that the solver took.

    times: (T,) from 0, never decreasing (a step shorter than the last digit of t shows as an equal time: the flow does
    not depend on t itself, so A is right all the same). A, B, C: (T, d). loss: (T,). gamma: (T, kappa-1), the coefficients of
    Proposition 1 of chapter "Which way does training move?". stopped: "end time", "loss" or "stationary". fitted: whether the
    last loss is at most the loss tolerance of the run; look at it before calling the last point a limit. gaps: (T, d-1)
    differences between neighbours, largest entry first, exact however small; None where the flow was not followed in gaps.
    """

    times: Float[np.ndarray, " T"]
    A: Float[np.ndarray, "T d"]
    B: Float[np.ndarray, "T d"]
    C: Float[np.ndarray, "T d"]
    loss: Float[np.ndarray, " T"]
    gamma: Float[np.ndarray, "T lags"]
    gaps: Float[np.ndarray, "T gaps"] | None
    stopped: str
    fitted: bool

    def student(self, step: int = -1) -> DiagonalSSM:
        """Return the student at one step, by default the last; negative steps count from the end."""
        step = as_integer("step", step, low=-len(self.times), high=len(self.times) - 1)
        return DiagonalSSM(self.A[step], self.B[step], self.C[step])


def velocity(student: DiagonalSSM, training_set: TrainingSet, *, train: str = "A") -> Vector:
    """Return the velocity of the flow, minus the gradient of the loss.

    train: "A" gives da/dt, shape (d,); "ABC" gives (da/dt, db/dt, dc/dt), shape (3d,).

    With e = G (M* - M), indexed by lag: da_j/dt = w_j sum_m m e_m a_j^{m-1}, db_j/dt = c_j sum_m e_m a_j^m,
    dc_j/dt = b_j sum_m e_m a_j^m. The cost is O(d kappa + kappa^2), whatever the number of sequences.

    Source: Proposition 1 of chapter "Which way does training move?". Raises ValueError for another `train`, or if a value
    overflows, TypeError for a student or training set of another class.
    """
    problem = _problem(student, training_set, train)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(in_range("student", "the velocity", _stacked(*problem)))


def _problem(student: Any, training_set: Any, train: Any) -> tuple[Any, Any, Any, Any, Any, str]:
    """Return A, B, C, the Gram matrix, the teacher's impulse response and `train`, checked."""
    student = as_instance("student", student, DiagonalSSM)
    training_set = as_instance("training_set", training_set, TrainingSet)
    train = as_choice("train", train, ("A", "ABC"))
    teacher = as_instance("the teacher of training_set", training_set.teacher, DiagonalSSM)
    target = teacher.impulse_response(training_set.length)
    return student.A, student.B, student.C, training_set.gram(), target, train


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


def jacobian(student: DiagonalSSM, training_set: TrainingSet, *, train: str = "A") -> Matrix:
    """Return the Jacobian of `velocity`, minus the Hessian of the loss: (d, d) for "A", (3d, 3d) for "ABC".

    With D = dM/d(parameters) it is -D^T G D plus a part that couples only the a, b, c of one index j.
    Source and errors as for `velocity`.
    """
    problem = _problem(student, training_set, train)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(
            in_range("student", "the Jacobian", equations.jacobian(*problem[:-1], train=problem[-1]))
        )


def gradient_flow(
    student: DiagonalSSM,
    training_set: TrainingSet,
    *,
    t_end: float,
    train: str = "A",
    gaps: ArrayLike | None = None,
    loss_tol: float = 1e-12,
    stop_at_loss: bool = False,
    stationary_tol: float | None = None,
    rtol: float = 1e-11,
    atol: float = 1e-20,
    max_steps: int = 200_000,
) -> Trajectory:
    """Follow the gradient flow of the training loss from `student` up to time t_end.

    t_end: end time (the flow's own unit: d(parameter)/dt = -gradient). train: "A", or "ABC" to move B and C too.
    gaps: (d-1,) differences between neighbours of the start's A, largest first, when they are too small to be found by
    subtraction (train="A" and equal weights only; the largest entry of A is kept, the others follow from the gaps).
    loss_tol: a run whose last loss is at most this counts as fitted; stop_at_loss: stop there instead of going on to
    the end time. stationary_tol: stop once no entry moves faster than this per unit of time. Mind that a near-zero
    start and a saddle are slow too: choose it far below the speed of the start. rtol, atol: local error tolerances.

    Returns a `Trajectory`; a run that has not fitted by its end says so in `fitted`.

    Raises FlowError if the solver gives up or needs more than max_steps steps (at most 1e9), ValueError for bad arguments or a
    start whose loss overflows, TypeError for a student or training set of another class.

    SciPy's LSODA does the work: beside being fast, it is the one of SciPy's stiff solvers that passes the end of
    the race, where steps must be shorter than the last digit of t (BDF and Radau refuse such steps). With fixed, equal
    weights b_j c_j all entries obey one scalar equation and never cross; then the solver runs in (a_1, log gaps),
    which follows near ties exactly, and entries that are equal at the start stay equal to the last digit.
    """
    _, _, _, G, target, train = _problem(student, training_set, train)
    t_end = as_scalar("t_end", t_end, low=0.0, strict=True)
    stop_at_loss = as_flag("stop_at_loss", stop_at_loss)
    loss_tol = as_scalar("loss_tol", loss_tol, low=0.0)
    if stationary_tol is not None:
        stationary_tol = as_scalar("stationary_tol", stationary_tol, low=0.0, strict=True)
    rtol = as_scalar("rtol", rtol, low=2.3e-14)
    atol = as_scalar("atol", atol, low=0.0, strict=True)
    max_steps = as_integer("max_steps", max_steps, low=1, high=MAX_COUNT)

    d, w = student.state_dim, student.w
    in_gaps = train == "A" and bool((w == w[0]).all())
    order = np.argsort(-student.A, kind="stable")
    ordered = student.A[order]
    initial_gaps = ordered[:-1] - ordered[1:]
    if gaps is not None:
        if not in_gaps or d == 1:
            raise ValueError("gaps must be left out unless train='A', d >= 2 and all b_j c_j are equal")
        initial_gaps = as_array("gaps", gaps, ndim=1, last=d - 1)
        if (initial_gaps < 0).any():
            raise ValueError(f"gaps must be >= 0; got {initial_gaps.min():g} among them")
    apart = initial_gaps > 0
    group = np.concatenate([[0], np.cumsum(apart)])  # which distinct value an entry has, in sorted order
    counts = np.bincount(group).astype(np.float64)

    def split(
        theta: Vector,
    ) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
        """Return A, B, C from the solver's variables."""
        if train == "ABC":
            return theta[:d], theta[d : 2 * d], theta[2 * d :]
        if not in_gaps:
            return theta, student.B, student.C
        A = np.empty(d)
        A[order] = (theta[0] - np.concatenate([[0.0], np.cumsum(np.exp(theta[1:]))]))[group]
        return A, student.B, student.C

    def speed(theta: Vector) -> float:
        A, B, C = split(theta)
        return float(np.abs(_stacked(A, B, C, G, target, train)).max())

    def right_hand_side(_t: float, theta: Vector) -> Vector:
        if in_gaps:
            return equations.gap_velocity(theta, counts, float(w[0]), G, target, with_jacobian=False)[0]
        A, B, C = split(theta)
        return _stacked(A, B, C, G, target, train)

    def jacobian_matrix(_t: float, theta: Vector) -> Matrix | None:
        if in_gaps:
            return equations.gap_velocity(theta, counts, float(w[0]), G, target, with_jacobian=True)[1]
        A, B, C = split(theta)
        return equations.jacobian(A, B, C, G, target, train=train)

    def loss_of(theta: Vector) -> float:
        A, B, C = split(theta)
        r = equations.residual(A, B * C, target)[0]
        return float(r @ G @ r) / 2.0

    rtols, atols = np.array(rtol), np.array(atol)
    if train == "ABC":
        start = np.concatenate([student.A, student.B, student.C])
    elif in_gaps:
        start = np.concatenate([ordered[:1], np.log(initial_gaps[apart])])
        # rtol asks the same of every gap itself: an absolute error in its logarithm (2.3e-14 is the least SciPy takes).
        rtols, atols = np.full(len(start), 2.3e-14), np.full(len(start), rtol)
        rtols[0], atols[0] = rtol, atol
    else:
        start = np.array(student.A)
    with np.errstate(over="ignore", invalid="ignore"):  # what leaves the range of float64 ends in a FlowError
        solver = LSODA(right_hand_side, 0.0, start, t_end, rtol=rtols, atol=atols, jac=jacobian_matrix)
        times, states = [0.0], [start]
        losses = [float(in_range("student", "the loss at the start", loss_of(start)))]
        stopped = ""
        while not stopped:
            if stop_at_loss and losses[-1] <= loss_tol:
                stopped = "loss"
            elif stationary_tol is not None and speed(states[-1]) <= stationary_tol:
                stopped = "stationary"
            elif solver.status == "finished":
                stopped = "end time"
            elif len(times) > max_steps:
                raise FlowError(f"no end after max_steps={max_steps} steps: t = {times[-1]:g} of {t_end:g}")
            else:
                message = solver.step()
                theta = np.array(solver.y)
                if solver.status == "failed" or not np.isfinite(theta).all():
                    raise FlowError(
                        f"LSODA gave up at t = {solver.t:g} of {t_end:g}: {message or 'not finite'}"
                    )
                times.append(float(solver.t))
                states.append(theta)
                losses.append(loss_of(theta))

    parts = [split(theta) for theta in states]
    A, B, C = (np.array([part[k] for part in parts]) for k in range(3))
    all_gaps = None
    if in_gaps:
        all_gaps = np.zeros((len(states), d - 1))
        all_gaps[:, apart] = np.exp(np.array(states)[:, 1:])
    return Trajectory(
        times=np.array(times),
        A=A,
        B=B,
        C=C,
        loss=np.array(losses),
        gamma=np.array([gamma(DiagonalSSM(*part), training_set) for part in parts]),
        gaps=all_gaps,
        stopped=stopped,
        fitted=losses[-1] <= loss_tol,
    )


def _positive_start(A0: ArrayLike) -> Float[np.ndarray, " d"]:
    A0 = as_array("A0", A0, ndim=1)
    if (A0 <= 0).any():
        raise ValueError(f"A0 must be positive in every entry; got {A0.min():g} among them")
    return A0


def baseline_closed_form(A0: ArrayLike, length: int, tau: ArrayLike) -> Float[np.ndarray, "T d"]:
    """Return the entries of A at rescaled times tau when only baseline sequences (multiples of e_1) train it.

    A0: (d,) positive start; length: kappa >= 2; tau: (T,) times with d tau = alpha p r_p dt, in which da_j/d tau = a_j^q:
    a_j^{-(q-1)} = a_j(0)^{-(q-1)} - (q-1) tau for kappa >= 4, a_j(0) exp(tau) for kappa = 3, a_j(0) + tau for kappa = 2.

    Raises ValueError for a start that is not positive, or a tau at or beyond the blow-up of the largest entry (kappa <= 3: one at
    which an entry leaves the range of float64).

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
        log_start, log_time = np.log(A0), np.log(n * np.abs(tau))
        log_share = log_time + n * log_start  # of the time until entry j blows up, (T, d)
        powers = A0 ** -float(n)
        direct = bool((np.isfinite(powers) & (powers >= np.finfo(float).tiny)).all())
        past = (
            tau >= A0.max() ** -float(n) / n if direct else (tau > 0) & (log_share.max(axis=1) >= 0)[:, None]
        )
        if past.any():
            log_end = -n * float(np.log10(A0.max())) - math.log10(n)
            end = f"{A0.max() ** -float(n) / n:.6g}" if direct else f"10^{log_end:.6g}"
            raise ValueError(
                f"tau must stay below {end}, where the largest entry blows up; got {tau.max():.6g}"
            )
        if direct:
            return np.asarray((powers - n * tau) ** (-1.0 / n))
        # The powers leave the range of float64: 1 - n tau a_j^n in logarithms, below 1 for tau > 0 and above for tau < 0.
        log_factor = np.where(
            tau > 0, np.log(-np.expm1(np.minimum(log_share, 0.0))), np.logaddexp(0.0, log_share)
        )
        return np.asarray(A0 * np.exp(-log_factor / n))


def baseline_limit(A0: ArrayLike, length: int, *, gaps: ArrayLike | None = None) -> Float[np.ndarray, " d"]:
    """Return where baseline training ends: the point of the closed form with sum_j a_j^p = 1, by one scalar root.

    A0: (d,) positive start; length: kappa >= 2. B = C^T = ones; near ties keep their digits. From a start with sum a_j(0)^p > 1
    the clock of the closed form runs backwards; at kappa = 2 all entries then shift, and some may end negative.
    gaps: (d-1,) exact differences a_j - a_{j+1} of a descending A0, when they are too small to be found by subtraction.

    Raises ValueError if the start is not positive, or for gaps that are negative or disagree with A0.
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
    # log(a_j / a_1): a near tie keeps its digits in the difference, a far entry in the quotient of logarithms.
    far = behind > 0.5 * largest
    log_ratio = np.where(far, np.log(A0) - np.log(largest), np.log1p(-np.where(far, 0.0, behind) / largest))
    with np.errstate(divide="ignore", under="ignore", over="ignore"):
        # a_j^{-n} - a_1^{-n} in logarithms: the powers themselves leave the range of float64 for long sequences.
        log_excess = -n * (np.log(largest) + log_ratio) + np.log(-np.expm1(n * log_ratio))

        def log_entries(log_s: float) -> Float[np.ndarray, " d"]:
            """Return log a_j where the largest entry has come to s."""
            return np.asarray(log_s + log_ratio if n == 0 else -np.logaddexp(-n * log_s, log_excess) / n)

        def missing(log_s: float) -> float:
            return float(np.exp(p * log_entries(log_s)).sum()) - 1.0

        # The unknown is where the largest entry ends: between 1/d^(1/p), all tied, and 1, all others zero.
        start, tied = float(np.log(largest)), -math.log(d) / p - 1e-12
        low, high = (max(start, tied), 1e-12) if missing(start) < 0.0 else (tied, start)
        if low >= high or missing(low) >= 0.0:
            return np.exp(log_entries(low))
        found = brentq(missing, low, high, xtol=1e-15, rtol=4 * np.finfo(float).eps)
        return np.exp(log_entries(float(found)))
