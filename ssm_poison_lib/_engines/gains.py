"""Compiled gradient of an SSM with a two-layer MLP behind it, in float64, by its two gains.

A ReLU network of one input without biases is g(z) = g_+ z for z > 0 and g_- |z| for z < 0
(proposition "A ReLU network of one input without biases is two gains" of chapter "The same inside
a network"), and z = sum_m x_{kappa-m} M_m. So the network is evaluated at z = 1 and z = -1 only,
and the SSM lag by lag: a gradient costs O(n kappa + d kappa + width^2) instead of
O(n (d kappa + width^2)).
"""

from __future__ import annotations

from typing import Any, NamedTuple, no_type_check

from ssm_poison_lib._engines.equations import fill_powers, velocity
from ssm_poison_lib._engines.sums import aligned, dot
from ssm_poison_lib._jit import compiled

__all__ = ["Gains", "backward_gains", "forward_gains", "gains"]


class Gains(NamedTuple):
    """The mean squared error of an SSM with an MLP, and room for its gradient."""

    d: int  # state dimension
    width: int  # of the MLP's two hidden layers
    x: Any  # (kappa, n) inputs, first index = lag
    y: Any  # (n,) labels
    powers: Any  # (kappa, d) a_j^m
    w: Any  # (d,) b_j c_j
    response: Any  # (kappa,) M_m
    z: Any  # (n,) outputs of the SSM, then what the loss pulls them by
    h2: Any  # (2, width) second hidden layer at z = 1 and z = -1
    g2: Any  # (2, width) what the loss pulls it by
    gain: Any  # (2,) g_+ and g_-
    by_gain: Any  # (2,) sum of residual times |z| over the sequences of each sign
    e: Any  # (kappa,) minus the derivative of the loss by M_m
    U: Any  # (2 kappa - 3,) room for the norm of the full matrix's gradient
    V: Any  # (2 kappa - 3,)
    row: Any  # (kappa,)


def gains(x: Any, y: Any, d: int, width: int) -> Gains:
    """Return the loss of an SSM and MLP;

    Args:
        x: (kappa, n), first index = lag, y: (n,).
    """
    kappa, n = x.shape
    shapes = ((kappa, d), (d,), (kappa,), (n,), (2, width), (2, width), (2,), (2,), (kappa,))
    lags_of_H = max(2 * kappa - 3, 0)
    room = ((lags_of_H,), (lags_of_H,), (kappa,))
    return Gains(d, width, x, y, *(aligned(shape) for shape in shapes + room))


@compiled(apart=True, forceinline=True)
@no_type_check
def forward_gains(theta, p):
    """Return the loss at theta = A, B, C (d each), first, hidden (width * width,), last."""
    d, width, x, y, z, h2, w, powers = p.d, p.width, p.x, p.y, p.z, p.h2, p.w, p.powers
    response, gain, by_gain = p.response, p.gain, p.by_gain
    length, n_sequences = x.shape
    base = 3 * d
    first = theta[base : base + width]
    hidden = theta[base + width : base + width + width * width].reshape(width, width)
    last = theta[base + width + width * width :]
    h2[:] = 0.0
    for i in range(width):  # a first-layer unit is on for one sign of z
        if first[i] != 0.0:
            sign = 0 if first[i] > 0.0 else 1
            size = abs(first[i])
            for k in range(width):
                h2[sign, k] += size * hidden[i, k]
    for sign in range(2):
        total = 0.0
        for k in range(width):
            h2[sign, k] = max(h2[sign, k], 0.0)
            total += h2[sign, k] * last[k]
        gain[sign] = total
        by_gain[sign] = 0.0
    for j in range(d):
        w[j] = theta[d + j] * theta[2 * d + j]
    fill_powers(theta[:d], powers)
    for m in range(length):
        response[m] = dot(p.w, powers[m], d, True)
    z[:] = 0.0
    for m in range(length):
        for n in range(n_sequences):
            z[n] += x[m, n] * response[m]
    loss = 0.0
    for n in range(n_sequences):
        sign = 0 if z[n] > 0.0 else 1
        residual = y[n] - gain[sign] * abs(z[n])
        loss += residual * residual
        by_gain[sign] += residual * abs(z[n])
        slope = gain[sign] if z[n] > 0.0 else (-gain[sign] if z[n] < 0.0 else 0.0)
        z[n] = residual * slope * (2.0 / n_sequences)
    return loss / n_sequences


@compiled(apart=True, forceinline=True)
@no_type_check
def backward_gains(theta, v, p):
    """Fill the velocity v, minus the gradient, at the theta of the last `forward_gains`."""
    d, width, x, z, h2, g2, e = p.d, p.width, p.x, p.z, p.h2, p.g2, p.e
    length, n_sequences = x.shape
    base = 3 * d
    first = theta[base : base + width]
    hidden = theta[base + width : base + width + width * width].reshape(width, width)
    last = theta[base + width + width * width :]
    for m in range(length):
        e[m] = dot(x[m], z, n_sequences, True)
    velocity(theta[d : 2 * d], theta[2 * d : base], e, p.powers, v[:base].reshape(3, d))
    v_hidden = v[base + width : base + width + width * width].reshape(width, width)
    v_last = v[base + width + width * width :]
    up = p.by_gain[0] * (2.0 / n_sequences)  # minus the derivatives by the gains
    down = p.by_gain[1] * (2.0 / n_sequences)
    for k in range(width):
        v_last[k] = up * h2[0, k] + down * h2[1, k]
        g2[0, k] = up * last[k] if h2[0, k] > 0.0 else 0.0
        g2[1, k] = down * last[k] if h2[1, k] > 0.0 else 0.0
    for i in range(width):
        if first[i] == 0.0:
            v[base + i] = 0.0
            for k in range(width):
                v_hidden[i, k] = 0.0
        else:
            sign = 0 if first[i] > 0.0 else 1
            size = abs(first[i])
            for k in range(width):
                v_hidden[i, k] = size * g2[sign, k]
            total = dot(hidden[i], g2[sign], width, True)
            v[base + i] = total if sign == 0 else -total
