"""What action spaces have in common. No torch in here: simulators' worker processes do without."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import gymnasium as gym


def choices_of(space: gym.Space) -> tuple[int, ...]:
    """Of each component of a discrete space; none of a continuous one."""
    return (int(space.n),) if isinstance(space, gym.spaces.Discrete) else tuple(map(int, getattr(space, "nvec", ())))


def most_choices(spaces: Iterable[gym.Space]) -> list[int]:
    """Of each component, the most choices that an agent with one of these spaces has; none of continuous ones."""
    return [max(component) for component in itertools.zip_longest(*map(choices_of, spaces), fillvalue=0)]


def num_choices(spaces: Iterable[gym.Space]) -> int:
    """Width of the action masks of agents with these spaces. 0 of continuous ones."""
    return sum(most_choices(spaces))


def places_of(space: gym.Space, spaces: Iterable[gym.Space]) -> list[int]:
    """Where the choices of one of these spaces lie in a mask for all of them."""
    starts = itertools.accumulate(most_choices(spaces), initial=0)
    return [start + i for start, own in zip(starts, choices_of(space), strict=False) for i in range(own)]


def action_shape(spaces: Sequence[gym.Space]) -> tuple[int, ...]:
    """Of an action in the greatest of these spaces, as envs are given it: one discrete component alone has no axis."""
    if (components := len(most_choices(spaces))) == 1:
        return ()
    return (components or max(space.shape[0] for space in spaces),)
