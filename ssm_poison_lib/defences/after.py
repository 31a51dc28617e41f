"""After training: how many poles are in use, with which signs, and whether restarts agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ssm_poison_lib._checks import ArrayLike, as_array, as_instance
from ssm_poison_lib.metrics import effective_rank
from ssm_poison_lib.ssm import DiagonalSSM

__all__ = ["Disagreement", "PoleReport", "pole_report", "restart_disagreement"]


@dataclass(frozen=True)
class PoleReport:
    """What a trained linear student looks like.

    Attributes:
        effective_rank: of its poles, 1 for one dominant pole.
        negative: share of the poles' size in negative ones.
        price: M_2 = sum_j w_j a_j^2, what a student pays that interpolates with several poles; the
            theorem's teacher has 1.
        largest: the largest abs(a_j); above 1 the response grows without bound.
    """

    effective_rank: float
    negative: float
    price: float
    largest: float


def pole_report(student: DiagonalSSM) -> PoleReport:
    """Return effective rank, signs and price of a student.

    Args:
        student: trained, not all of its poles zero.

    Raises:
        TypeError: for anything but an SSM.
        ValueError: if all poles are zero.

    Source: section "What an interpolator pays" of chapter "One clean example too many": M_2 - 1 >=
    0 for poles that interpolate lag kappa - 1, odd kappa.
    """
    student = as_instance("student", student, DiagonalSSM)
    sizes = np.abs(student.A)
    return PoleReport(
        effective_rank=effective_rank(student.A),
        negative=float(sizes[student.A < 0].sum() / sizes.sum()),
        price=float(student.B * student.C @ student.A**2),
        largest=float(sizes.max()),
    )


@dataclass(frozen=True, eq=False)
class Disagreement:
    """How far students differ that all fit the same data.

    Attributes:
        each: (items,), at each lag or input the mean difference of two students.
        relative: root mean square difference of two students over the root mean square of their
            answers: 0 where all agree, 1.4 for unrelated answers of equal size.
    """

    each: Float[np.ndarray, " items"]
    relative: float


def restart_disagreement(answers: ArrayLike) -> Disagreement:
    """Return how far restarts disagree: where they do, the data do not decide, and the implicit
    bias does.

    Args:
        answers: (restarts, items) or (restarts, items, outputs), two restarts or more: responses at
            lags beyond the training length, or outputs on inputs that nobody trained on.

    Raises:
        ValueError: for fewer restarts.
    """
    values = as_array("answers", answers, ndim=(2, 3))
    values = values[..., None] if values.ndim == 2 else values
    if len(values) < 2:
        raise ValueError(f"answers must be of at least 2 restarts; got {len(values)}")
    first, second = np.triu_indices(len(values), k=1)
    size = np.abs(values).max()
    scaled = values / (size if size > 0 else 1.0)
    difference = scaled[first] - scaled[second]  # (pairs, items, outputs)
    level = np.sqrt(np.mean(np.square(scaled)))
    return Disagreement(
        each=size * np.sqrt(np.square(difference).sum(axis=2)).mean(axis=0),
        relative=float(np.sqrt(np.mean(np.square(difference))) / level) if level > 0 else 0.0,
    )
