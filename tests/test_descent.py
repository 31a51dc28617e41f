"""Compiled training against an eager PyTorch loop, stopping and continuing, many runs at once,
refusals.
"""

import dataclasses
import json
import re
import threading

import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import descent, flow, networks, sequences, ssm, torch_reference
from ssm_poison_lib.descent import Descent, DescentError, Rule
from ssm_poison_lib.ssm import DiagonalSSM


@pytest.fixture
def as_a_reader_runs_it():
    """Without the tests' type checker, which answers wrong types before the library can."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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
    layers = (
        [rng.normal(size=shape) for shape in ((1, width), (width, width), (width, 1))]
        if hidden
        else []
    )
    teacher = networks.authors_teacher(width) if hidden else networks.Network(ssm.teacher("dim=3"))
    return networks.Network(start, tuple(layers)), sequences.TrainingSet(data.x, teacher)


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
    expected, losses, stop = torch_reference.train(start, data, rule, 40)
    assert_allclose(all_weights(run.network), all_weights(expected), rtol=1e-8, atol=1e-10)
    assert (run.stop_epoch, run.epoch) == (stop, len(losses))
    if not rule.reset_BC:  # a run's log shows the loss after the reset
        assert_allclose(run.log.loss, losses, rtol=1e-8)


@given(
    st.integers(0, 10**6),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 8),
    st.integers(1, 18),
)
@settings(max_examples=15, deadline=None)
def test_one_step_equals_autograd_for_any_size(seed, d, n, length, width):
    for start, data in (linear_case(seed, d, n, length), network_case(seed, d, n, length, width)):
        rule = dataclasses.replace(AUTHORS, max_epochs=1)
        moved = all_weights(Descent(start, data, rule).advance().network)
        expected = all_weights(torch_reference.train(start, data, rule, 1)[0])
        assert_allclose(moved, expected, rtol=1e-9, atol=1e-11)


def test_float32_is_float32_and_close_to_float64():
    start, data = network_case(5)
    exact = Descent(start, data, AUTHORS).advance().network
    rounded = (
        Descent(start, data, dataclasses.replace(AUTHORS, precision="float32")).advance().network
    )
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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_continued_run_has_the_same_digits(case, precision, tmp_path):
    start, data = CASES[case](4)
    rule = dataclasses.replace(
        VARIANTS["Adam"], precision=precision, stop_loss=0.3, epochs_after_stop=9
    )
    logs = {"log_at": (0, 3, 8), "log_at_loss": (1e9, 1e-9)}
    whole = Descent(start, data, rule, **logs).advance()
    parts = Descent(start, data, rule, **logs).advance(3).advance(0).advance(4)
    parts.save(tmp_path / "run.npz")
    again = Descent(start, data, rule, **logs).restore(tmp_path / "run.npz")
    assert (again.epoch, again.finished) == (7, False)
    again.advance()
    assert_array_equal(all_weights(again.network), all_weights(whole.network))
    assert_array_equal(again.log.weights, whole.log.weights)
    assert (again.stop_epoch, again.epoch, again.loss) == (
        whole.stop_epoch,
        whole.epoch,
        whole.loss,
    )
    assert again.reached == whole.reached == {1e9: 1}
    other = Descent(start, data, dataclasses.replace(rule, learning_rate=0.03))
    with pytest.raises(DescentError, match="another start, training set or rule"):
        other.restore(tmp_path / "run.npz")


def test_many_runs_at_once_give_what_each_gives_alone(capsys):
    cases = [linear_case(0), network_case(1), linear_case(2)]
    alone = [Descent(*case, PLAIN).advance() for case in cases]
    together = descent.train_many(
        [Descent(*case, PLAIN) for case in cases], threads=2, progress=True
    )
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
    runs = [
        Descent(*linear_case(seed), dataclasses.replace(PLAIN, max_epochs=10**9)) for seed in (0, 1)
    ]

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
    with pytest.raises(
        DescentError, match=r"the loss is (nan|inf) after epoch \d+: learning_rate=1e\+06"
    ):
        descent.train_many(runs)
    assert runs[1].finished


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be a finite number > 0; got 0.0"),
        ({"max_epochs": 0}, "max_epochs must be an integer from 1 to 1000000000; got 0"),
        (
            {"max_epochs": 10**12},
            "max_epochs must be an integer from 1 to 1000000000; got 1000000000000",
        ),
        ({"epochs_after_stop": 2.5}, "epochs_after_stop must be an integer from 0"),
        ({"normalized": "no"}, "normalized must be True or False; got 'no'"),
        ({"reset_BC": 1}, "reset_BC must be True or False; got 1"),
        ({"off_diagonal": "False"}, "off_diagonal must be True or False; got 'False'"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam, gradient descent; got 'sgd'"),
        ({"train": "B"}, "train must be one of A, ABC; got 'B'"),
        ({"precision": "float16"}, "precision must be one of float32, float64; got 'float16'"),
        ({"stop_loss": -1.0}, "stop_loss must be a finite number >= 0; got -1.0"),
        ({"off_diagonal": True}, "off_diagonal must be False unless normalized=True"),
        ({"epochs_after_stop": 5}, "epochs_after_stop must be 0 without stop_loss; got 5"),
    ],
)
@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_rules_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **changes)


@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_rules_of_numpys_numbers_are_those_of_pythons():
    numbers = {
        "learning_rate": np.float32(0.25),
        "max_epochs": np.int64(7),
        "optimizer": np.str_("adam"),
        "normalized": np.True_,
        "stop_loss": np.float64(0.5),
        "epochs_after_stop": np.int32(2),
    }
    rule = Rule(**numbers)
    assert json.loads(json.dumps(dataclasses.asdict(rule))) == dataclasses.asdict(rule)
    assert rule == Rule(0.25, 7, "adam", normalized=True, stop_loss=0.5, epochs_after_stop=2)
    assert Descent(*linear_case(0), rule).advance().epoch <= 7


@pytest.mark.usefixtures("as_a_reader_runs_it")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_at": (3, 2)}, r"log_at must be increasing integers >= 0; got \[3, 2\]"),
        ({"log_at": range(5, 0, -1)}, "log_at must be increasing integers >= 0; got range"),
        ({"log_at": range(-3, 9)}, "log_at must be increasing integers >= 0; got range"),
        (
            {"log_at": [1.5]},
            "each entry of log_at must be an integer from 0 to 1000000000; got 1.5",
        ),
        ({"log_at": np.geomspace(1, 100, 5)}, "each entry of log_at must be an integer"),
        ({"log_at": 3}, "log_at must be increasing integers >= 0; got 3"),
        ({"log_after_stop": (-1, 2)}, "each entry of log_after_stop must be an integer from 0"),
        ({"log_at_loss": (1.0, 2.0)}, "log_at_loss must be decreasing"),
        (
            {"log_at_loss": (1.0, np.nan)},
            "each entry of log_at_loss must be a finite number >= 0; got nan",
        ),
        ({"log_at_loss": 1.0}, "log_at_loss must be decreasing losses; got 1.0"),
    ],
)
def test_wrong_logs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Descent(*linear_case(0), PLAIN, **options)


@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_epochs_of_numpys_integers_are_logged():
    epochs = np.unique(np.geomspace(1, 40, 9).round().astype(np.int32))
    run = Descent(*linear_case(0), PLAIN, log_at=epochs).advance()
    assert_array_equal(run.log.epochs, epochs)


@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_other_objects_are_named():
    start, data = linear_case(0)
    run = Descent(start, data, PLAIN)
    for call, message in [
        (
            lambda: Descent([0.1, 0.2], data, PLAIN),
            "start must be a DiagonalSSM or Network; got list",
        ),
        (lambda: Descent(start, data.x, PLAIN), "data must be a TrainingSet; got ndarray"),
        (lambda: Descent(start, data, 0.1), "rule must be a Rule; got float"),
        (lambda: run.advance(interrupt=True), "interrupt must be an Event; got bool"),
        (lambda: run.save(3), "path must be a path; got 3"),
        (lambda: descent.train_many([start]), "each of runs must be a Descent; got DiagonalSSM"),
        (
            lambda: torch_reference.train(None, data, PLAIN, 3),
            "start must be a DiagonalSSM or Network; got None",
        ),
        (
            lambda: torch_reference.train(start, None, PLAIN, 3),
            "data must be a TrainingSet; got None",
        ),
        (lambda: torch_reference.train(start, data, {}, 3), "rule must be a Rule; got dict"),
        (lambda: torch_reference.SSMNetwork(start), "network must be a Network; got DiagonalSSM"),
    ]:
        with pytest.raises(TypeError, match=f"^{message}"):
            call()
    with pytest.raises(ValueError, match="threads must be an integer from 1"):
        descent.train_many([run], threads=0)
    with pytest.raises(ValueError, match="progress must be True or False"):
        descent.train_many([run], progress="no")
    with pytest.raises(ValueError, match="runs must hold each run once"):
        descent.train_many([run, run])
    with pytest.raises(ValueError, match="epochs must be an integer from 0 to 1000000000"):
        run.advance(10**12)


@pytest.mark.parametrize(
    "damage", ["cut off", "flipped", "empty", "an array of another kind", "lacking"]
)
def test_a_damaged_checkpoint_is_named_and_leaves_the_run_as_it_was(tmp_path, damage):
    path = tmp_path / "run.npz"
    Descent(*linear_case(0), PLAIN).advance(9).save(path)
    content = bytearray(path.read_bytes())
    if damage == "cut off":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[content.index(b"theta.npy") + 200] ^= 4
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "lacking":
        np.savez(path, fingerprint="")
    else:
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    run = Descent(*linear_case(0), PLAIN).advance(2)
    before = (run.epoch, run.loss, all_weights(run.network).tolist())
    with pytest.raises(DescentError, match=re.escape(str(path))):
        run.restore(path)
    assert (run.epoch, run.loss, all_weights(run.network).tolist()) == before
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        run.restore(tmp_path / "none.npz")


def test_many_threads_give_what_one_gives():
    runs = [[Descent(*network_case(seed), PLAIN) for seed in range(6)] for _ in range(2)]
    for one, many in zip(
        descent.train_many(runs[0], threads=1), descent.train_many(runs[1], threads=4), strict=True
    ):
        assert_array_equal(all_weights(one.network), all_weights(many.network))


def test_wrong_mlps_are_refused():
    start, data = linear_case(0)
    deep = networks.Network(start, (np.ones((1, 2)), np.ones((2, 1))))
    with pytest.raises(
        ValueError, match="start must have no MLP or two hidden layers of one width"
    ):
        Descent(deep, data, PLAIN)
