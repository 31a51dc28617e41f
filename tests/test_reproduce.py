"""The paper's settings beside the authors' values; result files that survive a kill and do not
survive damage.
"""

import ctypes
import dataclasses
import errno
import json
import math
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import __main__ as command
from ssm_poison_lib import _files, descent, paper
from ssm_poison_lib._checks import available_cores
from ssm_poison_lib.networks import as_network
from ssm_poison_lib.paper import EXPERIMENTS, TRAINING_SETS
from ssm_poison_lib.records import Record
from ssm_poison_lib.ssm import DiagonalSSM
from ssm_poison_lib.studies import reproduce, store
from ssm_poison_lib.studies.reproduce import Run
from ssm_poison_lib.tensorflow_random import stateless_normal

LINEAR_POISON = [name for name in EXPERIMENTS if name.startswith("standalone_ssm_poison")]
NETWORK_POISON = [name for name in EXPERIMENTS if name.startswith("ssm_in_nn_poison")]
DYNAMICS = [name for name in EXPERIMENTS if "dynamics" in name]
QUICK = "standalone_ssm_dim=2_dynamics__s1"  # two short runs


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All 60 training runs of the paper, from the authors' starts."""
    folder = tmp_path_factory.mktemp("results")
    return reproduce.reproduce(
        EXPERIMENTS, folder=folder, workers=max(2, available_cores()), progress=False
    )


def reference(run):
    """The authors' own run, or its float32 re-implementation where their code was not run."""
    known = EXPERIMENTS[run.setting].authors(run.seed, run.training_set)
    return known.authors or known.replica_f32


def of(records, names):
    return [
        (run, record, reference(run)) for run, record in records.items() if run.setting in names
    ]


def test_the_settings_are_complete():
    assert len(EXPERIMENTS) == 18
    assert len(LINEAR_POISON) == len(NETWORK_POISON) == 2
    assert len(DYNAMICS) == 14
    assert len(reproduce.SETTINGS) == 20
    assert sum(len(EXPERIMENTS[name].seeds) for name in [*LINEAR_POISON, *NETWORK_POISON]) * 2 == 32


def test_drawn_starts_are_the_authors_own_in_every_digit():
    try:
        ctypes.CDLL("libm.so.6")
        ulps = 0
    except OSError:  # another C library rounds sines differently
        ulps = 2
    for setting in EXPERIMENTS.values():
        for seed in setting.seeds:
            drawn, stored = setting.start(seed), setting.authors_start(seed)
            a, b = (descent.flatten(as_network("start", start)) for start in (drawn, stored))
            (
                assert_array_equal(a, b)
                if ulps == 0
                else assert_allclose(a, b, rtol=ulps * 1.2e-7, atol=1e-9)
            )


def test_a_smaller_draw_starts_like_a_larger_one():
    assert_array_equal(
        stateless_normal(200, (4, 5)).ravel(),
        stateless_normal(200, (41,))[:20],
    )
    many = stateless_normal(3, (10_000,))
    assert abs(many.mean()) < 0.05
    assert abs(many.std() - 1) < 0.05


def test_without_near_ties_the_second_entries_are_as_drawn():
    setting = EXPERIMENTS["standalone_ssm_poison__s0"]
    tied, free = setting.start(200), setting.without_near_tie().start(200)
    assert tied.A[0] - tied.A[1] < 1e-7
    assert free.A[0] - free.A[1] > 1e-5
    keep = [0, *range(2, 10)]
    assert_array_equal(tied.A[keep], free.A[keep])
    assert_array_equal(tied.C, free.C)


def test_float32_labels_are_the_authors_own():
    """Labels printed by the authors' program: three sequences of an SSM, three of a network."""
    linear = EXPERIMENTS["standalone_ssm_poison__s0"].training_set(200, "baseline")
    labels = descent._outputs(linear.teacher, np.float32(linear.x))
    assert_array_equal(
        labels[:3],
        np.array([0.46000492572784424, 0.4641408324241638, 0.32851654291152954], np.float32),
    )
    network = EXPERIMENTS["ssm_in_nn_poison__s0"].training_set(4540, "baseline")
    labels = descent._outputs(network.teacher, np.float32(network.x))
    assert labels.dtype == np.float32
    assert_allclose(labels, network.y, rtol=1e-6, atol=1e-6)


def test_special_sequences_follow_the_baseline_ones():
    for setting in EXPERIMENTS.values():
        seed = setting.seeds[0]
        baseline, both = (setting.training_set(seed, which) for which in TRAINING_SETS)
        assert_array_equal(both.x[: len(baseline.x)], baseline.x)
        assert len(both.x) == setting.baseline_count + setting.special_count
        used = {int(p) + 1 for p in np.flatnonzero(both.x[len(baseline.x) :].any(axis=0))}
        assert used == set(setting.special_positions)


def test_linear_poison_runs_stop_where_the_authors_do(everything):
    rows = of(everything, LINEAR_POISON)
    assert [(run, record.stop_epoch) for run, record, _ in rows] == [
        (run, theirs.stop_epoch) for run, _, theirs in rows
    ]
    assert len(rows) == 16


def test_linear_poison_errors_are_within_4_percent(everything):
    for run, record, theirs in of(everything, LINEAR_POISON):
        assert record.logged_epoch == record.stop_epoch + 1401
        assert record.logged_error == pytest.approx(theirs.logged_error, rel=0.04), run
        assert record.effective_rank == pytest.approx(theirs.effective_rank, rel=1e-3), run
        assert record.max_abs_gamma0 == pytest.approx(theirs.max_abs_gamma0, rel=1e-3, abs=1e-12), (
            run
        )
        replica = EXPERIMENTS[run.setting].authors(run.seed, run.training_set).replica_f32
        assert record.error_at_stop == pytest.approx(replica.error_at_stop, rel=0.01), run


def test_dynamics_runs_stop_within_one_epoch(everything):
    rows = of(everything, DYNAMICS)
    far = [run for run, record, theirs in rows if abs(record.stop_epoch - theirs.stop_epoch) > 1]
    assert len(rows) == 28
    assert len(far) <= 2, far


def test_network_poison_runs_lie_in_the_rounding_band(everything):
    rows = of(everything, NETWORK_POISON)
    outside = []
    for run, record, theirs in rows:
        assert record.stop_epoch == pytest.approx(theirs.stop_epoch, rel=0.02), run
        low, high = EXPERIMENTS[run.setting].authors(run.seed, run.training_set).rounding_band
        if not low / 1.5 <= record.logged_error <= high * 1.5:
            outside.append(run)
    assert len(rows) == 16
    assert len(outside) <= 2, outside


def test_network_dynamics_use_the_authors_test_sequences(everything):
    """At the poisoned runs, where rounding matters little, sequences from seed + 12 would be 2
    percent off.
    """
    for run, record, theirs in of(everything, DYNAMICS):
        if run.setting.startswith("ssm_in_nn") and run.training_set == "with special":
            assert record.logged_error == pytest.approx(theirs.logged_error, rel=0.01), run


def test_teachers_of_higher_dimension_keep_a_lag_that_cannot_be_learnt(everything):
    for run, record, _ in of(everything, DYNAMICS):
        if "dim=" in run.setting:
            setting = EXPERIMENTS[run.setting]
            dim = len(setting.teacher_poles)
            assert record.logged_error >= (setting.state_dim - dim) / dim * (1 - 1e-9)
            assert record.logged_error_from_lag_1 != record.logged_error


def test_the_traps_would_show():
    """Counting the diagonal alone ends earlier (9.4 instead of 17.1), sorting C changes 17.1 to
    7.6.
    """
    setting, seed, which = EXPERIMENTS["standalone_ssm_poison__s0"], 204, "with special"
    start, data, rule = (
        setting.authors_start(seed),
        setting.training_set(seed, which),
        setting.rule(which),
    )

    def outcome(start, rule):
        run = descent.Descent(start, data, rule, log_after_stop=(1401,)).advance()
        return run.stop_epoch, setting.error(run.log.network(1), seed)

    stop, error = outcome(start, rule)
    assert (stop, error) == (1314, pytest.approx(17.12, rel=1e-3))
    early, smaller = outcome(start, dataclasses.replace(rule, off_diagonal=False))
    assert 0.71 * stop < early < 0.8 * stop
    assert smaller == pytest.approx(9.4, rel=0.01)
    ordered = DiagonalSSM(start.A, start.B, np.sort(start.C)[::-1])
    assert outcome(ordered, rule)[1] == pytest.approx(7.6, rel=0.02)


def test_records_hold_what_is_documented(everything):
    for run, record in everything.items():
        curves = record.curves
        lengths = {len(v) for v in dataclasses.astuple(curves)[1:] if v is not None}
        assert len(lengths) == 1
        assert lengths.pop() <= 160
        assert (curves.unit, curves.at[0], curves.at[-1]) == ("epoch", 0, record.logged_epoch)
        assert curves.error[-1] == record.logged_error
        assert record.trained == (record.stop_epoch is not None)
        assert record.end_time is None
        by_lag = EXPERIMENTS[run.setting].by_lag(EXPERIMENTS[run.setting].start(1)) is not None
        for value in (record.logged_error_from_lag_1, record.worst_lag, curves.error_from_lag_1):
            assert (value is not None) == by_lag
    setting = paper.THEOREM_SETTINGS["theorem_kappa7"]
    flow = setting.record(242, "baseline")
    assert flow.trained
    assert flow.stop_epoch is flow.epochs is flow.logged_epoch is flow.error_at_stop is None
    assert flow.logged_error == pytest.approx(setting.authors_value(242, "baseline"), rel=2e-3)
    assert flow.logged_error_from_lag_1 == pytest.approx(10 * flow.logged_error, rel=1e-12)
    assert (flow.curves.unit, flow.curves.at[-1]) == ("time", flow.end_time)
    assert flow.curves.error[-1] == flow.logged_error
    assert flow.curves.error_from_lag_1[-1] == flow.logged_error_from_lag_1


def test_stored_results_are_those_of_today(everything):
    stored, provenance = reproduce.load_summary("reproduced")
    assert provenance["command"].startswith("python -m ssm_poison_lib reproduce all")
    assert set(everything) <= set(stored)
    for run, record in everything.items():
        assert stored[run].stop_epoch == pytest.approx(record.stop_epoch, rel=2e-3), run
        if run.setting in LINEAR_POISON:
            assert stored[run].logged_error == pytest.approx(record.logged_error, rel=0.04), run


def lines_of(text, word):
    return [line for line in text.splitlines() if word in line]


def test_the_command_prints_every_column_and_writes_a_summary(tmp_path, capsys):
    folder = tmp_path / "results"
    assert command.main(["reproduce", QUICK, "--seeds", "2", "--results", str(folder)]) == 0
    out = capsys.readouterr().out
    reproduced = reproduce.reproduce([QUICK], seeds=2, folder=folder, progress=False)
    assert (
        len(lines_of(out, "  baseline")) == 1 + 2 + 1 + 1
    )  # the authors' seed, two fresh ones, mean, median
    own = lines_of(out, "  baseline       1202")[0].split()
    assert own[1:5] == ["1202", "9", "9", "1.000"]
    assert own[5:8] == ["2435", "2435", "3935"]
    record = reproduced[Run(QUICK, "baseline", 1202)]
    assert own[8:] == [f"{record.seconds:.2f}", f"{record.logged_error_from_lag_1:.4g}"]
    assert "never trained: 0 of 4 runs" in out
    assert "reversed" in out
    content = store.read_json(folder / "reproduce.json")
    assert content["seeds"] == {QUICK: [1202, 1203, 1204]}
    assert {"made", "versions", "seconds", "command", "machine"} <= set(content)
    assert len(reproduced) == 6


def test_fresh_seeds_are_consecutive_and_beyond_the_authors():
    assert reproduce.fresh_seeds("standalone_ssm_poison__s0", 3) == (206, 207, 208)
    assert reproduce.fresh_seeds("theorem_kappa9", 1) == (347,)


def test_wrong_arguments_are_named(tmp_path, capsys):
    assert command.main(["reproduce", "nothing", "--results", str(tmp_path)]) == 2
    assert "unknown setting 'nothing'" in capsys.readouterr().err
    assert command.main(["reproduce", QUICK, "--seeds", "-1", "--results", str(tmp_path)]) == 2
    assert "count must be an integer from 0 to 100000; got -1" in capsys.readouterr().err
    with pytest.raises(ValueError, match="which must be one of"):
        EXPERIMENTS[QUICK].training_set(1, "poison")
    with pytest.raises(ValueError, match="seed must be one of the authors' seeds"):
        EXPERIMENTS[QUICK].authors_start(7)
    network = EXPERIMENTS[NETWORK_POISON[0]]
    with pytest.raises(ValueError, match="first_lag must be 0 for a network"):
        network.error(network.teacher, 1, first_lag=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["all", QUICK], "'all' must stand alone"),
        ([QUICK, "all"], "'all' must stand alone"),
        ([QUICK, QUICK], "names must name each setting once"),
        ([QUICK, "--workers", "0"], "workers must be an integer from 1 to 1024; got 0"),
        ([QUICK, "--seeds", str(10**12)], "count must be an integer from 0 to 100000"),
        ([QUICK, "--results", ""], "--results must be a path"),
    ],
)
def test_wrong_commands_end_with_status_2_and_write_nothing(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert command.main(["reproduce", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def modified(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("reproduce/*/*.json")}


def test_what_a_killed_write_left_is_cleared_away(tmp_path):
    path = tmp_path / "a.json"
    left, others = tmp_path / "a.json.123-4.partial", tmp_path / "b.json.123-4.partial"
    left.touch()
    others.touch()
    store.write_json(path, {"schema": 1})
    assert sorted(tmp_path.iterdir()) == [path, others]


def quick(*, setting, training_set, seed):
    return Record(
        start="drawn",
        precision="float64",
        trained=True,
        stop_epoch=1,
        epochs=2,
        end_time=None,
        logged_epoch=2,
        logged_error=1.0,
        logged_error_from_lag_1=1.0,
        worst_lag=3,
        logged_train_loss=0.1,
        error_at_stop=1.0,
        effective_rank=1.0,
        largest_abs_a=(1.0,),
        max_abs_gamma0=0.0,
        seconds=0.0,
        curves=None,
    ).to_dict()


class FullDisk:
    def __init__(self, file):
        self.file = file

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.file.close()


def test_a_full_disk_is_named_and_keeps_what_is_there(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.json"
    store.write_json(path, {"schema": 1, "value": 3})
    monkeypatch.setattr(_files, "open", lambda *how: FullDisk(open(*how)), raising=False)
    with pytest.raises(OSError, match=r"No space left on device: .*a\.json'$"):
        store.write_json(path, {"schema": 1, "value": 4})
    run = descent.Descent(*small_case(), descent.Rule(0.01, max_epochs=3))
    with pytest.raises(OSError, match=r"No space left on device: .*run\.npz'$"):
        run.save(tmp_path / "run.npz")
    assert list(tmp_path.iterdir()) == [path]
    assert store.read_json(path)["value"] == 3
    monkeypatch.setattr(reproduce, "compute", quick)
    assert (
        command.main(["reproduce", QUICK, "--results", str(tmp_path / "results"), "--workers", "1"])
        == 1
    )
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r".*baseline-1202\.json: No space left on device; what is finished is kept", message
    )


def small_case():
    setting = EXPERIMENTS[QUICK]
    return setting.start(1), setting.training_set(1, "baseline")


def test_a_folder_that_is_a_file_is_named(tmp_path, capsys):
    file = tmp_path / "results"
    file.touch()
    assert command.main(["reproduce", QUICK, "--results", str(file), "--workers", "1"]) == 1
    assert str(file) in capsys.readouterr().err.splitlines()[-1]


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setattr(reproduce, "compute", quick)
    reproduce.reproduce([QUICK], folder="~/there", progress=False)
    assert len(modified(tmp_path / "there")) == 2


def test_records_do_not_depend_on_the_number_of_threads(tmp_path, everything):
    names = [QUICK, "standalone_ssm_dim=3_dynamics__s1"]
    one = reproduce.reproduce(names, folder=tmp_path, workers=1, progress=False)

    assert len(one) == 4
    for run, record in one.items():  # `everything` has used every core
        assert dataclasses.replace(record, seconds=everything[run].seconds) == everything[run], run


def interrupted(*, setting, training_set, seed):
    if training_set == "baseline":
        return {"logged_error": 1.0}
    raise KeyboardInterrupt


def test_ctrl_c_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "compute", interrupted)
    assert command.main(["reproduce", QUICK, "--results", str(tmp_path), "--workers", "1"]) == 130
    assert "what is finished is kept" in capsys.readouterr().err
    assert len(modified(tmp_path)) == 1


def failing(*, setting, training_set, seed):
    raise descent.DescentError("diverged")


def test_a_run_that_fails_ends_with_status_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "compute", failing)
    assert command.main(["reproduce", QUICK, "--results", str(tmp_path), "--workers", "1"]) == 1
    assert "2 of 2 jobs failed, the first at" in capsys.readouterr().err


def test_a_write_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        store.write_json(tmp_path / "a.json", {"schema": 1, "value": float("nan")})
    assert not (tmp_path / "a.json").exists()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_median_interval_is_ordered_and_made_of_data(values):
    median, low, high = paper.median_interval(np.array(values))
    assert low <= median <= high
    assert {low, high} <= set(values)


def test_median_interval_is_exact_and_has_no_largest_size():
    """Against whole numbers: the largest k with P(Binomial(n, 1/2) < k) <= (1 - confidence) / 2, at
    least 1.
    """
    for n in [*range(1, 70), 1023, 1024, 1500]:
        # 3/8: at n = 4 the tail is the level itself
        for confidence in (0.375, 0.5, 0.75, 0.95, 0.999):
            k, tail, level = 0, math.comb(n, 0), Fraction((1 - confidence) / 2) * 2**n
            while tail <= level:
                k += 1
                tail += math.comb(n, k)
            expected = max(k, 1), n + 1 - max(k, 1)
            assert (
                paper.median_interval(np.arange(1.0, n + 1), confidence=confidence)[1:] == expected
            ), n
    _, low, high = paper.median_interval(np.arange(1e6))
    assert_allclose([low, high], 5e5 + np.array([-1, 1]) * 1.96 * 500, atol=2)


def test_median_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = [
        low <= 0 <= high
        for _, low, high in (paper.median_interval(rng.normal(size=21)) for _ in range(2000))
    ]
    assert 0.95 <= np.mean(covered) < 0.99
    # the 6th and 16th of 21 are the textbook's order statistics
    assert paper.median_interval(np.arange(1.0, 22.0)) == (11.0, 6.0, 16.0)
    with pytest.raises(ValueError, match="confidence must be below 1"):
        paper.median_interval(np.ones(3), confidence=1.0)


def test_packaged_data_say_where_they_come_from():
    folder = Path(paper.__file__).parent / "data"
    for name in ("settings", "starts", "authors_results"):
        text = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["_source"]
        assert "authors' public code" in text
    assert os.path.getsize(folder / "starts.json") < 200_000


def test_the_papers_settings_load_without_pytorch_and_numba():
    """Every chapter imports them first; both together take two seconds to load, and only training
    needs them.
    """
    script = "import sys, ssm_poison_lib.paper; print({'torch', 'numba'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
