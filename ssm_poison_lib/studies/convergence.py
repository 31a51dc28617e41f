"""Is it poison, or unfinished training: every comparison far past the authors' stop, with controls.

A cell is one way of training (setting, near tie or not, gradient flow, gradient descent or Adam,
learning rate) over many consecutive seeds, on the baseline set and on the set with special
sequences, with *equal* step size and *equal* epochs. Errors are kept by epoch, at equal training
loss, and where the authors' stopping rule would have ended.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import bdtr

from ssm_poison_lib._checks import (
    MAX_COUNT,
    as_choice,
    as_flag,
    as_instance,
    as_integer,
    as_mapping,
    as_scalar,
    as_seed,
    as_text,
    shown,
)
from ssm_poison_lib.descent import Descent, Rule
from ssm_poison_lib.flow import gradient_flow
from ssm_poison_lib.flows import theorem_flows
from ssm_poison_lib.network_flow import network_flow
from ssm_poison_lib.networks import Network
from ssm_poison_lib.paper import (
    SETTINGS,
    THEOREM_SETTINGS,
    TRAINING_SETS,
    Experiment,
    NetworkExperiment,
    Setting,
    TheoremSetting,
    median_interval,
)
from ssm_poison_lib.sequences import TrainingSet
from ssm_poison_lib.ssm import DiagonalSSM
from ssm_poison_lib.studies import store
from ssm_poison_lib.studies.store import Job, Study

__all__ = [
    "CELLS",
    "LOSSES",
    "STUDY",
    "Cell",
    "CellResult",
    "Comparison",
    "Outcome",
    "Spread",
    "Trial",
    "adjust",
    "compare",
    "compare_cells",
    "convergence_study",
    "factors",
    "load_convergence",
    "study",
    "summarize",
    "table",
    "trained",
]

#: Training losses at which errors are compared; the authors stop at 0.01 (0.05 in one setting).
LOSSES = (0.05, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10)


def _as_seeds(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence | range):
        raise TypeError(f"{name} must be a sequence of seeds; got {shown(value)}")
    return tuple(as_seed(f"{name}[{k}]", seed) for k, seed in enumerate(value))


@dataclass(frozen=True)
class Cell:
    """One way of training, to be tried on many seeds and both training sets.

    Attributes:
        name: unique.
        setting: of the paper.
        near_tie: with the authors' near ties, or the draw as it is.
        method: "gradient flow", "gradient descent" (with the authors' normalized step) or "adam".
        learning_rate: equal for both training sets, 0 for the flow.
        horizon: epochs, or flow time; equal for both training sets.
        seeds: consecutive.

    Raises:
        ValueError, TypeError: for other values, which it names.
    """

    name: str
    setting: str
    near_tie: bool
    method: str
    learning_rate: float
    horizon: float | int
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        as_text("name", self.name)
        as_choice("setting", self.setting, SETTINGS)
        as_flag("near_tie", self.near_tie)
        as_choice("method", self.method, ("gradient flow", "gradient descent", "adam"))
        as_scalar("learning_rate", self.learning_rate, low=0.0)
        if self.method == "gradient flow":
            as_scalar("horizon", self.horizon, low=1.0)
        else:
            as_integer("horizon", self.horizon, low=1, high=MAX_COUNT)
        object.__setattr__(self, "seeds", _as_seeds("seeds", self.seeds))

    @property
    def grid(self) -> list[float]:
        """Where errors are kept: epochs (whole numbers) or flow times, even in their logarithm."""
        if self.method == "gradient flow":
            count = 2 * round(np.log10(self.horizon)) + 1
            return [float(f"{t:.6g}") for t in np.geomspace(1.0, self.horizon, count)]
        return sorted(
            {float(round(e)) for e in np.geomspace(self.horizon / 1000, self.horizon, 19)}
        )


@dataclass(frozen=True)
class Trial:
    """What is kept of one run of a cell. Errors are the setting's, in float64.

    Attributes:
        error: (T,) at the cell's grid.
        loss: (T,) training loss there.
        at_stop: the error where the authors' rule ends: their last logged epoch; the theorem's
            flow: their end time; other flows: the first time at the threshold; None if never, or
            without a rule.
        by_loss: the error when each of LOSSES is first reached, or None.
    """

    error: tuple[float, ...]
    loss: tuple[float, ...]
    at_stop: float | None
    by_loss: tuple[float | None, ...]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of errors over seeds, None without any.

    Attributes:
        n: number of seeds.
        median: of the errors.
        q25: lower quartile.
        q75: upper quartile.
    """

    n: int
    median: float | None
    q25: float | None
    q75: float | None


@dataclass(frozen=True)
class Outcome:
    """What came out of a cell on one training set. A value per seed is None if it never got there.

    Attributes:
        at_stop: (seeds,) the error where the authors' rule ends.
        at_end: (seeds,) the error at the horizon.
        loss_end: (seeds,) the training loss there.
        at_loss: (losses, seeds) the error where each loss is first reached.
        trained: number of runs whose loss reached 0.01.
        falling: number of runs whose loss at the end is below half of what it was at the grid point
            before.
        by_epoch: a spread for each point of the grid, over the seeds whose two runs (of both
            training sets) trained.
        by_loss: a spread for each loss, over the seeds whose two runs reached it.
    """

    at_stop: tuple[float | None, ...]
    at_end: tuple[float, ...]
    loss_end: tuple[float, ...]
    at_loss: tuple[tuple[float | None, ...], ...]
    trained: int
    falling: int
    by_epoch: tuple[Spread, ...]
    by_loss: tuple[Spread, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Outcome:
        """Return the outcome that a file holds.

        Args:
            values: its fields by name.
        """
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        given["at_loss"] = tuple(map(tuple, values["at_loss"]))
        for key in ("by_epoch", "by_loss"):
            given[key] = tuple(Spread(**spread) for spread in values[key])
        return cls(**given)


@dataclass(frozen=True)
class CellResult(Cell):
    """A cell and what came out of it; `result["with special"]` is the outcome on that training set.

    Attributes:
        losses: training losses at which errors are compared.
        outcomes: training set -> `Outcome`.
    """

    losses: tuple[float, ...]
    outcomes: Mapping[str, Outcome]

    def __getitem__(self, training_set: str) -> Outcome:
        return self.outcomes[as_choice("training_set", training_set, TRAINING_SETS)]

    def to_dict(self) -> dict[str, Any]:
        """Return what a file holds: the fields, the grid, and the outcomes by training set."""
        fields = dataclasses.asdict(self)
        outcomes, losses = fields.pop("outcomes"), fields.pop("losses")
        return {**fields, "grid": self.grid, "losses": losses, **outcomes}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CellResult:
        """Return the result that a file holds.

        Args:
            values: what `to_dict` returned.
        """
        fields = {field.name: values[field.name] for field in dataclasses.fields(Cell)}
        fields["seeds"] = tuple(fields["seeds"])
        outcomes = {which: Outcome.from_dict(values[which]) for which in TRAINING_SETS}
        return cls(**fields, losses=tuple(values["losses"]), outcomes=outcomes)


def _cells() -> dict[str, Cell]:
    """Return all cells of the study."""
    cells: list[Cell] = []

    def add(
        setting: str,
        label: str,
        tie: bool,
        method: str,
        rate: float,
        horizon: float | int,
        seeds: range,
    ) -> None:
        suffix = "near tie" if tie else "no near tie"
        name = f"{label}, {method}{f' {rate:g}' if rate else ''}, {suffix}"
        cells.append(Cell(name, setting, tie, method, rate, horizon, tuple(seeds)))

    for tie in (True, False):
        add("theorem_kappa7", "theorem kappa 7", tie, "gradient flow", 0.0, 1e14, range(242, 342))
        add("theorem_kappa9", "theorem kappa 9", tie, "gradient flow", 0.0, 1e16, range(342, 442))
        add(
            "theorem_kappa7",
            "theorem kappa 7",
            tie,
            "gradient descent",
            0.02,
            3_000_000,
            range(242, 342),
        )
        add("theorem_kappa7", "theorem kappa 7", tie, "adam", 0.01, 1_200_000, range(242, 342))
        for setting, label, rate, first in (
            ("standalone_ssm_poison__s0", "linear kappa 6", 0.01, 200),
            ("standalone_ssm_poison__s1", "linear kappa 10", 0.001, 1200),
        ):
            add(setting, label, tie, "gradient flow", 0.0, 1e9, range(first, first + 100))
            add(setting, label, tie, "gradient descent", rate, 400_000, range(first, first + 100))
            add(setting, label, tie, "adam", 0.001, 400_000, range(first, first + 100))
        for setting, label, epochs, rate, slow_epochs in (
            ("ssm_in_nn_poison__s0", "network kappa 6", 300_000, 0.001, 300_000),
            ("ssm_in_nn_poison__s1", "network kappa 10", 100_000, 0.0004, 4_000_000),
        ):
            seeds = range(4540, 4560)
            add(setting, label, tie, "gradient flow", 0.0, 1e14, seeds)
            add(setting, label, tie, "gradient descent", rate, slow_epochs, seeds)
            add(setting, label, tie, "adam", 0.01, epochs, seeds)
    add("ssm_in_nn_poison__s1", "network kappa 10", True, "adam", 5e-5, 200_000, range(4540, 4560))
    return {cell.name: cell for cell in cells}


#: All cells of the study, by name.
CELLS = _cells()

Moment = str | float


def _at_losses(
    losses: Float[np.ndarray, " T"], errors: Sequence[float]
) -> tuple[float | None, ...]:
    """Return the error at the first point at or below each of LOSSES, None where there is none."""
    found = [np.flatnonzero(losses <= mark) for mark in LOSSES]
    return tuple(errors[int(rows[0])] if len(rows) else None for rows in found)


def _theorem_flows(
    cell: Cell, setting: TheoremSetting, training_set: str, seeds: Sequence[int]
) -> list[Trial]:
    """Follow the flow of many seeds to each time of the grid."""
    starts = np.array([setting.start(seed).A for seed in seeds])
    n = 1 if training_set == "baseline" else 2
    beta = 0.0 if training_set == "baseline" else 2.0 / n
    target = setting.teacher.impulse_response(setting.extrapolation_length)
    errors, losses = [], []
    for time in cell.grid:
        ends = theorem_flows(starts, length=setting.length, alpha=2.0 / n, beta=beta, t_end=time)
        errors.append(ends.generalization_errors(target) / target.max())
        losses.append(ends.loss)
    stop = int(np.searchsorted(cell.grid, _AUTHORS_TIME[cell.setting][training_set] * 0.999))
    e, losses_by_seed = np.array(errors).T, np.array(losses).T
    return [
        Trial(
            tuple(row.tolist()),
            tuple(loss.tolist()),
            float(row[stop]),
            _at_losses(loss, row.tolist()),
        )
        for row, loss in zip(e, losses_by_seed, strict=True)
    ]


# A network's flow ends here at the latest: a few seconds. Runs that are not at rest then have a
# tiny loss or none that falls.
_FLOW_EVALUATIONS = 2_000_000
# The authors integrate the theorem's settings up to these times.
_AUTHORS_TIME = {
    "theorem_kappa7": {"baseline": 1e11, "with special": 1e4},
    "theorem_kappa9": {"baseline": 1e13, "with special": 1e7},
}


def _linear_flow(
    cell: Cell, setting: Experiment, data: TrainingSet, start: DiagonalSSM, seed: int
) -> Trial:
    """Follow the flow of A, B and C; at_stop: where the loss is first at the authors' threshold."""
    flow = gradient_flow(
        start, data, t_end=cell.horizon, train="ABC", loss_tol=0.0, rtol=1e-8, atol=1e-12
    )
    rows = np.minimum(np.searchsorted(flow.times, cell.grid), len(flow.times) - 1)
    marks = [np.flatnonzero(flow.loss <= mark) for mark in LOSSES]

    def error(row: int) -> float:
        return setting.error(flow.student(row), seed)

    by_loss = tuple(error(int(below[0])) if len(below) else None for below in marks)
    return Trial(
        error=tuple(error(int(row)) for row in rows),
        loss=tuple(float(flow.loss[row]) for row in rows),
        at_stop=by_loss[LOSSES.index(setting.stop_loss)],
        by_loss=by_loss,
    )


def _network_flow(
    cell: Cell, setting: Experiment, data: TrainingSet, start: Network, seed: int
) -> Trial:
    """Follow the flow of all weights of a network; "at_stop" as for `_linear_flow`."""
    flow = network_flow(
        start, data, times=cell.grid, log_at_loss=LOSSES, max_evaluations=_FLOW_EVALUATIONS
    )
    at_loss = [flow.network_at_loss(k) for k in range(len(LOSSES))]
    by_loss = tuple(
        None if network is None else setting.error(network, seed) for network in at_loss
    )
    return Trial(
        error=tuple(setting.error(flow.network(k), seed) for k in range(len(cell.grid))),
        loss=tuple(flow.loss.tolist()),
        at_stop=by_loss[LOSSES.index(setting.stop_loss)],
        by_loss=by_loss,
    )


def _descent(
    cell: Cell,
    start: Network | DiagonalSSM,
    data: Any,
    error: Callable[[Network], float],
    stop: tuple[float, int] | None,
) -> Trial:
    """Train by gradient descent or Adam.

    Args:
        stop: (threshold, epochs after it) of the authors' rule, None in the theorem.
    """
    linear = not isinstance(start, Network) or not start.mlp
    normalized = cell.method == "gradient descent"
    rule = Rule(
        learning_rate=cell.learning_rate,
        max_epochs=int(cell.horizon),
        optimizer=cell.method,
        train="A" if stop is None else "ABC",
        normalized=normalized,
        off_diagonal=normalized and linear and stop is not None,
    )
    grid = [int(epoch) for epoch in cell.grid]
    run = Descent(start, data, rule, log_at=grid, log_at_loss=LOSSES).advance()
    log = run.log
    row_of = {int(epoch): row for row, epoch in enumerate(log.epochs)}
    errors = {epoch: error(log.network(row)) for epoch, row in row_of.items()}
    at_stop = None
    if stop is not None:
        threshold, after = stop
        if threshold in run.reached:  # the same run again, as far as the authors' last logged epoch
            last = min(run.reached[threshold] + after, rule.max_epochs)
            at_stop = error(
                Descent(start, data, dataclasses.replace(rule, max_epochs=last)).advance().network
            )
    return Trial(
        error=tuple(errors[epoch] for epoch in grid),
        loss=tuple(float(log.loss[row_of[epoch]]) for epoch in grid),
        at_stop=at_stop,
        by_loss=tuple(
            errors[run.reached[mark]] if mark in run.reached else None for mark in LOSSES
        ),
    )


def study(cell: Cell, training_set: str, seeds: Sequence[int]) -> list[Trial]:
    """Train one cell on one training set from several seeds.

    Args:
        cell: how to train.
        training_set: "baseline" or "with special".
        seeds: any, also others than the cell's.

    Returns:
        What is kept of each run.
    """
    as_instance("cell", cell, Cell)
    as_choice("training_set", training_set, TRAINING_SETS)
    seeds = _as_seeds("seeds", seeds)
    setting = SETTINGS[cell.setting] if cell.near_tie else SETTINGS[cell.setting].without_near_tie()
    if isinstance(setting, TheoremSetting) and cell.method == "gradient flow":
        return _theorem_flows(cell, setting, training_set, seeds)
    return [_study_seed(cell, setting, training_set, seed) for seed in seeds]


def _study_seed(cell: Cell, setting: Setting, training_set: str, seed: int) -> Trial:
    """Train one cell from one seed."""
    start, data = setting.start(seed), setting.training_set(seed, training_set)
    if isinstance(setting, Experiment) and cell.method == "gradient flow":
        if isinstance(start, DiagonalSSM):
            return _linear_flow(cell, setting, data, start, seed)
        return _network_flow(cell, setting, data, start, seed)
    stop = None
    if isinstance(setting, Experiment):  # 99 before the end is the last epoch that the authors log
        stop = (setting.stop_loss, setting.epochs_after_stop[training_set] - 99)
    return _descent(cell, start, data, lambda network: setting.error(network, seed), stop)


def _block_size(cell: Cell) -> int:
    """Return how many seeds make one result file: what takes about half a minute at most."""
    if cell.setting in THEOREM_SETTINGS and cell.method == "gradient flow":
        return len(cell.seeds)
    return 2 if isinstance(SETTINGS[cell.setting], NetworkExperiment) else 10


def compute(cell: dict[str, Any], training_set: str) -> dict[str, Any]:
    """Do one job of the study: train a cell on one training set from a block of its seeds.

    Args:
        cell: the fields of a `Cell`, whose seeds are those of the block.
        training_set: "baseline" or "with special".

    Returns:
        "runs": what `study` returns, a mapping for each seed.
    """
    block = _cell(cell)
    return {"runs": study(block, training_set, block.seeds)}


def _cell(fields: dict[str, Any]) -> Cell:
    """Return a cell of its fields, as a file holds them."""
    return Cell(**{**fields, "seeds": tuple(fields["seeds"])})


def _jobs(cells: Sequence[Cell]) -> tuple[Job, ...]:
    """Return the jobs: one per cell, block of seeds and training set."""
    jobs = []
    for cell in cells:
        size = _block_size(cell)
        for first in range(0, len(cell.seeds), size):
            block = dataclasses.replace(cell, seeds=cell.seeds[first : first + size])
            for training_set in TRAINING_SETS:
                name = f"{cell.name.replace('/', '-')}/{training_set}-{block.seeds[0]}"
                arguments = {"cell": dataclasses.asdict(block), "training_set": training_set}
                jobs.append(Job(name, arguments))
    return tuple(jobs)


def _collect(done: Study, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of the study's file: the result of each cell."""
    cells: dict[str, Cell] = {}
    runs: dict[str, dict[str, list[Trial]]] = {}
    for job, result in zip(done.jobs, results, strict=True):
        block, training_set = _cell(job.arguments["cell"]), job.arguments["training_set"]
        if training_set == TRAINING_SETS[0]:
            before = cells[block.name].seeds if block.name in cells else ()
            cells[block.name] = dataclasses.replace(block, seeds=before + block.seeds)
        of_cell = runs.setdefault(block.name, {which: [] for which in TRAINING_SETS})
        of_cell[training_set] += [
            Trial(tuple(run["error"]), tuple(run["loss"]), run["at_stop"], tuple(run["by_loss"]))
            for run in result["runs"]
        ]
    return {"cells": {name: summarize(cell, runs[name]).to_dict() for name, cell in cells.items()}}


def convergence_study(cells: Sequence[Cell]) -> Study:
    """Return the study of some cells; STUDY is that of all CELLS.

    Args:
        cells: ways of training, each of another name.
    """
    if isinstance(cells, str) or not isinstance(cells, Sequence):
        raise TypeError(f"cells must be a sequence of Cell; got {shown(cells)}")
    checked = [as_instance(f"cells[{k}]", cell, Cell) for k, cell in enumerate(cells)]
    return Study(
        name="convergence",
        function=compute,
        jobs=_jobs(checked),
        collect=_collect,
        table=lambda content: table(_results(content)),
        scheduler="processes",
    )


@dataclass(frozen=True)
class Comparison:
    """Errors with special sequences against errors without, over the seeds for which both exist.

    Without a pair every number is NaN. Printed as "0.388 / 18.2, worse 100/100".

    Attributes:
        n: number of these pairs.
        worse: pairs in which the error is larger with special sequences.
        better: pairs in which it is smaller; the others are equal.
        baseline: median error without special sequences, over the n seeds.
        special: median error with them, over the same seeds.
        ratio: median of special / baseline.
        low: lower end of its 95 percent interval (`paper.median_interval`).
        high: upper end of it.
        p: two-sided exact sign test of "as often larger as smaller", equal pairs left out.
        adjusted: p for as many comparisons as were made together, see `adjust`.
    """

    n: int
    worse: int
    better: int
    baseline: float
    special: float
    ratio: float
    low: float
    high: float
    p: float
    adjusted: float

    def __str__(self) -> str:
        if not self.n:
            return "no pairs"
        return f"{self.baseline:.3g} / {self.special:.3g}, worse {self.worse}/{self.n}"


def compare(
    baseline: Sequence[Any] | np.ndarray, special: Sequence[Any] | np.ndarray
) -> Comparison:
    """Compare the errors of many seeds without and with special sequences, seed by seed.

    A seed with a None on either side is left out on both. `adjusted` is p: this is one comparison.

    Args:
        baseline: (seeds,) an error per seed, None where a run did not get there.
        special: (seeds,) the same with special sequences, in the same order.

    Raises:
        TypeError: unless both are sequences.
        ValueError: unless they have the same length and every error is None or a finite number
            above 0 (a run that diverged is not a missing one: decide what to do with it first).
    """
    for name, values in (("baseline", baseline), ("special", special)):
        if isinstance(values, str | bytes) or not isinstance(values, Sequence | np.ndarray):
            raise TypeError(f"{name} must be a sequence of errors; got {shown(values)}")
    if len(baseline) != len(special):
        raise ValueError(
            f"special must have an entry for each of the {len(baseline)} seeds of baseline;"
            f" got {len(special)}"
        )
    columns = [
        [
            None if v is None else as_scalar(f"{name}[{k}]", v, low=0.0, strict=True)
            for k, v in enumerate(values)
        ]
        for name, values in (("baseline", baseline), ("special", special))
    ]
    pairs = [(b, s) for b, s in zip(*columns, strict=True) if b is not None and s is not None]
    if not pairs:
        return Comparison(0, 0, 0, *[math.nan] * 7)
    worse, better = sum(s > b for b, s in pairs), sum(s < b for b, s in pairs)
    # The sign test: under "as often larger as smaller" the counts are binomial with probability
    # 1/2. (bdtr is its distribution function; importing scipy.stats for the same number would
    # double the time to import this module.)
    p = min(1.0, 2.0 * float(bdtr(min(worse, better), worse + better, 0.5)))
    without, with_special = (float(np.median(column)) for column in zip(*pairs, strict=True))
    ratio, low, high = median_interval([s / b for b, s in pairs])
    return Comparison(len(pairs), worse, better, without, with_special, ratio, low, high, p, p)


def adjust(comparisons: Mapping[Any, Comparison]) -> dict[Any, Comparison]:
    """Return comparisons that were made together, p adjusted for their number (Holm's method).

    If all below a level of `adjusted` are called real, the probability of even one wrong call is at
    most that level, however the comparisons depend on each other.

    Args:
        comparisons: any key -> `Comparison`; those without a pair do not count.

    Raises:
        TypeError: unless it is a mapping.
    """
    for key, c in as_mapping("comparisons", comparisons).items():
        as_instance(f"comparisons[{shown(key)}]", c, Comparison)
    order = sorted(
        (key for key, c in comparisons.items() if c.n), key=lambda key: comparisons[key].p
    )
    adjusted, largest = dict(comparisons), 0.0
    for place, key in enumerate(order):
        largest = max(largest, min(1.0, comparisons[key].p * (len(order) - place)))
        adjusted[key] = dataclasses.replace(comparisons[key], adjusted=largest)
    return adjusted


def _moments(cell: CellResult) -> tuple[Moment, ...]:
    return ("at_stop", "at_end", *cell.losses)


def _columns(cell: CellResult, moment: Moment) -> list[Sequence[float | None]]:
    """Return for each training set an error per seed at one moment, None if not reached."""
    if moment == "at_end":
        return [_only(cell[which].at_end, trained(cell, which)) for which in TRAINING_SETS]
    if moment == "at_stop":
        return [cell[which].at_stop for which in TRAINING_SETS]
    place = cell.losses.index(float(moment))
    return [cell[which].at_loss[place] for which in TRAINING_SETS]


def compare_cells(cells: Mapping[str, CellResult]) -> dict[tuple[str, Moment], Comparison]:
    """Return all comparisons of a study, adjusted for their number.

    Args:
        cells: name -> result, as `load_convergence` returns them.

    Returns:
        (cell's name, moment) -> `Comparison`. Moments: "at_stop", "at_end" (only runs that trained,
        see `trained`), and each loss of LOSSES, where each run first reaches it.
    """
    return adjust(
        {
            (name, moment): compare(*_columns(cell, moment))
            for name, cell in as_mapping("cells", cells).items()
            for moment in _moments(as_instance(f"cells[{shown(name)}]", cell, CellResult))
        }
    )


def factors(cell: CellResult, moment: Moment) -> list[float | None]:
    """Return per seed the error with special sequences over that without, None without a pair.

    Two cells with the same seeds are compared by `compare(factors(one, m), factors(other, m))`.

    Args:
        cell: the result of a cell.
        moment: as for `compare_cells`.

    Raises:
        ValueError: for another moment.
    """
    if moment not in _moments(as_instance("cell", cell, CellResult)):
        raise ValueError(f"moment must be one of {_moments(cell)}; got {shown(moment)}")
    pairs = zip(*_columns(cell, moment), strict=True)
    return [None if b is None or s is None else s / b for b, s in pairs]


def trained(cell: CellResult, training_set: str) -> list[bool]:
    """Return, per seed, whether the run trained: its loss came down to the authors' threshold.

    The theorem's settings have no threshold; there a run trained if its loss at the end is at most
    0.01 (runs that did not stay near 1). A run that never left its start has an error too, but says
    nothing about where training leads.

    Args:
        cell: the result of a cell.
        training_set: "baseline" or "with special".

    Raises:
        ValueError: for another training set.
    """
    outcome = as_instance("cell", cell, CellResult)[training_set]
    return _trained(cell, outcome.loss_end, outcome.at_stop)


def _trained(
    cell: Cell, loss_end: Sequence[float | None], at_stop: Sequence[float | None]
) -> list[bool]:
    if cell.setting in THEOREM_SETTINGS:
        return [loss is not None and loss <= 1e-2 for loss in loss_end]
    return [error is not None for error in at_stop]


def _only(errors: Sequence[float | None], good: Sequence[bool]) -> list[float | None]:
    """Return errors, None for the runs that did not train."""
    return [error if kept else None for error, kept in zip(errors, good, strict=True)]


def _spreads(rows: Sequence[Sequence[Sequence[float | None]]]) -> list[tuple[Spread, ...]]:
    """Return spreads per training set and row, over the seeds that have both values.

    Args:
        rows: (training sets, rows, seeds).
    """
    result: list[list[Spread]] = [[] for _ in rows]
    for pair in zip(*rows, strict=True):
        both = [values for values in zip(*pair, strict=True) if None not in values]
        for k, spreads in enumerate(result):
            values = np.array([value[k] for value in both], dtype=float)
            numbers = np.quantile(values, (0.5, 0.25, 0.75)) if both else (None, None, None)
            spreads.append(Spread(len(both), *map(_digits, numbers)))
    return [tuple(spreads) for spreads in result]


def _rounded(value: float, digits: int) -> float:
    """Return a number with few significant digits."""
    return float(f"{value:.{digits}g}")


def _digits(value: float | None) -> float | None:
    """Return a number with five significant digits, None as it is."""
    return None if value is None else _rounded(value, 5)


def summarize(cell: Cell, runs: Mapping[str, Sequence[Trial]]) -> CellResult:
    """Return the result of one cell: numbers with five digits (losses four), spreads over pairs.

    Args:
        cell: what was run.
        runs: training set -> a `Trial` for each of the cell's seeds.

    Raises:
        ValueError: for other training sets.
    """
    as_instance("cell", cell, Cell)
    if set(as_mapping("runs", runs)) != set(TRAINING_SETS):
        raise ValueError(
            f"runs must have the keys {', '.join(TRAINING_SETS)}; got {shown(list(runs))}"
        )
    places = range(len(LOSSES))
    losses = {which: np.array([run.loss for run in runs[which]]) for which in TRAINING_SETS}
    ends = {which: [_rounded(loss, 4) for loss in losses[which][:, -1]] for which in TRAINING_SETS}
    stops = {which: [_digits(run.at_stop) for run in runs[which]] for which in TRAINING_SETS}
    good = {which: _trained(cell, ends[which], stops[which]) for which in TRAINING_SETS}
    by_epoch = [
        [_only([run.error[k] for run in runs[which]], good[which]) for k in range(len(cell.grid))]
        for which in TRAINING_SETS
    ]
    by_loss = [[[run.by_loss[k] for run in runs[which]] for k in places] for which in TRAINING_SETS]
    spreads = zip(TRAINING_SETS, _spreads(by_epoch), _spreads(by_loss), strict=True)
    outcomes = {
        which: Outcome(
            at_stop=tuple(stops[which]),
            at_end=tuple(_rounded(run.error[-1], 5) for run in runs[which]),
            loss_end=tuple(ends[which]),
            at_loss=tuple(tuple(_digits(run.by_loss[k]) for run in runs[which]) for k in places),
            trained=sum(run.by_loss[LOSSES.index(1e-2)] is not None for run in runs[which]),
            falling=int((losses[which][:, -1] < 0.5 * losses[which][:, -2]).sum()),
            by_epoch=epochs,
            by_loss=marks,
        )
        for which, epochs, marks in spreads
    }
    return CellResult(
        **{f.name: getattr(cell, f.name) for f in dataclasses.fields(Cell)},
        losses=LOSSES,
        outcomes=outcomes,
    )


def table(cells: Mapping[str, CellResult]) -> str:
    """Return the printed table: a line for each cell, and how many comparisons that makes.

    Args:
        cells: name -> result, as `load_convergence` returns them.

    Returns:
        Medians without / with special sequences and the pairs with the larger error, at three
        moments.
    """
    found = compare_cells(cells)
    head = "medians without / with special sequences, pairs in which it is worse"
    lines = [f"{head} | at the authors' stop | at the end | at loss 1e-4"]
    for name in cells:
        lines.append(
            f"{name} | " + " | ".join(str(found[name, key]) for key in ("at_stop", "at_end", 1e-4))
        )
    made = [c for c in found.values() if c.n]
    lines.append(
        f"{len(made)} comparisons at {len(LOSSES) + 2} moments, two-sided sign tests:"
        f" {sum(c.p < 0.05 for c in made)} with p < 0.05,"
        f" {sum(c.adjusted < 0.05 for c in made)} of them after Holm's adjustment for their number"
    )
    return "\n".join(lines)


def _results(content: Mapping[str, Any]) -> dict[str, CellResult]:
    """Return the results that the study's file holds, by the cells' names."""
    return {name: CellResult.from_dict(values) for name, values in content["cells"].items()}


def load_convergence() -> tuple[dict[str, CellResult], dict[str, Any]]:
    """Return the stored study: (cell name -> result, provenance as of `studies.store.load`)."""
    content, provenance = store.load("convergence")
    return _results(content), provenance


#: All cells: what `python -m ssm_poison_lib study convergence` runs.
STUDY = convergence_study(tuple(CELLS.values()))
