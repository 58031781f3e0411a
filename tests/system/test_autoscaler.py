"""A cluster that grows when asked to: Ray's autoscaler, with nodes that are processes of this machine."""

import json
import subprocess

import pytest

from rllib_hypermarl.bench.measure import free_port
from tests import helpers as processes
from tests.helpers import ROOT, STEPS, rows, write_config
from tests.ray_head import Head

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
NODES = {
    "cluster_name": "fake_multinode",
    "max_workers": 2,
    "provider": {"type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True},
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node_type": "ray.head.default",
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5,
    # What `ray up` fills in.
    "auth": {}, "head_node": {}, "worker_nodes": {}, "file_mounts": {}, "cluster_synced_files": [], "rsync_exclude": [],
    "file_mounts_sync_continuously": False, "initialization_commands": [], "setup_commands": [],
    "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}  # fmt: skip


@pytest.fixture
def head(tmp_path):
    config, port = tmp_path / "nodes.yaml", free_port()
    provider = NODES["provider"] | {"gcs_address": f"127.0.0.1:{port}"}
    config.write_text(json.dumps(NODES | {"provider": provider}))
    env = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    head = Head("--num-cpus=0", f"--autoscaling-config={config}", port=port, **env)
    yield head
    head.stop()


def train(head, *arguments):
    return subprocess.run(
        processes.command("train", *arguments), cwd=ROOT, text=True, capture_output=True, timeout=300,
        env={**head.env, "RAY_ADDRESS": f"127.0.0.1:{head.port}"},
    )  # fmt: skip


def test_nodes_that_are_not_there_yet_are_waited_for_and_those_that_never_come_are_not(head, tmp_path):
    two = ("env_runners.num_env_runners=2", f"training.train_batch_size_per_learner={2 * STEPS}")
    config = write_config(tmp_path, *two, f"run.stop_env_steps={20 * STEPS}")
    refused = train(head, config, "--out", tmp_path / "run")
    assert refused.returncode == 2, refused.stderr
    assert "need 2 CPU, the cluster has 0" in refused.stderr and "--wait-for-nodes" in refused.stderr
    too_many = write_config(tmp_path, "env_runners.num_cpus_per_env_runner=3", *two)
    refused = train(head, too_many, "--out", tmp_path / "other", "--wait-for-nodes", "8")
    assert refused.returncode == 2 and "waiting for nodes: 2 env runners and 0 learners need 6 CPU" in refused.stderr
    assert "after 8 s" in refused.stderr
    done = train(head, write_config(tmp_path, *two, f"run.stop_env_steps={20 * STEPS}"), "--out", tmp_path / "run",
                 "--wait-for-nodes", "200")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("waiting for nodes: 2 env runners and 0 learners need 2 CPU, the cluster has 0") >= 1
    assert rows(tmp_path / "run")[-1]["num_env_steps_sampled_lifetime"] >= 20 * STEPS
