"""A game whose spaces do not depend on the number of agents: teams of all sizes can play it."""

import gymnasium as gym
import torch

from rllib_hypermarl import BatchedEnv, Step


class Sides(BatchedEnv):
    """Every agent takes the left or the right side, which has room for half of the team: where k agents stand and m
    have room, each is paid m / k, 1 at most. One move, then a new episode.
    """

    def __init__(self, num_envs, device, n_agents=4, continuous=False):
        self.num_envs, self.device, self.max_episode_steps = num_envs, device, 1
        self.agents = tuple(f"agent_{i}" for i in range(n_agents))
        space = gym.spaces.Box(-1, 1, (1,)) if continuous else gym.spaces.Discrete(2)
        self.observation_spaces = {agent: gym.spaces.Box(0, 1, (2,)) for agent in self.agents}
        self.action_spaces = dict.fromkeys(self.agents, space)
        self.continuous = continuous

    def reset(self, seed=None):
        obs = torch.ones(self.num_envs, len(self.agents), 2, device=self.device)
        none = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return Step(obs, torch.zeros_like(obs[..., 0]), none, none, obs)

    def step(self, actions):
        sides = actions.squeeze(-1) > 0 if self.continuous else actions
        crowd = (sides.unsqueeze(2) == sides.unsqueeze(1)).sum(-1)
        reward = (len(self.agents) / 2 / crowd).clamp_max(1)
        step = self.reset()
        return Step(step.obs, reward, ~step.terminated, step.truncated, step.final_obs)
