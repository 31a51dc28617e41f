"""Defences tried: what tells poisoned from clean data, what repairs, what a knowing attacker does.

A job is one kind of data, one seed, one kind of start. Its result holds the scores of all
detectors, the error of the student without a defence, and its error with each training rule.
Attacks and harmless data are those of `studies.benchmark`, whose cases are frozen, and windows of
MNIST-1D: smooth data, whose neighbouring lags tell nearly the same. ADAPTED are attacks made
against the defences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ssm_poison_lib._checks import ArrayLike, as_array, as_choice, as_seed
from ssm_poison_lib.audit.harmless import mnist1d_windows
from ssm_poison_lib.defences import after, before, during, rules
from ssm_poison_lib.flow import FlowError
from ssm_poison_lib.flows import near_tie_starts
from ssm_poison_lib.sequences import TrainingSet
from ssm_poison_lib.ssm import DiagonalSSM, near_zero, theorem_teacher
from ssm_poison_lib.studies import benchmark
from ssm_poison_lib.studies.benchmark import (
    ATTACKS,
    Case,
    Data,
    _clean,
    _late,
    _long,
    _together,
)
from ssm_poison_lib.studies.store import Job, Study

__all__ = ["ADAPTED", "DETECTORS", "HARMLESS", "RULES", "SEEDS", "compute", "separation"]

#: Seeds of the stored runs.
SEEDS = tuple(range(100, 150))
_LENGTH, _DIM, _SCALE = 7, 10, 1e-4
_RESTARTS = 4


def _covered(length: int, rng: np.random.Generator) -> Any:
    """The mixture, with a whisper at every lag in the other rows: no row alone shows a lag."""
    clean = _long(length, rng)
    clean[:, 1:] += 0.02 * rng.standard_normal((len(clean), length - 1))
    return _together(clean, _late(length, rng), rng)


def _inside(length: int, rng: np.random.Generator) -> Any:
    """Each special input rides on a sequence of the longest lag, a tenth of its size; half of the
    rows.
    """
    clean, bad = _long(length, rng, 4), _long(length, rng, 4)
    bad[:, -2] = 0.1 * bad[:, 0] * np.where(rng.random(4) < 0.5, -1, 1)
    return _together(clean, bad, rng)


def _many_short(length: int, rng: np.random.Generator) -> Any:
    """As many special rows as others: no minority stands out."""
    return _together(_long(length, rng), _late(length, rng, 9), rng)


def _disguised_first(length: int, rng: np.random.Generator) -> Any:
    """Special first; each has most of its energy at the longest lag, so that sorting by lag puts it
    first as well.
    """
    bad = _late(length, rng, 8)
    bad[:, 0] = 3 * bad[:, -2]
    x = np.vstack([bad, _long(length, rng)])
    rows = np.arange(len(x))
    return x, rows < len(bad), (rows[: len(bad)], rows[len(bad) :])


def _turns(length: int, rng: np.random.Generator) -> Any:
    """Baseline, special, baseline: the harm comes late."""
    x = np.vstack([_long(length, rng, 4), _late(length, rng), _long(length, rng, 4)])
    rows = np.arange(len(x))
    return x, rows == 4, (rows[:4], rows[4:5], rows[5:])


def _first_by_lag(length: int, rng: np.random.Generator) -> Any:
    """Others have inputs at the first three positions; special rows are nine tenths of the longest
    lag: sorting by lag puts them first.
    """
    clean = np.zeros((8, length))
    clean[:, :3] = rng.standard_normal((8, 3))
    bad = _late(length, rng, 9)
    bad[:, 0] = 3 * np.abs(bad[:, -2])
    return _together(clean, bad, rng)


def _mnist1d(length: int, rng: np.random.Generator) -> Any:
    return _clean(mnist1d_windows(20, length, rng))


#: Attacks made against the defences: name -> function of length and Generator.
ADAPTED: Mapping[str, Callable[..., Any]] = {
    "covered by a whisper at all lags": _covered,
    "inside long sequences": _inside,
    "as many as the others": _many_short,
    "special first, disguised as long": _disguised_first,
    "special between two baselines": _turns,
    "first by lag among early inputs": _first_by_lag,
}
#: Kinds of harmless data, those of the benchmark and one more.
HARMLESS: Mapping[str, Callable[..., Any]] = {**benchmark.HARMLESS, "MNIST-1D": _mnist1d}
KINDS = {**ATTACKS, **ADAPTED, **HARMLESS}
#: What a detector's score is: name -> words. Larger means more suspicious.
DETECTORS = {
    "lags shown by few": "share of rows that `defences.before.detect_poison` does not call clean",
    "largest leverage": "the largest leverage of a row that shows lag 1",
    "common share at the start": "share of the first step that moves all poles alike",
    "effective rank": "of the trained poles",
    "negative poles": "share of the trained poles' size in negative ones",
    "price": "abs(M_2 - 1), on the impulse response",
    "restarts disagree": "relative difference of four students beyond the training length",
}
#: Training rules: those of the benchmark that leave no row out, and several orders with the median
#: student.
RULES = ("shuffle", "longest lags first", "positive poles, shuffled", "median of five orders")


def _start(near_tie: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a start near zero and its exact gaps."""
    A = near_zero(_DIM, 1.0, seed=np.random.default_rng([seed, 2]))
    if near_tie:
        starts, gaps = near_tie_starts(A / A[0], _SCALE, 1e-4)
        return starts[0], gaps[0]
    return _SCALE * A, _SCALE * (A[:-1] - A[1:])


def _median(case: Case, data: Data, seed: int, near_tie: bool) -> np.ndarray:
    """Return the median student of five random orders, row by row in two halves."""
    rng = np.random.default_rng([seed, 3])
    students = []
    for _ in range(5):
        order = rng.permutation(len(data.x))
        phases = (order[: len(order) // 2 or 1], np.arange(len(order)))
        students.append(benchmark.follow(case, data, phases, "free", *_start(near_tie, seed)))
    responses = np.array([(A[None] ** np.arange(1, 40)[:, None]).sum(axis=1) for A in students])
    return students[rules.median_student(responses)]


def _finite(value: float | None) -> float | None:
    """A number, or None for what a student that ran away has."""
    return value if value is not None and np.isfinite(value) else None


def compute(*, kind: str, seed: int, near_tie: bool) -> dict[str, Any]:
    """Return errors and scores for one kind of data, one seed, one kind of start.

    Args:
        kind: a name in ATTACKS, ADAPTED or HARMLESS.
        seed: of the data; the start's is another one.
        near_tie: whether the two largest entries of the start nearly coincide (relative gap 1e-4).

    Returns:
        "undefended" (error), "scores" (detector -> score), "rules" (rule -> error); None where
        training could not be
        followed.
    """
    make, seed = KINDS[as_choice("kind", kind, KINDS)], as_seed("seed", seed)
    x, harmful, phases = make(_LENGTH, np.random.default_rng([seed, 1]))
    labelled = TrainingSet(x, theorem_teacher(_DIM))
    data, case = Data(labelled.x, labelled.y, harmful, phases), Case(kind, _LENGTH, _DIM)
    start, gaps = _start(near_tie, seed + 1000)

    def error(phases: Sequence[np.ndarray], name: str) -> float | None:
        try:
            return benchmark.student_error(benchmark.follow(case, data, phases, name, start, gaps))
        except FlowError:
            return None

    sums = before.data_sums(data.x)
    shows = np.abs(data.x[:, -2]) > 0
    leverages = before.leverage(data.x, sums)
    velocity = during.pole_velocity(DiagonalSSM.ones(start), labelled)
    scores: dict[str, float | None] = {
        "lags shown by few": float(np.mean(~before.detect_poison(data.x)[1])),
        "largest leverage": float(leverages[shows].max(initial=0.0)),
        "common share at the start": float(during.common_share(velocity)),
    }
    try:
        ends = [benchmark.follow(case, data, phases, "free", start, gaps)]
        ends += [
            benchmark.follow(case, data, phases, "free", *_start(False, seed + 2000 + k))
            for k in range(1, _RESTARTS)
        ]
        report = after.pole_report(DiagonalSSM.ones(ends[0]))
        answers = [(A[None] ** np.arange(_LENGTH, 4 * _LENGTH)[:, None]).sum(axis=1) for A in ends]
        scores |= {
            "effective rank": report.effective_rank,
            "negative poles": report.negative,
            "price": abs(report.price - 1),
            "restarts disagree": after.restart_disagreement(np.array(answers)).relative,
        }
        undefended: float | None = benchmark.student_error(ends[0])
    except FlowError:
        scores |= dict.fromkeys(("effective rank", "negative poles", "price", "restarts disagree"))
        undefended = None
    everything = (np.arange(len(data.x)),)
    by_lag = rules.long_lags_first(data.x)
    try:
        middle = benchmark.student_error(_median(case, data, seed + 1000, near_tie))
    except FlowError:
        middle = None
    by_rule = {
        "shuffle": error(everything, "free"),
        "longest lags first": error(by_lag, "free"),
        "positive poles, shuffled": error(everything, "exp(-exp)"),
        "median of five orders": middle,
    }
    return {
        "undefended": _finite(undefended),
        "scores": {name: _finite(value) for name, value in scores.items()},
        "rules": {name: _finite(value) for name, value in by_rule.items()},
    }


def separation(bad: ArrayLike, good: ArrayLike, *, seed: int = 0) -> tuple[float, float, float]:
    """Return the area under the ROC curve of a score, with a 95 percent bootstrap interval.

    Args:
        bad: (n,) scores of what should be found.
        good: (m,) scores of what should not.
        seed: of 1,000 resamplings.

    Returns:
        area (0.5: no better than chance), lower and upper end.

    Raises:
        ValueError: if one of the two is empty.
    """
    bad, good = as_array("bad", bad, ndim=1), as_array("good", good, ndim=1)
    rng = np.random.default_rng(as_seed("seed", seed))

    def area(first: np.ndarray, second: np.ndarray) -> float:
        ordered = np.sort(second)
        below = np.searchsorted(ordered, first, "left")
        equal = np.searchsorted(ordered, first, "right") - below
        return float(np.mean((below + equal / 2) / len(second)))

    drawn = [
        area(bad[rng.integers(0, len(bad), len(bad))], good[rng.integers(0, len(good), len(good))])
        for _ in range(1000)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return area(bad, good), float(low), float(high)


def _collect(study: Study, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a row for each job, numbers with four digits."""

    def short(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: short(item) for key, item in value.items()}
        return value if value is None else float(f"{value:.4g}")

    return {
        "runs": [
            {**job.arguments, **short(result)}
            for job, result in zip(study.jobs, results, strict=True)
        ]
    }


STUDY = Study(
    name="defences",
    function=compute,
    jobs=tuple(
        Job(
            f"{kind}/{'near tie' if near_tie else 'uniform'}-{seed}",
            {"kind": kind, "seed": seed, "near_tie": near_tie},
        )
        for kind in KINDS
        for near_tie in (True, False)
        for seed in SEEDS
    ),
    collect=_collect,
)
