"""A frozen benchmark of defences: 24 cases, half of them harmless, half of the seeds the caller's.

A *case* is training data in an order, some of it harmful. A *defence* is one function of the data:
which rows it takes for clean, in which order to train on the rest, and how the poles are made. The
benchmark trains a student as it says and compares with the same student without a defence. Seeds of
the data and of the start are kept apart.

All students are the theorem's: d real poles, B and C ones, trained by gradient flow on the last
output.
"""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ssm_poison_lib._checks import ArrayLike, as_choice, as_seed, as_text, shown
from ssm_poison_lib.defences import before, rules
from ssm_poison_lib.flow import FlowError, gradient_flow
from ssm_poison_lib.flows import many_flows, near_tie_starts
from ssm_poison_lib.parametrizations import PARAMETRIZATIONS
from ssm_poison_lib.sequences import TrainingSet, fixed_sequences
from ssm_poison_lib.ssm import near_zero, theorem_teacher
from ssm_poison_lib.studies.store import Job, Study

__all__ = [
    "ATTACKS",
    "BOOK_SEEDS",
    "CASES",
    "DEFENCES",
    "HARMLESS",
    "Case",
    "Data",
    "Plan",
    "Row",
    "compute",
    "follow",
    "score",
    "student_error",
]

#: Seeds of the stored table; a caller brings as many others.
BOOK_SEEDS = (0, 1, 2, 3, 4)
_SCALE, _GAP = (
    1e-4,
    1e-4,
)  # of the start: harmless data generalize at every length, a mixture fails at every length
# Flow time of a phase, by whether it shows one lag alone: then the start is left slowly, and a
# limit is reached. With several lags, what does not matter to the error may die out like a power of
# the time.
_T_END = {"free": {True: 1e30, False: 1e8}, "positive": {True: 1e60, False: 1e10}}
_LAGS = 20  # lags 1 .. 19 are compared


@dataclass(frozen=True, eq=False)
class Data:
    """Training data of a case.

    Attributes:
        x: (n, kappa) sequences, in the order in which they are trained.
        y: (n,) labels, all of them the teacher's.
        harmful: (n,) the rows that were added to do harm; all False in a harmless case.
        phases: rows of each phase of training without a defence; one phase: all together.
    """

    x: Float[np.ndarray, "n kappa"]
    y: Float[np.ndarray, " n"]
    harmful: Bool[np.ndarray, " n"]
    phases: tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a defence decides.

    Attributes:
        is_clean: (n,) truth values, True = clean, in the order of the rows; the others are left
            out.
        phases: rows of each phase of training; None: all clean rows together if `shuffle`, else the
            order given.
        parametrization: how poles are made, a name in `parametrizations.PARAMETRIZATIONS`.
        shuffle: train on all rows together, whatever order the data came in.
    """

    is_clean: ArrayLike
    phases: Sequence[ArrayLike] | None = None
    parametrization: str = "free"
    shuffle: bool = False


#: A defence: sequences (n, kappa), labels (n,) and a seed for its own choices -> a Plan, or its
#: mask alone.
Defence = Callable[[np.ndarray, np.ndarray, int], "Plan | ArrayLike"]


@dataclass(frozen=True)
class Case:
    """One of the benchmark's cases.

    Attributes:
        kind: a name in ATTACKS or HARMLESS.
        length: kappa.
        state_dim: d of the student.
    """

    kind: str
    length: int
    state_dim: int

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{self.kind}, kappa {self.length}"

    @property
    def harmless(self) -> bool:
        """Whether nothing in it was added to do harm."""
        return self.kind in HARMLESS

    def data(self, seed: int) -> Data:
        """Return the case's training data.

        Args:
            seed: of the data, 0 to 2^32 - 1.
        """
        rng = np.random.default_rng([as_seed("seed", seed), 1])
        make = (HARMLESS if self.harmless else ATTACKS)[self.kind]
        x, harmful, phases = make(self.length, rng)
        data = TrainingSet(x, theorem_teacher(self.state_dim))
        return Data(data.x, data.y, harmful, phases)

    def start(self, seed: int) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " gaps"]]:
        """Return the student's start and its exact gaps: scale 1e-4, the two largest entries 1e-4
        apart, relatively.

        Args:
            seed: of the start; that of the data is another one.
        """
        shape = near_zero(
            self.state_dim, 1.0, seed=np.random.default_rng([as_seed("seed", seed), 2])
        )
        A, gaps = near_tie_starts(shape / shape[0], _SCALE, _GAP)
        return A[0], gaps[0]


def _long(length: int, rng: np.random.Generator, count: int = 8) -> np.ndarray:
    """Sequences with one input, at the first position: the longest lag."""
    return rng.uniform(0.5, 1.5, (count, 1)) * fixed_sequences(length, (1,))


def _late(
    length: int, rng: np.random.Generator, count: int = 1, lag: int = 1, size: float = 1.0
) -> np.ndarray:
    """Sequences with one input `lag` steps before the end."""
    return size * rng.uniform(0.5, 1.5, (count, 1)) * fixed_sequences(length, (length - lag,))


def _together(clean: np.ndarray, bad: np.ndarray, rng: np.random.Generator) -> Any:
    """Harmful rows among the others."""
    order = rng.permutation(len(clean) + len(bad))
    return np.vstack([clean, bad])[order], (order >= len(clean)), (np.arange(len(order)),)


def _bad_first(clean: np.ndarray, bad: np.ndarray) -> Any:
    """Harmful rows first, then the others."""
    rows = np.arange(len(clean) + len(bad))
    return np.vstack([bad, clean]), rows < len(bad), (rows[: len(bad)], rows[len(bad) :])


def _mixture(length: int, rng: np.random.Generator) -> Any:
    return _together(_long(length, rng), _late(length, rng), rng)


def _weak_mixture(length: int, rng: np.random.Generator) -> Any:
    return _together(_long(length, rng), _late(length, rng, size=0.01), rng)


def _two_lags(length: int, rng: np.random.Generator) -> Any:
    bad = np.vstack([_late(length, rng, lag=1), _late(length, rng, lag=3)])
    return _together(_long(length, rng), bad, rng)


def _split(length: int, rng: np.random.Generator) -> Any:
    return _together(_long(length, rng), _late(length, rng, count=8, size=8**-0.5), rng)


def _order(length: int, rng: np.random.Generator) -> Any:
    return _bad_first(_long(length, rng), _late(length, rng))


def _hidden_order(length: int, rng: np.random.Generator) -> Any:
    """Special first; each special sequence has a twentieth of its size at the longest lag too."""
    bad = _late(length, rng, count=2)
    bad[:, 0] = 0.05 * bad[:, -2]
    return _bad_first(_long(length, rng), bad)


def _clean(x: np.ndarray) -> Any:
    return x, np.zeros(len(x), dtype=bool), (np.arange(len(x)),)


def _longest(length: int, rng: np.random.Generator) -> Any:
    return _clean(_long(length, rng))


def _gaussian(length: int, rng: np.random.Generator) -> Any:
    return _clean(rng.standard_normal((20, length)))


def _sparse(length: int, rng: np.random.Generator) -> Any:
    x = rng.standard_normal((20, length)) * (rng.random((20, length)) < 0.3)
    x[:, 0] = rng.standard_normal(20)
    return _clean(x)


def _early(length: int, rng: np.random.Generator) -> Any:
    """Inputs at the first three positions alone: only long lags."""
    x = np.zeros((20, length))
    x[:, :3] = rng.standard_normal((20, 3))
    return _clean(x)


def _autoregressive(length: int, rng: np.random.Generator) -> Any:
    x = rng.standard_normal((20, length))
    for t in range(1, length):
        x[:, t] += 0.8 * x[:, t - 1]
    return _clean(x)


def _growing_length(length: int, rng: np.random.Generator) -> Any:
    """Sequences of every length, shorter ones padded with zeros in front; all lags are shown."""
    starts = rng.integers(0, length - 1, 20)
    starts[:3] = 0
    return _clean(rng.standard_normal((20, length)) * (np.arange(length) >= starts[:, None]))


#: Kinds of harmful data: name -> function of length and Generator.
ATTACKS: Mapping[str, Callable[..., Any]] = {
    "mixture": _mixture,
    "weak mixture": _weak_mixture,
    "lags 1 and 3": _two_lags,
    "split among eight": _split,
    "special first": _order,
    "special first, hidden": _hidden_order,
}
#: Kinds of harmless data: name -> function of length and Generator.
HARMLESS: Mapping[str, Callable[..., Any]] = {
    "longest lag": _longest,
    "Gaussian": _gaussian,
    "sparse": _sparse,
    "early inputs": _early,
    "autoregressive": _autoregressive,
    "many lengths": _growing_length,
}
#: The 24 cases.
CASES = tuple(
    Case(kind, length, state_dim)
    for length, state_dim in ((5, 6), (7, 10))
    for kind in (*ATTACKS, *HARMLESS)
)


def _plan(answer: Any, data: Data) -> tuple[list[np.ndarray], str, np.ndarray]:
    """Return phases without the rows that are left out, the parametrization, and the mask."""
    plan = answer if isinstance(answer, Plan) else Plan(answer)
    mask = np.asarray(plan.is_clean)
    if mask.shape != (len(data.x),) or mask.dtype != bool:
        raise ValueError(
            f"a defence must return {len(data.x)} truth values, one a row; got"
            f" {shown(plan.is_clean)}"
        )
    name = as_choice("parametrization", plan.parametrization, PARAMETRIZATIONS)
    given = plan.phases
    if given is None:
        given = [np.arange(len(mask))] if plan.shuffle else data.phases
    phases = [np.asarray(rows) for rows in given]
    for rows in phases:
        if (
            rows.ndim != 1
            or rows.dtype.kind not in "iu"
            or (len(rows) and not 0 <= rows.min() <= rows.max() < len(mask))
        ):
            raise ValueError(f"phases must be rows from 0 to {len(mask) - 1}; got {shown(rows)}")
    return [kept for rows in phases if len(kept := rows[mask[rows]])], name, mask


def follow(
    case: Case,
    data: Data,
    phases: Sequence[np.ndarray],
    parametrization: str,
    A: Float[np.ndarray, " d"],
    gaps: Float[np.ndarray, " gaps"],
) -> Float[np.ndarray, " d"]:
    """Return a student's poles after gradient flow through phases of training.

    Args:
        case: whose teacher made the labels.
        data: of the case.
        phases: rows of each phase; none: the start comes back.
        parametrization: a name in `parametrizations.PARAMETRIZATIONS`.
        A: (d,) start, descending.
        gaps: (d-1,) its exact gaps.

    Raises:
        FlowError: if a phase cannot be followed.
    """
    teacher = theorem_teacher(case.state_dim)
    target = teacher.impulse_response(case.length)
    for rows in phases:
        gram = TrainingSet(data.x[rows], teacher).gram()
        one_lag = bool(np.count_nonzero(np.diag(gram)) == 1)
        if parametrization == "free":
            end = _T_END["free"][one_lag]
            run = many_flows(A, (gram, target), t_end=end, gaps=gaps, workers=1)
            gaps = np.exp(np.asarray(run.log_gap)[0, 1:])
            A = run.A[0, 0] - np.append(0.0, np.cumsum(gaps))  # agrees with the gaps
        else:
            end = _T_END["positive"][one_lag]
            run = gradient_flow(
                A, (gram, target), parametrization=parametrization, times=[end], rtol=1e-7
            )
            A = run.A[-1]
        if not np.isfinite(A).all():
            raise FlowError("a phase ends at poles that are not finite")
    return A


def student_error(A: ArrayLike) -> float:
    """Return the largest error of a student over lags 1 .. 19, at all of which the teacher has 1.

    Args:
        A: (d,) poles.
    """
    powers = np.asarray(A)[None] ** np.arange(1, _LAGS)[:, None]
    return float(np.abs(powers.sum(axis=1) - 1).max())


def _train(case: Case, data: Data, phases: Sequence[np.ndarray], name: str, seed: int) -> float:
    """Return the student's error after training; NaN if a phase cannot be followed."""
    try:
        return student_error(follow(case, data, phases, name, *case.start(seed)))
    except FlowError:
        return float("nan")


@dataclass(frozen=True)
class Row:
    """How a defence did on one case and seed.

    Attributes:
        case: its name.
        harmless: whether nothing in it was added to do harm.
        seed: of the data; the start has another one, seed + 1000.
        detected: share of the harmful rows that it left out; None without such rows.
        false_alarms: share of the other rows that it left out.
        error: of the student with the defence; None if its training could not be followed.
        undefended: of the student without.
        seconds: the defence took, without training.
    """

    case: str
    harmless: bool
    seed: int
    detected: float | None
    false_alarms: float
    error: float | None
    undefended: float | None
    seconds: float


def score(defence: Defence, seeds: Sequence[int], cases: Sequence[Case] = CASES) -> list[Row]:
    """Try a defence on every case and seed.

    Args:
        defence: function of x (n, kappa), y (n,) and a seed, that returns a `Plan` or (n,) truth
            values.
        seeds: of the data, each 0 to 2^32 - 1001.
        cases: which; all 24 by default.

    Raises:
        ValueError: if the defence returns something else.
    """
    rows = []
    for case in cases:
        for seed in seeds:
            data = case.data(seed)
            began = time.perf_counter()
            answer = defence(data.x.copy(), data.y.copy(), seed)
            seconds = time.perf_counter() - began
            phases, name, mask = _plan(answer, data)
            without = _train(case, data, data.phases, "free", seed + 1000)
            error = _train(case, data, phases, name, seed + 1000)
            bad = data.harmful
            rows.append(
                Row(
                    case.name,
                    case.harmless,
                    int(seed),
                    float(np.mean(~mask[bad])) if bad.any() else None,
                    float(np.mean(~mask[~bad])),
                    error if np.isfinite(error) else None,
                    without if np.isfinite(without) else None,
                    round(seconds, 4),
                )
            )
    return rows


# ---- the book's own defences


def nothing(x: np.ndarray, y: np.ndarray, seed: int) -> Plan:
    """Train on all rows as they come."""
    return Plan(np.ones(len(x), dtype=bool))


def shuffle(x: np.ndarray, y: np.ndarray, seed: int) -> Plan:
    """Train on all rows together, whatever their order."""
    return Plan(np.ones(len(x), dtype=bool), shuffle=True)


def long_first(x: np.ndarray, y: np.ndarray, seed: int) -> Plan:
    """Train on the longest lags first, then on all."""
    return Plan(np.ones(len(x), dtype=bool), phases=rules.long_lags_first(x))


def positive(x: np.ndarray, y: np.ndarray, seed: int) -> Plan:
    """Train all rows together, poles made positive by exp(-exp(s))."""
    return Plan(np.ones(len(x), dtype=bool), parametrization="exp(-exp)", shuffle=True)


def lags(x: np.ndarray, y: np.ndarray, seed: int) -> Plan:
    """Leave out what shows short lags that nothing else shows (`defences.before.detect_poison`)."""
    return Plan(before.detect_poison(x)[1])


def isolation(x: np.ndarray, y: np.ndarray, seed: int) -> Plan:
    """Leave out the tenth of the rows that scikit-learn's isolation forest finds most unlike the
    others.
    """
    from ssm_poison_lib.defences import existing  # here: scikit-learn takes a second to load

    return Plan(existing.isolation_forest(x, seed=seed))


def _inside(find: str, x: np.ndarray, y: np.ndarray, seed: int) -> Plan:
    """Leave out what one of ART's detectors finds in a model of the labels cut in two."""
    from ssm_poison_lib.defences import existing

    labels = existing.two_classes(y)
    if labels is None:
        return nothing(x, y, seed)
    model = existing.small_classifier(x, labels, seed)
    return Plan(getattr(existing, find)(model, x[..., None], labels))


def clusters(x: np.ndarray, y: np.ndarray, seed: int) -> Plan:
    """Leave out what ART's activation clustering finds in an S4D model of the labels cut in two."""
    return _inside("activation_clustering", x, y, seed)


def spectral(x: np.ndarray, y: np.ndarray, seed: int) -> Plan:
    """Leave out what ART's spectral signatures find there, 15 percent of each class."""
    return _inside("spectral_signatures", x, y, seed)


def wrong_labels(x: np.ndarray, y: np.ndarray, seed: int) -> Plan:
    """Leave out what cleanlab takes for mislabelled, labels cut in two."""
    from ssm_poison_lib.defences import existing

    labels = existing.two_classes(y)
    if labels is None:
        return nothing(x, y, seed)
    return Plan(existing.label_issues(existing.out_of_sample(x, labels), labels))


#: The book's defences: name -> function.
DEFENCES: Mapping[str, Callable[..., Any]] = {
    "do nothing": nothing,
    "shuffle": shuffle,
    "longest lags first": long_first,
    "positive poles, shuffled": positive,
    "lags shown by few": lags,
    "isolation forest": isolation,
    "activation clustering": clusters,
    "spectral signatures": spectral,
    "cleanlab": wrong_labels,
}


def named(name: str) -> Defence:
    """Return a defence of the book, or a function of somebody's module by "module:function".

    Raises:
        ValueError: if there is none.
    """
    if name in DEFENCES:
        return DEFENCES[name]
    if ":" not in as_text("defence", name):
        raise ValueError(
            f"defence must be MODULE:FUNCTION, or one of {', '.join(DEFENCES)}; got {shown(name)}"
        )
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"defence must be MODULE:FUNCTION that can be imported; got {name!r} ({error})"
        ) from None
    if not callable(found):
        raise ValueError(f"defence must name a function; {name!r} is {shown(found)}")
    try:
        inspect.signature(found).bind(None, None, None)
    except TypeError as error:
        raise ValueError(
            f"defence must be a function of x, y and seed; {name!r} is not ({error})"
        ) from None
    return found


def _share(values: Sequence[float | bool]) -> float | None:
    return float(np.mean(values)) if values else None


def summary(rows: Sequence[Row | Mapping[str, Any]]) -> dict[str, float | None]:
    """Return what a table says of a defence.

    Returns:
        "detected" and "false_alarms" (mean shares), "repaired" (share of the attacked runs that
        erred by more than 0.1
        without the defence and do not with it), "spoilt" (share of the harmless runs that err by
        more than 0.1 with it
        and did not without), "error_attacked" and "error_harmless" (medians with the defence),
        "seconds" (sum).
    """
    plain = [row if isinstance(row, Mapping) else vars(row) for row in rows]
    attacked = [r for r in plain if not r["harmless"]]
    harmless = [r for r in plain if r["harmless"]]

    def errors(some: list[Mapping[str, Any]]) -> float | None:
        values = [r["error"] for r in some if r["error"] is not None]
        return float(np.median(values)) if values else None

    bad = [r for r in attacked if r["undefended"] is not None and r["undefended"] > 0.1]
    fine = [r for r in harmless if r["undefended"] is not None and r["undefended"] <= 0.1]
    return {
        "detected": _share([r["detected"] for r in attacked if r["detected"] is not None]),
        "false_alarms": _share([r["false_alarms"] for r in plain]),
        "repaired": _share([r["error"] is not None and r["error"] <= 0.1 for r in bad]),
        "spoilt": _share([r["error"] is None or r["error"] > 0.1 for r in fine]),
        "error_attacked": errors(attacked),
        "error_harmless": errors(harmless),
        "seconds": float(sum(r["seconds"] for r in plain)),
    }


def table(content: Mapping[str, Any]) -> str:
    """Return the summaries of several defences as text, a line each."""
    heads = ("detected", "false_alarms", "repaired", "spoilt", "error_attacked", "error_harmless")
    wide = max(26, *(len(name) + 1 for name in content["summaries"]))
    lines = [f"{'defence':{wide}s}" + "".join(f"{head.replace('_', ' '):>16s}" for head in heads)]
    for name, found in content["summaries"].items():
        cells = ("-" if found[head] is None else f"{found[head]:.3g}" for head in heads)
        lines.append(f"{name:{wide}s}" + "".join(f"{cell:>16s}" for cell in cells))
    return "\n".join(lines)


def compute(*, defence: str, seed: int) -> dict[str, Any]:
    """Return the rows of one of the book's defences at one seed.

    Args:
        defence: a name in DEFENCES.
        seed: of the data.
    """
    return {"rows": [vars(row) for row in score(named(defence), [seed])]}


def _collect(study: Study, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the summaries of the book's defences, and their rows."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in DEFENCES}
    for job, result in zip(study.jobs, results, strict=True):
        rows[job.arguments["defence"]] += result["rows"]
    return {
        "summaries": {name: summary(found) for name, found in rows.items()},
        "rows": [{"defence": name, **row} for name, found in rows.items() for row in found],
    }


STUDY = Study(
    name="benchmark",
    function=compute,
    jobs=tuple(
        Job(f"{name}/seed-{seed}", {"defence": name, "seed": seed})
        for name in DEFENCES
        for seed in BOOK_SEEDS
    ),
    collect=_collect,
    table=table,
    scheduler="processes",  # training and ART draw from the process's random numbers
)
