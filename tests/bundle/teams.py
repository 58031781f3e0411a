"""Teams to make bundles of: networks whose every tensor has left its initial value, and what they do."""

import dataclasses

import gymnasium as gym
import numpy as np
import torch
from hypothesis import strategies as st

from rllib_hypermarl import save_bundle
from rllib_hypermarl.nets import SHARING, ActionSpec, HeadSpec, ModelSpec, TeamNet

OBS, CORE = 5, 6
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
    """Every sharing mode, mapping, kind of action, critic, normaliser, memory and frozen policy."""
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
    memory = draw(st.sampled_from([None, "gru", "lstm"]))
    if memory is not None:
        heads = with_memory(heads, sharing=draw(kinds), hidden=draw(st.sampled_from([(), (5,)])))
    return ModelSpec(
        policies,
        agent_policies,
        heads,
        memory=memory,
        memory_size=CORE,
        hypernet_shared_trunk=draw(st.booleans()),
        hypernet_rank=draw(st.sampled_from([None, 1, 3])),
        context=draw(st.sampled_from([None, "embedding", "one_hot"])),
        actions=actions,
        normalise_obs=draw(st.booleans()),
        normalise_values=bool(reads) and draw(st.booleans()),
        frozen=tuple(policy for policy in policies if memory is None and draw(st.booleans())),
    )


def with_memory(heads, sharing="full", hidden=()):
    """The heads behind cores of size `CORE`, and their encoders."""
    encoders = {
        f"{name}_encoder": dataclasses.replace(head, out_dim=7, hidden=hidden, sharing=sharing)
        for name, head in heads.items()
    }
    return {name: dataclasses.replace(head, in_dim=CORE) for name, head in heads.items()} | encoders


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


def critic_of(spec):
    """The head that reads for the critic, or None."""
    return spec.reader("critic") if "critic" in spec.heads else None


def save(net, path, agents=None, **options):
    space = gym.spaces.Box(np.full(OBS, -2, np.float32), np.array([*range(1, OBS), np.inf], np.float32))
    critic = critic_of(net.spec)
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
    critic = critic_of(spec)
    return obs, torch.randn(rows, critic.in_dim, generator=generator) if critic and critic.reads == "state" else None


def behaviour(policy, spec):
    """All that a policy answers to fixed questions, as tensors; with memory, one after another."""
    obs, state = inputs(spec)
    memories = [policy.blank(obs.shape[1], head) for head in ("actor", "critic")]
    sampled = {"greedy": False, "generator": torch.Generator().manual_seed(2)}
    answers = [policy(obs, memories[0]), *(policy.actions(obs, memory=memories[0], **how) for how in ({}, sampled))]
    if "critic" in policy.spec.heads:
        answers += [policy.values(obs, state, memories[1]) for _ in range(2)]
    return [*answers, *(memory.state for memory in memories if memory is not None)]


@torch.no_grad()
def behaviour_of_net(net):
    """The same of the networks that a policy was made of."""
    (obs, state), weights = inputs(net.spec), net.generate()
    memories = [net.blank(head, obs.shape[1]) for head in ("actor", "critic")]
    answers = [net.action_inputs(obs, weights, memories[0])]
    dist = net.policy(obs, weights, memory=memories[0])
    answers.append(dist.to_env(dist.mode()))
    dist = net.policy(obs, weights, memory=memories[0])
    answers.append(dist.to_env(dist.sample(torch.Generator().manual_seed(2))))
    if "critic" in net.spec.heads:
        answers += [net.value(obs, state, weights, memories[1]) for _ in range(2)]
    return [*answers, *(memory.state for memory in memories if memory is not None)]


def equal(first, second):
    """Bit for bit."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
