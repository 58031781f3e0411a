"""The price of env runners and learners as actors: training with equal envs and minibatches, in one process or more.

All set-ups of a work live at once and take turns, iteration by iteration; a ratio is to the local set-up's median in
the same round. Every process has one torch thread. What two actors could gain here is bounded by the machine's cores,
and by the simulator: one that steps all copies at once costs nearly as much for half of them.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch

from ..rllib.algorithm import HyperMARL
from ..rllib.config import HyperMARLConfig
from .measure import Stopwatch, machine
from .throughput import EPOCHS, HIDDEN, WORKS, Work

SETUPS = {
    "local": (0, 0, False), "1 runner": (1, 0, False), "1 runner, ahead": (1, 0, True), "2 runners": (2, 0, False),
    "2 runners, ahead": (2, 0, True), "2 learners": (0, 2, False), "2 runners, 2 learners": (2, 2, False),
}  # fmt: skip
"""Env runners and learners (0: in the driver), and whether runners sample ahead."""
_WARM_UP = 2


class _Contender:
    """`HyperMARL.train()` with the work shared out among actors, with stopwatches on its parts."""

    def __init__(self, work: Work, runners: int, learners: int, ahead: bool):
        size = work.num_envs * work.length
        self.algo: HyperMARL = (
            HyperMARLConfig()
            .environment(work.env, env_config=dict(work.env_config))
            .hypermarl(actor_hidden=HIDDEN, critic_hidden=HIDDEN, sample_ahead=ahead)
            .training(
                num_epochs=EPOCHS,
                minibatch_size=work.minibatch_size // max(1, learners),
                train_batch_size_per_learner=size // max(1, learners),
            )
            .env_runners(
                num_env_runners=runners,
                num_envs_per_env_runner=work.num_envs // max(1, runners),
                rollout_fragment_length=work.length,
            )
            .learners(num_learners=learners)
            .run(torch_threads=1, device="cpu")
            .build_algo()
        )
        parts = {"sample": "_sample", "update": "_update", "sync": "_sync_env_runner"}
        self._watches = {part: Stopwatch(self.algo, method) for part, method in parts.items()}
        self.seconds: list[dict[str, float]] = []

    def iterate(self) -> float:
        """Returns env steps per second."""
        gc.collect()
        if self.algo.config.sample_ahead:
            self.algo.train()  # so that the rollout asked for in it is as far as it is in the middle of a run
        before = {part: watch.seconds for part, watch in self._watches.items()}
        steps, start = self.algo.env_steps, time.perf_counter()
        self.algo.train()
        took = time.perf_counter() - start
        self.algo._sampler.drop_request()  # nobody samples in another set-up's turn
        spent = {part: watch.seconds - before[part] for part, watch in self._watches.items()}
        self.seconds.append({**spent, "other": took - sum(spent.values())})
        return (self.algo.env_steps - steps) / took


def run(
    works: Sequence[Work] = WORKS, rounds: int = 3, turns: int = 3, log: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Measures every work with every set-up.

    Returns:
        One entry per work: per set-up, `env_steps_per_second` (median), `ratio` to `local` with its lowest and highest
        over the rounds, and the median `seconds` of sampling, update, weights, and everything else.
    """
    actors = sum(runners + learners for runners, learners, _ in SETUPS.values())  # of which one set-up's work at a time
    ray.init("local", num_cpus=actors, include_dashboard=False, log_to_driver=False)
    threads = torch.get_num_threads()
    try:
        return [_entry(work, rounds, turns, log) for work in works]
    finally:
        ray.shutdown()
        torch.set_num_threads(threads)


def _entry(work: Work, rounds: int, turns: int, log: Callable[[str], None]) -> dict[str, Any]:
    contenders = {name: _Contender(work, *sizes) for name, sizes in SETUPS.items()}
    for contender in contenders.values():
        for _ in range(_WARM_UP):
            contender.iterate()
        contender.seconds.clear()
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds):
        order = list(contenders)
        measured: dict[str, list[float]] = {name: [] for name in order}
        for turn in range(turns):
            for name in order[::-1] if turn % 2 else order:
                measured[name].append(contenders[name].iterate())
        for name in order:
            rates[name].append(statistics.median(measured[name]))
            log(f"{work.name} round {i + 1}: {name:22s} {rates[name][-1]:9,.0f} env steps/s")
    setups = {}
    for name, contender in contenders.items():
        ratios = [a / b for a, b in zip(rates[name], rates["local"], strict=True)]
        parts = {p: round(statistics.median(s[p] for s in contender.seconds), 4) for p in contender.seconds[0]}
        setups[name] = {
            "env_steps_per_second": round(statistics.median(rates[name])),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
            "seconds": parts,
        }
        contender.algo.stop()
    return {"work": work.name, "threads": 1, "machine": machine(), "setups": setups}


def table(results: list[dict[str, Any]]) -> str:
    """The results as text."""
    lines = [f"{'work':8} {'set-up':22} {'steps/s':>8}   to local (range)      seconds of an iteration"]
    for entry in results:
        for name, r in entry["setups"].items():
            parts = ", ".join(f"{part} {seconds:.3f}" for part, seconds in r["seconds"].items())
            low, high = r["ratio_range"]
            lines.append(
                f"{entry['work']:8} {name:22} {r['env_steps_per_second']:8,}   {r['ratio']:.2f} ({low:.2f} to "
                f"{high:.2f})  {parts}"
            )
    return "\n".join([*lines, f"one torch thread per process, {results[0]['machine']['cpus']} CPUs"])
