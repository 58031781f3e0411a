"""Samples whole teams from a batched environment: no Python per agent, per env or per episode."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator
from typing import Any

import gymnasium as gym
import ray
import torch
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils import metrics as names
from ray.rllib.utils.checkpoints import Checkpointable

from .. import env as envs
from ..env import BatchedEnv, Step
from ..errors import EnvError
from ..evaluation import evaluate
from ..nets import TeamNet
from ..rollout import Episodes, EpisodeTracker, Rollout, RolloutBuffer
from .config import HYPER, STATE, HyperMARLConfig

_MAX_AGENTS_LOGGED = 32  # per-agent returns of larger teams would be hundreds of metrics an iteration


_ROWS_PER_THREAD = 1024  # agent rows of a step below which more than one torch thread only costs


@contextlib.contextmanager
def _one_thread_if(few: bool) -> Iterator[None]:
    """Runs small steps on one torch thread: waking and awaiting another takes longer than its share of the work, and
    many times longer where something else keeps a core busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if few else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class BatchedEnvRunner(EnvRunner, Checkpointable):
    """RLlib's `EnvRunner` over a `BatchedEnv`.

    `sample()` returns one `Rollout`; `sample(num_episodes=...)` plays whole episodes on an env of its own, greedily and
    from the evaluation seed, and leaves training untouched.
    """

    def __init__(self, *, config: HyperMARLConfig, spaces: dict | None = None, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        self.device = self.config.torch_device()
        self._spaces = spaces
        self._weights_seq_no = 0
        self._generator = torch.Generator(device=self.device)
        self._generator.manual_seed(self._seed if self._seed is not None else torch.seed())
        self._evaluation_env: BatchedEnv | None = None
        self._step: Step | None = None  # the last one; None before the first reset
        self.make_env()
        self.make_module()
        self._episodes = EpisodeTracker(
            len(self.env.agents), self.env.num_envs, self.config.metrics_num_episodes_for_smoothing, self.device
        )

    # ------------------------------------------------------------------------------------------------- construction

    def make_env(self) -> None:
        if self.env is not None:
            self.env.close()
        self.env = self.make_batched_env(1 if self.config.in_evaluation else self.config.num_envs_per_env_runner)

    def make_batched_env(self, num_envs: int) -> BatchedEnv:
        """A fresh batch of `num_envs` copies of the configured env."""
        config = dict(self.config.env_config)
        if isinstance(self.config.env, str):
            return envs.make(self.config.env, num_envs=num_envs, device=self.device, **config)
        return self.config.env(num_envs=num_envs, device=self.device, **config)

    def make_module(self) -> None:
        spec = self.config.get_multi_rl_module_spec(spaces=self.get_spaces(), inference_only=True)
        self.module = spec.build()
        self.module[HYPER].to(self.device)

    @property
    def net(self) -> TeamNet:
        return self.module[HYPER].net

    @property
    def env_name(self) -> str:
        return self.config.env if isinstance(self.config.env, str) else self.config.env.__name__

    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        """Per-agent spaces of the team, in the env's order (`Dict` spaces built of pairs keep it)."""
        spaces = tuple(
            gym.spaces.Dict([(agent, by_agent[agent]) for agent in self.env.agents])
            for by_agent in (self.env.observation_spaces, self.env.action_spaces)
        )
        return {
            INPUT_ENV_SPACES: spaces,
            INPUT_ENV_SINGLE_SPACES: spaces,
            HYPER: spaces,
            STATE: (self.env.state_space, None),
        }

    def assert_healthy(self) -> None:
        assert self.env and self.module

    def stop(self) -> None:
        for env in (self.env, self._evaluation_env):
            if env is not None:
                env.close()

    # ----------------------------------------------------------------------------------------------------- sampling

    def sample(self, *, num_episodes: int | None = None, explore: bool | None = None, **kwargs: Any) -> Any:
        """One rollout for training, or `num_episodes` whole episodes for evaluation.

        Returns:
            A `Rollout` of `rollout_fragment_length` steps of all envs; or, in evaluation, a list with one `Episodes`.

        Raises:
            EnvError: the env raised, or returned wrong shapes or non-finite values.
        """
        if num_episodes is not None:
            return [self._evaluate(num_episodes, self._explores_in_evaluation if explore is None else explore)]
        if self._step is None:
            self._step = self._ask_env("reset", self._seed)
            envs.check_shapes(self.env, self._step, self.env_name)
            for field in ("action_mask", "alive"):
                if getattr(self._step, field) is not None:
                    raise EnvError(f"env {self.env_name!r} returned {field}, which is not supported yet")
        start = time.perf_counter()
        with _one_thread_if(self.env.num_envs * len(self.env.agents) <= _ROWS_PER_THREAD):
            rollout = self._rollout(self.config.get_rollout_fragment_length())
        self._check(rollout)
        episodes = self._episodes.update(rollout)
        self._log_rollout(rollout, episodes, time.perf_counter() - start)
        return rollout

    @torch.no_grad()
    def _rollout(self, length: int) -> Rollout:
        weights = self.net.generate("actor")
        obs_dim = self._step.obs.shape[-1]
        acts = self.net.spec.actions
        sizes = len(self.env.agents), length, self.env.num_envs, obs_dim
        with_state = self.net.spec.heads["critic"].reads == "state"
        state_dim = self.env.state_space.shape[0] if with_state else None
        buffer = RolloutBuffer(*sizes, self.device, acts.shape, acts.dtype, state_dim)
        self._env_seconds = 0.0
        obs = self._step.obs.transpose(0, 1)
        for _ in range(length):
            dist = self.net.policy(obs, weights)
            actions = dist.sample(self._generator)
            step = self._ask_env("step", dist.to_env(actions).transpose(0, 1))
            envs.check_shapes(self.env, step, self.env_name)
            buffer.add(obs, actions, dist.log_prob(actions), step, self._step.state)
            self._step, obs = step, step.obs.transpose(0, 1)
        return buffer.finish(obs, self._step.state if with_state else None)

    def _ask_env(self, method: str, argument: Any) -> Step:
        start = time.perf_counter()
        try:
            step = getattr(self.env, method)(argument)
        except EnvError:
            raise
        except Exception as error:
            done = self.num_env_steps_sampled_lifetime
            raise EnvError(
                f"env {self.env_name!r} raised in {method}() after {done} env steps: {type(error).__name__}: {error}"
            ) from error
        self._env_seconds = getattr(self, "_env_seconds", 0.0) + time.perf_counter() - start
        return step

    def _check(self, rollout: Rollout) -> None:
        for field in ("reward", "obs"):
            values = getattr(rollout, field)
            values = values.permute(1, 2, 0, *range(3, values.dim()))  # [T, E, N, ...]
            envs.check_finite(values, field, self.env.agents, self.env_name)
        envs.check_finite(rollout.last_obs.permute(1, 0, 2)[None], "obs", self.env.agents, self.env_name)
        envs.check_finite(rollout.final_obs.permute(1, 0, 2)[None], "final_obs", self.env.agents, self.env_name)

    @property
    def _explores_in_evaluation(self) -> bool:
        """RLlib evaluates on the training runner where no `evaluation_interval` made it one of its own."""
        return (self.config.get_evaluation_config_object() or self.config).explore

    def _evaluate(self, num_episodes: int, explore: bool) -> Episodes:
        if self._evaluation_env is None:
            self._evaluation_env = self.make_batched_env(min(num_episodes, 256))
        seed = None if self.config.seed is None else self.config.seed + 1_000_000
        episodes = evaluate(
            self.net, self._evaluation_env, num_episodes, seed=seed, explore=explore, name=self.env_name
        )
        self.metrics.log_dict(episodes.summary(self.env.agents[:_MAX_AGENTS_LOGGED]), window=1)
        self.metrics.log_value(names.NUM_EPISODES, num_episodes, reduce="sum")
        self._log_steps(episodes.env_steps(), episodes.agent_steps())
        return episodes

    # ------------------------------------------------------------------------------------------------------ metrics

    def get_metrics(self) -> dict[str, Any]:
        return self.metrics.reduce()

    def _log_rollout(self, rollout: Rollout, finished: int, seconds: float) -> None:
        self.num_env_steps_sampled_lifetime += rollout.env_steps()
        self._log_steps(rollout.env_steps(), rollout.agent_steps())
        self.metrics.log_value(names.NUM_EPISODES, finished, reduce="sum")
        self.metrics.log_value(names.NUM_EPISODES_LIFETIME, finished, reduce="lifetime_sum")
        self.metrics.log_dict(self._episodes.recent().summary(self.env.agents[:_MAX_AGENTS_LOGGED]), window=1)
        timers = {names.ENV_STEP_TIMER: self._env_seconds, names.SAMPLE_TIMER: seconds}
        self.metrics.log_dict(timers, window=1)

    def _log_steps(self, env_steps: int, agent_steps: int) -> None:
        self.metrics.log_value(names.NUM_ENV_STEPS_SAMPLED, env_steps, reduce="sum")
        self.metrics.log_value(
            names.NUM_ENV_STEPS_SAMPLED_LIFETIME, env_steps, reduce="lifetime_sum", with_throughput=True
        )
        self.metrics.log_value((names.NUM_MODULE_STEPS_SAMPLED, HYPER), agent_steps, reduce="sum")
        self.metrics.log_value((names.NUM_MODULE_STEPS_SAMPLED_LIFETIME, HYPER), agent_steps, reduce="lifetime_sum")

    # -------------------------------------------------------------------------------------------------------- state

    def copy_weights(self, module: Any, weights_seq_no: int) -> None:
        """Takes over a learner's module in the same process, device to device."""
        self.module[HYPER].copy_from(module[HYPER].unwrapped())
        self._weights_seq_no = weights_seq_no

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        state: dict[str, Any] = {names.NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_env_steps_sampled_lifetime}
        if self._check_component(COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = self.module.get_state(
                components=self._get_subcomponents(COMPONENT_RL_MODULE, components),
                not_components=self._get_subcomponents(COMPONENT_RL_MODULE, not_components),
                **kwargs,
            )
            state[names.WEIGHTS_SEQ_NO] = self._weights_seq_no
        if components is None and not self.config.in_evaluation:
            state["sampling"] = {
                "generator": self._generator.get_state(),
                "env": self.env.get_state(),
                "step": self._step,
                "episodes": self._episodes.get_state(),
            }
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        if COMPONENT_RL_MODULE in state:
            seq_no = state.get(names.WEIGHTS_SEQ_NO, 0)
            if seq_no == 0 or self._weights_seq_no < seq_no:
                module_state = state[COMPONENT_RL_MODULE]
                if isinstance(module_state, ray.ObjectRef):
                    module_state = ray.get(module_state)
                self.module.set_state(module_state)
            self._weights_seq_no = seq_no or self._weights_seq_no
        if names.NUM_ENV_STEPS_SAMPLED_LIFETIME in state:
            self.num_env_steps_sampled_lifetime = int(state[names.NUM_ENV_STEPS_SAMPLED_LIFETIME] or 0)
        if "sampling" in state and not self.config.in_evaluation:
            self._set_sampling_state(state["sampling"])

    def _set_sampling_state(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])
        same_size = state["episodes"]["running_return"].shape == self._episodes.running_return.shape
        if state["env"] is not None and same_size:
            self.env.set_state(state["env"])
            self._step = state["step"]
            self._episodes.set_state(state["episodes"])
        else:  # the env cannot go on from where it was: its episodes start afresh, from a seed of their own
            steps = self.num_env_steps_sampled_lifetime
            seed = None if self._seed is None else (self._seed + 7919 * steps) % 2**31
            self._step = self._ask_env("reset", seed)
            self._episodes.set_state(state["episodes"], keep_running=False)

    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list[tuple[str, Checkpointable]]:
        return [(COMPONENT_RL_MODULE, self.module)]
