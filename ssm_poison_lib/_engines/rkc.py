"""Compiled Runge-Kutta-Chebyshev steps of order 2 for the gradient flow of a loss by `gains`.

The Jacobian of a gradient flow is symmetric: its eigenvalues are real, and s stages reach
0.65 s^2 along the negative axis, where s steps of an ordinary explicit method reach a multiple
of s.

Source: Sommeijer, Shampine and Verwer, RKC: An explicit solver for parabolic PDEs,
J. Comput. Appl. Math. 88, 1997: coefficients, error estimate, spectral radius by power iteration.
"""

from __future__ import annotations

from enum import IntEnum
from typing import no_type_check

import numpy as np

from ssm_poison_lib._engines.gains import backward_gains, forward_gains
from ssm_poison_lib._jit import compiled

__all__ = ["End", "integrate", "stages", "step"]


class End(IntEnum):
    """How `integrate` ends."""

    AT_REST = 0
    END_OF_TIME = 1
    OUT_OF_EVALUATIONS = 2
    FAILED = -1


_AT_REST, _END_OF_TIME, _OUT_OF_EVALUATIONS, _FAILED = (int(end) for end in End)

_DAMPING = 2.0 / 13.0
# The spectral radius of the Jacobian is taken this much larger than the power method says.
_RADIUS_SAFETY = 1.2
# Stages of one step at most: rounding grows with their square.
_MOST_STAGES = 4000
_ITERATIONS = 50


@compiled(apart=True)
@no_type_check
def _gradient(theta, v, problem):
    """Fill the velocity v at theta and return the loss."""
    loss = forward_gains(theta, problem)
    backward_gains(theta, v, problem)
    return loss


@compiled(apart=True)
@no_type_check
def _radius(theta, v, problem, direction, moved, other):
    """Return (spectral radius of the Jacobian, evaluations) by power iteration on differences.

    Args:
        theta: (P,) weights.
        v: (P,) velocity there.
        problem: a `Gains`.
        direction: (P,) the last eigenvector, improved in place.
        moved: (P,) room.
        other: (P,) room.
    """
    size = 0.0
    for i in range(len(theta)):
        size += theta[i] * theta[i]
    delta = 1e-7 * np.sqrt(size) + 1e-30
    radius = 0.0
    for trial in range(_ITERATIONS):
        length = 0.0
        for i in range(len(theta)):
            length += direction[i] * direction[i]
        length = np.sqrt(length)
        if length == 0.0 or not np.isfinite(length):
            direction[:] = 1.0 / np.sqrt(len(theta))
            length = 1.0
        for i in range(len(theta)):
            direction[i] /= length
            moved[i] = theta[i] + delta * direction[i]
        _gradient(moved, other, problem)
        square = 0.0
        for i in range(len(theta)):
            direction[i] = (v[i] - other[i]) / delta
            square += direction[i] * direction[i]
        found = np.sqrt(square)
        if trial > 0 and abs(found - radius) <= 0.02 * found:
            return _RADIUS_SAFETY * max(found, radius), trial + 1
        radius = found
    return _RADIUS_SAFETY * radius, _ITERATIONS


@compiled(apart=True)
@no_type_check
def stages(h, radius):
    """Return how many stages keep a step h stable for a spectral radius."""
    return max(2, 1 + int(np.sqrt(1.54 * h * radius + 1.0)))


@compiled(apart=True)
@no_type_check
def step(y0, v0, h, s, problem, older, newer, v):
    """Take one step.

    Args:
        y0: (P,) weights.
        v0: (P,) velocity there.
        h: length of the step.
        s: stages, from 2 on.
        problem: a `Gains`.
        older: (P,) room.
        newer: (P,) filled with the weights after the step.
        v: (P,) filled with the velocity after the step.

    Returns:
        The loss after the step. It has taken s evaluations of the gradient.
    """
    w0 = 1.0 + _DAMPING / s**2
    root = np.sqrt(w0 * w0 - 1.0)
    angle = s * np.log(w0 + root)
    w1 = np.sinh(angle) * root * root / (np.cosh(angle) * s * root - w0 * np.sinh(angle))
    b1 = 1.0 / (2.0 * w0) ** 2
    b2 = b1
    mus = w1 * b1
    for i in range(len(y0)):
        older[i] = y0[i]
        newer[i] = y0[i] + h * mus * v0[i]
    z1, z2, p1, p2, q1, q2 = w0, 1.0, 1.0, 0.0, 0.0, 0.0  # T_j(w0) and two derivatives
    for _ in range(2, s + 1):
        z = 2.0 * w0 * z1 - z2
        p = 2.0 * w0 * p1 - p2 + 2.0 * z1
        q = 2.0 * w0 * q1 - q2 + 4.0 * p1
        b = q / (p * p)
        a1 = 1.0 - z1 * b1
        mu = 2.0 * w0 * b / b1
        nu = -b / b2
        mus = mu * w1 / w0
        _gradient(newer, v, problem)
        for i in range(len(y0)):
            value = mu * newer[i] + nu * older[i] + (1.0 - mu - nu) * y0[i]
            value += h * mus * (v[i] - a1 * v0[i])
            older[i] = newer[i]
            newer[i] = value
        z2, z1, p2, p1, q2, q1, b2, b1 = z1, z, p1, p, q1, q, b1, b
    return _gradient(newer, v, problem)


@compiled(apart=True)
@no_type_check
def error_of_step(y0, v0, newer, v, h, rtol, atol):
    """Return the estimated error of a step, of order h^3, as a multiple of what is allowed."""
    square = 0.0
    for i in range(len(y0)):
        estimate = 0.8 * (y0[i] - newer[i]) + 0.4 * h * (v0[i] + v[i])
        scaled = estimate / (atol + rtol * max(abs(y0[i]), abs(newer[i])))
        square += scaled * scaled
    return np.sqrt(square / len(y0))


@compiled(apart=True)
@no_type_check
def integrate(theta, problem, times, marks, rtol, atol, rest, max_evaluations):
    """Follow the gradient flow of theta.

    Args:
        theta: (P,) weights at the start.
        problem: a `Gains`.
        times: (T,) increasing; the flow ends at the last.
        marks: (K,) decreasing losses.
        rtol: error allowed per step and weight, root mean square, relative.
        atol: the same, absolute.
        rest: the flow is at rest once the loss is at most this.
        max_evaluations: most evaluations of the gradient, about.

    Returns:
        (an `End`, time, evaluations, steps, (T, P) weights at the times, (T,) losses, (K, P)
        weights and (K,) times at the first step with a loss <= each mark (NaN: never)). Past the
        end of a run its last weights are repeated.
    """
    P = len(theta)
    kept = np.empty((len(times), P))
    losses = np.empty(len(times))
    at_mark = np.full((len(marks), P), np.nan)
    mark_time = np.full(len(marks), np.nan)
    y0 = theta.copy()
    v0 = np.empty(P)
    older = np.empty(P)
    newer = np.empty(P)
    v = np.empty(P)
    loss = _gradient(y0, v0, problem)
    direction = -v0
    time = 0.0
    lost = 0.0  # what rounding took from the time: steps can be far shorter than its last digit
    evaluations = 1
    steps = 0
    row = 0
    mark = 0
    how = _END_OF_TIME
    radius = 0.0
    h = 0.0
    known = False  # the radius at y0
    while True:
        while mark < len(marks) and loss <= marks[mark]:
            at_mark[mark] = y0
            mark_time[mark] = time
            mark += 1
        while row < len(times) and times[row] <= time:
            kept[row] = y0
            losses[row] = loss
            row += 1
        if row == len(times):
            break
        if loss <= rest:
            how = _AT_REST
            break
        if evaluations >= max_evaluations:
            how = _OUT_OF_EVALUATIONS
            break
        if not known:
            radius, used = _radius(y0, v0, problem, direction, older, newer)
            evaluations += used
            known = True
            if h == 0.0:
                h = 0.1 / max(radius, 1e-300)
        h = min(h, _DAMPING * 4.2 * _MOST_STAGES**2 / max(radius, 1e-300))
        left = times[row] - time + lost
        landing = h >= left
        tried = left if landing else h
        s = stages(tried, radius)
        new_loss = step(y0, v0, tried, s, problem, older, newer, v)
        evaluations += s
        steps += 1
        error = error_of_step(y0, v0, newer, v, tried, rtol, atol)
        if error <= 1.0 and np.isfinite(new_loss):
            if landing:
                time, lost = times[row], 0.0
            else:
                part = tried - lost
                total = time + part
                lost = (total - time) - part
                time = total
            y0, newer = newer, y0
            v0, v = v, v0
            loss = new_loss
            known = False
            growth = min(5.0, 0.8 / max(error, 1e-6) ** (1.0 / 3.0))
            h = max(h, tried * growth) if landing else tried * growth
        else:
            growth = 0.8 / error ** (1.0 / 3.0) if np.isfinite(error) else 0.1
            h = tried * max(0.1, min(growth, 0.8))
            if h * radius < 1e-10:
                how = _FAILED
                break
    kept[row:] = y0
    losses[row:] = loss
    return how, time, evaluations, steps, kept, losses, at_mark, mark_time
