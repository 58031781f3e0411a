"""What actors take, and whether a cluster has as much: Ray would wait for it for ever, silently."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray.autoscaler.sdk import request_resources

from ..errors import ConfigError

if TYPE_CHECKING:
    from .config import HyperMARLConfig

Bundle = Mapping[str, float]
"""Resource -> amount that one actor takes."""
_SAY_SECONDS = 60.0


def granted_cpus() -> int:
    """CPUs of this process: what Ray granted to an actor (at least one), else what system and container let it use."""
    if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
        return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(min(cpus, cpu_quota(Path("/sys/fs/cgroup/cpu.max"))))


def cpu_quota(file: Path) -> float | int:
    """CPUs that a container's quota allows, at least one; infinity where there is none.

    Args:
        file: `cpu.max` of a cgroup (version 2), "QUOTA PERIOD" or "max PERIOD".
    """
    try:
        quota, period = file.read_text(encoding="ascii").split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return math.inf


def actor_bundles(config: HyperMARLConfig) -> list[Bundle]:
    """What each env runner and each learner of a run takes."""
    cpus = config.num_cpus_per_learner
    if cpus == "auto":  # as RLlib reads it
        cpus = 0 if config.num_gpus_per_learner > 0 else 1
    runner = {"CPU": config.num_cpus_per_env_runner, "GPU": config.num_gpus_per_env_runner}
    learner = {"CPU": cpus, "GPU": config.num_gpus_per_learner}
    runner |= config.custom_resources_per_env_runner or {}
    learner |= config.custom_resources_per_learner or {}
    return [runner] * config.num_env_runners + [learner] * config.num_learners


def check_resources(config: HyperMARLConfig, wait_seconds: float = 0.0) -> None:
    """Refuses a config whose actors the cluster could never start.

    Inside a placement group (a Tune trial's), Ray has reserved what is needed already.

    Args:
        wait_seconds: see `check_bundles`.

    Raises:
        ConfigError: names what is asked for and what there is.
    """
    if ray.util.get_current_placement_group() is None:
        check_bundles(
            actor_bundles(config),
            f"{config.num_env_runners} env runners and {config.num_learners} learners",
            "lower env_runners.num_env_runners or learners.num_learners (0: in this process), or what each takes",
            wait_seconds,
        )


def check_bundles(bundles: Sequence[Bundle], who: str, advice: str, wait_seconds: float = 0.0) -> None:
    """Refuses bundles that the cluster's nodes could not hold even if they were idle.

    Args:
        who: needs them; begins the message.
        advice: what else to do than to wait.
        wait_seconds: how long an autoscaler is given to bring nodes. It is asked for them, and a line a minute says
            what is missing.

    Raises:
        ConfigError: names what is asked for and what there is.
    """
    lacking = _lacking(bundles)
    if lacking and wait_seconds:
        needed = [{kind: number for kind, number in bundle.items() if number} for bundle in bundles]
        request_resources(bundles=needed)
        try:
            started, said = time.monotonic(), -math.inf
            while lacking and (now := time.monotonic()) - started < wait_seconds:
                if now - said >= _SAY_SECONDS:
                    said = now
                    print(f"waiting for nodes: {who} {lacking}", file=sys.stderr, flush=True)
                time.sleep(1)
                lacking = _lacking(bundles)
        finally:
            request_resources(bundles=[])  # nodes that came stay for the autoscaler's idle time
    if lacking:
        waited = f" after {wait_seconds:g} s" if wait_seconds else ""
        raise ConfigError(f"{who} {lacking}{waited}: {advice}; where an autoscaler brings nodes, --wait-for-nodes 600")


def _lacking(bundles: Sequence[Bundle]) -> str:
    """What the cluster has too little of for these bundles, in words; empty if nothing."""
    asked: Counter[str] = Counter()
    for bundle in bundles:
        asked.update(bundle)
    there = ray.cluster_resources()
    for kind, number in asked.items():
        if number > there.get(kind, 0):
            return f"need {number:g} {kind}, the cluster has {there.get(kind, 0):g}"
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for bundle in bundles:
        if not any(all(node.get(kind, 0) >= number for kind, number in bundle.items()) for node in nodes):
            needs = ", ".join(f"{number:g} {kind}" for kind, number in bundle.items() if number)
            return f"need {needs} on one node for one of them, and no node has that"
    return ""
