"""Audit of a training set: what in it, or in its order, could lead a state space model astray.

What is looked at are sums over sequences and one look at each, so that sets of any size go through,
part by part, here or on a Dask cluster. A verdict says "no evidence of risk" and never "safe":
poison that is spread over all lags, has statistics of natural data, or lies in wrong labels is not
seen. And it says so only if a model that was trained here explains the labels: where none does,
what yours would learn from these data has not been seen, and the verdict is "undecided".

Lags that the data leave open are a finding if they are more than a tenth of all. Fewer are named
among what the verdict rests on, without a finding: what a model answers there is not decided, yet
nothing says that later data will ask.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import pairwise
from typing import Any, cast

import numpy as np
from scipy.stats import kruskal

from ssm_poison_lib._checks import as_choice, as_function, as_integer, as_text
from ssm_poison_lib.audit._models import MODELS, ModelResult
from ssm_poison_lib.audit._read import PADDING, Part, Rows, from_arrays
from ssm_poison_lib.audit._report import BLIND, advice, as_html, as_json, named, runs, targets
from ssm_poison_lib.audit._student import POLES, Problem, start, train
from ssm_poison_lib.checklist import examine
from ssm_poison_lib.defences.after import restart_disagreement
from ssm_poison_lib.defences.before import (
    DataSums,
    LagReport,
    data_sums,
    lag_gaps,
    lag_report,
    late_energy,
    leverage,
    mean_lag,
    near_duplicates,
    special_rows,
)

__all__ = ["BLIND", "VERDICTS", "Audit", "Finding", "audit", "audit_parts"]

#: The verdicts, gravest first; exit status 1 for the first three, which name something in the data.
VERDICTS = (
    "order-sensitive",
    "contains special sequences",
    "underdetermined",
    "undecided",
    "no evidence of risk",
)

_FIXED = 0.9  # a lag is fixed if at least this part of its response is decided
_ENOUGH = 0.9  # share of lags that must be fixed
_FEW = 4  # different sequences below which nothing can be said
_RESTARTS = 4
_BLOCKS = 4  # phases into which an order is cut, if it has no few values of its own
_CONTRAST, _SURE = (
    0.3,
    1e-4,
)  # share of the variance of mean lags that lies between phases; probability by chance
_MOVED, _ABOVE = (
    0.2,
    2.0,
)  # an order matters if it moves the response this much, and this many times what restarts differ
_FITS = 0.9  # part of what can be explained that a student must explain for its response to count
_SEEN = 0.5  # share of the labels' squares that it must explain: else most of them is unseen
_SAMPLE = 10_000  # sequences among which near copies are looked for
_CLASSES = 20  # integers with at most so many values are classes
_MOST = 4096  # kappa times channels above which neighbouring steps are averaged
_SHOWN = 20  # rows in the report


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        verdict: a name in `VERDICTS`.
        text: what was found, in a sentence.
        rows: the sequences that caused it, by row, the first few.
        count: how many there are.
    """

    verdict: str
    text: str
    rows: tuple[int, ...] = ()
    count: int = 0


@dataclass(frozen=True, eq=False)
class Audit:
    """What `audit` found; print it, or write it with `to_json` and `to_html`.

    Attributes:
        verdict: a name in `VERDICTS`, the gravest finding.
        findings: all of them; none if there is no evidence of risk.
        basis: what the verdict rests on, sentence by sentence.
        count: n.
        length: kappa, in steps of the data.
        channels: of the data.
        outputs: classes or regression targets; 0 without labels.
        classes: names of the classes; empty for regression.
        pooled: how many neighbouring steps were averaged; 1: none.
        lags: which lags the data fix.
        gaps: lags that nothing shows, between lags that some sequences show.
        standing_out: the rows that stand out most: row, reason, leverage, mean lag.
        student: numbers of the small student (see the report).
        responses: (name, (lags,)) impulse responses by lags, root mean square over channels and
            outputs.
        theory: what the book's theory says, or which hypothesis fails.
        model: numbers of the model that was asked for; None for "free".
        names: of the files.
        first: for each file, its first row.
        series: for each row its file, where each file is one sequence; else empty.
    """

    verdict: str
    findings: tuple[Finding, ...]
    basis: tuple[str, ...]
    count: int
    length: int
    channels: int
    outputs: int
    classes: tuple[str, ...]
    pooled: int
    lags: LagReport
    gaps: tuple[tuple[int, int], ...]
    standing_out: tuple[dict[str, Any], ...]
    student: dict[str, Any]
    responses: dict[str, np.ndarray]
    theory: tuple[str, ...]
    model: ModelResult | None = None
    names: tuple[str, ...] = field(default=())
    first: tuple[int, ...] = field(default=())
    series: tuple[str, ...] = field(default=())

    @property
    def unit(self) -> str:
        """What a sequence is in the files: "file" or "row"."""
        return "file" if self.series else "row"

    def where(self, row: int) -> str:
        """Return where a sequence stands in the files.

        Args:
            row: from 0, all files together.
        """
        if self.series:
            return self.series[row]
        if len(self.names) < 2:
            return str(row)
        file = int(np.searchsorted(self.first, row, side="right")) - 1
        return f"{self.names[file]}:{row - self.first[file]}"

    @property
    def status(self) -> int:
        """Exit status: 1 if something was found, 0 if nothing was, undecided or not."""
        return 0 if self.verdict in VERDICTS[-2:] else 1

    def __str__(self) -> str:
        lines = [
            f"verdict: {self.verdict}",
            f"{self.count:,} sequences of length {self.length:,},"
            f" {self.channels} channel{'s' * (self.channels > 1)}, {targets(self)}",
        ]
        for found in self.findings:
            rows = named(self, found)
            lines.append(f"- {found.verdict}: {found.text}{f' ({rows})' if rows else ''}")
        lines.append(f"next: {advice(self)}")
        lines += [f"  {sentence}" for sentence in self.basis]
        if self.model is not None:
            lines.append(f"  Model {self.model}")
        fill = partial(textwrap.fill, width=90, subsequent_indent="    ", break_on_hyphens=False)
        return "\n".join(map(fill, lines))

    def to_json(self) -> dict[str, Any]:
        """Return everything as numbers, text, lists and mappings, with versions."""
        return as_json(self)

    def to_html(self, *, book: str = "") -> str:
        """Return the report: one page without scripts that asks nothing of the network.

        Args:
            book: address of the book's pages for links, such as "_build/html/book"; empty: chapters
                are named, not linked.
        """
        return as_html(self, as_text("book", book))


def audit(
    x: Any,
    y: Any = None,
    *,
    order: Any = None,
    task: str = "auto",
    pad: str = "refuse",
    model: str | Callable[[int, int], Any] = "free",
    steps: int | None = None,
    scheduler: Any = None,
) -> Audit:
    """Audit a training set in memory, or a Dask array.

    Args:
        x: (n, kappa) or (n, kappa, channels) numbers, a list of sequences of different lengths, or
            a Dask array cut along
            its first axis.
        y: (n,) class labels (text, or integers with at most 20 values) or numbers, or (n, outputs)
            numbers; None: none.
        order: (n,) what the training sorts by; None: it shuffles.
        task: "classes", "numbers" or "auto".
        pad: "refuse", "front" or "end": zeros for shorter sequences.
        model: "free", "s4d", "lru", "mamba2", or a function (channels, outputs) -> torch module
            that maps (batch, length,
            channels) to (batch, outputs), for a trial of a network as well.
        steps: of Adam in each training of `model`, 64 sequences each; it is trained four times,
            five if something stands out. None: as many as take some two minutes in all, 20 to 200.
        scheduler: of Dask, a name or a client; None: one part after the other.

    Raises:
        ValueError: for data that cannot be used; the message names what and where.
    """
    as_choice("pad", pad, PADDING)
    parts = from_arrays(x, y, order, pad=pad)
    return audit_parts(parts, task=task, model=model, steps=steps, scheduler=scheduler)


def audit_parts(
    parts: Sequence[Part],
    *,
    task: str = "auto",
    model: str | Callable[[int, int], Any] = "free",
    steps: int | None = None,
    scheduler: Any = None,
    progress: Callable[[str], Any] | None = None,
) -> Audit:
    """Audit a training set that is given as parts (`audit`; the command makes them of files).

    Args:
        parts: see the module `_read`; each is read some three times.
        task: "classes", "numbers" or "auto".
        model: as in `audit`.
        steps: as in `audit`.
        scheduler: as in `audit`.
        progress: is called with a line of text about how long the model's trainings take; None:
            nothing
            is said.
    """
    as_choice("task", task, ("auto", "classes", "numbers"))
    if not callable(model):
        as_choice("model", model, MODELS)
    else:
        as_function("model", model)
    if steps is not None:
        as_integer("steps", steps, low=1)
    run = _Runner(list(parts), scheduler)
    seen = run(_first_look)
    shape = _shape(seen, task)
    keys = None if seen[0]["order"] is None else np.concatenate([s["order"] for s in seen])
    phase = None if keys is None else _phases(keys)
    ends = np.cumsum([0, *(s["count"] for s in seen)])
    blocks = [None if phase is None else phase[a:b] for a, b in pairwise(ends)]

    first = run(_second_look, shape, each=[blocks])
    by_phase = [
        reduce(lambda a, b: a + b, group) for group in zip(*(f["sums"] for f in first), strict=True)
    ]
    total = reduce(lambda a, b: a + b, by_phase)
    centre = np.concatenate([f["mean lag"] for f in first])
    if total.silent == total.count:
        raise ValueError("x must not be zero everywhere")
    lags, gaps = lag_report(total), lag_gaps(total)

    cuts = [low for low, _high in gaps]
    third = run(
        _third_look, shape, total, cuts, _every(total.count, _SAMPLE), each=[ends[:-1].tolist()]
    )
    lever = np.concatenate([t["leverage"] for t in third])
    late = np.concatenate([t["late"] for t in third], axis=1)
    special = np.zeros(total.count, dtype=bool)
    kept: list[tuple[int, int]] = []
    for gap, share in zip(gaps, late, strict=True):
        rows = special_rows(share)
        special |= rows
        if rows.any():
            kept.append(gap)
    sample = np.concatenate([t["rows"] for t in third])
    near = near_duplicates(np.concatenate([t["sample"] for t in third]))
    copies = np.zeros(total.count, dtype=bool)
    copies[sample] = near.flagged
    nearest = {int(sample[i]): int(sample[near.nearest[i]]) for i in np.flatnonzero(near.flagged)}
    flagged = special | copies

    apart = (
        _sums_of(run, shape, flagged, ends[:-1]) if flagged.any() and not flagged.all() else None
    )
    short = None
    if shape.outputs and phase is None and not shape.constant:
        short = _sums_of(run, shape, centre <= np.median(centre), ends[:-1])
    student: dict[str, Any] = {"trained": False}
    responses: dict[str, np.ndarray] = {}
    if shape.outputs and not shape.constant:
        student, responses = _study(total, by_phase, apart, short)
    trial = None
    if model != "free":
        if not shape.outputs or shape.constant:
            said = f"; every label is {shape.constant}" if shape.constant else ""
            raise ValueError(f"model needs labels to train on{said}")
        from ssm_poison_lib.audit._trial import study_model  # here: torch takes seconds to load

        collected = _collect(run, shape, ends[:-1], flagged)
        trial = study_model(
            model, *collected, shape.classes, phase, centre, steps=steps, progress=progress
        )
    findings = _findings(
        total, lags, kept, special, copies, near, student, trial, phase, centre, shape
    )
    theory = _theory(run, shape, total, phase)
    starts: dict[str, int] = {}
    for part, row in zip(parts, ends, strict=False):
        starts.setdefault(part.name, int(row))
    verdict = min((f.verdict for f in findings), key=VERDICTS.index, default=VERDICTS[-1])
    return Audit(
        verdict=verdict,
        findings=findings,
        basis=_basis(total, lags, student, shape, phase, near, len(sample)),
        count=total.count,
        length=shape.length,
        channels=total.channels,
        outputs=shape.outputs,
        classes=tuple(map(str, shape.classes)),
        pooled=shape.pool,
        lags=lags,
        gaps=tuple(gaps),
        standing_out=_standing_out(lever, centre, special, copies, nearest),
        student=student,
        responses=responses,
        theory=theory,
        model=trial,
        names=tuple(starts),
        first=tuple(starts.values()),
        series=tuple(name for part in parts for name in part.series),
    )


# ---- one look after the other at all parts -------------------------------------------------------


class _Runner:
    """Calls a function on each part and returns the results in the order of the parts."""

    def __init__(self, parts: list[Part], scheduler: Any) -> None:
        if not parts:
            raise ValueError("x must have at least one part")
        self.parts, self.scheduler = parts, scheduler

    def __call__(
        self, function: Callable[..., Any], *shared: Any, each: Sequence[Sequence[Any]] = ()
    ) -> list[Any]:
        """Return function(part, *shared, *its own) of every part;

        Args:
            each: lists with one entry for every part.
        """
        own = zip(*each, strict=True) if each else [()] * len(self.parts)
        calls = [(part, *shared, *mine) for part, mine in zip(self.parts, own, strict=True)]
        if self.scheduler is None or len(calls) == 1:
            return [function(*call) for call in calls]
        import dask  # only who asks for it needs it

        tasks = [dask.delayed(function, pure=False)(*call) for call in calls]
        if hasattr(self.scheduler, "compute"):  # a client of a cluster
            return cast(list[Any], self.scheduler.gather(self.scheduler.compute(tasks)))
        return list(dask.compute(*tasks, scheduler=self.scheduler))


def _first_look(part: Part) -> dict[str, Any]:
    rows = part.load()
    y = rows.y
    values = None if y is None or y.ndim == 2 else np.unique(y)
    return {
        "count": len(rows.x),
        "shape": rows.x.shape[1:],
        "order": rows.order,
        "kind": None if y is None else y.dtype.kind,
        "outputs": 0 if y is None else (1 if y.ndim == 1 else y.shape[1]),
        "values": None if values is None or len(values) > 1000 else values,
        "finite": y is None or y.dtype.kind in "US" or bool(np.isfinite(y).all()),
        "range": None if y is None or y.dtype.kind in "US" else (y.min(axis=0), y.max(axis=0)),
        "name": part.name,
    }


@dataclass(frozen=True)
class _Shape:
    """What all parts have in common: length, channels, outputs, classes, steps averaged, and the
    label that all sequences have, in words.
    """

    length: int
    channels: int
    outputs: int
    classes: tuple[Any, ...]
    pool: int
    constant: str = ""


def _shape(seen: list[dict[str, Any]], task: str) -> _Shape:
    shapes = {s["shape"] for s in seen}
    if len(shapes) > 1:
        raise ValueError(
            "all parts must have sequences of one length and as many channels; got"
            f" {sorted(shapes)}"
        )
    for what in ("kind", "outputs"):
        if len({(s[what] is None) if what == "kind" else s[what] for s in seen}) > 1:
            raise ValueError("all parts must have the same kind of labels")
    if len({s["order"] is None for s in seen}) > 1:
        raise ValueError("all parts must have an order, or none")
    (length, channels), kinds = next(iter(shapes)), {s["kind"] for s in seen}
    if bad := next((s["name"] for s in seen if not s["finite"]), None):
        raise ValueError(f"{bad}: labels must be finite")
    pool = max(1, math.ceil(length * channels / _MOST))
    if pool > 1 and channels > _MOST:
        raise ValueError(f"x must have at most {_MOST} channels; got {channels}")
    text = bool(kinds & {"U", "S"})
    if kinds == {None}:
        return _Shape(length, channels, 0, (), pool)
    if text and task == "numbers":
        raise ValueError("y must be numbers for task 'numbers'; got text")
    known = (
        None
        if any(s["values"] is None for s in seen)
        else np.unique(np.concatenate([s["values"] for s in seen]))
    )
    if not text and task != "classes":
        low = np.min([s["range"][0] for s in seen], axis=0)
        if np.array_equal(low, np.max([s["range"][1] for s in seen], axis=0)):
            said = ", ".join(f"{float(value):g}" for value in np.atleast_1d(low))
            return _Shape(length, channels, seen[0]["outputs"], (), pool, said)
    whole = text or kinds <= {"i", "u", "b"}
    if task == "classes" or (
        task == "auto" and known is not None and whole and (text or len(known) <= _CLASSES)
    ):
        if known is None or len(known) > 1000:
            raise ValueError("y must have at most 1000 classes, (n,)")
        if len(known) < 2:
            raise ValueError(f"y must have at least 2 classes; all labels are {known[0]}")
        return _Shape(length, channels, len(known), tuple(known.tolist()), pool)
    if text:
        raise ValueError("y must have at most 1000 different texts")
    return _Shape(length, channels, seen[0]["outputs"], (), pool)


def _phases(keys: np.ndarray) -> np.ndarray:
    """Return the phase of each row, 0, 1, ...: values of the key if they are few, else equal parts
    of its ranks.
    """
    values, place = np.unique(keys, return_inverse=True)
    if len(values) <= _BLOCKS:
        return np.asarray(place.ravel())
    ranks = np.empty(len(keys), dtype=int)
    ranks[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    return ranks * _BLOCKS // len(keys)


def _ready(part: Part, shape: _Shape) -> tuple[np.ndarray, np.ndarray | None]:
    """Return x, averaged over neighbouring steps if it is too long, and labels as numbers (classes:
    centred one-hot).
    """
    rows: Rows = part.load()
    x = rows.x
    if shape.pool > 1:
        short = -(-shape.length // shape.pool)
        padded = np.zeros((len(x), short * shape.pool, x.shape[2]))
        padded[:, -shape.length :] = x
        x = padded.reshape(len(x), short, shape.pool, -1).mean(axis=2)
    if rows.y is None:
        return x, None
    if shape.classes:
        place = np.searchsorted(np.array(shape.classes), rows.y)
        return x, np.eye(shape.outputs)[place] - 1.0 / shape.outputs
    return x, np.asarray(rows.y, dtype=np.float64).reshape(len(x), -1)


def _second_look(part: Part, shape: _Shape, phase: np.ndarray | None) -> dict[str, Any]:
    x, y = _ready(part, shape)
    if phase is None:
        sums = [data_sums(x, y)]
    else:
        sums = [_some(x, y, phase == k) for k in range(_BLOCKS)]
    return {"sums": sums, "mean lag": mean_lag(x)}


def _some(x: np.ndarray, y: np.ndarray | None, rows: np.ndarray) -> DataSums:
    """Return the sums of some rows, also of none."""
    if rows.any():
        return data_sums(x[rows], None if y is None else y[rows])
    f, outputs = x.shape[1] * x.shape[2], 0 if y is None else y.shape[1]
    zero = np.zeros
    return DataSums(
        0,
        x.shape[2],
        zero((f, f)),
        zero((f, outputs)),
        zero((outputs, outputs)),
        zero(x.shape[1]),
        zero(x.shape[1]),
        0,
    )


def _third_look(
    part: Part, shape: _Shape, total: DataSums, cuts: list[int], wanted: int, first: int
) -> dict[str, Any]:
    x, _ = _ready(part, shape)
    rows = np.arange(first, first + len(x))
    chosen = rows[rows % wanted == 0]
    late = [late_energy(x, cut) for cut in cuts]
    return {
        "leverage": leverage(x, total),
        "late": np.array(late) if late else np.zeros((0, len(x))),
        "rows": chosen,
        "sample": x[chosen - first],
    }


def _every(count: int, most: int) -> int:
    return max(1, math.ceil(count / most))


def _sums_of(run: _Runner, shape: _Shape, rows: np.ndarray, first: np.ndarray) -> DataSums:
    ends = [*first[1:], len(rows)]
    masks = [rows[a:b] for a, b in zip(first, ends, strict=True)]
    return reduce(lambda a, b: a + b, run(_masked, shape, each=[masks]))


def _masked(part: Part, shape: _Shape, mask: np.ndarray) -> DataSums:
    return _some(*_ready(part, shape), mask)


def _minus(a: DataSums, b: DataSums) -> DataSums:
    """Return the sums without those of some rows; shares by lag are no longer needed then."""
    return DataSums(
        a.count - b.count,
        a.channels,
        a.gram - b.gram,
        a.cross - b.cross,
        a.label_gram - b.label_gram,
        np.maximum(a.share - b.share, 0.0),
        a.top,
        a.silent - b.silent,
    )


# ---- the small student ---------------------------------------------------------------------------


def _size(K: np.ndarray, lags: int) -> np.ndarray:
    """Return (restarts, lags, entries) of responses (restarts, lags c, outputs)."""
    return K.reshape(len(K), lags, -1)


def _apart(K: np.ndarray, other: np.ndarray) -> float:
    """Return the median over restarts of the relative difference of two sets of responses."""
    difference = np.sqrt(np.square(K - other).sum(axis=(1, 2)))
    level = np.sqrt(np.maximum(np.square(K).sum(axis=(1, 2)), np.square(other).sum(axis=(1, 2))))
    return float(np.median(difference / np.where(level > 0, level, 1.0)))


def _study(
    total: DataSums, by_phase: list[DataSums], apart: DataSums | None, short: DataSums | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train the small student on all, without what stands out, and in another order; compare
    responses.
    """
    problem = Problem.of(total)
    begun = start(total.channels, total.cross.shape[1], range(_RESTARTS))
    together = train(begun, problem)
    lags = total.length
    K = together.responses(2 * lags)
    loss = problem.loss(together.responses(lags))
    best = problem.one / 2 - problem.least
    explained = (problem.one / 2 - loss) / best if best > 1e-12 else np.zeros(_RESTARTS)
    fits = bool(np.median(explained) >= _FITS)
    beyond = restart_disagreement(_size(K, 2 * lags)[:, lags:])
    inside = restart_disagreement(_size(K, 2 * lags)[:, :lags])
    found: dict[str, Any] = {
        "trained": True,
        "linear R2": 1 - 2 * problem.least / problem.one,
        "student R2": float(np.median(1 - 2 * loss / problem.one)),
        "fits": fits,
        "restarts": _RESTARTS,
        "restarts differ": inside.relative,
        "restarts differ beyond": beyond.relative,
    }
    scale = problem.scale[1] / problem.scale[0]

    def shown(values: np.ndarray) -> np.ndarray:
        return scale * np.median(np.sqrt(np.square(_size(values, 2 * lags)).mean(axis=2)), axis=0)

    responses = {"all together": shown(K)}
    if apart is not None:
        rest = Problem.of(_minus(total, apart), like=problem)
        without = train(begun, rest)
        W = without.responses(2 * lags)
        responses["without them"] = shown(W)
        left = Problem.of(apart, like=problem)
        found["without them"] = {
            "moved": _apart(_size(K, 2 * lags), _size(W, 2 * lags)),
            "explained anyway": float(
                np.median(1 - 2 * left.loss(without.responses(lags)) / max(left.one, 1e-300))
            ),
        }
    orders: list[tuple[str, list[DataSums]]] = []
    filled = [s for s in by_phase if s.count]
    if len(filled) > 1:
        orders.append(("in the given order", filled))
    if short is not None and 0 < short.count < total.count:
        orders.append(("short lags first", [short, _minus(total, short)]))
    for name, phases in orders:
        student = begun
        for sums in phases:
            if np.trace(sums.gram) > 0:
                student = train(student, Problem.of(sums, like=problem))
        O = student.responses(2 * lags)  # noqa: E741
        responses[name] = shown(O)
        found[name] = {
            "phases": len(phases),
            "moved": _apart(_size(K, 2 * lags), _size(O, 2 * lags)),
            "R2": float(np.median(1 - 2 * problem.loss(student.responses(lags)) / problem.one)),
        }
    return found, responses


# ---- what follows from it ------------------------------------------------------------------------


def _contrast(phase: np.ndarray, centre: np.ndarray, special: np.ndarray) -> float:
    """Return the share of the variance of mean lags that lies between phases; 0 if chance explains
    it.
    """
    groups = [centre[phase == k] for k in np.unique(phase)]
    total = float(np.var(centre))
    if len(groups) < 2 or not total > 0:
        return 0.0
    between = sum(len(g) * (g.mean() - centre.mean()) ** 2 for g in groups) / len(centre) / total
    if special.any() and len(groups) > 1:
        shares = [float(special[phase == k].mean()) for k in np.unique(phase)]
        if min(shares) == 0.0 and max(shares) == 1.0:
            return float(between)
    return float(between) if kruskal(*groups).pvalue < _SURE else 0.0


def _findings(
    total: DataSums,
    lags: LagReport,
    gaps: list[tuple[int, int]],
    special: np.ndarray,
    copies: np.ndarray,
    near: Any,
    student: dict[str, Any],
    trial: ModelResult | None,
    phase: np.ndarray | None,
    centre: np.ndarray,
    shape: _Shape,
) -> tuple[Finding, ...]:
    found: list[Finding] = []
    given = student.get("in the given order")
    tried = trial is not None and trial.fits
    if phase is not None and given is not None:
        contrast = _contrast(phase, centre, special)
        who, moved, differ = "small student", given["moved"], student["restarts differ"]
        if trial is not None and tried and not student["fits"]:
            who, moved, differ = f"model {trial.name}", trial.ordered, trial.restarts_differ
        if contrast >= _CONTRAST and not student["fits"] and not tried:
            found.append(
                Finding(
                    "undecided",
                    f"the phases show different lags ({contrast:.0%} of the spread of mean lags is"
                    " between them), but the small student does not fit these data: try the order"
                    " with your own model (--model)",
                )
            )
        elif contrast >= _CONTRAST and moved >= max(_MOVED, _ABOVE * differ):
            found.append(
                Finding(
                    "order-sensitive",
                    f"the phases show different lags ({contrast:.0%} of the spread of mean lags is"
                    f" between them), and the {who} trained in this order ends {moved:.2f} away"
                    f" from one trained on all together (relative; its restarts differ by"
                    f" {differ:.2g})",
                )
            )
    if special.any():
        rows = np.flatnonzero(special)
        text = "; ".join(f"lags {a} to {b} are shown by nothing" for a, b in gaps)
        found.append(
            Finding(
                "contains special sequences",
                f"{len(rows)} of {total.count:,} sequences {'have' if len(rows) > 1 else 'has'}"
                f" nearly all energy in the last steps, where the others have none ({text})"
                + _effect(student),
                tuple(rows[:_SHOWN].tolist()),
                len(rows),
            )
        )
    if copies.any():
        rows = np.flatnonzero(copies)
        found.append(
            Finding(
                "contains special sequences",
                f"{len(rows)} sequences are nearly, not exactly, copies of others, and at most"
                f" {near.expected:.1f} are to be expected in {near.dimension:.1f} dimensions"
                + _effect(student),
                tuple(rows[:_SHOWN].tolist()),
                len(rows),
            )
        )
    fixed = lags.fixed >= _FIXED
    if fixed.mean() < _ENOUGH:
        found.append(
            Finding(
                "underdetermined",
                f"the data fix {int(fixed.sum())} of {len(fixed)} lags (rank {lags.rank} of"
                f" {len(total.gram)}); the implicit bias of training decides the response at the"
                " others",
            )
        )
    if not found:
        if total.count - total.silent < _FEW:
            found.append(Finding("undecided", f"{total.count} sequences are too few to tell"))
        elif not shape.outputs:
            found.append(
                Finding(
                    "undecided",
                    "without labels no student can be trained, and orders cannot be tried",
                )
            )
        elif shape.constant:
            found.append(
                Finding(
                    "undecided",
                    f"every label is {shape.constant}: no student can learn from it which lags"
                    " matter, and orders cannot be tried",
                )
            )
        elif shape.pool > 1:
            found.append(
                Finding(
                    "undecided",
                    f"{shape.pool} neighbouring steps were averaged; finer structure was not seen",
                )
            )
        elif student["student R2"] < _SEEN and not tried:
            found.append(
                Finding(
                    "undecided",
                    f"the small student explains only {max(student['student R2'], 0.0):.0%} of the"
                    " labels, so the audit has not seen what your model learns from these data",
                )
            )
    return tuple(found)


def _effect(student: dict[str, Any]) -> str:
    effect = student.get("without them")
    if effect is None:
        return ""
    return (
        f"; without them the small student's response moves by {effect['moved']:.2g} (relative) and"
        f" still explains {max(effect['explained anyway'], 0.0):.0%} of their labels"
    )


def _standing_out(
    lever: np.ndarray,
    centre: np.ndarray,
    special: np.ndarray,
    copies: np.ndarray,
    nearest: dict[int, int],
) -> tuple[dict[str, Any], ...]:
    score = lever + 2 * special + copies
    rows = np.argsort(-score, kind="stable")[:_SHOWN]
    usual = float(np.median(lever))
    told = []
    for i in rows.tolist():
        reason = "leverage: it shows lags that few others show"
        if special[i]:
            reason = "special: all its energy is in its last steps, where others have none"
        elif copies[i]:
            reason = f"nearly a copy of row {nearest[i]}"
        elif (
            lever[i] < max(0.5, min(4 * usual, 0.95)) or usual > 0.9
        ):  # where all do, none stands out
            continue
        told.append(
            {"row": i, "reason": reason, "leverage": float(lever[i]), "mean lag": float(centre[i])}
        )
    return tuple(told)


def _basis(
    total: DataSums,
    lags: LagReport,
    student: dict[str, Any],
    shape: _Shape,
    phase: Any,
    near: Any,
    sampled: int,
) -> tuple[str, ...]:
    fixed = int((lags.fixed >= _FIXED).sum())
    told = [
        (
            f"Lags (steps before the last one): {fixed} of {total.length} are decided by the data"
            f"{_open(lags)}; rank {lags.rank} of {len(total.gram)}, excitation"
            f" {lags.excitation:.1e} (smallest eigenvalue of the Gram matrix over their mean; below"
            " 1e-6 counts as none)."
        ),
        (
            f"Copies: {near.copies} exact and {int(near.flagged.sum())} near ones among"
            f" {sampled:,} of {total.count:,} sequences."
        ),
    ]
    if student["trained"]:
        told.append(
            f"Small student, a linear state space model: explains {student['student R2']:.0%} of"
            f" the labels' squares; the best linear model {student['linear R2']:.0%}"
            + ("." if student["fits"] else ": it does not fit, so its response says little.")
        )
        told.append(
            f"Restarts: {student['restarts']} students from other starts differ by"
            f" {student['restarts differ']:.2g} at the lags trained on and by"
            f" {student['restarts differ beyond']:.2g} at longer ones (0 agreement, 1.4 nothing in"
            " common)."
        )
    else:
        why = f"every label is {shape.constant}" if shape.constant else "there are no labels"
        told.append(f"Small student: not trained, {why}.")
    for name in ("in the given order", "short lags first"):
        if name in student:
            told.append(
                f"Order: trained {name}, the student's response changes by"
                f" {student[name]['moved']:.2g} (relative) and explains {student[name]['R2']:.0%}."
            )
    if phase is None:
        told.append("Order: none given (--order), so training is taken to shuffle.")
    if shape.pool > 1:
        told.append(f"Length: {shape.pool} neighbouring steps were averaged.")
    return tuple(told)


def _open(lags: LagReport) -> str:
    """Return which lags are open, in words."""
    still_open = lags.fixed < _FIXED
    return f"; open: {runs(still_open)}" if still_open.any() else ""


def _collect(
    run: _Runner, shape: _Shape, first: np.ndarray, flagged: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return a sample for a network: x, y, which rows they are, which are flagged."""
    every = _every(len(flagged), 1000)
    got = run(_sampled, shape, every, each=[first.tolist()])
    rows = np.concatenate([g[2] for g in got])
    return (
        np.concatenate([g[0] for g in got]),
        np.concatenate([g[1] for g in got]),
        rows,
        flagged[rows],
    )


def _sampled(
    part: Part, shape: _Shape, every: int, first: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = _ready(part, shape)
    rows = np.arange(first, first + len(x))
    chosen = rows % every == 0
    labels = np.zeros((len(x), 0)) if y is None else y
    return x[chosen], labels[chosen], rows[chosen]


def _theory(run: _Runner, shape: _Shape, total: DataSums, phase: Any) -> tuple[str, ...]:
    """Return what `checklist.examine` says for near-zero starts, or which hypothesis fails."""
    if shape.classes or not shape.outputs:
        return ("It does not apply: it is about numbers as labels and the squared error.",)
    if total.channels > 1 or shape.outputs > 1:
        return ("It does not apply: it is about one channel and one output.",)
    if total.length < 3 or total.length > 64 or total.count > 5000 or len(run.parts) > 1:
        return (
            (
                "Nothing here: the theory is about a few short sequences (up to 64 steps) that show"
                " lags one by one."
            ),
        )
    x, y = _ready(run.parts[0], shape)
    assert y is not None
    told: dict[str, int] = {}
    reasons: tuple[str, ...] = ()
    for seed in range(10):
        A0 = -np.sort(-1e-3 * np.random.default_rng(seed).random(POLES))
        report = examine(x[:, :, 0], A0, labels=y[:, 0], C=np.ones(POLES))
        told[str(report.verdict)] = told.get(str(report.verdict), 0) + 1
        reasons = report.reasons
        if report.verdict == "the theory does not apply":
            return (f"It does not apply: {'; '.join(reasons)}.",)
    counted = ", ".join(f"{number} of 10 {name}" for name, number in told.items())
    return (
        (
            f"For free poles that start near zero (uniform, scale 0.001, {POLES} poles), all data"
            f" together: {counted}."
        ),
        *(f"{reason[0].upper()}{reason[1:]}." for reason in reasons),
    )
