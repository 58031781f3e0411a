"""One gradient step's forward and backward pass with 4 to 512 agents: what sharing modes cost in time and memory.

Every agent has a policy of its own. `rows` agent steps are spread over the N agents, so all modes run target networks
over the same amount of data; on top of it `hyper_mlp` generates N sets of weights and `none` reads N sets.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..losses import PPOLossConfig, ppo_loss, standardise
from ..nets import ActionSpec, HeadSpec, ModelSpec, TeamNet
from .measure import in_fresh_process, machine, memory_mb

MODES = ("hyper_mlp", "none", "full")
AGENTS = (4, 8, 16, 32, 64, 128, 256, 512)
ROWS = (16_384, 65_536)
OBS_DIM, ACTIONS, HIDDEN = 16, 9, (64, 64)  # Dispersion's


def make_net(mode: str, agents: int) -> TeamNet:
    """Actor and critic of `agents` policies."""
    heads = {
        "actor": HeadSpec(OBS_DIM, ACTIONS, HIDDEN, mode, out_gain=0.01),
        "critic": HeadSpec(OBS_DIM, 1, HIDDEN, mode),
    }
    ids = tuple(range(agents))
    # The time of the exact initialisation grows with the agents, and the cost of a step does not depend on it.
    return TeamNet(ModelSpec(tuple(map(str, ids)), ids, heads, init="framework", actions=ActionSpec((ACTIONS,))))


def make_rows(agents: int, rows: int) -> dict[str, Tensor]:
    """Random data, `[N, B, ...]` with N * B = rows."""
    shape = (agents, rows // agents)
    return {
        "obs": torch.randn(*shape, OBS_DIM),
        "actions": torch.randint(ACTIONS, shape),
        "old_logp": torch.full(shape, -2.0) + 0.1 * torch.randn(shape),
        "old_value": torch.randn(shape),
        "advantage": torch.randn(shape),
    }


def forward_backward(net: TeamNet, rows: dict[str, Tensor]) -> None:
    """The PPO loss of one minibatch and its gradients."""
    net.zero_grad(set_to_none=True)
    weights = net.generate()
    dist = net.policy(rows["obs"], weights)
    loss, _ = ppo_loss(
        dist.log_prob(rows["actions"]),
        dist.entropy(),
        net.value(rows["obs"], None, weights),
        old_logp=rows["old_logp"],
        old_value=rows["old_value"],
        advantage=standardise(rows["advantage"]),
        value_target=rows["advantage"] + rows["old_value"],
        config=PPOLossConfig(),
    )
    loss.backward()


def run(
    rounds: int = 3,
    log: Callable[[str], None] = print,
    agents: Sequence[int] = AGENTS,
    sizes: Sequence[int] = ROWS,
    threads: int | None = None,
    turns: int = 7,
) -> list[dict[str, Any]]:
    """Times the modes in turns.

    Args:
        agents: the values of N.
        sizes: the values of E * N, agent steps in a minibatch.
        threads: of torch; None: as they are.
        turns: of every mode in a round; the first turn of all is discarded.

    Returns:
        One entry per N and size, with one figure per mode: `ms` (median over all turns), `ratio` (to `full`, median
        over the rounds of the ratio of the round's medians), `ratio_range`, and `memory_mb`, by how much the resident
        memory of a process grows that makes the network and one step.
    """
    torch.set_num_threads(threads or torch.get_num_threads())
    info = {**machine(), "threads": torch.get_num_threads()}
    results = []
    for rows in sizes:
        for n in agents:
            entry = {"agents": n, "rows": rows, **_race(n, rows, rounds, turns)}
            entry["memory_mb"] = {
                mode: in_fresh_process(
                    peak_memory, mode, n, rows, torch.get_num_threads(), method="forkserver", preload=__name__
                )
                for mode in MODES
            }
            results.append({**entry, "machine": info})
            log(_line(entry))
    return results


def _race(agents: int, rows: int, rounds: int, turns: int) -> dict[str, Any]:
    data = make_rows(agents, rows)
    nets = {mode: make_net(mode, agents) for mode in MODES}
    for net in nets.values():
        forward_backward(net, data)
    times: dict[str, list[list[float]]] = {mode: [] for mode in MODES}
    for _ in range(rounds):
        measured = [(mode, _milliseconds(nets[mode], data)) for _ in range(turns) for mode in MODES]
        for mode in MODES:
            times[mode].append([ms for other, ms in measured if other == mode])
    medians = {mode: [statistics.median(turn) for turn in times[mode]] for mode in MODES}
    ratios = {mode: [a / b for a, b in zip(medians[mode], medians["full"], strict=True)] for mode in MODES}
    return {
        "ms": {mode: round(statistics.median(itertools.chain(*times[mode])), 2) for mode in MODES},
        "ratio": {mode: round(statistics.median(ratios[mode]), 2) for mode in MODES},
        "ratio_range": {mode: [round(min(ratios[mode]), 2), round(max(ratios[mode]), 2)] for mode in MODES},
    }


def _milliseconds(net: TeamNet, rows: dict[str, Tensor]) -> float:
    start = time.perf_counter()
    forward_backward(net, rows)
    return 1e3 * (time.perf_counter() - start)


def peak_memory(mode: str, agents: int, rows: int, threads: int) -> float:
    """MB by which this process grows at most while it makes a network and does one step; the data is not counted."""
    torch.set_num_threads(threads)
    forward_backward(make_net(mode, 2), make_rows(2, 64))  # loads what torch loads when first needed
    data = make_rows(agents, rows)
    before, _ = memory_mb()
    forward_backward(make_net(mode, agents), data)
    return round(max(0.0, memory_mb()[1] - before), 1)


def _line(entry: dict[str, Any]) -> str:
    cells = [
        f"{mode} {entry['ms'][mode]:7.1f} ms ({entry['ratio'][mode]:.2f}x) {entry['memory_mb'][mode]:5.0f} MB"
        for mode in MODES
    ]
    return f"{entry['agents']:4} agents {entry['rows']:6,} rows: " + ", ".join(cells)


def table(results: list[dict[str, Any]]) -> str:
    """The results as text."""
    info = results[0]["machine"]
    worst = max(results, key=lambda entry: entry["ratio"]["hyper_mlp"])
    return "\n".join(
        [
            *map(_line, results),
            f"forward and backward pass, ratio to full, memory beyond the data; {info['threads']} torch threads, "
            f"{info['cpu']}",
            f"hyper_mlp to full at most {worst['ratio']['hyper_mlp']:.2f}x, at {worst['agents']} agents and "
            f"{worst['rows']:,} rows",
        ]
    )
