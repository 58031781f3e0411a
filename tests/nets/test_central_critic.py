"""Central critics: every agent's value from the whole team's observations, or from the env's state."""

import dataclasses

import pytest
import torch

from rllib_hypermarl.nets import SHARING, HeadSpec, ModelSpec, TeamNet


def team(reads, sharing, agent_policies=(0, 1, 0), obs_dim=3, state_dim=5):
    in_dim = {"obs": obs_dim, "team": obs_dim * len(agent_policies), "state": state_dim}[reads]
    critic = HeadSpec(in_dim, 1, (6,), sharing, reads=reads)
    torch.manual_seed(0)
    policies = tuple(f"p{i}" for i in range(max(agent_policies) + 1))
    net = TeamNet(ModelSpec(policies, agent_policies, {"critic": critic}, init="framework")).double()
    return net, torch.randn(len(agent_policies), 4, obs_dim).double(), torch.randn(4, state_dim).double()


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("reads", ["obs", "team", "state"])
def test_each_agent_s_value_is_its_policy_s_network_of_the_whole(reads, sharing):
    net, obs, state = team(reads, sharing)
    weights = net.generate()
    values = net.value(obs, state, weights)
    assert values.shape == (3, 4)
    for agent, policy in enumerate(net.spec.agent_policies):
        for row in range(4):
            x = {"obs": obs[agent, row], "team": torch.cat([o[row] for o in obs]), "state": state[row]}[reads]
            for depth, (weight, bias) in enumerate(weights["critic"]):
                x = torch.relu(x) if depth else x
                x = x @ weight[min(policy, len(weight) - 1)] + bias[min(policy, len(bias) - 1)]
            torch.testing.assert_close(values[agent, row], x[0], rtol=1e-10, atol=1e-10)


def test_full_id_tells_agents_apart_that_read_the_same():
    for sharing, alike in (("full", True), ("full_id", False)):
        net, obs, state = team("state", sharing, agent_policies=(0, 1))
        values = net.value(obs, state, net.generate())
        assert torch.allclose(values[0], values[1]) == alike


def test_a_value_reads_every_agent_s_observation_and_no_other_row():
    net, obs, _ = team("team", "hyper_mlp")
    obs.requires_grad_()
    net.value(obs, None, net.generate())[0, 2].backward()
    touched = obs.grad.abs().sum(-1) > 0
    assert touched[:, 2].all()
    assert not touched[:, [0, 1, 3]].any()


def test_what_a_head_reads_survives_json_and_is_checked():
    net, _, _ = team("state", "none")
    assert ModelSpec.from_dict(net.spec.to_dict()) == net.spec
    with pytest.raises(ValueError, match="reads"):
        critic = dataclasses.replace(net.spec.heads["critic"], reads="all")
        dataclasses.replace(net.spec, heads={"critic": critic})
