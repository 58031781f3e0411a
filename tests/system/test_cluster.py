"""Training over several nodes, real raylets on this machine, that lose one of them half way."""

import itertools
import os
import signal
import subprocess
import sys

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests import helpers as processes
from tests.helpers import ROOT, STEPS, environment, rows, wait_until, write_config
from tests.system.test_tune import ranking, write_sweep

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture
def cluster():
    """A head that runs nothing: what runs is on nodes that can be lost."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def start(cluster, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "rllib_hypermarl", *map(str, arguments)], env=environment(RAY_ADDRESS=cluster.address),
        cwd=ROOT, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def results(run_dir):
    return rows(run_dir) if (run_dir / "result.json").exists() else []


def test_a_run_that_loses_a_node_of_runners_reaches_its_budget(cluster, tmp_path):
    node = cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    budget = STEPS * 300
    batch = f"training.train_batch_size_per_learner={2 * STEPS}"
    config = write_config(tmp_path, "env_runners.num_env_runners=2", batch, f"run.stop_env_steps={budget}")
    process = start(cluster, "train", config, "--out", tmp_path / "run")
    wait_until(lambda: len(results(tmp_path / "run")) >= 30, process)
    cluster.remove_node(node, allow_graceful=False)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    steps = [row["num_env_steps_sampled_lifetime"] for row in results(tmp_path / "run")]
    assert steps == sorted(set(steps)) and steps[-1] >= budget
    assert STEPS in {b - a for a, b in itertools.pairwise(steps)}  # one runner alone
    assert {b - a for a, b in itertools.pairwise(steps)} <= {STEPS, 2 * STEPS}


def test_a_sweep_that_loses_a_node_ends_whole_and_never_goes_behind_a_checkpoint(cluster, tmp_path):
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    budget = STEPS * 400
    sweep = write_sweep(tmp_path, {"training.lr": {"grid": [1e-3, 1e-2]}},
                        [f"run.stop_env_steps={budget}", "run.checkpoint_seconds=0.5"],
                        seeds=[0], cpus_per_trial=1)  # fmt: skip
    process = start(cluster, "tune", sweep, "--out", tmp_path / "sweep")
    runs = [tmp_path / "sweep" / "candidates" / f"{number:04d}" / "seed_0" for number in (0, 1)]
    wait_until(lambda: all(list(run.glob("checkpoint_*/manifest.json")) for run in runs), process)
    cluster.remove_node(nodes[0], allow_graceful=False)
    saved = {run: max(int(path.name[11:]) for path in run.glob("checkpoint_*")) for run in runs}
    _, stderr = process.communicate(timeout=400)
    assert process.returncode == 0, stderr
    moved = 0
    for run in runs:
        read = results(run)
        assert [row["training_iteration"] for row in read] == list(range(1, 401))
        restored = [row["training_iteration"] for row in read[1:] if row["iterations_since_restore"] == 1]
        moved += len(restored)
        assert all(iteration > saved[run] for iteration in restored)
    assert moved >= 1
    assert [row["state"] for row in ranking(tmp_path / "sweep")] == ["done"] * 2


def learner_processes():
    """Those whose title RLlib's executor for learners gave them."""
    return [
        p.pid for p in psutil.process_iter(["cmdline"]) if "_WrappedExecutable" in " ".join(p.info["cmdline"] or [])
    ]


def test_a_run_that_loses_a_learner_goes_on_from_its_last_checkpoint(tmp_path):
    """A private cluster of one node: what counts is that the process is gone."""
    budget = STEPS * 300
    config = write_config(
        tmp_path, "learners.num_learners=2", "learners.num_cpus_per_learner=0.5", f"run.stop_env_steps={budget}",
        f"training.train_batch_size_per_learner={STEPS // 2}", "run.checkpoint_seconds=0.5",
    )  # fmt: skip
    run_dir = tmp_path / "run"
    process = processes.start("train", config, "--out", run_dir, cwd=ROOT)
    wait_until(lambda: len(results(run_dir)) >= 40 and any(run_dir.glob("checkpoint_*")), process)
    saved = max(int(path.name[11:]) for path in run_dir.glob("checkpoint_*"))
    before = len(results(run_dir))
    victim = next(pid for pid in learner_processes() if os.getsid(pid) == process.pid)
    os.kill(victim, signal.SIGKILL)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "a learner failed" in stderr and "(failure 1 of 3)" in stderr and "Traceback" not in stderr
    found = results(run_dir)
    assert [row["training_iteration"] for row in found] == list(range(1, len(found) + 1))
    assert found[-1]["num_env_steps_sampled_lifetime"] >= budget and before >= saved
    refused = processes.run("train", config, "run.max_failures=-1", "--out", tmp_path / "other", cwd=ROOT)
    assert refused.returncode == 2 and "run.max_failures" in refused.stderr
