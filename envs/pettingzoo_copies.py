"""Copies of one PettingZoo env, stepped one after the other, their results written into arrays.

No torch in here: worker processes (`pettingzoo_worker.py`) start faster, and smaller, without it.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from ..errors import EnvError
from ..spaces import places_of
from .pettingzoo_task import MASK, Description, Reader, Task, describe, flat_mask


class EnvRaisedError(EnvError):
    """A copy raised an exception of its own."""


class Arrays:
    """What copies and their owner share, all of it in one buffer; E copies, N agents.

    Attributes:
        actions: `[E, N, ...]`, in the greatest of the agents' spaces.
        obs, final_obs: `[N, E, obs]`, with zeros behind smaller ones, and of agents that are not there; `final_obs` is
            written where an episode ended, or an agent was truncated alone.
        reward: `[N, E]`.
        terminated, truncated: `[E]` bool.
        alive, final_alive: `[N, E]` bool, as in `Step`.
        action_mask: `[N, E, choices]` bool, as in `Step`, or None.
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
        e, n, o = num_envs, len(description.agents), description.obs_dim
        fields: dict[str, tuple[tuple[int, ...], Any]] = {
            "actions": ((e, n, *description.action_shape), description.action_dtype),
            "obs": ((n, e, o), np.float32),
            "final_obs": ((n, e, o), np.float32),
            "reward": ((n, e), np.float32),
            "terminated": ((e,), np.bool_),
            "truncated": ((e,), np.bool_),
            "alive": ((n, e), np.bool_),
            "final_alive": ((n, e), np.bool_),
            "episode": ((e,), np.int64),
            "busy": ((workers,), np.int64),
        }
        if description.masked:
            fields["action_mask"] = (n, e, description.num_choices), np.bool_
        if description.state_dim is not None:
            fields |= dict.fromkeys(("state", "final_state"), ((e, description.state_dim), np.float32))
        places, size = {}, 0
        for name, (shape, dtype) in fields.items():
            places[name] = size
            size += -(-math.prod(shape) * np.dtype(dtype).itemsize // 64) * 64  # each in cache lines of its own
        self.action_mask = self.state = self.final_state = None
        buffer = allocate(size)
        for name, (shape, dtype) in fields.items():
            setattr(self, name, np.ndarray(shape, dtype, buffer, places[name]))


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
        self.first, self.worker, self._name = first, worker, task.full_name
        try:
            self._envs = [task.make(first + i) for i in range(count)]
            self.description = describe(self._envs[0], task.state)
        except EnvError as error:
            raise EnvError(f"env '{self._name}': {error}") from error
        except Exception as error:
            raise ValueError(str(error) or f"{type(error).__name__} {where(error)}") from error

    def bind(self, arrays: Arrays, description: Description) -> None:
        """Args: description, whose order of agents counts."""
        if set(description.agents) != set(self.description.agents):
            raise EnvError(f"agents differ between processes: {description.agents} and {self.description.agents}")
        self._arrays = arrays
        self._copies = [Copy(env, description, arrays, self.first + i) for i, env in enumerate(self._envs)]

    def reset(self, seed: int) -> list[int]:
        """Begins a new episode in every copy. Returns the copies that were lost: here, none is."""
        for copy in self._copies:
            self._guarded("reset", copy, copy.begin, seed)
        return []

    def step(self, seed: int) -> list[int]:
        """One step of every copy; where an episode ends, a new one begins. Returns as `reset` does.

        Raises:
            EnvRaisedError: a copy raised.
            EnvError: a copy does what is not supported.
        """
        for copy in self._copies:
            self._guarded("step", copy, copy.step, seed)
        return []

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _guarded(self, method: str, copy: Copy, function: Callable[[int], None], seed: int) -> None:
        self._arrays.busy[self.worker] = copy.number
        try:
            function(seed)
        except EnvError as error:
            raise EnvError(f"env '{self._name}', copy {copy.number}: {error}") from error
        except Exception as error:
            raise EnvRaisedError(
                f"env '{self._name}', copy {copy.number}, raised in {method}(): "
                f"{type(error).__name__}: {error} {where(error)}"
            ) from error


class Copy:
    """One copy, and its place in the arrays.

    Agents are alive from the reset or step on after which they are new among PettingZoo's `agents`, until they
    terminate or are truncated. To those that stay in `agents` all the same actions are handed on; nothing else of them
    counts.
    """

    def __init__(self, env: Any, description: Description, arrays: Arrays, number: int):
        self.number, self._env, self._arrays = number, env, arrays
        self._agents, spaces = description.agents, description.action_spaces
        self._place = {agent: n for n, agent in enumerate(self._agents)}
        self._readers = [Reader(agent, env.observation_space(agent)) for agent in self._agents]
        self._obs, self._final_obs = (
            [x[n, number, : reader.space.shape[0]] for n, reader in enumerate(self._readers)]
            for x in (arrays.obs, arrays.final_obs)
        )
        own, dtype = description.action_shape, description.action_dtype
        self._parts = None if all(space.shape == own and space.dtype == dtype for space in spaces) else spaces
        self._choices = [places_of(space, spaces) for space in spaces]
        self._there: list[str] = []  # PettingZoo's `agents`
        self._alive: list[str] = []  # in our order
        self._places: list[int] = []  # of the alive ones
        self._rows: slice | list[int] = []  # the same, as an index
        self._calm = False  # nobody came or went in the last step

    def begin(self, seed: int) -> None:
        """Begins a new episode."""
        arrays, e = self._arrays, self.number
        obs, infos = self._env.reset(seed=episode_seed(seed, e, int(arrays.episode[e])))
        arrays.episode[e] += 1
        self._set_there(set(self._env.agents))
        if not self._alive:
            raise EnvError("an episode begins without agents")
        self._write(obs, infos)

    def step(self, seed: int) -> None:
        """One step, and the beginning of a new episode where it was the last one."""
        arrays, e, alive = self._arrays, self.number, self._alive
        obs, reward, terminated, truncated, infos = self._env.step(self._actions())
        if not self._calm:
            arrays.reward[:, e] = 0
            arrays.terminated[e] = arrays.truncated[e] = False
            arrays.final_alive[:, e] = arrays.alive[:, e]
            self._calm = True
        arrays.reward[self._rows, e] = _of("reward", reward, alive)
        ends = zip(_of("termination", terminated, alive), _of("truncation", truncated, alive), strict=True)
        ended = [(agent, died) for agent, (died, cut) in zip(alive, ends, strict=True) if died or cut]
        if ended or list(self._env.agents) != self._there:
            self._depart(dict(ended), obs)
            if not self._alive:
                self.begin(seed)
                return
        self._write(obs, infos)

    def _actions(self) -> dict[str, Any]:
        rows = self._arrays.actions[self.number].copy()  # envs may keep them
        if self._parts is not None:
            rows = [_part(row, space) for row, space in zip(rows, self._parts, strict=True)]
        if len(self._there) == len(rows):
            return dict(zip(self._agents, rows, strict=True))
        return {agent: rows[self._place[agent]] for agent in self._there}

    def _depart(self, ended: Mapping[str, bool], obs: Mapping[str, Any]) -> None:
        """Somebody came or went. Writes all that is final. Args: ended, who did, and whether by termination."""
        arrays, e, before, there = self._arrays, self.number, self._alive, set(self._env.agents)
        if lost := [agent for agent in before if agent not in ended and agent not in there]:
            raise EnvError(f"{lost[0]} is among the env's agents no more, but neither terminated nor truncated")
        self._set_there(there.difference(self._there).union(before).difference(ended))
        over, dead = not self._alive, all(ended.values())
        survivors = before if over and dead else [agent for agent in before if not ended.get(agent)]
        arrays.terminated[e], arrays.truncated[e] = over and dead, over and not dead
        arrays.final_alive[:, e] = arrays.alive[:, e]
        arrays.final_alive[[self._place[agent] for agent in survivors], e] = True
        if over or not dead:
            arrays.final_obs[:, e] = 0
            if over and dead:  # what they observe last is for nobody, and not all envs tell it
                survivors = [agent for agent in survivors if agent in obs]
            self._write_obs(
                self._final_obs, arrays.final_state, obs, survivors + [a for a in self._alive if a not in survivors]
            )

    def _set_there(self, alive: set[str]) -> None:
        """Args: alive, of PettingZoo's present `agents`."""
        arrays, e, self._calm = self._arrays, self.number, False
        self._there = list(self._env.agents)
        if unknown := alive.difference(self._agents):
            raise EnvError(f"{min(unknown)} is among the env's agents, but not among its possible_agents")
        self._alive = [agent for agent in self._agents if agent in alive]
        self._places = [self._place[agent] for agent in self._alive]
        self._rows = slice(None) if len(alive) == len(self._agents) else self._places
        arrays.alive[:, e] = False
        arrays.alive[self._rows, e] = True
        arrays.obs[~arrays.alive[:, e], e] = 0

    def _write(self, obs: Mapping[str, Any], infos: Mapping[str, Any]) -> None:
        """What the living observe, and may do."""
        self._write_obs(self._obs, self._arrays.state, obs, self._alive)
        masks = self._arrays.action_mask
        if masks is None:
            if any(MASK in info for info in infos.values()):
                raise EnvError("infos have action masks, but those of the first reset had none")
            return
        for n, agent in zip(self._places, self._alive, strict=True):
            mask = infos[agent].get(MASK) if agent in infos else None
            if mask is None:
                mask = True if self._readers[n].mask is None else obs[agent][MASK]
            places = self._choices[n]
            masks[n, self.number, places] = mask is True or np.reshape(flat_mask(mask), len(places))

    def _write_obs(
        self, rows: list[np.ndarray], state: np.ndarray | None, obs: Mapping[str, Any], agents: Sequence[str]
    ) -> None:
        for agent, value in zip(agents, _of("observation", obs, agents), strict=True):
            n = self._place[agent]
            rows[n][:] = np.reshape(self._readers[n].vector(value), rows[n].shape)  # not broadcast, were it smaller
        if state is not None:
            state[self.number] = np.reshape(self._env.state(), state.shape[1:])


def _part(row: Any, space: gym.Space) -> Any:
    """Of an action in the greatest space, what belongs to one that is smaller."""
    return np.ravel(row)[: math.prod(space.shape)].reshape(space.shape).astype(space.dtype)[()]


def _of(what: str, values: Mapping[str, Any], agents: Sequence[str]) -> list[Any]:
    """The agents' values, in their order."""
    try:
        return [values[agent] for agent in agents]
    except KeyError as error:
        raise EnvError(f"no {what} of {error.args[0]}, which is among the env's agents") from error


def where(error: BaseException) -> str:
    """File and line that raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"({frame.filename}:{frame.lineno})"
