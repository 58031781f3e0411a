"""RLlib's `MultiAgentEnv`s as batched envs.

`rllib/my_module:MyEnv`: a class, or a function, that is called as RLlib calls it, with the env_config as its only
argument, and returns a `MultiAgentEnv`. `rllib/my_env`: a name that was given to `ray.tune.register_env`. Copies are
stepped as PettingZoo's are (`pettingzoo.py`), which need not be installed. docs/pettingzoo.md tells what is supported.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch

from ..errors import EnvError, UnknownEnvError
from ..spaces import choices_of
from .pettingzoo import CopiesEnv
from .pettingzoo_copies import where
from .pettingzoo_pool import OnCrash
from .pettingzoo_task import MASK, Task, supported_actions

REQUIRES = "ray"
ACCEPTS = {
    "module:callable": "a MultiAgentEnv class, or a function of the env_config that returns such an env",
    "NAME": "what was given to ray.tune.register_env, in the program that builds the algorithm",
}
"""What names are taken beside `names()`, none here."""
_ALL = "__all__"


def names() -> list[str]:
    return []


def check(name: str) -> None:
    """Raises: UnknownEnvError: nothing can be found by this name."""
    find(name)


def make(name: str, num_envs: int, device: str | torch.device = "cpu", **env_config: Any) -> RLlibEnv:
    return RLlibEnv(name, num_envs, device, **env_config)


def find(name: str) -> Callable[[Any], Any]:
    """What makes one copy, of `MODULE:CALLABLE` or a registered name.

    Raises:
        UnknownEnvError: there is none.
    """
    module, colon, attr = name.partition(":")
    if not colon:
        from ray.tune.registry import ENV_CREATOR, _global_registry  # as RLlib's own env runners look names up

        if not _global_registry.contains(ENV_CREATOR, name):
            raise UnknownEnvError(
                f"env 'rllib/{name}': nobody has called ray.tune.register_env({name!r}, ...) in this program; "
                "the command line takes rllib/module:callable"
            )
        return _global_registry.get(ENV_CREATOR, name)
    try:
        found = getattr(importlib.import_module(module), attr)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownEnvError(f"env 'rllib/{name}' cannot be imported: {error}") from error
    if not callable(found):
        raise UnknownEnvError(f"env 'rllib/{name}' is {found!r}: expected a MultiAgentEnv class, or a function")
    return found


class RLlibEnv(CopiesEnv):
    """E copies of one `MultiAgentEnv` of RLlib's. Agents are called what `str` makes of their ids.

    Args:
        name: see the module.
        turns: whether agents may wait: be observed at times, and at other times, though they are not done, not, in
            which they do nothing. None: if some agent is not observed at the first reset. Needs discrete actions.
        state: whether `Step.state` is what a method `state()` of the env returns. None: if that is a flat vector.
        num_workers, on_crash, step_timeout_s: see `CopiesEnv`.
        env_config: the env's own.
    """

    def __init__(
        self,
        name: str,
        num_envs: int,
        device: str | torch.device = "cpu",
        *,
        num_workers: int = 0,
        on_crash: OnCrash = "fail",
        step_timeout_s: float | None = 60.0,
        turns: bool | None = None,
        state: bool | None = None,
        **env_config: Any,
    ):
        if turns not in (None, True, False):
            raise ValueError(f"turns must be true, false or null, not {turns!r}")
        creator = None
        if ":" not in name and num_workers:  # worker processes do not see the registry
            from ray import cloudpickle

            creator = cloudpickle.dumps(find(name))
        super().__init__(
            RLlibTask(name, env_config, state=state, turns=turns, creator=creator), num_envs, device,
            num_workers=num_workers, on_crash=on_crash, step_timeout_s=step_timeout_s,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RLlibTask(Task):
    """What makes one copy.

    Attributes:
        name: see the module.
        kwargs: the env_config.
        turns: see `RLlibEnv`.
        creator: what makes it, pickled; None: what the name says.
    """

    turns: bool | None = None
    creator: bytes | None = None

    provider: ClassVar[str] = "rllib"

    def make(self, copy: int) -> ParallelView:
        """Raises: ValueError: it refuses its env_config, or is not what is supported."""
        from ray import cloudpickle
        from ray.rllib.env.env_context import EnvContext
        from ray.rllib.env.multi_agent_env import MultiAgentEnv

        create = find(self.name) if self.creator is None else cloudpickle.loads(self.creator)
        env = create(EnvContext(deepcopy(self.kwargs), worker_index=0, vector_index=copy))
        if not isinstance(env, MultiAgentEnv):
            raise ValueError(
                f"{self.name} returns {type(env).__name__}, which is no MultiAgentEnv (of a single-agent env, "
                "ray.rllib.env.multi_agent_env.make_multi_agent makes one)"
            )
        return ParallelView(env, self.turns)


class ParallelView:
    """A `MultiAgentEnv` as PettingZoo would have it, as far as `Copy` asks.

    An agent comes with its first observation, and is there until it is done. One that is there and is not observed
    waits: it is not asked for an action, its last observation stands, and infos say that it may do nothing but its
    first action, of which it has the log-probability 0 and learns nothing.

    Raises:
        ValueError: names the agent, or what the env lacks.
    """

    def __init__(self, env: Any, turns: bool | None):
        self._env = env
        ids = env.possible_agents
        if not ids:
            raise ValueError(
                f"{type(env).__name__} has no possible_agents: set them, a list of all agents that may ever come, in "
                "its __init__, which should call super().__init__()"
            )
        if isinstance(ids, set | frozenset) or set(ids) == getattr(env, "_agent_ids", None):
            ids = sorted(ids, key=str)  # the order of a set is another one in every process
        self.possible_agents = [str(one) for one in ids]
        self._ids, self._names = dict(zip(self.possible_agents, ids, strict=True)), {one: str(one) for one in ids}
        if len(self._ids) < len(self.possible_agents):
            raise ValueError(f"agents are called the same: {self.possible_agents}")
        self._observations = {agent: self._space("observation", agent) for agent in self._ids}
        self._actions = {agent: supported_actions(agent, self._space("action", agent)) for agent in self._ids}
        choices = {agent: choices_of(space) for agent, space in self._actions.items()}
        self._continuous = [agent for agent, own in choices.items() if not own]
        if turns and self._continuous:
            raise ValueError(f"turns is true, but {self._needs(self._continuous[0])}")
        self._first = {agent: np.concatenate([np.arange(n) == 0 for n in own])
                       for agent, own in choices.items() if own}  # fmt: skip
        self._unmasked = {agent for agent, space in self._observations.items()
                          if not (isinstance(space, gym.spaces.Dict) and MASK in space.spaces)}  # fmt: skip
        self._turns = turns
        if turns is None:  # every copy finds the same
            self._turns = not self._continuous and len(env.reset(seed=0)[0]) < len(self._ids)

    def observation_space(self, agent: str) -> gym.Space:
        return self._observations[agent]

    def action_space(self, agent: str) -> gym.Space:
        return self._actions[agent]

    def state(self) -> Any:
        return self._env.state()

    def close(self) -> None:
        self._env.close()

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        obs, infos = self._env.reset(seed=seed, options=options)
        obs = self._named(obs)
        self.agents = [agent for agent in self.possible_agents if agent in obs]
        self._done: set[str] = set()
        self._last: dict[str, Any] = {}
        return self._told(obs, infos)

    def step(self, actions: Mapping[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        obs, rewards, terminateds, truncateds, infos = self._env.step(
            {self._ids[agent]: actions[agent] for agent in self._acting}
        )
        obs, before = self._named(obs), self.agents
        died, cut = bool(terminateds.get(_ALL)), bool(truncateds.get(_ALL))
        over = died or cut
        if not over and (again := self._done.intersection(obs)):
            raise EnvError(f"{min(again)} was terminated or truncated, and is observed again in the same episode")
        known = {*before, *obs}
        terminated, truncated = (
            {agent: bool(flags.get(self._ids[agent])) for agent in known} for flags in (terminateds, truncateds)
        )
        self._done.update(agent for flags in (terminated, truncated) for agent in flags if flags[agent])
        self.agents = [
            agent for agent in self.possible_agents if agent in known and agent not in self._done and not over
        ]
        if over:  # of who is not told about alone, `__all__` tells
            rest = [agent for agent in before if agent not in self._done]
            (terminated if died else truncated).update(dict.fromkeys(rest, True))
        observations, told = self._told(obs, infos)
        paid = {agent: rewards.get(self._ids[agent]) or 0.0 for agent in before}
        return observations, paid, terminated, truncated, told

    def _told(self, obs: dict[str, Any], infos: Mapping[Any, Any]) -> tuple[dict, dict]:
        """What everybody observed last, and infos of those that are there."""
        self._acting = [agent for agent in self.agents if agent in obs]
        if len(self._acting) < len(self.agents) and not self._turns:
            (agent, *_) = (agent for agent in self.agents if agent not in obs)
            raise EnvError(
                f"{agent} is neither observed nor done: it waits, and "
                + (self._needs(self._continuous[0]) if self._continuous else "env_config needs turns: true")
            )
        self._last.update(deepcopy(obs) if self._turns else obs)  # an env may go on writing into its own
        told = {agent: infos.get(self._ids[agent]) or {} for agent in self.agents}
        if self._turns:
            for agent, info in told.items():
                if agent not in obs:
                    told[agent] = {**info, MASK: self._first[agent]}
                elif agent in self._unmasked and MASK not in info:
                    told[agent] = {**info, MASK: np.ones_like(self._first[agent])}
        return self._last, told

    def _named(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        try:
            return {self._names[one]: value for one, value in values.items()}
        except KeyError as error:
            raise EnvError(f"{error.args[0]!r} is observed, but not among the env's possible_agents") from error

    def _needs(self, agent: str) -> str:
        return (f"actions of {agent} are {self._actions[agent]}: where agents wait, all need Discrete or MultiDiscrete "
                "ones")  # fmt: skip

    def _space(self, kind: str, agent: str) -> gym.Space:
        get = self._env.get_observation_space if kind == "observation" else self._env.get_action_space
        try:
            space = get(self._ids[agent])
        except Exception as error:
            raise ValueError(f"{type(error).__name__} in get_{kind}_space({self._ids[agent]!r}): {error} {where(error)}"
                             ) from error  # fmt: skip
        if not isinstance(space, gym.Space):
            raise ValueError(f"the {kind} space of {agent} is {space!r}: set {kind}_spaces in the env's __init__")
        return space
