"""VMAS scenarios (https://github.com/proroklab/VectorizedMultiAgentSimulator) as batched envs.

VMAS is GPLv3 and imported only when one of its scenarios is asked for. docs/vmas.md tells which scenarios have fast
resets, and what is special about its randomness.
"""

from __future__ import annotations

import importlib.util
import inspect
import random
import secrets
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..env import BatchedEnv, Mark, Step
from .vmas_pool import ResetPool

REQUIRES = "vmas"

# Found by `vmas_probe.why_inexact` with each scenario's defaults; tests/system/test_vmas_resets.py finds them again.
EXACT_POOL_RESETS = frozenset((
    "asym_joint", "balance", "ball_trajectory", "buzz_wire", "circle_trajectory", "diff_drive", "discovery",
    "dispersion", "drone", "dropout", "flocking", "give_way", "goal", "joint_passage", "joint_passage_size",
    "kinematic_bicycle", "line_trajectory", "multi_give_way", "navigation", "passage", "pollock", "reverse_transport",
    "simple", "simple_crypto", "simple_spread", "simple_tag", "simple_world_comm", "transport",
    "vel_control", "waterfall", "wheel", "wind_flocking",
))  # fmt: skip
"""Scenarios in which a row of a second env that was reset as a whole is as good as a reset."""


def names() -> list[str]:
    """The scenarios of the installed VMAS; none if it is not installed."""
    if importlib.util.find_spec(REQUIRES) is None:
        return []
    import vmas

    return sorted([*vmas.scenarios, *vmas.debug_scenarios, *vmas.mpe_scenarios])


def make(name: str, num_envs: int, device: str | torch.device = "cpu", **env_config: Any) -> VmasEnv:
    return VmasEnv(name, num_envs, device, **env_config)


# -------------------------------------------------------------------------------------------------------- randomness


class Stream:
    """A random stream. In `with stream:` VMAS draws from it instead of the one stream that all its envs share.

    VMAS brings its stream into the global generators and back around every call, which takes a twentieth of a step of
    few envs, mostly to copy NumPy's state. `step` does without: it swaps NumPy's generators themselves.
    """

    def __init__(self, seed: int):
        from vmas.simulator.environment import Environment

        self._shared = Environment.vmas_random_state  # the decorator of VMAS's methods holds this very list: mutate it
        self._step = inspect.unwrap(Environment.step)
        self.seed(seed)

    def seed(self, seed: int) -> None:
        self.torch_state = torch.Generator().manual_seed(seed).get_state()
        self._numpy = np.random.RandomState(seed % 2**32).get_state()
        self._python = random.Random(seed).getstate()

    @property
    def _numpy(self) -> tuple:
        return np.random.RandomState(self._bits).get_state()

    @_numpy.setter
    def _numpy(self, state: tuple) -> None:
        self._bits = np.random.MT19937()
        self._bits.state = {"bit_generator": "MT19937", "state": {"key": state[1], "pos": state[2]}}

    def __enter__(self) -> None:
        self._theirs = self._shared[:]
        self._shared[:] = self.torch_state, self._numpy, self._python

    def __exit__(self, *error: object) -> None:
        self.torch_state, self._numpy, self._python = self._shared
        self._shared[:] = self._theirs

    def step(self, env: Any, actions: Sequence[Tensor]) -> list:
        """`env.step(actions)`, drawing from this stream."""
        outside = torch.get_rng_state(), np.random.get_bit_generator(), random.getstate()
        torch.set_rng_state(self.torch_state)
        np.random.set_bit_generator(self._bits)
        random.setstate(self._python)
        try:
            return self._step(env, actions)
        finally:
            self.torch_state, self._python = torch.get_rng_state(), random.getstate()
            torch.set_rng_state(outside[0])
            np.random.set_bit_generator(outside[1])
            random.setstate(outside[2])


# --------------------------------------------------------------------------------------------------------------- env

_OURS = {"dict_spaces", "grad_enabled", "multidiscrete_actions", "terminated_truncated", "wrapper", "wrapper_kwargs"}
_REFUSALS = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)


class VmasEnv(BatchedEnv):
    """E copies of one VMAS scenario.

    The env_config holds `vmas.make_env`'s own keys (`max_steps`, `continuous_actions`, `clamp_actions`) and, beside
    them, the scenario's. Observations and rewards are agent-major in memory: `obs.transpose(0, 1)` is contiguous.
    The state of VMAS cannot be saved: `get_state` returns None.

    Args:
        scenario: a name from `names()`, or a subclass of VMAS's `BaseScenario`.
        fast_resets: whether ended envs take over rows of a second env that was reset as a whole, in place of VMAS's
            reset of one env at a time. None: for the scenarios where that is known to be exact.
    """

    def __init__(
        self,
        scenario: str | Callable[[], Any],
        num_envs: int,
        device: str | torch.device = "cpu",
        *,
        fast_resets: bool | None = None,
        **env_config: Any,
    ):
        if fixed := sorted(_OURS & set(env_config)):
            raise ValueError(f"{', '.join(fixed)}: not to be set, this wrapper does it itself")
        if "seed" in env_config:
            raise ValueError("seed: belongs to reset(seed), an env's configuration has none")
        max_steps = env_config.get("max_steps")
        if max_steps is not None and (not isinstance(max_steps, int) or max_steps < 1):
            raise ValueError(f"max_steps must be a whole number of at least 1, or null, not {max_steps!r}")
        self._scenario, self._env_config = scenario, env_config
        self.num_envs, self.device, self.max_episode_steps = num_envs, torch.device(device), max_steps
        self._env = self.make_vmas()
        self.agents = tuple(agent.name for agent in self._env.agents)
        self.observation_spaces, self.action_spaces = (
            dict(zip(self.agents, map(_space, spaces), strict=True))
            for spaces in (self._env.observation_space, self._env.action_space)
        )
        sizes = [space.shape[0] for space in self.observation_spaces.values()]
        self._missing = None if len(set(sizes)) == 1 else [max(sizes) - size for size in sizes]  # to the greatest
        widths = [space.shape[0] if space.shape else 1 for space in self.action_spaces.values()]
        self._widths = None if len(set(widths)) == 1 else widths
        self._fast_resets = scenario in EXACT_POOL_RESETS if fast_resets is None else fast_resets
        self._pool: ResetPool | None = None  # made when first needed
        self._stream = Stream(secrets.randbits(31))

    def make_vmas(self) -> Any:
        """A VMAS env. What a scenario draws while it is built is the task's, not an episode's: it comes from a fixed
        stream, so that all envs of one configuration (training, evaluation) are the same task."""
        import vmas

        scenario = self._scenario if isinstance(self._scenario, str) else self._scenario()
        with Stream(0), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                env = vmas.make_env(scenario, self.num_envs, self.device, terminated_truncated=True, **self._env_config)
            except _REFUSALS as error:
                where = traceback.extract_tb(error.__traceback__)[-1]  # many assertions say nothing but their condition
                raise ValueError(str(error) or f"VMAS asks for {where.line.removeprefix('assert ')}") from error
        for warning in caught:
            if "not used by the scenario" in str(warning.message):
                raise ValueError(str(warning.message).split(" This will")[0])
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if isinstance(self._scenario, str):  # nobody reads the infos, and in VMAS's own scenarios they have no effects
            env.scenario.info = _no_info
        return env

    def reset(self, seed: int | None = None) -> Step:
        if seed is not None:
            self._stream.seed(seed)
            if self._pool is not None:
                self._pool.clear()
        obs = self._reset_all()
        self.show()
        reward = torch.zeros(self.num_envs, len(self.agents), device=self.device)
        never = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return Step(obs, reward, never, never, obs)

    def step(self, actions: Tensor) -> Step:
        actions = (actions if actions.dim() == 3 else actions.unsqueeze(-1)).unbind(1)
        if self._widths is not None:
            actions = [action[:, :width] for action, width in zip(actions, self._widths, strict=True)]
        obs, reward, terminated, truncated, _ = self._stream.step(self._env, actions)
        self.show()
        obs = final_obs = self.stacked(obs).transpose(0, 1)
        reward = torch.stack(reward).view(len(self.agents), self.num_envs).T  # some scenarios pay [E, 1]
        ended = terminated | truncated
        if ended.any():
            obs = self._restart(ended, obs)
        return Step(obs, reward, terminated, truncated, final_obs)

    def picture(self) -> list[Mark]:
        """The world's entities; what VMAS gives the colour of an agent, its goal say, has that agent's colour."""
        world = self._env.world
        colours = [_rgb(agent) for agent in world.agents]
        own = len(set(colours)) > 1  # VMAS's default is one colour for all agents
        return [
            _mark(entity, colours.index(_rgb(entity)) if own and _rgb(entity) in colours else None)
            for entity in [*world.landmarks, *world.agents]
        ]

    def _reset_all(self) -> Tensor:
        with self._stream:
            return self.stacked(self._env.reset()).transpose(0, 1)

    def stacked(self, obs: Sequence[Tensor]) -> Tensor:
        """The agents' observations `[E, own size]` as `[N, E, obs]`, filled up with zeros where they differ."""
        if self._missing is not None:
            obs = [functional.pad(x, (0, missing)) for x, missing in zip(obs, self._missing, strict=True)]
        return torch.stack(obs)

    def _restart(self, ended: Tensor, obs: Tensor) -> Tensor:
        """Starts new episodes where `ended` `[E]`; returns `obs` with their first observations in place."""
        if ended.all():
            return self._reset_all()
        if self._fast_resets and self._pool is None:
            self._pool = ResetPool(self._env, self.make_vmas(), self.stacked)
        rows = ended.nonzero().squeeze(1)
        obs = obs.transpose(0, 1)
        with self._stream:
            obs = self._pool.restart(rows, obs) if self._fast_resets else self._restart_one_by_one(rows, obs)
        return obs.transpose(0, 1)

    def _restart_one_by_one(self, rows: Tensor, obs: Tensor) -> Tensor:
        """As `ResetPool.restart`, and right for every scenario: VMAS resets each env by itself."""
        for row in rows.tolist():
            self._env.reset_at(row, return_observations=False)
        wanted = dict.fromkeys(("get_rewards", "get_infos", "get_dones"), False)
        (fresh,) = self._env.get_from_scenario(get_observations=True, **wanted)
        return obs.index_copy(1, rows, self.stacked(fresh)[:, rows])


def _mark(entity: Any, family: int | None) -> Mark:
    """A VMAS entity in the first env."""
    (x, y), shape = entity.state.pos[0].tolist(), entity.shape
    width = getattr(shape, "width", 0.0) if type(shape).__name__ == "Box" else 0.0  # a line's is in pixels
    box = (shape.length, width) if hasattr(shape, "length") else None
    radius, angle = getattr(shape, "radius", 0.0), float(entity.state.rot[0])
    return Mark(entity.name, x, y, radius, box, angle, family, gone=not bool(entity.is_rendering[0]))


def _rgb(entity: Any) -> tuple[float, ...]:
    return tuple(round(float(part), 3) for part in entity.color[:3])


def _no_info(agent: Any) -> dict:
    return {}


def _space(space: Any) -> gym.Space:
    if hasattr(space, "n"):
        return gym.spaces.Discrete(int(space.n))
    if not hasattr(space, "low") or len(space.shape) != 1:
        raise ValueError(f"only flat spaces are supported, not {space}")
    return gym.spaces.Box(space.low, space.high, dtype=np.float32)
