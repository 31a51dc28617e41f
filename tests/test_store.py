"""The one store and the one runner: files that survive a kill and do not survive damage, workers of
every kind.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from ssm_poison_lib.studies import store
from ssm_poison_lib.studies.store import DamagedResult, Job, Study, StudyError

TESTS = Path(__file__).parent


def square(*, x, label="", folder=""):
    """x^2, a note of each call if a folder is given, and every way to fail."""
    if folder:
        Path(folder, f"{x}_{time.monotonic_ns()}").touch()
        time.sleep(0.1)
    if label == "fails":
        raise ArithmeticError("no result here")
    if label == "interrupts":
        raise KeyboardInterrupt
    if label == "exits":
        sys.exit("enough")
    return {"square": x**2, "threads": _blas_threads(), "process": os.getpid()}


def _blas_threads():
    return max(
        (lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"), default=1
    )


@pytest.fixture
def unchecked():
    """The arguments as a reader's: without the type checker of the test suite."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def jobs(count=4, **more):
    return [Job(f"part {k % 2}/x-{k}", {"x": k, **more}) for k in range(count)]


def run(folder, given=None, **options):
    options = {"workers": 2, "progress": False} | options
    return store.run(square, jobs() if given is None else given, folder, **options)


def squares(results):
    return [result["square"] for result in results]


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_results_are_kept_and_not_made_again(tmp_path, scheduler):
    notes = tmp_path / "notes"
    notes.mkdir()
    given = jobs(folder=str(notes))
    first = run(tmp_path / "a", given, scheduler=scheduler)
    assert squares(first) == [0, 1, 4, 9]
    assert all(result["threads"] == 1 for result in first)
    assert {result["process"] == os.getpid() for result in first} == {scheduler == "threads"}
    assert run(tmp_path / "a", given[::-1], scheduler=scheduler) == first[::-1]
    assert len(list(notes.iterdir())) == 4
    assert sorted(
        p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*.json")
    ) == [f"part-{k % 2}/x-{k}.json" for k in (0, 2, 1, 3)]
    assert run(tmp_path / "a", [*given, *jobs(6)[4:]])[5]["square"] == 25


def test_linear_algebra_has_its_threads_back_afterwards(tmp_path):
    with threadpool_limits(2):
        before = _blas_threads()
        run(tmp_path / "a")
        assert _blas_threads() == before


def test_other_jobs_go_on_when_one_fails(tmp_path):
    given = [*jobs(3), Job("bad", {"x": 9, "label": "fails"})]
    with pytest.raises(StudyError, match=r"1 of 4 jobs failed, the first at bad: .*no result here"):
        run(tmp_path / "a", given)
    assert len(list((tmp_path / "a").rglob("*.json"))) == 3
    with pytest.raises(StudyError, match=r"SystemExit.*enough"):
        run(tmp_path / "b", [Job("bad", {"x": 1, "label": "exits"})])


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_an_interrupt_keeps_what_is_finished(tmp_path, scheduler):
    run(tmp_path / "a", jobs(2), scheduler=scheduler)
    given = [*jobs(2), Job("stop", {"x": 9, "label": "interrupts"}), *jobs(5)[2:]]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", given, workers=1, scheduler=scheduler)
    assert squares(run(tmp_path / "a", jobs(5))) == [0, 1, 4, 9, 16]


DRIVER = """
import sys, test_store as t
from ssm_poison_lib.studies import store
if __name__ == "__main__":
    folder, notes, scheduler = sys.argv[1:]
    done = store.run(t.square, t.jobs(8, folder=notes), folder, workers=1, scheduler=scheduler)
    print(t.squares(done))
"""


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_a_kill_leaves_only_what_was_not_finished(tmp_path, scheduler):
    notes, folder = tmp_path / "notes", tmp_path / "a"
    notes.mkdir()
    script = tmp_path / "driver.py"
    script.write_text(DRIVER, encoding="utf-8")
    command = [sys.executable, str(script), str(folder), str(notes), scheduler]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    }
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while len(list(folder.rglob("*.json"))) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    assert 2 <= len(kept) < 8
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([k**2 for k in range(8)])
    assert f"/{8 - len(kept)}" in done.stderr  # the bar counts what was missing
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(tmp_path.rglob("*.partial")) + list(tmp_path.rglob("*.lock"))


def test_one_process_writes_at_a_time(tmp_path):
    from ssm_poison_lib._files import locked

    with (
        locked(tmp_path / "a.lock"),
        pytest.raises(StudyError, match=r"another process writes .*a \(it holds .*a\.lock\)"),
    ):
        run(tmp_path / "a")


def changed(path, **values):
    content = store.read_json(path)
    path.unlink()
    store.write_json(path, {**content, **values})


DAMAGES = {
    "cut off": lambda path, _: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path, _: os.truncate(path, 0),
    "changed": lambda path, _: path.write_text(
        path.read_text("utf-8").replace('"square": 1', '"square": 2')
    ),
    "another schema": lambda path, _: changed(path, schema=0),
    "not a file of ours": lambda path, _: path.write_text("[1, 2]"),
    "NaN": lambda path, _: path.write_text(
        path.read_text("utf-8").replace('"square": 1', '"square": NaN')
    ),
    "not text": lambda path, _: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
    "nested without end": lambda path, _: path.write_text("[" * 200_000),
    "another job's": lambda path, other: shutil.copy(other, path),
    "without a result": lambda path, _: changed(path, result=None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_reported_set_aside_and_made_again(tmp_path, damage):
    run(tmp_path / "a")
    other, path = (job.path(tmp_path / "a") for job in jobs(2))
    kept = other.stat().st_mtime_ns
    DAMAGES[damage](path, other)
    told = []
    assert squares(run(tmp_path / "a", report=told.append)) == [0, 1, 4, 9]
    assert len(told) == 1
    assert str(path) in told[0]
    assert path.with_name(path.name + ".damaged").exists()
    assert other.stat().st_mtime_ns == kept


def test_a_file_of_another_schema_or_job_is_refused(tmp_path):
    run(tmp_path / "a")
    path = jobs()[1].path(tmp_path / "a")
    with pytest.raises(DamagedResult, match="it holds the result of"):
        store.read_json(path, {"job": {"x": 7}})
    changed(path, schema=0)
    with pytest.raises(DamagedResult, match="has schema 0; this version reads 1"):
        store.read_json(path)


def test_results_of_other_code_are_not_mixed(tmp_path, monkeypatch):
    run(tmp_path / "a", jobs(2))
    real = store.code_digests
    monkeypatch.setattr(store, "code_digests", lambda f: real(f) | {"elsewhere:helper": "1"})
    told = []
    assert squares(run(tmp_path / "a", jobs(2), report=told.append)) == [0, 1]
    assert "other versions of elsewhere:helper" in told.pop()
    with pytest.raises(
        ValueError, match=r"other code or versions \(elsewhere:helper\): move it away"
    ):
        run(tmp_path / "a", jobs(3))
    # A file that is kept by itself, as of code that is not today's, stays so when others are new.
    assert squares(run(tmp_path / "a", jobs(4)[2:])) == [4, 9]
    with pytest.raises(ValueError, match="other code"):
        run(tmp_path / "a", jobs(5))
    assert squares(run(tmp_path / "a", jobs(5), accept_changes=True)) == [0, 1, 4, 9, 16]
    assert [len(store.read_json(job.path(tmp_path / "a"))["made_by"]) for job in jobs(3)] == [
        2,
        2,
        1,
    ]
    monkeypatch.setattr(store, "code_digests", lambda f: real(f) | {f"{__name__}:square": "1"})
    # its own module: not even a whole store
    with pytest.raises(ValueError, match="test_store:square"):
        run(tmp_path / "a", jobs(2))


@dataclasses.dataclass(frozen=True)
class Record:
    values: np.ndarray
    count: np.int64


def record(*, x):
    return Record(np.arange(x) / 2, np.int64(x))


def not_a_mapping(*, x):
    return x


def not_finite(*, x):
    return {"value": float("nan")}


def test_what_a_function_may_return(tmp_path):
    given = [Job("one", {"x": 3})]
    assert store.run(record, given, tmp_path / "a", progress=False) == [
        {"values": [0.0, 0.5, 1.0], "count": 3}
    ]
    with pytest.raises(StudyError, match="one: the function must return a mapping; got 3"):
        store.run(not_a_mapping, given, tmp_path / "b", progress=False)
    with pytest.raises(StudyError, match=r"one: .*is not written: .*JSON compliant"):
        store.run(not_finite, given, tmp_path / "c", progress=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: run(folder, "jobs"), "jobs must be a sequence of Job"),
        (lambda folder: run(folder, [1]), r"jobs\[0\] must be a Job"),
        (
            lambda folder: run(folder, [Job("a b", {"x": 1}), Job("a-b", {"x": 2})]),
            "jobs must have different",
        ),
        (lambda folder: run(folder, workers=0), "workers must be an integer from 1"),
        (
            lambda folder: run(folder, scheduler="slurm"),
            "scheduler must be one of processes, threads",
        ),
        (lambda folder: run(folder, progress="no"), "progress must be True or False"),
        (lambda folder: run(""), "folder must be a path"),
        (
            lambda folder: store.run(lambda x: x, jobs(), folder),
            "function must be defined at the top level",
        ),
        (lambda folder: Job("/", {}), "name must hold letters"),
        (
            lambda folder: Job("a", {"x": float("inf")}),
            "arguments of 'a' must be numbers and texts",
        ),
        (lambda folder: Job("a", {"x": object()}), "object is no number"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_arguments(tmp_path, call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_record_is_a_line_and_times_alone_do_not_rewrite_a_file(tmp_path):
    path = tmp_path / "a.json"
    rows = [{"seed": k, "error": k / 3, "seconds": 1.0, "text": "x" * 100} for k in range(20)]
    content = {"command": "c", "made": "today", "runs": rows}
    store.write_json(path, content)
    lines = path.read_text("utf-8").splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines if line.startswith('{"seed"')] == rows
    before = path.stat().st_mtime_ns
    store.write_json(
        path, {**content, "made": "later", "runs": [row | {"seconds": 2.0} for row in rows]}
    )
    assert path.stat().st_mtime_ns == before
    again = [row | {"seconds": 2.0} | ({"error": 7.0} if row["seed"] == 3 else {}) for row in rows]
    store.write_json(path, {**content, "made": "later", "runs": again})
    new = path.read_text("utf-8").splitlines()
    different = [i for i, (a, b) in enumerate(zip(lines, new, strict=True)) if a != b]
    assert len(different) == 3  # the row, when it was made, the checksum
    assert store.read_json(path)["runs"][3] == {**rows[3], "error": 7.0, "seconds": 2.0}
    assert store.read_json(path)["made"] == "later"
    os.truncate(path, 10)
    store.write_json(path, content)  # a damaged one is replaced
    assert store.read_json(path)["runs"] == rows


def test_a_study_keeps_a_row_for_each_job(tmp_path):
    study = Study("squares", square, tuple(jobs(2)))
    content = study.run(tmp_path, progress=False)
    assert [(row["x"], row["square"]) for row in content["runs"]] == [(0, 0), (1, 1)]
    assert len(list((tmp_path / "squares").rglob("*.json"))) == 2


def test_a_script_without_a_guard_gets_one_line(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.replace('if __name__ == "__main__":', "if True:"), encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path / "a"), "", "processes"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "must do so under `if __name__ == '__main__':`" in done.stderr.splitlines()[-1]
    assert done.stderr.count("Traceback") == 1
