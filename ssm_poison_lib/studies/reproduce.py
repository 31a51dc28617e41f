"""The paper's settings again: every run from the authors' starts and from fresh seeds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ssm_poison_lib import paper
from ssm_poison_lib._checks import (
    as_choice,
    as_instance,
    as_integer,
    as_mapping,
    as_path,
    as_scalar,
)
from ssm_poison_lib.paper import TRAINING_SETS
from ssm_poison_lib.records import Record
from ssm_poison_lib.studies import store
from ssm_poison_lib.studies.store import Job

__all__ = [
    "SETTINGS",
    "Run",
    "fresh_seeds",
    "load_summary",
    "pair",
    "reproduce",
    "summary",
    "table",
]

_MOST_SEEDS = 100_000
#: The names of all settings of the paper: those of the theorem and those beyond it.
SETTINGS = tuple(paper.SETTINGS)

_SEEDS = {name: setting.seeds for name, setting in paper.SETTINGS.items()}


@dataclass(frozen=True, order=True)
class Run:
    """One training run of the paper.

    Attributes:
        setting: one of SETTINGS.
        training_set: "baseline" or "with special".
        seed: of the start and of the data.
    """

    setting: str
    training_set: str
    seed: int

    def job(self) -> Job:
        """Return the job that does it."""
        return Job(f"{self.setting}/{self.training_set}-{self.seed}", asdict(self))


def compute(setting: str, training_set: str, seed: int) -> dict[str, Any]:
    """Do one training run and return what is kept of it, `Record.to_dict`.

    Args:
        setting: one of SETTINGS.
        training_set: "baseline" or "with special".
        seed: one of the authors' seeds (their own start) or any other.

    Raises:
        DescentError: if training diverged.
        FlowError: if the flow could not be followed.
    """
    return (
        paper.SETTINGS[as_choice("setting", setting, SETTINGS)].record(seed, training_set).to_dict()
    )


def fresh_seeds(name: str, count: int) -> tuple[int, ...]:
    """Return the consecutive seeds that follow the authors' largest one in a setting.

    Args:
        name: of the setting.
        count: how many, from 0 to 100,000.
    """
    first = max(_SEEDS[as_choice("name", name, SETTINGS)]) + 1
    return tuple(range(first, first + as_integer("count", count, low=0, high=_MOST_SEEDS)))


def reproduce(
    names: Iterable[str],
    *,
    seeds: int = 0,
    folder: str | os.PathLike[str] = "results",
    **options: Any,
) -> dict[Run, Record]:
    """Run settings of the paper from the authors' starts and from fresh seeds.

    The records do not depend on how many runs are done at once.

    Args:
        names: settings (see SETTINGS), each once.
        seeds: number of consecutive fresh seeds beside the authors' own.
        folder: a file per run lies in its folder "reproduce"; what is whole there is not repeated.
        options: scheduler, workers, progress, accept_changes, report: see `studies.store.finish`.

    Returns:
        Each run's `Record`.

    Raises:
        ValueError: for other arguments, or results of other code.
        StudyError: if runs failed; what is finished stays.
        OSError: with the name of a file that cannot be read or written.
    """
    if isinstance(names, str):
        raise ValueError(f"names must be a list of settings; got {names!r}")
    given = as_instance("names", names, Iterable)  # type: ignore[type-abstract]
    names = [as_choice("setting", name, SETTINGS) for name in given]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"names must name each setting once; got {twice[0]!r} twice")
    runs = [
        Run(name, training_set, seed)
        for name in names
        for seed in _SEEDS[name] + fresh_seeds(name, seeds)
        for training_set in TRAINING_SETS
    ]
    where = as_path("folder", folder) / "reproduce"
    records = store.run(compute, [run.job() for run in runs], where, **options)
    return dict(zip(runs, map(Record.from_dict, records), strict=True))


def _round(value: Any, digits: int) -> Any:
    """Return a nested structure with its floats rounded to significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, list | tuple):
        return [_round(item, digits) for item in value]
    if isinstance(value, dict):
        return {key: _round(item, digits) for key, item in value.items()}
    return value


def summary(records: dict[Run, Record], *, seconds: float) -> dict[str, Any]:
    """Return the content of one file of many runs, for `studies.store.write_json`.

    Args:
        records: what `reproduce` returned; curves are kept of the dynamics settings only. Numbers
            get 6 significant digits, those in curves 4.
        seconds: wall clock of the whole call.
    """
    rows, seconds = [], as_scalar("seconds", seconds, low=0.0)
    seeds: dict[str, list[int]] = {}
    for run, record in as_mapping("records", records).items():
        as_instance("each key of records", run, Run)
        content = as_instance("each record", record, Record).to_dict()
        curves = _round(content.pop("curves"), 4) if "dynamics" in run.setting else None
        kept = {**_round(content, 6), "curves": curves}
        rows.append({**asdict(run), "record": kept})
        if run.seed not in seeds.setdefault(run.setting, []):
            seeds[run.setting].append(run.seed)
    head = {"command": store.command_line(), "seconds": round(seconds, 1), **store.stamp()}
    return {**head, "seeds": seeds, "runs": rows}


def load_summary(name: str = "reproduced") -> tuple[dict[Run, Record], dict[str, Any]]:
    """Return a stored summary that came with the library.

    Args:
        name: "reproduced" (the authors' seeds) or "fresh_seeds".

    Returns:
        (run -> record, provenance): the command that makes it again, time, versions, machine,
        seconds
        and seeds.
    """
    content = store.read_json(store.data_path(name))
    runs = content.pop("runs")
    records = {
        Run(r["setting"], r["training_set"], r["seed"]): Record.from_dict(r["record"]) for r in runs
    }
    return records, content


def pair(records: dict[Run, Record], setting: str, seed: int | None = None) -> dict[str, Record]:
    """Return the two runs of one setting and seed: training set -> record.

    Args:
        records: what `reproduce` or `load_summary` returned.
        setting: its name.
        seed: of both runs; by default the authors' first one.

    Raises:
        ValueError: if one of them is not among the records.
    """
    seed = _SEEDS[as_choice("setting", setting, SETTINGS)][0] if seed is None else seed
    runs = {which: Run(setting, which, seed) for which in TRAINING_SETS}
    if missing := [run for run in runs.values() if run not in as_mapping("records", records)]:
        raise ValueError(f"records must hold {missing[0]}")
    return {which: records[run] for which, run in runs.items()}


def _number(value: Any) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def _fresh_lines(name: str, records: dict[Run, Record]) -> list[str]:
    """Return what is said of fresh seeds: medians, intervals, never trained, reversed."""
    seeds = _SEEDS[name]
    fresh = {run: r for run, r in records.items() if run.seed not in seeds}
    if not fresh:
        return []
    errors = {
        which: {run.seed: r.logged_error for run, r in fresh.items() if run.training_set == which}
        for which in TRAINING_SETS
    }
    untrained = sum(not r.trained for r in fresh.values())
    turned = sum(errors["with special"][seed] < e for seed, e in errors["baseline"].items())
    lines = []
    for which, values in errors.items():
        median, low, high = paper.median_interval(list(values.values()))
        lines.append(
            f"  {which:<13} {len(values)} fresh seeds: median {median:.4g},"
            f" 95 % interval {low:.4g} to {high:.4g}"
        )
    return [
        *lines,
        (
            f"  never trained: {untrained} of {len(fresh)} runs; reversed (smaller error with"
            f" special sequences): {turned} of {len(errors['baseline'])} seeds"
        ),
    ]


def _row(run: Run, record: Record) -> str:
    """Return the line of one run, beside the authors' values."""
    setting = paper.SETTINGS[run.setting]
    value = setting.authors_value(run.seed, run.training_set)
    stop = setting.authors_value(run.seed, run.training_set, "stop_epoch")
    error = record.logged_error
    ratio = "-" if value is None else format(error / value, ".3f")
    cells = (
        (
            f"{run.training_set:<13} {run.seed:>5} {_number(error):>10} {_number(value):>10}"
            f" {ratio:>7}"
        ),
        f"{_number(record.stop_epoch):>7} {'-' if stop is None else int(stop):>7}",
        f"{_number(record.epochs):>7} {record.seconds:>7.2f}",
    )
    return f"  {' '.join(cells)}"


def _mean_line(name: str, which: str, records: dict[Run, Record]) -> str:
    """Return the line of means over the authors' seeds."""
    own = [r.logged_error for run, r in records.items() if run.seed in _SEEDS[name]]
    known = [paper.SETTINGS[name].authors_value(run.seed, which) for run in records]
    theirs = [value for value in known if value is not None]
    mean = float(np.mean(own))
    their_mean = float(np.mean(theirs)) if len(theirs) == len(own) else None
    ratio = "-" if their_mean is None else f"{mean / their_mean:.3f}"
    numbers = f"{_number(mean):>10} {_number(their_mean):>10} {ratio:>7}"
    return f"  {which:<13} {'mean':>5} {numbers}   (the authors' seeds)"


def table(name: str, records: dict[Run, Record]) -> str:
    """Return the printed table of one setting: runs beside the authors' values, means, fresh seeds.

    Args:
        name: of the setting.
        records: what `reproduce` or `load_summary` returned; those of other settings are left out.
    """
    as_choice("name", name, SETTINGS)
    for run in as_mapping("records", records):
        as_instance("each key of records", run, Run)
    records = {run: record for run, record in records.items() if run.setting == name}
    title = paper.SETTINGS[name].title
    by_lag_1 = "dim=" in name
    names = f"  {'training set':<13} {'seed':>5} {'error':>10} {'authors':>10} {'ratio':>7}"
    head = f"{names} {'stop':>7} {'authors':>7} {'epochs':>7} {'seconds':>7}"
    lines = [f"{name}: {title}", head + ("  error k >= 1" if by_lag_1 else "")]
    for which in TRAINING_SETS:
        rows = {run: record for run, record in records.items() if run.training_set == which}
        for run, record in rows.items():
            more = f"  {record.logged_error_from_lag_1:.4g}" if by_lag_1 else ""
            lines.append(_row(run, record) + more)
        lines.append(_mean_line(name, which, rows))
    return "\n".join([*lines, *_fresh_lines(name, records)])
