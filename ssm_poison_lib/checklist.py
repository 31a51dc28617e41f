"""The practitioner's checklist: what the book's theory says about somebody's own sequences, start and parametrization.

The theory covers one setting (B = C^T = ones fixed, a teacher whose impulse response is 1 from lag 1 on, sequences that show
lags one by one). Inside it a verdict rests on a theorem or on the book's measurements, and says on which; outside it the
report says that, and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq

from ssm_poison_lib._checks import ArrayLike, as_array, as_choice, as_scalar
from ssm_poison_lib.flow import baseline_limit
from ssm_poison_lib.parametrizations import PARAMETRIZATIONS
from ssm_poison_lib.sequences import TrainingSet
from ssm_poison_lib.ssm import DiagonalSSM

__all__ = ["Report", "Verdict", "examine"]

_LAGS = (
    20  # errors are Gen_K, not normalised, K = 20 as in the theorem's setting, or kappa + 1 if that is more
)
_LARGE = 0.1  # the error above which a verdict says that training fails
_SAME = 1e-9  # relative deviation that counts as none: an off-diagonal entry of G, a label, a value of the response
# Where the thresholds below were measured (chapter "Where does the poison bite?"): all errors above _LARGE at a top gap,
# relative to the spread, of at most _NEAR d^{-(kappa-3)}; all below it at _FAR d^{-(kappa-3)} or more.
_NEAR, _FAR = 1e-2, 1e3
_LENGTHS, _DIMS, _DOSES = (5, 7, 9), (3, 40), (0.2, 100.0)


class Verdict(StrEnum):
    """What is to be expected; "large" is an error Gen_K (lag 0 left out, not normalised, K = 20 or kappa + 1) above 0.1."""

    GENERALIZES = "generalizes"
    """The error is small: proved, and computed."""
    FAILS = "fails"
    """The error is large, with special sequences or without."""
    POISONED = "poisoned"
    """The error is large, and small without the special sequences."""
    SPARED = "spared"
    """Special sequences are there, and the error is small: measured."""
    GENERALIZES_IF_FITTED = "generalizes if it fits"
    """Every perfect fit within reach is the teacher; whether training fits, and how fast, is not claimed."""
    UNDECIDED = "undecided"
    """The setting is that of the theory, but it decides nothing here."""
    NOT_COVERED = "the theory does not apply"
    """At least one hypothesis fails."""


@dataclass(frozen=True, eq=False)
class Report:
    """What `examine` found; print it for a page to read.

    gram: (kappa, kappa), G = (2/n) sum_i x_i x_i^T by lags. lags: those that the sequences show. leading_power: l, the smallest
    power of a_j in its velocity at the start, one less than the smallest lag shown beyond 0 (0 additive, 1 multiplicative, 2 or
    more super-linear; None: A does not move). scale: eps, the largest entry of the start. tie_gap: g, the relative gap of its two
    largest entries. spread_gap: their gap relative to the spread of all entries. race_threshold: d^{-(kappa-3)}, the gap that
    decides with special sequences. scale_threshold: eps^{kappa-3}, the one without. dose: beta / alpha, NaN without baseline
    sequences. baseline_error: Gen_K after training on the baseline sequences alone, by the closed form, NaN where it does not
    hold. verdict, basis: "proved", "measured" or "none". reasons: why. hypotheses: what the verdict takes for granted.
    """

    gram: Float[np.ndarray, "kappa kappa"]
    lags: tuple[int, ...]
    leading_power: int | None
    state_dim: int
    scale: float
    tie_gap: float
    spread_gap: float
    race_threshold: float
    scale_threshold: float
    dose: float
    baseline_error: float
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
            ("additive", "multiplicative")[self.leading_power] if self.leading_power < 2 else "super-linear"
        )

    def __str__(self) -> str:
        length = len(self.gram)
        leading = "-" if self.leading_power is None else str(self.leading_power)
        lines = [
            f"verdict:    {self.verdict}" + ("" if self.basis == "none" else f" ({self.basis})"),
            f"sequences:  kappa = {length}, lags shown {', '.join(map(str, self.lags)) or 'none'};"
            f" leading l = {leading} ({self.regime}); dose {self.dose:.3g}",
            f"start:      d = {self.state_dim}, scale eps = {self.scale:.3g}, relative tie gap g = {self.tie_gap:.3g}",
            f"to compare: d^-(kappa-3) = {self.race_threshold:.1e}, eps^(kappa-3) = {self.scale_threshold:.1e}",
        ]
        if np.isfinite(self.baseline_error):
            lines.append(
                f"baseline:   error {self.baseline_error:.3g} without the other sequences (closed form)"
            )
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
) -> Report:
    """Return what the book's theory says about a training set and a start.

    data: a `TrainingSet`, or the (n, kappa) sequences themselves with `labels` (n,). A0: (d,) starting diagonal of A.
    B, C: (d,) the other weights (default: ones). tie_gap: the relative gap of the two largest entries, if it is below the
    rounding of A0. parametrization: a name in `PARAMETRIZATIONS`. trained: "A", or "ABC" if B and C move too. linear: False if
    the SSM is part of a nonlinear network.

    Returns a `Report`. Its verdict never claims more than a theorem of the book or, marked as "measured", the measured range.

    Raises ValueError for arguments of other shapes or ranges, or labels given twice or not at all.

    Source: section "A checklist" of chapter "Where does the poison bite?", which names the theorems.
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
    if not ((a > kind.low) & (a < kind.high)).all():
        raise ValueError(f"A0 must lie between {kind.low:g} and {kind.high:g} for {parametrization!r}")
    a = -np.sort(-a)
    g, spread = _top_gap(a, tie_gap), float(a[0] - a[-1])

    lagged = x[:, ::-1]
    G = (2.0 / n) * lagged.T @ lagged
    residual = y - lagged @ (a[None, :] ** np.arange(length)[:, None] @ w)
    drive = np.abs(lagged.T @ residual) > _SAME * np.abs(lagged).T @ np.abs(
        y
    )  # which G (M* - M) are not zero
    moving = np.flatnonzero(drive[1:])
    p = length - 1
    lags = tuple(int(m) for m in np.flatnonzero(np.diag(G) > 0))
    closed = p in lags and bool((a > 0).all()) and parametrization == "free" and (a**p).sum() < 1
    others = sum(G[m, m] for m in lags if 0 < m < p)
    case = _Case(
        lags=lags, length=length, d=d, eps=float(a[0]), g=g, rho=g * abs(a[0]) / spread if spread else 0.0,
        dose=float(others / G[p, p]) if p in lags else np.nan,
        baseline=_baseline_error(a, length, g) if closed else np.nan, parametrization=parametrization,
    )  # fmt: skip

    verdict, basis, reasons = (
        Verdict.NOT_COVERED,
        "none",
        _outside(G, lags, y, lagged, teacher, w, a, trained),
    )
    if not linear:
        reasons.insert(0, "the SSM is part of a nonlinear network; the theory is about a linear one")
    hypotheses = []
    if not reasons:
        verdict, basis, reasons = _verdict(case)
        if basis != "none":
            hypotheses.append("training is gradient flow: small steps, and it runs until nothing moves")
        if basis != "none" and teacher is None:
            hypotheses.append(
                "the teacher's impulse response is 1 at every lag from 1 on, also those not shown"
            )
    G.setflags(write=False)
    return Report(
        gram=G, lags=lags, leading_power=int(moving[0]) if len(moving) else None, state_dim=d, scale=case.eps,
        tie_gap=g, spread_gap=case.rho, race_threshold=float(d) ** (3 - length),
        scale_threshold=abs(case.eps) ** (length - 3), dose=case.dose, baseline_error=case.baseline,
        verdict=verdict, basis=basis, reasons=tuple(reasons), hypotheses=tuple(hypotheses),
    )  # fmt: skip


def _training(
    data: TrainingSet | ArrayLike, labels: ArrayLike | None
) -> tuple[Float[np.ndarray, "n kappa"], Float[np.ndarray, " n"], DiagonalSSM | None]:
    """Return sequences, labels, and the teacher if it is known."""
    teacher = None
    if isinstance(data, TrainingSet):
        if labels is not None:
            raise ValueError("labels must be left out for a TrainingSet, which has them")
        x, y, teacher = data.x, data.y, data.teacher
    else:
        if labels is None:
            raise ValueError("labels must be given with bare sequences (or hand in a TrainingSet)")
        x = np.atleast_2d(as_array("data", data, ndim=(1, 2)))
        y = as_array("labels", labels, ndim=1)
        if len(y) != len(x):
            raise ValueError(f"labels must be one per sequence, {len(x)}; got {len(y)}")
    if x.shape[1] < 3:
        raise ValueError(f"data must be sequences of length kappa >= 3; got shape {x.shape}")
    return x, y, teacher


def _top_gap(a: Float[np.ndarray, " d"], given: float | None) -> float:
    """Return the relative gap of the two largest entries, `given` if that says it more exactly."""
    g = float((a[0] - a[1]) / abs(a[0])) if a[0] != 0 else 0.0
    if given is None:
        return g
    exact = as_scalar("tie_gap", given, low=0.0)
    if abs(exact - g) > 8 * np.finfo(float).eps:
        raise ValueError(f"tie_gap must agree with A0 up to rounding; got {exact:g}, A0 gives {g:g}")
    return exact


@dataclass(frozen=True)
class _Case:
    """What a verdict depends on inside the theory's setting; letters as in `Report`."""

    lags: tuple[int, ...]
    length: int
    d: int
    eps: float
    g: float
    rho: float
    dose: float
    baseline: float
    parametrization: str


def _baseline_error(a: Float[np.ndarray, " d"], length: int, g: float) -> float:
    """Return Gen_K of the limit of baseline training from `a`, descending and positive, whose relative top gap is exactly g."""
    n = length - 3
    if n < 1 or g > 1e-9:
        limit = baseline_limit(a, length)
    else:  # a top gap without digits in `a`: the conserved differences a_j^-n - a_1^-n by g itself
        excess = a[0] ** -n * np.expm1(-n * np.log1p((a - a[0]) / a[0]))
        excess[1] = a[0] ** -n * np.expm1(-n * np.log1p(-g))
        low = len(a) ** (-1.0 / (n + 2)) * (1 - 1e-12)
        s = brentq(lambda s: ((s**-n + excess) ** (-(n + 2) / n)).sum() - 1.0, low, 1.0 + 1e-12, xtol=1e-15)
        limit = (s**-n + excess) ** (-1.0 / n)
    return float(max(abs((limit**k).sum() - 1.0) for k in range(1, max(_LAGS, length + 1))))


def _outside(
    G: Float[np.ndarray, "kappa kappa"],
    lags: tuple[int, ...],
    y: Float[np.ndarray, " n"],
    lagged: Float[np.ndarray, "n kappa"],
    teacher: DiagonalSSM | None,
    w: Float[np.ndarray, " d"],
    a: Float[np.ndarray, " d"],
    trained: str,
) -> list[str]:
    """Return every reason why the setting is not that of the theory."""
    p, found = len(G) - 1, []
    if trained == "ABC":
        found.append("B and C are trained; the theory keeps them fixed")
    if not (w == 1.0).all():
        found.append("the weights b_j c_j are not all 1: the special term does not cancel from the gaps then")
    if not (a > 0).all():
        found.append("the start has entries that are not positive")
    size = np.sqrt(np.diag(G))
    mixed = np.abs(G - np.diag(np.diag(G))) > _SAME * np.outer(size, size)
    if mixed.any():
        m, k = np.argwhere(mixed)[0]
        found.append(f"G mixes lags: its entry for lags {m} and {k} is {G[m, k]:.3g}, the theory needs 0")
        return found
    if p not in lags:
        found.append(f"no sequence shows lag {p} (is non-zero at the first position): there is no baseline")
    shown = np.array(lags, dtype=int)
    response = np.zeros(len(G))
    response[shown] = (2.0 / len(y)) * (lagged.T @ y)[shown] / np.diag(G)[shown]
    if np.abs(lagged @ response - y).max() > _SAME * max(1.0, float(np.abs(y).max())):
        found.append("the labels are not those of a linear teacher")
    wanted = np.ones(len(G))
    wanted[0] = len(w)
    off = [m for m in lags if abs(response[m] - wanted[m]) > _SAME * len(w)]
    if off:
        found.append(
            f"the labels show a response {response[off[0]]:.4g} at lag {off[0]}, not {wanted[off[0]]:g}"
        )
    elif teacher is not None and np.abs(teacher.impulse_response(_LAGS)[1:] - 1.0).max() > _SAME:
        found.append("the teacher's impulse response is not 1 at every lag from 1 on")
    return found


def _verdict(case: _Case) -> tuple[Verdict, str, list[str]]:
    """Return verdict, basis and reasons where B = C^T = ones, G is diagonal, the start positive and the response 1."""
    p, free = case.length - 1, case.parametrization == "free"
    others = [m for m in case.lags if 0 < m < p]
    if not others:
        if not np.isfinite(case.baseline):
            why = "baseline sequences only, but the closed form is about free entries with sum a_j^p below 1"
            return Verdict.NOT_COVERED, "none", [why]
        verdict = Verdict.GENERALIZES if case.baseline < _LARGE else Verdict.FAILS
        return verdict, "proved", ["baseline sequences only: the closed form gives the error"]
    fit = f"a positive fit of lags {others[0]} and {p} is the teacher"
    if case.g == 0.0:
        return _exact_tie(case.length, free and others == [1])
    if PARAMETRIZATIONS[case.parametrization].low >= 0.0:
        return (
            Verdict.GENERALIZES_IF_FITTED,
            "proved",
            [f"{case.parametrization} keeps entries positive; {fit}"],
        )
    if not free:
        why = f"with {case.parametrization} entries can become negative, and nothing is proved"
        return Verdict.NOT_COVERED, "none", [why]
    if 1 not in others:
        return Verdict.GENERALIZES_IF_FITTED, "proved", [f"without lag 1 no entry changes its sign; {fit}"]
    if case.length % 2 == 0 or case.length < 5:
        why = f"kappa = {case.length}: lag 1 beside the baseline is treated for odd kappa >= 5"
        return Verdict.NOT_COVERED, "none", [why]
    if even := [m for m in others if m % 2 == 0]:
        why = (
            f"a fit of lags {even[0]} and {p}, both even, has one entry +1 or -1 and zeros; lag 1 makes it +1"
        )
        return Verdict.GENERALIZES_IF_FITTED, "proved", [why]
    if others != [1]:
        return Verdict.NOT_COVERED, "none", ["lag 1 together with other odd lags is not treated"]
    if case.d == 2:
        return Verdict.GENERALIZES, "proved", [f"at d = 2 the only fit of lags 1 and {p} is the teacher"]
    return _special(case)


def _exact_tie(length: int, theorem: bool) -> tuple[Verdict, str, list[str]]:
    """Return the verdict for two equal largest entries; theorem: free entries, lags 1 and kappa - 1."""
    p = length - 1
    bound = min(2 ** ((length - 3) / p) - 1, 1 - (2 * length) ** (-1 / p) * p / length)
    if not theorem or length % 2 == 0 or bound <= _LARGE:
        return Verdict.UNDECIDED, "none", ["an exact tie stays; what follows from it here is not treated"]
    why = f"an exact tie stays, with special sequences or without, and a fit with it errs by at least {bound:.2f}"
    return Verdict.FAILS, "proved", [why]


def _special(case: _Case) -> tuple[Verdict, str, list[str]]:
    """Return the verdict for lags 1 and kappa - 1, odd kappa >= 5, d >= 3, free positive entries without an exact tie."""
    p, q, d = case.length - 1, case.length - 2, case.d
    s_m = ((q - 1) / (2 * (2 * q + 1) * d)) ** (1 / p)
    low = max(p**2 * s_m ** (q - 1) / (2 * d), _DOSES[0])  # the first: enough for a single saddle
    checks = (
        (case.length in _LENGTHS, f"kappa = {case.length} is not among the measured {_LENGTHS}"),
        (_DIMS[0] <= d <= _DIMS[1], f"d = {d} is not from {_DIMS[0]} to {_DIMS[1]}, as measured"),
        (low < case.dose <= _DOSES[1], f"the dose {case.dose:.3g} is not from {low:.3g} to {_DOSES[1]:g}"),
        (case.eps * d <= 0.1, f"eps = {case.eps:.3g} is more than a tenth of 1/d = {1 / d:.3g}"),
    )
    if outside := [text for inside, text in checks if not inside]:
        return Verdict.UNDECIDED, "none", outside
    ratio = case.rho * float(d) ** (case.length - 3)
    law = f"the top gap relative to the spread is {case.rho:.1e}, that is {ratio:.2g} d^-(kappa-3)"
    if _NEAR < ratio < _FAR:
        why = f"between {_NEAR:g} and {_FAR:g} the error falls from large to small, gradually"
        return Verdict.UNDECIDED, "none", [law, why]
    if ratio >= _FAR:
        return (
            Verdict.SPARED,
            "measured",
            [law, f"from {_FAR:g} on every measured error was below {_LARGE:g}"],
        )
    measured = f"up to {_NEAR:g} every measured error was above {_LARGE:g}; proved for gaps small enough"
    if case.baseline >= _LARGE:
        return Verdict.FAILS, "measured", [law, measured, "baseline training alone fails as well"]
    return Verdict.POISONED, "measured", [law, measured]
