"""What several tests share: a small game, the part of a result that must repeat, and real processes."""

import contextlib
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import ray
import torch
import yaml

from rllib_hypermarl.rllib.grammar import apply_overrides
from rllib_hypermarl.rllib.run_dir import read_rows

ROOT = Path(__file__).parent.parent

# A config of which an iteration takes hundredths of a second.
GAME = {
    "env": "games/specialisation",
    "env_config": {"n_agents": 4, "horizon": 5},
    "hypermarl": {"actor_hidden": [16], "critic_hidden": [16], "hypernet_hidden": [8]},
    "training": {"num_epochs": 2, "minibatch_size": 32, "train_batch_size_per_learner": 128},
    "env_runners": {"num_envs_per_env_runner": 16, "rollout_fragment_length": 8},
    "run": {"stop_env_steps": 384, "torch_threads": 1, "device": "cpu"},
}
STEPS = 128  # env steps of one iteration of it


@contextlib.contextmanager
def private_ray(**options):
    """A Ray of these tests' own; everything it started is gone at the end."""
    assert not ray.is_initialized(), "another test's Ray runs: was it left, or is its fixture of a wider scope?"
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **options)
    try:
        yield
    finally:
        ray.shutdown()


def game(*overrides):
    """The config as nested groups, with overrides `group.key=value`."""
    return apply_overrides(GAME, overrides)


def write_config(directory, *overrides, name="config.yaml"):
    path = Path(directory) / name
    path.write_text(yaml.safe_dump(game(*overrides)), encoding="utf-8")
    return path


def rows(run_dir):
    """The rows of a run's `result.json`, without touching the run."""
    return read_rows(Path(run_dir))


# Results that tell of the clock, the machine or the process.
_NOT_REPEATED = {
    "timers", "perf", "date", "timestamp", "time_this_iter_s", "time_total_s", "time_since_restore", "pid", "hostname",
    "node_ip", "iterations_since_restore", "env_steps_per_second", "sample", "env_step_timer", "config",
}  # fmt: skip


def comparable(row):
    """What of a result must be the same when the same run is done again."""
    return {
        key: comparable(value) if isinstance(value, dict) else value
        for key, value in row.items()
        if key not in _NOT_REPEATED and not key.endswith("_throughput")
    }


def same(a, b):
    """Whether two results are equal bit for bit, NaN equal to itself."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b or (a != a and b != b)


def weights(algo):
    """The learner's parameters, copied."""
    (state,) = algo.learner_group.foreach_learner(lambda learner: learner.module["hyper"].get_state())
    state = state.get() if hasattr(state, "get") and callable(state.get) and not isinstance(state, dict) else state
    return {name: torch.as_tensor(value).clone() for name, value in state.items()}


def train_until_whole(algo, runners=2, seconds=60):
    """Trains until the env runners that died are back, and once more; returns the results."""
    results, deadline = [], time.monotonic() + seconds
    while algo.env_runner_group.num_healthy_remote_workers() < runners:
        assert time.monotonic() < deadline, "a runner did not come back"
        results.append(algo.train())
    return [*results, algo.train()]


def parameters(algo):
    """The parameters and statistics of every learner, each a dict of arrays."""
    found = algo.learner_group.foreach_learner(lambda learner: learner.module["hyper"].get_state())
    return [result.get() if hasattr(result, "ok") else result for result in found]


def assert_equal(first, second, tolerance=0.0):
    """That two dicts of arrays are the same, bit for bit unless there is a tolerance."""
    assert first.keys() == second.keys() and first
    for name in first:
        a, b = torch.as_tensor(first[name]), torch.as_tensor(second[name])
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


# ------------------------------------------------------------------------------------------------------ real processes


def command(*arguments):
    return [sys.executable, "-m", "rllib_hypermarl", *map(str, arguments)]


def environment(**extra):
    keep = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RAY_ADDRESS")}
    return {**keep, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", **extra}


def start(*arguments, cwd):
    """Starts a command in a session of its own, so that a signal to it reaches nobody else."""
    return subprocess.Popen(
        command(*arguments), cwd=cwd, env=environment(), start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(*arguments, cwd, timeout=540, env=None):
    return subprocess.run(
        command(*arguments), cwd=cwd, env=env or environment(), text=True, capture_output=True, timeout=timeout
    )


def wait_until(condition, process=None, timeout=480, every=0.05):
    """Waits for `condition()`; a process that ends meanwhile is an error, and its output is shown."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every)


def processes_of(pid):
    """The living processes of the session that process `pid` began, itself left out: its Ray, while there is one."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        try:
            of_session = os.getsid(process.pid) == pid != process.pid
        except OSError:  # gone meanwhile
            continue
        if of_session and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(" ".join(process.info["cmdline"] or [])[:80])
    return found
