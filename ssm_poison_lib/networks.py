"""An SSM followed by a small ReLU network: outputs, clean labels, and the factor xi in gamma."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ssm_poison_lib._checks import ArrayLike, as_array, as_instance, as_integer, in_range
from ssm_poison_lib.ssm import DiagonalSSM

__all__ = [
    "Network",
    "authors_teacher",
    "relative_error",
]

Matrix = Float[np.ndarray, "_ _"]
_MAX_WIDTH = 10_000


@dataclass(frozen=True, eq=False)
class Network:
    """A diagonal SSM whose last output z passes through an MLP.

    The MLP has no biases, and a ReLU after every layer but the last. All arrays are read-only
    float64 copies; two networks are equal if all their weights are.

    Attributes:
        ssm: gives z = phi(x).
        mlp: weight matrices (1, width), (width, width), ..., (width, 1), applied from the right
            (row vector times matrix); empty for the SSM alone.

    Raises:
        TypeError: if ssm is something else.
        ValueError: if the matrices do not fit together, or the MLP does not lead from 1 number to 1
            number.
    """

    ssm: DiagonalSSM
    mlp: tuple[Matrix, ...] = ()

    def __post_init__(self) -> None:
        """Validate and freeze the layers."""
        as_instance("ssm", self.ssm, DiagonalSSM)
        as_instance("mlp", self.mlp, tuple, list)
        layers = tuple(
            as_array("each layer of mlp", layer, ndim=2, frozen=True) for layer in self.mlp
        )
        sizes = [1, *(layer.shape[1] for layer in layers)]
        if layers and (
            sizes[-1] != 1
            or any(layer.shape[0] != n for layer, n in zip(layers, sizes, strict=False))
        ):
            shapes = ", ".join(str(layer.shape) for layer in layers)
            raise ValueError(
                f"mlp must lead from 1 number to 1 number through matching shapes; got {shapes}"
            )
        object.__setattr__(self, "mlp", layers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Network):
            return NotImplemented
        same = self.ssm == other.ssm and len(self.mlp) == len(other.mlp)
        return same and all(map(np.array_equal, self.mlp, other.mlp))

    def __hash__(self) -> int:
        return hash((self.ssm, *((layer + 0.0).tobytes() for layer in self.mlp)))

    def respond(self, z: ArrayLike) -> Float[np.ndarray, " n"]:
        """Return g(z), what the MLP makes of the SSM's last outputs.

        Args:
            z: (n,) last outputs of the SSM.

        Raises:
            ValueError: if it overflows.
        """
        z = as_array("z", z, ndim=1)
        if not self.mlp:
            return z
        values = z[:, None]  # (n, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            for layer in self.mlp[:-1]:
                values = np.maximum(values @ layer, 0.0)  # (n, width)
            return np.asarray(in_range("z", "the network's output", (values @ self.mlp[-1])[:, 0]))

    def xi(self, z: ArrayLike) -> Float[np.ndarray, " n"]:
        """Return xi = g'(z), by which the MLP multiplies each residual on its way to the SSM.

        At a kink of a ReLU the derivative from the left of 0 is taken, as PyTorch does. The SSM
        alone has xi = 1.

        Args:
            z: (n,) last outputs of the SSM.

        Raises:
            ValueError: if it overflows.
        """
        z = as_array("z", z, ndim=1)
        if not self.mlp:
            return np.ones_like(z)
        values, slope = z[:, None], np.ones((len(z), 1))
        with np.errstate(over="ignore", invalid="ignore"):
            for layer in self.mlp[:-1]:
                values = values @ layer
                slope = (slope @ layer) * (values > 0)
                values = np.maximum(values, 0.0)
            return np.asarray(in_range("z", "xi", (slope @ self.mlp[-1])[:, 0]))

    def last_output(self, x: ArrayLike) -> Float[np.ndarray, " n"]:
        """Return g(phi(x)), shape (n,), the only output that training looks at.

        Args:
            x: (n, kappa) inputs.
        """
        return self.respond(self.ssm.last_output(as_array("x", x, ndim=2)))

    def output_scale(self, x: ArrayLike) -> Float[np.ndarray, " n"]:
        """Return the scale on which `last_output` is rounded: its sums, of absolute values.

        Args:
            x: (n, kappa) inputs.

        Raises:
            ValueError: if a sum overflows.
        """
        scale = self.ssm.output_scale(as_array("x", x, ndim=2))[:, None]  # (n, 1)
        with np.errstate(over="ignore"):
            for layer in self.mlp:
                scale = scale @ np.abs(layer)
        return np.asarray(in_range("x", "the sum of an output's terms", scale[:, 0]))


def as_network(name: str, value: object) -> Network:
    """Return `value` as a Network, an SSM alone as one without an MLP; a TypeError names it."""
    value = as_instance(name, value, DiagonalSSM, Network)
    return value if isinstance(value, Network) else Network(value)


def as_ssm(name: str, value: object) -> DiagonalSSM:
    """Return a DiagonalSSM, or a Network without an MLP, as a DiagonalSSM; a TypeError names it."""
    value = as_instance(name, value, DiagonalSSM, Network)
    if isinstance(value, Network):
        if value.mlp:
            raise TypeError(
                f"{name} must be a DiagonalSSM, or a Network without an MLP; got one with an MLP"
            )
        return value.ssm
    return value


def authors_teacher(width: int) -> Network:
    """Return the authors' teacher: A = B = C = 1, then layers of ones, the identity, and 0.5.

    It computes 0.5 width max(z, 0), z the sum of the inputs.

    Args:
        width: units in each hidden layer, 1 .. 10,000.
    """
    width = as_integer("width", width, low=1, high=_MAX_WIDTH)
    return Network(
        DiagonalSSM.ones([1.0]), (np.ones((1, width)), np.eye(width), np.full((width, 1), 0.5))
    )


def relative_error(student: Network, teacher: Network, x: ArrayLike) -> float:
    """Return norm(g - g*) / norm(g*), the relative L2 error of the outputs on test sequences.

    Args:
        student: its outputs are g.
        teacher: its outputs are g*.
        x: (n, K) test sequences, longer than those of training when extrapolation is asked for (the
            authors use 2,000 Gaussian ones of length 40).

    Raises:
        ValueError: if the teacher answers 0 to all of them.
        TypeError: for other objects.
    """
    as_instance("student", student, Network)
    as_instance("teacher", teacher, Network)
    expected = teacher.last_output(x)
    scale = float(np.linalg.norm(expected))
    if scale == 0.0:
        raise ValueError("x must hold a sequence that the teacher does not answer with 0")
    return float(np.linalg.norm(student.last_output(x) - expected)) / scale
