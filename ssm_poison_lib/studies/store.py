"""Many jobs, kept and resumed: checked results that survive a kill, one runner, a study's file.

A job is one call of a function of a module's top level with arguments that name it. A store keeps
what finished jobs returned: here a folder with a JSON file per job, in `sweep` the chunks of a
grid. Either way a result is written at once or not at all, lies beside a checksum of what it is and
of whose it is, and knows the code and the versions that made it. `finish` runs what a store lacks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ssm_poison_lib._checks import (
    as_choice,
    as_flag,
    as_function,
    as_instance,
    as_mapping,
    as_path,
    as_text,
    as_workers,
    available_cores,
    shown,
)
from ssm_poison_lib._code import code_digests
from ssm_poison_lib._files import locked, replacing

__all__ = [
    "DamagedResult",
    "Job",
    "Store",
    "Study",
    "StudyError",
    "command_line",
    "data_path",
    "finish",
    "load",
    "read_json",
    "run",
    "stamp",
    "write_json",
]

SCHEMA = 1
# What tells when and where a result was made, not what it is: a file is not written anew for it.
_TIMES = frozenset({"checksum", "machine", "made", "processor_seconds", "seconds"})
_LONGEST = 1000  # characters of a record that stands on one line
_BLAS_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class StudyError(RuntimeError):
    """Jobs failed, or a store is in use; whatever is finished in the store stays there."""


class DamagedResult(StudyError):
    """A result that cannot be trusted: cut off, changed, of another schema, or another job's."""


# --- one checked JSON file


def _versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed; a script has none."""
    versions = {}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError, ValueError):
            versions[name.replace("_", "-")] = importlib.metadata.version(name)
    return versions


def stamp() -> dict[str, Any]:
    """Return when and with what a result is made.

    Returns:
        "made" (time, UTC), "versions" (of Python and of the packages on which numbers depend) and
        "machine" (system, processor, cores).
    """
    versions = _versions("numpy", "scipy", "torch", "numba", "ssm-poison-lib")
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **versions},
        "machine": f"{platform.system()} {platform.machine()}, {available_cores()} cores",
    }


def command_line() -> str:
    """Return the command that is running, as a reader would type it."""
    return "python -m ssm_poison_lib " + shlex.join(sys.argv[1:])


def _plain(value: Any) -> Any:
    """Return what JSON can hold of arrays, their numbers and dataclasses."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} is no number, text, list or mapping")


def _dumped(content: Any) -> str:
    return json.dumps(content, allow_nan=False, default=_plain)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _lines(value: Any) -> str:
    """Return JSON of short lines where it can be: of a long mapping, or list of mappings, an item a
    line.
    """
    text = _dumped(value)
    if isinstance(value, dict):
        names, items = [f"{json.dumps(key)}: " for key in value], list(value.values())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        names, items = [""] * len(value), value
    else:
        return text
    if len(text) <= _LONGEST:
        return text
    rows = ",\n".join(name + _lines(item) for name, item in zip(names, items, strict=True))
    return f"{text[0]}\n{rows}\n{text[-1]}"


def _timeless(value: Any) -> Any:
    """Return a nested structure without the times in it."""
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in _TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _settled(new: Any, old: Any) -> Any:
    """Return the new content, and what in it is the old one but for times as it was."""
    if _timeless(new) == _timeless(old) and type(new) is type(old) and isinstance(new, dict | list):
        return old
    if isinstance(new, dict) and isinstance(old, dict):
        return {key: _settled(item, old.get(key)) for key, item in new.items()}
    if isinstance(new, list) and isinstance(old, list) and len(new) == len(old):
        return [_settled(a, b) for a, b in zip(new, old, strict=True)]
    return new


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checked JSON file, complete or not at all, whatever happens meanwhile.

    A record stands on one line, so that a diff shows which ones changed. Where a whole file is
    there that differs in times only (when, how long, on what machine), it stays as it is; where
    records changed, the others keep their line.

    Args:
        path: the file; its folder is made if need be.
        content: names -> what JSON can hold, NumPy's numbers and arrays, dataclasses; no
            "checksum".

    Raises:
        ValueError: if the content holds NaN, infinity, or what JSON cannot hold.
        OSError: with the file's name, if it cannot be written.
    """
    try:
        plain = {"schema": SCHEMA, **json.loads(_dumped(dict(content)))}
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not written: {error}") from None
    with suppress(DamagedResult, OSError):
        old = read_json(path)
        plain = _settled(plain, old)
        if plain == old:
            return
    with replacing(path) as file:
        file.write(f"{_lines({**plain, 'checksum': _checksum(plain)})}\n".encode())


def read_json(path: Path, where: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a file of `write_json`.

    Args:
        path: the file.
        where: what the content must say of itself, such as its job: a file that was copied over
            another is damaged too.

    Raises:
        DamagedResult: unless it is complete, unchanged, of this schema, and of `where`.
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
        raise DamagedResult(
            f"{path} is damaged: it holds the result of {found}, not of {dict(where)}"
        )
    return dict(content)


def data_path(name: str) -> Path:
    """Return where a stored result that came with the library lies.

    Args:
        name: of the file, such as "reproduced".

    Raises:
        ValueError: if there is none of this name.
    """
    folder = Path(str(files("ssm_poison_lib") / "data"))
    names = [path.stem for path in folder.glob("*.json")]
    return folder / f"{as_choice('name', name, names)}.json"


# --- jobs, and a folder with a file for each


@dataclass(frozen=True)
class Job:
    """One call of a study's function.

    Attributes:
        name: unique in its study; parts between slashes are folders, such as "kappa
            7/baseline-242".
        arguments: keyword arguments of the function, of what JSON can hold.

    Raises:
        TypeError, ValueError: if the name is empty or an argument is something else.
    """

    name: str
    arguments: Mapping[str, Any] = field(hash=False)

    def __post_init__(self) -> None:
        if not re.search(r"\w", as_text("name", self.name)):
            raise ValueError(f"name must hold letters or digits; got {shown(self.name)}")
        try:
            plain = json.loads(_dumped(dict(as_mapping("arguments", self.arguments))))
        except ValueError as error:
            raise ValueError(
                f"arguments of {self.name!r} must be numbers and texts: {error}"
            ) from None
        object.__setattr__(self, "arguments", plain)

    def path(self, folder: Path) -> Path:
        """Return where its result lies.

        Args:
            folder: of the study.
        """
        parts = [re.sub(r"[^\w.=+-]+", "-", part) for part in self.name.split("/")]
        return folder.joinpath(*parts[:-1], f"{parts[-1]}.json")


@runtime_checkable
class Store(Protocol):
    """What `finish` needs of a place where results are kept; jobs are numbered from 0."""

    @property
    def path(self) -> Path:
        """The folder."""

    def __len__(self) -> int:
        """Return the number of jobs."""

    def lacking(self) -> tuple[list[int], list[str]]:
        """Return the jobs to be run, and what is damaged, in words that name the file."""

    def changes(self, made_by: dict[str, Any]) -> list[str]:
        """Return what of code and versions differs from what made the finished jobs."""

    def prepare(self, made_by: dict[str, Any], missing: list[int], damaged: list[str]) -> None:
        """Clear away what a killed process left and what is damaged; accept what is there."""

    def call(self, function: Callable[..., Any], i: int) -> partial[Any]:
        """Return the call that is a job."""

    def place(self, i: int) -> str:
        """Say which job it is."""

    def write(self, i: int, result: Any, made_by: dict[str, Any]) -> None:
        """Keep what a job returned.

        Raises:
            StudyError: if it cannot be kept as it is.
        """


def differences(last: dict[str, Any], now: dict[str, Any]) -> set[str]:
    """Return the names of the code and versions that differ between two descriptions of a maker."""
    return {
        name
        for kind in ("code", "versions")
        for name in last[kind].keys() | now[kind].keys()
        if last[kind].get(name) != now[kind].get(name)
    }


@dataclass(frozen=True)
class Folder:
    """A store with a JSON file for each job."""

    path: Path
    jobs: tuple[Job, ...]

    def __post_init__(self) -> None:
        paths = [job.path(self.path) for job in self.jobs]
        if twice := [job.name for i, job in enumerate(self.jobs) if paths[i] in paths[:i]]:
            raise ValueError(f"jobs must have different names; got {twice[0]!r} twice")

    def __len__(self) -> int:
        return len(self.jobs)

    @cached_property
    def _paths(self) -> list[Path]:
        return [job.path(self.path) for job in self.jobs]

    def read(self, i: int) -> dict[str, Any]:
        """Return the content of a job's file. Raises DamagedResult."""
        content = read_json(self._paths[i], {"job": self.jobs[i].arguments})
        if not isinstance(content.get("result"), dict) or not content.get("made_by"):
            raise DamagedResult(f"{self._paths[i]} is damaged: not the result of a job")
        return content

    def lacking(self) -> tuple[list[int], list[str]]:
        """Return the jobs to be run, and what is damaged."""
        missing, damaged = [], []
        for i, path in enumerate(self._paths):
            if path.exists():
                try:
                    self.read(i)
                    continue
                except DamagedResult as error:
                    damaged.append(str(error))
            missing.append(i)
        return missing, damaged

    def changes(self, made_by: dict[str, Any]) -> list[str]:
        """Return what differs from what made the finished jobs."""
        missing = set(self.lacking()[0])
        done = [self.read(i)["made_by"][-1] for i in range(len(self)) if i not in missing]
        return sorted(set().union(*(differences(last, made_by) for last in done)))

    def prepare(self, made_by: dict[str, Any], missing: list[int], damaged: list[str]) -> None:
        """Set damaged files aside as `*.damaged`; say in the others that this code accepts them."""
        for i, path in enumerate(self._paths):
            if i not in missing:
                content = self.read(i)
                if content["made_by"][-1] != made_by:
                    write_json(path, {**content, "made_by": [*content["made_by"], made_by]})
            elif path.exists():
                os.replace(path, path.with_name(path.name + ".damaged"))

    def call(self, function: Callable[..., Any], i: int) -> partial[Any]:
        """Return the call with the arguments of a job."""
        return partial(function, **self.jobs[i].arguments)

    def place(self, i: int) -> str:
        """Return the name of a job."""
        return self.jobs[i].name

    def write(self, i: int, result: Any, made_by: dict[str, Any]) -> None:
        """Write the file of a job."""
        if dataclasses.is_dataclass(result) and not isinstance(result, type):
            result = dataclasses.asdict(result)
        if not isinstance(result, Mapping):
            raise StudyError(
                f"{self.place(i)}: the function must return a mapping; got {shown(result)}"
            )
        content = {"job": self.jobs[i].arguments, "result": dict(result), "made_by": [made_by]}
        try:
            write_json(self._paths[i], {**content, **stamp()})
        except ValueError as error:
            raise StudyError(f"{self.place(i)}: {error}") from None


# --- the runner


def importable(function: Callable[..., Any]) -> str:
    """Return "module:name" of a function of a module's top level; refuse all others."""
    as_function("function", function)
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module is None or getattr(sys.modules.get(module), name, None) is not function:
        raise ValueError(
            "function must be defined at the top level of a module, where workers can import it,"
            f" and not be a partial, a lambda or a method; got {function!r}"
        )
    return f"{module}:{name}"


def maker(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the code of a function and the versions of the packages on which numbers depend."""
    versions = {}
    for name in (
        "ssm-poison-lib",
        "numpy",
        "scipy",
        "numba",
        function.__module__.partition(".")[0],
    ):
        # a script has no version
        with suppress(importlib.metadata.PackageNotFoundError, ValueError):
            versions[name.replace("_", "-")] = importlib.metadata.version(name)
    return {"code": code_digests(function), "versions": versions}


def as_scheduler(value: Any) -> str:
    """Return where jobs run: "threads", "processes" or the address of a Dask scheduler."""
    if "://" not in as_text("scheduler", value):
        as_choice("scheduler", value, ("threads", "processes"))
    return str(value)


def finish(
    store: Store,
    function: Callable[..., Any],
    *,
    scheduler: str = "threads",
    workers: int | None = None,
    progress: bool = True,
    accept_changes: bool = False,
    report: Callable[[str], None] = print,
) -> int:
    """Run the jobs that a store lacks, and keep each as it ends.

    Results of other code or versions are not mixed with new ones, and those of a function whose own
    module has changed are not taken for its own, unless `accept_changes`; the store then names
    both. A job that fails does not stop the others. Linear algebra runs on one thread, whatever the
    environment says: products of small matrices are slower on several, and jobs fill the cores.

    Args:
        store: knows its jobs and what of them is finished.
        function: of a module's top level, which the workers can import.
        scheduler: "threads" or "processes" of this machine, or the address of a Dask scheduler.
        workers: number of threads or processes, one per core by default.
        progress: whether to show a bar.
        accept_changes: go on with results of other code or versions.
        report: is told of damaged results, which are made again.

    Returns:
        How many jobs this call has run.

    Raises:
        ValueError: for results of other code or versions, which it names.
        StudyError: if jobs failed (after the others ended), if another process writes the store, or
            if a result cannot be kept.
        OSError: with the name of a file that cannot be written.
    """
    importable(function)
    as_scheduler(scheduler)
    workers, progress = as_workers("workers", workers), as_flag("progress", progress)
    as_flag("accept_changes", accept_changes)
    as_function("report", report)
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)  # a worker that runs its parent's script: the parent says what is wrong
    made_by = maker(function)
    missing, damaged = store.lacking()
    changes = store.changes(made_by) if len(missing) < len(store) else []
    own = any(name.startswith(f"{function.__module__}:") for name in changes)
    if changes and not accept_changes and (missing or own):
        raise ValueError(
            f"{store.path} was made by other code or versions ({', '.join(changes)}): move it away"
            " to run everything again, or keep what is there with accept_changes=True"
            " (--accept-changes)"
        )
    if missing or damaged or (changes and accept_changes):
        with _one_writer(store.path):
            missing, damaged = store.lacking()
            for message in damaged:
                report(f"{message}; run again")
            store.prepare(made_by, missing, damaged)
            if missing:
                with _executor(scheduler, workers, function) as executor:
                    _run(store, function, missing, executor, made_by, progress)
        if still := store.lacking()[1]:
            raise StudyError(f"{still[0]}, although it has just been written")
    elif changes:
        report(f"{store.path} was made with other versions of {', '.join(changes)}")
    return len(missing)


@contextmanager
def _one_writer(path: Path) -> Iterator[None]:
    """Hold the lock of a store."""
    lock = path.with_name(path.name + ".lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock))
        except BlockingIOError:
            raise StudyError(f"another process writes {path} (it holds {lock})") from None
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        yield


@contextmanager
def _executor(scheduler: str, workers: int, function: Callable[..., Any]) -> Iterator[Executor]:
    """Give what runs jobs; when the block fails, what has not begun is not run."""
    if scheduler == "threads":
        with threadpool_limits(1), ThreadPoolExecutor(workers) as threads:
            try:
                yield threads
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise
    elif scheduler == "processes":
        yield from _processes(workers, function)
    else:
        from distributed import Client  # here, not above: it takes a second to load

        with ExitStack() as stack:
            try:
                client = stack.enter_context(Client(scheduler))
            except OSError as error:
                raise StudyError(f"no Dask scheduler answers at {scheduler!r} ({error})") from None
            executor = client.get_executor(pure=False)
            stack.callback(executor.shutdown, wait=False)
            yield executor


def _processes(workers: int, function: Callable[..., Any]) -> Iterator[Executor]:
    """Give a pool of processes, which end at once when the block fails."""
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (function,))
    try:
        yield pool
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise StudyError(
                f"a worker process ended ({error}); a script that runs scheduler='processes' must"
                " do so under `if __name__ == '__main__':`"
            ) from None
        raise
    finally:
        pool.shutdown()


def _begin_worker(_function: Callable[..., Any]) -> None:
    """Leave Ctrl-C to the parent; one thread for linear algebra, whether it is loaded or not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(dict.fromkeys(_BLAS_VARIABLES, "1"))
    threadpool_limits(1)


def _call(job: partial[Any]) -> Any:
    """Do a job on a worker, which would never answer if it were told to exit."""
    try:
        return job()
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise StudyError(f"the function raised {error!r}") from error


def _run(
    store: Store,
    function: Callable[..., Any],
    missing: list[int],
    executor: Executor,
    made_by: dict[str, Any],
    progress: bool,
) -> None:
    """Run the missing jobs and write each as it ends."""
    failures: dict[int, Exception] = {}
    numbers = {executor.submit(_call, store.call(function, i)): i for i in missing}
    done = as_completed(list(numbers))
    for future in tqdm(done, total=len(missing), unit="job", disable=not progress, file=sys.stderr):
        i = numbers.pop(future)
        try:
            result = future.result()
        except BrokenProcessPool:
            raise
        except Exception as reason:  # a job's own error: it is reported when the others are safe
            failures[i] = reason
        else:
            store.write(i, result, made_by)
    if failures:
        first = min(failures)
        raise StudyError(
            f"{len(failures)} of {len(missing)} jobs failed, the first at {store.place(first)}:"
            f" {failures[first]!r}"
        ) from failures[first]


def run(
    function: Callable[..., Any],
    jobs: Sequence[Job],
    folder: str | os.PathLike[str],
    **options: Any,
) -> list[dict[str, Any]]:
    """Run jobs whose results are not in a folder yet, and return the results of all.

    Args:
        function: gets the arguments of a job and returns a mapping (or a dataclass) of what JSON
            can
            hold, NumPy's numbers and arrays.
        jobs: in the order of the results.
        folder: of this study; a file for each job lies there.
        options: see `finish`.

    Returns:
        What the function returned, a mapping for each job.

    Raises:
        Exception: see `finish`.
    """
    if isinstance(jobs, str) or not isinstance(jobs, Sequence):
        raise TypeError(f"jobs must be a sequence of Job; got {shown(jobs)}")
    checked = tuple(as_instance(f"jobs[{k}]", job, Job) for k, job in enumerate(jobs))
    store = Folder(as_path("folder", folder), checked)
    finish(store, function, **options)
    return [dict(store.read(i)["result"]) for i in range(len(store))]


# --- a study: named jobs, and the file that keeps what came out


def _rows(study: Study, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    pairs = zip(study.jobs, results, strict=True)
    return {"runs": [{**job.arguments, **result} for job, result in pairs]}


@dataclass(frozen=True)
class Study:
    """A study that `python -m ssm_poison_lib study NAME` runs: `STUDY` of the module
    `studies.NAME`.

    Attributes:
        name: of the module.
        function: see `run`.
        jobs: all of them.
        collect: (study, results) -> content of the file; by default "runs", a row for each job with
            its arguments and its results.
        table: content -> the printed table; by default only the number of runs is said.
        scheduler: where jobs run unless told otherwise, "threads" or "processes".
    """

    name: str
    function: Callable[..., Any]
    jobs: tuple[Job, ...]
    collect: Callable[[Study, list[dict[str, Any]]], dict[str, Any]] = _rows
    table: Callable[[dict[str, Any]], str] | None = None
    scheduler: str = "threads"

    def run(self, folder: str | os.PathLike[str] = "results", **options: Any) -> dict[str, Any]:
        """Run what is not finished yet.

        Args:
            folder: results lie in its folder of the study's name.
            options: see `finish`.

        Returns:
            The content of the study's file.
        """
        options = {"scheduler": self.scheduler} | options
        where = as_path("folder", folder) / self.name
        return self.collect(self, run(self.function, self.jobs, where, **options))


def load(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a stored study that came with the library.

    Args:
        name: of the study, such as "convergence".

    Returns:
        (content, provenance): what the study collected ("runs", a list of rows, unless it says
        otherwise), and the command that makes it again, time, versions, machine, seconds.

    Raises:
        DamagedResult: if the file is not whole.
    """
    content = read_json(data_path(name))
    head = ("schema", "command", "seconds", "processor_seconds", "made", "versions", "machine")
    provenance = {key: content.pop(key) for key in head if key in content}
    return content, provenance
