"""The PPO loss, row by row."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from rllib_hypermarl.losses import PPOLossConfig, ppo_loss, standardise
from rllib_hypermarl.nets import SHARING, Categorical
from tests import oracle

CONFIGS = [
    PPOLossConfig(),
    PPOLossConfig(clip_value_loss=None),
    PPOLossConfig(clip_param=0.05, vf_loss_coeff=1.0, entropy_coeff=0.0, clip_value_loss=0.7),
    PPOLossConfig(vf_loss_coeff=0.0, entropy_coeff=0.3),
    PPOLossConfig(huber_delta=0.5),
    PPOLossConfig(huber_delta=0.1, clip_value_loss=None),
]


def rows(seed, shape=(3, 7)):
    generator = torch.Generator().manual_seed(seed)
    old_logp, old_value, advantage, value_target, entropy, moved, drift = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(7)
    )
    new = [x.requires_grad_() for x in (old_logp + 0.3 * moved, entropy, old_value + 0.3 * drift)]
    return new, {
        "old_logp": old_logp, "old_value": old_value, "advantage": advantage, "value_target": value_target,
    }  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), config=st.sampled_from(CONFIGS))
def test_loss_statistics_and_gradients_equal_the_sum_over_rows(seed, config):
    new, old = rows(seed)
    ours, stats = ppo_loss(*new, **old, config=config)
    theirs, expected = oracle.ppo_loss(*new, **old, config=config)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert stats.keys() == expected.keys()
    for name in stats:
        assert not stats[name].requires_grad
        torch.testing.assert_close(stats[name], expected[name], rtol=1e-10, atol=1e-10, check_dtype=False)
    grads = (torch.autograd.grad(loss, new, allow_unused=True, materialize_grads=True) for loss in (ours, theirs))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_rows_above_are_clipped_on_both_sides_and_both_signs():
    (logp, _, value), old = rows(0, shape=(3, 50))
    ratio, sign = (logp - old["old_logp"]).exp(), old["advantage"] > 0
    moved = (value - old["old_value"]).abs() > 0.2
    for case in (ratio > 1.2, ratio < 0.8, (ratio - 1).abs() < 0.2):
        assert (case & sign).any() and (case & ~sign).any()
    assert moved.any() and not moved.all()


def test_at_the_old_policy_the_gradient_is_the_policy_gradient():
    (logp, entropy, value), old = rows(1)
    logp = old["old_logp"].clone().requires_grad_()
    config = PPOLossConfig(vf_loss_coeff=0.0, entropy_coeff=0.0)
    loss, stats = ppo_loss(logp, entropy, value, **old, config=config)
    (grad,) = torch.autograd.grad(loss, logp)
    torch.testing.assert_close(grad, -old["advantage"] / grad.numel())
    torch.testing.assert_close(loss, -old["advantage"].mean())
    assert stats["mean_kl_loss"] == 0 and stats["clip_fraction"] == 0


def test_kl_estimate_is_the_kl_from_the_old_to_the_new_policy():
    old, new = (Categorical(torch.randn(6, generator=torch.Generator().manual_seed(s)).double()) for s in (0, 1))
    actions = old.log_probs.expand(200_000, 6)
    actions = Categorical(actions).sample(torch.Generator().manual_seed(2)).view(1, -1)
    zeros = torch.zeros(actions.shape, dtype=torch.float64)
    logp, old_logp = (d.log_probs[actions] for d in (new, old))
    _, stats = ppo_loss(
        logp, zeros, zeros, old_logp=old_logp, old_value=zeros, advantage=zeros, value_target=zeros,
        config=PPOLossConfig(),
    )  # fmt: skip
    exact = (old.log_probs.exp() * (old.log_probs - new.log_probs)).sum()
    assert abs(stats["mean_kl_loss"] / exact - 1) < 0.02


@pytest.mark.parametrize("agent_policies", [(0, 1, 2), (1, 0, 0, 2, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("sharing", SHARING)
def test_from_observations_to_parameter_gradients(sharing, agent_policies):
    net = oracle.team(sharing, agent_policies=agent_policies, obs_dim=4, state_dim=4)
    generator = torch.Generator().manual_seed(0)
    shape = (len(agent_policies), 5)
    obs = torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    actions = torch.randint(3, shape, generator=generator)
    _, old = rows(0, shape)
    old["old_logp"] = old["old_logp"] / 2 - 1
    weights, config = net.generate(), PPOLossConfig()
    dist = Categorical(net("actor", obs, weights))
    ours, _ = ppo_loss(
        dist.log_prob(actions), dist.entropy(), net("critic", obs, weights).squeeze(-1), **old, config=config
    )

    logits, value = oracle.forward(net, "actor", obs), oracle.forward(net, "critic", obs).squeeze(-1)
    log_probs = [[oracle.log_softmax(row) for row in agent] for agent in logits]
    logp = torch.stack(
        [
            torch.stack([row[action] for row, action in zip(*agent, strict=True)])
            for agent in zip(log_probs, actions, strict=True)
        ]
    )
    entropy = torch.stack([torch.stack([-(row.exp() * row).sum() for row in agent]) for agent in log_probs])
    theirs, _ = oracle.ppo_loss(logp, entropy, value, **old, config=config)

    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    oracle.assert_same(oracle.gradients(ours, net), oracle.gradients(theirs, net))


# ------------------------------------------------------------------------------------------------------- standardise


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 100), shift=st.floats(-100, 100))
def test_standardise_is_jointly_centred_scaled_and_blind_to_units(seed, scale, shift):
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[0] += 5  # agents stay different: mean and deviation are those of all rows together
    y = standardise(x)
    assert abs(y.mean()) < 1e-6 and abs(y.square().mean() - 1) < 1e-6
    assert y[0].mean() > 0.5
    torch.testing.assert_close(standardise(scale * x + shift), y, rtol=1e-5, atol=1e-5)


def test_standardise_of_equal_advantages_is_zero():
    assert torch.equal(standardise(torch.full((2, 3), 4.0)), torch.zeros(2, 3))


def test_without_a_critic_there_is_no_value_error():
    (logp, entropy, _), old = rows(2)
    loss, stats = ppo_loss(
        logp, entropy, None, **{**old, "old_value": None, "value_target": None}, config=PPOLossConfig()
    )
    assert stats["vf_loss"] == 0
    torch.testing.assert_close(loss, stats["policy_loss"] - 0.01 * stats["entropy"])


def test_advantages_are_standardised_by_given_moments():
    advantage = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    torch.testing.assert_close(
        standardise(advantage, (torch.tensor(2.0), torch.tensor(1.0))), torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    )
