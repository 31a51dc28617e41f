"""Before training: which lags the data fix, which sequences stand out, which are near copies.

A linear state space model whose last output counts answers x with sum_m M_m x_{kappa-m}. So data
enter its training through sums over sequences: G = sum_i x_i x_i^T by lags and P = sum_i x_i y_i^T.
`data_sums` makes them from any part of the rows, and sums of two parts add. What follows needs G,
or one look at each row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binom

from ssm_poison_lib._checks import (
    MAX_ENTRIES,
    ArrayLike,
    as_array,
    as_instance,
    as_integer,
    as_scalar,
)

__all__ = [
    "DataSums",
    "LagReport",
    "NearDuplicates",
    "data_sums",
    "detect_poison",
    "lag_gaps",
    "lag_report",
    "late_energy",
    "leverage",
    "mean_lag",
    "near_duplicates",
    "special_rows",
]

# an eigenvalue of G below this share of their mean counts as zero: a thousandth in amplitude
_EXCITED = 1e-6
_RARE, _ALONE = (
    0.01,
    0.05,
)  # a lag is shown if it has this part of an even share, or this share of some sequence
_PURE = 0.9  # share of a sequence's energy that puts it on one side of a gap
_CHANCE = 0.05  # a gap that random lags would leave with more than this probability is none
_CLOSE = 0.6  # nearest over second nearest distance of a near duplicate
_SURE = 1e-6  # probability below which an excess of near duplicates is not chance


@dataclass(frozen=True, eq=False)
class DataSums:
    """Sums over sequences; those of two disjoint parts of the rows add.

    Attributes:
        count: n.
        channels: of the sequences.
        gram: (kappa c, kappa c), sum_i r_i r_i^T, r_i the sequence by lags, channels of one lag
            side by side.
        cross: (kappa c, outputs), sum_i r_i y_i^T; no outputs without labels.
        label_gram: (outputs, outputs), sum_i y_i y_i^T.
        share: (kappa,), sum over sequences of the share of their energy at each lag.
        top: (kappa,), the largest such share of any sequence.
        silent: sequences that are zero.
    """

    count: int
    channels: int
    gram: Float[np.ndarray, "f f"]
    cross: Float[np.ndarray, "f outputs"]
    label_gram: Float[np.ndarray, "outputs outputs"]
    share: Float[np.ndarray, " kappa"]
    top: Float[np.ndarray, " kappa"]
    silent: int

    @property
    def length(self) -> int:
        """The sequence length kappa."""
        return len(self.share)

    def __add__(self, other: DataSums) -> DataSums:
        """Return the sums of both parts."""
        other = as_instance("other", other, DataSums)
        if (other.gram.shape, other.cross.shape, other.channels) != (
            self.gram.shape,
            self.cross.shape,
            self.channels,
        ):
            raise ValueError(
                f"other must be sums of sequences of the same shape; got {other.gram.shape},"
                f" {other.cross.shape}"
            )
        values = {
            f.name: getattr(self, f.name) + getattr(other, f.name)
            for f in fields(self)
            if f.name not in ("top", "channels")
        }
        return DataSums(**values, channels=self.channels, top=np.maximum(self.top, other.top))


def _rows(x: ArrayLike) -> Float[np.ndarray, "n kappa c"]:
    array = as_array("x", x, ndim=(2, 3))
    return array[..., None] if array.ndim == 2 else array


def _by_lags(x: Float[np.ndarray, "n kappa c"]) -> Float[np.ndarray, "n f"]:
    return np.ascontiguousarray(x[:, ::-1]).reshape(len(x), -1)


def _shares(x: Float[np.ndarray, "n kappa c"]) -> Float[np.ndarray, "n kappa"]:
    """Return the share of each sequence's energy by lags; zeros for a sequence that is zero."""
    size = np.abs(x).max(axis=(1, 2), keepdims=True)
    scaled = x[:, ::-1] / np.where(size > 0, size, 1.0)  # first, so that no square leaves float64
    energy = np.square(scaled).sum(axis=2)
    total = energy.sum(axis=1, keepdims=True)
    return np.asarray(energy / np.where(total > 0, total, 1.0))


def data_sums(x: ArrayLike, y: ArrayLike | None = None) -> DataSums:
    """Return the sums over sequences that the other functions need.

    Args:
        x: (n, kappa) or (n, kappa, channels).
        y: (n,) or (n, outputs) numbers; None: no labels.

    Raises:
        ValueError: for other shapes, values that are not finite, or kappa times channels above
            16,384.
    """
    rows = _rows(x)
    as_integer(
        "kappa times channels", rows.shape[1] * rows.shape[2], low=1, high=math.isqrt(MAX_ENTRIES)
    )
    labels = np.zeros((len(rows), 0)) if y is None else as_array("y", y, ndim=(1, 2))
    labels = labels.reshape(len(labels), -1)
    if len(labels) != len(rows):
        raise ValueError(
            f"y must have one label for each of the {len(rows)} sequences; got {len(labels)}"
        )
    r, shares = _by_lags(rows), _shares(rows)
    return DataSums(
        len(rows),
        rows.shape[2],
        r.T @ r,
        r.T @ labels,
        labels.T @ labels,
        shares.sum(axis=0),
        shares.max(axis=0),
        int((shares.sum(axis=1) == 0).sum()),
    )


@dataclass(frozen=True, eq=False)
class LagReport:
    """Which lags the data fix.

    Attributes:
        fixed: (kappa,), from 1 (the data decide the response at this lag) to 0 (they say nothing
            about it); with several channels that of the channel decided least.
        rank: how many directions of the kappa c the sequences excite.
        excitation: smallest eigenvalue of G over their mean: 0 unless the data excite persistently.
        energy: (kappa,), share of all energy at each lag.
        effective_rank: exp of the entropy of the eigenvalues.
    """

    fixed: Float[np.ndarray, " kappa"]
    rank: int
    excitation: float
    energy: Float[np.ndarray, " kappa"]
    effective_rank: float


def lag_report(sums: DataSums) -> LagReport:
    """Return which lags the data fix and which they leave to the implicit bias.

    Args:
        sums: of all sequences. A direction counts as excited if its eigenvalue is above 1e-6 of
            their mean.

    Raises:
        ValueError: if all sequences are zero.
    """
    sums = as_instance("sums", sums, DataSums)
    mean = np.trace(sums.gram) / len(sums.gram)
    if not mean > 0:
        raise ValueError("sums must be of sequences that are not all zero")
    values, vectors = np.linalg.eigh(sums.gram / mean)
    excited = values > _EXCITED
    resolved = np.square(vectors[:, excited]).sum(axis=1).reshape(sums.length, sums.channels)
    share = values[excited] / values[excited].sum()
    energy = np.diag(sums.gram).reshape(sums.length, sums.channels).sum(axis=1)
    return LagReport(
        fixed=np.minimum(resolved.min(axis=1), 1.0),
        rank=int(excited.sum()),
        excitation=float(max(values[0], 0.0)),
        energy=energy / energy.sum(),
        effective_rank=float(np.exp(-(share * np.log(share)).sum())),
    )


def leverage(x: ArrayLike, sums: DataSums) -> Float[np.ndarray, " n"]:
    """Return x_i^T G^+ x_i: 1 for a sequence that alone shows some direction of lags, near 0 for
    one of many.

    Args:
        x: (n, kappa) or (n, kappa, channels).
        sums: of all sequences, these among them.

    Raises:
        ValueError: for other shapes.
    """
    rows, sums = _rows(x), as_instance("sums", sums, DataSums)
    if rows.shape[1:] != (sums.length, sums.channels):
        raise ValueError(
            f"x must have shape (n, {sums.length}, {sums.channels}), as the sums; got {rows.shape}"
        )
    mean = np.trace(sums.gram) / len(sums.gram)
    values, vectors = (
        np.linalg.eigh(sums.gram / mean) if mean > 0 else (np.zeros(1), np.zeros((1, 1)))
    )
    excited = values > _EXCITED
    if not excited.any():
        return np.zeros(len(rows))
    scores = _by_lags(rows) @ (vectors[:, excited] / np.sqrt(mean * values[excited]))
    return np.minimum(np.square(scores).sum(axis=1), 1.0)


def late_energy(x: ArrayLike, lags: int) -> Float[np.ndarray, " n"]:
    """Return the share of each sequence's energy at lags below `lags`, its last positions; 0 for a
    zero sequence.

    Args:
        x: (n, kappa) or (n, kappa, channels).
        lags: from 1 to kappa.
    """
    rows = _rows(x)
    lags = as_integer("lags", lags, low=1, high=rows.shape[1])
    return np.asarray(_shares(rows)[:, :lags].sum(axis=1))


def mean_lag(x: ArrayLike) -> Float[np.ndarray, " n"]:
    """Return the mean lag of each sequence, weighted by energy; 0 for a zero sequence.

    Args:
        x: (n, kappa) or (n, kappa, channels).
    """
    rows = _rows(x)
    return np.asarray(_shares(rows) @ np.arange(rows.shape[1]))


def lag_gaps(sums: DataSums) -> list[tuple[int, int]]:
    """Return the runs of lags, first and last, that no sequence shows, between lags that some do;
    widest first.

    Chance leaves gaps too. Where five or more lags are shown, a run counts that as many random lags
    would leave with probability below 0.05: where all others are shown, three in a row of 12, two
    of 50, and never a single one. Fewer lags than five cannot tell, and every run counts.

    Args:
        sums: of all sequences.
    """
    sums = as_instance("sums", sums, DataSums)
    length, heard = sums.length, max(sums.count - sums.silent, 1)
    shown = np.flatnonzero((sums.share / heard > _RARE / length) | (sums.top > _ALONE))
    found = []
    for before, after in pairwise(shown):
        width, count = int(after - before - 1), len(shown)
        if width < 1:
            continue
        chance = (count - 1) * math.exp(
            _log_choose(length - width, count) - _log_choose(length, count)
        )
        if count < 5 or chance < _CHANCE:
            found.append((int(before) + 1, int(after) - 1))
    return sorted(found, key=lambda gap: gap[0] - gap[1])


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) if k <= n else -math.inf


def special_rows(late: ArrayLike) -> Bool[np.ndarray, " n"]:
    """Return which sequences are special: a minority with nearly all energy after a gap, where the
    others have none.

    All False unless 98 percent of the sequences are on one side (90 percent of their energy), and
    both sides occur. Equal numbers on both sides: those with short lags.

    Args:
        late: (n,) shares of energy at lags below the gap (`late_energy`).
    """
    share = as_array("late", late, ndim=1)
    short, long = share >= _PURE, share <= 1.0 - _PURE
    clear = short.sum() + long.sum() >= 0.98 * len(share)
    if not clear or not 1 <= short.sum() <= long.sum():
        return np.zeros(len(share), dtype=bool)
    return np.asarray(short)


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """Which sequences are nearly copies of others.

    Attributes:
        ratio: (n,), distance to the nearest other sequence over that to the second nearest; exact
            copies count once, and have the same value.
        nearest: (n,), row of the nearest one that is not an exact copy.
        copies: how many rows are exact copies of earlier ones.
        dimension: of the space that the sequences fill, from the ratios.
        expected: how many ratios below 0.6 that dimension explains.
        flagged: (n,) ratios below 0.6 if there are more than can be explained; else all False.
    """

    ratio: Float[np.ndarray, " n"]
    nearest: Int[np.ndarray, " n"]
    copies: int
    dimension: float
    expected: float
    flagged: Bool[np.ndarray, " n"]


def near_duplicates(x: ArrayLike, *, close: float = _CLOSE) -> NearDuplicates:
    """Return the sequences that are nearly copies of others: what gradient matching adds, if the
    originals stay.

    In D dimensions a ratio below r has probability r^D without copies. Few dimensions explain any
    ratio: there nothing can be told. A copy that was changed by more than the distance to its
    neighbours, or at fewer than half of its entries, looks like any other sequence.

    Source of the ratio: Facco, d'Errico, Rodriguez, Laio, "Estimating the intrinsic dimension of
    datasets by a minimal neighborhood information" (Scientific Reports 2017).

    Args:
        x: (n, kappa) or (n, kappa, channels), n >= 4 different ones for anything to be flagged.
        close: in (0, 1), the ratio of the nearest to the second nearest distance below which a
            sequence is suspicious.
    """
    rows = _rows(x)
    close = as_scalar("close", close, low=0.0, high=1.0, strict=True)
    flat = np.ascontiguousarray(rows.reshape(len(rows), -1))
    first: dict[bytes, int] = {}
    owner = np.array([first.setdefault(row.tobytes(), i) for i, row in enumerate(flat)])
    kept = np.flatnonzero(owner == np.arange(len(flat)))
    copies = len(flat) - len(kept)
    if len(kept) < 4:
        none = np.ones(len(flat))
        return NearDuplicates(none, np.arange(len(flat)), copies, 0.0, 0.0, none < 0)
    near, distance = _three_nearest(flat[kept])
    ratio = distance[:, 0] / np.where(distance[:, 1] > 0, distance[:, 1], 1.0)
    # From the largest ratios: with their originals, copies may be most of the rows.
    parts = np.array([0.75, 0.9, 0.95])
    quantiles = np.clip(np.quantile(ratio, parts), 1e-6, 1 - 1e-12)
    dimension = min(float((np.log(parts) / np.log(quantiles)).max()), float(flat.shape[1]))
    # Sparse sequences fill many flat pieces of different dimensions. There second over third
    # nearest distances are small as well (r^2D in D dimensions), and a copy leaves those alone.
    chance = max(close**dimension, math.sqrt(np.mean(distance[:, 1] < close * distance[:, 2])))
    # Sparse sequences have neighbours of the same pattern: those differ at few entries, changed
    # copies at most of them.
    suspicious = (ratio < close) & ((flat[kept] != flat[kept][near[:, 0]]).mean(axis=1) > 0.5)
    many = suspicious.sum() > 2 * chance * len(kept) + 1
    if not many or binom.sf(suspicious.sum() - 1, len(kept), chance) > _SURE:
        suspicious[:] = False
    place = np.searchsorted(kept, owner)
    return NearDuplicates(
        ratio=ratio[place],
        nearest=kept[near[:, 0]][place],
        copies=copies,
        dimension=dimension,
        expected=chance * len(kept),
        flagged=suspicious[place],
    )


def _three_nearest(
    x: Float[np.ndarray, "n f"],
) -> tuple[Int[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """Return rows and distances of the three nearest others: candidates in float32, their distances
    in float64.
    """
    small = (x - x.mean(axis=0)).astype(np.float32)
    size = np.square(small).sum(axis=1)
    found, exact = np.empty((len(x), 3), dtype=int), np.empty((len(x), 3))
    few = min(5, len(x) - 1)
    for start in range(0, len(x), 1024):
        part = slice(start, min(start + 1024, len(x)))
        squared = size - 2 * small[part] @ small.T
        mine = np.arange(part.stop - start)
        squared[mine, start + mine] = np.inf
        candidates = np.argpartition(squared, few - 1, axis=1)[:, :few]
        away = np.stack([np.linalg.norm(x[part] - x[c], axis=1) for c in candidates.T], axis=1)
        best = np.argsort(away, axis=1, kind="stable")[:, :3]
        found[part] = np.take_along_axis(candidates, best, axis=1)
        exact[part] = np.take_along_axis(away, best, axis=1)
    return found, exact


def detect_poison(x: ArrayLike) -> tuple[dict[str, object], Bool[np.ndarray, " n"]]:
    """Return a report, and which sequences are clean by what they show alone.

    A sequence is not clean if it is special (`lag_gaps`, `special_rows`) or nearly a copy
    (`near_duplicates`).

    Args:
        x: (n, kappa) or (n, kappa, channels).

    Returns:
        the report (gaps, special, near duplicates, dimension) and (n,) truth values, True = clean,
        in the order of the rows.
    """
    rows = _rows(x)
    gaps = lag_gaps(data_sums(rows))
    special = np.zeros(len(rows), dtype=bool)
    for low, _high in gaps:
        special |= special_rows(late_energy(rows, low))
    near = near_duplicates(rows)
    report = {
        "gaps": gaps,
        "special": np.flatnonzero(special).tolist(),
        "near duplicates": np.flatnonzero(near.flagged).tolist(),
        "dimension": near.dimension,
    }
    return report, ~(special | near.flagged)
