"""PettingZoo envs to test with: one that does what its actions say, and functions that return unusual ones."""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
from pettingzoo.utils.env import AECEnv, ParallelEnv

(
    GO_ON, TERMINATE, TRUNCATE, ONE_DIES, ONE_TERMINATES, FORGET, WIDEN, RAISE, EXIT, KILLED, HANG, HANG_IN_C, VANISH
) = range(13)  # fmt: skip


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

    def __init__(self, num_actions=13, crash_once=None, stillborn=False):
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
        if what == VANISH:
            self.agents = ["left"]
        return observations, rewards, terminated, truncated, self.infos()

    def crash(self, what):
        if self.crash_once:
            with contextlib.suppress(FileNotFoundError):
                self.crash_once.unlink()  # one call: of two workers that find it at once, one crashes
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


class Travellers(ParallelEnv):
    """Unlike agents; who is there may leave in every step, by death or by its own time, and `late` comes at the third.
    After eight steps, time is up for all that are left.

    Args:
        masks: where agents are told what they may do: `observation`, `info` or None. Some are told nothing at times.
        continuous: actions.
        returns: whether `early` comes back at the sixth step.
    """

    metadata: dict = {}  # noqa: RUF012
    render_mode = None

    SIZES: dict = {"late": 4, "early": 2, "always": 3}  # noqa: RUF012

    def __init__(self, masks=None, continuous=False, returns=True):
        self.possible_agents, self.masks, self.returns = ["late", "early", "always"], masks, returns
        self.choices = {"late": [5], "early": [2, 4], "always": [3]}
        vectors = {agent: gym.spaces.Box(-9, 9, (size,), np.float64) for agent, size in self.SIZES.items()}
        self.actions = {
            "late": gym.spaces.Discrete(5), "early": gym.spaces.MultiDiscrete([2, 4]), "always": gym.spaces.Discrete(3)
        }  # fmt: skip
        if continuous:
            self.actions = {a: gym.spaces.Box(-1, 1, (1 + n,)) for n, a in enumerate(self.possible_agents)}
        self.observations = vectors
        if masks == "observation":
            self.observations = {
                agent: gym.spaces.Dict(
                    {"observation": space, "action_mask": gym.spaces.MultiBinary(sum(self.choices[agent]))}
                )
                for agent, space in vectors.items()
            }

    def observation_space(self, agent):
        return self.observations[agent]

    def action_space(self, agent):
        return self.actions[agent]

    def state(self):
        return np.array([self.t, len(self.agents)])

    def reset(self, seed=None, options=None):
        self.random, self.t, self.agents = np.random.default_rng(seed), 0, ["early", "always"]
        return self.look(self.agents)

    def look(self, agents):
        """Observations and infos."""
        self.allowed = {agent: self.draw_mask(agent) for agent in agents}
        obs = {agent: self.random.normal(size=self.SIZES[agent]) for agent in agents}
        infos = {agent: {} for agent in agents}
        if self.masks == "observation":
            obs = {agent: {"observation": x, "action_mask": self.allowed[agent]} for agent, x in obs.items()}
        elif self.masks == "info":
            for agent in agents:
                if agent == "always" and self.t % 2:
                    self.allowed[agent][:] = 1  # and it is told nothing
                else:
                    infos[agent]["action_mask"] = self.told(agent)
        return obs, infos

    def told(self, agent):
        mask = self.allowed[agent]
        return (mask[:2], mask[2:]) if agent == "early" else mask

    def draw_mask(self, agent):
        parts = [(self.random.random(n) < 0.6).astype(np.int8) for n in self.choices[agent]]
        for part in parts:
            part[self.random.integers(len(part))] = 1
        return np.concatenate(parts)

    def step(self, actions):
        assert set(actions) == set(self.agents)
        for agent, action in actions.items():
            assert self.actions[agent].contains(action), (agent, action)
            if self.masks:
                starts = np.cumsum([0, *self.choices[agent][:-1]])
                assert self.allowed[agent][starts + np.ravel(action)].all(), (agent, action)
        self.t += 1
        acted = self.agents
        fate = {agent: self.random.random() for agent in acted}
        died = {agent: x < 0.12 for agent, x in fate.items()}
        cut = {agent: x > 0.88 or self.t == 8 for agent, x in fate.items()}
        self.agents = [agent for agent in acted if not (died[agent] or cut[agent])]
        come = {3: "late", 6: "early" if self.returns else None}.get(self.t)
        if self.agents and come and come not in acted:
            self.agents = [come, *self.agents]
        obs, infos = self.look([*acted, *(agent for agent in self.agents if agent not in acted)])
        rewards = {agent: float(np.sum(actions[agent])) + self.t for agent in acted}
        return obs, rewards, died, cut, infos


class Sloppy(Puppet):
    """Leaves agents that ended among its agents, and says of them every time that they ended."""

    def step(self, actions):
        results = super().step(actions)
        self.dead = getattr(self, "dead", set()) if self.t > 1 else set()
        self.dead |= {agent for agent, died in results[2].items() if died}
        results[2].update(dict.fromkeys(self.dead, True))
        return results


def aec_spread(**kwargs):
    """An AEC env, which PettingZoo converts."""
    from mpe2 import simple_spread_v3

    return simple_spread_v3.env(**kwargs)


class TurnsInFloats(AECEnv):
    """Turns, with actions that cannot be masked."""

    metadata: dict = {}  # noqa: RUF012
    possible_agents = ("a", "b")

    def action_space(self, agent):
        return gym.spaces.Box(-1, 1, (2,))


def with_spaces(observations=None, actions=None):
    """A Puppet whose second agent has these."""
    env = Puppet()
    if observations is not None:
        env.observation_spaces["right"] = observations
    if actions is not None:
        env.action_spaces["right"] = actions
    return env


class Masked(Puppet):
    """Tells in infos what is allowed, from the given step on.

    Args:
        size: of the mask.
    """

    def __init__(self, size=13, since=0):
        super().__init__()
        self.size, self.since = size, since

    def infos(self):
        told = {"action_mask": np.ones(self.size, np.int8)} if self.t >= self.since else {}
        return dict.fromkeys(self.possible_agents, told)


class Absent(Puppet):
    """Says that an agent is there, and nothing of what it observes; or that nobody is, or a stranger.

    Args:
        agents: those that it says are there.
    """

    def __init__(self, agents=("left", "right")):
        super().__init__()
        self.say = list(agents)

    def reset(self, seed=None, options=None):
        obs, infos = super().reset(seed, options)
        self.agents = self.say
        return {"left": obs["left"]}, infos


def not_an_env():
    return gym.make("CartPole-v1")
