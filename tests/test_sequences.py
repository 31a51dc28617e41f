"""Sequences, training sets that only a teacher can label, the check of labels from elsewhere."""

import dataclasses
import itertools

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import networks, sequences, ssm
from ssm_poison_lib.sequences import TrainingSet


def test_baseline_and_special_positions():
    assert_array_equal(sequences.baseline_sequences(5), [[1, 0, 0, 0, 0]])
    assert_array_equal(sequences.special_sequences(5), [[0, 0, 0, 1, 0]])
    assert_array_equal(sequences.special_sequences(2, [2.0, -1.0]), [[2, 0], [-1, 0]])


def test_fixed_sequences_with_values_per_position():
    x = sequences.fixed_sequences(4, (3, 1), [[1.0, 2.0], [3.0, 4.0]])
    assert_array_equal(x, [[2, 0, 1, 0], [4, 0, 3, 0]])
    assert_array_equal(sequences.fixed_sequences(3, (1, 2), 5.0), [[5, 5, 0]])


@settings(deadline=None, max_examples=30)
@given(length=st.integers(1, 9), count=st.integers(1, 6), seed=st.integers(0, 1000), data=st.data())
def test_gaussian_sequences_are_zero_elsewhere(length, count, seed, data):
    positions = data.draw(st.lists(st.integers(1, length), min_size=1, unique=True))
    x = sequences.gaussian_sequences(length, positions, count, seed=seed)
    assert x.shape == (count, length)
    inside = np.isin(np.arange(1, length + 1), positions)
    assert (x[:, ~inside] == 0).all()
    assert (x[:, inside] != 0).all()
    assert_array_equal(x, sequences.gaussian_sequences(length, positions, count, seed=seed))


def test_gaussian_scale():
    x = sequences.gaussian_sequences(4, (2,), 20_000, seed=0, scale=3.0)
    assert x[:, 1].std() == pytest.approx(3.0, rel=0.02)
    assert abs(x[:, 1].mean()) < 0.1


def test_labels_come_from_the_teacher_and_nowhere_else():
    teacher = ssm.teacher("dim=2")
    x = sequences.gaussian_sequences(5, (1, 4), 3, seed=1)
    data = TrainingSet(x, teacher)
    assert_array_equal(data.y, teacher.last_output(x))
    assert (data.size, data.length) == (3, 5)
    with pytest.raises(TypeError):
        TrainingSet(x, teacher, np.zeros(3))
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(data, y=np.zeros(3))
    with pytest.raises(ValueError, match="read-only"):
        data.y[0] = 0.0
    with pytest.raises(ValueError, match="read-only"):
        data.x[0, 0] = 0.0
    x[0, 0] = 99.0  # the caller's array is not the set's
    assert data.x[0, 0] != 99.0


def test_a_single_sequence_and_a_length_of_one():
    data = TrainingSet(np.array([2.0]), ssm.teacher("dim=1"))
    assert (data.size, data.length) == (1, 1)
    assert_array_equal(data.y, [2.0])


@settings(deadline=None, max_examples=40)
@given(
    x=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 5), st.integers(1, 6)),
        elements=st.floats(-3, 3, allow_subnormal=False),
    ),
    seed=st.integers(0, 99),
)
def test_the_loss_is_a_quadratic_form_of_the_gram_matrix(x, seed):
    rng = np.random.default_rng(seed)
    data = TrainingSet(x, ssm.teacher("dim=3"))
    student = ssm.DiagonalSSM(rng.normal(size=4), rng.normal(size=4), rng.normal(size=4))
    r = data.teacher.impulse_response(data.length) - student.impulse_response(data.length)
    direct = np.mean((data.y - student.last_output(x)) ** 2)
    assert_allclose(r @ data.gram() @ r / 2, direct, rtol=1e-9, atol=1e-12)


def test_gram_is_indexed_by_lag():
    gram = TrainingSet(sequences.special_sequences(5, 2.0), ssm.teacher("dim=1")).gram()
    expected = np.zeros((5, 5))
    expected[1, 1] = 2 * 4.0  # next-to-last position is lag 1; (2 / n) x^2 with n = 1
    assert_array_equal(gram, expected)


def test_concatenate_keeps_order_and_teacher():
    teacher = ssm.theorem_teacher(4)
    first = TrainingSet(sequences.baseline_sequences(5), teacher)
    second = TrainingSet(sequences.special_sequences(5, [1.0, 2.0]), ssm.theorem_teacher(4))
    both = sequences.concatenate(first, second)
    assert_array_equal(both.x, np.concatenate([first.x, second.x]))
    assert_array_equal(both.y, np.concatenate([first.y, second.y]))
    assert sequences.concatenate(first).size == 1


def test_concatenate_refuses_other_teachers_and_lengths():
    first = TrainingSet(sequences.baseline_sequences(5), ssm.theorem_teacher(4))
    with pytest.raises(ValueError, match="one sequence length; got 5 and 6"):
        sequences.concatenate(
            first, TrainingSet(sequences.baseline_sequences(6), ssm.theorem_teacher(4))
        )
    with pytest.raises(ValueError, match="same teacher"):
        sequences.concatenate(
            first, TrainingSet(sequences.baseline_sequences(5), ssm.theorem_teacher(5))
        )


class Counter:
    """A teacher of a reader's own: how many entries are not zero."""

    def last_output(self, x):
        return np.count_nonzero(x, axis=1)


def test_any_teacher_labels_and_everything_serves_its_set():
    teacher = Counter()
    data = TrainingSet([[1.0, 0.0, 2.0], [0.0, 0.0, -1.0]], teacher)
    assert_array_equal(data.y, [2.0, 1.0])
    assert data.y.dtype == np.float64
    assert data.gram().shape == (3, 3)
    both = sequences.concatenate(data, TrainingSet([1.0, 1.0, 1.0], teacher))
    assert_array_equal(both.y, [2.0, 1.0, 3.0])
    with pytest.raises(ValueError, match="same teacher"):
        sequences.concatenate(data, TrainingSet([1.0, 1.0, 1.0], Counter()))
    # Without a scale of its own the largest output is the scale.
    sequences.check_labels(both.x, both.y + 2e-12, teacher)
    with pytest.raises(ValueError, match=r"label 0 is .* \(3 of 3 differ\)"):
        sequences.check_labels(both.x, both.y + 4e-12, teacher)


def test_teachers_are_objects_that_answer_once_per_sequence():
    class Wide:
        def last_output(self, x):
            return np.ones(len(x) + 1)

    class Endless:
        def last_output(self, x):
            return np.full(len(x), np.inf)

    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        for teacher in (ssm.DiagonalSSM, "teacher", None, [1.0, 2.0]):
            with pytest.raises(
                TypeError, match=r"^teacher must have a method last_output\(x\); got"
            ):
                TrainingSet([[1.0]], teacher)
            with pytest.raises(
                TypeError, match=r"^teacher must have a method last_output\(x\); got"
            ):
                sequences.check_labels([[1.0]], [1.0], teacher)
        with pytest.raises(
            ValueError, match="the teacher's outputs must be one per sequence, 1; got 2"
        ):
            TrainingSet([[1.0]], Wide())
        with pytest.raises(ValueError, match="the teacher's outputs must be finite; got inf"):
            TrainingSet([[1.0]], Endless())
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), layers=st.integers(0, 3), length=st.integers(1, 9))
def test_a_networks_labels_are_clean_however_their_sums_are_rounded(seed, layers, length):
    """Units in another order change nothing but the rounding."""
    rng = np.random.default_rng(seed)
    widths = [1, *[6] * layers, 1]
    mlp = [rng.normal(size=shape) for shape in itertools.pairwise(widths)] if layers else []
    A, B, C = rng.uniform(-1, 1, size=(3, 4))
    teacher = networks.Network(ssm.DiagonalSSM(A, B, C), tuple(mlp))
    for k in range(layers):
        order = rng.permutation(6)
        mlp[k], mlp[k + 1] = mlp[k][:, order], mlp[k + 1][order]
    other = networks.Network(ssm.DiagonalSSM(A[::-1], B[::-1], C[::-1]), tuple(mlp))
    x = rng.normal(size=(5, length)) * 10.0 ** rng.integers(-8, 8, (5, length))
    assert (teacher.output_scale(x) >= np.abs(teacher.last_output(x)) * (1 - 1e-12)).all()
    y = other.last_output(x)
    sequences.check_labels(x, y, teacher)
    y[2] += 1e-11 * teacher.output_scale(x)[2]
    with pytest.raises(ValueError, match=r"label 2 is .* \(1 of 5 differ\)"):
        sequences.check_labels(x, y, teacher)


def test_check_labels_accepts_the_teachers_and_names_the_first_wrong_one():
    teacher = ssm.teacher("dim=4")
    x = sequences.gaussian_sequences(8, range(1, 9), 50, seed=3)
    y = teacher.output(x, method="recurrence")[:, -1]  # rounded differently, still clean
    sequences.check_labels(x, y, teacher)
    y[7] += 1e-9
    with pytest.raises(ValueError, match=r"label 7 is .* \(1 of 50 differ\)"):
        sequences.check_labels(x, y, teacher)
    sequences.check_labels(x, y, teacher, rtol=1e-6)


def test_sums_that_overflow_are_errors_that_name_the_argument():
    large = TrainingSet([[1e200, 1e200]], ssm.DiagonalSSM([0.5], [1.0], [1.0]))
    with pytest.raises(ValueError, match=r"^x must be smaller in size: the Gram matrix"):
        large.gram()
    with pytest.raises(ValueError, match=r"^x must be smaller in size: an output"):
        TrainingSet([[1e308, 1e308]], ssm.DiagonalSSM([1.0], [1.0], [1.0]))
    with pytest.raises(
        ValueError, match=r"^x must be smaller in size: the sum of an output's terms"
    ):
        # 1.2e308 - 1.2e308: every label would be within a deviation of infinity
        sequences.check_labels(
            [[1.2e308, 1.2e308]], [123.0], ssm.DiagonalSSM([-1.0], [1.0], [1.0]), rtol=1e-12
        )


def test_sizes_beyond_memory_are_refused():
    with pytest.raises(
        ValueError, match="length must be an integer from 1 to 1000000; got 100000000"
    ):
        sequences.fixed_sequences(10**8, (1,))
    with pytest.raises(ValueError, match="length must be an integer from 1 to 268; got 1000"):
        sequences.fixed_sequences(1000, (1,), np.ones(1_000_000))
    with pytest.raises(ValueError, match="count must be an integer from 1 to 268435; got 1000000"):
        sequences.gaussian_sequences(1000, (1,), 1_000_000, seed=0)
    long = TrainingSet(sequences.baseline_sequences(20_000), ssm.teacher("dim=1"))
    with pytest.raises(ValueError, match="kappa must be an integer from 1 to 16384; got 20000"):
        long.gram()
