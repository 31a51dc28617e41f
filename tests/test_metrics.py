"""Errors, effective rank, loss and gamma."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import metrics, networks, sequences, ssm

TEACHER = ssm.theorem_teacher(4)  # impulse response 4, 1, 1, 1, ...
STUDENT = ssm.DiagonalSSM.ones([0.5, 0.5, 0.0, -1.0])  # 4, 0, 1.5, -0.75, 1.125, ...


def test_errors_by_hand():
    assert_allclose(metrics.error_by_lag(STUDENT, TEACHER, 4), [0.0, 1.0, 0.5, 1.75], atol=1e-14)
    assert metrics.generalization_error(STUDENT, TEACHER, 4) == pytest.approx(1.75)
    assert metrics.generalization_error(STUDENT, TEACHER, 3) == pytest.approx(1.0)
    assert metrics.extrapolation_loss(STUDENT, TEACHER, 4) == pytest.approx(1.75 / 4)


def test_first_lag_leaves_out_what_cannot_be_learnt():
    other = ssm.DiagonalSSM([1.0, 0.0], [1.0, 1.0], [1.0, 1.0])  # lag 0 is 2, not 4
    assert metrics.generalization_error(other, TEACHER, 5) == pytest.approx(2.0)
    assert metrics.generalization_error(other, TEACHER, 5, first_lag=1) == 0.0
    # the divisor leaves the same lags out
    assert metrics.extrapolation_loss(STUDENT, TEACHER, 4, first_lag=1) == pytest.approx(1.75)
    assert metrics.extrapolation_loss(other, TEACHER, 5, first_lag=1) == 0.0


def test_a_silent_teacher_has_no_extrapolation_loss():
    silent = ssm.DiagonalSSM([0.0], [1.0], [1.0])
    with pytest.raises(
        ValueError,
        match=r"^teacher must have a non-zero impulse response at the compared lags; got all zeros",
    ):
        metrics.extrapolation_loss(STUDENT, silent, 4, first_lag=1)


# A product with a subnormal number is rounded, to zero in the end: shares then change, as they
# should.
EXACT = st.floats(-5, 5, allow_subnormal=False).filter(lambda v: v == 0.0 or abs(v) >= 1e-300)


@settings(deadline=None, max_examples=60)
@given(
    values=hnp.arrays(np.float64, st.integers(1, 12), elements=EXACT).filter(np.any),
    factor=st.floats(0.1, 10),
)
def test_effective_rank_properties(values, factor):
    rank = metrics.effective_rank(values)
    assert 1 - 1e-12 <= rank <= np.count_nonzero(values) * (1 + 1e-12)
    assert metrics.effective_rank(-factor * values) == pytest.approx(rank)
    assert metrics.effective_rank(np.append(values, 0.0)) == pytest.approx(rank)


def test_effective_rank_by_hand():
    assert metrics.effective_rank([3.0, 3.0, -3.0]) == pytest.approx(3.0)
    assert metrics.effective_rank([7.0, 0.0]) == pytest.approx(1.0)
    # shares 3/4, 1/4: entropy = log 4 - (3/4) log 3
    assert metrics.effective_rank([3.0, 1.0]) == pytest.approx(4 / 3**0.75)
    # the smallest number there is
    assert metrics.effective_rank([5e-324, 5e-324]) == pytest.approx(2.0)


def test_loss_by_hand():
    data = sequences.TrainingSet(np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 2.0]]), TEACHER)
    # last outputs: teacher 1, 1 + 2*4; student 0, 1.5 + 2*4
    assert metrics.loss(STUDENT, data) == pytest.approx((1.0**2 + 0.5**2) / 2)


def test_gamma_by_hand():
    data = sequences.TrainingSet(np.array([[0.0, 1.0, 0.0], [3.0, 0.0, 2.0]]), TEACHER)
    # residuals 1 and 3 (1 - 1.5) = -1.5; gamma_0 = (2/2) * (1 * x_2 of the first), gamma_1 = 2
    # (2/2) (-1.5 * 3)
    assert_allclose(metrics.gamma(STUDENT, data), [1.0, -9.0], atol=1e-13)


def test_gamma_is_empty_for_length_one_and_zero_at_a_fit():
    one = sequences.TrainingSet(np.array([[1.0], [2.0]]), TEACHER)
    assert metrics.gamma(STUDENT, one).shape == (0,)
    data = sequences.TrainingSet(sequences.gaussian_sequences(6, (1, 2, 5), 7, seed=0), TEACHER)
    fitted = ssm.DiagonalSSM.ones([1.0, 0.0, 0.0, 0.0])
    assert metrics.loss(fitted, data) == pytest.approx(0.0, abs=1e-28)
    assert_allclose(metrics.gamma(fitted, data), np.zeros(5), atol=1e-13)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), length=st.integers(2, 8), size=st.integers(1, 6))
def test_gamma_is_the_gram_form_of_the_residual_response(seed, length, size):
    rng = np.random.default_rng(seed)
    data = sequences.TrainingSet(rng.normal(size=(size, length)), ssm.teacher("dim=2"))
    student = ssm.DiagonalSSM(*rng.uniform(-1, 1, size=(3, 4)))
    r = data.teacher.impulse_response(length) - student.impulse_response(length)
    expected = np.arange(1, length) * (data.gram() @ r)[1:]
    assert_allclose(metrics.gamma(student, data), expected, rtol=1e-9, atol=1e-11)


def test_error_by_lag_of_the_teacher_itself_is_zero():
    assert_array_equal(metrics.error_by_lag(TEACHER, TEACHER, 30), np.zeros(30))


def by_autograd(network, data):
    """Minus the gradient of the loss with respect to A, from the recurrence and the layers, by
    PyTorch.
    """
    A = torch.tensor(np.array(network.ssm.A), requires_grad=True)
    B, C = (torch.tensor(np.array(v)) for v in (network.ssm.B, network.ssm.C))
    x, state = torch.tensor(np.array(data.x)), torch.zeros(len(data.x), len(A), dtype=torch.float64)
    for t in range(x.shape[1]):
        state = A * state + B * x[:, t, None]
    values = (state @ C)[:, None]
    for k, layer in enumerate(network.mlp):
        values = values @ torch.tensor(np.array(layer))
        if k < len(network.mlp) - 1:
            values = torch.relu(values)
    loss = ((torch.tensor(np.array(data.y)) - values[:, 0]) ** 2).mean()
    loss.backward()
    return loss.item(), -A.grad.numpy()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(1, 7),
    layers=st.integers(0, 3),
    clean=st.booleans(),
)
def test_gamma_and_loss_of_a_network_are_those_of_autograd(seed, length, layers, clean):
    """In the network each residual comes with xi = g'(z): without it gamma would be that of the SSM
    alone.
    """
    rng = np.random.default_rng(seed)
    widths = [1, *[4] * layers, 1]
    mlp = tuple(rng.normal(size=shape) for shape in pairwise(widths)) if layers else ()
    student = networks.Network(ssm.DiagonalSSM(*rng.uniform(-1, 1, size=(3, 3))), mlp)
    x = rng.normal(size=(5, length))
    if clean:
        data = sequences.TrainingSet(x, networks.authors_teacher(3))
    else:
        data = sequences.TrainingSet(x, TEACHER)
    loss, velocity = by_autograd(student, data)
    assert metrics.loss(student, data) == pytest.approx(loss, rel=1e-12)
    gamma = metrics.gamma(student, data)
    powers = student.ssm.A[:, None] ** np.arange(length - 1)
    assert_allclose(student.ssm.w * (powers @ gamma), velocity, rtol=1e-9, atol=1e-10 * (1 + loss))


def test_what_overflows_is_an_error():
    huge = ssm.DiagonalSSM([0.5], [1e160], [1.0])
    data = sequences.TrainingSet([[0.0, 1.0]], TEACHER)
    with pytest.raises(ValueError, match=r"^training_set must be smaller in size: the loss"):
        metrics.loss(huge, data)
    with pytest.raises(ValueError, match=r"^training_set must be smaller in size: gamma"):
        metrics.gamma(huge, sequences.TrainingSet([[1e148, 1.0, 0.0]], TEACHER))
    with pytest.raises(ValueError, match=r"^training_set must be smaller in size: gamma"):
        metrics.gamma(  # inf - inf, without a warning
            ssm.DiagonalSSM.ones([0.5]),
            sequences.TrainingSet([[0.0, 1e300, 0.0], [1e300, -1e200, 0.0]], TEACHER),
        )
    up, down = (ssm.DiagonalSSM([1.0], [sign * 1.5e308], [1.0]) for sign in (1, -1))
    with pytest.raises(ValueError, match=r"^length must be smaller in size: the error"):
        metrics.error_by_lag(up, down, 2)


def test_gamma_that_overflows_names_the_training_set():
    data = sequences.TrainingSet([[1e155, 0, 0, 1e155]], ssm.theorem_teacher(state_dim=2))
    with pytest.raises(ValueError, match=r"^training_set must be smaller in size: gamma is beyond"):
        metrics.gamma(ssm.DiagonalSSM.ones([0.5, 0.1]), data)
