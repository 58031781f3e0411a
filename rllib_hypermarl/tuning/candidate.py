"""One candidate of a sweep: the same config under every seed, trained side by side in one Tune trial."""

from __future__ import annotations

import math
import platform
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ray import tune
from ray.tune import PlacementGroupFactory
from scipy.stats import trim_mean

from ..env import nearest
from ..errors import ConfigError, HyperMARLError, no_space
from ..rllib import checkpoints
from ..rllib.config import HyperMARLConfig
from ..rllib.grammar import read_yaml
from ..rllib.resources import actor_bundles
from ..rllib.run_dir import RESULTS, RunDir
from ..rllib.train import TrainingRun
from ..storage import Storage
from .spec import with_params
from .study import ENV_STEPS, ERROR, FATAL, NO_SPACE, OBJECTIVE, PARAMS, SEED_VALUES, TRAINED, number_of

CANDIDATES = "candidates"
"""Their directory, in the sweep's."""
STEP_SECONDS = 1.0


class Candidate(tune.Trainable):
    """Trains one run per seed and reports the aggregate of their values.

    Each seed's run is an ordinary run directory, `DIRECTORY/seed_N`; a candidate that is started again goes on from
    the checkpoints it finds there. All runs advance together, so that pruning compares equal numbers of env steps.

    Config (`sweep.py` makes it):
        storage: of the sweep, as `Storage` takes it: a directory that all nodes see, or a URI.
        config: groups of the base config; `params`: what this candidate has otherwise.
        seeds, metric, aggregate, cpus_per_trial, gpus_per_trial: as in `Settings`.
        report_iterations: iterations of each run between two results.
        save_when_stopped: whether nobody else can have taken over the candidate by then, as PBT does.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._runs: list[TrainingRun] = []
        self._error: dict[str, str] | None = None
        self._stop: int = config["config"]["run"]["stop_env_steps"]
        self._result: dict[str, Any] = {ENV_STEPS: 0, SEED_VALUES: [], OBJECTIVE: math.nan}
        try:
            check_shared(Storage(config["storage"]))
        except ConfigError as error:
            self._error = {FATAL: str(error)}
            return
        try:
            self._runs = [self._open(seed) for seed in config["seeds"]]
        except (HyperMARLError, OSError) as error:
            if full := no_space(error):
                self._error = {NO_SPACE: full}
            elif isinstance(error, HyperMARLError):  # a config that cannot be; nothing that a new attempt would change
                self._error = {ERROR: str(error)}
            else:
                raise
            return
        every = config["report_iterations"]
        self._next_report = (self._last().algo.iteration // every + 1) * every

    def _open(self, seed: int) -> TrainingRun:
        storage = run_storage(Storage(self.config["storage"]), number_of(self.logdir), seed)
        storage.fetch()
        path = storage.path
        config = HyperMARLConfig.from_groups(with_params(self.config["config"], self.config[PARAMS])).run(seed=seed)
        config.validate()
        saved = checkpoints.find(path) if checkpoints.list_checkpoints(path) else None
        if saved and read_yaml(path / "config.yaml") == yaml.safe_load(config.to_yaml()):
            algo = checkpoints.load(saved)
        else:  # a new run, or one whose config population based training has changed
            RunDir.create(path, config)
            algo = config.build_algo()
            if saved:
                algo.restore_from_path(saved.absolute())
        return TrainingRun(algo, storage, config)

    def step(self) -> dict[str, Any]:
        """Trains to the next report, or for a second: who waits for a trial to stop waits no longer than that."""
        if self._error is None:
            try:
                self._train()
                return {**self._result, TRAINED: self._last().algo.env_steps}
            except OSError as error:
                if (full := no_space(error)) is None:
                    raise
                self._error = {NO_SPACE: full}
        return {**self._result, **self._error, "done": NO_SPACE not in self._error}

    def _train(self) -> None:
        started = time.monotonic()
        while not self._is_due():
            self._last().iterate()
            if time.monotonic() - started >= STEP_SECONDS:
                break
        if self._is_due():
            self._report()

    def _last(self) -> TrainingRun:
        """The run that the others wait for."""
        return min(self._runs, key=lambda run: run.algo.iteration)

    def _is_due(self) -> bool:
        """Whether all runs are at the end, or as far as the next report."""
        algo = self._last().algo
        return algo.env_steps >= self._stop or algo.iteration >= self._next_report

    def _report(self) -> None:
        metric = self.config["metric"]
        env_steps = self._last().algo.env_steps
        done = env_steps >= self._stop
        if done:
            self._save()
            for run in self._runs:
                run.storage.send()  # whoever hears that it is done finds it there
        self._next_report += self.config["report_iterations"]
        values = [newest(run.files.rows, metric) for run in self._runs]
        self._result = {ENV_STEPS: env_steps, SEED_VALUES: values, "done": done}
        if None in values:
            hint = nearest(metric, _numbers(self._runs[values.index(None)].files.rows[-1]))
            fatal = f"tune.metric: no result has a number {metric!r}; {hint}"
            self._result |= {OBJECTIVE: math.nan, "done": True, FATAL: fatal}
        else:
            self._result[OBJECTIVE] = aggregate(values, self.config["aggregate"])

    def _save(self) -> None:
        for run in self._runs:
            run.save()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Becomes another candidate: Tune need not start a process for each."""
        self._close()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        if self.config["save_when_stopped"] and self._error is None:
            try:
                self._save()
            except OSError as error:
                if no_space(error) is None:  # otherwise it goes on from the checkpoint before
                    raise
        self._close()

    def _close(self) -> None:
        for run in self._runs:
            run.close()
            run.algo.stop()
            if self.config["save_when_stopped"]:
                run.storage.close()
            else:  # what was saved has been sent, and the candidate may be somebody else's by now
                run.storage.discard()

    # ------------------------------------------------------------------------- what population based training needs

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        for run in self._runs:
            copied = shutil.copytree(run.save(), Path(checkpoint_dir) / run.path.name)
            shutil.copy(run.path / RESULTS, copied)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Takes over another candidate's networks, optimisers and counters; the config stays this one's."""
        for run in self._runs:
            run.jump(Path(checkpoint_dir) / run.path.name)

    @classmethod
    def default_resource_request(cls, config: Mapping[str, Any]) -> PlacementGroupFactory:
        """One bundle for all runs that are in the trial's process, and one per env runner and learner of each."""
        return PlacementGroupFactory(candidate_bundles(config))


def candidate_bundles(config: Mapping[str, Any]) -> list[dict[str, float]]:
    """What a candidate takes: its own process, the first env runners of all seeds' runs, the second ones, and so on.

    RLlib puts env runner i of every run into bundle i of the trial, so that one must have room for those of all seeds.
    Learners it puts anywhere: those of the first run must not take what env runners of the next one need, and so there
    is room for all learners beside env runners that take the same kind of resource.
    """
    run = HyperMARLConfig.from_groups(with_params(config["config"], config.get(PARAMS, {})))
    seeds, actors = len(config["seeds"]), actor_bundles(run)
    runners, learners = actors[: run.num_env_runners], actors[run.num_env_runners :]
    anywhere = Counter[str]()
    for bundle in learners if seeds > 1 else ():
        anywhere.update({kind: seeds * amount for kind, amount in bundle.items()})
    bundles = [
        {"CPU": config["cpus_per_trial"], "GPU": config["gpus_per_trial"]},
        *({kind: seeds * n + anywhere[kind] for kind, n in bundle.items() if n} for bundle in runners),
        *({kind: seeds * n for kind, n in bundle.items()} for bundle in learners),
    ]
    return [{kind: float(amount) for kind, amount in bundle.items() if amount} for bundle in bundles]


def check_shared(sweep: Storage) -> None:
    """Raises: ConfigError: this node does not see the directory that the driver made."""
    if sweep.uri is None and not sweep.path.is_dir():
        raise ConfigError(f"--out: {platform.node()} does not see {sweep}; take one that all nodes share, or a URI")


def run_storage(sweep: Storage, candidate: int, seed: int) -> Storage:
    """Where a candidate's run under a seed is."""
    return sweep.below(CANDIDATES, f"{candidate:04d}", f"seed_{seed}")


def newest(rows: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """The last value that a run's rows have of a metric `group/key`."""
    for row in reversed(rows):
        value: Any = row
        for part in metric.split("/"):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, int | float):
            return float(value)
    return None


def aggregate(values: Sequence[float], how: str) -> float:
    """Mean, or interquartile mean (rliable's: without the quarters at both ends, rounded down)."""
    return float(np.mean(values) if how == "mean" else trim_mean(values, proportiontocut=0.25))


def _numbers(row: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in row.items():
        if isinstance(value, Mapping):
            keys += _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            keys.append(f"{prefix}{key}")
    return keys
