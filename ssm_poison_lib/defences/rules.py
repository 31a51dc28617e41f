"""Rules for training: order, weight decay after the fit, positive poles, several students.

Positive poles are `flow.gradient_flow` with "exp" or "exp(-exp)"; weight decay after the fit of a
linear student is its argument `decay` in a flow that begins where the fit ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssm_poison_lib._checks import (
    ArrayLike,
    as_array,
    as_function,
    as_instance,
    as_integer,
    as_scalar,
)
from ssm_poison_lib.defences.before import mean_lag
from ssm_poison_lib.flow import gradient_flow

__all__ = ["Fit", "fit", "long_lags_first", "median_student", "phases_flow"]


def long_lags_first(x: ArrayLike, *, phases: int = 2) -> list[Int[np.ndarray, " rows"]]:
    """Return the rows to train on in each phase: those with the longest lags first, then more and
    more, at last all.

    Args:
        x: (n, kappa) or (n, kappa, channels).
        phases: from 1 (all at once) to n.
    """
    lags = mean_lag(x)
    phases = as_integer("phases", phases, low=1, high=len(lags))
    order = np.argsort(-lags, kind="stable")
    return [np.sort(order[: round(len(order) * k / phases)]) for k in range(1, phases + 1)]


def phases_flow(
    A0: ArrayLike,
    grams: Sequence[ArrayLike],
    target: ArrayLike,
    parametrization: str,
    times: ArrayLike,
    *,
    decay: float = 0.0,
) -> Float[np.ndarray, "phases d"]:
    """Return where each phase of gradient flow ends that begins where the one before ended.

    Args:
        A0: (d,) start.
        grams: (kappa, kappa) of the data of each phase.
        target: (kappa,) the teacher's impulse response.
        parametrization: a name in `PARAMETRIZATIONS`.
        times: (phases,) flow time of each, > 0.
        decay: >= 0, weight decay in the last phase alone.

    Raises:
        ValueError: as `flow.gradient_flow`, and for other numbers of times than
            phases.
    """
    lengths = as_array("times", times, ndim=1)
    if len(lengths) != len(grams):
        raise ValueError(
            f"times must be one for each of the {len(grams)} phases; got {len(lengths)}"
        )
    A, ends = as_array("A0", A0, ndim=1), []
    for number, (G, length) in enumerate(zip(grams, lengths, strict=True), start=1):
        last = decay if number == len(grams) else 0.0
        A = gradient_flow(
            A, (G, target), parametrization=parametrization, times=[length], decay=last
        ).A[0]
        ends.append(A)
    return np.array(ends)


@dataclass(frozen=True, eq=False)
class Fit:
    """How `fit` went.

    Attributes:
        losses: (steps,), of each batch before its step.
        fitted_at: the step from which weight decay acted; None if it never did.
    """

    losses: Float[np.ndarray, " steps"]
    fitted_at: int | None


def fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    phases: Sequence[ArrayLike] | None = None,
    batch: int | None = None,
    learning_rate: float = 1e-2,
    decay: float = 0.0,
    decay_from: float = float("inf"),
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    seed: int = 0,
) -> Fit:
    """Train a model by Adam with an order of the data and with weight decay that may wait for the
    fit.

    Args:
        model: any torch module; it is changed, and left in evaluation mode.
        x: (n, length, channels) and labels.
        y: (n, length, channels) and labels.
        steps: in all, the same number in each phase.
        phases: rows of each phase, such as `long_lags_first` returns; None: one phase of all.
        batch: examples in a step; None: all of the phase.
        learning_rate: > 0, of Adam; it falls to 0 by a cosine over all steps.
        decay: >= 0, weight decay as in AdamW.
        decay_from: decay acts from the step on at which the mean loss of the last ten batches is at
            most this; infinity: from the start.
        loss: of output and labels, a mean.
        seed: of the batches.

    Raises:
        ValueError: for values out of range or rows outside the data.
        FloatingPointError: if the loss is not finite.
    """
    model, loss = as_instance("model", model, nn.Module), as_function("loss", loss)
    steps = as_integer("steps", steps, low=1)
    rate = as_scalar("learning_rate", learning_rate, low=0.0, strict=True)
    decay = as_scalar("decay", decay, low=0.0)
    generator = torch.Generator().manual_seed(as_integer("seed", seed, low=0))
    parts = (
        [torch.arange(len(x))]
        if phases is None
        else [torch.as_tensor(np.asarray(p)) for p in phases]
    )
    if not parts or any(len(p) == 0 or int(p.min()) < 0 or int(p.max()) >= len(x) for p in parts):
        raise ValueError(f"phases must be rows from 0 to {len(x) - 1}, none empty")
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    losses: list[float] = []
    fitted_at: int | None = None
    model.train()
    for step in range(steps):
        rows = parts[step * len(parts) // steps]
        if batch is not None and batch < len(rows):
            rows = rows[torch.randperm(len(rows), generator=generator)[:batch]]
        value = loss(model(x[rows]), y[rows])
        losses.append(float(value.detach()))
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(
                f"the loss is {losses[-1]} at step {step}: use a smaller learning_rate"
            )
        if decay and fitted_at is None and np.mean(losses[-10:]) <= decay_from:
            fitted_at = step
            for group in optimizer.param_groups:
                group["weight_decay"] = decay
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    return Fit(np.array(losses), fitted_at)


def median_student(answers: ArrayLike) -> int:
    """Return which of several students is nearest to all others: the one to keep if some orders or
    starts went wrong.

    The smallest sum of root mean square distances; the first of equals. No use if most students
    went wrong.

    Args:
        answers: (students, items) or (students, items, outputs), on inputs that decide nothing
            else.
    """
    values = as_array("answers", answers, ndim=(2, 3))
    flat = values.reshape(len(values), -1)
    distance = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    return int(distance.sum(axis=1).argmin())
