"""What action spaces have in common. No torch in here: simulators' worker processes do without."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import gymnasium as gym


def num_choices(spaces: Iterable[gym.Space]) -> int:
    """Width of the action masks of agents with these spaces: of each component, the most choices that one of them has.

    0 of continuous ones.
    """
    components = itertools.zip_longest(*map(choices_of, spaces), fillvalue=0)
    return sum(max(component) for component in components)


def choices_of(space: gym.Space) -> tuple[int, ...]:
    """Of each component of a discrete space; none of a continuous one."""
    return (int(space.n),) if isinstance(space, gym.spaces.Discrete) else tuple(map(int, getattr(space, "nvec", ())))
