"""The theorem's two settings against the authors' numbers, and the closed form against the flow."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import flow, metrics, paper

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
