"""What Tune costs: two one-core candidates of a sweep, against the same two runs started by hand at once.

Both sides train the same configs and seeds for the same number of env steps, about a minute of one core, with one torch
thread per process. *Steady* compares the summed env steps per second while both runs are under way; *wall-clock* the
time from the command's start to its end, Ray's start included.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from .measure import machine

SECONDS = 60.0
_WARM_UP = 5.0  # seconds after the second run's first row that do not count as steady
_POLL = 0.05
_PROBE_STEPS = 40 * 8192  # to see how many env steps fill the seconds
_CONFIG = {
    "env": "vmas/dispersion",
    "env_config": {"n_agents": 4, "n_food": 4, "max_steps": 100, "food_radius": 0.08, "continuous_actions": False},
    "evaluation": {"evaluation_interval": 20, "evaluation_duration": 16},
    "run": {"torch_threads": 1, "device": "cpu"},
}


def run(rounds: int = 3, seconds: float = SECONDS, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Measures both sides in turns.

    Returns:
        Per side medians of `steady` (env steps per second, both runs) and `wall` (seconds), and the ratios Tune / by
        hand with their lowest and highest: of speeds, so that 1 is no overhead.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        probe = _by_hand(directory / "probe", _PROBE_STEPS)
        stop = int(probe["steady"] / 2 * seconds)
        sides = {"by hand": _by_hand, "tune": _tune}
        measured: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for number in range(rounds):
            for side in list(sides)[:: -1 if number % 2 else 1]:
                result = sides[side](directory / f"{side}_{number}", stop)
                measured[side].append(result)
                log(f"round {number + 1}: {side:8s} {result['steady']:9,.0f} env steps/s, {result['wall']:6.1f} s")
    pairs = list(zip(measured["tune"], measured["by hand"], strict=True))
    ratios = {
        "steady": [t["steady"] / h["steady"] for t, h in pairs],
        "wall": [h["wall"] / t["wall"] for t, h in pairs],
    }
    return {
        "env_steps_per_run": stop, "rounds": rounds, "machine": machine(),
        "sides": {s: {key: round(statistics.median(r[key] for r in found), 1) for key in ("steady", "wall")}
                  for s, found in measured.items()},
        "ratios": {key: {"median": round(statistics.median(values), 3), "range": [round(min(values), 3),
                   round(max(values), 3)]} for key, values in ratios.items()},
    }  # fmt: skip


def _by_hand(directory: Path, stop: int) -> dict[str, float]:
    config = _write(directory, {**_CONFIG, "run": {**_CONFIG["run"], "stop_env_steps": stop}})
    runs = [directory / name for name in ("first", "second")]
    return _measure(directory, [("train", config, "--seed", 0, "--out", run) for run in runs], runs)


def _tune(directory: Path, stop: int) -> dict[str, float]:
    config = {**_CONFIG, "run": {**_CONFIG["run"], "stop_env_steps": stop}}
    # The two candidates differ in a key that makes no difference.
    sweep = {
        "config": config,
        "search": {"run.checkpoint_seconds": {"grid": [30.0, 30.5]}},
        # Not the greedy return: a short run may end before its first evaluation.
        "tune": {"seeds": [0], "metric": "env_runners/agent_return_mean"},
    }
    path = _write(directory, sweep)
    runs = [directory / "sweep" / "candidates" / f"{number:04d}" / "seed_0" for number in (0, 1)]
    return _measure(directory, [("tune", path, "--out", directory / "sweep")], runs)


def _write(directory: Path, content: dict[str, Any]) -> Path:
    directory.mkdir(parents=True)
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _measure(directory: Path, commands: list[tuple], runs: list[Path]) -> dict[str, float]:
    """Runs commands at once, and looks from outside at when rows come: clocks inside a run do not see what is between
    its iterations.

    Raises:
        RuntimeError: a command failed.
    """
    log = directory / "stderr.txt"
    seen: dict[Path, list[tuple[float, int]]] = {run: [] for run in runs}  # when a row was first seen, which one
    started = time.monotonic()
    with log.open("w") as errors:
        processes = [
            subprocess.Popen([sys.executable, "-m", "rllib_hypermarl", *map(str, command)],
                             stdout=subprocess.DEVNULL, stderr=errors)
            for command in commands
        ]  # fmt: skip
        while any(process.poll() is None for process in processes):
            for run, points in seen.items():
                file = run / "result.json"
                rows = file.read_bytes().count(b"\n") if file.exists() else 0
                if rows > (points[-1][1] if points else 0):
                    points.append((time.monotonic(), rows))
            time.sleep(_POLL)
    wall = time.monotonic() - started
    if any(process.returncode for process in processes):
        raise RuntimeError(f"a command failed: {log.read_text()[-500:]}")
    begin = max(points[0][0] for points in seen.values()) + _WARM_UP
    end = min(points[-1][0] for points in seen.values())
    rate = 0.0
    for run, points in seen.items():
        steps = json.loads((run / "result.json").read_text().splitlines()[0])["num_env_steps_sampled_lifetime"]
        inside = [point for point in points if begin <= point[0] <= end]
        if len(inside) < 2:
            raise RuntimeError(f"{run} was hardly under way while the other was: take more seconds")
        (first, before), *_, (last, after) = inside
        rate += (after - before) * steps / (last - first)
    return {"steady": rate, "wall": wall}


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [f"two runs of {result['env_steps_per_run']:,} env steps at once, {result['machine']['cpus']} CPUs"]
    for side, values in result["sides"].items():
        lines.append(f"{side:8} {values['steady']:9,.0f} env steps/s in steady state, {values['wall']:6.1f} s in all")
    for key, ratio in result["ratios"].items():
        lines.append(
            f"tune / by hand, {key}: {ratio['median']:.3f} ({ratio['range'][0]:.3f} to {ratio['range'][1]:.3f})"
        )
    return "\n".join(lines)
