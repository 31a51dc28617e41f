"""The paper's settings as data, the authors' reference values, and functions that run a setting."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from ssm_poison_lib._checks import Seed, as_choice, as_integer, as_scalar
from ssm_poison_lib.flow import Trajectory, gradient_flow
from ssm_poison_lib.sequences import TrainingSet, baseline_sequences, concatenate, special_sequences
from ssm_poison_lib.ssm import DiagonalSSM, near_zero, theorem_teacher

__all__ = [
    "THEOREM_SETTINGS",
    "TheoremSetting",
    "authors_theorem_values",
    "run_theorem",
    "theorem_training_set",
]


@dataclass(frozen=True)
class TheoremSetting:
    """A setting of the theorem: student B = C^T = ones, one baseline sequence e_1, one special sequence e_{kappa-1}.

    length: kappa, odd and >= 5 (the theorem asks for >= 7; at 5 the mechanism can be tried); state_dim: d >= 2;
    init_scale: epsilon, the start is uniform in [0, epsilon); tie_gap: distance of a_2 below a_1 at the start, or None
    for the draw as it is; extrapolation_length: number of lags K at which errors are taken; seeds: the authors' seeds.

    Source: authors' settings, "Standalone SSM per the theorem".
    """

    length: int
    state_dim: int
    init_scale: float
    tie_gap: float | None
    extrapolation_length: int = 20
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a setting that the theorem's construction does not cover."""
        if as_integer("length", self.length, low=5) % 2 == 0:
            raise ValueError(
                f"length must be odd (at even kappa the construction differs); got {self.length}"
            )
        as_integer("state_dim", self.state_dim, low=2)
        as_scalar("init_scale", self.init_scale, low=0.0, strict=True)
        if self.tie_gap is not None:
            as_scalar("tie_gap", self.tie_gap, low=0.0)
        as_integer("extrapolation_length", self.extrapolation_length, low=1)

    @property
    def teacher(self) -> DiagonalSSM:
        """The theorem's teacher for this d."""
        return theorem_teacher(self.state_dim)

    def start(self, seed: Seed) -> DiagonalSSM:
        """Return the student at the start: an int seeds NumPy's legacy RandomState, as the authors do."""
        rng = np.random.RandomState(as_integer("seed", seed, low=0)) if isinstance(seed, int) else seed
        A = near_zero(self.state_dim, self.init_scale, seed=rng, tie_gap=self.tie_gap)
        return DiagonalSSM(A, np.ones(self.state_dim), np.ones(self.state_dim))


THEOREM_SETTINGS = {
    "theorem_kappa7": TheoremSetting(
        length=7,
        state_dim=10,
        init_scale=1e-3,
        tie_gap=0.05 / math.exp(5 * math.log10(1 / 1e-3)),
        seeds=(242, 243, 244, 246),
    ),
    "theorem_kappa9": TheoremSetting(
        length=9,
        state_dim=20,
        init_scale=5e-3,
        tie_gap=0.05 / math.exp(10 * math.log10(1 / 5e-3)),
        seeds=(342, 344, 345, 346),
    ),
}


def theorem_training_set(setting: TheoremSetting, training_set: str) -> TrainingSet:
    """Return the "baseline" training set (e_1) or the one "with special" (e_1 and e_{kappa-1}), labelled by the teacher."""
    training_set = as_choice("training_set", training_set, ("baseline", "with special"))
    baseline = TrainingSet(baseline_sequences(setting.length), setting.teacher)
    if training_set == "baseline":
        return baseline
    return concatenate(baseline, TrainingSet(special_sequences(setting.length), setting.teacher))


def run_theorem(setting: TheoremSetting, seed: Seed, training_set: str, **options: Any) -> Trajectory:
    """Follow gradient flow in a theorem setting until long after it has fitted.

    seed: an int (the authors' RandomState) or a Generator; training_set: "baseline" or "with special"; options: passed on
    to `gradient_flow` (rtol, t_end, ...). t_end is by default 50 times the expected time to fit: on the baseline data
    eps^-(kappa-3) / (alpha p (kappa-3)), which the largest entry alone needs to reach 1; with special sequences
    log(1/eps) / lambda with lambda = alpha p q d^-(kappa-3), which leaving the saddle takes.

    Returns the `Trajectory`; its `fitted` says whether it fitted. Raises what `gradient_flow` raises.
    """
    data = theorem_training_set(setting, training_set)
    start = setting.start(seed)
    p, n = setting.length - 1, setting.length - 3
    alpha, largest = data.gram()[p, p], float(start.A.max())
    if training_set == "baseline":
        expected = largest**-n / (alpha * p * n)
    else:
        expected = math.log(1 / largest) * setting.state_dim**n / (alpha * p * (p - 1))
    options.setdefault("t_end", 50 * expected)
    return gradient_flow(start, data, **options)


@cache
def _authors() -> dict[str, Any]:
    text = (files("ssm_poison_lib") / "data" / "authors_theorem.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def authors_theorem_values(name: str) -> dict[str, dict[int, float]]:
    """Return the authors' extrapolation loss: training set -> seed -> value.

    name: "theorem_kappa7" or "theorem_kappa9". Source: outputs stored in the authors' public notebook (SciPy odeint at
    default tolerances).
    """
    values = _authors()[as_choice("name", name, THEOREM_SETTINGS)]
    return {training_set: {int(seed): v for seed, v in row.items()} for training_set, row in values.items()}
