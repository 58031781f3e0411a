"""An environment whose episodes end at any step in any copy, some by time, and whose agents die and come back."""

import gymnasium as gym
import numpy as np
import torch

from rllib_hypermarl import BatchedEnv, Step

OBS, ACTIONS = 3, 4


class RestlessEnv(BatchedEnv):
    """All it says is noise of its own stream.

    Args:
        deaths: the probability that an agent dies in a step; the dead come back as often. 0: nobody does either.
        with_state: whether there is a state for central critics.
    """

    def __init__(self, num_envs, device="cpu", deaths=0.2, with_state=False):
        self.num_envs, self.device, self.deaths = num_envs, torch.device(device), deaths
        self.agents = ("a", "b", "c")
        self.observation_spaces = {a: gym.spaces.Box(-9.0, 9.0, (OBS,), np.float32) for a in self.agents}
        self.action_spaces = {a: gym.spaces.Discrete(ACTIONS) for a in self.agents}
        self.state_space = gym.spaces.Box(-9.0, 9.0, (5,), np.float32) if with_state else None
        self.generator = torch.Generator()
        self.generator.seed()

    def reset(self, seed=None):
        if seed is not None:
            self.generator.manual_seed(seed)
        self.alive = torch.ones(self.num_envs, 3, dtype=torch.bool)
        never = torch.zeros(self.num_envs, dtype=torch.bool)
        obs = self._noise(3, OBS)
        return Step(obs, torch.zeros(self.num_envs, 3), never, never, obs, **self._more(self.alive, never))

    def step(self, actions):
        terminated, truncated = self._happens(0.15), self._happens(0.15)
        ended = (terminated | truncated).unsqueeze(1)
        final_alive = self.alive ^ (torch.rand(self.alive.shape, generator=self.generator) < self.deaths)
        self.alive = final_alive | ended
        final_obs = self._noise(3, OBS)
        obs = torch.where(ended.unsqueeze(-1), self._noise(3, OBS), final_obs)
        return Step(obs, self._noise(3), terminated, truncated, final_obs, **self._more(final_alive, ended))

    def _more(self, final_alive, ended):
        more = {"alive": self.alive, "final_alive": final_alive} if self.deaths else {}
        if self.state_space is not None:
            final_state = self._noise(5)
            more |= {"final_state": final_state, "state": torch.where(ended.view(-1, 1), self._noise(5), final_state)}
        return more

    def _happens(self, probability):
        return torch.rand(self.num_envs, generator=self.generator) < probability

    def _noise(self, *shape):
        return torch.randn(self.num_envs, *shape, generator=self.generator)

    def get_state(self):
        return {"generator": self.generator.get_state(), "alive": self.alive}

    def set_state(self, state):
        self.generator.set_state(state["generator"])
        self.alive = state["alive"]


class Recording(RestlessEnv):
    """Keeps what it said and was told."""

    def reset(self, seed=None):
        self.said, self.told = [super().reset(seed)], []
        return self.said[0]

    def step(self, actions):
        self.told.append(actions)
        self.said.append(super().step(actions))
        return self.said[-1]
