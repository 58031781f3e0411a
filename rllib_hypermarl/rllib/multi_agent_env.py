"""Batched envs for RLlib's stock machinery: any algorithm, RLModule, connector or callback of RLlib can use them.

    config = (
        PPOConfig()
        .environment(BatchedMultiAgentEnv, env_config={"env": "vmas/dispersion", "n_agents": 4, "max_steps": 100})
        .env_runners(env_runner_cls=BatchedVectorEnvRunner, num_envs_per_env_runner=16)  # all copies in one batch
        .multi_agent(policies=[...], policy_mapping_fn=...)
    )

Without the runner, RLlib steps one env of one copy after the other. Both ways pay RLlib's price per agent and step in
Python: this is for compatibility, `HyperMARLConfig` is for speed.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.env.vector.vector_multi_agent_env import VectorMultiAgentEnv
from ray.rllib.utils.typing import AgentID

from .. import env as envs
from ..env import BatchedEnv, Step
from ..errors import EnvError

AgentDict = dict[AgentID, Any]


def _make(config: dict[str, Any], num_envs: int) -> BatchedEnv:
    """Makes the batched env that `config["env"]` names (or is the class of); the other keys are its env_config."""
    factory, env_config = config["env"], {key: value for key, value in config.items() if key != "env"}
    if isinstance(factory, str):
        return envs.make(factory, num_envs=num_envs, **env_config)
    return factory(num_envs=num_envs, device=torch.device("cpu"), **env_config)


class _Rows:
    """Turns tensors `[E, N, ...]` into one dict per env, and back."""

    def __init__(self, env: BatchedEnv):
        self.agents = env.agents
        self.name = type(env).__name__
        sizes = [env.observation_spaces[agent].shape[0] for agent in env.agents]
        self._sizes = sizes if len(set(sizes)) > 1 else None  # of observations, where they differ
        spaces = [env.action_spaces[agent] for agent in env.agents]
        widths = [space.shape[0] if space.shape else 1 for space in spaces]
        self._width = max(widths) if len(set(widths)) > 1 else None  # of actions, where they differ

    def _by_agent(self, rows: Any) -> list[AgentDict]:
        return [dict(zip(self.agents, row, strict=True)) for row in rows]

    def observations(self, obs: torch.Tensor) -> list[AgentDict]:
        """Args: obs `[E, N, obs]`. The arrays are views into one copy: episodes keep them, envs may reuse theirs."""
        rows = np.array(obs.numpy(force=True), order="C")
        if self._sizes is None:
            return self._by_agent(rows)
        return self._by_agent([[x[:size] for x, size in zip(row, self._sizes, strict=True)] for row in rows])

    def infos(self, count: int) -> list[AgentDict]:
        return [{agent: {} for agent in self.agents} for _ in range(count)]

    def results(self, step: Step) -> tuple[list[AgentDict], ...]:
        """What RLlib wants to know of a step: where an episode ended, its last observation.

        Ends stand under `__all__` alone. Where every single agent is said to be truncated, RLlib's episode becomes a
        terminated one, and nothing is bootstrapped.
        """
        if step.alive is not None or step.action_mask is not None:
            raise EnvError(f"{self.name}: agents that leave and masked actions are not offered to RLlib's runners")
        terminated, truncated = (
            [{"__all__": end} for end in flags.tolist()] for flags in (step.terminated, step.truncated)
        )
        rewards = self._by_agent(step.reward.tolist())
        return self.observations(step.final_obs), rewards, terminated, truncated, self.infos(len(rewards))

    def actions(self, rows: list[AgentDict]) -> torch.Tensor:
        """Returns `[E, N]` or `[E, N, dim]`."""
        found = [[row[agent] for agent in self.agents] for row in rows]
        if self._width is not None:
            found = [[np.pad(np.atleast_1d(x), (0, self._width - np.size(x))) for x in row] for row in found]
        return torch.from_numpy(np.array(found))


class BatchedMultiAgentEnv(MultiAgentEnv):
    """One copy of a batched env as an ordinary multi-agent env of RLlib's. Agents keep the batched env's order.

    Args:
        config: `env`, a registered name, `module:Attr` or a class; the other keys are the env_config.
    """

    def __init__(self, config: dict[str, Any]):
        self.env = _make(config, 1)
        self.agents, self.possible_agents = list(self.env.agents), list(self.env.agents)
        self.observation_spaces, self.action_spaces = self.env.observation_spaces, self.env.action_spaces
        super().__init__()
        self._rows = _Rows(self.env)
        self._next: Step | None = None  # the last step of an episode, which holds the first observation of the next

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[AgentDict, AgentDict]:
        step = self.env.reset(seed) if seed is not None or self._next is None else self._next
        self._next = None
        return self._rows.observations(step.obs)[0], self._rows.infos(1)[0]

    def step(self, action_dict: AgentDict) -> tuple[AgentDict, AgentDict, AgentDict, AgentDict, AgentDict]:
        step = self.env.step(self._rows.actions([action_dict]))
        results = self._rows.results(step)
        self._next = step if results[2][0]["__all__"] or results[3][0]["__all__"] else None
        return tuple(rows[0] for rows in results)

    def close(self) -> None:
        self.env.close()


class _SubEnv(MultiAgentEnv):
    """What RLlib asks the sub-envs of a vector env for: agents and spaces."""

    def __init__(self, env: BatchedEnv):
        self.agents, self.possible_agents = list(env.agents), list(env.agents)
        self.observation_spaces, self.action_spaces = env.observation_spaces, env.action_spaces
        super().__init__()


class BatchedVectorEnv(VectorMultiAgentEnv):
    """E copies of a batched env, stepped together, behind RLlib's vector API.

    RLlib's own vector env resets an ended sub-env in its next step, in which the others go on. A simulator that steps
    all copies at once cannot let one wait. So an ended sub-env returns its last observation and has begun its next
    episode, whose first observation is in `first_observations`; `BatchedVectorEnvRunner` hands it to RLlib's episode.
    """

    def __init__(self, config: dict[str, Any], num_envs: int):
        self.env = _make(config, num_envs)
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": "same_step"}
        self.envs = [_SubEnv(self.env)] * num_envs
        self.single_observation_spaces, self.single_action_spaces = self.env.observation_spaces, self.env.action_spaces
        self.single_observation_space = gym.spaces.Dict(list(self.single_observation_spaces.items()))
        self.single_action_space = gym.spaces.Dict(list(self.single_action_spaces.items()))
        self.first_observations: dict[int, AgentDict] = {}
        """Of the sub-envs that began a new episode in the last step."""
        self._rows = _Rows(self.env)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[list[AgentDict], list[AgentDict]]:
        self.first_observations = {}
        return self._rows.observations(self.env.reset(seed).obs), self._rows.infos(self.num_envs)

    def step(self, actions: list[AgentDict]) -> tuple[list[AgentDict], ...]:
        step = self.env.step(self._rows.actions(actions))
        ended = (step.terminated | step.truncated).nonzero().squeeze(1)
        first = self._rows.observations(step.obs[ended])
        self.first_observations = dict(zip(ended.tolist(), first, strict=True))
        return self._rows.results(step)

    def close_extras(self, **kwargs: Any) -> None:
        self.env.close()


class BatchedVectorEnvRunner(MultiAgentEnvRunner):
    """RLlib's multi-agent env runner over a `BatchedVectorEnv`; the config's env_config is `BatchedMultiAgentEnv`'s."""

    def make_env(self) -> None:
        if self.env is not None:
            self.env.close()
        context = EnvContext(
            self.config.env_config, worker_index=self.worker_index, num_workers=self.config.num_env_runners
        )
        self.env = BatchedVectorEnv(dict(context), self.config.num_envs_per_env_runner)
        self.num_envs = self.env.num_envs
        self._needs_initial_reset = True
        make_callback(
            "on_environment_created",
            callbacks_objects=self._callbacks,
            callbacks_functions=self.config.callbacks_on_environment_created,
            kwargs={"env_runner": self, "metrics_logger": self.metrics, "env": self.env, "env_context": context},
        )

    def sample(self, **kwargs: Any) -> list:
        if self.env is not None:  # sampling whole episodes leaves off where it has enough of them, and resets all
            self.env.first_observations.clear()
        return super().sample(**kwargs)

    def _new_episode(self, env_index: int, episodes: list | None = None) -> None:
        super()._new_episode(env_index, episodes)
        first = self.env.first_observations.pop(env_index, None)
        if first is not None:
            episodes = self._ongoing_episodes if episodes is None else episodes
            episodes[env_index].add_env_reset(observations=first, infos={agent: {} for agent in first})
            self._make_on_episode_callback("on_episode_start", env_index, episodes)
