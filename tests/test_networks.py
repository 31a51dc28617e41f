"""Networks: outputs, labels, xi, gamma, errors, and the PyTorch module."""

import itertools

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import metrics, networks, ssm
from ssm_poison_lib.network_flow import network_flow
from ssm_poison_lib.networks import Network
from ssm_poison_lib.sequences import TrainingSet
from ssm_poison_lib.ssm import DiagonalSSM
from ssm_poison_lib.torch_reference import SSMNetwork


def random_network(seed, d=4, width=5, hidden=2):
    rng = np.random.default_rng(seed)
    sizes = [1, *[width] * hidden, 1]
    layers = tuple(rng.normal(size=shape) for shape in itertools.pairwise(sizes))
    return Network(DiagonalSSM(*rng.uniform(-0.9, 0.9, size=(3, d))), layers), rng.normal(
        size=(7, 6)
    )


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 9), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_module_and_network_are_the_same_function(seed, d, width, hidden):
    network, x = random_network(seed, d, width, hidden)
    module = SSMNetwork(network)
    assert_allclose(
        module(torch.tensor(x)).detach().numpy(), network.last_output(x), rtol=1e-9, atol=1e-12
    )
    back = module.to_network()
    assert_array_equal(back.ssm.A, network.ssm.A)
    assert len(back.mlp) == len(network.mlp)
    assert (
        SSMNetwork(network, "float32")(torch.tensor(x, dtype=torch.float32)).dtype == torch.float32
    )


def test_without_an_mlp_it_is_the_ssm():
    network, x = random_network(1, hidden=2)
    alone = Network(network.ssm)
    assert_array_equal(alone.last_output(x), network.ssm.last_output(x))
    assert_array_equal(alone.xi(x[:, 0]), np.ones(len(x)))


def test_teacher_sums_its_inputs_and_labels_are_its_outputs():
    teacher = networks.authors_teacher(15)
    _, x = random_network(2)
    expected = 7.5 * np.maximum(x.sum(axis=1), 0.0)
    assert_allclose(teacher.last_output(x), expected, rtol=1e-12)
    data = TrainingSet(x, teacher)
    assert_array_equal(data.y, teacher.last_output(x))
    with pytest.raises(TypeError):
        TrainingSet(x, teacher, y=np.zeros(len(x)))
    with pytest.raises(ValueError, match="read-only"):
        data.y[0] = 1.0


def test_xi_is_the_derivative_of_the_mlp():
    network, _ = random_network(3)
    z = np.linspace(-2, 2, 9) + 0.01
    slope = (network.respond(z + 1e-6) - network.respond(z - 1e-6)) / 2e-6
    assert_allclose(network.xi(z), slope, rtol=1e-6, atol=1e-8)


def test_gamma_gives_the_velocity_of_A_inside_a_network():
    network, x = random_network(4)
    data = TrainingSet(x, networks.authors_teacher(5))
    module = SSMNetwork(network)
    torch.mean((module(torch.tensor(np.array(x))) - torch.tensor(np.array(data.y))) ** 2).backward()
    powers = network.ssm.A[None, :] ** np.arange(x.shape[1] - 1)[:, None]
    velocity = network.ssm.w * (metrics.gamma(network, data) @ powers)
    assert_allclose(velocity, -np.diag(module.A.grad.numpy()), rtol=1e-9, atol=1e-12)


def test_gamma_and_loss_without_an_mlp_are_those_of_the_linear_student():
    network, x = random_network(5)
    data = TrainingSet(x, ssm.teacher("dim=2"))
    alone = Network(network.ssm)
    assert_allclose(metrics.gamma(alone, data), metrics.gamma(network.ssm, data), rtol=1e-12)
    assert metrics.loss(alone, data) == pytest.approx(metrics.loss(network.ssm, data), rel=1e-12)


def test_relative_error_is_zero_for_the_teacher_and_one_for_silence():
    teacher = networks.authors_teacher(3)
    _, x = random_network(6)
    assert networks.relative_error(teacher, teacher, x) == 0.0
    silent = Network(teacher.ssm, (*teacher.mlp[:-1], np.zeros((3, 1))))
    assert networks.relative_error(silent, teacher, x) == 1.0
    with pytest.raises(
        ValueError, match="x must hold a sequence that the teacher does not answer with 0"
    ):
        networks.relative_error(silent, silent, x)


@pytest.fixture
def as_a_reader_runs_it():
    """Without the tests' type checker, which answers wrong types before the library can."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_other_objects_are_named():
    network, x = random_network(1, width=5)
    data = TrainingSet(x, networks.authors_teacher(5))
    times = {"times": [1.0]}
    for call, message in [
        (lambda: Network([0.1]), "ssm must be a DiagonalSSM; got list"),
        (lambda: Network(network.ssm, 3), "mlp must be a tuple or list; got int"),
        (lambda: metrics.loss([0.1], data), "student must be a DiagonalSSM or Network; got list"),
        (lambda: metrics.loss(network, x), "training_set must be a TrainingSet; got"),
        (lambda: metrics.gamma(None, data), "student must be a DiagonalSSM or Network; got None"),
        (lambda: metrics.gamma(network, None), "training_set must be a TrainingSet"),
        (lambda: networks.relative_error(network, None, x), "teacher must be a Network; got None"),
        (lambda: networks.relative_error("a", network, x), "student must be a Network; got str"),
        (
            lambda: network_flow(network.ssm, data, **times),
            "start must be a Network; got DiagonalSSM",
        ),
        (lambda: network_flow(network, x, **times), "training_set must be a TrainingSet; got"),
    ]:
        with pytest.raises(TypeError, match=f"^{message}"):
            call()
    with pytest.raises(ValueError, match="width must be an integer from 1 to 10000"):
        networks.authors_teacher(10**9)
    with pytest.raises(ValueError, match="max_evaluations must be an integer from 1 to 1000000000"):
        network_flow(network, data, **times, max_evaluations=10**12)
    with pytest.raises(ValueError, match="each entry of log_at_loss must be a finite number"):
        network_flow(network, data, **times, log_at_loss=[np.nan])


def test_what_leaves_the_range_of_float64_is_an_error():
    network, x = random_network(1)
    huge = Network(network.ssm, tuple(layer * 1e150 for layer in network.mlp))
    data = TrainingSet(x, networks.authors_teacher(5))
    for call, message in [
        (lambda: huge.respond([1.0]), "z must be smaller in size: the network's output is beyond"),
        (lambda: huge.xi([1.0]), "z must be smaller in size: xi is beyond"),
        (lambda: TrainingSet(x, huge), "the network's output is beyond the range of float64"),
        (lambda: metrics.loss(huge, data), "beyond the range of float64"),
        (lambda: metrics.gamma(huge, data), "beyond the range of float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    half = Network(network.ssm, tuple(layer * 1e60 for layer in network.mlp))
    with pytest.raises(
        ValueError, match="training_set must be smaller in size: the loss is beyond"
    ):
        metrics.loss(half, data)


def test_wrong_networks_are_refused():
    network, _ = random_network(7)
    with pytest.raises(ValueError, match=r"matching shapes; got \(1, 5\), \(4, 1\)"):
        Network(network.ssm, (np.ones((1, 5)), np.ones((4, 1))))
    with pytest.raises(ValueError, match="from 1 number to 1 number"):
        Network(network.ssm, (np.ones((1, 5)), np.ones((5, 2))))
    module = SSMNetwork(network)
    with torch.no_grad():
        module.A[0, 1] = 0.5
    with pytest.raises(ValueError, match="A must be diagonal"):
        module.to_network()
    with pytest.raises(ValueError, match="precision must be one of"):
        SSMNetwork(network, "half")
