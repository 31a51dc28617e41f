"""The study far past the authors' stop: its records, summary, files and stored result."""

import dataclasses
import json

import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ssm_poison_lib import __main__ as command
from ssm_poison_lib import paper
from ssm_poison_lib.paper import TRAINING_SETS
from ssm_poison_lib.studies import convergence, store
from ssm_poison_lib.studies.convergence import CELLS, LOSSES

ADAM = "linear kappa 6, adam 0.001, no near tie"
LINEAR = CELLS["linear kappa 6, gradient descent 0.01, near tie"]


def shortened(cell, seeds=1, horizon=None):
    return dataclasses.replace(cell, seeds=cell.seeds[:seeds], horizon=horizon or cell.horizon)


def test_cells_cover_what_the_question_needs():
    linear = dict.fromkeys(("theorem kappa 7", "linear kappa 6", "linear kappa 10"), 100)
    for label, seeds in (
        linear | dict.fromkeys(("network kappa 6", "network kappa 10"), 20)
    ).items():
        for method in ("gradient flow", "gradient descent", "adam"):
            for tie in (True, False):
                found = [
                    c
                    for c in CELLS.values()
                    if c.name.startswith(f"{label},") and (c.method, c.near_tie) == (method, tie)
                ]
                assert found
                assert all(len(c.seeds) >= seeds for c in found)
    # The authors' slow rate of their other training set, for both sets.
    assert CELLS["network kappa 10, adam 5e-05, near tie"].learning_rate == 5e-5
    for cell in CELLS.values():
        assert list(cell.seeds) == list(range(cell.seeds[0], cell.seeds[0] + len(cell.seeds)))


@pytest.fixture
def unchecked():
    """The arguments as a reader's: without the type checker of the test suite."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 1}, "name must be text"),
        ({"setting": "standalone"}, "setting must be one of"),
        ({"near_tie": "no"}, "near_tie must be True or False"),
        ({"method": "sgd"}, "method must be one of"),
        ({"learning_rate": -0.1}, "learning_rate must be"),
        ({"horizon": 1e5}, "horizon must be an integer"),
        ({"horizon": 0}, "horizon must be an integer"),
        ({"method": "gradient flow", "horizon": 0.5}, "horizon must be a finite number"),
        ({"seeds": "12"}, "seeds must be a sequence"),
        ({"seeds": (1, -2)}, r"seeds\[1\] must be"),
    ],
)
def test_a_cell_refuses_what_cannot_be_trained(change, message, unchecked):
    with pytest.raises((ValueError, TypeError), match=message):
        dataclasses.replace(LINEAR, **change)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: convergence.study("cell", "baseline", [1]), "cell must be a Cell"),
        (lambda: convergence.study(LINEAR, "both", [1]), "training_set must be one of"),
        (lambda: convergence.study(LINEAR, "baseline", 1), "seeds must be a sequence"),
        (lambda: convergence.convergence_study(LINEAR), "cells must be a sequence of Cell"),
        (lambda: convergence.convergence_study([1]), r"cells\[0\] must be a Cell"),
        (lambda: convergence.summarize(LINEAR, {"baseline": []}), "runs must have the keys"),
        (lambda: convergence.trained({"a": 1}, "baseline"), "cell must be a CellResult; got dict"),
        (lambda: convergence.factors([], "at_end"), "cell must be a CellResult; got list"),
        (
            lambda: convergence.compare_cells({"one": {"a": 1}}),
            r"cells\['one'\] must be a CellResult",
        ),
        (lambda: convergence.compare_cells([]), "cells must be a mapping"),
        (lambda: convergence.table(None), "cells must be a mapping"),
        (lambda: convergence.adjust({"one": 1}), r"comparisons\['one'\] must be a Comparison"),
        (lambda: convergence.compare(1.0, [1.0]), "baseline must be a sequence"),
    ],
)
def test_wrong_arguments_are_named(call, message, unchecked):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_at_the_stop_it_is_the_reproduction():
    """The cell's float64 run ends, at the authors' stop, where the reproduction in float64 does."""
    cell = shortened(LINEAR, horizon=20_000)
    setting = paper.EXPERIMENTS[cell.setting]
    for which in TRAINING_SETS:
        (record,) = convergence.study(cell, which, cell.seeds)
        run = setting.run(cell.seeds[0], which, precision="float64")
        assert record.at_stop == setting.error(
            run.log.network(len(run.log.epochs) - 1), cell.seeds[0]
        )
        at_threshold = run.log.network(int(np.searchsorted(run.log.epochs, run.stop_epoch)))
        assert record.by_loss[LOSSES.index(0.01)] == setting.error(at_threshold, cell.seeds[0])


@pytest.mark.untyped
def test_records_are_consistent():
    for name in (
        "linear kappa 6, gradient flow, no near tie",
        "theorem kappa 7, gradient flow, near tie",
        "network kappa 6, gradient flow, near tie",
        "network kappa 10, gradient descent 0.0004, no near tie",
        LINEAR.name,
    ):
        horizon = 2000 if "flow" not in name else 1e5 if "network" in name else 1e12
        cell = shortened(CELLS[name], seeds=2, horizon=horizon)
        for which in TRAINING_SETS:
            for record in convergence.study(cell, which, cell.seeds):
                assert len(record.error) == len(record.loss) == len(cell.grid)
                assert len(record.by_loss) == len(LOSSES)
                lowest = min(record.loss)
                if "flow" in name:  # downhill, up to rounding
                    assert (np.diff(record.loss) <= 1e-9 * record.loss[0]).all()
                    assert lowest < 0.99999 * record.loss[0] or "network" in name
                assert all(
                    (value is not None) >= (lowest <= mark)
                    for value, mark in zip(record.by_loss, LOSSES, strict=True)
                )


def record(cell, error, *, stop, end_loss=1e-5, by_loss=None):
    """A record as `convergence.study` makes them, with one error along the whole grid."""
    n = len(cell.grid)
    loss = [4 * end_loss] * (n - 1) + [end_loss]
    return convergence.Trial((error,) * n, tuple(loss), stop, by_loss or (None,) * len(LOSSES))


def hand_made(cell):
    """Three seeds; the second baseline run never trained. Only the first reaches a loss of 0.05
    with both runs.
    """

    def at(*errors):
        return (*errors, *[None] * (len(LOSSES) - len(errors)))

    return {
        "baseline": [
            record(cell, 0.1, stop=1.0, by_loss=at(0.7)),
            record(cell, 0.9, stop=None, end_loss=2.0),
            record(cell, 0.3, stop=3.0, by_loss=at(0.5)),
        ],
        "with special": [
            record(cell, 0.2, stop=0.5, by_loss=at(0.7)),
            record(cell, 0.1, stop=0.1, by_loss=at(0.4)),
            record(cell, 0.2, stop=4.0),
        ],
    }


def test_a_summary_keeps_every_seed_and_spreads_of_pairs_only():
    cell = dataclasses.replace(LINEAR, seeds=(1, 2, 3), horizon=1000)
    summary = convergence.summarize(cell, hand_made(cell))
    assert summary["baseline"].at_stop == (1.0, None, 3.0)
    assert summary["baseline"].loss_end == (1e-5, 2.0, 1e-5)
    assert summary["with special"].at_loss[0] == (0.7, 0.4, None)
    assert (summary["baseline"].trained, summary["baseline"].falling) == (0, 3)
    # By epoch the second seed is left out on both sides: its baseline run did not train.
    for which, quartiles in (("baseline", (0.15, 0.25)), ("with special", (0.2, 0.2))):
        assert len(summary[which].by_epoch) == len(cell.grid)
        assert summary[which].by_epoch[0] == convergence.Spread(2, 0.2, *quartiles)
        assert summary[which].by_loss[0] == convergence.Spread(1, 0.7, 0.7, 0.7)
        assert summary[which].by_loss[1] == convergence.Spread(0, None, None, None)


def test_a_result_comes_back_from_its_file():
    cell = dataclasses.replace(LINEAR, seeds=(1, 2, 3), horizon=1000)
    result = convergence.summarize(cell, hand_made(cell))
    kept = json.loads(json.dumps(result.to_dict()))
    assert convergence.CellResult.from_dict(kept) == result
    assert (kept["grid"], kept["losses"]) == (cell.grid, list(LOSSES))
    stored = store.load("convergence")[0]["cells"]
    for name, values in stored.items():
        assert (
            json.loads(json.dumps(convergence.CellResult.from_dict(values).to_dict())) == values
        ), name


def test_all_comparisons_of_a_study_are_of_pairs_and_adjusted_together():
    cell = dataclasses.replace(LINEAR, seeds=(1, 2, 3), horizon=1000)
    runs = hand_made(cell)
    worse = {
        **runs,
        "with special": [dataclasses.replace(row, at_stop=9.0) for row in runs["with special"]],
    }
    cells = {"one": convergence.summarize(cell, runs), "two": convergence.summarize(cell, worse)}
    found = convergence.compare_cells(cells)
    moments = ("at_stop", "at_end", *LOSSES)
    assert list(found) == [(name, moment) for name in cells for moment in moments]
    at_stop, at_end = found["one", "at_stop"], found["one", "at_end"]
    assert (at_stop.n, at_stop.worse, at_stop.baseline, at_stop.special) == (2, 1, 2.0, 2.25)
    assert (at_end.n, at_end.worse, at_end.baseline, at_end.special) == (
        2,
        1,
        pytest.approx(0.2),
        0.2,
    )
    assert (found["one", 0.05].n, found["one", 0.05].worse, found["one", 0.05].better) == (1, 0, 0)
    assert {found["one", mark].n for mark in LOSSES[1:]} == {0}
    assert convergence.factors(cells["one"], "at_stop") == [0.5, None, pytest.approx(4 / 3)]
    assert convergence.factors(cells["one"], "at_end") == [2.0, None, pytest.approx(2 / 3)]
    assert convergence.factors(cells["one"], 0.05) == [1.0, None, None]
    with pytest.raises(ValueError, match="moment must be one of"):
        convergence.factors(cells["one"], "later")
    assert (found["two", "at_stop"].p, found["two", "at_stop"].adjusted) == (0.5, 1.0)
    with pytest.raises(TypeError, match="cells"):
        convergence.compare_cells([cells["one"]])


# The sign test by hand: of 5 pairs that differ 5 one way, 2 / 2**5; 4 to 1, 2 * (1 + 5) / 2**5.
@pytest.mark.parametrize(
    ("baseline", "special", "expected"),
    [
        (
            [1, 2, 4, 1, 1],
            [2, 8, 8, 3, 3],
            {"n": 5, "worse": 5, "better": 0, "p": 2 / 32, "ratio": 3.0},
        ),
        (
            [1, 2, 4, 1, 3],
            [2, 8, 8, 3, 1],
            {"n": 5, "worse": 4, "better": 1, "p": 12 / 32, "ratio": 2.0},
        ),
        (
            [2, 8, 8, 3, 3],
            [1, 2, 4, 1, 1],
            {"n": 5, "worse": 0, "better": 5, "p": 2 / 32, "ratio": 1 / 3},
        ),
        # equal pairs are pairs, but the test does not know them
        (
            [1, 2, 4, 1, 1, 5, 7],
            [2, 8, 8, 3, 3, 5, 7],
            {"n": 7, "worse": 5, "better": 0, "p": 2 / 32, "ratio": 2.0},
        ),
        ([1.0, 2.0], [1.0, 2.0], {"n": 2, "worse": 0, "better": 0, "p": 1.0, "ratio": 1.0}),
        # a seed without one of its runs is left out on both sides, medians included
        (
            [1, None, 3, 50],
            [2, 99, None, 100],
            {"n": 2, "worse": 2, "baseline": 25.5, "special": 51.0, "p": 0.5},
        ),
        ([1, 1], [2, 0.5], {"n": 2, "worse": 1, "better": 1, "p": 1.0}),
    ],
)
def test_a_comparison_is_over_the_seeds_that_both_have(baseline, special, expected):
    found = convergence.compare(baseline, special)
    assert {key: getattr(found, key) for key in expected} == pytest.approx(expected)
    assert found.adjusted == found.p
    assert found.low <= found.ratio <= found.high


def test_a_comparison_without_a_pair_says_so():
    for columns in ([None, 1.0], [2.0, None]), ([], []):
        found = convergence.compare(*columns)
        assert (found.n, found.worse, found.better, str(found)) == (0, 0, 0, "no pairs")
        assert np.isnan(
            [found.baseline, found.special, found.ratio, found.low, found.high, found.p]
        ).all()
        assert np.isnan(found.adjusted)


@pytest.mark.parametrize(
    ("baseline", "special", "message"),
    [
        ([1.0, 2.0], [1.0], "special must have an entry for each of the 2 seeds"),
        ([1.0, np.nan], [1.0, 1.0], r"baseline\[1\] must be a finite number > 0; got nan"),
        ([1.0, 1.0], [1.0, np.inf], r"special\[1\] must be a finite number > 0; got inf"),
        ([0.0], [1.0], r"baseline\[0\] must be a finite number > 0; got 0.0"),
        ([1.0], [-1.0], r"special\[0\] must be"),
        ([True], [1.0], r"baseline\[0\] must be"),
        ([1.0], "1", "special"),
    ],
)
def test_a_comparison_refuses_what_is_no_error(baseline, special, message):
    with pytest.raises((ValueError, TypeError), match=message):
        convergence.compare(baseline, special)


@given(
    st.lists(
        st.tuples(st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([1.0, 2.0, 3.0])), min_size=1
    )
)
def test_a_comparison_changes_its_side_with_its_arguments(pairs):
    one, two = zip(*pairs, strict=True)
    there, back = convergence.compare(one, two), convergence.compare(two, one)
    assert (there.n, there.worse, there.better) == (back.n, back.better, back.worse)
    assert there.p == back.p
    differing = there.worse + there.better
    expected = binomtest(there.worse, differing).pvalue if differing else 1.0
    assert there.p == pytest.approx(expected)


def test_the_interval_of_the_ratio_is_that_of_its_median():
    special = [float(k) for k in range(1, 22)]
    found = convergence.compare([1.0] * 21, special)
    assert (found.ratio, found.low, found.high) == paper.median_interval(special)


def with_p(p, n=9):
    return convergence.Comparison(n, 0, n, *[1.0] * 5, p, p)


def test_p_values_are_adjusted_for_their_number():
    """Holm by hand: the k-th smallest of m times m - k + 1, never below the one before, never above
    1.
    """
    given_p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": 0.9}
    comparisons = {key: with_p(p) for key, p in given_p.items()}
    comparisons["none"] = convergence.compare([], [])
    adjusted = {key: c.adjusted for key, c in convergence.adjust(comparisons).items()}
    assert np.isnan(adjusted.pop("none"))  # and it does not count: m is 5
    assert list(adjusted) == list(given_p)
    assert adjusted == pytest.approx({"d": 0.025, "a": 0.04, "c": 0.09, "b": 0.09, "e": 0.9})
    assert {
        c.adjusted for c in convergence.adjust({"a": with_p(0.7), "b": with_p(0.8)}).values()
    } == {1.0}
    assert convergence.adjust({}) == {}
    with pytest.raises(TypeError, match="comparisons"):
        convergence.adjust([with_p(0.1)])


def test_the_command_makes_the_study_from_blocks_of_seeds(tmp_path, monkeypatch, capsys):
    cells = [
        shortened(LINEAR, seeds=11, horizon=1000),
        shortened(CELLS[ADAM], seeds=2, horizon=1000),
    ]
    study = dataclasses.replace(convergence.convergence_study(cells), scheduler="threads")
    monkeypatch.setattr(convergence, "STUDY", study)
    assert [job.name for job in study.jobs[:3]] == [
        f"{LINEAR.name}/{which}-{first}"
        for which, first in (("baseline", 200), ("with special", 200), ("baseline", 210))
    ]
    assert command.main(["study", "convergence", "--results", str(tmp_path)]) == 0
    assert "linear kappa 6" in capsys.readouterr().out
    stored = store.read_json(tmp_path / "convergence.json")
    assert list(stored["cells"]) == [LINEAR.name, ADAM]
    for cell in cells:
        runs = {which: convergence.study(cell, which, cell.seeds) for which in TRAINING_SETS}
        assert stored["cells"][cell.name] == json.loads(
            json.dumps(convergence.summarize(cell, runs).to_dict())
        )


@pytest.mark.untyped
@pytest.mark.parametrize(
    "name",
    [
        "linear kappa 6, gradient flow, near tie",
        "linear kappa 10, gradient descent 0.001, near tie",
        "network kappa 6, gradient flow, near tie",
    ],
)
def test_the_stored_study_is_that_of_today(name):
    """Three seeds (of a network one) of three cells, made again; descent up to the stop only, for
    later it oscillates.
    """
    stored, provenance = convergence.load_convergence()
    assert provenance["command"].startswith("python -m ssm_poison_lib study convergence")
    assert set(stored) == set(CELLS)
    cell = dataclasses.replace(
        CELLS[name], seeds=CELLS[name].seeds[: 1 if "network" in name else 3]
    )
    if "descent" in name:
        cell = dataclasses.replace(cell, horizon=30_000)
    for which in TRAINING_SETS:
        for k, record in enumerate(convergence.study(cell, which, cell.seeds)):
            assert stored[name][which].at_stop[k] == pytest.approx(record.at_stop, rel=0.01)
            if "flow" in name:
                assert stored[name][which].at_end[k] == pytest.approx(record.error[-1], rel=0.01)
    assert stored[name].seeds == CELLS[name].seeds


def test_the_stored_study_is_complete():
    stored, _ = convergence.load_convergence()
    for name, cell in CELLS.items():
        assert stored[name].grid == cell.grid
        for which in TRAINING_SETS:
            assert len(stored[name][which].at_end) == len(cell.seeds)
            assert len(stored[name][which].by_epoch) == len(cell.grid)
            assert [len(errors) for errors in stored[name][which].at_loss] == [
                len(cell.seeds)
            ] * len(LOSSES)


def test_the_end_is_compared_among_runs_that_trained():
    stored, _ = convergence.load_convergence()
    found = convergence.compare_cells(stored)
    name = "linear kappa 10, gradient flow, near tie"
    cell, end = stored[name], found[name, "at_end"]
    assert (end.n, end.worse) == (89, 4)  # the other eleven baseline runs stay above a loss of 1
    good = convergence.trained(cell, "baseline")
    idle = [
        loss for loss, trained in zip(cell["baseline"].loss_end, good, strict=True) if not trained
    ]
    assert len(idle) == 11
    assert min(idle) > 1
    same = [e for e, trained in zip(cell["with special"].at_end, good, strict=True) if trained]
    assert end.special == np.median(same) != np.median(cell["with special"].at_end)
    assert [cell[which].by_epoch[-1].n for which in TRAINING_SETS] == [89, 89]
    theorem = found["theorem kappa 7, gradient descent 0.02, near tie", "at_end"]
    assert (theorem.n, theorem.worse) == (86, 86)
    assert found["network kappa 6, gradient descent 0.001, near tie", "at_end"].n == 0
    with pytest.raises(ValueError, match="training_set must be"):
        convergence.trained(cell, "both")


@pytest.mark.untyped
def test_the_table_has_a_line_for_each_cell_and_counts_the_comparisons():
    stored, _ = convergence.load_convergence()
    found = convergence.compare_cells(stored)
    *lines, last = convergence.table(stored).splitlines()[1:]
    for name, line in zip(stored, lines, strict=True):
        assert line.split(" | ") == [
            name,
            *(str(found[name, moment]) for moment in ("at_stop", "at_end", 1e-4)),
        ]
    stop = found[LINEAR.name, "at_stop"]
    assert str(stop) == f"{stop.baseline:.3g} / {stop.special:.3g}, worse 100/100"
    made = [c for c in found.values() if c.n]
    assert last.startswith(f"{len(made)} comparisons at 9 moments")
    assert all(c.p <= c.adjusted <= 1 for c in made)
    assert sum(c.p < c.adjusted for c in made) > len(made) / 2
    assert f"{sum(c.adjusted < 0.05 for c in made)} of them after Holm" in last
