"""Many flows at once against the single-run reference, the closed form, and the properties of the
flow.
"""

import tracemalloc

import mpmath
import numpy as np
import pytest
import random_flows
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import flow, flows, metrics, sequences, ssm
from ssm_poison_lib._engines.rosenbrock import _integrate, factor_gram
from ssm_poison_lib.flows import FlowStatus

SHAPE = np.array([1.0, 0.9, 0.871, 0.578, 0.538, 0.445, 0.431, 0.328, 0.152, 0.029])
ONES = np.ones(20)  # impulse response of the theorem's teacher at the lags that can be learnt


@pytest.mark.untyped
@pytest.mark.parametrize("kind", random_flows.KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_final_error_agrees_with_the_reference(kind, seed):
    case = random_flows.random_case(kind, seed)
    batch = random_flows.run(case, rtol=1e-8)
    error, reference = random_flows.final_errors(case, batch)
    assert abs(error - reference) <= 1e-6 * max(1.0, reference), (case, batch)


@pytest.mark.parametrize("seed", [616, 700])
def test_where_the_reference_itself_is_off_the_closed_form_decides(seed):
    """Entries x and -x (1 - 1e-8): the two of 1,000 cases (benchmarks/flows.py) that LSODA misses
    by more than 1e-6.
    """
    case = random_flows.random_case("baseline", seed)
    batch = random_flows.run(case, rtol=1e-8)
    error, reference = random_flows.final_errors(case, batch)
    exact = random_flows.exact_error(case)
    assert_allclose(exact, closed_form_error(case), rtol=1e-14)
    assert abs(error - exact) < 1e-7
    assert abs(reference - exact) > 1e-6


def closed_form_error(case):
    """The closed form once more, in 40 digits."""
    with mpmath.workdps(40):
        n = case.training_set.length - 3
        sizes = [mpmath.mpf(float(abs(a))) for a in case.A0]
        excess = [a**-n - max(sizes) ** -n for a in sizes]

        def entries(s):
            return [(s**-n + e) ** (-mpmath.mpf(1) / n) for e in excess]

        s = mpmath.findroot(
            lambda s: sum(a ** (n + 2) for a in entries(s)) - 1, (0.5, 1), solver="anderson"
        )
        limit = [a * int(np.sign(a_0)) for a, a_0 in zip(entries(s), case.A0, strict=True)]
        return float(max(abs(sum(a**k for a in limit) - 1) for k in range(1, 20)))


def test_a_closed_form_is_known_for_baseline_cases_only():
    with pytest.raises(ValueError, match="case must be of kind 'baseline'"):
        random_flows.exact_error(random_flows.random_case("theorem", 0))


def test_default_tolerance_is_enough_for_the_theorem():
    case = random_flows.random_case("theorem", 4)
    error, reference = random_flows.final_errors(case, random_flows.run(case))
    assert abs(error - reference) <= 1e-6


def test_baseline_limits_agree_with_the_closed_form():
    rng = np.random.default_rng(0)
    for length in (4, 5, 7, 10):
        A0 = -np.sort(-rng.uniform(0.01, 0.2, size=(40, 6)), axis=1)
        batch = flows.theorem_flows(A0, length=length, alpha=2.0, beta=0.0, t_end=1e20)
        assert batch.counts() == {"CONVERGED": 40}
        expected = [flow.baseline_limit(row, length) for row in A0]
        assert_allclose(batch.A, expected, rtol=0, atol=2e-7)
        assert batch.loss.max() < 1e-20


@pytest.mark.untyped
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_ties_far_below_rounding_are_followed(beta):
    g = np.array([1e-28, 1e-28, 1e-8, 1e-100])
    A0, gaps = flows.near_tie_starts(SHAPE, [1e-2, 1e-3, 1e-2, 1e-2], g)
    assert (A0[:2, 0] == A0[:2, 1]).all()
    batch = flows.theorem_flows(
        A0, length=7, alpha=1.0, beta=beta, t_end=1e14, gaps=gaps, rtol=1e-8
    )
    assert (batch.status == FlowStatus.CONVERGED).all()
    inputs = np.vstack(
        [sequences.baseline_sequences(7), sequences.special_sequences(7, np.sqrt(beta))]
    )
    data = sequences.TrainingSet(inputs, ssm.theorem_teacher(10))  # alpha = 1 for n = 2
    for i in (0, 2):
        start = ssm.DiagonalSSM.ones(A0[i])
        reference = flow.gradient_flow(start, data, t_end=1e14, gaps=gaps[i])
        assert_allclose(batch.A[i], reference.A[-1], rtol=0, atol=1e-7)
        assert_allclose(batch.log_gap[i, 1], np.log(reference.gaps[-1, 0]), rtol=0, atol=1e-6)
    # While the gap is tiny its growth does not depend on it: ratio of gaps of two runs that differ
    # in nothing else.
    assert_allclose(batch.log_gap[0, 1] - batch.log_gap[3, 1], np.log(1e-28 / 1e-100), rtol=1e-6)


def test_exact_ties_last_and_the_saddle_is_not_called_a_limit():
    A0 = np.full((1, 10), 1e-3)
    batch = flows.theorem_flows(A0, length=7, alpha=1.0, beta=1.0, t_end=1e8)
    assert batch.counts() == {"STALLED": 1}
    s = batch.A[0, 0]
    assert (batch.A == s).all()
    assert np.isneginf(batch.log_gap[0, 1:]).all()
    assert np.isnan(batch.log_gap[0, 0])
    assert_allclose(6 * s**5 * (1 - 10 * s**6) + (1 - 10 * s), 0.0, atol=1e-12)  # theory: h(s) = 0
    # The smallest gap makes it leave: the same start, not tied.
    gaps = np.zeros((1, 9))
    gaps[0, 0] = 1e-30
    left = flows.theorem_flows(A0, length=7, alpha=1.0, beta=1.0, t_end=1e8, gaps=gaps)
    assert left.counts() == {"CONVERGED": 1}


def test_a_gap_without_digits_left_is_an_exact_tie():
    """A gap that shrinks below the normal numbers of float64 is reported as 0 (log -inf); a little
    above, as it is.
    """
    A0, gaps = [[0.9, 0.9, 0.1]], [[1e-300, 0.8]]
    # kappa = 2, data that show M_1 only: da_j/dt = M*_1 - M_1, gaps do not move
    G = np.diag([0.0, 1.0])
    options = {"t_end": 50.0, "gaps": gaps}
    kept = flows.many_flows(A0, (G, [3.0, 1.9]), **options)
    assert_allclose(kept.log_gap[0, 1], np.log(1e-300), rtol=1e-9)
    # kappa = 3, data that show M_2 only: da_j/dt = 2 a_j (M*_2 - M_2), all gaps shrink by the ratio
    # of the entries.
    shrinking = flows.many_flows(
        A0, (np.diag([0.0, 0.0, 1.0]), [3.0, 0.0, 1e-20]), **options | {"t_end": 1e30}
    )
    assert shrinking.counts() == {"CONVERGED": 1}
    assert shrinking.A[0, 0] == shrinking.A[0, 1]
    assert shrinking.A[0, 0] < 1e-9
    assert np.isneginf(shrinking.log_gap[0, 1])


def test_a_gap_that_still_grows_is_not_called_stalled():
    A0, gaps = flows.near_tie_starts(SHAPE, 1e-9, 1e-3)
    batch = flows.theorem_flows(A0, length=7, alpha=1.0, beta=1.0, t_end=600.0, gaps=gaps)
    assert np.ptp(batch.A) < 1e-7 * batch.A.max()  # at the saddle; nothing to be seen in A
    assert batch.counts() == {"END_OF_TIME": 1}


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    d=st.integers(2, 8),
    length=st.integers(3, 8),
    log_t=st.floats(-2, 6),
)
def test_order_is_kept_and_permutations_commute(seed, d, length, log_t):
    rng = np.random.default_rng(seed)
    A0 = rng.uniform(-0.3, 0.3, size=(3, d))
    data = sequences.TrainingSet(rng.normal(size=(4, length)), ssm.teacher("dim=2"))
    target = data.teacher.impulse_response(length)
    batch = flows.many_flows(A0, (data.gram(), target), t_end=10.0**log_t)
    for before, after in zip(A0, batch.A, strict=True):
        assert (np.diff(after[np.argsort(before)]) >= 0).all()
    permutation = rng.permutation(d)
    other = flows.many_flows(A0[:, permutation], (data.gram(), target), t_end=10.0**log_t)
    assert_array_equal(other.A, batch.A[:, permutation])
    assert_array_equal(other.log_gap, batch.log_gap[:, permutation])


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    beta=st.floats(0, 1e6),
    log_gap=st.floats(-80, -3),
    length=st.integers(3, 9),
)
def test_gap_identity(seed, beta, log_gap, length):
    """d log(a_1 - a_2)/dt = alpha p r_p (a_1^q - a_2^q)/(a_1 - a_2): the special term cancels,
    whatever the gap.
    """
    rng = np.random.default_rng(seed)
    abar = -np.sort(-rng.uniform(0.1, 0.7, size=4))
    abar[0] = 0.8
    A0, gaps = flows.near_tie_starts(abar, 1.0, np.exp(log_gap))
    if gaps.min() < 0:
        return
    p, q, alpha, t = length - 1, length - 2, 1.5, 1e-7 / (1 + beta)
    batch = flows.theorem_flows(
        A0, length=length, alpha=alpha, beta=beta, t_end=t, gaps=gaps, rtol=1e-10
    )
    a_1, a_2 = A0[0, :2]
    divided = sum(a_1 ** (q - 1 - m) * a_2**m for m in range(q))
    expected = alpha * p * (1 - (A0[0] ** p).sum()) * divided
    moved = (batch.log_gap[0, 1] - np.log(gaps[0, 0])) / t
    assert_allclose(moved, expected, rtol=1e-4, atol=1e-4 + 1e-13 / t)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), signed=st.booleans())
def test_loss_never_grows_and_is_that_of_metrics(seed, signed):
    rng = np.random.default_rng(seed)
    d, length = int(rng.integers(1, 7)), int(rng.integers(2, 9))
    A0 = rng.uniform(-0.5, 0.5, size=d)
    w = rng.normal(size=d) if signed else np.ones(d)
    data = sequences.TrainingSet(rng.normal(size=(5, length)), ssm.teacher("dim=3"))
    times = np.geomspace(1e-4, 1e3, 12)
    starts = np.tile(A0, (12, 1))
    target = data.teacher.impulse_response(length)
    batch = flows.many_flows(starts, (data.gram(), target), w=w, t_end=times)
    first = metrics.loss(ssm.DiagonalSSM(A0, w, np.ones(d)), data)
    losses = np.concatenate([[first], batch.loss])
    assert (np.diff(losses) <= 1e-9 * first).all()
    last = metrics.loss(ssm.DiagonalSSM(batch.A[-1], w, np.ones(d)), data)
    assert_allclose(batch.loss[-1], last, rtol=1e-9, atol=1e-13 * first)


def test_a_run_does_not_depend_on_its_neighbours_or_on_threads():
    rng = np.random.default_rng(3)
    A0 = rng.uniform(-0.01, 0.01, size=(150, 5))
    beta = 10.0 ** rng.uniform(-8, 8, size=150)
    options = {"length": 7, "alpha": 1.0, "t_end": 1e10}
    alone = [flows.theorem_flows(A0[i], beta=beta[i], workers=1, **options) for i in (0, 70, 149)]
    for workers in (1, 3):
        batch = flows.theorem_flows(A0, beta=beta, workers=workers, **options)
        for i, one in zip((0, 70, 149), alone, strict=True):
            assert_array_equal(batch.A[i], one.A[0])
            assert batch.steps[i] == one.steps[0]


def test_mixed_ranks_in_one_batch():
    A0 = np.tile(SHAPE * 0.02, (2, 1))
    mixed = flows.theorem_flows(A0, length=7, alpha=1.0, beta=[0.0, 1.0], t_end=1e12)
    single = flows.theorem_flows(A0[:1], length=7, alpha=1.0, beta=0.0, t_end=1e12)
    assert (mixed.status == FlowStatus.CONVERGED).all()
    assert_allclose(mixed.A[0], single.A[0], rtol=0, atol=1e-12)


def test_nothing_moves_without_data_at_later_positions():
    G = np.zeros((4, 4))
    G[0, 0] = 2.0  # only x_kappa is non-zero
    batch = flows.many_flows([0.3, 0.1], (G, [5.0, 1.0, 1.0, 1.0]), t_end=1e6)
    assert_array_equal(batch.A, [[0.3, 0.1]])
    assert batch.counts() == {"CONVERGED": 1}
    assert_allclose(batch.loss, (5.0 - 2.0) ** 2)


def test_short_runs_end_with_their_time():
    batch = flows.theorem_flows(SHAPE * 0.1, length=7, alpha=1.0, beta=1.0, t_end=0.05)
    assert batch.counts() == {"END_OF_TIME": 1}
    assert batch.times[0] == 0.05
    assert repr(batch) == "Trajectory(1 runs, d = 10: END_OF_TIME 1)"


def test_a_small_residual_without_time_to_vanish_is_not_called_converged():
    # Fits the baseline sequence; the residual 1e-6 of the special one decays at the rate 2 beta =
    # 2e-6 only.
    batch = flows.theorem_flows([1.0, 1e-6], length=7, alpha=1.0, beta=1e-6, t_end=1.0)
    assert batch.status[0] != FlowStatus.CONVERGED
    assert_allclose(batch.A, [[1.0, 1e-6]], rtol=1e-5)
    later = flows.theorem_flows([1.0, 1e-6], length=7, alpha=1.0, beta=1e-6, t_end=1e9)
    assert later.counts() == {"CONVERGED": 1}
    assert_allclose(later.A, [[1.0, 0.0]], rtol=0, atol=1e-11)


def test_failures_raise_or_become_nan_with_their_reason():
    A0 = np.array([[0.02, 0.01], [1e60, 0.01], [0.02, 0.015]])
    options = {"length": 7, "alpha": 1.0, "beta": 1.0, "t_end": 1e12}
    with pytest.raises(
        flow.FlowError, match=r"1 of 3 runs failed, first run 1 .* step size vanished"
    ):
        flows.theorem_flows(A0, **options)
    batch = flows.theorem_flows(A0, on_failure="nan", **options)
    assert batch.status.tolist() == [0, FlowStatus.FAILED_STEP_SIZE, 0]
    assert np.isnan(batch.A[1]).all()
    assert np.isnan(batch.loss[1])
    assert np.isnan(batch.log_gap[1]).all()
    assert_array_equal(batch.A[[0, 2]], flows.theorem_flows(A0[[0, 2]], **options).A)
    with pytest.raises(flow.FlowError, match="max_steps steps did not reach"):
        flows.theorem_flows(A0[:1], max_steps=5, **options)


def test_generalization_errors_are_those_of_metrics():
    rng = np.random.default_rng(1)
    w = rng.uniform(0.5, 1.5, size=4)
    batch = flows.many_flows(
        rng.uniform(0, 0.3, size=(3, 4)),
        (np.eye(5), ssm.teacher("dim=2").impulse_response(5)),
        w=w,
        t_end=2.0,
    )
    teacher = ssm.teacher("dim=2")
    for lag in (0, 1):
        expected = [
            metrics.generalization_error(
                ssm.DiagonalSSM(A, w, np.ones(4)), teacher, 20, first_lag=lag
            )
            for A in batch.A
        ]
        got = batch.generalization_errors(teacher.impulse_response(20), first_lag=lag)
        assert_allclose(got, expected, rtol=1e-12)
        rows = np.tile(teacher.impulse_response(20), (3, 1))
        assert_allclose(batch.generalization_errors(rows, first_lag=lag), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="target must have one row per run"):
        batch.generalization_errors(np.ones((2, 20)))


def test_near_tie_starts():
    A0, gaps = flows.near_tie_starts([1.0, 0.3, 0.2], [1e-2, 1e-1], 1e-3)
    assert_allclose(A0, [[1e-2, 0.999e-2, 0.2e-2], [0.1, 0.0999, 0.02]], rtol=1e-14)
    assert_allclose(gaps, [[1e-5, 0.799e-2], [1e-4, 0.0799]], rtol=1e-12)
    with pytest.raises(ValueError, match="must stay descending"):
        flows.near_tie_starts([1.0, 0.9, 0.8], 0.1, 0.5)
    with pytest.raises(ValueError, match="one row each"):
        flows.near_tie_starts([1.0, 0.9], [0.1, 0.2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="at least 2 entries"):
        flows.near_tie_starts([1.0], 0.1, 0.5)
    with pytest.raises(ValueError, match="scales must be > 0"):
        flows.near_tie_starts([1.0, 0.5], 0.0, 0.1)
    with pytest.raises(ValueError, match="tie_gaps must be >= 0"):
        flows.near_tie_starts([1.0, 0.5], 1.0, -0.1)


GOOD = {"A0": [[0.2, 0.1]], "G": np.eye(3), "target": [2.0, 1.0, 1.0], "t_end": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"A0": [[0.2, np.nan]]}, "start must be finite"),
        ({"G": np.zeros((2, 3, 3))}, "G must have shape"),
        ({"G": np.eye(1), "target": [2.0]}, "training_set must have kappa >= 2"),
        ({"G": np.triu(np.ones((3, 3)))}, "G must be symmetric"),
        ({"G": -np.eye(3)}, "G must be positive semidefinite"),
        (
            {"G": [[1.0, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0, 2.0, 1.0]]},
            "G must be positive semidefinite",
        ),
        ({"target": [2.0, 1.0]}, r"M\* must have length 3"),
        ({"target": np.ones((2, 3))}, r"M\* must have shape"),
        ({"w": [1.0]}, "w must have length 2"),
        ({"w": np.ones((3, 2))}, "w must have shape"),
        ({"t_end": 0.0}, "t_end must be > 0"),
        ({"t_end": [1.0, 2.0]}, "t_end must have shape"),
        ({"rtol": 0.1}, "rtol must be from"),
        ({"atol": 0.0}, "atol must be"),
        ({"max_steps": 0}, "max_steps must be"),
        ({"workers": 0}, "workers must be"),
        ({"on_failure": "ignore"}, "on_failure must be one of"),
        ({"gaps": [[0.1, 0.1]]}, "gaps must have shape"),
        ({"gaps": [[-0.1]]}, "gaps must be >= 0"),
        ({"gaps": [[0.11]]}, "gaps must agree with start"),
        (
            {"gaps": [[0.1]], "w": [1.0, 2.0]},
            "gaps must come with rows of start in descending order",
        ),
        (
            {"gaps": [[0.1]], "A0": [[0.1, 0.2]]},
            "gaps must come with rows of start in descending order",
        ),
    ],
)
def test_bad_arguments(change, message):
    arguments = GOOD | change
    with pytest.raises(ValueError, match=message):
        flows.many_flows(
            arguments.pop("A0"), (arguments.pop("G"), arguments.pop("target")), **arguments
        )


def test_special_sequences_at_other_positions():
    A0 = np.array([[0.3, 0.2, 0.1], [0.3, 0.2, 0.1]])
    target = [3.0, 1.0, 1.0, 1.0, 1.0]
    batch = flows.theorem_flows(
        A0, length=5, alpha=2.0, beta=[1.0, 0.5], t_end=1.0, special_position=[2, 1]
    )
    for i, (lag, weight) in enumerate(((3, 1.0), (4, 0.5))):
        G = np.diag([0.0, 0.0, 0.0, 0.0, 2.0])
        G[lag, lag] += weight  # position 1 is that of the baseline: the weights add up
        assert_array_equal(batch.A[i], flows.many_flows(A0[i], (G, target), t_end=1.0).A[0])
    options = {"length": 5, "alpha": 1.0, "beta": 1.0, "t_end": 1.0}
    for wrong in (0, 5, 2.5, [4, 5]):
        with pytest.raises(ValueError, match="special_position must be a position from 1 to 4"):
            flows.theorem_flows(A0, special_position=wrong, **options)
    with pytest.raises(
        ValueError, match="special_position must be a number, or one for each of the 2 runs"
    ):
        flows.theorem_flows(A0, special_position=[1, 2, 3], **options)


def test_bad_weights_of_the_theorem():
    for change in ({"alpha": -1.0}, {"beta": [1.0, 2.0]}):
        options = {"length": 7, "alpha": 1.0, "beta": 1.0, "t_end": 1.0} | change
        with pytest.raises(ValueError, match=f"{next(iter(change))} must be a number >= 0"):
            flows.theorem_flows([0.2, 0.1], **options)


# --- Gram matrices: what X^T X can be in floating point


GRAM_KINDS = ("normal", "rounded", "dependent", "scaled", "tiny")


def random_inputs(kind, seed, length, size, count):
    """Inputs (count, size, length) of every rank: fewer sequences than lags, repeated, dependent,
    of any scale.
    """
    rng = np.random.default_rng([seed, length, size])
    x = rng.normal(size=(count, size, length))
    if kind == "rounded":
        x = np.round(x)  # zeros, equal and opposite columns
    elif kind == "dependent":
        rank = max(1, min(size, length) // 2)
        x = x[..., :rank] @ rng.normal(size=(count, rank, length))
    elif kind == "scaled":
        x *= 10.0 ** rng.uniform(-140, 140, size=(count, 1, length))
    elif kind == "tiny":  # squares that underflow
        x *= 10.0 ** rng.uniform(-170, -150, size=(count, 1, 1))
    return x


@pytest.mark.parametrize("kind", GRAM_KINDS)
def test_gram_matrices_of_any_rank_are_taken(kind):
    """5 x 2,352 data sets: n = 1 .. kappa + 1 sequences, kappa = 2 .. 8, and the three factors of
    each agree with X.
    """
    total = 0
    for length in range(2, 9):
        for size in range(1, length + 2):
            x = random_inputs(kind, 0, length, size, 56)
            total += len(x)
            gram = np.stack([(2.0 / size) * one.T @ one for one in x])
            L = flows._factor(gram)
            off = gram - L @ np.swapaxes(L, 1, 2)
            off[:, 0, 0] = 0.0  # lag 0 moves no entry of A
            scale = np.maximum(np.sqrt(np.diagonal(gram, axis1=1, axis2=2)), 1e-145)
            assert (np.abs(off) <= 1e-8 * scale[:, :, None] * scale[:, None, :]).all()
    assert total == 2352


@pytest.mark.parametrize(("seed", "size"), [(7731, 5), (0, 6)])
def test_gram_matrix_of_one_sequence_fewer_than_lags(seed, size):
    """Lag 0 depends on the others here; its remainder is rounding times a condition number, of
    either sign.
    """
    rng = np.random.default_rng(seed)
    for _ in range(2000):
        x = rng.normal(size=(size, size + 1))
        flows._check_semidefinite(((2.0 / size) * x.T @ x)[None])


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), length=st.integers(2, 9), size=st.floats(1e-6, 1.0))
def test_matrices_with_a_negative_eigenvalue_are_refused(seed, length, size):
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.normal(size=(length, length)))
    values = rng.uniform(0.0, 1.0, length)
    values[0] = -size
    G = (Q * values) @ Q.T
    scale = 10.0 ** rng.uniform(-20, 20, length)
    for case in (G, scale[:, None] * G * scale):
        with pytest.raises(
            ValueError, match=r"^G must be positive semidefinite.*; G of run 1 is not"
        ):
            flows._check_semidefinite(np.stack([np.eye(length), (case + case.T) / 2]))


def test_a_flow_of_dependent_data_is_that_of_the_reference():
    rng = np.random.default_rng(7731)
    data = sequences.TrainingSet(rng.normal(size=(5, 6)), ssm.teacher("dim=3"))
    A0, w = rng.uniform(-0.5, 0.5, size=3), rng.normal(size=3)
    target = data.teacher.impulse_response(6)
    batch = flows.many_flows(A0, (data.gram(), target), w=w, t_end=3.0, rtol=1e-9)
    reference = flow.gradient_flow(ssm.DiagonalSSM(A0, w, np.ones(3)), data, t_end=3.0)
    assert_allclose(batch.A[0], reference.A[-1], rtol=1e-6)


def test_no_layout_of_an_argument_compiles_anything_anew():
    A0, G, target = (
        np.array([[0.25, 0.125], [0.5, 0.125]]),
        np.diag([0.0, 1.0, 1.0]),
        np.array([2.0, 1.0, 1.0]),
    )
    expected = flows.many_flows(A0, (G, target), t_end=2.0)
    known = [len(f.signatures) for f in (_integrate, factor_gram)]

    def layouts(value):
        value = np.asarray(value, dtype=float)
        frozen = value.copy()
        frozen.setflags(write=False)
        strided = np.repeat(value, 2, axis=-1)[..., ::2]
        return [frozen, strided, np.asfortranarray(value), value.astype(np.float32), value.tolist()]

    good = {
        "A0": A0,
        "G": G,
        "target": target,
        "t_end": [2.0, 2.0],
        "w": np.ones(2),
        "gaps": A0[:, :1] - A0[:, 1:],
    }
    for name, value in good.items():
        for other in layouts(value):
            arguments = good | {name: other}
            A0, G, target = (arguments.pop(name) for name in ("A0", "G", "target"))
            batch = flows.many_flows(A0, (G, target), **arguments)
            assert_array_equal(batch.A, expected.A)
    assert [len(f.signatures) for f in (_integrate, factor_gram)] == known == [1, 1]


# --- nothing leaves the range of float64 silently


def test_starts_and_gaps_keep_their_digits():
    with pytest.raises(ValueError, match=r"^tie_gaps must be larger, or 0 for an exact tie"):
        flows.near_tie_starts([1.0, 0.5, 0.1], 1e-10, 1e-300)
    _, gaps = flows.near_tie_starts([1.0, 0.5, 0.1], 1e-10, [0.0, 1e-290])
    assert gaps[:, 0].tolist() == [0.0, 1e-300]
    with pytest.raises(ValueError, match=r"^scales must be smaller in size: the start"):
        flows.near_tie_starts([1e200, 1e199], 1e200, 0.1)
    with pytest.raises(ValueError, match=r"^scales must be larger: the start would fall below"):
        flows.near_tie_starts([1.0, 0.5], 1e-310, 0.1)


def test_responses_that_overflow_are_errors():
    batch = flows.many_flows([[0.2, 3.0]], (np.diag([0.0, 1.0]), [2.0, 3.2]), t_end=1.0)
    assert np.isfinite(batch.impulse_responses(600)).all()
    with pytest.raises(ValueError, match=r"^length must be smaller in size: the impulse response"):
        batch.impulse_responses(700)
    with pytest.raises(ValueError, match=r"^length must be smaller in size: the impulse response"):
        batch.generalization_errors(np.ones(700))
    failed = flows.theorem_flows(
        [[1e60, 0.01]], length=7, alpha=1.0, beta=1.0, t_end=1e12, on_failure="nan"
    )
    assert np.isnan(failed.impulse_responses(3)).all()  # a failed run stays NaN, without an error


def test_sizes_beyond_memory_are_refused():
    with pytest.raises(ValueError, match="length must be an integer from 3 to 10000; got 20000"):
        flows.theorem_flows([0.2, 0.1], length=20_000, alpha=1.0, beta=1.0, t_end=1.0)
    options = {"length": 10_000, "alpha": 1.0, "t_end": 1.0}
    with pytest.raises(
        ValueError, match="length must be at most 6710 for 10000 runs of different weights"
    ):
        flows.theorem_flows(np.full((10_000, 1), 0.1), beta=np.arange(10_000.0), **options)


def test_memory_of_the_theorems_flows_grows_with_the_length_not_its_square():
    """256 doses at kappa = 501: 256 Gram matrices alone would take 514 MB."""
    options = {
        "length": 501,
        "alpha": 1.0,
        "beta": np.linspace(0.1, 1.0, 256),
        "t_end": 1e-3,
        "workers": 1,
    }
    flows.theorem_flows([[0.2, 0.1]], length=3, alpha=1.0, beta=1.0, t_end=1e-3)  # compiled
    tracemalloc.start()
    batch = flows.theorem_flows(np.full((256, 2), 0.1), **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (batch.status >= 0).all()
    assert peak < 50e6


@pytest.mark.parametrize("case", ["gaps", "weights", "full rank"])
def test_order_of_convergence(case):
    """One step of a method of order 4 is off by O(h^5): halving h divides its error by 32."""
    rng = np.random.default_rng(2)
    length, d = (3, 4) if case == "gaps" else (8, 3)
    size = 9 if case == "full rank" else 2
    x = rng.normal(size=(size, length))
    G, target = 2 / size * x.T @ x, rng.uniform(0.5, 1.5, length)
    A0 = np.sort(rng.uniform(0.2, 0.7, d))[::-1]
    w = np.ones(d) if case == "gaps" else np.linspace(0.5, 1.5, d)

    def follow(t_end, **options):
        return flows.many_flows(A0, (G, target), w=w, t_end=t_end, **options)

    off = []
    for h in 0.0025 * 0.5 ** np.arange(3):
        one = follow(h, rtol=1e-3, atol=1e3)
        assert one.steps[0] == 1
        off.append(np.abs(one.A - follow(h, rtol=1e-13, atol=1e-15).A).max())
    orders = np.log2(np.array(off[:-1]) / off[1:])
    assert_allclose(orders, 5.0, atol=0.2)
