"""The training loop of the command line: iterate, log, save, and stop cleanly when told to."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import StoppedBySignal
from . import checkpoints
from .algorithm import HyperMARL
from .run_dir import RunDir

GRACE_SECONDS = 2.0
"""How long a signal waits for the running iteration. Longer iterations are saved as they finish."""


class StopSignals:
    """Turns SIGINT and SIGTERM into a flag, and into an exception if the running iteration takes too long.

    Install after `ray.init`, which replaces handlers that stood before it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._in_iteration = self._given_up = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[StopSignals]:
        handlers = {signal.SIGINT: self._stop, signal.SIGTERM: self._stop, signal.SIGALRM: self._out_of_patience}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield self
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def iteration(self) -> Iterator[None]:
        """Around work that may be given up half way."""
        self._in_iteration = True
        try:
            yield
        except Exception as error:
            if self._given_up:  # somebody on the way caught ours and raised another
                raise StoppedBySignal(self.received) from error
            raise
        finally:
            self._in_iteration = False

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if self.received is None:  # an impatient second one does not prolong the wait
            self.received = signum
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)

    def _out_of_patience(self, signum: int, frame: FrameType | None) -> None:
        if self._in_iteration:
            self._given_up = True
            raise StoppedBySignal(self.received)


def train(
    algo: HyperMARL,
    run_dir: Path,
    *,
    stop_env_steps: int,
    checkpoint_seconds: float,
    on_result: Callable[[dict[str, Any]], None] = lambda result: None,
) -> None:
    """Trains until `stop_env_steps`, from wherever the algorithm stands.

    Args:
        run_dir: results are appended there; rows newer than the algorithm's iteration are dropped.
        checkpoint_seconds: the longest a finished iteration stays unsaved.
        on_result: called with each iteration's result.

    Raises:
        StoppedBySignal: SIGINT or SIGTERM came; a checkpoint is on disk.
    """
    files = RunDir(run_dir, algo.iteration)
    saved = time.monotonic()
    with StopSignals().installed() as signals, contextlib.closing(files):
        while algo.env_steps < stop_env_steps and signals.received is None:
            started = time.monotonic()
            with signals.iteration():
                result = algo.train()
            files.append(result)
            on_result(result)
            now = time.monotonic()
            if now - saved >= checkpoint_seconds or now - started >= GRACE_SECONDS:
                checkpoints.save(algo, run_dir)
                saved = now
        checkpoints.save(algo, run_dir)
        if signals.received is not None:
            raise StoppedBySignal(signals.received)
