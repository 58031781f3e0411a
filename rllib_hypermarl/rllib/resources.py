"""CPUs: how many this process was granted, and whether a cluster has as many as a config asks for."""

from __future__ import annotations

import os
from collections import Counter
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
    if not config.num_env_runners + config.num_learners or ray.util.get_current_placement_group() is not None:
        return
    cpus = config.num_cpus_per_learner
    if cpus == "auto":  # as RLlib reads it
        cpus = 0 if config.num_gpus_per_learner > 0 else 1
    runner = {"CPU": config.num_cpus_per_env_runner, "GPU": config.num_gpus_per_env_runner}
    learner = {"CPU": cpus, "GPU": config.num_gpus_per_learner}
    asked: Counter[str] = Counter()
    for number, each, custom in (
        (config.num_env_runners, runner, config.custom_resources_per_env_runner),
        (config.num_learners, learner, config.custom_resources_per_learner),
    ):
        asked.update({kind: number * amount for kind, amount in {**each, **(custom or {})}.items()})
    there = ray.cluster_resources()
    for kind, number in asked.items():
        if number > there.get(kind, 0):
            raise ConfigError(
                f"{config.num_env_runners} env runners and {config.num_learners} learners need {number:g} {kind}, the "
                f"cluster has {there.get(kind, 0):g}: lower env_runners.num_env_runners or learners.num_learners "
                "(0: in this process), or what each of them takes"
            )
