"""Compile the engines once: what is kept spares the first chapter, and the reader's first call, the
wait.
"""

from __future__ import annotations

import time

from ssm_poison_lib import descent, flows, network_flow, networks, sequences, ssm


def main() -> None:
    """Run one small case of every engine, in every precision that chapters use."""
    begin = time.process_time()
    start = ssm.DiagonalSSM.ones([0.02, 0.01])
    teacher = ssm.theorem_teacher(state_dim=2)
    data = sequences.TrainingSet(sequences.baseline_sequences(3), teacher)
    flows.many_flows([start.A], data, t_end=1.0)
    network = networks.Network(start, networks.authors_teacher(2).mlp)
    data_of_network = sequences.TrainingSet(data.x, networks.authors_teacher(2))
    network_flow.network_flow(network, data_of_network, times=[1e-3])
    for precision in ("float32", "float64"):
        rule = descent.Rule(learning_rate=1e-3, max_epochs=1, precision=precision)
        descent.Descent(start, data, rule).advance()
        descent.Descent(network, data_of_network, rule).advance()
    print(f"Engines compiled and kept: {time.process_time() - begin:.0f} s of processor time.")


if __name__ == "__main__":
    main()
