"""PettingZoo envs to test with: one that does what its actions say, and functions that return unusual ones."""

import ctypes
import os
import signal
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
from pettingzoo.utils.env import ParallelEnv

(
    GO_ON, TERMINATE, TRUNCATE, ONE_DIES, ONE_TERMINATES, FORGET, WIDEN, RAISE, EXIT, KILLED, HANG, HANG_IN_C
) = range(12)  # fmt: skip


class Base(ParallelEnv):
    """Two agents with equal spaces, which live equally long."""

    metadata: dict = {}  # noqa: RUF012  (as PettingZoo has it)
    render_mode = None

    def __init__(self, possible_agents, observation_space, action_space):
        self.possible_agents = possible_agents
        self.observation_spaces = dict.fromkeys(possible_agents, observation_space)
        self.action_spaces = dict.fromkeys(possible_agents, action_space)

    def observation_space(self, agent):
        return self.observation_spaces[agent]

    def action_space(self, agent):
        return self.action_spaces[agent]

    def infos(self):
        return {agent: {} for agent in self.possible_agents}


class Puppet(Base):
    """The first agent's action says what happens. Agents observe the seed and the time.

    Args:
        crash_once: a file; a step that finds it removes it and ends the process.
        stillborn: whether resets end the process, but for the first one, in which the env is looked at.
    """

    def __init__(self, num_actions=12, crash_once=None, stillborn=False):
        observations = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        super().__init__(["left", "right"], observations, gym.spaces.Discrete(num_actions))
        self.crash_once, self.stillborn = crash_once and Path(crash_once), stillborn

    def state(self):
        return np.array([self.start, self.t, -1.0])

    def reset(self, seed=None, options=None):
        if self.stillborn and seed:
            os._exit(7)
        self.agents, self.start, self.t = self.possible_agents[:], seed % 1000 / 1000, 0
        return self.observe(), self.infos()

    def observe(self, width=1):
        observation = np.array([self.start] * width + [self.t])
        return {"left": observation, "right": -observation}

    def step(self, actions):
        what = int(np.ravel(actions["left"])[0])
        self.t += 1
        self.crash(what)
        observations = self.observe(3 if what == WIDEN else 1)
        if what == FORGET:
            del observations["right"]
        rewards = {"left": float(self.t), "right": -0.5}
        terminated = {"left": what in (TERMINATE, ONE_DIES, ONE_TERMINATES), "right": what == TERMINATE}
        truncated = {"left": what == TRUNCATE, "right": what in (TRUNCATE, ONE_TERMINATES)}
        if what in (TERMINATE, TRUNCATE):
            self.agents = []
        return observations, rewards, terminated, truncated, self.infos()

    def crash(self, what):
        if self.crash_once and self.crash_once.exists():
            self.crash_once.unlink()
            os._exit(3)
        if what == RAISE:
            raise RuntimeError("the string\nbroke")
        if what == EXIT:
            os._exit(3)
        if what == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == HANG:
            time.sleep(1000)
        if what == HANG_IN_C:
            ctypes.PyDLL(None).sleep(1000)  # no other thread of Python's runs meanwhile


class Wanderers(Base):
    """Two agents choose two directions each; ends come at random, of both kinds, from the env's own stream."""

    def __init__(self):
        space = gym.spaces.Dict({"place": gym.spaces.Box(-9, 9, (2,)), "room": gym.spaces.Discrete(3)})
        super().__init__(["b", "a"], space, gym.spaces.MultiDiscrete([3, 2]))

    def reset(self, seed=None, options=None):
        self.random = np.random.default_rng(seed)
        self.agents = self.possible_agents[:]
        self.places = {agent: self.random.normal(size=2).astype(np.float32) for agent in self.agents}
        return self.observe(), self.infos()

    def observe(self):
        return {agent: {"place": place, "room": int(abs(place[0])) % 3} for agent, place in self.places.items()}

    def step(self, actions):
        for agent, (x, y) in actions.items():
            self.places[agent] = self.places[agent] + np.array([x - 1, y], np.float32) + self.random.normal() / 9
        end = self.random.random()
        terminated, truncated = (dict.fromkeys(self.agents, flag) for flag in (end < 0.15, end > 0.85))
        rewards = {agent: float(place[0]) for agent, place in self.places.items()}
        if not 0.15 <= end <= 0.85:
            self.agents = []
        return self.observe(), rewards, terminated, truncated, self.infos()


def aec_spread(**kwargs):
    """An AEC env, which PettingZoo converts."""
    from mpe2 import simple_spread_v3

    return simple_spread_v3.env(**kwargs)


def turns():
    from pettingzoo.classic import tictactoe_v3

    return tictactoe_v3.env()


def with_spaces(observations=None, actions=None):
    """A Puppet whose second agent has these."""
    env = Puppet()
    if observations is not None:
        env.observation_spaces["right"] = observations
    if actions is not None:
        env.action_spaces["right"] = actions
    return env


class Masked(Puppet):
    """Tells in infos what is allowed."""

    def infos(self):
        return {agent: {"action_mask": np.ones(12, np.int8)} for agent in self.possible_agents}


class Late(Puppet):
    """Begins with one agent."""

    def observe(self, width=1):
        return {"left": super().observe(width)["left"]}


def not_an_env():
    return gym.make("CartPole-v1")
