"""Compiled gradient, epochs and flow of an SSM with a two-layer MLP behind it, in float64, by its two gains.

A ReLU network of one input without biases is g(z) = g_+ z for z > 0 and g_- |z| for z < 0 (proposition "A ReLU network of one
input without biases is two gains" of chapter "The same inside a network"), and z = sum_m x_{kappa-m} M_m. So the network is
evaluated at z = 1 and z = -1 only, and the SSM lag by lag: a gradient costs O(n kappa + d kappa + width^2) instead of
O(n (d kappa + width^2)).
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from ssm_poison_lib._compiled import ADAM_EPSILON, BETA_1, BETA_2, _dot, _full_norm_squared, _step_size
from ssm_poison_lib._jit import compiled

__all__ = ["gain_epochs", "gain_flow", "gain_gradient"]

RESTED = 0  # the ends of `gain_flow`
END_OF_TIME = 1
OUT_OF_EVALUATIONS = 2
FAILED = -1
# The spectral radius of the Jacobian is taken this much larger than the power method says.
_RADIUS_SAFETY = 1.2
# Stages of one step at most: rounding grows with their square.
_MOST_STAGES = 4000


@compiled()
@no_type_check
def gain_gradient(theta, d, width, x, y, gradient, powers, e, work):
    """Fill the gradient of the mean squared error and return that error.

    theta, gradient: (P,) = A, B, C (d each), first (width,), hidden (width * width,), last (width,). x: (kappa, n),
    first index = lag. y: (n,). powers: (kappa, d), filled with a_j^m. e: (kappa,), filled with minus the derivative by M_m.
    work: (4, width).
    """
    lags, n_sequences = x.shape
    A = theta[:d]
    B = theta[d : 2 * d]
    C = theta[2 * d : 3 * d]
    base = 3 * d
    first = theta[base : base + width]
    hidden = theta[base + width : base + width + width * width].reshape(width, width)
    last = theta[base + width + width * width :]
    h2 = work[:2]  # at z = 1 and z = -1
    g2 = work[2:]
    h2[:] = 0.0
    for i in range(width):  # a first-layer unit is on for one sign of z
        if first[i] != 0.0:
            sign = 0 if first[i] > 0.0 else 1
            size = abs(first[i])
            for k in range(width):
                h2[sign, k] += size * hidden[i, k]
    gain = np.zeros(2)
    for sign in range(2):
        for k in range(width):
            h2[sign, k] = max(h2[sign, k], 0.0)
            gain[sign] += h2[sign, k] * last[k]
    response = np.empty(lags)
    w = np.empty(d)
    for j in range(d):
        w[j] = B[j] * C[j]
    for m in range(lags):
        for j in range(d):
            powers[m, j] = 1.0 if m == 0 else powers[m - 1, j] * A[j]
        response[m] = _dot(w, powers[m], d, True)
        e[m] = 0.0
    z = np.zeros(n_sequences)
    for m in range(lags):
        for n in range(n_sequences):
            z[n] += x[m, n] * response[m]
    loss = 0.0
    by_gain = np.zeros(2)
    for n in range(n_sequences):
        sign = 0 if z[n] > 0.0 else 1
        residual = y[n] - gain[sign] * abs(z[n])
        loss += residual * residual
        by_gain[sign] += residual * abs(z[n])
        slope = gain[sign] if z[n] > 0.0 else (-gain[sign] if z[n] < 0.0 else 0.0)
        z[n] = residual * slope * (2.0 / n_sequences)
    for m in range(lags):
        e[m] = _dot(x[m], z, n_sequences, True)
    for j in range(d):
        slope = 0.0
        value = e[0]
        for m in range(1, lags):
            slope += m * e[m] * powers[m - 1, j]
            value += e[m] * powers[m, j]
        gradient[j] = -w[j] * slope
        gradient[d + j] = -C[j] * value
        gradient[2 * d + j] = -B[j] * value
    d_hidden = gradient[base + width : base + width + width * width].reshape(width, width)
    d_last = gradient[base + width + width * width :]
    scale = np.empty(2)
    for sign in range(2):
        scale[sign] = -by_gain[sign] * (2.0 / n_sequences)  # the derivative by the gain
    for k in range(width):
        d_last[k] = scale[0] * h2[0, k] + scale[1] * h2[1, k]
        for sign in range(2):
            g2[sign, k] = scale[sign] * last[k] if h2[sign, k] > 0.0 else 0.0
    for i in range(width):
        if first[i] == 0.0:
            gradient[base + i] = 0.0
            for k in range(width):
                d_hidden[i, k] = 0.0
        else:
            sign = 0 if first[i] > 0.0 else 1
            size = abs(first[i])
            for k in range(width):
                d_hidden[i, k] = size * g2[sign, k]
            total = _dot(hidden[i], g2[sign], width, True)
            gradient[base + i] = total if sign == 0 else -total
    return loss / n_sequences


@compiled()
@no_type_check
def gain_epochs(
    theta,
    moments,
    mean_norm,
    epoch,
    count,
    d,
    width,
    x,
    y,
    learning_rate,
    adam,
    normalized,
    off_diagonal,
    train_all,
    reset,
    stop_loss,
):
    """Train theta in place for at most `count` epochs; end early when loss <= stop_loss.

    theta, x, y: as in `gain_gradient`; moments: (2, P) for Adam. Returns as `_compiled.sequence_epochs`.
    """
    lags = x.shape[0]
    gradient = np.empty_like(theta)
    powers = np.empty((lags, d))
    e = np.empty(lags)
    work = np.empty((4, width))
    base = 3 * d
    ends = np.array([0, d, 2 * d, base, base + width, base + width + width * width, len(theta)])
    parts = 6 if train_all else 1
    loss = gain_gradient(theta, d, width, x, y, gradient, powers, e, work)
    judged = loss
    for done in range(count):
        epoch += 1
        step = learning_rate
        if normalized:
            norm = 0.0
            for part in range(parts):
                square = 0.0
                if part == 0 and off_diagonal:
                    square = _full_norm_squared(theta[:base].reshape(3, d), powers, e)
                else:
                    for i in range(ends[part], ends[part + 1]):
                        square += gradient[i] * gradient[i]
                norm += np.sqrt(square)
            step, mean_norm = _step_size(learning_rate, norm, mean_norm, epoch)
        if adam:
            rate = step * np.sqrt(1.0 - BETA_2**epoch) / (1.0 - BETA_1**epoch)
            for i in range(ends[parts]):
                g = gradient[i]
                moments[0, i] += (g - moments[0, i]) * (1.0 - BETA_1)
                moments[1, i] += (g * g - moments[1, i]) * (1.0 - BETA_2)
                theta[i] -= rate * moments[0, i] / (np.sqrt(moments[1, i]) + ADAM_EPSILON)
        else:
            for i in range(ends[parts]):
                theta[i] -= step * gradient[i]
        loss = gain_gradient(theta, d, width, x, y, gradient, powers, e, work)
        judged = loss
        if reset:
            theta[d:base] = 1.0
            loss = gain_gradient(theta, d, width, x, y, gradient, powers, e, work)
        if judged <= stop_loss or not np.isfinite(loss):
            return done + 1, mean_norm, loss, judged
    return count, mean_norm, loss, judged


@compiled()
@no_type_check
def _radius(theta, gradient, d, width, x, y, direction, powers, e, work):
    """Return (spectral radius of the Jacobian, evaluations) by power iteration on differences of gradients.

    direction: (P,) the last eigenvector, improved in place.
    """
    other = np.empty_like(theta)
    moved = np.empty_like(theta)
    size = 0.0
    for i in range(len(theta)):
        size += theta[i] * theta[i]
    step = 1e-7 * np.sqrt(size) + 1e-30
    radius = 0.0
    for trial in range(50):
        length = 0.0
        for i in range(len(theta)):
            length += direction[i] * direction[i]
        length = np.sqrt(length)
        if length == 0.0 or not np.isfinite(length):
            direction[:] = 1.0 / np.sqrt(len(theta))
            length = 1.0
        for i in range(len(theta)):
            direction[i] /= length
            moved[i] = theta[i] + step * direction[i]
        gain_gradient(moved, d, width, x, y, other, powers, e, work)
        square = 0.0
        for i in range(len(theta)):
            direction[i] = (other[i] - gradient[i]) / step
            square += direction[i] * direction[i]
        found = np.sqrt(square)
        if trial > 0 and abs(found - radius) <= 0.02 * found:
            return _RADIUS_SAFETY * max(found, radius), trial + 1
        radius = found
    return _RADIUS_SAFETY * radius, 50


@compiled()
@no_type_check
def gain_flow(theta, d, width, x, y, times, marks, rtol, atol, rest, max_evaluations):
    """Follow the gradient flow of theta by Runge-Kutta-Chebyshev steps of order 2, each with as many stages as it needs.

    The Jacobian of a gradient flow is symmetric: its eigenvalues are real, and s stages reach 0.65 s^2 along the negative axis,
    where s steps of an ordinary explicit method reach a multiple of s. theta, x, y: as in `gain_gradient`. times: (T,)
    increasing; marks: (K,) decreasing losses. The flow is at rest once the loss is at most `rest`.
    Returns (how, time, evaluations, steps, (T, P) weights at the times, (T,) losses, (K, P) weights and (K,) times at the
    first step with a loss <= each mark (NaN: never)). Past the end of a run its last weights are repeated.

    Source: Sommeijer, Shampine and Verwer, RKC (J. Comput. Appl. Math. 88, 1997): coefficients, error estimate.
    """
    P, lags = len(theta), x.shape[0]
    kept = np.empty((len(times), P))
    losses = np.empty(len(times))
    at_mark = np.full((len(marks), P), np.nan)
    mark_time = np.full(len(marks), np.nan)
    powers = np.empty((lags, d))
    e = np.empty(lags)
    work = np.empty((4, width))
    y0 = theta.copy()
    g0 = np.empty(P)
    older = np.empty(P)
    newer = np.empty(P)
    slope = np.empty(P)
    direction = np.ones(P)
    loss = gain_gradient(y0, d, width, x, y, g0, powers, e, work)
    for i in range(P):
        direction[i] = g0[i]
    time = 0.0
    lost = 0.0  # what rounding took from the time: steps can be far shorter than its last digit
    evaluations = 1
    steps = 0
    row = 0
    mark = 0
    how = END_OF_TIME
    radius = 0.0
    h = 0.0
    fresh = False
    eps = 2.0 / 13.0
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
            how = RESTED
        elif evaluations >= max_evaluations:
            how = OUT_OF_EVALUATIONS
        if how != END_OF_TIME:
            break
        if not fresh:
            radius, used = _radius(y0, g0, d, width, x, y, direction, powers, e, work)
            evaluations += used
            fresh = True
            if h == 0.0:
                h = 0.1 / max(radius, 1e-300)
        h = min(h, eps * 4.2 * _MOST_STAGES**2 / max(radius, 1e-300))
        left = times[row] - time + lost
        landing = h >= left
        tried = left if landing else h
        s = max(2, 1 + int(np.sqrt(1.54 * tried * radius + 1.0)))
        w0 = 1.0 + eps / s**2
        root = np.sqrt(w0 * w0 - 1.0)
        angle = s * np.log(w0 + root)
        w1 = np.sinh(angle) * root * root / (np.cosh(angle) * s * root - w0 * np.sinh(angle))
        b1 = 1.0 / (2.0 * w0) ** 2
        b2 = b1
        mus = w1 * b1
        for i in range(P):
            older[i] = y0[i]
            newer[i] = y0[i] - tried * mus * g0[i]
        z1, z2, p1, p2, q1, q2 = w0, 1.0, 1.0, 0.0, 0.0, 0.0
        for _ in range(2, s + 1):
            z = 2.0 * w0 * z1 - z2
            p = 2.0 * w0 * p1 - p2 + 2.0 * z1
            q = 2.0 * w0 * q1 - q2 + 4.0 * p1
            b = q / (p * p)
            a1 = 1.0 - z1 * b1
            mu = 2.0 * w0 * b / b1
            nu = -b / b2
            mus = mu * w1 / w0
            gain_gradient(newer, d, width, x, y, slope, powers, e, work)
            for i in range(P):
                value = mu * newer[i] + nu * older[i] + (1.0 - mu - nu) * y0[i]
                value -= tried * mus * (slope[i] - a1 * g0[i])
                older[i] = newer[i]
                newer[i] = value
            z2, z1, p2, p1, q2, q1, b2, b1 = z1, z, p1, p, q1, q, b1, b
        fresh_loss = gain_gradient(newer, d, width, x, y, slope, powers, e, work)
        evaluations += s
        steps += 1
        square = 0.0
        for i in range(P):
            estimate = 0.8 * (y0[i] - newer[i]) - 0.4 * tried * (g0[i] + slope[i])
            scaled = estimate / (atol + rtol * max(abs(y0[i]), abs(newer[i])))
            square += scaled * scaled
        error = np.sqrt(square / P)
        if error <= 1.0 and np.isfinite(fresh_loss):
            if landing:
                time, lost = times[row], 0.0
            else:
                part = tried - lost
                total = time + part
                lost = (total - time) - part
                time = total
            for i in range(P):
                y0[i] = newer[i]
                g0[i] = slope[i]
            loss = fresh_loss
            fresh = False
            growth = min(5.0, 0.8 / max(error, 1e-6) ** (1.0 / 3.0))
            h = max(h, tried * growth) if landing else tried * growth
        else:
            growth = 0.8 / error ** (1.0 / 3.0) if np.isfinite(error) else 0.1
            h = tried * max(0.1, min(growth, 0.8))
            if h * radius < 1e-10:
                how = FAILED
                break
    while row < len(times):
        kept[row] = y0
        losses[row] = loss
        row += 1
    return how, time, evaluations, steps, kept, losses, at_mark, mark_time
