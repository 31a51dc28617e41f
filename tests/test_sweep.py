"""Sweeps: labelled results, chunks on threads and processes, interruptions of every kind, the
command line.
"""

import functools
import importlib
import json
import linecache
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import dask
import jaxtyping
import numpy as np
import pytest
import xarray as xr
import zarr
from distributed import Client, LocalCluster
from numpy.testing import assert_allclose, assert_array_equal

from ssm_poison_lib import __main__, flow, flows, paper
from ssm_poison_lib._code import code_digests
from ssm_poison_lib.flows import FlowStatus
from ssm_poison_lib.studies import store as studies_store
from ssm_poison_lib.studies import sweep, theorem
from ssm_poison_lib.studies.store import StudyError

AXES = {"x": np.arange(8.0), "y": np.linspace(0.0, 1.0, 5)}


def product(points):
    """x y + z, and x alone turned over; leaves a note of each call if asked to, and can be slow or
    fail.
    """
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


@pytest.fixture
def as_a_reader_runs_it():
    """Without the tests' type checker, which answers wrong types before the library can."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


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
    # chunks of more than one row: turning them matters
    wide = run(tmp_path / "b.zarr", chunks={"x": 4})
    assert_allclose(wide["turned"].values, expected())


def test_failed_chunks_are_reported_and_run_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken").touch()
    with pytest.raises(
        StudyError, match=r"2 of 16 jobs failed.* x 4\.\.4, y 0\.\.0\.5.*no result here"
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
    config.write_text(CONFIG, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "ssm_poison_lib",
        "sweep",
        str(config),
        "--scheduler",
        address,
        "--allow-any-function",
    ]
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    finished = tmp_path / "grid.zarr" / "checksum" / "c"

    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as driver:
        wait_for(lambda: finished.exists() and len(list(finished.iterdir())) >= 4)
        driver.kill()
    kept = [i for i in range(16) if (finished / str(i) / "0").exists()]
    assert 4 <= len(kept) < 16

    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert f"{16 - len(kept)} chunks run now" in done.stdout
    # the bar counts what was missing
    assert "16" not in done.stderr.rsplit("\r", 1)[-1].split("/")[0]
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
    with pytest.raises(StudyError, match="must return variables over x, y"):
        sweep.sweep(wrong_dimensions, AXES, tmp_path / "a.zarr", workers=1)
    with pytest.raises(StudyError, match=r"must keep the chunk's shape \(8, 5\)"):
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
        ({"progress": "no"}, "progress must be True or False"),
        ({"workers": 0}, "workers must be an integer"),
    ],
)
@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_bad_arguments(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "a.zarr", **change)


def test_a_scheduler_that_does_not_answer(tmp_path):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.5s"}),
        pytest.raises(StudyError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:1'"),
    ):
        run(tmp_path / "a.zarr", scheduler="tcp://127.0.0.1:1")


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
    result = theorem.theorem_errors(points)
    assert (result["status"] == FlowStatus.CONVERGED).all()
    assert set(result["error"].dims) == {"tie_gap", "dose", "state_dim", "length", "seed"}
    shape = np.concatenate([[1, 1], (1 - 1e-3) * -np.sort(-np.random.default_rng(1).random(8))])
    A0, gaps = flows.near_tie_starts(shape, 1e-2, 1e-3)
    batch = flows.theorem_flows(A0, gaps=gaps, length=7, alpha=1.0, beta=1.0, t_end=1e14)
    point = result.sel({"tie_gap": 1e-3, "dose": 1.0, "state_dim": 10, "length": 7, "seed": 1})
    assert_allclose(
        point["error"], batch.generalization_errors(np.ones(20), first_lag=1)[0], atol=1e-9
    )
    assert_allclose(point["log_tie"], batch.log_gap[0, 1], atol=1e-6)
    assert (point["loss"] < 1e-20) & (point["steps"] == batch.steps[0])
    # A tie of 1e-28 breaks both; far from it the error is small without special sequences.
    assert (result["error"].sel(tie_gap=1e-28) > 0.2).all()
    assert (result["error"].sel(tie_gap=1e-3, dose=0.0, length=7) < 0.2).all()
    with_end = theorem.theorem_errors(points.assign_coords(t_end=1e-3))
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
        theorem.theorem_errors(xr.Dataset(coords=coordinates))


def test_theorem_errors_at_other_positions_and_with_negative_entries():
    fixed = {"scale": 1e-2, "tie_gap": 1e-3, "dose": 1.0, "state_dim": 6, "length": 7, "t_end": 1e7}
    axes = {"special_position": [1, 5, 6], "negatives": [0, 3], "seed": [0, 1]}
    result = theorem.theorem_errors(xr.Dataset(coords=fixed | axes))
    draws = -np.sort(-np.random.default_rng(1).random(4)) * [1, -1, -1, -1]
    shape = np.concatenate([[1, 1], -np.sort(-draws) * (1 - 1e-3)])
    A0, gaps = flows.near_tie_starts(shape, 1e-2, 1e-3)
    for position in axes["special_position"]:
        G = np.zeros((7, 7))
        G[6, 6] = 1.0
        G[7 - position, 7 - position] += 1.0
        batch = flows.many_flows(A0, (G, [6.0, 1, 1, 1, 1, 1, 1]), t_end=1e7, gaps=gaps)
        point = result.sel(special_position=position, negatives=3, seed=1)
        assert_allclose(
            point["error"], batch.generalization_errors(np.ones(20), first_lag=1)[0], rtol=1e-9
        )
    # At kappa - 1 the position is the default.
    same = theorem.theorem_errors(xr.Dataset(coords=fixed | {"seed": [0, 1]}))
    assert_array_equal(same["error"], result["error"].sel(special_position=6, negatives=0))


UNIFORM = {"scale": 1e-2, "dose": 1.0, "state_dim": 3, "length": 7, "seed": 0}


def test_uniform_errors_start_as_the_papers_setting_does():
    coordinates = {
        "scale": 1e-2,
        "dose": [0.0, 1.0],
        "state_dim": [3, 5],
        "length": 7,
        "seed": [3, 4],
    }
    result = theorem.uniform_errors(xr.Dataset(coords=coordinates))
    assert (result["status"] == FlowStatus.CONVERGED).all()
    start = paper.TheoremSetting(7, 5, init_scale=1e-2, tie_gap=None).start(4).A
    for dose in coordinates["dose"]:
        batch = flows.theorem_flows(start[None], length=7, alpha=1.0, beta=dose, t_end=1e14)
        error = batch.generalization_errors(np.ones(20), first_lag=1)[0]
        assert_allclose(result["error"].sel(dose=dose, state_dim=5, seed=4), error, rtol=1e-9)
    # Seed 273 draws three small entries: it needs longer than its scale says.
    slow = UNIFORM | {"scale": 1e-3, "dose": 0.0, "length": 9, "seed": [273]}
    assert (theorem.uniform_errors(xr.Dataset(coords=slow))["status"] == FlowStatus.CONVERGED).all()


ORDER_GRID = {"scale": 1e-2, "tie_gap": [1e-20, 1e-2], "state_dim": 5, "length": 7, "seed": 0}


def test_order_errors_are_those_of_single_flows():
    orders = {"order": list(range(len(theorem.ORDERS))), "phase": 1e5}
    result = theorem.order_errors(xr.Dataset(coords=ORDER_GRID | orders))["error"]
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
        assert_allclose(
            result.sel(tie_gap=1e-2, order=theorem.ORDERS.index(name)), value, rtol=1e-4
        )
    # An exact-looking tie stays one in every order that ends with a fit of the baseline.
    assert (result.sel(tie_gap=1e-20) > 0.5).all()


def test_short_phases_are_a_mixture_and_long_ones_are_not():
    axes = ORDER_GRID | {"tie_gap": [1e-2], "order": 4, "phase": [0.2, 1e4]}
    result = theorem.order_errors(xr.Dataset(coords=axes))
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
    result = theorem.parametrization_errors(xr.Dataset(coords=PARAMETRIZED | axes))
    free = {k: v for k, v in PARAMETRIZED.items() if k != "dose"} | {"dose": [0.0, 1.0]}
    expected = theorem.theorem_errors(xr.Dataset(coords=free))["error"]
    assert_allclose(result["error"].sel(parametrization=0, near=0), expected, rtol=1e-5)
    # From near 1 the baseline alone ties all entries; positive entries and two lags leave the
    # teacher only.
    assert_allclose(
        result["error"].sel(parametrization=0, near=1, dose=0.0), 4 ** (1 - 1 / 4) - 1, rtol=0.05
    )
    assert (result["error"].sel(parametrization=1, dose=1.0) < 1e-3).all()
    assert (result["negatives"].sel(parametrization=1) == 0).all()
    assert (result["loss"] < 1e-6).all()


@pytest.mark.parametrize(
    ("function", "base", "change", "message"),
    [
        (
            "theorem_errors",
            GRID,
            {"special_position": 7},
            "special_position must be a position from 1 to 4",
        ),
        ("theorem_errors", GRID, {"negatives": 3}, "negatives must be at most state_dim - 2 = 2"),
        ("theorem_errors", GRID, {"negatives": -1}, "negatives must hold integers >= 0"),
        ("uniform_errors", UNIFORM, {"seed": 0.5}, "seed must hold integers >= 0; got 0.5"),
        ("uniform_errors", UNIFORM, {"tie_gap": 0.1}, "uniform_errors does not use it"),
        ("order_errors", ORDER_GRID, {}, "must have the coordinate 'order'"),
        ("order_errors", ORDER_GRID, {"order": 5}, "order must be an integer from 0 to 4: mixed, "),
        ("order_errors", ORDER_GRID, {"order": 4, "phase": 0.0}, "phase must be > 0"),
        ("order_errors", ORDER_GRID, {"order": 4, "dose": 1.0}, "order_errors does not use it"),
        (
            "parametrization_errors",
            PARAMETRIZED,
            {"parametrization": 4, "near": 0},
            "from 0 to 3: free, exp",
        ),
        (
            "parametrization_errors",
            PARAMETRIZED,
            {"parametrization": 0, "near": 2},
            "near must be 0 or 1",
        ),
    ],
)
def test_points_of_other_sweeps_are_checked(function, base, change, message):
    with pytest.raises(ValueError, match=message):
        getattr(theorem, function)(xr.Dataset(coords=base | change))


def test_command_line(tmp_path, capsys):
    config = tmp_path / "theorem.toml"
    config.write_text(
        "[axes]\ntie_gap = {geomspace = [1e-6, 1e-2, 3]}\nseed = [0, 1]\n"
        "[fixed]\nscale = 1e-2\ndose = 1\nstate_dim = 5\nlength = 7\n[chunks]\ntie_gap = 2\n",
        encoding="utf-8",
    )
    assert __main__.main(["sweep", str(config), "--workers", "1"]) == 0
    assert "2 chunks run now" in capsys.readouterr().out
    result = xr.open_zarr(tmp_path / "theorem.zarr", consolidated=False)
    assert_allclose(result["tie_gap"], [1e-6, 1e-4, 1e-2])
    assert (result["error"] > 0).all()
    config.write_text(
        config.read_text("utf-8").replace("dose = 1", "dose = 1\ndepth = 2"), encoding="utf-8"
    )
    # the store of another sweep
    assert __main__.main(["sweep", str(config), "--workers", "1"]) == 2
    assert "hold this very sweep" in capsys.readouterr().err
    config.write_text(
        f'store = "{tmp_path}/other.zarr"\n' + config.read_text("utf-8"), encoding="utf-8"
    )
    assert __main__.main(["sweep", str(config), "--workers", "1"]) == 1
    assert "depth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[axes", "CONFIG must be a TOML file"),
        ("depth = 3", "got 'depth'"),
        ('function = "json:nothing"', "function must be one of ssm_poison_lib, unless"),
        ('function = "ssm_poison_lib.studies.sweep:nothing"', "function must be 'module:name'"),
        ("[axes]\nx = {logspace = [1, 2]}", "spacing of axis 'x' must be one of"),
        (
            "[axes]\nx = {linspace = [1, 2], arange = [3]}",
            "axis 'x' must have one spacing; got linspace, arange",
        ),
        (
            "[axes]\nx = {arange = [1e12]}",
            "the number of points of axis 'x' must be an integer from 1",
        ),
        (
            "[axes]\nx = {linspace = [0, 1, 10000000000]}",
            "the number of points of axis 'x' must be",
        ),
        ('[axes]\nx = {arange = ["a"]}', "arange of axis 'x' must be an array of real numbers"),
        (
            "[axes]\nx = {geomspace = [0, 1, 5]}",
            "geomspace of axis 'x': Geometric sequence cannot include zero",
        ),
        ("axes = 3", "axes must be a mapping"),
        ("function = 3", "function must be text; got 3"),
        ("store = 3", "store must be a path; got 3"),
    ],
)
def test_bad_configurations(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        sweep.read_config(tmp_path / "a.toml")
    with pytest.raises(ValueError, match="CONFIG must be a TOML file"):
        sweep.read_config(tmp_path / "none.toml")


# --- damage: what is found, named and run again


def chunk_files(store, name):
    return sorted(p for p in (store / name / "c").rglob("*") if p.is_file())


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


DAMAGES = {
    "a lost chunk": lambda s: chunk_files(s, "value")[3].unlink(),
    "a flipped bit": lambda s: flip(chunk_files(s, "value")[3]),
    "a chunk cut off": lambda s: os.truncate(chunk_files(s, "value")[3], 5),
    "an empty chunk": lambda s: os.truncate(chunk_files(s, "value")[3], 0),
    "a chunk copied over another": lambda s: shutil.copy(
        chunk_files(s, "value")[2], chunk_files(s, "value")[4]
    ),
    "a chunk copied over another with its checksum": lambda s: [
        shutil.copy(chunk_files(s, name)[2], chunk_files(s, name)[4])
        for name in ("value", "twice", "checksum")
    ],
    "a flipped checksum": lambda s: flip(chunk_files(s, "checksum")[3]),
    "a lost axis": lambda s: shutil.rmtree(s / "x"),
    "a flipped bit in an axis": lambda s: flip(chunk_files(s, "y")[0]),
    "an array lost": lambda s: shutil.rmtree(s / "value"),
    "an array copied over another": lambda s: shutil.copytree(
        s / "twice", s / "value", dirs_exist_ok=True
    ),
    "an array's metadata cut off": lambda s: os.truncate(s / "value" / "zarr.json", 40),
    "the checksums lost": lambda s: shutil.rmtree(s / "checksum"),
}


def value_and_twice(points):
    value = points.x * points.y + points.z
    return xr.Dataset({"value": value, "twice": 2 * value})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished store of 4 x 2 chunks."""
    store = tmp_path_factory.mktemp("whole") / "a.zarr"
    small(store)
    return store


def small(store, **options):
    options = {"fixed": {"z": 3.0}, "chunks": {"x": 2, "y": 3}, "workers": 1} | options
    return sweep.sweep(value_and_twice, AXES, store, **options)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_mended(tmp_path, whole, damage):
    store = tmp_path / "a.zarr"
    shutil.copytree(whole, store)
    assert_allclose(sweep.load(store)["value"], expected())
    DAMAGES[damage](store)
    with pytest.raises(StudyError, match=rf"{re.escape(str(store))}/.*: run this sweep again"):
        sweep.load(store)
    messages = []
    again = small(store, report=messages.append)
    assert messages
    assert all(str(store) in message for message in messages)
    assert_allclose(again["value"].values, expected())
    assert_allclose(again["twice"].values, 2 * expected())
    assert again.chunks_run <= 2 or "array" in damage or "checksums" in damage
    assert_allclose(sweep.load(store)["value"], expected())
    assert small(store, report=messages.append).chunks_run == 0


def test_a_chunk_of_another_sweep_is_damage(tmp_path, whole):
    store = tmp_path / "a.zarr"
    small(store, fixed={"z": 4.0})
    for name in ("value", "twice", "checksum"):
        shutil.copytree(whole / name / "c", store / name / "c", dirs_exist_ok=True)
    with pytest.raises(StudyError, match="damaged or lost"):
        sweep.load(store)


def test_what_is_no_sweep_or_half_of_one_is_not_loaded(tmp_path, whole):
    with pytest.raises(ValueError, match="store must be new or hold a sweep"):
        sweep.load(tmp_path / "none.zarr")
    store = tmp_path / "a.zarr"
    shutil.copytree(whole, store)
    for name in ("value", "twice", "checksum"):
        chunk_files(store, name)[0].unlink()
    with pytest.raises(StudyError, match="lacks 1 of 8 chunks"):
        sweep.load(store)
    os.truncate(store / "zarr.json", 30)
    for call in (sweep.load, small):
        with pytest.raises(ValueError, match=r"a\.zarr/zarr\.json is damaged"):
            call(store)
    (store / "zarr.json").write_text(
        '{"attributes": {"sweep": "{}"}, "zarr_format": 3, "node_type": "group"}', encoding="utf-8"
    )
    with pytest.raises(ValueError, match="of format 1, without checksums"):
        sweep.load(store)


def test_what_a_killed_process_left_is_cleared_away(tmp_path, whole):
    store = tmp_path / "a.zarr"
    shutil.copytree(whole, store)
    left = [store / "value" / "c" / "0" / "0.12.partial", tmp_path / "a.zarr.new" / "zarr.json"]
    left[1].parent.mkdir()
    for file in left:
        file.touch()
    (tmp_path / "a.zarr.lock").touch()  # a lock file that nobody holds
    chunk_files(store, "value")[0].unlink()
    assert small(store, report=lambda _: None).chunks_run == 1
    assert os.listdir(tmp_path) == ["a.zarr"]
    assert not list(store.rglob("*.partial"))


def all_failed(points):
    # Zarr keeps no sign of it
    return xr.Dataset({"value": 0 * points.x + np.copysign(np.nan, -1.0)})


def test_a_chunk_of_nan_is_a_result(tmp_path):
    store = tmp_path / "a.zarr"
    for runs in (2, 0):
        result = sweep.sweep(all_failed, {"x": [1.0, 2.0]}, store, chunks={"x": 1}, workers=1)
        assert result.chunks_run == runs
    assert np.isnan(sweep.load(store)["value"]).all()


# --- one writer


HOLD = """
import sys, time
from pathlib import Path
from ssm_poison_lib._files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_process_writes_at_a_time_and_a_kill_frees_the_store(tmp_path, whole):
    store = tmp_path / "a.zarr"
    shutil.copytree(whole, store)
    command = [sys.executable, "-c", HOLD, str(tmp_path / "a.zarr.lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as holder:
        assert holder.stdout.readline() == "held\n"
        assert small(store).chunks_run == 0  # reading needs no lock
        chunk_files(store, "value")[0].unlink()
        with pytest.raises(
            StudyError, match=r"another process writes .*a\.zarr \(it holds .*lock\)"
        ):
            small(store)
        holder.kill()
    assert small(store, report=lambda _: None).chunks_run == 1


def test_many_starts_at_once_leave_one_whole_store(tmp_path):
    script = "import sys, test_sweep as t; print(t.small(sys.argv[1]).chunks_run)"
    command = [sys.executable, "-c", script, str(tmp_path / "a.zarr")]
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    started = [
        subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for _ in range(3)
    ]
    ends = [process.communicate() for process in started]
    done = [out.strip() for out, _ in ends if out]
    assert done.count("8") == 1  # one runs everything
    assert set(done) <= {"8", "0"}  # others find it done, or are refused
    assert all("another process writes" in error for out, error in ends if not out)
    assert_allclose(sweep.load(tmp_path / "a.zarr")["value"], expected())
    assert os.listdir(tmp_path) == ["a.zarr"]


# --- other code, other versions


MODULE = '''
"""A module."""
import numpy as np
import xarray as xr
from {name}_helper import factor
OFFSET = {offset}  # a constant

def helper(values):
    return values + OFFSET

def unused():
    return {unused}

def work(points):
    """{doc}"""
    return xr.Dataset({{"value": helper(factor() * points.x)}})
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a package of its own, and return its function anew each time."""
    name = f"swept_{uuid.uuid4().hex}"
    folder = tmp_path / "modules" / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "modules")

    def write(offset=1, doc="Work.", unused=0, factor=1):
        text = MODULE.format(name=name, offset=offset, doc=doc, unused=unused)
        (folder / "main.py").write_text(
            text.replace(f"{name}_helper", f"{name}.helper"), encoding="utf-8"
        )
        (folder / "helper.py").write_text(f"def factor():\n    return {factor}\n", encoding="utf-8")
        for part in ("helper", "main"):
            sys.modules.pop(f"{name}.{part}", None)
        importlib.invalidate_caches()
        linecache.clearcache()
        sys.dont_write_bytecode = True
        try:
            return importlib.import_module(f"{name}.main").work
        finally:
            sys.dont_write_bytecode = False

    return write


def test_chunks_of_other_code_are_not_mixed(tmp_path, module):
    store, axes = tmp_path / "a.zarr", {"x": [1.0, 2.0, 3.0]}

    def run(function, **options):
        return sweep.sweep(
            function, axes, store, chunks={"x": 1}, workers=1, report=told.append, **options
        )

    told = []
    assert run(module()).chunks_run == 3
    # Comments, docstrings and functions that it does not use are not its code.
    assert run(module(doc="Work hard.", unused=7)).chunks_run == 0
    assert not told
    # A constant of its module: not even the whole store is returned for another function than made
    # it.
    with pytest.raises(
        ValueError, match=r"made by other code or versions \(swept_.*\.main:OFFSET\): move it"
    ):
        run(module(offset=2))
    assert run(module(offset=2), accept_changes=True).chunks_run == 0
    assert run(module(offset=2)).chunks_run == 0
    assert run(module(), accept_changes=True).chunks_run == 0
    assert not told
    # A function elsewhere in its package: said where all is there, refused where chunks would be
    # mixed.
    assert run(module(factor=2)).chunks_run == 0
    assert "helper:factor" in told.pop()
    chunk_files(store, "value")[1].unlink()
    with pytest.raises(ValueError, match=r"helper:factor\): move it away to run everything again"):
        run(module(factor=2))
    mixed = run(module(factor=2), accept_changes=True)
    assert mixed.chunks_run == 1
    assert mixed["value"].values.tolist() == [2.0, 5.0, 4.0]
    assert len(zarr.open_group(store, mode="r").attrs["made_by"]) == 4


def test_chunks_of_other_versions_are_not_mixed(tmp_path, whole, monkeypatch):
    store = tmp_path / "a.zarr"
    shutil.copytree(whole, store)
    real = studies_store.maker

    def other(function):
        made_by = real(function)
        return {**made_by, "versions": made_by["versions"] | {"numpy": "1.0"}}

    monkeypatch.setattr(studies_store, "maker", other)
    told = []
    assert small(store, report=told.append).chunks_run == 0
    assert "numpy" in told[0]
    chunk_files(store, "value")[1].unlink()
    with pytest.raises(ValueError, match=r"other code or versions \(numpy\)"):
        small(store)


def test_the_stores_of_the_book_are_whole():
    folder = Path(__file__).resolve().parent.parent / "book" / "sweeps"
    stores = sorted(folder.glob("*.zarr"))
    assert len(stores) >= 8
    for store in stores:
        config = sweep.read_config(store.with_suffix(".toml"))
        asked = json.loads(sweep.load(store).attrs["sweep"])
        assert asked["axes"] == {
            k: np.asarray(v, dtype=float).tolist() for k, v in config["axes"].items()
        }
        assert asked["fixed"] == {k: float(v) for k, v in config["fixed"].items()}
        # Its function and what that uses of its own module are those of today.
        [*_, made_by] = zarr.open_group(store, mode="r").attrs["made_by"]
        today = code_digests(config["function"])
        own = {
            k for k in today | made_by["code"] if k.startswith(f"{config['function'].__module__}:")
        }
        assert {k: today.get(k) for k in own} == {k: made_by["code"].get(k) for k in own}, (
            store.name
        )


# --- what a function may be and return


def exits(points):
    if float(points.x[0]) == 1.0:
        sys.exit("enough")
    return xr.Dataset({"value": points.x})


class Abort(BaseException):
    pass


def aborts(points):
    raise Abort("no more")


@pytest.mark.parametrize(
    ("function", "message"), [(exits, "SystemExit.*enough"), (aborts, "Abort.*no more")]
)
def test_a_function_that_exits_is_an_error_and_does_not_hang(tmp_path, function, message):
    with pytest.raises(StudyError, match=rf"jobs failed, the first at x 1\.\.1.*{message}"):
        sweep.sweep(function, {"x": [1.0, 2.0]}, tmp_path / "a.zarr", chunks={"x": 1}, workers=1)
    if function is exits:
        assert sweep.sweep(last, {"x": [3.0]}, tmp_path / "b.zarr", workers=1).chunks_run == 1


def last(points):
    return xr.Dataset({"value": points.x})


class Callable:
    def __call__(self, points):
        return points


@pytest.mark.parametrize(
    "function",
    [functools.partial(product), lambda points: points, Callable(), Callable().__call__, Callable],
    ids=["partial", "lambda", "object", "method", "class"],
)
@pytest.mark.usefixtures("as_a_reader_runs_it")
def test_only_functions_that_workers_can_import(tmp_path, function):
    if function is Callable:  # a class can be imported; what it returns is refused
        with pytest.raises(StudyError, match="jobs failed"):
            sweep.sweep(function, {"x": [1.0]}, tmp_path / "a.zarr", workers=1)
        return
    with pytest.raises(ValueError, match="function must be defined at the top level of a module"):
        sweep.sweep(function, {"x": [1.0]}, tmp_path / "a.zarr", workers=1)
    with pytest.raises(TypeError, match="function must be a function; got int"):
        sweep.sweep(3, {"x": [1.0]}, tmp_path / "a.zarr", workers=1)


def returns_number(points):
    return 3.0


def returns_nothing(points):
    return xr.Dataset()


def returns_complex(points):
    return xr.Dataset({"value": points.x + 1j})


def returns_text(points):
    return xr.Dataset({"value": points.x.astype(str)})


def returns_large_integers(points):
    return xr.Dataset({"value": points.x.astype(np.int64) + 2**53})


def returns_other_labels(points):
    return xr.Dataset({"value": points.x}).assign_coords(x=points.x.values + 1)


def returns_its_bookkeeping(points):
    return xr.Dataset({"checksum": points.x})


def returns_now_this_now_that(points):
    return xr.Dataset({"this" if float(points.x[0]) == 1.0 else "that": points.x})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (returns_number, "function must return an xarray.Dataset; got float"),
        (returns_nothing, "function must return at least one variable"),
        (returns_complex, "function must return real numbers; 'value' holds complex128"),
        (returns_text, "function must return real numbers; 'value' holds <U"),
        (returns_large_integers, "numbers that float64 holds exactly; 'value'"),
        (returns_other_labels, r"function must keep the labels of 'x', \[1.*\]; got \[2"),
        (returns_its_bookkeeping, "function must not name a variable 'checksum'"),
        (returns_now_this_now_that, "function must return the same variables for every chunk"),
    ],
)
def test_what_cannot_be_stored_as_it_is_is_refused(tmp_path, function, message):
    with pytest.raises(StudyError, match=message):
        sweep.sweep(
            function, {"x": [1.0, 2.0, 3.0]}, tmp_path / "a.zarr", chunks={"x": 2}, workers=1
        )


def turned_around(points):
    value = (points.x * points.y).transpose()
    return xr.Dataset({"value": value}).isel(x=slice(None, None, -1)).sortby("y", ascending=False)


def test_labels_in_another_order_are_honoured(tmp_path):
    result = sweep.sweep(turned_around, AXES, tmp_path / "a.zarr", chunks={"x": 3}, workers=1)
    assert_allclose(result["value"].values, np.multiply.outer(AXES["x"], AXES["y"]))


# --- where it runs


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    small("~/a.zarr")
    assert (tmp_path / "a.zarr").is_dir()
    (tmp_path / "a.toml").write_text("[axes]\nx = [1.0]\n", encoding="utf-8")
    assert sweep.read_config("~/a.toml")["store"] == tmp_path / "a.zarr"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/a\.zarr"):
        small(tmp_path / "file" / "a.zarr")


def test_only_the_librarys_functions_are_imported_unless_told_otherwise(tmp_path, capsys):
    config = tmp_path / "a.toml"
    config.write_text('function = "test_sweep:last"\n[axes]\nx = [1.0]\n', encoding="utf-8")
    assert __main__.main(["sweep", str(config)]) == 2
    assert "--allow-any-function" in capsys.readouterr().err
    assert __main__.main(["sweep", str(config), "--allow-any-function", "--workers", "1"]) == 0
    assert "value: median 1, NaN in 0 of 1" in capsys.readouterr().out
    config.write_text('function = "ssm_poison_lib.studies.sweep:as_mapping"\n', encoding="utf-8")
    assert sweep.read_config(config)["function"].__name__ == "as_mapping"
    config.write_text('function = "ssm_poison_lib.studies.store:tqdm"\n', encoding="utf-8")
    with pytest.raises(ValueError, match="which comes from elsewhere"):
        sweep.read_config(config)


LOCAL = """
import sys
import xarray as xr
from ssm_poison_lib.studies import sweep

def double(points):
    return xr.Dataset({"value": 2 * points.x})

if __name__ == "__main__":
    for scheduler in ("threads", "processes"):
        store = f"{sys.argv[1]}/{scheduler}.zarr"
        options = {"scheduler": scheduler, "chunks": {"x": 1}, "workers": 2}
        result = sweep.sweep(double, {"x": [1.0, 2.0]}, store, **options)
        print(result["value"].values.tolist())
    print({"distributed", "torch"} & set(sys.modules))
"""


def test_threads_and_processes_of_this_machine_need_no_dask(tmp_path):
    """So nothing listens on a socket, and nothing is loaded for it."""
    script = tmp_path / "local.py"
    script.write_text(LOCAL, encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout.splitlines() == ["[2.0, 4.0]", "[2.0, 4.0]", "set()"]
