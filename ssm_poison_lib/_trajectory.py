"""What a gradient flow returns, whichever solver ran: a path or ends, and why it stopped."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float, Int

from ssm_poison_lib._checks import (
    MAX_ENTRIES,
    MAX_LENGTH,
    ArrayLike,
    as_array,
    as_integer,
    in_range,
)
from ssm_poison_lib.ssm import DiagonalSSM

__all__ = ["FlowError", "FlowStatus", "Trajectory"]


class FlowError(RuntimeError):
    """The solver gave up, so that there is no trajectory to return."""


class FlowStatus(IntEnum):
    """Why a run ended; values below 0 are failures."""

    CONVERGED = 0
    """Every residual that training can change is zero up to rounding: the limit of the flow."""
    STALLED = 1
    """Not fitted, and at rest: no entry moved by a relative 1e-6 in the second half of the time."""
    END_OF_TIME = 2
    """At t_end, and still moving as far as the solver can tell."""
    REACHED_LOSS = 3
    """The loss came down to loss_tol, where the run was asked to stop."""
    STATIONARY = 4
    """Nothing moved faster than stationary_tol, where the run was asked to stop."""
    FAILED_STEP_SIZE = -1
    """The step size vanished: the flow blows up, or leaves the range of float64."""
    FAILED_STEP_LIMIT = -2
    """The most steps allowed were not enough."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The path of one gradient flow at T times, or the ends of n flows: the leading axis.

    Attributes:
        times: (T,) never decreasing (a step shorter than the last digit of t shows as an equal
            time: the flow does not depend on t itself, so A is right all the same); or (n,) when
            each run ended.
        A: (T, d) or (n, d) entries, in the order of the start's.
        B: (T, d) or (n, d).
        C: (T, d) or (n, d).
        loss: (T,) or (n,) mean squared residual.
        status: why it stopped; (n,) of many runs.
        fitted: whether the last loss is at most the run's loss_tol: look at it before calling the
            end a limit; (n,) of many runs.
        gaps: (T, d-1) differences between neighbours, largest entry first, exact however small;
            None where the flow was not followed in gaps, and of many runs.
        log_gap: (n, d) natural logarithm of the distance to the next larger entry of equal weight,
            exact however small (-inf for a tie, NaN without a larger one); None of one run.
        steps: (n,) steps tried; None of one run.
        rejected: (n,) steps refused by the error control; None of one run.

    Rows of failed runs are NaN.
    """

    times: Float[np.ndarray, " rows"]
    A: Float[np.ndarray, "rows d"]
    B: Float[np.ndarray, "rows d"]
    C: Float[np.ndarray, "rows d"]
    loss: Float[np.ndarray, " rows"]
    status: FlowStatus | Int[np.ndarray, " rows"]
    fitted: bool | Bool[np.ndarray, " rows"]
    gaps: Float[np.ndarray, "rows gaps"] | None = None
    log_gap: Float[np.ndarray, "rows d"] | None = None
    steps: Int[np.ndarray, " rows"] | None = None
    rejected: Int[np.ndarray, " rows"] | None = None

    def __post_init__(self) -> None:
        """Freeze the arrays."""
        for value in vars(self).values():
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    def student(self, row: int = -1) -> DiagonalSSM:
        """Return the student of one row, by default the last.

        Args:
            row: a time, or a run of many; negative ones count from the end.
        """
        row = as_integer("row", row, low=-len(self.times), high=len(self.times) - 1)
        return DiagonalSSM(self.A[row], self.B[row], self.C[row])

    def counts(self) -> dict[str, int]:
        """Return how many runs ended in which way, by the names of `FlowStatus`."""
        status = np.atleast_1d(self.status)
        return {s.name: int(n) for s in FlowStatus if (n := np.count_nonzero(status == s))}

    def __repr__(self) -> str:
        rows, d = self.A.shape
        what = f"{rows} runs" if isinstance(self.status, np.ndarray) else f"1 run at {rows} times"
        return (
            f"Trajectory({what}, d = {d}:"
            f" {', '.join(f'{k} {v}' for k, v in self.counts().items())})"
        )

    def impulse_responses(self, length: int) -> Float[np.ndarray, "rows length"]:
        """Return M_m = sum_j b_j c_j a_j^m of every row (NaN for failed runs).

        Args:
            length: number of lags, m = 0 .. length-1.

        Raises:
            ValueError: for a length beyond memory, or a response that overflows.
        """
        n = len(self.A)
        length = as_integer(
            "length", length, low=1, high=min(MAX_LENGTH, max(1, MAX_ENTRIES // max(n, 1)))
        )
        power = self.B * self.C  # (rows, d)
        response = np.empty((n, length))
        with np.errstate(over="ignore", invalid="ignore"):
            for lag in range(length):
                response[:, lag] = power.sum(axis=1)
                power *= self.A
        good = np.broadcast_to(np.asarray(self.status) >= 0, n)
        response[~good] = np.nan
        in_range("length", "the impulse response", response[good])
        return response

    def generalization_errors(
        self, target: ArrayLike, *, first_lag: int = 0
    ) -> Float[np.ndarray, " rows"]:
        """Return Gen_K = max over first_lag <= k < K of abs(M_k - M*_k) of every row.

        Args:
            target: (K,) impulse response of the teacher, such as `teacher.impulse_response(20)`;
                or (rows, K), one per row.
            first_lag: the first lag compared.

        Raises:
            ValueError: for another shape, or a first_lag that is not below K.
        """
        response = as_array("target", target, ndim=(1, 2))
        length = response.shape[-1]
        if response.ndim == 2 and len(response) != len(self.A):
            raise ValueError(
                f"target must have one row per run, {len(self.A)}; got shape {response.shape}"
            )
        first_lag = as_integer("first_lag", first_lag, low=0, high=length - 1)
        return np.asarray(
            np.abs(self.impulse_responses(length) - response)[:, first_lag:].max(axis=1)
        )
