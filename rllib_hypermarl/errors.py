"""Errors for people: one line that says what was wrong, where, and what to do."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import traceback
from pathlib import Path


class HyperMARLError(Exception):
    """Base of all errors that are meant to be read by users."""

    exit_status = 1
    """Of the command line."""


class ConfigError(HyperMARLError, ValueError):
    """A config that cannot be used: the key, what is wrong, what to do."""

    exit_status = 2


class UnknownEnvError(HyperMARLError, ValueError):
    """No environment goes by this name, or its arguments or its package are wrong."""

    exit_status = 2


class EnvError(HyperMARLError, RuntimeError):
    """An environment broke the contract or raised. The message names the env, the agent and the field."""


class TransferError(HyperMARLError, ValueError):
    """Networks of which one cannot take over from the other, or a policy that neither of them knows."""

    exit_status = 2


class ReportError(HyperMARLError, ValueError):
    """Results from which no report can be made, or that one asks too much of."""

    exit_status = 2


class MemoryMissingError(HyperMARLError, ValueError):
    """A team with memory was asked to act by somebody who keeps none for it."""


class CheckpointError(HyperMARLError, RuntimeError):
    """A checkpoint that is missing or damaged."""


class BundleError(HyperMARLError, RuntimeError):
    """A policy bundle that is missing, damaged or of a newer schema, or lacks what was asked of it."""


class ObservationError(HyperMARLError, ValueError):
    """An observation, state, memory or action mask that a policy cannot act on. The message names the agent."""

    exit_status = 2


class RunFailedError(HyperMARLError, RuntimeError):
    """Training failed in a way we did not foresee; the traceback is in the run directory, if that can be written."""


class ActorsLostError(RunFailedError):
    """Processes that training cannot do without died; it can go on from its last checkpoint."""


class StoppedBySignal(HyperMARLError):  # noqa: N818  (not an error)
    """Training stopped because of a signal; the last finished iteration is saved."""

    def __init__(self, signum: int):
        super().__init__(signum)  # nothing else, or Tune could not copy it
        self.exit_status = 128 + signum

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.exit_status - 128).name}"


def no_space(error: BaseException | None) -> str | None:
    """What a full disk, or a used up quota, says of itself, if one of those is behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return os.strerror(error.errno)
        if isinstance(error, sqlite3.OperationalError) and "disk is full" in str(error):
            return os.strerror(errno.ENOSPC)
        error = error.__cause__ or error.__context__
    return None


def in_one_line(error: Exception, log: Path, where: object = None) -> str:
    """What nobody foresaw, for a message. Its traceback goes to `log`, unless a full disk is what happened, `where`."""
    if full := no_space(error):
        where = getattr(error, "filename", None) or where
        return f"{'' if where is None else f'{where}: '}{full}; make room, then go on from what is saved"
    text = f"{type(error).__name__}: {error}"
    try:
        log.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return text
    return f"{text} (details in {log})"
