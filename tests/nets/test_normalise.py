"""Running statistics are those of everything that was seen, however it came in, and belong to the weights."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from rllib_hypermarl.nets import ActionSpec, HeadSpec, ModelSpec, TeamNet
from rllib_hypermarl.nets.normalise import RunningNorm


def draw(seed, *shape, scale=3.0, shift=5.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + shift


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_statistics_are_those_of_all_rows(seed, sizes):
    norm, batches = RunningNorm(2), [draw(seed + i, n, 2, shift=i) for i, n in enumerate(sizes)]
    for batch in batches:
        norm.update(RunningNorm.moments(batch))
    rows = torch.cat(batches)
    torch.testing.assert_close(norm.mean, rows.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.var, rows.var(0, correction=0), rtol=1e-4, atol=1e-4)
    assert norm.count == len(rows)


def test_moments_of_shards_add_up():
    rows = draw(1, 3, 8, 2)
    shards = sum(RunningNorm.moments(shard) for shard in rows.split(2, dim=1))
    torch.testing.assert_close(RunningNorm.moments(rows), shards)


def test_it_does_nothing_before_it_has_seen_anything_and_standardises_after():
    norm, rows = RunningNorm(2), draw(2, 500, 2)
    torch.testing.assert_close(norm(rows), rows)
    norm.update(RunningNorm.moments(rows))
    torch.testing.assert_close(norm(rows).mean(0), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm(rows).std(0, correction=0), torch.ones(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm.inverse(norm(rows)), rows, atol=1e-4, rtol=1e-4)


def test_a_window_forgets_and_a_limit_holds():
    norm, forever = RunningNorm(1, window=4), RunningNorm(1)
    for shift in [0.0] * 20 + [100.0] * 20:
        for each in (norm, forever):
            each.update(RunningNorm.moments(draw(3, 50, 1, shift=shift)))
    assert norm.mean > 99 and 49 < forever.mean < 51
    constant = RunningNorm(1, limit=10.0)
    constant.update(RunningNorm.moments(torch.zeros(9, 1)))
    assert constant(torch.tensor([[1.0], [-1.0], [0.0]])).tolist() == [[10.0], [-10.0], [0.0]]


def team(reads="obs", **flags):
    actor, critic = HeadSpec(3, 2, (8,)), HeadSpec({"obs": 3, "team": 6, "state": 4}[reads], 1, (8,), reads=reads)
    spec = ModelSpec(("a", "b"), (0, 1), {"actor": actor, "critic": critic}, actions=ActionSpec(choices=(2,)), **flags)
    torch.manual_seed(0)
    return TeamNet(spec)


@pytest.mark.parametrize("reads", ["obs", "team", "state"])
def test_a_team_reads_normalised_observations_and_answers_in_units_of_the_reward(reads):
    plain, net = team(reads), team(reads, normalise_obs=True, normalise_values=True)
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("norms")})
    obs, state, values = draw(4, 2, 50, 3), draw(5, 50, 4), draw(6, 40, 1, scale=20.0, shift=-7.0)
    net.norms["obs"].update(RunningNorm.moments(obs))
    net.norms["value"].update(RunningNorm.moments(values))
    if reads == "state":
        net.norms["state"].update(RunningNorm.moments(state))
    weights = net.generate()
    seen, seen_state = net.normalised("obs", obs), net.normalised("state", state)
    assert not torch.equal(seen, obs)
    ours, theirs = (n.policy(o, weights).log_probs for n, o in ((net, obs), (plain, seen)))
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        net.value(obs, state, weights),
        plain.value(seen, seen_state, weights) * values.std(correction=0) + values.mean(),
        rtol=1e-4,
        atol=1e-3,
    )


def test_statistics_are_part_of_the_state():
    net = team(normalise_obs=True, normalise_values=True)
    net.norms["obs"].update(RunningNorm.moments(draw(7, 2, 9, 3)))
    other = team(normalise_obs=True, normalise_values=True)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.norms["obs"].mean, net.norms["obs"].mean)
    assert {"norms.obs.mean", "norms.obs.var", "norms.obs.count", "norms.value.mean"} <= net.state_dict().keys()
    assert not any(name.startswith("norms") for name in team().state_dict())
