"""TeamNet against one ordinary network per agent."""

import json

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from rllib_hypermarl.nets import SHARING, HeadSpec, ModelSpec, TeamNet
from rllib_hypermarl.nets.sharing import RowHyperNetwork
from rllib_hypermarl.nets.target import AgentGroups
from tests import oracle

GENERATED = [
    {"sharing": sharing, "context": context, "hypernet_hidden": hidden}
    for sharing, hiddens in (("hyper_mlp", [(), (64,), (8, 8)]), ("hyper_linear", [(64,)]))
    for context in (None, "embedding", "one_hot")
    for hidden in hiddens
]
LIGHTER = [
    {"sharing": "hyper_mlp", "hypernet_shared_trunk": True, "hypernet_hidden": (16, 8)},
    {"sharing": "hyper_mlp", "hypernet_rank": 2},
    {"sharing": "hyper_mlp", "hypernet_rank": 1, "hypernet_shared_trunk": True, "context": "one_hot"},
    {"sharing": "hyper_linear", "hypernet_rank": 2},
]
BY_ROW = [
    {"sharing": "hyper_mlp", "hypernet_reads_obs": True},
    {"sharing": "hyper_mlp", "hypernet_reads_obs": True, "context": "one_hot", "hypernet_hidden": (8, 8)},
    {"sharing": "hyper_mlp", "hypernet_reads_obs": True, "hypernet_shared_trunk": True, "critic_sharing": "none"},
]
PER_POLICY = [
    *GENERATED,
    *LIGHTER,
    {"sharing": "none"},
    {"sharing": "full"},
    {"sharing": "full_id"},
    {"sharing": "hyper_mlp", "critic_sharing": "none"},
    {"sharing": "hyper_mlp", "critic_sharing": "hyper_linear"},
    {"sharing": "full_id", "critic_sharing": "hyper_mlp", "context": "one_hot"},
    {"sharing": "none", "critic_sharing": "full"},
    {"sharing": "hyper_linear", "critic_sharing": "full_id"},
]
MODES = [*PER_POLICY, *BY_ROW]
TEAMS = {
    "one policy each": (0, 1, 2),
    "one policy each, shuffled": (2, 0, 1),
    "even groups": (0, 1, 0, 1),
    "uneven groups": (1, 0, 0, 2, 0),
    "one policy": (0, 0, 0),
    "one agent": (0,),
}


def name(mode):
    return "-".join(f"{key.removeprefix('hypernet_')}={value}" for key, value in mode.items())


def inputs(net, head, rows=3):
    generator = torch.Generator().manual_seed(1)
    shape = (len(net.spec.agent_policies), rows, net.spec.heads[head].in_dim)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("agent_policies", TEAMS.values(), ids=TEAMS.keys())
@pytest.mark.parametrize("mode", MODES, ids=name)
def test_outputs_and_gradients_equal_one_network_per_agent(mode, agent_policies):
    net = oracle.team(agent_policies=agent_policies, **mode)
    weights = net.generate()
    ours, theirs = 0.0, 0.0
    for head in ("actor", "critic"):
        x = inputs(net, head)
        out, expected = net(head, x, weights), oracle.forward(net, head, x)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
        ours, theirs = ours + (out * cotangent).sum(), theirs + (expected * cotangent).sum()
    expected = oracle.gradients(theirs, net)
    assert all(grad.abs().max() > 0 for grad in expected.values())  # every parameter is reached
    oracle.assert_same(oracle.gradients(ours, net), expected)


@pytest.mark.parametrize("hidden", [(), (4,), (6, 5, 4)])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("sharing", SHARING)
def test_other_target_networks(sharing, activation, hidden):
    net = oracle.team(sharing, agent_policies=(0, 1, 0), activation=activation, hidden=hidden)
    x = inputs(net, "actor").requires_grad_()
    out, expected = net("actor", x, net.generate("actor")), oracle.forward(net, "actor", x)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = (torch.autograd.grad(y.sin().sum(), x)[0] for y in (out, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("agent_policies", TEAMS.values(), ids=TEAMS.keys())
@pytest.mark.parametrize("sharing", SHARING)
def test_no_rows_in_no_rows_out(sharing, agent_policies):
    net = oracle.team(sharing, agent_policies=agent_policies)
    assert net("critic", inputs(net, "critic", rows=0), net.generate()).shape == (len(agent_policies), 0, 1)


def test_generate_makes_only_the_named_heads():
    net = oracle.team()
    assert list(net.generate("actor")) == ["actor"]
    assert list(net.generate()) == ["actor", "critic"]


@pytest.mark.parametrize(
    "sharing, total",
    [("hyper_mlp", 728_346), ("hyper_linear", 55_730), ("none", 44_584), ("full_id", 11_658), ("full", 11_146)],
)
def test_parameter_totals_on_dispersion_are_the_papers(sharing, total):
    heads = {"actor": HeadSpec(16, 9, (64, 64), sharing), "critic": HeadSpec(16, 1, (64, 64), sharing)}
    net = TeamNet(ModelSpec(tuple("abcd"), (0, 1, 2, 3), heads))
    counts = net.parameter_counts()
    assert counts["total"] == total == sum(p.numel() for p in net.parameters())
    assert counts["total"] == counts["actor"] + counts["critic"] + counts["context"]
    assert counts["context"] == (16 if sharing == "hyper_mlp" else 0)


@pytest.mark.parametrize(
    "agents, generated, separate",
    [(65, 728_590, 724_490), (66, 728_594, 735_636), (1024, 732_426, 11_413_504)],
)
def test_generated_networks_are_fewer_parameters_than_separate_ones_from_66_agents_on(agents, generated, separate):
    for sharing, total in (("hyper_mlp", generated), ("none", separate)):
        heads = {"actor": HeadSpec(16, 9, (64, 64), sharing), "critic": HeadSpec(16, 1, (64, 64), sharing)}
        net = TeamNet(ModelSpec(tuple(map(str, range(agents))), tuple(range(agents)), heads), draw=False)
        assert net.parameter_counts()["total"] == total


@pytest.mark.parametrize(
    "option, total",
    [
        ({"hypernet_hidden": (32,)}, 369_754),
        ({"hypernet_shared_trunk": True}, 725_146),
        ({"hypernet_rank": 2}, 98_778),
        ({"hypernet_rank": 8}, 286_554),
    ],
    ids=str,
)
def test_parameter_totals_on_dispersion_of_lighter_hypernetworks_are_those_of_the_docs(option, total):
    heads = {"actor": HeadSpec(16, 9, (64, 64)), "critic": HeadSpec(16, 1, (64, 64))}
    net = TeamNet(ModelSpec(tuple("abcd"), (0, 1, 2, 3), heads, **option))
    assert net.parameter_counts()["total"] == total


def test_more_rows_than_are_generated_at_once(monkeypatch):
    net = oracle.team(**BY_ROW[0])
    x = inputs(net, "actor", rows=5)
    whole = net("actor", x, net.generate())
    monkeypatch.setattr(RowHyperNetwork, "_CHUNK_CPU", 4)
    torch.testing.assert_close(net("actor", x, net.generate()), whole)


# -------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("sharing", SHARING)
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(5)))
def test_permuting_agents_with_their_policies_permutes_outputs(sharing, order):
    agent_policies = (1, 0, 0, 2, 0)
    net = oracle.team(sharing, agent_policies=agent_policies)
    permuted = oracle.team(sharing, agent_policies=[agent_policies[agent] for agent in order])
    permuted.load_state_dict(net.state_dict())
    x = inputs(net, "actor")
    expected = net("actor", x, net.generate())[list(order)]
    torch.testing.assert_close(permuted("actor", x[list(order)], permuted.generate()), expected)


@pytest.mark.parametrize("agent_policies", TEAMS.values(), ids=TEAMS.keys())
@pytest.mark.parametrize("sharing", SHARING)
def test_rows_of_others_influence_neither_output_nor_gradient(sharing, agent_policies):
    net = oracle.team(sharing, agent_policies=agent_policies)
    x = inputs(net, "actor")
    for agent in range(len(agent_policies)):
        other = x + 100 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
        other[agent] = x[agent]
        a, b = (net("actor", rows, net.generate())[agent] for rows in (x, other))
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        oracle.assert_same(oracle.gradients(a.sin().sum(), net), oracle.gradients(b.sin().sum(), net), 1e-12)


def test_policies_that_share_nothing_get_no_gradient_from_each_other():
    net = oracle.team("none", agent_policies=(0, 1, 0))
    grads = oracle.gradients(net("actor", inputs(net, "actor"), net.generate())[[0, 2]].sum(), net)
    touched = [grad.flatten(1).norm(dim=1) for key, grad in grads.items() if ".actor." in key]
    assert all(per_policy[0] > 0 and per_policy[1] == 0 for per_policy in touched)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), policies=st.integers(1, 4), rows=st.integers(0, 3))
def test_scatter_undoes_gather(data, policies, rows):
    extra = data.draw(st.lists(st.integers(0, policies - 1), max_size=5))
    agent_policies = data.draw(st.permutations([*range(policies), *extra]))
    groups = AgentGroups(tuple(agent_policies), policies)
    agents = torch.arange(len(agent_policies)).view(-1, 1, 1)
    x = 100 * agents + 10 * torch.arange(rows).view(1, -1, 1) + torch.arange(2)  # a value tells where it came from
    grouped = groups.gather(x)
    assert len(grouped) == policies
    assert torch.equal(groups.scatter(grouped), x)
    owner = torch.tensor(agent_policies)[agents.expand(-1, rows, 1)]
    by_policy = torch.arange(policies).view(-1, 1, 1).expand(policies, grouped.shape[1], 1)
    assert torch.equal(groups.scatter(by_policy), owner)  # each agent's rows lay in its own policy's block


# -------------------------------------------------------------------------------------------------------------- spec


def test_spec_survives_json():
    spec = oracle.team("hyper_mlp", "none", hypernet_hidden=(8, 8), context="one_hot", init="paper").spec
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"agent_policies": (0, 2)}, "every index"),
        ({"sharing": "hyper"}, "'hyper', valid are"),
        ({"critic_sharing": "all"}, "'critic'.*'all', valid are"),
        ({"activation": "gelu"}, "'gelu', valid are"),
        ({"init": "exat"}, "'exat', valid are"),
        ({"context": "position"}, "'position', valid are"),
        ({"hypernet_rank": 0}, "hypernet_rank is 0"),
        ({"hypernet_reads_obs": True, "hypernet_rank": 2}, "hypernet_rank 2: weights of rows"),
        ({"hypernet_reads_obs": True, "frozen": ("p0",)}, "frozen .*: weights of rows"),
    ],
    ids=str,
)
def test_spec_refuses_what_it_does_not_know(wrong, message):
    with pytest.raises(ValueError, match=message):
        oracle.team(**wrong)
