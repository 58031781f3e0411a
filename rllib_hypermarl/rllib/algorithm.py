"""The algorithm: sample, update, hand the weights back."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from ray.exceptions import RayError
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.env.env_runner_group import EnvRunnerGroup
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
from ray.tune.result import TIME_TOTAL_S

from ..errors import ActorsLostError, RunFailedError
from ..rollout import Rollout, split
from . import teams
from .config import HyperMARLConfig
from .measuring import measure_on
from .resources import check_resources, granted_cpus
from .sampling import RemoteSampler

MEASURES = "metrics"
"""Key of results that were measured on networks."""


@contextlib.contextmanager
def learner_failures() -> Iterator[None]:
    """Around whatever training asks the learners: one may have died since the last time, whoever asks first finds out.

    Raises:
        ActorsLostError: in place of Ray's error, with its cause.
    """
    try:
        yield
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        text = " ".join(str(cause).split())[:300]
        raise ActorsLostError(f"a learner failed ({text}); go on from the last checkpoint") from error


class HyperMARL(PPO):
    """PPO over a team whose target networks one shared hypernetwork generates (or over one of the baselines)."""

    @classmethod
    def get_default_config(cls) -> HyperMARLConfig:
        return HyperMARLConfig()

    def __init__(self, *args: Any, restored: bool = False, **kwargs: Any):
        """Args: restored: a checkpoint's state follows, so that nothing is to be taken from `hypermarl.init_from`."""
        self._checkpoint_follows = restored
        self._next_probe: dict[int, float] = {}  # id of an env runner group -> when it may be asked again
        super().__init__(*args, **kwargs)

    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        args, kwargs = super().get_ctor_args_and_kwargs()
        return args, {**kwargs, "restored": True}

    def setup(self, config: HyperMARLConfig) -> None:
        torch.set_num_threads(granted_cpus() if config.torch_threads == "auto" else config.torch_threads)
        path = None if self._checkpoint_follows else config.init_from
        source = None if path is None else teams.load_net(path)
        check_resources(config)
        if config.num_env_runners > 0:  # RLlib would only log what their constructors raise, and start them again
            config.make_batched_env(1, torch.device("cpu")).close()
        super().setup(config)
        restore = functools.partial(self.restore_env_runners, at_once=True)
        self._sampler = RemoteSampler(self.env_runner_group, restore, config.sample_timeout_s)
        if source is not None:
            teams.start_from(self, source)

    def add_policy(self, policy_id: str, agents: str | Sequence[str], like: str | None = None) -> None:
        """Moves agents to a new policy; all other policies, and what the optimiser knows of them, stay as they are.

        A policy that no agent follows any more is gone.

        Args:
            policy_id: of the new policy.
            agents: ids or patterns of the agents that follow it from now on.
            like: the policy that it starts as a copy of. None: it starts afresh.

        Raises:
            ConfigError: the policy exists, no agent is meant, or `like` is no policy.
        """
        teams.add_policy(self, policy_id, agents, like)

    def freeze_policy(self, policy_id: str) -> None:
        """From now on the policy's agents act with a snapshot of its weights, and their data teaches nobody.

        Raises:
            ConfigError: there is no such policy, it is frozen, or it is the last one that learns.
        """
        teams.freeze_policy(self, policy_id)

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup, *, at_once: bool = False) -> list[int]:
        """RLlib's, which asks dead runners in every iteration whether they are back, and waits a second or two.

        Where there is no room for them, that would be most of the time. Here it is a sixth at most.
        """
        started = time.monotonic()
        if not at_once and started < self._next_probe.get(id(env_runner_group), 0):
            return []
        restored = super().restore_env_runners(env_runner_group)
        now = time.monotonic()
        self._next_probe[id(env_runner_group)] = now + 5 * (now - started)
        return restored

    def step(self) -> dict[str, Any]:
        """RLlib's, without the previous evaluation's and measurement's numbers, which it repeats later."""
        measures, result = self._measures, super().step()
        if not measures:
            result.pop(MEASURES, None)
        interval = self.config.evaluation_interval
        if not interval or (self.iteration + 1) % interval:
            result.pop(EVALUATION_RESULTS, None)
        return result

    def training_step(self) -> None:
        start = time.perf_counter()
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            rollout, metrics, staleness = self._sample()
            self.metrics.aggregate(metrics, key=ENV_RUNNER_RESULTS)
            self.metrics.log_value("weights_staleness", staleness, window=1)

        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            self.metrics.aggregate(self._update(rollout), key=LEARNER_RESULTS)

        updated = time.perf_counter()
        if self._measures:  # before the next line: the local runner still has the networks that sampled
            with self.metrics.log_time((TIMERS, MEASURES)):
                self._measure(rollout)
        measured = time.perf_counter()
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self._sync_env_runner()
        rate = rollout.env_steps() / (time.perf_counter() - start - (measured - updated))
        self.metrics.log_value("env_steps_per_second", rate, window=1)

    def _sample(self) -> tuple[Rollout, list[dict[str, Any]], int]:
        """One rollout of all envs, the metrics of each runner, and by how many updates the weights were too old."""
        if self.config.num_env_runners == 0:
            return self.env_runner.sample(), [self.env_runner.get_metrics()], 0
        self.env_runner.num_env_steps_sampled_lifetime = self.env_steps
        return self._sampler.sample(self.env_runner.get_state(), ahead=self.config.sample_ahead)

    def _update(self, rollout: Rollout) -> list[dict[str, Any]]:
        """One update of every learner, each with its share of the rollout."""
        shards = split(rollout, max(1, self.config.num_learners))
        if self.learner_group.is_local:
            data = {"batch": shards[0]}
        elif shards[0].env_steps():
            data = {"batches": [shard.arrays() for shard in shards]}
        else:
            raise RunFailedError(f"the envs that answered are fewer than the {len(shards)} learners")
        with learner_failures():
            return self.learner_group.update(**data, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self.env_steps})

    @property
    def _measures(self) -> bool:
        """Whether this iteration's networks are measured: those of the first one, and then at every interval."""
        interval = self.config.metrics_interval
        return bool(interval) and (self.iteration == 0 or (self.iteration + 1) % interval == 0)

    def _measure(self, rollout: Rollout) -> None:
        """Logs what `metrics.measure` finds, on the rollout and the networks that sampled it."""
        self.metrics.log_dict(measure_on(self.env_runner, rollout), key=MEASURES, window=1)

    def _sync_env_runner(self) -> None:
        """Gives the local runner the learners' weights; remote ones get them with the next request."""
        if self.learner_group.is_local:
            self.learner_group.foreach_learner(
                lambda learner: self.env_runner.copy_weights(learner.module, learner._weights_seq_no)
            )
        else:
            weights = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
            with learner_failures():
                state = self.learner_group.get_state(weights)
            self.env_runner.set_state(state[COMPONENT_LEARNER])

    @property
    def env_steps(self) -> int:
        """Env steps sampled since the start of training, resumed runs included."""
        return int(self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0))

    def save_to_path(self, *args: Any, **kwargs: Any) -> str:
        with learner_failures():
            return super().save_to_path(*args, **kwargs)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's, and the seconds of training so far, which it counts anew after a restore."""
        return {**super().get_state(*args, **kwargs), TIME_TOTAL_S: self._time_total}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._time_total = state.get(TIME_TOTAL_S, self._time_total)

    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        self._sampler.drop_request()
        super().restore_from_path(path, *args, **kwargs)
        self._sync_env_runner()
