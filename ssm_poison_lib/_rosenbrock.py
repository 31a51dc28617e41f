"""The compiled inside of `flows`: one adaptive Rosenbrock step for many runs ("lanes") side by side.

Every array ends in the lane axis, of length W, and the innermost loop of each operation runs over it. Indices:
j: entry of A, c: column of the factor L of G, m: lag, s: lane. Unknowns u, gaps and weights as in `flows`.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from ssm_poison_lib._jit import compiled

__all__ = ["factor_gram", "integrate"]

# No "nnan" or "ninf": the error control looks for values that are not finite.
_FASTMATH = {"contract", "reassoc", "nsz", "arcp"}

# GRK4T of Kaps and Rentrop (1979) in the form without products by J, Hairer and Wanner, Solving Ordinary
# Differential Equations II, section IV.7: (1/(h GAMMA) - J) k_i = f(u + sum_m A_im k_m) + sum_m C_im k_m / h.
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
_AT_REST = 1e-6  # relative motion in the second half of the time that counts as none


@compiled(fastmath=_FASTMATH)
@no_type_check
def factor_gram(G, L, P):
    """Fill L (n, kappa, kappa), G = L L^T on lags >= 1 (lag 0 moves no entry of A), and P (n, kappa, kappa-1).

    G: positive semidefinite up to rounding. Cholesky with pivoting; a pivot counts as zero relative to its own diagonal entry, so
    that doses may differ by any factor, and where its column would not fit under the other diagonal entries: it is rounding,
    or what a square kept when it underflowed. Returns the largest rank.
    """
    n, length = G.shape[0], G.shape[1]
    largest = 0
    rest = np.empty(length)
    for i in range(n):
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
                L[i, :, rank] = 0.0
                continue
            L[i, pivot, rank] = root
            for m in range(length):
                if m != pivot:
                    rest[m] -= L[i, m, rank] * L[i, m, rank]
            for m in range(length - 1):
                P[i, rank, m] = (m + 1.0) * L[i, m + 1, rank]
            rank += 1
        largest = max(largest, rank)
    return largest


@compiled(fastmath=_FASTMATH)
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


@compiled(fastmath=_FASTMATH)
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


@compiled(fastmath=_FASTMATH)
@no_type_check
def _drive(a, w, L, P, target, power, M, rho, gamma):
    """Moments M, residuals rho = L^T (M* - M), coefficients gamma = sum_c rho_c P_c."""
    d, W = a.shape
    for m in range(len(M)):
        M[m] = 0.0
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
        gamma[i] = 0.0
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


@compiled(fastmath=_FASTMATH)
@no_type_check
def _solve(right, chain, sign, inverse_e, V, dV, eV, dD, R, q, z, b, k):
    """k = (1/(h GAMMA) - J)^-1 right in the unknowns u; `right` is destroyed.

    In entries: e_j k_j = b_j - sum_c V_jc z_c, z = R (V^T e^-1 b), e = 1/(h GAMMA) - diag. For a gap, the difference of two
    neighbouring lines, whose terms are divided differences times the gap.
    """
    d, W = right.shape
    _entries(right, chain, sign, b)
    for c in range(len(z)):
        total = q[c]
        for s in range(W):
            total[s] = 0.0
        for j in range(d):
            e, x = eV[c, j], b[j]
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
    for c in range(len(z)):
        factor = z[c]
        for j in range(d):
            x, y, v, dv = b[j], right[j], V[c, j], dV[c, j]
            for s in range(W):
                x[s] -= factor[s] * v[s]
                y[s] -= factor[s] * dv[s]
    for j in range(d):
        x, y, e, before, c, slope, out = (
            b[j],
            right[j],
            inverse_e[j],
            inverse_e[max(j - 1, 0)],
            chain[j],
            dD[j],
            k[j],
        )
        for s in range(W):
            own = x[s] * e[s]
            out[s] = (1.0 - c[s]) * own + c[s] * (y[s] + slope[s] * own) * before[s]


@compiled(fastmath=_FASTMATH)
@no_type_check
def _invert(S, R, s):
    """R = S^-1 for one lane, by Gauss-Jordan with row pivoting; S is destroyed."""
    r = len(S)
    if r == 1:
        R[0, 0, s] = 1.0 / S[0, 0, s]
        return
    if r == 2:
        x = 1.0 / (S[0, 0, s] * S[1, 1, s] - S[0, 1, s] * S[1, 0, s])
        R[0, 0, s], R[1, 1, s] = S[1, 1, s] * x, S[0, 0, s] * x
        R[0, 1, s] = R[1, 0, s] = -S[0, 1, s] * x
        return
    for i in range(r):
        for k in range(r):
            R[i, k, s] = 0.0
        R[i, i, s] = 1.0
    for k in range(r):
        pivot = k
        for i in range(k + 1, r):
            if abs(S[i, k, s]) > abs(S[pivot, k, s]):
                pivot = i
        if pivot != k:
            for c in range(r):
                S[k, c, s], S[pivot, c, s] = S[pivot, c, s], S[k, c, s]
                R[k, c, s], R[pivot, c, s] = R[pivot, c, s], R[k, c, s]
        x = 1.0 / S[k, k, s]
        for c in range(r):
            S[k, c, s] *= x
            R[k, c, s] *= x
        for i in range(r):
            if i != k:
                x = S[i, k, s]
                for c in range(r):
                    S[i, c, s] -= x * S[k, c, s]
                    R[i, c, s] -= x * R[k, c, s]


@compiled(fastmath=_FASTMATH)
@no_type_check
def _root(error):
    """error^(-1/4), several times faster than a power."""
    return 1.0 / np.sqrt(np.sqrt(error))


@compiled(fastmath=_FASTMATH)
@no_type_check
def _near_limit(s, u, chain, V, dV, L, scale, target, M, rho, left, S, R, move):
    """Look at one lane: 2 if fitted and at rest, 1 if a Gauss-Newton step (left in move) takes it to its limit, 0 if neither.

    Near a minimum rho decays by d rho/dt = -V^T V rho, so the motion left is V (V^T V)^-1 rho, provided that the slowest
    mode has enough time left.
    """
    r, length = len(rho), len(target)
    for c in range(r):
        if not abs(rho[c, s]) <= _NEAR * scale[c, s]:
            return 0
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
            S[c, i, s] = x
            S[i, c, s] = x
        if scale[c, s] == 0.0:  # a column that only other runs of the batch have
            S[c, c, s] = 1e300
    _invert(S, R, s)
    slowest = 0.0
    for c in range(r):
        slowest += abs(R[c, c, s])
    if not slowest * _RATES <= left:
        return 0
    largest = 0.0
    for j in range(len(u)):
        x = 0.0
        for c in range(r):
            y = 0.0
            for i in range(r):
                y += R[c, i, s] * rho[i, s]
            x += y * (dV[c, j, s] if chain[j, s] > 0.0 else V[c, j, s])
        move[j, s] = x
        x = abs(x) / (abs(u[j, s]) + _TINY) if chain[j, s] > 0.0 else abs(x)
        if not x <= largest:
            largest = x
    if not largest <= _NEAR:
        return 0
    return 2 if fitted else 1


@compiled(fastmath=_FASTMATH)
@no_type_check
def _at_rest(s, u, a, chain, w, gamma, V, rho, left, S, R):
    """Is this lane at a stationary point that it cannot leave?

    With every w_j f'(a_j) <= 0 the Jacobian is negative semidefinite, and an implicit Euler step over all the time left
    tells how far the flow still goes. Without this test, gaps that shrink for ever would be followed for ever.
    """
    r = len(rho)
    for c in range(r):
        for i in range(r):
            S[c, i, s] = 1.0 if i == c else 0.0
    for j in range(len(u)):
        slope = 0.0
        for i in range(len(gamma) - 1, 0, -1):
            slope = slope * a[j, s] + i * gamma[i, s]
        slope *= w[j, s]
        if not slope <= 0.0:
            return False
        for c in range(r):
            for i in range(r):
                S[c, i, s] += V[c, j, s] * V[i, j, s] / (1.0 / left - slope)
    _invert(S, R, s)
    size = moved = 0.0
    for j in range(len(u)):
        slope = 0.0
        for i in range(len(gamma) - 1, 0, -1):
            slope = slope * a[j, s] + i * gamma[i, s]
        force = 0.0
        for c in range(r):
            for i in range(r):
                force += V[c, j, s] * R[c, i, s] * rho[i, s]
        size = max(size, abs(a[j, s]))
        moved = max(moved, abs(force) / (1.0 / left - slope * w[j, s]))
    return moved <= _STUCK * size


@compiled(fastmath=_FASTMATH)
@no_type_check
def integrate(
    u0, chain0, w0, L0, P0, target0, t_end, start, stop, W, rtol, atol, max_steps, end_u, end_a, end_M, ends
):
    """Integrate the runs start..stop-1 in W lanes; results go to their rows of end_u, end_a, end_M and ends.

    u0, chain0, w0: (n, d). L0 (n or 1, kappa, r), P0 (n or 1, r, kappa-1), target0 (n or 1, kappa). ends: (n, 4) status, time,
    steps, rejected steps. A lane that has finished a run loads the next one; the step in progress then counts for nothing in it.
    """
    d, length, r = u0.shape[1], target0.shape[1], P0.shape[1]
    p = length - 1
    W = min(W, stop - start)
    u, chain, sign, w = np.zeros((d, W)), np.zeros((d, W)), np.ones((d, W)), np.zeros((d, W))
    L, P, target = np.zeros((length, r, W)), np.zeros((r, p, W)), np.zeros((length, W))
    scale = np.zeros((r, W))  # of the residuals rho, per unit of M
    a, trial, at, half = np.zeros((d, W)), np.zeros((d, W)), np.zeros((d, W)), np.zeros((d, W))
    M, rho, gamma, power = np.zeros((length, W)), np.zeros((r, W)), np.zeros((p, W)), np.zeros(W)
    M_at, rho_at, gamma_at = np.zeros((length, W)), np.zeros((r, W)), np.zeros((p, W))
    f, g, right, b = np.zeros((d, W)), np.zeros((d, W)), np.zeros((d, W)), np.zeros((d, W))
    D, dD, inverse_e = np.zeros((d, W)), np.zeros((d, W)), np.zeros((d, W))
    V, dV, eV = np.zeros((r, d, W)), np.zeros((r, d, W)), np.zeros((r, d, W))
    S, R, q, z = np.zeros((r, r, W)), np.zeros((r, r, W)), np.zeros((r, W)), np.zeros((r, W))
    k = np.zeros((4, d, W))
    t, h, T, last_h, last_error = np.zeros(W), np.ones(W), np.ones(W), np.zeros(W), np.ones(W)
    growth, error, least, per_h = np.zeros(W), np.zeros(W), np.zeros(W), np.zeros(W)
    steps, rejected, jumps = np.zeros(W, np.int64), np.zeros(W, np.int64), np.zeros(W, np.int64)
    refused, idle = np.zeros(W, np.bool_), np.zeros(W, np.bool_)
    final, accepted = np.zeros(W, np.bool_), np.zeros(W, np.bool_)
    run = np.full(W, -1)
    following, active = start, 0
    while True:
        for s in range(W):
            if run[s] < 0 and following < stop:
                i = following
                following += 1
                active += 1
                run[s] = i
                i_L = i if len(L0) > 1 else 0
                i_target = i if len(target0) > 1 else 0
                for j in range(d):
                    u[j, s], chain[j, s], w[j, s] = u0[i, j], chain0[i, j], w0[i, j]
                    sign[j, s] = 1.0 - 2.0 * chain[j, s]
                    before = a[j - 1, s] if j > 0 else 0.0
                    a[j, s] = chain[j, s] * before + sign[j, s] * u[j, s]
                    half[j, s] = u[j, s]
                for c in range(r):
                    scale[c, s] = 0.0
                    for m in range(length):
                        L[m, c, s] = L0[i_L, m, c]
                        scale[c, s] += abs(L[m, c, s])
                    for m in range(p):
                        P[c, m, s] = P0[i_L, c, m]
                for m in range(length):
                    target[m, s] = target0[i_target, m]
                t[s], T[s], h[s], last_h[s] = 0.0, t_end[i], -1.0, 0.0
                steps[s], rejected[s], jumps[s], refused[s] = 0, 0, 0, False
        if active == 0:
            return

        # What belongs to the point: moments, V and its divided differences.
        _drive(a, w, L, P, target, power, M, rho, gamma)
        for c in range(r):
            _polynomial(P[c], a, V[c], dV[c])
            for j in range(d):
                v, dv, wj, uj = V[c, j], dV[c, j], w[j], u[j]
                for s in range(W):
                    v[s] *= wj[s]
                    dv[s] *= wj[s] * uj[s]

        # Who has ended?
        for s in range(W):
            idle[s] = run[s] < 0
            if idle[s]:
                continue
            status = -9
            near = 0
            if jumps[s] < 5:
                near = _near_limit(s, u, chain, V, dV, L, scale, target, M, rho, T[s] - t[s], S, R, b)
            if near > 0:
                for j in range(d):
                    u[j, s] += b[j, s]
                    before = a[j - 1, s] if j > 0 else 0.0
                    a[j, s] = chain[j, s] * before + sign[j, s] * u[j, s]
                jumps[s] += 1
                idle[s] = True
                if near == 2:
                    status = 0
            elif t[s] >= T[s]:
                status = 1
                size = moved = before = 0.0
                for j in range(d):
                    before = chain[j, s] * before + sign[j, s] * half[j, s]
                    size = max(size, abs(a[j, s]))
                    moved = max(moved, abs(a[j, s] - before))
                    if chain[j, s] > 0.0 and u[j, s] > half[j, s] * (1.0 + _AT_REST):
                        status = 2  # a gap still grows, as near a saddle
                if not moved <= _AT_REST * size:
                    status = 2
            elif steps[s] >= max_steps:
                status = -2
            elif steps[s] > 0 and not h[s] > 1e-300:
                # A step below the last digit of t is no failure: at the end of a race only A moves.
                status = -1
            elif steps[s] % 64 == 63 and _at_rest(s, u, a, chain, w, gamma, V, rho, T[s] - t[s], S, R):
                status = 1
            if status > -9:
                i = run[s]
                for j in range(d):
                    end_u[i, j], end_a[i, j] = u[j, s], a[j, s]
                for m in range(length):
                    end_M[i, m] = M[m, s]
                ends[i, 0], ends[i, 1], ends[i, 2], ends[i, 3] = status, t[s], steps[s], rejected[s]
                run[s] = -1
                active -= 1
                idle[s] = True

        # Right-hand side and the diagonal of the Jacobian; the fastest growing gap.
        _polynomial(gamma, a, f, g)
        for i in range(p):
            out = gamma_at[i]
            if i < p - 1:
                factor, x = i + 1.0, gamma[i + 1]
                for s in range(W):
                    out[s] = factor * x[s]
            else:
                for s in range(W):
                    out[s] = 0.0
        _polynomial(gamma_at, a, D, dD)
        for s in range(W):
            growth[s] = 0.0
        for j in range(d):
            x, y, dx, dy, wj, uj, c, out = f[j], g[j], D[j], dD[j], w[j], u[j], chain[j], right[j]
            for s in range(W):
                dx[s] *= wj[s]
                dy[s] *= wj[s] * uj[s]
                rate = wj[s] * y[s]
                x[s] *= wj[s]
                out[s] = (1.0 - c[s]) * x[s] + c[s] * rate * uj[s]
                rate = rate * c[s] if uj[s] > 0.0 else 0.0
                growth[s] = rate if rate > growth[s] else growth[s]
        for s in range(W):
            if h[s] < 0.0 and not idle[s]:
                h[s] = T[s]
                for j in range(d):
                    if f[j, s] != 0.0:
                        h[s] = min(h[s], 0.03 * (abs(a[j, s]) + atol) / abs(f[j, s]))
            if idle[s]:
                h[s] = 1.0 if run[s] < 0 or not h[s] > 0.0 else h[s]
            elif growth[s] * h[s] * GAMMA > _SAFETY:
                # The method is wrong for what grows faster than 1/(h GAMMA); the error control would refuse the step too.
                h[s] = _SAFETY / (growth[s] * GAMMA)
            final[s] = t[s] + h[s] >= T[s] * (1.0 - 1e-14)
            if final[s] and not idle[s]:
                h[s] = T[s] - t[s]
        for _ in range(30):
            for s in range(W):
                per_h[s] = 1.0 / h[s]
                least[s] = 1e300
            for j in range(d):
                e, x = inverse_e[j], D[j]
                for s in range(W):
                    value = per_h[s] / GAMMA - x[s]
                    e[s] = 1.0 / value
                    value = abs(value)
                    least[s] = value if value < least[s] else least[s]
            again = False
            for s in range(W):
                if least[s] * GAMMA < 0.02 * per_h[s] and not idle[s]:
                    # Woodbury's formula divides by e_j although the matrix itself need not be singular there.
                    h[s] *= _SAFETY
                    final[s] = False
                    again = True
            if not again:
                break
        for c in range(r):
            for j in range(d):
                e, v, out = inverse_e[j], V[c, j], eV[c, j]
                for s in range(W):
                    out[s] = v[s] * e[s]
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
        for s in range(W):
            _invert(S, R, s)

        for stage in range(4):
            if stage == 1 or stage == 2:  # stage 3 shares the point of stage 2
                for j in range(d):
                    x, y = trial[j], u[j]
                    for s in range(W):
                        x[s] = y[s]
                    for i in range(stage):
                        factor, y = _A[stage, i], k[i, j]
                        for s in range(W):
                            x[s] += factor * y[s]
                _entries(trial, chain, sign, at)
                _drive(at, w, L, P, target, power, M_at, rho_at, gamma_at)
                _polynomial(gamma_at, at, f, g)
            if stage > 0:
                for j in range(d):
                    x, y, wj, uj, c, out = f[j], g[j], w[j], trial[j], chain[j], right[j]
                    for s in range(W):
                        out[s] = wj[s] * ((1.0 - c[s]) * x[s] + c[s] * y[s] * uj[s])
                    for i in range(stage):
                        factor, y = _C[stage, i], k[i, j]
                        for s in range(W):
                            out[s] += factor * per_h[s] * y[s]
            _solve(right, chain, sign, inverse_e, V, dV, eV, dD, R, q, z, b, k[stage])

        for s in range(W):
            error[s] = 0.0
        for j in range(d):
            k1, k2, k3, k4, old, new, c = k[0, j], k[1, j], k[2, j], k[3, j], u[j], trial[j], chain[j]
            for s in range(W):
                x = old[s] + _B1 * k1[s] + _B2 * k2[s] + _B3 * k3[s] + _B4 * k4[s]
                new[s] = x
                size = abs(x)
                x = abs(old[s])
                size = size if size > x else x
                x = abs(_E1 * k1[s] + _E2 * k2[s] + _E3 * k3[s] + _E4 * k4[s])
                x /= (1.0 - c[s]) * atol + _TINY + rtol * size
                x = x if x < 1e300 else 1e300  # also what is not a number
                error[s] = x if x > error[s] else error[s]
        for s in range(W):
            accepted[s] = False
            if idle[s]:
                continue
            steps[s] += 1
            if error[s] <= 1.0:
                factor = min(_LARGEST, _SAFETY * _root(max(error[s], 1e-10)))
                if refused[s]:
                    factor = min(factor, 1.0)
                if last_h[s] > 0.0 and error[s] > 0.0:
                    # Gustafsson's predictive controller: the error's own trend, not only its size.
                    trend = h[s] / last_h[s] * _SAFETY * _root(error[s] * error[s] / last_error[s])
                    factor = min(factor, max(_SMALLEST, trend))
                last_h[s], last_error[s] = h[s], max(1e-2, error[s])
                refused[s], accepted[s], jumps[s] = False, True, 0
                if t[s] <= 0.5 * T[s]:
                    for j in range(d):
                        half[j, s] = u[j, s]
                t[s] = T[s] if final[s] else t[s] + h[s]
                h[s] *= factor
            else:
                rejected[s] += 1
                refused[s] = True
                h[s] *= max(_SMALLEST, _SAFETY * _root(error[s])) if error[s] < 1e300 else 0.1
        for j in range(d):
            old, new = u[j], trial[j]
            for s in range(W):
                old[s] = new[s] if accepted[s] else old[s]
        _entries(u, chain, sign, a)
