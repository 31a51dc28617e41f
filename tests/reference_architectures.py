"""Layers of the library with the weights of the authors' layers, from arrays named as in
tests/reference/architectures.npz.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ssm_poison_lib.architectures import LRU, S4D, Mamba2

# Name of a parameter here -> name of the authors' array.
NAMES = {
    "s4d": {
        "log_dt": "kernel.log_dt",
        "log_A_real": "kernel.log_A_real",
        "A_imag": "kernel.A_imag",
        "C": "kernel.C",
        "D": "D",
        "output.weight": "output_linear.0.weight",
        "output.bias": "output_linear.0.bias",
    },
    "lru": {name: name for name in ("nu_log", "theta_log", "B_re", "B_im", "C_re", "C_im", "D")},
    "mamba2": {
        "in_proj.weight": "in_proj.weight",
        "conv.weight": "conv1d.weight",
        "conv.bias": "conv1d.bias",
        "dt_bias": "dt_bias",
        "A_log": "A_log",
        "D": "D",
        "norm_weight": "norm.weight",
        "out_proj.weight": "out_proj.weight",
    },
}


class ChannelsFirst(nn.Module):
    """A layer that takes and returns (batch, channel, time), as the authors' S4D does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mT).mT


def array(
    kind: str, arrays: Mapping[str, np.ndarray], name: str, group: str = "weights"
) -> np.ndarray:
    """Return an array by its name, with or without the file's prefixes "KIND/" and "weights/"."""
    for key in (
        f"{kind}/{group}/{name}",
        f"{group}/{name}",
        *([name] if group == "weights" else []),
    ):
        if key in arrays:
            return np.asarray(arrays[key])
    raise KeyError(f"arrays must hold {name!r} of {kind!r} ({group}); got {sorted(arrays)[:5]} ...")


def from_reference(kind: str, arrays: Mapping[str, np.ndarray]) -> nn.Module:
    """Return the float64 layer with the weights in `arrays`; input and output are laid out as in
    the file.

    kind: "s4d" (batch, channel, time), "lru" or "mamba2" (batch, time, channel).
    """
    if kind not in NAMES:
        raise ValueError(f"kind must be one of {', '.join(NAMES)}; got {kind!r}")
    weights = {ours: array(kind, arrays, theirs) for ours, theirs in NAMES[kind].items()}
    layer: nn.Module
    if kind == "s4d":
        H, half = weights["log_A_real"].shape
        layer = S4D(H, 2 * half)
    elif kind == "lru":
        H, N = weights["B_re"].shape
        layer = LRU(H, N, depthwise=True)
    else:
        H, E = weights["out_proj.weight"].shape
        K = len(weights["D"])
        N = (len(weights["in_proj.weight"]) - 2 * E - K) // 2
        width = weights["conv.weight"].shape[-1]
        layer = Mamba2(H, N, head_dim=E // K, expand=E // H, conv_width=width, chunk=4)
    layer = layer.double()
    state = {
        name: torch.as_tensor(weights[name], dtype=torch.float64).reshape(own.shape)
        for name, own in layer.state_dict().items()
    }
    layer.load_state_dict(state)
    return ChannelsFirst(layer) if kind == "s4d" else layer
