"""Environments that break the contract, each in one way."""

import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from rllib_hypermarl import BatchedEnv, Step


class GoodEnv(BatchedEnv):
    """Two agents, episodes of `horizon` steps, an own random stream: keeps the contract, and cannot save its state."""

    def __init__(self, num_envs, device="cpu", horizon=5):
        self.num_envs, self.device, self.max_episode_steps = num_envs, torch.device(device), horizon
        self.agents = ("left", "right")
        self.observation_spaces = {agent: gym.spaces.Box(-1.0, 1.0, (3,), np.float32) for agent in self.agents}
        self.action_spaces = {agent: gym.spaces.Discrete(2) for agent in self.agents}
        self.t = 0

    def reset(self, seed=None):
        self.t = 0
        return self.make_step(ended=False)

    def step(self, actions):
        self.t += 1
        return self.make_step(ended=self.t % self.max_episode_steps == 0)

    def make_step(self, ended):
        obs = torch.full((self.num_envs, 2, 3), 0.1 * (self.t % self.max_episode_steps))
        never = torch.zeros(self.num_envs, dtype=torch.bool)
        return Step(obs, torch.ones(self.num_envs, 2), never, torch.full_like(never, ended), obs.clone())


class NaNEnv(GoodEnv):
    """A NaN in `field`, for the agent `right`, from `first` on."""

    def __init__(self, num_envs, device="cpu", horizon=5, field="reward", first=3):
        super().__init__(num_envs, device, horizon)
        self.field, self.first = field, first

    def make_step(self, ended):
        step = super().make_step(ended)
        if self.t >= self.first:
            getattr(step, self.field)[2, 1] = float("nan")
        return step


class ShapeEnv(GoodEnv):
    """A wrong shape or type in `field`, from `first` on."""

    def __init__(self, num_envs, device="cpu", field="obs", first=3):
        super().__init__(num_envs, device)
        self.field, self.first = field, first

    def make_step(self, ended):
        step = super().make_step(ended)
        if self.t >= self.first:
            value = getattr(step, self.field)
            wrong = value.float() if value.dtype == torch.bool else value[:, :1]
            setattr(step, self.field, wrong)
        return step


class RaisingEnv(GoodEnv):
    """Raises in the middle of an episode, with a message of two lines."""

    def step(self, actions):
        if self.t >= 12:
            raise KeyError("the simulator\nfell over")
        return super().step(actions)


class RaisingResetEnv(GoodEnv):
    def reset(self, seed=None):
        raise RuntimeError("no licence")


class SlowToMakeEnv(GoodEnv):
    """Writes an empty file as its construction begins; that takes two minutes."""

    def __init__(self, num_envs, device="cpu", file=""):
        Path(file).touch()
        time.sleep(120)
        super().__init__(num_envs, device)


class SlowEnv(GoodEnv):
    """Sleeps `seconds` in each of its first 8 steps, and `later` in the others."""

    def __init__(self, num_envs, device="cpu", horizon=5, seconds=0.3, later=5.0):
        super().__init__(num_envs, device, horizon)
        self.seconds, self.later = seconds, later

    def step(self, actions):
        time.sleep(self.seconds if self.t < 8 else self.later)
        return super().step(actions)


class MaskEnv(GoodEnv):
    """A wrong shape in an optional field."""

    def __init__(self, num_envs, device="cpu", field="action_mask"):
        super().__init__(num_envs, device)
        self.field = field

    def make_step(self, ended):
        step = super().make_step(ended)
        setattr(step, self.field, torch.ones(self.num_envs, 2, 3, dtype=torch.bool))
        return step
