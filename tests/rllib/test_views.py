"""Our networks as modules of stock RLlib: only its classes, our module spec, and envs of its own kind."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchDDPRLModule
from ray.rllib.examples.rl_modules.classes.random_rlm import RandomRLModule

from rllib_hypermarl import HyperMARLConfig, stock_module_spec
from rllib_hypermarl.errors import CheckpointError, ConfigError
from rllib_hypermarl.nets import SHARING
from rllib_hypermarl.rllib.multi_agent_env import BatchedMultiAgentEnv, BatchedVectorEnvRunner
from rllib_hypermarl.rllib.views import PolicyView
from tests.helpers import GAME, game
from tests.join_and_leave import LIFE, STEPS, JoinAndLeave

pytestmark = pytest.mark.usefixtures("ray_session")
OBS, ACTION = gym.spaces.Box(0.0, 1.0, (2,), np.float32), gym.spaces.Discrete(2)
SMALL = {"actor_hidden": [16], "critic_hidden": [16], "hypernet_hidden": [16], "seed": 0}


def first_or_second(agent, episode=None, **kwargs):
    return "first" if agent == "early" else "second"


def config(spec=None, policies=("first", "second"), mapping=first_or_second, **multi_agent):
    return (
        PPOConfig()
        .environment(JoinAndLeave)
        .env_runners(num_env_runners=0, rollout_fragment_length=32)
        .multi_agent(policies=set(policies), policy_mapping_fn=mapping, **multi_agent)
        .rl_module(rl_module_spec=spec or stock_module_spec(["first", "second"], OBS, ACTION, **SMALL))
        .training(train_batch_size_per_learner=512, minibatch_size=256, num_epochs=8, lr=3e-3, grad_clip=0.5)
        .debugging(seed=0)
    )


@pytest.fixture
def build():
    made = []

    def build(settings):
        made.append(settings.build_algo())
        return made[-1]

    yield build
    for algo in made:
        algo.stop()


def learner(algo):
    return algo.learner_group._learner


def outputs(module, policy="second"):
    obs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    return module.forward_inference({policy: {"obs": obs}})[policy]["action_dist_inputs"]


# ----------------------------------------------------------------------------------------------------------- training


class Callback(RLlibCallback):
    ends = 0

    def on_episode_end(self, *, rl_module, **kwargs):
        assert rl_module["second"].get_train_action_dist_cls() is not None
        Callback.ends += 1


def test_agents_that_join_and_leave_learn_with_two_of_them_on_one_policy(build):
    algo = build(config().callbacks(Callback))
    for _ in range(5):
        result = algo.train()
    assert result["env_runners"]["episode_return_mean"] > 0.75 * STEPS  # chance is half of it
    assert Callback.ends > 100
    assert algo.get_module("first") is algo.env_runner.module["first"]
    assert {"first", "second", "hyper"} <= set(result["learners"])


def test_one_optimiser_holds_every_tensor_of_the_owner_once(build):
    algo = build(config())
    result = algo.train()["learners"]
    ours = learner(algo)
    (optimizer,) = ours._optimizer_parameters
    held = [p for group in optimizer.param_groups for p in group["params"]]
    owned = list(ours.module["hyper"].parameters())
    assert len(held) == len({id(p) for p in held}) == len(owned)
    assert {id(p) for p in held} == {id(p) for p in owned}
    assert result["hyper"]["default_optimizer_learning_rate"] == 3e-3
    assert result["hyper"]["gradients_default_optimizer_global_norm"] > 0
    assert ours.module["first"].get_state() == ours.module["second"].get_state() == {}


def test_the_gradient_is_clipped_as_a_whole(build):
    algo = build(config().training(grad_clip=1e-3))
    norms = []
    apply = learner(algo).apply_gradients
    learner(algo).apply_gradients = lambda grads: (norms.append(norm_of(grads)), apply(grads))[1]
    algo.train()
    assert norms and max(norms) == pytest.approx(1e-3, rel=1e-3)


def norm_of(grads):
    return float(torch.cat([g.flatten() for g in grads.values()]).norm())


@pytest.mark.parametrize(
    "networks",
    [{"sharing": sharing} for sharing in SHARING] + [{"hypernet_shared_trunk": True, "hypernet_rank": 2}],
    ids=lambda networks: "-".join(map(str, networks.values())),
)
def test_every_sharing_mode_trains(build, networks):
    spec = stock_module_spec(["first", "second"], OBS, ACTION, **SMALL, **networks)
    algo = build(config(spec))
    before = outputs(learner(algo).module).clone()
    algo.train()
    assert not torch.equal(outputs(learner(algo).module), before)
    torch.testing.assert_close(outputs(algo.env_runner.module), outputs(learner(algo).module))


def test_a_heuristic_policy_plays_beside_learned_ones(build):
    others = {"coin": RLModuleSpec(RandomRLModule, OBS, ACTION)}
    spec = stock_module_spec(["second"], OBS, ACTION, **SMALL, others=others)
    mapping = lambda agent, *_, **__: "coin" if agent == "early" else "second"  # noqa: E731
    algo = build(config(spec, ["coin", "second"], mapping, policies_to_train=["second"]))
    for _ in range(5):
        result = algo.train()
    lives = {agent: last - first for agent, (first, last) in LIFE.items()}
    returns = result["env_runners"]["agent_episode_returns_mean"]
    assert returns["early"] < 0.65 * lives["early"]
    assert returns["always"] > 0.75 * lives["always"] and returns["late"] > 0.75 * lives["late"]


def test_policies_to_train_leaves_the_others_embeddings_alone_and_moves_what_they_share(build):
    algo = build(config(policies_to_train=["second"]))
    net = learner(algo).module["hyper"].net
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    algo.train()
    after = dict(net.named_parameters())
    embedding = "contexts.embedding.weight"
    assert torch.equal(after[embedding][0], before[embedding][0])
    assert not torch.equal(after[embedding][1], before[embedding][1])
    assert all(not torch.equal(after[name], p) for name, p in before.items() if name != embedding)


def test_a_remote_env_runner_samples_with_the_learner_s_weights(build):
    algo = build(config().env_runners(num_env_runners=1))
    for _ in range(2):
        algo.train()
    algo.env_runner_group.sync_weights(from_worker_or_learner_group=algo.learner_group, timeout_seconds=20)
    remote = algo.env_runner_group.foreach_env_runner(
        lambda runner: (
            runner.module["second"]._owner is runner.module["hyper"],
            runner.module["hyper"].get_state()["net.contexts.embedding.weight"],
        ),
        local_env_runner=False,
    )
    ours = learner(algo).module["hyper"].get_state()["net.contexts.embedding.weight"]
    assert [tied for tied, _ in remote] == [True]
    assert all((weights == ours).all() for _, weights in remote)


@pytest.mark.parametrize("runner", [BatchedVectorEnvRunner, None], ids=["vector", "one_env_each"])
def test_batched_envs_train_on_this_path_too(build, runner):
    env = BatchedMultiAgentEnv({"env": GAME["env"], **GAME["env_config"]})
    agents, agent = env.possible_agents, env.possible_agents[0]
    spec = stock_module_spec(agents, env.observation_spaces[agent], env.action_spaces[agent], **SMALL)
    algo = build(
        config(spec, agents, lambda agent, *_, **__: agent)
        .environment(BatchedMultiAgentEnv, env_config={"env": GAME["env"], **GAME["env_config"]})
        .env_runners(env_runner_cls=runner, num_envs_per_env_runner=4, rollout_fragment_length=10)
        .training(train_batch_size_per_learner=200, minibatch_size=100)
    )
    for _ in range(2):
        result = algo.train()
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] >= 400
    assert set(agents) <= set(result["learners"])


# ------------------------------------------------------------------------------------------------ checkpoints and ties


def tied(module):
    return all(module[p]._owner is module["hyper"] for p in ("first", "second"))


def test_a_checkpoint_restores_weights_optimiser_and_ties(build, tmp_path):
    algo = build(config())
    for _ in range(2):
        algo.train()
    algo.save_to_path(tmp_path / "algo")
    restored = Algorithm.from_checkpoint(str(tmp_path / "algo"))
    try:
        for module in (learner(restored).module, restored.env_runner.module):
            assert tied(module)
            torch.testing.assert_close(outputs(module), outputs(learner(algo).module))
        steps = [
            {int(entry["step"]) for entry in next(iter(learner(a)._optimizer_parameters)).state.values()}
            for a in (algo, restored)
        ]
        assert steps[0] == steps[1] != {0}
        restored.train()
    finally:
        restored.stop()
    path = tmp_path / "algo" / "learner_group" / "learner" / "rl_module"
    module = MultiRLModule.from_checkpoint(str(path))
    assert tied(module)
    torch.testing.assert_close(outputs(module), outputs(learner(algo).module))
    alone = RLModule.from_checkpoint(str(path / "second"))
    with pytest.raises(CheckpointError, match=r"the view of policy 'second' .*MultiRLModule\.from_checkpoint"):
        alone.forward_inference({"obs": torch.zeros(1, 2)})


def test_a_view_may_be_added_for_a_policy_that_the_owner_has_and_no_other(build):
    algo = build(config())
    module = learner(algo).module
    module.add_module("alias", RLModuleSpec(PolicyView, OBS, ACTION, model_config={"policy": "first"}).build())
    torch.testing.assert_close(outputs(module, "alias"), outputs(module, "first"))
    stranger = RLModuleSpec(PolicyView, OBS, ACTION, model_config={"policy": "third"}).build()
    with pytest.raises(ConfigError, match="no policy 'third' among those whose weights are generated: first, second"):
        module.add_module("third", stranger)


def test_the_module_answers_as_the_fast_path_s_does():
    """The same owner state in both: every policy of the view gives what the team gives."""
    settings = HyperMARLConfig.from_groups(game())
    algo = settings.build_algo()
    agents = list(algo.env_runner.agents)
    space, actions = (algo.env_runner.get_spaces()["hyper"][i][agents[0]] for i in (0, 1))
    team = stock_module_spec(agents, space, actions, actor_hidden=[16], critic_hidden=[16], hypernet_hidden=[8]).build()
    team["hyper"].set_state(algo.learner_group._learner.module["hyper"].get_state())
    obs = torch.randn(4, 7, space.shape[0])
    net = algo.env_runner.net
    ours = net("actor", obs, net.generate("actor"))
    values = net.value(obs, None, net.generate("critic"))
    batch = {agent: {"obs": obs[i]} for i, agent in enumerate(agents)}
    for forward in (team.forward_inference, team.forward_exploration, team.forward_train):
        for i, agent in enumerate(agents):
            torch.testing.assert_close(forward(batch)[agent]["action_dist_inputs"], ours[i])
    for i, agent in enumerate(agents):
        torch.testing.assert_close(team[agent].compute_values(batch[agent]), values[i])
        torch.testing.assert_close(team[agent].forward_inference(batch[agent])["action_dist_inputs"], ours[i])
    algo.stop()


def set_state(module):
    other = stock_module_spec(["first", "second"], OBS, ACTION, **{**SMALL, "seed": 1}).build()
    module.set_state(other.get_state())


def load_state_dict(module):
    module["hyper"].load_state_dict({name: x + 1 for name, x in module["hyper"].state_dict().items()})


def adam(module):
    train(module, fused=False)


def fused_adam(module):  # which torch does not count as a change in place
    train(module, fused=True)


def train(module, fused):
    inputs = module.forward_train({"first": {"obs": torch.rand(3, 2)}})["first"]["action_dist_inputs"]
    outputs(module)
    optimizer = torch.optim.Adam(module["hyper"].parameters(), fused=fused)
    inputs.square().sum().backward()
    optimizer.step()


@pytest.fixture
def counted():
    """A module, and the list of its calls of `generate`."""
    module = stock_module_spec(["first", "second"], OBS, ACTION, **SMALL).build()
    calls, generate = [], module["hyper"].net.generate
    module["hyper"].net.generate = lambda *heads: (calls.append(heads), generate(*heads))[1]
    return module, calls


@pytest.mark.parametrize("change", [set_state, load_state_dict, adam, fused_adam])
def test_sampling_generates_weights_once_and_again_after_every_change(counted, change):
    module, calls = counted
    before = [outputs(module, policy) for policy in ("first", "second", "first")]
    assert calls == [("actor",)]
    assert torch.equal(before[0], before[2])
    change(module)
    assert not torch.equal(outputs(module, "first"), before[0])


def test_a_forward_pass_of_training_generates_weights_once_for_all_policies_and_their_values(counted):
    module, calls = counted
    batch = {policy: {"obs": torch.rand(3, 2)} for policy in ("first", "second")}
    out = module.forward_train(batch)
    for policy in batch:
        module[policy].compute_values(batch[policy], embeddings=out[policy]["embeddings"])
    assert calls == [()]


# ------------------------------------------------------------------------------------------------------ distributions


@pytest.mark.parametrize("log_std", ["shared", "per_policy", "generated"])
def test_rllib_s_gaussian_is_ours(log_std):
    box = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
    module = stock_module_spec(["a", "b"], OBS, box, **SMALL, log_std=log_std).build()
    net, obs = module["hyper"].net, torch.rand(2, 5, 2)
    if net.log_std is not None:
        net.log_std.data.normal_()
    ours = net.policy(obs, net.generate("actor"))
    actions = ours.sample()
    for i, policy in enumerate(("a", "b")):
        inputs = module.forward_train({policy: {"obs": obs[i]}})[policy]["action_dist_inputs"]
        theirs = module[policy].get_train_action_dist_cls().from_logits(inputs)
        torch.testing.assert_close(theirs.logp(actions[i]), ours.log_prob(actions)[i])
        torch.testing.assert_close(theirs.entropy(), ours.entropy()[i])


def test_rllib_s_multi_categorical_is_ours():
    module = stock_module_spec(["a", "b"], OBS, gym.spaces.MultiDiscrete([2, 3]), **SMALL).build()
    net, obs = module["hyper"].net, torch.rand(2, 5, 2)
    ours = net.policy(obs, net.generate("actor"))
    actions = ours.sample()
    for i, policy in enumerate(("a", "b")):
        inputs = module.forward_train({policy: {"obs": obs[i]}})[policy]["action_dist_inputs"]
        theirs = module[policy].get_train_action_dist_cls().from_logits(inputs)
        torch.testing.assert_close(theirs.logp(actions[i]), ours.log_prob(actions)[i])
        torch.testing.assert_close(theirs.entropy(), ours.entropy()[i])


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("critic", "central", "critic is not possible here .*use HyperMARLConfig"),
        ("action_bound", "tanh", "action_bound is not possible here"),
        ("normalise_obs", True, "normalise_obs is not possible here"),
        ("hypernet_reads_obs", True, "hypernet_reads_obs is not possible here .*generated for the policy"),
        ("embeding_dim", 4, "unknown key 'embeding_dim'"),
        ("embedding_dim", "four", "hypermarl.embedding_dim is 'four'"),
    ],
)
def test_what_is_not_possible_here_is_refused_with_a_reason(key, value, words):
    with pytest.raises(ConfigError, match=words):
        stock_module_spec(["a", "b"], OBS, ACTION, **{key: value})


def test_rllib_s_wrapper_for_several_learners_is_refused():
    module = stock_module_spec(["a", "b"], OBS, ACTION, **SMALL).build()
    wrapped = object.__new__(TorchDDPRLModule)
    torch.nn.Module.__init__(wrapped)
    wrapped.unwrapped = lambda: module["hyper"]
    with pytest.raises(ConfigError, match=r"num_learners is greater than 1: .* or HyperMARLConfig"):
        module.add_module("hyper", wrapped, override=True)
