"""Every bad input is answered by an error that names the argument, the value that came and what is
allowed.

The type checker of the test suite is switched off here: a reader does not have it, so the library's
own errors must do.
"""

import re

import jaxtyping
import numpy as np
import pytest
import sympy as sp

from ssm_poison_lib import algebra, figures, flow, metrics, networks, paper, sequences, ssm
from ssm_poison_lib.sequences import TrainingSet
from ssm_poison_lib.ssm import DiagonalSSM


@pytest.fixture(autouse=True)
def _as_a_reader_runs_it():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


SYSTEM = DiagonalSSM([0.5, 0.1], [1.0, 1.0], [1.0, 1.0])
DATA = TrainingSet(sequences.baseline_sequences(7), ssm.theorem_teacher(2))
THEOREM = paper.THEOREM_SETTINGS["theorem_kappa7"]
NAN, INF = float("nan"), float("inf")

CASES = [
    # DiagonalSSM: shapes, NaN, empty, text, complex
    (lambda: DiagonalSSM([], [], []), r"A must not be empty; got shape \(0,\)"),
    (lambda: DiagonalSSM([[1.0]], [1.0], [1.0]), r"A must have 1 axes; got shape \(1, 1\)"),
    (lambda: DiagonalSSM(1.0, [1.0], [1.0]), r"A must have 1 axes; got shape \(\)"),
    (
        lambda: DiagonalSSM([1.0, 2.0], [1.0], [1.0, 1.0]),
        r"B must have length 2 along its last axis; got shape \(1,\)",
    ),
    (
        lambda: DiagonalSSM([1.0, 2.0], [1.0, 1.0], [1.0]),
        r"C must have length 2 along its last axis; got shape \(1,\)",
    ),
    (lambda: DiagonalSSM([NAN], [1.0], [1.0]), "A must be finite; got nan"),
    (lambda: DiagonalSSM([1.0], [INF], [1.0]), "B must be finite; got inf"),
    (lambda: DiagonalSSM(["a"], [1.0], [1.0]), r"A must be an array of real numbers; got \['a'\]"),
    (
        lambda: DiagonalSSM([1j], [1.0], [1.0]),
        r"A must be an array of real numbers; got \[1j\] \(dtype complex128\)",
    ),
    (lambda: DiagonalSSM([[1.0], [1.0, 2.0]], [1.0], [1.0]), "A must be an array of real numbers"),
    (lambda: DiagonalSSM(None, [1.0], [1.0]), "A must be an array of real numbers; got None"),
    # outputs and responses
    (lambda: SYSTEM.output(np.zeros((2, 2, 2))), r"x must have 1 or 2 axes; got shape \(2, 2, 2\)"),
    (lambda: SYSTEM.output([]), r"x must not be empty"),
    (lambda: SYSTEM.output([1.0, NAN]), "x must be finite; got nan"),
    (
        lambda: SYSTEM.output([1.0], method="magic"),
        "method must be one of convolution, fft, recurrence; got 'magic'",
    ),
    (lambda: SYSTEM.last_output(3.0), r"x must have 1 or 2 axes; got shape \(\)"),
    (lambda: SYSTEM.impulse_response(0), "length must be an integer from 1 to 1000000; got 0"),
    (lambda: SYSTEM.impulse_response(-3), "length must be an integer from 1 to 1000000; got -3"),
    (
        lambda: SYSTEM.impulse_response(2.0),
        r"length must be an integer from 1 to 1000000; got 2\.0",
    ),
    (
        lambda: SYSTEM.impulse_response(True),
        "length must be an integer from 1 to 1000000; got True",
    ),
    (lambda: SYSTEM.transfer_function(0.5), r"z must avoid the poles of the SSM; got z = 0\.5"),
    (lambda: SYSTEM.transfer_function(INF), "z must be finite"),
    # teachers and starts
    (lambda: ssm.theorem_teacher(1), "state_dim must be an integer from 2 to 1000000; got 1"),
    (
        lambda: ssm.teacher("dim=5"),
        "name must be one of dim=1, dim=2, dim=3, dim=4, theorem; got 'dim=5'",
    ),
    (lambda: ssm.teacher(3), "name must be one of .*; got 3"),
    (lambda: ssm.teacher("theorem"), "state_dim must be given for the theorem's teacher: .* >= 2$"),
    (
        lambda: ssm.teacher("dim=2", state_dim=4),
        "state_dim must be left out for the teacher 'dim=2'; got 4",
    ),
    (
        lambda: ssm.near_zero(0, 1.0, seed=0),
        "state_dim must be an integer from 1 to 1000000; got 0",
    ),
    (lambda: ssm.near_zero(3, 0.0, seed=0), r"scale must be a finite number > 0; got 0\.0"),
    (lambda: ssm.near_zero(3, NAN, seed=0), "scale must be a finite number > 0; got nan"),
    (lambda: ssm.near_zero(3, "1", seed=0), "scale must be a finite number > 0; got '1'"),
    (
        lambda: ssm.near_zero(3, 1.0, seed=-1),
        "seed must be an integer >= 0, a numpy Generator or a RandomState; got -1",
    ),
    (lambda: ssm.near_zero(3, 1.0, seed=None), "seed must be .*; got None"),
    (
        lambda: ssm.near_zero(1, 1.0, seed=0, tie_gap=0.1),
        "state_dim must be at least 2 for a near tie .*; got 1",
    ),
    (
        lambda: ssm.near_zero(3, 1.0, seed=0, tie_gap=-0.1),
        r"tie_gap must be a finite number >= 0; got -0\.1",
    ),
    (
        lambda: ssm.near_zero(3, 1.0, seed=0, tie_gap=0.9),
        r"tie_gap must be at most 0\.595988 for this start \(a_2 stays second\); got 0\.9",
    ),
    (
        lambda: ssm.near_zero(2, 1.0, seed=0, tie_gap=2.0),
        r"tie_gap must be at most 0\.636962 .*; got 2",
    ),
    # sequences
    (lambda: sequences.baseline_sequences(1), "length must be an integer from 2 to 1000000; got 1"),
    (lambda: sequences.special_sequences(1), "length must be an integer from 2 to 1000000; got 1"),
    (
        lambda: sequences.special_sequences(-7),
        "length must be an integer from 2 to 1000000; got -7",
    ),
    (
        lambda: sequences.fixed_sequences(5, (6,)),
        "each entry of positions must be an integer from 1 to 5; got 6",
    ),
    (
        lambda: sequences.fixed_sequences(5, (0,)),
        "each entry of positions must be an integer from 1 to 5; got 0",
    ),
    (
        lambda: sequences.fixed_sequences(5, ()),
        r"positions must name at least one position, each once; got \(\)",
    ),
    (
        lambda: sequences.fixed_sequences(5, (1, 1)),
        r"positions must name at least one position, each once; got \(1, 1\)",
    ),
    (
        lambda: sequences.fixed_sequences(5, 3),
        r"positions must be positions from 1 to 5, such as \(1,\); got 3",
    ),
    (lambda: sequences.fixed_sequences(5, (1,), []), "coefficients must not be empty"),
    (
        lambda: sequences.fixed_sequences(5, (1, 2), np.ones((3, 3))),
        r"coefficients must have one column per position, 2; got shape \(3, 3\)",
    ),
    (lambda: sequences.fixed_sequences(5, (1,), NAN), "coefficients must be finite; got nan"),
    (
        lambda: sequences.gaussian_sequences(5, (1,), 0, seed=0),
        "count must be an integer from 1 to 53687091; got 0",
    ),
    (
        lambda: sequences.gaussian_sequences(5, (1,), 2, seed=0, scale=0.0),
        r"scale must be .* > 0 and <= 1e\+300; got 0\.0",
    ),
    (
        lambda: sequences.gaussian_sequences(5, (9,), 2, seed=0),
        "each entry of positions must be an integer from 1 to 5; got 9",
    ),
    (lambda: TrainingSet(np.zeros((0, 5)), SYSTEM), r"x must not be empty; got shape \(0, 5\)"),
    (lambda: TrainingSet(np.full((2, 5), NAN), SYSTEM), "x must be finite; got nan"),
    (
        lambda: TrainingSet(np.ones((2, 5)), "teacher"),
        r"teacher must have a method last_output\(x\)",
    ),
    (
        lambda: flow.velocity(SYSTEM, TrainingSet([[1.0, 0.0]], networks.authors_teacher(3))),
        "the teacher of training_set must be a DiagonalSSM; got Network",
    ),
    (
        lambda: sequences.check_labels(np.ones((2, 5)), [1.0], SYSTEM),
        r"y must have length 2 .*; got shape \(1,\)",
    ),
    (
        lambda: sequences.check_labels(np.ones(5), [1.0], SYSTEM),
        r"x must have 2 axes; got shape \(5,\)",
    ),
    (
        lambda: sequences.check_labels(np.ones((1, 5)), [1.0], SYSTEM, rtol=-1),
        "rtol must be .* >= 0; got -1",
    ),
    # metrics
    (
        lambda: metrics.generalization_error(SYSTEM, SYSTEM, 0),
        "length must be an integer from 1 to 1000000; got 0",
    ),
    (
        lambda: metrics.generalization_error(SYSTEM, SYSTEM, 5, first_lag=5),
        "first_lag must be an integer from 0 to 4; got 5",
    ),
    (
        lambda: flow.gradient_flow(
            [0.2, 0.1], (np.diag([0.0, 1.0]), np.ones(2)), t_end=1.0, stop_at_loss="yes"
        ),
        "stop_at_loss must be",
    ),
    (lambda: metrics.error_by_lag([0.5], SYSTEM, 5), "student must be a DiagonalSSM; got list"),
    (lambda: metrics.error_by_lag(SYSTEM, None, 5), "teacher must be a DiagonalSSM; got None"),
    (lambda: metrics.loss([0.5], None), "student must be a DiagonalSSM or Network; got list"),
    (lambda: metrics.loss(SYSTEM, [[1.0]]), "training_set must be a TrainingSet; got list"),
    (lambda: metrics.gamma([0.5], None), "student must be a DiagonalSSM or Network; got list"),
    (lambda: metrics.gamma(SYSTEM, [[1.0]]), "training_set must be a TrainingSet; got list"),
    (
        lambda: metrics.extrapolation_loss(
            ssm.DiagonalSSM.ones([1e10]), ssm.DiagonalSSM([1.0], [1e-300], [1.0]), 3
        ),
        "length must be smaller in size: the error is beyond",
    ),
    (lambda: metrics.effective_rank([0.0, 0.0]), "values must not all be zero"),
    (lambda: metrics.effective_rank([NAN]), "values must be finite; got nan"),
    (lambda: metrics.effective_rank(np.eye(2)), r"values must have 1 axes; got shape \(2, 2\)"),
    # flow
    (
        lambda: flow.gradient_flow(SYSTEM, DATA, t_end=0.0),
        r"t_end must be a finite number > 0; got 0\.0",
    ),
    (
        lambda: flow.gradient_flow(SYSTEM, DATA, t_end=INF),
        "t_end must be a finite number > 0; got inf",
    ),
    (
        lambda: flow.gradient_flow(SYSTEM, DATA, t_end=1.0, train="B"),
        "train must be one of A, ABC; got 'B'",
    ),
    (lambda: flow.velocity(SYSTEM, DATA, train="AB"), "train must be one of A, ABC; got 'AB'"),
    (lambda: flow.jacobian(SYSTEM, DATA, train="AB"), "train must be one of A, ABC; got 'AB'"),
    (
        lambda: flow.gradient_flow(SYSTEM, DATA, t_end=1.0, rtol=1e-20),
        r"rtol must be .* >= 2\.3e-14; got 1e-20",
    ),
    (
        lambda: flow.gradient_flow(SYSTEM, DATA, t_end=1.0, atol=0.0),
        r"atol must be .* > 0; got 0\.0",
    ),
    (
        lambda: flow.gradient_flow(SYSTEM, DATA, t_end=1.0, loss_tol=-1.0),
        r"loss_tol must be .* >= 0; got -1\.0",
    ),
    (
        lambda: flow.gradient_flow(SYSTEM, DATA, t_end=1.0, stationary_tol=0.0),
        r"stationary_tol must be .* > 0; got 0\.0",
    ),
    (
        lambda: flow.gradient_flow(SYSTEM, DATA, t_end=1.0, max_steps=0),
        "max_steps must be an integer from 1 to 1000000000; got 0",
    ),
    (lambda: flow.gradient_flow(SYSTEM, DATA, t_end=1.0, gaps=[-1.0]), "gaps must be >= 0; got -1"),
    (
        lambda: flow.gradient_flow(SYSTEM, DATA, t_end=1.0, gaps=[1.0, 1.0]),
        r"gaps must have length 1 .*; got shape \(2,\)",
    ),
    (
        lambda: flow.gradient_flow(SYSTEM, DATA, t_end=1.0, train="ABC", gaps=[0.1]),
        "gaps must be left out unless train='A'.* and all b_j c_j are equal$",
    ),
    (lambda: flow.baseline_limit([0.1, -0.1], 7), r"A0 must be positive in every entry; got -0\.1"),
    (lambda: flow.baseline_limit([0.1, 0.0], 7), "A0 must be positive in every entry; got 0"),
    (lambda: flow.baseline_limit([], 7), r"A0 must not be empty; got shape \(0,\)"),
    (lambda: flow.baseline_limit([0.1], 1), "length must be an integer from 2 to 1000000; got 1"),
    (
        lambda: flow.baseline_closed_form([0.1], 1, [0.1]),
        "length must be an integer from 2 to 1000000; got 1",
    ),
    (lambda: flow.baseline_closed_form([0.1], 7, []), "tau must not be empty"),
    # algebra
    (
        lambda: algebra.divided_difference("3", 2, 5),
        "power must be a SymPy expression or a real number; got '3'",
    ),
    (
        lambda: algebra.impulse_response("ab", [1], 1),
        "a must be a list of SymPy expressions or real numbers; got 'ab'",
    ),
    (
        lambda: algebra.velocity("ab", [1], [1], [1], [1]),
        "x must be a list of sequences; got 'ab'",
    ),
    (
        lambda: algebra.velocity([3], [1], [1], [1], [1]),
        "each sequence of x must be a list of SymPy expressions or real numbers; got 3",
    ),
    (
        lambda: algebra.negative_gradient([[1]], [1], [1], algebra.entries("b", 1), [1]),
        "each entry of a must be a Symbol; got",
    ),
    (
        lambda: algebra.negative_gradient([[1]], [1], algebra.entries("a", 1), [1], [1]),
        "each entry of b must be a Symbol; got",
    ),
    (
        lambda: algebra.negative_gradient(
            [[1]], [1], algebra.entries("a", 1), algebra.entries("b", 1), [1]
        ),
        "each entry of c must be a Symbol; got",
    ),
    # paper
    (lambda: paper.TheoremSetting(8, 10, 1e-3, None), "length must be odd .*; got 8"),
    (
        lambda: paper.TheoremSetting(3, 10, 1e-3, None),
        "length must be an integer from 5 to 1000000; got 3",
    ),
    (
        lambda: paper.TheoremSetting(7, 1, 1e-3, None),
        "state_dim must be an integer from 2 to 1000000; got 1",
    ),
    (lambda: paper.TheoremSetting(7, 10, 0.0, None), r"init_scale must be .* > 0; got 0\.0"),
    (lambda: paper.TheoremSetting(7, 10, 1e-3, -1.0), r"tie_gap must be .* >= 0; got -1\.0"),
    (
        lambda: paper.TheoremSetting(7, 10, 1e-3, None, extrapolation_length=0),
        "extrapolation_length must be an integer from 1 to 1000000; got 0",
    ),
    (
        lambda: THEOREM.training_set(242, "poisoned"),
        "which must be one of baseline, with special; got 'poisoned'",
    ),
    (
        lambda: THEOREM.start(-1),
        "seed must be an integer from 0 to 4294967295; got -1",
    ),
    (
        lambda: THEOREM.authors_value(242, "baseline", "error"),
        "quantity must be one of effective_rank, error_at_stop, .*; got 'error'",
    ),
    # figures
    (lambda: figures.race({}), "trajectories must hold at least one trajectory"),
    (lambda: figures.impulse_responses({}, length=4), "systems must hold at least one SSM"),
    (
        lambda: figures.impulse_responses({"teacher": SYSTEM}, length=4, first_lag=4),
        "first_lag must be an integer from 0 to 3",
    ),
    (lambda: figures.new(0), "columns must be an integer from 1 to 20; got 0"),
]


@pytest.mark.parametrize(
    ("call", "message"),
    CASES,
    ids=[
        f"{i} {re.sub(r'[^a-zA-Z0-9_=]+', ' ', message[:50])}"
        for i, (_, message) in enumerate(CASES)
    ],
)
def test_error_names_argument_value_and_what_is_allowed(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call()


def test_one_dimension_one_step_one_sequence_work_where_they_make_sense():
    one = DiagonalSSM([0.5], [2.0], [1.0])
    assert one.output([3.0]) == [6.0]
    assert one.impulse_response(1) == [2.0]
    assert ssm.near_zero(1, 1.0, seed=0).shape == (1,)
    data = TrainingSet([1.0, 0.0, 0.0], ssm.teacher("dim=1"))
    run = flow.gradient_flow(DiagonalSSM([0.1], [1.0], [1.0]), data, t_end=1e4)
    assert run.fitted
    assert run.gaps is not None
    assert run.gaps.shape == (len(run.times), 0)
    assert metrics.effective_rank([0.3]) == 1.0
    assert sequences.special_sequences(2).tolist() == [[1.0, 0.0]]


def test_an_equation_that_sympy_decides_by_itself_is_no_bad_input():
    assert [algebra.holds(sp.Eq(1, number)) for number in (1, 2)] == [True, False]


@pytest.mark.parametrize("kind", [np.int64, np.uint32, np.int8])
def test_numpy_integers_mean_the_same_as_pythons(kind):
    np.testing.assert_array_equal(
        ssm.near_zero(kind(5), 1.0, seed=kind(42)), ssm.near_zero(5, 1.0, seed=42)
    )
    for call in (sequences.baseline_sequences, sequences.special_sequences):
        np.testing.assert_array_equal(call(kind(7)), call(7))
    assert algebra.divided_difference(kind(3), 2, 5) == algebra.divided_difference(3, 2, 5)
    assert algebra.entries("a", kind(3)) == algebra.entries("a", 3)
