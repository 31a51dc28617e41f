"""A classifier or regressor of sequences around any layer: encoder, blocks, pooling, decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssm_poison_lib._checks import as_choice, as_instance, as_integer, as_scalar
from ssm_poison_lib.architectures._input import check_input

__all__ = ["SequenceModel", "model_outputs"]


class SequenceModel(nn.Module):
    """Encoder, blocks x + dropout(layer(norm(x))), a last norm, pooling over time, decoder.

    Args:
        inputs: channels of the data, >= 1.
        outputs: classes or regression targets, >= 1.
        layer: makes the layer of one block from its index, such as `lambda i: S4D(64, seed=i)`; it
            maps (batch, length, channels) to the same shape.
        channels: width of the blocks, >= 1.
        depth: number of blocks, >= 1.
        pooling: "mean" over time or "last" step.
        dropout: probability in [0, 1), active in training mode only.

    Raises:
        ValueError: for values out of range.

    Source: the classifiers of the paper's real-world experiments have this form (authors' code),
    with mean pooling.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        layer: Callable[[int], nn.Module],
        *,
        channels: int,
        depth: int = 1,
        pooling: str = "mean",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.inputs = as_integer("inputs", inputs, low=1)
        channels = as_integer("channels", channels, low=1)
        depth = as_integer("depth", depth, low=1)
        self.pooling = as_choice("pooling", pooling, ("mean", "last"))
        if as_scalar("dropout", dropout, low=0.0) >= 1.0:
            raise ValueError(f"dropout must be below 1; got {dropout!r}")
        if isinstance(layer, nn.Module) or not callable(layer):
            raise TypeError(
                f"layer must be a function of the block's index; got {type(layer).__name__}"
            )
        self.encoder = nn.Linear(self.inputs, channels)
        self.layers = nn.ModuleList(
            [as_instance(f"layer({i})", layer(i), nn.Module) for i in range(depth)]
        )
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(depth + 1)])
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(channels, as_integer("outputs", outputs, low=1))

    def forward(self, x: Tensor) -> Float[Tensor, "batch outputs"]:
        """Return one output vector per sequence, (batch, outputs);

        Args:
            x: (batch, length, inputs).

        Raises:
            ValueError: for bad input, or a layer that changes the shape.
        """
        h = self.encoder(
            check_input("x", x, self, ("batch", "length", self.inputs))
        )  # (batch, length, channels)
        for layer, norm in zip(self.layers, self.norms[:-1], strict=True):
            made = layer(norm(h))
            if made.shape != h.shape:
                raise ValueError(
                    f"layer must map {tuple(h.shape)} to the same shape; got {tuple(made.shape)}"
                )
            h = h + self.dropout(made)
        h = self.norms[-1](h)
        return self.decoder(h.mean(dim=1) if self.pooling == "mean" else h[:, -1])


def model_outputs(models: Sequence[nn.Module], x: Tensor) -> Float[np.ndarray, "models n outputs"]:
    """Return the outputs of several models on the same inputs, in evaluation mode, for
    `defences.after.restart_disagreement`.

    Args:
        models: torch modules; each is left in the mode it had.
        x: (n, length, channels), for instance longer than what they trained on.

    Returns:
        Outputs (models, n, outputs), float64.

    Raises:
        TypeError: if one of models is not a torch module.
    """
    found = []
    for model in models:
        mode = as_instance("each of models", model, nn.Module).training
        model.eval()
        with torch.no_grad():
            found.append(model(x).double().cpu().numpy())
        model.train(mode)
    return np.array(found)
