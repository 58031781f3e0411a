"""Small stores of runs, with results that were never trained for."""

import json
import math

import numpy as np

from rllib_hypermarl.report.grouping import group_runs
from rllib_hypermarl.report.store import read_runs
from rllib_hypermarl.rllib.config import HyperMARLConfig
from rllib_hypermarl.rllib.grammar import apply_overrides
from tests.helpers import GAME

STEPS = 128


def write_run(path, *overrides, seed=0, rows=8, stop=None, level=0.5, metrics=None):
    """A run directory: greedy returns at every second row rise from 0 to `level` and a little that the seed adds."""
    stop = rows * STEPS if stop is None else stop
    extra = [f"run.seed={seed}", f"run.stop_env_steps={stop}"]
    path.mkdir(parents=True)
    HyperMARLConfig.from_groups(apply_overrides(GAME, [*overrides, *extra])).to_yaml(path / "config.yaml")
    noise = np.random.RandomState(seed or 0)
    pace = 1 + noise.rand()
    lines = []
    for i in range(1, rows + 1):
        value = level * i / rows + 0.1 * noise.rand()
        row = {
            "num_env_steps_sampled_lifetime": STEPS * i,
            "time_total_s": pace * i,
            "env_steps_per_second": STEPS / pace,
            "env_runners": {"agent_return_mean": value - 0.2, "episode_len_mean": 5.0},
            "learners": {"hyper": {"num_trainable_parameters": 123.0, "vf_loss": math.nan}},
            "hostname": "somewhere",
        }
        if i % 2 == 0:
            row["evaluation"] = {"env_runners": {"agent_return_mean": value}}
        if metrics:
            row["metrics"] = {name: start + value for name, start in metrics.items()}
        lines.append(json.dumps(row) + "\n")
    (path / "result.json").write_text("".join(lines))
    return path


def greedy(path):
    """The greedy returns in a run's results."""
    found = [json.loads(line) for line in (path / "result.json").read_text().splitlines()]
    return [row["evaluation"]["env_runners"]["agent_return_mean"] for row in found if "evaluation" in row]


def small_store(directory):
    """Two tasks, one with three groups (of five, three and one finished runs), one with one; and what is broken."""
    for seed in range(5):
        metrics = {"snd": 0.1, "noise/ratio": 2.0}
        metrics |= {f"embeddings/agent_{i}/{k}": (seed + 1) * (i + k) ** 2 for i in range(3) for k in range(2)}
        write_run(directory / f"mlp/seed_{seed}", seed=seed, level=0.8, metrics=metrics)
    for seed in range(3):
        write_run(directory / f"none/seed_{seed}", "hypermarl.sharing=none", seed=seed, level=0.6)
    write_run(directory / "none/seed_3", "hypermarl.sharing=none", seed=3, rows=4, stop=8 * STEPS)
    write_run(directory / "full", "hypermarl.sharing=full", level=0.2)
    write_run(directory / "eight", "env_config.n_agents=8", level=0.3)
    write_run(directory / "broken/config")
    (directory / "broken/config/config.yaml").write_text("env: games/specialisation\nhypermarl: {sharring: none}\n")
    write_run(directory / "broken/empty")
    (directory / "broken/empty/result.json").write_text("")
    write_run(directory / "broken/nameless")
    (directory / "broken/nameless/config.yaml").unlink()
    return directory


def grouped(*paths):
    """The tasks of what is below some directories, and what is left out."""
    runs, _ = read_runs([(str(path), path) for path in paths])
    return group_runs(runs)
