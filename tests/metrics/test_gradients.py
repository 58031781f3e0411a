"""Gradient statistics against autograd on losses that are written out agent by agent and row by row."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from rllib_hypermarl.errors import ConfigError
from rllib_hypermarl.losses import PPOLossConfig
from rllib_hypermarl.metrics import (
    ActorRows,
    agent_cosines,
    entry_variance,
    gradient_cosine,
    target_gradient_noise,
    target_gradients,
)
from rllib_hypermarl.nets import SHARING, TeamNet
from rllib_hypermarl.rollout import Rollout
from tests import oracle
from tests.metrics.teams import CONTINUOUS, DISCRETE, MULTI, team

TEAMS = [(0, 1, 2), (1, 0, 0, 2, 0), (0, 0)]
CONFIGS = [
    PPOLossConfig(entropy_coeff=0.0),
    PPOLossConfig(clip_param=0.1, entropy_coeff=0.2),
    PPOLossConfig(standardise_advantages=False),
]


def data(net, rows=7, seed=0, actions=None, advantage=None, mortal=False):
    """Rows of data of a policy that is a little older than the net's: some ratios are clipped.

    Args:
        mortal: some rows are of agents that are not alive, and hold garbage; what was not done was perhaps forbidden.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (len(net.spec.agent_policies), rows)
    obs = torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        dist = net.policy(obs, net.generate("actor"))
        actions = dist.sample(generator) if actions is None else actions
        drift = 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        logp = dist.log_prob(actions) + drift
    if advantage is None:
        advantage = 3 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    if not mortal:
        return ActorRows(obs, actions, logp, advantage)
    alive = torch.rand(shape, generator=generator) < 0.7
    logp, advantage = (torch.where(alive, x, torch.full_like(x, 1e3)) for x in (logp, advantage))
    allowed = torch.rand(*shape, 3, generator=generator) < 0.7
    return ActorRows(obs, actions, logp, advantage, allowed.scatter(-1, actions.unsqueeze(-1), True), alive)


# ------------------------------------------------------------------------------------------------------- the slow way


def target_layers(net, policy):
    """What `target_gradients` is with respect to. An id that is read beside the observation is a first bias."""
    (weight, bias), *rest = oracle.policy_layers(net, "actor", policy)
    size = net.spec.heads["actor"].in_dim
    return [(weight[:size], bias + weight[size + policy] if len(weight) > size else bias), *rest]


def slow_loss(layers, rows, agent, config, group=None):
    """One agent's clipped surrogate and entropy bonus, mean over its rows. Args: group: agents that learn with it."""
    group = range(len(rows.logp)) if group is None else group
    alive = torch.ones_like(rows.logp).bool() if rows.alive is None else rows.alive
    everyone = torch.cat([rows.advantage[n][alive[n]] for n in group])
    centre, spread = everyone.mean(), ((everyone - everyone.mean()) ** 2).mean().sqrt()
    total = 0.0
    for b in alive[agent].nonzero().flatten().tolist():
        x = rows.obs[agent, b]
        for depth, (weight, bias) in enumerate(layers):
            x = (torch.tanh(x) if depth else x) @ weight + bias
        allowed = slice(None) if rows.action_mask is None else rows.action_mask[agent, b]
        log_probs = oracle.log_softmax(x[allowed])
        taken = torch.arange(len(x))[allowed].tolist().index(rows.actions[agent, b])
        ratio = (log_probs[taken] - rows.logp[agent, b]).exp()
        advantage = rows.advantage[agent, b]
        if config.standardise_advantages:
            advantage = (advantage - centre) / (spread + 1e-8)
        clipped = min(max(ratio, torch.tensor(1 - config.clip_param)), torch.tensor(1 + config.clip_param))
        entropy = -(log_probs.exp() * log_probs).sum()
        total = total - min(ratio * advantage, clipped * advantage) - config.entropy_coeff * entropy
    return total / max(1, alive[agent].sum())


def slow_target_gradients(net, rows, config, group_of=None):
    gradients = []
    for policy in range(len(net.spec.policies)):
        layers = [tuple(x.detach().clone().requires_grad_() for x in layer) for layer in target_layers(net, policy)]
        members = [agent for agent, p in enumerate(net.spec.agent_policies) if p == policy]
        group = None if group_of is None else group_of(members[0])
        loss = sum(slow_loss(layers, rows, agent, config, group) for agent in members) / len(members)
        found = torch.autograd.grad(loss, [x for layer in layers for x in layer])
        gradients.append(torch.cat([x.flatten() for x in found]))
    return torch.stack(gradients)


def slow_parameter_gradients(net, rows, config):
    """Each agent's gradient in all parameters, `[N, D]`, zeros included."""
    gradients = []
    for agent, policy in enumerate(net.spec.agent_policies):
        found = oracle.gradients(slow_loss(target_layers(net, policy), rows, agent, config), net)
        gradients.append(torch.cat([x.flatten() for x in found.values()]))
    return torch.stack(gradients).numpy()


@pytest.mark.parametrize("config", CONFIGS, ids=["surrogate", "with entropy", "raw advantages"])
@pytest.mark.parametrize("agent_policies", TEAMS, ids=str)
@pytest.mark.parametrize("sharing", SHARING)
def test_all_statistics_equal_those_of_gradients_taken_the_slow_way(sharing, agent_policies, config):
    net = team(sharing, agent_policies)
    minibatches = [data(net, seed=seed) for seed in range(3)]
    ratios = torch.stack([net.policy(m.obs, net.generate("actor")).log_prob(m.actions) - m.logp for m in minibatches])
    assert (ratios.exp() - 1).abs().min() < 0.1 < (ratios.exp() - 1).abs().max()  # on both sides of the clip

    expected = torch.stack([slow_target_gradients(net, rows, config) for rows in minibatches])
    for rows, gradient in zip(minibatches, expected, strict=True):
        torch.testing.assert_close(target_gradients(net, rows, config), gradient, rtol=1e-9, atol=1e-12)
    noise = target_gradient_noise(net, minibatches, config)
    variance, signal = np.var(expected.numpy(), axis=0, ddof=1).sum(axis=1), (expected.mean(dim=0) ** 2).sum(dim=1)
    np.testing.assert_allclose(noise.variance.numpy(), variance, rtol=1e-9)
    np.testing.assert_allclose(noise.signal.numpy(), signal.numpy(), rtol=1e-9)
    assert noise.ratio == pytest.approx(variance.sum() / signal.sum().item(), rel=1e-9)

    of_agents = [slow_parameter_gradients(net, rows, config) for rows in minibatches]
    across = [np.var(gradients.mean(axis=0)) for gradients in of_agents]
    assert entry_variance(net, minibatches, config) == pytest.approx(np.mean(across), rel=1e-9)

    pairs = list(itertools.combinations(range(len(agent_policies)), 2))
    means = []
    for rows, gradients in zip(minibatches, of_agents, strict=True):
        unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
        np.testing.assert_allclose(agent_cosines(net, rows, config).detach().numpy(), unit @ unit.T, atol=1e-12)
        means.append(np.mean([unit[i] @ unit[j] for i, j in pairs]))
    assert gradient_cosine(net, minibatches, config) == pytest.approx(np.mean(means), abs=1e-12)


@pytest.mark.parametrize("sharing", SHARING)
def test_the_dead_and_the_forbidden_are_left_out_of_gradients(sharing):
    net = team(sharing, (1, 0, 0, 2, 0))
    for seed, config in itertools.product(range(3), CONFIGS):
        rows = data(net, seed=seed, mortal=True)
        expected = slow_target_gradients(net, rows, config)
        torch.testing.assert_close(target_gradients(net, rows, config), expected, rtol=1e-9, atol=1e-12)
        other = dataclasses.replace(rows, logp=rows.logp.where(rows.alive, -30.0), advantage=rows.advantage * 1.0)
        other.advantage[~rows.alive] = float("nan")
        assert torch.equal(target_gradients(net, other, config), target_gradients(net, rows, config))


def test_groups_that_learn_apart_have_standard_advantages_of_their_own():
    net, config = team("none", (0, 1, 2)), CONFIGS[0]
    spec = dataclasses.replace(net.spec, groups={"one": ("p0", "p2"), "two": ("p1",)})
    apart = TeamNet(spec).double()
    rows = data(net)
    expected = slow_target_gradients(net, rows, config, lambda agent: [1] if agent == 1 else [0, 2])
    for source, members in zip(apart.sources["actor"].groups, spec.group_rows(), strict=True):
        for own, theirs in zip(source.parameters(), net.sources["actor"].parameters(), strict=True):
            own.data.copy_(theirs[members])
    torch.testing.assert_close(target_gradients(apart, rows, config), expected, rtol=1e-9, atol=1e-12)


# -------------------------------------------------------------------------------------------------------- known cases


@pytest.mark.parametrize("sharing", SHARING)
def test_equal_minibatches_have_no_variance(sharing):
    net = team(sharing)
    noise = target_gradient_noise(net, [data(net)] * 4)
    assert (noise.variance == 0).all() and (noise.signal > 0).all() and noise.ratio == 0


def test_pure_noise_has_the_ratio_of_the_number_of_minibatches_and_a_clear_signal_a_small_one():
    net = team()
    noise = [data(net, rows=200, seed=seed) for seed in range(16)]  # advantages that no action earned
    assert 8 < target_gradient_noise(net, noise).ratio < 32
    clear = [dataclasses.replace(m, advantage=(m.actions == 0).double()) for m in noise]
    assert target_gradient_noise(net, clear).ratio < 0.5


def test_units_of_rewards_change_nothing():
    net = team()
    minibatches = [data(net, seed=seed) for seed in range(3)]
    scaled = [dataclasses.replace(m, advantage=1000 * m.advantage - 7) for m in minibatches]
    for statistic in (entry_variance, gradient_cosine, lambda *args: target_gradient_noise(*args).ratio):
        assert statistic(net, scaled) == pytest.approx(statistic(net, minibatches), rel=1e-6)


def test_parameters_that_play_no_part_dilute_the_paper_s_variance_and_nothing_else():
    small, large = team(critic_hidden=()), team(critic_hidden=(80, 80))
    sizes = [sum(p.numel() for p in net.parameters()) for net in (small, large)]
    assert sizes[1] > 20 * sizes[0]
    minibatches = [data(small, seed=seed) for seed in range(3)]
    for statistic in (gradient_cosine, lambda *args: target_gradient_noise(*args).ratio):
        assert statistic(large, minibatches) == pytest.approx(statistic(small, minibatches), rel=1e-9)
    factor = entry_variance(small, minibatches) / entry_variance(large, minibatches)
    assert factor == pytest.approx(sizes[1] / sizes[0], rel=0.05)


def test_noise_at_target_weights_is_the_same_wherever_the_weights_come_from():
    """One set of weights, shared by all or held by each of them."""
    shared, own = team("full"), team("none")
    with torch.no_grad():
        for kind in ("weights", "biases"):
            pairs = zip(getattr(own.sources["actor"], kind), getattr(shared.sources["actor"], kind), strict=True)
            for mine, theirs in pairs:
                mine.copy_(theirs.expand_as(mine))
    rows = data(shared)
    torch.testing.assert_close(target_gradients(own, rows), target_gradients(shared, rows), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sharing", SHARING)
def test_opposite_wishes_are_at_minus_one_and_equal_ones_at_one(sharing):
    """Two agents of one policy with the same observations and actions."""
    net = team(sharing, (0, 0))
    rows = data(net)
    same = [x[:1].expand(2, *x.shape[1:]) for x in (rows.obs, rows.actions, rows.logp)]
    on_policy = net.policy(same[0], net.generate("actor")).log_prob(same[1]).detach()  # nothing is clipped
    wishes = rows.advantage[0] - rows.advantage[0].mean()
    for other, cosine in ((wishes, 1.0), (-wishes, -1.0)):
        pair = ActorRows(same[0], same[1], on_policy, torch.stack([wishes, other]))
        assert gradient_cosine(net, [pair]) == pytest.approx(cosine, abs=1e-12)


def test_networks_that_share_nothing_do_not_conflict():
    net = team("none", (0, 1, 2, 0))
    cosines = agent_cosines(net, data(net))
    disjoint = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 1, 0]]).bool()
    assert (cosines[disjoint] == 0).all() and cosines[0, 3] != 0
    continuous = team("none", actions=CONTINUOUS)  # whose log_std is one for all
    assert gradient_cosine(continuous, [data(continuous)]) != 0
    alone = team("none", (0,))
    assert gradient_cosine(alone, [data(alone)]) == 0


@pytest.mark.parametrize("actions", [DISCRETE, MULTI, CONTINUOUS], ids=["discrete", "multi-discrete", "continuous"])
@pytest.mark.parametrize("sharing", SHARING)
def test_every_kind_of_action_and_nothing_is_left_behind(sharing, actions):
    net = team(sharing, actions=actions)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    minibatches = [data(net, seed=seed) for seed in range(2)]
    assert 0 < target_gradient_noise(net, minibatches).ratio < 10
    assert entry_variance(net, minibatches) > 0
    assert abs(gradient_cosine(net, minibatches)) < 1
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters()) and torch.equal(torch.get_rng_state(), random)


def test_frozen_policies_are_left_out():
    net, whole = team("hyper_mlp", (0, 1, 2, 1), frozen=("p1",)), team("hyper_mlp", (0, 1, 2, 1))
    net.freeze("p1")
    rows = data(whole)
    assert agent_cosines(net, rows).shape == (2, 2)
    trained = ActorRows(*(x[[0, 2]] for x in (rows.obs, rows.actions, rows.logp, rows.advantage)))
    without = team("hyper_mlp", (0, 1))
    with torch.no_grad():
        for name, parameter in without.named_parameters():
            theirs = dict(whole.named_parameters())[name]
            parameter.copy_(theirs[[0, 2]] if name.startswith("contexts") else theirs)
    torch.testing.assert_close(target_gradients(net, rows), target_gradients(without, trained), rtol=1e-9, atol=1e-12)


def test_fewer_than_two_minibatches_have_no_variance():
    net = team()
    with pytest.raises(ConfigError, match="at least two, not 1"):
        target_gradient_noise(net, [data(net)])


def test_minibatches_hold_every_row_once_with_the_whole_team():
    rollout_rows = torch.arange(3 * 2 * 5.0).view(3, 2, 5)  # [N, T, E], every row unlike
    fields = dict.fromkeys(("reward", "terminated", "truncated", "last_obs", "final_obs", "final_index"), rollout_rows)
    obs = torch.stack([rollout_rows, -rollout_rows], dim=-1)
    rows = ActorRows.from_rollout(Rollout(obs=obs, actions=rollout_rows, logp=rollout_rows, **fields), rollout_rows)
    parts = rows.minibatches(3)
    assert [part.logp.shape[1] for part in parts] == [4, 3, 3]
    for part in parts:
        assert torch.equal(part.logp[1:] - part.logp[:-1], torch.full((2, part.logp.shape[1]), 10.0))
        assert torch.equal(part.obs[..., 0], part.logp) and torch.equal(part.actions, part.advantage)
    together = torch.cat([part.logp for part in parts], dim=1)
    assert sorted(together[0].tolist()) == list(range(10)) != together[0].tolist()
    assert all(torch.equal(a.logp, b.logp) for a, b in zip(parts, rows.minibatches(3), strict=True))
    assert not torch.equal(parts[0].logp, rows.minibatches(3, seed=1)[0].logp)
