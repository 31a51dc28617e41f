"""Gradient flow of a network: its gradient against autograd, its path against tiny steps, its ends,
refusals.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import descent, metrics, networks, paper
from ssm_poison_lib._engines import gains, rkc
from ssm_poison_lib._trajectory import FlowStatus
from ssm_poison_lib.descent import Descent, Rule, flatten
from ssm_poison_lib.flow import FlowError
from ssm_poison_lib.network_flow import network_flow
from ssm_poison_lib.networks import Network
from ssm_poison_lib.sequences import TrainingSet
from ssm_poison_lib.ssm import DiagonalSSM
from ssm_poison_lib.torch_reference import SSMNetwork


def case(seed, d=3, n=6, length=5, width=4):
    rng = np.random.default_rng(seed)
    ssm = DiagonalSSM(*rng.uniform(-0.8, 0.8, size=(3, d)))
    layers = tuple(rng.normal(size=shape) for shape in ((1, width), (width, width), (width, 1)))
    return Network(ssm, layers), TrainingSet(
        rng.normal(size=(n, length)), networks.authors_teacher(width)
    )


@given(
    st.integers(0, 10**6),
    st.integers(1, 20),
    st.integers(1, 40),
    st.integers(1, 10),
    st.integers(1, 26),
)
@settings(max_examples=25, deadline=None)
def test_the_gradient_is_that_of_autograd(seed, d, n, length, width):
    start, data = case(seed, d, n, length, width)
    theta = flatten(start)
    velocity = np.empty_like(theta)
    x = np.ascontiguousarray(data.x[:, ::-1].T)
    problem = gains.gains(x, np.array(data.y), d, width)
    loss = gains.forward_gains(theta, problem)
    gains.backward_gains(theta, velocity, problem)
    module = SSMNetwork(start)
    expected = torch.mean(
        (module(torch.tensor(np.array(data.x))) - torch.tensor(np.array(data.y))) ** 2
    )
    expected.backward()
    parts = [torch.diag(module.A.grad), module.B.grad, module.C.grad, *(w.grad for w in module.mlp)]
    by_torch = np.concatenate([part.numpy().ravel() for part in parts])
    assert loss == pytest.approx(expected.item(), rel=1e-11)
    assert_allclose(-velocity, by_torch, rtol=1e-9, atol=1e-11 * (1 + np.abs(by_torch).max()))


@pytest.mark.parametrize("seed", [0, 3, 8, 11])
def test_tiny_steps_of_gradient_descent_follow_the_flow(seed):
    start, data = case(seed)
    flow = network_flow(start, data, times=[1.0], rtol=1e-8, atol=1e-10)
    distances = []
    for step in (1e-4, 1e-5):
        run = Descent(start, data, Rule(step, max_epochs=round(1 / step))).advance()
        distances.append(np.abs(flatten(run.network) - flow.weights[0]).max())
    moved = np.abs(flow.weights[0] - flatten(start)).max()
    assert moved > 0.03
    assert distances[1] < 5e-3 * moved
    # the distance is the descent's: it shrinks with the step
    assert distances[1] < 0.3 * distances[0]


def test_a_stricter_tolerance_changes_little_and_less():
    start, data = case(8)
    ends = [
        network_flow(start, data, times=[3.0], rtol=r, atol=r / 100).weights[0]
        for r in (1e-3, 1e-5, 1e-8)
    ]
    coarse, fine = (np.abs(end - ends[2]).max() for end in ends[:2])
    assert fine < 1e-3
    assert fine < coarse / 3


def test_it_comes_to_rest_far_below_the_authors_threshold_and_keeps_what_was_asked():
    setting = paper.EXPERIMENTS["ssm_in_nn_poison__s0"]
    start, data = setting.start(4552), setting.training_set(4552, "baseline")
    times, marks = np.geomspace(1, 1e14, 15), (1e-2, 1e-6, 1e-30)
    flow = network_flow(start, data, times=times, log_at_loss=marks)
    assert flow.status == FlowStatus.CONVERGED
    assert flow.fitted
    assert flow.loss[-1] <= 1e-20
    assert flow.evaluations < 1_000_000
    assert (np.diff(flow.loss) <= 0).all()
    for row in (0, -1):
        assert metrics.loss(flow.network(row), data) == pytest.approx(
            flow.loss[row], rel=1e-3, abs=1e-24
        )
    for k in (0, 1):
        loss = metrics.loss(flow.network_at_loss(k), data)
        assert 0.2 * marks[k] < loss <= marks[k] * (1 + 1e-9)
    assert flow.network_at_loss(2) is None
    assert 1e8 < flow.end < 1e10
    assert_array_equal(flow.weights[-1], flow.weights[-2])


def test_a_layer_keeps_its_balance():
    """first_i^2 - sum_k hidden_ik^2 is conserved by the flow of a ReLU network, not by finite
    steps.
    """
    start, data = case(8)

    def balance(network):
        first, hidden, _ = network.mlp
        return first[0] ** 2 - (hidden**2).sum(axis=1)

    flow = network_flow(start, data, times=[5.0], rtol=1e-8, atol=1e-10)
    moved = np.abs(flow.network().mlp[1] - start.mlp[1]).max()
    assert moved > 0.1
    assert_allclose(balance(flow.network()), balance(start), atol=1e-4 * moved)


def test_the_limit_of_evaluations_is_reported():
    start, data = case(1)
    flow = network_flow(start, data, times=[1e6], max_evaluations=50)
    assert flow.status == FlowStatus.FAILED_STEP_LIMIT
    assert not flow.fitted
    assert flow.end < 1e6
    for name in ("A", "B", "C"):
        assert_array_equal(getattr(flow.network().ssm, name), getattr(flow, name)[0])
    assert network_flow(start, data, times=[1e-3]).status == FlowStatus.END_OF_TIME


def test_wrong_starts_and_times_are_refused(monkeypatch):
    start, data = case(0)
    with pytest.raises(
        ValueError, match="start must be a Network with two hidden layers of one width"
    ):
        network_flow(Network(start.ssm), data, times=[1.0])
    for times in ([0.0, 1.0], [2.0, 1.0]):
        with pytest.raises(ValueError, match="times must be > 0 and increasing"):
            network_flow(start, data, times=times)
    with pytest.raises(ValueError, match="log_at_loss must be decreasing"):
        network_flow(start, data, times=[1.0], log_at_loss=(1e-3, 1e-2))
    failed = (
        rkc.End.FAILED,
        0.5,
        9,
        1,
        np.zeros((1, 1)),
        np.array([7.0]),
        np.zeros((0, 1)),
        np.zeros(0),
    )
    monkeypatch.setattr(rkc, "integrate", lambda *_arguments: failed)
    with pytest.raises(FlowError, match=r"the step size vanished at t = 0\.5 of 1, at a loss of 7"):
        network_flow(start, data, times=[1.0])


def test_descent_of_a_network_in_float64_takes_the_same_steps_by_gains_and_by_sequence(monkeypatch):
    """The loop of the authors' float32 runs, in float64, against the one by gains."""
    start, data = case(4)
    rule = Rule(0.003, max_epochs=60, normalized=True)
    assert descent._loss_by(start, data, rule) == "gains"
    by_gains = Descent(start, data, rule).advance()
    monkeypatch.setattr(descent, "_loss_by", lambda *_arguments: "sequences")
    by_sequence = Descent(start, data, rule).advance()
    assert_allclose(flatten(by_sequence.network), flatten(by_gains.network), rtol=1e-10, atol=1e-12)
