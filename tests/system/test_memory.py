"""The driver does not grow: 20 iterations of 600 envs x 100 steps, update and evaluation included."""

import json
import subprocess
import sys

import pytest

from tests.helpers import ROOT, environment

SCRIPT = """
import json, logging, resource
import psutil, ray
from rllib_hypermarl import HyperMARLConfig

ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
algo = HyperMARLConfig.from_yaml("tune_configs/dispersion.yaml", [
    "training.train_batch_size_per_learner=60000", "training.minibatch_size=2000", "run.torch_threads=1",
    "env_runners.num_envs_per_env_runner=600", "env_runners.rollout_fragment_length=100", "run.device=cpu",
    "training.num_epochs=1", "evaluation.evaluation_interval=5",
]).build_algo()
resident = []
for _ in range(20):
    algo.train()
    resident.append(psutil.Process().memory_info().rss)
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"resident": resident, "peak": peak, "env_steps": algo.env_steps}))
algo.stop()
ray.shutdown()
"""


@pytest.mark.system
@pytest.mark.timeout(1200)
def test_twenty_iterations_of_600_by_100_do_not_grow_the_driver():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment(), text=True, capture_output=True, timeout=1100
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    resident = [value / 1e6 for value in measured["resident"]]
    print(f"peak {measured['peak'] / 1e6:.0f} MB, after 8 {resident[7]:.0f}, after 20 {resident[-1]:.0f}")
    assert measured["env_steps"] == 20 * 60_000
    assert measured["peak"] < 1.2e9
    # A rollout that is kept would be 60 MB an iteration, 600 here; the allocator's heap alone may creep by 30.
    assert max(resident[15:]) < max(resident[5:10]) + 60
