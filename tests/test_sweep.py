"""Sweeps: labelled results, chunks on threads and processes, interruptions of every kind, the command line."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import __main__, flow, flows, paper, sweep
from ssm_poison_lib.flows import FlowStatus

AXES = {"x": np.arange(8.0), "y": np.linspace(0.0, 1.0, 5)}


def product(points):
    """x y + z, and x alone turned over; leaves a note of each call if asked to, and can be slow or fail."""
    value = points.x * points.y + points.z
    if folder := os.environ.get("SWEEP_TEST_LOG"):
        first = f"{int(points.x[0])}-{round(4 * float(points.y[0]))}"
        Path(folder, f"{first}_{os.getpid()}_{uuid.uuid4().hex}").touch()
        time.sleep(0.15)
    if Path("broken").exists() and float(points.x[0]) == 4.0:
        raise ArithmeticError("no result here")
    return xr.Dataset({"value": value, "turned": value.transpose()})


def expected():
    return np.multiply.outer(AXES["x"], AXES["y"]) + 3.0


def run(store, **options):
    options = {"fixed": {"z": 3.0}, "chunks": {"x": 1, "y": 3}, "workers": 2} | options
    return sweep.sweep(product, AXES, store, **options)


def calls(folder):
    """Return which chunks have been started, one name per start."""
    return [name.name.split("_")[0] for name in Path(folder).iterdir()]


def wait_for(condition, seconds=90):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two worker processes that note each call in a folder."""
    folder = tmp_path_factory.mktemp("log")
    environment = {
        "SWEEP_TEST_LOG": str(folder)
    }  # of the workers only, also of those that replace killed ones
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", env=environment
    ) as made:
        yield made.scheduler_address, folder


def test_results_are_labelled_and_stored(tmp_path):
    result = run(tmp_path / "a.zarr")
    assert result.chunks_run == 16
    assert result["value"].dims == result["turned"].dims == ("x", "y")
    assert set(result.data_vars) == {"value", "turned"}
    assert_allclose(result["value"].values, expected())
    assert_allclose(result["turned"].values, expected())
    assert result["value"].sel(x=3.0, y=0.5) == 4.5
    for name, values in AXES.items():
        assert_array_equal(result[name].values, values)
    assert run(tmp_path / "a.zarr").chunks_run == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "a.zarr"]
    wide = run(tmp_path / "b.zarr", chunks={"x": 4})  # chunks of more than one row: turning them matters
    assert_allclose(wide["turned"].values, expected())


def test_failed_chunks_are_reported_and_run_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken").touch()
    with pytest.raises(
        sweep.SweepError, match=r"2 of 16 chunks failed.* x 4\.\.4, y 0\.\.0\.5.*no result here"
    ):
        run("a.zarr")
    Path("broken").unlink()
    again = run("a.zarr")
    assert again.chunks_run == 2
    assert_allclose(again["value"].values, expected())


def test_a_killed_worker_loses_nothing(tmp_path, cluster):
    address, folder = cluster
    before = set(folder.iterdir())
    with Client(address) as client:
        victim = next(iter(client.run(os.getpid).values()))

    def kill():
        wait_for(lambda: any(f"_{victim}_" in name.name for name in set(folder.iterdir()) - before))
        wait_for(lambda: len(set(folder.iterdir()) - before) >= 5)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = run(tmp_path / "a.zarr", scheduler=address)
    killer.join()
    with pytest.raises(ProcessLookupError):
        os.kill(victim, 0)
    assert result.chunks_run == 16
    assert_array_equal(result["value"].values, run(tmp_path / "b.zarr")["value"].values)
    assert_allclose(result["value"].values, expected())


CONFIG = """
function = "test_sweep:product"
[axes]
x = {arange = [8.0]}
y = {linspace = [0.0, 1.0, 5]}
[fixed]
z = 3
[chunks]
x = 1
y = 3
"""


def test_a_killed_driver_leaves_only_the_missing_chunks(tmp_path, cluster):
    address, folder = cluster
    for name in folder.iterdir():
        name.unlink()
    config = tmp_path / "grid.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "ssm_poison_lib", "sweep", str(config), "--scheduler", address, "--allow-any-function"]
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    finished = tmp_path / "grid.zarr" / "checksum" / "c"

    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as driver:
        wait_for(lambda: finished.exists() and len(list(finished.iterdir())) >= 4)
        driver.kill()
    kept = [i for i in range(16) if (finished / str(i) / "0").exists()]
    assert 4 <= len(kept) < 16

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"{16 - len(kept)} chunks run now" in done.stdout
    assert "16" not in done.stderr.rsplit("\r", 1)[-1].split("/")[0]  # the bar counts what was missing
    names = [f"{i // 2}-{3 * (i % 2)}" for i in range(16)]
    started = calls(folder)
    assert all(started.count(names[i]) == 1 for i in kept)
    assert set(started) == set(names)
    result = run(tmp_path / "grid.zarr")
    assert result.chunks_run == 0
    assert_allclose(result["value"].values, expected())


def test_a_store_of_another_sweep_is_refused(tmp_path):
    run(tmp_path / "a.zarr")
    for other in ({"fixed": {"z": 4.0}}, {"chunks": {"x": 2}}):
        with pytest.raises(ValueError, match="store must be new or hold this very sweep"):
            run(tmp_path / "a.zarr", **other)
    (tmp_path / "no.zarr").mkdir()
    with pytest.raises(ValueError, match="store must be new or hold a sweep"):
        run(tmp_path / "no.zarr")


def wrong_dimensions(points):
    return xr.Dataset({"value": points.x})


def wrong_shape(points):
    return xr.Dataset({"value": (("x", "y"), np.zeros((1, 1)))})


def test_functions_with_other_results_are_refused(tmp_path):
    with pytest.raises(sweep.SweepError, match="must return variables over x, y"):
        sweep.sweep(wrong_dimensions, AXES, tmp_path / "a.zarr", workers=1)
    with pytest.raises(sweep.SweepError, match=r"must keep the chunk's shape \(8, 5\)"):
        sweep.sweep(wrong_shape, AXES, tmp_path / "a.zarr", workers=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fixed": {"x": 1.0}}, "fixed must not name an axis"),
        ({"fixed": {"z": np.nan}}, r"fixed\['z'\] must be a finite number"),
        ({"chunks": {"z": 1}}, "chunks must name axes"),
        ({"chunks": {"x": 0}}, r"chunks\['x'\] must be an integer"),
        ({"scheduler": "slurm"}, "scheduler must be one of"),
        ({"workers": 0}, "workers must be an integer"),
    ],
)
def test_bad_arguments(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "a.zarr", **change)


def test_no_axes(tmp_path):
    with pytest.raises(ValueError, match="axes must name at least one axis"):
        sweep.sweep(product, {}, tmp_path / "a.zarr")


GRID = {
    "scale": 1e-2,
    "tie_gap": [1e-28, 1e-3],
    "dose": [0.0, 1.0],
    "state_dim": [4, 10],
    "length": [5, 7],
    "seed": [0, 1],
}


def test_theorem_errors_are_those_of_flows():
    points = xr.Dataset(coords=GRID)
    result = sweep.theorem_errors(points)
    assert (result["status"] == FlowStatus.CONVERGED).all()
    assert set(result["error"].dims) == {"tie_gap", "dose", "state_dim", "length", "seed"}
    shape = np.concatenate([[1, 1], (1 - 1e-3) * -np.sort(-np.random.default_rng(1).random(8))])
    A0, gaps = flows.near_tie_starts(shape, 1e-2, 1e-3)
    batch = flows.theorem_flows(A0, gaps=gaps, length=7, alpha=1.0, beta=1.0, t_end=1e14)
    point = result.sel({"tie_gap": 1e-3, "dose": 1.0, "state_dim": 10, "length": 7, "seed": 1})
    assert_allclose(point["error"], batch.generalization_errors(np.ones(20), first_lag=1)[0], atol=1e-9)
    assert_allclose(point["log_tie"], batch.log_gap[0, 1], atol=1e-6)
    assert (point["loss"] < 1e-20) & (point["steps"] == batch.steps[0])
    # A tie of 1e-28 breaks both; far from it the error is small without special sequences.
    assert (result["error"].sel(tie_gap=1e-28) > 0.2).all()
    assert (result["error"].sel(tie_gap=1e-3, dose=0.0, length=7) < 0.2).all()
    with_end = sweep.theorem_errors(points.assign_coords(t_end=1e-3))
    assert (with_end["time"] == 1e-3).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dose": None}, "must have the coordinate 'dose'"),
        ({"depth": 3.0}, "must not have the coordinate 'depth'"),
        ({"length": 4.5}, "length must hold integers >= 3; got 4.5"),
        ({"state_dim": 1}, "state_dim must hold integers >= 2; got 1"),
        ({"seed": -1}, "seed must hold integers >= 0; got -1"),
    ],
)
def test_theorem_errors_checks_its_points(change, message):
    coordinates = {k: v for k, v in (GRID | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        sweep.theorem_errors(xr.Dataset(coords=coordinates))


def test_theorem_errors_at_other_positions_and_with_negative_entries():
    fixed = {"scale": 1e-2, "tie_gap": 1e-3, "dose": 1.0, "state_dim": 6, "length": 7, "t_end": 1e7}
    axes = {"special_position": [1, 5, 6], "negatives": [0, 3], "seed": [0, 1]}
    result = sweep.theorem_errors(xr.Dataset(coords=fixed | axes))
    draws = -np.sort(-np.random.default_rng(1).random(4)) * [1, -1, -1, -1]
    shape = np.concatenate([[1, 1], -np.sort(-draws) * (1 - 1e-3)])
    A0, gaps = flows.near_tie_starts(shape, 1e-2, 1e-3)
    for position in axes["special_position"]:
        G = np.zeros((7, 7))
        G[6, 6] = 1.0
        G[7 - position, 7 - position] += 1.0
        batch = flows.many_flows(A0, G, [6.0, 1, 1, 1, 1, 1, 1], t_end=1e7, gaps=gaps)
        point = result.sel(special_position=position, negatives=3, seed=1)
        assert_allclose(point["error"], batch.generalization_errors(np.ones(20), first_lag=1)[0], rtol=1e-9)
    # At kappa - 1 the position is the default.
    same = sweep.theorem_errors(xr.Dataset(coords=fixed | {"seed": [0, 1]}))
    assert_array_equal(same["error"], result["error"].sel(special_position=6, negatives=0))


UNIFORM = {"scale": 1e-2, "dose": 1.0, "state_dim": 3, "length": 7, "seed": 0}


def test_uniform_errors_start_as_the_papers_setting_does():
    coordinates = {"scale": 1e-2, "dose": [0.0, 1.0], "state_dim": [3, 5], "length": 7, "seed": [3, 4]}
    result = sweep.uniform_errors(xr.Dataset(coords=coordinates))
    assert (result["status"] == FlowStatus.CONVERGED).all()
    start = paper.TheoremSetting(7, 5, init_scale=1e-2, tie_gap=None).start(4).A
    for dose in coordinates["dose"]:
        batch = flows.theorem_flows(start[None], length=7, alpha=1.0, beta=dose, t_end=1e14)
        error = batch.generalization_errors(np.ones(20), first_lag=1)[0]
        assert_allclose(result["error"].sel(dose=dose, state_dim=5, seed=4), error, rtol=1e-9)


ORDER_GRID = {"scale": 1e-2, "tie_gap": [1e-20, 1e-2], "state_dim": 5, "length": 7, "seed": 0}


def test_order_errors_are_those_of_single_flows():
    orders = {"order": list(range(len(sweep.ORDERS))), "phase": 1e5}
    result = sweep.order_errors(xr.Dataset(coords=ORDER_GRID | orders))["error"]
    A0, gaps = flows.near_tie_starts(
        np.concatenate([[1, 1], 0.99 * -np.sort(-np.random.default_rng(0).random(3))]), 1e-2, 1e-2
    )

    def error(A):
        return max(abs((A**k).sum() - 1) for k in range(1, 20))

    limits = flow.baseline_limit(A0[0], 7)
    expected = {"baseline only": error(limits)}
    after_special = A0[0] + (1 - A0[0].sum()) / 5  # all entries moved alike until their sum is 1
    expected["special, then baseline"] = error(flow.baseline_limit(after_special, 7))
    mixed = flows.theorem_flows(A0, gaps=gaps, length=7, alpha=1.0, beta=1.0, t_end=1e12)
    expected["mixed"] = error(mixed.A[0])
    then = flows.theorem_flows(limits, length=7, alpha=1.0, beta=1.0, t_end=1e12)
    expected["baseline, then both"] = error(then.A[0])
    for name, value in expected.items():
        assert_allclose(result.sel(tie_gap=1e-2, order=sweep.ORDERS.index(name)), value, rtol=1e-4)
    # An exact-looking tie stays one in every order that ends with a fit of the baseline.
    assert (result.sel(tie_gap=1e-20) > 0.5).all()


def test_short_phases_are_a_mixture_and_long_ones_are_not():
    axes = ORDER_GRID | {"tie_gap": [1e-2], "order": 4, "phase": [0.2, 1e4]}
    result = sweep.order_errors(xr.Dataset(coords=axes))
    # Seen in turn, quickly, the special sequence pins the sum: a mixture with a large dose.
    A0, gaps = flows.near_tie_starts(
        np.concatenate([[1, 1], 0.99 * -np.sort(-np.random.default_rng(0).random(3))]), 1e-2, 1e-2
    )
    strong = flows.theorem_flows(A0, gaps=gaps, length=7, alpha=1.0, beta=1e3, t_end=1e12)
    assert_allclose(
        result["error"].sel(phase=0.2)[0],
        strong.generalization_errors(np.ones(20), first_lag=1)[0],
        rtol=0.04,
    )
    assert result["error"].sel(phase=1e4)[0] > 1.5 * result["error"].sel(phase=0.2)[0]
    assert (result["loss"] < 1e-15).all()
    assert result["rounds"].sel(phase=0.2)[0] > 5 * result["rounds"].sel(phase=1e4)[0]


PARAMETRIZED = {
    "scale": 1e-2,
    "tie_gap": 1e-2,
    "state_dim": 4,
    "length": 5,
    "seed": 0,
    "dose": 1.0,
    "t_end": 1e8,
}


def test_parametrization_errors():
    axes = {"parametrization": [0, 1], "near": [0, 1], "dose": [0.0, 1.0]}
    result = sweep.parametrization_errors(xr.Dataset(coords=PARAMETRIZED | axes))
    free = {k: v for k, v in PARAMETRIZED.items() if k != "dose"} | {"dose": [0.0, 1.0]}
    expected = sweep.theorem_errors(xr.Dataset(coords=free))["error"]
    assert_allclose(result["error"].sel(parametrization=0, near=0), expected, rtol=1e-5)
    # From near 1 the baseline alone ties all entries; positive entries and two lags leave the teacher only.
    assert_allclose(result["error"].sel(parametrization=0, near=1, dose=0.0), 4 ** (1 - 1 / 4) - 1, rtol=0.05)
    assert (result["error"].sel(parametrization=1, dose=1.0) < 1e-3).all()
    assert (result["negatives"].sel(parametrization=1) == 0).all()
    assert (result["loss"] < 1e-6).all()


@pytest.mark.parametrize(
    ("function", "base", "change", "message"),
    [
        ("theorem_errors", GRID, {"special_position": 7}, "special_position must be a position from 1 to 4"),
        ("theorem_errors", GRID, {"negatives": 3}, "negatives must be at most state_dim - 2 = 2"),
        ("theorem_errors", GRID, {"negatives": -1}, "negatives must hold integers >= 0"),
        ("uniform_errors", UNIFORM, {"seed": 0.5}, "seed must hold integers >= 0; got 0.5"),
        ("uniform_errors", UNIFORM, {"tie_gap": 0.1}, "uniform_errors does not use it"),
        ("order_errors", ORDER_GRID, {}, "must have the coordinate 'order'"),
        ("order_errors", ORDER_GRID, {"order": 5}, "order must be an integer from 0 to 4: mixed, "),
        ("order_errors", ORDER_GRID, {"order": 4, "phase": 0.0}, "phase must be > 0"),
        ("order_errors", ORDER_GRID, {"order": 4, "dose": 1.0}, "order_errors does not use it"),
        ("parametrization_errors", PARAMETRIZED, {"parametrization": 4, "near": 0}, "from 0 to 3: free, exp"),
        ("parametrization_errors", PARAMETRIZED, {"parametrization": 0, "near": 2}, "near must be 0 or 1"),
    ],
)
def test_points_of_other_sweeps_are_checked(function, base, change, message):
    with pytest.raises(ValueError, match=message):
        getattr(sweep, function)(xr.Dataset(coords=base | change))


def test_command_line(tmp_path, capsys):
    config = tmp_path / "theorem.toml"
    config.write_text(
        "[axes]\ntie_gap = {geomspace = [1e-6, 1e-2, 3]}\nseed = [0, 1]\n"
        "[fixed]\nscale = 1e-2\ndose = 1\nstate_dim = 5\nlength = 7\n[chunks]\ntie_gap = 2\n"
    )
    assert __main__.main(["sweep", str(config), "--workers", "1"]) == 0
    assert "2 chunks run now" in capsys.readouterr().out
    result = xr.open_zarr(tmp_path / "theorem.zarr", consolidated=False)
    assert_allclose(result["tie_gap"], [1e-6, 1e-4, 1e-2])
    assert (result["error"] > 0).all()
    config.write_text(config.read_text().replace("dose = 1", "dose = 1\ndepth = 2"))
    assert __main__.main(["sweep", str(config), "--workers", "1"]) == 2  # the store of another sweep
    assert "hold this very sweep" in capsys.readouterr().err
    config.write_text(f'store = "{tmp_path}/other.zarr"\n' + config.read_text())
    assert __main__.main(["sweep", str(config), "--workers", "1"]) == 1
    assert "depth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[axes", "CONFIG must be a TOML file"),
        ("depth = 3", "got 'depth'"),
        ('function = "json:nothing"', "function must be one of ssm_poison_lib, unless"),
        ('function = "ssm_poison_lib.sweep:nothing"', "function must be 'module:name'"),
        ("[axes]\nx = {logspace = [1, 2]}", "spacing of axis 'x' must be one of"),
    ],
)
def test_bad_configurations(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        sweep.read_config(tmp_path / "a.toml")
    with pytest.raises(ValueError, match="CONFIG must be a TOML file"):
        sweep.read_config(tmp_path / "none.toml")
