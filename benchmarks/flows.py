"""Batched flows against SciPy's LSODA: speed at equal accuracy, growth with d, a whole phase
diagram, agreement.

python benchmarks/flows.py                     speed on one core, slopes in d, 80,000 flows (about
                                               two minutes)
python benchmarks/flows.py --agreement 1000    final errors of 1,000 random cases against the
                                               references (some minutes)
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import random_flows
from scipy.integrate import LSODA

from ssm_poison_lib import flows

LENGTH, D, AGREEMENT = 7, 10, 1e-6
P, Q = LENGTH - 1, LENGTH - 2
TARGET = np.ones(20)  # the theorem's impulse response at lags 1..19; lag 0 is left out


def starts(n: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return n uniform starts whose relative tie gaps run from 1e-8 to 1e-2, with their exact gaps."""
    shapes = -np.sort(-np.random.default_rng(0).random((n, D)))
    shapes[:, 0] = shapes[:, 0] + 0.02  # room for the largest gap
    return flows.near_tie_starts(shapes, scale, np.logspace(-8, -2, n))


def lsoda(start: np.ndarray, beta: float, t_end: float, rtol: float) -> np.ndarray:
    """Integrate da_j/dt = p a_j^q r_p + beta r_1 with SciPy, right-hand side and Jacobian in NumPy."""

    def velocity(_t: float, a: np.ndarray) -> np.ndarray:
        return P * a**Q * (1 - (a**P).sum()) + beta * (1 - a.sum())

    def jacobian(_t: float, a: np.ndarray) -> np.ndarray:
        aq = a**Q
        J = np.outer(-(P**2) * aq, aq) - beta
        J[np.diag_indices(D)] += P * Q * a ** (Q - 1) * (1 - (a**P).sum())
        return J

    solver = LSODA(velocity, 0.0, start, t_end, rtol=rtol, atol=1e-6 * rtol, jac=jacobian)
    while solver.status == "running":
        solver.step()
    if solver.status == "failed":
        raise RuntimeError(f"LSODA failed at rtol = {rtol:g}")
    return solver.y


def errors(A: np.ndarray) -> np.ndarray:
    power, worst = np.array(A), np.zeros(len(A))
    for _ in range(1, len(TARGET)):
        worst = np.maximum(worst, np.abs(power.sum(axis=1) - 1))
        power *= A
    return worst


def best_of(repeats: int, work: Callable[[], object]) -> float:
    """Return the least processor time of one thread's work: other programs on the machine do not
    count.
    """
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    return min(seconds)


def speed(beta: float, t_end: float) -> None:
    name = "with special" if beta else "baseline only"
    few, few_gaps = starts(24, 1e-2)
    many, many_gaps = starts(1920, 1e-2)
    options = {"length": LENGTH, "alpha": 1.0, "beta": beta, "t_end": t_end, "workers": 1}
    exact = errors(flows.theorem_flows(few, gaps=few_gaps, rtol=1e-11, **options).A)
    exact_many = errors(flows.theorem_flows(many, gaps=many_gaps, rtol=1e-10, **options).A)
    for exponent in range(6, 13):
        theirs = 10.0**-exponent
        off = np.abs(errors(np.array([lsoda(a, beta, t_end, theirs) for a in few])) - exact).max()
        if off <= AGREEMENT:
            break
    their_seconds = best_of(3, lambda: [lsoda(a, beta, t_end, theirs) for a in few]) / len(few)
    for ours in (1e-4, 3e-5, 1e-5, 3e-6, 1e-6):
        batch = flows.theorem_flows(many, gaps=many_gaps, rtol=ours, **options)
        our_off = np.abs(errors(batch.A) - exact_many).max()
        if our_off <= AGREEMENT:
            break
    our_seconds = best_of(5, lambda: flows.theorem_flows(many, gaps=many_gaps, rtol=ours, **options)) / len(
        many
    )
    print(f"{name}: LSODA rtol {theirs:.0e}, off by {off:.1e}: {1 / their_seconds:.0f} flows/s")
    print(
        f"  batched, rtol {ours:.0e}, off by {our_off:.1e}: {1 / our_seconds:.0f} flows/s, {batch.counts()}"
    )
    print(f"  ratio {their_seconds / our_seconds:.0f}, one core", flush=True)


def peak_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def grow(d: int) -> tuple[float, float]:
    """Return seconds per accepted step, and the growth of the peak memory, of 128 runs (in a
    process of its own; Linux).
    """
    A0 = np.random.default_rng(0).random((128, d)) / d  # 1/d is the scale of the saddle
    options = {"length": LENGTH, "alpha": 1.0, "beta": 1.0, "t_end": 10.0, "workers": 1, "rtol": 1e-5}
    flows.theorem_flows(A0[:1, :2], **options)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of imports
    before = peak_megabytes()
    batch = flows.theorem_flows(A0, **options)
    memory = peak_megabytes() - before
    seconds = best_of(3 if d < 3000 else 1, lambda: flows.theorem_flows(A0, **options))
    return seconds / (batch.steps - batch.rejected).sum(), memory


def slopes() -> None:
    dims = (10, 32, 100, 316, 1000, 3162, 10_000)
    rows = []
    for d in dims:
        command = [sys.executable, __file__, "--grow", str(d)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        rows.append((float(out[0]), float(out[1])))
        print(
            f"d = {d}: {1e6 * rows[-1][0]:.2f} us per accepted step of a run, {rows[-1][1]:.1f} MB for 128 runs",
            flush=True,
        )
    for column, name in enumerate(("cost per accepted step", "memory")):
        slope = np.polyfit(np.log(dims), np.log([row[column] for row in rows]), 1)[0]
        print(f"slope of {name} in d from 10 to 10,000 (log-log): {slope:.2f}")


def diagram() -> None:
    """Time 100 tie gaps x 100 scales x 8 shapes with special sequences, kappa = 7, d = 10, on all
    cores.
    """
    shapes = -np.sort(-np.random.default_rng(0).random((8, D)))
    shapes[:, 0] += 0.1
    g, eps = np.logspace(-8, -1.01, 100), np.logspace(-5, -1, 100)
    grid = np.array([(i, e, t) for i in range(8) for e in eps for t in g])
    A0, gaps = flows.near_tie_starts(shapes[grid[:, 0].astype(int)], grid[:, 1], grid[:, 2])
    begin = time.perf_counter()
    batch = flows.theorem_flows(A0, length=LENGTH, alpha=1.0, beta=1.0, t_end=1e15, gaps=gaps)
    seconds = time.perf_counter() - begin
    print(
        f"{len(A0)} flows of a 100 x 100 x 8 diagram: {seconds:.1f} s on all cores, {batch.counts()}",
        flush=True,
    )


def agreement(count: int) -> None:
    """Compare with the references: the closed form for baseline runs that converged, SciPy's LSODA
    at rtol 1e-12 for all.
    """
    beyond, worst, lsoda_beyond = 0, 0.0, 0
    statuses: Counter[str] = Counter()
    for i in range(count):
        kind = random_flows.KINDS[i % len(random_flows.KINDS)]
        case = random_flows.random_case(kind, i)
        batch = random_flows.run(case, rtol=1e-8, on_failure="nan")
        statuses.update(batch.counts())
        error, reference = random_flows.final_errors(case, batch)
        if kind == "baseline" and batch.status[0] == flows.FlowStatus.CONVERGED:
            exact = random_flows.exact_error(case)
            if abs(reference - exact) > AGREEMENT * max(1.0, exact):
                lsoda_beyond += 1
                print(f"{kind} {i}: LSODA is off the closed form by {abs(reference - exact):.1e}", flush=True)
            reference = exact
        difference = abs(error - reference) / max(1.0, reference)
        if difference <= AGREEMENT:
            worst = max(worst, difference)
            continue
        beyond += 1
        tight = random_flows.final_errors(
            case, random_flows.run(case, rtol=1e-9, on_failure="nan"), rtol=1e-13
        )
        print(
            f"{kind} {i} ({batch}): {error:.9f} against {reference:.9f};"
            f" at tighter tolerances {tight[0]:.9f} against {tight[1]:.9f}",
            flush=True,
        )
    print(f"{count - beyond} of {count} cases within {AGREEMENT:g} of the reference, at most {worst:.1e} off")
    print(
        f"(reference: closed form for converged baseline runs, which LSODA misses in {lsoda_beyond}; else LSODA)"
    )
    print(f"statuses: {dict(statuses)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agreement", type=int, metavar="N")
    parser.add_argument("--grow", type=int, metavar="D", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.grow:
        print(*grow(chosen.grow))
    elif chosen.agreement:
        agreement(chosen.agreement)
    else:
        speed(0.0, 1e9)
        speed(1.0, 1e6)
        slopes()
        diagram()
        print("Times of one core are processor times.")


if __name__ == "__main__":
    main()
