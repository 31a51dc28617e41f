"""The paper's settings as data, the authors' reference values, and functions that run a setting."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import bdtr

from ssm_poison_lib._checks import (
    MAX_LENGTH,
    ArrayLike,
    Seed,
    as_array,
    as_choice,
    as_flag,
    as_instance,
    as_integer,
    as_scalar,
    as_seed,
    as_text,
)
from ssm_poison_lib.descent import Descent, Log, Rule
from ssm_poison_lib.flow import Trajectory, gradient_flow
from ssm_poison_lib.metrics import effective_rank, error_by_lag, extrapolation_loss
from ssm_poison_lib.networks import (
    Network,
    authors_teacher,
    network_gamma,
    relative_error,
)
from ssm_poison_lib.sequences import (
    TrainingSet,
    baseline_sequences,
    concatenate,
    gaussian_sequences,
    special_sequences,
)
from ssm_poison_lib.ssm import DiagonalSSM, near_zero, theorem_teacher
from ssm_poison_lib.starts import stateless_normal, tied_weights

__all__ = [
    "EXPERIMENTS",
    "THEOREM_SETTINGS",
    "TRAINING_SETS",
    "Experiment",
    "TheoremSetting",
    "authors_theorem_values",
    "authors_value",
    "authors_values",
    "curves",
    "experiment_run",
    "median_interval",
    "run_experiment",
    "run_theorem",
    "run_theorem_record",
    "stored_start",
    "theorem_training_set",
]

#: The names of the two training sets of every setting.
TRAINING_SETS = ("baseline", "with special")
# The authors log every 100 epochs, counted anew from the stop; curves are thinned to about this many epochs.
_LOG_EVERY = 100
_CURVE_POINTS = 150
_LARGEST = 7  # so many of the largest abs(a_j) are kept, as in the authors' results


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
        """Refuse a setting that the theorem's construction does not cover; keep Python's numbers."""
        if as_integer("length", self.length, low=5, high=MAX_LENGTH) % 2 == 0:
            raise ValueError(
                f"length must be odd (at even kappa the construction differs); got {self.length}"
            )
        kept: dict[str, object] = {
            "length": int(self.length),
            "state_dim": as_integer("state_dim", self.state_dim, low=2, high=MAX_LENGTH),
            "init_scale": as_scalar("init_scale", self.init_scale, low=0.0, strict=True),
            "tie_gap": None if self.tie_gap is None else as_scalar("tie_gap", self.tie_gap, low=0.0),
            "extrapolation_length": as_integer(
                "extrapolation_length", self.extrapolation_length, low=1, high=MAX_LENGTH
            ),
            "seeds": tuple(
                as_seed("each entry of seeds", s) for s in as_instance("seeds", self.seeds, tuple, list)
            ),
        }
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    @property
    def teacher(self) -> DiagonalSSM:
        """The theorem's teacher for this d."""
        return theorem_teacher(self.state_dim)

    def start(self, seed: Seed) -> DiagonalSSM:
        """Return the student at the start: an integer seeds NumPy's legacy RandomState, as the authors do."""
        drawn = isinstance(seed, np.random.Generator | np.random.RandomState)
        rng = seed if drawn else np.random.RandomState(as_seed("seed", seed))
        A = near_zero(self.state_dim, self.init_scale, seed=rng, tie_gap=self.tie_gap)
        return DiagonalSSM.ones(A)


#: The authors' two settings of the theorem, by name.
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
    as_instance("setting", setting, TheoremSetting)
    training_set = as_choice("training_set", training_set, TRAINING_SETS)
    baseline = TrainingSet(baseline_sequences(setting.length), setting.teacher)
    if training_set == "baseline":
        return baseline
    return concatenate(baseline, TrainingSet(special_sequences(setting.length), setting.teacher))


def run_theorem(setting: TheoremSetting, seed: Seed, training_set: str, **options: Any) -> Trajectory:
    """Follow gradient flow in a theorem setting until long after it has fitted.

    seed: an integer (the authors' RandomState), a Generator or a RandomState; training_set: "baseline" or "with special";
    options: passed on to `gradient_flow` (rtol, t_end, ...). t_end is by default 50 times the expected time to fit: on the
    baseline data eps^-(kappa-3) / (alpha p (kappa-3)), which the largest entry alone needs to reach 1; with special
    sequences log(1/eps) / lambda with lambda = alpha p q d^-(kappa-3), which leaving the saddle takes.

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
def _data(name: str) -> dict[str, Any]:
    """Return a file of package data without its statement of source."""
    text = (files("ssm_poison_lib") / "data" / f"{name}.json").read_text(encoding="utf-8")
    return {key: value for key, value in json.loads(text).items() if not key.startswith("_")}


def authors_theorem_values(name: str) -> dict[str, dict[int, float]]:
    """Return the authors' extrapolation loss: training set -> seed -> value.

    name: "theorem_kappa7" or "theorem_kappa9". Source: outputs stored in the authors' public notebook (SciPy odeint at
    default tolerances).
    """
    values = _data("authors_theorem")[as_choice("name", name, THEOREM_SETTINGS)]
    return {training_set: {int(seed): v for seed, v in row.items()} for training_set, row in values.items()}


@dataclass(frozen=True)
class Experiment:
    """A setting of the paper beyond the theorem: a linear SSM with trained B and C, or an SSM with an MLP after it.

    name, title: the authors' notebook and section, and what it is. seeds: the authors' seeds. length: kappa.
    state_dim: d. teacher_poles: of the teacher, whose B and C are ones. width: of the MLP's layers, 0 without one.
    init_sd_A, init_sd_BC, init_sd_mlp: standard deviations of the start; warm_init: added to A and B; tie_gap,
    tie_factors: entry k+2 of A and of B starts tie_factors[k] tie_gap below the first.
    baseline_positions, baseline_count: non-zero positions (1-based) and number of the baseline sequences; special_*: of
    the special ones. optimizer, learning_rate (per training set), stop_loss, epochs_after_stop (per training set),
    max_epochs, reset_BC: see `descent.Rule`. extrapolation_length: number of lags, or length of the test sequences.
    test_sequences: how a network's test sequences are drawn, "" for a linear SSM.

    Source: the authors' settings, data file settings.json.
    """

    name: str
    title: str
    seeds: tuple[int, ...]
    length: int
    state_dim: int
    teacher_poles: tuple[float, ...]
    width: int
    init_sd_A: float
    init_sd_BC: float
    init_sd_mlp: float
    warm_init: float
    tie_gap: float
    tie_factors: tuple[float, ...]
    baseline_positions: tuple[int, ...]
    baseline_count: int
    special_positions: tuple[int, ...]
    special_count: int
    optimizer: str
    learning_rate: dict[str, float]
    stop_loss: float
    epochs_after_stop: dict[str, int]
    max_epochs: int
    reset_BC: bool
    extrapolation_length: int
    test_sequences: str

    @property
    def is_network(self) -> bool:
        """Whether an MLP follows the SSM."""
        return self.width > 0

    @property
    def teacher(self) -> Network:
        """The teacher, an SSM alone or with the authors' MLP."""
        if self.is_network:
            return authors_teacher(self.width)
        return Network(DiagonalSSM.ones(self.teacher_poles))

    def start(self, seed: int, *, near_tie: bool = True) -> Network:
        """Return the start that the authors' program draws for a seed; near_tie=False leaves out the near ties.

        All weight arrays begin with the same random numbers; A (the diagonal of a d x d array) and B are sorted from
        largest to smallest and get warm_init, C is in reversed order and gets neither.
        """
        near_tie, d = as_flag("near_tie", near_tie), self.state_dim
        raw = stateless_normal(seed, (d, d))
        options: dict[str, Any] = {
            "warm_init": self.warm_init,
            "tie_gap": self.tie_gap if near_tie else None,
            "tie_factors": self.tie_factors,
        }
        A = tied_weights(np.diag(raw).copy(), self.init_sd_A, **options)
        B = tied_weights(raw[0], self.init_sd_BC, **options)
        C = np.abs(raw[0] * np.float32(self.init_sd_BC))[::-1]
        if not self.is_network:
            return Network(DiagonalSSM(A, B, C))
        hidden = stateless_normal(seed, (self.width, self.width)) * np.float32(self.init_sd_mlp)
        return Network(DiagonalSSM(A, B, C), (hidden[:1], hidden, hidden[:1].T))

    def training_set(self, seed: int, training_set: str) -> TrainingSet:
        """Return the training set of a seed: "baseline", or "with special" = the same sequences and then special ones."""
        as_choice("training_set", training_set, TRAINING_SETS)
        rng = np.random.RandomState(as_seed("seed", seed))
        x = gaussian_sequences(self.length, self.baseline_positions, self.baseline_count, seed=rng)
        if training_set == "with special":
            special = gaussian_sequences(self.length, self.special_positions, self.special_count, seed=rng)
            x = np.concatenate([x, special])
        return TrainingSet(x, self.teacher if self.is_network else self.teacher.ssm)

    def rule(self, training_set: str, *, precision: str = "float32") -> Rule:
        """Return the authors' way of training on one training set, in their precision."""
        as_choice("training_set", training_set, TRAINING_SETS)
        adaptive = not self.is_network
        return Rule(
            learning_rate=self.learning_rate[training_set],
            max_epochs=self.max_epochs,
            optimizer=self.optimizer,
            precision=precision,
            normalized=adaptive,
            off_diagonal=adaptive,
            reset_BC=self.reset_BC,
            stop_loss=self.stop_loss,
            epochs_after_stop=self.epochs_after_stop[training_set],
        )

    def test_inputs(self, seed: int) -> Float[np.ndarray, "2000 length"]:
        """Return the 2,000 Gaussian sequences on which a network's error is taken."""
        seed, shape = as_seed("seed", seed), (2000, self.extrapolation_length)
        if self.test_sequences == "RandomState(seed + 12)":
            return np.asarray(np.random.RandomState(seed + 12).normal(0, 1, shape))
        rng = np.random.RandomState(seed)  # goes on where the training sets ended
        rng.normal(0, 1, self.baseline_count * len(self.baseline_positions))
        rng.normal(0, 1, self.special_count * len(self.special_positions))
        return np.asarray(rng.normal(0, 1, shape))

    def error(self, network: Network, seed: int, *, first_lag: int = 0) -> float:
        """Return the authors' measure of extrapolation.

        Linear: max over lags first_lag <= k < 40 of abs(M_k - M*_k), divided by max abs(M*_k). Network: relative L2 error
        on `test_inputs` (first_lag must be 0).
        """
        as_instance("network", network, Network)
        first_lag = as_integer("first_lag", first_lag, low=0, high=self.extrapolation_length - 1)
        if not self.is_network:
            return extrapolation_loss(
                network.ssm, self.teacher.ssm, self.extrapolation_length, first_lag=first_lag
            )
        if first_lag:
            raise ValueError(
                f"first_lag must be 0 for a network, whose error is not taken by lag; got {first_lag}"
            )
        return relative_error(network, self.teacher, self.test_inputs(seed))


def _experiments() -> dict[str, Experiment]:
    """Return the 18 settings of settings.json."""
    experiments = {}
    for name, values in _data("settings").items():
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        experiments[name] = Experiment(name=name, **values)
    return experiments


#: The paper's settings beyond the theorem, by name.
EXPERIMENTS = _experiments()


def stored_start(setting: Experiment, seed: int) -> Network:
    """Return the start that the authors' own program printed for one of its seeds (data file starts.json).

    Raises ValueError for a seed that the authors did not use; `Experiment.start` draws those.
    """
    key = f"{as_instance('setting', setting, Experiment).name}/{as_seed('seed', seed)}"
    if key not in _data("starts"):
        raise ValueError(
            f"seed must be one of the authors' seeds {setting.seeds} of {setting.name}; got {seed}"
        )
    start = _data("starts")[key]
    A, B, C = (np.array(start[name], dtype=np.float32) for name in "ABC")
    if not setting.is_network:
        return Network(DiagonalSSM(A, B, C))
    hidden = np.array(start["hidden"], dtype=np.float32)
    return Network(DiagonalSSM(A, B, C), (hidden[:1], hidden, hidden[:1].T))


def authors_values(name: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Return everything known of the authors' runs of an experiment: training set -> seed -> source -> values.

    Sources: "authors_tf241" (their code), "replica_f32", "replica_f64" (a re-implementation from the same start),
    "rounding_band" (of logged_error), "stored" (in their notebooks). See data file authors_results.json.
    """
    values = _data("authors_results")[as_choice("name", name, EXPERIMENTS)]
    return {which: {int(seed): v for seed, v in row.items()} for which, row in values.items()}


def authors_value(name: str, training_set: str, seed: int, quantity: str) -> float | None:
    """Return one number of the authors' own code: "logged_error", "stop_epoch", ...; None where there is none.

    name: any setting's; for the theorem's settings the only quantity is "logged_error", the extrapolation loss.
    """
    as_choice("training_set", training_set, TRAINING_SETS)
    seed, quantity = as_seed("seed", seed), as_text("quantity", quantity)
    if as_choice("name", name, THEOREM_SETTINGS | EXPERIMENTS) in THEOREM_SETTINGS:
        return authors_theorem_values(name)[training_set].get(seed) if quantity == "logged_error" else None
    run = authors_values(name)[training_set].get(seed, {})
    value = run.get("authors_tf241", {}).get(quantity)
    return None if value is None else float(value)


def experiment_run(
    setting: Experiment, seed: int, training_set: str, *, precision: str = "float32"
) -> Descent:
    """Return the run of an experiment, ready to `advance`, logging where the authors do and more densely early on.

    seed: one of the authors' seeds starts from the stored start, any other from `Experiment.start`.
    precision: "float32" as the authors, or "float64".
    """
    as_instance("setting", setting, Experiment)
    seed = as_seed("seed", seed)
    start = stored_start(setting, seed) if seed in setting.seeds else setting.start(seed)
    rule = setting.rule(training_set, precision=precision)
    early = sorted({0, *(int(e) for e in np.geomspace(1, _LOG_EVERY, 20))})
    return Descent(
        start,
        setting.training_set(seed, training_set),
        rule,
        log_at=[*early, *range(_LOG_EVERY + 1, rule.max_epochs + 1, _LOG_EVERY)],
        log_after_stop=range(1, rule.epochs_after_stop + 1, _LOG_EVERY),
    )


def _thin(count: int, keep: int = _CURVE_POINTS) -> list[int]:
    """Return about `keep` of the rows 0 .. count-1, half of them evenly, half evenly in their logarithm, both ends."""
    if count <= keep:
        return list(range(count))
    even = np.linspace(0, count - 1, keep // 2)
    log = np.geomspace(1, count, keep - keep // 2) - 1
    return sorted({round(row) for row in (*even, *log)})


def curves(
    setting: Experiment, seed: int, training_set: str, log: Log, *, points: int = _CURVE_POINTS
) -> dict[str, list[Any]]:
    """Return what the dynamics figures show, at about `points` of the logged epochs.

    Keys: "epoch", "loss", "largest_abs_a" (the 7 largest abs(a_j)), "effective_rank", "gamma0" (gamma_0, with the
    factor xi for a network), "error" (see `Experiment.error`), and for a linear SSM "error_from_lag_1".
    """
    data = as_instance("setting", setting, Experiment).training_set(seed, training_set)
    rows = _thin(
        len(as_instance("log", log, Log).epochs), as_integer("points", points, low=2, high=MAX_LENGTH)
    )
    networks = [log.network(row) for row in rows]
    result: dict[str, list[Any]] = {
        "epoch": [int(log.epochs[row]) for row in rows],
        "loss": [float(log.loss[row]) for row in rows],
        "largest_abs_a": [sorted(np.abs(n.ssm.A).tolist(), reverse=True)[:_LARGEST] for n in networks],
        "effective_rank": [effective_rank(n.ssm.A) for n in networks],
        "gamma0": [float(network_gamma(n, data)[0]) for n in networks],
    }
    if setting.is_network:
        teacher, x = setting.teacher, setting.test_inputs(seed)
        result["error"] = [relative_error(n, teacher, x) for n in networks]
    else:
        result["error"] = [setting.error(n, seed) for n in networks]
        result["error_from_lag_1"] = [setting.error(n, seed, first_lag=1) for n in networks]
    return result


def _authors_rows(log: Log, stop_epoch: int | None) -> list[int]:
    """Return the rows that the authors log too: epochs 1, 101, 201, ... and, from the stop on, stop + 1, stop + 101, ..."""
    stop = math.inf if stop_epoch is None else stop_epoch
    origins = [0 if epoch <= stop else stop for epoch in log.epochs]
    return [
        row
        for row, (epoch, origin) in enumerate(zip(log.epochs, origins, strict=True))
        if (epoch - origin) % _LOG_EVERY == 1
    ]


def run_experiment(setting: Experiment, seed: int, training_set: str, **options: Any) -> dict[str, Any]:
    """Train one run of an experiment to its end and return its record (see `studies.reproduce.RECORD`).

    options: passed on to `experiment_run`. "logged" means the last epoch that the authors log, 99 before the end.
    """
    began = time.perf_counter()
    run = experiment_run(setting, seed, training_set, **options).advance()
    log = run.log
    last = log.network(len(log.epochs) - 1)
    data = setting.training_set(seed, training_set)
    at_stop = (
        None if run.stop_epoch is None else log.network(int(np.searchsorted(log.epochs, run.stop_epoch)))
    )
    linear = not setting.is_network
    by_lag = error_by_lag(last.ssm, setting.teacher.ssm, setting.extrapolation_length) if linear else None
    return {
        "start": "stored" if seed in setting.seeds else "drawn",
        "precision": run.rule.precision,
        "stop_epoch": run.stop_epoch,
        "epochs": run.epoch,
        "logged_epoch": int(log.epochs[-1]),
        "logged_error": setting.error(last, seed),
        "logged_error_from_lag_1": setting.error(last, seed, first_lag=1) if linear else None,
        "worst_lag": None if by_lag is None else int(by_lag.argmax()),
        "logged_train_loss": float(log.loss[-1]),
        "error_at_stop": None if at_stop is None else setting.error(at_stop, seed),
        "effective_rank": effective_rank(last.ssm.A),
        "largest_abs_a": sorted(np.abs(last.ssm.A).tolist(), reverse=True)[:_LARGEST],
        "max_abs_gamma0": max(
            abs(float(network_gamma(log.network(row), data)[0])) for row in _authors_rows(log, run.stop_epoch)
        ),
        "seconds": time.perf_counter() - began,
        "curves": curves(setting, seed, training_set, log),
    }


def run_theorem_record(setting: TheoremSetting, seed: int, training_set: str) -> dict[str, Any]:
    """Follow one run of a theorem setting to its end and return its record (see `studies.reproduce.RECORD`)."""
    began = time.perf_counter()
    flow = run_theorem(setting, seed, training_set)
    last, length = flow.student(), setting.extrapolation_length
    rows = _thin(len(flow.times))
    students = [flow.student(row) for row in rows]
    return {
        "start": "drawn",
        "precision": "float64",
        "stop_epoch": None,
        "epochs": None,
        "fitted": flow.fitted,
        "end_time": float(flow.times[-1]),
        "logged_error": extrapolation_loss(last, setting.teacher, length),
        "logged_error_from_lag_1": float(error_by_lag(last, setting.teacher, length)[1:].max()),
        "worst_lag": int(error_by_lag(last, setting.teacher, length).argmax()),
        "logged_train_loss": float(flow.loss[-1]),
        "effective_rank": effective_rank(last.A),
        "largest_abs_a": sorted(np.abs(last.A).tolist(), reverse=True)[:_LARGEST],
        "max_abs_gamma0": float(np.abs(flow.gamma[:, 0]).max()),
        "seconds": time.perf_counter() - began,
        "curves": {
            "time": [float(flow.times[row]) for row in rows],
            "loss": [float(flow.loss[row]) for row in rows],
            "largest_abs_a": [sorted(np.abs(s.A).tolist(), reverse=True)[:_LARGEST] for s in students],
            "effective_rank": [effective_rank(s.A) for s in students],
            "gamma0": [float(flow.gamma[row, 0]) for row in rows],
            "error": [extrapolation_loss(s, setting.teacher, length) for s in students],
        },
    }


def median_interval(values: ArrayLike, *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return (median, low, high): an interval of order statistics that covers the true median with this confidence.

    values: (n,). No distribution is assumed; below n = 6 even the whole range covers it with less than 95 percent, and the
    whole range is returned.
    """
    ordered = np.sort(as_array("values", values, ndim=1))
    confidence = as_scalar("confidence", confidence, low=0.0, strict=True)
    if confidence >= 1.0:
        raise ValueError(f"confidence must be below 1; got {confidence:g}")
    n = len(ordered)
    # The largest k with P(Binomial(n, 1/2) < k) <= (1 - confidence) / 2; then [x_(k), x_(n+1-k)] covers the median. The tail is
    # rounded; a level that it hits exactly, as at n = 2 and confidence 1/2, still counts.
    below = bdtr(np.arange(n // 2 + 1), n, 0.5)
    k = int(np.searchsorted(below, (1.0 - confidence) / 2.0 * (1.0 + 1e-12), side="right"))
    k = max(k, 1)
    return float(np.median(ordered)), float(ordered[k - 1]), float(ordered[n - k])
