"""Compiled epochs of training: the loop behind `descent`, and the losses that it can train.

A loss comes as a NamedTuple of its data and of the arrays that hold what its gradient needs:
`Lags` for a linear SSM, `Gains` (module `gains`) for an SSM with an MLP after it, and `Sequences`
for both in the order in which the authors' float32 program adds. `forward` fills them and returns
the loss, `backward` turns them into the velocity, minus the gradient. Sums run over the contiguous
last axis, in an order of their own and not of a BLAS library's: the digits are the same everywhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple, no_type_check

import numpy as np

from ssm_poison_lib._engines.adam import adam_step
from ssm_poison_lib._engines.equations import fill_response, velocity
from ssm_poison_lib._engines.gains import backward_gains, forward_gains
from ssm_poison_lib._engines.sums import aligned, dot, product
from ssm_poison_lib._jit import compiled

__all__ = ["Lags", "Quirks", "Sequences", "lags", "network_outputs", "sequences", "train"]

# The decay of the running mean of gradient norms and the small number of the authors' step size.
NORM_DECAY = 0.8
NORM_EPSILON = 1e-6


class Quirks(NamedTuple):
    """How `train` steps.

    Attributes:
        learning_rate: step size, or its base where `normalized`.
        adam: Adam in place of plain gradient descent.
        normalized: divide by the running mean of gradient norms, as the authors do.
        off_diagonal: count the gradient of the full matrix A in that norm.
        arrays: how many weight arrays are trained, from A on.
        reset: set B and C to ones after every epoch.
        stop_loss: return after the first epoch whose loss is at most this.
    """

    learning_rate: float
    adam: bool
    normalized: bool
    off_diagonal: bool
    arrays: int
    reset: bool
    stop_loss: float


class Lags(NamedTuple):
    """The loss of a linear SSM, (M* - M)^T G (M* - M) / 2, and room for its gradient."""

    G: Any  # (kappa, kappa) Gram matrix of the training set
    target: Any  # (kappa,) the teacher's impulse response M*
    w: Any  # (d,) b_j c_j
    powers: Any  # (kappa, d) a_j^m
    residual: Any  # (kappa,) M* - M
    e: Any  # (kappa,) G (M* - M)
    U: Any  # (2 kappa - 3,) see `_full_norm_squared`
    V: Any  # (2 kappa - 3,)
    row: Any  # (kappa,)


class Sequences(NamedTuple):
    """The loss of an SSM, with an MLP after it if width > 0, sequence by sequence.

    All floating-point arrays have one precision, float32 or float64.
    """

    d: int  # state dimension and
    width: int  # width of the MLP, without padding
    x: Any  # (n, kappa) inputs
    y: Any  # (n,) labels
    states: Any  # (kappa + 1, n, D), D: the padded d
    z: Any  # (n,) outputs of the SSM
    output: Any  # (n,) outputs of the MLP
    h1: Any  # (n, W) first hidden layer, W: the padded width
    h2: Any  # (n, W) second hidden layer
    d_z: Any  # (n,) velocities of z, h1, h2 and of the state
    g1: Any  # (n, W)
    g2: Any  # (n, W)
    g_state: Any  # (n, D)
    hidden_t: Any  # (W, W) the hidden matrix, transposed
    at_t: Any  # (2, D) what one time step adds to the velocity of A and B
    full: Any  # (2, D, D) velocity of the full matrix A: in all, at one time step; or (2, 0, 0)


def lags(G: Any, target: Any, d: int) -> Lags:
    """Return the loss of a linear SSM of state dimension d."""
    kappa = len(target)
    lags_of_H = max(2 * kappa - 3, 0)
    shapes = ((d,), (kappa, d), (kappa,), (kappa,), (lags_of_H,), (lags_of_H,), (kappa,))
    return Lags(G, target, *(aligned(shape) for shape in shapes))


def sequences(
    x: Any, y: Any, d: int, width: int, padded: tuple[int, int], *, full: bool
) -> Sequences:
    """Return the loss of an SSM and MLP.

    Args:
        x: (n, kappa) inputs, whose precision is that of the training.
        y: (n,) labels.
        d: state dimension.
        width: of the MLP, 0 without one.
        padded: d and width with padding.
        full: whether the velocity of the full matrix A is wanted.
    """
    (n, kappa), (D, W) = x.shape, padded
    shapes = ((kappa + 1, n, D), (n,), (n,), (n, W), (n, W), (n,), (n, W), (n, W))
    more = ((n, D), (W, W), (2, D), (2, D, D) if full else (2, 0, 0))
    return Sequences(d, width, x, y, *(aligned(shape, x.dtype) for shape in shapes + more))


@compiled(apart=True, forceinline=True)
@no_type_check
def _forward_lags(theta, p):
    """Fill w, powers, residual and e; return the loss."""
    length, d = p.powers.shape
    w, residual, e = p.w, p.residual, p.e
    B, C = theta[d : 2 * d], theta[2 * d :]
    for j in range(d):
        w[j] = B[j] * C[j]
    fill_response(theta[:d], w, p.powers, residual)
    for m in range(length):
        residual[m] = p.target[m] - residual[m]
    total = 0.0
    for m in range(length):
        row = p.G[m]
        pull = 0.0
        for k in range(length):
            pull += row[k] * residual[k]
        e[m] = pull
        total += 0.5 * residual[m] * pull
    return max(total, 0.0)


@compiled(apart=True, forceinline=True)
@no_type_check
def _full_norm_squared(B, C, powers, e, U, V, row):
    """Return the squared norm of the gradient with respect to the *full* matrix A at a diagonal A.

    That gradient is -sum_{s, r} e_{s+r+1} u_s v_r^T with u_s = c a^s, v_r = b a^r. Its squared norm
    is the trace of H U H V, where H_{sr} = e_{s+r+1} and U, V are the Gram matrices of the u_s and
    v_r: no d x d matrix is needed. U, V and row are room.
    """
    p = len(e) - 1
    if p == 0:  # a single input never passes through A
        return 0.0
    for k in range(2 * p - 1):  # u_s . u_r depends on s + r only
        one, other = powers[min(k, p - 1)], powers[max(k - p + 1, 0)]
        u = 0.0
        v = 0.0
        for j in range(len(B)):
            power = one[j] * other[j]
            u += C[j] * C[j] * power
            v += B[j] * B[j] * power
        U[k] = u
        V[k] = v
    total = 0.0
    for s in range(p):
        later = e[s + 1 :]
        for r in range(p):  # row = (H U)_{s r}
            entry = 0.0
            for k in range(p - s):
                entry += later[k] * U[k + r]
            row[r] = entry
        for r in range(p):
            entry = 0.0  # (H U H)_{s r}
            for k in range(p - r):
                entry += row[k] * e[k + r + 1]
            total += entry * V[r + s]
    return max(total, 0.0)


@compiled(apart=True, forceinline=True)
@no_type_check
def _forward_sequences(theta, p, in_lanes):
    """Fill states, z, both hidden layers and the output; return the mean squared error.

    Args:
        in_lanes: see `sums.dot`.
    """
    number = theta.dtype.type
    zero = number(0)
    n_sequences, length = p.x.shape
    D, W = p.states.shape[2], p.h1.shape[1]
    ssm = theta[: 3 * D].reshape(3, D)
    first = theta[3 * D : 3 * D + W]
    last = theta[3 * D + W + W * W :]
    x, y, states, z, h1, h2, output = p.x, p.y, p.states, p.z, p.h1, p.h2, p.output
    for t in range(length):
        for n in range(n_sequences):
            value = x[n, t]
            for j in range(D):
                states[t + 1, n, j] = ssm[0, j] * states[t, n, j] + ssm[1, j] * value
    for n in range(n_sequences):
        z[n] = dot(states[length, n], ssm[2], p.d, in_lanes)
        value = z[n]
        for k in range(W):
            h1[n, k] = max(value * first[k], zero)
    product(h1, theta[3 * D + W : 3 * D + W + W * W].reshape(W, W), h2)
    total = zero
    for n in range(n_sequences):
        for k in range(W):
            h2[n, k] = max(h2[n, k], zero)
        output[n] = dot(h2[n], last, p.width, in_lanes) if W else z[n]
        total += (output[n] - y[n]) * (output[n] - y[n])
    return total / number(n_sequences)


@compiled(apart=True, forceinline=True)
@no_type_check
def _backward_sequences(theta, v, p):
    """Fill the velocity v, and p.full where it has room, step by step back through time."""
    number = theta.dtype.type
    n_sequences, length = p.x.shape
    D, W = p.states.shape[2], p.h1.shape[1]
    ssm = theta[: 3 * D].reshape(3, D)
    first = theta[3 * D : 3 * D + W]
    hidden = theta[3 * D + W : 3 * D + W + W * W].reshape(W, W)
    last = theta[3 * D + W + W * W :]
    v_ssm = v[: 3 * D].reshape(3, D)
    v_first = v[3 * D : 3 * D + W]
    v_hidden = v[3 * D + W : 3 * D + W + W * W].reshape(W, W)
    v_last = v[3 * D + W + W * W :]
    x, y, states, z, h1, h2, output = p.x, p.y, p.states, p.z, p.h1, p.h2, p.output
    d_z, g1, g2, g_state, hidden_t, at_t = p.d_z, p.g1, p.g2, p.g_state, p.hidden_t, p.at_t
    full, full_t = p.full[0], p.full[1]
    for n in range(n_sequences):
        d_z[n] = (y[n] - output[n]) * (number(2) / number(n_sequences))
    if W:
        v_last[:] = 0
        v_first[:] = 0
        v_hidden[:] = 0
        for n in range(n_sequences):
            value = d_z[n]
            for k in range(W):
                v_last[k] += h2[n, k] * value
                g2[n, k] = value * last[k] if h2[n, k] > 0 else number(0)
        for n in range(n_sequences):
            for i in range(W):
                value = h1[n, i]
                if value != 0:
                    for k in range(W):
                        v_hidden[i, k] += value * g2[n, k]
        for i in range(W):
            for k in range(W):
                hidden_t[k, i] = hidden[i, k]
        product(g2, hidden_t, g1)
        for n in range(n_sequences):
            value = z[n]
            for k in range(W):
                if h1[n, k] <= 0:
                    g1[n, k] = 0
                v_first[k] += g1[n, k] * value
            d_z[n] = dot(g1[n], first, p.width, False)
    v_ssm[:] = 0
    for n in range(n_sequences):
        value = d_z[n]
        for j in range(D):
            v_ssm[2, j] += states[length, n, j] * value
            g_state[n, j] = value * ssm[2, j]
    wide = len(full)
    if wide:
        full[:] = 0
    for t in range(length - 1, -1, -1):  # one step's sums at a time, as back-propagation adds them
        at_t[:] = 0
        for n in range(n_sequences):
            value = x[n, t]
            for j in range(D):
                at_t[0, j] += states[t, n, j] * g_state[n, j]
                at_t[1, j] += value * g_state[n, j]
        for j in range(D):
            v_ssm[0, j] += at_t[0, j]
            v_ssm[1, j] += at_t[1, j]
        if wide:
            full_t[:] = 0
            for n in range(n_sequences):
                for i in range(wide):
                    value = states[t, n, i]
                    if value != 0:
                        for j in range(wide):
                            full_t[i, j] += value * g_state[n, j]
            for i in range(wide):
                for j in range(wide):
                    full[i, j] += full_t[i, j]
        for n in range(n_sequences):
            for j in range(D):
                g_state[n, j] *= ssm[0, j]


# Of the three losses one is given and two are None: Numba leaves out what stands under
# "is not None" of a None, as long as that is asked of each by itself.


@compiled(inline="always")
@no_type_check
def forward(theta, by_lag, by_gain, by_sequence):
    """Return the loss at theta, of the one of the three that is given, and fill its arrays."""
    loss = theta.dtype.type(0)
    if by_lag is not None:
        loss = _forward_lags(theta, by_lag)
    if by_gain is not None:
        loss = forward_gains(theta, by_gain)
    if by_sequence is not None:
        loss = _forward_sequences(theta, by_sequence, False)
    return loss


@compiled(inline="always")
@no_type_check
def backward(theta, v, by_lag, by_gain, by_sequence):
    """Fill the velocity v, minus the gradient, at the theta of the last `forward`."""
    if by_lag is not None:
        d = by_lag.powers.shape[1]
        velocity(theta[d : 2 * d], theta[2 * d :], by_lag.e, by_lag.powers, v.reshape(3, d))
    if by_gain is not None:
        backward_gains(theta, v, by_gain)
    if by_sequence is not None:
        _backward_sequences(theta, v, by_sequence)


@compiled(inline="always")
@no_type_check
def _square_of_full_A(theta, by_lag, by_gain, by_sequence):
    """Return the squared norm of the gradient of the full matrix A, after `backward`."""
    square = theta.dtype.type(0)
    if by_lag is not None:
        d = by_lag.powers.shape[1]
        square = _full_norm_squared(
            theta[d : 2 * d],
            theta[2 * d :],
            by_lag.powers,
            by_lag.e,
            by_lag.U,
            by_lag.V,
            by_lag.row,
        )
    if by_gain is not None:
        d = by_gain.d
        B, C = theta[d : 2 * d], theta[2 * d : 3 * d]
        square = _full_norm_squared(
            B, C, by_gain.powers, by_gain.e, by_gain.U, by_gain.V, by_gain.row
        )
    if by_sequence is not None:
        full = by_sequence.full[0]
        for i in range(len(full)):
            for j in range(len(full)):
                square += full[i, j] * full[i, j]
    return square


@compiled(apart=True, forceinline=True)
@no_type_check
def _step_size(learning_rate, norm, mean_norm, epoch):
    """Return the normalized step size and the new running mean of gradient norms."""
    mean_norm = NORM_DECAY * mean_norm + (1.0 - NORM_DECAY) * norm
    unbiased = mean_norm / (1.0 - NORM_DECAY**epoch)
    return learning_rate / (np.sqrt(unbiased) + NORM_EPSILON), mean_norm


@compiled(apart=True)
@no_type_check
def train(
    theta, moments, v, mean_norm, epoch, count, d, ends, quirks, by_lag, by_gain, by_sequence
):
    """Train theta in place for at most `count` epochs; end early at a loss <= quirks.stop_loss.

    Args:
        theta: (P,) A, B, C, then the MLP's first, hidden and last weights, each array padded.
        moments: (2, P) for Adam.
        v: (P,) room for the velocity.
        mean_norm: running mean of gradient norms so far.
        epoch: epochs done so far.
        count: epochs to do at most.
        d: state dimension without padding.
        ends: (arrays + 1,) where each weight array begins and ends.
        quirks: a `Quirks`.
        by_lag: a `Lags` or None.
        by_gain: a `Gains` or None.
        by_sequence: a `Sequences` or None; exactly one of the three is given.

    Returns:
        (epochs done, running mean norm, loss now, loss before a reset of B and C)
    """
    number = theta.dtype.type
    trained = ends[quirks.arrays]
    done = 0
    again = False  # after a reset of B and C
    while True:
        loss = forward(theta, by_lag, by_gain, by_sequence)
        if not again:
            judged = loss
        again = quirks.reset and done > 0 and not again
        if again:
            for part in range(1, 3):
                theta[ends[part] : ends[part] + d] = number(1)
            continue
        ended = done > 0 and (judged <= quirks.stop_loss or not np.isfinite(loss))
        if ended or done == count:
            return done, mean_norm, loss, judged
        done += 1
        epoch += 1
        backward(theta, v, by_lag, by_gain, by_sequence)
        step = quirks.learning_rate
        if quirks.normalized:
            norm = number(0)
            for part in range(quirks.arrays):
                square = number(0)
                if part == 0 and quirks.off_diagonal:
                    square = _square_of_full_A(theta, by_lag, by_gain, by_sequence)
                else:
                    for i in range(ends[part], ends[part + 1]):
                        square += v[i] * v[i]
                norm += np.sqrt(square)
            step, mean_norm = _step_size(quirks.learning_rate, norm, mean_norm, epoch)
        if quirks.adam:
            adam_step(theta, moments, v, trained, step, epoch)
        else:
            for i in range(trained):
                theta[i] += number(step) * v[i]


@compiled(apart=True)
@no_type_check
def network_outputs(theta, problem):
    """Return a teacher's outputs (n,) to the inputs of a `Sequences`, whose labels are not read."""
    _forward_sequences(theta, problem, True)
    return problem.output
