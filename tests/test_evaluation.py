"""Random actions, which teams are compared with: alike likely among what is allowed, or anywhere within bounds."""

import math

import torch

from rllib_hypermarl import Step
from rllib_hypermarl.evaluation import random_actions
from rllib_hypermarl.nets import ActionSpec, HeadSpec, ModelSpec, TeamNet

ENVS = 4000


def drawn(own, mask=None, seed=0):
    """Actions `[2, ENVS, ...]` of two agents, each with an action spec of its own."""
    actions = ActionSpec.covering(own)
    heads = {"actor": HeadSpec(3, actions.head_dim, (4,))}
    net = TeamNet(ModelSpec(("a", "b"), (0, 1), heads, actions=actions, agent_actions=own))
    obs, never = torch.randn(ENVS, 2, 3), torch.zeros(ENVS, dtype=torch.bool)
    step = Step(obs, torch.zeros(ENVS, 2), never, never, obs, action_mask=mask)
    act = random_actions(net, seed)
    return act(step), act(step)


def test_choices_are_alike_likely_among_those_allowed():
    mask = torch.rand(ENVS, 2, 4).argsort(dim=-1) < 2  # two of four
    mask[:, 1, 0] = True  # agent b has but the first two
    first, second = drawn((ActionSpec((4,)), ActionSpec((2,))), mask)
    assert mask.transpose(0, 1).gather(-1, first.unsqueeze(-1)).all() and not torch.equal(first, second)
    assert (first[0].bincount() / ENVS - 0.25).abs().max() < 0.04
    both = mask[:, 1, 1]
    assert abs(first[1, both].float().mean() - 0.5) < 0.04 and (first[1, ~both] == 0).all() and first.max() == 3
    assert torch.equal(drawn((ActionSpec((4,)), ActionSpec((2,))), mask)[0], first)
    assert not torch.equal(drawn((ActionSpec((4,)), ActionSpec((2,))), mask, seed=1)[0], first)


def test_continuous_actions_are_anywhere_within_their_own_bounds():
    own = ActionSpec(low=(-1.0, 2.0), high=(1.0, 6.0)), ActionSpec(low=(-5.0,), high=(math.inf,))
    actions, _ = drawn(own)
    low, high = torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 6.0])
    assert (actions[0] >= low).all() and (actions[0] <= high).all()
    inner = (actions[0] - low) / (high - low)
    assert (inner.mean(dim=0) - 0.5).abs().max() < 0.03 and (inner.var(dim=0) - 1 / 12).abs().max() < 0.01
    unbounded = actions[1, :, 0]
    assert unbounded.isfinite().all() and abs(unbounded.mean()) < 0.1 and abs(unbounded.std() - 1) < 0.1
