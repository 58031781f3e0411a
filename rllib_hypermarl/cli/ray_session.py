"""Starting and stopping Ray around a command."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import ray

from ..rllib.resources import granted_cpus


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS names (as in a Ray job), or starts a private one, and leaves it at the end.

    Token authentication stays as Ray sets it up (on, for clusters it starts here).
    """
    if ray.is_initialized():  # somebody else's
        yield
        return
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init(num_cpus=granted_cpus(), include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()
