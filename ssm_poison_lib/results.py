"""Results on disk: one file per run, written at once or not at all, checked when read; and tables of many runs."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ssm_poison_lib import paper
from ssm_poison_lib._checks import (
    as_choice,
    as_flag,
    as_instance,
    as_integer,
    as_mapping,
    as_path,
    as_scalar,
    as_workers,
    available_cores,
)
from ssm_poison_lib._files import replacing
from ssm_poison_lib.paper import EXPERIMENTS, THEOREM_SETTINGS, TRAINING_SETS

__all__ = [
    "RECORD",
    "SETTINGS",
    "DamagedResult",
    "Run",
    "command_line",
    "data_path",
    "fresh_seeds",
    "load_results",
    "load_summary",
    "read_json",
    "reproduce",
    "run_all",
    "stamp",
    "summary",
    "table",
    "write_json",
]

SCHEMA = 1
_MOST_SEEDS = 100_000
#: The names of all settings of the paper: those of the theorem and those beyond it.
SETTINGS = (*THEOREM_SETTINGS, *EXPERIMENTS)

#: What a run's record holds beside "setting", "training_set" and "seed". Numbers that do not exist are null.
RECORD = {
    "start": '"stored" (the authors\' own starting weights) or "drawn" (as the authors\' program draws them)',
    "precision": '"float32" or "float64"',
    "stop_epoch": "number of updates when the training loss is first at or below the threshold; null: never",
    "epochs": "number of updates done; null for gradient flow",
    "logged_epoch": "update at which the logged_* values are taken, the last that the authors log (experiments only)",
    "fitted": "whether gradient flow ended at a loss of at most 1e-12 (theorem only)",
    "end_time": "end time of gradient flow (theorem only)",
    "logged_error": "the authors' extrapolation loss (linear: normalised, from lag 0; network: relative L2)",
    "logged_error_from_lag_1": "the same over lags k >= 1 (theorem: not normalised); null for networks",
    "worst_lag": "the lag with the largest error; null for networks",
    "logged_train_loss": "training loss there",
    "error_at_stop": "as logged_error, at the stop epoch (experiments only)",
    "effective_rank": "of the diagonal of A, at the end",
    "largest_abs_a": "the 7 largest absolute values on the diagonal of A, at the end",
    "max_abs_gamma0": "largest abs(gamma_0) at the authors' logged epochs (flow: at its steps)",
    "seconds": "wall-clock seconds of this run",
    "curves": 'lists by "epoch" (flow: "time"): "loss", "largest_abs_a", "effective_rank", "gamma0", "error", ...',
}


class DamagedResult(RuntimeError):
    """A result file that cannot be trusted: not JSON, cut off, changed, of another schema, or another run's."""


@dataclass(frozen=True, order=True)
class Run:
    """One training run of the paper: setting, training set and seed."""

    setting: str
    training_set: str
    seed: int

    def path(self, folder: Path) -> Path:
        """Return where its result lies."""
        return folder / self.setting / f"{self.training_set.replace(' ', '-')}-{self.seed}.json"


def stamp() -> dict[str, Any]:
    """Return when and with what a result is made: time, versions, processor."""
    packages = ("numpy", "scipy", "torch", "numba", "ssm-poison-lib")
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": f"{platform.system()} {platform.machine()}, {available_cores()} cores",
    }


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file with a checksum, complete or not at all, whatever happens meanwhile.

    Raises OSError with the file's name if it cannot be written, ValueError if the content holds NaN or infinity.
    """
    try:
        text = json.dumps({**content, "checksum": _checksum(content)}, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path} is not written: {error}") from None
    with replacing(path) as file:
        file.write(text.encode())


def read_json(path: Path, where: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a file of `write_json`. Raises DamagedResult unless it is complete, unchanged and of this schema.

    where: what the content must say of itself, such as its setting and seed: a file copied over another is damaged too.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        checksum = content.pop("checksum")
        schema = content["schema"]
        expected = _checksum(content)  # refuses NaN
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedResult(f"{path} is damaged: not a complete result file ({error!r})") from None
    if checksum != expected:
        raise DamagedResult(f"{path} is damaged: its content does not match its checksum")
    if schema != SCHEMA:
        raise DamagedResult(f"{path} has schema {schema!r}; this version reads {SCHEMA}")
    if where is not None and any(content.get(key) != value for key, value in where.items()):
        found = {key: content.get(key) for key in where}
        raise DamagedResult(f"{path} is damaged: it holds the result of {found}, not of {where}")
    return dict(content)


def load_results(folder: str | os.PathLike[str] = "results") -> dict[Run, dict[str, Any]]:
    """Return all records in a result folder: run -> record (see RECORD). Raises DamagedResult for a file that is not whole."""
    folder, records = as_path("folder", folder), {}
    for path in sorted(folder.glob("*/*.json")):
        if path.parent.name in SETTINGS:
            content = read_json(path)
            try:
                run = Run(content["setting"], content["training_set"], content["seed"])
                whole = run.path(folder) == path
                records[run] = content["record"]
            except (KeyError, TypeError, AttributeError) as error:
                raise DamagedResult(f"{path} is damaged: not the result of a run ({error!r})") from None
            if not whole:
                raise DamagedResult(f"{path} is damaged: it holds the result of {run}")
    return records


def _compute(run: Run) -> dict[str, Any]:
    """Do one training run."""
    if run.setting in THEOREM_SETTINGS:
        return paper.run_theorem_record(THEOREM_SETTINGS[run.setting], run.seed, run.training_set)
    return paper.run_experiment(EXPERIMENTS[run.setting], run.seed, run.training_set)


def run_all(
    jobs: Sequence[tuple[Path, dict[str, Any], Callable[[], dict[str, Any]]]],
    *,
    threads: int,
    progress: bool,
    report: Callable[[str], None],
) -> None:
    """Make every result file that is not there yet; a damaged one is reported, set aside as `*.damaged`, and made again.

    jobs: (path, what the file says of itself, function that returns the rest of its content). Finished files survive whatever
    stops this call. Raises OSError with the file's name where one cannot be read or written.
    """
    missing = []
    for path, where, compute in jobs:
        if path.exists():
            try:
                read_json(path, where)
                continue
            except DamagedResult as error:
                aside = path.with_name(path.name + ".damaged")
                os.replace(path, aside)
                report(f"{error}; set aside as {aside.name}, run again")
        missing.append((path, where, compute))

    def make(path: Path, where: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> None:
        write_json(path, {"schema": SCHEMA, **compute(), **where, **stamp()})

    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(missing), disable=not progress, unit="run") as bar,
    ):
        waiting = {pool.submit(make, *job) for job in missing}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                bar.update(len(done))
                for future in done:
                    future.result()
        except BaseException:
            for future in waiting:
                future.cancel()
            raise


def fresh_seeds(name: str, count: int) -> tuple[int, ...]:
    """Return the `count` (0 .. 100,000) consecutive seeds that follow the authors' largest one in a setting."""
    seeds = (THEOREM_SETTINGS | EXPERIMENTS)[as_choice("name", name, SETTINGS)].seeds
    return tuple(range(max(seeds) + 1, max(seeds) + 1 + as_integer("count", count, low=0, high=_MOST_SEEDS)))


def reproduce(
    names: Iterable[str],
    *,
    seeds: int = 0,
    folder: str | os.PathLike[str] = "results",
    threads: int | None = None,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> dict[Run, dict[str, Any]]:
    """Run settings of the paper from the authors' starts and from fresh seeds; return run -> record (see RECORD).

    names: settings (see SETTINGS), each once; seeds: number of consecutive fresh seeds beside the authors' own. folder: one
    file per run lies there; runs whose file is whole are not repeated. threads: runs at once, by default one per core; the
    records do not depend on it. report: is told of damaged files.

    Raises ValueError for other arguments, DescentError or FlowError if a run fails, OSError with the name of a file that
    cannot be read or written; finished files stay.
    """
    if isinstance(names, str):
        raise ValueError(f"names must be a list of settings; got {names!r}")
    names = [as_choice("setting", name, SETTINGS) for name in as_instance("names", names, Iterable)]  # type: ignore[type-abstract]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"names must name each setting once; got {twice[0]!r} twice")
    folder, threads, progress = (
        as_path("folder", folder),
        as_workers("threads", threads),
        as_flag("progress", progress),
    )
    runs = [
        Run(name, training_set, seed)
        for name in names
        for seed in (THEOREM_SETTINGS | EXPERIMENTS)[name].seeds + fresh_seeds(name, seeds)
        for training_set in TRAINING_SETS
    ]

    def job(run: Run) -> tuple[Path, dict[str, Any], Callable[[], dict[str, Any]]]:
        return run.path(folder), asdict(run), lambda: {"record": _compute(run)}

    run_all([job(run) for run in runs], threads=threads, progress=progress, report=report)
    return {run: read_json(run.path(folder), asdict(run))["record"] for run in runs}


def _round(value: Any, digits: int) -> Any:
    """Return a nested structure with its floats rounded to significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, list):
        return [_round(item, digits) for item in value]
    if isinstance(value, dict):
        return {key: _round(item, digits) for key, item in value.items()}
    return value


def summary(records: dict[Run, dict[str, Any]], *, seconds: float) -> dict[str, Any]:
    """Return one JSON object of many runs: command, time, versions, seeds, records; curves only of the dynamics settings.

    seconds: wall clock of the whole call. Numbers have 6 significant digits, those in curves 4.
    """
    rows, seconds = [], as_scalar("seconds", seconds, low=0.0)
    for run, record in as_mapping("records", records).items():
        as_instance("each key of records", run, Run)
        kept = {key: _round(value, 6) for key, value in record.items() if key != "curves"}
        if "dynamics" in run.setting:
            kept["curves"] = _round(record["curves"], 4)
        rows.append(
            {"setting": run.setting, "training_set": run.training_set, "seed": run.seed, "record": kept}
        )
    seeds: dict[str, list[int]] = {}
    for run in records:
        if run.seed not in seeds.setdefault(run.setting, []):
            seeds[run.setting].append(run.seed)
    return {
        "schema": SCHEMA,
        "command": command_line(),
        "seconds": round(seconds, 1),
        **stamp(),
        "seeds": seeds,
        "runs": rows,
    }


def data_path(name: str) -> Path:
    """Return where a stored result that came with the library lies. Raises ValueError if there is none of this name."""
    folder = Path(str(files("ssm_poison_lib") / "data"))
    return folder / f"{as_choice('name', name, [path.stem for path in folder.glob('*.json')])}.json"


def command_line() -> str:
    """Return the command that is running, as a reader would type it."""
    return "python -m ssm_poison_lib " + shlex.join(sys.argv[1:])


def load_summary(name: str = "reproduced") -> tuple[dict[Run, dict[str, Any]], dict[str, Any]]:
    """Return (run -> record, provenance) of a stored summary that came with the library, e.g. "reproduced".

    provenance: the command that makes it, time, versions, machine, wall-clock seconds, seeds.
    """
    content = read_json(data_path(name))
    runs = content.pop("runs")
    return {Run(r["setting"], r["training_set"], r["seed"]): r["record"] for r in runs}, content


def _number(value: Any) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def _fresh_lines(name: str, records: dict[Run, dict[str, Any]]) -> list[str]:
    """Return what is said of the fresh seeds of a setting: medians, intervals, never trained, reversed."""
    seeds = (THEOREM_SETTINGS | EXPERIMENTS)[name].seeds
    errors = {
        which: {
            run.seed: r["logged_error"]
            for run, r in records.items()
            if run.training_set == which and run.seed not in seeds
        }
        for which in TRAINING_SETS
    }
    if not errors["baseline"]:
        return []
    fresh = [r for run, r in records.items() if run.seed not in seeds]
    untrained = sum(not r["fitted"] if name in THEOREM_SETTINGS else r["stop_epoch"] is None for r in fresh)
    turned = sum(errors["with special"][seed] < error for seed, error in errors["baseline"].items())
    lines = []
    for which in TRAINING_SETS:
        median, low, high = paper.median_interval(list(errors[which].values()))
        lines.append(
            f"  {which:<13} {len(errors[which])} fresh seeds: median {median:.4g}, 95 % interval {low:.4g} to {high:.4g}"
        )
    lines.append(
        f"  never trained: {untrained} of {len(fresh)} runs; reversed (smaller error with special sequences):"
        f" {turned} of {len(errors['baseline'])} seeds"
    )
    return lines


def table(name: str, records: dict[Run, dict[str, Any]]) -> str:
    """Return the printed table of one setting: every run beside the authors' value, means, and the fresh seeds."""
    as_choice("name", name, SETTINGS)
    given = {as_instance("each key of records", k, Run): r for k, r in as_mapping("records", records).items()}
    records = {run: record for run, record in given.items() if run.setting == name}
    title = EXPERIMENTS[name].title if name in EXPERIMENTS else "gradient flow in the theorem's setting"
    by_lag_1 = "dim=" in name
    head = f"  {'training set':<13} {'seed':>5} {'error':>10} {'authors':>10} {'ratio':>7} {'stop':>7} {'authors':>7}"
    lines = [
        f"{name}: {title}",
        head + f" {'epochs':>7} {'seconds':>7}" + ("  error k >= 1" if by_lag_1 else ""),
    ]
    for which in TRAINING_SETS:
        own, theirs = [], []
        for run, record in records.items():
            if run.training_set != which:
                continue
            value = paper.authors_value(name, which, run.seed, "logged_error")
            stop = paper.authors_value(name, which, run.seed, "stop_epoch")
            error = record["logged_error"]
            if run.seed in (THEOREM_SETTINGS | EXPERIMENTS)[name].seeds:
                own.append(error)
                theirs += [] if value is None else [value]
            row = f"  {which:<13} {run.seed:>5} {_number(error):>10} {_number(value):>10}"
            row += f" {'-' if value is None else format(error / value, '.3f'):>7} {_number(record['stop_epoch']):>7}"
            row += f" {'-' if stop is None else int(stop):>7} {_number(record['epochs']):>7} {record['seconds']:>7.2f}"
            lines.append(row + (f"  {record['logged_error_from_lag_1']:.4g}" if by_lag_1 else ""))
        mean = float(np.mean(own))
        known = float(np.mean(theirs)) if len(theirs) == len(own) else None
        ratio = "-" if known is None else f"{mean / known:.3f}"
        lines.append(
            f"  {which:<13} {'mean':>5} {_number(mean):>10} {_number(known):>10} {ratio:>7}   (the authors' seeds)"
        )
    return "\n".join([*lines, *_fresh_lines(name, records)])
