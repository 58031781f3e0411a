"""`train` and `resume`: progress on the terminal around the training loop."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import ActorsLostError, HyperMARLError, RunFailedError, StoppedBySignal, in_one_line
from ..rllib import checkpoints
from ..rllib.algorithm import HyperMARL
from ..rllib.config import HyperMARLConfig
from ..rllib.resources import check_resources
from ..rllib.run_dir import RunDir
from ..rllib.train import train
from ..signals import StopSignals
from ..storage import Storage
from .ray_session import ray_session

_LINE_SECONDS = 10.0  # between lines where there is no terminal


def start_run(
    storage: Storage,
    config: HyperMARLConfig | None,
    *,
    resume: bool,
    wait_for_nodes: float = 0.0,
) -> None:
    """Trains a new run, or goes on with an old one.

    Args:
        storage: of the run, fetched.
        config: of a new run; for an old one, only what it says of stopping and saving counts. None: as the run has it.
        resume: whether `storage` holds a run; one that has no checkpoint yet starts again.
        wait_for_nodes: seconds that an autoscaler has to bring what the actors need.
    """
    run_dir, checkpoint = storage.path, None
    if resume and config is None and not checkpoints.list_checkpoints(run_dir) and (run_dir / "config.yaml").exists():
        config = HyperMARLConfig.from_yaml(run_dir / "config.yaml")  # killed before its first checkpoint
    elif resume and (config is None or checkpoints.list_checkpoints(run_dir)):
        checkpoint = checkpoints.find(run_dir)
        checkpoints.verify(checkpoint)  # before anything is started
    if config is not None:
        RunDir.create(run_dir, config)
        storage.send()  # before anything is started: it may not be writable
    signals = StopSignals()
    with signals.starting(), ray_session(), contextlib.closing(storage):
        failures = 0
        while True:
            if config is not None:
                check_resources(config, wait_for_nodes)
            algo = config.build_algo() if checkpoint is None else checkpoints.load(checkpoint)
            settings = config or algo.config
            try:
                _train(algo, storage, settings, signals, resumes=checkpoint is not None)
                break
            except ActorsLostError as error:
                failures += 1
                if failures > settings.max_failures:
                    raise
                print(f"{error} (failure {failures} of {settings.max_failures})", file=sys.stderr)
            except HyperMARLError:
                raise
            except Exception as error:
                raise RunFailedError(in_one_line(error, run_dir / "error.txt", storage)) from error
            finally:
                algo.stop()
            config = config or HyperMARLConfig.from_yaml(run_dir / "config.yaml")
            checkpoint = checkpoints.find(run_dir) if checkpoints.list_checkpoints(run_dir) else None
    command = "python -m rllib_hypermarl"
    stop = settings.stop_env_steps
    print(f"done: {stop:,} env steps; the run is in {storage}")
    print(f"  evaluate: {command} evaluate {storage} --episodes 200")
    print(f"  go on:    {command} resume {storage} --stop-env-steps {2 * stop}")
    print(f"  plot:     {command} report {storage}")


def _train(
    algo: HyperMARL, storage: Storage, settings: HyperMARLConfig, signals: StopSignals, *, resumes: bool
) -> None:
    try:
        with ProgressReport(settings.stop_env_steps, algo.env_steps) as report:
            if resumes:
                report.say(f"resuming {storage} at {algo.env_steps:,} env steps")
            train(
                algo,
                storage,
                stop_env_steps=settings.stop_env_steps,
                settings=settings,
                on_result=report.update,
                signals=signals,
            )
    except StoppedBySignal as stopped:
        # Where the signal went to all processes, RLlib will find its actors dead when it stops them.
        logging.getLogger("ray.rllib.utils.actor_manager").setLevel(logging.CRITICAL)
        print(f"{stopped}; go on with: python -m rllib_hypermarl resume {storage}", file=sys.stderr)
        raise


class ProgressReport:
    """A progress bar on a terminal, plain lines elsewhere: env steps, steps per second, return, time left."""

    def __init__(self, stop_env_steps: int, env_steps: int):
        self.console = Console(stderr=True)
        self.stop, self.first = stop_env_steps, env_steps
        self.started = self.last_line = time.monotonic()
        self.evaluation: float | None = None
        self.bar: Progress | None = None
        if self.console.is_terminal:
            columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("starting", total=stop_env_steps, completed=env_steps)

    def __enter__(self) -> ProgressReport:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.bar:
            self.bar.stop()

    def say(self, line: str) -> None:
        self.console.print(line, highlight=False)

    def update(self, result: dict[str, Any]) -> None:
        env_steps = int(result["num_env_steps_sampled_lifetime"])
        value = result["env_runners"].get("agent_return_mean")
        evaluated = result.get("evaluation", {}).get("env_runners", {}).get("agent_return_mean")
        if evaluated is not None and not math.isnan(evaluated):
            self.evaluation = float(evaluated)
        text = f"{env_steps:>11,} env steps  {float(result['env_steps_per_second']):>7,.0f}/s"
        text += "" if value is None else f"  return {float(value):+.3f}"
        text += "" if self.evaluation is None else f"  greedy {self.evaluation:+.3f}"
        if self.bar:
            self.bar.update(self.task, completed=env_steps, description=text)
            return
        now = time.monotonic()
        if now - self.last_line >= _LINE_SECONDS or env_steps >= self.stop:
            rate = (env_steps - self.first) / max(now - self.started, 1e-9)
            self.say(f"{text}  {max(0, self.stop - env_steps) / rate:,.0f} s left")
            self.last_line = now
