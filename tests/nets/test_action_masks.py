"""Masked actions are never taken and get no gradient, whatever the logits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_hypermarl.nets import ActionSpec, Categorical, HeadSpec, ModelSpec, TeamNet

SPECS = [ActionSpec(choices=(5,)), ActionSpec(choices=(2, 3, 1, 4))]


@st.composite
def masked(draw):
    """A kind of actions, logits of any scale, and a mask with something allowed in every component."""
    spec = draw(st.sampled_from(SPECS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.0, 1.0, 1e3, 1e12, 1e37]))
    logits = scale * torch.randn(64, sum(spec.choices), generator=generator)
    mask = torch.rand(logits.shape, generator=generator) < draw(st.floats(0, 1))
    for part in mask.split(spec.choices, dim=-1):
        part[torch.arange(64), torch.randint(part.shape[-1], (64,), generator=generator)] = True
    return spec, logits, mask


def parts_of(dist):
    return [dist] if isinstance(dist, Categorical) else dist.parts


@given(masked())
@settings(max_examples=200, deadline=None)
def test_masked_actions_are_never_taken_and_get_no_gradient(case):
    spec, logits, mask = case
    logits.requires_grad_()
    dist = spec.distribution(logits, mask=mask)
    chosen = [dist.mode(), *(dist.sample(torch.Generator().manual_seed(i)) for i in range(3))]
    for actions in chosen:
        by_part = actions.reshape(64, -1).unbind(-1)
        for action, allowed in zip(by_part, mask.split(spec.choices, dim=-1), strict=True):
            assert allowed.gather(-1, action.unsqueeze(-1)).all()
    for part, allowed in zip(parts_of(dist), mask.split(spec.choices, dim=-1), strict=True):
        assert (part.log_probs.exp()[~allowed] == 0).all()
        torch.testing.assert_close(part.log_probs.exp().sum(-1), torch.ones(64))
    assert torch.isfinite(dist.entropy()).all() and (dist.entropy() > -1e-5).all()
    (dist.log_prob(chosen[1]).sum() + dist.entropy().sum()).backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[~mask] == 0).all()


@given(masked())
@settings(max_examples=50, deadline=None)
def test_allowed_actions_keep_their_odds(case):
    spec, logits, mask = case
    plain, limited = (parts_of(spec.distribution(logits.double(), mask=m)) for m in (None, mask))
    for a, b, allowed in zip(plain, limited, mask.split(spec.choices, dim=-1), strict=True):
        share = a.log_probs.masked_fill(~allowed, -math.inf).logsumexp(-1, keepdim=True)
        torch.testing.assert_close((a.log_probs - share)[allowed], b.log_probs[allowed], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spec", SPECS)
def test_a_mask_that_allows_everything_changes_no_bit(spec):
    logits = torch.randn(64, sum(spec.choices), generator=torch.Generator().manual_seed(0))
    plain, all_allowed = (parts_of(spec.distribution(logits, mask=m)) for m in (None, torch.ones_like(logits).bool()))
    assert all(torch.equal(a.log_probs, b.log_probs) for a, b in zip(plain, all_allowed, strict=True))


def test_where_nothing_is_allowed_in_some_component():
    spec = ActionSpec(choices=(2, 3))
    mask = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    assert spec.blocked(mask).tolist() == [False, True, True, False]
    assert spec.blocked(mask.view(2, 2, 5)).shape == (2, 2)


UNLIKE = {
    "single": (ActionSpec(choices=(3,)), ActionSpec(choices=(6,)), ActionSpec(choices=(2,))),
    "several": (ActionSpec(choices=(3,)), ActionSpec(choices=(2, 4)), ActionSpec(choices=(5, 1, 3))),
    "alike": (ActionSpec(choices=(4,)),) * 3,
    "alike, several": (ActionSpec(choices=(2, 3, 4)),) * 3,
}
MASKS = 10_000


@pytest.mark.parametrize("own", UNLIKE.values(), ids=UNLIKE)
def test_ten_thousand_masks_for_unlike_agents(own):
    """Each agent with masks of its own, drawn from sparse to full, padded ones with garbage where it has no choices."""
    spec, generator = ActionSpec.covering(own), torch.Generator().manual_seed(0)
    unlike = None if len(set(own)) == 1 else own
    heads = {"actor": HeadSpec(3, spec.head_dim, (8,), out_gain=30.0)}
    net = TeamNet(ModelSpec(("a", "b", "c"), (0, 1, 2), heads, actions=spec, agent_actions=unlike))
    density = torch.linspace(0, 1, MASKS).view(1, -1, 1)
    mask = torch.rand(3, MASKS, sum(spec.choices), generator=generator) < density
    allowed = torch.zeros_like(mask)
    for n, mine in enumerate(own):
        places, start = spec.places_of(mine), 0
        for count in mine.choices:  # one that is the agent's own, for sure
            sure = torch.tensor(places[start : start + count])[torch.randint(count, (MASKS,), generator=generator)]
            mask[n, torch.arange(MASKS), sure] = True
            start += count
        allowed[n][:, places] = mask[n][:, places]
        lacked = sorted({i for i, used in enumerate(spec.used_by(mine)) if used} - set(places))
        allowed[n][:, lacked] = True  # the only thing to do with a component that it does not have

    obs = torch.randn(3, MASKS, 3, generator=generator)
    dist = net.policy(obs, net.generate(), mask)
    components = list(zip(parts_of(dist), allowed.split(spec.choices, dim=-1), strict=True))
    for part, may in components:
        assert (part.log_probs.exp()[~may] == 0).all()
        torch.testing.assert_close(part.log_probs.exp().sum(-1), torch.ones(3, MASKS))
    for i in range(3):
        actions = dist.sample(torch.Generator().manual_seed(i)) if i else dist.mode()
        for action, (_, may) in zip(actions.reshape(3, MASKS, -1).unbind(-1), components, strict=True):
            assert may.gather(-1, action.unsqueeze(-1)).all()
    log_prob, entropy = dist.log_prob(actions), dist.entropy()
    assert torch.isfinite(log_prob).all() and (log_prob < 1e-6).all() and (entropy > -1e-5).all()
    (log_prob.sum() + entropy.sum()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())


def test_a_team_s_policies_take_masks():
    spec = ActionSpec(choices=(4,))
    net = TeamNet(ModelSpec(("a", "b"), (0, 1, 1), {"actor": HeadSpec(3, 4, (8,))}, actions=spec))
    mask = torch.rand(3, 50, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[..., 2] = True
    actions = net.policy(torch.zeros(3, 50, 3), net.generate(), mask).sample()
    assert mask.gather(-1, actions.unsqueeze(-1)).all()
    assert len(actions.unique()) == 4
