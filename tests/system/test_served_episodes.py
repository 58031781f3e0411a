"""A served team earns what `evaluate` says of its checkpoint, in VMAS and in a game that takes memory."""

import json
import subprocess
import sys

import pytest

from tests.helpers import ROOT, environment, run
from tests.serving.server import Server

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
EPISODES, SEED = 100, 5
TEAMS = {
    "vmas": ("dispersion", ["run.stop_env_steps=8192", "evaluation.evaluation_interval=null"]),
    "memory": ("recall", ["run.stop_env_steps=18_000", "evaluation.evaluation_interval=null"]),
}


def played(url):
    """What `serving.play` reports."""
    done = subprocess.run(
        [sys.executable, "-m", "rllib_hypermarl.serving.play", url, "--episodes", str(EPISODES), "--seed", str(SEED)],
        cwd=ROOT, env=environment(), text=True, capture_output=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("team", TEAMS)
def test_the_mean_return_lies_in_the_interval_of_evaluate(tmp_path, team):
    config, overrides = TEAMS[team]
    path = ROOT / f"tune_configs/{config}.yaml"
    done = run("train", path, *overrides, "run.torch_threads=1", "run.device=cpu", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("evaluate", "run", "--episodes", EPISODES, "--seed", SEED, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = json.loads(done.stdout)
    done = run("export", "run", "bundle", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    server = Server(tmp_path / "bundle")
    try:
        found, metadata = played(server.url), server.metadata()
    finally:
        server.stop()
    assert found["versions"] == [metadata["version"]] and (metadata["memory"] is not None) == (team != "vmas")
    half = 1.96 * expected["agent_return_std"] / EPISODES**0.5
    assert half > 0 and abs(found["agent_return_mean"] - expected["agent_return_mean"]) <= half
    if team == "memory":
        assert found["agent_return_mean"] == pytest.approx(expected["agent_return_mean"])  # the game has no chaos
        assert found["agent_return_mean"] > 0.4  # chance, which nobody beats without memory, is 0.25
        assert found["env"] == "games/recall"
