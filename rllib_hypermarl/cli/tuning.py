"""`tune`: progress on the terminal around a sweep."""

from __future__ import annotations

import errno
import math
import os
import sys
import time
from typing import Any

from ray import tune
from rich.console import Console

from ..errors import StoppedBySignal, no_space
from ..signals import StopSignals
from ..storage import Storage
from ..tuning.results import rank, short, table
from ..tuning.spec import Sweep
from ..tuning.study import ENV_STEPS, ERROR, OBJECTIVE, TRAINED, number_of
from ..tuning.sweep import only_driver, prepare, run_sweep
from .ray_session import ray_session

_LINE_SECONDS = 10.0


def start_sweep(sweep: Sweep, storage: Storage, wait_for_nodes: float = 0.0) -> None:
    """Runs a sweep, or goes on with it, and prints the ranking."""
    storage.fetch(whole=False)
    prepare(sweep, storage.path)
    storage.send()  # before anything is started: it may not be writable
    # Ours ends the sweep on SIGINT as on SIGTERM; Tune would put its own in place of it.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # whose banner cannot be turned off
    signals = StopSignals()
    with only_driver(storage.path), signals.starting(), ray_session():
        try:
            study = run_sweep(sweep, storage, SweepReport(sweep), signals, wait_for_nodes)
        except StoppedBySignal as stopped:
            print(f"{stopped}; the same command goes on with the sweep in {storage}", file=sys.stderr)
            raise
        except Exception as error:
            if full := no_space(error):  # the errors of SQLite and Tune do not say where
                raise OSError(errno.ENOSPC, full, str(storage)) from error
            raise
        finally:
            storage.send()
    rows, has_best = rank(sweep, study), (storage.path / "best.yaml").exists()
    storage.close()
    console = Console()
    console.print(table(rows), width=None if console.is_terminal else 140)
    command = "python -m rllib_hypermarl"
    print(f"the sweep is in {storage}; its page is {storage.below('index.html')}")
    if has_best:
        if storage.uri is None:
            print(f"  train the best: {command} train {storage.below('best.yaml')}")
        print(f"  evaluate it:    {command} evaluate {storage.below('best')} --episodes 200")


class SweepReport(tune.Callback):
    """A line per finished candidate, and one every ten seconds while they train."""

    def __init__(self, sweep: Sweep):
        self._console = Console(stderr=True)
        self._stop = sweep.base["run"]["stop_env_steps"]
        self._sign = 1 if sweep.settings.mode == "max" else -1
        self._best = -math.inf
        self._last_line = time.monotonic()
        self._newest: dict[int, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes its callbacks down; a terminal cannot be

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        self._newest[number_of(trial.local_path)] = result
        if time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._last_line = time.monotonic()
            running = [f"{number:04d} at {r.get(TRAINED, 0):,}" for number, r in self._newest.items()]
            self._say(f"{len(running)} running ({', '.join(running)} of {self._stop:,} env steps)")

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        number = number_of(trial.local_path)
        result = self._newest.pop(number, trial.last_result)
        value = result.get(OBJECTIVE, math.nan)
        if ERROR in result or math.isnan(value):
            self._say(f"candidate {number:04d} failed: {result.get(ERROR, 'no value')}")
            return
        pruned = result[ENV_STEPS] < self._stop
        if not pruned:
            self._best = max(self._best, self._sign * value)
        best = "" if math.isinf(self._best) else f", best {self._sign * self._best:.4g}"
        how = f"pruned at {result[ENV_STEPS]:,} env steps with" if pruned else "done:"
        params = ", ".join(f"{key}={short(item)}" for key, item in trial.config["params"].items())
        self._say(f"candidate {number:04d} {how} {value:.4g} ({params}){best}")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        number = number_of(trial.local_path)
        self._newest.pop(number, None)
        lines = str(trial.get_error()).strip().splitlines()
        text = lines[-1][:300] if lines else "for no known reason"
        self._say(f"candidate {number:04d} failed: {text} (details in {trial.path}/error.txt)")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False)
