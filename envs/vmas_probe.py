"""Tries whether a VMAS scenario, reset from a pool (`vmas_pool.py`), goes on exactly as if VMAS had reset it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .vmas import Stream, VmasEnv
from .vmas_pool import ResetPool, StatePairs, UnlikeEnvsError

_ROUNDING = 1e-5  # VMAS's rows are not quite independent: it skips work that none of its envs needs


def why_inexact(
    scenario: Any, *, num_envs: int = 7, steps: int = 2, seeds: Iterable[int] = range(3), **env_config: Any
) -> str | None:
    """Compares an env some of whose rows came from a pool with that pool, and with a twin in which nothing was reset.

    After some random steps all rows, or the first few, are replaced. The others must stay as they are in the twin, bit
    for bit. From then on, with the same actions and random numbers, replaced rows must do what the pool does (bit for
    bit, where all of them were replaced) and the others what the twin does. Observations, rewards, ends and infos are
    compared, and all of it twice in a row: scenarios go on making attributes while they run. Where how many random
    numbers a scenario draws depends on the states of all its rows, envs with unlike rows can be compared up to there.

    Args:
        num_envs: a number that no other axis of the scenario's tensors has.
        steps: before, and after, rows are replaced.
        seeds: of the random numbers. Some scenarios draw which of two things all rows are about (`simple_push` its
            goal): by chance a pool and an env agree on it.

    Returns:
        None if all is equal; else what differs first.
    """
    all_rows, some_rows = torch.ones(num_envs, dtype=torch.bool), torch.arange(num_envs) < num_envs // 2
    for seed, replaced in itertools.product(seeds, (all_rows, some_rows)):
        try:
            trial = _Trial(VmasEnv(scenario, num_envs, **env_config), replaced, steps, Stream(seed))
            difference = trial.run() or trial.run()
        except UnlikeEnvsError as error:
            difference = str(error)
        if difference:
            return f"{int(replaced.sum())} of {num_envs} rows replaced: {difference}"
    return None


class _Trial:
    def __init__(self, maker: VmasEnv, replaced: Tensor, steps: int, stream: Stream):
        self.replaced, self.steps = replaced, steps
        self.tolerance = 0.0 if replaced.all() else _ROUNDING
        self.drawn_apart = False
        self.stream = stream
        self.env, self.twin, self.pool = maker.make_vmas(), maker.make_vmas(), maker.make_vmas()
        self.stacked = maker.stacked
        self.rows = ResetPool(self.env, self.pool, self.stacked)
        for env in (self.env, self.twin):
            _on(copy.copy(self.stream), env.reset)

    def run(self) -> str | None:
        if self.drawn_apart:
            return None
        for _ in range(self.steps):
            self._step(self.env, self.twin)
        self.rows.clear()
        obs = self.stacked(self._observe(self.env))
        _on(self.stream, self.rows.restart, self.replaced.nonzero().squeeze(1), obs)
        for _, key, mine, twin in StatePairs(self.env, self.twin):
            if not _equal(mine, twin, ~self.replaced):
                return f"{key} of other rows"
        if not _equal(self._observe(self.env), self._observe(self.pool), self.replaced, self.tolerance):
            return "first observations"
        for step in range(self.steps):
            mine, twin, pool = self._step(self.env, self.twin, self.pool)
            if self.drawn_apart:
                return None
            for i, field in enumerate(("obs", "reward", "terminated", "truncated", "info")):
                if not _equal(mine[i], pool[i], self.replaced, self.tolerance):
                    return f"{field} of replaced rows after {step + 1} steps"
                if not _equal(mine[i], twin[i], ~self.replaced, self.tolerance):
                    return f"{field} of other rows after {step + 1} steps"
        return None

    def _observe(self, env: Any) -> list[Tensor]:
        return _on(copy.copy(self.stream), env.get_from_scenario, True, False, False, False)[0]

    def _step(self, *envs: Any) -> list:
        """Steps all envs with the same actions and random numbers."""
        actions = _on(self.stream, self.env.get_random_actions)
        streams = [copy.copy(self.stream) for _ in envs]
        results = [_on(s, env.step, [a.clone() for a in actions]) for s, env in zip(streams, envs, strict=True)]
        self.stream = streams[0]
        self.drawn_apart |= not self.replaced.all() and not all(
            torch.equal(s.torch_state, self.stream.torch_state) for s in streams
        )
        return results


def _on(stream: Stream, call: Any, *args: Any) -> Any:
    with stream:
        return call(*args)


def _equal(a: Any, b: Any, rows: Tensor, tolerance: float = 0.0) -> bool:
    """Whether rows of nested lists and dicts of tensors `[E, ...]` are equal (NaN equals NaN)."""
    if isinstance(a, Tensor):
        return torch.allclose(a[rows].double(), b[rows].double(), rtol=0, atol=tolerance, equal_nan=True)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key], rows, tolerance) for key in a)
    return all(_equal(x, y, rows, tolerance) for x, y in zip(a, b, strict=True))
