"""The algorithm: sample, update, hand the weights back."""

from __future__ import annotations

import os
import time
from typing import Any

import ray
import torch
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    EVALUATION_RESULTS,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)

from .config import HyperMARLConfig


class HyperMARL(PPO):
    """PPO over a team whose target networks one shared hypernetwork generates (or over one of the baselines)."""

    @classmethod
    def get_default_config(cls) -> HyperMARLConfig:
        return HyperMARLConfig()

    def setup(self, config: HyperMARLConfig) -> None:
        torch.set_num_threads(granted_cpus() if config.torch_threads == "auto" else config.torch_threads)
        super().setup(config)

    def step(self) -> dict[str, Any]:
        """RLlib's, without the previous evaluation's numbers, which it repeats in the iteration after."""
        result = super().step()
        interval = self.config.evaluation_interval
        if not interval or (self.iteration + 1) % interval:
            result.pop(EVALUATION_RESULTS, None)
        return result

    def training_step(self) -> None:
        start = time.perf_counter()
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            rollout = self.env_runner.sample()
            self.metrics.aggregate([self.env_runner.get_metrics()], key=ENV_RUNNER_RESULTS)

        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results = self.learner_group.update(
                batch=rollout, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self.env_steps}
            )
            self.metrics.aggregate(results, key=LEARNER_RESULTS)

        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self._sync_env_runner()
        rate = rollout.env_steps() / (time.perf_counter() - start)
        self.metrics.log_value("env_steps_per_second", rate, window=1)

    def _sync_env_runner(self) -> None:
        self.learner_group.foreach_learner(
            lambda learner: self.env_runner.copy_weights(learner.module, learner._weights_seq_no)
        )

    @property
    def env_steps(self) -> int:
        """Env steps sampled since the start of training, resumed runs included."""
        return int(self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0))

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        super().restore_from_path(path, *args, **kwargs)
        self._sync_env_runner()


def granted_cpus() -> int:
    """CPUs of this process: what Ray granted to an actor (at least one), else what the system lets it use."""
    if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
        return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
