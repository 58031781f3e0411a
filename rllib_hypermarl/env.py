"""The contract between HyperMARL and a batched multi-agent simulator, and the registry of names.

A batched env steps E copies of one multi-agent task at once. Everything that crosses the contract is a tensor on the
env's own device with the env axis first and the agent axis second: `[E, N, ...]`. Agents never change order.

A new environment needs `BatchedEnv` (two methods) and a name: `register("mine", "my_package.my_module")`, or no name at
all: `env: my_package.my_module:MyEnv` in a config finds it as it is.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from .errors import EnvError, UnknownEnvError
from .spaces import num_choices


@dataclasses.dataclass(slots=True)
class Step:
    """What one call of `reset` or `step` returns, for E envs and N agents.

    An env whose episode ends in this step resets itself: `obs` is then the first observation of the next episode, and
    `final_obs` the last one of the episode that ended. Where nothing ended the two are equal; an env that ended nowhere
    should return the very same tensor twice, so that nobody has to compare them. `action_mask`, `alive` and
    `final_alive` may come and go from step to step.

    Attributes:
        obs: `[E, N, obs]` float. What to act on next. Where agents' observations have different sizes, all have the
            greatest, filled up with zeros at the end.
        reward: `[E, N]` float. The env's own reward of the transition; zeros from `reset`.
        terminated: `[E]` bool. The task ended; the value of the final observation is zero.
        truncated: `[E]` bool. Time ran out; the value of the final observation is bootstrapped.
        final_obs: `[E, N, obs]`.
        state: `[E, state]`, optional. The whole env, for central critics.
        final_state: `[E, state]`, beside `state`, as `final_obs` is beside `obs`.
        action_mask: `[E, N, actions]` bool, optional, for `obs`. True where an action is allowed; of several discrete
            components, one block each; of agents with unlike actions, as wide as `num_choices`. Whatever it says of
            choices that an agent does not have, and of agents that are not alive, is not read.
        alive: `[E, N]` bool, optional. False for agents that died, left, or have not come yet. None: all are alive.
            What they would observe and be paid is not read, and what they do not obeyed.
        final_alive: `[E, N]`, beside `alive`, as `final_obs` is beside `obs`: an agent that is not alive there died in
            this step, which ends its return, whether or not the episode goes on. One that is alive there and not in
            `alive`, in an episode that goes on, was truncated alone: the value of its `final_obs`, which is another
            tensor than `obs` then, is bootstrapped. None: as `alive`, and in episodes that ended, whoever acted.
        extras: named tensors `[E, ...]` for metrics and pictures (positions, visibility). Never used for learning.
    """

    obs: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    final_obs: Tensor
    state: Tensor | None = None
    final_state: Tensor | None = None
    action_mask: Tensor | None = None
    alive: Tensor | None = None
    final_alive: Tensor | None = None
    extras: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def observed(self) -> Tensor:
        """`[N, E, obs]`, what the agents act on: zeros for those that are not alive."""
        obs = self.obs.transpose(0, 1)
        return obs if self.alive is None else obs.masked_fill(~self.alive.T.unsqueeze(-1), 0.0)

    def allowed(self) -> Tensor | None:
        """`[N, E, actions]`, the action mask; agents that are not alive may do anything."""
        if self.action_mask is None:
            return None
        mask = self.action_mask.transpose(0, 1)
        return mask if self.alive is None else mask | ~self.alive.T.unsqueeze(-1)

    def departures(self, before: Step) -> tuple[Tensor, Tensor, Tensor] | None:
        """Who acted; who of them died; who of them was truncated alone, while the episode went on. `[E, N]` bool each;
        None where all agents live as long as the episode. Args: before: the step that was acted on."""
        if before.alive is None and self.alive is None and self.final_alive is None:
            return None
        everybody = torch.ones_like(self.reward, dtype=torch.bool)
        acted, alive = (everybody if x is None else x for x in (before.alive, self.alive))
        ended = (self.terminated | self.truncated).unsqueeze(1)
        survived = torch.where(ended, acted, alive) if self.final_alive is None else self.final_alive
        return acted, acted & ~survived, acted & survived & ~(alive | ended)

    def forgets(self, before: Step) -> Tensor:
        """For whom nothing of what came before counts after this step: the episode ended, or the agent died, or was not
        alive. `[1, E]`, or `[N, E]` where agents come and go. Args: before: as of `departures`."""
        ended, gone = (self.terminated | self.truncated).unsqueeze(0), self.departures(before)
        return ended if gone is None else ended | (gone[1] | ~gone[0]).T


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """Something to see in a picture of one env copy: a circle, or a rectangle.

    Attributes:
        name: of agents, their id.
        x, y: its middle.
        radius: of a circle.
        box: length and width of a rectangle; None: it is a circle.
        angle: of the rectangle, in radians.
        family: marks of one family have one colour. None: an agent has one of its own, anything else is grey.
        gone: whether only its outline is left (food that was eaten).
    """

    name: str
    x: float
    y: float
    radius: float = 0.0
    box: tuple[float, float] | None = None
    angle: float = 0.0
    family: int | None = None
    gone: bool = False


class BatchedEnv(abc.ABC):
    """E copies of one multi-agent task, stepped together.

    Subclasses set the attributes in `__init__`; all of them are fixed from then on.
    """

    num_envs: int
    """E."""
    agents: tuple[str, ...]
    """The N agent ids, in the order of the agent axis."""
    observation_spaces: dict[str, gym.Space]
    """Per agent; flat `Box` spaces."""
    action_spaces: dict[str, gym.Space]
    """Per agent, all discrete or all continuous. Where they differ in size, actions come in the greatest; what is
    beyond an agent's own space is not for it."""
    state_space: gym.Space | None = None
    """Space of `Step.state`, or None where the env has none."""
    device: torch.device = torch.device("cpu")
    max_episode_steps: int | None = None
    """Steps after which an episode ends at the latest, or None where nothing limits it."""
    film: list[list[Mark]] | None = None
    """A list, while somebody films copy 0; see `show`."""

    @abc.abstractmethod
    def reset(self, seed: int | None = None) -> Step:
        """Starts a new episode in every env. A seed restarts the env's own random stream; None goes on with it."""

    @abc.abstractmethod
    def step(self, actions: Tensor) -> Step:
        """Steps every env with `actions` (`[E, N]` integer for `Discrete` spaces, `[E, N, dim]` float for `Box`)."""

    def get_state(self) -> dict[str, Any] | None:
        """Everything needed to go on from here bit for bit; None if this env cannot, and restarts on resume."""
        return None

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from a state that `get_state` of an equally configured env returned."""
        raise EnvError(f"{type(self).__name__} cannot be restored from a saved state")

    def picture(self) -> list[Mark]:
        """What copy 0 looks like now. Optional; an env that has it calls `show`.

        Raises:
            EnvError: this env has no pictures.
        """
        raise EnvError(f"{type(self).__name__} has no pictures: give it a method picture(), and call show()")

    def show(self) -> None:
        """Adds a picture to the film, if there is one. For `reset`, and for `step` before it starts a new episode."""
        if self.film is not None:
            self.film.append(self.picture())

    def take_counts(self) -> dict[str, int]:
        """Things worth knowing that happened since the last call, by name. Metrics add them up over a run."""
        return {}

    def close(self) -> None:  # noqa: B027  (optional, not abstract)
        """Frees what the env holds."""


class Wrapper(BatchedEnv):
    """Base of wrappers (reward transforms, normalisers): passes everything on. State of its own belongs into
    `get_state`/`set_state` of the subclass, beside the inner env's."""

    def __init__(self, env: BatchedEnv):
        self.env = env
        for key in ("state_space", "device", "max_episode_steps"):  # have defaults in the class, which would hide them
            setattr(self, key, getattr(env, key))

    def __getattr__(self, name: str) -> Any:
        if name == "env":  # not set yet: while unpickling
            raise AttributeError(name)
        return getattr(self.env, name)

    def reset(self, seed: int | None = None) -> Step:
        return self.env.reset(seed)

    def step(self, actions: Tensor) -> Step:
        return self.env.step(actions)

    def get_state(self) -> dict[str, Any] | None:
        return self.env.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self.env.set_state(state)

    @property
    def film(self) -> list[list[Mark]] | None:
        return self.env.film

    @film.setter
    def film(self, film: list[list[Mark]] | None) -> None:
        self.env.film = film

    def picture(self) -> list[Mark]:
        return self.env.picture()

    def take_counts(self) -> dict[str, int]:
        return self.env.take_counts()

    def close(self) -> None:
        self.env.close()


# ---------------------------------------------------------------------------------------------------------- registry

# Prefix -> module with `make(name, num_envs, device, **env_config) -> BatchedEnv`, `names() -> list[str]` and
# `REQUIRES`, the package it imports when asked for (or None). A provider whose names are open-ended, or need more than
# one package, has `check(name)`, which raises UnknownEnvError, and may say in `ACCEPTS` what it takes beside
# `names()`. A module name that begins with a dot is ours.
_PROVIDERS: dict[str, str] = {
    "bps": ".envs.particle_spread",
    "games": ".envs.matrix_games",
    "pettingzoo": ".envs.pettingzoo",
    "rllib": ".envs.rllib_env",
    "vmas": ".envs.vmas",
}


def register(prefix: str, module: str) -> None:
    """Makes `prefix/NAME` resolve through `module.make(NAME, ...)`; see `envs/matrix_games.py` for an example."""
    _PROVIDERS[prefix] = module


def providers() -> Mapping[str, Any]:
    """Prefix -> its module, imported. None of them imports its simulator at that time."""
    return {prefix: importlib.import_module(module, __package__) for prefix, module in sorted(_PROVIDERS.items())}


def resolve(name: str) -> Callable[..., BatchedEnv]:
    """The factory behind a name: called with `num_envs`, `device` and the env_config, it makes the env.

    Args:
        name: `prefix/NAME` of a registered provider, or `package.module:Attr`.

    Raises:
        UnknownEnvError: with the nearest valid name.
    """
    prefix, _, scenario = name.partition("/")
    if ":" in name and prefix not in _PROVIDERS:
        module_name, _, attr = name.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attr)
        except (ImportError, AttributeError, ValueError) as error:
            raise UnknownEnvError(f"env {name!r} cannot be imported: {error}") from error
    available = providers()
    if prefix not in available or not scenario:
        raise UnknownEnvError(f"unknown env {name!r}: {nearest(name, list_names())}")
    provider = available[prefix]
    if provider.REQUIRES and importlib.util.find_spec(provider.REQUIRES) is None:
        raise UnknownEnvError(f"env {name!r} needs the package {provider.REQUIRES!r}: pip install {provider.REQUIRES}")
    if hasattr(provider, "check"):
        provider.check(scenario)
    elif scenario not in provider.names():
        raise UnknownEnvError(f"unknown env {name!r}: {nearest(name, list_names(prefix))}")
    return lambda **kwargs: provider.make(scenario, **kwargs)


def make(name: str, *, num_envs: int, device: str | torch.device = "cpu", **env_config: Any) -> BatchedEnv:
    """Makes `num_envs` copies of the named env on `device`.

    Raises:
        UnknownEnvError: the name is unknown, its package is missing, or the env refuses its `env_config`.
    """
    factory = resolve(name)
    try:
        return factory(num_envs=num_envs, device=torch.device(device), **env_config)
    except (TypeError, ValueError, AssertionError) as error:
        raise UnknownEnvError(f"env {name!r} refuses env_config {env_config}: {error}") from error


def list_names(prefix: str | None = None) -> list[str]:
    """All registered env names, as `prefix/NAME`. Providers whose package is missing are left out."""
    names = []
    for key, provider in providers().items():
        installed = not provider.REQUIRES or importlib.util.find_spec(provider.REQUIRES) is not None
        if prefix in (None, key) and installed:
            names += [f"{key}/{name}" for name in provider.names()]
    return names


def nearest(name: str, valid: list[str]) -> str:
    """`did you mean 'x'?`, or the valid names where none is near. For error messages."""
    match = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else f"valid are {', '.join(sorted(valid)) or 'none'}"


# ------------------------------------------------------------------------------------------------------------ checks


class StepCheck:
    """Compares shapes and dtypes of steps with what an env declared; costs no synchronisation.

    Args:
        name: of the env, for errors.
    """

    def __init__(self, env: BatchedEnv, name: str):
        e, n = env.num_envs, len(env.agents)
        obs = (e, n, max(space.shape[0] for space in env.observation_spaces.values()))
        self._name = name
        self._shapes = {
            "obs": obs, "final_obs": obs, "reward": (e, n), "terminated": (e,), "truncated": (e,), "alive": (e, n),
            "final_alive": (e, n), "action_mask": (e, n, num_choices(env.action_spaces.values())),
        }  # fmt: skip

    def __call__(self, step: Step) -> None:
        """Raises: EnvError: names the env, the field, what was expected and what came."""
        for field, shape in self._shapes.items():
            value = getattr(step, field)
            if value is None and field in _OPTIONAL:
                continue
            if not isinstance(value, Tensor) or tuple(value.shape) != shape:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise EnvError(f"env {self._name!r} returned {field} of shape {got}, expected {shape} ([E, N, ...])")
            if field in _FLAGS and value.dtype != torch.bool:
                raise EnvError(f"env {self._name!r} returned {field} as {value.dtype}, expected torch.bool")


_OPTIONAL = {"alive", "final_alive", "action_mask"}
_FLAGS = {"terminated", "truncated", *_OPTIONAL}


def check_some_allowed(blocked: Tensor, agents: tuple[str, ...], name: str) -> None:
    """Checks a whole rollout at once. Args: blocked `[N, T, E]` bool, where a mask leaves nothing to choose.

    Raises:
        EnvError: names the env, and the first agent, sub-env and step without an action.
    """
    if blocked.any():
        n, t, e = blocked.nonzero()[0].tolist()
        raise EnvError(
            f"env {name!r} allows no action to agent {agents[n]!r} in sub-env {e}, step {t} of the rollout; "
            "an agent that cannot act must not be alive, or have an action that does nothing"
        )


def check_finite(values: Tensor, field: str, agents: tuple[str, ...], name: str) -> None:
    """Checks a whole rollout tensor `[T, E, N, ...]` at once.

    Raises:
        EnvError: names the env, the field, and the first agent, sub-env and step with a NaN or an infinity.
    """
    if torch.isfinite(values.sum()):  # one pass and one number; a finite tensor whose sum overflows is checked below
        return
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        t, e, n = bad[0][:3].tolist()
        raise EnvError(
            f"env {name!r} returned a non-finite {field} ({values[tuple(bad[0])].item()}) "
            f"for agent {agents[n]!r}, sub-env {e}, step {t} of the rollout; {len(bad)} such values in all"
        )
