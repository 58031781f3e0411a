"""Env steps per second of PettingZoo envs: batched, with and without workers, against a plain loop and SuperSuit's
vectoriser. Simulation alone, random actions drawn beforehand; all contenders of a work live at once and take turns."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .. import env as envs
from ..envs.pettingzoo_task import Task, make_copy
from .measure import machine

WORKERS = (1, 2)


@dataclasses.dataclass(frozen=True)
class Work:
    """Attributes: steps, of one turn."""

    name: str
    num_envs: int
    steps: int
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


WORKS = (
    Work("mpe2.simple_spread_v3", 16, 200),
    Work("sisl.multiwalker_v9", 16, 60),
    Work("sisl.pursuit_v5", 16, 20),
)


class _Loop:
    """What one writes by hand: one env after the other, dicts all the way, a reset where an episode ended."""

    def __init__(self, work: Work):
        task = Task(work.name, work.kwargs)
        self._envs = [make_copy(task) for _ in range(work.num_envs)]
        for i, env in enumerate(self._envs):
            env.reset(seed=i)
        self.agents = list(self._envs[0].possible_agents)
        self.space = self._envs[0].action_space(self.agents[0])

    def step(self, actions: np.ndarray) -> None:
        for env, row in zip(self._envs, actions, strict=True):
            env.step(dict(zip(self.agents, row, strict=True)))
            if not env.agents:
                env.reset()

    def close(self) -> None:
        for env in self._envs:
            env.close()


class _Batched:
    def __init__(self, work: Work, num_workers: int):
        options = {"num_workers": num_workers, "state": False}
        self._env = envs.make(f"pettingzoo/{work.name}", num_envs=work.num_envs, **options, **work.kwargs)
        self._env.reset(0)

    def step(self, actions: np.ndarray) -> None:
        self._env.step(torch.from_numpy(actions))

    def close(self) -> None:
        self._env.close()


class _SuperSuit:
    """`concat_vec_envs_v1`, whose rows are agents. It forks."""

    def __init__(self, work: Work, num_cpus: int):
        import supersuit

        rows = supersuit.pettingzoo_env_to_vec_env_v1(make_copy(Task(work.name, work.kwargs)))
        self._env = supersuit.concat_vec_envs_v1(rows, work.num_envs, num_cpus=num_cpus)
        self._env.reset(seed=0)

    def step(self, actions: np.ndarray) -> None:
        self._env.step(actions.reshape(-1, *actions.shape[2:]))

    def close(self) -> None:
        self._env.close()


def run(works: Sequence[Work] = WORKS, rounds: int = 3, log: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Measures every work.

    Returns:
        One entry per work: per contender, `env_steps_per_second` (median over the rounds) and `ratio` to the plain
        loop, median of the ratios within a round, with its lowest and highest.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_entry(work, rounds, log) for work in works]
    finally:
        torch.set_num_threads(threads)


def _entry(work: Work, rounds: int, log: Callable[[str], None]) -> dict[str, Any]:
    # SuperSuit first: it forks what is there.
    contenders: dict[str, Any] = {f"supersuit, {n} processes": _SuperSuit(work, n) for n in (0, max(WORKERS))}
    loop = contenders["loop"] = _Loop(work)
    contenders |= {f"batched, {n} workers": _Batched(work, n) for n in (0, *WORKERS)}
    loop.space.seed(0)
    shape = (work.steps, work.num_envs, len(loop.agents))
    drawn = np.array([loop.space.sample() for _ in range(np.prod(shape))])
    actions = drawn.reshape(*shape, *loop.space.shape)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 1):  # the first one warms up
        order = list(contenders)
        for name in order[::-1] if i % 2 else order:
            gc.collect()
            start = time.perf_counter()
            for action in actions:
                contenders[name].step(action)
            rates[name].append(work.steps * work.num_envs / (time.perf_counter() - start))
    for contender in contenders.values():
        contender.close()
    entry: dict[str, Any] = {"env": work.name, "agents": len(loop.agents), "envs": work.num_envs, "machine": machine()}
    for name, measured in rates.items():
        ratios = [rate / base for rate, base in zip(measured[1:], rates["loop"][1:], strict=True)]
        entry.setdefault("env_steps_per_second", {})[name] = round(statistics.median(measured[1:]))
        entry.setdefault("ratio", {})[name] = round(statistics.median(ratios), 3)
        entry.setdefault("ratio_range", {})[name] = [round(min(ratios), 3), round(max(ratios), 3)]
        log(f"{work.name}: {name:24s} {entry['env_steps_per_second'][name]:9,} env steps/s")
    return entry


def table(results: list[dict[str, Any]]) -> str:
    """The results as text."""
    lines = [f"{'env':24} {'':24} {'steps/s':>9}   to the loop (range)"]
    for entry in results:
        for name, rate in entry["env_steps_per_second"].items():
            low, high = entry["ratio_range"][name]
            ratio = f"{entry['ratio'][name]:.2f} ({low:.2f} to {high:.2f})"
            lines.append(f"{entry['env']:24} {name:24} {rate:9,}   {ratio}")
    return "\n".join([*lines, f"{results[0]['machine']['cpus']} CPUs"])
