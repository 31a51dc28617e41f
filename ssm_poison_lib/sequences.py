"""Input sequences with chosen non-zero positions, and training sets with a teacher's labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from ssm_poison_lib._checks import (
    MAX_ENTRIES,
    MAX_LENGTH,
    ArrayLike,
    Seed,
    as_array,
    as_instance,
    as_integer,
    as_positions,
    as_rng,
    as_scalar,
    in_range,
    shown,
)

__all__ = [
    "Teacher",
    "TrainingSet",
    "baseline_sequences",
    "check_labels",
    "concatenate",
    "fixed_sequences",
    "gaussian_sequences",
    "special_sequences",
]


def fixed_sequences(
    length: int, positions: Iterable[int], coefficients: ArrayLike = 1.0
) -> Float[np.ndarray, "n length"]:
    """Return sequences that are zero outside `positions`, with given coefficients there.

    Args:
        length: kappa, from 1 to a million.
        positions: k distinct 1-based positions.
        coefficients: a number (one sequence, the same value at each position), (n,) (n sequences,
            one value each) or (n, k).

    Raises:
        ValueError: for positions outside 1..kappa, zero sequences, coefficients of another shape,
            or more than 2^28 entries in all.

    >>> fixed_sequences(5, (1, 3), [2.0, -1.0])
    array([[ 2.,  0.,  2.,  0.,  0.],
           [-1.,  0., -1.,  0.,  0.]])
    """
    length = as_integer("length", length, low=1, high=MAX_LENGTH)
    columns = np.array(as_positions("positions", positions, length=length)) - 1
    values = as_array("coefficients", coefficients, ndim=(0, 1, 2))
    if values.ndim == 2 and values.shape[1] != len(columns):
        raise ValueError(
            f"coefficients must have one column per position, {len(columns)}; got shape"
            f" {values.shape}"
        )
    values = np.atleast_1d(values)
    rows = values if values.ndim == 2 else values[:, None]  # (n, k) or (n, 1)
    as_integer("length", length, low=1, high=max(1, MAX_ENTRIES // len(rows)))
    x = np.zeros((len(rows), length))
    x[:, columns] = rows
    return x


def gaussian_sequences(
    length: int, positions: Iterable[int], count: int, *, seed: Seed, scale: float = 1.0
) -> Float[np.ndarray, "n length"]:
    """Return `count` sequences with independent Gaussian entries of standard deviation `scale` at
    `positions`, zero elsewhere.

    Args:
        length: kappa >= 1
        positions: distinct, 1-based
        count: n >= 1
        seed: int, Generator or RandomState
        scale: in (0, 1e300].

    Raises:
        ValueError: as `fixed_sequences` does.
    """
    length = as_integer("length", length, low=1, high=MAX_LENGTH)
    positions = as_positions("positions", positions, length=length)
    count = as_integer("count", count, low=1, high=MAX_ENTRIES // length)
    scale = as_scalar("scale", scale, low=0.0, high=1e300, strict=True)
    return fixed_sequences(
        length, positions, scale * as_rng("seed", seed).standard_normal((count, len(positions)))
    )


def baseline_sequences(length: int, coefficients: ArrayLike = 1.0) -> Float[np.ndarray, "n length"]:
    """Return the theorem's baseline sequences: multiples of e_1 (non-zero at the first position
    only).

    Args:
        length: kappa >= 2 (at kappa = 1 the first position is the last, and A never moves).
        coefficients: number or (n,).
    """
    return fixed_sequences(as_integer("length", length, low=2, high=MAX_LENGTH), (1,), coefficients)


def special_sequences(length: int, coefficients: ArrayLike = 1.0) -> Float[np.ndarray, "n length"]:
    """Return the theorem's special sequences: multiples of e_{kappa-1} (non-zero at the
    next-to-last position only).

    Args:
        length: kappa >= 2, so that a next-to-last position exists.
        coefficients: number or (n,).

    >>> special_sequences(4)
    array([[0., 0., 1., 0.]])
    """
    length = as_integer("length", length, low=2, high=MAX_LENGTH)
    return fixed_sequences(length, (length - 1,), coefficients)


@runtime_checkable
class Teacher(Protocol):
    """What can label sequences: a `DiagonalSSM`, a `Network`, any object with this one method."""

    def last_output(self, x: ArrayLike, /) -> Float[np.ndarray, " n"]:
        """Return the last output for each of the sequences x of shape (n, kappa), shape (n,).

        Args:
            x: (n, kappa) input sequences
        """
        ...


@runtime_checkable
class _Scaled(Protocol):
    """A teacher that knows on which scale its outputs are rounded."""

    def output_scale(self, x: ArrayLike, /) -> Float[np.ndarray, " n"]: ...


@dataclass(frozen=True, eq=False, init=False)
class TrainingSet:
    """Input sequences with the labels that a teacher gives them; there is no way to hand labels in.

    All arrays are read-only copies.

    Args:
        x: (n, kappa) or (kappa,) inputs.
        teacher: labels them, see `Teacher`.

    Attributes:
        y: (n,) its last outputs, computed here.

    Raises:
        TypeError: for a teacher without `last_output`.
        ValueError: for an empty or non-finite x, or labels that overflow or are not one number per
            sequence.
    """

    x: Float[np.ndarray, "n kappa"]
    teacher: Teacher
    y: Float[np.ndarray, " n"] = field(init=False)

    def __init__(self, x: ArrayLike, teacher: Teacher) -> None:
        teacher = as_teacher(teacher)
        x = np.array(np.atleast_2d(as_array("x", x, ndim=(1, 2))))
        y = _labels(teacher, x)
        for array in (x, y):
            array.setflags(write=False)
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "teacher", teacher)
        object.__setattr__(self, "y", y)

    @property
    def length(self) -> int:
        """The sequence length kappa."""
        return int(self.x.shape[1])

    @property
    def size(self) -> int:
        """The number of sequences n."""
        return int(self.x.shape[0])

    def gram(self) -> Float[np.ndarray, "kappa kappa"]:
        """Return G = (2/n) sum_i r_i r_i^T, where r_i is x_i reversed, so that rows and columns are
        lags 0..kappa-1.

        With it the loss is (M* - M)^T G (M* - M) / 2 and its gradient flow needs nothing else of
        the data.

        Raises:
            ValueError: if kappa is above 16,384 (G would not fit in memory), or an entry overflows.
        """
        as_integer("kappa", self.length, low=1, high=math.isqrt(MAX_ENTRIES))
        lagged = self.x[:, ::-1]
        with np.errstate(over="ignore", invalid="ignore"):
            gram = (2.0 / self.size) * lagged.T @ lagged
        return np.asarray(in_range("x", "the Gram matrix", gram))


def as_teacher(value: Teacher) -> Teacher:
    """Return an object with `last_output` as it is; a TypeError names anything else.

    Args:
        value: an object with `last_output`
    """
    if isinstance(value, type) or not isinstance(value, Teacher):
        raise TypeError(f"teacher must have a method last_output(x); got {shown(value)}")
    return value


def _labels(teacher: Teacher, x: Float[np.ndarray, "n kappa"]) -> Float[np.ndarray, " n"]:
    """Return a teacher's own answers to x, one finite number for each sequence, in an array of
    their own.
    """
    y = np.array(as_array("the teacher's outputs", teacher.last_output(x), ndim=1))
    if len(y) != len(x):
        raise ValueError(f"the teacher's outputs must be one per sequence, {len(x)}; got {len(y)}")
    return y


def concatenate(first: TrainingSet, *others: TrainingSet) -> TrainingSet:
    """Return one training set with the sequences of all, in order.

    Args:
        first: training sets of one length and one teacher: the same object, or an equal one
            (systems and networks are equal if all their weights are).
        others: training sets of one length and one teacher: the same object, or an equal one
            (systems and networks are equal if all their weights are).

    Raises:
        ValueError: for different lengths or teachers.
        TypeError: for anything but training sets.
    """
    as_instance("first", first, TrainingSet)
    for other in others:
        as_instance("each of others", other, TrainingSet)
        if other.length != first.length:
            raise ValueError(
                f"training sets must have one sequence length; got {first.length} and"
                f" {other.length}"
            )
        if first.teacher is not other.teacher and first.teacher != other.teacher:
            raise ValueError("training sets must have the same teacher; got two different ones")
    return TrainingSet(np.concatenate([part.x for part in (first, *others)]), first.teacher)


def check_labels(x: ArrayLike, y: ArrayLike, teacher: Teacher, *, rtol: float = 1e-12) -> None:
    """Raise ValueError unless every label is the teacher's own last output: the meaning of "clean
    label".

    The message names the first label that differs, its value and the teacher's. TypeError if the
    teacher has no `last_output`, ValueError if an output overflows.

    Args:
        x: (n, kappa) sequences.
        y: (n,) labels from anywhere (a file, another program).
        teacher: who should have given them.
        rtol: allowed deviation, relative to the scale on which an output is rounded: the teacher's
            `output_scale`, such as the sum of abs(x_{kappa-m} M_m) of a `DiagonalSSM`; for a
            teacher without that method the largest size of its outputs.
    """
    teacher = as_teacher(teacher)
    x = as_array("x", x, ndim=2)
    y = as_array("y", y, ndim=1, last=len(x))
    rtol = as_scalar("rtol", rtol, low=0.0)
    expected = _labels(teacher, x)
    scale = teacher.output_scale(x) if isinstance(teacher, _Scaled) else np.abs(expected).max()
    with np.errstate(over="ignore"):
        wrong = np.flatnonzero(np.abs(y - expected) > rtol * scale)
    if len(wrong):
        i = wrong[0]
        raise ValueError(
            f"y must be the teacher's outputs: label {i} is {y[i]:.17g}, the teacher gives"
            f" {expected[i]:.17g} ({len(wrong)} of {len(y)} differ)"
        )
