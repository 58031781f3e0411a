"""A team that changes where env runners and learners are processes of their own, also after one was killed."""

import os
import signal

import pytest
import torch

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.rllib import checkpoints
from tests.helpers import STEPS, assert_equal, game, parameters, private_ray, train_until_whole

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
REMOTE = (
    "env_runners.num_env_runners=2", f"training.train_batch_size_per_learner={STEPS}", "learners.num_learners=2",
    "evaluation.evaluation_interval=100", "evaluation.evaluation_duration=3",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with private_ray(num_cpus=5):
        yield


def build(*overrides):
    return HyperMARLConfig.from_groups(game(*REMOTE, *overrides)).build_algo()


def teams(algo):
    """Policies and frozen ones, as every learner and every env runner has them."""
    found = algo.learner_group.foreach_learner(lambda learner: learner.net.spec)
    specs = [result.get() for result in found]
    for group in (algo.env_runner_group, algo.eval_env_runner_group):
        specs += group.foreach_env_runner(lambda runner: runner.net.spec)
    return {(spec.policies, spec.frozen) for spec in specs}


def test_learners_runners_and_restarted_runners_get_the_changed_team(tmp_path):
    algo = build()
    algo.train()
    algo.add_policy("scout", "agent_3")
    algo.freeze_policy("agent_0")
    changed = {(("agent_0", "agent_1", "agent_2", "scout"), ("agent_0",))}
    assert teams(algo) == changed
    assert_equal(*parameters(algo))
    frozen = {name: value.copy() for name, value in parameters(algo)[0].items() if "snapshot" in name}
    assert frozen

    pids = algo.env_runner_group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    algo.train()
    train_until_whole(algo)
    assert teams(algo) == changed
    assert_equal(*parameters(algo))
    assert all(
        torch.equal(torch.as_tensor(parameters(algo)[0][name]), torch.as_tensor(v)) for name, v in frozen.items()
    )
    checkpoint = checkpoints.save(algo, tmp_path)
    learned = parameters(algo)[0]
    algo.stop()

    restored = checkpoints.load(checkpoint)
    assert teams(restored) == changed
    assert_equal(parameters(restored)[1], learned)
    restored.train()
    restored.stop()

    started = build(
        f"hypermarl.init_from={checkpoint}", "policies={scout: agent_3, '*': own}", "hypermarl.frozen=[agent_0]"
    )
    for of_learner in parameters(started):
        assert_equal(of_learner, learned)
    runners = started.env_runner_group.foreach_env_runner(lambda runner: runner.module["hyper"].get_state())
    for of_runner in runners:
        assert_equal(of_runner, learned)
    started.train()
    started.stop()


def test_remote_runners_remember_and_learners_find_what_they_did():
    """The networks that sampled, asked again in sequences, give every action the probability that it had."""
    memory = "hypermarl.memory=gru", "hypermarl.memory_size=8", "hypermarl.sequence_length=4"
    one_step = "training.num_epochs=1", "training.minibatch_size=128", "env=games/recall", "env_config={delay: 3}"
    algo = build(*memory, *one_step)
    for iteration in range(3):
        learned = algo.train()["learners"]["hyper"]
        assert abs(learned["mean_kl_loss"]) < 1e-6 and learned["clip_fraction"] == 0, iteration
    remembered = algo.env_runner_group.foreach_env_runner(
        lambda runner: runner._memory["actor"].state, local_env_runner=False
    )
    assert all(state.any() for state in remembered) and not torch.equal(*remembered)
    assert_equal(*parameters(algo))
    algo.stop()
