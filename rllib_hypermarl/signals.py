"""How commands stop: a signal is noted, and work ends where nothing is lost."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from .errors import StoppedBySignal

GRACE_SECONDS = 2.0
"""How long a signal waits for the running iteration. Longer iterations are saved as they finish."""


class StopSignals:
    """Turns SIGINT and SIGTERM into a flag, and into an exception if the running iteration takes too long.

    A command's signals pass through here from its first second to its last; what was received stays noted.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._in_iteration = self._given_up = False

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """While Ray and RLlib start: SIGINT interrupts as ever, and is not forgotten where their code swallows that."""

        def interrupt(signum: int, frame: FrameType | None) -> None:
            self.received = signum
            raise KeyboardInterrupt

        with _handling({signal.SIGINT: interrupt}):
            yield

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Somebody asks for `received` often enough. Install after `ray.init`, which replaces handlers."""

        def note(signum: int, frame: FrameType | None) -> None:
            self.received = self.received or signum

        with _handling({signal.SIGINT: note, signal.SIGTERM: note}):
            yield

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Around iterations that may be long. Install after `ray.init`, which replaces handlers."""
        handlers = {signal.SIGINT: self._stop, signal.SIGTERM: self._stop, signal.SIGALRM: self._out_of_patience}
        with _handling(handlers):
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

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


@contextlib.contextmanager
def _handling(handlers: Mapping[int, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
