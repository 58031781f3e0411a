"""A run that starts with what another one has learned."""

import shutil

import pytest
import torch
from ray.rllib.core.rl_module.rl_module import RLModule

from rllib_hypermarl.errors import CheckpointError, ConfigError, TransferError
from rllib_hypermarl.rllib import checkpoints
from tests.helpers import weights
from tests.teams import act, actor_of, build, goes_on_from, learner, runners_agree, sides

pytestmark = pytest.mark.usefixtures("ray_session")


LEARNING = (
    "hypermarl.actor_hidden=[32]", "hypermarl.critic_hidden=[32]", "hypermarl.hypernet_hidden=[32]",
    "training.lr=3e-3", "training.num_epochs=4", "training.minibatch_size=128",
    "training.train_batch_size_per_learner=512", "env_runners.num_envs_per_env_runner=128",
    "env_runners.rollout_fragment_length=4", "reporting.metrics_num_episodes_for_smoothing=512",
)  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The run of two agents that have learned to take a side each."""
    algo = sides(2, *LEARNING)
    for _ in range(25):
        last = algo.train()
    assert last["env_runners"]["agent_return_mean"] > 0.99
    run = tmp_path_factory.mktemp("two")
    checkpoints.save(algo, run)
    algo.stop()
    return run


def test_a_run_starts_with_another_run_s_networks_for_more_agents_and_for_fewer(two, tmp_path):
    four = sides(4, *LEARNING, f"hypermarl.init_from={two}", "hypermarl.init_like={agent_3: agent_0}")
    assert runners_agree(four)
    ours, theirs = learner(four).net, RLModule.from_checkpoint(str(module_of(two))).net
    for here, there in ((0, 0), (1, 1), (3, 0)):
        torch.testing.assert_close(actor_of(ours, here), actor_of(theirs, there))
    assert not torch.allclose(actor_of(ours, 2)[0], actor_of(theirs, 0)[0])
    four.train()
    back = sides(2, *LEARNING, f"hypermarl.init_from={checkpoints.save(four, tmp_path)}")
    assert torch.equal(
        learner(back).net.contexts["embedding"].weight, learner(four).net.contexts["embedding"].weight[:2]
    )
    for algo in (four, back):
        algo.stop()


def module_of(run):
    return checkpoints.find(run) / "learner_group/learner/rl_module/hyper"


def test_copies_of_what_two_have_learned_solve_the_game_of_four_at_once(two):
    four = sides(4, *LEARNING, f"hypermarl.init_from={two}", "hypermarl.init_like={agent_2: agent_0, agent_3: agent_1}")
    assert four.train()["env_runners"]["agent_return_mean"] > 0.99  # chance: 0.81
    four.stop()


def test_contexts_alone_learn_and_everything_else_stays_bit_for_bit(two):
    """Agents 2 and 3 look for a side in what agents 0 and 1 have learned. Seeds 0 to 4: above 0.98 after 30."""
    four = sides(4, *LEARNING, f"hypermarl.init_from={two}", "hypermarl.trainable=contexts", "run.seed=2")
    before = weights(four)
    first = four.train()
    for _ in range(29):
        last = four.train()
    assert first["env_runners"]["agent_return_mean"] < 0.93
    assert last["env_runners"]["agent_return_mean"] > 0.97
    assert last["learners"]["hyper"]["num_trainable_parameters"] == 16
    moved = [name for name, value in weights(four).items() if not torch.equal(value, before[name])]
    assert moved == ["net.contexts.embedding.weight"]
    four.stop()


def test_contexts_of_a_grown_team_are_still_all_that_moves(tmp_path):
    algo = build("hypermarl.trainable=contexts")
    algo.train()
    algo.add_policy("scout", "agent_2")
    before = weights(algo)
    algo.train()
    moved = [name for name, value in weights(algo).items() if not torch.equal(value, before[name])]
    assert moved == ["net.contexts.embedding.weight"]
    assert goes_on_from(checkpoints.save(algo, tmp_path), algo)
    algo.stop()


def test_a_policy_can_start_frozen_as_another_run_left_it(two):
    four = sides(4, *LEARNING, f"hypermarl.init_from={two}", "hypermarl.frozen=[agent_0, agent_1]")
    probs = act(four)[0][:2]
    for _ in range(20):
        last = four.train()
    assert torch.equal(act(four)[0][:2], probs)
    assert last["env_runners"]["agent_return_mean"] > 0.95  # the others have found the room that these two leave
    four.stop()


def test_a_run_is_resumed_where_the_one_it_started_from_is_gone(two, tmp_path):
    gone = shutil.copytree(two, tmp_path / "gone")
    algo = sides(4, *LEARNING, f"hypermarl.init_from={gone}")
    algo.train()
    checkpoint = checkpoints.save(algo, tmp_path / "run")
    shutil.rmtree(gone)
    assert goes_on_from(checkpoint, algo)
    algo.stop()


def test_a_grown_run_can_be_started_from(tmp_path):
    algo = build()
    algo.add_policy("scout", "agent_2")
    algo.freeze_policy("scout")
    algo.train()
    checkpoint = checkpoints.save(algo, tmp_path)
    again = build(
        f"hypermarl.init_from={checkpoint}", "policies={scout: agent_1, '*': own}", "hypermarl.frozen=[scout]"
    )
    assert torch.equal(learner(again).net.snapshot.weight_0, learner(algo).net.snapshot.weight_0)
    for either in (algo, again):
        either.stop()


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (("init_from=nowhere",), CheckpointError, "nowhere: no such run or checkpoint"),
        (("init_from={two}", "actor_hidden=[8]"), TransferError, "actor.hidden is (32,) there and (8,) here"),
        (("init_from={two}", "sharing=none"), TransferError, "actor.sharing is 'hyper_mlp' there and 'none' here"),
        (("init_from={two}", "init_like={{agent_3: agent_7}}"), TransferError, "'agent_7' is no policy there"),
        (("init_from={two}", "init_like={{agent_7: agent_0}}"), ConfigError, "init_like: 'agent_7' is no policy"),
        (("frozen=[agent_9]",), ConfigError, "frozen: 'agent_9' is no policy; policies are agent_0"),
        (("frozen=[agent_0,agent_1,agent_2,agent_3]",), ConfigError, "nothing is left to train"),
        (("trainable=contexts", "sharing=none"), ConfigError, "no network reads learned embeddings"),
    ],
)
def test_starts_that_cannot_work_are_named(two, overrides, error, words):
    with pytest.raises(error) as caught:
        sides(4, *LEARNING, *(f"hypermarl.{text.format(two=two)}" for text in overrides))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_networks_is_named(two, tmp_path):
    broken = shutil.copytree(checkpoints.find(two), tmp_path / "checkpoint_000025")
    (broken / checkpoints.MANIFEST).unlink()
    shutil.rmtree(broken / "learner_group")
    with pytest.raises(CheckpointError, match="holds no team's networks"):
        sides(4, *LEARNING, f"hypermarl.init_from={broken}")


def test_a_central_critic_is_left_behind_where_the_config_says_so(tmp_path):
    small = sides(2, "hypermarl.critic=central")
    checkpoint = checkpoints.save(small, tmp_path)
    with pytest.raises(TransferError, match=r"whole team, 4 numbers there and 8 here"):
        sides(4, "hypermarl.critic=central", f"hypermarl.init_from={checkpoint}")
    four = sides(4, "hypermarl.critic=central", f"hypermarl.init_from={checkpoint}", "hypermarl.init_heads=[actor]")
    ours, theirs = learner(four).net, learner(small).net
    assert torch.equal(ours.sources["actor"].head_weights[0], theirs.sources["actor"].head_weights[0])
    four.train()
    four.stop()
    small.stop()
