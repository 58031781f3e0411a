"""Recall: a memory game that no policy can solve which sees the present only."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..env import BatchedEnv, Step


class Recall(BatchedEnv):
    """At the first step all agents are shown one of `n_cues` cues, `delay` steps later they must have it still: then
    agent i is paid 1 for answering cue + i (modulo the number of cues), and nothing otherwise.

    Best is 1 per agent and episode, chance is 1 / n_cues: without memory, and also without an identity, since agents
    that see the same must answer differently. Observations `[n_cues + 1]`: the cue, one-hot, at the first step; at the
    last one the sign to answer, a 1 at the end; zeros between them. Episodes *terminate* after 2 + delay steps; all E
    envs run in step, so one counter serves them all.

    Args:
        n_agents: the number of agents.
        n_cues: of cues and of actions.
        delay: steps between the first and the last one.
    """

    def __init__(
        self, num_envs: int, device: str | torch.device = "cpu", *, n_agents: int = 3, n_cues: int = 3, delay: int = 4
    ):
        for key, value, least in (("n_agents", n_agents, 1), ("n_cues", n_cues, 2), ("delay", delay, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{key} must be a whole number of at least {least}, not {value!r}")
        self.num_envs, self.device, self.max_episode_steps = num_envs, torch.device(device), 2 + delay
        self.agents = tuple(f"agent_{i}" for i in range(n_agents))
        self.observation_spaces = {a: gym.spaces.Box(0.0, 1.0, (n_cues + 1,), np.float32) for a in self.agents}
        self.action_spaces = {a: gym.spaces.Discrete(n_cues) for a in self.agents}
        self._n_cues, self._t = n_cues, 0
        self._generator = torch.Generator(device=self.device)
        self._generator.seed()

    def reset(self, seed: int | None = None) -> Step:
        if seed is not None:
            self._generator.manual_seed(seed)
        obs = self._begin()
        never = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return Step(obs, torch.zeros(obs.shape[:2], device=self.device), never, never, obs)

    def step(self, actions: Tensor) -> Step:
        answers = self._t == self.max_episode_steps - 1
        number = torch.arange(len(self.agents), device=self.device)
        right = actions == (self._cue.unsqueeze(1) + number) % self._n_cues
        self._t += 1
        final_obs = self._for_every_agent(torch.zeros(self.num_envs, self._n_cues + 1, device=self.device))
        final_obs[..., -1] = self._t == self.max_episode_steps - 1
        ended = torch.full((self.num_envs,), answers, device=self.device)
        obs = self._begin() if answers else final_obs
        return Step(obs, right.float() * answers, ended, torch.zeros_like(ended), final_obs)

    def get_state(self) -> dict[str, Any]:
        return {"t": self._t, "cue": self._cue, "generator": self._generator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self._t, self._cue = state["t"], state["cue"].to(self.device)
        self._generator.set_state(state["generator"])

    def _begin(self) -> Tensor:
        """The first observations of new episodes, `[E, N, obs]`."""
        self._t = 0
        self._cue = torch.randint(self._n_cues, (self.num_envs,), generator=self._generator, device=self.device)
        return self._for_every_agent(one_hot(self._cue, self._n_cues + 1).float())

    def _for_every_agent(self, obs: Tensor) -> Tensor:
        """`[E, obs]` to `[E, N, obs]`, agent-major in memory like every env's observations."""
        return obs.repeat(len(self.agents), 1, 1).transpose(0, 1)
