"""Diagonal linear state space models: outputs, impulse response, teachers, starts near zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex, Float
from scipy.fft import irfft, next_fast_len, rfft

from ssm_poison_lib._checks import (
    MAX_ENTRIES,
    MAX_LENGTH,
    ArrayLike,
    Seed,
    as_array,
    as_choice,
    as_complex,
    as_integer,
    as_rng,
    as_scalar,
    in_range,
)

__all__ = ["DiagonalSSM", "impulse_response", "near_zero", "teacher", "theorem_teacher"]

# The poles of the paper's teachers of dimension 1 to 4 (authors' settings); their B and C are all
# ones.
_TEACHER_POLES = {
    "dim=1": (1.0,),
    "dim=2": (0.99, 0.8),
    "dim=3": (0.99, 0.8, 0.5),
    "dim=4": (0.99, 0.8, 0.5, 0.3),
}

# The least scale of a near-zero start: below it entries far smaller than the scale would be
# subnormal numbers.
_LEAST_SCALE = 1e-290


def impulse_response(A: ArrayLike, w: ArrayLike, length: int) -> Float[np.ndarray, " length"]:
    """Return M_m = sum_j w_j a_j^m for lags m = 0 .. length-1, with 0^0 = 1.

    The lags are split, m = q s + r with s about the root of `length`: two tables of cumulative
    products, (a_j^s)^q and a_j^r, and one matrix product give all of them. A power has about
    2 sqrt(m) roundings in place of one.

    Args:
        A: (d,) diagonal of the state transition matrix
        w: (d,) weights b_j c_j
        length: number of lags, from 1 to a million (d * length at most 2^28).

    Raises:
        ValueError: if a value is not finite (some abs(a_j) > 1 raised too high), naming the first
            such lag, and for arguments of other shapes.
    """
    A = as_array("A", A, ndim=1)
    w = as_array("w", w, ndim=1, last=len(A))
    length = as_integer(
        "length", length, low=1, high=min(MAX_LENGTH, max(1, MAX_ENTRIES // len(A)))
    )
    stride = math.isqrt(length - 1) + 1
    near, far = np.empty((stride, len(A))), np.empty((-(-length // stride), len(A)))
    with np.errstate(over="ignore", invalid="ignore"):
        # Each table gets half of the weight's exponent: neither leaves float64's range by the
        # weight.
        far[0], exponent = np.frexp(w)
        near[0] = np.ldexp(1.0, exponent - exponent // 2)
        far[0] = np.ldexp(far[0], exponent // 2)
        near[1:], far[1:] = A, A**stride
        np.multiply.accumulate(near, axis=0, out=near)
        np.multiply.accumulate(far, axis=0, out=far)
        response = (far @ near.T).ravel()[:length]  # (rows, d) @ (d, stride)
    finite = np.isfinite(response)
    if finite.all():
        return response
    with np.errstate(over="ignore", invalid="ignore"):
        # A row of the tables may overflow before its lag does: powers one by one. An entry without
        # weight does not matter; a small weight may bring a large power back into range.
        lost = np.flatnonzero(~finite)
        a, half = A[w != 0], lost[:, None] // 2
        response[lost] = (w[w != 0] * a**half * a ** (lost[:, None] - half)).sum(axis=1)
    if not np.isfinite(response).all():
        lag = int(np.argmin(np.isfinite(response)))
        raise ValueError(
            f"length must be at most {lag} for this SSM: its impulse response overflows at lag"
            f" {lag} (largest abs(a_j) is {np.abs(A).max():.6g}); got length={length}"
        )
    return response


def _respond(
    compute: Callable[[Float[np.ndarray, "..."]], Float[np.ndarray, "..."]],
    x: Float[np.ndarray, "..."],
    growth: float,
) -> Float[np.ndarray, "..."]:
    """Return compute(x), linear in each sequence x (..., kappa), also where only partial sums
    overflow.

    Args:
        growth: how many times its largest term a sum can be. Sequences whose result is not finite
            are computed again, scaled down by a power of two, which is exact.

    Raises:
        ValueError: if a result itself is beyond the range of float64.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        y = np.asarray(compute(x))
        if np.isfinite(y).all():
            return y
        rows, results = np.atleast_2d(x), np.array(y.reshape(*np.atleast_2d(x).shape[:1], -1))
        lost = ~np.isfinite(results).all(axis=1)
        power = np.frexp(np.abs(rows[lost]).max(axis=1, keepdims=True))[1] + math.ceil(
            math.log2(growth)
        )
        small = np.asarray(compute(np.ldexp(rows[lost], -power)))
        results[lost] = np.ldexp(small.reshape(len(small), -1), power)
    return np.asarray(in_range("x", "an output of this SSM", results).reshape(y.shape))


@dataclass(frozen=True, eq=False, init=False)
class DiagonalSSM:
    """A linear SSM with a real diagonal state transition matrix: h_t = A h_{t-1} + B x_t, y_t = C
    h_t, h_0 = 0.

    Stored as read-only float64 copies; two systems are equal if A, B and C are.
    `DiagonalSSM.ones(A)` sets B and C to ones.

    Args:
        A: (d,) the diagonal a_1..a_d.
        B: (d,) input weights.
        C: (d,) output weights.

    Raises:
        ValueError: if a shape differs, an entry is not finite, or d = 0.

    Source: the model of the paper; chapter "What is a state space model?".
    """

    A: Float[np.ndarray, " d"]
    B: Float[np.ndarray, " d"]
    C: Float[np.ndarray, " d"]

    def __init__(self, A: ArrayLike, B: ArrayLike, C: ArrayLike) -> None:
        diagonal = as_array("A", A, ndim=1, frozen=True)
        object.__setattr__(self, "A", diagonal)
        object.__setattr__(self, "B", as_array("B", B, ndim=1, last=len(diagonal), frozen=True))
        object.__setattr__(self, "C", as_array("C", C, ndim=1, last=len(diagonal), frozen=True))

    @classmethod
    def ones(cls, A: ArrayLike) -> DiagonalSSM:
        """Return the SSM with diagonal A and B = C^T = (1, ..., 1), the form of the theorem's
        students.

        Args:
            A: (d,) the diagonal of the state transition matrix.

        Raises:
            ValueError: if A has another shape, is empty, or an entry is not finite.
        """
        A = as_array("A", A, ndim=1)
        return cls(A, np.ones(len(A)), np.ones(len(A)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DiagonalSSM):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("A", "B", "C")
        )

    def __hash__(self) -> int:
        # Adding 0 turns -0.0, which equals 0.0, into it.
        return hash(tuple((part + 0.0).tobytes() for part in (self.A, self.B, self.C)))

    @property
    def state_dim(self) -> int:
        """The state dimension d."""
        return len(self.A)

    @property
    def w(self) -> Float[np.ndarray, " d"]:
        """The weights w_j = b_j c_j, all that the outputs depend on beside A (ValueError if a
        product overflows).
        """
        with np.errstate(over="ignore"):
            return np.asarray(in_range("B and C", "a weight b_j c_j", self.B * self.C))

    def impulse_response(self, length: int) -> Float[np.ndarray, " length"]:
        """Return M_m = C A^m B for lags m = 0 .. length-1 (see the function `impulse_response`).

        Args:
            length: number of lags, >= 1
        """
        return impulse_response(self.A, self.w, length)

    def output(self, x: ArrayLike, *, method: str = "convolution") -> Float[np.ndarray, "..."]:
        """Return the whole output y_1..y_kappa for one input sequence or a batch.

        Args:
            x: (kappa,) or (n, kappa).
            method: "recurrence" steps through time, O(kappa d) each; "convolution" sums y_t = sum_m
                M_m x_{t-m} directly, O(kappa^2); "fft" does so by FFT, O(kappa log kappa).

        Returns:
            an array shaped like x. The three agree up to rounding; FFT's error is relative to the
            largest term.

        Raises:
            ValueError: for another shape, NaN, an unknown method, an impulse response that
                overflows ("recurrence" does not need it), or an output that does.
        """
        x = as_array("x", x, ndim=(1, 2))
        method = as_choice("method", method, ("recurrence", "convolution", "fft"))
        length = x.shape[-1]
        growth = 4.0 * length * self.state_dim
        if method == "recurrence":
            return _respond(self._step_through, x, growth)
        response = self.impulse_response(length)
        if method == "fft":
            padded = next_fast_len(
                2 * length - 1, real=True
            )  # so that the circular convolution does not wrap around
            # A transform holds sums of all values: scaled to 1, those of the response stay in
            # range.
            scale = np.frexp(np.abs(response).max())[1] if np.abs(response).max() > 1e100 else 0
            transform = rfft(np.ldexp(response, -scale), padded)
            return np.asarray(
                _respond(
                    lambda rows: np.ldexp(
                        irfft(rfft(rows, padded) * transform, padded)[..., :length], scale
                    ),
                    x,
                    growth,
                )
            )

        def convolve(rows: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
            y = np.stack([np.convolve(row, response)[:length] for row in np.atleast_2d(rows)])
            return y.reshape(rows.shape)

        return _respond(convolve, x, growth)

    def _step_through(self, x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Return the outputs of the recurrence. Entries without weight are left out: nobody sees
        their state overflow.
        """
        seen = (self.B != 0) & (self.C != 0)
        A, B, C = self.A[seen], self.B[seen], self.C[seen]
        y = np.empty_like(x)
        state = np.zeros((*x.shape[:-1], len(A)))  # (..., d)
        for t in range(x.shape[-1]):
            state = A * state + B * x[..., t, None]
            y[..., t] = state @ C
        return y

    def last_output(self, x: ArrayLike) -> Float[np.ndarray, "..."]:
        """Return phi(x) = sum_m M_m x_{kappa-m}, the only output that training looks at.

        Args:
            x: (kappa,) or (n, kappa).

        Returns:
            a 0-d array or (n,).

        Raises:
            ValueError: as `output` does.
        """
        x = as_array("x", x, ndim=(1, 2))
        response = self.impulse_response(x.shape[-1])
        return _respond(lambda rows: rows[..., ::-1] @ response, x, 4.0 * x.shape[-1])

    def output_scale(self, x: ArrayLike) -> Float[np.ndarray, "..."]:
        """Return sum_m abs(M_m x_{kappa-m}), the scale on which `last_output` is rounded.

        Args:
            x: (kappa,) or (n, kappa).

        Returns:
            a 0-d array or (n,).

        Raises:
            ValueError: if a sum overflows.
        """
        x = as_array("x", x, ndim=(1, 2))
        with np.errstate(over="ignore"):
            scale = np.abs(x[..., ::-1]) @ np.abs(self.impulse_response(x.shape[-1]))
        return np.asarray(in_range("x", "the sum of an output's terms", scale))

    def transfer_function(self, z: ArrayLike | complex) -> Complex[np.ndarray, "..."]:
        """Return H(z) = sum_m M_m z^{-m} = sum_j w_j z / (z - a_j), the ratio of the z-transforms
        of y and x.

        Args:
            z: complex points of any shape. For abs(z) > max abs(a_j) the series converges;
                elsewhere H is its analytic continuation.

        Raises:
            ValueError: if z is not finite or meets a pole a_j that carries weight, or if H(z)
                overflows.
        """
        z = as_complex("z", z)
        w = self.w
        # An entry a_j = 0 gives z / z, the constant 1, also at z = 0.
        moving = (self.A != 0) & (w != 0)
        with np.errstate(over="ignore", invalid="ignore"):
            difference = z[..., None] - self.A[moving]  # (..., number of moving entries)
            if (difference == 0).any():
                pole = self.A[moving][np.argwhere(difference == 0)[0][-1]]
                raise ValueError(
                    f"z must avoid the poles of the SSM; got z = {pole:g}, an entry of A"
                )
            values = (w[moving] * z[..., None] / difference).sum(axis=-1) + w[self.A == 0].sum()
        if not np.isfinite(values).all():
            raise ValueError("z must stay where H(z) is within the range of float64; it overflows")
        return np.asarray(values)


def theorem_teacher(state_dim: int) -> DiagonalSSM:
    """Return the theorem's teacher for students of dimension d: A* = diag(1, 0), B* = C*^T = (1,
    sqrt(d-1)).

    Args:
        state_dim: the *student's* d, >= 2 (at d = 1 the teacher's second entry carries no weight
            and nothing is overparameterized). The impulse response is (d, 1, 1, ...): a student
            with B = C^T = ones matches lag 0 by itself.

    Source: authors' settings, "Standalone SSM per the theorem".
    """
    state_dim = as_integer("state_dim", state_dim, low=2, high=MAX_LENGTH)
    root = math.sqrt(state_dim - 1)
    return DiagonalSSM([1.0, 0.0], [1.0, root], [1.0, root])


def teacher(name: str, *, state_dim: int | None = None) -> DiagonalSSM:
    """Return one of the paper's teachers by name.

    Args:
        name: "theorem" (needs state_dim, the student's d), or "dim=1", "dim=2", "dim=3", "dim=4":
            poles 1 | 0.99, 0.8 | 0.99, 0.8, 0.5 | 0.99, 0.8, 0.5, 0.3, with B and C all ones (no
            state_dim).
        state_dim: the student's d, with "theorem" and only there

    Raises:
        ValueError: for another name, or a state_dim missing or not wanted.

    Source: authors' settings.
    """
    name = as_choice("name", name, ("theorem", *_TEACHER_POLES))
    if name == "theorem":
        if state_dim is None:
            raise ValueError(
                "state_dim must be given for the theorem's teacher: the student's d, an integer"
                " >= 2"
            )
        return theorem_teacher(state_dim)
    if state_dim is not None:
        raise ValueError(f"state_dim must be left out for the teacher {name!r}; got {state_dim!r}")
    return DiagonalSSM.ones(_TEACHER_POLES[name])


def near_zero(
    state_dim: int, scale: float, *, seed: Seed, tie_gap: float | None = None
) -> Float[np.ndarray, " d"]:
    """Return a near-zero diagonal: d uniform draws from [0, scale), sorted from largest to
    smallest.

    Args:
        state_dim: d >= 1
        scale: epsilon > 0
        seed: an int, a Generator, or a legacy RandomState (what the authors use).
        tie_gap: if given, the second entry is put at a_1 - tie_gap: a near tie when tie_gap is far
            below scale; 0 asks for an exact tie.

    Raises:
        ValueError: if a tie is asked of d = 1, if the tie would push a_2 below a_3 (the entries
            would no longer be sorted and "second" would not mean second), or if a_1 - a_2 would
            differ from tie_gap by more than 1% because float64 has no digits for it:
            `flows.near_tie_starts` gives exact gaps of any size.

    Source: the initialization of the authors' theorem settings.
    """
    state_dim = as_integer("state_dim", state_dim, low=1, high=MAX_LENGTH)
    scale = as_scalar("scale", scale, low=0.0, strict=True)
    if scale < _LEAST_SCALE:
        raise ValueError(
            f"scale must be at least {_LEAST_SCALE:g}, or entries lose digits; got {scale:g}"
        )
    A = np.sort(as_rng("seed", seed).random(state_dim) * scale)[::-1].copy()
    if tie_gap is not None:
        if state_dim < 2:
            raise ValueError("state_dim must be at least 2 for a near tie (tie_gap given); got 1")
        tie_gap = as_scalar("tie_gap", tie_gap, low=0.0)
        second = A[0] - tie_gap
        floor = A[2] if state_dim > 2 else 0.0
        if second < floor:
            raise ValueError(
                f"tie_gap must be at most {A[0] - floor:.6g} for this start (a_2 stays second); got"
                f" {tie_gap:g}"
            )
        if abs((A[0] - second) - tie_gap) > 0.01 * tie_gap:
            raise ValueError(
                f"tie_gap must be at least {50 * np.spacing(A[0]):.2g} for this start, or 0 for an"
                f" exact tie (a_1 = {A[0]:.6g} has no digits for less; flows.near_tie_starts gives"
                f" exact gaps); got {tie_gap:g}"
            )
        A[1] = second
    return A
