"""Compiled training against a plain eager PyTorch loop on the same runs, in one process and one
thread.

    python benchmarks/descent.py [--epochs N]

Prints, per kind of run, the cost of an epoch in both, their ratio, and the largest difference of
the weights after N epochs; then the time of all 60 training runs of the paper from start to stop
(compiled), runs per second and epochs per second; then, where JAX is installed, an epoch of Adam
beside JAX's scan of the same loss in several formulations: the quickest of them took 5.3 times as
long for a linear student, 3.9 times for a network (27 November 2026).
"""

import argparse
import importlib.util
import os
import time

import numpy as np
import torch

from ssm_poison_lib import descent, paper, torch_reference
from ssm_poison_lib.networks import as_network

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
    """The shortest of several wall-clock times: what other programs add is left out."""
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


def jax_losses(network, data):
    """The loss as one would write it in JAX, by formulation: recurrence, lags, gains."""
    import jax.nn
    import jax.numpy as jnp

    length, x, y = data.x.shape[1], jnp.array(data.x), jnp.array(data.y)
    by_lag = x[:, ::-1]

    def response(A, B, C):
        powers = [jnp.ones_like(A)]
        for _ in range(length - 1):
            powers.append(powers[-1] * A)
        return jnp.stack(powers) @ (B * C)

    def mlp(z, layers):
        if not layers:
            return z
        first, hidden, last = layers
        return (jax.nn.relu(jax.nn.relu(z[:, None] @ first) @ hidden) @ last)[:, 0]

    def recurrence(weights):
        A, B, C, *layers = weights
        state = jnp.zeros((len(x), len(A)))
        for t in range(length):
            state = state * A + x[:, t, None] * B
        return jnp.mean((mlp(state @ C, layers) - y) ** 2)

    def lags(weights):
        A, B, C, *layers = weights
        return jnp.mean((mlp(by_lag @ response(A, B, C), layers) - y) ** 2)

    if network.mlp:

        def gains(weights):
            A, B, C, *layers = weights
            z, gain = by_lag @ response(A, B, C), mlp(jnp.array([1.0, -1.0]), layers)
            return jnp.mean((jnp.where(z > 0, gain[0], gain[1]) * jnp.abs(z) - y) ** 2)

        return {"recurrence": recurrence, "lags": lags, "gains": gains}
    G, target = jnp.array(data.gram()), jnp.array(data.teacher.impulse_response(length))

    def gram(weights):
        rest = target - response(*weights)
        return rest @ G @ rest / 2

    return {"recurrence": recurrence, "lags": lags, "Gram matrix": gram}


def beside_jax(name, epochs):
    """Microseconds of an epoch of Adam in float64: ours, and JAX's scan by formulation."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    setting = paper.EXPERIMENTS[name]
    start, data = (
        setting.start(setting.seeds[0]),
        setting.training_set(setting.seeds[0], "with special"),
    )
    network = as_network("start", start)
    ssm, rate = network.ssm, 1e-4
    weights = tuple(jnp.array(np.array(w)) for w in (ssm.A, ssm.B, ssm.C, *network.mlp))
    run = descent.Descent(start, data, descent.Rule(rate, 10**9, "adam"))
    ours, theirs = best_of(9, lambda: run.advance(epochs)) / epochs, {}
    expected = descent.Descent(start, data, descent.Rule(rate, epochs, "adam")).advance().network

    for label, loss in jax_losses(network, data).items():
        gradient, zero = jax.grad(loss), jax.tree.map(jnp.zeros_like, weights)

        def step(state, t, gradient=gradient):
            w, mean, square = state
            g = gradient(w)
            mean = jax.tree.map(lambda a, b: a + (b - a) * 0.1, mean, g)
            square = jax.tree.map(lambda a, b: a + (b * b - a) * 0.001, square, g)
            size = rate * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            w = jax.tree.map(lambda a, m, v: a - size * m / (jnp.sqrt(v) + 1e-7), w, mean, square)
            return (w, mean, square), None

        times = jnp.arange(1.0, epochs + 1)
        trained = jax.jit(lambda s, step=step, t=times: jax.lax.scan(step, s, t)[0][0])
        state = (weights, zero, zero)
        assert np.abs(np.array(trained(state)[0]) - expected.ssm.A).max() < 1e-9
        theirs[label] = best_of(9, lambda s=state, f=trained: jax.block_until_ready(f(s))) / epochs
    return ours, theirs


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--epochs",
        type=int,
        default=100,
        help="epochs of the eager loop (compiled: 20 times as many)",
    )
    epochs = parser.parse_args().epochs
    torch.set_num_threads(1)
    print(
        f"{'kind of run':<30} {'compiled':>12} {'eager':>12} {'ratio':>8} {'difference in A':>16}"
    )
    for label, (name, precision) in KINDS.items():
        fast, slow, difference = compare(name, precision, epochs)
        print(
            f"{label:<30} {fast * 1e6:>9.2f} us {slow * 1e6:>9.0f} us {slow / fast:>8.0f}"
            f" {difference:>16.1e}"
        )
    began, count, total = time.perf_counter(), 0, 0
    for setting in paper.EXPERIMENTS.values():
        for seed in setting.seeds:
            for which in paper.TRAINING_SETS:
                run = descent.Descent(
                    setting.authors_start(seed),
                    setting.training_set(seed, which),
                    setting.rule(which),
                )
                total += run.advance().epoch
                count += 1
    seconds = time.perf_counter() - began
    print(
        f"all {count} training runs: {seconds:.1f} s, {count / seconds:.1f} runs/s,"
        f" {total / seconds:,.0f} epochs/s on one core"
    )

    if importlib.util.find_spec("jax") is None:
        print("JAX is not installed: not compared")
        return
    for name in ("standalone_ssm_poison__s0", "ssm_in_nn_poison__s0"):
        ours, theirs = beside_jax(name, 2_000)
        ratios = ", ".join(
            f"{k} {t * 1e6:.2f} us (ratio {t / ours:.1f})" for k, t in theirs.items()
        )
        print(f"{name}, Adam, float64: {ours * 1e6:.2f} us; JAX's scan: {ratios}")


if __name__ == "__main__":
    main()
