"""The training loop of the command line: iterate, log, save, and stop cleanly when told to."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ..errors import ActorsLostError, StoppedBySignal
from ..signals import GRACE_SECONDS, StopSignals
from ..storage import Storage
from . import checkpoints
from .algorithm import HyperMARL
from .config import HyperMARLConfig
from .run_dir import RESULTS, RunDir


class TrainingRun:
    """An algorithm and the directory that its results and checkpoints go to.

    Args:
        storage: of the run; results are appended there, rows newer than the algorithm's iteration dropped.
        settings: `checkpoint_seconds` and `milestone_env_steps` say what is saved when, and what is kept.
    """

    def __init__(self, algo: HyperMARL, storage: Storage, settings: HyperMARLConfig):
        self.algo, self.path, self.storage = algo, storage.path, storage
        self.files = RunDir(self.path, algo.iteration)
        self._settings = settings
        self._saved = time.monotonic()

    def iterate(self, guard: AbstractContextManager[Any] | None = None) -> dict[str, Any]:
        """Trains for one iteration, inside `guard`; logs the result, and saves if it is time."""
        started, env_steps = time.monotonic(), self.algo.env_steps
        with guard or contextlib.nullcontext():
            result = self.algo.train()
        self.files.append(result)
        now = time.monotonic()
        if (
            now - self._saved >= self._settings.checkpoint_seconds
            or now - started >= GRACE_SECONDS
            or self._passed_milestone(env_steps)
        ):
            self.save()
        return result

    def _passed_milestone(self, env_steps: int) -> bool:
        every = self._settings.milestone_env_steps
        return every is not None and self.algo.env_steps // every > env_steps // every

    def save(self) -> Path:
        """Saves the last finished iteration, unless it has been."""
        self._saved = time.monotonic()
        path = checkpoints.save(self.algo, self.path, keep_every=self._settings.milestone_env_steps)
        self.storage.send_soon()
        return path

    def jump(self, checkpoint: Path) -> None:
        """Goes on from another run's checkpoint, with this one's config. Results beside it take the place of ours."""
        self.algo.restore_from_path(checkpoint.absolute())
        for own in checkpoints.list_checkpoints(self.path):
            shutil.rmtree(own)
        self.close()
        if (checkpoint / RESULTS).exists():
            shutil.copy(checkpoint / RESULTS, self.path / RESULTS)
        self.files = RunDir(self.path, self.algo.iteration)
        self.save()

    def close(self) -> None:
        self.files.close()
        self.storage.wait()


def train(
    algo: HyperMARL,
    storage: Storage,
    *,
    stop_env_steps: int,
    settings: HyperMARLConfig,
    on_result: Callable[[dict[str, Any]], None] = lambda result: None,
    signals: StopSignals | None = None,
) -> None:
    """Trains until `stop_env_steps`, from wherever the algorithm stands.

    Args:
        storage, settings: see `TrainingRun`.
        on_result: called with each iteration's result.
        signals: those of the command, if they were watched already.

    Raises:
        StoppedBySignal: SIGINT or SIGTERM came; the last finished iteration is saved, if what it takes still lives.
        ActorsLostError: learners died; training can go on from the last checkpoint.
    """
    run = TrainingRun(algo, storage, settings)
    signals = signals or StopSignals()
    with signals.installed(), contextlib.closing(run):
        try:
            while algo.env_steps < stop_env_steps and signals.received is None:
                on_result(run.iterate(signals.iteration()))
            run.save()
        except ActorsLostError:
            if signals.received is None:
                raise  # otherwise the signal went to all processes, and what was saved before is all there is
        if signals.received is not None:
            raise StoppedBySignal(signals.received)
