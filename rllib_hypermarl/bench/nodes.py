"""How long an iteration takes on n nodes: measured on one to four raylets of this machine, and a model fitted on two.

Every node has one env runner with the same number of envs, so the batch grows with the nodes; one learner, in the
driver. With s, x, u0, u1 and y fitted on one and two nodes, and c cores for all raylets of this machine together:

    sampling(n) = s max(1, n / c) + x n      runners work side by side, as far as there are cores; what they send is
                                             collected one by one
    update(n)   = u0 + u1 n                  one learner, minibatches of the same size, n times as many
    weights(n)  = y                          out of the learner; to the runners they go with the next request

Three and four nodes are predicted and measured; the error is printed. What larger clusters would take is the same model
with a core per node, and a network instead of this machine's memory (see `extrapolate`): not measured.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
import torch
from ray.cluster_utils import Cluster

from ..rllib.algorithm import HyperMARL
from ..rllib.config import HyperMARLConfig
from .measure import Stopwatch, machine

ENVS, LENGTH, MINIBATCH, EPOCHS = 64, 64, 1024, 4  # of each node; of all
NODES = (1, 2, 3, 4)
_WARM_UP, _ITERATIONS = 2, 6
_ENV_CONFIG = {"n_agents": 4, "n_food": 4, "max_steps": 100, "food_radius": 0.08, "continuous_actions": False}
_PARTS = {"sampling": "_sample", "update": "_update", "weights": "_sync_env_runner"}
Seconds = dict[str, float]
"""Part of an iteration -> seconds."""


def run(rounds: int = 3, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Measures, fits and predicts.

    Returns:
        `measured` seconds per part by number of nodes, `model`, `predicted` seconds and `error` of whole iterations,
        `bytes` of a node's rollout and of the weights, and what `extrapolate` makes of it.
    """
    found: dict[int, list[Seconds]] = {n: [] for n in NODES}
    threads, sizes = torch.get_num_threads(), {}
    try:
        for number in range(rounds):
            for n in NODES[:: -1 if number % 2 else 1]:
                seconds, sizes = _measure(n)
                found[n].append(seconds)
                log(f"round {number + 1}, {n} nodes: " + ", ".join(f"{p} {s:.3f} s" for p, s in seconds.items()))
    finally:
        torch.set_num_threads(threads)
    measured = {n: {part: statistics.median(s[part] for s in all_) for part in _PARTS} for n, all_ in found.items()}
    cores = machine()["cpus"]
    model = fit(measured[1], measured[2], cores)
    predicted = {n: predict(model, n, cores) for n in NODES}
    return {
        "envs_per_node": ENVS, "steps": LENGTH, "minibatch_size": MINIBATCH, "epochs": EPOCHS, "machine": machine(),
        "rounds": rounds, "bytes": sizes, "model": model,
        "measured": {n: _rounded(seconds) for n, seconds in measured.items()},
        "predicted": {n: _rounded(seconds) for n, seconds in predicted.items()},
        "error": {n: round(sum(predicted[n].values()) / sum(measured[n].values()) - 1, 3) for n in NODES},
        "env_steps_per_second": {n: round(n * ENVS * LENGTH / sum(s.values())) for n, s in measured.items()},
        "extrapolated": [extrapolate(model, sizes, n, learners) for n in (4, 16, 64) for learners in (1, 4, 16)
                         if learners <= n],
    }  # fmt: skip


def fit(one: Seconds, two: Seconds, cores: int) -> dict[str, float]:
    """The model's constants, in seconds, from one and two nodes on `cores` cores."""
    busy = max(1.0, 2 / cores)
    # On one core nothing tells what a runner does from what follows it: all of it is s.
    s = (2 * one["sampling"] - two["sampling"]) / (2 - busy) if busy < 2 else one["sampling"]
    u1 = two["update"] - one["update"]
    weights = (one["weights"] + two["weights"]) / 2
    return {"s": s, "x": one["sampling"] - s, "u0": one["update"] - u1, "u1": u1, "y": weights}


def predict(model: dict[str, float], nodes: int, cores: float) -> Seconds:
    """Seconds of an iteration's parts on `nodes` nodes that have `cores` cores together."""
    return {
        "sampling": model["s"] * max(1.0, nodes / cores) + model["x"] * nodes,
        "update": model["u0"] + model["u1"] * nodes,
        "weights": model["y"],
    }


def extrapolate(
    model: dict[str, float], sizes: dict[str, int], nodes: int, learners: int, gbit_per_s: float = 10.0
) -> dict[str, Any]:
    """A cluster that nobody measured: one core for each runner and each learner, a network of `gbit_per_s`.

    Assumes: learners share the update equally, and after each of its minibatches exchange gradients of the parameters'
    size (a ring: twice that over the link, whatever their number), not overlapped with anything; rollouts reach the
    driver over one link, and go on to learners over it once more, if there are several. Stragglers, other traffic and
    failures are left out. What a further node costs in sampling is between two bounds: `x`, as here, where it holds
    that runners disturb one another on one machine's memory; and no more than its rollout takes on the network.

    Returns:
        Seconds of an iteration, and env steps per second, at both bounds: `[with x, network only]`.
    """
    bytes_per_s = gbit_per_s * 1e9 / 8
    send = sizes["rollout"] / bytes_per_s
    minibatches = EPOCHS * nodes * ENVS * LENGTH / MINIBATCH / learners
    several = (minibatches * 2 * sizes["parameters"] / bytes_per_s + nodes * send) if learners > 1 else 0.0
    update = model["u0"] + model["u1"] * nodes / learners + several
    weights = model["y"] + nodes * sizes["weights"] / bytes_per_s
    sampling = [model["s"] + nodes * max(model["x"], send), model["s"] + model["x"] + nodes * send]
    rates = [round(nodes * ENVS * LENGTH / (seconds + update + weights)) for seconds in sampling]
    return {
        "nodes": nodes, "learners": learners, "sampling": [round(x, 2) for x in sampling], "update": round(update, 2),
        "weights": round(weights, 3), "env_steps_per_second": rates,
    }  # fmt: skip


def _measure(nodes: int) -> tuple[Seconds, dict[str, int]]:
    """Median seconds of an iteration's parts, and the sizes of what travels."""
    with _cluster(nodes):
        algo: HyperMARL = (
            HyperMARLConfig()
            .environment("vmas/dispersion", env_config=dict(_ENV_CONFIG))
            .training(num_epochs=EPOCHS, minibatch_size=MINIBATCH, train_batch_size_per_learner=nodes * ENVS * LENGTH)
            .env_runners(num_env_runners=nodes, num_envs_per_env_runner=ENVS, rollout_fragment_length=LENGTH)
            .run(torch_threads=1, device="cpu")
            .build_algo()
        )
        for _ in range(_WARM_UP):
            algo.train()
        seconds: dict[str, list[float]] = {part: [] for part in _PARTS}
        watches = {part: Stopwatch(algo, method) for part, method in _PARTS.items()}
        for _ in range(_ITERATIONS):
            gc.collect()
            before = {part: watch.seconds for part, watch in watches.items()}
            algo.train()
            for part, watch in watches.items():
                seconds[part].append(watch.seconds - before[part])
        rollout = algo._sample()[0]
        state = algo.env_runner.get_state()
        parameters = sum(p.numel() * p.element_size() for p in algo.env_runner.net.parameters())
        sizes = {
            "rollout": len(ray.cloudpickle.dumps(rollout.arrays())) // nodes,
            "weights": len(ray.cloudpickle.dumps(state)),
            "parameters": parameters,
        }
        algo.stop()
    return {part: statistics.median(values) for part, values in seconds.items()}, sizes


@contextlib.contextmanager
def _cluster(nodes: int) -> Iterator[None]:
    """A head that runs nothing, and nodes of one CPU each, all on this machine."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        ray.init(cluster.address, log_to_driver=False, logging_level="error")
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()
        time.sleep(1)


def _rounded(seconds: Seconds) -> Seconds:
    return {part: round(value, 4) for part, value in seconds.items()}


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [f"{'nodes':>5} {'sampling':>18} {'update':>18} {'weights':>18} {'error':>7} {'env steps/s':>12}"]
    for n, measured in result["measured"].items():
        cells = [f"{measured[p]:7.3f} ({result['predicted'][n][p]:7.3f})" for p in _PARTS]
        error = f"{100 * result['error'][n]:+6.1f}%"
        lines.append(f"{n:>5} {' '.join(f'{c:>18}' for c in cells)} {error} {result['env_steps_per_second'][n]:12,}")
    lines.append("seconds measured (and predicted from one and two nodes)")
    for row in result["extrapolated"]:
        (slow, fast), (low, high) = row["sampling"], row["env_steps_per_second"]
        name = f"not measured: {row['nodes']:3} nodes, {row['learners']:2} learners"
        lines.append(
            f"{name}: sampling {fast:.2f} to {slow:.2f} s, update {row['update']:.2f} s, "
            f"{low:,} to {high:,} env steps/s"
        )  # fmt: skip
    return "\n".join(lines)
