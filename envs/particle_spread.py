"""Blind-Particle Spread: groups of particles, each with a landmark of its own that nothing in an observation tells.

Introduced with selective parameter sharing (Christianos et al. 2021, https://arxiv.org/abs/2102.07475), played with 15
to 30 agents in the HyperMARL paper. Their code steps one env in Python, in the fork of PettingZoo 1.3.5 that
https://github.com/semitable/seps names; here a step of all E envs is a few tensor operations, on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from ..env import BatchedEnv, Mark, Step

REQUIRES = None

# Physics of the multi-agent particle env as PettingZoo 1.3.5 has it: first the velocity changes, then the position, by
# the new velocity. (mpe2, today's version of that env, moves first.)
_DT, _DAMPING, _FORCE = 0.1, 0.25, 5.0
_DIRECTIONS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # of the actions: stay, left, right, down, up
_AGENT_RANGE, _LANDMARK_RANGE = 1.0, 3.0


class ParticleSpread(BatchedEnv):
    """Every agent is paid minus its distance to the landmark of its group, and cannot see which one that is.

    Observations `[4 + 2 * groups]`: own velocity and position, then the relative positions of all landmarks. Agents do
    not see one another, nor collide. They start at rest, uniformly in [-1, 1]^2, landmarks in [-3, 3]^2. Five actions:
    nothing, left, right, down, up. Only what an agent *is* tells it where to go, so that one policy for all cannot do
    better than some middle. Group by group, agents are called `group0_agent0`, `group0_agent1` and so on: a config's
    `policies: {team0: group0_*, team1: group1_*, ...}` gives away who belongs together.

    All E envs run in step, so one counter serves them all. Episodes are *truncated* after `max_steps`: the particles
    would go on.

    Args:
        groups: number of agents in each group. bps/1: [5, 5, 5], bps/2: [10, 10, 10], bps/3: [6, 6, 6, 6, 6], bps/4:
            [2, 2, 2, 15, 9] as the paper has it (a public copy of the code has [3, 3, 3, 12, 9]).
        reward_scale: of the distance. The paper's code halves it: `local_ratio` is 0.5, and the other half goes to a
            team reward that this scenario leaves at zero. Published returns, sums over agents, are in these units: a
            controller that knows its landmark and minimises the distance after each step returns -203 in bps/1 (paper:
            -190.8), and -404 in bps/2 to 4.
        max_steps: steps of an episode.
    """

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device = "cpu",
        *,
        groups: Sequence[int] = (5, 5, 5),
        reward_scale: float = 0.5,
        max_steps: int = 50,
    ):
        if not isinstance(groups, Sequence) or not groups or not all(isinstance(n, int) and n > 0 for n in groups):
            raise ValueError(f"groups must be a list of whole numbers of at least 1, not {groups!r}")
        if not isinstance(max_steps, int) or max_steps < 1:
            raise ValueError(f"max_steps must be a whole number of at least 1, not {max_steps!r}")
        if not isinstance(reward_scale, int | float) or not 0 < reward_scale < float("inf"):
            raise ValueError(f"reward_scale must be a positive number, not {reward_scale!r}")
        self.num_envs, self.device, self.max_episode_steps = num_envs, torch.device(device), max_steps
        self.reward_scale = reward_scale
        self.agents = tuple(f"group{g}_agent{i}" for g, size in enumerate(groups) for i in range(size))
        space = gym.spaces.Box(-np.inf, np.inf, (4 + 2 * len(groups),), np.float32)
        self.observation_spaces = dict.fromkeys(self.agents, space)
        self.action_spaces = {agent: gym.spaces.Discrete(len(_DIRECTIONS)) for agent in self.agents}
        self._num_groups = len(groups)
        self._group_of = torch.tensor([g for g, size in enumerate(groups) for _ in range(size)], device=self.device)
        self._acceleration = torch.tensor(_DIRECTIONS, device=self.device) * _FORCE * _DT  # mass is 1
        self._generator = torch.Generator(device=self.device)
        self._generator.seed()
        self._begin()

    def reset(self, seed: int | None = None) -> Step:
        if seed is not None:
            self._generator.manual_seed(seed)
        self._begin()
        self.show()
        obs = self._observe()
        never = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return Step(obs, torch.zeros(obs.shape[:2], device=self.device), never, never, obs)

    def step(self, actions: Tensor) -> Step:
        self._velocity = self._velocity * (1 - _DAMPING) + self._acceleration[actions.T.long()]
        self._position = self._position + self._velocity * _DT
        self._t += 1
        self.show()
        distance = (self._position - self._landmarks[self._group_of]).norm(dim=-1)  # [N, E]
        obs = final_obs = self._observe()
        ended = torch.full((self.num_envs,), self._t == self.max_episode_steps, device=self.device)
        if self._t == self.max_episode_steps:
            self._begin()
            obs = self._observe()
        return Step(obs, -self.reward_scale * distance.T, torch.zeros_like(ended), ended, final_obs)

    def get_state(self) -> dict[str, Any]:
        tensors = {"velocity": self._velocity, "position": self._position, "landmarks": self._landmarks}
        state = {name: tensor.cpu() for name, tensor in tensors.items()}
        return {**state, "t": self._t, "generator": self._generator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self._t = state["t"]
        self._generator.set_state(state["generator"])
        self._velocity, self._position, self._landmarks = (
            state[name].to(self.device) for name in ("velocity", "position", "landmarks")
        )

    def picture(self) -> list[Mark]:
        """Agents and landmarks in their group's colour."""
        landmarks, positions = self._landmarks[:, 0].tolist(), self._position[:, 0].tolist()
        marks = [Mark(f"landmark{g}", x, y, radius=0.25, family=g) for g, (x, y) in enumerate(landmarks)]
        groups = self._group_of.tolist()
        return marks + [
            Mark(agent, x, y, radius=0.08, family=g)
            for agent, g, (x, y) in zip(self.agents, groups, positions, strict=True)
        ]

    def _begin(self) -> None:
        """Starts a new episode in every env. Nothing writes into these tensors: a state may hold them as they are."""
        self._t = 0
        self._position = self._uniform(len(self.agents), _AGENT_RANGE)  # [N, E, 2]
        self._velocity = torch.zeros_like(self._position)
        self._landmarks = self._uniform(self._num_groups, _LANDMARK_RANGE)  # [G, E, 2]

    def _uniform(self, entities: int, limit: float) -> Tensor:
        shape = (entities, self.num_envs, 2)
        return (2 * torch.rand(shape, generator=self._generator, device=self.device) - 1) * limit

    def _observe(self) -> Tensor:
        """`[E, N, obs]`, agent-major in memory like every env's observations."""
        relative = self._landmarks.transpose(0, 1).flatten(1) - self._position.repeat(1, 1, self._num_groups)
        return torch.cat([self._velocity, self._position, relative], dim=-1).transpose(0, 1)


_GROUPS = {"1": (5, 5, 5), "2": (10, 10, 10), "3": (6,) * 5, "4": (2, 2, 2, 15, 9)}


def names() -> list[str]:
    return sorted(_GROUPS)


def make(name: str, num_envs: int, device: str | torch.device = "cpu", **env_config: Any) -> ParticleSpread:
    return ParticleSpread(num_envs, device, **{"groups": _GROUPS[name], **env_config})
