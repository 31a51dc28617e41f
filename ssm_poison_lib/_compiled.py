"""Compiled epochs of training: the loops behind `descent`, one for a linear SSM, one for an SSM with an MLP after it.

Gradients are written out by hand; tests compare them with PyTorch's. Loops run over the contiguous last axis and add in
the order in which a matrix product would, so that float32 runs round much as the authors' do.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from ssm_poison_lib._jit import compiled

__all__ = ["linear_epochs", "network_outputs", "sequence_epochs"]

# The decay of the running mean of gradient norms and the small number of the authors' step size.
NORM_DECAY = 0.8
NORM_EPSILON = 1e-6
# Adam's constants (Keras' defaults, which the authors use).
BETA_1 = 0.9
BETA_2 = 0.999
ADAM_EPSILON = 1e-7


@compiled()
@no_type_check
def _residual(theta, target, powers, residual):
    """Fill powers[m, j] = a_j^m and residual[m] = M*_m - M_m for theta = (A, B, C)."""
    lags, d = powers.shape
    for m in range(lags):
        total = 0.0
        for j in range(d):
            powers[m, j] = 1.0 if m == 0 else powers[m - 1, j] * theta[0, j]
            total += theta[1, j] * theta[2, j] * powers[m, j]
        residual[m] = target[m] - total


@compiled()
@no_type_check
def _loss(G, residual, e):
    """Fill e = G residual and return residual^T G residual / 2, the mean squared error."""
    lags = len(residual)
    total = 0.0
    for m in range(lags):
        e[m] = 0.0
        for k in range(lags):
            e[m] += G[m, k] * residual[k]
        total += 0.5 * residual[m] * e[m]
    return max(total, 0.0)


@compiled()
@no_type_check
def _full_norm_squared(theta, powers, e):
    """Return the squared norm of the gradient with respect to the *full* d x d matrix A at a diagonal A.

    That gradient is -sum_{s, r} e_{s+r+1} u_s v_r^T with u_s = c a^s, v_r = b a^r. Its squared norm is the trace of
    H U H V, where H_{sr} = e_{s+r+1} and U, V are the Gram matrices of the u_s and v_r: no d x d matrix is needed.
    """
    p = len(e) - 1
    if p == 0:  # a single input never passes through A
        return 0.0
    U = np.empty(2 * p - 1)
    V = np.empty(2 * p - 1)
    for k in range(2 * p - 1):  # u_s . u_r depends on s + r only
        s = min(k, p - 1)
        u = 0.0
        v = 0.0
        for j in range(theta.shape[1]):
            power = powers[s, j] * powers[k - s, j]
            u += theta[2, j] * theta[2, j] * power
            v += theta[1, j] * theta[1, j] * power
        U[k] = u
        V[k] = v
    total = 0.0
    row = np.empty(p)
    for s in range(p):
        for r in range(p):  # row = (H U)_{s r}
            row[r] = 0.0
            for k in range(p - s):
                row[r] += e[s + k + 1] * U[k + r]
        for r in range(p):
            entry = 0.0  # (H U H)_{s r}
            for k in range(p - r):
                entry += row[k] * e[k + r + 1]
            total += entry * V[r + s]
    return max(total, 0.0)


@compiled()
@no_type_check
def _step_size(learning_rate, norm, mean_norm, epoch):
    """Return the normalized step size and the new running mean of gradient norms."""
    mean_norm = NORM_DECAY * mean_norm + (1.0 - NORM_DECAY) * norm
    unbiased = mean_norm / (1.0 - NORM_DECAY**epoch)
    return learning_rate / (np.sqrt(unbiased) + NORM_EPSILON), mean_norm


@compiled()
@no_type_check
def linear_epochs(
    theta,
    moments,
    mean_norm,
    epoch,
    count,
    G,
    target,
    learning_rate,
    adam,
    normalized,
    off_diagonal,
    train_all,
    reset,
    stop_loss,
):
    """Train theta = (A, B, C), shape (3, d), in place for at most `count` epochs; end early when loss <= stop_loss.

    moments: (2, 3, d) for Adam. G: (kappa, kappa); target: (kappa,) the teacher's impulse response.
    Returns (epochs done, running mean norm, loss now, loss before a reset of B and C).
    """
    d = theta.shape[1]
    lags = len(target)
    powers = np.empty((lags, d))
    residual = np.empty(lags)
    e = np.empty(lags)
    gradient = np.empty((3, d))
    _residual(theta, target, powers, residual)
    loss = _loss(G, residual, e)
    judged = loss
    for done in range(count):
        epoch += 1
        for j in range(d):
            slope = 0.0  # d(sum_m e_m M_m) / da_j and / dw_j
            value = e[0]
            for m in range(1, lags):
                slope += m * e[m] * powers[m - 1, j]
                value += e[m] * powers[m, j]
            gradient[0, j] = -theta[1, j] * theta[2, j] * slope
            gradient[1, j] = -theta[2, j] * value
            gradient[2, j] = -theta[1, j] * value
        rows = 3 if train_all else 1
        step = learning_rate
        if normalized:
            norm = 0.0
            for i in range(rows):
                square = 0.0
                if i == 0 and off_diagonal:
                    square = _full_norm_squared(theta, powers, e)
                else:
                    for j in range(d):
                        square += gradient[i, j] ** 2
                norm += np.sqrt(square)
            step, mean_norm = _step_size(learning_rate, norm, mean_norm, epoch)
        if adam:
            rate = step * np.sqrt(1.0 - BETA_2**epoch) / (1.0 - BETA_1**epoch)
            for i in range(rows):
                for j in range(d):
                    g = gradient[i, j]
                    moments[0, i, j] += (g - moments[0, i, j]) * (1.0 - BETA_1)
                    moments[1, i, j] += (g * g - moments[1, i, j]) * (1.0 - BETA_2)
                    theta[i, j] -= rate * moments[0, i, j] / (np.sqrt(moments[1, i, j]) + ADAM_EPSILON)
        else:
            for i in range(rows):
                for j in range(d):
                    theta[i, j] -= step * gradient[i, j]
        _residual(theta, target, powers, residual)
        loss = _loss(G, residual, e)
        judged = loss
        if reset:
            theta[1:] = 1.0
            _residual(theta, target, powers, residual)
            loss = _loss(G, residual, e)
        if judged <= stop_loss or not np.isfinite(loss):
            return done + 1, mean_norm, loss, judged
    return count, mean_norm, loss, judged


@compiled()
@no_type_check
def _product(left, right, out):
    """out = left @ right, shapes (n, i), (i, k), (n, k), each sum in the order of i.

    Written out because a BLAS library adds in another order on another processor: here the digits are the same on all.
    """
    for n in range(out.shape[0]):
        out[n] = 0
        for i in range(right.shape[0]):
            factor = left[n, i]
            if factor != 0:
                for k in range(out.shape[1]):
                    out[n, k] += factor * right[i, k]


@compiled()
@no_type_check
def _dot(left, right, count, in_lanes):
    """Return sum_k left[k] right[k], k < count, one after the other, or in eight running sums joined before the rest.

    The latter is how the authors' program multiplies a matrix by a vector: their float32 labels come out in every digit.
    """
    zero = left.dtype.type(0)
    s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
    whole = count - count % 8 if in_lanes else 0
    for k in range(0, whole, 8):
        s0 += left[k] * right[k]
        s1 += left[k + 1] * right[k + 1]
        s2 += left[k + 2] * right[k + 2]
        s3 += left[k + 3] * right[k + 3]
        s4 += left[k + 4] * right[k + 4]
        s5 += left[k + 5] * right[k + 5]
        s6 += left[k + 6] * right[k + 6]
        s7 += left[k + 7] * right[k + 7]
    total = ((s0 + s4) + (s2 + s6)) + ((s1 + s5) + (s3 + s7))
    for k in range(whole, count):
        total += left[k] * right[k]
    return total


@compiled()
@no_type_check
def _network_forward(ssm, first, hidden, last, sizes, in_lanes, x, y, states, z, h1, h2, output):
    """Fill states (kappa+1, n, D), z = C h_kappa, both hidden layers and the output; return the mean squared error.

    sizes: (d, width) without padding; in_lanes: see `_dot`.
    """
    length = x.shape[1]
    zero = ssm.dtype.type(0)
    for t in range(length):
        for n in range(len(y)):
            for j in range(ssm.shape[1]):
                states[t + 1, n, j] = ssm[0, j] * states[t, n, j] + ssm[1, j] * x[n, t]
    for n in range(len(y)):
        z[n] = _dot(states[length, n], ssm[2], sizes[0], in_lanes)
        for k in range(len(first)):
            h1[n, k] = max(z[n] * first[k], zero)
    _product(h1, hidden, h2)
    total = zero
    for n in range(len(y)):
        for k in range(len(last)):
            h2[n, k] = max(h2[n, k], zero)
        output[n] = _dot(h2[n], last, sizes[1], in_lanes) if len(last) else z[n]
        total += (output[n] - y[n]) * (output[n] - y[n])
    return total / ssm.dtype.type(len(y))


@compiled()
@no_type_check
def network_outputs(theta, sizes, d, width, x):
    """Return a teacher's outputs (n,) for x of shape (n, kappa); theta, sizes, d, width as in `sequence_epochs`."""
    n_sequences, length = x.shape
    ssm = theta[: 3 * d].reshape(3, d)
    first = theta[3 * d : 3 * d + width]
    hidden = theta[3 * d + width : 3 * d + width + width * width].reshape(width, width)
    last = theta[3 * d + width + width * width :]
    states = np.zeros((length + 1, n_sequences, d), theta.dtype)
    z = np.empty(n_sequences, theta.dtype)
    output = np.zeros(n_sequences, theta.dtype)
    h1 = np.empty((n_sequences, width), theta.dtype)
    h2 = np.empty((n_sequences, width), theta.dtype)
    _network_forward(ssm, first, hidden, last, sizes, True, x, output.copy(), states, z, h1, h2, output)
    return output


@compiled()
@no_type_check
def sequence_epochs(
    theta,
    moments,
    mean_norm,
    epoch,
    count,
    sizes,
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
    """Train an SSM, with an MLP after it if width > 0, in place for at most `count` epochs, sequence by sequence.

    theta: (P,) = A, B, C (d each), then first (width,), hidden (width, width), last (width,), all in one precision,
    float32 or float64; d and width are padded, sizes = (d, width) are not, and padding stays zero. moments: (2, P).
    x: (n, kappa); y: (n,). Ends early
    when loss <= stop_loss. Returns (epochs done, running mean norm, loss now, loss before a reset of B and C).
    """
    number = theta.dtype.type
    n_sequences, length = x.shape
    gradient = np.zeros_like(theta)
    ends = np.array([0, d, 2 * d, 3 * d, 3 * d + width, 3 * d + width + width * width, len(theta)])
    ssm = theta[: ends[3]].reshape(3, d)
    first = theta[ends[3] : ends[4]]
    hidden = theta[ends[4] : ends[5]].reshape(width, width)
    last = theta[ends[5] :]
    d_ssm = gradient[: ends[3]].reshape(3, d)
    d_first = gradient[ends[3] : ends[4]]
    d_hidden = gradient[ends[4] : ends[5]].reshape(width, width)
    d_last = gradient[ends[5] :]
    states = np.zeros((length + 1, n_sequences, d), theta.dtype)
    z = np.empty(n_sequences, theta.dtype)
    output = np.empty(n_sequences, theta.dtype)
    d_z = np.empty(n_sequences, theta.dtype)
    h1 = np.empty((n_sequences, width), theta.dtype)
    h2 = np.empty((n_sequences, width), theta.dtype)
    g1 = np.empty((n_sequences, width), theta.dtype)
    g2 = np.empty((n_sequences, width), theta.dtype)
    hidden_t = np.empty((width, width), theta.dtype)
    g_state = np.empty((n_sequences, d), theta.dtype)
    at_t = np.empty((2, d), theta.dtype)
    full = normalized and off_diagonal
    full_A = np.zeros((d, d) if full else (0, 0), theta.dtype)
    full_t = np.zeros((d, d) if full else (0, 0), theta.dtype)
    parts = 1 if not train_all else (6 if width else 3)
    loss = _network_forward(ssm, first, hidden, last, sizes, False, x, y, states, z, h1, h2, output)
    judged = loss
    for done in range(count):
        epoch += 1
        for n in range(n_sequences):
            d_z[n] = (output[n] - y[n]) * (number(2) / number(n_sequences))
        if width:
            d_last[:] = 0
            d_first[:] = 0
            d_hidden[:] = 0
            for n in range(n_sequences):
                for k in range(width):
                    d_last[k] += h2[n, k] * d_z[n]
                    g2[n, k] = d_z[n] * last[k] if h2[n, k] > 0 else number(0)
            for n in range(n_sequences):
                for i in range(width):
                    if h1[n, i] != 0:
                        for k in range(width):
                            d_hidden[i, k] += h1[n, i] * g2[n, k]
            for i in range(width):
                for k in range(width):
                    hidden_t[k, i] = hidden[i, k]
            _product(g2, hidden_t, g1)
            for n in range(n_sequences):
                for k in range(width):
                    if h1[n, k] <= 0:
                        g1[n, k] = 0
                    d_first[k] += g1[n, k] * z[n]
                d_z[n] = _dot(g1[n], first, sizes[1], False)
        d_ssm[:] = 0
        for n in range(n_sequences):
            for j in range(d):
                d_ssm[2, j] += states[length, n, j] * d_z[n]
                g_state[n, j] = d_z[n] * ssm[2, j]
        if full:
            full_A[:] = 0
        for t in range(length - 1, -1, -1):  # one step's sums at a time, as back-propagation adds them
            at_t[:] = 0
            for n in range(n_sequences):
                for j in range(d):
                    at_t[0, j] += states[t, n, j] * g_state[n, j]
                    at_t[1, j] += x[n, t] * g_state[n, j]
            for j in range(d):
                d_ssm[0, j] += at_t[0, j]
                d_ssm[1, j] += at_t[1, j]
            if full:
                full_t[:] = 0
                for n in range(n_sequences):
                    for i in range(d):
                        if states[t, n, i] != 0:
                            for j in range(d):
                                full_t[i, j] += states[t, n, i] * g_state[n, j]
                for i in range(d):
                    for j in range(d):
                        full_A[i, j] += full_t[i, j]
            for n in range(n_sequences):
                for j in range(d):
                    g_state[n, j] *= ssm[0, j]
        step = learning_rate
        if normalized:
            norm = number(0)
            for part in range(parts):
                square = number(0)
                if part == 0 and full:
                    for i in range(d):
                        for j in range(d):
                            square += full_A[i, j] * full_A[i, j]
                else:
                    for i in range(ends[part], ends[part + 1]):
                        square += gradient[i] * gradient[i]
                norm += np.sqrt(square)
            step, mean_norm = _step_size(learning_rate, norm, mean_norm, epoch)
        if adam:
            one = number(1)
            fresh_1 = one - number(BETA_1)
            fresh_2 = one - number(BETA_2)
            power_1 = number(np.float64(number(BETA_1)) ** epoch)
            power_2 = number(np.float64(number(BETA_2)) ** epoch)
            rate = number(step) * np.sqrt(one - power_2) / (one - power_1)
            epsilon = number(ADAM_EPSILON)
            for i in range(ends[parts]):
                moments[0, i] += (gradient[i] - moments[0, i]) * fresh_1
                moments[1, i] += (gradient[i] * gradient[i] - moments[1, i]) * fresh_2
                theta[i] -= (moments[0, i] * rate) / (np.sqrt(moments[1, i]) + epsilon)
        else:
            for i in range(ends[parts]):
                theta[i] -= number(step) * gradient[i]
        loss = _network_forward(ssm, first, hidden, last, sizes, False, x, y, states, z, h1, h2, output)
        judged = loss
        if reset:
            ssm[1:, : sizes[0]] = number(1)
            loss = _network_forward(ssm, first, hidden, last, sizes, False, x, y, states, z, h1, h2, output)
        if judged <= stop_loss or not np.isfinite(loss):
            return done + 1, mean_norm, loss, judged
    return count, mean_norm, loss, judged
