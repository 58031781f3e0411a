"""Bundles of random teams, of every kind of actions, and what they do locally."""

import gymnasium as gym
import numpy as np
import torch

from rllib_hypermarl import load_policy, save_bundle
from rllib_hypermarl.nets import ActionSpec, HeadSpec, ModelSpec, TeamNet

AGENTS = ("scout_0", "scout_1", "carrier", "guard")
OBS = 6
KINDS = {
    "discrete": ActionSpec(choices=(9,)),
    "multi_discrete": ActionSpec(choices=(3, 2, 4)),
    "clip": ActionSpec(low=(-1.0, 0.0), high=(1.0, 0.5)),
    "per_policy": ActionSpec(low=(-1.0,), high=(1.0,), log_std="per_policy"),
    "tanh_generated": ActionSpec(low=(-2.0, 0.0), high=(2.0, 1.0), log_std="generated", bound="tanh"),
}


def write_bundle(path, kind="discrete", seed=0, agents=AGENTS, obs=OBS, reads="obs", state_dim=None, **options):
    """A team whose every parameter is random, so that its answers tell it from another."""
    actions = KINDS[kind]
    sizes = {"obs": obs, "team": obs * len(agents), "state": state_dim}
    heads = {
        "actor": HeadSpec(obs, actions.head_dim, (16, 16)),
        "critic": HeadSpec(sizes[reads], 1, (16,), reads=reads),
    }
    policies = ("scouts", "carrier", "guard")
    spec = ModelSpec(policies, tuple(min(2, max(0, i - 1)) for i in range(len(agents))), heads, actions=actions)
    net = TeamNet(spec)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            scale = 1.0 if parameter.dim() < 2 else 2.0 / parameter.shape[-2] ** 0.5
            parameter.normal_(0, scale, generator=generator)
    spaces = {agent: gym.spaces.Box(-np.inf, np.inf, (obs,), np.float32) for agent in agents}
    save_bundle(
        net, path, agents=agents, observation_spaces=spaces, state_dim=state_dim, include_critic=True, **options
    )
    return path


def observations(rows, seed=0, agents=AGENTS, obs=OBS):
    """Random observations `[rows, obs]` of each agent; `rows` None: one without an axis."""
    generator = np.random.default_rng(seed)
    shape = (obs,) if rows is None else (rows, obs)
    return {agent: generator.normal(0, 2, shape).astype(np.float32) for agent in agents}


def local(path, **arguments):
    """What `load_policy` of the bundle does."""
    return load_policy(path).act(**arguments)
