"""Gradient flow of an SSM with a two-layer MLP behind it, by stabilized explicit steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ssm_poison_lib._checks import (
    MAX_COUNT,
    ArrayLike,
    as_array,
    as_instance,
    as_integer,
    as_scalar,
    contiguous,
)
from ssm_poison_lib._engines import gains, rkc
from ssm_poison_lib._trajectory import FlowStatus
from ssm_poison_lib.descent import as_losses, flatten, unflatten
from ssm_poison_lib.flow import FlowError
from ssm_poison_lib.networks import Network
from ssm_poison_lib.sequences import TrainingSet

__all__ = ["NetworkTrajectory", "network_flow"]

_STATUS = {
    rkc.End.AT_REST: FlowStatus.CONVERGED,
    rkc.End.END_OF_TIME: FlowStatus.END_OF_TIME,
    rkc.End.OUT_OF_EVALUATIONS: FlowStatus.FAILED_STEP_LIMIT,
}


@dataclass(frozen=True, eq=False)
class NetworkTrajectory:
    """A network's gradient flow at T given times and where its loss first came down to K marks.

    It is no `Trajectory`: its rows hold the MLP's weights too, which A, B and C have no place for,
    and its marks are states between the rows.

    Attributes:
        times: (T,) flow times.
        weights: (T, P) all weights there.
        loss: (T,) training loss there.
        at_loss: (K, P) all weights at the first step with a loss at or below each mark, NaN where
            the loss never came so low.
        status: CONVERGED (at rest: loss <= loss_tol), END_OF_TIME or FAILED_STEP_LIMIT
            (max_evaluations came first: not at rest).
        end: the time then reached; later rows repeat the last weights.
        evaluations: of the gradient.
        d: state dimension.
        width: of the MLP's layers.
    """

    times: Float[np.ndarray, " T"]
    weights: Float[np.ndarray, "T P"]
    loss: Float[np.ndarray, " T"]
    at_loss: Float[np.ndarray, "K P"]
    status: FlowStatus
    end: float
    evaluations: int
    d: int
    width: int

    @property
    def fitted(self) -> bool:
        """Whether the flow came to rest; look at it before calling the last row a limit."""
        return self.status == FlowStatus.CONVERGED

    @property
    def A(self) -> Float[np.ndarray, "T d"]:
        """The diagonal of A at each time."""
        return self.weights[:, : self.d]

    @property
    def B(self) -> Float[np.ndarray, "T d"]:
        """B at each time."""
        return self.weights[:, self.d : 2 * self.d]

    @property
    def C(self) -> Float[np.ndarray, "T d"]:
        """C at each time."""
        return self.weights[:, 2 * self.d : 3 * self.d]

    def network(self, row: int = -1) -> Network:
        """Return all weights at one of the times, by default the last.

        Args:
            row: index into times; negative ones count from the end
        """
        return unflatten(self.weights[row], self.d, self.width)

    def network_at_loss(self, mark: int) -> Network | None:
        """Return all weights where the loss first came down to a mark, None if it never did.

        Args:
            mark: index into the losses of log_at_loss
        """
        row = self.at_loss[mark]
        return None if np.isnan(row[0]) else unflatten(row, self.d, self.width)


def network_flow(
    start: Network,
    training_set: TrainingSet,
    *,
    times: ArrayLike,
    log_at_loss: Sequence[float] = (),
    rtol: float = 1e-4,
    atol: float = 1e-7,
    loss_tol: float = 1e-20,
    max_evaluations: int = 3_000_000,
) -> NetworkTrajectory:
    """Follow the flow d(weights)/dt = -gradient of the loss, for A, B, C and the MLP together.

    The method is a Runge-Kutta-Chebyshev pair of order 2: a flow down a loss has a Jacobian with
    real eigenvalues, for which s stages allow steps that grow as s^2. A ReLU kink is stepped over
    under the same error control.

    Args:
        start: a network with two hidden layers of one width
        training_set: sequences and labels.
        times: (T,) > 0, increasing
        log_at_loss: decreasing losses
        rtol: relative error allowed per step and weight (root mean square)
        atol: absolute error allowed likewise
        loss_tol: the flow is at rest at a loss of at most this
        max_evaluations: most gradients that it may take

    Returns:
        a `NetworkTrajectory`.

    Raises:
        ValueError: for a start without two hidden layers, or wrong times.
        TypeError: for objects of other classes.
        FlowError: when the step size vanishes.

    Source: Sommeijer, Shampine and Verwer, "RKC: An explicit solver for parabolic PDEs", 1997; the
    gradient is that of proposition "The factor xi" in chapter "The same inside a network".
    """
    as_instance("training_set", training_set, TrainingSet)
    if len(as_instance("start", start, Network).mlp) != 3 or len({*start.mlp[1].shape}) > 1:
        raise ValueError("start must be a Network with two hidden layers of one width")
    times = as_array("times", times, ndim=1)
    if times[0] <= 0 or (np.diff(times) <= 0).any():
        raise ValueError(f"times must be > 0 and increasing; got {times!r}")
    d, width = start.ssm.state_dim, start.mlp[0].shape[1]
    how, end, evaluations, _, weights, loss, at_loss, _ = rkc.integrate(
        flatten(start),
        gains.gains(contiguous(training_set.x[:, ::-1].T), contiguous(training_set.y), d, width),
        contiguous(times),
        np.array(as_losses("log_at_loss", log_at_loss)),
        as_scalar("rtol", rtol, low=0.0, strict=True),
        as_scalar("atol", atol, low=0.0, strict=True),
        as_scalar("loss_tol", loss_tol, low=0.0),
        as_integer("max_evaluations", max_evaluations, low=1, high=MAX_COUNT),
    )
    if how == rkc.End.FAILED:
        raise FlowError(
            f"the step size vanished at t = {end:g} of {times[-1]:g}, at a loss of {loss[-1]:g}"
        )
    status = _STATUS[rkc.End(how)]
    return NetworkTrajectory(
        times, weights, loss, at_loss, status, float(end), int(evaluations), d, width
    )
