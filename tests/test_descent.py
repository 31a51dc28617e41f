"""Compiled training against an eager PyTorch loop, stopping and continuing, many runs at once, refusals."""

import dataclasses
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import descent, eager, flow, networks, sequences, ssm
from ssm_poison_lib.descent import Descent, DescentError, Rule
from ssm_poison_lib.ssm import DiagonalSSM

PLAIN = Rule(learning_rate=0.003, max_epochs=40)
AUTHORS = dataclasses.replace(PLAIN, normalized=True, off_diagonal=True)
VARIANTS = {
    "plain": PLAIN,
    "normalized": dataclasses.replace(PLAIN, normalized=True),
    "full matrix": AUTHORS,
    "reset": dataclasses.replace(AUTHORS, reset_BC=True),
    "A only": dataclasses.replace(AUTHORS, train="A"),
    "Adam": dataclasses.replace(PLAIN, optimizer="adam"),
    "Adam, A only": dataclasses.replace(PLAIN, optimizer="adam", train="A"),
    "stop": dataclasses.replace(AUTHORS, stop_loss=0.5, epochs_after_stop=7),
}


def linear_case(seed, d=5, n=4, length=6):
    rng = np.random.default_rng(seed)
    data = sequences.TrainingSet(rng.normal(size=(n, length)), ssm.teacher("dim=3"))
    return DiagonalSSM(*rng.uniform(-0.8, 0.8, size=(3, d))), data


def network_case(seed, d=5, n=4, length=6, width=3, hidden=True):
    rng = np.random.default_rng(seed)
    start, data = linear_case(seed, d, n, length)
    layers = [rng.normal(size=shape) for shape in ((1, width), (width, width), (width, 1))] if hidden else []
    teacher = networks.authors_teacher(width) if hidden else networks.Network(ssm.teacher("dim=3"))
    return networks.Network(start, tuple(layers)), networks.NetworkTrainingSet(data.x, teacher)


CASES = {
    "by lag": linear_case,
    "by sequence": lambda seed: network_case(seed, hidden=False),
    "with an MLP": network_case,
}


def all_weights(network):
    return np.concatenate(
        [network.ssm.A, network.ssm.B, network.ssm.C, *(layer.ravel() for layer in network.mlp)]
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled_epochs_equal_the_eager_loop(case, variant):
    start, data = CASES[case](3)
    rule = VARIANTS[variant]
    run = Descent(start, data, rule, log_at=range(1, 41)).advance()
    expected, losses, stop = eager.train_eagerly(start, data, rule, 40)
    assert_allclose(all_weights(run.network), all_weights(expected), rtol=1e-8, atol=1e-10)
    assert (run.stop_epoch, run.epoch) == (stop, len(losses))
    if not rule.reset_BC:  # a run's log shows the loss after the reset
        assert_allclose(run.log.loss, losses, rtol=1e-8)


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 20), st.integers(1, 8), st.integers(1, 18))
@settings(max_examples=15, deadline=None)
def test_one_step_equals_autograd_for_any_size(seed, d, n, length, width):
    for start, data in (linear_case(seed, d, n, length), network_case(seed, d, n, length, width)):
        rule = dataclasses.replace(AUTHORS, max_epochs=1)
        moved = all_weights(Descent(start, data, rule).advance().network)
        expected = all_weights(eager.train_eagerly(start, data, rule, 1)[0])
        assert_allclose(moved, expected, rtol=1e-9, atol=1e-11)


def test_float32_is_float32_and_close_to_float64():
    start, data = network_case(5)
    exact = Descent(start, data, AUTHORS).advance().network
    rounded = Descent(start, data, dataclasses.replace(AUTHORS, precision="float32")).advance().network
    difference = np.abs(all_weights(rounded) - all_weights(exact)).max()
    assert 1e-9 < difference < 1e-4
    assert_array_equal(all_weights(rounded), all_weights(rounded).astype(np.float32))


def test_small_steps_follow_gradient_flow():
    start, data = linear_case(8)
    trajectory = flow.gradient_flow(start, data, t_end=1.0, train="ABC")
    errors = []
    for step in (1e-3, 1e-4):
        run = Descent(start, data, Rule(step, max_epochs=round(1 / step))).advance()
        errors.append(np.abs(run.network.ssm.A - trajectory.A[-1]).max())
    assert errors[0] < 0.05
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)  # first order in the step


def test_stop_is_the_first_epoch_at_or_below_the_threshold():
    start, data = linear_case(2)
    free = Descent(start, data, PLAIN, log_at=range(41)).advance()
    threshold = free.log.loss[17]
    assert np.all(free.log.loss[:17] > threshold)
    rule = dataclasses.replace(PLAIN, stop_loss=float(threshold), epochs_after_stop=5)
    run = Descent(start, data, rule, log_after_stop=(1, 4)).advance()
    assert (run.stop_epoch, run.epoch, run.finished) == (17, 22, True)
    assert_array_equal(run.log.epochs, [17, 18, 21])
    assert_array_equal(run.log.A, free.log.A[[17, 18, 21]])
    assert_array_equal(run.log.network(1).ssm.C, free.log.network(18).ssm.C)
    never = Descent(start, data, dataclasses.replace(PLAIN, stop_loss=0.0)).advance()
    assert (never.stop_epoch, never.epoch, never.finished) == (None, 40, True)


def test_losses_are_marked_at_the_first_epoch_below_them():
    start, data = linear_case(2)
    free = Descent(start, data, PLAIN, log_at=range(41)).advance()
    marks = [float(free.log.loss[k]) for k in (5, 6, 30)] + [1e-30]
    run = Descent(start, data, PLAIN, log_at_loss=marks).advance()
    assert run.reached == dict(zip(marks[:3], (5, 6, 30), strict=True))
    assert_array_equal(run.log.epochs, [5, 6, 30])
    assert_array_equal(run.log.A, free.log.A[[5, 6, 30]])
    rule = dataclasses.replace(PLAIN, stop_loss=float(free.log.loss[9]), epochs_after_stop=25)
    both = Descent(start, data, rule, log_at_loss=marks).advance()
    assert (both.stop_epoch, both.reached) == (9, run.reached)
    with pytest.raises(ValueError, match="log_at_loss must be decreasing"):
        Descent(start, data, PLAIN, log_at_loss=(1.0, 2.0))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_continued_run_has_the_same_digits(case, precision, tmp_path):
    start, data = CASES[case](4)
    rule = dataclasses.replace(VARIANTS["Adam"], precision=precision, stop_loss=0.3, epochs_after_stop=9)
    logs = {"log_at": (0, 3, 8), "log_at_loss": (1e9, 1e-9)}
    whole = Descent(start, data, rule, **logs).advance()
    parts = Descent(start, data, rule, **logs).advance(3).advance(0).advance(4)
    parts.save(tmp_path / "run.npz")
    again = Descent(start, data, rule, **logs).restore(tmp_path / "run.npz")
    assert (again.epoch, again.finished) == (7, False)
    again.advance()
    assert_array_equal(all_weights(again.network), all_weights(whole.network))
    assert_array_equal(again.log.weights, whole.log.weights)
    assert (again.stop_epoch, again.epoch, again.loss) == (whole.stop_epoch, whole.epoch, whole.loss)
    assert again.reached == whole.reached == {1e9: 1}
    other = Descent(start, data, dataclasses.replace(rule, learning_rate=0.03))
    with pytest.raises(DescentError, match="another start, training set or rule"):
        other.restore(tmp_path / "run.npz")


def test_many_runs_at_once_give_what_each_gives_alone(capsys):
    cases = [linear_case(0), network_case(1), linear_case(2)]
    alone = [Descent(*case, PLAIN).advance() for case in cases]
    together = descent.train_many([Descent(*case, PLAIN) for case in cases], threads=2, progress=True)
    for one, other in zip(alone, together, strict=True):
        assert_array_equal(all_weights(one.network), all_weights(other.network))
    assert "3/3" in capsys.readouterr().err


def test_an_interrupt_leaves_a_run_that_can_go_on():
    stop = threading.Event()
    stop.set()
    run = Descent(*linear_case(0), PLAIN)
    assert run.advance(interrupt=stop).epoch == 0
    assert run.advance().finished


def test_ctrl_c_stops_all_runs(monkeypatch):
    runs = [Descent(*linear_case(seed), dataclasses.replace(PLAIN, max_epochs=10**9)) for seed in (0, 1)]

    class Pressed:
        def __init__(self, *_args, **_options): ...
        def __enter__(self):
            return self

        def __exit__(self, *_exc): ...
        def update(self): ...

    def future_that_is_interrupted(self, *_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(descent, "tqdm", Pressed)
    monkeypatch.setattr("concurrent.futures.Future.exception", future_that_is_interrupted)
    with pytest.raises(KeyboardInterrupt):
        descent.train_many(runs, threads=2)
    assert all(run.epoch < 10**9 for run in runs)


def test_a_step_that_is_too_large_is_an_error_not_a_number():
    runs = [Descent(*linear_case(0), Rule(1e6, max_epochs=50)), Descent(*linear_case(1), PLAIN)]
    with pytest.raises(DescentError, match=r"the loss is (nan|inf) after epoch \d+: learning_rate=1e\+06"):
        descent.train_many(runs)
    assert runs[1].finished


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be a finite number > 0; got 0.0"),
        ({"max_epochs": 0}, "max_epochs must be an integer >= 1; got 0"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam, gradient descent; got 'sgd'"),
        ({"train": "B"}, "train must be one of A, ABC; got 'B'"),
        ({"precision": "float16"}, "precision must be one of float32, float64; got 'float16'"),
        ({"stop_loss": -1.0}, "stop_loss must be a finite number >= 0; got -1.0"),
        ({"off_diagonal": True}, "off_diagonal must be False unless normalized=True"),
        ({"epochs_after_stop": 5}, "epochs_after_stop must be 0 without stop_loss; got 5"),
    ],
)
def test_rules_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **changes)


def test_wrong_starts_and_logs_are_refused():
    start, data = linear_case(0)
    with pytest.raises(ValueError, match="log_at must be increasing numbers >= 0"):
        Descent(start, data, PLAIN, log_at=(3, 2))
    with pytest.raises(ValueError, match="log_after_stop must be increasing numbers >= 0"):
        Descent(start, data, PLAIN, log_after_stop=(-1, 2))
    deep = networks.Network(start, (np.ones((1, 2)), np.ones((2, 1))))
    with pytest.raises(ValueError, match="start must have no MLP or two hidden layers of one width"):
        Descent(deep, data, PLAIN)
