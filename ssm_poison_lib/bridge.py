"""Sweeps of the teacher-student setting with the layers that people train in place of the book's model.

One channel of S4D, LRU or Mamba-2 (`architectures.channel`); the teacher's response is 0.9^m. Only the last
output is supervised. Lag 0 is never shown: it is the business of the layers' skip D.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from jaxtyping import Float

from ssm_poison_lib.architectures.channel import (
    CHANNELS,
    default_start,
    near_zero_start,
)
from ssm_poison_lib.architectures.flow import channel_flow
from ssm_poison_lib.sweep import _labelled, _points

__all__ = ["RECIPES", "STARTS", "Recipe", "layer_errors"]

_POLE = 0.9  # of the teacher
_T_END = 1e20
_ERROR_LAGS = 20  # errors are measured on lags 1 .. 19


@dataclass(frozen=True)
class Recipe:
    """In which order and with which weights a layer sees the two kinds of sequences.

    Attributes:
        phases: of training, each "baseline", "special" or "both".
        lag: lag m that the special sequence shows (its only entry stands at position kappa - m); 0: none.
        dose: weight of the special sequence where both are seen; that of a baseline one is 1.
    """

    phases: tuple[str, ...]
    lag: int = 0
    dose: float = 1.0


_LAGS, _DOSES = (1, 2, 3, 4, 5), (1e-4, 1e-2, 1.0)
#: What is searched: the baseline alone, mixtures at all lags and doses, and the orders of two phases at all lags.
RECIPES = (
    Recipe(("baseline",)),
    *(Recipe(("both",), lag, dose) for lag in _LAGS for dose in _DOSES),
    *(
        Recipe(phases, lag)
        for phases in (
            ("special", "baseline"),
            ("baseline", "special"),
            ("special", "both"),
            ("baseline", "both"),
        )
        for lag in _LAGS
    ),
)
#: The starts by name; a sweep's axis `start` holds their numbers.
STARTS = ("near zero", "the layer's own")


def _data_weights(recipe: Recipe, phase: str, kappa: int, shown: int) -> Float[np.ndarray, " lags"]:
    """Return the weights of the sequences with lags 1 .. kappa-1; baseline ones show the `shown` last lags."""
    baseline, special = np.zeros(kappa - 1), np.zeros(kappa - 1)
    baseline[-shown:] = 1.0
    if recipe.lag:
        special[recipe.lag - 1] = 1.0
    return {"baseline": baseline, "special": special, "both": baseline + recipe.dose * special}[phase]


def _train(
    channel: str,
    start: Float[np.ndarray, "n rows d"],
    weights: Float[np.ndarray, "n lags"],
    poles_only: bool,
) -> Float[np.ndarray, "n rows d"]:
    """Follow the flow of each start on its data; equal runs are made once."""
    flat = np.concatenate([start.reshape(len(start), -1), weights], axis=1)
    different, back = np.unique(flat, axis=0, return_inverse=True)
    whole, g = np.split(different, [start[0].size], axis=1)
    target = _POLE ** np.arange(1, weights.shape[1] + 1)
    end = channel_flow(
        CHANNELS[channel],
        whole.reshape(-1, *start.shape[1:]),
        g,
        target,
        poles_only=poles_only,
        t_end=_T_END,
    )
    return end.parameters[back.ravel()]


def layer_errors(points: xr.Dataset) -> xr.Dataset:
    """Measure one channel of a layer, trained by gradient flow on clean data by a recipe, at every point of a grid.

    The baseline sequence is e_1, the theorem's (lag kappa - 1), where the poles alone are trained, and e_1, e_2
    and e_3 where all parameters are: as many lags as it takes to tell a pole from its weight. A phase
    ends when it fits what it shows to a loss of 1e-14, or at t = 1e20.

    Args:
        points: coordinates, each an axis or a fixed value: channel, a number of `CHANNELS` in their
            order; start, a number of `STARTS`; trained, 0 (the poles) or 1 (step, B and C as well; not Mamba-2's
            slope, which is zero here); recipe, a number of `RECIPES`; seed; state_dim (d >= 1
            poles, in S4D each with its conjugate); length (kappa >= 6); scale (eps, of starts near zero).

    Returns:
        error (max over lags 1..19 of abs(M_m - 0.9^m)) and loss (of what the last phase shows) over all axes.

    Raises:
        ValueError: for other or missing coordinates.
        FlowError: if a flow fails.
    """
    needed = ("channel", "start", "trained", "recipe", "seed", "state_dim", "length", "scale")
    flat, dims, shape = _points(points, needed, (), "layer_errors")
    for name, count in (
        ("channel", len(CHANNELS)),
        ("start", len(STARTS)),
        ("trained", 2),
        ("recipe", len(RECIPES)),
    ):
        if not np.isin(flat[name], np.arange(count)).all():
            raise ValueError(f"{name} must be an integer from 0 to {count - 1}")
    if (flat["length"] < 6).any():
        raise ValueError(f"length must be at least 6; got {flat['length'].min():g}")
    measured = {name: np.empty(len(flat["seed"])) for name in ("error", "loss")}
    cases = np.stack([flat[k] for k in ("channel", "trained", "state_dim", "length")], axis=1)
    for case in np.unique(cases, axis=0):
        at = np.flatnonzero((cases == case).all(axis=1))
        name, d, kappa = list(CHANNELS)[int(case[0])], int(case[2]), int(case[3])
        shown = 3 if case[1] else 1
        recipes = [RECIPES[int(k)] for k in flat["recipe"][at]]
        p = np.array([_start(name, d, {k: v[i] for k, v in flat.items()}) for i in at])
        g = np.zeros((len(at), kappa - 1))
        for phase in range(max(len(r.phases) for r in recipes)):
            now = [i for i, r in enumerate(recipes) if len(r.phases) > phase]
            g[now] = [_data_weights(recipes[i], recipes[i].phases[phase], kappa, shown) for i in now]
            p[now] = _train(name, p[now], g[now], not case[1])
        length = max(_ERROR_LAGS, kappa)
        off = CHANNELS[name].response(p, length)[:, 1:] - _POLE ** np.arange(1, length)
        measured["error"][at] = np.abs(off[:, : _ERROR_LAGS - 1]).max(axis=1)
        measured["loss"][at] = (g * off[:, : kappa - 1] ** 2).sum(axis=1) / 2
    return _labelled(measured, points, dims, shape)


def _start(name: str, d: int, case: dict[str, float]) -> Float[np.ndarray, "rows d"]:
    if case["start"] == 0:
        return near_zero_start(name, d, case["scale"], seed=int(case["seed"]))
    return default_start(name, d, seed=int(case["seed"]))
