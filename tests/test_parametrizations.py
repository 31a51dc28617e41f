"""Flows of parameters s, a_j = f(s_j): the maps, the chain rule, the solved case, what stays out of reach."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from ssm_poison_lib import flow, sequences, ssm
from ssm_poison_lib.parametrizations import PARAMETRIZATIONS, parametrized_flow
from ssm_poison_lib.sequences import TrainingSet

SHAPE = np.array([1.0, 0.9, 0.5, 0.2])
X = np.concatenate([sequences.baseline_sequences(7), sequences.special_sequences(7)])
DATA = TrainingSet(X, ssm.theorem_teacher(4))
TARGET = DATA.teacher.impulse_response(7)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@given(a=st.floats(0.001, 0.999))
def test_maps_are_inverse_and_slopes_are_derivatives(name, a):
    kind = PARAMETRIZATIONS[name]
    s = kind.parameter(np.array(a))
    assert_allclose(kind.entry(s), a, rtol=1e-12)
    h = 1e-6
    assert_allclose(
        (kind.entry(s + h) - kind.entry(s - h)) / (2 * h), kind.slope(np.array(a)), rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_entries_move_with_the_squared_slope(name):
    A0, t = 0.3 * SHAPE, 1e-6
    moved = (parametrized_flow(A0, DATA.gram(), TARGET, name, [t])[0] - A0) / t
    free = flow.velocity(ssm.DiagonalSSM(A0, np.ones(4), np.ones(4)), DATA)
    assert_allclose(moved, PARAMETRIZATIONS[name].slope(A0) ** 2 * free, rtol=1e-4)


def test_free_is_the_gradient_flow_of_the_book():
    times = [1.0, 1e2, 1e6]
    ours = parametrized_flow(0.01 * SHAPE, DATA.gram(), TARGET, "free", times)
    for row, t in zip(ours, times, strict=True):
        start = ssm.DiagonalSSM(0.01 * SHAPE, np.ones(4), np.ones(4))
        reference = flow.gradient_flow(start, DATA, t_end=t)
        assert_allclose(row, reference.A[-1], atol=1e-7)


def test_exponential_baseline_race_is_solved():
    """With a = e^s, da/dt = a^2 alpha p a^q r_p: the differences a_j^-(q+1) - a_k^-(q+1) are conserved."""
    baseline = TrainingSet(sequences.baseline_sequences(7), ssm.theorem_teacher(4))
    a = parametrized_flow(0.1 * SHAPE, baseline.gram(), TARGET, "exp", [1e12])[0]
    assert_allclose((a**6).sum(), 1.0, atol=1e-9)
    assert_allclose(a**-6.0 - a[0] ** -6.0, (0.1 * SHAPE) ** -6.0 - 0.1**-6.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["exp", "exp(-exp)", "tanh"])
def test_entries_stay_within_reach(name):
    kind = PARAMETRIZATIONS[name]
    a = parametrized_flow(0.01 * SHAPE, DATA.gram(), TARGET, name, np.geomspace(1.0, 1e8, 9))
    assert (a >= kind.low).all()
    assert (a <= kind.high).all()


def test_bad_arguments():
    good = (0.1 * SHAPE, DATA.gram(), TARGET, "exp", [1.0])
    for i, wrong, message in (
        (0, -0.1 * SHAPE, r"A0 must lie between 0 and inf for 'exp'; got -0\.1 to"),
        (1, np.eye(6), "G must have length 7"),
        (1, np.ones((6, 7)), "G must be 7 x 7"),
        (1, np.triu(np.ones((7, 7))), "G must be symmetric"),
        (3, "log", "parametrization must be one of"),
        (4, [1.0, 1.0], "times must be > 0 and increasing"),
        (4, [0.0], "times must be > 0 and increasing"),
    ):
        arguments = [*good[:i], wrong, *good[i + 1 :]]
        with pytest.raises(ValueError, match=message):
            parametrized_flow(*arguments)


def test_a_failed_solver_is_an_error():
    with pytest.raises(flow.FlowError, match="LSODA gave up"):
        parametrized_flow([1e60, 1.0], DATA.gram(), TARGET, "exp", [1e3])
