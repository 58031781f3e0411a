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

import math
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
from ..spaces import action_shape, num_choices, places_of

AgentDict = dict[AgentID, Any]


def _make(config: dict[str, Any], num_envs: int) -> BatchedEnv:
    """Makes the batched env that `config["env"]` names (or is the class of); the other keys are its env_config."""
    factory, env_config = config["env"], {key: value for key, value in config.items() if key != "env"}
    if isinstance(factory, str):
        return envs.make(factory, num_envs=num_envs, **env_config)
    return factory(num_envs=num_envs, device=torch.device("cpu"), **env_config)


class _Rows:
    """Turns tensors `[E, N, ...]` into one dict per env, and back.

    Args:
        first: any step of the env; it says whether there are action masks.
    """

    def __init__(self, env: BatchedEnv, first: Step):
        self.agents = env.agents
        self.name = type(env).__name__
        sizes = [env.observation_spaces[agent].shape[0] for agent in env.agents]
        self._sizes = sizes if len(set(sizes)) > 1 else None  # of observations, where they differ
        spaces = [env.action_spaces[agent] for agent in env.agents]
        self._action_shape = action_shape(spaces)
        self._alike = all(space.shape == self._action_shape for space in spaces)
        self._choices = None if first.action_mask is None else [places_of(space, spaces) for space in spaces]
        self.action_spaces, self.observation_spaces = env.action_spaces, env.observation_spaces
        if self._choices is not None:
            self.observation_spaces = {
                agent: gym.spaces.Dict(
                    observations=space, action_mask=gym.spaces.Box(0.0, 1.0, (len(choices),), np.float32)
                )
                for (agent, space), choices in zip(env.observation_spaces.items(), self._choices, strict=True)
            }

    def _by_agent(self, rows: Any) -> list[AgentDict]:
        return [dict(zip(self.agents, row, strict=True)) for row in rows]

    def first(self, step: Step, envs: list[int] | None = None) -> list[AgentDict]:
        """Of some envs, or all, what there is to act on."""
        obs, mask, alive = (
            x if x is None or envs is None else x[envs] for x in (step.obs, step.action_mask, step.alive)
        )
        return self._only(alive, self._observations(obs, mask))

    def _observations(self, obs: torch.Tensor, mask: torch.Tensor | None) -> list[AgentDict]:
        """Args: obs `[E, N, obs]`. The arrays are views into one copy: episodes keep them, envs may reuse theirs."""
        rows = np.array(obs.numpy(force=True), order="C")
        if self._sizes is not None:
            rows = [[x[:size] for x, size in zip(row, self._sizes, strict=True)] for row in rows]
        if self._choices is not None:
            if mask is None:
                mask = torch.ones(*obs.shape[:2], num_choices(self.action_spaces.values()))
            rows = [
                [
                    {"observations": x, "action_mask": allowed[own]}
                    for x, allowed, own in zip(*both, self._choices, strict=True)
                ]
                for both in zip(rows, mask.float().numpy(force=True), strict=True)
            ]
        return self._by_agent(rows)

    def _only(self, who: torch.Tensor | None, rows: list[AgentDict]) -> list[AgentDict]:
        """What is of those agents. Args: who `[E, N]`; None: all."""
        if who is None:
            return rows
        return [
            {agent: x for (agent, x), there in zip(row.items(), flags, strict=True) if there}
            for row, flags in zip(rows, who.tolist(), strict=True)
        ]

    def results(self, step: Step, before: Step) -> tuple[list[AgentDict], ...]:
        """What RLlib wants to know of a step: where an episode ended, its last observation.

        Ends of episodes stand under `__all__` alone. Where every single agent is said to be truncated, RLlib's episode
        becomes a terminated one, and nothing is bootstrapped.

        Raises:
            EnvError: nobody is left, and the episode goes on.
        """
        ended = step.terminated | step.truncated
        mask = step.action_mask
        if mask is not None:  # of what ended it says nothing
            mask = mask | ended.view(-1, 1, 1)
        terminated, truncated = (
            [{"__all__": end} for end in flags.tolist()] for flags in (step.terminated, step.truncated)
        )
        rewards = self._by_agent(step.reward.tolist())
        gone = step.departures(before)
        if gone is None:
            observations = self._observations(step.final_obs, mask)
            return observations, rewards, terminated, truncated, self.infos(observations)
        acted, died, cut = gone
        if (idle := ~(acted & ~died & ~cut).any(dim=1) & ~ended).any():
            raise EnvError(
                f"{self.name}: all agents of copy {idle.nonzero()[0].item()} are gone, and its episode goes on; an "
                "episode of RLlib's ends with its last agent"
            )
        joined = ~acted if step.alive is None else step.alive & ~acted
        # Of those that died in the step in which time was up for all, RLlib wants a last observation, and reads none.
        dead = died & step.truncated.unsqueeze(1)
        final_obs = torch.where(dead.unsqueeze(-1), before.obs, step.final_obs)
        present = (acted & ~died) | (joined & ~ended.unsqueeze(1)) | dead
        if mask is not None:
            mask = mask | cut.unsqueeze(-1)
        for rows, flags in ((terminated, died), (truncated, cut)):
            for e, n in flags.nonzero().tolist():
                rows[e][self.agents[n]] = True
        observations = self._only(present, self._observations(final_obs, mask))
        return observations, self._only(acted, rewards), terminated, truncated, self.infos(observations)

    def infos(self, observations: list[AgentDict]) -> list[AgentDict]:
        return [{agent: {} for agent in row} for row in observations]

    def actions(self, rows: list[AgentDict]) -> torch.Tensor:
        """Returns `[E, N]` or `[E, N, dim]`; zeros where an agent does nothing."""
        if self._alike and all(len(row) == len(self.agents) for row in rows):
            return torch.from_numpy(np.array([[row[agent] for agent in self.agents] for row in rows]))
        dtype = np.result_type(*(space.dtype for space in self.action_spaces.values()))
        found = np.zeros((len(rows), len(self.agents), math.prod(self._action_shape)), dtype)
        for e, row in enumerate(rows):
            for n, agent in enumerate(self.agents):
                if agent in row:
                    found[e, n, : np.size(row[agent])] = np.ravel(row[agent])
        return torch.from_numpy(found.reshape(*found.shape[:2], *self._action_shape))


class BatchedMultiAgentEnv(MultiAgentEnv):
    """One copy of a batched env as an ordinary multi-agent env of RLlib's. Agents keep the batched env's order.

    Where there are action masks, observations are `Dict(observations=..., action_mask=...)`, as in RLlib's examples.
    Agents that die are terminated, and those that were truncated alone truncated; RLlib lets none of them come back in
    the same episode.

    Args:
        config: `env`, a registered name, `module:Attr` or a class; the other keys are the env_config.
    """

    def __init__(self, config: dict[str, Any]):
        self.env = _make(config, 1)
        self.agents, self.possible_agents = list(self.env.agents), list(self.env.agents)
        self._next: Step | None = self.env.reset()  # the step that holds the first observation of an episode
        self._rows = _Rows(self.env, self._next)
        self.observation_spaces, self.action_spaces = self._rows.observation_spaces, self._rows.action_spaces
        super().__init__()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[AgentDict, AgentDict]:
        self._before = self.env.reset(seed) if seed is not None or self._next is None else self._next
        self._next = None
        observations = self._rows.first(self._before)
        return observations[0], self._rows.infos(observations)[0]

    def step(self, action_dict: AgentDict) -> tuple[AgentDict, AgentDict, AgentDict, AgentDict, AgentDict]:
        before, self._before = self._before, self.env.step(self._rows.actions([action_dict]))
        results = self._rows.results(self._before, before)
        self._next = self._before if results[2][0]["__all__"] or results[3][0]["__all__"] else None
        return tuple(rows[0] for rows in results)

    def close(self) -> None:
        self.env.close()


class _SubEnv(MultiAgentEnv):
    """What RLlib asks the sub-envs of a vector env for: agents and spaces."""

    def __init__(self, rows: _Rows):
        self.agents, self.possible_agents = list(rows.agents), list(rows.agents)
        self.observation_spaces, self.action_spaces = rows.observation_spaces, rows.action_spaces
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
        self._rows = _Rows(self.env, self.env.reset())
        self.envs = [_SubEnv(self._rows)] * num_envs
        self.single_observation_spaces = self._rows.observation_spaces
        self.single_action_spaces = self._rows.action_spaces
        self.single_observation_space = gym.spaces.Dict(list(self.single_observation_spaces.items()))
        self.single_action_space = gym.spaces.Dict(list(self.single_action_spaces.items()))
        self.first_observations: dict[int, AgentDict] = {}
        """Of the sub-envs that began a new episode in the last step."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[list[AgentDict], list[AgentDict]]:
        self.first_observations = {}
        self._before = self.env.reset(seed)
        observations = self._rows.first(self._before)
        return observations, self._rows.infos(observations)

    def step(self, actions: list[AgentDict]) -> tuple[list[AgentDict], ...]:
        before, step = self._before, self.env.step(self._rows.actions(actions))
        self._before = step
        ended = (step.terminated | step.truncated).nonzero().squeeze(1).tolist()
        self.first_observations = dict(zip(ended, self._rows.first(step, ended), strict=True))
        return self._rows.results(step, before)

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
