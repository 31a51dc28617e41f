"""Harmless training sets of many kinds, and how often the audit finds something in them.

They are drawn so that every finding is false: no special sequences, no copies, rows in random
order, and more sequences than lags. "Undecided" is no finding, and right where labels are random
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from ssm_poison_lib._checks import as_choice, as_integer
from ssm_poison_lib.audit import audit

__all__ = ["KINDS", "false_finding", "false_findings", "harmless", "mnist1d_windows"]

Rng = np.random.Generator


def _gaussian(rng: Rng) -> np.ndarray:
    length = int(rng.integers(5, 31))
    return rng.standard_normal((int(rng.integers(2, 8)) * length, length))


def _few(rng: Rng) -> np.ndarray:
    return rng.standard_normal((20, 7))


def _short(rng: Rng) -> np.ndarray:
    return rng.standard_normal((int(rng.integers(10, 200)), int(rng.integers(2, 5))))


def _sparse(rng: Rng) -> np.ndarray:
    x = rng.standard_normal((150, 20))
    return x * (rng.random(x.shape) < rng.uniform(0.05, 0.3))


def _one_position(rng: Rng) -> np.ndarray:
    x = np.zeros((200, 16))
    x[np.arange(200), rng.integers(0, 16, 200)] = rng.standard_normal(200)
    return x


def _autoregressive(rng: Rng) -> np.ndarray:
    noise, x = rng.standard_normal((120, 24)), np.zeros((120, 24))
    memory = rng.uniform(-0.95, 0.95)
    x[:, 0] = noise[:, 0] / np.sqrt(1 - memory**2)
    for t in range(1, 24):
        x[:, t] = memory * x[:, t - 1] + noise[:, t]
    return x


def _walk(rng: Rng) -> np.ndarray:
    return rng.standard_normal((100, 20)).cumsum(axis=1)


def _bursts(rng: Rng) -> np.ndarray:
    centre = rng.uniform(0, 24, (150, 1))
    return np.exp(-((np.arange(24) - centre) ** 2) / 8) + 0.05 * rng.standard_normal((150, 24))


def _waves(rng: Rng) -> np.ndarray:
    period, shift = rng.uniform(3, 12, (150, 1)), rng.uniform(0, 2 * np.pi, (150, 1))
    return np.sin(2 * np.pi * np.arange(24) / period + shift) + 0.1 * rng.standard_normal((150, 24))


def _heavy(rng: Rng) -> np.ndarray:
    return rng.standard_t(2, (150, 15))


def _channels(rng: Rng) -> np.ndarray:
    mixed = rng.standard_normal((150, 12, 3)) @ rng.standard_normal((3, 3))
    return np.asarray(mixed + 0.3 * rng.standard_normal(mixed.shape))


def _padded(rng: Rng) -> np.ndarray:
    x = rng.standard_normal((150, 20))
    x[np.arange(20) < rng.integers(0, 11, (150, 1))] = 0.0
    return x


def _mnist1d(rng: Rng) -> np.ndarray:
    return mnist1d_windows(150, 40, rng)


def mnist1d_windows(count: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Return windows of MNIST-1D, each of another of 4000 examples, from a random step on.

    Args:
        count: windows, at most 4000.
        length: of each, at most the 40 steps of an example.
        rng: draws examples and steps.

    Returns:
        (count, length), in units in which all 4000 have mean 0 and standard deviation 1.
    """
    count = as_integer("count", count, low=1, high=len(_examples()))
    length = as_integer("length", length, low=1, high=_examples().shape[1])
    rows = rng.choice(len(_examples()), count, replace=False)
    first = rng.integers(0, _examples().shape[1] - length + 1, count)
    return _examples()[rows[:, None], first[:, None] + np.arange(length)]


@cache
def _examples() -> np.ndarray:
    from ssm_poison_lib.attacks.datasets import mnist1d  # here: torch takes seconds to load

    return mnist1d(4000).x[:, :, 0].numpy().astype(float)


#: Kinds of harmless sets, by name.
KINDS: dict[str, Callable[..., Any]] = {
    "Gaussian": _gaussian,
    "20 Gaussian sequences of length 7": _few,
    "short": _short,
    "sparse": _sparse,
    "one position each": _one_position,
    "autoregressive": _autoregressive,
    "random walks": _walk,
    "bursts": _bursts,
    "waves": _waves,
    "heavy tails": _heavy,
    "three channels": _channels,
    "padded": _padded,
    "MNIST-1D": _mnist1d,
}


def harmless(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return x, y and for every second seed a random order.

    Args:
        kind: a name in `KINDS`.
        seed: of everything; seeds 0, 3, 6, ...: labels of a linear teacher, 1, 4, ...: its signs,
            2, 5, ...: random numbers.
    """
    draw = KINDS[as_choice("kind", kind, KINDS)]
    seed = as_integer("seed", seed, low=0)
    rng = np.random.default_rng([list(KINDS).index(kind), seed])
    x = draw(rng)
    flat = x[:, ::-1].reshape(len(x), -1)
    pole = rng.uniform(0.5, 0.95)
    y = flat @ pole ** (np.arange(flat.shape[1]) / (x.shape[2] if x.ndim == 3 else 1))
    if seed % 3 == 1:
        y = (y > np.median(y)).astype(int)
    elif seed % 3 == 2:
        y = rng.standard_normal(len(x))
    return x, y, rng.random(len(x)) if seed % 2 else None


def false_finding(kind: str, seed: int) -> dict[str, Any]:
    """Return what the audit says about one harmless set: kind, seed, verdict, and whether that is a
    false finding.

    Args:
        kind: a name in `KINDS`.
        seed: see `harmless`.
    """
    x, y, order = harmless(kind, seed)
    found = audit(x, y, order=order)
    return {"kind": kind, "seed": seed, "verdict": found.verdict, "false": found.status == 1}


def false_findings(kinds: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """Return `false_finding` of every kind for seeds 0 .. seeds - 1.

    Args:
        kinds: names in `KINDS`.
        seeds: how many of each.
    """
    return [false_finding(kind, seed) for kind in kinds for seed in range(seeds)]
