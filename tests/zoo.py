"""PettingZoo envs to test with: one that does what its actions say, and functions that return unusual ones."""

import functools
import os
import signal
import time

import gymnasium as gym
import numpy as np
from pettingzoo.utils.env import ParallelEnv

GO_ON, TERMINATE, TRUNCATE, ONE_DIES, ONE_TERMINATES, FORGET, RAISE, EXIT, HANG, KILLED, WIDEN = range(11)


class Puppet(ParallelEnv):
    """Two agents; the first one's action says what happens. They observe the seed, the time, and nothing else.

    Args:
        infos: at reset, for every agent.
        first: the agents of a new episode.
        crash_at_start: how often `reset` ends the process, counted in a file of this name; to be `None` or a path.
    """

    metadata = {"name": "puppet"}
    render_mode = None

    def __init__(self, observation_space=None, action_space=None, infos=None, first=("left", "right"), crash=None):
        self.possible_agents, self.first, self.infos, self.crash = ["left", "right"], first, infos or {}, crash
        self.spaces = (
            observation_space or gym.spaces.Box(-np.inf, np.inf, (2,), np.float64),
            action_space or gym.spaces.Discrete(11),
        )

    def observation_space(self, agent):
        return self.spaces[0][agent] if isinstance(self.spaces[0], dict) else self.spaces[0]

    def action_space(self, agent):
        return self.spaces[1][agent] if isinstance(self.spaces[1], dict) else self.spaces[1]

    def state(self):
        return np.array([self.start, self.t, -1.0])

    def reset(self, seed=None, options=None):
        if self.crash and seed:  # not while it is being looked at
            os._exit(7)
        self.agents, self.start, self.t = list(self.first), seed % 1000 / 1000, 0
        return self.observe(), {agent: self.infos for agent in self.agents}

    def observe(self, width=1):
        first = np.array([self.start] * width + [self.t])
        return {agent: first * (1 if agent == "left" else -1) for agent in self.agents}

    def step(self, actions):
        what = int(np.ravel(actions["left"])[0])
        self.t += 1
        if what == RAISE:
            raise RuntimeError("the string\nbroke")
        if what == EXIT:
            os._exit(3)
        if what == HANG:
            time.sleep(1000)
        if what == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        observations = self.observe(3 if what == WIDEN else 1)
        if what == FORGET:
            del observations["right"]
        rewards = {"left": float(self.t), "right": -0.5}
        terminated = {
            "left": what == TERMINATE or what == ONE_DIES or what == ONE_TERMINATES,
            "right": what == TERMINATE,
        }
        truncated = {"left": what == TRUNCATE, "right": what == TRUNCATE or what == ONE_TERMINATES}
        if what in (TERMINATE, TRUNCATE):
            self.agents = []
        return observations, rewards, terminated, truncated, dict.fromkeys(self.possible_agents, {})


class Wanderers(ParallelEnv):
    """Two agents choose two directions each; ends come at random, of both kinds, from the env's own stream."""

    metadata = {"name": "wanderers"}
    render_mode = None

    def __init__(self):
        self.possible_agents = ["b", "a"]  # not in alphabetical order
        self.observation_spaces = {
            agent: gym.spaces.Dict({"place": gym.spaces.Box(-9, 9, (2,)), "room": gym.spaces.Discrete(3)})
            for agent in self.possible_agents
        }
        self.action_spaces = {agent: gym.spaces.MultiDiscrete([3, 2]) for agent in self.possible_agents}

    def observation_space(self, agent):
        return self.observation_spaces[agent]

    def action_space(self, agent):
        return self.action_spaces[agent]

    def reset(self, seed=None, options=None):
        self.random = np.random.default_rng(seed)
        self.agents = self.possible_agents[:]
        self.places = {agent: self.random.normal(size=2).astype(np.float32) for agent in self.agents}
        return self.observe(), {agent: {} for agent in self.agents}

    def observe(self):
        return {
            agent: {"place": self.places[agent], "room": int(abs(self.places[agent][0])) % 3} for agent in self.agents
        }

    def step(self, actions):
        for agent, (x, y) in actions.items():
            self.places[agent] = self.places[agent] + np.array([x - 1, y], np.float32) + self.random.normal() / 9
        end = self.random.random()
        terminated, truncated = (dict.fromkeys(self.agents, bool(flag)) for flag in (end < 0.15, end > 0.85))
        rewards = {agent: float(place[0]) for agent, place in self.places.items()}
        observations = self.observe()
        if not 0.15 <= end <= 0.85:
            self.agents = []
        return observations, rewards, terminated, truncated, dict.fromkeys(self.possible_agents, {})


def aec_spread(**kwargs):
    """An AEC env, which PettingZoo converts."""
    from mpe2 import simple_spread_v3

    return simple_spread_v3.env(**kwargs)


def turns():
    from pettingzoo.classic import tictactoe_v3

    return tictactoe_v3.env()


def masked(where):
    if where == "infos":
        return Puppet(infos={"action_mask": np.ones(11, np.int8)})
    flat = gym.spaces.Box(0, 1, (2,))
    return Puppet(gym.spaces.Dict({"observation": flat, "action_mask": gym.spaces.MultiBinary(11)}))


def pictures():
    return Puppet(gym.spaces.Box(0, 255, (8, 8, 3), np.uint8))


def unlike(kind):
    small, big = {
        "observation": (gym.spaces.Box(-1, 1, (2,)), gym.spaces.Box(-1, 1, (3,))),
        "action": (gym.spaces.Discrete(2), gym.spaces.Discrete(3)),
    }[kind]
    return Puppet(**{f"{kind}_space": {"left": small, "right": big}})


def from_one():
    return Puppet(action_space=gym.spaces.Discrete(3, start=1))


late = functools.partial(Puppet, first=("left",))


def not_an_env():
    return gym.make("CartPole-v1")
