"""Continuous and multi-discrete actions, against torch.distributions and sampling."""

import math

import pytest
import torch
from torch import distributions as reference

from rllib_hypermarl.nets import ActionSpec, Gaussian, HeadSpec, ModelSpec, MultiCategorical, TeamNet

LOW, HIGH = torch.tensor([-1.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 5.0], dtype=torch.float64)


def gaussian(squash, seed=0, rows=7):
    torch.manual_seed(seed)
    mean, log_std = torch.randn(rows, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64) * 0.5
    return Gaussian(mean, log_std, LOW, HIGH, squash=squash), reference.Normal(mean, log_std.exp())


def test_gaussian_agrees_with_torch():
    ours, theirs = gaussian(squash=False)
    actions = theirs.sample()
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions).sum(-1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.entropy(), theirs.entropy().sum(-1), rtol=1e-12, atol=1e-12)
    assert torch.equal(ours.mode(), theirs.mean)


def test_squashed_log_probability_agrees_with_torch_s_transformed_distribution():
    ours, normal = gaussian(squash=True)
    half, middle = (HIGH - LOW) / 2, (HIGH + LOW) / 2
    transforms = [reference.TanhTransform(cache_size=1), reference.AffineTransform(middle, half)]
    theirs = reference.TransformedDistribution(normal, transforms)
    actions = normal.sample()
    squashed = middle + half * torch.tanh(actions)
    torch.testing.assert_close(ours.to_env(actions), squashed, rtol=1e-12, atol=1e-12)
    expected = theirs.log_prob(transforms[1](transforms[0](actions))).sum(-1)
    torch.testing.assert_close(ours.log_prob(actions), expected, rtol=1e-9, atol=1e-9)


def test_squashed_entropy_is_the_mean_of_minus_log_probability():
    ours, _ = gaussian(squash=True)
    wide = Gaussian(ours.mean.expand(100_000, -1, -1), ours.log_std, LOW, HIGH, squash=True)
    actions = wide.sample(torch.Generator().manual_seed(1))
    surprise = -wide.log_prob(actions)
    error = surprise.std(dim=0) / surprise.shape[0] ** 0.5
    assert ((surprise.mean(dim=0) - ours.entropy()).abs() < 5 * error).all()


@pytest.mark.parametrize("squash", [False, True])
def test_extreme_means_give_finite_numbers_and_actions_in_bounds(squash):
    mean = torch.tensor([[-1e4, 1e4], [30.0, -30.0]], requires_grad=True)
    dist = Gaussian(mean, torch.zeros(2), LOW.float(), HIGH.float(), squash=squash)
    actions = dist.sample(torch.Generator().manual_seed(0)).detach()
    taken = dist.to_env(actions)
    assert ((taken >= LOW) & (taken <= HIGH)).all()
    (dist.log_prob(actions).sum() + dist.entropy().sum()).backward()
    assert mean.grad.isfinite().all()


def test_samples_have_the_right_mean_and_deviation_and_depend_on_the_generator_alone():
    dist = Gaussian(torch.tensor([0.5, -2.0]).expand(200_000, 2), torch.tensor([-1.0, 0.5]), LOW, HIGH, squash=False)
    before = torch.get_rng_state()
    a, b = (dist.sample(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(a.mean(0), torch.tensor([0.5, -2.0]), rtol=0, atol=0.02)
    torch.testing.assert_close(a.std(0), torch.tensor([-1.0, 0.5]).exp(), rtol=0.01, atol=0)


def test_multi_discrete_agrees_with_independent_categoricals():
    torch.manual_seed(0)
    logits = torch.randn(6, 2 + 3 + 4, dtype=torch.float64)
    ours = MultiCategorical(logits, (2, 3, 4))
    theirs = [reference.Categorical(logits=part) for part in logits.split((2, 3, 4), dim=-1)]
    actions = ours.sample(torch.Generator().manual_seed(0))
    assert actions.shape == (6, 3)
    assert (actions < torch.tensor([2, 3, 4])).all()
    expected = sum(dist.log_prob(actions[:, i]) for i, dist in enumerate(theirs))
    torch.testing.assert_close(ours.log_prob(actions), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.entropy(), sum(d.entropy() for d in theirs), rtol=1e-12, atol=1e-12)
    assert torch.equal(ours.mode(), torch.stack([d.logits.argmax(-1) for d in theirs], dim=-1))


def team(log_std, bound="clip", agent_policies=(0, 1, 0)):
    actions = ActionSpec(low=(-1.0, 0.0), high=(1.0, 5.0), log_std=log_std, bound=bound)
    heads = {"actor": HeadSpec(5, actions.head_dim, (8,), out_gain=0.01), "critic": HeadSpec(5, 1, (8,))}
    torch.manual_seed(0)
    policies = tuple(f"p{i}" for i in range(max(agent_policies) + 1))
    return TeamNet(ModelSpec(policies, agent_policies, heads, actions=actions))


@pytest.mark.parametrize(("log_std", "count"), [("shared", 2), ("per_policy", 4), ("generated", 0)])
def test_log_standard_deviations_come_from_where_the_spec_says(log_std, count):
    net = team(log_std)
    assert net.parameter_counts().get("log_std", 0) == count
    obs = torch.randn(3, 4, 5)
    if log_std == "per_policy":
        with torch.no_grad():
            net.log_std.copy_(torch.tensor([[0.1, 0.2], [0.3, 0.4]]))
    dist = net.policy(obs, net.generate("actor"))
    assert dist.log_std.shape == (3, 4, 2)
    if log_std == "per_policy":  # agents 0 and 2 follow policy 0
        expected = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.1, 0.2]])[:, None].expand(3, 4, 2)
        torch.testing.assert_close(dist.log_std, expected)
    if log_std == "generated":
        assert (dist.log_std[0] - dist.log_std[1]).abs().max() > 0
    dist.log_prob(torch.zeros(3, 4, 2)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.sources["actor"].parameters())


def test_specs_with_actions_survive_json_and_refuse_what_does_not_fit():
    spec = team("generated", "tanh").spec
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(ValueError, match="out_dim"):
        ModelSpec(("p",), (0,), {"actor": HeadSpec(5, 3)}, actions=ActionSpec(choices=(4,)))
    with pytest.raises(ValueError, match="finite bounds"):
        ActionSpec(low=(-math.inf,), high=(math.inf,), bound="tanh")
    with pytest.raises(ValueError, match="log_std"):
        ActionSpec(low=(0.0,), high=(1.0,), log_std="own")
