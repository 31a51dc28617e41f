"""The flow's velocity, Jacobian, integration, near ties, and the solved baseline case."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import equations, flow, flows, metrics, sequences, ssm
from ssm_poison_lib.flow import FlowStatus
from ssm_poison_lib.parametrizations import PARAMETRIZATIONS
from ssm_poison_lib.ssm import DiagonalSSM


def random_case(seed, length=6, size=4, d=5):
    rng = np.random.default_rng(seed)
    data = sequences.TrainingSet(rng.normal(size=(size, length)), ssm.teacher("dim=3"))
    return DiagonalSSM(*rng.uniform(-1.1, 1.1, size=(3, d))), data


def theorem_case(special, d=4, length=7, dose=1.0):
    teacher = ssm.theorem_teacher(d)
    x = sequences.baseline_sequences(length)
    if special:
        x = np.concatenate([x, sequences.special_sequences(length, dose)])
    return sequences.TrainingSet(x, teacher)


def student_of(A):
    A = np.asarray(A, dtype=float)
    return DiagonalSSM.ones(A)


def autograd(student, data):
    """The gradient by torch, from the recurrence and the labels: nothing shared with the library's
    formulas.
    """
    A, B, C = (
        torch.tensor(np.array(v), requires_grad=True) for v in (student.A, student.B, student.C)
    )
    x, y = torch.tensor(np.array(data.x)), torch.tensor(np.array(data.y))
    state = torch.zeros(len(x), student.state_dim, dtype=torch.float64)
    for t in range(data.length):
        state = A * state + B * x[:, t, None]
    ((y - state @ C) ** 2).mean().backward()
    return np.concatenate([-p.grad.numpy() for p in (A, B, C)])


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(1, 9),
    size=st.integers(1, 6),
    d=st.integers(1, 6),
)
def test_velocity_is_minus_the_gradient_by_autograd(seed, length, size, d):
    student, data = random_case(seed, length, size, d)
    expected = autograd(student, data)
    bound = 1e-12 * max(np.abs(expected).max(), 1e-3)
    assert_allclose(flow.velocity(student, data, train="ABC"), expected, rtol=0, atol=bound)
    assert_allclose(flow.velocity(student, data), expected[:d], rtol=0, atol=bound)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_velocity_of_A_is_the_polynomial_of_proposition_1(seed):
    student, data = random_case(seed)
    gamma = metrics.gamma(student, data)
    expected = student.w * sum(g * student.A**k for k, g in enumerate(gamma))
    assert_allclose(flow.velocity(student, data), expected, rtol=1e-9, atol=1e-10)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), train=st.sampled_from(["A", "ABC"]), length=st.integers(1, 7))
def test_jacobian_is_the_derivative_of_the_velocity(seed, train, length):
    student, data = random_case(seed, length=length, d=3)
    stacked = np.concatenate([student.A, student.B, student.C])
    size = 3 if train == "A" else 9
    numeric = np.empty((size, size))
    step = 1e-6
    for k in range(size):
        shifted = [stacked.copy(), stacked.copy()]
        shifted[0][k] += step
        shifted[1][k] -= step
        up, down = (flow.velocity(DiagonalSSM(*np.split(s, 3)), data, train=train) for s in shifted)
        numeric[:, k] = (up - down) / (2 * step)
    J = flow.jacobian(student, data, train=train)
    assert_allclose(J, numeric, rtol=0, atol=1e-7 * max(1.0, np.abs(J).max()))
    assert_allclose(J, J.T, rtol=0, atol=1e-12 * max(1.0, np.abs(J).max()))  # minus a Hessian


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_velocity_and_jacobian_in_gap_coordinates(seed):
    rng = np.random.default_rng(seed)
    data = sequences.TrainingSet(rng.normal(size=(3, 6)), ssm.teacher("dim=2"))
    gram, target = data.gram(), data.teacher.impulse_response(6)
    w, counts = 0.7, np.array([1.0, 2.0, 1.0, 3.0])
    gaps = rng.uniform(0.01, 0.5, 3)
    theta = np.concatenate([[rng.uniform(0.2, 1)], np.log(gaps)])
    values = theta[0] - np.concatenate([[0.0], np.cumsum(gaps)])
    everyone = np.repeat(np.arange(4), counts.astype(int))  # d = 7 entries with 4 distinct values
    student = DiagonalSSM(values[everyone], np.full(7, w), np.ones(7))
    first = np.array([0, 1, 3, 4])  # one entry of each value
    by_theta = np.concatenate(
        [np.ones((4, 1)), -np.tril(np.ones((4, 3)), -1) * gaps], axis=1
    )  # d values / d theta
    velocity, J = equations.gap_velocity(theta, counts, w, gram, target, with_jacobian=True)
    moves = flow.velocity(student, data)
    assert_allclose(by_theta @ velocity, moves[first], rtol=0, atol=1e-11)
    # second derivatives of the values: gap_j enters itself again
    curvature = np.concatenate(
        [np.zeros((4, 1)), -np.tril(np.ones((4, 3)), -1) * gaps * velocity[1:]], axis=1
    )
    direct = (flow.jacobian(student, data) @ by_theta[everyone])[first]
    assert_allclose(by_theta @ J + curvature, direct, rtol=0, atol=1e-9)
    again, none = equations.gap_velocity(theta, counts, w, gram, target, with_jacobian=False)
    assert none is None
    assert_array_equal(again, velocity)


def test_loss_falls_and_is_the_loss_of_the_metrics():
    student, data = random_case(3, size=8, length=5)
    run = flow.gradient_flow(student, data, t_end=3.0, train="ABC", rtol=1e-9)
    assert (np.diff(run.loss) <= 1e-12).all()
    assert (np.diff(run.times) >= 0).all()
    for step in (0, len(run.times) // 2, -1):
        assert run.loss[step] == pytest.approx(metrics.loss(run.student(step), data), rel=1e-8)
    assert run.gaps is None
    assert run.status == FlowStatus.END_OF_TIME
    assert not run.fitted  # three time units are not enough, and the run says so


def test_flow_of_A_B_C_conserves_b_squared_minus_c_squared():
    student, data = random_case(5)
    run = flow.gradient_flow(student, data, t_end=5.0, train="ABC")
    conserved = run.B**2 - run.C**2
    assert np.abs(run.A[-1] - run.A[0]).max() > 0.05  # something moved
    assert_allclose(conserved, np.broadcast_to(conserved[0], conserved.shape), rtol=0, atol=1e-8)


@pytest.mark.untyped
def test_flow_agrees_with_small_steps_of_gradient_descent():
    student, data = random_case(8, length=4, d=3)
    run = flow.gradient_flow(student, data, t_end=0.2, train="ABC")
    errors = []
    for steps in (2000, 4000):
        theta = np.concatenate([student.A, student.B, student.C])
        for _ in range(steps):
            theta = theta + 0.2 / steps * flow.velocity(
                DiagonalSSM(*np.split(theta, 3)), data, train="ABC"
            )
        errors.append(np.abs(theta - np.concatenate([run.A[-1], run.B[-1], run.C[-1]])).max())
    assert errors[1] < 1e-3
    # Euler's error is linear in the step
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.02)


def test_unequal_weights_use_plain_coordinates():
    student, data = random_case(2, length=4)
    run = flow.gradient_flow(student, data, t_end=0.5)
    assert run.gaps is None
    assert_array_equal(run.B, np.broadcast_to(student.B, run.B.shape))
    reference = flow.gradient_flow(student, data, t_end=0.5, rtol=1e-9)
    assert_allclose(run.A[-1], reference.A[-1], atol=1e-6)


def test_stops():
    data = theorem_case(special=True)
    start = student_of([0.1, 0.05, 0.02, 0.01])
    fitted = flow.gradient_flow(start, data, t_end=1e6, stop_at_loss=True, loss_tol=1e-6)
    assert (fitted.status, fitted.fitted) == (FlowStatus.REACHED_LOSS, True)
    assert fitted.loss[-1] <= 1e-6 < fitted.loss[-2]
    still = flow.gradient_flow(start, data, t_end=1e6, stationary_tol=1e-9)
    assert still.status == FlowStatus.STATIONARY
    assert np.abs(flow.velocity(still.student(), data)).max() <= 1e-9
    assert still.fitted
    early = flow.gradient_flow(start, data, t_end=1e-3)
    assert (early.status, early.fitted) == (FlowStatus.END_OF_TIME, False)
    assert early.times[-1] == 1e-3


def test_a_start_at_a_critical_point_is_stationary_and_unfitted():
    run = flow.gradient_flow(
        student_of([0.0, 0.0]), theorem_case(special=False, d=2), t_end=1.0, stationary_tol=1e-12
    )
    assert (run.status, run.fitted, len(run.times)) == (FlowStatus.STATIONARY, False, 1)


def test_stops_on_the_very_bound():
    data = theorem_case(special=True, d=2)
    fitted = flow.gradient_flow(
        student_of([1.0, 0.0]), data, t_end=1.0, loss_tol=0.0, stop_at_loss=True
    )
    assert (fitted.status, fitted.fitted, fitted.loss.tolist()) == (
        FlowStatus.REACHED_LOSS,
        True,
        [0.0],
    )
    start = student_of([0.1, 0.05])
    speed = float(np.abs(flow.velocity(start, data)).max())
    assert len(flow.gradient_flow(start, data, t_end=1.0, stationary_tol=speed).times) == 1
    run = flow.gradient_flow(start, data, t_end=1.0)
    steps = len(run.times) - 1
    assert len(flow.gradient_flow(start, data, t_end=1.0, max_steps=steps).times) == steps + 1
    with pytest.raises(
        flow.FlowError,
        match=f"^no end after max_steps={steps - 1} steps: t = {run.times[-2]:g} of 1$",
    ):
        flow.gradient_flow(start, data, t_end=1.0, max_steps=steps - 1)


def test_only_what_is_trained_must_be_stationary():
    data = sequences.TrainingSet(
        np.array([[0.0, 1.0]]), ssm.teacher("dim=1")
    )  # x_kappa alone: A does not matter
    student = DiagonalSSM([0.3], [0.5], [0.5])
    assert (
        flow.gradient_flow(student, data, t_end=1.0, stationary_tol=1e-12).status
        == FlowStatus.STATIONARY
    )
    everything = flow.gradient_flow(student, data, t_end=1.0, stationary_tol=1e-12, train="ABC")
    assert everything.status == FlowStatus.END_OF_TIME


def test_a_solver_that_gives_up_raises(monkeypatch):
    data, start = theorem_case(special=True), student_of([0.1, 0.05, 0.02, 0.01])
    with pytest.raises(flow.FlowError, match="max_steps=3"):
        flow.gradient_flow(start, data, t_end=1e6, max_steps=3)

    class Stuck(flow.LSODA):
        def step(self):
            self.status = "failed"
            return "stuck on purpose"

    monkeypatch.setattr(flow, "LSODA", Stuck)
    with pytest.raises(flow.FlowError, match="gave up at t = 0 of 10: stuck on purpose"):
        flow.gradient_flow(start, data, t_end=10.0)

    class Lost(flow.LSODA):
        def step(self):
            self.y = self.y * np.nan

    monkeypatch.setattr(flow, "LSODA", Lost)
    with pytest.raises(flow.FlowError, match="gave up at t = 0 of 10: not finite"):
        flow.gradient_flow(start, data, t_end=10.0)


def spied(monkeypatch):
    """Return a dictionary that the next solver fills with what it is given."""
    given = {}

    class Spy(flow.LSODA):
        def __init__(self, fun, t0, y0, t_bound, **options):
            given.update(options, fun=fun, y0=y0)
            super().__init__(fun, t0, y0, t_bound, **options)

    monkeypatch.setattr(flow, "LSODA", Spy)
    return given


@pytest.mark.parametrize(
    ("options", "atol"),
    [
        ({}, 1e-20),
        ({"train": "ABC"}, 1e-20),
        ({"decay": 0.1}, 1e-13),
        ({"parametrization": "exp"}, 1e-13),
    ],
)
def test_the_default_absolute_tolerance_is_the_documented_one(monkeypatch, options, atol):
    """Entries race from far below 1e-13; parameters s, and entries that decay, need less."""
    given = spied(monkeypatch)
    start = [0.3, 0.2, 0.1, 0.05]
    flow.gradient_flow(start, theorem_case(special=True), t_end=1e-3, **options)
    assert np.ravel(given["atol"])[0] == atol


@pytest.mark.parametrize("mode", ["gaps", "plain", "ABC"])
def test_what_the_solver_is_given(monkeypatch, mode):
    """The Jacobian belongs to the right-hand side; a gap's logarithm has an absolute tolerance."""
    given = spied(monkeypatch)
    A, weights = np.array([0.3, 0.1, 0.1, -0.2]), [1.0, 1.0 if mode == "gaps" else 0.5, 1.0, 1.0]
    student = DiagonalSSM(A, np.ones(4), weights)
    train = "ABC" if mode == "ABC" else "A"
    flow.gradient_flow(
        student, theorem_case(special=True), t_end=1e-3, train=train, rtol=1e-8, atol=1e-17
    )
    start, step = given["y0"], 1e-6
    shifts = step * np.eye(len(start))
    numeric = [
        (given["fun"](0.0, start + s) - given["fun"](0.0, start - s)) / (2 * step) for s in shifts
    ]
    assert_allclose(given["jac"](0.0, start), np.transpose(numeric), rtol=0, atol=1e-7)
    assert len(start) == {"gaps": 3, "plain": 4, "ABC": 12}[mode]
    if mode == "gaps":
        assert_array_equal(given["rtol"], [1e-8, 2.3e-14, 2.3e-14])
        assert_array_equal(given["atol"], [1e-17, 1e-8, 1e-8])
    else:
        assert (given["rtol"], given["atol"]) == (1e-8, 1e-17)


def test_order_is_kept_and_the_gap_identity_holds():
    A0 = np.array([0.02, 0.05, 0.01, 0.049])  # unsorted on purpose
    run = flow.gradient_flow(student_of(A0), theorem_case(special=True), t_end=1e4)
    assert_allclose(run.A[0], A0, rtol=1e-15)
    order = np.argsort(-A0)
    assert (np.diff(run.A[:, order], axis=1) < 0).all()
    assert_allclose(-np.diff(run.A[:, order], axis=1), run.gaps, rtol=0, atol=1e-15)
    # d(a_i - a_j)/dt = alpha p (a_i^q - a_j^q) r_p: the special term cancels
    data, p = theorem_case(special=True), 6
    alpha = data.gram()[p, p]
    for step in (0, len(run.times) // 2):
        a = run.A[step]
        v = flow.velocity(run.student(step), data)
        assert_allclose(
            v[0] - v[1],
            alpha * p * (a[0] ** 5 - a[1] ** 5) * (1 - (a**p).sum()),
            rtol=1e-9,
            atol=1e-16,
        )


def test_exact_ties_last():
    run = flow.gradient_flow(
        student_of([0.05, 0.05, 0.01]), theorem_case(special=True, d=3), t_end=1e4
    )
    assert_array_equal(run.A[:, 0], run.A[:, 1])
    assert (run.gaps[:, 0] == 0.0).all()


def test_given_gaps_order_equal_entries_as_they_stand():
    gaps = np.full(19, 1e-8)
    gaps[3] = 0.0  # entries 4 and 5 stay tied
    start = student_of(np.full(20, 0.02))
    run = flow.gradient_flow(start, theorem_case(special=False, d=20), t_end=1.0, gaps=gaps)
    assert_allclose(run.gaps[0], gaps, rtol=1e-13)
    assert_allclose(run.A[0], 0.02 - np.concatenate([[0.0], np.cumsum(gaps)]), rtol=1e-15)
    assert_array_equal(run.A[:, 3], run.A[:, 4])


@pytest.mark.untyped
@pytest.mark.parametrize("gap", [1e-11, 1e-18, 1e-28])
def test_a_tiny_gap_grows_in_proportion_to_itself(gap):
    """To first order in the gap the final gap is proportional to it: nothing is lost far below
    rounding.
    """
    data = theorem_case(special=True, d=10)
    start = student_of(np.array([1.0, 1.0, *np.linspace(0.8, 0.1, 8)]) * 1e-2)
    gaps = -np.diff(start.A)
    growth = []
    for factor in (1.0, 1e-3):
        gaps[0] = gap * factor
        run = flow.gradient_flow(start, data, t_end=1e5, gaps=gaps)
        assert run.fitted
        assert run.gaps[0, 0] == pytest.approx(gap * factor, rel=1e-13)
        growth.append(run.gaps[-1, 0] / (gap * factor))
    assert growth[0] == pytest.approx(growth[1], rel=1e-3)
    assert growth[0] > 1e4


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), length=st.integers(2, 9), d=st.integers(1, 5))
def test_closed_form_agrees_with_the_integrator(seed, length, d):
    """Integrate da/dtau = a^q with the flow's own time removed: compare at equal progress of the
    largest entry.
    """
    A0 = np.random.default_rng(seed).uniform(0.05, 0.2, d) / d ** (1 / (length - 1))
    data = sequences.TrainingSet(
        sequences.baseline_sequences(length), ssm.theorem_teacher(max(d, 2))
    )
    limit = flow.baseline_limit(A0, length)
    largest = np.argmax(A0)
    n = length - 3
    if n == -1:
        tau = limit[largest] - A0[largest]
    elif n == 0:
        tau = np.log(limit[largest] / A0[largest])
    else:
        tau = (A0[largest] ** -n - limit[largest] ** -n) / n
    assert_allclose(flow.baseline_closed_form(A0, length, [0.0, tau]), [A0, limit], rtol=1e-8)
    assert (limit ** (length - 1)).sum() == pytest.approx(1.0, abs=1e-12)
    run = flow.gradient_flow(student_of(A0), data, t_end=1e3 * A0.max() ** -max(n, 1))
    assert run.fitted
    assert_allclose(run.A[-1], limit, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), length=st.integers(2, 12), fraction=st.floats(0.01, 0.95))
def test_closed_form_solves_its_equation(seed, length, fraction):
    A0 = np.random.default_rng(seed).uniform(0.1, 0.9, 4)
    n = length - 3
    tau = fraction * (A0.max() ** -n / n if n > 0 else 1.0)
    step = 1e-6 * tau
    before, here, after = flow.baseline_closed_form(A0, length, [tau - step, tau, tau + step])
    assert_allclose(
        (after - before) / (2 * step), here ** (length - 2), rtol=1e-5, atol=1e-15 / step
    )


def test_closed_form_refuses_times_after_the_blow_up():
    with pytest.raises(
        ValueError, match=r"tau must stay below 0\.25, where the largest entry blows up; got 0\.25"
    ):
        flow.baseline_closed_form([1.0, 0.5], 7, [0.0, 0.25])


def test_baseline_limit_keeps_the_digits_of_a_near_tie():
    """With a_2 = a_1 (1 - g), a_2^-n - a_1^-n is n g a_1^-n to first order: ten digits at g =
    1e-10.
    """
    g, n, a = 1e-10, 4, 1e-3
    limit = flow.baseline_limit([a, a - a * g], 7)
    exact_g = (a - (a - a * g)) / a
    assert limit[1] ** -n - limit[0] ** -n == pytest.approx(n * exact_g * a**-n, rel=1e-9)


def test_baseline_limit_of_an_exact_tie_and_of_one_entry():
    assert_allclose(flow.baseline_limit([0.1, 0.1, 0.01], 7)[:2], [2 ** (-1 / 6)] * 2, rtol=1e-6)
    assert_allclose(flow.baseline_limit([0.3], 7), [1.0], rtol=1e-14)


def test_largest_entry_negative_fits_and_errs_by_two():
    """Kappa odd: the largest magnitude wins whatever its sign, and (-1, 0, ...) errs by 2 at odd
    lags.
    """
    data = theorem_case(special=False, d=3)
    run = flow.gradient_flow(student_of([0.05, 0.02, -0.1]), data, t_end=1e7)
    assert run.fitted
    assert run.A[-1, 2] == pytest.approx(-1.0, abs=1e-3)
    error = metrics.generalization_error(run.student(), ssm.theorem_teacher(3), 20)
    assert error == pytest.approx(2.0, abs=0.1)


def test_length_one_moves_nothing_but_b_and_c():
    data = sequences.TrainingSet(np.array([[1.0]]), ssm.teacher("dim=1"))
    student = DiagonalSSM([0.3], [0.5], [0.5])
    assert_array_equal(flow.velocity(student, data), [0.0])
    run = flow.gradient_flow(student, data, t_end=50.0, train="ABC")
    assert_allclose(run.A, 0.3)
    assert run.B[-1, 0] * run.C[-1, 0] == pytest.approx(1.0)


@pytest.mark.parametrize("length", [110, 400, 1000])
def test_long_sequences_do_not_overflow(length):
    """0.02^-(kappa-3) is beyond float64 from kappa = 185 on; what it stands for is not."""
    start = [0.02, 0.01]
    assert_allclose(
        flow.baseline_closed_form(start, length, [0.0, -1e100, 1e100]), [start] * 3, rtol=1e-14
    )
    limit = flow.baseline_limit(start, length)
    assert_allclose(
        limit, [1.0, 0.01], rtol=1e-14
    )  # a_2^-n - a_1^-n is conserved, and a_1^-n is nothing beside it
    tied = flow.baseline_limit([0.02, 0.02], length)
    assert_allclose(tied, 2.0 ** (-1 / (length - 1)), rtol=1e-14)
    later = flow.baseline_closed_form(
        [0.9, 0.8], length, [0.0, 0.5 * 0.9 ** -(length - 3) / (length - 3)]
    )
    assert_allclose(later[1, 0], 0.9 * 0.5 ** (-1 / (length - 3)), rtol=1e-13)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), length=st.integers(4, 1200), log_scale=st.floats(-4, 1))
def test_the_closed_form_in_logarithms(seed, length, log_scale):
    """Time in units of the blow-up: a_1 = a_1(0) (1 - share)^(-1/n), the others by the conserved
    difference.
    """
    n = length - 3
    A0 = np.random.default_rng(seed).uniform(0.1, 1.0, 3) * 10.0**log_scale
    with mpmath.workdps(50):
        exact = [mpmath.mpf(a) for a in A0]
        end = max(exact) ** -n / n
        for share in (-1e3, -0.5, 0.25, 0.9):
            tau = float(share * end)
            if not 1e-300 < abs(tau) < 1e300:
                continue
            expected = [float((a**-n - n * mpmath.mpf(tau)) ** (-mpmath.mpf(1) / n)) for a in exact]
            assert_allclose(flow.baseline_closed_form(A0, length, [tau])[0], expected, rtol=1e-11)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    d=st.integers(1, 6),
    length=st.integers(3, 1000),
    log_scale=st.floats(-6, 2),
)
def test_baseline_limit_conserves_and_fits_from_every_positive_start(seed, d, length, log_scale):
    n, p = length - 3, length - 1
    A0 = np.random.default_rng(seed).uniform(0.01, 1.0, d) * 10.0**log_scale
    limit = flow.baseline_limit(A0, length)
    with mpmath.workdps(60):
        end, start = ([mpmath.mpf(a) for a in values] for values in (limit, A0))
        assert abs(float(sum(a**p for a in end)) - 1) < 1e-12 * length
        k = int(np.argmax(A0))
        for a, b in zip(end, start, strict=True):
            if n == 0:
                assert float(a / end[k] / (b / start[k])) == pytest.approx(1.0, rel=1e-12)
            else:
                kept = (a**-n - end[k] ** -n, b**-n - start[k] ** -n)
                assert float(kept[0] - kept[1]) <= 1e-12 * length * float(
                    max(a, end[k]) ** -n + kept[1]
                )


def test_baseline_limit_takes_exact_gaps():
    A0, gaps = flows.near_tie_starts([1.0, 0.9, 0.5], 1e-2, 1e-30)
    limit = flow.baseline_limit(A0[0], 7, gaps=gaps[0])
    batch = flows.theorem_flows(A0, gaps=gaps, length=7, alpha=1.0, beta=0.0, t_end=1e14, rtol=1e-9)
    assert_allclose(limit, batch.A[0], rtol=1e-8)
    assert_array_equal(
        flow.baseline_limit(A0[0], 7), flow.baseline_limit(A0[0], 7, gaps=[0.0, gaps[0, 1]])
    )
    for wrong in ([1e-3, gaps[0, 1]], [-1e-30, gaps[0, 1]]):
        with pytest.raises(ValueError, match=r"^gaps must be >= 0 and agree"):
            flow.baseline_limit(A0[0], 7, gaps=wrong)
    with pytest.raises(
        ValueError, match=r"^gaps must be .* agree up to rounding .* descending A0$"
    ):
        flow.baseline_limit([0.3, 0.1], 7, gaps=[0.1])
    with pytest.raises(ValueError, match=r"^gaps must be left out for .*; got \[0\.1\]"):
        flow.baseline_limit([0.1], 7, gaps=[0.1])


def test_gaps_may_be_off_by_their_rounding():
    """Sums of d gaps are rounded d times."""
    A0 = np.linspace(0.4, 0.1, 8)
    gaps = -np.diff(A0)
    gaps[-1] += 5 * np.spacing(A0[0])
    assert_allclose(flow.baseline_limit(A0, 7, gaps=gaps), flow.baseline_limit(A0, 7), rtol=1e-12)


def test_baseline_limit_keeps_the_digits_of_an_entry_far_behind():
    """By the closed form it has hardly moved when the largest arrives."""
    assert_allclose(flow.baseline_limit([0.5, 1e-12], 7), [1.0, 1e-12], rtol=1e-13)
    assert_allclose(flow.baseline_limit([0.5, 1e-20], 7), [1.0, 1e-20], rtol=1e-13)


def test_at_kappa_2_all_entries_shift():
    assert_allclose(flow.baseline_limit([0.1, 0.3], 2), [0.4, 0.6])
    assert_allclose(flow.baseline_limit([0.1, 3.0], 2), [-0.95, 1.95])


@pytest.mark.parametrize(("entry", "length"), [(0.3, 6), (1.3, 4), (1.3, 9), (0.7, 5)])
def test_the_time_of_the_blow_up_itself_is_refused(entry, length):
    """In logarithms these four times lie before it, by a rounding."""
    n = length - 3
    with pytest.raises(ValueError, match=r"^tau must stay below .*, where the largest entry blows"):
        flow.baseline_closed_form([entry], length, [entry ** -float(n) / n])


def test_the_blow_up_in_logarithms():
    """Powers of the start beyond float64 on either side: at 10^309 / 309 and 10^-310 / 310."""
    with pytest.raises(ValueError, match=r"^tau must stay below 10\^306\.51, where"):
        flow.baseline_closed_form([0.1], 312, [4e306])
    assert_allclose(
        flow.baseline_closed_form([10.0], 313, [1e-313]), [[10 * 0.69 ** (-1 / 310)]], rtol=1e-9
    )


def test_times_beyond_the_blow_up_and_the_range_are_refused():
    with pytest.raises(ValueError, match=r"^tau must stay below 0\.125, where"):
        flow.baseline_closed_form([2.0], 5, [0.2])
    with (
        pytest.raises(ValueError, match=r"^tau must stay below 10\^-399\.599"),
        np.errstate(under="raise"),  # the reader's own setting does not matter
    ):
        flow.baseline_closed_form([10.0, 9.0], 400, [1e-300])
    with pytest.raises(ValueError, match=r"^tau must be smaller in size: an entry"):
        flow.baseline_closed_form([0.1], 3, [1000.0])
    with pytest.raises(ValueError, match=r"^tau must be smaller in size: an entry"):
        flow.baseline_closed_form([1e308], 2, [1e308])


def test_a_flow_that_leaves_the_range_is_an_error():
    data = theorem_case(special=False)
    wild = student_of([1e60, 1.0, 1.0, 1.0])
    for call in (flow.velocity, flow.jacobian):
        with pytest.raises(ValueError, match=r"^student must be smaller in size"):
            call(wild, data)
    with pytest.raises(ValueError, match=r"^start must be smaller in size: the loss at the start"):
        flow.gradient_flow(wild, data, t_end=1.0)


def test_a_trajectory_has_the_steps_it_has():
    run = flow.gradient_flow(student_of([0.2, 0.1]), theorem_case(special=False, d=2), t_end=1.0)
    assert_allclose(run.student(0).A, [0.2, 0.1], rtol=1e-15)
    with pytest.raises(ValueError, match=r"^row must be an integer from"):
        run.student(len(run.times))


def test_the_gaps_of_the_baseline_limit_are_named():
    with pytest.raises(ValueError, match=r"^gaps must have length 1 along its last axis"):
        flow.baseline_limit([0.2, 0.1], 7, gaps=[0.1, 0.2])


# ---- what a flow is given ------------------------------------------------------------------------

MOMENTS = np.diag([0.0, 1.0, 1.0]), np.array([2.0, 1.0, 1.0])


def test_moments_in_place_of_a_training_set_give_the_same_flow():
    data = sequences.TrainingSet(
        np.vstack([sequences.baseline_sequences(3), sequences.special_sequences(3)]),
        ssm.theorem_teacher(2),
    )
    moments = data.gram(), data.teacher.impulse_response(3)
    ends = [flow.gradient_flow([0.02, 0.01], given, t_end=5.0).A[-1] for given in (data, moments)]
    np.testing.assert_array_equal(*ends)


@pytest.mark.parametrize(
    ("training_set", "options", "message"),
    [
        ((-MOMENTS[0], MOMENTS[1]), {}, "training_set's G must be positive semidefinite"),
        ((np.ones(3), MOMENTS[1]), {}, "training_set's G must"),
        ((np.full((3, 3), np.nan), MOMENTS[1]), {}, "training_set's G must be finite"),
        (MOMENTS, {"t_end": None, "times": [0.0, 1.0]}, "times must"),
        (MOMENTS, {"t_end": None, "times": [1.0, 1.0]}, "times must"),
        (MOMENTS, {"t_end": None, "times": [np.nan]}, "times must be finite"),
        (MOMENTS, {"t_end": None, "times": [2.0, 1.0]}, r"times must .* increasing; got .*2.*1"),
        (MOMENTS, {"t_end": None}, "t_end must be given, or times instead of it"),
        (MOMENTS, {"decay": -1.0}, "decay must"),
        (MOMENTS, {"train": "ABC", "decay": 0.1}, "train must be 'A'"),
        (MOMENTS, {"train": "ABC", "parametrization": "exp"}, "train must be 'A'"),
    ],
)
def test_what_is_wrong_is_named(training_set, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        flow.gradient_flow([0.02, 0.01], training_set, **{"t_end": 1.0, **options})


def test_the_jacobian_of_decaying_entries_is_that_of_their_velocity():
    """The solver takes a wrong one for slow convergence."""
    student = DiagonalSSM([0.5, 0.2], [1.0, 2.0], [1.0, 1.0])
    followed = flow._plain(student, MOMENTS, "A", 1e-9, 1e-13, 0.7)
    y, h = followed.start, 1e-6
    columns = [
        (followed.velocity(0.0, y + e) - followed.velocity(0.0, y - e)) / (2 * h)
        for e in h * np.eye(2)
    ]
    assert_allclose(followed.jacobian(0.0, y), np.transpose(columns), rtol=1e-8)


@pytest.mark.parametrize(
    ("call", "name"), [(flow.velocity, "the velocity"), (flow.jacobian, "the Jacobian")]
)
def test_what_overflows_is_named(call, name):
    with pytest.raises(ValueError, match=f"^student must be smaller in size: {name} "):
        call(DiagonalSSM.ones([1e200, 0.1]), MOMENTS)


@pytest.mark.parametrize(
    ("training_set", "message"),
    [
        ((np.eye(2), np.ones(2), 1.0), r"training_set must be a TrainingSet or .*; got 3 parts"),
        ((np.eye(2), np.ones((1, 2))), r"training_set's M\* must have 1 axes"),
        (([[1.0, 0.5], [0.5 + 5e-8, 1.0]], np.ones(2)), "training_set's G must be symmetric"),
        (([[1e-9, 1e-10], [0.0, 1e-9]], np.ones(2)), "training_set's G must be symmetric"),
        ((np.diag([1.0, -1.0, 0.0]), np.ones(3)), "training_set's G must be positive"),
        ((1e-3 * np.diag([1.0, -1e-4]), np.ones(2)), "training_set's G must be positive"),
    ],
)
def test_moments_that_no_data_have_are_refused(training_set, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        flow.moments(training_set)


def test_moments_of_zero_sequences_are_taken():
    assert_array_equal(flow.moments((np.zeros((2, 2)), np.ones(2)))[0], np.zeros((2, 2)))


def test_a_flow_that_has_arrived_stays_where_it_is():
    """Unless entries decay: they go on where the loss is zero."""
    run = flow.gradient_flow([0.2, 0.1], MOMENTS, times=[1.0, 100.0, 1e9])
    assert run.status == FlowStatus.CONVERGED
    assert run.loss[1] <= 1e-24
    assert_array_equal(run.A[1], run.A[2])


@pytest.mark.parametrize("start", [[1.0, 0.5], [0.5, 0.0]])
def test_a_start_at_the_end_of_its_range_is_refused(start):
    with pytest.raises(ValueError, match=r"start must have entries between 0 and 1"):
        flow.gradient_flow(start, MOMENTS, t_end=1.0, parametrization="exp(-exp)")


def test_a_start_that_is_no_row_is_named():
    with pytest.raises(ValueError, match=r"^start must have 1 axes; got shape \(1, 2\)"):
        flow.gradient_flow([[0.02, 0.01]], MOMENTS, t_end=1.0)


@pytest.mark.parametrize("name", ["free", "exp", "tanh"])
def test_decay_pulls_entries_to_zero_with_the_squared_slope(name):
    """ds/dt = -d(decay/2 sum a^2)/ds beside the gradient of the loss, so -decay f'^2 a in a."""
    start, t = np.array([0.3, 0.2]), 1e-6
    with_decay, without = (
        flow.gradient_flow(start, MOMENTS, times=[t], parametrization=name, decay=decay).A[0]
        for decay in (0.7, 0.0)
    )
    slope = PARAMETRIZATIONS[name].slope(start)
    np.testing.assert_allclose((with_decay - without) / t, -0.7 * slope**2 * start, rtol=1e-4)
