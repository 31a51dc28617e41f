"""What a gradient flow returns, whichever solver followed it: a path or ends, and why it stopped."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["FlowError", "FlowStatus"]


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
