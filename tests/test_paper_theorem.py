"""The theorem's two settings against the authors' numbers, and the closed form against the flow."""

import json
from dataclasses import asdict, replace

import jaxtyping
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import flow, metrics, paper, starts


@pytest.fixture(autouse=True)
def _as_a_reader_runs_it():
    """Without the type checker of the test suite, which answers wrong types before the library can."""
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
    assert (nine.length, nine.state_dim, nine.init_scale, nine.seeds) == (9, 20, 5e-3, (342, 344, 345, 346))
    assert seven.tie_gap == pytest.approx(1.53e-8, rel=1e-3)
    assert nine.tie_gap == pytest.approx(5.065e-12, rel=1e-3)
    for name, setting in paper.THEOREM_SETTINGS.items():
        values = paper.authors_theorem_values(name)
        assert set(values) == {"baseline", "with special"}
        assert all(set(row) == set(setting.seeds) for row in values.values())


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
    run = paper.run_theorem(setting, np.int64(242), "baseline")
    error = metrics.extrapolation_loss(run.student(), setting.teacher, setting.extrapolation_length)
    assert error == pytest.approx(paper.authors_theorem_values("theorem_kappa7")["baseline"][242], rel=2e-3)
    for wrong in (-1, True, 1.5, None, "1", 2**32):
        with pytest.raises(ValueError, match="seed must be an integer from 0 to 4294967295; got"):
            setting.start(wrong)


def test_settings_keep_pythons_numbers():
    setting = paper.TheoremSetting(
        np.int64(7), np.int32(3), np.float32(0.25), np.float64(0.125), seeds=[np.int64(4)]
    )
    assert setting == paper.TheoremSetting(7, 3, 0.25, 0.125, seeds=(4,))
    assert json.loads(json.dumps(asdict(setting)))["seeds"] == [4]
    with pytest.raises(TypeError, match="setting must be a TheoremSetting; got str"):
        paper.run_theorem("theorem_kappa7", 1, "baseline")


def test_experiments_take_seeds_and_flags_and_nothing_else():
    name, setting = next(iter(paper.EXPERIMENTS.items()))
    seed = setting.seeds[0]
    for which in paper.TRAINING_SETS:
        data = setting.training_set(np.int64(seed), which)
        assert_array_equal(data.x, setting.training_set(seed, which).x)
    assert_array_equal(setting.start(np.int64(seed)).ssm.A, setting.start(seed).ssm.A)
    stored = paper.stored_start(setting, np.int64(seed))
    assert_array_equal(stored.ssm.A, paper.stored_start(setting, seed).ssm.A)
    for call in (
        lambda: setting.training_set(None, "baseline"),  # not a start from the clock
        lambda: setting.test_inputs(None),
        lambda: setting.start(1.5),
        lambda: paper.stored_start(setting, True),
        lambda: paper.authors_value(name, "baseline", "1", "logged_error"),
    ):
        with pytest.raises(ValueError, match="seed must be an integer from 0"):
            call()
    with pytest.raises(ValueError, match="near_tie must be True or False; got 'no'"):
        setting.start(seed, near_tie="no")
    with pytest.raises(TypeError, match="network must be a Network; got DiagonalSSM"):
        setting.error(setting.start(seed).ssm, seed)
    with pytest.raises(TypeError, match="setting must be an Experiment; got str"):
        paper.stored_start(name, seed)
    with pytest.raises(ValueError, match="the product of shape must be an integer from 1 to 1000000"):
        starts.stateless_normal(1, (10**6, 10**6))
    with pytest.raises(ValueError, match="tie_factors must be fewer than the 2 entries; got 3"):
        starts.tied_weights(np.ones(2), 1.0, warm_init=0.0, tie_gap=0.1, tie_factors=(1, 2, 3))


@pytest.mark.parametrize(("name", "seed"), ROWS)
@pytest.mark.parametrize("training_set", ["baseline", "with special"])
def test_extrapolation_loss_within_a_fifth_of_a_percent_of_the_authors(name, seed, training_set):
    setting = paper.THEOREM_SETTINGS[name]
    run = paper.run_theorem(setting, seed, training_set)
    assert run.fitted
    error = metrics.extrapolation_loss(run.student(), setting.teacher, setting.extrapolation_length)
    assert error == pytest.approx(paper.authors_theorem_values(name)[training_set][seed], rel=2e-3)
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
        run = paper.run_theorem(setting, setting.seeds[0], training_set, rtol=rtol)
        printed.add(f"{metrics.extrapolation_loss(run.student(), setting.teacher, 20):.3e}")
    assert len(printed) == 1


def test_other_dimensions_lengths_scales_and_gaps_run_through_the_same_function():
    for setting in (
        paper.TheoremSetting(length=5, state_dim=3, init_scale=1e-2, tie_gap=None),
        paper.TheoremSetting(length=11, state_dim=4, init_scale=5e-2, tie_gap=1e-3),
        replace(paper.THEOREM_SETTINGS["theorem_kappa7"], init_scale=1e-2, tie_gap=1e-6),
    ):
        for training_set in ("baseline", "with special"):
            run = paper.run_theorem(setting, 1, training_set)
            assert run.fitted, (setting, training_set)
            data = paper.theorem_training_set(setting, training_set)
            assert metrics.loss(run.student(), data) < 1e-12


def test_the_two_training_sets_differ_by_one_correctly_labelled_sequence():
    setting = paper.THEOREM_SETTINGS["theorem_kappa9"]
    small, large = (paper.theorem_training_set(setting, name) for name in ("baseline", "with special"))
    assert_array_equal(large.x[: small.size], small.x)
    assert large.size == small.size + 1
    assert_array_equal(np.flatnonzero(large.x[-1]), [setting.length - 2])  # next to last, 0-based
    assert_array_equal(large.y, [1.0, 1.0])
