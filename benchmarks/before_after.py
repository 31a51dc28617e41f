"""This library beside an older revision of it, each row measured alternately on both, in one run.

    python benchmarks/before_after.py [REVISION] [--rounds 3] [--quick]

REVISION is by default 2d30368 of 26 November 2026, the last before settings, equations, engines and
studies were rebuilt. It is checked out into a folder that goes away at the end; both trees run with
the packages of this Python, each with machine code of its own that is kept. Every value is the
least of the rounds: processor time, but for the memory. `reproduce all` runs once on each tree,
with as many BLAS threads as a reader has; --quick leaves it out. Ten minutes on one core.

On 27 November 2026, two rounds on a busy machine of two cores:

                                                        before     after   ratio
    first batched flow, empty cache, s                    11.7      4.86    2.41
    impulse response, d = 10, 20 lags, us                   26      25.3    1.03
    impulse response, d = 64, 500 lags, us            1.95e+03      41.4   47.06
    flows on full-rank data, kappa = 64, ms a flow         131      2.94   44.57
    theorem_flows, n = 256, kappa = 501, MB           2.45e+03      10.2  239.12
    one flow, baseline only, ms                            106      63.6    1.67
    one flow, with special, ms                             213       125    1.70
    batched flows, baseline only, us a flow               91.5      65.6    1.40
    batched flows, with special, us a flow                84.7      64.5    1.31
    epoch of Adam, linear, us                            0.256     0.218    1.17
    epoch of Adam, network, us                            1.31      1.27    1.03
    reproduce all, s                                      32.5      27.9    1.16
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent.parent
BEFORE = "2d30368"

COMMON = """
import time
import numpy as np
from ssm_poison_lib import descent, flow, flows, paper, sequences, ssm

def best(repeats, call, each=1):
    call()
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        seconds.append(time.process_time() - begin)
    return min(seconds) / each

rng = np.random.default_rng(0)
"""

FIRST = """
options = {"length": 7, "alpha": 1.0, "beta": 1.0, "t_end": 10.0, "workers": 1}
begin = time.process_time()
flows.theorem_flows(np.array([[0.02, 0.01]]), **options)
print(time.process_time() - begin)
"""

RESPONSE = """
system = ssm.DiagonalSSM(rng.uniform(-1, 1, {d}), rng.normal(size={d}), np.ones({d}))
print(1e6 * best(5, lambda: [system.impulse_response({lags}) for _ in range(100)], 100))
"""

FULL_RANK = """
x = rng.normal(size=(128, 64))
G, target = x.T @ x / 64, ssm.theorem_teacher(10).impulse_response(64)
A0 = rng.random((64, 10)) / 10
options = {{"t_end": 1.0, "workers": 1, "rtol": 1e-5}}
print(1e3 * best(1, lambda: flows.many_flows(A0, {data}, **options), len(A0)))
"""

MEMORY = """
from pathlib import Path
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
A0, alpha = rng.random((256, 2)) / 2, rng.uniform(1.0, 2.0, 256)
options = {"length": 501, "beta": 1.0, "t_end": 1.0, "workers": 1, "rtol": 1e-3}
flows.theorem_flows(A0[:1], alpha=1.0, **options)
Path("/proc/self/clear_refs").write_text("5")
before = peak()
flows.theorem_flows(A0, alpha=alpha, **options)
print(peak() - before)
"""

ONE = """
x = sequences.baseline_sequences(7)
if {special}:
    x = np.concatenate([x, sequences.special_sequences(7)])
start = ssm.DiagonalSSM(-np.sort(-rng.random(10)) * 1e-2, np.ones(10), np.ones(10))
data = sequences.TrainingSet(x, ssm.theorem_teacher(10))
print(1e3 * best(3, lambda: flow.gradient_flow(start, data, t_end=1e9)))
"""

BATCH = """
A0, gaps = flows.near_tie_starts(
    -np.sort(-rng.random((1920, 10))) + 0.02 * np.eye(10)[0], 1e-2, np.logspace(-8, -2, 1920)
)
options = {{"length": 7, "alpha": 1.0, "beta": {special}, "t_end": 1e9, "workers": 1, "rtol": 1e-5}}
print(1e6 * best(3, lambda: flows.theorem_flows(A0, gaps=gaps, **options), len(A0)))
"""

EPOCH = """
setting = paper.EXPERIMENTS["{name}"]
seed = setting.seeds[0]
start, data = setting.start(seed), setting.training_set(seed, "with special")
run = descent.Descent(start, data, descent.Rule(1e-4, 10**9, "adam"))
print(1e6 * best(9, lambda: run.advance(4000), 4000))
"""


class Row(NamedTuple):
    """One number, by a program for each of the trees."""

    name: str
    before: str
    after: str
    fresh: bool = False  # an empty cache of machine code


def same(name: str, program: str, *, fresh: bool = False) -> Row:
    """Return a row whose program runs on both trees."""
    return Row(name, program, program, fresh)


ROWS = (
    same("first batched flow, empty cache, s", FIRST, fresh=True),
    same("impulse response, d = 10, 20 lags, us", RESPONSE.format(d=10, lags=20)),
    same("impulse response, d = 64, 500 lags, us", RESPONSE.format(d=64, lags=500)),
    Row(
        "flows on full-rank data, kappa = 64, ms a flow",
        FULL_RANK.format(data="G, target"),
        FULL_RANK.format(data="(G, target)"),
    ),
    same("theorem_flows, n = 256, kappa = 501, MB", MEMORY),
    same("one flow, baseline only, ms", ONE.format(special=False)),
    same("one flow, with special, ms", ONE.format(special=True)),
    same("batched flows, baseline only, us a flow", BATCH.format(special=0.0)),
    same("batched flows, with special, us a flow", BATCH.format(special=1.0)),
    same("epoch of Adam, linear, us", EPOCH.format(name="standalone_ssm_poison__s0")),
    same("epoch of Adam, network, us", EPOCH.format(name="ssm_in_nn_poison__s0")),
)


def run(tree: Path, cache: Path, *arguments: str, threads: int | None = 1) -> str:
    """Return what Python prints in a tree whose machine code is kept in `cache`."""
    environment = os.environ | {"PYTHONPATH": str(tree), "NUMBA_CACHE_DIR": str(cache)}
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cache, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{tree}: {done.stderr[-2000:]}")
    return done.stdout


def measured(
    program: str, tree: Path, cache: Path, *, fresh: bool = False, common: str = COMMON
) -> float:
    """Return the number that a program prints in a tree, with an empty cache if `fresh`."""
    with tempfile.TemporaryDirectory() as empty:
        return float(run(tree, Path(empty) if fresh else cache, "-c", common + program))


def reproduce(tree: Path, cache: Path) -> float:
    """Return the processor time of all the paper's settings, in s."""

    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    begin = used()
    with tempfile.TemporaryDirectory(dir=cache) as results:
        arguments = ("-m", "ssm_poison_lib", "reproduce", "all", "--results", results)
        run(tree, cache, *arguments, threads=None)
    return used() - begin


def line(name: str, before: float, after: float) -> str:
    """Return one row of the table."""
    return f"{name:<48} {before:>9.3g} {after:>9.3g} {before / after:>7.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("revision", nargs="?", default=BEFORE, metavar="REVISION")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    git = ["git", "-C", str(HERE), "worktree"]
    with tempfile.TemporaryDirectory() as name:
        old, caches = Path(name, "old"), (Path(name, "before"), Path(name, "after"))
        for cache in caches:
            cache.mkdir()
        subprocess.run([*git, "add", "--quiet", "--detach", str(old), chosen.revision], check=True)
        try:
            print(f"{'':<48} {'before':>9} {'after':>9} {'ratio':>7}")
            for row in ROWS:
                rounds = [
                    [
                        measured(program, tree, cache, fresh=row.fresh)
                        for program, tree, cache in zip(row[1:3], (old, HERE), caches, strict=True)
                    ]
                    for _ in range(chosen.rounds)
                ]
                print(line(row.name, *map(min, zip(*rounds, strict=True))), flush=True)
            if not chosen.quick:
                print(line("reproduce all, s", *map(reproduce, (old, HERE), caches)))
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True)


if __name__ == "__main__":
    main()
