"""Compiled training against a plain eager PyTorch loop on the same runs, in one process and one
thread.

    python benchmarks/descent.py [--epochs N]

Prints, per kind of run, the cost of an epoch in both, their ratio, and the largest difference of
the weights after N epochs; then the time of all 60 training runs of the paper from start to stop
(compiled), runs per second and epochs per second.
"""

import argparse
import time

import numpy as np
import torch

from ssm_poison_lib import descent, paper, torch_reference

KINDS = {
    "linear, kappa 6, float64": ("standalone_ssm_poison__s0", "float64"),
    "linear, kappa 6, float32": ("standalone_ssm_poison__s0", "float32"),
    "linear, kappa 10, float64": ("standalone_ssm_poison__s1", "float64"),
    "linear, kappa 10, float32": ("standalone_ssm_poison__s1", "float32"),
    "SSM + MLP, kappa 6, float32": ("ssm_in_nn_poison__s0", "float32"),
    "SSM + MLP, kappa 10, float32": ("ssm_in_nn_poison__s1", "float32"),
    "SSM + MLP, kappa 6, float64": ("ssm_in_nn_poison__s0", "float64"),
    "SSM + MLP, kappa 10, float64": ("ssm_in_nn_poison__s1", "float64"),
}


def best_of(repeats, call):
    """The shortest of several wall-clock times: what other programs on the machine add is left out."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def compare(name, precision, epochs):
    setting = paper.EXPERIMENTS[name]
    seed, which = setting.seeds[0], "with special"
    run = setting.descent(seed, which, precision=precision)  # compiles
    start, data = run.network, run.data
    rule = setting.rule(which, precision=precision)

    def compiled(count):
        return descent.Descent(start, data, rule).advance(count).network

    trained, _, _ = torch_reference.train(start, data, rule, epochs)
    difference = float(np.abs(trained.ssm.A - compiled(epochs).ssm.A).max())
    many = 20 * epochs  # a compiled call of few epochs would time the call
    fast = best_of(5, lambda: compiled(many)) / many
    slow = best_of(3, lambda: torch_reference.train(start, data, rule, epochs)) / epochs
    return fast, slow, difference


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--epochs", type=int, default=100, help="epochs of the eager loop (compiled: 20 times as many)"
    )
    epochs = parser.parse_args().epochs
    torch.set_num_threads(1)
    print(f"{'kind of run':<30} {'compiled':>12} {'eager':>12} {'ratio':>8} {'difference in A':>16}")
    for label, (name, precision) in KINDS.items():
        fast, slow, difference = compare(name, precision, epochs)
        print(
            f"{label:<30} {fast * 1e6:>9.2f} us {slow * 1e6:>9.0f} us {slow / fast:>8.0f} {difference:>16.1e}"
        )
    began, count, total = time.perf_counter(), 0, 0
    for setting in paper.EXPERIMENTS.values():
        for seed in setting.seeds:
            for which in paper.TRAINING_SETS:
                run = descent.Descent(
                    setting.authors_start(seed), setting.training_set(seed, which), setting.rule(which)
                )
                total += run.advance().epoch
                count += 1
    seconds = time.perf_counter() - began
    print(
        f"all {count} training runs: {seconds:.1f} s, {count / seconds:.1f} runs/s, {total / seconds:,.0f} epochs/s on one core"
    )


if __name__ == "__main__":
    main()
