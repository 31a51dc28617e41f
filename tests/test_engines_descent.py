"""Engines of descent and of a network's flow: each loss against its readable form and autograd,
Adam, the loop of epochs, and the Runge-Kutta-Chebyshev steps with their order of convergence.

Small enough to run without compilation too, with NUMBA_DISABLE_JIT=1.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import equations, networks, sequences, ssm
from ssm_poison_lib._engines import adam, epochs, gains, rkc, sums
from ssm_poison_lib.descent import flatten
from ssm_poison_lib.networks import Network
from ssm_poison_lib.ssm import DiagonalSSM
from ssm_poison_lib.torch_reference import SSMNetwork

SIZES = (
    st.integers(0, 10**6),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 4),
)


@pytest.fixture(autouse=True, scope="module")
def silent_overflow():
    """As in machine code: what leaves the numbers is for the caller to see."""
    with np.errstate(all="ignore"):
        yield


def case(seed, d=2, n=3, length=4, width=3):
    """A network (an SSM alone for width 0) and a training set of a teacher of its kind."""
    rng = np.random.default_rng(seed)
    model = DiagonalSSM(*rng.uniform(-0.9, 0.9, size=(3, d)))
    shapes = ((1, width), (width, width), (width, 1)) if width else ()
    x = rng.normal(size=(n, length))
    if not width:
        return Network(model), sequences.TrainingSet(x, ssm.teacher("dim=3"))
    layers = tuple(rng.normal(size=shape) for shape in shapes)
    return Network(model, layers), sequences.TrainingSet(x, networks.authors_teacher(width))


def problem_by_gains(start, data):
    x = np.ascontiguousarray(data.x[:, ::-1].T)
    return gains.gains(x, np.array(data.y), start.ssm.state_dim, start.mlp[0].shape[1])


def problem_by_sequences(start, data, full=True):
    d, width = start.ssm.state_dim, start.mlp[0].shape[1] if start.mlp else 0
    return epochs.sequences(np.array(data.x), np.array(data.y), d, width, (d, width), full=full)


def problem_by_lags(start, data):
    target = data.teacher.impulse_response(data.x.shape[1])
    return epochs.lags(np.array(data.gram()), np.array(target), start.ssm.state_dim)


def losses_of(start, data):
    """The losses by lags, gains and sequences that there are, as `epochs.train` takes them."""
    if start.mlp:
        yield "gains", (None, problem_by_gains(start, data), None)
    else:
        yield "lags", (problem_by_lags(start, data), None, None)
    yield "sequences", (None, None, problem_by_sequences(start, data))


def by_autograd(start, data):
    """Loss, minus its gradient, and the squared norm of the gradient of the full matrix A."""
    module = SSMNetwork(start)
    loss = torch.mean(
        (module(torch.tensor(np.array(data.x))) - torch.tensor(np.array(data.y))) ** 2
    )
    loss.backward()
    parts = [torch.diag(module.A.grad), module.B.grad, module.C.grad, *(w.grad for w in module.mlp)]
    v = -np.concatenate([part.numpy().ravel() for part in parts])
    return loss.item(), v, float((module.A.grad**2).sum())


def readable(start, data):
    """Loss and minus its gradient, by the formulas of the chapters."""
    A, B, C = start.ssm.A, start.ssm.B, start.ssm.C
    z = start.ssm.last_output(data.x)
    residual = (2.0 / len(data.x)) * (data.y - start.respond(z))
    e = (residual * start.xi(z)) @ data.x[:, ::-1]
    by_a, by_w = equations.pull(equations.powers(A, data.x.shape[1]), e)
    parts = [B * C * by_a, C * by_w, B * by_w]
    if start.mlp:
        first, hidden, last = start.mlp
        h1 = np.maximum(z[:, None] @ first, 0.0)
        h2 = np.maximum(h1 @ hidden, 0.0)
        pull_2 = (residual[:, None] @ last.T) * (h2 > 0)
        pull_1 = (pull_2 @ hidden.T) * (h1 > 0)
        parts += [z @ pull_1, (h1.T @ pull_2).ravel(), residual @ h2]
    return np.mean((data.y - start.respond(z)) ** 2), np.concatenate(parts)


@given(*SIZES)
@settings(max_examples=25, deadline=None)
def test_a_networks_gradient_is_the_readable_one_and_that_of_autograd(seed, d, n, length, width):
    for size in (0, width):
        start, data = case(seed, d, n, length, size)
        loss, v, square = by_autograd(start, data)
        scale = 1e-11 * (1 + np.abs(v).max())
        assert readable(start, data)[0] == pytest.approx(loss, rel=1e-10, abs=1e-14)
        assert_allclose(readable(start, data)[1], v, rtol=1e-9, atol=scale)
        for name, given_losses in losses_of(start, data):
            theta = flatten(start)
            out = np.full_like(theta, np.nan)
            assert epochs.forward(theta, *given_losses) == pytest.approx(loss, rel=1e-9, abs=1e-13)
            epochs.backward(theta, out, *given_losses)
            assert_allclose(out, v, rtol=1e-9, atol=scale, err_msg=name)
            found = epochs._square_of_full_A(theta, *given_losses)
            assert found == pytest.approx(square, rel=1e-8, abs=1e-18 + scale**2)
            assert epochs.forward(theta, *given_losses) == pytest.approx(loss, rel=1e-9, abs=1e-13)


def test_a_network_that_is_off_pulls_nothing_and_one_at_zero_stays_there():
    start, data = case(3)
    first, hidden, last = (np.array(layer) for layer in start.mlp)
    first[0, 0] = 0.0
    for layers in (
        (first, hidden, last),
        (0 * first, hidden, last),
        (first, -np.abs(hidden), last),
    ):
        start = Network(start.ssm, layers)
        _, v, _ = by_autograd(start, data)
        for name, given_losses in losses_of(start, data):
            out = np.full_like(v, np.nan)
            epochs.forward(flatten(start), *given_losses)
            epochs.backward(flatten(start), out, *given_losses)
            assert_allclose(out, v, rtol=1e-10, atol=1e-13, err_msg=name)
    still = Network(DiagonalSSM([0.5], [0.0], [1.0]), start.mlp)  # z = 0: no sign, no pull on it
    for _, given_losses in losses_of(still, data):
        out = np.full(len(flatten(still)), np.nan)
        epochs.forward(flatten(still), *given_losses)
        epochs.backward(flatten(still), out, *given_losses)
        assert_array_equal(out, 0.0)


def test_padding_changes_nothing_and_stays_zero():
    start, data = case(4)
    (d, width), (wide_d, wide) = (2, 3), (5, 4)
    plain, padded = (
        epochs.sequences(np.array(data.x), np.array(data.y), d, width, size, full=True)
        for size in ((d, width), (wide_d, wide))
    )
    from ssm_poison_lib.descent import _positions

    where = _positions(d, width, wide_d, wide)
    theta = np.zeros(3 * wide_d + wide * (wide + 2))
    theta[where] = flatten(start)
    v, out = np.zeros(len(where)), np.full(len(theta), np.nan)
    assert epochs.forward(theta, None, None, padded) == epochs.forward(
        flatten(start), None, None, plain
    )
    epochs.backward(theta, out, None, None, padded)
    epochs.backward(flatten(start), v, None, None, plain)
    assert_allclose(out[where], v, rtol=1e-13)
    assert_array_equal(np.delete(out, where), 0.0)


@given(st.integers(0, 10**6), st.integers(1, 19), st.sampled_from([np.float32, np.float64]))
@settings(max_examples=20, deadline=None)
def test_sums_are_sums(seed, size, dtype):
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(2, size)).astype(dtype)
    close = 20 * np.finfo(dtype).eps * (1 + np.abs(left) @ np.abs(right))
    for count in (size, size // 2):
        for in_lanes in (False, True):
            assert (
                abs(sums.dot(left, right, count, in_lanes) - left[:count] @ right[:count]) <= close
            )
    matrix, out = rng.normal(size=(size, 3)), np.full((2, 3), np.nan)
    rows = rng.normal(size=(2, size)) * (rng.uniform(size=(2, size)) < 0.7)
    sums.product(rows, matrix, out)
    assert_allclose(out, rows @ matrix, atol=1e-12)


def test_sums_in_lanes_are_joined_in_the_authors_order():
    """1e8 meets its negative inside a running sum, or not: float32 tells the order."""
    left = np.zeros(18, np.float32)
    left[[0, 8]] = 1e8, -1e8
    left[1:8] = 1, 2, 4, 8, 16, 32, 64
    left[16:] = 128, 256
    ones = np.ones(18, np.float32)
    assert sums.dot(left, ones, 18, True) == left.astype(np.float64).sum()
    assert sums.dot(left, ones, 18, False) != left.astype(np.float64).sum()
    pairs = np.float32([1e8, 1, 3, 5, -1e8, 7, 9, 11])  # (s0 + s4) first
    assert sums.dot(pairs, ones, 8, True) == 36


@pytest.mark.parametrize(
    ("shape", "dtype"), [((3, 5), np.float64), ((7,), np.float32), ((0, 4), np.float64)]
)
def test_room_begins_with_a_cache_line_and_is_zero(shape, dtype):
    for _ in range(5):
        room = sums.aligned(shape, dtype)
        assert room.shape == shape
        assert room.dtype == dtype
        assert room.size == 0 or room.ctypes.data % 64 == 0
        assert room.flags.c_contiguous
        assert_array_equal(room, 0.0)
    assert sums.aligned((2,)).dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adam_is_adam(dtype):
    """Keras' form: epsilon beside the uncorrected root; the last weight is not trained."""
    rng = np.random.default_rng(0)
    theta = rng.normal(size=4).astype(dtype)
    moments, mean, square, weights = np.zeros((2, 4), dtype), 0.0, 0.0, theta.astype(np.float64)
    for epoch in range(1, 6):
        v = (rng.normal(size=4) * [1, 1e-7, 1e3, 1]).astype(dtype)
        adam.adam_step(theta, moments, v, 3, 0.01, epoch)
        mean = 0.9 * mean + 0.1 * v.astype(np.float64)
        square = 0.999 * square + 0.001 * v.astype(np.float64) ** 2
        rate = 0.01 * np.sqrt(1 - 0.999**epoch) / (1 - 0.9**epoch)
        weights[:3] += (rate * mean / (np.sqrt(square) + 1e-7))[:3]
        assert_allclose(theta, weights, rtol=20 * np.finfo(dtype).eps * epoch, atol=0)
    assert theta.dtype == moments.dtype == dtype


def test_adam_is_that_of_torch():
    """Torch adds epsilon to the corrected root: far above it the two are one."""
    theta = np.array([1.0, -2.0, 3.0])
    weights = torch.tensor(theta, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.05, eps=0.0)
    moments = np.zeros((2, 3))
    for epoch in range(1, 9):
        optimizer.zero_grad()
        (weights**4).sum().backward()
        adam.adam_step(theta, moments, -4 * theta**3, 3, 0.05, epoch)
        optimizer.step()
    assert_allclose(theta, weights.detach().numpy(), rtol=1e-6)


def quirks(**changes):
    plain = {"learning_rate": 0.02, "adam": False, "normalized": False, "off_diagonal": False}
    return epochs.Quirks(**plain | {"arrays": 3, "reset": False, "stop_loss": -1.0} | changes)


def ends_of(start):
    sizes = [start.ssm.state_dim] * 3 + [layer.size for layer in start.mlp]
    return np.cumsum([0, *sizes])


def readable_epochs(start, data, rule, count):
    """The loop of epochs as one would write it, by autograd."""
    theta, ends = flatten(start), ends_of(start)
    moments, mean_norm, d = np.zeros((2, len(theta))), 0.0, start.ssm.state_dim

    def network(theta):
        layers = tuple(
            theta[a:b].reshape(layer.shape)
            for a, b, layer in zip(ends[3:], ends[4:], start.mlp, strict=False)
        )
        return Network(DiagonalSSM(*theta[: 3 * d].reshape(3, d)), layers)

    losses, judged = [], []
    for epoch in range(1, count + 1):
        _, v, square = by_autograd(network(theta), data)
        parts = [v[a:b] for a, b in itertools.pairwise(ends[: rule.arrays + 1])]
        norms = [np.linalg.norm(part) for part in parts]
        if rule.off_diagonal:
            norms[0] = np.sqrt(square)
        step = rule.learning_rate
        if rule.normalized:
            mean_norm = 0.8 * mean_norm + 0.2 * sum(norms)
            step = rule.learning_rate / (np.sqrt(mean_norm / (1 - 0.8**epoch)) + 1e-6)
        trained = ends[rule.arrays]
        if rule.adam:
            adam.adam_step(theta, moments, v, trained, step, epoch)
        else:
            theta[:trained] += step * v[:trained]
        judged.append(by_autograd(network(theta), data)[0])
        if rule.reset:
            theta[d : 3 * d] = 1.0
        losses.append(by_autograd(network(theta), data)[0])
    return theta, mean_norm, losses, judged


@pytest.mark.parametrize("width", [0, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalized": True},
        {"normalized": True, "off_diagonal": True, "reset": True},
        {"normalized": True, "off_diagonal": True, "arrays": 1},
        {"adam": True},
        {"adam": True, "arrays": 1, "reset": True},
    ],
)
def test_epochs_are_those_of_the_readable_loop(width, changes):
    start, data = case(8, width=width)
    rule = quirks(**{"arrays": 6 if width else 3} | changes)
    expected, norm, losses, judged = readable_epochs(start, data, rule, 5)
    for name, given_losses in losses_of(start, data):
        theta = flatten(start)
        arrays = (np.zeros((2, len(theta))), np.zeros(len(theta)))
        head, place = (theta, *arrays), (start.ssm.state_dim, ends_of(start))
        done, mean_norm, loss, seen = epochs.train(*head, 0.0, 0, 2, *place, rule, *given_losses)
        assert (done, loss, seen) == (
            2,
            pytest.approx(losses[1], rel=1e-9),
            pytest.approx(judged[1], rel=1e-9),
        )
        done, mean_norm, loss, seen = epochs.train(
            *head, mean_norm, 2, 3, *place, rule, *given_losses
        )
        assert (done, loss) == (3, pytest.approx(losses[4], rel=1e-9))
        assert mean_norm == pytest.approx(norm, rel=1e-9)
        assert_allclose(theta, expected, rtol=1e-9, atol=1e-12, err_msg=name)


def test_the_loop_ends_at_its_loss_and_where_numbers_end():
    start, data = case(8, width=0)
    _, _, losses, _ = readable_epochs(start, data, quirks(), 4)
    assert sorted(losses, reverse=True) == losses
    for _, given_losses in losses_of(start, data):

        def run(count, given_losses=given_losses, **changes):
            theta = flatten(start)
            arrays = (theta, np.zeros((2, len(theta))), np.zeros(len(theta)))
            return epochs.train(
                *arrays, 0.0, 0, count, 2, ends_of(start), quirks(**changes), *given_losses
            )

        assert run(9, stop_loss=losses[2] * (1 + 1e-9))[0] == 3
        assert run(0)[0] == 0
        assert run(0)[2] == run(0)[3] == pytest.approx(by_autograd(start, data)[0])
        assert run(3, stop_loss=1e9)[0] == 1  # the first epoch is done before it is judged
        assert run(400, learning_rate=1e9)[0] < 20
        done, _, loss, judged = run(9, reset=True, stop_loss=losses[0] * (1 + 1e-9))
        assert (done, judged) == (1, pytest.approx(losses[0]))  # judged before the reset
        assert loss != judged


@pytest.mark.parametrize("width", [0, 3])
def test_fixed_steps_converge_to_the_flow_with_order_one(width):
    start, data = case(8, width=width)

    def end(steps):
        rule = quirks(learning_rate=0.2 / steps, arrays=6 if width else 3)
        theta = flatten(start)
        arrays = (theta, np.zeros((2, len(theta))), np.zeros(len(theta)))
        given_losses = next(losses_of(start, data))[1]
        epochs.train(*arrays, 0.0, 0, steps, 2, ends_of(start), rule, *given_losses)
        return theta

    ends = [end(steps) for steps in (16, 32, 64, 128)]
    moves = [np.abs(fine - coarse).max() for coarse, fine in itertools.pairwise(ends)]
    assert moves[0] > 1e-5
    for coarse, fine in itertools.pairwise(moves):
        assert coarse / fine == pytest.approx(2.0, abs=0.15)


def test_a_teacher_labels_in_its_own_precision():
    start, data = case(5)
    for dtype in (np.float32, np.float64):
        x = np.array(data.x, dtype)
        problem = epochs.sequences(x, np.zeros(len(x), dtype), 2, 3, (2, 3), full=False)
        labels = epochs.network_outputs(flatten(start).astype(dtype), problem)
        assert labels.dtype == dtype
        expected = start.last_output(data.x)
        assert_allclose(
            labels, expected, rtol=0, atol=20 * np.finfo(dtype).eps * np.abs(expected).max()
        )
        assert problem.full.size == 0
    # An SSM alone, eight states: C = 1e8, 1, ..., -1e8 cancels if the sums run in lanes.
    C = np.float32([1e8, 1, 3, 5, -1e8, 7, 9, 11])
    theta = np.concatenate([np.ones(16, np.float32), C])
    problem = epochs.sequences(
        np.ones((1, 1), np.float32), np.zeros(1, np.float32), 8, 0, (8, 0), full=False
    )
    assert epochs.network_outputs(theta, problem) == 36
    assert epochs.forward(theta, None, None, problem) != 36**2


# Runge-Kutta-Chebyshev


def flow_case():
    """A start whose flow meets no kink: positive inputs and weights keep every unit on."""
    rng = np.random.default_rng(1)
    layers = tuple(rng.uniform(0.2, 0.8, size=shape) for shape in ((1, 3), (3, 3), (3, 1)))
    start = Network(DiagonalSSM(*rng.uniform(0.2, 0.8, size=(3, 2))), layers)
    x = rng.uniform(0.1, 1.0, size=(3, 4))
    data = sequences.TrainingSet(x, networks.authors_teacher(3))
    theta = flatten(start)
    problem = problem_by_gains(start, data)
    v = np.empty_like(theta)
    rkc._gradient(theta, v, problem)
    return theta, v, problem


def steps_of(theta, v, problem, h, count, s):
    y, slope = theta.copy(), v.copy()
    older, newer, out = (np.empty_like(theta) for _ in range(3))
    for _ in range(count):
        loss = rkc.step(y, slope, h, s, problem, older, newer, out)
        y, slope = newer.copy(), out.copy()
    return y, slope, loss


@pytest.mark.parametrize("s", [2, 3, 6])
def test_steps_converge_with_order_two_and_their_estimate_with_order_three(s):
    theta, v, problem = flow_case()
    ends = [steps_of(theta, v, problem, 0.01 / count, count, s)[0] for count in (4, 8, 16, 64)]
    errors = [np.abs(end - ends[-1]).max() for end in ends[:-1]]
    assert errors[0] > 1e-7
    assert errors[0] / errors[1] == pytest.approx(4.0, abs=0.7)
    assert errors[1] / errors[2] == pytest.approx(4.0, abs=0.7)
    estimates = []
    for h in (0.004, 0.002, 0.001):
        y, slope, _ = steps_of(theta, v, problem, h, 1, s)
        estimates.append(rkc.error_of_step(theta, v, y, slope, h, 1e-3, 1e-6))
        size = 1e-6 + 1e-3 * np.maximum(np.abs(theta), np.abs(y))
        by_hand = (0.8 * (theta - y) + 0.4 * h * (v + slope)) / size
        assert estimates[-1] == pytest.approx(np.sqrt(np.mean(by_hand**2)))
    for coarse, fine in itertools.pairwise(estimates):
        assert coarse / fine == pytest.approx(8.0, abs=1.2)


def test_steps_are_stable_as_far_as_their_stages_say():
    """Steps far beyond what an ordinary method stands: a flow near its rest stays there."""
    assert [rkc.stages(h, 100.0) for h in (0.0, 0.1, 1.0, 10.0)] == [2, 5, 13, 40]
    theta, v, problem = flow_case()
    _, _, _, _, kept, _, _, _ = integrate(problem, theta, [3.0])
    y, slope, room = kept[0], np.empty_like(v), (np.empty_like(v), np.empty_like(v))
    rkc._gradient(y, slope, problem)
    radius, _ = rkc._radius(y, slope, problem, -slope, *room)
    h = 100.0 / radius  # an ordinary method stands 2
    for s, stands in ((rkc.stages(h, radius), True), (6, False)):
        end = steps_of(y, slope, problem, h, 12, s)[0]
        assert (np.abs(end - y).max() < 0.3) == stands


def test_the_radius_is_that_of_the_hessian_with_a_margin():
    theta, v, problem = flow_case()
    H, other = np.empty((len(theta), len(theta))), np.empty_like(v)
    for i in range(len(theta)):
        moved = theta.copy()
        moved[i] += 1e-6
        rkc._gradient(moved, other, problem)
        H[i] = (v - other) / 1e-6
    exact = np.abs(np.linalg.eigvalsh((H + H.T) / 2)).max()
    for direction in (-v, np.zeros_like(v)):
        found, used = rkc._radius(theta, v, problem, direction, np.empty_like(v), np.empty_like(v))
        assert 1.1 * exact < found < 1.25 * exact
        assert 2 <= used <= 50


def integrate(problem, theta, times, **changes):
    options = {
        "marks": (),
        "rtol": 1e-6,
        "atol": 1e-8,
        "rest": 1e-20,
        "max_evaluations": 10**5,
    } | changes
    marks = np.array(options.pop("marks"), dtype=float)
    return rkc.integrate(theta, problem, np.array(times, dtype=float), marks, *options.values())


def test_the_flow_is_the_one_of_small_steps_at_every_time_that_is_asked():
    theta, v, problem = flow_case()
    how, time, evaluations, steps, kept, losses, _, _ = integrate(problem, theta, [0.01, 0.03])
    assert (how, time) == (rkc.End.END_OF_TIME, 0.03)
    assert 2 * steps < evaluations < 10**5
    for row, t in enumerate((0.01, 0.03)):
        end, _, loss = steps_of(theta, v, problem, t / 64, 64, 3)
        assert_allclose(kept[row], end, atol=2e-5)
        assert losses[row] == pytest.approx(loss, rel=1e-4)


def test_marks_limits_and_rest_of_a_flow():
    theta, _, problem = flow_case()
    first = epochs.forward(theta, None, problem, None)
    marks = (2 * first, 0.9 * first, 0.0)
    how, _, _, _, kept, losses, at_mark, when = integrate(problem, theta, [0.01, 0.03], marks=marks)
    assert_array_equal(at_mark[0], theta)
    assert when[0] == 0.0 < when[1] < 0.03
    loss = epochs.forward(at_mark[1], None, problem, None)
    assert 0.6 * first < loss <= 0.9 * first
    assert np.isnan(at_mark[2]).all()
    assert np.isnan(when[2])
    assert losses[1] < losses[0] < first
    how, time, _, _, kept, losses, _, _ = integrate(problem, theta, [0.001, 9.0], rest=0.9 * first)
    assert how == rkc.End.AT_REST
    assert time < 9.0
    assert losses[1] <= 0.9 * first
    how, time, evaluations, _, kept, losses, _, _ = integrate(
        problem, theta, [5.0, 9.0], max_evaluations=40
    )
    assert how == rkc.End.OUT_OF_EVALUATIONS
    assert 40 <= evaluations < 120
    assert time < 5.0
    assert_array_equal(kept[0], kept[1])
    assert losses[0] == losses[1] == epochs.forward(kept[0], None, problem, None)
    assert integrate(problem, theta, [1.0], rtol=1e-300, atol=1e-300)[0] == rkc.End.FAILED


def test_a_looser_tolerance_takes_fewer_evaluations_and_a_strict_one_errs_less():
    theta, _, problem = flow_case()
    exact = integrate(problem, theta, [0.03], rtol=1e-9, atol=1e-11)[4][0]
    errors, costs = [], []
    for rtol in (1e-3, 1e-5):
        _, _, evaluations, _, kept, _, _, _ = integrate(
            problem, theta, [0.03], rtol=rtol, atol=rtol / 100
        )
        errors.append(np.abs(kept[0] - exact).max())
        costs.append(evaluations)
    assert errors[1] < errors[0] < 3e-3
    assert errors[1] < 1e-4
    assert costs[0] < costs[1]
