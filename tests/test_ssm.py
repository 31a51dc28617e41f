"""Outputs, impulse response, transfer function, teachers and starts."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import ssm
from ssm_poison_lib.networks import Network
from ssm_poison_lib.ssm import DiagonalSSM, impulse_response


def parameters(max_dim: int = 5):
    """Rows A, B, C of random SSMs: stable and mildly unstable ones, zeros and ties included."""
    entries = st.floats(-1.2, 1.2, allow_subnormal=False)
    return st.integers(1, max_dim).flatmap(
        lambda d: hnp.arrays(np.float64, (3, d), elements=entries)
    )


def inputs(length: int):
    return hnp.arrays(np.float64, (3, length), elements=st.floats(-2, 2, allow_subnormal=False))


@settings(deadline=None, max_examples=60)
@given(abc=parameters(), x=st.integers(1, 12).flatmap(inputs))
def test_recurrence_convolution_and_fft_agree(abc, x):
    system = DiagonalSSM(*abc)
    reference = system.output(x, method="recurrence")
    bound = 1e-12 * (1 + np.abs(x).sum() * np.abs(system.impulse_response(x.shape[1])).max())
    assert_allclose(system.output(x, method="convolution"), reference, rtol=0, atol=bound)
    assert_allclose(system.output(x, method="fft"), reference, rtol=0, atol=bound)
    assert_allclose(system.last_output(x), reference[:, -1], rtol=0, atol=bound)


@settings(deadline=None, max_examples=30)
@given(abc=parameters(), x=inputs(6))
def test_one_sequence_equals_its_row_in_a_batch(abc, x):
    system = DiagonalSSM(*abc)
    for method in ("recurrence", "convolution", "fft"):
        batch = system.output(x, method=method)
        assert batch.shape == x.shape
        assert_allclose(system.output(x[1], method=method), batch[1], atol=1e-13)
    assert system.last_output(x).shape == (3,)
    assert system.last_output(x[1]).shape == ()


def test_ones_is_the_theorems_student():
    student = DiagonalSSM.ones([0.5, -0.25, 0.0])
    assert_array_equal(student.A, [0.5, -0.25, 0.0])
    assert_array_equal(student.B, np.ones(3))
    assert_array_equal(student.C, np.ones(3))
    with pytest.raises(ValueError, match="A must have 1 axes; got shape"):
        DiagonalSSM.ones(np.zeros((2, 2)))


def test_systems_and_networks_are_equal_if_all_weights_are():
    one = DiagonalSSM([0.5, 0.0], [1.0, 2.0], [3.0, 4.0])
    same = DiagonalSSM([0.5, -0.0], [1.0, 2.0], [3.0, 4.0])
    assert one == same
    assert hash(one) == hash(same)
    assert len({hash(DiagonalSSM.ones([a])) for a in (0.5, 1e-20, 2e-20)}) == 3
    others = [
        DiagonalSSM([0.5, 0.1], [1.0, 2.0], [3.0, 4.0]),
        DiagonalSSM([0.5, 0.0], [1.0, 2.1], [3.0, 4.0]),
        DiagonalSSM([0.5, 0.0], [1.0, 2.0], [3.0, 4.1]),
        DiagonalSSM([0.5], [1.0], [3.0]),
        "one",
    ]
    layers = (np.ones((1, 2)), np.array([[1.0], [0.0]]))
    network, again = Network(one, layers), Network(same, (layers[0], np.array([[1.0], [-0.0]])))
    assert network == again
    assert hash(network) == hash(again)
    others += [
        network,
        Network(one),
        Network(one, (layers[0], 2 * layers[1])),
        Network(others[0], layers),
    ]
    assert all(one != other for other in others)
    assert all(network != other for other in others if other is not network)


@settings(deadline=None, max_examples=40)
@given(abc=parameters(), x=st.integers(1, 9).flatmap(inputs))
def test_the_scale_of_an_output_is_the_sum_of_the_sizes_of_its_terms(abc, x):
    system = DiagonalSSM(*abc)
    M = system.impulse_response(x.shape[1])
    terms = np.abs(M * x[:, ::-1])
    assert_allclose(system.output_scale(x), terms.sum(axis=1), rtol=1e-12, atol=1e-300)
    assert_allclose(system.output_scale(x[0]), terms[0].sum(), rtol=1e-12, atol=1e-300)


def test_recurrence_is_the_definition_step_by_step():
    system = DiagonalSSM([0.5, -2.0], [1.0, 3.0], [2.0, -1.0])
    # h_1 = (1, 3), y_1 = 2 - 3; h_2 = (0.5 + 2, -6 + 6), y_2 = 5
    assert_allclose(system.output([1.0, 2.0], method="recurrence"), [-1.0, 5.0], atol=1e-15)


def test_each_method_computes_in_its_own_way(monkeypatch):
    growing, silence = DiagonalSSM([2.0], [1.0], [1.0]), np.zeros(1100)  # M_1024 overflows
    assert_array_equal(growing.output(silence, method="recurrence"), silence)
    for method in ("convolution", "fft"):
        with pytest.raises(ValueError, match="overflows"):
            growing.output(silence, method=method)

    def no_transform(*_):
        raise AssertionError("transformed")

    monkeypatch.setattr(ssm, "rfft", no_transform)
    assert_array_equal(growing.output([1.0, 0.0], method="convolution"), [1.0, 2.0])
    assert_array_equal(growing.output([1.0, 0.0]), [1.0, 2.0])
    with pytest.raises(AssertionError, match="transformed"):
        growing.output([1.0, 0.0], method="fft")


@settings(deadline=None, max_examples=40)
@given(abc=parameters(), length=st.integers(1, 15))
def test_impulse_response_is_the_answer_to_a_unit_impulse(abc, length):
    system = DiagonalSSM(*abc)
    impulse = np.zeros(length)
    impulse[0] = 1.0
    expected = system.output(impulse, method="recurrence")
    assert_allclose(system.impulse_response(length), expected, rtol=1e-12, atol=1e-12)
    matrix = np.diag(system.A)
    powers = [system.C @ np.linalg.matrix_power(matrix, m) @ system.B for m in range(length)]
    assert_allclose(system.impulse_response(length), powers, rtol=1e-11, atol=1e-12)


def test_zero_to_the_zero_is_one():
    assert_array_equal(DiagonalSSM([0.0], [2.0], [3.0]).impulse_response(3), [6.0, 0.0, 0.0])


@settings(deadline=None, max_examples=60)
@given(
    d=st.integers(1, 6),
    length=st.integers(1, 3000),
    seed=st.integers(0, 10_000),
    largest=st.sampled_from([0.0, 0.5, 1.0, 1.2, 3.0]),
    decades=st.sampled_from([0, 8, 280]),
)
def test_the_impulse_response_is_right_up_to_the_rounding_of_its_products(
    d, length, seed, largest, decades
):
    """Against 60 digits: 2 sqrt(m) products and a sum of d terms, each rounded once; more is lost
    only where a power itself is below the range of float64.
    """
    rng = np.random.default_rng(seed)
    A = rng.uniform(-largest, largest, d)
    w = rng.normal(size=d) * 10.0 ** rng.uniform(-decades, decades, d)
    lags = rng.integers(0, length, 4)
    with mpmath.workdps(60):
        terms = [
            [mpmath.mpf(b) * mpmath.mpf(a) ** int(m) for a, b in zip(A, w, strict=True)]
            for m in lags
        ]
        exact, size = [sum(row) for row in terms], [sum(map(abs, row)) for row in terms]
        top = max(
            sum(abs(mpmath.mpf(b)) * abs(mpmath.mpf(a)) ** m for a, b in zip(A, w, strict=True))
            for m in (0, length - 1)
        )
        if top > 1e300:
            return  # an error, or on its edge: other tests
        response = impulse_response(A, w, length)
        # what powers below float64 lose anyway
        lost = 2.0**-1074 * sum(max(1.0, abs(b)) for b in w)
        for m, value, scale in zip(lags, exact, size, strict=True):
            bound = (2 * (length**0.5 + 1) + d + 2) * 2.0**-53 * scale + lost
            assert abs(mpmath.mpf(response[m]) - value) <= bound, m


def test_tiny_weights_of_growing_entries_keep_their_digits():
    """2^-1070 is subnormal; 1.7^m brings it back into range, and every digit with it."""
    response = impulse_response([1.7, 0.0], [2.0**-1070, 1.0], 900)
    lags = np.arange(2, 900)
    assert_allclose(
        response[lags],
        [float(Fraction(1.7) ** int(m) / 2**1070) for m in lags],
        rtol=1e-14,
        atol=2.0**-1074,
    )


def test_long_impulse_response_of_a_stable_system_is_finite():
    response = DiagonalSSM([0.999, -1.0], [1.0, 1.0], [1.0, 1.0]).impulse_response(100_000)
    assert np.isfinite(response).all()
    assert response[-1] == pytest.approx(-1.0, abs=1e-30)


def test_overflow_is_an_error_that_names_the_lag():
    system = DiagonalSSM([2.0, 0.5], [1.0, 1.0], [1.0, 1.0])
    assert np.isfinite(system.impulse_response(1024)).all()
    with pytest.raises(ValueError, match=r"overflows at lag 1024.*got length=1100"):
        system.impulse_response(1100)
    # infinity less infinity: no warning either
    opposite = DiagonalSSM([2.0, -2.0], [1.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"overflows at lag 1024.*got length=1100"):
        opposite.impulse_response(1100)


@settings(deadline=None, max_examples=40)
@given(abc=parameters())
def test_transfer_function_is_the_z_transform_of_the_impulse_response(abc):
    system = DiagonalSSM(*abc)
    # outside all poles: the series converges like 0.4^m
    z = 3.0 * np.exp(1j * np.array([0.0, 1.0, 2.5]))
    response = system.impulse_response(80)
    series = np.array([(response * point ** -np.arange(80)).sum() for point in z])
    assert_allclose(system.transfer_function(z), series, rtol=1e-10, atol=1e-10)


def test_transfer_function_where_an_entry_is_zero():
    system = DiagonalSSM([0.0, 0.5], [2.0, 1.0], [1.0, 1.0])
    assert system.transfer_function(0.0) == pytest.approx(2.0)
    assert system.transfer_function(1.0) == pytest.approx(4.0)
    assert system.transfer_function(np.ones((2, 3))).shape == (2, 3)
    assert system.transfer_function(1).dtype == np.complex128
    # A pole without weight is no pole.
    assert DiagonalSSM([0.5], [0.0], [1.0]).transfer_function(0.5) == 0.0


def test_w_and_parameters_are_read_only_copies():
    A = np.array([0.1, 0.2])
    system = DiagonalSSM(A, [1.0, 2.0], [3.0, 4.0])
    A[0] = 9.0
    assert_array_equal(system.A, [0.1, 0.2])
    assert_array_equal(system.w, [3.0, 8.0])
    assert system.state_dim == 2
    for parameter in (system.A, system.B, system.C):
        with pytest.raises(ValueError, match="read-only"):
            parameter[0] = 1.0
    with pytest.raises(AttributeError):
        system.A = A


@pytest.mark.parametrize("d", [2, 10, 20])
def test_theorem_teacher(d):
    teacher = ssm.theorem_teacher(d)
    assert_array_equal(teacher.A, [1.0, 0.0])
    assert_allclose(teacher.impulse_response(9), [d, *[1.0] * 8], rtol=1e-14)
    assert_array_equal(teacher.B, ssm.teacher("theorem", state_dim=d).B)


@pytest.mark.parametrize(
    ("name", "poles"),
    [
        ("dim=1", [1.0]),
        ("dim=2", [0.99, 0.8]),
        ("dim=3", [0.99, 0.8, 0.5]),
        ("dim=4", [0.99, 0.8, 0.5, 0.3]),
    ],
)
def test_other_teachers_by_name(name, poles):
    teacher = ssm.teacher(name)
    assert_array_equal(teacher.A, poles)
    assert_array_equal(teacher.w, np.ones(len(poles)))


@settings(deadline=None, max_examples=40)
@given(d=st.integers(1, 30), scale=st.floats(1e-8, 1.0), seed=st.integers(0, 2**32 - 1))
def test_near_zero_start_is_sorted_and_small(d, scale, seed):
    A = ssm.near_zero(d, scale, seed=seed)
    assert A.shape == (d,)
    assert (A >= 0).all()
    assert (A < scale).all()
    assert (np.diff(A) <= 0).all()
    assert_array_equal(A, ssm.near_zero(d, scale, seed=np.random.default_rng(seed)))


def test_near_tie_moves_the_second_entry_only():
    free = ssm.near_zero(10, 1e-3, seed=np.random.RandomState(242))
    tied = ssm.near_zero(10, 1e-3, seed=np.random.RandomState(242), tie_gap=1e-8)
    assert tied[1] == free[0] - 1e-8
    assert_array_equal(np.delete(tied, 1), np.delete(free, 1))
    widest = free[0] - free[2]  # a_2 may just reach a_3
    assert ssm.near_zero(10, 1e-3, seed=np.random.RandomState(242), tie_gap=widest)[1] == free[2]
    assert ssm.near_zero(2, 1.0, seed=0, tie_gap=0.0)[1] == ssm.near_zero(2, 1.0, seed=0)[0]
    only = ssm.near_zero(2, 1.0, seed=0)[0]  # d = 2: a_2 may go down to 0
    assert ssm.near_zero(2, 1.0, seed=0, tie_gap=only)[1] == 0.0


# --- nothing overflows silently


METHODS = ("recurrence", "convolution", "fft")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("system", "x", "expected"),
    [
        # partial sums overflow, the outputs do not: 1.5e308 + 1.5e308 - 1.5e308
        (
            DiagonalSSM([1.0], [1.0], [1.0]),
            [1e308, 7e307, -1e308, 1e308],
            [1e308, 1.7e308, 7e307, 1.7e308],
        ),
        (DiagonalSSM([1.0], [1e300], [1.0]), [1e8, 5e7, -1e8], [1e308, 1.5e308, 5e307]),
        (DiagonalSSM([1.0, -1.0], [1.0, 1.0], [1.0, -1.0]), [8e307, 8e307], [0.0, 1.6e308]),
        (DiagonalSSM([0.5], [1.0], [1.0]), [1.7e308], [1.7e308]),
        (DiagonalSSM([0.5] * 3, [1.0] * 3, [1.0, 1.0, -1.5]), [1.7e308, 0.0], [8.5e307, 4.25e307]),
        # long sums: of inputs, whose transform overflows, and of responses, once of both signs
        (
            DiagonalSSM([1.0], [1.0], [1.0]),
            [1e308, -1e308] * 31 + [1e308],
            [1e308, 0.0] * 31 + [1e308],
        ),
        (
            DiagonalSSM([1.0], [1.0], [1e308]),
            [1.0, -1.0, -1.0, 1.0] * 15 + [1.0],
            [1e308, 0.0, -1e308, 0.0] * 15 + [1e308],
        ),
        (DiagonalSSM([1.0], [1.0], [1e308]), [1e-10] * 63, [1e298 * k for k in range(1, 64)]),
    ],
)
def test_outputs_near_the_largest_number(method, system, x, expected):
    y = system.output(x, method=method)
    assert_allclose(y, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())
    assert_allclose(system.last_output(x), expected[-1], rtol=1e-12)
    rows = np.stack([x, np.full(len(x), 1e-300)])  # a small sequence beside it keeps its digits
    small = system.output(rows, method=method)[1]
    assert_allclose(small, system.output(rows[1], method=method), rtol=1e-12)
    both = system.output(
        np.stack([x, np.divide(x, 1.5)]), method=method
    )  # rows whose largest powers of two differ
    assert_allclose(
        both[1], np.divide(expected, 1.5), rtol=1e-12, atol=1e-12 * np.abs(expected).max()
    )


def test_a_sum_of_many_entries_near_the_largest_number():
    """Of 256 weights of both signs; the impulse response would add them as well."""
    C = 1e308 * np.repeat([1.0, -1.0, 0.5], [127, 127, 2])
    y = DiagonalSSM(np.zeros(256), np.ones(256), C).output([1.0], method="recurrence")
    assert_allclose(y, [1e308], rtol=1e-12)


def test_powers_beyond_the_largest_number_that_a_weight_brings_back():
    """Where the tables of powers overflow, lags are computed one by one."""
    lags = np.arange(8)
    assert_allclose(
        ssm.impulse_response([-1e77], [1e-300], 8), (-1.0) ** lags * 10.0 ** (77.0 * lags - 300)
    )
    assert_allclose(ssm.impulse_response([1e200, 0.5], [0.0, 1.0], 8), 0.5**lags)
    with pytest.raises(ValueError, match=r"^x must be .*: an output of this SSM"):
        DiagonalSSM([1.0], [1.0], [1e308]).output([1.0, 1.0])


def test_arguments_of_the_impulse_response_are_named():
    with pytest.raises(ValueError, match=r"^w must have length 1 along its last axis"):
        ssm.impulse_response([0.5], [1.0, 2.0], 3)
    with pytest.raises(ValueError, match=r"^length must be .* from 1 to 268435; got 268436"):
        ssm.impulse_response(np.zeros(1000), np.zeros(1000), 268_436)


@pytest.mark.parametrize("method", METHODS)
def test_an_output_beyond_the_largest_number_is_an_error(method):
    growing = DiagonalSSM([2.0], [1.0], [1.0])
    impulse = np.zeros(1100)
    impulse[0] = 1.0
    with pytest.raises(ValueError, match=r"^(x must be smaller|length must be at most 1024)"):
        growing.output(impulse, method=method)
    with pytest.raises(ValueError, match=r"^x must be smaller in size: an output"):
        growing.output([1e308, 1.0], method=method)
    with pytest.raises(ValueError, match=r"^x must be smaller in size: an output"):
        growing.last_output([[1e308, 1.0], [1.0, 1.0]])


def test_the_recurrence_does_not_look_at_entries_without_weight():
    hidden = DiagonalSSM([2.0, 0.5], [1.0, 1.0], [0.0, 1.0])  # its first state overflows, unseen
    impulse = np.zeros(1100)
    impulse[0] = 1.0
    assert_array_equal(hidden.output(impulse, method="recurrence")[:2], [1.0, 0.5])
    assert_allclose(hidden.impulse_response(1100)[[0, 10, 1099]], [1.0, 0.5**10, 0.5**1099])


def test_a_small_weight_brings_a_large_power_back_into_range():
    response = DiagonalSSM([2.0], [2.0**-500], [2.0**-500]).impulse_response(1100)
    assert_array_equal(response, 2.0 ** (np.arange(1100) - 1000.0))


def test_weights_and_transfer_function_that_overflow():
    large = DiagonalSSM([0.5], [1e200], [1e200])
    with pytest.raises(ValueError, match=r"^B and C must be smaller in size: a weight"):
        large.impulse_response(3)
    with pytest.raises(ValueError, match=r"^z must stay where H\(z\)"):
        DiagonalSSM([0.5], [1e300], [1.0]).transfer_function(np.nextafter(0.5, 1.0))
    with pytest.raises(ValueError, match=r"^z must stay where H\(z\)"):  # inf - inf
        DiagonalSSM([0.5, 0.1], [1e200, -1e200], [1.0, 1.0]).transfer_function(1e200)


# --- near ties that float64 has no digits for


def test_a_near_tie_below_the_last_digit_is_refused():
    for gap in (1e-20, 1e-18, 3e-18):
        with pytest.raises(
            ValueError, match=r"tie_gap must be at least .*flows\.near_tie_starts.*; got"
        ):
            ssm.near_zero(10, 1e-3, seed=0, tie_gap=gap)
    least = r"at least 5\.6e-15 for this start, or 0 for an exact tie \(a_1 = 0\.636962 has"
    with pytest.raises(ValueError, match=least):
        ssm.near_zero(3, 1.0, seed=0, tie_gap=1e-17)
    A = ssm.near_zero(10, 1e-3, seed=0, tie_gap=1e-16)
    assert A[0] - A[1] == pytest.approx(1e-16, rel=0.01)
    exact = ssm.near_zero(10, 1e-3, seed=0, tie_gap=0.0)
    assert exact[0] == exact[1]


def test_the_least_scale_keeps_all_digits():
    with pytest.raises(ValueError, match="scale must be at least 1e-290"):
        ssm.near_zero(3, 1e-310, seed=0)
    assert_allclose(
        ssm.near_zero(3, 1e-290, seed=0) * 1e290, ssm.near_zero(3, 1.0, seed=0), rtol=1e-15
    )
