"""Flows of parameters s, a_j = f(s_j): the maps, the chain rule, the solved case, what stays out of
reach.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from ssm_poison_lib import flow, flows, sequences, ssm
from ssm_poison_lib.flow import gradient_flow
from ssm_poison_lib.parametrizations import (
    PARAMETRIZATIONS,
    Parametrization,
    phase_entries,
    phase_limit,
)
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
        (kind.entry(s + h) - kind.entry(s - h)) / (2 * h),
        kind.slope(np.array(a)),
        rtol=1e-5,
        atol=1e-9,
    )


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_entries_move_with_the_squared_slope(name):
    A0, t = 0.3 * SHAPE, 1e-6
    moved = (
        gradient_flow(A0, (DATA.gram(), TARGET), parametrization=name, times=[t]).A[0] - A0
    ) / t
    free = flow.velocity(ssm.DiagonalSSM.ones(A0), DATA)
    assert_allclose(moved, PARAMETRIZATIONS[name].slope(A0) ** 2 * free, rtol=1e-4)


@pytest.mark.untyped
def test_free_is_the_gradient_flow_of_the_book():
    times = [1.0, 1e2, 1e6]
    ours = gradient_flow(0.01 * SHAPE, (DATA.gram(), TARGET), parametrization="free", times=times).A
    for row, t in zip(ours, times, strict=True):
        start = ssm.DiagonalSSM.ones(0.01 * SHAPE)
        reference = flow.gradient_flow(start, DATA, t_end=t)
        assert_allclose(row, reference.A[-1], atol=1e-7)


def test_exponential_baseline_race_is_solved():
    """With a = e^s, da/dt = a^2 alpha p a^q r_p: the differences a_j^-(q+1) - a_k^-(q+1) are
    conserved.
    """
    baseline = TrainingSet(sequences.baseline_sequences(7), ssm.theorem_teacher(4))
    a = gradient_flow(
        0.1 * SHAPE, (baseline.gram(), TARGET), parametrization="exp", times=[1e12]
    ).A[0]
    assert_allclose((a**6).sum(), 1.0, atol=1e-9)
    assert_allclose(a**-6.0 - a[0] ** -6.0, (0.1 * SHAPE) ** -6.0 - 0.1**-6.0, rtol=1e-6)


@pytest.mark.untyped
@pytest.mark.parametrize("name", ["exp", "exp(-exp)", "tanh"])
def test_entries_stay_within_reach(name):
    kind = PARAMETRIZATIONS[name]
    a = gradient_flow(
        0.01 * SHAPE, (DATA.gram(), TARGET), parametrization=name, times=np.geomspace(1.0, 1e8, 9)
    ).A
    assert (a >= kind.low).all()
    assert (a <= kind.high).all()


def test_bad_arguments():
    good = (0.1 * SHAPE, DATA.gram(), TARGET, "exp", [1.0])
    for i, wrong, message in (
        (0, -0.1 * SHAPE, r"start must have entries between 0 and inf for 'exp'; got -0\.1 to"),
        (1, np.eye(6), "G must have length 7"),
        (1, np.ones((6, 7)), "G must be 7 x 7"),
        (1, np.triu(np.ones((7, 7))), "G must be symmetric"),
        (3, "log", "parametrization must be one of"),
        (4, [1.0, 1.0], "times must be > 0 and increasing"),
        (4, [0.0], "times must be > 0 and increasing"),
    ):
        start, G, target, kind, times = [*good[:i], wrong, *good[i + 1 :]]
        with pytest.raises(ValueError, match=message):
            gradient_flow(start, (G, target), parametrization=kind, times=times)


def test_a_start_beyond_float64_is_an_error():
    with pytest.raises(ValueError, match="start must be smaller in size: the loss at the start"):
        gradient_flow([1e60, 1.0], (DATA.gram(), TARGET), parametrization="exp", times=[1e3])


def test_the_step_limit_is_an_error():
    with pytest.raises(flow.FlowError, match=r"no end after max_steps=7 steps: t = .* of 1e\+08"):
        gradient_flow(
            0.01 * SHAPE, (DATA.gram(), TARGET), parametrization="free", times=[1e8], max_steps=7
        )


# ---- phases that show one lag --------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@given(a=st.floats(1e-4, 0.99), lag=st.integers(1, 9))
def test_the_conserved_quantity_has_the_derivative_it_promises(name, a, lag):
    kind, a = PARAMETRIZATIONS[name], np.array([a])
    s, slope = kind.parameter(a), kind.slope(a)
    h = 1e-4 * np.minimum(a, 1 - a) / slope  # a changes by 1e-4 of itself, or of its distance to 1
    change = (kind.conserved(s + h, lag) - kind.conserved(s - h, lag)) / (2 * h)
    assert_allclose(change * slope * a ** (lag - 1.0), 1.0, rtol=2e-5)
    assert_allclose(kind.log_entry(s), np.log(a), rtol=1e-10)


def lag_alone(lag, length=10):
    G = np.zeros((length, length))
    G[lag, lag] = 2.0
    return G


@pytest.mark.untyped
@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@pytest.mark.parametrize("lag", [1, 2, 4, 5])
def test_phases_end_where_the_flow_ends(name, lag):
    for A0 in (0.03 * SHAPE, 0.2 * SHAPE[::-1]):
        # Under weights of one scale the time to fit grows as a power of the start; the flow stops
        # when it has arrived.
        followed = gradient_flow(
            A0, (lag_alone(lag), np.ones(10)), parametrization=name, times=[1e14]
        ).A[0]
        limit = phase_limit(A0, name, lag=lag)[0]
        assert_allclose(limit, followed, atol=3e-7)
        assert_allclose((limit**lag).sum(), 1.0, atol=1e-12)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_phases_pass_through_the_states_of_the_flow(name):
    times = np.geomspace(1e-2, 1e2, 5)
    for row in gradient_flow(
        0.03 * SHAPE, (lag_alone(1), np.ones(10)), parametrization=name, times=times
    ).A:
        assert_allclose(
            phase_entries(0.03 * SHAPE, row[0], name, lag=1)[0], row, rtol=1e-7, atol=1e-12
        )


@pytest.mark.untyped
@settings(max_examples=12)  # each is a few thousand evaluations of an exponential integral
@given(
    shape=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=8),
    scale=st.floats(-8, -1.1).map(lambda e: 10.0**e),
    name=st.sampled_from(list(PARAMETRIZATIONS)),
    lag=st.integers(1, 8),
)
def test_phases_fit_and_keep_the_order(shape, scale, name, lag):
    A0 = scale * np.array(shape)
    limit = phase_limit(A0, name, lag=lag)[0]
    assert_allclose((limit**lag).sum(), 1.0, atol=1e-12)
    assert (limit >= A0 * (1 - 1e-12)).all()
    order = np.argsort(A0, kind="stable")
    # entries that differ by rounding may change places
    assert (np.diff(limit[order]) >= -1e-12).all()
    assert_allclose(phase_limit([A0, A0[::-1]], name, lag=lag), [limit, limit[::-1]], rtol=1e-12)


def test_the_free_phases_are_the_closed_forms():
    for eps in (1e-6, 1e-3, 1e-1):
        special = phase_limit(eps * SHAPE, "free", lag=1)[0]
        assert_allclose(special, 1 / 4 + eps * (SHAPE - SHAPE.mean()), rtol=1e-12)
        assert_allclose(
            phase_limit(special, "free", lag=6)[0], flow.baseline_limit(special, 7), rtol=1e-9
        )


@pytest.mark.parametrize("gap", [1e-3, 1e-7, 1e-14, 1e-20])
def test_exact_gaps_are_those_of_the_solver(gap):
    A0, gaps = flows.near_tie_starts([1.0, 1.0, 0.6, 0.3], 1e-2, gap)
    batch = flows.theorem_flows(A0, gaps=gaps, length=7, alpha=2.0, beta=0.0, t_end=1e30)
    assert_allclose(phase_limit(A0, "free", lag=6, gaps=gaps), batch.A, atol=1e-8)
    for name in PARAMETRIZATIONS:
        limit = phase_limit(A0, name, lag=6, gaps=gaps)[0]
        assert_allclose((limit**6).sum(), 1.0, atol=1e-12)


def test_an_exact_tie_stays_one():
    A0, gaps = flows.near_tie_starts([1.0, 1.0, 0.6, 0.3], 1e-2, 0.0)
    for name in PARAMETRIZATIONS:
        for tied in (phase_limit(A0, name, lag=6, gaps=gaps)[0], phase_limit(A0, name, lag=6)[0]):
            assert tied[0] == tied[1] > 0.89


def test_a_winner_next_to_one_keeps_its_losers_exact():
    """With exp(-exp) the losers wait for 1 - a_1, here 1e-31 and so nothing in float64: p u_1 = sum
    a_j^p, 1/u_1 = the gap.
    """
    A0 = 1e-5 * SHAPE
    a = phase_limit(A0, "exp(-exp)", lag=6)[0]
    kind = PARAMETRIZATIONS["exp(-exp)"]
    lead = np.diff(kind.conserved(kind.parameter(A0[[1, 0]]), 6))
    u = (a[1:] ** 6).sum() / 6
    assert_allclose(1 / u - kind.conserved(kind.parameter(a[1:2]), 6), lead, rtol=1e-9)
    assert 1e-4 > 1 - a[0] > 0
    assert phase_limit(a, "free", lag=7) is not None  # it can start another phase


def test_bad_phases():
    for arguments, message in (
        ((SHAPE * 0.1, "log", 1), "parametrization must be one of"),
        ((SHAPE * 0.1, "exp", 0), "lag must be an integer"),
        ((SHAPE, "free", 1), r"A0 must have a sum of a_j\^1 below 1; got 2\.6"),
        ((-0.1 * SHAPE, "free", 1), r"A0 must be positive; got -0\.1"),
        ((-0.1 * SHAPE, "tanh", 1), r"A0 must be positive; got -0\.1"),
        ((2 * SHAPE, "tanh", 1), "A0 must lie between -1 and 1"),
        ((1e-9 * SHAPE, "exp", 60), r"A0 must not be so small that its power -60 leaves float64"),
    ):
        A0, name, lag = arguments
        with pytest.raises(ValueError, match=message):
            phase_limit(A0, name, lag=lag)
    with pytest.raises(
        ValueError, match=r"largest must be at least the largest entry of A0 and below 1; got 0\.05"
    ):
        phase_entries(0.1 * SHAPE, 0.05, "exp(-exp)", lag=1)
    with pytest.raises(
        ValueError, match="largest must be a number, or one for each of the 1 starts"
    ):
        phase_entries(0.1 * SHAPE, [0.2, 0.3], "exp(-exp)", lag=1)
    for gaps, message in (
        ([0.01, 0.04], "gaps must have length 3"),
        ([-0.01, 0.04, 0.03], "gaps must be >= 0"),
        ([0.02, 0.04, 0.03], "gaps must agree with A0"),
        (np.ones((2, 3)), "gaps must have one row"),
    ):
        with pytest.raises(ValueError, match=message):
            phase_limit(0.1 * SHAPE, "free", lag=6, gaps=gaps)


def test_a_parametrization_checks_its_fields():
    fields = {
        name: getattr(PARAMETRIZATIONS["tanh"], name)
        for name in Parametrization.__dataclass_fields__
    }
    assert Parametrization(**fields).high == 1.0
    for name, wrong in (("entry", 1.0), ("conserved", None), ("high", "1"), ("used_by", 3)):
        with pytest.raises((TypeError, ValueError), match=name):
            Parametrization(**{**fields, name: wrong})
