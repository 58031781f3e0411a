"""The pure-torch parts work where Ray is not installed."""

import subprocess
import sys

SCRIPT = """
import sys
sys.modules["ray"] = None  # every `import ray` fails from here on
import rllib_hypermarl
from rllib_hypermarl import env, losses, metrics, nets, rollout
assert rllib_hypermarl.ModelSpec.__name__ == "ModelSpec" and rllib_hypermarl.Step.__name__ == "Step"
loaded = [name for name in sys.modules if name.split(".")[0] == "ray" and sys.modules[name] is not None]
assert not loaded, loaded
"""


def test_imports_without_ray():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
