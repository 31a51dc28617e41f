"""The equation of motion, once: velocity and Jacobian of gradient flow, as readable NumPy.

All that the flow needs of a training set is G = (2/n) sum_i r_i r_i^T (r_i: sequence i reversed, so
that its index is the lag) and the teacher's impulse response M*. With M_m = sum_j w_j a_j^m,
w_j = b_j c_j, the loss is (M* - M)^T G (M* - M) / 2, and

    e = G (M* - M),   da_j/dt = w_j sum_m m e_m a_j^(m-1),
    db_j/dt = c_j sum_m e_m a_j^m,   dc_j/dt = b_j sum_m e_m a_j^m.

Behind a network only e changes. Complex entries obey the same formula (their M is the real part of
the sum, their gradient the conjugate); an entry a = f(s) that is trained through s obeys it with
the factor f'(s).

Arguments are not checked here, in the solvers' innermost loop: `flow.velocity` checks them.
`_engines.equations` and `_engines.rosenbrock` are the same, compiled; solver.js is the same, in
the page. Tests hold each against automatic differentiation and against the others.

Source: Proposition 1 of chapter "Which way does training move?".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

__all__ = ["gap_velocity", "jacobian", "powers", "pull", "residual", "velocity"]

Vector = Float[np.ndarray, " d"]
Parameters = Float[np.ndarray, " p"]
Matrix = Float[np.ndarray, "p p"]


def powers(A: Shaped[np.ndarray, "*n d"], length: int) -> Shaped[np.ndarray, "*n kappa d"]:
    """Return a_j^m, lags m = 0 .. kappa-1 down, entries j across (0^0 = 1).

    Args:
        A: (..., d) entries, real, complex or symbolic.
        length: kappa.
    """
    return np.asarray(A[..., None, :] ** np.arange(length)[:, None])


def residual(
    A: Vector, w: Vector, target: Float[np.ndarray, " kappa"]
) -> tuple[Float[np.ndarray, " kappa"], Float[np.ndarray, "kappa d"]]:
    """Return M* - M and the powers a_j^m that it is made of.

    Args:
        A: (d,) entries.
        w: (d,) weights b_j c_j.
        target: (kappa,) the teacher's impulse response M*.
    """
    power = powers(A, len(target))
    return target - power @ w, power


def pull(
    power: Shaped[np.ndarray, "*n kappa d"], e: Shaped[np.ndarray, "*n kappa"]
) -> tuple[Shaped[np.ndarray, "*n d"], Shaped[np.ndarray, "*n d"]]:
    """Return sum_m m e_m a_j^(m-1) and sum_m e_m a_j^m: minus the loss's slopes, weight 1.

    Args:
        power: (..., kappa, d) as `powers` gives them.
        e: (..., kappa) minus the derivative of the loss by M_m.
    """
    lags = np.arange(1, power.shape[-2])
    by_a = (lags * e[..., 1:])[..., None, :] @ power[..., :-1, :]
    return np.asarray(by_a[..., 0, :]), np.asarray((e[..., None, :] @ power)[..., 0, :])


def velocity(
    A: Vector,
    B: Vector,
    C: Vector,
    G: Float[np.ndarray, "kappa kappa"],
    target: Float[np.ndarray, " kappa"],
    *,
    slope: Vector | float = 1.0,
) -> tuple[Vector, Vector, Vector]:
    """Return (da/dt, db/dt, dc/dt), minus the gradient of the loss; those trained are what counts.

    Args:
        A: (d,) entries of the student.
        B: (d,) entries of the student.
        C: (d,) entries of the student.
        G: (kappa, kappa) Gram matrix of the sequences, by lag.
        target: (kappa,) the teacher's impulse response M*.
        slope: (d,) f'(s) where a = f(s) is trained through s: the first result is then ds/dt.

    Source: Proposition 1 of chapter "Which way does training move?" and the chain rule.
    """
    missing, power = residual(A, B * C, target)
    by_a, by_w = pull(power, G @ missing)
    return slope * (B * C * by_a), C * by_w, B * by_w


def jacobian(
    A: Vector,
    B: Vector,
    C: Vector,
    G: Float[np.ndarray, "kappa kappa"],
    target: Float[np.ndarray, " kappa"],
    *,
    train: str = "A",
    slope: Vector | float = 1.0,
    curve: Vector | float = 0.0,
) -> Matrix:
    """Return the Jacobian of `velocity`, minus the Hessian of the loss.

    With D = dM/d(parameters) it is -D^T G D plus a part that couples only the a, b, c of one j.

    Args:
        A: as in `velocity`.
        B: as in `velocity`.
        C: as in `velocity`.
        G: as in `velocity`.
        target: as in `velocity`.
        slope: as in `velocity`.
        train: "A" gives (d, d), "ABC" gives (3d, 3d).
        curve: (d,) f''(s) where a = f(s) is trained through s.
    """
    d, w, lags = len(A), B * C, np.arange(len(target))
    missing, power = residual(A, w, target)
    e = G @ missing
    first, second = np.zeros_like(power), np.zeros_like(power)  # m a^(m-1), m (m-1) a^(m-2)
    first[1:] = lags[1:, None] * power[:-1]
    second[2:] = (lags[2:] * lags[1:-1])[:, None] * power[:-2]
    own = slope**2 * (w * (e @ second)) + curve * (w * (e @ first))
    if train == "A":
        D = slope * (w * first)
        return np.asarray(np.diag(own) - D.T @ G @ D)
    D = np.concatenate([slope * (w * first), C * power, B * power], axis=1)  # (kappa, 3d)
    J = -D.T @ G @ D
    a, b, c = (np.arange(d) + k * d for k in range(3))
    J[a, a] += own
    mixed = slope * (e @ first)
    for one, other, value in ((a, b, C * mixed), (a, c, B * mixed), (b, c, e @ power)):
        J[one, other] += value
        J[other, one] += value
    return np.asarray(J)


def gap_velocity(
    theta: Parameters,
    counts: Parameters,
    w: float,
    G: Float[np.ndarray, "kappa kappa"],
    target: Float[np.ndarray, " kappa"],
    *,
    with_jacobian: bool,
) -> tuple[Parameters, Any]:
    """Return the velocity of theta = (a_1, log gaps), and its Jacobian if asked (else None).

    Entries of one weight never cross, and a gap between neighbours far below the last digit of the
    entries still has its own velocity: d log(gap)/dt = w sum_l gamma_l D_l, where gamma_l is
    (l+1) e_{l+1} and D_l = (x^l - y^l) / (x - y), x = a_j, y = a_{j+1}, is built by
    D_{l+1} = x^l + y D_l without a subtraction.

    Args:
        theta: (p,) the largest entry, then log(a_j - a_{j+1}) of the p distinct values.
        counts: (p,) how many entries share each value.
        w: weight b_j c_j, the same for all.
        G: as in `velocity`.
        target: as in `velocity`.
        with_jacobian: whether the Jacobian is computed too
    """
    gaps, lags = np.exp(theta[1:]), np.arange(len(target))
    a = theta[0] - np.concatenate([[0.0], np.cumsum(gaps)])
    power = powers(a, len(target))  # (kappa, p)
    coefficients = lags[1:] * (G @ (target - w * (power @ counts)))[1:]  # gamma_l, l = 0 .. kappa-2
    y = a[1:]
    divided = np.zeros((len(lags) - 1, len(gaps)))  # D_l
    for m in range(len(lags) - 2):
        divided[m + 1] = power[m, :-1] + y * divided[m]
    moving = w * np.concatenate([[coefficients @ power[:-1, 0]], coefficients @ divided])
    if not with_jacobian:
        return moving, None

    slope = np.zeros_like(power)
    slope[1:] = lags[1:, None] * power[:-1]
    sensitivity = -lags[1:, None] * (G @ (w * slope))[1:] * counts  # d gamma_l / d a_i
    by_x, by_y = np.zeros_like(divided), np.zeros_like(divided)  # dD_l/dx, dD_l/dy
    for m in range(len(lags) - 2):
        by_x[m + 1] = slope[m, :-1] + y * by_x[m]
        by_y[m + 1] = divided[m] + y * by_y[m]
    # With respect to a first, then to (a_1, log gaps): a_i is a_1 minus the gaps before it.
    J = w * np.concatenate([power[:-1, :1], divided], axis=1).T @ sensitivity
    k = np.arange(len(gaps))
    J[0, 0] += w * (coefficients @ slope[:-1, 0])
    J[k + 1, k] += w * (coefficients @ by_x)
    J[k + 1, k + 1] += w * (coefficients @ by_y)
    after = np.cumsum(J[:, ::-1], axis=1)[:, ::-1]  # sums over i >= column
    return moving, np.concatenate([after[:, :1], -after[:, 1:] * gaps], axis=1)
