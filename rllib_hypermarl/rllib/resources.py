"""CPUs: how many this process was granted, and whether a cluster has as many as a config asks for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import ray

from ..errors import ConfigError

if TYPE_CHECKING:
    from .config import HyperMARLConfig


def granted_cpus() -> int:
    """CPUs of this process: what Ray granted to an actor (at least one), else what the system lets it use."""
    if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
        return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_resources(config: HyperMARLConfig) -> None:
    """Refuses a config whose actors the cluster could never start: RLlib would wait for them for ever, silently.

    Inside a placement group (a Tune trial's), Ray has reserved what is needed already.

    Raises:
        ConfigError: names what is asked for and what there is.
    """
    per_learner = config.num_cpus_per_learner
    if per_learner == "auto":
        per_learner = 0 if config.num_gpus_per_learner > 0 else 1
    asked = {
        "CPU": config.num_env_runners * config.num_cpus_per_env_runner + config.num_learners * per_learner,
        "GPU": config.num_env_runners * config.num_gpus_per_env_runner
        + config.num_learners * config.num_gpus_per_learner,
    }
    if not any(asked.values()) or ray.util.get_current_placement_group() is not None:
        return
    there = ray.cluster_resources()
    for kind, number in asked.items():
        if number > there.get(kind, 0):
            raise ConfigError(
                f"{config.num_env_runners} env runners and {config.num_learners} learners need {number:g} {kind}s, the "
                f"cluster has {there.get(kind, 0):g}: lower env_runners.num_env_runners or learners.num_learners "
                "(0: in this process), or what each of them takes"
            )
