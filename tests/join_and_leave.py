"""A game for RLlib's own machinery, in which agents come and go."""

import gymnasium as gym
import numpy as np
from ray.rllib.env.multi_agent_env import MultiAgentEnv

LIFE = {"early": (0, 6), "always": (0, 8), "late": (3, 8)}
"""The first step in which an agent acts, and the first in which it does not."""
STEPS = sum(last - first for first, last in LIFE.values())


class JoinAndLeave(MultiAgentEnv):
    """Everybody sees two bits; `early` is paid for naming the first, the others for naming the second."""

    def __init__(self, config=None):
        self.possible_agents = self.agents = list(LIFE)
        space = gym.spaces.Box(0.0, 1.0, (2,), np.float32)
        self.observation_spaces = dict.fromkeys(LIFE, space)
        self.action_spaces = dict.fromkeys(LIFE, gym.spaces.Discrete(2))
        super().__init__()
        self.rng = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.t = 0
        return self._observe()

    def step(self, action_dict):
        assert set(action_dict) == set(self.bits)
        asked = {agent: self.bits[agent][0 if agent == "early" else 1] for agent in action_dict}
        rewards = {agent: float(action == asked[agent]) for agent, action in action_dict.items()}
        self.t += 1
        terminated = {agent: self.t == LIFE[agent][1] for agent in action_dict} | {"__all__": self.t == 8}
        last = {agent: self._draw() for agent, over in terminated.items() if over and agent != "__all__"}
        observations, infos = self._observe()
        return observations | last, rewards, terminated, {"__all__": False}, infos | {agent: {} for agent in last}

    def _observe(self):
        self.bits = {agent: self._draw() for agent, (first, last) in LIFE.items() if first <= self.t < last}
        return dict(self.bits), {agent: {} for agent in self.bits}

    def _draw(self):
        return self.rng.integers(0, 2, 2).astype(np.float32)
