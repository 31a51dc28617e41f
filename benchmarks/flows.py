"""Batched flows beside their peers: speed at equal accuracy, growth, a whole phase diagram.

python benchmarks/flows.py                     speed on one core beside every peer that is
                                               installed (numbalsoda, scikit-sundae, diffrax),
                                               slopes in d and in the rank, 80,000 flows
python benchmarks/flows.py --speed             the first alone
python benchmarks/flows.py --agreement 1000    final errors of 1,000 random cases against the
                                               references (some minutes)
python benchmarks/flows.py --tolerances 1000   how many are off by more than 1e-6 at each tolerance
python benchmarks/flows.py --first             the first flow, which compiles, and the second

What limits the batched flows: some 3,300 floating-point operations per step of a run (d = 10,
kappa = 7, two lags shown) take 0.4 us, a sixth of what a core with AVX2 could do: nearly every
operation reads and writes whole rows of the lanes' arrays.

At equal error the best peer, LSODA compiled by numbalsoda, is 2.4 times slower without special
sequences and 6.8 times with them; the others 97 to 310 times (27 November 2026).

The first flow ever compiles: 4.9 to 5.5 s of processor time, where it took 8.2 s while the parts
handed on dozens of NumPy arrays with strides and owners (`_engines/rows.py`), and 18 to 27 s at
first. What is left: a third LLVM's, 40 percent Numba's typing and lowering of 16 parts, 0.4 s for
the first compilation of anything. Where data has to be factored, 0.5 s more. What is kept makes it
0.3 s; `make book` warms the cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import random_flows
from scipy.integrate import LSODA

from ssm_poison_lib import flows
from ssm_poison_lib.ssm import theorem_teacher

LENGTH, D, AGREEMENT = 7, 10, 1e-6
P, Q = LENGTH - 1, LENGTH - 2
TARGET = np.ones(20)  # the theorem's impulse response at lags 1..19; lag 0 is left out


def starts(n: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return n uniform starts with relative tie gaps from 1e-8 to 1e-2, and their exact gaps."""
    shapes = -np.sort(-np.random.default_rng(0).random((n, D)))
    shapes[:, 0] = shapes[:, 0] + 0.02  # room for the largest gap
    return flows.near_tie_starts(shapes, scale, np.logspace(-8, -2, n))


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


def velocity(beta: float) -> Callable[[float, np.ndarray], np.ndarray]:
    return lambda _t, a: P * a**Q * (1 - (a**P).sum()) + beta * (1 - a.sum())


def jacobian(beta: float) -> Callable[[float, np.ndarray], np.ndarray]:
    def J(_t: float, a: np.ndarray) -> np.ndarray:
        aq = a**Q
        J = np.outer(-(P**2) * aq, aq) - beta
        J[np.diag_indices(len(a))] += P * Q * a ** (Q - 1) * (1 - (a**P).sum())
        return J

    return J


Follow = Callable[[np.ndarray, float], np.ndarray]  # starts (n, d), rtol -> ends (n, d)


def scipy_lsoda(beta: float, t_end: float) -> Follow:
    """SciPy's LSODA, right-hand side and Jacobian in NumPy."""

    def one(start: np.ndarray, rtol: float) -> np.ndarray:
        solver = LSODA(
            velocity(beta), 0.0, start, t_end, rtol=rtol, atol=1e-6 * rtol, jac=jacobian(beta)
        )
        while solver.status == "running":
            solver.step()
        if solver.status == "failed":
            raise RuntimeError(f"LSODA failed at rtol = {rtol:g}")
        return solver.y

    return lambda starts, rtol: np.array([one(a, rtol) for a in starts])


def sundials_cvode(beta: float, t_end: float) -> Follow:
    """CVODE of SUNDIALS by scikit-sundae, right-hand side and Jacobian in NumPy."""
    from sksundae.cvode import CVODE

    f, jac = velocity(beta), jacobian(beta)

    def rhs(t: float, y: np.ndarray, out: np.ndarray) -> None:
        out[:] = f(t, y)

    def fill(t: float, y: np.ndarray, _f: np.ndarray, out: np.ndarray) -> None:
        out[:] = jac(t, y)

    def one(start: np.ndarray, rtol: float) -> np.ndarray:
        solver = CVODE(rhs, jacfn=fill, rtol=rtol, atol=1e-6 * rtol, max_num_steps=100_000)
        found = solver.solve(np.array([0.0, t_end]), start)
        if not found.success:
            raise RuntimeError(f"CVODE failed at rtol = {rtol:g}: {found.message}")
        return found.y[-1]

    return lambda starts, rtol: np.array([one(a, rtol) for a in starts])


def numba_lsoda(beta: float, t_end: float) -> Follow:
    """LSODA without an interpreter, by numbalsoda: what a compiled general solver can do."""
    import numba
    from numbalsoda import lsoda, lsoda_sig

    @numba.cfunc(lsoda_sig)
    def rhs(_t, u, du, _p):
        a = numba.carray(u, (D,))
        r_p, r_1 = 1.0, 1.0
        for j in range(D):
            r_p -= a[j] ** P
            r_1 -= a[j]
        for j in range(D):
            du[j] = P * a[j] ** Q * r_p + beta * r_1

    times = np.array([0.0, t_end])

    def one(start: np.ndarray, rtol: float) -> np.ndarray:
        found, success = lsoda(
            rhs.address, start, times, rtol=rtol, atol=1e-6 * rtol, mxstep=100_000
        )
        if not success:
            raise RuntimeError(f"numbalsoda failed at rtol = {rtol:g}")
        return found[-1]

    return lambda starts, rtol: np.array([one(a, rtol) for a in starts])


def diffrax_kvaerno(beta: float, t_end: float) -> Follow:
    """Kvaerno5 of diffrax, all starts in one compiled, vectorized call (compiling not counted)."""
    import diffrax
    import jax

    jax.config.update("jax_enable_x64", True)

    def f(_t, a, _args):
        return P * a**Q * (1 - (a**P).sum()) + beta * (1 - a.sum())

    @jax.jit
    def all_of(starts, rtol):
        def one(start):
            control = diffrax.PIDController(rtol=rtol, atol=1e-6 * rtol)
            return diffrax.diffeqsolve(
                diffrax.ODETerm(f),
                diffrax.Kvaerno5(),
                0.0,
                t_end,
                None,
                start,
                stepsize_controller=control,
                max_steps=100_000,
            ).ys[-1]

        return jax.vmap(one)(starts)

    return lambda starts, rtol: np.asarray(all_of(starts, rtol))


PEERS = {
    "SciPy LSODA": scipy_lsoda,
    "CVODE (scikit-sundae)": sundials_cvode,
    "numbalsoda LSODA": numba_lsoda,
    "diffrax Kvaerno5": diffrax_kvaerno,
}


def first_good(
    follow: Follow, starts: np.ndarray, exact: np.ndarray, tolerances: Iterable[float]
) -> tuple[float, float]:
    """Return the loosest tolerance whose final errors all agree to AGREEMENT, and by how much they
    do.
    """
    for rtol in tolerances:
        try:
            off = float(np.abs(errors(follow(starts, rtol)) - exact).max())
        except RuntimeError:
            continue
        if off <= AGREEMENT:
            return rtol, off
    return np.nan, np.nan


def speed(beta: float, t_end: float) -> None:
    """Print flows per second of every solver that is installed, at the same final error, on one
    core.
    """
    few, few_gaps = starts(24, 1e-2)
    many, many_gaps = starts(1920, 1e-2)
    options = {"length": LENGTH, "alpha": 1.0, "beta": beta, "t_end": t_end, "workers": 1}
    exact, exact_many = (
        errors(flows.theorem_flows(A0, gaps=gaps, rtol=1e-11, **options).A)
        for A0, gaps in ((few, few_gaps), (many, many_gaps))
    )

    def batched(A0: np.ndarray, rtol: float) -> np.ndarray:
        return flows.theorem_flows(A0, gaps=many_gaps, rtol=rtol, **options).A

    rtol, off = first_good(batched, many, exact_many, (1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7, 1e-7))
    ours = best_of(5, lambda: batched(many, rtol)) / len(many)
    print("with special sequences" if beta else "baseline only", "(equal error: 1e-6)")
    print(f"  batched flows, rtol {rtol:.0e}, off by {off:.1e}: {1 / ours:.0f} flows/s")
    for name, make in PEERS.items():
        try:
            follow = make(beta, t_end)
        except ImportError:
            print(f"  {name}: not installed")
            continue
        rtol, off = first_good(follow, few, exact, 10.0 ** -np.arange(5.0, 13.0))
        if np.isnan(rtol):
            print(f"  {name}: no tolerance from 1e-5 to 1e-12 gives the error")
            continue
        theirs = best_of(3, lambda follow=follow, rtol=rtol: follow(few, rtol)) / len(few)
        print(
            f"  {name}, rtol {rtol:.0e}, off by {off:.1e}: {1 / theirs:.0f} flows/s, ratio"
            f" {theirs / ours:.1f}",
            flush=True,
        )


def full_rank() -> None:
    """Print the time of a flow on Gaussian data, whose Gram matrix has full rank, over kappa."""
    rng, d, rows = np.random.default_rng(0), 10, []
    options = {"t_end": 1.0, "workers": 1, "rtol": 1e-5}
    for length in (8, 16, 32, 64):
        x = rng.normal(size=(2 * length, length))
        data = (x.T @ x / length, theorem_teacher(d).impulse_response(length))
        A0 = rng.random((64, d)) / d
        flows.many_flows(A0, data, **options)
        seconds = best_of(2, lambda A0=A0, data=data: flows.many_flows(A0, data, **options)) / len(
            A0
        )
        rows.append((length, seconds))
        print(f"full rank, kappa = {length}: {1e3 * seconds:.2f} ms a flow", flush=True)
    slope = np.polyfit(*np.log(np.array(rows)).T, 1)[0]
    print(f"slope in the rank (log-log): {slope:.2f}")


FIRST = """
import time
import numpy as np
from ssm_poison_lib import flows
begin = time.process_time()
options = {"length": 7, "alpha": 1.0, "beta": 1.0, "t_end": 10.0, "workers": 1}
flows.theorem_flows(np.array([[0.02, 0.01]]), **options)
print(time.process_time() - begin)
"""


def first() -> None:
    """Print the processor time of a process's first flow, with an empty and with a full cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NUMBA_CACHE_DIR": folder}
        for state in ("empty", "full"):
            done = subprocess.run(
                [sys.executable, "-c", FIRST],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            )
            print(f"first flow, cache {state}: {float(done.stdout):.1f} s of processor time")


def tolerances(count: int) -> None:
    """Print how many random cases are off by more than 1e-6 at each tolerance (exact: 1e-11)."""
    off: dict[float, list[float]] = {10.0**-k: [] for k in range(3, 8)}
    for i in range(count):
        case = random_flows.random_case(random_flows.KINDS[i % len(random_flows.KINDS)], i)
        target = case.training_set.teacher.impulse_response(len(TARGET) + 1)
        found = [
            random_flows.run(case, rtol=rtol, on_failure="nan", workers=1).generalization_errors(
                target, first_lag=1
            )[0]
            for rtol in (1e-11, *off)
        ]
        for rtol, value in zip(off, found[1:], strict=True):
            if np.isfinite(found[0]):
                off[rtol].append(abs(value - found[0]) / max(1.0, found[0]))
    for rtol, values in off.items():
        beyond = np.count_nonzero(~(np.array(values) <= AGREEMENT))
        print(
            f"rtol {rtol:.0e}: {beyond} of {len(values)} off by more than 1e-6, at most"
            f" {max(values):.1e}"
        )


def peak_megabytes() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def grow(d: int) -> tuple[float, float]:
    """Return seconds per accepted step, and the growth of the peak memory, of 128 runs (in a
    process of its own; Linux).
    """
    A0 = np.random.default_rng(0).random((128, d)) / d  # 1/d is the scale of the saddle
    options = {
        "length": LENGTH,
        "alpha": 1.0,
        "beta": 1.0,
        "t_end": 10.0,
        "workers": 1,
        "rtol": 1e-5,
    }
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
            f"d = {d}: {1e6 * rows[-1][0]:.2f} us per accepted step of a run, {rows[-1][1]:.1f} MB"
            " for 128 runs",
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
        f"{len(A0)} flows of a 100 x 100 x 8 diagram: {seconds:.1f} s on all cores,"
        f" {batch.counts()}",
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
                print(
                    f"{kind} {i}: LSODA is off the closed form by {abs(reference - exact):.1e}",
                    flush=True,
                )
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
    print(
        f"{count - beyond} of {count} cases within {AGREEMENT:g} of the reference, at most"
        f" {worst:.1e} off"
    )
    print(
        "(reference: closed form for converged baseline runs, which LSODA misses in"
        f" {lsoda_beyond}; else LSODA)"
    )
    print(f"statuses: {dict(statuses)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agreement", type=int, metavar="N")
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--tolerances", type=int, metavar="N")
    parser.add_argument("--grow", type=int, metavar="D", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.grow:
        print(*grow(chosen.grow))
    elif chosen.first:
        first()
    elif chosen.agreement:
        agreement(chosen.agreement)
    elif chosen.tolerances:
        tolerances(chosen.tolerances)
    else:
        speed(0.0, 1e9)
        speed(1.0, 1e6)
        if chosen.speed:
            return
        full_rank()
        slopes()
        diagram()
        print("Times of one core are processor times.")


if __name__ == "__main__":
    main()
