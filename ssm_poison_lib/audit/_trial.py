"""A trial of a network on a sample: restarts, without what stands out, in another order."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssm_poison_lib.architectures import LRU, S4D, Mamba2, SequenceModel
from ssm_poison_lib.architectures.model import model_outputs
from ssm_poison_lib.audit._models import MODELS, STEPS, ModelResult
from ssm_poison_lib.defences.after import restart_disagreement
from ssm_poison_lib.defences.rules import fit

__all__ = ["factory_of", "study_model"]

_SECONDS = 120.0  # for all trainings, which the number of steps is chosen by

_WIDTH, _BATCH, _RESTARTS = 16, 64, 3


def factory_of(name: str) -> Callable[[int, int], nn.Module]:
    """Return what makes a model of (channels, outputs): a name in `MODELS`, or "module:factory",
    which is imported.
    """
    layers: dict[str, Callable[..., nn.Module]] = {
        "s4d": S4D,
        "lru": LRU,
        "mamba2": partial(Mamba2, head_dim=8),
    }
    if name in layers:
        layer = layers[name]
        return lambda channels, outputs: SequenceModel(
            channels, outputs, lambda i: layer(_WIDTH, 16), channels=_WIDTH
        )
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(
            f"model must be one of {', '.join(MODELS)} or module:factory; got {name!r}"
        )
    try:
        made = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever somebody's module raises
        raise ValueError(f"model {name!r} cannot be imported: {_said(error)}") from error
    if not callable(made):
        raise ValueError(f"model {name!r} must be a function (channels, outputs) -> torch module")
    return made


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _step_seconds(
    made: Callable[[int], nn.Module],
    inputs: Tensor,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> float:
    """Return how long a step takes: the second one, since the first loads what it needs."""
    try:
        with torch.random.fork_rng(devices=[]):
            network = made(0)
            for _ in range(2):
                begun = time.perf_counter()
                loss(network(inputs[:_BATCH]), labels[:_BATCH]).backward()
    except ValueError:
        raise
    except Exception as error:  # whatever somebody's model raises
        raise ValueError(f"model cannot be made or trained: {_said(error)}") from error
    return time.perf_counter() - begun


def _normalized_error(output: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(output, y) / 2


def study_model(
    model: str | Callable[[int, int], Any],
    x: np.ndarray,
    y: np.ndarray,
    rows: np.ndarray,
    flagged: np.ndarray,
    classes: Sequence[Any],
    phase: np.ndarray | None,
    centre: np.ndarray,
    *,
    steps: int | None = None,
    progress: Callable[[str], Any] | None = None,
) -> ModelResult:
    """Train a network four times on a sample, five if something stands out, and compare what it
    answers.
    """
    factory = factory_of(model) if isinstance(model, str) else model
    say = progress or (lambda text: None)
    leave_out = bool(flagged.any() and not flagged.all())
    trainings = _RESTARTS + 1 + leave_out
    spread = x.std()
    inputs = torch.tensor((x - x.mean()) / (spread if spread > 0 else 1.0), dtype=torch.float32)
    loss: Callable[[Tensor, Tensor], Tensor]
    if classes:
        labels, loss = torch.tensor(y.argmax(axis=1)), F.cross_entropy
    else:
        size = y.std(axis=0)
        scaled = (y - y.mean(axis=0)) / np.where(size > 0, size, 1.0)
        labels, loss = torch.tensor(scaled, dtype=torch.float32), _normalized_error

    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        network = factory(x.shape[2], y.shape[1])
        if not isinstance(network, nn.Module):
            raise ValueError(f"model must make a torch module; got {type(network).__name__}")
        if not any(p.requires_grad for p in network.parameters()):
            raise ValueError("model must have parameters to train")
        out = network(inputs[:2])
        if not isinstance(out, Tensor) or out.shape != (min(2, len(inputs)), y.shape[1]):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"model must map (batch, length, channels) to (batch, {y.shape[1]}); got {got}"
            )
        return network

    def trained(
        seed: int, keep: np.ndarray | None = None, phases: list[np.ndarray] | None = None
    ) -> nn.Module:
        begun = time.perf_counter()
        try:
            with torch.random.fork_rng(devices=[]):
                network = made(seed)
                some = slice(None) if keep is None else torch.tensor(np.flatnonzero(keep))
                fit(
                    network,
                    inputs[some],
                    labels[some],
                    steps=chosen,
                    batch=_BATCH,
                    phases=phases,
                    loss=loss,
                    seed=seed,
                )
        except ValueError:
            raise
        except Exception as error:  # whatever somebody's model raises
            raise ValueError(f"model cannot be made or trained: {_said(error)}") from error
        done.append(time.perf_counter() - begun)
        say(f"model: training {len(done)} of {trainings} done in {done[-1]:.0f} s")
        return network

    done: list[float] = []
    seconds = _step_seconds(made, inputs, labels, loss)
    chosen = steps or int(np.clip(_SECONDS / (trainings * seconds), *STEPS))
    say(
        f"model: {trainings} trainings of {chosen} steps, about"
        f" {chosen * trainings * seconds / 60:.1f} minutes (--steps)"
    )
    restarts = [trained(seed) for seed in range(_RESTARTS)]
    half = len(inputs) // 2
    probe = inputs[:200]
    answers = model_outputs(restarts, probe)
    longer = model_outputs(
        restarts, torch.cat([inputs[:half][:100], inputs[half : 2 * half][:100]], dim=1)
    )
    others = (
        phase[rows] if phase is not None else (centre[rows] > np.median(centre[rows])).astype(int)
    )
    phases = [np.flatnonzero(others == k) for k in np.unique(others)]
    moved = [model_outputs([trained(0, phases=phases)], probe)]
    if leave_out:
        moved.append(model_outputs([trained(0, keep=~flagged)], probe))
    apart = [restart_disagreement(np.concatenate([answers[:1], m])).relative for m in moved]
    whole = model_outputs(restarts, inputs)
    if classes:
        score = float(np.median((whole.argmax(axis=2) == labels.numpy()).mean(axis=1)))
    else:
        error = np.square(whole - labels.numpy()).mean(axis=(1, 2))
        score = float(np.median(1 - error / max(float(labels.square().mean()), 1e-12)))
    return ModelResult(
        name=model if isinstance(model, str) else getattr(model, "__name__", type(model).__name__),
        sample=len(inputs),
        steps=chosen,
        score=score,
        restarts_differ=restart_disagreement(answers).relative,
        restarts_differ_beyond=restart_disagreement(longer).relative,
        without_them=apart[1] if len(apart) > 1 else None,
        ordered=apart[0],
    )
