"""Gradient matching at the authors' sizes without CIFAR-10: a stand-in in the same file format.

Writes coloured, turned, shifted and scaled handwritten digits (scikit-learn's) as 32 x 32 x 3
images into data_batch_1.bin and test_batch.bin; digits of the second appear in no image of the
first. On those, or on CIFAR-10's own files, `python -m ssm_poison_lib images` runs the attack.

    python benchmarks/gradient_matching.py FOLDER [--images 20000] [--tests 10000]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits


def made(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return records in CIFAR-10's binary format, (count, 3073) bytes, drawn from these digits."""
    images, labels = load_digits(return_X_y=True)
    rng = torch.Generator().manual_seed(seed)
    pick = torch.from_numpy(rows)[torch.randint(len(rows), (count,), generator=rng)]
    digit = torch.tensor(images.reshape(-1, 1, 8, 8) / 16, dtype=torch.float32)[pick]
    angle, size, across, down = (
        (2 * torch.rand(count, generator=rng) - 1) * width for width in (0.3, 0.25, 0.25, 0.25)
    )
    scale = 1.15 + size
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    affine = torch.cat([turn * scale[:, None, None], torch.stack([across, down], 1)[..., None]], 2)
    grid = F.affine_grid(affine, (count, 1, 32, 32), align_corners=False)
    shape = F.grid_sample(digit, grid, align_corners=False)  # (count, 1, 32, 32)
    ink, paper = torch.rand(2, count, 3, 1, 1, generator=rng)
    picture = paper + shape * (ink - paper) + 0.08 * torch.randn(count, 3, 32, 32, generator=rng)
    pixels = (255 * picture.clamp(0, 1)).round().to(torch.uint8).flatten(1).numpy()
    return np.concatenate([labels[pick.numpy()].astype(np.uint8)[:, None], pixels], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--tests", type=int, default=10_000)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(len(load_digits().target))
    files = {
        "data_batch_1.bin": (order[:1200], options.images),
        "test_batch.bin": (order[1200:], options.tests),
    }
    for seed, (name, (rows, count)) in enumerate(files.items()):
        made(rows, count, seed).tofile(options.folder / name)
        print(f"{options.folder / name}: {count} images")


if __name__ == "__main__":
    main()
