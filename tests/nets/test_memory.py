"""Recurrent cores: what specs may say of them, how they begin, and what belongs to whom."""

import dataclasses
import json

import pytest
import torch

from rllib_hypermarl.nets import INITS, SHARING, HeadSpec, Memory, ModelSpec, TeamNet
from rllib_hypermarl.nets.memory import Core


def spec(sharing="hyper_mlp", memory="gru", **changes):
    heads = {
        "actor": HeadSpec(6, 3, (5,), sharing),
        "actor_encoder": HeadSpec(4, 7, (), "full"),
    }
    return ModelSpec(("a", "b"), (0, 1, 0), heads, memory=memory, memory_size=6, **changes)


@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_a_spec_with_memory_survives_json(memory):
    given = spec(memory=memory)
    assert ModelSpec.from_dict(json.loads(json.dumps(given.to_dict()))) == given


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"memory": "rnn"}, "memory is 'rnn', valid are gru, lstm and None"),
        ({"memory": None}, "memory is None: with one, and only then, every head has an encoder"),
        ({"heads": {"actor": HeadSpec(6, 3)}}, "every head has an encoder"),
        ({"memory_size": 9}, "must have its in_dim, memory_size 9"),
        ({"frozen": ("a",)}, "share a core that goes on learning"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(spec(), **changes)


@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_gates_begin_orthogonal_in_the_state_and_without_biases(memory):
    for scheme in INITS:
        cell = TeamNet(spec(memory=memory, init=scheme)).cores["actor"].cell
        gates = cell.weight_hh.split(6)
        orthogonal = all(torch.allclose(gate @ gate.T, torch.eye(6), atol=1e-5) for gate in gates)
        assert orthogonal == (scheme != "framework")
        assert cell.bias_ih.any() == cell.bias_hh.any() == (scheme == "framework")
        assert 0.1 < cell.weight_ih.std() < 0.7


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_without_losses_a_core_is_pytorch_s(kind):
    core = Core(kind, 4, 5)
    whole = (torch.nn.GRU if kind == "gru" else torch.nn.LSTM)(4, 5)
    for name, tensor in core.cell.named_parameters():
        getattr(whole, f"{name}_l0").data.copy_(tensor.data)
    x, width = torch.randn(3, 6 * 2, 4), 2
    seen, state = core(x, torch.zeros(3, width, core.state_dim), None)
    steps = x.view(3, 6, width, 4).transpose(0, 1).reshape(6, 3 * width, 4)
    expected, last = whole(steps)
    torch.testing.assert_close(seen, expected.view(6, 3, width, 5).transpose(0, 1).reshape(3, 12, 5))
    last = last if kind == "gru" else torch.cat(last, dim=-1)
    torch.testing.assert_close(state, last[0].view(3, width, -1))


@pytest.mark.parametrize("sharing", SHARING)
def test_agents_share_the_core_and_not_their_state(sharing):
    net = TeamNet(spec(sharing))
    assert not {name for name in net.policy_axes() if name.startswith(("cores.", "sources.actor_encoder."))}
    counts = net.parameter_counts()
    assert counts["memory"] == 3 * 6 * (7 + 6 + 2) and counts["actor_encoder"] == 7 * (4 + 1)
    assert counts["total"] == sum(x.numel() for x in net.parameters())
    obs, memory = torch.randn(3, 2, 4), net.blank("actor", 2)
    other = Memory(memory.state.clone())
    before = net.action_inputs(obs, net.generate("actor"), memory)
    changed = obs.clone()
    changed[1, 0] += 1
    after = net.action_inputs(changed, net.generate("actor"), other)
    moved = (before != after).any(dim=-1)
    assert moved.tolist() == [[False, False], [True, False], [False, False]]
    assert torch.equal((memory.state != other.state).any(dim=-1), moved)
