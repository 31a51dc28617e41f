"""What is measured on a trained student: errors past the training length, effective rank, gamma."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from ssm_poison_lib._checks import (
    MAX_LENGTH,
    ArrayLike,
    as_array,
    as_instance,
    as_integer,
    in_range,
)
from ssm_poison_lib.networks import Network
from ssm_poison_lib.sequences import TrainingSet
from ssm_poison_lib.ssm import DiagonalSSM

__all__ = [
    "effective_rank",
    "error_by_lag",
    "extrapolation_loss",
    "gamma",
    "generalization_error",
    "loss",
]


def error_by_lag(
    student: DiagonalSSM, teacher: DiagonalSSM, length: int
) -> Float[np.ndarray, " length"]:
    """Return abs(M_k - M*_k) for lags k = 0 .. length-1: what the student's answer to a unit
    impulse gets wrong.

    Args:
        student: a model, or a network with one in it
        teacher: what made the labels
        length: number of lags that are compared, >= 1

    Raises:
        TypeError: unless both are SSMs.
        ValueError: if a value overflows.
    """
    student = as_instance("student", student, DiagonalSSM)
    teacher = as_instance("teacher", teacher, DiagonalSSM)
    with np.errstate(over="ignore"):
        error = np.abs(student.impulse_response(length) - teacher.impulse_response(length))
    return np.asarray(in_range("length", "the error", error))


def generalization_error(
    student: DiagonalSSM, teacher: DiagonalSSM, length: int, *, first_lag: int = 0
) -> float:
    """Return Gen_K = max over first_lag <= k < K of abs(M_k - M*_k).

    Args:
        student: a model, or a network with one in it
        teacher: what made the labels
        length: K, the number of lags compared (20 in the theorem's setting, 40 beyond it); far
            above kappa it measures extrapolation.
        first_lag: 1 leaves out lag 0, which no student can learn when x_kappa is always 0 and B, C
            are fixed.

    Raises:
        ValueError: unless 0 <= first_lag < length, or if a value overflows.
        TypeError: unless both are SSMs.
    """
    length = as_integer("length", length, low=1, high=MAX_LENGTH)
    first_lag = as_integer("first_lag", first_lag, low=0, high=length - 1)
    return float(error_by_lag(student, teacher, length)[first_lag:].max())


def extrapolation_loss(
    student: DiagonalSSM, teacher: DiagonalSSM, length: int, *, first_lag: int = 0
) -> float:
    """Return the authors' normalisation: Gen_K / max_{k < K} abs(M*_k), same arguments as
    `generalization_error`.

    For the theorem's teacher the divisor is M*_0 = d although every lag that can be learnt has M*_k
    = 1.

    Args:
        student: a model, or a network with one in it
        teacher: what made the labels
        length: number of lags that are compared, >= 1
        first_lag: the first lag that is compared, >= 0

    Raises:
        ValueError: if the teacher's impulse response is zero at all compared lags, and as there.
    """
    error = generalization_error(student, teacher, length, first_lag=first_lag)
    scale = float(np.abs(teacher.impulse_response(length)[first_lag:]).max())
    if scale == 0.0:
        raise ValueError(
            "teacher must have a non-zero impulse response at the compared lags; got all zeros"
        )
    return float(in_range("length", "the error", np.float64(error / scale)))


def effective_rank(values: ArrayLike) -> float:
    """Return exp of the entropy of abs(v_j) / sum abs(v): 1 for one dominant entry, d for d equal
    ones.

    Args:
        values: (d,), for a diagonal state transition matrix its entries (their absolute values are
            its singular values).

    Raises:
        ValueError: if all entries are zero: no distribution, no rank.
    """
    sizes = np.abs(as_array("values", values, ndim=1))
    largest = sizes.max()
    if largest == 0.0:
        raise ValueError("values must not all be zero")
    share = sizes / largest  # first, so that subnormal entries do not lose their last digits
    share = share[share > 0] / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def loss(student: DiagonalSSM | Network, training_set: TrainingSet) -> float:
    """Return the mean over sequences of (y_i - phi(x_i))^2, only the last output being supervised.

    Args:
        student: an SSM, or one inside a network.
        training_set: sequences and labels

    Raises:
        TypeError: for anything else.
        ValueError: if the loss overflows.
    """
    student = as_instance("student", student, DiagonalSSM, Network)
    training_set = as_instance("training_set", training_set, TrainingSet)
    with np.errstate(over="ignore"):
        value = np.mean((training_set.y - student.last_output(training_set.x)) ** 2)
    return float(in_range("training_set", "the loss", value))


def gamma(student: DiagonalSSM | Network, training_set: TrainingSet) -> Float[np.ndarray, " lags"]:
    """Return the coefficients gamma_l, l = 0 .. kappa-2, of the gradient flow da_j/dt = w_j sum_l
    gamma_l a_j^l.

    gamma_l = (2 (l+1) / n) sum_i delta_i x^{(i)}_{kappa-l-1} with residuals delta_i = y_i -
    phi(x_i), 1-based positions. Empty for kappa = 1: a single input never passes through A. For an
    SSM inside a network each residual comes with its factor xi_i = g'(z_i), see `Network.xi`; then
    da_j/dt = w_j sum_l gamma_l a_j^l as without an MLP.

    Args:
        student: a model, or a network with one in it
        training_set: sequences and labels

    Raises:
        TypeError: unless student is a DiagonalSSM or a Network, and training_set a set for one of
            them.
        ValueError: if a value overflows.

    Source: Proposition 1 of chapter "Which way does training move?".
    """
    student = as_instance("student", student, DiagonalSSM, Network)
    training_set = as_instance("training_set", training_set, TrainingSet)
    with np.errstate(over="ignore", invalid="ignore"):
        x = training_set.x
        residual = training_set.y - student.last_output(x)  # (n,)
        if isinstance(student, Network):
            residual = residual * student.xi(student.ssm.last_output(x))
        by_lag = (2.0 / len(x)) * residual @ x[:, ::-1]  # (kappa,), index = lag m = l + 1
        values = np.arange(1, x.shape[1]) * by_lag[1:]
    return np.asarray(in_range("training_set", "gamma", values))
