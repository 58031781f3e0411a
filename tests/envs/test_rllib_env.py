"""RLlib's `MultiAgentEnv`s, batched, against a plain loop over one."""

import copy
import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rllib_hypermarl.envs.pettingzoo_copies import episode_seed

from rllib_hypermarl import env as envs
from tests.envs.pettingzoo_reference import FIELDS, Team, compare, counts, play, record

EXAMPLES = "ray.rllib.examples.envs.classes.multi_agent"
GUILD = "tests.rllib_envs:Guild"
# name, env_config, our own keys, whether episodes end by termination and by truncation, whether agents are absent
ENVS = [
    (f"{EXAMPLES}:MultiAgentCartPole", {"num_agents": 4}, {}, (True, False, True)),
    (f"{EXAMPLES}:MultiAgentPendulum", {"num_agents": 2}, {}, (False, False, False)),
    (f"{EXAMPLES}.rock_paper_scissors:RockPaperScissors", {"sheldon_cooper_mode": True}, {}, (True, False, False)),
    ("tests.rllib_envs:Seeded", {"max_timesteps": 12}, {}, (True, True, True)),
    ("tests.rllib_envs:Guess", {"max_steps": 5}, {}, (True, True, True)),
    (GUILD, {}, {"turns": False}, (True, True, True)),
    (GUILD, {"continuous": True}, {}, (True, True, True)),
    (GUILD, {"masks": "observation"}, {}, (True, True, True)),
    (GUILD, {"masks": "info"}, {"turns": False}, (True, True, True)),
    (GUILD, {"waits": True}, {}, (True, True, True)),
    (GUILD, {"waits": True, "masks": "observation"}, {"turns": True}, (True, True, True)),
    (GUILD, {"waits": True, "masks": "info"}, {}, (True, True, True)),
]
IDS = ["-".join([name.partition(":")[2], *(f"{key}={value}" for key, value in config.items())])
       for name, config, *_ in ENVS]  # fmt: skip
STEPS = 60


def make(name, num_envs=3, **env_config):
    return envs.make(f"rllib/{name}", num_envs=num_envs, **env_config)


class Plain:
    """One env; agents are named as ours are, nothing else is done to what it says."""

    def __init__(self, name, config):
        module, _, attr = name.partition(":")
        self.env = getattr(importlib.import_module(module), attr)(dict(config))
        self.ids = {str(one): one for one in self.env.possible_agents}
        self.possible_agents = list(self.ids)

    def observation_space(self, agent):
        return self.env.get_observation_space(self.ids[agent])

    def action_space(self, agent):
        return self.env.get_action_space(self.ids[agent])

    def named(self, values):
        return {str(one): copy.deepcopy(value) for one, value in values.items()}

    def reset(self, seed):
        return map(self.named, self.env.reset(seed=seed))

    def step(self, actions):
        return map(self.named, self.env.step({self.ids[agent]: action for agent, action in actions.items()}))


class Loop:
    """The plain loop over one copy, and what it keeps in mind: who is there, and what each of them observed last."""

    def __init__(self, name, config, seed, number, masked):
        self.plain, self.key, self.masked, self.episode = Plain(name, config), (seed, number), masked, 0
        self.team = Team(self.plain)

    def begin(self):
        self.obs, self.infos = self.plain.reset(episode_seed(*self.key, self.episode))
        self.last, self.there = dict(self.obs), set(self.obs)
        self.episode += 1

    def acting(self):
        return [agent for agent in self.team.agents if agent in self.obs and agent in self.there]

    def masks(self):
        if not self.masked:
            return None
        acting = self.acting()
        waiting = {
            agent: np.concatenate([np.arange(n) == 0 for n in counts(self.plain.action_space(agent))])
            for agent in self.there.difference(acting)
        }
        return self.team.masks(self.team.allowed(self.obs, self.infos, acting) | waiting, self.there)

    def observed(self, who):
        return self.team.observed(self.last, who)

    def first(self):
        self.begin()
        obs, flags = self.observed(self.there), self.team.flags(self.there)
        return obs, np.zeros(len(flags)), False, False, obs, None, None, flags, flags, self.masks()

    def step(self, row):
        """Returns what a `Step` should hold, by `Step`'s and RLlib's own words."""
        before = self.there
        actions = self.team.own_actions(row, self.acting())
        self.obs, reward, died, cut, self.infos = self.plain.step(actions)
        self.last.update(self.obs)
        known = before.union(self.obs)
        ended = {agent: "died" if died.get(agent) else "cut" for agent in known if died.get(agent) or cut.get(agent)}
        over = died["__all__"] or cut.get("__all__", False)
        if over:
            ended = dict.fromkeys(before, "died" if died["__all__"] else "cut") | ended
        self.there = set() if over else known.difference(ended)
        over = not self.there
        rewards = [reward.get(agent, 0) if agent in before else 0 for agent in self.team.agents]
        survivors = {agent for agent in before if ended.get(agent) != "died"}
        terminated = over and not survivors
        final = before if terminated else survivors | self.there
        final_obs = self.observed(final)
        if over:
            self.begin()
        return (
            self.observed(self.there), rewards, terminated, over and not terminated, final_obs, None, None,
            self.team.flags(self.there), self.team.flags(final), self.masks(),
        )  # fmt: skip


def reference(name, config, seed, actions, masked):
    """What `Step`s should hold after the reset and after each of the actions `[T, E, N, ...]`."""
    steps = [{field: [] for field in FIELDS} for _ in range(len(actions) + 1)]
    for number in range(actions.shape[1]):
        loop = Loop(name, config, seed, number, masked)
        record(steps[0], *loop.first())
        for step, row in zip(steps[1:], actions[:, number], strict=True):
            record(step, *loop.step(row))
    return steps


@pytest.mark.parametrize(("name", "config", "keys", "seen"), ENVS, ids=IDS)
def test_equals_a_plain_loop_step_by_step(name, config, keys, seen):
    env, found = make(name, **config, **keys), np.zeros(3, dtype=int)

    @settings(max_examples=3, deadline=None, derandomize=True, database=None)
    @given(seed=st.integers(0, 2**31 - 1))
    def check(seed):
        nonlocal found
        actions, steps = play(env, seed, STEPS)
        conform = envs.StepCheck(env, name)
        for step in steps:
            conform(step)
        found += compare(steps, reference(name, config, seed, actions, steps[0].action_mask is not None))

    check()
    assert tuple(found > 0) == seen
    env.close()
