"""During training: whether the gradient moves all poles alike, and what is learnt suddenly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssm_poison_lib._checks import ArrayLike, as_array, as_function, as_instance, as_integer
from ssm_poison_lib.metrics import gamma
from ssm_poison_lib.sequences import TrainingSet
from ssm_poison_lib.ssm import DiagonalSSM

__all__ = ["common_share", "model_common_share", "pole_velocity", "sudden_fits"]

# From these layers make the size of their poles: along the last axis, the states of one channel.
_POLE_PARAMETERS = ("log_A_real", "nu_log", "A_log")


def pole_velocity(student: DiagonalSSM, data: TrainingSet) -> Float[np.ndarray, " d"]:
    """Return da_j/dt of gradient flow, w_j sum_l gamma_l a_j^l: how training moves each pole now.

    Args:
        student: where it is.
        data: what it trains on.

    Raises:
        TypeError: for objects of other classes.

    Source: Proposition 1 of chapter "Which way does training move?".
    """
    student = as_instance("student", student, DiagonalSSM)
    coefficients = gamma(student, as_instance("data", data, TrainingSet))
    powers = student.A[:, None] ** np.arange(len(coefficients))
    return np.asarray(student.B * student.C * (powers @ coefficients))


def common_share(velocity: ArrayLike) -> Float[np.ndarray, "*steps"]:
    """Return the share of a velocity that moves all entries alike: (sum v_j)^2 / (d sum v_j^2),
    from 0 to 1.

    With special sequences it is near 1 at a start near zero. So it is for harmless data that show
    all lags: by itself it is no alarm.

    Args:
        velocity: (d,) or (..., d), gradients or velocities of d poles. One pole alone: 1. No
            motion: 0.
    """
    v = as_array("velocity", velocity, ndim=(1, 2, 3, 4))
    size = np.abs(v).max(axis=-1, keepdims=True)
    v = v / np.where(size > 0, size, 1.0)  # first, so that no square leaves float64
    squared = np.square(v).sum(axis=-1)
    return np.asarray(np.square(v.sum(axis=-1)) / np.where(squared > 0, v.shape[-1] * squared, 1.0))


def model_common_share(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> float:
    """Return the share of the gradient that moves the poles of each channel alike, of S4D, LRU and
    Mamba-2 layers.

    Args:
        model: a torch module; its parameters log_A_real, nu_log and A_log are looked at.
        x: a batch of examples.
        y: a batch of examples.
        loss: of the model's output and y.

    Returns:
        the mean over channels and layers, weighted by the squared gradient.

    Raises:
        ValueError: for a model without such parameters.
    """
    model, loss = as_instance("model", model, nn.Module), as_function("loss", loss)
    poles = [
        p for name, p in model.named_parameters() if name.rpartition(".")[2] in _POLE_PARAMETERS
    ]
    if not poles:
        raise ValueError(
            f"model must have parameters named {', '.join(_POLE_PARAMETERS)}; it has none"
        )
    gradients = torch.autograd.grad(loss(model(x), y), poles)
    alike, total = 0.0, 0.0
    for gradient in gradients:
        rows = gradient.detach().double().reshape(-1, gradient.shape[-1])
        alike += float((rows.sum(dim=1) ** 2).sum()) / rows.shape[1]
        total += float((rows**2).sum())
    return alike / total if total > 0 else 0.0


def sudden_fits(losses: ArrayLike, *, window: int = 1) -> Float[np.ndarray, " n"]:
    """Return how suddenly each sequence was learnt: the largest part of its loss that went within
    `window` steps.

    Args:
        losses: (T, n), T >= 2, the loss of each sequence along training, >= 0.
        window: steps, from 1 to T - 1.

    Returns:
        (n,) from 0 to 1: 1 for one that fits from one record to the next, about window / (T - 1)
        for a steady fit, 0 for one that is not learnt.

    Raises:
        ValueError: for losses below 0 and windows out of range.
    """
    curves = as_array("losses", losses, ndim=2)
    if len(curves) < 2 or (curves < 0).any():
        raise ValueError(
            f"losses must be >= 0 at two steps or more; got shape {curves.shape}, least"
            f" {curves.min():g}"
        )
    window = as_integer("window", window, low=1, high=len(curves) - 1)
    drop = (curves[:-window] - curves[window:]).max(axis=0)
    top = curves.max(axis=0)
    return np.maximum(drop, 0.0) / np.where(top > 0, top, 1.0)
