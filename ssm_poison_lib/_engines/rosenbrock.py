"""The compiled inside of `flows`: one adaptive Rosenbrock step for many runs side by side.

Each run has a lane s; every array ends in the lane axis, of length W, and the innermost loop of
each operation runs over it. Other indices: j: entry of A, c: column of the factor L of G, m: lag.
Unknowns u, gaps and weights as in `flows`.

A step is: load runs into free lanes; `linearize` at the point; `finish` lanes that have ended;
`choose_step`; `factor` the matrix; four `stages`; `control` the error.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import numpy as np

from ssm_poison_lib._engines.rows import rows
from ssm_poison_lib._engines.sums import aligned
from ssm_poison_lib._jit import compiled
from ssm_poison_lib._trajectory import FlowStatus

__all__ = ["Results", "Runs", "factor_gram", "integrate"]

# No "nnan" or "ninf": the error control looks for values that are not finite.
_FASTMATH = {"contract", "reassoc", "nsz", "arcp"}
_part = compiled(part=True, fastmath=_FASTMATH)

# GRK4T of Kaps and Rentrop (1979) in the form without products by J, Hairer and Wanner, Solving
# Ordinary Differential Equations II, section IV.7:
# (1/(h GAMMA) - J) k_i = f(u + sum_m A_im k_m) + sum_m C_im k_m / h.
GAMMA = 0.231
_A = np.array(
    [
        [0.0, 0.0, 0.0],
        [2.0, 0.0, 0.0],
        [4.524708207373116, 4.163528788597648, 0.0],
        [4.524708207373116, 4.163528788597648, 0.0],
    ]
)
_C = np.array(
    [
        [0.0, 0.0, 0.0],
        [-5.071675338776316, 0.0, 0.0],
        [6.020152728650786, 0.1597506846727117, 0.0],
        [-1.856343618686113, -8.505380858179826, -2.084075136023187],
    ]
)
_B1, _B2, _B3, _B4 = 3.957503746640777, 4.624892388363313, 0.6174772638750108, 1.282612945269037
_E1, _E2, _E3, _E4 = 2.302155402932996, 3.073634485392623, -0.8732808018045032, -1.282612945269037

_SAFETY, _LARGEST, _SMALLEST = 0.9, 6.0, 0.2
_EPS = 2.220446049250313e-16
_TINY = 1e-290  # keeps 0/0 out of the relative errors of gaps
_UNDERFLOWN = 1e-290  # a sum of squares below it has lost digits
_FITTED = 1e-12  # residual at which a run counts as fitted, beside its rounding
_NEAR = 1e-5  # residual and relative motion below which the limit is taken by Gauss-Newton steps
_RATES = 40.0  # "converged" means e^-40: the slowest mode has that many time constants left
_STUCK = 1e-10  # relative motion in all the time left that counts as none
_RUNNING = -9  # no FlowStatus: the run goes on
_AT_REST = 1e-6  # relative motion in the second half of the time that counts as none


@compiled(apart=True, _nrt=False, fastmath=_FASTMATH)
@no_type_check
def factor_gram(gram, factor, room):
    """Fill factor L (n, kappa, kappa), zeros, with G = L L^T on lags >= 1: lag 0 moves no entry.

    Args:
        gram: G (n, kappa, kappa), positive semidefinite up to rounding. Cholesky with pivoting; a
            pivot counts as zero relative to its own diagonal entry, so that doses may differ by any
            factor, and where its column would not fit under the other diagonal entries: it is
            rounding, or what a square kept when it underflowed.
        room: (kappa,) what is left of the diagonal.

    Returns:
        the largest rank.
    """
    G, L, rest = rows(gram), rows(factor), rows(room)
    largest, length = 0, len(rest)
    for i in range(len(G)):
        for m in range(length):
            rest[m] = G[i, m, m]
        rank = 0
        while rank < length:
            pivot = 0
            for m in range(1, length):
                if rest[m] > 1e-13 * G[i, m, m] and (pivot == 0 or rest[m] > rest[pivot]):
                    pivot = m
            if pivot == 0:
                break
            root = np.sqrt(rest[pivot])
            fits = True
            for m in range(length):
                x = G[i, m, pivot]
                for c in range(rank):
                    x -= L[i, m, c] * L[i, pivot, c]
                x /= root
                L[i, m, rank] = x
                exact = G[i, m, m] > _UNDERFLOWN or G[i, pivot, pivot] <= _UNDERFLOWN
                if m > 0 and exact and not x * x <= rest[m] + 1e-6 * G[i, m, m]:
                    fits = False
            rest[pivot] = 0.0
            if not fits:
                for m in range(length):
                    L[i, m, rank] = 0.0
                continue
            L[i, pivot, rank] = root
            for m in range(length):
                if m != pivot:
                    rest[m] -= L[i, m, rank] * L[i, m, rank]
            rank += 1
        largest = max(largest, rank)
    return largest


@_part
@no_type_check
def _entries(u, chain, sign, a):
    """a_j = a_{j-1} - u_j where chain_j is 1, u_j where it is 0 (sign = 1 - 2 chain)."""
    d, W = u.shape
    first, last = u[0], a[0]
    for s in range(W):
        last[s] = first[s]
    for j in range(1, d):
        before, now, c, sg, v = a[j - 1], a[j], chain[j], sign[j], u[j]
        for s in range(W):
            now[s] = c[s] * before[s] + sg[s] * v[s]


@_part
@no_type_check
def _polynomial(coefficients, a, value, divided):
    """value_j = f(a_j), divided_j = f[a_{j-1}, a_j] by Horner's scheme; coefficients (p, W)."""
    d, W = a.shape
    top = len(coefficients) - 1
    for j in range(d):
        x, y, f, g, c = a[max(j - 1, 0)], a[j], value[j], divided[j], coefficients[top]
        for s in range(W):
            f[s] = c[s]
            g[s] = 0.0
        for k in range(top):
            c = coefficients[top - 1 - k]
            for s in range(W):
                g[s] = g[s] * x[s] + f[s]
                f[s] = f[s] * y[s] + c[s]


@_part
@no_type_check
def _drive(a, w, L, P, target, power, M, rho, gamma):
    """Moments M, residuals rho = L^T (M* - M), coefficients gamma = sum_c rho_c P_c."""
    d, W = a.shape
    for m in range(len(M)):
        total = M[m]
        for s in range(W):
            total[s] = 0.0
    for j in range(d):
        y, start, total = a[j], w[j], M[0]
        for s in range(W):
            power[s] = start[s]
            total[s] += start[s]
        for m in range(1, len(M)):
            total = M[m]
            for s in range(W):
                power[s] *= y[s]
                total[s] += power[s]
    for i in range(len(gamma)):
        g = gamma[i]
        for s in range(W):
            g[s] = 0.0
    for c in range(len(rho)):
        residual = rho[c]
        for s in range(W):
            residual[s] = 0.0
        for m in range(len(M)):
            factor, wanted, have = L[m, c], target[m], M[m]
            for s in range(W):
                residual[s] += factor[s] * (wanted[s] - have[s])
        for i in range(len(gamma)):
            g, factor = gamma[i], P[c, i]
            for s in range(W):
                g[s] += residual[s] * factor[s]


@_part
@no_type_check
def _solve(lanes, system, k):
    """k = (1/(h GAMMA) - J)^-1 right in the unknowns u; `system.right` is destroyed.

    In entries: e_j k_j = b_j - sum_c V_jc z_c, z = V^T k = R V^T e^-1 b, or V^T R b where R is the
    inverse of the whole matrix. For a gap, the difference of two neighbouring lines, whose terms
    are divided differences times the gap.
    """
    b, q, z, R, V = system.b, system.q, system.z, system.R, system.V
    right, inverse_e = system.right, system.inverse_e
    d, W = b.shape
    _entries(right, lanes.chain, lanes.sign, b)
    if len(z) <= d:
        for c in range(len(z)):
            total = q[c]
            for s in range(W):
                total[s] = 0.0
            for j in range(d):
                e, x = system.eV[c, j], b[j]
                for s in range(W):
                    total[s] += e[s] * x[s]
        for c in range(len(z)):
            total = z[c]
            for s in range(W):
                total[s] = 0.0
            for i in range(len(z)):
                factor, x = R[c, i], q[i]
                for s in range(W):
                    total[s] += factor[s] * x[s]
    else:
        for c in range(len(z)):
            total = z[c]
            for s in range(W):
                total[s] = 0.0
        for j in range(d):
            own = q[j]
            for s in range(W):
                own[s] = 0.0
            for i in range(d):
                factor, x = R[j, i], b[i]
                for s in range(W):
                    own[s] += factor[s] * x[s]
            for c in range(len(z)):
                total, v = z[c], V[c, j]
                for s in range(W):
                    total[s] += v[s] * own[s]
    for c in range(len(z)):
        factor = z[c]
        for j in range(d):
            x, y, v, dv = b[j], right[j], V[c, j], system.dV[c, j]
            for s in range(W):
                x[s] -= factor[s] * v[s]
            for s in range(W):
                y[s] -= factor[s] * dv[s]
    for j in range(d):
        x, y, e, before = b[j], right[j], inverse_e[j], inverse_e[max(j - 1, 0)]
        c, slope, out = lanes.chain[j], system.dD[j], k[j]
        for s in range(W):
            own = x[s] * e[s]
            out[s] = (1.0 - c[s]) * own + c[s] * (y[s] + slope[s] * own) * before[s]


@_part
@no_type_check
def _invert(S, R):
    """R = S^-1, (r, r), by Gauss-Jordan with row pivoting; S is destroyed."""
    r = len(S)
    if r == 1:
        R[0, 0] = 1.0 / S[0, 0]
        return
    if r == 2:
        x = 1.0 / (S[0, 0] * S[1, 1] - S[0, 1] * S[1, 0])
        R[0, 0], R[1, 1] = S[1, 1] * x, S[0, 0] * x
        R[0, 1] = R[1, 0] = -S[0, 1] * x
        return
    for i in range(r):
        for k in range(r):
            R[i, k] = 0.0
        R[i, i] = 1.0
    for k in range(r):
        pivot = k
        for i in range(k + 1, r):
            if abs(S[i, k]) > abs(S[pivot, k]):
                pivot = i
        if pivot != k:
            for c in range(r):
                S[k, c], S[pivot, c] = S[pivot, c], S[k, c]
                R[k, c], R[pivot, c] = R[pivot, c], R[k, c]
        x = 1.0 / S[k, k]
        for c in range(r):
            S[k, c] *= x
            R[k, c] *= x
        for i in range(r):
            if i != k:
                x = S[i, k]
                for c in range(r):
                    S[i, c] -= x * S[k, c]
                    R[i, c] -= x * R[k, c]


@_part
@no_type_check
def _root(error):
    """error^(-1/4), several times faster than a power."""
    return 1.0 / np.sqrt(np.sqrt(error))


@_part
@no_type_check
def _near_limit(lanes, here, system, S, R, left, s):
    """Return 2 for a lane that is fitted and at rest, 1 if a Gauss-Newton step takes it to its
    limit, else 0.

    All its residuals must be below _NEAR. The step is left in `system.b`.

    Near a minimum rho decays by d rho/dt = -V^T V rho, so the motion left is V (V^T V)^-1 rho,
    provided that the slowest mode has enough time left.
    """
    u, chain, V, dV, move = lanes.u, lanes.chain, system.V, system.dV, system.b
    L, scale, target, M, rho = lanes.L, lanes.scale, lanes.target, here.M, here.rho
    r, length = len(rho), len(target)
    fitted = True
    for c in range(r):
        noise = 0.0
        for m in range(length):
            noise += abs(L[m, c, s]) * (abs(target[m, s]) + abs(M[m, s]))
        if abs(rho[c, s]) > _FITTED * scale[c, s] + 8.0 * _EPS * noise:
            fitted = False
    for c in range(r):
        for i in range(c + 1):
            x = 0.0
            for j in range(len(u)):
                x += V[c, j, s] * V[i, j, s]
            S[c, i] = x
            S[i, c] = x
        if scale[c, s] == 0.0:  # a column that only other runs of the batch have
            S[c, c] = 1e300
    _invert(S, R)
    slowest = 0.0
    for c in range(r):
        slowest += abs(R[c, c])
    if not slowest * _RATES <= left:
        return 0
    largest = 0.0
    for j in range(len(u)):
        x = 0.0
        for c in range(r):
            y = 0.0
            for i in range(r):
                y += R[c, i] * rho[i, s]
            x += y * (dV[c, j, s] if chain[j, s] > 0.0 else V[c, j, s])
        move[j, s] = x
        x = abs(x) / (abs(u[j, s]) + _TINY) if chain[j, s] > 0.0 else abs(x)
        if not x <= largest:
            largest = x
    if not largest <= _NEAR:
        return 0
    return 2 if fitted else 1


@_part
@no_type_check
def _at_rest(lanes, here, system, S, R, left, s):
    """Is this lane at a stationary point that it cannot leave?

    With every w_j f'(a_j) <= 0 the Jacobian is negative semidefinite, and an implicit Euler step
    over all the time left tells how far the flow still goes. Without this test, gaps that shrink
    for ever would be followed for ever.
    """
    u, a, w, gamma, V, rho = lanes.u, lanes.a, lanes.w, here.gamma, system.V, here.rho
    r = len(rho)
    for c in range(r):
        for i in range(r):
            S[c, i] = 1.0 if i == c else 0.0
    for j in range(len(u)):
        slope = 0.0
        for i in range(len(gamma) - 1, 0, -1):
            slope = slope * a[j, s] + i * gamma[i, s]
        slope *= w[j, s]
        if not slope <= 0.0:
            return False
        for c in range(r):
            for i in range(r):
                S[c, i] += V[c, j, s] * V[i, j, s] / (1.0 / left - slope)
    _invert(S, R)
    size = moved = 0.0
    for j in range(len(u)):
        slope = 0.0
        for i in range(len(gamma) - 1, 0, -1):
            slope = slope * a[j, s] + i * gamma[i, s]
        force = 0.0
        for c in range(r):
            for i in range(r):
                force += V[c, j, s] * R[c, i] * rho[i, s]
        size = max(size, abs(a[j, s]))
        moved = max(moved, abs(force) / (1.0 / left - slope * w[j, s]))
    return moved <= _STUCK * size


class Runs(NamedTuple):
    """What n runs are: read, never written. First axis n, or 1 where all runs share it."""

    u: np.ndarray  # (n, d) unknowns at the start
    chain: np.ndarray  # (n, d)
    w: np.ndarray  # (n, d)
    L: np.ndarray  # (n or 1, kappa, r)
    P: np.ndarray  # (n or 1, r, kappa-1)
    target: np.ndarray  # (n or 1, kappa)
    t_end: np.ndarray  # (n,)


class Results(NamedTuple):
    """Where n runs end."""

    u: np.ndarray  # (n, d)
    a: np.ndarray  # (n, d)
    M: np.ndarray  # (n, kappa)
    status: np.ndarray  # (n,) FlowStatus
    time: np.ndarray  # (n,)
    steps: np.ndarray  # (n,) tried
    rejected: np.ndarray  # (n,)


class _Lanes(NamedTuple):
    """The runs in progress."""

    u: np.ndarray  # (d, W)
    chain: np.ndarray
    sign: np.ndarray  # 1 - 2 chain
    w: np.ndarray
    a: np.ndarray
    half: np.ndarray  # u at half of the time
    L: np.ndarray  # (kappa, r, W)
    P: np.ndarray  # (r, kappa-1, W)
    target: np.ndarray  # (kappa, W)
    scale: np.ndarray  # (r, W) of the residuals rho, per unit of M


class _Clock(NamedTuple):
    """The state of the step control, (W,) each."""

    t: np.ndarray
    h: np.ndarray
    T: np.ndarray
    last_h: np.ndarray
    last_error: np.ndarray
    growth: np.ndarray  # of the fastest growing gap
    error: np.ndarray
    per_h: np.ndarray
    least: np.ndarray
    run: np.ndarray  # which run the lane follows, -1: none
    steps: np.ndarray
    rejected: np.ndarray
    jumps: np.ndarray  # Gauss-Newton steps one after the other
    refused: np.ndarray
    idle: np.ndarray
    final: np.ndarray
    accepted: np.ndarray


class _Point(NamedTuple):
    """What `_drive` and `_polynomial` find at a point."""

    M: np.ndarray  # (kappa, W)
    rho: np.ndarray  # (r, W)
    gamma: np.ndarray  # (kappa-1, W)
    slopes: np.ndarray  # (kappa-1, W) coefficients of f'
    power: np.ndarray  # (W,)
    f: np.ndarray  # (d, W) f(a_j)
    g: np.ndarray  # (d, W) f[a_{j-1}, a_j]


class _System(NamedTuple):
    """The matrix of a step: 1/(h GAMMA) - J = E + V V^T in entries."""

    V: np.ndarray  # (r, d, W)
    dV: np.ndarray
    eV: np.ndarray  # E^-1 V
    D: np.ndarray  # (d, W) diagonal of J without V V^T
    dD: np.ndarray
    inverse_e: np.ndarray
    S: np.ndarray  # (m, m, W), m = r; d where that is smaller
    R: np.ndarray  # its inverse
    one: np.ndarray  # (m, m) of one lane: S
    inverse: np.ndarray  # and R
    q: np.ndarray  # (r, W)
    z: np.ndarray  # (r, W)
    b: np.ndarray  # (d, W)
    k: np.ndarray  # (4, d, W) stages
    trial: np.ndarray  # (d, W)
    at: np.ndarray
    right: np.ndarray


@_part
@no_type_check
def _load(runs, lanes, clock, s, i):
    """Begin run i in lane s."""
    d, length, r = len(lanes.u), len(lanes.target), len(lanes.scale)
    i_L = i if len(runs.L) > 1 else 0
    i_target = i if len(runs.target) > 1 else 0
    for j in range(d):
        lanes.u[j, s], lanes.chain[j, s], lanes.w[j, s] = (
            runs.u[i, j],
            runs.chain[i, j],
            runs.w[i, j],
        )
        lanes.sign[j, s] = 1.0 - 2.0 * lanes.chain[j, s]
        before = lanes.a[j - 1, s] if j > 0 else 0.0
        lanes.a[j, s] = lanes.chain[j, s] * before + lanes.sign[j, s] * lanes.u[j, s]
        lanes.half[j, s] = lanes.u[j, s]
    for c in range(r):
        lanes.scale[c, s] = 0.0
        for m in range(length):
            lanes.L[m, c, s] = runs.L[i_L, m, c]
            lanes.scale[c, s] += abs(lanes.L[m, c, s])
        for m in range(length - 1):
            lanes.P[c, m, s] = runs.P[i_L, c, m]
    for m in range(length):
        lanes.target[m, s] = runs.target[i_target, m]
    clock.t[s], clock.T[s], clock.h[s], clock.last_h[s] = 0.0, runs.t_end[i], -1.0, 0.0
    clock.steps[s], clock.rejected[s], clock.jumps[s], clock.refused[s] = 0, 0, 0, False
    clock.run[s] = i


@_part
@no_type_check
def _linearize(lanes, here, system):
    """Find the moments, and V with its divided differences times the gaps."""
    _drive(
        lanes.a, lanes.w, lanes.L, lanes.P, lanes.target, here.power, here.M, here.rho, here.gamma
    )
    w, u = lanes.w.flat, lanes.u.flat
    for c in range(len(here.rho)):
        _polynomial(lanes.P[c], lanes.a, system.V[c], system.dV[c])
        v, dv = system.V[c].flat, system.dV[c].flat
        for i in range(len(w)):
            v[i] *= w[i]
        for i in range(len(w)):
            dv[i] *= w[i] * u[i]


@_part
@no_type_check
def _finish(lanes, clock, here, system, S, R, max_steps, results):
    """Write the results of the lanes that have ended and free them; return how many.

    Near its limit a lane takes a Gauss-Newton step instead, and sits out the step in time.
    """
    ended, d = 0, len(lanes.u)
    for s in range(len(clock.t)):
        clock.idle[s] = clock.run[s] < 0
        if clock.idle[s]:
            continue
        status, near, left = _RUNNING, 0, clock.T[s] - clock.t[s]
        close = clock.jumps[s] < 5
        for c in range(len(here.rho)):
            close = close and abs(here.rho[c, s]) <= _NEAR * lanes.scale[c, s]
        if close:
            near = _near_limit(lanes, here, system, S, R, left, s)
        if near > 0:
            for j in range(d):
                lanes.u[j, s] += system.b[j, s]
                before = lanes.a[j - 1, s] if j > 0 else 0.0
                lanes.a[j, s] = lanes.chain[j, s] * before + lanes.sign[j, s] * lanes.u[j, s]
            clock.jumps[s] += 1
            clock.idle[s] = True
            if near == 2:
                status = FlowStatus.CONVERGED.value
        elif clock.t[s] >= clock.T[s]:
            status = FlowStatus.STALLED.value
            size = moved = before = 0.0
            for j in range(d):
                chain, half = lanes.chain[j, s], lanes.half[j, s]
                before = chain * before + lanes.sign[j, s] * half
                size = max(size, abs(lanes.a[j, s]))
                moved = max(moved, abs(lanes.a[j, s] - before))
                if chain > 0.0 and lanes.u[j, s] > half * (1.0 + _AT_REST):
                    status = FlowStatus.END_OF_TIME.value  # a gap still grows, as near a saddle
            if not moved <= _AT_REST * size:
                status = FlowStatus.END_OF_TIME.value
        elif clock.steps[s] >= max_steps:
            status = FlowStatus.FAILED_STEP_LIMIT.value
        elif clock.steps[s] > 0 and not clock.h[s] > 1e-300:
            # A step below the last digit of t is no failure: at the end of a race only A moves.
            status = FlowStatus.FAILED_STEP_SIZE.value
        elif clock.steps[s] % 64 == 63 and _at_rest(lanes, here, system, S, R, left, s):
            status = FlowStatus.STALLED.value
        if status != _RUNNING:
            i = clock.run[s]
            for j in range(d):
                results.u[i, j], results.a[i, j] = lanes.u[j, s], lanes.a[j, s]
            for m in range(len(here.M)):
                results.M[i, m] = here.M[m, s]
            results.status[i], results.time[i] = status, clock.t[s]
            results.steps[i], results.rejected[i] = clock.steps[s], clock.rejected[s]
            clock.run[s] = -1
            clock.idle[s] = True
            ended += 1
    return ended


@_part
@no_type_check
def _differentiate(lanes, clock, here, system):
    """Find the right-hand side, the diagonal of the Jacobian, and the fastest growing gap."""
    d, W = lanes.a.shape
    _polynomial(here.gamma, lanes.a, here.f, here.g)
    p = len(here.gamma)
    for i in range(p):
        out = here.slopes[i]
        if i < p - 1:
            factor, x = i + 1.0, here.gamma[i + 1]
            for s in range(W):
                out[s] = factor * x[s]
        else:
            for s in range(W):
                out[s] = 0.0
    _polynomial(here.slopes, lanes.a, system.D, system.dD)
    growth = clock.growth
    for s in range(W):
        growth[s] = 0.0
    # Loops as long and as small as can be: LLVM compares every row that a loop writes with every
    # other row before it uses vector instructions, and gives up beyond eight pairs.
    w, u, c = (
        lanes.w.flat,
        lanes.u.flat,
        lanes.chain.flat,
    )
    f, g, D, dD, right = (
        here.f.flat,
        here.g.flat,
        system.D.flat,
        system.dD.flat,
        system.right.flat,
    )
    for i in range(len(w)):
        D[i] *= w[i]
    for i in range(len(w)):
        dD[i] *= w[i] * u[i]
    for i in range(len(w)):
        f[i] *= w[i]
    for i in range(len(w)):
        right[i] = (1.0 - c[i]) * f[i] + c[i] * (w[i] * g[i]) * u[i]
    for j in range(d):
        y, wj, uj, c = here.g[j], lanes.w[j], lanes.u[j], lanes.chain[j]
        for s in range(W):
            rate = wj[s] * y[s]
            rate = rate * c[s] if uj[s] > 0.0 else 0.0
            growth[s] = rate if rate > growth[s] else growth[s]


@_part
@no_type_check
def _choose_step(lanes, clock, here, system, atol):
    """Fill h, shortened where the method would be wrong, and 1 / e_j."""
    d, W = lanes.a.shape
    for s in range(W):
        if clock.h[s] < 0.0 and not clock.idle[s]:
            clock.h[s] = clock.T[s]
            for j in range(d):
                if here.f[j, s] != 0.0:
                    clock.h[s] = min(
                        clock.h[s], 0.03 * (abs(lanes.a[j, s]) + atol) / abs(here.f[j, s])
                    )
        if clock.idle[s]:
            clock.h[s] = 1.0 if clock.run[s] < 0 or not clock.h[s] > 0.0 else clock.h[s]
        elif clock.growth[s] * clock.h[s] * GAMMA > _SAFETY:
            # The method is wrong for what grows faster than 1/(h GAMMA); the error control would
            # refuse the step too.
            clock.h[s] = _SAFETY / (clock.growth[s] * GAMMA)
        clock.final[s] = clock.t[s] + clock.h[s] >= clock.T[s] * (1.0 - 1e-14)
        if clock.final[s] and not clock.idle[s]:
            clock.h[s] = clock.T[s] - clock.t[s]
    per_h, least = clock.per_h, clock.least
    for _ in range(30):
        for s in range(W):
            per_h[s] = 1.0 / clock.h[s]
            least[s] = 1e300
        for j in range(d):
            e, x = system.inverse_e[j], system.D[j]
            for s in range(W):
                value = per_h[s] / GAMMA - x[s]
                e[s] = 1.0 / value
                value = abs(value)
                least[s] = value if value < least[s] else least[s]
        again = False
        for s in range(W):
            if least[s] * GAMMA < 0.02 * per_h[s] and not clock.idle[s]:
                # Woodbury's formula divides by e_j although the matrix itself need not be singular.
                clock.h[s] *= _SAFETY
                clock.final[s] = False
                again = True
        if not again:
            break


@_part
@no_type_check
def _factor(system):
    """R = (1 + V^T E^-1 V)^-1, (r, r); or (E + V V^T)^-1, (d, d), where there are more columns than
    entries.
    """
    V, eV, S, R = system.V, system.eV, system.S, system.R
    r, d, W = V.shape
    if r <= d:
        e = system.inverse_e.flat
        for c in range(r):
            v, out = V[c].flat, eV[c].flat
            for i in range(len(e)):
                out[i] = v[i] * e[i]
            for i in range(c + 1):
                total, mirror = S[c, i], S[i, c]
                one = 1.0 if i == c else 0.0
                for s in range(W):
                    total[s] = one
                for j in range(d):
                    x, y = eV[c, j], V[i, j]
                    for s in range(W):
                        total[s] += x[s] * y[s]
                if i != c:
                    for s in range(W):
                        mirror[s] = total[s]
    else:
        for j in range(d):
            for i in range(j + 1):
                total, mirror, e = S[j, i], S[i, j], system.inverse_e[j]
                for s in range(W):
                    total[s] = 1.0 / e[s] if i == j else 0.0
                for c in range(r):
                    x, y = V[c, j], V[c, i]
                    for s in range(W):
                        total[s] += x[s] * y[s]
                if i != j:
                    for s in range(W):
                        mirror[s] = total[s]
    # A lane of S is read with the stride of all lanes: gathered first, it stays in the cache.
    one, inverse, m = system.one, system.inverse, len(S)
    for s in range(W):
        for i in range(m):
            for c in range(m):
                one[i, c] = S[i, c, s]
        _invert(one, inverse)
        for i in range(m):
            for c in range(m):
                R[i, c, s] = inverse[i, c]


@_part
@no_type_check
def _stages(lanes, clock, there, system):
    """Solve for the four stages k; `system.right` holds the right-hand side at the point."""
    d, W = lanes.a.shape
    for stage in range(4):
        if stage == 1 or stage == 2:  # stage 3 shares the point of stage 2
            x, y = system.trial.flat, lanes.u.flat
            for n in range(len(x)):
                x[n] = y[n]
            for i in range(stage):
                factor, y = _A[stage, i], system.k[i].flat
                for n in range(len(x)):
                    x[n] += factor * y[n]
            _entries(system.trial, lanes.chain, lanes.sign, system.at)
            _drive(
                system.at,
                lanes.w,
                lanes.L,
                lanes.P,
                lanes.target,
                there.power,
                there.M,
                there.rho,
                there.gamma,
            )
            _polynomial(there.gamma, system.at, there.f, there.g)
        if stage > 0:
            x, y, w, u = (
                there.f.flat,
                there.g.flat,
                lanes.w.flat,
                system.trial.flat,
            )
            c, out = lanes.chain.flat, system.right.flat
            for n in range(len(x)):
                out[n] = w[n] * ((1.0 - c[n]) * x[n] + c[n] * y[n] * u[n])
            for j in range(d):
                out = system.right[j]
                for i in range(stage):
                    factor, y = _C[stage, i], system.k[i, j]
                    for s in range(W):
                        out[s] += factor * clock.per_h[s] * y[s]
        _solve(lanes, system, system.k[stage])


@_part
@no_type_check
def _control(lanes, clock, system, rtol, atol):
    """Accept or refuse the step of each lane, and choose the next."""
    d, W = lanes.a.shape
    k, error = system.k, clock.error
    k1, k2, k3, k4 = (
        k[0].flat,
        k[1].flat,
        k[2].flat,
        k[3].flat,
    )
    old, new = lanes.u.flat, system.trial.flat
    for i in range(len(old)):
        new[i] = old[i] + _B1 * k1[i] + _B2 * k2[i] + _B3 * k3[i] + _B4 * k4[i]
    for s in range(W):
        error[s] = 0.0
    for j in range(d):
        k1, k2, k3, k4, c = k[0, j], k[1, j], k[2, j], k[3, j], lanes.chain[j]
        old, new = lanes.u[j], system.trial[j]
        for s in range(W):
            size = abs(new[s])
            x = abs(old[s])
            size = size if size > x else x
            x = abs(_E1 * k1[s] + _E2 * k2[s] + _E3 * k3[s] + _E4 * k4[s])
            x /= (1.0 - c[s]) * atol + _TINY + rtol * size
            x = x if x < 1e300 else 1e300  # also what is not a number
            error[s] = x if x > error[s] else error[s]
    for s in range(W):
        clock.accepted[s] = False
        if clock.idle[s]:
            continue
        clock.steps[s] += 1
        if error[s] <= 1.0:
            factor = min(_LARGEST, _SAFETY * _root(max(error[s], 1e-10)))
            if clock.refused[s]:
                factor = min(factor, 1.0)
            if clock.last_h[s] > 0.0 and error[s] > 0.0:
                # Gustafsson's predictive controller: the error's own trend, not only its size.
                trend = (
                    clock.h[s]
                    / clock.last_h[s]
                    * _SAFETY
                    * _root(error[s] * error[s] / clock.last_error[s])
                )
                factor = min(factor, max(_SMALLEST, trend))
            clock.last_h[s], clock.last_error[s] = clock.h[s], max(1e-2, error[s])
            clock.refused[s], clock.accepted[s], clock.jumps[s] = False, True, 0
            if clock.t[s] <= 0.5 * clock.T[s]:
                for j in range(d):
                    lanes.half[j, s] = lanes.u[j, s]
            clock.t[s] = clock.T[s] if clock.final[s] else clock.t[s] + clock.h[s]
            clock.h[s] *= factor
        else:
            clock.rejected[s] += 1
            clock.refused[s] = True
            clock.h[s] *= max(_SMALLEST, _SAFETY * _root(error[s])) if error[s] < 1e300 else 0.1
    for j in range(d):
        old, new = lanes.u[j], system.trial[j]
        for s in range(W):
            old[s] = new[s] if clock.accepted[s] else old[s]
    _entries(lanes.u, lanes.chain, lanes.sign, lanes.a)


class _Room(NamedTuple):
    """All that the lanes need, by shape: the rows of `_Lanes`, `_Clock`, `_Point`, `_System`."""

    numbers: np.ndarray  # (11, W)
    counts: np.ndarray  # (8, W) int64
    entries: np.ndarray  # (17, d, W)
    stages: np.ndarray  # (4, d, W)
    lags: np.ndarray  # (3, kappa, W)
    coefficients: np.ndarray  # (4, kappa-1, W)
    residuals: np.ndarray  # (5, r, W)
    L: np.ndarray  # (kappa, r, W)
    P: np.ndarray  # (r, kappa-1, W)
    columns: np.ndarray  # (3, r, d, W)
    matrices: np.ndarray  # (2, m, m, W), m = r; d where that is smaller
    one: np.ndarray  # (2, m, m)
    of_columns: np.ndarray  # (2, r, r)


@compiled(apart=True, _nrt=False, fastmath=_FASTMATH)
@no_type_check
def _integrate(runs, room, start, stop, rtol, atol, max_steps, results):
    """Follow the runs start..stop-1; a lane that has finished a run loads the next one."""
    runs = Runs(
        rows(runs.u),
        rows(runs.chain),
        rows(runs.w),
        rows(runs.L),
        rows(runs.P),
        rows(runs.target),
        rows(runs.t_end),
    )
    results = Results(
        rows(results.u),
        rows(results.a),
        rows(results.M),
        rows(results.status),
        rows(results.time),
        rows(results.steps),
        rows(results.rejected),
    )
    of, whole, e, lags = rows(room.numbers), rows(room.counts), rows(room.entries), rows(room.lags)
    p, r, columns = rows(room.coefficients), rows(room.residuals), rows(room.columns)
    matrices, one, of_columns = rows(room.matrices), rows(room.one), rows(room.of_columns)
    lanes = _Lanes(e[0], e[1], e[2], e[3], e[4], e[5], rows(room.L), rows(room.P), lags[0], r[0])
    clock = _Clock(
        of[0],
        of[1],
        of[2],
        of[3],
        of[4],
        of[5],
        of[6],
        of[7],
        of[8],
        whole[0],
        whole[1],
        whole[2],
        whole[3],
        whole[4],
        whole[5],
        whole[6],
        whole[7],
    )
    here = _Point(lags[1], r[1], p[0], p[1], of[9], e[6], e[7])
    there = _Point(lags[2], r[2], p[2], p[3], of[10], e[8], e[9])
    system = _System(
        columns[0],
        columns[1],
        columns[2],
        e[10],
        e[11],
        e[12],
        matrices[0],
        matrices[1],
        one[0],
        one[1],
        r[3],
        r[4],
        e[13],
        rows(room.stages),
        e[14],
        e[15],
        e[16],
    )
    S, R = of_columns[0], of_columns[1]
    following, active = start, 0
    while True:
        for s in range(len(clock.t)):
            if clock.run[s] < 0 and following < stop:
                _load(runs, lanes, clock, s, following)
                following += 1
                active += 1
        if active == 0:
            return
        _linearize(lanes, here, system)
        active -= _finish(lanes, clock, here, system, S, R, max_steps, results)
        # The step in progress counts for nothing in a lane that has just ended.
        _differentiate(lanes, clock, here, system)
        _choose_step(lanes, clock, here, system, atol)
        _factor(system)
        _stages(lanes, clock, there, system)
        _control(lanes, clock, system, rtol, atol)


def integrate(
    runs: Runs,
    start: int,
    stop: int,
    lanes: int,
    rtol: float,
    atol: float,
    max_steps: int,
    results: Results,
) -> None:
    """Integrate the runs start..stop-1 side by side; results go to their rows.

    Args:
        runs: arrays over all runs, float64 and C-contiguous.
        start: the first run.
        stop: one beyond the last.
        lanes: how many at once.
        rtol: as in `flows.many_flows`.
        atol: as in `flows.many_flows`.
        max_steps: as in `flows.many_flows`.
        results: arrays over all runs, float64 and C-contiguous (status, steps: int64).
    """
    d, length, r = runs.u.shape[1], runs.target.shape[1], runs.P.shape[1]
    W, p, m = min(lanes, stop - start), length - 1, min(r, d)

    def zeros(*shape: int) -> np.ndarray:
        return np.asarray(aligned((*shape, W)))

    room = _Room(
        numbers=zeros(11),
        counts=np.zeros((8, W), np.int64),
        entries=zeros(17, d),
        stages=zeros(4, d),
        lags=zeros(3, length),
        coefficients=zeros(4, p),
        residuals=zeros(5, r),
        L=zeros(length, r),
        P=zeros(r, p),
        columns=zeros(3, r, d),
        matrices=zeros(2, m, m),
        one=aligned((2, m, m)),
        of_columns=aligned((2, r, r)),
    )
    room.numbers[[1, 2, 4]] = 1.0  # h, T and last_error of lanes without a run
    room.counts[0] = -1  # which run: none
    _integrate(runs, room, start, stop, rtol, atol, max_steps, results)
