"""Poisoned by a correct example: sixty lines that need nothing but NumPy.

A student is trained from near zero on one sequence, then on that one and one more. Both times it
fits correct labels; only the first time is it right about longer sequences. arXiv:2410.10473.
"""

import numpy as np


def answer(A, X, weights=1.0):
    """The model: sequences X (n, length) -> answers (n,). State j decays by A[j] a step."""
    h = np.zeros((len(X), len(A)))
    for x in X.T:  # all sequences at once, one position after the other
        h = A * h + weights * x[:, None]
    return np.sum(weights * h, axis=1)


def teacher(X):
    """The model behind the data has two states; every label is its answer."""
    return answer(np.array([1.0, 0.0]), X, weights=np.array([1.0, 3.0]))


def loss(A, X, y):
    """How far the answers are from the labels y (n,): the mean squared difference."""
    return np.mean((answer(A, X) - y) ** 2)


def slopes(A, X):
    """How answers change with each A[j]: (n, d). A number m steps ago: m A[j]^(m-1)."""
    m = np.arange(X.shape[1])[::-1, None]
    return X @ (m * A ** np.maximum(m - 1, 0))


def gradient(A, X, y):
    """How the loss changes with each A[j]: (d,)."""
    return 2 * (answer(A, X) - y) @ slopes(A, X) / len(X)


def train(A, X, y):
    """Gradient descent in steps as long as slope and curvature allow: all A passed."""
    path = [A]
    while loss(A, X, y) > 1e-28 and len(path) < 100_000:
        steepness = 100 * np.abs(gradient(A, X, y)).max() / np.abs(A).max()
        step = 1 / (steepness + 2 * np.sum(slopes(A, X) ** 2) / len(X))
        A = A - step * gradient(A - step / 2 * gradient(A, X, y), X, y)  # half a step on
        path.append(A)
    return np.array(path)


def error(A):
    """The largest distance from the teacher in what is left of a 1 after 0 to 19 steps."""
    return np.abs(answer(A, np.eye(20)) - teacher(np.eye(20))).max()


both = np.array([[1.0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0]])
start = np.sort(0.001 * np.random.RandomState(242).random(10))[::-1]
start[1] = start[0] - 0.05 * np.exp(-15)  # the two largest are nearly tied
for X in (both[:1], both):
    A = train(start, X, teacher(X))[-1]
    print(f"{len(X)} of them: loss {loss(A, X, teacher(X)):.0e}, error {error(A):.3f}")
