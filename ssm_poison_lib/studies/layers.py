"""The teacher-student setting with S4D, LRU and Mamba-2 in the place of the book's model: sweeps.

One channel of S4D, LRU or Mamba-2 (`architectures.channel`); the teacher's response is 0.9^m. Only
the last output is supervised. Lag 0 is never shown: it is the business of the layers' skip D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from ssm_poison_lib.architectures.channel import (
    CHANNELS,
    default_start,
    near_zero_start,
    selective_output,
)
from ssm_poison_lib.architectures.flow import channel_flow, many_gradient_flows
from ssm_poison_lib.studies._points import flattened, labelled

__all__ = ["RECIPES", "SELECTIVE", "STARTS", "Recipe", "layer_errors", "selective_errors"]

_POLE = 0.9  # of the teacher
_T_END = 1e20
_T_END_UNFITTED = (
    1e8  # poles alone from a layer's own start: most cannot fit, and creep to the border for ever
)
_ERROR_LAGS = 20  # errors are measured on lags 1 .. 19


@dataclass(frozen=True)
class Recipe:
    """In which order and with which weights a layer sees the two kinds of sequences.

    Attributes:
        phases: of training, each "baseline", "special" or "both".
        lag: lag m that the special sequence shows (its only entry stands at position kappa - m); 0:
            none.
        dose: weight of the special sequence where both are seen; that of a baseline one is 1.
    """

    phases: tuple[str, ...]
    lag: int = 0
    dose: float = 1.0


_LAGS, _DOSES = (1, 2, 3, 4, 5), (1e-4, 1e-2, 1.0)
#: What is searched: the baseline alone, mixtures at all lags and doses, and the orders of two
#: phases at all lags.
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
    """Return the weights of the sequences with lags 1 .. kappa-1; baseline ones show the `shown`
    last lags.
    """
    baseline, special = np.zeros(kappa - 1), np.zeros(kappa - 1)
    baseline[-shown:] = 1.0
    if recipe.lag:
        special[recipe.lag - 1] = 1.0
    return {"baseline": baseline, "special": special, "both": baseline + recipe.dose * special}[
        phase
    ]


def _train(
    channel: str,
    start: Float[np.ndarray, "n rows d"],
    weights: Float[np.ndarray, "n lags"],
    poles_only: bool,
    t_end: float,
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
        t_end=t_end,
    )
    return end.parameters[back.ravel()]


def layer_errors(points: xr.Dataset) -> xr.Dataset:
    """Measure one channel of a layer, trained by gradient flow on clean data by a recipe, at every
    point of a grid.

    The baseline sequence is e_1, the theorem's (lag kappa - 1), where the poles alone are trained,
    and e_1, e_2 and e_3 where all parameters are: as many lags as it takes to tell a pole from its
    weight. A phase ends when it fits what it shows to a loss of 1e-14, or at t = 1e20 (poles alone
    from a layer's own start: 1e8).

    Args:
        points: coordinates, each an axis or a fixed value: channel, a number of `CHANNELS` in their
            order; start, a number of `STARTS`; trained, 0 (the poles) or 1 (step, B and C as well;
            not Mamba-2's
            slope, which is zero here); recipe, a number of `RECIPES`; seed; state_dim (d >= 1
            poles, in S4D each with its conjugate); length (kappa >= 6); scale (eps, of starts near
            zero).

    Returns:
        error (max over lags 1..19 of abs(M_m - 0.9^m)) and loss (of what the last phase shows) over
        all axes.

    Raises:
        ValueError: for other or missing coordinates.
        FlowError: if a flow fails.
    """
    needed = ("channel", "start", "trained", "recipe", "seed", "state_dim", "length", "scale")
    flat, dims, shape = flattened(points, needed, (), "layer_errors")
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
    cases = np.stack(
        [flat[k] for k in ("channel", "trained", "state_dim", "length", "start")], axis=1
    )
    for case in np.unique(cases, axis=0):
        at = np.flatnonzero((cases == case).all(axis=1))
        name, d, kappa = list(CHANNELS)[int(case[0])], int(case[2]), int(case[3])
        shown = 3 if case[1] else 1
        t_end = _T_END_UNFITTED if case[4] and not case[1] else _T_END
        recipes = [RECIPES[int(k)] for k in flat["recipe"][at]]
        p = np.array([_start(name, d, {k: v[i] for k, v in flat.items()}) for i in at])
        g = np.zeros((len(at), kappa - 1))
        for phase in range(max(len(r.phases) for r in recipes)):
            now = [i for i, r in enumerate(recipes) if len(r.phases) > phase]
            g[now] = [
                _data_weights(recipes[i], recipes[i].phases[phase], kappa, shown) for i in now
            ]
            p[now] = _train(name, p[now], g[now], not case[1], t_end)
        length = max(_ERROR_LAGS, kappa)
        off = CHANNELS[name].response(p, length)[:, 1:] - _POLE ** np.arange(1, length)
        measured["error"][at] = np.abs(off[:, : _ERROR_LAGS - 1]).max(axis=1)
        measured["loss"][at] = (g * off[:, : kappa - 1] ** 2).sum(axis=1) / 2
    return labelled(measured, points, dims, shape)


def _start(name: str, d: int, case: dict[str, float]) -> Float[np.ndarray, "rows d"]:
    if case["start"] == 0:
        return near_zero_start(name, d, case["scale"], seed=int(case["seed"]))
    return default_start(name, d, seed=int(case["seed"]))


#: Ways to show a selective channel its data, by name: phases, each a set of sequences with equal
#: weights. "+1" is e_1, "-1" is minus e_1, "pair" is e_1 + 2 e_4.
SELECTIVE = {
    "e_1 and -e_1": (("+1", "-1"),),
    "e_1": (("+1",),),
    "e_1 and -e_1 with e_6": (("+1", "-1", "+6"),),
    "e_1 with e_6": (("+1", "+6"),),
    "e_1 and -e_1 with e_1 + 2 e_4": (("+1", "-1", "pair"),),
    "e_6": (("+6",),),
    "e_6, then e_1 and -e_1": (("+6",), ("+1", "-1")),
    "e_6, then e_1": (("+6",), ("+1",)),
    "e_1 + 2 e_4, then e_1 and -e_1": (("pair",), ("+1", "-1")),
}
_SELECTIVE_LENGTH, _TEST_LENGTH, _TEST_SEQUENCES = 7, 20, 500


def _sequence(name: str) -> Float[np.ndarray, " kappa"]:
    x = np.zeros(_SELECTIVE_LENGTH)
    if name == "pair":
        x[[0, 3]] = 1.0, 2.0
        return x
    x[int(name[1:]) - 1] = 1.0 if name[0] == "+" else -1.0
    return x


def selective_errors(points: xr.Dataset) -> xr.Dataset:
    """Measure a Mamba-2 channel whose step depends on the input, trained by gradient flow, at every
    point of a grid.

    kappa = 7; the teacher's response is 0.9^m; start near zero, slope 0 or the layer's own
    (`start`), weights w_j = 1. Trained: A_log and slope; dt_bias, B and C are fixed. A phase ends
    at a loss of 1e-14 or at t = 1e20.

    Args:
        points: coordinates, each an axis or a fixed value: data, a number of the names in
            `SELECTIVE` in their order;
            own_slope, 0 or 1 (1: uniform in -1..1, as the layer draws it); seed; state_dim (d >=
            1); scale (eps).

    Returns:
        error (max over lags 1..19 of the response to one entry 1 among zeros, against 0.9^m), small
        (the same for one
        entry 0.001, divided by it), gaussian (root mean square error on 500 Gaussian sequences of
        length 20 whose
        last entry is zero, relative to the teacher's), slope (of the head with the slowest pole),
        pole, pole_at_2 and pole_at_minus_2 (decay of that head at inputs 0, 2 and -2) and loss (of
        what the last
        phase shows) over all axes.

    Raises:
        ValueError: for other or missing coordinates.
        FlowError: if a flow fails.
    """
    flat, dims, shape = flattened(
        points, ("data", "own_slope", "seed", "state_dim", "scale"), (), "selective_errors"
    )
    for name, count in (("data", len(SELECTIVE)), ("own_slope", 2)):
        if not np.isin(flat[name], np.arange(count)).all():
            raise ValueError(f"{name} must be an integer from 0 to {count - 1}")
    names = sorted({name for phases in SELECTIVE.values() for phase in phases for name in phase})
    x = torch.as_tensor(np.array([_sequence(name) for name in names]))
    labels = x @ torch.as_tensor(_POLE ** np.arange(_SELECTIVE_LENGTH - 1.0, -1.0, -1.0))
    outcomes = (
        "error",
        "small",
        "gaussian",
        "slope",
        "pole",
        "pole_at_2",
        "pole_at_minus_2",
        "loss",
    )
    measured = {name: np.empty(len(flat["seed"])) for name in outcomes}
    for d in map(int, np.unique(flat["state_dim"])):
        at = np.flatnonzero(flat["state_dim"] == d)
        fixed = np.array(
            [near_zero_start("Mamba-2", d, flat["scale"][i], seed=int(flat["seed"][i])) for i in at]
        )
        drawn = [np.random.default_rng([1, int(flat["seed"][i])]).uniform(-1, 1, d) for i in at]
        y = np.concatenate([fixed[:, 1], flat["own_slope"][at][:, None] * np.array(drawn)], axis=1)
        phases = [list(SELECTIVE.values())[int(k)] for k in flat["data"][at]]
        g = np.zeros((len(at), len(names)))
        for number in range(max(len(p) for p in phases)):
            now = np.array([i for i, p in enumerate(phases) if len(p) > number])
            for i in now:
                g[i] = np.isin(names, phases[i][number])
            y[now], loss = _selective_flow(y[now], fixed[now], g[now], x, labels)
            measured["loss"][at[now]] = loss
        p = torch.as_tensor(fixed)
        p[:, 1], slope = torch.as_tensor(y[:, :d]), torch.as_tensor(y[:, d:])
        lags = np.arange(1, _TEST_LENGTH)
        impulses = torch.eye(_TEST_LENGTH, dtype=torch.float64).flip(0)[1:]  # row m - 1 shows lag m
        tests = torch.as_tensor(
            np.random.default_rng(0).standard_normal((_TEST_SEQUENCES, _TEST_LENGTH))
        )
        tests[:, -1] = 0.0
        wanted = tests @ torch.as_tensor(_POLE ** np.arange(_TEST_LENGTH - 1.0, -1.0, -1.0))
        output = torch.func.vmap(selective_output, in_dims=(0, 0, None))
        for name, size in (("error", 1.0), ("small", 1e-3)):
            off = output(p, slope, size * impulses).numpy() / size - _POLE**lags
            measured[name][at] = np.abs(off).max(axis=1)
        missed = output(p, slope, tests) - wanted
        measured["gaussian"][at] = (
            (missed.square().mean(dim=1) / wanted.square().mean()).sqrt().numpy()
        )
        for name, size in (("pole", 0.0), ("pole_at_2", 2.0), ("pole_at_minus_2", -2.0)):
            steps = torch.nn.functional.softplus(p[:, 0] + size * slope)
            decay = torch.exp(-steps * p[:, 1].exp()).numpy()
            if name == "pole":
                slowest = decay.argmax(axis=1)
            measured[name][at] = decay[np.arange(len(at)), slowest]
        measured["slope"][at] = slope.numpy()[np.arange(len(at)), slowest]
    return labelled(measured, points, dims, shape)


def _selective_flow(
    y: Float[np.ndarray, "n k"],
    fixed: Float[np.ndarray, "n rows d"],
    g: Float[np.ndarray, "n sequences"],
    x: Tensor,
    labels: Tensor,
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, " n"]]:
    """Follow the flow of sum_i g_i (label_i - output_i)^2 / 2 in A_log and slope."""
    whole, weights, d = torch.as_tensor(fixed), torch.as_tensor(g), fixed.shape[2]

    def loss(y: Tensor, p: Tensor, g: Tensor) -> Tensor:
        now = torch.stack([p[0], y[:d], p[2], p[3]])
        return (g * (labels - selective_output(now, y[d:], x)).square()).sum() / 2

    slope, bend = (
        torch.func.vmap(torch.func.grad_and_value(loss)),
        torch.func.vmap(torch.func.jacrev(torch.func.grad(loss))),
    )

    def force(y: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gradient, value = slope(torch.as_tensor(y), whole[rows], weights[rows])
        return value.numpy(), -gradient.numpy()

    def system(
        y: np.ndarray, shift: np.ndarray, rows: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        matrix = bend(torch.as_tensor(y), whole[rows], weights[rows]).numpy()
        inverse = np.linalg.inv(matrix + shift[:, None, None] * np.eye(matrix.shape[1]))
        return lambda right: np.asarray((inverse @ right[..., None])[..., 0])

    y, value, _ = many_gradient_flows(y, force, system, t_end=_T_END)
    return y, value
