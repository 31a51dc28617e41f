"""Is it poison, or unfinished training? Every with/without comparison far past the authors' stop, and with its controls.

A cell is one way of training (setting, near tie or not, gradient flow, gradient descent or Adam, learning rate) over many
consecutive seeds, on the baseline set and on the set with special sequences, with *equal* step size and *equal* epochs. Errors
are kept by epoch, at equal training loss, and where the authors' stopping rule would have ended.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ssm_poison_lib import results
from ssm_poison_lib._checks import as_choice, as_workers
from ssm_poison_lib.descent import Descent, Rule
from ssm_poison_lib.flow import gradient_flow
from ssm_poison_lib.flows import theorem_flows
from ssm_poison_lib.metrics import extrapolation_loss
from ssm_poison_lib.network_flow import network_flow
from ssm_poison_lib.networks import Network, NetworkTrainingSet, relative_error
from ssm_poison_lib.paper import (
    EXPERIMENTS,
    THEOREM_SETTINGS,
    TRAINING_SETS,
    Experiment,
    TheoremSetting,
    median_interval,
    theorem_training_set,
)
from ssm_poison_lib.sequences import TrainingSet
from ssm_poison_lib.ssm import DiagonalSSM

__all__ = [
    "CELLS",
    "LOSSES",
    "Cell",
    "at_end",
    "compare",
    "converge",
    "load_convergence",
    "study",
    "summarize",
    "table",
    "trained",
]

#: Training losses at which errors are compared; the authors stop at 0.01 (0.05 in one setting).
LOSSES = (0.05, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10)


@dataclass(frozen=True)
class Cell:
    """One way of training, to be tried on many seeds and both training sets.

    name: unique. setting: of the paper. near_tie: with the authors' near ties, or the draw as it is. method: "gradient
    flow", "gradient descent" (with the authors' normalized step) or "adam". learning_rate: equal for both training sets, 0
    for the flow. horizon: epochs, or flow time; equal for both. seeds: consecutive.
    """

    name: str
    setting: str
    near_tie: bool
    method: str
    learning_rate: float
    horizon: float | int
    seeds: tuple[int, ...]

    @property
    def grid(self) -> list[float]:
        """Epochs (whole numbers) or flow times, evenly spaced in their logarithm up to the horizon, at which errors are kept."""
        if self.method == "gradient flow":
            return [
                float(f"{t:.6g}")
                for t in np.geomspace(1.0, self.horizon, 2 * round(np.log10(self.horizon)) + 1)
            ]
        return sorted({float(round(e)) for e in np.geomspace(self.horizon / 1000, self.horizon, 19)})


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
        add("theorem_kappa7", "theorem kappa 7", tie, "gradient descent", 0.02, 3_000_000, range(242, 342))
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

Study = dict[str, Any]


def _at_losses(losses: Float[np.ndarray, " T"], errors: Sequence[float]) -> list[float | None]:
    """Return the error at the first point whose loss is at or below each of LOSSES, None where it never is."""
    found = [np.flatnonzero(losses <= mark) for mark in LOSSES]
    return [errors[int(rows[0])] if len(rows) else None for rows in found]


def _theorem_flows(
    cell: Cell, setting: TheoremSetting, training_set: str, seeds: Sequence[int]
) -> list[Study]:
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
        {
            "error": row.tolist(),
            "loss": loss.tolist(),
            "at_stop": float(row[stop]),
            "by_loss": _at_losses(loss, row.tolist()),
        }
        for row, loss in zip(e, losses_by_seed, strict=True)
    ]


# A network's flow ends here at the latest: a few seconds. Runs that are not at rest then have a tiny loss or none that falls.
_FLOW_EVALUATIONS = 2_000_000
# The authors integrate the theorem's settings up to these times.
_AUTHORS_TIME = {
    "theorem_kappa7": {"baseline": 1e11, "with special": 1e4},
    "theorem_kappa9": {"baseline": 1e13, "with special": 1e7},
}


def _linear_flow(cell: Cell, setting: Experiment, data: TrainingSet, start: DiagonalSSM) -> Study:
    """Follow the flow of A, B and C; "at_stop" is the first time with a loss at or below the authors' threshold."""
    flow = gradient_flow(start, data, t_end=cell.horizon, train="ABC", loss_tol=0.0, rtol=1e-8, atol=1e-12)
    rows = np.minimum(np.searchsorted(flow.times, cell.grid), len(flow.times) - 1)
    marks = [np.flatnonzero(flow.loss <= mark) for mark in LOSSES]
    teacher, length = setting.teacher.ssm, setting.extrapolation_length

    def error(row: int) -> float:
        return extrapolation_loss(flow.student(row), teacher, length)

    by_loss = [error(int(rows_below[0])) if len(rows_below) else None for rows_below in marks]
    return {
        "error": [error(int(row)) for row in rows],
        "loss": [float(flow.loss[row]) for row in rows],
        "at_stop": by_loss[LOSSES.index(setting.stop_loss)],
        "by_loss": by_loss,
    }


def _network_flow(
    cell: Cell, setting: Experiment, data: NetworkTrainingSet, start: Network, seed: int
) -> Study:
    """Follow the flow of all weights of a network; "at_stop" as for `_linear_flow`."""
    flow = network_flow(start, data, times=cell.grid, log_at_loss=LOSSES, max_evaluations=_FLOW_EVALUATIONS)
    teacher, x = setting.teacher, setting.test_inputs(seed)
    at_loss = [flow.network_at_loss(k) for k in range(len(LOSSES))]
    by_loss = [None if network is None else relative_error(network, teacher, x) for network in at_loss]
    return {
        "error": [relative_error(flow.network(k), teacher, x) for k in range(len(cell.grid))],
        "loss": flow.loss.tolist(),
        "at_stop": by_loss[LOSSES.index(setting.stop_loss)],
        "by_loss": by_loss,
    }


def _descent(
    cell: Cell,
    start: Network | DiagonalSSM,
    data: Any,
    error: Callable[[Network], float],
    stop: tuple[float, int] | None,
) -> Study:
    """Train by gradient descent or Adam; stop: (threshold, epochs after it) of the authors' rule, None in the theorem."""
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
    return {
        "error": [errors[epoch] for epoch in grid],
        "loss": [float(log.loss[row_of[epoch]]) for epoch in grid],
        "at_stop": at_stop,
        "by_loss": [errors[run.reached[mark]] if mark in run.reached else None for mark in LOSSES],
    }


def study(cell: Cell, training_set: str, seeds: Sequence[int]) -> list[Study]:
    """Train one cell on one training set from several seeds; return a record per seed.

    Each record holds "error" and "loss" at the cell's grid, "by_loss" (the error when each of LOSSES is first reached, or
    None) and "at_stop" (where the authors' rule ends: their last logged epoch; the theorem's flow: their end time; other
    flows: the first time at the threshold; None if never, or without a rule).

    Errors are the authors' measure: extrapolation loss, or relative L2 error for a network. Computed in float64.
    """
    as_choice("training_set", training_set, TRAINING_SETS)
    if cell.setting in THEOREM_SETTINGS:
        theorem = THEOREM_SETTINGS[cell.setting]
        theorem = theorem if cell.near_tie else dataclasses.replace(theorem, tie_gap=None)
        if cell.method == "gradient flow":
            return _theorem_flows(cell, theorem, training_set, seeds)
        length = theorem.extrapolation_length

        def theorem_error(network: Network) -> float:
            return extrapolation_loss(network.ssm, theorem.teacher, length)

        data = theorem_training_set(theorem, training_set)
        return [_descent(cell, theorem.start(seed), data, theorem_error, None) for seed in seeds]
    setting = EXPERIMENTS[cell.setting]
    return [_study_seed(cell, setting, training_set, seed) for seed in seeds]


def _study_seed(cell: Cell, setting: Experiment, training_set: str, seed: int) -> Study:
    """Train one experiment cell from one seed."""
    start, data = setting.start(seed, near_tie=cell.near_tie), setting.training_set(seed, training_set)
    if cell.method == "gradient flow":
        if isinstance(data, TrainingSet):
            return _linear_flow(cell, setting, data, start.ssm)
        return _network_flow(cell, setting, data, start, seed)
    teacher, x = setting.teacher, setting.test_inputs(seed) if setting.is_network else None

    def error(network: Network) -> float:
        return setting.error(network, seed) if x is None else relative_error(network, teacher, x)

    after = setting.epochs_after_stop[training_set] - 99  # the last epoch that the authors log
    return _descent(cell, start, data, error, (setting.stop_loss, after))


def _block_size(cell: Cell) -> int:
    """Return how many seeds make one result file: what takes about half a minute at most."""
    if cell.setting in THEOREM_SETTINGS and cell.method == "gradient flow":
        return len(cell.seeds)
    return (
        2 if EXPERIMENTS.get(cell.setting, None) is not None and EXPERIMENTS[cell.setting].is_network else 10
    )


def _where(cell: Cell, training_set: str, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Return what a result file says of itself."""
    return {"cell": cell.name, "training_set": training_set, "seeds": list(seeds)}


def _block(cell: Cell, training_set: str, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Return the runs of one result file (in a process of its own)."""
    return {"runs": study(cell, training_set, seeds)}


def converge(
    cells: Sequence[Cell] = tuple(CELLS.values()),
    *,
    folder: str | os.PathLike[str] = "results",
    processes: int | None = None,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Do the whole study, or what of it is not on disk yet, and return its summary (see `summarize`).

    folder: results lie in its folder "convergence", one file per cell, training set and block of seeds. processes: how
    many at once, by default one per core; 1 stays in this process.
    """
    processes = as_workers("processes", processes)
    base = Path(folder) / "convergence"
    blocks: list[tuple[Path, Cell, str, tuple[int, ...]]] = []
    for cell in cells:
        size = _block_size(cell)
        where = base / cell.name.replace(",", "").replace(" ", "-")
        for first in range(0, len(cell.seeds), size):
            seeds = cell.seeds[first : first + size]
            for training_set in TRAINING_SETS:
                path = where / f"{training_set.replace(' ', '-')}-{seeds[0]}.json"
                blocks.append((path, cell, training_set, seeds))
    pool = None if processes == 1 else ProcessPoolExecutor(processes, mp_context=get_context("spawn"))

    def job(cell: Cell, training_set: str, seeds: tuple[int, ...]) -> Callable[[], dict[str, Any]]:
        if pool is None:
            return lambda: _block(cell, training_set, seeds)
        return lambda: pool.submit(_block, cell, training_set, seeds).result()

    try:
        jobs = [
            (path, _where(cell, training_set, seeds), job(cell, training_set, seeds))
            for path, cell, training_set, seeds in blocks
        ]
        results.run_all(jobs, threads=processes, progress=progress, report=report)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    runs: dict[str, dict[str, list[Study]]] = {cell.name: {w: [] for w in TRAINING_SETS} for cell in cells}
    for path, cell, training_set, _ in blocks:
        runs[cell.name][training_set] += results.read_json(path)["runs"]
    return {cell.name: summarize(cell, runs[cell.name]) for cell in cells}


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return n, median, its 95 percent interval, and quartiles of the values that exist."""
    known = [value for value in values if value is not None]
    if not known:
        return {"n": 0, "median": None, "low": None, "high": None, "q25": None, "q75": None}
    median, low, high = median_interval(known)
    q25, q75 = (float(q) for q in np.quantile(known, (0.25, 0.75)))
    numbers = {"median": median, "low": low, "high": high, "q25": q25, "q75": q75}
    return {"n": len(known), **{key: float(f"{value:.5g}") for key, value in numbers.items()}}


def _pairs(baseline: Sequence[float | None], special: Sequence[float | None]) -> dict[str, int]:
    """Return in how many of the pairs that exist the error is smaller with special sequences ("reversed")."""
    both = [(b, s) for b, s in zip(baseline, special, strict=True) if b is not None and s is not None]
    return {"n": len(both), "reversed": sum(s < b for b, s in both)}


def summarize(cell: Cell, runs: dict[str, list[Study]]) -> dict[str, Any]:
    """Return the summary of one cell from the records of its seeds, per training set.

    Keys: the cell's fields and "grid"; per training set "at_stop" and "at_end" (a value per seed), "loss_end", "spread_at_stop",
    "spread_at_end" (n, median, low, high = 95 percent interval of the median, quartiles), "by_epoch" (a spread and the median
    loss per grid point), "by_loss" (a spread per loss of LOSSES), "trained" (runs whose loss reached 0.01), "falling" (runs whose
    loss at the end is below half of what it was at the grid point before); "reversed": pairs and reversed pairs
    "at_stop", "at_end", "by_epoch", "by_loss". All but "at_stop" and "by_loss" are over all seeds, trained or not; see `at_end`.
    """
    summary: dict[str, Any] = {**dataclasses.asdict(cell), "grid": cell.grid, "losses": list(LOSSES)}
    columns: dict[str, dict[str, list[Any]]] = {}
    for which in TRAINING_SETS:
        rows = runs[which]
        column = {
            "at_stop": [row["at_stop"] for row in rows],
            "at_end": [row["error"][-1] for row in rows],
            "by_epoch": [[row["error"][k] for row in rows] for k in range(len(cell.grid))],
            "by_loss": [[row["by_loss"][k] for row in rows] for k in range(len(LOSSES))],
        }
        columns[which] = column
        losses = np.array([row["loss"] for row in rows])
        by_epoch = [_spread(values) for values in column["by_epoch"]]
        for k, spread in enumerate(by_epoch):
            spread["loss"] = float(f"{np.median(losses[:, k]):.4g}")
        summary[which] = {
            "at_stop": [None if v is None else float(f"{v:.5g}") for v in column["at_stop"]],
            "at_end": [float(f"{v:.5g}") for v in column["at_end"]],
            "loss_end": [float(f"{v:.4g}") for v in losses[:, -1]],
            "spread_at_stop": _spread(column["at_stop"]),
            "spread_at_end": _spread(column["at_end"]),
            "by_epoch": by_epoch,
            "by_loss": [_spread(values) for values in column["by_loss"]],
            "trained": sum(row["by_loss"][LOSSES.index(1e-2)] is not None for row in rows),
            "falling": int((losses[:, -1] < 0.5 * losses[:, -2]).sum()),
        }
    baseline, special = columns["baseline"], columns["with special"]
    summary["reversed"] = {
        "at_stop": _pairs(baseline["at_stop"], special["at_stop"]),
        "at_end": _pairs(baseline["at_end"], special["at_end"]),
        "by_epoch": [
            _pairs(*values) for values in zip(baseline["by_epoch"], special["by_epoch"], strict=True)
        ],
        "by_loss": [_pairs(*values) for values in zip(baseline["by_loss"], special["by_loss"], strict=True)],
    }
    return summary


def trained(cell: dict[str, Any], training_set: str) -> list[bool]:
    """Return, per seed of a cell, whether the run trained: its loss came down to the authors' threshold.

    cell: a summary as `summarize` returns it. training_set: "baseline" or "with special". The theorem's settings have no
    threshold; there a run trained if its loss at the end is at most 0.01 (runs that did not stay near 1).

    Raises ValueError for another training set.
    """
    as_choice("training_set", training_set, TRAINING_SETS)
    column = cell[training_set]
    if cell["setting"] in THEOREM_SETTINGS:
        return [loss <= 1e-2 for loss in column["loss_end"]]
    return [error is not None for error in column["at_stop"]]


def at_end(cell: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Return the spreads of the errors at the end of a cell, and its pairs, of runs that trained (see `trained`).

    cell: a summary as `summarize` returns it. A run that never left its start has an error too, but says nothing about
    where training leads: counted in, each such baseline run would look like a seed that special sequences improve.

    Returns (training set -> spread with the keys n, median, low, high, q25, q75; {"n": pairs, "reversed": those with the
    smaller error with special sequences}).
    """
    columns = [
        [error if good else None for error, good in zip(cell[w]["at_end"], trained(cell, w), strict=True)]
        for w in TRAINING_SETS
    ]
    return {w: _spread(column) for w, column in zip(TRAINING_SETS, columns, strict=True)}, _pairs(*columns)


def compare(cell: dict[str, Any], moment: str | float) -> str:
    """Return "median without / median with special sequences (pairs reversed/pairs)" of one cell at one moment.

    cell: a summary as `summarize` returns it. moment: "at_stop", "at_end" (of the runs that trained, see `at_end`), or a
    loss of LOSSES: where each run first reached it. A pair is a seed whose two runs both got there; it is reversed if the
    error is smaller with special sequences.

    Raises ValueError for another moment.
    """
    if moment == "at_end":
        by_set, pair = at_end(cell)
        spreads = list(by_set.values())
    elif isinstance(moment, str):
        as_choice("moment", moment, ("at_end", "at_stop"))
        spreads, pair = (
            [cell[which]["spread_at_stop"] for which in TRAINING_SETS],
            cell["reversed"]["at_stop"],
        )
    else:
        if moment not in cell["losses"]:
            raise ValueError(f"moment must be at_stop, at_end or one of {cell['losses']}; got {moment!r}")
        mark = cell["losses"].index(moment)
        spreads, pair = (
            [cell[which]["by_loss"][mark] for which in TRAINING_SETS],
            cell["reversed"]["by_loss"][mark],
        )
    medians = " / ".join("-" if s["median"] is None else f"{s['median']:.3g}" for s in spreads)
    return f"{medians} ({pair['reversed']}/{pair['n']})"


def table(cells: dict[str, Any]) -> str:
    """Return the printed table: medians without / with special sequences and reversed pairs, by cell."""
    head = "medians without / with special sequences (pairs reversed)"
    lines = [f"{head:<62} at the authors' stop | at the end | at loss 1e-4"]
    for name, cell in cells.items():
        lines.append(f"{name:<62} " + " | ".join(compare(cell, key) for key in ("at_stop", "at_end", 1e-4)))
    return "\n".join(lines)


def load_convergence() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (cell name -> summary as `summarize` describes it, provenance) of the stored study."""
    content = results.read_json(results.data_path("convergence"))
    cells = content.pop("cells")
    return cells, content
