"""RLlib's `MultiAgentEnv`s, batched, against a plain loop over one."""

import copy
import importlib

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry, register_env
from rllib_hypermarl.envs.pettingzoo_copies import episode_seed

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl import env as envs
from rllib_hypermarl.errors import ConfigError
from tests import rllib_envs
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


# -------------------------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("died", "cut", "ends", "alive", "final_alive"),
    [
        ({}, {}, (False, False), [True, True], [True, True]),
        ({"a": True, "__all__": False}, {}, (False, False), [False, True], [False, True]),
        ({}, {"b": True}, (False, False), [True, False], [True, True]),
        ({"__all__": True}, {}, (True, False), [True, True], [True, True]),
        ({"__all__": True}, {"__all__": True}, (True, False), [True, True], [True, True]),
        ({}, {"__all__": True}, (False, True), [True, True], [True, True]),
        # as MultiAgentCartPole says it when the last ones' time is up: what is said of an agent alone counts first
        ({"a": False, "b": False, "__all__": True}, {"a": True, "b": True}, (False, True), [True, True], [True, True]),
        ({"a": True}, {"__all__": True}, (False, True), [True, True], [False, True]),
        ({"__all__": True}, {"b": True}, (False, True), [True, True], [False, True]),
        ({"a": True}, {"b": True}, (False, True), [True, True], [False, True]),  # and nobody says `__all__`
    ],
)
def test_terminated_and_truncated(died, cut, ends, alive, final_alive):
    env = make("tests.rllib_envs:Told", num_envs=1, died=died, cut=cut)
    env.reset(0)
    step = env.step(torch.zeros(1, 2, dtype=torch.int64))
    assert (bool(step.terminated), bool(step.truncated)) == ends
    everybody = torch.ones(1, 2, dtype=torch.bool)
    assert (everybody if step.alive is None else step.alive).tolist() == [alive]
    assert (everybody if step.final_alive is None else step.final_alive).tolist() == [final_alive]
    assert step.reward.tolist() == [[0.0, 1.0]] and step.action_mask is None
    if any(ends):
        assert step.obs.flatten().tolist() == [0.0, 0.0]
        assert step.final_obs.flatten()[1] == 1.0


def test_who_waits_keeps_its_observation_and_is_paid():
    env = make("tests.rllib_envs:Told", num_envs=1, then=["a"], turns=True)
    assert env.reset(0).action_mask.all()
    step = env.step(torch.ones(1, 2, dtype=torch.int64))
    assert step.obs.flatten().tolist() == [1.0, 0.0] and step.reward.tolist() == [[0.0, 1.0]]
    assert step.action_mask.tolist() == [[[True, True], [True, False]]] and step.alive is None


# ------------------------------------------------------------------------------------------------------------- making


def test_envs_are_called_as_rllib_calls_them():
    copies = make("tests.rllib_envs:Told", refuse=False, nested={"a": [1]})._copies._envs
    contexts = [copy._env.context for copy in copies]
    assert [context.vector_index for context in contexts] == [0, 1, 2]
    for context in contexts:
        assert isinstance(context, EnvContext) and context == {"nested": {"a": [1]}} and context.worker_index == 0
    assert contexts[0]["nested"] is not contexts[1]["nested"]


@pytest.mark.parametrize("config", [{"possible_agents": {"b", "a"}}, {"agent_ids": {"b", "a"}}])
def test_sets_of_agents_are_sorted(config):
    assert make("tests.rllib_envs:Told", **config).agents == ("a", "b")


def test_registered_names():
    register_env("told", lambda config: rllib_envs.Told(config))
    try:
        env = make("told", spaces=True)
        assert env.agents == ("a", "b") and env.reset(0).obs.shape == (3, 2, 1)
    finally:
        _global_registry.unregister(ENV_CREATOR, "told")
    with pytest.raises(envs.UnknownEnvError, match=r"nobody has called ray\.tune\.register_env"):
        make("told")


# ----------------------------------------------------------------------------------------------------------- refusals

BOX = gym.spaces.Box(-1, 1, (2,))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("tests.rllib_envs:Told", {"possible_agents": []}, "Told has no possible_agents: set them"),
        (f"{EXAMPLES}:GuessTheNumberGame", {}, "GuessTheNumberGame has no possible_agents: set them"),
        ("tests.rllib_envs:Told", {"possible_agents": [1, "1"]}, r"agents are called the same: \['1', '1'\]"),
        ("tests.rllib_envs:Told", {"possible_agents": ["c"]}, r"KeyError in get_observation_space\('c'\)"),
        ("tests.rllib_envs:Told", {"spaces": False}, "the observation space of a is None: set observation_spaces in"),
        ("tests.rllib_envs:Told", {"refuse": True}, "env_config {'refuse': True}: 'map'"),
        ("tests.rllib_envs:Told", {"turns": "yes"}, "turns must be true, false or null, not 'yes'"),
        ("tests.rllib_envs:Told", {"turns": True, "actions": BOX}, "turns is true, but actions of a are Box.*: where"),
        ("tests.rllib_envs:Told", {"actions": gym.spaces.MultiDiscrete([[2, 2]])}, "actions of a are .* supported are"),
        ("tests.rllib_envs:no_env", {}, "no_env returns .*, which is no MultiAgentEnv .*make_multi_agent"),
        ("tests.rllib_envs:nothing", {}, "cannot be imported: .*nothing"),
        ("tests.rllib_envs:EXAMPLES", {}, "cannot be imported: .*EXAMPLES"),
        ("tests.rllib_envs:__doc__", {}, "is .*: expected a MultiAgentEnv class, or a function"),
        ("no_such_module:Env", {}, "cannot be imported: No module named 'no_such_module'"),
    ],
)
def test_what_is_refused(name, config, message):
    with pytest.raises(envs.UnknownEnvError, match=message):
        make(name, **config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"then": ["a"]}, "env 'rllib/tests.rllib_envs:Told', copy 0: b is neither .* env_config needs turns: true"),
        ({"then": ["a"], "actions": BOX}, "b is neither observed nor done: it waits, and actions of a are Box"),
        ({"died": {"b": True}}, "copy 0: b was terminated or truncated, and is observed again in the same episode"),
        ({"then": ["a", "b", "c"]}, "copy 0: 'c' is observed, but not among the env's possible_agents"),
    ],
)
def test_what_goes_wrong_in_an_episode(config, message):
    env = make("tests.rllib_envs:Told", num_envs=1, **config)
    env.reset(0)
    width = (2,) if "actions" in config else ()
    with pytest.raises(envs.EnvError, match=message):
        for _ in range(2):
            env.step(torch.zeros((1, 2, *width), dtype=torch.float32 if width else torch.int64))


def test_an_episode_begins_with_somebody():
    with pytest.raises(envs.EnvError, match="copy 0: an episode begins without agents"):
        make("tests.rllib_envs:Told", num_envs=1, first=[]).reset(0)


def test_a_stranger_at_the_first_reset():
    with pytest.raises(envs.EnvError, match=r"env 'rllib/tests\.rllib_envs:Told': 'c' is observed, but not among"):
        make("tests.rllib_envs:Told", first=["a", "c"])


def test_a_class_is_told_how_to_be_named():
    with pytest.raises(ConfigError, match="env is 'Told': of a MultiAgentEnv class, give the name: 'rllib/my_module"):
        HyperMARLConfig().environment(rllib_envs.Told).validate()
