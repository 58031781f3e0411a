"""Bundles of random teams, of every kind of actions, and what they do locally."""

import dataclasses

import gymnasium as gym
import numpy as np
import torch

from rllib_hypermarl import save_bundle
from rllib_hypermarl.nets import ActionSpec, HeadSpec, ModelSpec, TeamNet
from rllib_hypermarl.serving.team import ServedTeam, answer

AGENTS = ("scout_0", "scout_1", "carrier", "guard")
OBS = 6
KINDS = {
    "discrete": ActionSpec(choices=(9,)),
    "multi_discrete": ActionSpec(choices=(3, 2, 4)),
    "clip": ActionSpec(low=(-1.0, 0.0), high=(1.0, 0.5)),
    "per_policy": ActionSpec(low=(-1.0,), high=(1.0,), log_std="per_policy"),
    "tanh_generated": ActionSpec(low=(-2.0, 0.0), high=(2.0, 1.0), log_std="generated", bound="tanh"),
}
CORE = 7


def write_bundle(
    path, kind="discrete", seed=0, agents=AGENTS, obs=OBS, reads="obs", state_dim=None, critic=True, memory=None
):
    """An untrained team whose outputs are of the order of one, and tell it from another."""
    actions = KINDS[kind]
    sizes = {"obs": obs, "team": obs * len(agents), "state": state_dim}
    heads = {
        "actor": HeadSpec(obs, actions.head_dim, (16, 16)),
        "critic": HeadSpec(sizes[reads], 1, (16,), reads=reads),
    }
    if memory is not None:
        encoders = {f"{name}_encoder": dataclasses.replace(head, out_dim=5, hidden=()) for name, head in heads.items()}
        heads = {name: dataclasses.replace(head, in_dim=CORE) for name, head in heads.items()} | encoders
    policy_of = tuple(min(2, max(0, i - 1)) for i in range(len(agents)))
    policies = ("scouts", "carrier", "guard")[: 1 + max(policy_of)]
    spec = ModelSpec(policies, policy_of, heads, actions=actions, memory=memory, memory_size=CORE)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = TeamNet(spec)
    spaces = {agent: gym.spaces.Box(-np.inf, np.inf, (obs,), np.float32) for agent in agents}
    save_bundle(net, path, agents=agents, observation_spaces=spaces, state_dim=state_dim, include_critic=critic)
    return path


def observations(rows, seed=0, agents=AGENTS, obs=OBS):
    """Random observations `[rows, obs]` of each agent; `rows` None: one without an axis."""
    generator = np.random.default_rng(seed)
    shape = (obs,) if rows is None else (rows, obs)
    return {agent: generator.normal(0, 1, shape).astype(np.float32) for agent in agents}


class Alone:
    """Answers each request by itself, in the place of Serve."""

    def __init__(self, bundle):
        self.team = ServedTeam()
        self.team.exchange(str(bundle))

    async def answer(self, ask):
        return answer([ask])[0]


def assert_same_actions(found, expected):
    """Choices exactly, numbers to 1e-6."""
    assert list(found) == list(expected)
    for agent, actions in expected.items():
        given = np.asarray(found[agent])
        assert given.shape == np.shape(actions)
        tolerance = 1e-6 if np.asarray(actions).dtype.kind == "f" else 0
        np.testing.assert_allclose(given, actions, rtol=0, atol=tolerance)
