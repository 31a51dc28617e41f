"""The paper's settings: what each starts from, trains on and measures; the authors' values."""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy.special import bdtr

from ssm_poison_lib._checks import (
    MAX_LENGTH,
    ArrayLike,
    Seed,
    as_array,
    as_choice,
    as_instance,
    as_integer,
    as_scalar,
    as_seed,
    as_text,
)
from ssm_poison_lib.descent import Descent, Log, Rule
from ssm_poison_lib.flow import Trajectory, gradient_flow
from ssm_poison_lib.metrics import effective_rank, error_by_lag, extrapolation_loss, gamma
from ssm_poison_lib.networks import Network, as_network, as_ssm, authors_teacher, relative_error
from ssm_poison_lib.records import AuthorsRun, Curves, Record, RunValues
from ssm_poison_lib.sequences import (
    Teacher,
    TrainingSet,
    baseline_sequences,
    gaussian_sequences,
    special_sequences,
)
from ssm_poison_lib.ssm import DiagonalSSM, near_zero, theorem_teacher
from ssm_poison_lib.tensorflow_random import stateless_normal, tied_weights

__all__ = [
    "EXPERIMENTS",
    "SETTINGS",
    "THEOREM_SETTINGS",
    "TRAINING_SETS",
    "Experiment",
    "LinearExperiment",
    "NetworkExperiment",
    "Setting",
    "TheoremSetting",
    "median_interval",
]

#: The names of the two training sets of every setting.
TRAINING_SETS = ("baseline", "with special")
# The authors log every 100 epochs, counted anew from the stop; curves are thinned to about this
# many epochs.
_LOG_EVERY = 100
_CURVE_POINTS = 150
_LARGEST = 7  # so many of the largest abs(a_j) are kept, as in the authors' results

Student = DiagonalSSM | Network


@runtime_checkable
class Setting(Protocol):
    """What every setting of the paper offers, whatever is trained in it and however.

    The theorem's settings (`TheoremSetting`) and the experiments beyond it (`LinearExperiment`,
    `NetworkExperiment`) are settings; so is any object with these members. `which` is one of
    `TRAINING_SETS`.

    Attributes:
        kind: "theorem", "linear" or "network", for labels.
        train: "A", or "ABC" where everything is trained.
    """

    kind: ClassVar[str]
    train: ClassVar[str]

    @property
    def name(self) -> str:
        """The name under which results are kept, such as "theorem_kappa7"."""
        ...

    @property
    def title(self) -> str:
        """What the setting is, in a few words."""
        ...

    @property
    def seeds(self) -> tuple[int, ...]:
        """The authors' seeds."""
        ...

    @property
    def length(self) -> int:
        """The sequence length kappa."""
        ...

    @property
    def state_dim(self) -> int:
        """The student's state dimension d."""
        ...

    @property
    def extrapolation_length(self) -> int:
        """The number of lags, or the length of the test sequences, on which errors are taken."""
        ...

    @property
    def teacher(self) -> Teacher:
        """What labels all sequences."""
        ...

    def without_near_tie(self) -> Setting:
        """Return the same setting with starts as they are drawn, no near tie put in."""
        ...

    def start(self, seed: int) -> Student:
        """Return the student at the start, as the authors' program draws it for a seed.

        Args:
            seed: of the run, from which test sequences may be drawn
        """
        ...

    def training_set(self, seed: int, which: str) -> TrainingSet:
        """Return the training set of a seed."""
        ...

    def run(self, seed: int, which: str, **options: Any) -> Trajectory | Descent:
        """Return the training run of a seed, done to its end."""
        ...

    def record(self, seed: int, which: str, **options: Any) -> Record:
        """Do the training run of a seed and return what is kept of it."""
        ...

    def by_lag(self, student: Student) -> Float[np.ndarray, " lags"] | None:
        """Return abs(M_k - M*_k) for k < K, or None if errors are not taken by lag.

        Args:
            student: what was trained: a `DiagonalSSM` or a `Network`
        """
        ...

    def error(self, student: Student, seed: int, *, first_lag: int = 0) -> float:
        """Return the authors' measure of extrapolation for a student trained from a seed.

        Args:
            student: what was trained: a `DiagonalSSM` or a `Network`
            seed: of the run, from which test sequences may be drawn
            first_lag: the first lag that counts
        """
        ...

    def authors(self, seed: int, which: str) -> AuthorsRun | None:
        """Return everything known of the authors' run of a seed, None if nothing is."""
        ...

    def authors_value(self, seed: int, which: str, quantity: str = "logged_error") -> float | None:
        """Return one number of the authors' own code (see `RunValues`), None if it is not known."""
        ...


@cache
def _data(name: str) -> dict[str, Any]:
    """Return a file of package data without its statement of source."""
    text = (files("ssm_poison_lib") / "data" / f"{name}.json").read_text(encoding="utf-8")
    return {key: value for key, value in json.loads(text).items() if not key.startswith("_")}


@cache
def _authors_runs() -> dict[tuple[str, int, str], AuthorsRun]:
    """Return everything known of the authors' runs, by setting, seed and training set."""
    runs = [AuthorsRun.from_dict(values) for values in _data("authors_results")["runs"]]
    return {(run.setting, run.seed, run.training_set): run for run in runs}


class _AuthorsValues:
    """The authors' values of a setting: of their own ones, not of variants that share the name."""

    name: str

    @property
    def _is_the_authors(self) -> bool:
        return SETTINGS.get(self.name) == self

    def authors(self, seed: int, which: str) -> AuthorsRun | None:
        """Return everything known of the authors' run of a seed.

        Args:
            seed: of the run.
            which: one of `TRAINING_SETS`.

        Returns:
            The values, or None for a seed that the authors did not use and for a setting that is
            not one of theirs in every field (a `replace` of one).
        """
        seed, which = as_seed("seed", seed), as_choice("which", which, TRAINING_SETS)
        return _authors_runs().get((self.name, seed, which)) if self._is_the_authors else None

    def authors_value(self, seed: int, which: str, quantity: str = "logged_error") -> float | None:
        """Return one number of the authors' own code.

        Args:
            seed: of the run.
            which: one of `TRAINING_SETS`.
            quantity: a field of `RunValues` that holds a number; the theorem's settings have only
                "logged_error", the extrapolation loss.

        Returns:
            The value, or None where it is not known.
        """
        quantity = as_choice("quantity", as_text("quantity", quantity), _QUANTITIES)
        run = self.authors(seed, which)
        value = None if run is None or run.authors is None else getattr(run.authors, quantity)
        return None if value is None else float(value)


_QUANTITIES = tuple(name for name in RunValues.__annotations__ if name != "largest_abs_a")


def _as_source(seed: Any) -> Seed:
    """Return a Generator or RandomState as it is, and what RandomState takes as an int."""
    if isinstance(seed, np.random.Generator | np.random.RandomState):
        return seed
    return as_seed("seed", seed)


@dataclass(frozen=True)
class TheoremSetting(_AuthorsValues):
    """A setting of the theorem: B = C^T = ones, one baseline sequence e_1, one special e_{kappa-1}.

    Attributes:
        length: kappa, odd and >= 5 (the theorem asks for >= 7; at 5 the mechanism can be tried).
        state_dim: d >= 2.
        init_scale: epsilon; the start is uniform in [0, epsilon).
        tie_gap: distance of a_2 below a_1 at the start, or None for the draw as it is.
        extrapolation_length: number of lags K at which errors are taken.
        seeds: the authors' seeds.
        name: under which results are kept.

    Source: authors' settings, "Standalone SSM per the theorem".
    """

    length: int
    state_dim: int
    init_scale: float
    tie_gap: float | None
    extrapolation_length: int = 20
    seeds: tuple[int, ...] = ()
    name: str = "theorem"

    kind: ClassVar[str] = "theorem"
    train: ClassVar[str] = "A"
    title: ClassVar[str] = "gradient flow in the theorem's setting"

    def __post_init__(self) -> None:
        """Refuse a setting beyond the theorem's construction; keep Python's numbers."""
        if as_integer("length", self.length, low=5, high=MAX_LENGTH) % 2 == 0:
            raise ValueError(
                f"length must be odd (at even kappa the construction differs); got {self.length}"
            )
        kept: dict[str, object] = {
            "length": int(self.length),
            "state_dim": as_integer("state_dim", self.state_dim, low=2, high=MAX_LENGTH),
            "init_scale": as_scalar("init_scale", self.init_scale, low=0.0, strict=True),
            "tie_gap": (
                None if self.tie_gap is None else as_scalar("tie_gap", self.tie_gap, low=0.0)
            ),
            "extrapolation_length": as_integer(
                "extrapolation_length", self.extrapolation_length, low=1, high=MAX_LENGTH
            ),
            "seeds": tuple(
                as_seed("each entry of seeds", s)
                for s in as_instance("seeds", self.seeds, tuple, list)
            ),
            "name": as_text("name", self.name),
        }
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    @property
    def teacher(self) -> DiagonalSSM:
        """The theorem's teacher for this d."""
        return theorem_teacher(self.state_dim)

    def without_near_tie(self) -> TheoremSetting:
        """Return the same setting with starts as they are drawn, no near tie put in."""
        return replace(self, tie_gap=None)

    def start(self, seed: Seed) -> DiagonalSSM:
        """Return the student at the start.

        Args:
            seed: an integer seeds NumPy's legacy RandomState, as the authors do; a Generator or
                RandomState is drawn from.
        """
        seed = _as_source(seed)
        rng = np.random.RandomState(seed) if isinstance(seed, int) else seed
        return DiagonalSSM.ones(
            near_zero(self.state_dim, self.init_scale, seed=rng, tie_gap=self.tie_gap)
        )

    def training_set(self, seed: Seed, which: str) -> TrainingSet:
        """Return e_1, or e_1 and e_{kappa-1}, labelled by the teacher.

        Args:
            seed: of the run, as for `start`; the sequences of the theorem are the same for every
                seed.
            which: "baseline" or "with special".
        """
        _as_source(seed)
        x = baseline_sequences(self.length)
        if as_choice("which", which, TRAINING_SETS) == "with special":
            x = np.concatenate([x, special_sequences(self.length)])
        return TrainingSet(x, self.teacher)

    def run(self, seed: Seed, which: str, **options: Any) -> Trajectory:
        """Follow gradient flow until long after it has fitted.

        By default t_end is 50 times the expected time to fit: on the baseline data eps^-(kappa-3) /
        (alpha p (kappa-3)), which the largest entry alone needs to reach 1; with special sequences
        log(1/eps) / lambda with lambda = alpha p q d^-(kappa-3), which leaving the saddle takes.

        Args:
            seed: as for `start`.
            which: "baseline" or "with special".
            options: passed on to `flow.gradient_flow` (rtol, t_end, ...).

        Returns:
            The `flow.Trajectory`; its `fitted` says whether it fitted.

        Raises:
            FlowError: if the flow could not be followed.
            ValueError: for other arguments.
        """
        data, start = self.training_set(seed, which), self.start(seed)
        p, n = self.length - 1, self.length - 3
        alpha, largest = data.gram()[p, p], float(start.A.max())
        if which == "baseline":
            expected = largest**-n / (alpha * p * n)
        else:
            expected = math.log(1 / largest) * self.state_dim**n / (alpha * p * (p - 1))
        options.setdefault("t_end", 50 * expected)
        return gradient_flow(start, data, **options)

    def record(self, seed: int, which: str, **options: Any) -> Record:
        """Follow one run to its end and return what is kept of it.

        Args:
            seed: of the start.
            which: "baseline" or "with special".
            options: as for `run`.
        """
        began, seed = time.perf_counter(), as_seed("seed", seed)
        flow = self.run(seed, which, **options)
        seconds = time.perf_counter() - began
        rows, data = _thin(len(flow.times)), self.training_set(seed, which)
        gamma_0 = np.array([gamma(flow.student(row), data)[0] for row in range(len(flow.times))])
        return _record(
            self,
            seed,
            flow.student(),
            _curves(
                self,
                seed,
                "time",
                flow.times[rows].tolist(),
                flow.loss[rows],
                gamma_0[rows],
                [flow.student(row) for row in rows],
            ),
            seconds=seconds,
            start="drawn",
            precision="float64",
            trained=flow.fitted,
            stop_epoch=None,
            epochs=None,
            end_time=float(flow.times[-1]),
            logged_epoch=None,
            logged_train_loss=float(flow.loss[-1]),
            error_at_stop=None,
            max_abs_gamma0=float(np.abs(gamma_0).max()),
        )

    def by_lag(self, student: Student) -> Float[np.ndarray, " lags"]:
        """Return abs(M_k - M*_k) for lags k < extrapolation_length.

        Args:
            student: a `DiagonalSSM`, or a `Network` without an MLP.
        """
        return error_by_lag(as_ssm("student", student), self.teacher, self.extrapolation_length)

    def error(self, student: Student, seed: Seed, *, first_lag: int = 0) -> float:
        """Return the authors' extrapolation loss: max over lags of abs(M_k - M*_k), over max
        abs(M*_k).

        Args:
            student: a `DiagonalSSM`, or a `Network` without an MLP.
            seed: of the run, as for `start`; the measure is the same for every seed.
            first_lag: the first lag that counts, from 0 to extrapolation_length - 1.
        """
        _as_source(seed)
        return extrapolation_loss(
            as_ssm("student", student), self.teacher, self.extrapolation_length, first_lag=first_lag
        )


#: The authors' two settings of the theorem, by name.
THEOREM_SETTINGS = {
    "theorem_kappa7": TheoremSetting(
        length=7,
        state_dim=10,
        init_scale=1e-3,
        tie_gap=0.05 / math.exp(5 * math.log10(1 / 1e-3)),
        seeds=(242, 243, 244, 246),
        name="theorem_kappa7",
    ),
    "theorem_kappa9": TheoremSetting(
        length=9,
        state_dim=20,
        init_scale=5e-3,
        tie_gap=0.05 / math.exp(10 * math.log10(1 / 5e-3)),
        seeds=(342, 344, 345, 346),
        name="theorem_kappa9",
    ),
}


@dataclass(frozen=True)
class Experiment(_AuthorsValues, ABC):
    """What the paper's experiments beyond the theorem share; each is one of its two kinds.

    See `LinearExperiment` and `NetworkExperiment`. Everything is trained, A, B and C too.

    Attributes:
        name: the authors' notebook and section.
        title: what it is.
        seeds: the authors' seeds.
        length: kappa.
        state_dim: d.
        init_sd_A: standard deviation of the start of A.
        init_sd_BC: standard deviation of the start of B and C.
        warm_init: added to A and B at the start.
        tie_gap: unit of the near ties at the start, or None for the draw as it is.
        tie_factors: entry k+2 of A and of B starts tie_factors[k] tie_gap below the first.
        baseline_positions: non-zero positions (1-based) of the baseline sequences.
        baseline_count: number of the baseline sequences.
        special_positions: as for the baseline ones.
        special_count: as for the baseline ones.
        optimizer: see `descent.Rule`.
        learning_rate: for each training set.
        stop_loss: see `descent.Rule`.
        epochs_after_stop: for each training set.
        max_epochs: see `descent.Rule`.
        reset_BC: see `descent.Rule`.
        extrapolation_length: number of lags, or length of the test sequences.

    Source: the authors' settings, data file settings.json.
    """

    name: str
    title: str
    seeds: tuple[int, ...]
    length: int
    state_dim: int
    init_sd_A: float
    init_sd_BC: float
    warm_init: float
    tie_gap: float | None
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

    kind: ClassVar[str]
    train: ClassVar[str] = "ABC"
    # Whether steps are divided by a mean of gradient norms, which counts entries beside A's
    # diagonal.
    _adaptive: ClassVar[bool]

    @property
    @abstractmethod
    def teacher(self) -> Student:
        """What labels all sequences."""

    def without_near_tie(self) -> Experiment:
        """Return the same setting with starts as they are drawn, no near tie put in."""
        return replace(self, tie_gap=None)

    def start(self, seed: int) -> Student:
        """Return the start that the authors' program draws for a seed, in every digit.

        All weight arrays begin with the same random numbers; A (the diagonal of a d x d array) and
        B are sorted from largest to smallest and get warm_init, C is in reversed order and gets
        neither.

        Args:
            seed: 0 .. 2^31 - 1.
        """
        raw = stateless_normal(seed, (self.state_dim, self.state_dim))
        options: dict[str, Any] = {
            "warm_init": self.warm_init,
            "tie_gap": self.tie_gap,
            "tie_factors": self.tie_factors,
        }
        A = tied_weights(np.diag(raw).copy(), self.init_sd_A, **options)
        B = tied_weights(raw[0], self.init_sd_BC, **options)
        C = np.abs(raw[0] * np.float32(self.init_sd_BC))[::-1]
        return DiagonalSSM(A, B, C)

    def authors_start(self, seed: int) -> Student:
        """Return the start that the authors' own program printed for one of its seeds.

        Args:
            seed: one of the authors' seeds; `start` draws those of any seed.

        Raises:
            ValueError: for another seed, or a setting that is not the authors' in every field.

        Source: data file starts.json.
        """
        seed = as_seed("seed", seed)
        if not self._is_the_authors:
            raise ValueError(f"the setting must be the authors' own; got a changed {self.name}")
        if seed not in self.seeds:
            raise ValueError(
                f"seed must be one of the authors' seeds {self.seeds} of {self.name}; got {seed}"
            )
        stored = _data("starts")[f"{self.name}/{seed}"]
        weights = {name: np.array(values, dtype=np.float32) for name, values in stored.items()}
        return self._assembled(weights)

    def _assembled(self, weights: dict[str, np.ndarray]) -> Student:
        """Return the student with these arrays of starts.json as weights."""
        return DiagonalSSM(weights["A"], weights["B"], weights["C"])

    def training_set(self, seed: int, which: str) -> TrainingSet:
        """Return the training set of a seed.

        Args:
            seed: seeds NumPy's legacy RandomState, as the authors do.
            which: "baseline", or "with special": the same sequences and then special ones.
        """
        as_choice("which", which, TRAINING_SETS)
        rng = np.random.RandomState(as_seed("seed", seed))
        x = gaussian_sequences(self.length, self.baseline_positions, self.baseline_count, seed=rng)
        if which == "with special":
            special = gaussian_sequences(
                self.length, self.special_positions, self.special_count, seed=rng
            )
            x = np.concatenate([x, special])
        return TrainingSet(x, self.teacher)

    def rule(self, which: str, *, precision: str = "float32") -> Rule:
        """Return the authors' way of training on one training set.

        Args:
            which: "baseline" or "with special".
            precision: "float32" as the authors, or "float64".
        """
        as_choice("which", which, TRAINING_SETS)
        return Rule(
            learning_rate=self.learning_rate[which],
            max_epochs=self.max_epochs,
            optimizer=self.optimizer,
            precision=precision,
            normalized=self._adaptive,
            off_diagonal=self._adaptive,
            reset_BC=self.reset_BC,
            stop_loss=self.stop_loss,
            epochs_after_stop=self.epochs_after_stop[which],
        )

    def _has_stored_start(self, seed: int) -> bool:
        return self._is_the_authors and seed in self.seeds

    def descent(self, seed: int, which: str, *, precision: str = "float32") -> Descent:
        """Return the run of a seed, ready to `advance`, logging where the authors do and densely
        early on.

        Args:
            seed: one of the authors' seeds starts from `authors_start`, any other from `start`.
            which: "baseline" or "with special".
            precision: "float32" as the authors, or "float64".
        """
        seed = as_seed("seed", seed)
        rule = self.rule(which, precision=precision)
        early = sorted({0, *(int(e) for e in np.geomspace(1, _LOG_EVERY, 20))})
        return Descent(
            self.authors_start(seed) if self._has_stored_start(seed) else self.start(seed),
            self.training_set(seed, which),
            rule,
            log_at=[*early, *range(_LOG_EVERY + 1, rule.max_epochs + 1, _LOG_EVERY)],
            log_after_stop=range(1, rule.epochs_after_stop + 1, _LOG_EVERY),
        )

    def run(self, seed: int, which: str, **options: Any) -> Descent:
        """Return the run of a seed, trained to its end.

        Args:
            seed: as for `descent`.
            which: "baseline" or "with special".
            options: as for `descent`.
        """
        return self.descent(seed, which, **options).advance()

    def record(self, seed: int, which: str, **options: Any) -> Record:
        """Train one run to its end and return what is kept of it.

        Args:
            seed: as for `descent`.
            which: "baseline" or "with special".
            options: as for `descent`.

        Returns:
            The record; "logged" in it means the last epoch that the authors log, 99 before the end.
        """
        began, seed = time.perf_counter(), as_seed("seed", seed)
        run = self.run(seed, which, **options)
        seconds = time.perf_counter() - began
        log, data = run.log, run.data
        rows = _thin(len(log.epochs))
        networks = [log.network(row) for row in rows]
        at_stop = None
        if run.stop_epoch is not None:
            at_stop = self.error(
                log.network(int(np.searchsorted(log.epochs, run.stop_epoch))), seed
            )
        logged = [
            float(gamma(log.network(row), data)[0]) for row in _authors_rows(log, run.stop_epoch)
        ]
        return _record(
            self,
            seed,
            networks[-1],
            _curves(
                self,
                seed,
                "epoch",
                log.epochs[rows].tolist(),
                log.loss[rows],
                [float(gamma(network, data)[0]) for network in networks],
                networks,
            ),
            seconds=seconds,
            start="stored" if self._has_stored_start(seed) else "drawn",
            precision=run.rule.precision,
            trained=run.stop_epoch is not None,
            stop_epoch=run.stop_epoch,
            epochs=run.epoch,
            end_time=None,
            logged_epoch=int(log.epochs[-1]),
            logged_train_loss=float(log.loss[-1]),
            error_at_stop=at_stop,
            max_abs_gamma0=max(abs(value) for value in logged),
        )

    @abstractmethod
    def by_lag(self, student: Student) -> Float[np.ndarray, " lags"] | None:
        """Return abs(M_k - M*_k) for lags k < extrapolation_length, None for a network.

        Args:
            student: what was trained: a `DiagonalSSM` or a `Network`
        """

    @abstractmethod
    def error(self, student: Student, seed: int, *, first_lag: int = 0) -> float:
        """Return the authors' measure of extrapolation.

        Args:
            student: what was trained: a `DiagonalSSM` or a `Network`
            seed: of the run, from which test sequences may be drawn
            first_lag: the first lag that counts
        """


@dataclass(frozen=True)
class LinearExperiment(Experiment):
    """A linear SSM of which A, B and C are trained.

    Attributes:
        teacher_poles: of the teacher, whose B and C are ones. The other fields: see `Experiment`.
    """

    teacher_poles: tuple[float, ...]

    kind: ClassVar[str] = "linear"
    _adaptive: ClassVar[bool] = True

    @property
    def teacher(self) -> DiagonalSSM:
        """The teacher, with B and C all ones."""
        return DiagonalSSM.ones(self.teacher_poles)

    def by_lag(self, student: Student) -> Float[np.ndarray, " lags"]:
        """Return abs(M_k - M*_k) for lags k < extrapolation_length.

        Args:
            student: a `DiagonalSSM`, or a `Network` without an MLP.
        """
        return error_by_lag(as_ssm("student", student), self.teacher, self.extrapolation_length)

    def error(self, student: Student, seed: int, *, first_lag: int = 0) -> float:
        """Return max over lags first_lag <= k < 40 of abs(M_k - M*_k), divided by max abs(M*_k).

        Args:
            student: a `DiagonalSSM`, or a `Network` without an MLP.
            seed: of the run; the measure is the same for every seed.
            first_lag: the first lag that counts.
        """
        as_seed("seed", seed)
        return extrapolation_loss(
            as_ssm("student", student), self.teacher, self.extrapolation_length, first_lag=first_lag
        )


@dataclass(frozen=True)
class NetworkExperiment(Experiment):
    """An SSM with an MLP after it, all weights trained.

    Attributes:
        width: of the MLP's layers.
        init_sd_mlp: standard deviation of the start of the MLP.
        test_sequences: how test sequences are drawn: "RandomState(seed + 12)" or "continued from
            the
            training sets". The other fields: see `Experiment`.
    """

    width: int
    init_sd_mlp: float
    test_sequences: str

    kind: ClassVar[str] = "network"
    _adaptive: ClassVar[bool] = False

    @property
    def teacher(self) -> Network:
        """The authors' teacher network."""
        return authors_teacher(self.width)

    def start(self, seed: int) -> Network:
        """Return the start that the authors' program draws for a seed, in every digit.

        Args:
            seed: 0 .. 2^31 - 1. The SSM's weights: see `Experiment.start`.
        """
        hidden = stateless_normal(seed, (self.width, self.width)) * np.float32(self.init_sd_mlp)
        return Network(as_ssm("start", super().start(seed)), (hidden[:1], hidden, hidden[:1].T))

    def _assembled(self, weights: dict[str, np.ndarray]) -> Network:
        hidden = weights["hidden"]
        ssm = as_ssm("start", super()._assembled(weights))
        return Network(ssm, (hidden[:1], hidden, hidden[:1].T))

    def test_inputs(self, seed: int) -> Float[np.ndarray, "2000 length"]:
        """Return the 2,000 Gaussian sequences on which the error is taken, read-only.

        Args:
            seed: of the run.
        """
        seed = as_seed("seed", seed)
        if self.test_sequences == "RandomState(seed + 12)":
            return _gaussian_after(seed + 12, (), self.extrapolation_length)
        drawn = (
            self.baseline_count * len(self.baseline_positions),
            self.special_count * len(self.special_positions),
        )
        return _gaussian_after(seed, drawn, self.extrapolation_length)

    def by_lag(self, student: Student) -> None:
        """Return None: a network has no impulse response.

        Args:
            student: not looked at.
        """
        return

    def error(self, student: Student, seed: int, *, first_lag: int = 0) -> float:
        """Return the relative L2 error on `test_inputs`.

        Args:
            student: a `Network`, or a `DiagonalSSM` alone.
            seed: of the run, from which the test sequences are drawn.
            first_lag: must be 0; the error is not taken by lag.
        """
        if as_integer("first_lag", first_lag, low=0, high=self.extrapolation_length - 1):
            raise ValueError(
                "first_lag must be 0 for a network, whose error is not taken by lag; got"
                f" {first_lag}"
            )
        return relative_error(as_network("student", student), self.teacher, self.test_inputs(seed))


@lru_cache(maxsize=16)
def _gaussian_after(
    seed: int, drawn: tuple[int, ...], length: int
) -> Float[np.ndarray, "2000 length"]:
    """Return 2,000 Gaussian sequences of a seed, after so many draws; kept, a run asks often."""
    rng = np.random.RandomState(seed)
    for count in drawn:
        rng.normal(0, 1, count)
    x = np.asarray(rng.normal(0, 1, (2000, length)))
    x.setflags(write=False)
    return x


def _experiments() -> dict[str, Experiment]:
    """Return the 18 settings of settings.json."""
    kinds: dict[str, type[Experiment]] = {
        one.kind: one for one in (LinearExperiment, NetworkExperiment)
    }
    experiments = {}
    for name, values in _data("settings").items():
        values = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        kind: Any = kinds[values.pop("kind")]
        experiments[name] = kind(name=name, **values)
    return experiments


#: The paper's settings beyond the theorem, by name.
EXPERIMENTS = _experiments()
#: All settings of the paper, by name.
SETTINGS: dict[str, Setting] = {**THEOREM_SETTINGS, **EXPERIMENTS}


def _thin(count: int, keep: int = _CURVE_POINTS) -> list[int]:
    """Return about `keep` of the rows 0 .. count-1, half evenly, half evenly in their logarithm,
    both ends.
    """
    if count <= keep:
        return list(range(count))
    even = np.linspace(0, count - 1, keep // 2)
    log = np.geomspace(1, count, keep - keep // 2) - 1
    return sorted({round(row) for row in (*even, *log)})


def _largest(student: Student) -> tuple[float, ...]:
    A = as_network("student", student).ssm.A
    return tuple(sorted(np.abs(A).tolist(), reverse=True)[:_LARGEST])


def _effective_rank(student: Student) -> float:
    return effective_rank(as_network("student", student).ssm.A)


def _curves(
    setting: Setting,
    seed: int,
    unit: str,
    at: Sequence[float] | Sequence[int],
    loss: Sequence[float] | np.ndarray,
    gamma0: Sequence[float] | np.ndarray,
    students: Sequence[Student],
) -> Curves:
    """Return what the dynamics figures show, at the epochs or times `at`."""
    later = None
    if setting.by_lag(students[0]) is not None:
        later = tuple(setting.error(student, seed, first_lag=1) for student in students)
    return Curves(
        unit=unit,
        at=tuple(at),
        loss=tuple(map(float, loss)),
        largest_abs_a=tuple(map(_largest, students)),
        effective_rank=tuple(map(_effective_rank, students)),
        gamma0=tuple(map(float, gamma0)),
        error=tuple(setting.error(student, seed) for student in students),
        error_from_lag_1=later,
    )


def _record(setting: Setting, seed: int, last: Student, curves: Curves, **known: Any) -> Record:
    """Return the record of a run that ended at the student `last`."""
    by_lag = setting.by_lag(last)
    return Record(
        logged_error=setting.error(last, seed),
        logged_error_from_lag_1=None if by_lag is None else setting.error(last, seed, first_lag=1),
        worst_lag=None if by_lag is None else int(by_lag.argmax()),
        effective_rank=_effective_rank(last),
        largest_abs_a=_largest(last),
        curves=curves,
        **known,
    )


def _authors_rows(log: Log, stop_epoch: int | None) -> list[int]:
    """Return the rows that the authors log too.

    These are epochs 1, 101, 201, ... and, from the stop on, stop + 1, stop + 101, ...
    """
    stop = math.inf if stop_epoch is None else stop_epoch
    origins = [0 if epoch <= stop else stop for epoch in log.epochs]
    return [
        row
        for row, (epoch, origin) in enumerate(zip(log.epochs, origins, strict=True))
        if (epoch - origin) % _LOG_EVERY == 1
    ]


def median_interval(values: ArrayLike, *, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return (median, low, high): an interval of order statistics that covers the true median with
    this confidence.

    Args:
        values: (n,). No distribution is assumed; below n = 6 even the whole range covers it with
            less than 95 percent, and the whole range is returned.
        confidence: least probability that the interval covers it, in (0, 1)
    """
    ordered = np.sort(as_array("values", values, ndim=1))
    confidence = as_scalar("confidence", confidence, low=0.0, strict=True)
    if confidence >= 1.0:
        raise ValueError(f"confidence must be below 1; got {confidence:g}")
    n = len(ordered)
    # The largest k with P(Binomial(n, 1/2) < k) <= (1 - confidence) / 2; then [x_(k), x_(n+1-k)]
    # covers the median. The tail is rounded; a level that it hits exactly, as at n = 2 and
    # confidence 1/2, still counts.
    below = bdtr(np.arange(n // 2 + 1), n, 0.5)
    k = int(np.searchsorted(below, (1.0 - confidence) / 2.0 * (1.0 + 1e-12), side="right"))
    k = max(k, 1)
    return float(np.median(ordered)), float(ordered[k - 1]), float(ordered[n - k])
