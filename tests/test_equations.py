"""The equation of motion: readable and compiled, against autograd and each other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from ssm_poison_lib import equations, sequences, ssm
from ssm_poison_lib._engines import equations as compiled
from ssm_poison_lib.flows import many_flows
from ssm_poison_lib.parametrizations import PARAMETRIZATIONS

MAPS = {  # the book's parametrizations once more, as torch differentiates them
    "free": lambda s: s,
    "exp": torch.exp,
    "exp(-exp)": lambda s: torch.exp(-torch.exp(s)),
    "tanh": torch.tanh,
}
case = given(
    seed=st.integers(0, 10_000),
    length=st.integers(1, 8),
    size=st.integers(1, 4),
    d=st.integers(1, 5),
)


def draw(seed, length, size, d):
    """Entries within every parametrization's interval, B, C, and a training set."""
    rng = np.random.default_rng(seed)
    data = sequences.TrainingSet(rng.normal(size=(size, length)), ssm.teacher("dim=3"))
    return rng.uniform(0.05, 0.95, d), *rng.uniform(-1.1, 1.1, (2, d)), data


def loss(s, B, C, data, entry):
    """The mean squared error by the recurrence, in torch: nothing shared with the formulas."""
    A, x = entry(s), torch.tensor(np.array(data.x))
    state = torch.zeros(len(x), len(A), dtype=torch.float64)
    for t in range(data.length):
        state = A * state + B * x[:, t, None]
    return ((torch.tensor(np.array(data.y)) - state @ C) ** 2).mean()


def close(ours, theirs):
    assert_allclose(ours, theirs, rtol=0, atol=1e-11 * max(np.abs(theirs).max(), 1.0))


@pytest.mark.parametrize("name", MAPS)
@settings(deadline=None, max_examples=25)
@case
def test_velocity_is_minus_the_gradient_by_autograd(name, seed, length, size, d):
    A, B, C, data = draw(seed, length, size, d)
    kind = PARAMETRIZATIONS[name]
    leaves = [torch.tensor(v, requires_grad=True) for v in (kind.parameter(A), B, C)]
    loss(*leaves, data, MAPS[name]).backward()
    target = data.teacher.impulse_response(length)
    moving = equations.velocity(A, B, C, data.gram(), target, slope=kind.slope(A))
    for ours, leaf in zip(moving, leaves, strict=True):
        close(ours, -leaf.grad.numpy())


@pytest.mark.parametrize("train", ["A", "ABC"])
@pytest.mark.parametrize("name", MAPS)
@settings(deadline=None, max_examples=8)
@case
def test_jacobian_is_minus_the_hessian_by_autograd(name, train, seed, length, size, d):
    A, B, C, data = draw(seed, length, size, d)
    s = torch.tensor(PARAMETRIZATIONS[name].parameter(A), requires_grad=True)
    slope = torch.autograd.functional.jvp(MAPS[name], s, torch.ones_like(s), create_graph=True)[1]
    curve = torch.autograd.grad(slope.sum(), s, allow_unused=True)[0] if name != "free" else 0.0 * s
    point = torch.cat([s.detach(), torch.tensor(B), torch.tensor(C)])
    hessian = torch.autograd.functional.hessian(
        lambda point: loss(*point.reshape(3, d), data, MAPS[name]), point
    ).numpy()
    p = d if train == "A" else 3 * d
    target = data.teacher.impulse_response(length)
    J = equations.jacobian(
        A,
        B,
        C,
        data.gram(),
        target,
        train=train,
        slope=slope.detach().numpy(),
        curve=curve.detach().numpy(),
    )
    assert_allclose(J, -hessian[:p, :p], rtol=0, atol=1e-10 * max(1.0, np.abs(hessian).max()))


def test_the_jacobian_is_that_of_A_alone_if_not_told_otherwise():
    A, B, C, data = draw(0, 4, 2, 3)
    given = A, B, C, data.gram(), data.teacher.impulse_response(4)
    np.testing.assert_array_equal(equations.jacobian(*given), equations.jacobian(*given, train="A"))


@settings(deadline=None, max_examples=60)
@case
def test_compiled_is_readable(seed, length, size, d):
    A, B, C, data = draw(seed, length, size, d)
    target, G = data.teacher.impulse_response(length), data.gram()
    power, out = np.empty((length, d)), np.empty((3, d))
    compiled.fill_powers(A, power)
    close(power, equations.powers(A, length))
    compiled.velocity(B, C, G @ (target - power @ (B * C)), power, out)
    close(out, np.array(equations.velocity(A, B, C, G, target)))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), length=st.integers(1, 6), d=st.integers(1, 4))
def test_complex_entries_obey_the_same_formula(seed, length, d):
    """With M the real part of the sum, the gradient by real and imaginary part is the conjugate."""
    rng = np.random.default_rng(seed)
    parts = [torch.tensor(rng.uniform(-0.8, 0.8, (2, d)), requires_grad=True) for _ in range(3)]
    a, b, c = (torch.complex(part[0], part[1]) for part in parts)
    target, weight = torch.tensor(rng.normal(size=length)), torch.tensor(rng.uniform(0, 2, length))
    M = torch.stack([(b * c * a**m).sum().real for m in range(length)])
    (weight * (target - M) ** 2).sum().div(2).backward()
    a, b, c = (z.detach().numpy() for z in (a, b, c))
    by_a, by_w = equations.pull(
        equations.powers(a, length), (weight * (target - M)).detach().numpy().astype(complex)
    )
    for ours, part in zip((b * c * by_a, c * by_w, b * by_w), parts, strict=True):
        close(np.stack([ours.real, -ours.imag]), -part.grad.numpy())


def test_many_runs_are_the_same_with_a_leading_axis():
    rng = np.random.default_rng(0)
    A, e = rng.uniform(-1, 1, (7, 4)), rng.normal(size=(7, 6))
    power = equations.powers(A, 6)
    assert power.shape == (7, 6, 4)
    by_a, by_w = equations.pull(power, e)
    for i in range(7):
        one = equations.pull(equations.powers(A[i], 6), e[i])
        assert_allclose((by_a[i], by_w[i]), one, rtol=1e-14)


@pytest.mark.parametrize("equal", [True, False])
@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(2, 8),
    size=st.integers(1, 9),
    d=st.integers(1, 5),
)
def test_the_batched_flow_begins_with_the_velocity(equal, seed, length, size, d):
    """What a run moves in a time of 1e-8, by gaps (equal weights) and entry by entry, any rank."""
    A, B, C, data = draw(seed, length, size, d)
    w = np.ones(d) if equal else B * C
    target, G = data.teacher.impulse_response(length), data.gram()
    moved = (many_flows(A, (G, target), w=w, t_end=1e-8, workers=1).A[0] - A) / 1e-8
    v = equations.velocity(A, w, np.ones(d), G, target)[0]
    bend = (
        equations.jacobian(A, w, np.ones(d), G, target) @ v
    )  # of the path, so that what is left is of second order in the time
    assert_allclose(moved, v + 0.5e-8 * bend, rtol=0, atol=1e-7 * max(1.0, np.abs(v).max()))
