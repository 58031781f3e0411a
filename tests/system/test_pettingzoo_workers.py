"""Worker processes of PettingZoo envs: that they do what one process does, and what becomes of them when they crash,
hang, or are killed, or their owner is."""

import gc
import importlib
import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch
import yaml
from rllib_hypermarl.envs.pettingzoo_pool import LostWorkerError

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.errors import EnvError
from tests import zoo
from tests.envs.pettingzoo_reference import compare, play, turns_reference
from tests.envs.test_pettingzoo import ENVS, FORGETFUL, IDS, do, equals_pettingzoo, make, puppets
from tests.helpers import ROOT, environment, game, processes_of, rows, run, start, wait_until

pytestmark = pytest.mark.system


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pids):
    return not any(lives(pid) for pid in pids)


def children(recursive=False):
    found = [process for process in psutil.Process().children(recursive) if lives(process.pid)]
    return {process.pid for process in found if any("pettingzoo_worker" in word for word in process.cmdline())}


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    gc.collect()
    assert not children()


@pytest.mark.parametrize(("name", "kwargs", "ends", "with_state"), ENVS, ids=IDS)
def test_workers_equal_pettingzoo_step_by_step(name, kwargs, ends, with_state):
    env = make(name, num_envs=3, num_workers=2, **kwargs)
    for seed in (1, 2**31 - 1):
        equals_pettingzoo(env, name, kwargs, with_state, seed)
        if name.startswith(FORGETFUL):
            break
    env.close()


def test_workers_equal_pettingzoo_turn_by_turn():
    env = make("classic.tictactoe_v3", num_envs=3, num_workers=2)
    actions, steps = play(env, 4, 40)
    compare(steps, turns_reference(importlib.import_module("pettingzoo.classic.tictactoe_v3").env, 4, actions))
    env.close()


def test_the_order_of_agents_is_the_same_in_every_process():
    """RLlib's wrapper makes a set of them, whose order hangs on the process's hash seed."""
    code = (
        "from rllib_hypermarl import make\n"
        "env = make('pettingzoo/tests.zoo:Wanderers', num_envs=2, num_workers={})\n"
        "print(env.agents, list(env.action_spaces)); env.close()"
    )
    for workers, hash_seed in ((0, "1"), (1, "2")):
        done = subprocess.run(
            [sys.executable, "-c", code.format(workers)], cwd=ROOT, text=True, capture_output=True, timeout=240,
            env=environment(PYTHONHASHSEED=hash_seed), check=True,
        )  # fmt: skip
        assert done.stdout == "('b', 'a') ['b', 'a']\n"


# ---------------------------------------------------------------------------------------------------- crashes and hangs

CRASHES = [
    (zoo.EXIT, r"worker 1 \(pid \d+, copies 2 to 4\) ended with exit code 3 while it was at copy 3"),
    (zoo.KILLED, r"worker 1 \(pid \d+, copies 2 to 4\) was killed by SIGKILL while it was at copy 3"),
    (zoo.HANG, r"worker 1 \(.*\) did not answer within 3 s and was killed while it was at copy 3"),
    (zoo.HANG_IN_C, r"worker 1 \(.*\) did not answer within 3 s and was killed while it was at copy 3"),
    (zoo.RAISE, r"copy 3, raised in step\(\): RuntimeError: the string\s+broke \(.*\); in worker 1 \("),
]


def timeout_for(action):
    return 3.0 if action in (zoo.HANG, zoo.HANG_IN_C) else 60.0


@pytest.mark.parametrize(("action", "message"), CRASHES)
def test_a_crash_fails(action, message):
    env = puppets(5, num_workers=2, step_timeout_s=timeout_for(action))
    env.reset(0)
    with pytest.raises(LostWorkerError, match=message + r".*on_crash: replace in env_config would go on"):
        do(env, 0, 0, 0, action, 0)
    assert not children()
    with pytest.raises(LostWorkerError):  # and does not hang
        env.reset(0)


@pytest.mark.parametrize(("action", "message"), CRASHES)
def test_a_crash_costs_the_episodes_of_that_worker(action, message, caplog):
    env = puppets(5, num_workers=2, on_crash="replace", step_timeout_s=timeout_for(action))
    other = puppets(5)
    for _ in range(2):
        env.reset(0), other.reset(0)
        seen, _ = do(env, 0, 0, 0, 0, 0), do(other, 0, 0, 0, 0, 0)
        step, expected = do(env, 0, 0, zoo.TERMINATE, action, 0), do(other, zoo.TERMINATE, 0, 0, 0, 0)
        assert step.truncated.tolist() == [False, False, True, True, True] and not step.terminated.any()
        assert not step.reward[2:].any()
        assert torch.equal(step.final_obs[2:], seen.obs[2:]) and torch.equal(step.final_state[2:], seen.state[2:])
        assert (step.obs[2:, :, 1] == 0).all() and (step.obs[2:, 0, 0] != seen.obs[2:, 0, 0]).all()
        for field in ("obs", "final_obs", "reward", "state", "final_state"):  # the others go on as if nothing had been
            assert torch.equal(getattr(step, field)[1], getattr(expected, field)[1])
        step, expected = do(env, 0, 0, 0, zoo.TRUNCATE, 0), do(other, 0, 0, 0, 0, 0)
        assert step.truncated.tolist() == [False, False, False, True, False]
        assert torch.equal(step.obs[1], expected.obs[1]) and (step.obs[2, :, 1].abs() == 1).all()
    assert env.take_counts() == {"num_episodes_lost": 6}
    assert env.take_counts() == {"num_episodes_lost": 0}
    assert len(caplog.messages) == 2 and "its copies begin new episodes in a new process" in caplog.text
    env.close()


def test_one_that_crashes_again_at_once_is_not_replaced_for_ever():
    env = puppets(2, num_workers=1, on_crash="replace")
    env.reset(0)
    do(env, zoo.EXIT, 0)
    with pytest.raises(LostWorkerError, match=r"exit code 3 .*; it had just replaced another one, so no third one"):
        do(env, 0, zoo.EXIT)


def test_one_that_cannot_begin_is_not_replaced_for_ever():
    env = puppets(2, num_workers=1, on_crash="replace", stillborn=True)
    with pytest.raises(LostWorkerError, match=r"exit code 7 .*; so was the process that should have .* exit code 7"):
        env.reset(0)


def test_what_is_not_supported_fails_whatever_happens_to_crashes():
    env = puppets(2, num_workers=1, on_crash="replace")
    env.reset(0)
    with pytest.raises(EnvError, match="copy 0: right is among the env's agents no more"):
        do(env, zoo.VANISH, 0)


def test_a_crash_leaves_who_was_alive_truncated():
    env = make("tests.zoo:Sloppy", num_envs=2, num_workers=1, on_crash="replace")
    env.reset(0)
    do(env, zoo.GO_ON, zoo.ONE_DIES)
    step = do(env, zoo.EXIT, zoo.GO_ON)
    assert step.truncated.all() and step.alive.all()
    assert step.final_alive.tolist() == [[True, True], [False, True]]
    do(env, zoo.ONE_DIES, zoo.GO_ON)
    step = do(env, zoo.TRUNCATE, zoo.GO_ON)
    assert step.final_alive.tolist() == [[False, True], [True, True]] and step.alive.all()
    assert do(env, zoo.EXIT, zoo.GO_ON).final_alive is None  # all were in the episode that had just begun
    env.close()


def test_workers_do_without_torch():
    code = "import sys, rllib_hypermarl.envs.pettingzoo_worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment()).returncode == 0


def test_workers_end_with_their_env():
    env = puppets(4, num_workers=2)
    pids = children()
    assert len(pids) == 2
    del env
    gc.collect()
    assert gone(pids)


def test_bench(tmp_path):
    code = (
        "import json; from rllib_hypermarl.bench import pettingzoo as bench\n"
        "works = [bench.Work('mpe2.simple_v3', 3, 4), bench.Work('sisl.multiwalker_v9', 2, 3, {'n_walkers': 2})]\n"
        "results = bench.run(works, rounds=1, log=lambda line: None)\n"
        "print(json.dumps([results, bench.table(results)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), text=True, capture_output=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    results, table = json.loads(done.stdout)
    assert [entry["env"] for entry in results] == ["mpe2.simple_v3", "sisl.multiwalker_v9"]
    for entry in results:
        assert entry["ratio"]["loop"] == 1 and min(entry["env_steps_per_second"].values()) > 0
        assert entry["ratio"].keys() == entry["env_steps_per_second"].keys()
        assert all(name in table for name in entry["ratio"])


# ----------------------------------------------------------------------------------------------------- their owner ends

OWNER = """
import sys, torch
from rllib_hypermarl import make
from tests.envs.test_pettingzoo import do, puppets
env = puppets(2, num_workers=2)
env.reset(0)
print("ready", flush=True)
do(env, *map(int, sys.argv[1:]))
sys.stdin.read()
"""


@pytest.mark.parametrize("busy", [zoo.GO_ON, zoo.HANG_IN_C])
def test_no_worker_outlives_an_owner_that_is_killed(busy):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, "0", str(busy)], cwd=ROOT, env=environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert owner.stdout.readline() == "ready\n"
    pids = {process.pid for process in psutil.Process(owner.pid).children(recursive=True)}
    assert len(pids) == 2
    owner.kill()
    owner.communicate()
    wait_until(lambda: gone(pids), timeout=60)


# ------------------------------------------------------------------------------------------------------ whole trainings


def config(directory, *overrides, **env_config):
    groups = game(*overrides) | {"env": "pettingzoo/tests.zoo:Puppet"}
    groups["env_config"] = {"num_actions": 3, "num_workers": 2} | env_config
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(groups), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["simple_spread", "multiwalker"])
def test_a_yaml_is_all_that_training_needs(name, tmp_path):
    small = ["env_runners.num_envs_per_env_runner=4", "env_runners.rollout_fragment_length=32", "run.torch_threads=1",
             "training.train_batch_size_per_learner=128", "training.minibatch_size=64", "run.stop_env_steps=256",
             "evaluation.evaluation_interval=2", "evaluation.evaluation_duration=2"]  # fmt: skip
    done = run("train", ROOT / f"tune_configs/{name}.yaml", *small, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last = rows(tmp_path / "run")[-1]
    assert last["num_env_steps_sampled_lifetime"] == 256
    assert -500 < last["evaluation"]["env_runners"]["agent_return_mean"] < 0


def test_a_run_counts_the_episodes_that_crashes_cost(tmp_path):
    crash = tmp_path / "crash"
    crash.touch()
    path = config(tmp_path, crash_once=str(crash), on_crash="replace")
    done = run("train", path, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ended with exit code 3" in done.stderr and "Traceback" not in done.stderr
    assert not crash.exists()
    assert rows(tmp_path / "run")[-1]["env_runners"]["num_episodes_lost_lifetime"] == 8
    resumed = run("resume", tmp_path / "run", "--stop-env-steps", 512, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert rows(tmp_path / "run")[-1]["num_env_steps_sampled_lifetime"] == 512


def test_a_run_fails_with_one_line(tmp_path):
    (tmp_path / "crash").touch()
    path = config(tmp_path, crash_once=str(tmp_path / "crash"))
    done = run("train", path, "--out", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "worker" in line and "ended with exit code 3" in line and "Traceback" not in done.stderr


def test_an_interrupt_stops_a_run_and_its_workers(tmp_path):
    path = config(tmp_path, "run.stop_env_steps=100000000")
    process = start("train", path, "--out", tmp_path / "run", cwd=tmp_path)
    try:
        wait_until(lambda: (tmp_path / "run/result.json").is_file(), process)
        assert sum("pettingzoo_worker" in line for line in processes_of(process.pid)) >= 2
        os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C is for all of them
        _, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors and "pettingzoo" not in errors
    wait_until(lambda: not processes_of(process.pid), timeout=60)


@pytest.mark.usefixtures("ray_session")
def test_workers_end_with_the_actor_that_owns_them(tmp_path):
    path = config(tmp_path, "env_runners.num_env_runners=1", num_actions=3)
    algo = HyperMARLConfig.from_yaml(path).build_algo()
    algo.train()
    workers = children(recursive=True)
    assert len(workers) >= 2
    runner = psutil.Process(next(iter(workers))).parent()
    assert runner.pid != os.getpid()
    runner.kill()
    wait_until(lambda: gone(workers), timeout=60)
    algo.stop()
