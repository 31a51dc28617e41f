"""The practitioner's checklist: what the theory says about somebody's own sequences and start.

The theory covers one setting (B = C^T = ones fixed, a teacher whose impulse response is 1 from lag
1 on, sequences that show lags one by one). Inside it a verdict rests on a theorem or on the book's
measurements, and says on which; where neither decides it is "undecided"; outside the setting the
report says that, and why. Nothing here trains a student.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import brentq

from ssm_poison_lib._checks import (
    ArrayLike,
    as_array,
    as_choice,
    as_flag,
    as_integer,
    as_scalar,
    shown,
)
from ssm_poison_lib.parametrizations import PARAMETRIZATIONS, phase_limit
from ssm_poison_lib.sequences import Teacher, TrainingSet
from ssm_poison_lib.ssm import DiagonalSSM

__all__ = ["ORDERS", "Report", "Verdict", "examine", "race_limit"]

#: The orders that `examine` knows: all data together; each kind alone to its end; baseline to its
#: end, then all data.
ORDERS = ("mixed", "special, then baseline", "baseline, then both")

_LAGS = (
    # errors are Gen_K, not normalised, K = 20 as in the theorem's setting, or kappa + 1 if that is
    # more
    20
)
_LARGE = 0.1  # the error above which a verdict says that training fails
# relative deviation that counts as none: an off-diagonal entry of G, a label, a value of the
# response
_SAME = 1e-9
# The measured rule for lag 1 beside the baseline (section "A checklist" of chapter "Where does the
# poison bite?"): the largest error that `race_limit` may predict for "spared", the smallest for
# "poisoned", how clearly one end must win, and the ranges in which flows were compared with it.
_SPARED, _POISONED, _LEAD = 0.04, 0.5, 0.5
_LENGTHS, _DIMS, _DOSE, _PULL, _SPREAD, _RATE = (5, 15), (3, 60), 1e5, 1.0, 10.0, 1e-16

Vector = Float[np.ndarray, " d"]


class Verdict(StrEnum):
    """What is to be expected; "large" is an error Gen_K (lag 0 left out, not normalised, K = 20 or
    kappa + 1) above 0.1.
    """

    GENERALIZES = "generalizes"
    """The error is small: proved."""
    FAILS = "fails"
    """The error is large, with special sequences or without."""
    POISONED = "poisoned"
    """The error is large, and small without the special sequences."""
    SPARED = "spared"
    """Special sequences are there, and the error is small: measured."""
    GENERALIZES_IF_FITTED = "generalizes if it fits"
    """Every perfect fit within reach is the teacher; whether training fits, or when, is open."""
    UNDECIDED = "undecided"
    """The setting is that of the theory, but it decides nothing here."""
    NOT_COVERED = "the theory does not apply"
    """At least one hypothesis fails."""


@dataclass(frozen=True, eq=False)
class Report:
    """What `examine` found; print it for a page to read.

    Attributes:
        gram: (kappa, kappa), G = (2/n) sum_i x_i x_i^T by lags.
        state_dim: d.
        lags: those that the sequences show.
        leading_power: l, the smallest power of a_j in its velocity at the start, one less than the
            smallest lag shown beyond 0 (0 additive, 1 multiplicative, 2 or more super-linear; None:
            A does not move).
        order: a name in `ORDERS`.
        scale: eps, the largest entry of the start.
        tie_gap: g, the relative gap of its two largest entries.
        spread_gap: their gap relative to the spread of all entries.
        race_threshold: d^{-(kappa-3)}, the gap that decides with special sequences.
        scale_threshold: eps^{kappa-3}, the one without.
        dose: beta / alpha, NaN without baseline sequences.
        baseline_error: Gen_K after training on the baseline sequences alone, by the closed form,
            NaN where it does not hold.
        predicted_errors: smallest and largest Gen_K that `race_limit` predicts, NaN where it is not
            used.
        verdict: "proved", "measured" or "none".
        basis: "proved", "measured" or "none".
        reasons: why.
        hypotheses: what the verdict takes for granted.
    """

    gram: Float[np.ndarray, "kappa kappa"]
    lags: tuple[int, ...]
    leading_power: int | None
    order: str
    state_dim: int
    scale: float
    tie_gap: float
    spread_gap: float
    race_threshold: float
    scale_threshold: float
    dose: float
    baseline_error: float
    predicted_errors: tuple[float, float]
    verdict: Verdict
    basis: str
    reasons: tuple[str, ...]
    hypotheses: tuple[str, ...]

    @property
    def regime(self) -> str:
        """How the leading term moves the entries."""
        if self.leading_power is None:
            return "A does not move"
        return (
            ("additive", "multiplicative")[self.leading_power]
            if self.leading_power < 2
            else "super-linear"
        )

    def __str__(self) -> str:
        length = len(self.gram)
        leading = "-" if self.leading_power is None else str(self.leading_power)
        lines = [
            f"verdict:    {self.verdict}" + ("" if self.basis == "none" else f" ({self.basis})"),
            (
                f"sequences:  kappa = {length}, lags shown"
                f" {', '.join(map(str, self.lags)) or 'none'}; leading l = {leading}"
                f" ({self.regime}); dose {self.dose:.3g}; {self.order}"
            ),
            (
                f"start:      d = {self.state_dim}, scale eps = {self.scale:.3g}, relative tie gap"
                f" g = {self.tie_gap:.3g}"
            ),
            (
                f"to compare: d^-(kappa-3) = {self.race_threshold:.1e}, eps^(kappa-3) ="
                f" {self.scale_threshold:.1e}"
            ),
        ]
        if np.isfinite(self.baseline_error):
            lines.append(
                f"baseline:   error {self.baseline_error:.3g} without the other sequences (closed"
                " form)"
            )
        if np.isfinite(self.predicted_errors[0]):
            lines.append(f"race:       error {_span(self.predicted_errors)} predicted")
        lines += [f"because     {reason}" for reason in self.reasons]
        lines += [f"if          {hypothesis}" for hypothesis in self.hypotheses]
        return "\n".join(lines)


def examine(
    data: TrainingSet | ArrayLike,
    A0: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    B: ArrayLike | None = None,
    C: ArrayLike | None = None,
    tie_gap: float | None = None,
    parametrization: str = "free",
    trained: str = "A",
    linear: bool = True,
    order: str = "mixed",
) -> Report:
    """Return what the book's theory says about a training set and a start.

    Args:
        data: a `TrainingSet`, or the (n, kappa) sequences themselves with `labels` (n,).
        A0: (d,) starting diagonal of A.
        labels: (n,) labels of sequences given as an array; with a `TrainingSet` they are its own
        B: (d,) the other weights (default: ones).
        C: (d,) the other weights (default: ones).
        tie_gap: the relative gap of the two largest entries, if it is below the rounding of A0.
        parametrization: a name in `PARAMETRIZATIONS`.
        trained: "A", or "ABC" if B and C move too.
        linear: False if the SSM is part of a nonlinear network.
        order: a name in `ORDERS`, in which the data are seen; a phase lasts until nothing moves.
            Short turns of both kinds are "mixed".

    Returns:
        a `Report`. Its verdict never claims more than a theorem of the book or, marked as
        "measured", the measured range.

    Raises:
        ValueError: for arguments of other shapes or ranges, or labels given twice or not at all.
        TypeError: for data of another class.

    Source: section "A checklist" of chapter "Where does the poison bite?"; the reasons name the
    theorems by their labels.
    """
    x, y, teacher = _training(data, labels)
    a = as_array("A0", A0, ndim=1)
    n, length, d = len(x), x.shape[1], len(a)
    if d < 2:
        raise ValueError("A0 must have at least 2 entries: a single one has no tie")
    w = np.ones(d)
    for name, value in (("B", B), ("C", C)):
        if value is not None:
            w = w * as_array(name, value, ndim=1, last=d)
    kind = PARAMETRIZATIONS[as_choice("parametrization", parametrization, PARAMETRIZATIONS)]
    as_choice("trained", trained, ("A", "ABC"))
    as_choice("order", order, ORDERS)
    linear = as_flag("linear", linear)
    if not ((a > kind.low) & (a < kind.high)).all():
        raise ValueError(
            f"A0 must lie between {kind.low:g} and {kind.high:g} for {parametrization!r}; got"
            f" {shown(A0)}"
        )
    a = -np.sort(-a)
    g, spread = _top_gap(a, tie_gap), float(a[0] - a[-1])
    gaps = np.append(g * abs(a[0]), a[1:-1] - a[2:])

    lagged = x[:, ::-1]
    G = (2.0 / n) * lagged.T @ lagged
    with np.errstate(over="ignore", invalid="ignore"):
        residual = y - lagged @ (a[None, :] ** np.arange(length)[:, None] @ w)
        # which G (M* - M) are not zero; a power beyond float64 is not
        drive = ~(np.abs(lagged.T @ residual) <= _SAME * np.abs(lagged).T @ np.abs(y))
    moving = np.flatnonzero(drive[1:])
    p = length - 1
    lags = tuple(int(m) for m in np.flatnonzero(np.diag(G) > 0))
    others = sum(G[m, m] for m in lags if 0 < m < p)
    case = _Case(
        lags=lags,
        length=length,
        start=_State(a, gaps),
        dose=float(others / G[p, p]) if p in lags else np.nan,
        parametrization=parametrization,
        order=order,
    )

    reasons = _outside(G, lags, y, lagged, teacher, w, trained)
    if not linear:
        reasons.insert(
            0, "the SSM is part of a nonlinear network; the theory is about a linear one"
        )
    if reasons:
        answer = _Answer(Verdict.NOT_COVERED, "none", tuple(reasons))
    else:
        baseline = _phase(case.start, p, parametrization)
        if baseline is not None:
            case = replace(case, baseline=baseline, baseline_error=baseline.error(length))
        answer = _verdict(case)
    hypotheses = []
    if answer.basis != "none":
        hypotheses.append("training is gradient flow: small steps, and it runs until nothing moves")
        if teacher is None:
            hypotheses.append(
                "the teacher's impulse response is 1 at every lag from 1 on, also those not shown"
            )
    G.setflags(write=False)
    with np.errstate(over="ignore"):
        scale_threshold = float(np.abs(a[0]) ** (length - 3))
    return Report(
        gram=G,
        lags=lags,
        leading_power=int(moving[0]) if len(moving) else None,
        order=order,
        state_dim=d,
        scale=float(a[0]),
        tie_gap=g,
        spread_gap=g * abs(float(a[0])) / spread if spread else 0.0,
        race_threshold=float(d) ** (3 - length),
        scale_threshold=scale_threshold,
        dose=case.dose,
        baseline_error=case.baseline_error,
        predicted_errors=answer.predicted,
        verdict=answer.verdict,
        basis=answer.basis,
        reasons=answer.reasons,
        hypotheses=tuple(hypotheses),
    )


def race_limit(
    A0: ArrayLike,
    *,
    length: int,
    dose: float,
    gaps: ArrayLike | None = None,
    reference: str = "median",
) -> tuple[Vector, float] | None:
    """Predict the limit of training on lags 1 and kappa - 1 together, by one scalar root instead of
    a flow.

    The drag takes all entries to s. From there each one, in units of s and of the race's own time,
    is taken to obey db/dtau = b^q - 1: its deviation from the reference decides when it would run
    to plus or minus infinity. The race ends when sum a_j^p = 1, after all entries are shifted alike
    to sum a_j = 1.

    Args:
        A0: (d,) start in descending order, d >= 3
        length: odd kappa >= 5
        dose: beta / alpha > 0
        gaps: (d-1,) exact differences a_j - a_{j+1} >= 0 if they are below the rounding of A0.
        reference: "median" or "mean", the entry that is taken to stay at the saddle s.

    Returns:
        the predicted limit (d,), and the lead: by how much of that time the largest entry blows up
        before the smallest one (negative: the smallest wins). None if the formula does not apply:
        all entries are equal, the mean of the start is not carried to s, or the start is already
        past the end of the race. An approximation: where the lead is clear, errors near 0.1 were
        measured to be within a factor of about 3.

    Raises:
        ValueError: for arguments of other shapes or ranges.

    Source: section "A checklist" of chapter "Where does the poison bite?". B = C^T = ones.
    """
    a = as_array("A0", A0, ndim=1)
    length = as_integer("length", length, low=5)
    dose = as_scalar("dose", dose, low=0.0, strict=True)
    as_choice("reference", reference, ("median", "mean"))
    if len(a) < 3 or (np.diff(a) > 0).any():
        raise ValueError(f"A0 must have at least 3 entries in descending order; got {shown(A0)}")
    if length % 2 == 0:
        raise ValueError(f"length must be odd; got {length}")
    between = a[:-1] - a[1:] if gaps is None else as_array("gaps", gaps, ndim=1, last=len(a) - 1)
    if (between < 0).any() or (np.abs(between - (a[:-1] - a[1:])) > 1e-15 * np.abs(a).max()).any():
        raise ValueError(f"gaps must be >= 0 and agree with A0 up to rounding; got {shown(gaps)}")
    arrival = _arrival(a, length, dose)
    return None if arrival is None else _race(between, arrival, length, reference)


def _span(predicted: tuple[float, float]) -> str:
    low, high = (f"{error:.2g}" for error in predicted)
    return low if low == high else f"{low} to {high}"


def _training(
    data: TrainingSet | ArrayLike, labels: ArrayLike | None
) -> tuple[Float[np.ndarray, "n kappa"], Float[np.ndarray, " n"], Teacher | None]:
    """Return sequences, labels, and the teacher if it is known."""
    teacher = None
    if isinstance(data, TrainingSet):
        if labels is not None:
            raise ValueError("labels must be left out for a TrainingSet, which has them")
        x, y, teacher = data.x, data.y, data.teacher
    else:
        if not (hasattr(data, "__array__") or isinstance(data, Sequence)) or isinstance(
            data, str | bytes
        ):
            raise TypeError(
                f"data must be a TrainingSet or an array of sequences; got {shown(data)}"
            )
        if labels is None:
            raise ValueError("labels must be given with bare sequences (or hand in a TrainingSet)")
        x = np.atleast_2d(as_array("data", data, ndim=(1, 2)))
        y = as_array("labels", labels, ndim=1)
        if len(y) != len(x):
            raise ValueError(f"labels must be one per sequence, {len(x)}; got {len(y)}")
    if x.shape[1] < 3:
        raise ValueError(f"data must be sequences of length kappa >= 3; got shape {x.shape}")
    return x, y, teacher


def _top_gap(a: Vector, given: float | None) -> float:
    """Return the relative gap of the two largest entries, `given` if that says it more exactly."""
    g = float((a[0] - a[1]) / abs(a[0])) if a[0] != 0 else 0.0
    if given is None:
        return g
    exact = as_scalar("tie_gap", given, low=0.0)
    if abs(exact - g) > 8 * np.finfo(float).eps * max(1.0, g):
        raise ValueError(
            f"tie_gap must agree with A0 up to rounding; got {exact:g}, A0 gives {g:g}"
        )
    return exact


@dataclass(frozen=True)
class _State:
    """Entries of A in descending order, and the gaps between neighbours, exact however small they
    are.
    """

    entries: Vector
    gaps: Float[np.ndarray, " gaps"]

    def error(self, length: int) -> float:
        """Return Gen_K without lag 0."""
        lags = np.arange(1, max(_LAGS, length + 1))
        return float(np.abs((self.entries[None, :] ** lags[:, None]).sum(axis=1) - 1.0).max())


@dataclass(frozen=True)
class _Case:
    """What a verdict depends on inside the theory's setting; letters as in `Report`."""

    lags: tuple[int, ...]
    length: int
    start: _State
    dose: float
    parametrization: str
    order: str
    baseline: _State | None = None
    baseline_error: float = np.nan

    @property
    def g(self) -> float:
        """The gap of the two largest entries."""
        return float(self.start.gaps[0])

    @property
    def smallest(self) -> float:
        """The smallest entry."""
        return float(self.start.entries[-1])

    @property
    def others(self) -> list[int]:
        """The lags shown between 0 and p."""
        return [m for m in self.lags if 0 < m < self.length - 1]


@dataclass(frozen=True)
class _Answer:
    verdict: Verdict
    basis: str
    reasons: tuple[str, ...]
    predicted: tuple[float, float] = (np.nan, np.nan)


def _proved(verdict: Verdict, *reasons: str) -> _Answer:
    return _Answer(verdict, "proved", reasons)


def _none(verdict: Verdict, *reasons: str) -> _Answer:
    return _Answer(verdict, "none", reasons)


def _phase(state: _State, lag: int, parametrization: str) -> _State | None:
    """Return where training on one lag alone ends; None where the book has no formula.

    The closed form in logarithms (any length, any gap) for free entries and exp, `phase_limit` for
    the others.
    """
    a, gaps = state.entries, state.gaps
    if parametrization == "free" and lag == 1:
        return _State(a + (1.0 - a.sum()) / len(a), gaps)
    if parametrization not in ("free", "exp"):
        # Gaps below rounding are not followed there.
        if a[-1] <= 0 or ((gaps > 0) & (gaps < 1e-9 * a[:-1])).any() or (a**lag).sum() >= 1:
            return None
        try:
            limit = phase_limit(a, parametrization, lag=lag)[0]
        except ValueError:  # beyond float64
            return None
        return _State(limit, limit[:-1] - limit[1:])
    if not a.any() or (a[-1] <= 0 and lag % 2):
        return None
    return _closed_form(state, lag, lag - 2 if parametrization == "free" else lag)


def _closed_form(state: _State, lag: int, n: int) -> _State:
    """Return the point with sum |a_j|^lag = 1 and the same differences of |a_j|^-n (n = 0: the same
    ratios) and signs.

    The magnitudes of each sign are one chain, followed from its largest on by logarithms of
    neighbours' ratios.
    """
    a, d = state.entries, len(state.entries)
    up, down = int((a > 0).sum()), int((a < 0).sum())
    chains = []
    for m, gaps in (
        (a[:up], state.gaps[: max(up - 1, 0)]),
        (-a[d - down :][::-1], state.gaps[d - down :][::-1]),
    ):
        if len(m):
            close = gaps < 0.5 * m[:-1]
            ratios = np.where(
                close, -np.log1p(-np.where(close, gaps / m[:-1], 0.0)), -np.diff(np.log(m))
            )
            chains.append(
                (float(np.log(m[0])), ratios, _log_expm1(n * ratios) - n * np.log(m[:-1]))
            )
    largest = max(head for head, _, _ in chains)

    def logs(top: float) -> list[Vector]:
        """Return the logarithms of the magnitudes of each chain if the largest of all is e^top."""
        if n == 0:
            return [
                top + head - largest - np.append(0.0, np.cumsum(ratios))
                for head, ratios, _ in chains
            ]
        found = []
        for head, _, steps in chains:
            first = np.logaddexp(-n * top, _log_expm1(np.array(n * (largest - head))) - n * largest)
            found.append(-np.logaddexp.accumulate(np.append(first, steps)) / n)
        return found

    def excess(top: float) -> float:
        return float(np.exp(lag * np.concatenate(logs(top))).sum()) - 1.0

    top = brentq(excess, -np.log(d) / lag - 1e-12, 1e-12, xtol=1e-15)
    entries, ends = np.zeros(d), []
    for log, (_, ratios, steps) in zip(logs(top), chains, strict=True):
        # a neighbour's |a|^-n is larger by e^steps: by what part of |a| that is less
        behind = np.logaddexp(0.0, steps + n * log[:-1]) / n if n else ratios
        ends.append((np.exp(log), -np.exp(log[:-1]) * np.expm1(-behind)))
    if up:
        entries[:up] = ends[0][0]
    if down:
        entries[d - down :] = -ends[-1][0][::-1]
    gaps = entries[:-1] - entries[1:]
    if up:
        gaps[: up - 1] = ends[0][1]
    if down:
        gaps[d - down :] = ends[-1][1][::-1]
    return _State(entries, gaps)


def _log_expm1(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Return log(e^x - 1) for x >= 0, -inf at 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(x > 30.0, x, np.log(np.expm1(np.minimum(x, 30.0)))))


def _outside(
    G: Float[np.ndarray, "kappa kappa"],
    lags: tuple[int, ...],
    y: Float[np.ndarray, " n"],
    lagged: Float[np.ndarray, "n kappa"],
    teacher: Teacher | None,
    w: Vector,
    trained: str,
) -> list[str]:
    """Return every reason why the setting is not that of the theory."""
    p, found = len(G) - 1, []
    if trained == "ABC":
        found.append("B and C are trained; the theory keeps them fixed")
    if not (w == 1.0).all():
        found.append(
            "the weights b_j c_j are not all 1: the special term does not cancel from the gaps then"
        )
    size = np.sqrt(np.diag(G))
    mixed = np.abs(G - np.diag(np.diag(G))) > _SAME * np.outer(size, size)
    if mixed.any():
        m, k = np.argwhere(mixed)[0]
        found.append(
            f"G mixes lags: its entry for lags {m} and {k} is {G[m, k]:.3g}, the theory needs 0"
        )
        return found
    if p not in lags:
        found.append(
            f"no sequence shows lag {p} (is non-zero at the first position): there is no baseline"
        )
    shown_lags = np.array(lags, dtype=int)
    response = np.zeros(len(G))
    response[shown_lags] = (2.0 / len(y)) * (lagged.T @ y)[shown_lags] / np.diag(G)[shown_lags]
    if teacher is not None and not isinstance(teacher, DiagonalSSM):
        found.append(
            "the teacher is no DiagonalSSM: its answers to other sequences are not known here"
        )
    if np.abs(lagged @ response - y).max() > _SAME * max(1.0, float(np.abs(y).max())):
        found.append("the labels are not those of a linear teacher")
    wanted = np.ones(len(G))
    wanted[0] = len(w)
    off = [m for m in lags if abs(response[m] - wanted[m]) > _SAME * len(w)]
    if off:
        found.append(
            f"the labels show a response {response[off[0]]:.4g} at lag {off[0]}, not"
            f" {wanted[off[0]]:g}"
        )
    elif (
        isinstance(teacher, DiagonalSSM)
        and np.abs(teacher.impulse_response(_LAGS)[1:] - 1.0).max() > _SAME
    ):
        found.append("the teacher's impulse response is not 1 at every lag from 1 on")
    return found


def _verdict(case: _Case) -> _Answer:
    """Return the verdict where B = C^T = ones, G is diagonal and the response 1."""
    if not case.others:
        return _single_kind(case)
    if case.order == "special, then baseline":
        return _special_first(case)
    if case.g == 0.0:
        return _exact_tie(case)
    if case.order == "baseline, then both":
        return _baseline_first(case)
    answer = _mixed(case)
    assert answer is not None
    return answer


def _single_kind(case: _Case) -> _Answer:
    if case.baseline is None:
        return _none(Verdict.NOT_COVERED, _no_closed_form(case))
    label = "prop-closed-form" if case.smallest > 0 else "prop-sign-of-largest"
    why = "baseline sequences only: the closed form gives the error"
    if case.parametrization != "free":
        label = "ch-order"
    verdict = Verdict.GENERALIZES if case.baseline_error < _LARGE else Verdict.FAILS
    return _proved(verdict, f"{why} ({label})")


def _no_closed_form(case: _Case) -> str:
    if case.parametrization not in ("free", "exp"):
        return (
            f"no closed form with {case.parametrization} from here: it needs positive entries with"
            " a sum of powers below 1 and a gap above 1e-9"
        )
    return (
        "no closed form: the start has entries that are not positive, and the lag is odd (or all"
        " are 0)"
    )


def _special_first(case: _Case) -> _Answer:
    """Each kind alone to its end: two scalar roots."""
    if len(case.others) > 1:
        return _none(
            Verdict.UNDECIDED, "several special lags in a phase of their own are not treated"
        )
    m, p = case.others[0], case.length - 1
    middle = _phase(case.start, m, case.parametrization)
    end = None if middle is None else _phase(middle, p, case.parametrization)
    if end is None or case.baseline is None:
        return _none(Verdict.UNDECIDED, _no_closed_form(case))
    error = end.error(case.length)
    why = (
        f"lag {m} alone to its end, then lag {p} alone: the closed forms give an error of"
        f" {error:.3g} (ch-order)"
    )
    if error < _LARGE:
        return _proved(Verdict.GENERALIZES, why)
    if case.baseline_error < _LARGE:
        return _proved(Verdict.POISONED, why)
    return _proved(Verdict.FAILS, why, "baseline training alone fails as well")


def _baseline_first(case: _Case) -> _Answer:
    """Baseline alone to its end, then everything, from a start without an exact tie.

    What `_mixed` can prove holds from every start of the same signs, also from where the baseline
    phase ends.
    """
    answer = _mixed(case, measured=False)
    if answer is not None and (
        answer.basis == "proved" or case.parametrization != "free" or case.others != [1]
    ):
        return answer
    if case.baseline is None:
        return _none(Verdict.UNDECIDED, _no_closed_form(case))
    bound = _antidote_bound(case.baseline.entries, case.length)
    if bound < _LARGE:
        why = (
            f"near the teacher all data keep the error below {bound:.2g} (prop-antidote, its proof"
            " with numbers)"
        )
        return _proved(Verdict.GENERALIZES, why)
    why = (
        f"after the baseline phase the error is {case.baseline_error:.2g}: too far from the teacher"
        " for prop-antidote"
    )
    return _none(Verdict.UNDECIDED, why)


def _antidote_bound(a: Vector, length: int) -> float:
    """Return a bound on Gen_K after training on lags 1 and p from `a`, which fits lag p and is near
    e_1; inf if there is none.

    Let R be the integral of beta |r_1| and P that of alpha p |r_p|. As long as no entry moves by
    more than x, so that S_1 bounds sum a^q from above and S_2 sum a^{2q} from below, d/dt |r_1| <=
    -d beta |r_1| + S_1 alpha p |r_p| and d/dt |r_p| <= -S_2 alpha p^2 |r_p| + p S_1 beta |r_1| give
    P <= S_1 / S_2 R and R <= |r_1(0)| / (d - S_1^2 / S_2), and a_j moves by at most |a_j|^q P + R.
    Where that is below x, no entry ever moves by x. The dose does not matter.
    """
    p, q, d = length - 1, length - 2, len(a)
    x = np.geomspace(1e-12, 0.5, 400)[:, None]
    largest = np.abs(a) + x
    upper = (largest**q).sum(axis=1)
    lower = np.maximum(a[0] - x[:, 0], 1e-300) ** (2 * q)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        room = d - upper**2 / lower
        R = np.where(room > 0, abs(1.0 - a.sum()) / np.maximum(room, 1e-300), np.inf)
        P = upper / lower * R
        moved = largest**q * P[:, None] + R[:, None]  # (x, d)
    inside = np.flatnonzero(moved.max(axis=1) < x[:, 0])
    if not len(inside):
        return np.inf
    rest = float(
        np.linalg.norm(np.abs(a[1:]) + moved[inside[0], 1:])
    )  # of the limit, which fits lags 1 and p
    if rest >= 1:
        return np.inf
    k = np.arange(2, max(_LAGS, length + 1))
    far = np.maximum((1 + rest**p) ** (k / p) - 1, 1 - (1 - rest**p) ** (k / p))
    return float((far + rest**k).max())


def _teacher_from_anywhere(case: _Case) -> bool:
    """Say whether training on all data leads to the teacher from every positive start without a tie
    at the top.

    By theorem so does every single other lag m; but losers below 1e-12 in a_j^m no longer move in
    float64, and the verdict is for people who train: they must be negligible.
    """
    if PARAMETRIZATIONS[case.parametrization].low >= 0.0:
        return case.others == [1]
    return (
        case.parametrization == "free"
        and len(case.others) == 1
        and case.others[0] > 1
        and case.smallest > 0
        and len(case.start.entries) * 1e-12 ** (1 / case.others[0]) < _LARGE
    )


def _mixed(case: _Case, *, measured: bool = True) -> _Answer | None:
    """All data together, from a start without an exact tie; None where only the measured rule
    knows, and is not wanted.
    """
    others, p, free = case.others, case.length - 1, case.parametrization == "free"
    fit = f"a positive fit of lags {others[0]} and {p} is the teacher (thm-sign)"
    if _teacher_from_anywhere(case):
        if free:
            why = (
                f"lag {others[0]} beside the baseline, positive entries: every run ends at the"
                " teacher (prop-other-lag)"
            )
        else:
            why = (
                f"{case.parametrization} keeps entries positive: every run ends at the teacher"
                " (thm-positive)"
            )
        return _proved(
            Verdict.GENERALIZES, why, "how soon is not claimed: near a tie it can take very long"
        )
    if PARAMETRIZATIONS[case.parametrization].low >= 0.0:
        return _proved(
            Verdict.GENERALIZES_IF_FITTED, f"{case.parametrization} keeps entries positive; {fit}"
        )
    if not free:
        why = f"with {case.parametrization} entries can become negative, and nothing is proved"
        return _none(Verdict.NOT_COVERED, why)
    if 1 not in others:
        if case.smallest <= 0:
            return _none(
                Verdict.NOT_COVERED, "without lag 1 the theory needs a start with positive entries"
            )
        return _proved(
            Verdict.GENERALIZES_IF_FITTED, f"without lag 1 no entry changes its sign; {fit}"
        )
    if case.length % 2 == 0 or case.length < 5:
        why = f"kappa = {case.length}: lag 1 beside the baseline is treated for odd kappa >= 5"
        return _none(Verdict.NOT_COVERED, why)
    if even := [m for m in others if m % 2 == 0]:
        why = (
            f"a fit of lags {even[0]} and {p}, both even, has one entry +1 or -1 and zeros"
            " (lem-price); lag 1 makes it +1"
        )
        return _proved(Verdict.GENERALIZES_IF_FITTED, why)
    if others != [1]:
        return _none(Verdict.NOT_COVERED, "lag 1 together with other odd lags is not treated")
    if case.start.gaps[1:].sum() == 0.0:
        label = "cor-two-entries" if len(case.start.entries) == 2 else "ex-proofs-exceptions"
        why = (
            f"all entries but the largest are equal: the only fit of lags 1 and {p} is the teacher"
            f" ({label})"
        )
        return _proved(Verdict.GENERALIZES, why)
    return _theorem_setting(case) if measured else None


def _exact_tie(case: _Case) -> _Answer:
    """Two equal largest entries: they stay equal, whatever the data."""
    p = case.length - 1
    note = (
        "an exact tie stays (prop-order-preserved); for one that is only below rounding, give"
        " tie_gap"
    )
    if not (
        case.parametrization == "free"
        and case.others == [1]
        and case.length % 2
        and case.length >= 5
    ):
        return _none(Verdict.UNDECIDED, note, "what follows from it here is not treated")
    if case.start.gaps.max() == 0.0:
        why = (
            "all entries stay equal, at a saddle, where lag 1 or 2 errs by at least 0.23"
            " (prop-critical)"
        )
    else:
        why = (
            f"a fit with a tie at the top errs by at least {2 ** ((p - 2) / p) - 1:.2f}"
            " (lem-near-tie)"
        )
    return _proved(Verdict.FAILS, note, f"{why}, with special sequences or without")


def _theorem_setting(case: _Case) -> _Answer:
    """Lags 1 and kappa - 1, odd kappa >= 5, d >= 3, free entries without an exact tie: the measured
    rule.
    """
    a, length = case.start.entries, case.length
    p, q, d = length - 1, length - 2, len(a)
    hint = "only a flow tells: flows.theorem_flows"
    checks = (
        (
            length <= _LENGTHS[1],
            f"kappa = {length} is not from {_LENGTHS[0]} to {_LENGTHS[1]}, as measured",
        ),
        (_DIMS[0] <= d <= _DIMS[1], f"d = {d} is not from {_DIMS[0]} to {_DIMS[1]}, as measured"),
        (case.dose <= _DOSE, f"the dose {case.dose:.3g} is above {_DOSE:g}"),
        (bool(np.abs(a).max() <= 1.0), "the start has entries beyond 1"),
    )
    if outside := [text for inside, text in checks if not inside]:
        return _none(Verdict.UNDECIDED, *outside, hint)
    arrival = _arrival(a, length, case.dose)
    if arrival is None:
        return _none(
            Verdict.UNDECIDED, "the mean of the start is not carried to the smallest saddle", hint
        )
    s = arrival.s
    spread = (a[0] - a[-1]) * np.exp(min(arrival.growth, 50.0)) / s
    rate = p * q * s ** (q - 1) * (1 - d * s**p)
    at_saddle = (
        (arrival.slope < 0, "the saddle is not attracting along the diagonal (eq-proofs-simple)"),
        (
            case.dose >= _PULL * p * s**q,
            f"the dose {case.dose:.3g} is too weak to hold the entries at 1/d",
        ),
        (  # what pulls an entry below zero to -1 before the drag turns it
            case.dose >= _PULL * p * max(-a[-1], 0.0) ** q,
            f"the dose {case.dose:.3g} is too weak to turn an entry at {a[-1]:.3g}",
        ),
        (spread <= _SPREAD, f"at the saddle the entries are {spread:.2g} times their size apart"),
        (rate >= _RATE, f"leaving the saddle takes a time of about {1 / rate:.0e}: not measured"),
    )
    if outside := [text for inside, text in at_saddle if not inside]:
        return _none(Verdict.UNDECIDED, *outside, hint)
    # With few entries the median is one of the racers.
    ends = [
        _race(case.start.gaps, arrival, length, name)
        for name in (("mean", "median") if d > 5 else ("mean",))
    ]
    runs = [end for end in ends if end is not None]
    if len(runs) < len(ends):
        return _none(Verdict.UNDECIDED, "the start is past the race already", hint)
    errors = [_State(limit, case.start.gaps).error(length) for limit, _ in runs]
    leads = [lead for _, lead in runs]
    predicted = (min(errors), max(errors))
    top = min(leads) > _LEAD
    law = f"the race formula predicts an error of {_span(predicted)}"
    if max(errors) < _SPARED and top:
        measured = f"below {_SPARED:g} every measured error was below {_LARGE:g}"
        return _Answer(Verdict.SPARED, "measured", (law, measured), predicted)
    if min(errors) > _POISONED and (top or max(leads) < -_LEAD):
        if not top:
            law += ", because the smallest entry wins"
        measured = (
            f"above {_POISONED:g} every measured error was above {_LARGE:g}; proved for gaps small"
            " enough (thm-separation)"
        )
        if case.baseline_error >= _LARGE:
            return _Answer(
                Verdict.FAILS,
                "measured",
                (law, measured, "baseline training alone fails as well"),
                predicted,
            )
        return _Answer(Verdict.POISONED, "measured", (law, measured), predicted)
    if top or max(leads) < -_LEAD:
        why = f"between {_SPARED:g} and {_POISONED:g} it is not exact enough"
    else:
        why = "whether the largest or the smallest entry wins is too close to call"
    return _Answer(Verdict.UNDECIDED, "none", (law, why, hint), predicted)


@dataclass(frozen=True)
class _Arrival:
    """The saddle s to which the drag carries the entries, h'(s), and by what power of e the gaps
    grow on the way to 0.01 s.
    """

    s: float
    slope: float
    growth: float


def _arrival(a: Vector, length: int, dose: float) -> _Arrival | None:
    """Return where the mean of the entries is carried: the smallest zero of h, None if another zero
    comes first.
    """
    d, p, q = len(a), length - 1, length - 2

    def h(m: Float[np.ndarray, "*m"]) -> Float[np.ndarray, "*m"]:
        return np.asarray(p * m**q * (1 - d * m**p) + dose * (1 - d * m))

    grid = np.geomspace(1 / d, d ** (-1 / p), 800)
    past = np.flatnonzero(h(grid[1:]) <= 0)
    i = int(past[0]) if len(past) else len(grid) - 2
    ends = h(grid[i : i + 2])
    bracketed = ends[0] > 0 > ends[1]  # else they differ by rounding only
    s = (
        float(brentq(lambda m: float(h(np.array(m))), grid[i], grid[i + 1]))
        if bracketed
        else float(grid[i])
    )
    slope = p * (q * s ** (q - 1) - (2 * q + 1) * d * s ** (2 * q)) - dose * d
    mean = float(a.mean())
    end = s * (0.99 if mean < s else 1.01)
    if (mean < end) != (mean < s):  # there already
        return _Arrival(s, slope, 0.0)
    m = np.linspace(mean, end, 400)
    speed = h(m)
    if not (speed * (s - mean) > 0).all():
        return None
    growth = np.trapezoid(p * q * m ** (q - 1) * (1 - d * m**p) / speed, m)
    return _Arrival(s, slope, float(growth))


def _race(
    gaps: Float[np.ndarray, " gaps"], arrival: _Arrival, length: int, reference: str
) -> tuple[Vector, float] | None:
    """Return the limit that `race_limit` describes, and the lead."""
    p, q, d = length - 1, length - 2, len(gaps) + 1
    below = np.append(0.0, np.cumsum(gaps))
    center = float(below.mean() if reference == "mean" else np.median(below))
    if center <= 0:  # half of the entries share the top exactly: none of them leaves the reference
        center = np.finfo(float).tiny
    above = below < center
    with np.errstate(divide="ignore"):
        logs = (
            np.maximum(np.log(np.abs(center - below)), -700.0) + arrival.growth - np.log(arrival.s)
        )
    left = _time_left(logs, above, q)
    later = left - left[0]
    # near ties: by the derivative, no difference of nearly equal times
    close = below < 1e-3 * center
    y = np.exp(min(logs[0], 100.0))
    later[close] = -np.log1p(-below[close] / center) * y / np.expm1(q * np.log1p(y))
    first = min(0.0, float(later[-1]))

    def entries(log_rest: float) -> Vector:
        b = 1.0 + _deviation(later - first + np.exp(log_rest), above, q)
        return np.asarray(arrival.s * b + (1.0 - arrival.s * b.sum()) / d)

    def excess(log_rest: float) -> float:
        return float((entries(log_rest) ** p).sum()) - 1.0

    start = float(left[0]) + first
    low = -(q - 1) * np.log(100.0 / arrival.s)
    if start <= 0 or excess(np.log(start)) > 0 or excess(low) < 0:
        return None
    return entries(brentq(excess, low, np.log(start), xtol=1e-9)), float(later[-1])


@lru_cache(maxsize=16)
def _blow_up_times(q: int) -> tuple[Float[np.ndarray, " grid"], ...]:
    """Return a grid of log |b - 1| and the log times that db/dtau = b^q - 1 needs from there to
    infinity, up and down.
    """
    logs = np.linspace(-30.0, 30.0, 6001)
    y = np.exp(logs)
    up = y / np.expm1(q * np.log1p(y))
    small = np.minimum(y, 0.5)
    down = y / np.where(
        y < 0.5, -np.expm1(q * np.log1p(-small)), 1.0 + np.sign(y - 1.0) * np.abs(y - 1.0) ** q
    )
    tail = np.exp(-(q - 1) * logs[-1]) / (q - 1)
    step = logs[1] - logs[0]
    sums = [
        np.append(np.cumsum((v[:0:-1] + v[-2::-1]) / 2.0 * step)[::-1], 0.0) for v in (up, down)
    ]
    return logs, np.log(tail + sums[0]), np.log(tail + sums[1])


def _time_left(logs: Vector, above: Bool[np.ndarray, " d"], q: int) -> Vector:
    grid, up, down = _blow_up_times(q)
    inside = np.exp(np.where(above, np.interp(logs, grid, up), np.interp(logs, grid, down)))
    return np.asarray(inside + np.maximum(grid[0] - logs, 0.0) / q)  # linear theory below the grid


def _deviation(left: Vector, above: Bool[np.ndarray, " d"], q: int) -> Vector:
    """Return b - 1 where `left` is the time to infinity: the inverse of `_time_left`."""
    grid, up, down = _blow_up_times(q)
    t = np.log(left)
    logs = np.where(above, np.interp(-t, -up, grid), np.interp(-t, -down, grid))
    first, last = np.where(above, up[0], down[0]), np.where(above, up[-1], down[-1])
    logs = np.where(t > first, grid[0] - q * (left - np.exp(first)), logs)
    logs = np.where(t < last, -(t + np.log(q - 1)) / (q - 1), logs)  # b^-(q-1) / (q-1) is left
    return np.asarray(np.where(above, 1.0, -1.0) * np.exp(logs))
