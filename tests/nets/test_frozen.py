"""A frozen policy acts as it did when it was frozen, and nothing learns from it."""

import dataclasses

import pytest
import torch

from rllib_hypermarl.errors import TransferError
from rllib_hypermarl.nets import SHARING, ActionSpec, HeadSpec, ModelSpec, TeamNet, transfer
from rllib_hypermarl.nets.normalise import RunningNorm
from tests import oracle
from tests.nets.test_team import PER_POLICY, TEAMS, inputs, name

SOME_LEARN = {key: team for key, team in TEAMS.items() if max(team) > 0}


def randomise(net, seed=0):
    """Moves every parameter; biases and standard deviations too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def frozen_team(agent_policies, mode, frozen=("p1",)):
    """A team, and its twin of which some policies were frozen with the same parameters."""
    free = oracle.team(agent_policies=agent_policies, **mode)
    net = TeamNet(dataclasses.replace(free.spec, frozen=frozen)).double()
    net.load_state_dict(free.state_dict(), strict=False)
    net.freeze(*frozen)
    return free, net


def split(agent_policies, frozen=(1,)):
    """Agents whose policies are frozen, and the others."""
    agents = range(len(agent_policies))
    return [a for a in agents if agent_policies[a] in frozen], [a for a in agents if agent_policies[a] not in frozen]


@pytest.mark.parametrize("agent_policies", SOME_LEARN.values(), ids=SOME_LEARN.keys())
@pytest.mark.parametrize("mode", PER_POLICY, ids=name)
def test_frozen_agents_stay_and_the_others_move_whatever_the_sharing_mode(mode, agent_policies):
    free, net = frozen_team(agent_policies, mode)
    fixed, moving = split(agent_policies)
    x = inputs(net, "actor")
    before = net("actor", x, net.generate("actor"))
    torch.testing.assert_close(before, free("actor", x, free.generate("actor")), rtol=1e-12, atol=1e-12)
    randomise(free)
    randomise(net)
    after, expected = net("actor", x, net.generate("actor")), free("actor", x, free.generate("actor"))
    assert torch.equal(after[fixed], before[fixed])
    assert all(not torch.allclose(after[agent], before[agent]) for agent in moving)
    torch.testing.assert_close(after[moving], expected[moving], rtol=1e-12, atol=1e-12)
    x = inputs(net, "critic")
    assert torch.equal(net("critic", x, net.generate("critic")), free("critic", x, free.generate("critic")))


@pytest.mark.parametrize("agent_policies", SOME_LEARN.values(), ids=SOME_LEARN.keys())
@pytest.mark.parametrize("mode", PER_POLICY, ids=name)
def test_frozen_rows_give_no_gradient_and_the_others_give_theirs(mode, agent_policies):
    free, net = frozen_team(agent_policies, mode)
    randomise(free)
    randomise(net)
    fixed, moving = split(agent_policies)
    x = inputs(net, "actor")
    grads = oracle.gradients(net("actor", x, net.generate("actor"))[fixed].sin().sum(), net)
    assert all(grad.abs().max() == 0 for grad in grads.values())
    ours = oracle.gradients(net("actor", x, net.generate("actor")).sin().sum(), net)
    expected = free("actor", x, free.generate("actor"))[moving].sin().sum()
    oracle.assert_same(ours, oracle.gradients(expected, free))
    assert max(grad.abs().max() for grad in ours.values()) > 0


def continuous(log_std, sharing="hyper_mlp", frozen=(), agent_policies=(0, 1, 0)):
    actions = ActionSpec(low=(-1.0, -2.0), high=(1.0, 2.0), log_std=log_std)
    actor = HeadSpec(5, actions.head_dim, (6,), sharing, out_gain=0.01)
    spec = ModelSpec(("p0", "p1"), agent_policies, {"actor": actor}, actions=actions, frozen=frozen)
    torch.manual_seed(0)
    net = TeamNet(spec).double()
    randomise(net, seed=1)
    net.freeze(*frozen)
    return net


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("log_std", ["shared", "per_policy", "generated"])
def test_the_spread_of_frozen_actions_stays_too(log_std, sharing):
    free, net = continuous(log_std, sharing), continuous(log_std, sharing, frozen=("p1",))
    x = inputs(net, "actor")
    actions = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(4), dtype=x.dtype)
    before = net.policy(x, net.generate())
    torch.testing.assert_close(before.log_prob(actions), free.policy(x, free.generate()).log_prob(actions))
    randomise(net)
    randomise(free)
    for what in (lambda dist: dist.log_prob(actions), lambda dist: dist.entropy()):
        then, ours, theirs = what(before), what(net.policy(x, net.generate())), what(free.policy(x, free.generate()))
        assert torch.equal(ours[1], then[1])
        assert not torch.allclose(ours[[0, 2]], then[[0, 2]])
        torch.testing.assert_close(ours[[0, 2]], theirs[[0, 2]], rtol=1e-12, atol=1e-12)
        grads = oracle.gradients(ours[1].sum(), net)
        assert all(grad.abs().max() == 0 for grad in grads.values())


@pytest.mark.parametrize("log_std", ["shared", "per_policy", "generated"])
def test_snapshots_travel_with_the_state(log_std):
    net = continuous(log_std, frozen=("p1",))
    randomise(net)
    other = TeamNet(net.spec).double()
    other.load_state_dict(net.state_dict())
    x = inputs(net, "actor")
    actions = torch.zeros(3, 3, 2, dtype=x.dtype)
    ours, theirs = (team.policy(x, team.generate()).log_prob(actions) for team in (net, other))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("log_std", ["shared", "generated"])
def test_a_frozen_policy_reads_observations_by_the_statistics_it_was_frozen_with(log_std):
    spec = dataclasses.replace(continuous(log_std).spec, normalise_obs=True)
    free, net = TeamNet(spec).double(), TeamNet(dataclasses.replace(spec, frozen=("p1",))).double()
    rows = torch.randn(50, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    net.load_state_dict(free.state_dict(), strict=False)
    for team in (free, net):
        team.norms["obs"].update(RunningNorm.moments(3 * rows + 1))
    net.freeze("p1")
    x = inputs(net, "actor")
    before, same = net.action_inputs(x, net.generate()), free.action_inputs(x, free.generate())
    torch.testing.assert_close(before, same, rtol=1e-12, atol=1e-12)
    for team in (free, net):
        team.norms["obs"].update(RunningNorm.moments(10 * rows - 4))
    after, others = net.action_inputs(x, net.generate()), free.action_inputs(x, free.generate())
    assert torch.equal(after[1], before[1])
    assert not torch.allclose(others[1], before[1])
    torch.testing.assert_close(after[[0, 2]], others[[0, 2]], rtol=1e-12, atol=1e-12)

    target = TeamNet(dataclasses.replace(net.spec, policies=("p1", "p0"))).double()
    transfer(net, target)
    moved = target.action_inputs(x[[1, 0, 1]], target.generate())
    torch.testing.assert_close(moved[0], after[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moved[1], after[0], rtol=1e-12, atol=1e-12)


def test_a_frozen_policy_of_a_fresh_team_is_a_fixed_random_one():
    torch.manual_seed(0)
    net = TeamNet(dataclasses.replace(oracle.team().spec, frozen=("p2",)))
    x = inputs(net, "actor").float()
    before = net("actor", x, net.generate())
    assert before[2].abs().max() > 0
    randomise(net)
    assert torch.equal(net("actor", x, net.generate())[2], before[2])


def test_freezing_again_takes_a_new_snapshot():
    free, net = frozen_team((0, 1, 2), {"sharing": "hyper_mlp"})
    randomise(free)
    randomise(net)
    net.freeze("p1")
    x = inputs(net, "actor")
    torch.testing.assert_close(net("actor", x, net.generate()), free("actor", x, free.generate()))


@pytest.mark.parametrize("agent_policies", SOME_LEARN.values(), ids=SOME_LEARN.keys())
def test_trained_agents_are_those_of_the_other_policies(agent_policies):
    _, net = frozen_team(agent_policies, {}, frozen=("p1", "p0"))
    _, moving = split(agent_policies, frozen=(0, 1))
    assert net.trained_agents().tolist() == moving
    x = torch.arange(len(agent_policies) * 2).view(-1, 2)
    assert torch.equal(net.trained(x), x[moving])


def test_without_frozen_policies_there_is_nothing_of_all_this():
    net = oracle.team("full")
    assert [name for name in net.state_dict() if "snapshot" in name] == []
    assert net.trained_agents() is None
    x = torch.zeros(3, 2)
    assert net.trained(x) is x
    assert all(weight is parameter for (weight, _), parameter in zip(
        net.generate("actor")["actor"], net.sources["actor"].weights, strict=True
    ))  # fmt: skip


def test_what_cannot_be_frozen_is_named():
    net = oracle.team()
    with pytest.raises(TransferError, match="'p1' is not in the spec's frozen"):
        net.freeze("p1")
    for frozen in (("p9",), ("p1", "p1")):
        with pytest.raises(ValueError, match="frozen is"):
            dataclasses.replace(net.spec, frozen=frozen)
    with pytest.raises(ValueError, match="of a spec with an actor"):
        dataclasses.replace(net.spec, frozen=("p1",), heads={"critic": net.spec.heads["critic"]})


def test_specs_of_before_read_as_specs_without_frozen_policies():
    spec = dataclasses.replace(oracle.team().spec, frozen=("p1",))
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    data = spec.to_dict()
    del data["frozen"]
    assert ModelSpec.from_dict(data) == dataclasses.replace(spec, frozen=())
