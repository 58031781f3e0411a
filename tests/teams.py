"""What tests of changing teams share: small algorithms, and what of them must stay or go on."""

import math

import torch

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.rllib import checkpoints
from tests.helpers import comparable, game, same, weights

EVALUATING = ("evaluation.evaluation_interval=100", "evaluation.evaluation_duration=3")


def build(*overrides):
    return HyperMARLConfig.from_groups(game(*overrides)).build_algo()


def sides(n_agents, *overrides):
    """A game that teams of all sizes can play."""
    size = f"env_config={{n_agents: {n_agents}}}"
    return HyperMARLConfig.from_groups(game("env=tests.team_envs:Sides", size, *overrides)).build_algo()


def small_team(env, env_config=None, hypermarl=None):
    """Any env's team, of networks and rollouts that take no time."""
    return (
        HyperMARLConfig()
        .environment(env, env_config=env_config or {})
        .hypermarl(actor_hidden=[8], critic_hidden=[8], hypernet_hidden=[8], **(hypermarl or {}))
        .training(num_epochs=2, minibatch_size=32, train_batch_size_per_learner=64)
        .env_runners(num_envs_per_env_runner=4, rollout_fragment_length=16)
        .run(seed=0, torch_threads=1, device="cpu")
        .build_algo()
    )


def train_and_evaluate(*team):
    """A small team for three iterations; what its learner and its evaluation then report."""
    algo = small_team(*team)
    for _ in range(3):
        learned = algo.train()["learners"]["hyper"]
    evaluated = algo.evaluate()["env_runners"]
    algo.stop()
    assert math.isfinite(learned["total_loss"]) and math.isfinite(evaluated["agent_return_mean"])
    return learned, evaluated


def learner(algo):
    (result,) = algo.learner_group.foreach_learner(lambda learner: learner)
    return result.get()


def act(algo, agents=4):
    """What the agents' networks put out on fixed observations: log-probabilities `[N, B, A]` and values `[N, B]`."""
    net = learner(algo).net
    obs = torch.randn(agents, 5, net.spec.heads["actor"].in_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made = net.generate()
        return net.policy(obs, made).log_probs, net.value(obs, None, made)


def actor_of(net, row):
    """The actor's tensors of the policy in this row; one row may stand for all."""
    return [tensor[row if len(tensor) > 1 else 0] for layer in net.generate("actor")["actor"] for tensor in layer]


def runners_agree(algo):
    """Whether all env runners hold the learner's team and weights. (After an update those of evaluation wait.)"""
    learned, spec = weights(algo), learner(algo).net.spec
    groups = [group for group in (algo.env_runner_group, algo.eval_env_runner_group) if group is not None]
    modules = [module for group in groups for module in group.foreach_env_runner(lambda runner: runner.module["hyper"])]
    return all(
        module.net.spec == spec and all(torch.equal(value, learned[key]) for key, value in module.state_dict().items())
        for module in modules
    )


def adam(algo):
    """The optimiser's state per parameter name."""
    of = learner(algo)
    state = of.get_optimizer("hyper").state
    return {name: {key: value.clone() for key, value in state[p].items()} for name, p in of.net.named_parameters()}


def goes_on_from(checkpoint, algo, iterations=2):
    """Whether the checkpoint, restored, trains on as the algorithm that it was taken of."""
    restored = checkpoints.load(checkpoint)
    assert same_spec(restored, algo)
    rows = [[comparable(a.train()) for _ in range(iterations)] for a in (algo, restored)]
    learned, again = weights(algo), weights(restored)
    restored.stop()
    return same_rows(*rows) and all(torch.equal(value, again[name]) for name, value in learned.items())


def same_spec(first, second):
    return learner(first).net.spec == learner(second).net.spec == first.env_runner.net.spec


def same_rows(first, second):
    return all(same(a, b) for a, b in zip(first, second, strict=True))
