"""Samples whole teams from a batched environment: no Python per agent, per env or per episode."""

from __future__ import annotations

import contextlib
import dataclasses
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
from torch import Tensor

from .. import env as envs
from ..env import BatchedEnv, Step
from ..episodes import Episodes, EpisodeTracker
from ..errors import EnvError, HyperMARLError
from ..evaluation import evaluate
from ..nets import Memory, ModelSpec, TeamNet
from ..nets.spec import encoder_of
from ..rollout import Rollout, RolloutBuffer
from .config import HYPER, MODEL_SPEC, STATE, HyperMARLConfig
from .resources import granted_cpus

_MAX_AGENTS_LOGGED = 32  # per-agent returns of larger teams would be hundreds of metrics an iteration
_SEED_STRIDE = 100_003  # between the seeds of one run's runners
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


@dataclasses.dataclass
class RemoteSample:
    """What a remote runner answers.

    Attributes:
        weights_seq_no: of the weights that sampled.
        rollout: of NumPy arrays, which travel without being copied; None where the env failed.
        metrics: reduced, of this rollout.
        error: what an exception said, with the env's name and whatever else it knew. An exception itself would cost
            the actor, and RLlib would wait out `sample_timeout_s` and lose its text.
    """

    weights_seq_no: int
    rollout: Rollout | None = None
    metrics: dict[str, Any] | None = None
    error: str | None = None


class BatchedEnvRunner(EnvRunner, Checkpointable):
    """RLlib's `EnvRunner` over a `BatchedEnv`.

    `sample()` returns one `Rollout`; `sample(num_episodes=...)` plays whole episodes on an env of its own, greedily and
    from the evaluation seed, and leaves training untouched. Where others sample (`num_env_runners`), the local runner
    has no env to train on; it keeps the weights, and evaluates.
    """

    def __init__(self, *, config: HyperMARLConfig, spaces: dict | None = None, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        self.is_remote = bool(self.worker_index)
        if self.is_remote:
            torch.set_num_threads(granted_cpus())
        self.device = self.config.torch_device(gpus=self.config.num_gpus_per_env_runner if self.is_remote else None)
        if self._seed is not None:  # seeds of one run's runners must not be those of another run
            self._seed = (self.config.seed + _SEED_STRIDE * (self.worker_index or 0)) % 2**31
        self._spaces = spaces
        self._weights_seq_no = 0
        self._generator = torch.Generator(device=self.device)
        self._generator.manual_seed(self._seed if self._seed is not None else torch.seed())
        self._evaluation_env: BatchedEnv | None = None
        self._episodes: EpisodeTracker | None = None
        self._step: Step | None = None  # the last one; None before the first reset
        self._memory: dict[str, Memory] = {}  # by head, of teams that have one; at `_step`
        if self._spaces is None:
            self.make_env()
        self.make_module()

    # ------------------------------------------------------------------------------------------------- construction

    def make_env(self) -> None:
        if self.env is not None:
            self.env.close()
        self.env = self.make_batched_env(1 if self.config.in_evaluation else self.config.num_envs_per_env_runner)
        self._check_step = envs.StepCheck(self.env, self.env_name)
        window = self.config.metrics_num_episodes_for_smoothing
        self._episodes = EpisodeTracker(len(self.env.agents), self.env.num_envs, window, self.device)

    def make_batched_env(self, num_envs: int) -> BatchedEnv:
        """A fresh batch of `num_envs` copies of the configured env."""
        return self.config.make_batched_env(num_envs, self.device)

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
        if self._spaces is None:
            spaces = tuple(
                gym.spaces.Dict([(agent, by_agent[agent]) for agent in self.env.agents])
                for by_agent in (self.env.observation_spaces, self.env.action_spaces)
            )
            self._spaces = {
                INPUT_ENV_SPACES: spaces,
                INPUT_ENV_SINGLE_SPACES: spaces,
                HYPER: spaces,
                STATE: (self.env.state_space, None),
            }
        return self._spaces

    @property
    def agents(self) -> list[str]:
        """The team, in the env's order."""
        return list(self.get_spaces()[HYPER][0])

    def assert_healthy(self) -> None:
        assert self.module

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
            self._step = self._ask_env("reset", self._first_seed())
            self._check_step(self._step)
        start = time.perf_counter()
        with _one_thread_if(self.env.num_envs * len(self.env.agents) <= _ROWS_PER_THREAD):
            rollout = self._rollout(self.config.get_rollout_fragment_length())
        self._check(rollout)
        episodes = self._episodes.update(rollout)
        self._log_rollout(rollout, episodes, time.perf_counter() - start)
        return rollout

    def sample_remotely(self, state: dict[str, Any]) -> RemoteSample:
        """Takes over the driver's state (`get_state` of its local runner), samples, and never raises.

        Weights that travel with the request cannot be lost on the way, nor be missed by a runner that was restarted.
        """
        try:
            self.set_state(state)
            rollout = self.sample()
        except Exception as error:
            text = str(error) if isinstance(error, HyperMARLError) else f"{type(error).__name__}: {error}"
            return RemoteSample(self._weights_seq_no, error=text)
        return RemoteSample(self._weights_seq_no, rollout.arrays(), self.get_metrics())

    def _first_seed(self) -> int | None:
        """Of the first reset; one that sets in later (restarted, or after a resume) must not repeat what has been."""
        steps = self.num_env_steps_sampled_lifetime
        return None if self._seed is None else (self._seed + 7919 * steps) % 2**31

    @torch.no_grad()
    def _rollout(self, length: int) -> Rollout:
        net, weights = self.net, self.net.generate("actor")
        obs_dim = self._step.obs.shape[-1]
        acts = net.spec.actions
        sizes = len(self.env.agents), length, self.env.num_envs, obs_dim
        with_state = net.spec.reads_state
        state_dim = self.env.state_space.shape[0] if with_state else None
        buffer = RolloutBuffer(*sizes, self.device, acts.shape, acts.dtype, state_dim)
        self._env_seconds = 0.0
        for head in net.cores.keys() - self._memory.keys():
            self._memory[head] = net.blank(head, self.env.num_envs)
        memory, remembered = self._memory.get("actor"), []
        for t in range(length):
            before, obs = self._step, self._step.observed()
            if memory is not None and t % self.config.steps_of_sequence() == 0:
                remembered.append(memory.state)
            dist = net.policy(obs, weights, before.allowed(), memory)
            actions = dist.sample(self._generator)
            step = self._ask_env("step", dist.to_env(actions).transpose(0, 1))
            self._check_step(step)
            buffer.add(obs, actions, dist.log_prob(actions), step, before)
            if memory is not None:
                memory.forget(step.forgets(before))
            self._step = step
        rollout = buffer.finish(self._step.observed(), self._step.state if with_state else None)
        if memory is not None:
            rollout.actor_memory = torch.stack(remembered, dim=1)
        if "critic" in net.cores:
            rollout.critic_memory = self._follow(rollout, self._memory["critic"])
        return rollout

    def _follow(self, rollout: Rollout, memory: Memory) -> Tensor:
        """Takes the critics' memory through a rollout. Returns it at the start of every sequence, `[N, S, E, size]`."""
        length, lost, remembered = self.config.steps_of_sequence(), rollout.forgets(), []
        weights = self.net.generate(encoder_of("critic"))
        for first in range(0, len(rollout.terminated), length):
            remembered.append(memory.state)
            steps = slice(first, first + length)
            memory.lost = lost[:, steps].flatten(1, 2)
            state = None if rollout.state is None else rollout.state[steps].flatten(0, 1)
            self.net.follow(rollout.obs[:, steps].flatten(1, 2), state, weights, memory)
        return torch.stack(remembered, dim=1)

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
        if rollout.action_mask is not None:
            blocked = self.net.spec.actions.blocked(self.net.allowed(rollout.action_mask.flatten(1, 2)))
            envs.check_some_allowed(blocked.view_as(rollout.reward), self.env.agents, self.env_name)
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
        self._log_episodes(episodes)
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
        self._log_episodes(self._episodes.recent())
        for name, count in self.env.take_counts().items():
            self.metrics.log_value(f"{name}_lifetime", count, reduce="lifetime_sum")
        timers = {names.ENV_STEP_TIMER: self._env_seconds, names.SAMPLE_TIMER: seconds}
        self.metrics.log_dict(timers, window=1)

    def _log_episodes(self, episodes: Episodes) -> None:
        summary = episodes.summary(self.agents[:_MAX_AGENTS_LOGGED], self.net.spec.group_agents())
        for extreme in ("min", "max"):  # of all runners together, where there are several
            for name in [name for name in summary if name.endswith(extreme)]:
                self.metrics.log_value(name, summary.pop(name), reduce=extreme, window=1)
        self.metrics.log_dict(summary, window=1)

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
            state[MODEL_SPEC] = self.net.spec.to_dict()
        if components is None and self.env is not None and not self.config.in_evaluation:
            state["sampling"] = {
                "generator": self._generator.get_state(),
                "env": self.env.get_state(),
                "step": self._step,
                "episodes": self._episodes.get_state(),
                "memory": {head: memory.state for head, memory in self._memory.items()},
            }
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        if MODEL_SPEC in state and ModelSpec.from_dict(state[MODEL_SPEC]) != self.net.spec:  # the team changed
            self.module[HYPER].change_team(ModelSpec.from_dict(state[MODEL_SPEC]))
        if COMPONENT_RL_MODULE in state:
            module_state = state[COMPONENT_RL_MODULE]
            if isinstance(module_state, ray.ObjectRef):
                module_state = ray.get(module_state)
            # Whatever their number: those of a restored checkpoint may be older, or other ones of the same number.
            self.module.set_state(module_state)
            self._weights_seq_no = state.get(names.WEIGHTS_SEQ_NO, self._weights_seq_no)
        if names.NUM_ENV_STEPS_SAMPLED_LIFETIME in state:
            self.num_env_steps_sampled_lifetime = int(state[names.NUM_ENV_STEPS_SAMPLED_LIFETIME] or 0)
        if "sampling" in state and self.env is not None and not self.config.in_evaluation:
            self._set_sampling_state(state["sampling"])

    def _set_sampling_state(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])
        same_size = state["episodes"]["running_return"].shape == self._episodes.running_return.shape
        if state["env"] is not None and same_size:
            self.env.set_state(state["env"])
            self._step = state["step"]
            self._episodes.set_state(state["episodes"])
            self._memory = {head: Memory(x) for head, x in state.get("memory", {}).items()}  # before 0.2 there is none
        else:  # the env cannot go on from where it was: its episodes start afresh, from a seed of their own
            self._step = self._ask_env("reset", self._first_seed())
            self._episodes.set_state(state["episodes"], keep_running=False)
            self._memory = {}

    def get_ctor_args_and_kwargs(self) -> tuple[tuple, dict[str, Any]]:
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list[tuple[str, Checkpointable]]:
        return [(COMPONENT_RL_MODULE, self.module)]
