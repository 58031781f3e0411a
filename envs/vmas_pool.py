"""Fast resets of VMAS envs: ended rows take over rows of a second env of the same size that was reset as a whole.

VMAS resets one env at a time, and each time in Python. Resetting all envs at once costs little more than one; so a
*pool*, a second VMAS env, is reset as a whole, and whoever needs a new episode copies the next unused row: of every
tensor with the env axis in front that hangs anywhere on the env, its world and its scenario, and of the observations.

What a scenario keeps outside such tensors (Python numbers, references to other entities) stays behind: whether a
scenario can be reset this way is found by trying (`vmas_probe.py`), and `vmas.py` lists the names of those that can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..env import EnvError


class UnlikeEnvsError(EnvError):
    """The two envs hold unlike objects, so that rows of one mean nothing in the other."""

    def __init__(self, what: str):
        super().__init__(f"{what}: rows of a reset pool do not fit, set fast_resets to false")


class StatePairs:
    """Where two VMAS envs of one configuration hold their tensors `[E, ...]`.

    VMAS re-binds attributes all the time. So a place is a holder (`vars` of an object, a list or a dict) and a key.
    Places are found by walking both envs side by side, which is slow; as long as the holders of the first env keep
    their layout, they are the same. Whoever resets the other env calls `walk`.
    """

    def __init__(self, env: Any, other: Any):
        self._env, self._other = env, other
        self._module = type(env.scenario).__module__  # of the scenario's own helpers; its name does not begin with vmas
        self._leaf: dict[type, bool] = {}
        self._places: list[tuple[Any, Any, Any]] = []  # holder, the other env's, key
        self._layout: list[tuple[Any, tuple[type, ...]]] = []  # holder, types of its values
        self._inner: list[tuple[Any, Any, Any]] = []  # holder, key, the holder that is found there

    def __iter__(self) -> Iterator[tuple[Any, Any, Tensor, Tensor]]:
        """Yields holder, key, tensor and the other env's tensor."""
        if not self._unchanged():
            self.walk()
        for holder, other, key in self._places:
            yield holder, key, holder[key], other[key]

    def _unchanged(self) -> bool:
        return all(tuple(map(type, _values(holder))) == types for holder, types in self._layout) and all(
            holder[key] is inner for holder, key, inner in self._inner
        )

    def walk(self) -> None:
        """Finds all places.

        Raises:
            UnlikeEnvsError: the same path leads to unlike objects.
        """
        self._places, self._layout, self._inner = [], [], []
        partner: dict[int, Any] = {}
        todo = [(self._env, self._other)]
        while todo:
            mine, other = todo.pop()
            if id(mine) in partner:
                if partner[id(mine)] is not other:
                    raise UnlikeEnvsError(f"{type(mine).__name__} is referred to from elsewhere in the other env")
                continue
            partner[id(mine)] = other
            if type(mine).__qualname__ != type(other).__qualname__:  # VMAS loads a scenario's module anew for every env
                raise UnlikeEnvsError(f"{type(mine).__name__} here, {type(other).__name__} in the other env")
            mine, other = _holder(mine), _holder(other)
            self._layout.append((mine, tuple(map(type, _values(mine)))))
            for key, value in _items(mine):
                if self._is_leaf(value):
                    if self._per_env(value) and not isinstance(mine, tuple):
                        pool = _get(other, key)
                        if self._per_env(pool) and value.shape == pool.shape and value is not pool:
                            self._places.append((mine, other, key))
                elif any(not self._is_leaf(v) or self._per_env(v) for v in _values(_holder(value))):
                    counterpart = _get(other, key)
                    if counterpart is not None and counterpart is not value:
                        self._inner.append((mine, key, value))
                        todo.append((value, counterpart))

    def _per_env(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() > 0 and len(value) == self._env.num_envs

    def _is_leaf(self, value: Any) -> bool:
        kind = type(value)
        if kind not in self._leaf:
            ours = kind.__module__.partition(".")[0] == "vmas" or kind.__module__ == self._module
            inside = kind in (list, tuple, dict) or (ours and hasattr(value, "__dict__"))
            self._leaf[kind] = not inside or isinstance(value, type) or callable(value)
        return self._leaf[kind]


def _holder(value: Any) -> Any:
    return value if isinstance(value, list | tuple | dict) else vars(value)


def _values(holder: Any) -> Any:
    return holder.values() if isinstance(holder, dict) else holder


def _items(holder: Any) -> Any:
    return holder.items() if isinstance(holder, dict) else enumerate(holder)


def _get(holder: Any, key: Any) -> Any:
    """None where steps have made something that a reset does not make, and so leaves alone."""
    if isinstance(holder, dict):
        return holder.get(key)
    return holder[key] if key < len(holder) else None


class ResetPool:
    """First rows of episodes, for the envs of one VMAS env.

    Args:
        env: the VMAS env whose rows are replaced.
        pool: another one of the same configuration.
        stack: makes `[N, E, obs]` of the agents' observations.
    """

    def __init__(self, env: Any, pool: Any, stack: Callable[[Sequence[Tensor]], Tensor] = torch.stack):
        self.env, self.pool, self._stack = env, pool, stack
        self._pairs = StatePairs(env, pool)
        self._obs: Tensor | None = None  # [N, E, obs] of the pool's rows
        self.clear()

    def clear(self) -> None:
        """Forgets the rows that are left."""
        self._used = self.env.num_envs

    def restart(self, rows: Tensor, obs: Tensor) -> Tensor:
        """Starts new episodes in the envs `rows` `[k]`.

        Args:
            obs: `[N, E, obs]`.

        Returns:
            A copy of `obs` with the first observations of the new episodes.
        """
        obs = obs.clone()
        while len(rows):
            if self._used == self.env.num_envs:
                self._obs, self._used = self._stack(self.pool.reset()), 0
                self._pairs.walk()
            now, rows = rows.tensor_split([self.env.num_envs - self._used])
            fresh = slice(self._used, self._used + len(now))
            self._used = fresh.stop
            self._copy(now, fresh)
            obs[:, now] = self._obs[:, fresh]
        return obs

    def _copy(self, rows: Tensor, fresh: slice) -> None:
        """Rows `fresh` of the pool become `rows` of the env, in every tensor.

        All tensors of a shape are copied as one, into new memory: VMAS shares tensors between objects, and views of
        them. Two places that hold one tensor in both envs go on doing so.
        """
        groups: dict[tuple, dict[tuple[int, int], tuple[Tensor, Tensor, list]]] = {}
        for holder, key, mine, pool in self._pairs:
            group = groups.setdefault((mine.shape, mine.dtype, pool.dtype), {})
            group.setdefault((id(mine), id(pool)), (mine, pool, []))[2].append((holder, key))
        for group in groups.values():
            mine, pool, places = zip(*group.values(), strict=True)
            merged = torch.stack(mine)
            merged[:, rows] = torch.stack(pool)[:, fresh].to(merged.dtype)
            for tensor, shared in zip(merged.unbind(), places, strict=True):
                for holder, key in shared:
                    holder[key] = tensor
