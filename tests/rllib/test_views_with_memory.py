"""Views of teams with memory: the networks of the fast path, over RLlib's sequences and states."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing

from rllib_hypermarl import stock_module_spec
from rllib_hypermarl.errors import ConfigError
from rllib_hypermarl.losses import PPOLossConfig, ppo_loss
from rllib_hypermarl.nets import Memory
from tests.rllib.test_view_learner import OBS, build_learner

pytestmark = pytest.mark.usefixtures("ray_session")
POLICIES, SEQUENCES, STEPS, CORE = ["a", "b"], 3, 4, 5
MEMORY = {"memory_size": CORE, "memory_encoder_hidden": [6, 7], "sequence_length": STEPS}


def learner_of(memory, space=None, **networks):
    """With every parameter random: biases of zero would hide mistakes."""
    learner = build_learner(POLICIES, space or gym.spaces.Discrete(4), memory=memory, **MEMORY, **networks)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learner.module["hyper"].net.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return learner


def random(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(x):
    """Sequences `[N, B, L, ...]` as the team reads them, `[N, L * B, ...]`."""
    return x.transpose(1, 2).flatten(1, 2)


@pytest.mark.parametrize("space", [gym.spaces.Discrete(4), gym.spaces.Box(-1.0, 1.0, (2,), np.float32)], ids=type)
@pytest.mark.parametrize("encoder_sharing", ["full", "hyper_mlp"])
@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_loss_and_gradients_are_those_of_the_fast_path(memory, encoder_sharing, space):
    learner = learner_of(memory, space, memory_encoder_sharing=encoder_sharing)
    net, shape = learner.module["hyper"].net, (2, SEQUENCES, STEPS)
    obs, size = random(*shape, 3), net.spec.memory_dim("actor")
    starts = {head: torch.tanh(random(2, SEQUENCES, size, seed=i)) for i, head in enumerate(("actor", "critic"))}
    weights, lost = net.generate(), torch.zeros(1, STEPS * SEQUENCES, dtype=torch.bool)
    dist = net.policy(rows(obs), weights, memory=Memory(starts["actor"], lost))
    value = net.value(rows(obs), None, weights, Memory(starts["critic"], lost))
    actions = dist.sample(torch.Generator().manual_seed(2)).detach()
    old, advantage, target = (random(2, STEPS * SEQUENCES, seed=seed) for seed in (3, 4, 5))
    old = dist.log_prob(actions).detach() + 0.3 * old
    loss, _ = ppo_loss(
        dist.log_prob(actions), dist.entropy(), value, old_logp=old, old_value=None, advantage=advantage,
        value_target=target, config=PPOLossConfig(0.2, 0.5, 0.05, clip_value_loss=None),
    )  # fmt: skip
    expected = dict(zip(dict(net.named_parameters()), torch.autograd.grad(loss, net.parameters()), strict=True))

    columns = {
        Columns.ACTIONS: actions, Columns.ACTION_LOGP: old, Postprocessing.ADVANTAGES: advantage,
        Postprocessing.VALUE_TARGETS: target,
    }  # fmt: skip
    batch = {
        policy: {
            Columns.OBS: obs[i],
            Columns.STATE_IN: {head: state[i] for head, state in starts.items()},
            Columns.LOSS_MASK: torch.ones(SEQUENCES, STEPS, dtype=torch.bool),
            **{key: x[i].unflatten(0, (STEPS, SEQUENCES)).transpose(0, 1) for key, x in columns.items()},
        }
        for i, policy in enumerate(POLICIES)
    }
    for policy, columns in batch.items():
        columns[Columns.ACTION_DIST_INPUTS] = learner.module[policy].forward_train(columns)["action_dist_inputs"]
        values = learner.module[policy].compute_values(columns)
        expected_values = value.unflatten(1, (STEPS, SEQUENCES)).transpose(1, 2)[POLICIES.index(policy)]
        torch.testing.assert_close(values, expected_values, rtol=1e-10, atol=1e-10)
    losses = learner.compute_losses(fwd_out=learner.module.forward_train(batch), batch=batch)
    torch.testing.assert_close(sum(losses.values()), loss, rtol=1e-10, atol=1e-10)
    learner.compute_gradients(losses)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-10, msg=name)
    assert expected["cores.actor.cell.weight_hh"].any() and expected["cores.critic.cell.weight_hh"].any()


@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_steps_one_by_one_are_the_sequence(memory):
    """As RLlib's env runners ask: one step each, with the state that the one before put out."""
    learner = learner_of(memory)
    for policy in POLICIES:
        view = learner.module[policy]
        begin = {head: torch.zeros(SEQUENCES, *x.shape).double() for head, x in view.get_initial_state().items()}
        obs = random(SEQUENCES, STEPS, 3)
        whole = view.forward_inference({Columns.OBS: obs, Columns.STATE_IN: begin})
        state = begin
        for t in range(STEPS):
            batch = {policy: {Columns.OBS: obs[:, t : t + 1], Columns.STATE_IN: state}}
            one = learner.module.forward_exploration(batch)[policy]
            state = one[Columns.STATE_OUT]
            torch.testing.assert_close(
                one[Columns.ACTION_DIST_INPUTS][:, 0], whole[Columns.ACTION_DIST_INPUTS][:, t], rtol=1e-10, atol=1e-10
            )
        for head in ("actor", "critic"):
            torch.testing.assert_close(state[head], whole[Columns.STATE_OUT][head], rtol=1e-10, atol=1e-10)
        assert not torch.equal(state["actor"], state["critic"])


def test_only_views_with_memory_are_stateful():
    assert not build_learner(POLICIES, gym.spaces.Discrete(4)).module.is_stateful()
    module = learner_of("lstm").module
    assert {key for key, one in module.items() if one.is_stateful()} == set(POLICIES)
    assert {key: x.shape for key, x in module["a"].get_initial_state().items()} == dict.fromkeys(
        ("actor", "critic"), (2 * CORE,)
    )
    assert module["b"].model_config["max_seq_len"] == STEPS
    whole = stock_module_spec(POLICIES, OBS, gym.spaces.Discrete(4), memory="gru")
    assert whole.rl_module_specs["a"].model_config["max_seq_len"] == 20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"memory": "rnn"}, "hypermarl.memory is 'rnn'"),
        ({"memory": "gru", "sequence_length": 0.5}, "hypermarl.sequence_length is 0.5"),
        ({"memory": "gru", "sequence_length": -1}, "sequence_length must be"),
        ({"memory": "gru", "memory_encoder_hidden": []}, "memory_encoder_hidden have a layer"),
    ],
)
def test_what_cannot_be_is_one_line(options, words):
    with pytest.raises(ConfigError, match=words) as caught:
        stock_module_spec(POLICIES, OBS, gym.spaces.Discrete(4), **options)
    assert "\n" not in str(caught.value)
