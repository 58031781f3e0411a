"""Env runners and learners as processes that are killed, stopped, or fail: training goes on or says why not."""

import functools
import os
import re
import signal
import threading
import time

import psutil
import pytest
import ray

from rllib_hypermarl import HyperMARL, HyperMARLConfig
from rllib_hypermarl.errors import ActorsLostError, ConfigError, EnvError, RunFailedError
from rllib_hypermarl.rllib import checkpoints
from tests.helpers import (
    STEPS,
    assert_equal,
    comparable,
    game,
    parameters,
    private_ray,
    same,
    train_until_whole,
    wait_until,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
TWO = ("env_runners.num_env_runners=2", f"training.train_batch_size_per_learner={2 * STEPS}")
SLOW = ("env=tests.faulty_envs:SlowEnv", "env_config={seconds: 0.05, later: 0.05}")  # 0.4 s a rollout


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with private_ray(num_cpus=4, resources={"simulator": 2, "trainer": 2}):
        yield


@pytest.fixture
def build():
    made = []

    def build(*overrides):
        made.append(HyperMARLConfig.from_groups(game(*overrides)).build_algo())
        return made[-1]

    yield build
    for algo in made:
        algo.stop()


def of_runners(algo, function):
    return algo.env_runner_group.foreach_env_runner(function, local_env_runner=False)


def pids(algo):
    return of_runners(algo, lambda runner: os.getpid())


def later(seconds, numbers, signum=signal.SIGKILL):
    timer = threading.Timer(seconds, lambda: [os.kill(pid, signum) for pid in numbers])
    timer.start()
    return timer


def counts(result):
    """Env steps of the iteration, so far, and trained on so far."""
    runners = result["env_runners"]
    trained = result["learners"]["__all_modules__"]["num_env_steps_trained_lifetime"]
    return runners["num_env_steps_sampled"], result["num_env_steps_sampled_lifetime"], trained


def assert_all_have_the_current_weights(algo):
    algo._sampler.sample(algo.env_runner.get_state())
    (ours,) = parameters(algo)
    theirs = of_runners(algo, lambda runner: runner.module["hyper"].get_state())
    assert len(theirs) == 2
    for state in theirs:
        assert_equal(ours, state)


def test_two_runs_of_one_seed_with_two_remote_runners_are_one(build):
    found = []
    for _ in range(2):
        algo = build(*TWO, "evaluation.evaluation_interval=2", "evaluation.evaluation_duration=3")
        found.append([comparable(algo.train()) for _ in range(4)])
    for first, second in zip(*found, strict=True):
        assert same(first, second)
    assert counts(algo.train()) == (2 * STEPS, 10 * STEPS, 10 * STEPS)
    assert_all_have_the_current_weights(algo)
    own = of_runners(algo, lambda runner: (runner.worker_index, runner._seed, runner._generator.initial_seed()))
    assert len(set(own)) == len({seed for _, seed, _ in own}) == 2


def test_a_runner_that_is_killed_while_sampling_is_left_out_and_comes_back(build):
    algo = build(*TWO, *SLOW)
    algo.train()
    later(0.2, pids(algo)[:1])
    results = [counts(result) for result in (algo.train(), *train_until_whole(algo))]
    steps = [iteration for iteration, _, _ in results]
    assert steps[0] == STEPS and steps[-1] == 2 * STEPS  # one rollout, and in the end two again
    assert set(steps) == {STEPS, 2 * STEPS}
    for i, (_, sampled, trained) in enumerate(results):
        assert sampled == trained == 2 * STEPS + sum(steps[: i + 1])
    assert_all_have_the_current_weights(algo)


def test_all_runners_killed_at_once_come_back_within_a_minute(build):
    algo = build(*TWO, *SLOW)
    algo.train()
    later(0.2, pids(algo))
    started = time.monotonic()
    first = counts(algo.train())
    assert time.monotonic() - started < 60
    assert first[0] in (STEPS, 2 * STEPS) and first[1] == first[2] == 2 * STEPS + first[0]
    assert counts(train_until_whole(algo)[-1])[0] == 2 * STEPS
    assert_all_have_the_current_weights(algo)


def test_without_restarts_a_dead_runner_ends_the_run_with_the_reason(build):
    algo = build(*TWO, *SLOW, "fault_tolerance.restart_failed_env_runners=false")
    algo.train()
    later(0.2, pids(algo)[:1])
    with pytest.raises(RunFailedError, match="an env runner died"):
        algo.train()


def test_a_runner_that_hangs_is_left_out_and_what_it_sends_later_is_dropped(build):
    algo = build(*TWO, *SLOW, "env_runners.sample_timeout_s=2")
    algo.train()
    stopped = pids(algo)[:1]
    os.kill(stopped[0], signal.SIGSTOP)
    results = [counts(algo.train()) for _ in range(3)]
    assert [iteration for iteration, _, _ in results] == [STEPS] * 3
    os.kill(stopped[0], signal.SIGCONT)
    for _ in range(4):
        results.append(counts(algo.train()))  # noqa: PERF401  (each waits for the one before)
    assert results[-1][0] == 2 * STEPS
    assert all(sampled == trained for _, sampled, trained in results)
    assert_all_have_the_current_weights(algo)


def test_when_no_runner_answers_in_time_the_key_to_change_is_named(build):
    algo = build(*TWO, *SLOW, "env_runners.sample_timeout_s=0.1")
    with pytest.raises(RunFailedError, match=r"env_runners\.sample_timeout_s"):
        algo.train()


@pytest.mark.parametrize(
    ("env", "words"),
    [
        (("env=tests.faulty_envs:RaisingEnv", "env_config={}"), "KeyError: 'the simulator\\\\nfell over'"),
        (("env=tests.faulty_envs:NaNEnv", "env_config={field: obs}"), "env 2.*right|right.*env 2"),
        (("env=tests.faulty_envs:MaskEnv", "env_config={}"), "action_mask"),
    ],
    ids=["raises", "nan", "contract"],
)
def test_what_an_env_did_wrong_reaches_the_driver_at_once_in_its_own_words(build, env, words):
    algo = build(*TWO, *env)
    started = time.monotonic()
    with pytest.raises(EnvError, match=words) as caught:
        for _ in range(5):
            algo.train()
    assert time.monotonic() - started < 30  # seconds on an idle machine; it is not waited for ever
    assert re.search(r"\(env runner [12]\)$", str(caught.value)) and "\n" not in str(caught.value)


def test_an_env_that_cannot_be_made_is_an_error_of_the_build(build):
    with pytest.raises(Exception, match="n_agentss"):
        build(*TWO, "env_config={n_agentss: 4}")


def test_a_build_that_needs_more_than_the_cluster_has_says_so_at_once(build):
    started = time.monotonic()
    with pytest.raises(ConfigError, match="2 env runners and 1 learners need 5 CPU, the cluster has 4"):
        build(*TWO, "learners.num_learners=1", "env_runners.num_cpus_per_env_runner=2")
    with pytest.raises(ConfigError, match="need 2 GPU, the cluster has 0"):
        build(*TWO, "env_runners.num_gpus_per_env_runner=1")
    with pytest.raises(ConfigError, match="need 2 arm, the cluster has 0"):
        build(*TWO, "env_runners.custom_resources_per_env_runner={arm: 1}")
    assert time.monotonic() - started < 30  # seconds on an idle machine; it is not waited for ever


def taken(kind):
    return ray.cluster_resources()[kind] - ray.available_resources().get(kind, 0)


def test_actors_take_the_resources_that_their_keys_name(build):
    build(
        *TWO, "env_runners.custom_resources_per_env_runner={simulator: 1}", "learners.num_learners=1",
        "learners.num_cpus_per_learner=0.5", "learners.custom_resources_per_learner={trainer: 2}",
    )  # fmt: skip
    for kind, number in {"CPU": 2.5, "simulator": 2, "trainer": 2}.items():
        # Actors of an earlier test give theirs back late.
        wait_until(lambda kind=kind, number=number: taken(kind) == number, timeout=60)


def kill_the_first_learner(algo):
    """The one that RLlib asks for weights and state. Returns when its process is gone."""
    pid = next(iter(algo.learner_group.foreach_learner(lambda learner: os.getpid()))).get()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("moment", ["before an update", "after an update", "before a checkpoint"])
def test_a_learner_that_is_killed_ends_the_run_with_the_reason(build, tmp_path, monkeypatch, moment):
    algo = build("learners.num_learners=2", f"training.train_batch_size_per_learner={STEPS // 2}")
    algo.train()
    update = algo.learner_group.update
    action = algo.train
    if moment == "after an update":

        def update_and_kill(**kwargs):
            results = update(**kwargs)
            kill_the_first_learner(algo)
            return results

        monkeypatch.setattr(algo.learner_group, "update", update_and_kill)
    else:
        kill_the_first_learner(algo)
    if moment == "before a checkpoint":
        action = functools.partial(checkpoints.save, algo, tmp_path)
    started = time.monotonic()
    with pytest.raises(ActorsLostError, match=r"a learner failed .*; go on from the last checkpoint"):
        action()
    assert time.monotonic() - started < 60
    assert not checkpoints.list_checkpoints(tmp_path)


def test_after_a_restore_every_runner_samples_with_the_restored_weights(build, tmp_path):
    algo = build(*TWO)
    for _ in range(3):
        algo.train()
    path = checkpoints.save(algo, tmp_path)
    restored = HyperMARL.from_checkpoint(str(path))
    assert_all_have_the_current_weights(restored)
    assert counts(restored.train()) == (2 * STEPS, 8 * STEPS, 8 * STEPS)
    assert restored.env_runner._weights_seq_no == 4
    restored.stop()
    for _ in range(2):
        algo.train()
    algo.restore_from_path(path)  # back to older weights
    assert_all_have_the_current_weights(algo)
    assert algo.env_runner._weights_seq_no == 3
    assert counts(algo.train())[1] == 8 * STEPS


AHEAD = (*TWO, "hypermarl.sample_ahead=true")


def test_sampling_ahead_is_one_update_behind_and_repeats_with_its_seed(build):
    runs = []
    for _ in range(2):
        algo = build(*AHEAD)
        results = [algo.train() for _ in range(4)]
        assert [result["weights_staleness"] for result in results] == [0, 1, 1, 1]
        assert [counts(result) for result in results] == [
            (2 * STEPS, n * 2 * STEPS, n * 2 * STEPS) for n in (1, 2, 3, 4)
        ]
        runs.append([comparable(result) for result in results])
        algo.stop()
    assert same(*({"rows": dict(enumerate(run))} for run in runs))
    algo = build(*TWO)
    plain = [algo.train() for _ in range(4)]
    assert [result["weights_staleness"] for result in plain] == [0] * 4
    assert not same(comparable(plain[-1]), runs[0][-1])


def test_sampling_ahead_learns_survives_a_killed_runner_and_a_changed_team(build, tmp_path):
    algo = build(*AHEAD, "training.lr=3e-3")  # slower than 1e-2 does without being behind
    algo.train()
    os.kill(pids(algo)[0], signal.SIGKILL)
    train_until_whole(algo)
    for _ in range(80):
        result = algo.train()
    assert result["env_runners"]["agent_return_mean"] > 5 * 0.85
    algo.add_policy("scout", "agent_3")
    after = [algo.train()["weights_staleness"] for _ in range(2)]
    assert after == [0, 1]  # what had been asked for was of the old team
    restored = checkpoints.load(checkpoints.save(algo, tmp_path))
    assert [restored.train()["weights_staleness"] for _ in range(2)] == [0, 1]
    restored.stop()


def test_runners_and_learners_together_learn(build):
    algo = build(
        *TWO[:1], "learners.num_learners=2",
        "learners.num_cpus_per_learner=0.5", f"training.train_batch_size_per_learner={STEPS}", "training.lr=1e-2",
        "evaluation.evaluation_interval=40",
    )  # fmt: skip
    for _ in range(40):
        result = algo.train()
    assert result["evaluation"]["env_runners"]["agent_return_mean"] > 5 * 0.85
    assert counts(result) == (2 * STEPS, 80 * STEPS, 80 * STEPS)
    assert result["env_runners"]["agent_return_mean"] > 5 * 0.85  # chance is 0.68 a step
