"""RLlib's `MultiAgentEnv`s to test with."""

import random

import gymnasium as gym
import numpy as np
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.examples.envs.classes.multi_agent.guess_the_number_game import GuessTheNumberGame
from ray.rllib.examples.envs.classes.multi_agent.tic_tac_toe import TicTacToe


class Seeded(TicTacToe):
    """RLlib's draws who begins from the generator that all copies in a process share, and lets nobody cut it short."""

    def __init__(self, config):
        super().__init__(config)
        self.max_timesteps = config.get("max_timesteps", self.max_timesteps)

    def reset(self, *, seed=None, options=None):
        random.seed(seed)
        return super().reset(seed=seed, options=options)


class Guess(GuessTheNumberGame):
    """RLlib's is from before there were `possible_agents`."""

    def __init__(self, config):
        super().__init__(config)
        self.agents = self.possible_agents = [0, 1]


class Guild(MultiAgentEnv):
    """Unlike agents. In every step each may die, or leave by its own time, or the whole episode end either way; `late`
    comes at the third. Some are not paid at times, whoever is done or has not come is never told of.

    Args:
        config: `masks`: where agents are told what they may do: `observation`, `info` or None; some are told nothing at
            times. `continuous`: actions. `waits`: whether agents may not be observed for a while, and be paid then.
    """

    SIZES: dict = {"late": 4, 7: 2, "always": 3}  # noqa: RUF012
    CHOICES: dict = {"late": [5], 7: [2, 4], "always": [3]}  # noqa: RUF012

    def __init__(self, config):
        super().__init__()
        self.masks, self.waits = config.get("masks"), config.get("waits", False)
        self.possible_agents = list(self.SIZES)
        self.observation_spaces = {a: gym.spaces.Box(-9, 9, (n,), np.float64) for a, n in self.SIZES.items()}
        self.action_spaces = {
            a: gym.spaces.Discrete(*own) if len(own) == 1 else gym.spaces.MultiDiscrete(own)
            for a, own in self.CHOICES.items()
        }
        if config.get("continuous"):
            self.action_spaces = {a: gym.spaces.Box(-1, 1, (1 + n,)) for n, a in enumerate(self.SIZES)}
        if self.masks == "observation":
            self.observation_spaces = {
                a: gym.spaces.Dict({"observations": space, "action_mask": gym.spaces.MultiBinary(sum(self.CHOICES[a]))})
                for a, space in self.observation_spaces.items()
            }

    def reset(self, *, seed=None, options=None):
        self.random, self.t, self.there = np.random.default_rng(seed), 0, [7, "always"]
        self.vectors = {agent: np.zeros(size) for agent, size in self.SIZES.items()}
        return self.look(self.there)

    def look(self, agents):
        self.asked, self.allowed, obs, infos = list(agents), {}, {}, {}
        for vector in self.vectors.values():  # also of those that keep theirs, and wait
            vector[:] = self.random.normal(size=len(vector))
        for agent in agents:
            obs[agent], infos[agent] = self.vectors[agent], {}
            mask = self.allowed[agent] = self.draw_mask(agent)
            if self.masks == "observation":
                obs[agent] = {"observations": self.vectors[agent], "action_mask": mask}
            elif self.masks == "info" and agent == "always" and self.t % 2:
                mask[:] = 1  # and it is told nothing
            elif self.masks == "info":
                infos[agent]["action_mask"] = mask
        return obs, infos

    def draw_mask(self, agent):
        parts = [(self.random.random(n) < 0.6).astype(np.int8) for n in self.CHOICES[agent]]
        for part in parts:
            part[self.random.integers(len(part))] = 1
        return np.concatenate(parts)

    def step(self, action_dict):
        assert set(action_dict) == set(self.asked)
        for agent, action in action_dict.items():
            assert self.action_spaces[agent].contains(action), (agent, action)
            if self.masks:
                starts = np.cumsum([0, *self.CHOICES[agent][:-1]])
                assert self.allowed[agent][starts + np.ravel(action)].all(), (agent, action)
        self.t += 1
        end, before = self.random.random(), self.there
        fate = {agent: self.random.random() for agent in before}
        died = {agent: True for agent in before if fate[agent] < 0.08}
        cut = {agent: fate[agent] > 0.92 for agent in before}
        self.there = [agent for agent in before if not (died.get(agent) or cut[agent])]
        if self.t == 3:
            self.there = ["late", *self.there]
        died["__all__"], cut["__all__"] = end < 0.06 or not self.there, end > 0.94
        looking = [a for a in self.there if not (self.waits and self.random.random() < 0.4)] or self.there
        looking = [*looking, *(agent for agent in before if cut[agent])]
        if died["__all__"] or cut["__all__"]:
            looking = self.possible_agents  # whoever they were, and whether they had come
        rewards = {agent: self.random.normal() for agent in before if self.random.random() < 0.8}
        obs, infos = self.look(looking)
        self.asked = [agent for agent in looking if agent in self.there]
        return obs, rewards, died, cut, infos


class Told(MultiAgentEnv):
    """Two agents, of whom is said what `config` says.

    Args:
        config: `possible_agents`; `actions`: their space; `spaces`: whether there are any; `first`, `then`: who is
            observed after resets and after steps; `died`, `cut`: what every step says of that; `refuse`: not to be.
    """

    def __init__(self, config):
        self._agent_ids = config.pop("agent_ids", set())
        super().__init__()
        self.context, self.config = config, {"first": ["a", "b"], "then": ["a", "b"], **config}
        if config.pop("refuse", False):
            raise KeyError("map")
        if not self._agent_ids:
            self.possible_agents = config.get("possible_agents", ["a", "b"])
        if config.get("spaces", True):
            self.observation_spaces = dict.fromkeys("ab", gym.spaces.Box(-99, 99, (1,)))
            self.action_spaces = dict.fromkeys("ab", config.get("actions", gym.spaces.Discrete(2)))

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.observe("first"), {}

    def observe(self, when):
        return {agent: np.full(1, self.t, np.float32) for agent in self.config[when]}

    def step(self, action_dict):
        self.t += 1
        rewards = {"a": None, "b": 1}
        return self.observe("then"), rewards, self.config.get("died", {}), self.config.get("cut", {}), {"a": None}


def no_env(config):
    return gym.make("CartPole-v1")
