"""The pure-torch parts work where Ray is not installed."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
sys.modules["ray"] = None  # every `import ray` fails from here on
import importlib
importlib.import_module("rllib_hypermarl.{module}")
import rllib_hypermarl
assert rllib_hypermarl.ModelSpec.__name__ == "ModelSpec" and rllib_hypermarl.Step.__name__ == "Step"
loaded = [name for name in sys.modules if name.split(".")[0] == "ray" and sys.modules[name] is not None]
assert not loaded, loaded
"""


@pytest.mark.parametrize("module", ["nets", "rollout", "losses", "env", "metrics"])
def test_imports_without_ray(module):
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(module=module)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
