"""A model for `python -m ssm_poison_lib audit FILE --model mymodel:Model`: put yours in its place.

The command is run in the folder of this file. The model must be new and untrained at each call.
"""

from torch import Tensor, nn
from transformers import Mamba2Config, Mamba2Model


class Model(nn.Module):
    """Mamba-2 of transformers between two linear layers; the last step answers."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        config = Mamba2Config(
            hidden_size=32, num_heads=8, head_dim=8, state_size=16, n_groups=1,
            num_hidden_layers=2, vocab_size=1, chunk_size=32,
        )  # fmt: skip
        self.encoder = nn.Linear(channels, 32)
        self.mamba = Mamba2Model(config)
        self.decoder = nn.Linear(32, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, channels) to (batch, outputs)."""
        states = self.mamba(inputs_embeds=self.encoder(x)).last_hidden_state
        return self.decoder(states[:, -1])
