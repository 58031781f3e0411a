"""Training with groups that learn apart: adversaries, each with its own loss."""

import copy

import pytest
import torch

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.bundle import load_policy
from rllib_hypermarl.errors import ConfigError
from rllib_hypermarl.rllib import checkpoints
from tests.helpers import comparable, game, rows, same, weights
from tests.teams import learner

pytestmark = pytest.mark.usefixtures("ray_session")
GROUPS = "hypermarl.groups={first: [agent_0, agent_3], rest: '*'}"


def build(*overrides):
    return HyperMARLConfig.from_groups(game(GROUPS, *overrides)).build_algo()


@pytest.fixture
def algos():
    made = []

    def make(*overrides):
        made.append(build(*overrides))
        return made[-1]

    yield make
    for algo in made:
        algo.stop()


def update(algo, rollout):
    (result,) = algo.learner_group.foreach_learner(lambda one: one.update(batch=copy.deepcopy(rollout)))
    assert result.ok, result.get()
    return weights(algo)


@pytest.mark.parametrize("sharing", ("hyper_mlp", "hyper_linear", "full"))
def test_what_one_group_is_paid_never_reaches_the_other(algos, sharing):
    overrides = (f"hypermarl.sharing={sharing}", "training.entropy_coeff=0.01", "hypermarl.critic=central")
    first, second = algos(*overrides), algos(*overrides)
    rollout = first.env_runner.sample()
    before, one = weights(first), update(first, rollout)
    other_pay = copy.deepcopy(rollout)
    other_pay.reward[[1, 2]] = 100 * torch.randn_like(other_pay.reward[[1, 2]])
    two = update(second, other_pay)
    net = learner(first).net
    for name, parameter in net.named_parameters():
        owner = net.learning_groups.owner(name, name in net.policy_axes())
        mine = (owner == 0).view(-1, *[1] * (parameter.dim() - 1)).expand_as(parameter)
        assert torch.equal(one[f"net.{name}"][mine], two[f"net.{name}"][mine]), name
        moved = one[f"net.{name}"] != two[f"net.{name}"]
        assert moved[~mine].any() or not (~mine).any(), name
        assert (one[f"net.{name}"] != before[f"net.{name}"])[mine].any() or not mine.any(), name


def test_a_run_reports_groups_resumes_and_is_exported(algos, tmp_path):
    algo = algos()
    result = algo.train()["env_runners"]
    returns = result["agent_episode_returns_mean"]
    expected = {"first": (returns["agent_0"] + returns["agent_3"]) / 2,
                "rest": (returns["agent_1"] + returns["agent_2"]) / 2}  # fmt: skip
    assert result["group_return_mean"] == pytest.approx(expected)
    algo.save_to_path(str(tmp_path / "checkpoint"))
    again = checkpoints.load(tmp_path / "checkpoint")
    assert same(comparable(again.train()), comparable(algo.train()))
    again.stop()


def test_bundles_of_groups_act_as_the_team(tmp_path):
    from rllib_hypermarl.__main__ import main
    from tests.helpers import write_config

    config = write_config(tmp_path, GROUPS)
    assert main(["train", str(config), "--out", str(tmp_path / "run")]) == 0
    assert rows(tmp_path / "run")[-1]["env_runners"]["group_return_mean"].keys() == {"first", "rest"}
    actions = []
    for kind in ("full", "frozen"):
        assert main(["export", str(tmp_path / "run"), str(tmp_path / kind), "--kind", kind]) == 0
        policy = load_policy(tmp_path / kind)
        generator = torch.Generator().manual_seed(0)
        size = policy.spec.model.heads["actor"].in_dim
        obs = {agent: torch.randn(64, size, generator=generator) for agent in policy.spec.agents}
        actions.append(policy.act(obs))
    assert all((actions[0][agent] == actions[1][agent]).all() for agent in actions[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((GROUPS.replace("'*'", "'scout_*'"),), r"groups.rest: 'scout_\*' matches none of the policies agent_0"),
        (("hypermarl.groups={first: 'agent_[01]'}",), "groups: no entry covers agent_2, agent_3"),
        (("hypermarl.groups={}",), "hypermarl.groups is {}: expected null, or group"),
        (("hypermarl.groups={a: 3}",), "hypermarl.groups is"),
        (
            (GROUPS, "hypermarl.normalise_values=true"),
            "hypermarl.normalise_values is True: .* the statistics of values",
        ),
        ((GROUPS, "hypermarl.memory=gru"), "hypermarl.memory is 'gru': .* recurrent cores"),
        ((GROUPS, "hypermarl.adaptive_lr_kl=0.01"), "hypermarl.adaptive_lr_kl is 0.01: .* the learning rate"),
    ],
)
def test_groups_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        HyperMARLConfig.from_groups(game(*overrides)).build_algo()


def test_policies_in_groups_stay(algos):
    with pytest.raises(ConfigError, match="keep the policies they have"):
        algos().add_policy("scout", ["agent_1"])
