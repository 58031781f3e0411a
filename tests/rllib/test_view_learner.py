"""Both paths are one algorithm: on the same rows and advantages they have the same loss and the same gradients."""

import logging

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing

from rllib_hypermarl import HyperMARLConfig, ViewLearner, stock_module_spec
from rllib_hypermarl.losses import PPOLossConfig, ppo_loss
from rllib_hypermarl.nets import SHARING, ModelSpec, TeamNet
from rllib_hypermarl.rllib.policies import map_agents
from tests.helpers import assert_equal, game, parameters

pytestmark = pytest.mark.usefixtures("ray_session")
AGENTS = ("a", "b", "c", "d")
OBS = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
MAPPINGS = {
    "own": {"*": "own"},
    "shared": {"team": "*"},
    "mixed": {"pair": ["a", "c"], "*": "own"},
}
ROWS = 6


def build_learner(policies, action_space, learner_class=ViewLearner, **networks):
    sizes = {"actor_hidden": [8], "critic_hidden": [8, 8], "hypernet_hidden": [8], "seed": 0}
    config = (
        PPOConfig()
        .multi_agent(policies=set(policies), policy_mapping_fn=lambda *args, **kwargs: policies[0])
        .training(clip_param=0.2, entropy_coeff=0.05, vf_loss_coeff=0.25, use_kl_loss=False, lr=1e-3)
        .training(vf_clip_param=float("inf"))
        .learners(learner_class=learner_class)
        .rl_module(rl_module_spec=stock_module_spec(policies, OBS, action_space, **sizes, **networks))
    )
    learner = config.build_learner(spaces=dict.fromkeys(policies, (OBS, action_space)))
    learner.module["hyper"].double()
    return learner


def draw_rows(dist, seed):
    """What both paths are given: old log-probabilities, advantages and targets `[N, B]`, all near the present ones."""
    generator = torch.Generator().manual_seed(seed)
    noise = lambda: torch.randn(len(AGENTS), ROWS, generator=generator, dtype=torch.float64)  # noqa: E731
    actions = dist.sample(generator).detach()
    return actions, dist.log_prob(actions).detach() + 0.3 * noise(), noise(), noise()


@pytest.mark.parametrize("space", ["discrete", "box"])
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("sharing", SHARING)
def test_loss_and_gradients_are_those_of_the_fast_path(sharing, mapping, space):
    action_space = gym.spaces.Discrete(4) if space == "discrete" else gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    policy_of = map_agents(MAPPINGS[mapping], AGENTS)
    policies = list(dict.fromkeys(policy_of.values()))
    learner = build_learner(policies, action_space, sharing=sharing)
    owner = learner.module["hyper"]

    theirs = ModelSpec.from_dict(owner.model_config["model_spec"]).to_dict()
    theirs["agent_policies"] = [policies.index(policy_of[agent]) for agent in AGENTS]
    team = TeamNet(ModelSpec.from_dict(theirs)).double()
    team.load_state_dict(owner.net.state_dict())
    obs = torch.randn(len(AGENTS), ROWS, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = team.generate()
    dist = team.policy(obs, weights)
    actions, old_logp, advantage, target = draw_rows(dist, seed=2)
    loss, _ = ppo_loss(
        dist.log_prob(actions), dist.entropy(), team.value(obs, None, weights), old_logp=old_logp, old_value=None,
        advantage=advantage, value_target=target, config=PPOLossConfig(0.2, 0.5, 0.05, clip_value_loss=None),
    )  # fmt: skip
    expected = dict(zip(dict(team.named_parameters()), torch.autograd.grad(loss, team.parameters()), strict=True))

    batch = {}
    for policy in policies:
        mine = torch.tensor([i for i, agent in enumerate(AGENTS) if policy_of[agent] == policy])
        columns = {
            Columns.OBS: obs, Columns.ACTIONS: actions, Columns.ACTION_LOGP: old_logp,
            Postprocessing.ADVANTAGES: advantage, Postprocessing.VALUE_TARGETS: target,
        }  # fmt: skip
        batch[policy] = {key: x[mine].flatten(0, 1) for key, x in columns.items()}
        batch[policy][Columns.ACTION_DIST_INPUTS] = learner.module[policy].forward_train(batch[policy])[
            Columns.ACTION_DIST_INPUTS
        ]
    fwd_out = learner.module.forward_train(batch)
    losses = learner.compute_losses(fwd_out=fwd_out, batch=batch)
    torch.testing.assert_close(sum(losses.values()), loss, rtol=1e-10, atol=1e-10)
    learner.compute_gradients(losses)
    for name, parameter in owner.net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-10, msg=name)
    assert any(grad.abs().max() > 1e-3 for grad in expected.values())


def test_masked_rows_do_not_count():
    learner = build_learner(["a", "b"], gym.spaces.Discrete(4))
    rows = torch.randn(8, 3, dtype=torch.float64)

    def losses(first, masked):
        batch = {}
        for policy, size in (("a", first), ("b", 4)):
            obs = rows[:size]
            inputs = learner.module[policy].forward_train({Columns.OBS: obs})[Columns.ACTION_DIST_INPUTS].detach()
            batch[policy] = {
                Columns.OBS: obs, Columns.ACTIONS: torch.zeros(size, dtype=torch.int64),
                Columns.ACTION_LOGP: torch.zeros(size).double(), Columns.ACTION_DIST_INPUTS: inputs,
                Postprocessing.ADVANTAGES: torch.ones(size).double(),
                Postprocessing.VALUE_TARGETS: torch.ones(size).double(),
            }  # fmt: skip
        if masked:
            batch["a"][Columns.LOSS_MASK] = torch.tensor([True] * 2 + [False] * (first - 2))
        found = learner.compute_losses(fwd_out=learner.module.forward_train(batch), batch=batch)
        return {policy: loss.item() for policy, loss in found.items()}

    assert losses(6, masked=True) == pytest.approx(losses(2, masked=False))


def test_a_policy_that_is_left_out_of_training_is_a_warning(caplog):
    config = (
        PPOConfig()
        .multi_agent(policies={"a", "b"}, policy_mapping_fn=lambda *a, **k: "a", policies_to_train=["a"])
        .learners(learner_class=ViewLearner)
        .rl_module(rl_module_spec=stock_module_spec(["a", "b"], OBS, gym.spaces.Discrete(2)))
    )
    with caplog.at_level(logging.WARNING, logger="rllib_hypermarl"):
        config.build_learner(spaces={policy: (OBS, gym.spaces.Discrete(2)) for policy in ("a", "b")})
    assert [r.getMessage() for r in caplog.records if "policies_to_train leaves out b:" in r.getMessage()]


def test_from_the_fast_path_to_the_stock_one_and_back_the_next_update_is_the_same(tmp_path):
    """Weights and Adam's state travel in RLlib's own component of the checkpoint."""
    fixed = "training.shuffle_batch_per_epoch=false"  # the order of minibatches is our learner's own
    fast = HyperMARLConfig.from_groups(game(fixed)).build_algo()
    for _ in range(2):
        fast.train()
    fast.save_to_path(tmp_path / "fast")
    rollout = fast.env_runner.sample()
    agents = list(fast.env_runner.agents)
    spaces = [fast.env_runner.get_spaces()["hyper"][i][agents[0]] for i in (0, 1)]
    networks = {"actor_hidden": [16], "critic_hidden": [16], "hypernet_hidden": [8]}
    stock = (
        PPOConfig()
        .multi_agent(policies=set(agents), policy_mapping_fn=lambda agent, *args, **kwargs: agent)
        .rl_module(rl_module_spec=stock_module_spec(agents, *spaces, **networks))
        .training(lr=0.3)
    ).build_learner(spaces={agent: tuple(spaces) for agent in agents})
    stock.restore_from_path(tmp_path / "fast" / "learner_group" / "learner")
    assert_equal(stock.module["hyper"].get_state(), parameters(fast)[0])
    stock.save_to_path(tmp_path / "stock")

    back = HyperMARLConfig.from_groups(game(fixed)).build_algo()
    back.restore_from_path(tmp_path / "stock", component="learner_group/learner")
    for algo in (fast, back):
        algo._update(rollout)
    assert_equal(parameters(back)[0], parameters(fast)[0])
    for algo in (fast, back):
        algo.stop()
