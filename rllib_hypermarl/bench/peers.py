"""Dispersion with BenchMARL's IPPO and with ours: env steps per second, then learning curves, each with its best rate.

BenchMARL runs in an environment and in processes of its own (`peer_process`, `peer_benchmarl`); neither it nor TorchRL
is imported here. Both sides have the same env_config, networks, PPO settings and torch threads. One works while the
others wait: in the race all contenders take turns, iteration by iteration, and in the learning task they come one after
the other. `DIFFERENCES` lists what cannot be made equal.

Every learner first tries its learning rates on one seed; its best one counts, on others. That takes hours. What is
finished is a line of `peers.jsonl` in the output directory; the same command goes on from there, and measures again
only what was asked for with other settings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..cli.ray_session import ray_session
from ..report.statistics import estimate
from . import peer_process
from .measure import Store, machine
from .peer_contenders import DIFFERENCES, Ours, Peer, Setup
from .throughput import WARM_UP, WORKS, Work

SHARINGS = ("none", "hyper_mlp", "full_id")
PEERS = ("not shared", "shared")
BARS = {"16x128": 1.3, "600x100": 1.2}
"""What we want `none` to be of BenchMARL without sharing, in env steps per second."""

SEEDS, ENV_STEPS, TUNING_STEPS, THRESHOLD = 5, 8_000_000, 1_228_800, 0.7
_BOTH = ((1e-3, 0.01), (3e-3, 0.01), (1e-2, 0.01))
_THEIRS = (*_BOTH, (1e-3, 0.0), (5e-4, 0.0))
LEARNERS = {
    ("ours", "hyper_mlp"): _BOTH, ("ours", "none"): _BOTH, ("benchmarl", "not shared"): _THEIRS,
    ("benchmarl", "shared"): _THEIRS,
}  # fmt: skip
"""Side and sharing -> the learning rates, with entropy coefficients, that it may try."""
TUNING_SEED = 0  # whose runs choose among them; those that count have others
EVERY = 25  # iterations between two evaluations
FILE = "peers.jsonl"
SCRIPT = Path(__file__).with_name("peer_benchmarl.py")

Make = Callable[[str, str, Setup], Ours | Peer]
"""(side, sharing, setup) -> a contender."""


# --------------------------------------------------------------------------------------------------------------- bench


def run(
    rounds: int = 3,
    log: Callable[[str], None] = print,
    out: Path | None = None,
    environment: Path | None = None,
    threads: int = 1,
    seeds: int = SEEDS,
    env_steps: int = ENV_STEPS,
    tuning_steps: int = TUNING_STEPS,
    works: Sequence[Work] = WORKS,
    every: int = EVERY,
) -> dict[str, Any]:
    """Races, then tunes, then learns.

    Args:
        out: directory of `peers.jsonl`; None: `runs/bench_peers`.
        environment: directory of BenchMARL's virtual environment, built if it is not there; None: in the user's cache.
        threads: torch threads of both sides.
        seeds: of the learning task; 0: the race alone.
        env_steps: of each run of the learning task, rounded up to whole iterations.
        tuning_steps: of each short run, one a setting, that chooses a learner's.
        every: iterations between two evaluations.

    Returns:
        `speed`, an entry per work (see `race`); `tuning` and `learning`, an entry per side, sharing and setting (see
        `summary`), all that were tried and the best ones; `differences` between the sides, as text; `packages`, what
        was compared.

    Raises:
        ConfigError: a directory holds something else.
        RunFailedError: BenchMARL cannot be installed, or fails.
    """
    store = Store((out or Path("runs/bench_peers")) / FILE)
    python = peer_process.prepare(environment or peer_process.default_directory(), log)

    def make(side: str, sharing: str, setup: Setup) -> Ours | Peer:
        return Ours(setup, sharing) if side == "ours" else Peer(setup, sharing, (python, SCRIPT))

    # Figures of other versions are others.
    packages = {"packages": [f"rllib-hypermarl=={__version__}", *peer_process.requirements()]}
    speed, tuning, learning, before = [], [], [], torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with ray_session():
            for work in works:
                asked = {"task": "speed", "work": dataclasses.asdict(work), "threads": threads, "rounds": rounds}
                speed.append(store.get(asked | packages, lambda work=work: race(work, make, threads, rounds, log)))

            def learned(learner: tuple[str, str], lr: float, entropy: float, seed: int, steps: int) -> dict[str, Any]:
                setup = Setup(128, 64, 8, threads, seed=seed, lr=lr, entropy_coeff=entropy)
                asked = {"task": "learning", "side": learner[0], "sharing": learner[1], "setup": setup.to_json()}
                asked |= {"env_steps": steps, "every": every}
                return store.get(asked | packages, functools.partial(learn, asked, setup, make, log))

            best = {}
            for learner, settings in LEARNERS.items() if seeds else ():
                tried = [learned(learner, *setting, TUNING_SEED, tuning_steps) for setting in settings]
                tuning += tried
                best[learner] = max(zip(tried, settings, strict=True), key=lambda one: one[0]["final"]["greedy"])[1]
            for seed in range(TUNING_SEED + 1, TUNING_SEED + 1 + seeds):  # all of a seed can be compared, half way
                learning += [learned(learner, *setting, seed, env_steps) for learner, setting in best.items()]
    finally:
        torch.set_num_threads(before)
    return {
        "speed": speed, "tuning": summary(tuning), "learning": summary(learning), "differences": list(DIFFERENCES),
        **packages,
    }  # fmt: skip


def race(work: Work, make: Make, threads: int, rounds: int, log: Callable[[str], None]) -> dict[str, Any]:
    """All contenders of a work take turns.

    Returns:
        By contender `env_steps_per_second` (median over the rounds) and `rounds`, those of each turn; `ratio` of ours
        to BenchMARL's, the median of the ratios within a round, with its lowest and highest; `bar`, what is wanted of
        `none / not shared`.
    """
    setup = Setup(work.num_envs, work.length, work.minibatches, threads, env_config=dict(work.env_config))
    names = [*(("ours", sharing) for sharing in SHARINGS), *(("benchmarl", sharing) for sharing in PEERS)]
    rates: dict[str, list[list[float]]] = {f"{side} {sharing}": [] for side, sharing in names}
    with contextlib.ExitStack() as stack:
        contenders = {
            f"{s} {sharing}": stack.enter_context(contextlib.closing(make(s, sharing, setup))) for s, sharing in names
        }
        for contender in contenders.values():
            contender.iterate(WARM_UP)
        for i in range(rounds):
            turns = [name for pair in range(work.pairs) for name in (list(rates)[::-1] if pair % 2 else rates)]
            measured = [(name, _rate(contenders[name])) for name in turns]
            for name, found in rates.items():
                found.append([rate for other, rate in measured if other == name])
                log(f"{work.name} round {i + 1}: {name:22s} {statistics.median(found[-1]):9,.0f} env steps/s")
        about = {name: contender.about for name, contender in contenders.items()}
    medians = {name: [statistics.median(turn) for turn in turns] for name, turns in rates.items()}
    entry: dict[str, Any] = {
        "work": work.name, "threads": threads,
        "env_steps_per_second": {name: round(statistics.median(found)) for name, found in medians.items()},
        "ratio": {}, "ratio_range": {}, "bar": BARS.get(work.name),
    }  # fmt: skip
    for ours in SHARINGS:
        for peer in PEERS:
            pairs = zip(medians[f"ours {ours}"], medians[f"benchmarl {peer}"], strict=True)
            ratios = [a / b for a, b in pairs]
            entry["ratio"][f"{ours} / {peer}"] = round(statistics.median(ratios), 3)
            entry["ratio_range"][f"{ours} / {peer}"] = [round(min(ratios), 3), round(max(ratios), 3)]
    rounded = {name: [[round(rate, 1) for rate in turn] for turn in turns] for name, turns in rates.items()}
    return {**entry, "rounds": rounded, "about": about, "machine": machine()}


def _rate(contender: Ours | Peer) -> float:
    gc.collect()  # nobody pays for the garbage of others
    env_steps, seconds = contender.iterate()
    return env_steps / seconds


def learn(asked: dict[str, Any], setup: Setup, make: Make, log: Callable[[str], None]) -> dict[str, Any]:
    """One run of the learning task.

    Returns:
        `curve`: `[env steps, seconds of training, greedy return]`, seconds without evaluations; `final`: the greedy and
        the sampled return at the end. Returns are means over agents.
    """
    side, sharing, goal = asked["side"], asked["sharing"], asked["env_steps"]
    left = math.ceil(goal / (setup.num_envs * setup.length))  # iterations
    with contextlib.closing(make(side, sharing, setup)) as contender:
        env_steps, seconds, curve = 0, 0.0, [[0, 0.0, round(contender.evaluate(), 4)]]
        while left:
            steps, took = contender.iterate(min(asked["every"], left))
            left -= min(asked["every"], left)
            env_steps, seconds = env_steps + steps, seconds + took
            curve.append([env_steps, round(seconds, 2), round(contender.evaluate(), 4)])
            log(
                f"{side} {sharing}, lr {setup.lr:g}, entropy {setup.entropy_coeff:g}, seed {setup.seed}: "
                f"{env_steps:10,} env steps, {env_steps / seconds:7,.0f}/s, greedy return {curve[-1][2]:+.3f}"
            )
        final = {"greedy": curve[-1][2], "sampled": round(contender.evaluate(explore=True), 4)}
        about = contender.about
    return {"curve": curve, "final": final, "about": about, "machine": machine()}


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs of the learning task, aggregated over seeds.

    Returns:
        An entry per side, sharing, learning rate and entropy coefficient: `env_steps_per_second` (median over seeds),
        the `final` returns (IQM, 95 % interval, one value a seed), `to_threshold`: per seed the env steps and seconds
        at the first evaluation that reached it, None where none did; and the curves.
    """
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in runs:
        asked = row["asked"]
        tried = (asked["setup"]["lr"], asked["setup"]["entropy_coeff"])
        groups.setdefault((asked["side"], asked["sharing"], *tried), []).append(row)
    return [
        {
            "side": side, "sharing": sharing, "lr": lr, "entropy_coeff": entropy, "env_steps": rows[0]["curve"][-1][0],
            "seeds": [row["asked"]["setup"]["seed"] for row in rows],
            "env_steps_per_second": round(statistics.median(r["curve"][-1][0] / r["curve"][-1][1] for r in rows)),
            "final": {kind: estimate([row["final"][kind] for row in rows]) for kind in ("greedy", "sampled")},
            "threshold": THRESHOLD,
            "to_threshold": [_reached(row["curve"]) for row in rows],
            "curves": [row["curve"] for row in rows], "about": rows[0]["about"], "machine": rows[0]["machine"],
        }
        for (side, sharing, lr, entropy), rows in groups.items()
    ]  # fmt: skip


def _reached(curve: list[list[float]]) -> list[float] | None:
    return next(([env_steps, seconds] for env_steps, seconds, value in curve if value >= THRESHOLD), None)


def table(results: dict[str, Any]) -> str:
    """The results as text."""
    lines = [f"{'work':8} {'contender':22} {'steps/s':>8}   to BenchMARL not shared (range), shared (range)"]
    for entry in results["speed"]:
        for name, rate in entry["env_steps_per_second"].items():
            side, sharing = name.split(" ", 1)
            ratios = [
                f"{entry['ratio'][key]:.2f} ({entry['ratio_range'][key][0]:.2f} to {entry['ratio_range'][key][1]:.2f})"
                for key in (f"{sharing} / {peer}" for peer in PEERS if side == "ours")
            ]
            lines.append(f"{entry['work']:8} {name:22} {rate:8,}   {'  '.join(ratios)}".rstrip())
        if entry["bar"]:
            lines.append(f"{entry['work']:8} wanted: none / not shared at least {entry['bar']}")
    for task in ("tuning", "learning"):
        lines += _learners(task, results[task]) if results[task] else []
    lines += [f"- {difference}" for difference in results["differences"]]
    return "\n".join(lines)


def _learners(task: str, entries: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"{task:22} {'lr':>6} {'entropy':>7} {'seeds':>5} {'steps/s':>8}  greedy return         sampled  to {THRESHOLD}"
    ]
    for entry in entries:
        greedy, sampled = entry["final"]["greedy"], entry["final"]["sampled"]
        span = f" ({greedy['low']:.3f} to {greedy['high']:.3f})" if greedy["low"] is not None else ""
        reached = [f"{p[0] / 1e6:.1f}M in {p[1]:.0f} s" if p else "never" for p in entry["to_threshold"]]
        lines.append(
            f"{entry['side'] + ' ' + entry['sharing']:22} {entry['lr']:6g} {entry['entropy_coeff']:7g} "
            f"{len(entry['seeds']):5} "
            f"{entry['env_steps_per_second']:8,}  {greedy['iqm']:.3f}{span}  {sampled['iqm']:.3f}  {', '.join(reached)}"
        )
    return lines
