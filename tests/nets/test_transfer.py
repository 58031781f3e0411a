"""What two teams share is copied, by the names of policies; what does not fit is named."""

import dataclasses

import pytest
import torch

from rllib_hypermarl.errors import HyperMARLError, TransferError
from rllib_hypermarl.nets import SHARING, ActionSpec, HeadSpec, ModelSpec, TeamNet, transfer
from tests import oracle
from tests.nets.test_frozen import continuous, randomise
from tests.nets.test_team import MODES, inputs, name

# Names of the policies and the agents' policies, there and here.
TEAMS = {
    "to more": (("a", "b"), (0, 1), ("a", "b", "c", "d"), (0, 1, 2, 3)),
    "to fewer": (("a", "b", "c"), (0, 1, 2), ("c", "a"), (0, 1)),
    "in another order": (("a", "b", "c"), (2, 0, 1), ("c", "b", "a"), (0, 1, 2)),
    "to others, in groups": (("a", "b"), (0, 1, 0, 1), ("x", "b", "y"), (0, 0, 1, 2, 1)),
    "from one": (("a",), (0, 0), ("x", "a"), (0, 1)),
}


def team(policies, agent_policies, mode, seed=0, **spec):
    """As the oracle's, with named policies."""
    model = dataclasses.replace(oracle.team(agent_policies=agent_policies, **mode).spec, policies=policies, **spec)
    torch.manual_seed(seed)
    net = TeamNet(model).double()
    randomise(net, seed)
    return net


def output(net, head, policy):
    """One policy's network on some rows, as the oracle computes it: no matter who else is in the team."""
    index = net.spec.policies.index(policy)
    rows = torch.randn(3, net.spec.heads[head].in_dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    made = [(row, oracle.policy_layers(net, head, index, row)) for row in rows]
    return torch.stack([oracle.forward_row(net, head, layers, index, row) for row, layers in made])


def state(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


@pytest.mark.parametrize("teams", TEAMS.values(), ids=TEAMS.keys())
@pytest.mark.parametrize("mode", MODES, ids=name)
def test_policies_of_the_same_name_compute_the_same_and_new_ones_start_afresh(mode, teams):
    source, target = team(*teams[:2], mode), team(*teams[2:], mode, seed=1)
    fresh, untouched = state(target), state(source)
    transfer(source, target)
    assert all(torch.equal(value, untouched[key]) for key, value in source.state_dict().items())
    for head in ("actor", "critic"):
        for policy in set(source.spec.policies) & set(target.spec.policies):
            torch.testing.assert_close(output(target, head, policy), output(source, head, policy), rtol=1e-12, atol=0)
    axes = target.policy_axes()
    for key, value in target.named_parameters():
        if key not in axes:
            assert torch.equal(value, source.state_dict()[key])
            continue
        dim, first = axes[key]
        for row, policy in enumerate(target.spec.policies):
            same = torch.equal(value.select(dim, first + row), fresh[key].select(dim, first + row))
            assert same == (policy not in source.spec.policies)


@pytest.mark.parametrize("mode", MODES, ids=name)
def test_a_new_policy_can_start_as_another(mode):
    source, target = team(("a", "b"), (0, 1), mode), team(("b", "c", "d", "e"), (0, 1, 2, 3), mode, seed=1)
    transfer(source, target, {"c": "a", "d": "b"})
    for head in ("actor", "critic"):
        for policy, model in (("c", "a"), ("d", "b"), ("b", "b")):
            torch.testing.assert_close(output(target, head, policy), output(source, head, model), rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", MODES, ids=name)
def test_to_more_and_back_is_where_it_began(mode):
    source = team(("a", "b"), (0, 1), mode)
    more, back = team(("c", "b", "a"), (0, 1, 2), mode, seed=1), team(("a", "b"), (0, 1), mode, seed=2)
    transfer(source, more)
    transfer(more, back)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in back.state_dict().items())


@pytest.mark.parametrize("mode", [m for m in MODES if m["sharing"] != "full" or "critic_sharing" in m], ids=name)
def test_a_policy_s_own_parameters_are_those_that_change_it_alone(mode):
    net = team(("a", "b", "c"), (0, 1, 2), mode)
    outputs = {p: [output(net, head, p) for head in ("actor", "critic")] for p in net.spec.policies}
    parameters = dict(net.named_parameters())
    with torch.no_grad():
        for key, (dim, first) in net.policy_axes().items():
            parameters[key].select(dim, first + 1).add_(0.1)
    for policy, before in outputs.items():
        after = [output(net, head, policy) for head in ("actor", "critic")]
        changed = [not torch.equal(a, b) for a, b in zip(after, before, strict=True)]
        assert any(changed) if policy == "b" else not any(changed)
        shared = {"actor": mode["sharing"], "critic": mode.get("critic_sharing", mode["sharing"])}
        if policy == "b":
            assert changed == [shared[head] != "full" for head in ("actor", "critic")]


# ------------------------------------------------------------------------------------------- continuous actions, frozen


@pytest.mark.parametrize("log_std", ["shared", "per_policy", "generated"])
def test_standard_deviations_go_with_their_policies(log_std):
    source = continuous(log_std)
    target = TeamNet(dataclasses.replace(source.spec, policies=("new", "p1", "p0"), agent_policies=(0, 1, 2))).double()
    transfer(source, target)
    x = inputs(target, "actor")
    actions = torch.zeros(3, 3, 2, dtype=x.dtype)
    here = target.policy(x, target.generate()).log_prob(actions)
    there = source.policy(x[[2, 1, 0]], source.generate()).log_prob(actions)  # agents of p0, p1, p0
    torch.testing.assert_close(here[2], there[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(here[1], there[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("log_std", ["shared", "per_policy", "generated"])
def test_frozen_policies_keep_their_snapshot_and_new_ones_take_theirs(log_std, sharing):
    source = continuous(log_std, sharing, frozen=("p1",))
    randomise(source)  # the parameters move on from the snapshot
    spec = dataclasses.replace(
        source.spec, policies=("q", "p0", "p1", "r"), agent_policies=(0, 1, 2, 3), frozen=("q", "p0", "p1")
    )
    target = TeamNet(spec).double()
    transfer(source, target, {"q": "p1"})
    randomise(target, seed=7)  # and on from what was transferred
    x = inputs(target, "actor")
    actions = torch.zeros(4, 3, 2, dtype=x.dtype)
    here = target.policy(x, target.generate()).log_prob(actions)
    there = source.policy(x[[1, 2, 0]], source.generate()).log_prob(actions[:3])  # agents of p0, p1, p0
    torch.testing.assert_close(here[1], there[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(here[2], there[1], rtol=1e-12, atol=1e-12)
    there = source.policy(x[[1, 0, 2]], source.generate()).log_prob(actions[:3])
    torch.testing.assert_close(here[0], there[1], rtol=1e-12, atol=1e-12)


# -------------------------------------------------------------------------------------------------- what does not fit


def refused(source, target, *args, **kwargs):
    before = state(target)
    with pytest.raises(TransferError) as caught:
        transfer(source, target, *args, **kwargs)
    assert isinstance(caught.value, HyperMARLError)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
    return str(caught.value)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ({"obs_dim": 6}, "actor.in_dim is 5 there and 6 here"),
        ({"actions": 4}, "actor.out_dim is 3 there and 4 here"),
        ({"hidden": (6,)}, "actor.hidden is (6, 5) there and (6,) here"),
        ({"sharing": "none"}, "actor.sharing is 'hyper_mlp' there and 'none' here"),
        ({"critic_sharing": "full"}, "critic.sharing is 'hyper_mlp' there and 'full' here"),
        ({"activation": "tanh"}, "actor.activation is 'relu' there and 'tanh' here"),
        ({"context": "one_hot"}, "actor.context is 'embedding' there and 'one_hot' here"),
        ({"embedding_dim": 5}, "actor.embedding_dim is 4 there and 5 here"),
        ({"hypernet_hidden": (8,)}, "actor.hypernet_hidden is (64,) there and (8,) here"),
    ],
)
def test_networks_that_do_not_fit_are_named_and_left_alone(mode, words):
    assert words in refused(oracle.team(), oracle.team(**mode))


def test_running_statistics_go_with_the_heads_that_read_them():
    def normalising(obs=True, values=True):
        net = oracle.team(normalise_obs=obs, normalise_values=values)
        for norm in net.norms.values():
            norm.update(norm.moments(torch.randn(20, len(norm.mean), dtype=torch.float64)))
        return net

    torch.manual_seed(0)
    source, actor_only, both = normalising(), normalising(), normalising()
    kept = state(actor_only.norms["value"])
    transfer(source, actor_only, heads=["actor"])
    transfer(source, both)
    assert torch.equal(actor_only.norms["obs"].mean, source.norms["obs"].mean)
    assert torch.equal(actor_only.norms["value"].mean, kept["mean"])
    assert all(torch.equal(value, both.state_dict()[key]) for key, value in source.state_dict().items())
    assert "actor.normalise_obs is True there and False here" in refused(source, normalising(obs=False))
    assert "critic.normalise_values is True there and False here" in refused(source, normalising(values=False))


def test_other_actions_are_named():
    source = continuous("shared")
    bounds = ActionSpec(low=(-1.0, -2.0), high=(1.0, 3.0))
    assert "actions differ in high" in refused(source, TeamNet(dataclasses.replace(source.spec, actions=bounds)))
    discrete = dataclasses.replace(source.spec, actions=ActionSpec(choices=(2,)))
    assert "actions differ in choices, low, high" in refused(source, TeamNet(discrete))


def test_a_central_critic_stays_behind_when_the_team_s_size_changes():
    def central(size):
        heads = {"actor": HeadSpec(5, 3, (6,)), "critic": HeadSpec(5 * size, 1, (6,), reads="team")}
        return TeamNet(ModelSpec(tuple("abcd"[:size]), tuple(range(size)), heads)).double()

    source, target = central(2), central(4)
    randomise(source)
    message = refused(source, target)
    assert "critic reads the observations of the whole team, 10 numbers there and 20 here" in message
    assert "heads=('actor',)" in message
    critic = state(target.sources["critic"])
    transfer(source, target, heads=("actor",))
    assert all(torch.equal(value, critic[key]) for key, value in target.sources["critic"].state_dict().items())
    torch.testing.assert_close(output(target, "actor", "b"), output(source, "actor", "b"), rtol=1e-12, atol=0)


def test_a_head_that_is_left_out_keeps_its_own_contexts_too():
    mode = {"sharing": "none", "critic_sharing": "hyper_mlp", "context": "embedding"}
    source, target = team(("a", "b"), (0, 1), mode), team(("a", "b"), (0, 1), mode, seed=1)
    before = state(target)
    transfer(source, target, heads=["actor"])
    moved = {key for key, value in target.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if key.startswith("sources.actor")}


def test_policies_and_heads_that_do_not_exist_are_named():
    source, target = team(("a", "b"), (0, 1), {}), team(("a", "c"), (0, 1), {})
    assert "'x' is no policy here; policies are a, c" in refused(source, target, {"x": "a"})
    assert "'c' is no policy there; policies are a, b" in refused(source, target, {"c": "c"})
    assert "no head 'twin' to transfer; both teams have actor, critic" in refused(source, target, heads=["twin"])


# ------------------------------------------------------------------------------------------------------------ contexts


@pytest.mark.parametrize("mode", MODES, ids=name)
def test_context_parameters_are_the_learned_embeddings(mode):
    net = oracle.team(**mode)
    heads = net.spec.heads.values()
    if any(head.sharing.startswith("hyper") and net.spec.context_of(head) == "embedding" for head in heads):
        (parameter,) = net.context_parameters()
        assert parameter is net.contexts["embedding"].weight
    else:
        with pytest.raises(TransferError, match="no head reads learned embeddings"):
            net.context_parameters()
