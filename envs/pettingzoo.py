"""PettingZoo envs (https://pettingzoo.farama.org), parallel ones and AEC ones that can be converted, as batched envs.

`pettingzoo/mpe2.simple_spread_v3`, `pettingzoo/sisl.multiwalker_v9`: any module with a function `parallel_env` or
`env`, PettingZoo's own without their first part. `pettingzoo/my_module:make_env`: any function that returns such an
env. Packages are imported when one of their envs is asked for. docs/pettingzoo.md tells what is supported.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from ..env import BatchedEnv, Step, nearest
from ..errors import UnknownEnvError
from .pettingzoo_copies import Arrays, Copies
from .pettingzoo_pool import OnCrash, WorkerPool
from .pettingzoo_task import FAMILIES, Task, find

REQUIRES = "pettingzoo"
ALSO_REQUIRES = {"mpe2.*": "mpe2"} | {f"{family}.*": f"pettingzoo[{family}]" for family in FAMILIES}
"""What patterns of names need beside `REQUIRES`."""
ACCEPTS = {
    "module": "with a function parallel_env, or env",
    "module:callable": "a function or class that gives a ParallelEnv or an AECEnv",
}
"""What names are taken beside `names()`."""


def names() -> list[str]:
    """The envs of the installed PettingZoo and mpe2, whatever else they need; none if it is not installed."""
    if importlib.util.find_spec(REQUIRES) is None:
        return []
    import pettingzoo

    registered = {*pettingzoo.parallel_registry, *pettingzoo.aec_registry}
    own = [name.replace("/", ".").replace("-v", "_v") for name in registered]
    mpe2 = importlib.util.find_spec("mpe2")
    modules = pkgutil.iter_modules(mpe2.submodule_search_locations) if mpe2 else ()
    return sorted([*own, *(f"mpe2.{module.name}" for module in modules if re.search(r"_v\d+$", module.name))])


def check(name: str) -> None:
    """Accepts more than `names()`: whatever can be imported.

    Raises:
        UnknownEnvError: it cannot.
    """
    try:
        find(name)
    except UnknownEnvError as error:
        listed = names()
        if ":" in name or name in listed:
            raise
        raise UnknownEnvError(f"{error}; {nearest(name, listed)}") from error


def make(name: str, num_envs: int, device: str | torch.device = "cpu", **env_config: Any) -> PettingZooEnv:
    return PettingZooEnv(name, num_envs, device, **env_config)


class CopiesEnv(BatchedEnv):
    """E copies of one env that is stepped by itself.

    Agents are in the order of `possible_agents`; they may differ, come and go, and be told what they may do. Where they
    act in turns, those who wait may do nothing but their first action. Observations that are no flat arrays are
    flattened as Gymnasium does it. Every episode begins with `reset(seed=episode_seed(seed, copy, number of the
    episode))`: the same seed gives the same episodes, however many workers play them. Observations and rewards are
    agent-major in memory. The state of such envs cannot be saved: `get_state` returns None.

    Args:
        task: makes the copies.
        num_workers: processes that share the copies out among them (at most one for each copy). 0: none, the copies are
            stepped one after the other in this one.
        on_crash: what happens when a worker ends, hangs, or its env raises. `fail`: an `EnvError`. `replace`: a new
            process goes on with new episodes; those that were lost are truncated at the last observation that was seen,
            with a reward of zero for the lost step.
        step_timeout_s: after which a worker is taken to hang, in one step of all its copies; None: never.
    """

    def __init__(
        self,
        task: Task,
        num_envs: int,
        device: str | torch.device = "cpu",
        *,
        num_workers: int = 0,
        on_crash: OnCrash = "fail",
        step_timeout_s: float | None = 60.0,
    ):
        if not isinstance(num_workers, int) or num_workers < 0:
            raise ValueError(f"num_workers must be a whole number of at least 0, not {num_workers!r}")
        if on_crash not in ("fail", "replace"):
            raise ValueError(f"on_crash must be 'fail' or 'replace', not {on_crash!r}")
        if on_crash == "replace" and not num_workers:
            raise ValueError("on_crash: replace needs worker processes, set num_workers")
        if step_timeout_s is not None and not (isinstance(step_timeout_s, int | float) and step_timeout_s > 0):
            raise ValueError(f"step_timeout_s must be a positive number of seconds, or null, not {step_timeout_s!r}")
        self.num_envs, self.device = num_envs, torch.device(device)
        self._copies: WorkerPool | Copies
        if num_workers:
            self._copies = WorkerPool(task, num_envs, min(num_workers, num_envs), on_crash, step_timeout_s)
            self._arrays = self._copies.arrays
        else:
            self._copies = Copies(task, 0, num_envs)
            self._arrays = Arrays(self._copies.description, num_envs)
            self._copies.bind(self._arrays, self._copies.description)
        description = self._copies.description
        self.agents = description.agents
        self.observation_spaces = dict(zip(self.agents, description.observation_spaces, strict=True))
        self.action_spaces = dict(zip(self.agents, description.action_spaces, strict=True))
        if description.state_dim is not None:
            self.state_space = gym.spaces.Box(-np.inf, np.inf, (description.state_dim,), np.float32)
        self._seed = secrets.randbits(31)
        self._replaces, self._lost = on_crash == "replace", 0

    def reset(self, seed: int | None = None) -> Step:
        if seed is not None:
            self._seed = seed
            self._arrays.episode[:] = 0
        self._lost += len(self._copies.reset(self._seed))
        self._arrays.reward[:] = 0
        self._arrays.terminated[:] = self._arrays.truncated[:] = False
        self._arrays.final_alive[:] = self._arrays.alive
        return self._make_step()

    def step(self, actions: Tensor) -> Step:
        np.copyto(self._arrays.actions, actions.numpy(force=True), casting="same_kind")
        lost = self._copies.step(self._seed)
        if lost:
            self._lost += len(lost)
            self._cut(lost)
        return self._make_step()

    def take_counts(self) -> dict[str, int]:
        counts = {"num_episodes_lost": self._lost} if self._replaces else {}
        self._lost = 0
        return counts

    def close(self) -> None:
        self._copies.close()

    def _cut(self, lost: Sequence[int]) -> None:
        """The episodes of these copies end where they were last seen."""
        arrays = self._arrays
        arrays.reward[:, lost] = 0
        arrays.terminated[lost], arrays.truncated[lost] = False, True
        arrays.final_obs[:, lost] = self._seen_obs[:, lost]
        arrays.final_alive[:, lost] = self._seen_alive[:, lost]
        if arrays.state is not None:
            arrays.final_state[lost] = self._seen_state[lost]

    def _make_step(self) -> Step:
        """What the arrays hold, in tensors of its own."""
        arrays = self._arrays
        ended = arrays.terminated | arrays.truncated
        cut = arrays.final_alive & ~arrays.alive & ~ended  # truncated alone
        rows = (ended | cut.any(axis=0)).nonzero()[0]
        self._seen_obs, self._seen_alive = arrays.obs.copy(), arrays.alive.copy()
        obs = final_obs = self._tensor(self._seen_obs).transpose(0, 1)
        if len(rows):
            final = self._seen_obs.copy()
            final[:, rows] = arrays.final_obs[:, rows]
            final_obs = self._tensor(final).transpose(0, 1)
        state = final_state = None
        if arrays.state is not None:
            self._seen_state = arrays.state.copy()
            state = final_state = self._tensor(self._seen_state)
            if len(rows):
                final = self._seen_state.copy()
                final[rows] = arrays.final_state[rows]
                final_state = self._tensor(final)
        reward, terminated, truncated = (
            self._tensor(x.copy()) for x in (arrays.reward, arrays.terminated, arrays.truncated)
        )
        step = Step(obs, reward.T, terminated, truncated, final_obs, state, final_state)
        if arrays.action_mask is not None:
            step.action_mask = self._tensor(arrays.action_mask.copy()).transpose(0, 1)
        if not (arrays.alive.all() and arrays.final_alive.all()):
            step.alive, step.final_alive = self._tensor(self._seen_alive).T, self._tensor(arrays.final_alive.copy()).T
        return step

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)


class PettingZooEnv(CopiesEnv):
    """E copies of one PettingZoo env.

    Args:
        name: see the module.
        wrappers: around each copy, in this order. Names of SuperSuit, or `module:callable`, alone or with arguments:
            `[clip_actions_v0, {frame_stack_v1: {stack_size: 4}}]`.
        state: whether `Step.state` is what the env's `state()` returns. None: if that is a flat vector.
        num_workers, on_crash, step_timeout_s: see `CopiesEnv`.
        kwargs: the env's own.
    """

    def __init__(
        self,
        name: str,
        num_envs: int,
        device: str | torch.device = "cpu",
        *,
        num_workers: int = 0,
        on_crash: OnCrash = "fail",
        step_timeout_s: float | None = 60.0,
        wrappers: Sequence[str | Mapping[str, Mapping[str, Any] | None]] = (),
        state: bool | None = None,
        **kwargs: Any,
    ):
        if isinstance(wrappers, str | Mapping) or not isinstance(wrappers, Sequence):
            raise ValueError(f"wrappers must be a list, not {wrappers!r}")
        super().__init__(
            Task(name, kwargs, wrappers, state), num_envs, device,
            num_workers=num_workers, on_crash=on_crash, step_timeout_s=step_timeout_s,
        )  # fmt: skip
