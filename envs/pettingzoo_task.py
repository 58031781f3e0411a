"""What one copy of a PettingZoo env is: how it is found and made, who its agents are, what they observe and can do."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from ..errors import UnknownEnvError
from ..spaces import action_shape, choices_of, num_choices

FAMILIES = ("atari", "butterfly", "classic", "sisl")
"""PettingZoo's own; each has its requirements, `pip install 'pettingzoo[sisl]'`."""
MASK = "action_mask"


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

    provider: ClassVar[str] = "pettingzoo"
    """Whose name it is: the env is `PROVIDER/NAME`."""

    @property
    def full_name(self) -> str:
        return f"{self.provider}/{self.name}"

    def make(self, copy: int) -> Any:
        """A parallel env, as PettingZoo has them. Args: copy: its number.

        Raises:
            ValueError: it or a wrapper refuses its arguments, or is no PettingZoo env.
        """
        return make_copy(self)


class Reader:
    """Makes vectors of what an agent observes: arrays are raveled, choices one-hot, and all is put behind one another.

    A `Dict` space may have an `action_mask` beside the observation; it is no part of the vector.

    Attributes:
        space: of the vectors.
        mask: that space of the mask; None where there is none.

    Raises:
        ValueError: a space that cannot be flattened, or a picture's.
    """

    def __init__(self, agent: str, space: gym.Space):
        self._key, self.mask = None, None
        if isinstance(space, gym.spaces.Dict) and MASK in space.spaces:
            rest = {key: part for key, part in space.spaces.items() if key != MASK}
            self._key, self.mask = (next(iter(rest)) if len(rest) == 1 else None), space[MASK]
            space = gym.spaces.Dict(list(rest.items())) if self._key is None else rest[self._key]
        _refuse_pictures(agent, space)
        flat = gym.spaces.flatten_space(space)
        if not isinstance(flat, gym.spaces.Box):
            raise ValueError(f"observations of {agent} cannot be flattened: {space}")
        self.space = gym.spaces.Box(flat.low.astype(np.float32), flat.high.astype(np.float32), dtype=np.float32)
        self._nested = None if isinstance(space, gym.spaces.Box) else space

    def vector(self, observation: Any) -> Any:
        """Returns what can be reshaped to a vector."""
        if self._key is not None:
            observation = observation[self._key]
        return observation if self._nested is None else gym.spaces.flatten(self._nested, observation)


@dataclasses.dataclass(frozen=True)
class Description:
    """What a copy is like.

    Attributes:
        agents: PettingZoo's `possible_agents`, in this order.
        observation_spaces, action_spaces: of each of them; observations as vectors.
        state_dim: None where copies tell no state.
        masked: whether they tell what agents may do.
    """

    agents: tuple[str, ...]
    observation_spaces: tuple[gym.spaces.Box, ...]
    action_spaces: tuple[gym.Space, ...]
    state_dim: int | None
    masked: bool

    @property
    def obs_dim(self) -> int:
        """Of the greatest."""
        return max(space.shape[0] for space in self.observation_spaces)

    @property
    def num_choices(self) -> int:
        return num_choices(self.action_spaces)

    @property
    def action_shape(self) -> tuple[int, ...]:
        return action_shape(self.action_spaces)

    @property
    def action_dtype(self) -> np.dtype:
        return np.result_type(*(space.dtype for space in self.action_spaces))


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

    from .pettingzoo_turns import Turns

    env = _checked(find(task.name)(**task.kwargs), task.name)
    if isinstance(env, AECEnv):
        env = aec_to_parallel(env) if env.metadata.get("is_parallelizable", False) else Turns(env)
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


# -------------------------------------------------------------------------------------------------------- looking at it


def describe(env: Any, state: bool | None) -> Description:
    """Looks at a copy, and resets it for that.

    Raises:
        ValueError: the copy is not what is supported; says why.
    """
    agents = tuple(env.possible_agents)
    readers = [Reader(agent, env.observation_space(agent)) for agent in agents]
    actions = [supported_actions(agent, env.action_space(agent)) for agent in agents]
    for agent, space in zip(agents, actions, strict=True):
        if bool(choices_of(space)) != bool(choices_of(actions[0])):
            raise ValueError(
                f"agents {agents[0]} ({actions[0]}) and {agent} ({space}): actions of a team must be all continuous "
                "or all discrete"
            )
    _, infos = env.reset(seed=0)
    masks = {agent: int(np.prod(reader.mask.shape)) for agent, reader in zip(agents, readers, strict=True)
             if reader.mask is not None}  # fmt: skip
    masks |= {agent: flat_mask(info[MASK]).size for agent, info in infos.items() if MASK in info}
    for agent, size in masks.items():
        space = actions[agents.index(agent)]
        if size != sum(choices_of(space)):
            raise ValueError(f"the action mask of {agent} has {size} entries, its actions are {space}")
    return Description(
        agents, tuple(reader.space for reader in readers), tuple(actions), _state_dim(env, state), bool(masks)
    )


def flat_mask(mask: Any) -> np.ndarray:
    """A mask as one vector; Gymnasium's of `MultiDiscrete` are tuples, of one vector for each component."""
    return np.concatenate(mask) if isinstance(mask, tuple) else np.ravel(mask)


def _refuse_pictures(agent: str, space: gym.Space) -> None:
    leaves = [space]
    for leaf in leaves:
        if isinstance(leaf, gym.spaces.Dict | gym.spaces.Tuple):
            leaves += leaf.spaces.values() if isinstance(leaf, gym.spaces.Dict) else leaf.spaces
        elif isinstance(leaf, gym.spaces.Box) and leaf.dtype == np.uint8 and len(leaf.shape) > 1:
            raise ValueError(
                f"{agent} observes pictures, {leaf}: the networks read vectors; SuperSuit's color_reduction_v0, "
                "resize_v1 and flatten_v0, in `wrappers`, make small ones of them"
            )


def supported_actions(agent: str, space: gym.Space) -> gym.Space:
    """The space itself. Raises: ValueError: names the agent whose actions are not supported."""
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
