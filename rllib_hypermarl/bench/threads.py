"""What torch threads and their spinning do to training's speed; `python -m rllib_hypermarl.bench.threads` prints JSON.

Runs of `train` take turns, alone on the machine and beside one busy process per CPU: with one torch thread, with all
CPUs' and OpenMP's own spinning, with all CPUs' and the command line's (`rllib_hypermarl.__main__.SPIN_COUNT`). Env
steps per second are of all iterations but the first two; ratios are to one thread, within a round.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..__main__ import SPIN_COUNT
from .measure import machine

CONFIG = "tune_configs/dispersion.yaml"
OVERRIDES = ("run.stop_env_steps=81_920", "evaluation.evaluation_interval=null")
WARM_UP = 2
LIBGOMP = "300000"
"""What GNU OpenMP takes where nothing is said."""
CONTENDERS = {
    "one thread": ("run.torch_threads=1", SPIN_COUNT),
    "all, OpenMP's spinning": ("run.torch_threads=auto", LIBGOMP),
    "all, ours": ("run.torch_threads=auto", SPIN_COUNT),
}


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other work on the machine."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def speed(override: str, spin_count: str, config: str, overrides: Sequence[str]) -> float:
    """Env steps per second of one run of `train`."""
    with tempfile.TemporaryDirectory() as out:
        run = Path(out) / "run"
        command = [sys.executable, "-m", "rllib_hypermarl", "train", config, override, *overrides, "--out", str(run)]
        env = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}
        subprocess.run(command, env={**env, "GOMP_SPINCOUNT": spin_count}, check=True, stdout=subprocess.DEVNULL)
        rows = [json.loads(line) for line in (run / "result.json").read_text().splitlines()]
    first, last = rows[WARM_UP - 1], rows[-1]
    steps, seconds = (last[key] - first[key] for key in ("num_env_steps_sampled_lifetime", "time_total_s"))
    return steps / seconds


def measure(rounds: int, config: str = CONFIG, overrides: Sequence[str] = OVERRIDES) -> list[dict[str, Any]]:
    """One row for each load and contender."""
    rows = []
    for processes in (0, machine()["cpus"]):
        with busy(processes):
            turns = [{key: speed(*how, config, overrides) for key, how in CONTENDERS.items()} for _ in range(rounds)]
        for key in CONTENDERS:
            ratios = [turn[key] / turn["one thread"] for turn in turns]
            rows.append(
                {
                    "busy_processes": processes,
                    "threads": key,
                    "env_steps_per_second": [round(turn[key]) for turn in turns],
                    "to_one_thread": round(statistics.median(ratios), 3),
                    "range": [round(min(ratios), 3), round(max(ratios), 3)],
                }
            )
    return rows


def main() -> None:
    rows = measure(rounds=2)
    print(json.dumps({"machine": machine(), "config": CONFIG, "overrides": OVERRIDES, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
