"""The theorem's two settings against the authors' numbers, and the closed form against the flow."""

import json
from dataclasses import asdict, fields, replace

import jaxtyping
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import flow, metrics, paper, tensorflow_random
from ssm_poison_lib.records import Record, RunValues


@pytest.fixture(autouse=True)
def _as_a_reader_runs_it():
    """Without the tests' type checker, which answers wrong types before the library can."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


ROWS = [(name, seed) for name, setting in paper.THEOREM_SETTINGS.items() for seed in setting.seeds]


def test_the_settings_are_the_authors():
    seven, nine = (paper.THEOREM_SETTINGS[name] for name in ("theorem_kappa7", "theorem_kappa9"))
    assert (seven.length, seven.state_dim, seven.init_scale, seven.seeds) == (
        7,
        10,
        1e-3,
        (242, 243, 244, 246),
    )
    assert (nine.length, nine.state_dim, nine.init_scale, nine.seeds) == (
        9,
        20,
        5e-3,
        (342, 344, 345, 346),
    )
    assert seven.tie_gap == pytest.approx(1.53e-8, rel=1e-3)
    assert nine.tie_gap == pytest.approx(5.065e-12, rel=1e-3)
    for name, setting in paper.THEOREM_SETTINGS.items():
        assert setting.name == name
        for which in paper.TRAINING_SETS:
            assert all(setting.authors_value(seed, which) > 0 for seed in setting.seeds)
            assert setting.authors_value(1, which) is None


def test_the_start_is_the_authors_draw():
    setting = paper.THEOREM_SETTINGS["theorem_kappa7"]
    draw = np.sort(np.random.RandomState(242).rand(10) * 1e-3)[::-1]
    start = setting.start(242)
    assert_array_equal(np.delete(start.A, 1), np.delete(draw, 1))
    assert start.A[1] == draw[0] - setting.tie_gap
    assert_array_equal(start.w, np.ones(10))
    assert_array_equal(setting.start(np.random.RandomState(242)).A, start.A)
    # An integer of NumPy means what the same integer of Python means: in the start, and in the
    # error after training.
    for seed in (np.int64(242), np.uint8(242)):
        assert_array_equal(setting.start(seed).A, start.A)
    run = setting.run(np.int64(242), "baseline")
    error = metrics.extrapolation_loss(run.student(), setting.teacher, setting.extrapolation_length)
    assert error == pytest.approx(setting.authors_value(242, "baseline"), rel=2e-3)
    for wrong in (-1, True, 1.5, None, "1", 2**32):
        with pytest.raises(ValueError, match="seed must be an integer from 0 to 4294967295; got"):
            setting.start(wrong)


def test_settings_keep_pythons_numbers():
    setting = paper.TheoremSetting(
        np.int64(7), np.int32(3), np.float32(0.25), np.float64(0.125), seeds=[np.int64(4)]
    )
    assert setting == paper.TheoremSetting(7, 3, 0.25, 0.125, seeds=(4,))
    assert json.loads(json.dumps(asdict(setting)))["seeds"] == [4]


@pytest.mark.parametrize("name", list(paper.SETTINGS))
def test_every_setting_offers_the_same(name):
    setting = paper.SETTINGS[name]
    assert isinstance(setting, paper.Setting)
    assert setting.name == name
    seed = setting.seeds[0]
    start = setting.start(seed)
    free = setting.without_near_tie()
    assert isinstance(free, paper.Setting)
    assert free.start(seed) != start
    baseline, both = (setting.training_set(seed, which) for which in paper.TRAINING_SETS)
    assert baseline.teacher == both.teacher == setting.teacher
    assert baseline.length == setting.length
    assert_array_equal(both.x[: baseline.size], baseline.x)
    assert setting.error(setting.teacher, seed) == 0.0
    assert setting.error(start, seed) > 0.01
    by_lag = setting.by_lag(start)
    assert (by_lag is None) == (setting.kind == "network")
    if by_lag is not None:
        assert len(by_lag) == setting.extrapolation_length
        scale = np.abs(setting.teacher.impulse_response(setting.extrapolation_length)).max()
        assert setting.error(start, seed) == by_lag.max() / scale
    for which in paper.TRAINING_SETS:
        known = setting.authors(seed, which)
        assert (known.setting, known.seed, known.training_set) == (name, seed, which)
        value = setting.authors_value(seed, which)
        assert value == (None if known.authors is None else known.authors.logged_error)
        # What the authors have is of their own settings, not of variants that kept the name.
        assert free.authors(seed, which) is free.authors_value(seed, which) is None
    with pytest.raises(
        ValueError, match="which must be one of baseline, with special; got 'poisoned'"
    ):
        setting.training_set(seed, "poisoned")


@pytest.mark.parametrize(
    "name", ["theorem_kappa7", "standalone_ssm_dim=2_dynamics__s1", "ssm_in_nn_poison__s0"]
)
def test_every_kind_of_setting_runs(name):
    setting = paper.SETTINGS[name]
    if setting.kind == "network":  # a tenth of a second in place of ten
        setting = replace(setting, max_epochs=300)
    seed = setting.seeds[0]
    run, record = setting.run(seed, "baseline"), setting.record(seed, "baseline")
    last = run.student() if setting.kind == "theorem" else run.network
    assert record.trained == (setting.kind != "network")
    if setting.kind == "theorem":  # the others log 99 epochs before the end
        assert record.logged_error == setting.error(last, seed)
    assert record.curves.error[-1] == record.logged_error
    assert record.curves.largest_abs_a[-1] == record.largest_abs_a
    assert json.loads(json.dumps(record.to_dict())) == json.loads(json.dumps(asdict(record)))
    assert Record.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_a_changed_setting_starts_from_a_draw():
    """The stored starts are of the authors' settings; a variant of the same name has its own."""
    setting = paper.EXPERIMENTS["standalone_ssm_poison__s0"]
    free = setting.without_near_tie()
    assert setting.descent(200, "baseline").network.ssm == setting.authors_start(200)
    drawn = free.descent(200, "baseline").network.ssm
    assert_array_equal(drawn.A, np.float32(free.start(200).A))
    assert not np.array_equal(drawn.A, setting.authors_start(200).A)
    with pytest.raises(
        ValueError, match="the setting must be the authors' own; got a changed standalone"
    ):
        free.authors_start(200)


def test_records_refuse_other_keys():
    values = RunValues(*[None] * 8).to_dict()
    assert RunValues.from_dict(values) == RunValues(*[None] * 8)
    del values["seconds"], values["stop_epoch"]
    with pytest.raises(
        ValueError,
        match=(
            r"the values of a RunValues must have exactly its fields.*missing stop_epoch, seconds$"
        ),
    ):
        RunValues.from_dict(values)
    with pytest.raises(ValueError, match=r"missing stop_epoch, seconds; unknown second, stop$"):
        RunValues.from_dict(values | {"second": 1, "stop": 2})
    with pytest.raises(
        TypeError, match="the values of a RunValues must be a mapping such as a dict; got list"
    ):
        RunValues.from_dict([1])
    record = {field.name: None for field in fields(Record)} | {"curves": {"unit": "epoch"}}
    with pytest.raises(ValueError, match=r"the values of a Curves must have .* missing at, loss"):
        Record.from_dict(record)
    with pytest.raises(ValueError, match=r"missing start; unknown begin$"):
        Record.from_dict({"begin" if key == "start" else key: None for key in record})


def test_experiments_take_seeds_and_flags_and_nothing_else():
    setting = next(iter(paper.EXPERIMENTS.values()))
    seed = setting.seeds[0]
    for which in paper.TRAINING_SETS:
        data = setting.training_set(np.int64(seed), which)
        assert_array_equal(data.x, setting.training_set(seed, which).x)
    assert setting.start(np.int64(seed)) == setting.start(seed)
    assert setting.authors_start(np.int64(seed)) == setting.authors_start(seed)
    for call in (
        lambda: setting.training_set(None, "baseline"),  # not a start from the clock
        lambda: setting.test_inputs(None),
        lambda: setting.start(1.5),
        lambda: setting.authors_start(True),
        lambda: setting.authors_value("1", "baseline"),
    ):
        with pytest.raises(ValueError, match="seed must be an integer from 0"):
            call()
    with pytest.raises(TypeError, match="student must be a DiagonalSSM or Network; got str"):
        setting.error("student", seed)
    with pytest.raises(
        TypeError, match="student must be a DiagonalSSM, or a Network without an MLP"
    ):
        paper.EXPERIMENTS["standalone_ssm_poison__s0"].error(setting.teacher, seed)
    with pytest.raises(
        ValueError, match="the product of shape must be an integer from 1 to 1000000"
    ):
        tensorflow_random.stateless_normal(1, (10**6, 10**6))
    with pytest.raises(ValueError, match="tie_factors must be fewer than the 2 entries; got 3"):
        tensorflow_random.tied_weights(
            np.ones(2), 1.0, warm_init=0.0, tie_gap=0.1, tie_factors=(1, 2, 3)
        )


@pytest.mark.parametrize(("name", "seed"), ROWS)
@pytest.mark.parametrize("training_set", ["baseline", "with special"])
def test_extrapolation_loss_within_a_fifth_of_a_percent_of_the_authors(name, seed, training_set):
    setting = paper.THEOREM_SETTINGS[name]
    run = setting.run(seed, training_set)
    assert run.fitted
    error = metrics.extrapolation_loss(run.student(), setting.teacher, setting.extrapolation_length)
    assert error == pytest.approx(setting.authors_value(seed, training_set), rel=2e-3)
    if training_set == "baseline":
        assert_allclose(
            run.A[-1], flow.baseline_limit(setting.start(seed).A, setting.length), rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("name", list(paper.THEOREM_SETTINGS))
@pytest.mark.parametrize("training_set", ["baseline", "with special"])
def test_printed_digits_do_not_depend_on_the_tolerance(name, training_set):
    setting = paper.THEOREM_SETTINGS[name]
    printed = set()
    for rtol in (1e-9, 1e-11, 1e-12):
        run = setting.run(setting.seeds[0], training_set, rtol=rtol)
        printed.add(f"{metrics.extrapolation_loss(run.student(), setting.teacher, 20):.3e}")
    assert len(printed) == 1


def test_other_dimensions_lengths_scales_and_gaps_run_through_the_same_function():
    for setting in (
        paper.TheoremSetting(length=5, state_dim=3, init_scale=1e-2, tie_gap=None),
        paper.TheoremSetting(length=11, state_dim=4, init_scale=5e-2, tie_gap=1e-3),
        replace(paper.THEOREM_SETTINGS["theorem_kappa7"], init_scale=1e-2, tie_gap=1e-6),
    ):
        for training_set in ("baseline", "with special"):
            run = setting.run(1, training_set)
            assert run.fitted, (setting, training_set)
            data = setting.training_set(1, training_set)
            assert metrics.loss(run.student(), data) < 1e-12


def test_the_two_training_sets_differ_by_one_correctly_labelled_sequence():
    setting = paper.THEOREM_SETTINGS["theorem_kappa9"]
    small, large = (setting.training_set(342, name) for name in ("baseline", "with special"))
    assert_array_equal(large.x[: small.size], small.x)
    assert large.size == small.size + 1
    assert_array_equal(np.flatnonzero(large.x[-1]), [setting.length - 2])  # next to last, 0-based
    assert_array_equal(large.y, [1.0, 1.0])
