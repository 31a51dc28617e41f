"""The study of defences: the area under a curve, and that the stored runs are this code's."""

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from ssm_poison_lib.architectures.channel import CHANNELS
from ssm_poison_lib.attacks.datasets import mnist1d
from ssm_poison_lib.audit.harmless import mnist1d_windows
from ssm_poison_lib.studies import benchmark, defences, detectors, layers, store, sweep

SWEEPS = ROOT / "book" / "sweeps"
SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


@given(SCORES, SCORES)
def test_the_area_is_the_share_of_pairs_in_order(bad, good):
    pairs = [(b > g) + (b == g) / 2 for b in bad for g in good]
    area, low, high = defences.separation(bad, good)
    assert area == pytest.approx(np.mean(pairs))
    assert 0 <= low <= high <= 1


def test_the_area_of_equal_and_of_parted_groups():
    assert defences.separation([1, 1], [1, 1, 1]) == (0.5, 0.5, 0.5)
    assert defences.separation([2, 3], [0, 1]) == (1, 1, 1)
    with pytest.raises(ValueError, match="good"):
        defences.separation([1], [])


@pytest.mark.parametrize(
    "kind", ["mixture", "inside long sequences", "MNIST-1D", "special first, hidden"]
)
def test_stored_runs_are_made_by_this_code(kind):
    content, _ = store.load("defences")
    (stored,) = (
        r for r in content["runs"] if (r["kind"], r["seed"], r["near_tie"]) == (kind, 103, True)
    )
    now = defences.compute(kind=kind, seed=103, near_tie=True)
    assert now["undefended"] == pytest.approx(stored["undefended"], rel=2e-3, abs=1e-6)
    assert now["scores"] == pytest.approx(stored["scores"], rel=2e-3, abs=1e-4)
    assert now["rules"] == pytest.approx(stored["rules"], rel=2e-3, abs=1e-6)


def test_all_jobs_are_stored():
    content, _ = store.load("defences")
    found = {(r["kind"], r["seed"], r["near_tie"]) for r in content["runs"]}
    assert found == {
        (k, s, t) for k in defences.KINDS for s in defences.SEEDS for t in (True, False)
    }


def test_windows_of_mnist1d_are_smooth_and_stay_within_an_example():
    examples = mnist1d(4000).x[:, :, 0].numpy().astype(float)
    windows = mnist1d_windows(20, 7, np.random.default_rng(0))
    assert windows.shape == (20, 7)
    followed = np.lib.stride_tricks.sliding_window_view(examples, 7, axis=1)
    owners = [np.argwhere((followed == window).all(axis=2)) for window in windows]
    assert all(len(at) == 1 for at in owners)
    assert len({int(at[0, 0]) for at in owners}) == 20  # each of another example
    assert len({int(at[0, 1]) for at in owners}) > 5  # from various steps
    steps = np.diff(windows, axis=1)
    assert np.square(steps).mean() < np.square(windows).mean() / 2  # white noise: twice
    with pytest.raises(ValueError, match="length"):
        mnist1d_windows(20, 41, np.random.default_rng(0))
    assert benchmark.HARMLESS == {k: v for k, v in defences.HARMLESS.items() if k != "MNIST-1D"}


def test_every_label_is_the_teachers():
    for kind, make in defences.ADAPTED.items():
        x, harmful, phases = make(7, np.random.default_rng(0))
        assert harmful.any(), kind
        assert not harmful.all(), kind
        assert sorted(np.concatenate(phases)) == list(range(len(x))), kind


def stored_scores(model, start, kind):
    """The stored row of a kind of data."""
    runs = store.load("detectors")[0]["runs"]
    (found,) = (r for r in runs if (r["model"], r["start"], r["kind"]) == (model, start, kind))
    return found


@pytest.mark.parametrize("kind", ["special first", "inside long sequences"])
def test_stored_scores_of_other_packages_are_made_by_this_code(kind):
    stored = stored_scores("free", "near tie", kind)
    now = detectors.compute(model="free", start="near tie", kind=kind, seeds=[103])["scores"]
    assert tuple(now) == tuple(detectors.DETECTORS)
    for name, scores in stored["scores"].items():
        (score,), at = now[name], stored["seeds"].index(103)
        assert score == (None if scores[at] is None else pytest.approx(scores[at], rel=5e-3))


@pytest.mark.parametrize(
    ("model", "start", "kind"),
    [
        ("Mamba-2", "near zero", "special first"),
        ("S4D", "the layer's own", "strongest mixture"),
        ("LRU", "the layer's own", "MNIST-1D"),
    ],
)
def test_stored_scores_of_layers_are_made_by_this_code(model, start, kind):
    stored = stored_scores(model, start, kind)
    now = detectors.compute(model=model, start=start, kind=kind, seeds=[103])
    at = stored["seeds"].index(103)
    assert now["error"] == [pytest.approx(stored["error"][at], rel=2e-2, abs=1e-5)]
    assert tuple(now["scores"]) == detectors.LAYER_DETECTORS
    for name, (score,) in now["scores"].items():
        assert score == pytest.approx(stored["scores"][name][at], rel=2e-2, abs=1e-4), name


def test_scores_are_stored_for_all_kinds_and_seeds():
    runs = store.load("detectors")[0]["runs"]
    found = {(r["model"], r["start"], r["kind"]): r for r in runs}
    assert set(found) == {
        *(("free", "near tie", kind) for kind in defences.KINDS),
        *(
            (model, start, kind)
            for model in detectors.LAYERS
            for start in layers.STARTS
            for kind in detectors.LAYER_KINDS
        ),
    }
    for row in found.values():
        assert row["seeds"] == list(defences.SEEDS)
        assert all(len(scores) == len(defences.SEEDS) for scores in row["scores"].values())


def test_the_mixtures_for_layers_are_the_strongest_of_the_search():
    for start, name in zip(layers.STARTS, ("near_zero", "own"), strict=True):
        swept = sweep.load(SWEEPS / f"layers_{name}.zarr").sel(trained=1)
        recipes = [k for k, r in enumerate(layers.RECIPES) if r.phases == ("both",)]
        for model in detectors.LAYERS:
            errors = swept.error.sel(channel=list(CHANNELS).index(model)).transpose(
                "recipe", "seed"
            )
            ratios = np.median(errors.values / errors.values[0], axis=1)
            lag, dose = detectors.MIXTURES[model, start]
            (taken,) = (
                k for k in recipes if (layers.RECIPES[k].lag, layers.RECIPES[k].dose) == (lag, dose)
            )
            assert ratios[taken] == max(ratios[recipes])


def test_data_for_layers_show_three_lags_and_the_dose_of_the_search():
    for kind in detectors.LAYER_KINDS:
        x, phases = detectors._layer_data("S4D", "near zero", kind, 3)
        assert sorted(np.concatenate(phases)) == list(range(len(x)))
        assert (np.abs(x[:, :3]).max(axis=0) > 0).all(), kind
    weights = []
    for seed in range(200):
        x, _ = detectors._layer_data("LRU", "near zero", "strongest mixture", seed)
        weights.append(np.square(x).sum(axis=0))
    mean = np.mean(weights, axis=0)
    np.testing.assert_allclose(mean[3], mean[:3].mean(), rtol=0.1)  # lag 3, dose 1
    assert not mean[4:].any()


def test_a_path_is_cut_into_equal_parts_and_ends_where_the_flow_ends():
    x, _, phases = defences.KINDS["mixture"](7, np.random.default_rng([100, 1]))
    start, gaps = defences._start(True, 1100)
    way = detectors.path(x, phases, start, gaps)
    parts = np.linalg.norm(np.diff(way, axis=0), axis=1)
    assert parts.max() < 1.2 * np.median(parts)  # chords of a bent way
    np.testing.assert_allclose(way[0], start)
    error = defences.benchmark.student_error(way[-1])
    assert error == pytest.approx(
        next(
            r["undefended"]
            for r in store.load("defences")[0]["runs"]
            if (r["kind"], r["seed"], r["near_tie"]) == ("mixture", 100, True)
        ),
        rel=1e-2,
    )
