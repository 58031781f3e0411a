"""Groups of policies that learn separately: what one group does reaches nothing of another's."""

import dataclasses

import pytest
import torch
from torch import nn

from rllib_hypermarl.errors import TransferError
from rllib_hypermarl.nets import SHARING, ActionSpec, HeadSpec, ModelSpec, TeamNet, transfer
from rllib_hypermarl.nets.groups import clip_by_group_
from rllib_hypermarl.nets.transfer import without_generators

DISCRETE, BOX = ActionSpec(choices=(3,)), ActionSpec(low=(-1.0, -1.0), high=(1.0, 1.0))
PER_POLICY = dataclasses.replace(BOX, log_std="per_policy")
KINDS = {"discrete": DISCRETE, "shared log_std": BOX, "log_std per policy": PER_POLICY}
GROUPS = {"chasers": ("d", "a", "c"), "runners": ("b",)}  # in no order of the policies
AGENTS = (0, 1, 2, 3, 1)  # agent 4 runs with agent 1
CHASING, RUNNING = [0, 2, 3], [1, 4]


def team(sharing="hyper_mlp", actions=DISCRETE, groups=GROUPS):
    heads = {
        "actor": HeadSpec(4, actions.head_dim, (6,), sharing, out_gain=1.0),
        "critic": HeadSpec(20, 1, (5,), sharing, reads="team"),
    }
    torch.manual_seed(0)
    net = TeamNet(ModelSpec(("a", "b", "c", "d"), AGENTS, heads, actions=actions, groups=groups)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def outputs(net, obs):
    made = net.generate()
    log_std = net.agent_log_std()
    actor = net("actor", obs, made)
    return actor, actor.new_zeros(1, 1, 2) if log_std is None else log_std, net.value(obs, None, made)


@pytest.mark.parametrize("actions", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("sharing", SHARING)
def test_a_group_is_a_team_by_itself(sharing, actions):
    """Oracle: one net per group, of its policies alone, with the group's parameters."""
    net, obs = team(sharing, actions), torch.randn(5, 7, 4, dtype=torch.float64)
    actor, log_std, value = outputs(net, obs)
    for index, (members, agents) in enumerate(((["d", "a", "c"], CHASING), (["b"], RUNNING))):
        rows = [net.spec.policies.index(p) for p in members]
        spec = dataclasses.replace(
            net.spec, policies=tuple(members), groups={},
            agent_policies=tuple(rows.index(AGENTS[n]) if n in agents else 0 for n in range(5)),
        )  # fmt: skip
        alone, state = TeamNet(spec).double(), {}
        for name, tensor in net.named_parameters():
            if ".groups." not in name:
                shared = name == "log_std" and len(tensor) == 2
                state[name] = tensor[[index]] if shared else tensor[rows]
            elif f".groups.{index}." in name:
                state[name.replace(f".groups.{index}.", ".")] = tensor
        alone.load_state_dict(state)
        own_actor, own_log_std, own_value = outputs(alone, obs)
        torch.testing.assert_close(actor[agents], own_actor[agents])
        torch.testing.assert_close(value[agents], own_value[agents])
        pairs = (x.expand(5, -1, -1)[agents] for x in (log_std, own_log_std))
        torch.testing.assert_close(*pairs)


@pytest.mark.parametrize("actions", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("sharing", SHARING)
def test_gradients_stay_in_their_group_and_are_clipped_in_it(sharing, actions):
    net = team(sharing, actions)
    obs = torch.randn(5, 7, 4, dtype=torch.float64)

    def gradients(agents):
        net.zero_grad(set_to_none=False)
        made = net.generate()
        dist = net.policy(obs, made)
        taken = torch.zeros(5, 7, *((1,) if actions is DISCRETE else (2,)), dtype=torch.float64)
        loss = dist.log_prob(taken.long().squeeze(-1) if actions is DISCRETE else taken)
        (loss + net.value(obs, None, made))[agents].sum().backward()
        return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}

    chasing, running = gradients(CHASING), gradients(RUNNING)
    assert chasing and running
    for name in chasing.keys() & running.keys():
        assert not ((chasing[name] != 0) & (running[name] != 0)).any(), name
    norms = [torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt() for grads in (chasing, running)]
    limit = 0.5 * min(norms)
    together = gradients(CHASING + RUNNING)
    assert net.clip_gradients_(float(limit)) == pytest.approx(float(max(norms)), rel=1e-6)
    for name, parameter in net.named_parameters():
        if name in together:
            expected = sum(
                (grads[name] * (limit / norm) for grads, norm in zip((chasing, running), norms, strict=True)
                 if name in grads), torch.zeros_like(parameter))  # fmt: skip
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-9)


def test_short_gradients_are_left_alone():
    parameter = nn.Parameter(torch.ones(2, 3))
    parameter.grad = torch.tensor([[3.0, 0, 0], [0.1, 0, 0]])
    norms = clip_by_group_([(parameter, torch.tensor([1, 0]))], 2, 1.0)
    torch.testing.assert_close(norms, torch.tensor([0.1, 3.0]))
    torch.testing.assert_close(parameter.grad, torch.tensor([[1.0, 0, 0], [0.1, 0, 0]]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("init", ("exact", "paper", "framework"))
def test_every_group_is_initialised_as_a_team(init):
    spec = dataclasses.replace(team().spec, init=init, actions=DISCRETE)
    torch.manual_seed(1)
    scales = [w.square().mean(dim=(1, 2)).sqrt() for w, _ in TeamNet(spec).generate("actor")["actor"]]
    if init == "exact":  # orthogonal [4, 6] of gain sqrt(2), [6, 3] of gain 1
        for scale, gain, shape in zip(scales, (2**0.5, 1.0), ((4, 6), (6, 3)), strict=True):
            norm = gain * min(shape) ** 0.5 / (shape[0] * shape[1]) ** 0.5
            torch.testing.assert_close(scale, torch.full_like(scale, norm), rtol=0.05, atol=0)
    assert all((scale > 0).all() for scale in scales)


@pytest.mark.parametrize("actions", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("sharing", SHARING)
def test_plain_weights_act_alike(sharing, actions):
    net, obs = team(sharing, actions), torch.randn(5, 3, 4, dtype=torch.float64)
    plain = without_generators(net, ["actor", "critic"])
    assert not plain.spec.groups
    for expected, found in zip(outputs(net, obs), outputs(plain.double(), obs), strict=True):
        torch.testing.assert_close(found.float(), expected.float())


def test_teams_in_groups_are_transferred_whole_or_not_at_all():
    net, other = team(), team()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    transfer(net, other)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in other.state_dict().items())
    with pytest.raises(TransferError, match="policies in groups do not change"):
        transfer(team(groups={}), other)
    with pytest.raises(TransferError, match="policies in groups do not change"):
        transfer(net, other, like={"a": "c"})


def test_a_spec_survives_json_and_refuses_groups_that_are_none():
    spec = team().spec
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    assert spec.group_agents() == {"chasers": CHASING, "runners": RUNNING}
    for groups in ({"chasers": ("a", "b")}, {"x": ("a", "b", "c", "d"), "y": ("a",)}, {"x": ("a", "b", "c", "d", "e")}):
        with pytest.raises(ValueError, match="must hold each of the policies"):
            dataclasses.replace(spec, groups=groups)
    with pytest.raises(ValueError, match="groups share nothing"):
        dataclasses.replace(spec, normalise_values=True)
