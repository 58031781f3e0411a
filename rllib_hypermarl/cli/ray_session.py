"""Starting and stopping Ray around a command."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import ray
from ray.exceptions import RayError

from ..errors import ConfigError, RunFailedError
from ..rllib.resources import granted_cpus
from ..storage import Storage, is_uri


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS names (as in a Ray job), or starts a private one, and leaves it at the end.

    Token authentication stays as Ray sets it up (on, for clusters it starts here).
    """
    if ray.is_initialized():  # somebody else's
        yield
        return
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(**quiet)
        except (ConnectionError, RayError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RunFailedError(
                f"RAY_ADDRESS is {address}, but that cluster does not answer ({reason}): is it up, and is the token "
                "that it expects in RAY_AUTH_TOKEN or ~/.ray/auth_token?"
            ) from error
    else:
        # "local", or Ray would join a cluster that somebody started on this machine.
        ray.init("local", num_cpus=granted_cpus(), include_dashboard=False, **quiet)
    # Ray's handler in Python exits; one that its core worker put below it would abort the process three seconds later.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    try:
        yield
    finally:
        ray.shutdown()


def output_storage(out: str | None, name: str) -> Storage:
    """Where a command writes to: `out`, or a directory below `runs/` in the working directory.

    Raises:
        ConfigError: the working directory is a Ray job's, which is deleted after the job.
    """
    where = out or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not is_uri(where) and not Path(where).is_absolute() and "runtime_resources" in Path.cwd().parts:
        raise ConfigError(
            f"{where} would be lost with this Ray job's working directory: give --out an absolute path or a URI"
        )
    return Storage(where)
