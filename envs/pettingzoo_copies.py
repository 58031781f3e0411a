"""Copies of one PettingZoo env, stepped one after the other, their results written into arrays.

No torch in here: worker processes (`pettingzoo_worker.py`) start faster, and smaller, without it.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from ..errors import EnvError, UnknownEnvError

FAMILIES = ("atari", "butterfly", "classic", "sisl")
"""PettingZoo's own; each has its requirements, `pip install 'pettingzoo[sisl]'`."""


class EnvRaisedError(EnvError):
    """A copy raised an exception of its own."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What makes one copy.

    Attributes:
        name: `MODULE` with a function `parallel_env` or `env`, or `MODULE:CALLABLE`; modules of PettingZoo's families
            without the leading `pettingzoo.`.
        kwargs: of that function.
        wrappers: applied in this order; each the name of a SuperSuit wrapper or `MODULE:CALLABLE`, alone or as the only
            key of a mapping whose value are its keyword arguments.
        state: whether copies tell their state. None: if it is a flat vector.
    """

    name: str
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    wrappers: Sequence[str | Mapping[str, Mapping[str, Any] | None]] = ()
    state: bool | None = None


@dataclasses.dataclass(frozen=True)
class Description:
    """What a copy is like. All agents have the same flat observations and the same actions.

    Attributes:
        agents: PettingZoo's `possible_agents`, in this order.
        state_dim: None where copies tell no state.
    """

    agents: tuple[str, ...]
    observation_space: gym.spaces.Box
    action_space: gym.Space
    state_dim: int | None


class Arrays:
    """What copies and their owner share, all of it in one buffer; E copies, N agents.

    Attributes:
        actions: `[E, N, ...]`.
        obs, final_obs: `[N, E, obs]`; `final_obs` is written where an episode ended.
        reward: `[N, E]`.
        terminated, truncated: `[E]` bool.
        state, final_state: `[E, state]`, or None.
        episode: `[E]`, the number of episodes that each copy has begun since its seed.
        busy: `[workers]`, the copy that each worker is at.

    Args:
        allocate: gives a buffer of so many zero bytes.
    """

    def __init__(
        self,
        description: Description,
        num_envs: int,
        workers: int = 1,
        allocate: Callable[[int], Any] = bytearray,
    ):
        e, n, o = num_envs, len(description.agents), description.observation_space.shape[0]
        action = description.action_space
        fields: dict[str, tuple[tuple[int, ...], Any]] = {
            "actions": ((e, n, *action.shape), action.dtype),
            "obs": ((n, e, o), np.float32),
            "final_obs": ((n, e, o), np.float32),
            "reward": ((n, e), np.float32),
            "terminated": ((e,), np.bool_),
            "truncated": ((e,), np.bool_),
            "episode": ((e,), np.int64),
            "busy": ((workers,), np.int64),
        }
        if description.state_dim is not None:
            fields |= dict.fromkeys(("state", "final_state"), ((e, description.state_dim), np.float32))
        places, size = {}, 0
        for name, (shape, dtype) in fields.items():
            places[name] = size
            size += -(-math.prod(shape) * np.dtype(dtype).itemsize // 64) * 64  # each in cache lines of its own
        self.state = self.final_state = None
        buffer = allocate(size)
        for name, (shape, dtype) in fields.items():
            setattr(self, name, np.ndarray(shape, dtype, buffer, places[name]))


# ---------------------------------------------------------------------------------------------------------- making one


def find(name: str) -> Callable[..., Any]:
    """The function behind a name (see `Task`).

    Raises:
        UnknownEnvError: there is none, or a package is missing.
    """
    path, _, attr = name.partition(":")
    family = path.partition(".")[0]
    path = f"pettingzoo.{path}" if family in FAMILIES else path
    try:
        module = importlib.import_module(path)
        return getattr(module, attr or ("parallel_env" if hasattr(module, "parallel_env") else "env"))
    except ModuleNotFoundError as error:
        if family in FAMILIES and not path.startswith(error.name):
            needs = f"it needs {error.name!r}: pip install 'pettingzoo[{family}]'"
        else:
            needs = f"there is no module {error.name!r}"
        raise UnknownEnvError(f"env 'pettingzoo/{name}': {needs}") from error
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownEnvError(f"env 'pettingzoo/{name}' cannot be imported: {error}") from error


def make_copy(task: Task) -> Any:
    """A parallel env.

    Raises:
        ValueError: it or a wrapper refuses its arguments, or is no PettingZoo env.
    """
    from pettingzoo.utils.conversions import aec_to_parallel
    from pettingzoo.utils.env import AECEnv

    env = _checked(find(task.name)(**task.kwargs), task.name)
    if isinstance(env, AECEnv):
        if not env.metadata.get("is_parallelizable", False):
            raise ValueError("agents act in turns (metadata has no is_parallelizable), which is not supported yet")
        env = aec_to_parallel(env)
    for wrapper in task.wrappers:
        entry = {wrapper: None} if isinstance(wrapper, str) else wrapper
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise ValueError(f"wrappers: each is a name, or one name with its arguments, not {wrapper!r}")
        ((name, kwargs),) = entry.items()
        env = _checked(_find_wrapper(name)(env, **(kwargs or {})), name)
    return env


def _checked(env: Any, name: str) -> Any:
    from pettingzoo.utils.env import AECEnv, ParallelEnv

    if not isinstance(env, AECEnv | ParallelEnv):
        raise ValueError(f"{name} returns {type(env).__name__}, which is neither a ParallelEnv nor an AECEnv")
    return env


def _find_wrapper(name: str) -> Callable[..., Any]:
    module, _, attr = name.partition(":") if ":" in name else ("supersuit", "", name)
    try:
        return getattr(importlib.import_module(module), attr)
    except (ImportError, AttributeError) as error:  # SuperSuit names the current version of a wrapper
        raise ValueError(f"wrappers: {name!r}: {error}") from error


def describe(env: Any, state: bool | None) -> Description:
    """Looks at a copy, and resets it for that.

    Raises:
        ValueError: the copy is not what is supported yet; says why.
    """
    agents = tuple(env.possible_agents)
    observations = {agent: _flat_observations(agent, env.observation_space(agent)) for agent in agents}
    actions = {agent: _supported_actions(agent, env.action_space(agent)) for agent in agents}
    for kind, spaces in (("observation", {a: s.shape for a, s in observations.items()}), ("action", actions)):
        for agent in agents:
            if spaces[agent] != spaces[agents[0]]:
                raise ValueError(
                    f"agents with unlike {kind} spaces are not supported yet: {agents[0]} has {spaces[agents[0]]}, "
                    f"{agent} has {spaces[agent]}"
                )
    first, infos = env.reset(seed=0)
    if missing := set(agents) - set(first):
        raise ValueError(f"agents that join later are not supported yet: {sorted(missing)[0]} is not there at reset")
    if any("action_mask" in info for info in infos.values()):
        raise ValueError("action masks (in infos) are not supported yet")
    return Description(agents, observations[agents[0]], actions[agents[0]], _state_dim(env, state))


def _flat_observations(agent: str, space: gym.Space) -> gym.spaces.Box:
    """What Gymnasium flattens a space into: arrays to vectors, choices to one-hot ones, and they are concatenated."""
    if isinstance(space, gym.spaces.Dict) and "action_mask" in space.spaces:
        raise ValueError("action masks (in observations) are not supported yet")
    leaves = [space]
    for leaf in leaves:
        if isinstance(leaf, gym.spaces.Dict | gym.spaces.Tuple):
            leaves += leaf.spaces.values() if isinstance(leaf, gym.spaces.Dict) else leaf.spaces
        elif isinstance(leaf, gym.spaces.Box) and leaf.dtype == np.uint8 and len(leaf.shape) > 1:
            raise ValueError(
                f"{agent} observes pictures, {leaf}: the networks read vectors; SuperSuit's color_reduction_v0, "
                "resize_v1 and flatten_v0, in `wrappers`, make small ones of them"
            )
    flat = gym.spaces.flatten_space(space)
    if not isinstance(flat, gym.spaces.Box):
        raise ValueError(f"observations of {agent} cannot be flattened: {space}")
    return gym.spaces.Box(flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32)


def _supported_actions(agent: str, space: gym.Space) -> gym.Space:
    if isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        fits = len(space.shape) < 2 and not np.any(space.start)
    else:
        fits = isinstance(space, gym.spaces.Box) and len(space.shape) == 1
    if not fits:
        raise ValueError(
            f"actions of {agent} are {space}; supported are Discrete and MultiDiscrete from 0, and flat Box"
        )
    return space


def _state_dim(env: Any, wanted: bool | None) -> int | None:
    if wanted is False:
        return None
    try:
        state = np.asarray(env.state())
        fits = np.issubdtype(state.dtype, np.number) and (wanted or state.ndim == 1)
        problem = f"is of {state.dtype}"
    except Exception as error:  # some have no method of that name, or an attribute
        fits, problem = False, f"raised {type(error).__name__}: {error}"
    if wanted and not fits:
        raise ValueError(f"state is true, but the env's state() {problem}")
    return state.size if fits else None


# ------------------------------------------------------------------------------------------------------ stepping some


def episode_seed(seed: int, copy: int, episode: int) -> int:
    """The seed with which a copy begins an episode; every episode has its own, whoever plays it."""
    return int(np.random.SeedSequence((seed, copy, episode)).generate_state(1)[0] >> 1)


class Copies:
    """Copies `first` to `first + count - 1`.

    Args:
        worker: which entry of `Arrays.busy` is theirs.

    Raises:
        ValueError: the env refuses its arguments, or is not supported.
    """

    def __init__(self, task: Task, first: int, count: int, worker: int = 0):
        self.first, self.worker, self._name = first, worker, task.name
        try:
            self._envs = [make_copy(task) for _ in range(count)]
            self.description = describe(self._envs[0], task.state)
        except EnvError:
            raise
        except Exception as error:
            raise ValueError(str(error) or f"{type(error).__name__} {where(error)}") from error

    def bind(self, arrays: Arrays, description: Description) -> None:
        """Args: description, whose order of agents counts."""
        if set(description.agents) != set(self.description.agents):
            raise EnvError(f"agents differ between processes: {description.agents} and {self.description.agents}")
        self._arrays, self._agents = arrays, description.agents
        self._spaces = [self._envs[0].observation_space(agent) for agent in self._agents]

    def reset(self, seed: int) -> list[int]:
        """Begins a new episode in every copy. Returns the copies that were lost: here, none is."""
        for i in range(len(self._envs)):
            self._guarded("reset", i, self._begin, seed)
        return []

    def step(self, seed: int) -> list[int]:
        """One step of every copy; where an episode ends, a new one begins. Returns as `reset` does.

        Raises:
            EnvRaisedError: a copy raised.
            EnvError: a copy does what is not supported.
        """
        for i in range(len(self._envs)):
            self._guarded("step", i, self._step, seed)
        return []

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _guarded(self, method: str, i: int, function: Callable[[int, int], None], seed: int) -> None:
        self._arrays.busy[self.worker] = self.first + i
        try:
            function(i, seed)
        except EnvError as error:
            raise EnvError(f"env 'pettingzoo/{self._name}', copy {self.first + i}: {error}") from error
        except Exception as error:
            raise EnvRaisedError(
                f"env 'pettingzoo/{self._name}', copy {self.first + i}, raised in {method}(): "
                f"{type(error).__name__}: {error} {where(error)}"
            ) from error

    def _begin(self, i: int, seed: int) -> None:
        e, arrays = self.first + i, self._arrays
        obs, _ = self._envs[i].reset(seed=episode_seed(seed, e, int(arrays.episode[e])))
        arrays.episode[e] += 1
        self._write(i, obs, arrays.obs, arrays.state)

    def _step(self, i: int, seed: int) -> None:
        e, arrays, agents = self.first + i, self._arrays, self._agents
        actions = dict(zip(agents, arrays.actions[e].copy(), strict=True))  # envs may keep them
        obs, reward, terminated, truncated, _ = self._envs[i].step(actions)
        arrays.reward[:, e] = _of_all("reward", reward, agents)
        terminated, truncated = _of_all("termination", terminated, agents), _of_all("truncation", truncated, agents)
        ended = [a or b for a, b in zip(terminated, truncated, strict=True)]
        if any(ended) and not (all(ended) and any(terminated) == all(terminated)):
            agent = agents[(terminated if all(ended) else ended).index(True)]
            raise EnvError(f"{agent} ended before others did: agents that die or leave are not supported yet")
        arrays.terminated[e], arrays.truncated[e] = all(terminated), any(truncated)
        if any(ended):
            self._write(i, obs, arrays.final_obs, arrays.final_state)
            self._begin(i, seed)
        else:
            self._write(i, obs, arrays.obs, arrays.state)

    def _write(self, i: int, observations: Mapping[str, Any], obs: np.ndarray, state: np.ndarray | None) -> None:
        e = self.first + i
        values = _of_all("observation", observations, self._agents)
        for n, (space, value) in enumerate(zip(self._spaces, values, strict=True)):
            if not isinstance(space, gym.spaces.Box):
                value = gym.spaces.flatten(space, value)
            obs[n, e] = np.reshape(value, obs.shape[2:])  # not broadcast, were it of another size
        if state is not None:
            state[e] = np.reshape(self._envs[i].state(), state.shape[1:])


def _of_all(what: str, values: Mapping[str, Any], agents: Sequence[str]) -> list[Any]:
    """The agents' values, in their order."""
    try:
        return [values[agent] for agent in agents]
    except KeyError as error:
        raise EnvError(f"no {what} of {error.args[0]}: agents that die or leave are not supported yet") from error


def where(error: BaseException) -> str:
    """File and line that raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"({frame.filename}:{frame.lineno})"
