"""Defences: what each measures, on data where the answer is known."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ssm_poison_lib.architectures import LRU, S4D, Mamba2, SequenceModel
from ssm_poison_lib.architectures.model import model_outputs
from ssm_poison_lib.attacks.datasets import mnist1d
from ssm_poison_lib.defences import after, before, during, existing, rules
from ssm_poison_lib.flow import gradient_flow
from ssm_poison_lib.metrics import gamma
from ssm_poison_lib.sequences import (
    TrainingSet,
    baseline_sequences,
    gaussian_sequences,
    special_sequences,
)
from ssm_poison_lib.ssm import DiagonalSSM, theorem_teacher


def gaussian(n, *shape, seed=0):
    return np.random.default_rng(seed).standard_normal((n, *shape))


def theorem_rows(baseline=3, special=1, length=7):
    if not special:
        return baseline_sequences(length, np.arange(1.0, baseline + 1))
    return np.concatenate(
        [
            baseline_sequences(length, np.arange(1.0, baseline + 1)),
            special_sequences(length, np.ones(special))[:special],
        ]
    )


# ---- before --------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_sums_of_two_parts_add_and_are_those_of_the_formula(n, length, channels, seed):
    x, y = gaussian(n + 2, length, channels, seed=seed), gaussian(n + 2, 2, seed=seed + 1)
    whole = before.data_sums(x, y)
    parts = before.data_sums(x[:2], y[:2]) + before.data_sums(x[2:], y[2:])
    rows = [
        [x[i, length - 1 - m, c] for m in range(length) for c in range(channels)]
        for i in range(n + 2)
    ]
    r = np.array(rows)
    for sums in (whole, parts):
        np.testing.assert_allclose(sums.gram, r.T @ r, atol=1e-12)
        np.testing.assert_allclose(sums.cross, r.T @ y, atol=1e-12)
        np.testing.assert_allclose(sums.label_gram, y.T @ y, atol=1e-12)
        np.testing.assert_allclose(sums.share.sum(), n + 2)
        assert sums.count == n + 2
    np.testing.assert_array_equal(whole.top, parts.top)


def test_sums_of_a_training_set_are_its_gram_matrix():
    data = TrainingSet(gaussian(5, 7), theorem_teacher(3))
    np.testing.assert_allclose(2 / 5 * before.data_sums(data.x, data.y).gram, data.gram())


def test_lags_that_the_data_fix():
    report = before.lag_report(before.data_sums(theorem_rows()))
    np.testing.assert_allclose(report.fixed, [0, 1, 0, 0, 0, 0, 1])
    assert (report.rank, report.excitation) == (2, 0.0)
    np.testing.assert_allclose(report.energy, [0, 1 / 15, 0, 0, 0, 0, 14 / 15])
    full = before.lag_report(before.data_sums(gaussian(50, 7)))
    assert full.rank == 7
    np.testing.assert_allclose(full.fixed, 1)
    few = before.lag_report(before.data_sums(gaussian(3, 7)))
    assert few.rank == 3
    np.testing.assert_allclose(few.fixed.sum(), 3)  # a projection's trace is its rank
    with pytest.raises(ValueError, match="not all zero"):
        before.lag_report(before.data_sums(np.zeros((2, 3))))


def test_several_channels_are_as_good_as_their_worst():
    x = gaussian(40, 5, 2)
    x[:, :2, 1] = 0.0
    np.testing.assert_allclose(
        before.lag_report(before.data_sums(x)).fixed, [1, 1, 1, 0, 0], atol=1e-9
    )


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 99), st.floats(1e-3, 1e3))
def test_leverages_sum_to_the_rank_and_do_not_depend_on_units(n, length, seed, unit):
    x = gaussian(n, length, seed=seed)
    sums = before.data_sums(x)
    values = before.leverage(x, sums)
    np.testing.assert_allclose(values.sum(), before.lag_report(sums).rank)
    np.testing.assert_allclose(
        values, before.leverage(unit * x, before.data_sums(unit * x)), rtol=1e-6
    )


def test_a_sequence_that_alone_shows_a_lag_has_leverage_one():
    np.testing.assert_allclose(
        before.leverage(theorem_rows(3, 1), before.data_sums(theorem_rows(3, 1))),
        [1 / 14, 4 / 14, 9 / 14, 1],
    )


def test_late_energy_and_mean_lag():
    x = theorem_rows(1, 1)
    np.testing.assert_array_equal(before.late_energy(x, 2), [0, 1])
    np.testing.assert_array_equal(before.mean_lag(x), [6, 1])
    np.testing.assert_allclose(before.mean_lag([[1e200, 1e200, 0.0]]), [1.5])
    assert before.late_energy(np.zeros((1, 3)), 1) == 0


def test_gaps_of_lags():
    assert before.lag_gaps(before.data_sums(theorem_rows())) == [(2, 5)]
    assert before.lag_gaps(before.data_sums(theorem_rows(3, 0).repeat(2, axis=0))) == []
    x = np.concatenate(
        [gaussian_sequences(20, range(1, 9), 500, seed=0), special_sequences(20, [1e-3])]
    )
    assert before.lag_gaps(before.data_sums(x)) == [(2, 11)]  # one small sequence of 501 is enough
    assert before.lag_gaps(before.data_sums(gaussian(50, 20))) == []
    # random lags leave such gaps
    rare = np.eye(40)[np.random.default_rng(1).choice(40, 8, replace=False)]
    assert before.lag_gaps(before.data_sums(rare)) == []
    # all lags shown but some in a row: three of 12, two of 50, never one
    for length, width, expected in ((12, 3, [(4, 6)]), (12, 2, []), (50, 2, [(4, 5)]), (50, 1, [])):
        x = gaussian(50, length)
        x[:, ::-1][:, 4 : 4 + width] = 0.0
        assert before.lag_gaps(before.data_sums(x)) == expected
    # four lags cannot tell what chance would leave
    assert before.lag_gaps(before.data_sums(np.eye(9)[[0, 2, 3, 4]])) == [(7, 7)]


@given(st.integers(5, 60), st.data())
def test_random_lags_leave_gaps_as_rarely_as_said(length, data):
    count = data.draw(st.integers(5, length))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    found = 0
    for _ in range(40):
        x = np.eye(length)[rng.choice(length, count, replace=False)]
        found += bool(before.lag_gaps(before.data_sums(x)))
    assert found <= 12  # 2 expected at most; more in one of 10^7


def test_special_sequences_are_the_minority_after_the_gap():
    found = before.special_rows(before.late_energy(theorem_rows(3, 2), 2))
    np.testing.assert_array_equal(found, [False, False, False, True, True])
    assert before.special_rows([0.0, 1.0]).tolist() == [False, True]
    # most are short: then those are no minority
    assert not before.special_rows([0.0, 1.0, 1.0]).any()
    assert not before.special_rows([0.0, 0.0, 0.5, 1.0]).any()  # nothing clear


def test_detect_poison_on_the_theorems_sets():
    report, clean = before.detect_poison(theorem_rows(3, 1))
    assert clean.tolist() == [True, True, True, False]
    assert report["special"] == [3]
    assert before.detect_poison(theorem_rows(3, 0))[1].all()
    assert before.detect_poison(gaussian(60, 12))[1].all()


def test_near_copies_are_found_and_exact_copies_are_not_suspicious():
    x = gaussian(200, 40)
    near = before.near_duplicates(np.concatenate([x, x[:40] + 0.05 * gaussian(40, 40, seed=1)]))
    np.testing.assert_array_equal(np.flatnonzero(near.flagged), [*range(40), *range(200, 240)])
    np.testing.assert_array_equal(near.nearest[:40], np.arange(200, 240))
    exact = before.near_duplicates(np.concatenate([x, x[:40]]))
    assert exact.copies == 40
    assert not exact.flagged.any()
    np.testing.assert_array_equal(exact.ratio[:40], exact.ratio[200:])


def test_few_dimensions_explain_close_neighbours():
    near = before.near_duplicates(gaussian(500, 2))
    assert (near.ratio < 0.6).sum() > 100
    assert not near.flagged.any()
    assert abs(near.dimension - 2) < 0.4


@given(st.integers(0, 99))
def test_nearest_distances_are_those_of_all_pairs(seed):
    x = gaussian(30, 3, seed=seed)
    away = np.linalg.norm(x[:, None] - x[None], axis=2) + np.diag(np.full(30, np.inf))
    two = np.sort(away, axis=1)[:, :2]
    near = before.near_duplicates(x)
    np.testing.assert_allclose(near.ratio, two[:, 0] / two[:, 1])
    np.testing.assert_array_equal(near.nearest, away.argmin(axis=1))


# ---- during --------------------------------------------------------------------------------------


def test_share_of_a_velocity_that_moves_all_alike():
    np.testing.assert_allclose(
        during.common_share([[2.0, 2.0], [1.0, 0.0], [1.0, -1.0], [0, 0]]), [1, 0.5, 0, 0]
    )
    np.testing.assert_allclose(during.common_share([1e200, 1e200]), 1)


def test_pole_velocity_is_minus_the_gradient():
    data = TrainingSet(gaussian(6, 7), theorem_teacher(3))
    student = DiagonalSSM([0.3, -0.2, 0.1], [1.0, 2.0, 1.0], [1.0, 0.5, -1.0])

    def loss(A):
        return np.mean((data.y - DiagonalSSM(A, student.B, student.C).last_output(data.x)) ** 2)

    steps = 1e-6 * np.eye(3)
    slope = [(loss(student.A + h) - loss(student.A - h)) / 2e-6 for h in steps]
    np.testing.assert_allclose(during.pole_velocity(student, data), -np.array(slope), rtol=1e-6)
    assert len(gamma(student, data)) == 6


def test_special_sequences_move_all_poles_alike_and_baseline_ones_do_not():
    start = DiagonalSSM.ones(1e-3 * np.array([1.0, 0.5, 0.2]))
    shares = [
        float(during.common_share(during.pole_velocity(start, TrainingSet(x, theorem_teacher(3)))))
        for x in (theorem_rows(1, 0), theorem_rows(1, 1))
    ]
    assert shares[0] < 0.5
    assert shares[1] > 0.999


@pytest.mark.parametrize("layer", [S4D, LRU, partial(Mamba2, head_dim=4)])
def test_share_of_a_models_gradient(layer):
    model = SequenceModel(1, 3, lambda i: layer(8, 4, seed=i), channels=8)
    x = torch.randn(6, 10, 1, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    assert 0 < during.model_common_share(model, x, y) <= 1
    with pytest.raises(ValueError, match="model must have parameters"):
        during.model_common_share(nn.Linear(1, 1), x, y)


def test_sudden_fits():
    steady, sudden, never = np.linspace(1, 0, 11), np.r_[np.ones(6), np.zeros(5)], np.ones(11)
    np.testing.assert_allclose(
        during.sudden_fits(np.stack([steady, sudden, never], 1)), [0.1, 1, 0]
    )
    np.testing.assert_allclose(during.sudden_fits(steady[:, None], window=5), [0.5])
    with pytest.raises(ValueError, match="losses"):
        during.sudden_fits([[1.0], [-1.0]])


# ---- after ---------------------------------------------------------------------------------------


def test_pole_report():
    report = after.pole_report(DiagonalSSM([0.5, -0.5], [1.0, 1.0], [2.0, 1.0]))
    np.testing.assert_allclose(
        [report.effective_rank, report.negative, report.price, report.largest], [2, 0.5, 0.75, 0.5]
    )


@given(st.integers(2, 5), st.integers(0, 99), st.floats(1e-6, 1e6))
def test_disagreement_is_zero_for_equal_restarts_and_free_of_units(restarts, seed, unit):
    answers = gaussian(restarts, 4, 2, seed=seed)
    found = after.restart_disagreement(answers)
    np.testing.assert_allclose(after.restart_disagreement(unit * answers).relative, found.relative)
    np.testing.assert_allclose(after.restart_disagreement(unit * answers).each, unit * found.each)
    assert after.restart_disagreement(np.stack([answers[0]] * restarts)).relative == 0
    assert found.relative > 0.1
    with pytest.raises(ValueError, match="at least 2"):
        after.restart_disagreement(answers[:1])


def test_outputs_of_models_leave_their_mode():
    models = [nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3, 2)) for _ in range(2)]
    models[1].eval()
    found = model_outputs(models, torch.ones(4, 3, 1))
    assert found.shape == (2, 4, 2)
    assert [m.training for m in models] == [True, False]
    np.testing.assert_array_equal(found[0], found[0][:1].repeat(4, axis=0))


# ---- rules ---------------------------------------------------------------------------------------

START = 1e-3 * np.array([1.0, 0.9, 0.4, 0.1])
TARGET = np.r_[4.0, np.ones(6)]


def gram(alpha, beta):
    G = np.zeros((7, 7))
    G[6, 6], G[1, 1] = alpha, beta
    return G


def off(A):
    return abs((A[None] ** np.arange(1, 20)[:, None]).sum(axis=1) - 1).max()


def test_long_lags_first():
    phases = rules.long_lags_first(theorem_rows(2, 2))
    assert [p.tolist() for p in phases] == [[0, 1], [0, 1, 2, 3]]
    assert [len(p) for p in rules.long_lags_first(gaussian(10, 4), phases=3)] == [3, 7, 10]


def test_baseline_first_and_then_both_is_nearer_to_the_teacher_than_special_first():
    bad = rules.phases_flow(START, [gram(0, 2), gram(2, 0)], TARGET, "free", [1e3, 1e12])
    good = rules.phases_flow(START, [gram(2, 0), gram(1, 1)], TARGET, "free", [1e14, 1e3])
    assert off(bad[-1]) > 1
    assert off(good[-1]) < 0.01
    np.testing.assert_allclose(bad[0].sum(), 1)
    with pytest.raises(ValueError, match="times"):
        rules.phases_flow(START, [gram(1, 1)], TARGET, "free", [1.0, 2.0])


def test_weight_decay_after_the_fit_repairs():
    near_tie = 1e-3 * np.array([1.0, 1 - 1e-4, 0.5, 0.1])
    poisoned = gradient_flow(near_tie, (gram(1, 1), TARGET), parametrization="free", times=[1e6]).A[
        0
    ]
    repaired = gradient_flow(
        poisoned, (gram(1, 1), TARGET), parametrization="free", times=[1e8], decay=1e-6
    ).A[0]
    assert off(poisoned) > 0.1
    assert off(repaired) < 1e-3
    with pytest.raises(ValueError, match="decay"):
        gradient_flow(
            near_tie, (gram(1, 1), TARGET), parametrization="free", times=[1.0], decay=-1.0
        )


def linear(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(5, 3))


def test_fit_goes_through_its_phases_and_decays_when_fitted():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 5, 1, generator=generator), torch.arange(30) % 3
    seen = []

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear()

        def forward(self, x):
            seen.append(len(x))
            return self.inner(x)

    phases = [np.arange(10), np.arange(30)]
    result = rules.fit(Watch(), x, y, steps=6, phases=phases, batch=20, seed=1)
    assert seen == [10, 10, 10, 20, 20, 20]
    assert result.losses.shape == (6,)
    assert result.fitted_at is None
    ends = []
    for start in (0.0, float("inf")):
        model = linear()
        record = rules.fit(model, x, y, steps=40, learning_rate=0.1, decay=1.0, decay_from=start)
        ends.append((record.fitted_at, float(model[1].weight.detach().norm())))
    assert [end[0] for end in ends] == [None, 0]
    assert ends[1][1] < 0.8 * ends[0][1]
    with pytest.raises(ValueError, match="phases"):
        rules.fit(linear(), x, y, steps=1, phases=[np.array([30])])


def test_a_loss_that_is_not_finite_ends_the_fit():
    with pytest.raises(FloatingPointError, match="step 0"):
        rules.fit(
            linear(),
            torch.full((4, 5, 1), float("inf")),
            torch.zeros(4, dtype=torch.int64),
            steps=3,
        )


def test_the_median_student_is_none_that_went_wrong():
    assert rules.median_student([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]]) == 1


# ---- detectors of other packages -----------------------------------------------------------------


def test_existing_detectors_answer_row_by_row():
    data = mnist1d(400)
    x, y = data.x[:100].numpy(), data.y[:100].numpy()
    model = SequenceModel(1, 10, lambda i: LRU(8, 4, seed=i), channels=8)
    found = {
        "isolation": existing.isolation_forest(x),
        "activations": existing.activation_clustering(model, x, y),
        "spectral": existing.spectral_signatures(model, x, y),
    }
    for clean in found.values():
        assert clean.shape == (100,)
        assert clean.dtype == bool
        assert clean.any()
    assert abs((~found["isolation"]).sum() - 10) <= 1
    assert (~found["spectral"]).sum() >= 10


def test_cleanlab_finds_a_wrong_label_and_roni_a_harmful_row():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = (2.0 * y - 1)[:, None] + 0.1 * rng.standard_normal((60, 4))
    wrong = y.copy()
    wrong[7] = 1 - wrong[7]
    sure = np.where(np.arange(2) == y[:, None], 0.95, 0.05)
    np.testing.assert_array_equal(np.flatnonzero(~existing.label_issues(sure, wrong)), [7])
    assert existing.roni(x[:6], y[:6], x[6:], y[6:]).all()
    with pytest.raises(ValueError, match="every class"):
        existing.roni(x[:6:2], y[:6:2], x[6:], y[6:])
