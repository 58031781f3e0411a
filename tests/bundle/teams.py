"""Teams to make bundles of: networks whose every tensor has left its initial value, and what they do."""

import gymnasium as gym
import numpy as np
import torch
from hypothesis import strategies as st

from rllib_hypermarl import save_bundle
from rllib_hypermarl.nets import SHARING, ActionSpec, HeadSpec, ModelSpec, TeamNet

OBS = 5
INF = float("inf")
ACTIONS = {
    "categorical": ActionSpec(choices=(4,)),
    "multi_discrete": ActionSpec(choices=(3, 2, 4)),
    "clip": ActionSpec(low=(-1.0, -0.5), high=(1.0, INF)),
    "clip_per_policy": ActionSpec(low=(-1.0, -0.5), high=(0.1, 0.5), log_std="per_policy"),
    "tanh_generated": ActionSpec(low=(-1.0, 0.0), high=(1.0, 0.3), log_std="generated", bound="tanh"),
}
MAPS = [(0, 1, 2, 3), (0, 1, 1, 0), (2, 0, 1, 1), (0, 0, 0, 0), (0,)]


def agents_of(spec):
    return [f"agent_{i}" for i in range(len(spec.agent_policies))]


@st.composite
def specs(draw):
    """Every sharing mode, mapping, kind of action, critic, normaliser and frozen policy."""
    agent_policies = draw(st.sampled_from(MAPS))
    policies = tuple(f"policy_{i}" for i in range(max(agent_policies) + 1))
    actions = ACTIONS[draw(st.sampled_from(sorted(ACTIONS)))]
    kinds, hidden = st.sampled_from(SHARING), draw(st.sampled_from([(), (8,), (8, 6)]))
    activation = draw(st.sampled_from(["relu", "tanh"]))
    heads = {"actor": HeadSpec(OBS, actions.head_dim, hidden, sharing=draw(kinds), activation=activation)}
    reads = draw(st.sampled_from([None, "obs", "team", "state"]))
    if reads:
        in_dim = {"obs": OBS, "team": OBS * len(agent_policies), "state": 7}[reads]
        heads["critic"] = HeadSpec(in_dim, 1, (6,), sharing=draw(kinds), activation=activation, reads=reads)
    return ModelSpec(
        policies,
        agent_policies,
        heads,
        context=draw(st.sampled_from([None, "embedding", "one_hot"])),
        actions=actions,
        normalise_obs=draw(st.booleans()),
        normalise_values=bool(reads) and draw(st.booleans()),
        frozen=tuple(policy for policy in policies if draw(st.booleans())),
    )


def trained(spec, seed=0):
    """Networks that have moved since they were drawn, and since their policies were frozen."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        net = TeamNet(spec)
        for _ in range(2):
            net.freeze(*spec.frozen)
            for parameter in net.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
            for norm in net.norms.values():
                norm.update(norm.moments(3 * torch.randn(50, len(norm.mean)) + 1))
    return net


def save(net, path, agents=None, **options):
    space = gym.spaces.Box(np.full(OBS, -2, np.float32), np.array([*range(1, OBS), np.inf], np.float32))
    critic = net.spec.heads.get("critic")
    state_dim = critic.in_dim if critic and critic.reads == "state" else None
    options = {"provenance": {"env_steps": 3}, **options}
    agents = agents or agents_of(net.spec)
    save_bundle(
        net, path, agents=agents, observation_spaces=dict.fromkeys(agents, space), state_dim=state_dim, **options
    )
    return path


def inputs(spec, rows=6, seed=1):
    """Observations `[N, B, OBS]` and states `[B, state]` (or None), some of them extreme."""
    generator = torch.Generator().manual_seed(seed)
    obs = torch.randn(len(spec.agent_policies), rows, OBS, generator=generator)
    obs[:, -2:] *= torch.tensor([1e4, 1e-30])[:, None]
    critic = spec.heads.get("critic")
    return obs, torch.randn(rows, critic.in_dim, generator=generator) if critic and critic.reads == "state" else None


def behaviour(policy, spec):
    """All that a policy answers to fixed questions, as tensors."""
    obs, state = inputs(spec)
    sampled = policy.actions(obs, greedy=False, generator=torch.Generator().manual_seed(2))
    answers = [policy(obs), policy.actions(obs), sampled]
    return [*answers, policy.values(obs, state)] if "critic" in policy.spec.heads else answers


@torch.no_grad()
def behaviour_of_net(net):
    """The same of the networks that a policy was made of."""
    (obs, state), weights = inputs(net.spec), net.generate()
    dist = net.policy(obs, weights)
    sampled = dist.to_env(dist.sample(torch.Generator().manual_seed(2)))
    answers = [net.action_inputs(obs, weights), dist.to_env(dist.mode()), sampled]
    return [*answers, net.value(obs, state, weights)] if "critic" in net.spec.heads else answers


def equal(first, second):
    """Bit for bit."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
