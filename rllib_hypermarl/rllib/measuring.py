"""Measures the networks of an env runner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..metrics import measure
from ..rollout import Rollout
from .sequences import values_and_advantages

if TYPE_CHECKING:
    from .env_runner import BatchedEnvRunner


def measure_on(runner: BatchedEnvRunner, rollout: Rollout | None = None) -> dict[str, float]:
    """What `metrics.measure` finds. Args: rollout, which the runner's networks sampled. None: it samples one."""
    if rollout is None:
        if runner.env is None:  # others sample for it in training
            runner.make_env()
        rollout = runner.sample()
    rollout = rollout.tensors(runner.device)
    _, advantage = values_and_advantages(runner.net, rollout, runner.config)
    return measure(runner.net, rollout, advantage)
