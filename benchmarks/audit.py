"""Time and memory of the audit: 10,000 x 1,000 in memory, 1,000,000 x 100 on two Dask workers.

python benchmarks/audit.py [--small]    one of the two workers is killed while it reads a part; the
                                        numbers must be those of one process. --small: a hundredth.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from distributed import Client, LocalCluster

from ssm_poison_lib.audit import Audit, audit, audit_parts
from ssm_poison_lib.audit._read import Part, Rows, from_path

FILES = 20


def drawn(n: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Gaussian sequences and the labels of a teacher with one pole."""
    x = np.random.default_rng(seed).standard_normal((n, length))
    return x, x[:, ::-1] @ 0.8 ** np.arange(length)


def numbers(found: Audit) -> str:
    """Return all that an audit found, but for names and versions."""
    plain = found.to_json()
    return json.dumps({key: plain[key] for key in plain if key not in ("data", "versions")})


def load_or_die(part: Part, marker: str) -> Rows:
    """Kill the process that is the first to read this part."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return part.load()


def told(name: str, began: tuple[float, float], found: Audit) -> None:
    """Print what a run took: its own processor time, without that of workers."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{name}: {time.perf_counter() - began[0]:.1f} s, processor"
        f" {time.process_time() - began[1]:.1f} s, peak {peak:.2f} GB so far; {found.verdict}",
        flush=True,
    )


def main() -> None:
    """Run both."""
    shrink = 100 if "--small" in sys.argv[1:] else 1
    x, y = drawn(10_000 // shrink, 1_000, 0)
    began = time.perf_counter(), time.process_time()
    told(f"{len(x):,} x 1,000 in memory", began, audit(x, y))
    with tempfile.TemporaryDirectory() as name:
        folder, each = Path(name), 1_000_000 // FILES // shrink
        (folder / "data").mkdir()
        for k in range(FILES):
            x, y = drawn(each, 100, k + 1)
            columns = {f"x{t:02}": x[:, t] for t in range(100)} | {"y": y}
            pq.write_table(pa.table(columns), folder / "data" / f"{k:02}.parquet")
        parts = from_path(folder / "data")
        began = time.perf_counter(), time.process_time()
        alone = audit_parts(parts)
        told(f"{alone.count:,} x 100 in one process", began, alone)
        marker = str(folder / "killed")
        parts[FILES // 2] = replace(
            parts[FILES // 2], load=partial(load_or_die, parts[FILES // 2], marker)
        )
        with (
            LocalCluster(
                n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
            ) as cluster,
            Client(cluster) as client,
        ):
            began = time.perf_counter(), time.process_time()
            found = audit_parts(parts, scheduler=client)
            told(f"{found.count:,} x 100 on two workers", began, found)
        print("a worker was killed:", Path(marker).exists())
        print("the same numbers:", numbers(found) == numbers(alone))


if __name__ == "__main__":
    main()
