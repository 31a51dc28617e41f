"""Checks of what goes into a layer: the argument is named, with what came and what is allowed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import debug_unwrap

__all__ = ["check_input", "check_state"]


def check_input(name: str, x: object, layer: nn.Module, shape: tuple[int | str, ...]) -> Tensor:
    """Return `x` if it is a finite tensor of this shape, with the layer's dtype and device.

    Args:
        name: the argument's name.
        shape: the length of each axis, or a word for an axis of any length >= 1.

    Raises:
        TypeError: for anything but a floating point tensor.
        ValueError: for another shape, dtype or device, an empty axis, NaN or infinity.
    """
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a torch tensor of floating point numbers; got {got}")
    wanted = ", ".join(map(str, shape))
    fits = x.ndim == len(shape) and all(
        isinstance(want, str) or have == want for have, want in zip(x.shape, shape, strict=True)
    )
    if not fits or 0 in x.shape:
        raise ValueError(f"{name} must have shape ({wanted}), no axis empty; got {tuple(x.shape)}")
    own = next(layer.parameters())
    if x.dtype != own.dtype:
        raise ValueError(f"{name} must have the layer's dtype {own.dtype}; got {x.dtype}")
    if x.device != own.device:
        raise ValueError(f"{name} must be on the layer's device {own.device}; got {x.device}")
    # Within `vmap` a decision needs the tensor of all models. A finite sum has no NaN and no
    # infinity in it: one pass in place of five where all is well.
    values = debug_unwrap(x.detach())
    if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
        raise ValueError(f"{name} must be finite; got NaN or infinity among its entries")
    return x


def check_state(name: str, state: object, zeros: Tensor) -> Tensor:
    """Return `state` if it is a finite tensor like the one before the first step.

    Args:
        name: the argument's name.
        state: what came.
        zeros: the state of `initial_state` for as many sequences.

    Raises:
        TypeError: for anything but a tensor.
        ValueError: for another shape, dtype or device, NaN or infinity.
    """
    if not isinstance(state, Tensor):
        raise TypeError(f"{name} must be a torch tensor; got {type(state).__name__}")
    for what in ("shape", "dtype", "device"):
        have, want = getattr(state, what), getattr(zeros, what)
        if have != want:
            have, want = (tuple(v) if what == "shape" else v for v in (have, want))
            raise ValueError(f"{name} must have {what} {want}, as initial_state; got {have}")
    if not torch.isfinite(state).all():
        raise ValueError(f"{name} must be finite; got NaN or infinity among its entries")
    return state
