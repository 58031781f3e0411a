"""Agents that see and do different things: padding changes no log-probability, no entropy and no gradient."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_hypermarl.nets import SHARING, ActionSpec, HeadSpec, ModelSpec, TeamNet
from tests import oracle

DISCRETE = (ActionSpec(choices=(3,)), ActionSpec(choices=(5,)), ActionSpec(choices=(2, 4)))
BOXES = tuple(
    ActionSpec(low=(-1.0, -2.0, 0.0)[:size], high=(1.0, 2.0, 5.0)[:size], log_std=log_std, bound=bound)
    for log_std, bound in itertools.product(("shared", "generated"), ("clip", "tanh"))
    for size in (1, 3, 2)
)
TEAMS = {"discrete": DISCRETE} | {
    f"{BOXES[i].log_std} {BOXES[i].bound}": BOXES[i : i + 3] for i in range(0, len(BOXES), 3)
}
OBS, ROWS = (4, 7, 2), 5


def team(own, sharing="hyper_mlp"):
    actions = ActionSpec.covering(own)
    spec = ModelSpec(
        ("a", "b", "c"), (0, 1, 2), {"actor": HeadSpec(max(OBS), actions.head_dim, (6,), sharing, out_gain=1.0)},
        actions=actions, agent_actions=own,
    )  # fmt: skip
    torch.manual_seed(0)
    net = TeamNet(spec).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def observations(seed=0):
    generator = torch.Generator().manual_seed(seed)
    obs = torch.zeros(len(OBS), ROWS, max(OBS), dtype=torch.float64)
    for n, size in enumerate(OBS):
        obs[n, :, :size] = torch.randn(ROWS, size, generator=generator, dtype=torch.float64)
    return obs


def alone(net, own, n, obs):
    """Agent n's distribution from a network of just its own sizes: a slice of the first layer's rows, of the last's
    columns."""
    layers = [(w.clone(), b.clone()) for w, b in oracle.policy_layers(net, "actor", n)]
    spec, size = net.spec.actions, OBS[n]
    layers[0] = (torch.cat([layers[0][0][:size], layers[0][0][max(OBS) :]]), layers[0][1])
    used = torch.tensor(spec.used_by(own))
    if spec.continuous:
        keep = torch.cat([used, used]) if spec.log_std == "generated" else used
    else:  # without the one choice of components that it does not have
        component = [i for i, most in enumerate(spec.choices) for _ in range(most)]
        keep = used & torch.tensor([i < len(own.choices) for i in component])
    layers[-1] = (layers[-1][0][:, keep], layers[-1][1][keep])
    rows = torch.stack([oracle.forward_row(net, "actor", layers, n, row[:size]) for row in obs[n]])
    if not spec.continuous:
        return own.distribution(rows)
    low, high = (torch.tensor(x, dtype=torch.float64) for x in (own.low, own.high))
    log_std = None if spec.log_std == "generated" else net.log_std[0, : len(own.low)]
    return own.distribution(rows, log_std, low, high)


def own_part(actions, own):
    """Of one agent's padded actions `[B, ...]`, what its own distribution knows."""
    if own.continuous:
        return actions[..., : len(own.low)]
    if actions.dim() == 1:
        return actions
    return actions[..., 0] if len(own.choices) == 1 else actions[..., : len(own.choices)]


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("own", TEAMS.values(), ids=TEAMS.keys())
def test_every_agent_acts_as_it_would_with_a_network_of_its_own_size(own, sharing):
    net, obs = team(own, sharing), observations()
    dist = net.policy(obs, net.generate("actor"))
    generator = torch.Generator().manual_seed(1)
    actions = dist.sample(generator)
    sent = dist.to_env(actions)
    for n, spec in enumerate(own):
        expected = alone(net, spec, n, obs)
        mine = own_part(actions[n], spec)
        torch.testing.assert_close(dist.log_prob(actions)[n], expected.log_prob(mine), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(dist.entropy()[n], expected.entropy(), rtol=1e-9, atol=1e-9)
        mode = own_part(dist.to_env(dist.mode())[n], spec)
        torch.testing.assert_close(mode, expected.to_env(expected.mode()), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(own_part(sent[n], spec), expected.to_env(mine), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("own", TEAMS.values(), ids=TEAMS.keys())
def test_what_an_agent_does_not_have_gives_no_gradient(own):
    net, obs = team(own, "none"), observations()
    dist = net.policy(obs, net.generate("actor"))
    actions = dist.sample(torch.Generator().manual_seed(1)).detach()
    (dist.log_prob(actions).sin().sum() + dist.entropy().sum()).backward()
    source = net.sources["actor"]
    for n, spec in enumerate(own):
        assert not source.weights[0].grad[n, OBS[n] :].any()
        used = torch.tensor(net.spec.actions.used_by(spec))
        used = torch.cat([used, used]) if source.biases[-1].shape[1] > len(used) else used
        assert not source.biases[-1].grad[n][~used].any() and source.biases[-1].grad[n][used].any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3), min_size=1, max_size=5), st.integers(0, 2**31))
def test_agents_never_choose_what_they_do_not_have(choices, seed):
    own = tuple(ActionSpec(choices=tuple(c)) for c in choices)
    covering = ActionSpec.covering(own)
    used = torch.tensor([[covering.used_by(spec)] for spec in own])
    generator = torch.Generator().manual_seed(seed)
    inputs = 30 * torch.randn(len(own), 50, covering.head_dim, generator=generator)
    dist = covering.distribution(inputs, mask=used.expand(*inputs.shape))
    for actions in (dist.sample(generator), dist.mode()):
        for n, spec in enumerate(own):
            parts = actions[n].unsqueeze(-1) if len(covering.choices) == 1 else actions[n]
            most = torch.tensor([*spec.choices, *[1] * (len(covering.choices) - len(spec.choices))])
            assert (parts < most).all()
    assert torch.isfinite(dist.log_prob(actions)).all() and torch.isfinite(dist.entropy()).all()


def test_actions_of_two_kinds_have_nothing_in_common():
    with pytest.raises(ValueError, match="some are discrete"):
        ActionSpec.covering([ActionSpec(choices=(2,)), ActionSpec(low=(0.0,), high=(1.0,))])
    with pytest.raises(ValueError, match="agent_actions must tell of every agent"):
        ModelSpec(("a",), (0,), {"actor": HeadSpec(2, 3)}, actions=ActionSpec(choices=(3,)),
                  agent_actions=(ActionSpec(choices=(2,)),))  # fmt: skip


def test_a_spec_of_unlike_agents_comes_back_from_its_dict():
    spec = team(DISCRETE).spec
    assert ModelSpec.from_dict(spec.to_dict()) == spec and spec.agent_actions == DISCRETE
