"""An environment whose agents die, come later, and may not do everything; what it says of the absent is garbage."""

import gymnasium as gym
import numpy as np
import torch

from rllib_hypermarl import BatchedEnv, Step

AGENTS = ("first", "second", "late")
ACTIONS = 3


class MortalEnv(BatchedEnv):
    """Episodes of 7 steps; every agent may die at any of them, and `late` comes at the third.

    An agent is paid 1 for doing what its observation's only 1 says, and nothing otherwise. Of three actions, one is
    forbidden at random, never that one. Its state can be saved.

    Args:
        garbage: what the env says about agents that are not alive: observations, rewards; 0 for none.
        blocked: whether a living agent is once allowed nothing.
        cuts: the probability that an agent's own time is up.
    """

    def __init__(self, num_envs, device="cpu", garbage=float("nan"), blocked=False, masks=True, deaths=0.15, cuts=0.0):
        self.num_envs, self.device, self.max_episode_steps = num_envs, torch.device(device), 7
        self.agents = AGENTS
        self.observation_spaces = {a: gym.spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32) for a in AGENTS}
        self.action_spaces = {a: gym.spaces.Discrete(ACTIONS) for a in AGENTS}
        self.garbage, self.blocked, self.masks, self.deaths, self.cuts = garbage, blocked, masks, deaths, cuts
        self.generator = torch.Generator()
        self.generator.seed()

    def reset(self, seed=None):
        if seed is not None:
            self.generator.manual_seed(seed)
        self._begin()
        self._draw()
        never = torch.zeros(self.num_envs, dtype=torch.bool)
        obs = self._obs(self.alive)
        return Step(obs, torch.zeros(obs.shape[:2]), never, never, obs, action_mask=self._mask(), alive=self.alive)

    def step(self, actions):
        acted, wanted = self.alive, self.wanted
        reward = torch.where(acted, (actions == wanted).float(), self.garbage)
        self.t += 1
        dies = torch.rand(acted.shape, generator=self.generator) < self.deaths
        self.alive = acted & ~dies
        self.alive[:, 2] |= (self.t == 3) & ~dies[:, 2]
        self._draw()
        final_obs, final_alive = self._obs(self.alive), self.alive
        truncated = torch.full((self.num_envs,), self.t == self.max_episode_steps)
        obs = final_obs
        if self.cuts:
            self.alive = final_alive & (torch.rand(acted.shape, generator=self.generator) >= self.cuts)
            obs = self._obs(self.alive)
        if self.t == self.max_episode_steps:
            self._begin()
            self._draw()
            obs = self._obs(self.alive)
        return Step(obs, reward, torch.zeros_like(truncated), truncated, final_obs, action_mask=self._mask(),
                    alive=self.alive, final_alive=final_alive)  # fmt: skip

    def _begin(self):
        self.t, self.alive = 0, torch.tensor([[True, True, False]]).repeat(self.num_envs, 1)

    def _draw(self):
        shape = (self.num_envs, len(AGENTS))
        self.wanted = torch.randint(ACTIONS, shape, generator=self.generator)
        shift = torch.randint(1, ACTIONS, shape, generator=self.generator)
        self.forbidden = (self.wanted + shift) % ACTIONS

    def _obs(self, alive):
        obs = torch.nn.functional.one_hot(self.wanted, ACTIONS).float()
        return torch.where(alive.unsqueeze(-1), obs, self.garbage)

    def _mask(self):
        if not self.masks:
            return None
        mask = torch.nn.functional.one_hot(self.forbidden, ACTIONS) == 0
        if self.blocked and self.t == 2:
            mask[1, self.alive[1].nonzero()[0]] = False
        return mask & self.alive.unsqueeze(-1)  # nothing is allowed to those that are not there

    def get_state(self):
        keys = ("t", "alive", "wanted", "forbidden")
        return {key: getattr(self, key) for key in keys} | {"generator": self.generator.get_state()}

    def set_state(self, state):
        self.generator.set_state(state["generator"])
        for key in ("t", "alive", "wanted", "forbidden"):
            setattr(self, key, state[key])
