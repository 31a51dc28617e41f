"""The small student of the audit: a linear state space model, trained on sums over sequences alone.

Its last output is sum_m K_m x_{kappa-m}, K_m = sum_j a_j^m b_j c_j, b_j of the input's channels,
c_j of the outputs. So the loss and its gradient need G and P (`defences.before.DataSums`) and no
sequence, however many there are; sequences are left out by subtracting theirs. It starts with poles
near zero and follows the gradient in short steps, as gradient flow does; then a few steps of
Levenberg and Marquardt take it to the minimum beside which it stands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssm_poison_lib.defences.before import DataSums

__all__ = ["POLES", "Problem", "Students", "start", "train"]

POLES = 8
_STEPS, _POLISH = 200, 20
_DAMPING = 1e-3


@dataclass(frozen=True, eq=False)
class Problem:
    """A quadratic loss: half of tr(K^T G K) - 2 tr(K^T P) + 1, in units in which inputs and labels
    have size 1.

    Attributes:
        G: (kappa c, kappa c).
        P: (kappa c, outputs).
        scale: (x size, y size), root mean square norms; a response in the data's units is K y / x.
        least: the smallest loss of any response.
    """

    G: np.ndarray
    P: np.ndarray
    channels: int
    scale: tuple[float, float]
    least: float
    one: float

    @classmethod
    def of(cls, sums: DataSums, like: Problem | None = None) -> Problem:
        """Return the problem of some sequences, in their own units or those of another problem."""
        if like is None:
            x, y = (
                np.sqrt(np.trace(sums.gram) / sums.count),
                np.sqrt(np.trace(sums.label_gram) / sums.count),
            )
            scale = (float(x) or 1.0, float(y) or 1.0)
        else:
            scale = like.scale
        G = sums.gram / (sums.count * scale[0] ** 2)
        P = sums.cross / (sums.count * scale[0] * scale[1])
        one = float(np.trace(sums.label_gram) / (sums.count * scale[1] ** 2))
        ridge = G + 1e-9 * np.trace(G) / len(G) * np.eye(len(G))
        least = max(0.0, (one - float((P * np.linalg.solve(ridge, P)).sum())) / 2)
        return cls(G, P, sums.channels, scale, least, one)

    def loss(self, K: np.ndarray) -> np.ndarray:
        """Return the loss of responses (..., kappa c, outputs)."""
        return np.asarray((((self.G @ K) - 2 * self.P) * K).sum(axis=(-2, -1)) + self.one) / 2


@dataclass(frozen=True, eq=False)
class Students:
    """Several students: a (R, d), b (R, c, d), c (R, d, outputs)."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray

    def flat(self) -> np.ndarray:
        """Return all parameters, (R, parameters)."""
        return np.concatenate(
            [v.reshape(len(self.a), -1) for v in (self.a, self.b, self.c)], axis=1
        )

    def at(self, theta: np.ndarray) -> Students:
        """Return students of the same shapes with parameters (R, parameters)."""
        d, ends = self.a.shape[1], np.cumsum([self.a[0].size, self.b[0].size])
        a, b, c = np.split(theta, ends, axis=1)
        return Students(a, b.reshape(len(a), -1, d), c.reshape(len(a), d, -1))

    def responses(self, lags: int) -> np.ndarray:
        """Return K, (R, lags c, outputs)."""
        K = self._powers(lags) @ self._weights()
        return K.reshape(len(self.a), lags * self.b.shape[1], -1)

    def _weights(self) -> np.ndarray:
        """Return b_j c_j of each pole, (R, d, c outputs)."""
        w = self.b.transpose(0, 2, 1)[..., None] * self.c[:, :, None, :]
        return np.asarray(w.reshape(*self.a.shape, -1))

    def _powers(self, lags: int) -> np.ndarray:
        return np.asarray(self.a[:, None, :] ** np.arange(lags)[:, None])

    def gradient(self, problem: Problem) -> np.ndarray:
        """Return the gradient of the loss, (R, parameters)."""
        R, channels, _ = self.b.shape
        lags = len(problem.G) // channels
        powers = self._powers(lags)
        slopes = np.zeros_like(powers)
        slopes[:, 1:] = powers[:, :-1] * np.arange(1, lags)[:, None]
        weights = self._weights()
        K = (powers @ weights).reshape(R, lags * channels, -1)
        pull = (problem.G @ K - problem.P).reshape(R, lags, -1)  # by lags, (R, lags, c outputs)
        da = ((slopes.mT @ pull) * weights).sum(axis=2)
        # (R, d, c, outputs)
        by_state = (powers.mT @ pull).reshape(R, self.a.shape[1], channels, -1)
        db = (by_state * self.c[:, :, None, :]).sum(axis=3).transpose(0, 2, 1)
        dc = (by_state * self.b.transpose(0, 2, 1)[..., None]).sum(axis=2)
        return np.concatenate([v.reshape(R, -1) for v in (da, db, dc)], axis=1)

    def jacobian(self, i: int, lags: int) -> np.ndarray:
        """Return dK/dparameters of student i, (lags c outputs, parameters)."""
        a, b, c = self.a[i], self.b[i], self.c[i]
        powers = a ** np.arange(lags)[:, None]
        slopes = np.zeros_like(powers)
        slopes[1:] = powers[:-1] * np.arange(1, lags)[:, None]
        channels, d = b.shape
        outputs = c.shape[1]
        by_a = np.einsum("mj,ij,jo->mioj", slopes, b, c).reshape(-1, d)
        by_b = np.einsum("mj,jo,ik->miokj", powers, c, np.eye(channels)).reshape(-1, channels * d)
        by_c = np.einsum("mj,ij,op->miojp", powers, b, np.eye(outputs)).reshape(-1, d * outputs)
        return np.concatenate([by_a, by_b, by_c], axis=1)


def start(channels: int, outputs: int, seeds: range) -> Students:
    """Return students whose poles are near zero: a uniform in 0 to 0.01, b c of size 1 / d."""
    a, b, c = [], [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        a.append(0.01 * np.sort(rng.random(POLES))[::-1])
        if channels == outputs == 1:
            b.append(np.full((1, POLES), POLES**-0.5))
            c.append(np.full((POLES, 1), POLES**-0.5))
        else:
            b.append(rng.standard_normal((channels, POLES)) / np.sqrt(POLES * channels))
            c.append(rng.standard_normal((POLES, outputs)) / np.sqrt(POLES * outputs))
    return Students(np.array(a), np.array(b), np.array(c))


def train(
    students: Students, problem: Problem, *, steps: int = _STEPS, polish: int = _POLISH
) -> Students:
    """Return the students after training; their starts are left as they are."""
    lags = len(problem.G) // problem.channels
    theta = students.flat()
    length = 0.02 * np.linalg.norm(theta, axis=1)
    now = problem.loss(students.responses(lags))
    gradient = students.gradient(problem)
    for _ in range(steps):
        size = np.linalg.norm(gradient, axis=1)
        if not (size > 1e-300).any() or (now - problem.least < 1e-12).all():
            break
        step = np.divide(length, size, out=np.zeros_like(size), where=size > 1e-300)
        trial = theta - step[:, None] * gradient
        moved = students.at(trial)
        with np.errstate(over="ignore", invalid="ignore"):
            loss = problem.loss(moved.responses(lags))
        better = loss < now
        theta = np.where(better[:, None], trial, theta)
        now = np.where(better, loss, now)
        length = np.where(
            better, np.minimum(1.2 * length, 0.1 * np.linalg.norm(theta, axis=1)), 0.4 * length
        )
        gradient = students.at(theta).gradient(problem)
    for i in range(len(theta)):
        theta[i] = _polished(students, theta, i, problem, lags, polish)
    return students.at(theta)


def _polished(
    students: Students, theta: np.ndarray, i: int, problem: Problem, lags: int, steps: int
) -> np.ndarray:
    """Return the parameters of one student after steps of Levenberg and Marquardt."""
    mine, damping = theta[i : i + 1].copy(), _DAMPING
    now = float(problem.loss(students.at(mine).responses(lags))[0])
    for _ in range(steps):
        if now - problem.least < 1e-13:
            break
        student = students.at(mine)
        J = student.jacobian(0, lags)
        GJ = (problem.G @ J.reshape(len(problem.G), -1)).reshape(J.shape)
        pull = student.gradient(problem)[0]
        H = J.T @ GJ
        gained = False
        for _ in range(6):
            size = damping * (np.trace(H) / len(H) + 1e-300)
            trial = mine - np.linalg.solve(H + size * np.eye(len(H)), pull)[None]
            with np.errstate(over="ignore", invalid="ignore"):
                loss = float(problem.loss(students.at(trial).responses(lags))[0])
            if np.isfinite(loss) and loss < now:
                gained = loss < now - 1e-6 * (now - problem.least)
                mine, now, damping = trial, loss, damping / 4
                break
            damping *= 8
        if not gained:
            break
    return mine[0]
