"""Labelled sequences to attack, without a network: MNIST-1D, rows of digits' pixels, CIFAR-10."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ssm_poison_lib._checks import as_integer, as_path

__all__ = ["Examples", "cifar10", "digits", "mnist1d"]

# bytes of an image in CIFAR-10's binary files: the label, then red, green and blue
_RECORD = 1 + 3 * 1024


@dataclass(frozen=True, eq=False)
class Examples:
    """Sequences with class labels.

    Attributes:
        x: (n, length, channels) float32.
        y: (n,) int64, from 0.
    """

    x: Float[Tensor, "n length channels"]
    y: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.y)

    def split(self, *counts: int, seed: int) -> list[Examples]:
        """Return disjoint random parts of these sizes.

        Args:
            counts: examples in each part, >= 1; their sum at most n.
            seed: of the random order.

        Raises:
            ValueError: for other counts.
        """
        sizes = [as_integer("each of counts", count, low=1) for count in counts]
        if not sizes or sum(sizes) > len(self):
            raise ValueError(f"counts must add up to 1 .. {len(self)}; got {counts}")
        order = torch.randperm(
            len(self), generator=torch.Generator().manual_seed(as_integer("seed", seed, low=0))
        )
        return [Examples(self.x[rows], self.y[rows]) for rows in order[: sum(sizes)].split(sizes)]


def mnist1d(count: int = 5000, *, seed: int = 42) -> Examples:
    """Return MNIST-1D, ten classes of noisy shapes at 40 time steps, made on this machine.

    Args:
        count: examples, a multiple of 10.
        seed: of the random deformations.

    Returns:
        x (count, 40, 1), mean 0 and standard deviation 1. Global random states are left as they
        were.

    Source: Greydanus, Kobak, "Scaling Down Deep Learning with MNIST-1D" (ICML 2024); package
    mnist1d.
    """
    import random

    from mnist1d.data import (
        get_dataset_args,
        make_dataset,
    )  # a package of the checks: only who asks for it needs it

    count = as_integer("count", count, low=10, high=1_000_000)
    if count % 10:
        raise ValueError(f"count must be a multiple of 10, the number of classes; got {count}")
    arguments = get_dataset_args()
    arguments.num_samples, arguments.seed = count, as_integer("seed", seed, low=0, high=2**32 - 1)
    states = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            made = make_dataset(arguments)
    finally:
        np.random.set_state(states[0])  # noqa: NPY002
        random.setstate(states[1])
    x = np.concatenate([made["x"], made["x_test"]])
    y = np.concatenate([made["y"], made["y_test"]])
    return Examples(
        torch.tensor(x[..., None], dtype=torch.float32), torch.tensor(y, dtype=torch.int64)
    )


def digits() -> Examples:
    """Return scikit-learn's handwritten digits, 1797 images of 8 x 8 pixels, row by row.

    Returns:
        x (1797, 64, 1), mean 0 and standard deviation 1.

    Source: the test part of UCI's optical recognition of handwritten digits; package scikit-learn.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = (images - images.mean()) / images.std()
    return Examples(
        torch.tensor(x[..., None], dtype=torch.float32), torch.tensor(labels, dtype=torch.int64)
    )


def cifar10(files: Iterable[str | PathLike[str]]) -> Examples:
    """Return images of CIFAR-10's public binary files (data_batch_1.bin, ..., test_batch.bin),
    pixel by pixel.

    Args:
        files: paths; each a whole number of records of 3073 bytes.

    Returns:
        x (n, 1024, 3), red, green and blue of one pixel at each step, row by row, from 0 to 1.

    Raises:
        TypeError: for a single path in place of a list.
        ValueError: for a file that cannot be read, is empty or cut off, or holds a label above 9.

    Source: the format that accompanies Krizhevsky, "Learning Multiple Layers of Features from Tiny
    Images" (2009).
    """
    if isinstance(files, str | PathLike):
        raise TypeError(f"files must be a list of paths; got the single path {str(files)!r}")
    parts = []
    for file in files:
        path = as_path("each of files", file)
        try:
            raw = np.fromfile(path, dtype=np.uint8)
        except OSError as error:
            raise ValueError(f"files must be readable; got {path}: {error.strerror}") from None
        if not len(raw) or len(raw) % _RECORD:
            raise ValueError(
                f"files must hold whole records of {_RECORD} bytes; got {len(raw)} bytes in {path}"
            )
        records = raw.reshape(-1, _RECORD)
        if records[:, 0].max() > 9:
            raise ValueError(
                f"files must hold labels from 0 to 9; got {records[:, 0].max()} in {path}"
            )
        parts.append(records)
    if not parts:
        raise ValueError("files must name at least one file")
    records = np.concatenate(parts)
    pixels = records[:, 1:].reshape(-1, 3, 1024).transpose(0, 2, 1)  # (n, 1024, 3)
    x = torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255
    return Examples(x, torch.from_numpy(records[:, 0].astype(np.int64)))
