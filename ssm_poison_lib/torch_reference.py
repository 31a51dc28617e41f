"""An SSM in a network as a PyTorch module, trained by a plain loop: the compiled loops' reference.

A module of its own, because PyTorch takes a second or two to load and nothing else of the library
needs it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ssm_poison_lib._checks import MAX_COUNT, as_choice, as_instance, as_integer
from ssm_poison_lib.descent import Rule
from ssm_poison_lib.networks import Network, as_network
from ssm_poison_lib.sequences import TrainingSet
from ssm_poison_lib.ssm import DiagonalSSM

__all__ = ["SSMNetwork", "train"]


class SSMNetwork(torch.nn.Module):
    """A `Network` as a PyTorch module; A is kept as a full d x d matrix, diagonal at the start.

    Args:
        network: the starting weights
        precision: "float64" or "float32". The full matrix is there because the authors' step size
            counts the gradient of its off-diagonal entries too; `to_network` refuses a matrix that
            has left the diagonal.
    """

    def __init__(self, network: Network, precision: str = "float64") -> None:
        super().__init__()
        as_instance("network", network, Network)
        dtype = getattr(torch, as_choice("precision", precision, ("float32", "float64")))
        # np.array: PyTorch does not take read-only arrays.
        self.A = torch.nn.Parameter(torch.diag(torch.tensor(np.array(network.ssm.A), dtype=dtype)))
        self.B = torch.nn.Parameter(torch.tensor(np.array(network.ssm.B), dtype=dtype))
        self.C = torch.nn.Parameter(torch.tensor(np.array(network.ssm.C), dtype=dtype))
        self.mlp = torch.nn.ParameterList(
            torch.tensor(np.array(layer), dtype=dtype) for layer in network.mlp
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs, shape (n,), for inputs x of shape (n, kappa), stepping through time.

        Args:
            x: (n, kappa) input sequences
        """
        state = x.new_zeros((x.shape[0], len(self.B)))  # (n, d)
        for t in range(x.shape[1]):
            state = state @ self.A.T + x[:, t, None] * self.B
        z = state @ self.C  # (n,)
        if not len(self.mlp):
            return z
        values = z[:, None]
        for layer in list(self.mlp)[:-1]:
            values = torch.relu(values @ layer)
        return (values @ self.mlp[-1])[:, 0]

    def to_network(self) -> Network:
        """Return the present weights as a `Network`; raises ValueError if A is not diagonal."""
        A = self.A.detach().double().numpy()
        if np.count_nonzero(A - np.diag(np.diag(A))):
            raise ValueError("A must be diagonal; got non-zero entries beside the diagonal")
        B, C = (weights.detach().double().numpy() for weights in (self.B, self.C))
        layers = tuple(layer.detach().double().numpy() for layer in self.mlp)
        return Network(DiagonalSSM(np.diag(A).copy(), B, C), layers)


def _norms(module: SSMNetwork, rule: Rule) -> float:
    """Return g_t, the sum of the norms of the gradients of the trained weight arrays."""
    total = 0.0
    for name, weights in module.named_parameters():
        gradient = weights.grad
        if gradient is None or (rule.train == "A" and name != "A"):
            continue
        if name == "A" and not rule.off_diagonal:
            gradient = torch.diag(gradient)
        total += float(torch.linalg.vector_norm(gradient))
    return total


def train(
    start: DiagonalSSM | Network, data: TrainingSet, rule: Rule, epochs: int
) -> tuple[Network, Float[np.ndarray, " epochs"], int | None]:
    """Train by a plain eager PyTorch loop with automatic differentiation: the reference for the
    compiled loops.

    Arguments as for `Descent`;

    Args:
        start: the network at the start
        data: what to train on
        rule: how to train
        epochs: how many to do (no more after a stop than rule.epochs_after_stop).

    Returns:
        the last weights, the loss after each epoch (before a reset of B and C) and the stop epoch
        or None.
    """
    epochs = as_integer("epochs", epochs, low=1, high=MAX_COUNT)
    as_instance("data", data, TrainingSet)
    module = SSMNetwork(as_network("start", start), as_instance("rule", rule, Rule).precision)
    dtype = module.A.dtype
    x, y = (torch.tensor(np.array(values), dtype=dtype) for values in (data.x, data.y))
    parameters = [w for name, w in module.named_parameters() if rule.train == "ABC" or name == "A"]
    moments: list[tuple[Any, Any]] = [
        (torch.zeros_like(w), torch.zeros_like(w)) for w in parameters
    ]
    mean_norm, losses, stop = 0.0, [], None
    for epoch in range(1, epochs + 1):
        module.zero_grad()
        torch.mean((module(x) - y) ** 2).backward()
        step = rule.learning_rate
        if rule.normalized:
            mean_norm = 0.8 * mean_norm + 0.2 * _norms(module, rule)
            step /= math.sqrt(mean_norm / (1 - 0.8**epoch)) + 1e-6
        with torch.no_grad():
            for weights, (first, second) in zip(parameters, moments, strict=True):
                update: torch.Tensor = weights.grad  # type: ignore[assignment]  # backward() has filled it
                if rule.optimizer == "adam":
                    first += (update - first) * (1 - 0.9)
                    second += (update**2 - second) * (1 - 0.999)
                    rate = math.sqrt(1 - 0.999**epoch) / (1 - 0.9**epoch)
                    update = rate * first / (torch.sqrt(second) + 1e-7)
                weights.sub_(step * update)
            # the projection back to diagonal matrices
            module.A.copy_(torch.diag(torch.diag(module.A)))
            losses.append(float(torch.mean((module(x) - y) ** 2)))
            if rule.reset_BC:
                module.B.fill_(1.0)
                module.C.fill_(1.0)
        if stop is None and rule.stop_loss is not None and losses[-1] <= rule.stop_loss:
            stop = epoch
        if stop is not None and epoch >= stop + rule.epochs_after_stop:
            break
    return module.to_network(), np.array(losses), stop
