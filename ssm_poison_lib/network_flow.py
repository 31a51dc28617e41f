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
from ssm_poison_lib.descent import as_losses, flatten, unflatten
from ssm_poison_lib.flow import FlowError
from ssm_poison_lib.networks import Network
from ssm_poison_lib.sequences import TrainingSet

__all__ = ["NetworkTrajectory", "network_flow"]

_STOPPED = {
    rkc.End.AT_REST: "loss",
    rkc.End.END_OF_TIME: "end time",
    rkc.End.OUT_OF_EVALUATIONS: "evaluations",
}


@dataclass(frozen=True, eq=False)
class NetworkTrajectory:
    """A network's gradient flow at T given times and at the first step with a loss at or below each
    of K marks.

    Attributes:
        times: (T,)
        weights: (T, P) all weights there
        loss: (T,).
        at_loss: (K, P), NaN where the loss never came so low.
        stopped: "end time", "loss" (at rest: loss <= loss_tol) or "evaluations" (the limit came
            first: not at rest)
        end: the time then reached; later rows repeat the last weights.
        evaluations: of the gradient.
        d: sizes of the network.
        width: sizes of the network.
    """

    times: Float[np.ndarray, " T"]
    weights: Float[np.ndarray, "T P"]
    loss: Float[np.ndarray, " T"]
    at_loss: Float[np.ndarray, "K P"]
    stopped: str
    end: float
    evaluations: int
    d: int
    width: int

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
    data: TrainingSet,
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
        data: sequences and labels
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
    as_instance("data", data, TrainingSet)
    if len(as_instance("start", start, Network).mlp) != 3 or len({*start.mlp[1].shape}) > 1:
        raise ValueError("start must be a Network with two hidden layers of one width")
    times = as_array("times", times, ndim=1)
    if times[0] <= 0 or (np.diff(times) <= 0).any():
        raise ValueError(f"times must be > 0 and increasing; got {times!r}")
    d, width = start.ssm.state_dim, start.mlp[0].shape[1]
    how, end, evaluations, _, weights, loss, at_loss, _ = rkc.integrate(
        flatten(start),
        gains.gains(contiguous(data.x[:, ::-1].T), contiguous(data.y), d, width),
        contiguous(times),
        np.array(as_losses("log_at_loss", log_at_loss)),
        as_scalar("rtol", rtol, low=0.0, strict=True),
        as_scalar("atol", atol, low=0.0, strict=True),
        as_scalar("loss_tol", loss_tol, low=0.0),
        as_integer("max_evaluations", max_evaluations, low=1, high=MAX_COUNT),
    )
    if how == rkc.End.FAILED:
        raise FlowError(f"the step size vanished at t = {end:g} of {times[-1]:g}, at a loss of {loss[-1]:g}")
    return NetworkTrajectory(
        times, weights, loss, at_loss, _STOPPED[rkc.End(how)], float(end), int(evaluations), d, width
    )
