"""S4D, LRU and Mamba-2 of the library beside peers: forward and backward, one thread, float32, in
one process.

    pip install transformers s5-pytorch mambapy   # peers; one that is missing is left out, and said
                                                  so
    python benchmarks/architectures.py [--lengths 64 1024 16384] [--repeats 5]

Every pair has the same channels (32), state dimension and batch (4). Mamba-2: `transformers` (the
same layer, its PyTorch path) and `mambapy` (Mamba, the layer before it). LRU: `s5-pytorch` (S5:
complex poles, all channels mix, an associative scan). S4D: the usual table of all powers of all
poles in place of the factored one. Prints milliseconds and the ratio peer / ours.
"""

import argparse
import time

import torch

from ssm_poison_lib.architectures import LRU, S4D, Mamba2

CHANNELS, STATES, BATCH = 32, 32, 4


def ours_and_peers():
    """Return {architecture: {name: layer}}; the library's own comes first."""
    models = {
        "S4D": {
            "library": S4D(CHANNELS, STATES, seed=0),
            "table of powers": TablesOfPowers(CHANNELS, STATES, seed=0),
        },
        "LRU": {"library": LRU(CHANNELS, STATES, seed=0)},
        "Mamba-2": {"library": Mamba2(CHANNELS, STATES, head_dim=16, seed=0)},
    }
    try:
        from transformers import Mamba2Config
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

        settings = Mamba2Config(
            hidden_size=CHANNELS,
            num_heads=4,
            head_dim=16,
            state_size=STATES,
            n_groups=1,
            chunk_size=64,
            expand=2,
        )
        models["Mamba-2"]["transformers"] = Mamba2Mixer(settings, layer_idx=0)
    except ImportError as error:
        print(f"transformers is left out: {error}")
    try:
        from mambapy.mamba import MambaBlock, MambaConfig

        models["Mamba-2"]["mambapy (Mamba)"] = MambaBlock(
            MambaConfig(d_model=CHANNELS, n_layers=1, d_state=STATES, expand_factor=2)
        )
    except ImportError as error:
        print(f"mambapy is left out: {error}")
    try:
        from s5 import S5

        models["LRU"]["s5-pytorch"] = S5(CHANNELS, STATES)
    except ImportError as error:
        print(f"s5-pytorch is left out: {error}")
    return models


class TablesOfPowers(S4D):
    """S4D with the kernel that users know: all powers of all poles, (H, N/2, length), summed."""

    def kernel(self, length):
        a, b = self.discretize()
        weight = torch.view_as_complex(self.C) * b
        powers = (a.log()[..., None] * torch.arange(length)).exp()
        return 2 * torch.einsum("hn,hnl->hl", weight, powers).real


def milliseconds(model, length, repeats):
    """Best time of one forward and backward pass."""
    x = torch.randn(BATCH, length, CHANNELS, generator=torch.Generator().manual_seed(length))
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        model.zero_grad()
        began = time.perf_counter()
        model(x).square().mean().backward()
        times.append(time.perf_counter() - began)
    return 1e3 * min(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 1024, 16384])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'layer':<9} {'implementation':<17}"
        + "".join(f"{f'L = {n}':>21}" for n in options.lengths)
    )
    for architecture, models in ours_and_peers().items():
        own = {}
        for name, model in models.items():
            row = f"{architecture:<9} {name:<17}"
            for length in options.lengths:
                taken = milliseconds(model, length, options.repeats)
                own.setdefault(length, taken)
                ratio = "" if name == "library" else f" ({taken / own[length]:.2f} x)"
                row += f"{f'{taken:.1f} ms{ratio}':>21}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
