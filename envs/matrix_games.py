"""Specialisation and Synchronisation: repeated matrix games with n agents and n actions (HyperMARL, Section 3).

The two smallest tasks in which a team must, or must not, split up. Every agent observes the whole team's last joint
action, so nothing but its own identity tells an agent what to do differently from the others.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..env import BatchedEnv, Mark, Step
from .recall import Recall

REQUIRES = None


class MatrixGame(BatchedEnv):
    """Base of the games: all E envs run in step, so one counter serves them all, and nothing is random.

    Observations `[n * n]`, the same for every agent: the last joint action, one-hot per agent and flattened; all -1
    before the first one. An episode *terminates* after `horizon` steps: the horizon belongs to the game, nothing comes
    after it that a truncation could bootstrap from.

    Args:
        n_agents: n, the number of agents and of actions.
        horizon: steps of an episode; 1 is the normal-form (stateless) game.
    """

    def __init__(self, num_envs: int, device: str | torch.device = "cpu", *, n_agents: int = 4, horizon: int = 10):
        for key, value, least in (("n_agents", n_agents, 2), ("horizon", horizon, 1)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{key} must be a whole number of at least {least}, not {value!r}")
        self.num_envs, self.device, self.max_episode_steps = num_envs, torch.device(device), horizon
        self.agents = tuple(f"agent_{i}" for i in range(n_agents))
        self.observation_spaces = {a: gym.spaces.Box(-1.0, 1.0, (n_agents**2,), np.float32) for a in self.agents}
        self.action_spaces = {a: gym.spaces.Discrete(n_agents) for a in self.agents}
        self._t = 0
        self._actions: Tensor | None = None  # the last ones; None before the first

    @staticmethod
    @abstractmethod
    def payoff(k: Tensor, n: int) -> Tensor:
        """Reward of an agent when k of the n agents, itself among them, chose its action."""

    def reset(self, seed: int | None = None) -> Step:
        self._t, self._actions = 0, None
        self.show()
        obs = self._first_obs()
        never = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return Step(obs, torch.zeros(obs.shape[:2], device=self.device), never, never, obs)

    def step(self, actions: Tensor) -> Step:
        n, self._actions = len(self.agents), actions
        self.show()
        joint = one_hot(actions.long(), n)  # [E, N, n]
        reward = self.payoff(joint.sum(dim=1).gather(1, actions.long()), n)
        final_obs = self._for_every_agent(joint.flatten(1).float())
        self._t = (self._t + 1) % self.max_episode_steps
        ended = torch.full((self.num_envs,), self._t == 0, device=self.device)
        obs = final_obs if self._t else self._first_obs()
        return Step(obs, reward, ended, torch.zeros_like(ended), final_obs)

    def get_state(self) -> dict[str, Any]:
        return {"t": self._t}

    def set_state(self, state: dict[str, Any]) -> None:
        self._t = state["t"]

    def picture(self) -> list[Mark]:
        """A row for each agent, a column for each action; before the first action, agents stand beside the columns."""
        n = len(self.agents)
        columns = [Mark(f"action {k}", k, (1 - n) / 2, box=(0.8, n)) for k in range(n)]
        taken = [-1] * n if self._actions is None else self._actions[0].tolist()
        return columns + [Mark(agent, taken[i], -i, radius=0.3) for i, agent in enumerate(self.agents)]

    def _first_obs(self) -> Tensor:
        return self._for_every_agent(torch.full((self.num_envs, len(self.agents) ** 2), -1.0, device=self.device))

    def _for_every_agent(self, obs: Tensor) -> Tensor:
        """`[E, obs]` to `[E, N, obs]`, agent-major in memory like every env's observations."""
        return obs.repeat(len(self.agents), 1, 1).transpose(0, 1)


class Specialisation(MatrixGame):
    """Every agent is paid 1/k when k agents chose its action: best when all choose differently.

    Agents and actions: n_agents (default 4); steps per episode: horizon (default 10; 1 is the normal form).
    """

    @staticmethod
    def payoff(k: Tensor, n: int) -> Tensor:
        return 1 / k


class Synchronisation(MatrixGame):
    """Every agent is paid 1/(n - k + 1) when k of the n agents chose its action: best when all choose the same.

    Agents and actions: n_agents (default 4); steps per episode: horizon (default 10; 1 is the normal form).
    """

    @staticmethod
    def payoff(k: Tensor, n: int) -> Tensor:
        return 1 / (n - k + 1)


_GAMES = {"recall": Recall, "specialisation": Specialisation, "synchronisation": Synchronisation}


def names() -> list[str]:
    return sorted(_GAMES)


def make(name: str, num_envs: int, device: str | torch.device = "cpu", **env_config: Any) -> BatchedEnv:
    return _GAMES[name](num_envs, device, **env_config)
