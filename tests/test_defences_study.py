"""The study of defences: the area under a curve, and that the stored runs are this code's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssm_poison_lib.studies import defences, detectors, store

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
    "kind", ["mixture", "inside long sequences", "Gaussian", "special first, hidden"]
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


def test_every_label_is_the_teachers():
    for kind, make in defences.ADAPTED.items():
        x, harmful, phases = make(7, np.random.default_rng(0))
        assert harmful.any(), kind
        assert not harmful.all(), kind
        assert sorted(np.concatenate(phases)) == list(range(len(x))), kind


@pytest.mark.parametrize("kind", ["special first", "inside long sequences"])
def test_stored_scores_of_other_packages_are_made_by_this_code(kind):
    runs = store.load("detectors")[0]["runs"]
    (stored,) = (r for r in runs if (r["kind"], r["seed"]) == (kind, 103))
    now = detectors.compute(kind=kind, seed=103)["scores"]
    assert tuple(now) == tuple(detectors.DETECTORS)
    for name, score in stored["scores"].items():
        assert now[name] == (None if score is None else pytest.approx(score, rel=5e-3, abs=1e-6))


def test_scores_of_other_packages_are_stored_for_all_kinds_and_ten_seeds():
    runs = store.load("detectors")[0]["runs"]
    assert {(r["kind"], r["seed"]) for r in runs} == {
        (k, s) for k in defences.KINDS for s in detectors.SEEDS
    }


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
