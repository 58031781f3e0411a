"""PettingZoo envs whose agents act in turns. Imported where PettingZoo is."""

from __future__ import annotations

from typing import Any

import numpy as np
from pettingzoo.utils.conversions import turn_based_aec_to_parallel_wrapper
from pettingzoo.utils.env import AECEnv

from ..spaces import choices_of
from .pettingzoo_task import MASK


class Turns(turn_based_aec_to_parallel_wrapper):
    """PettingZoo's conversion, in which all agents act in every step and one of them is obeyed. Infos say here that
    the others may do nothing but their first action: of that they have the log-probability 0, and learn nothing.

    Raises:
        ValueError: actions are continuous.
    """

    def __init__(self, env: AECEnv):
        super().__init__(env)
        choices = {agent: choices_of(env.action_space(agent)) for agent in env.possible_agents}
        for agent, own in choices.items():
            if not own:
                raise ValueError(f"agents act in turns, and actions of {agent} are {env.action_space(agent)}: such "
                                 "envs are supported with Discrete and MultiDiscrete actions")  # fmt: skip
        self._first = {agent: np.concatenate([np.arange(n) == 0 for n in own]) for agent, own in choices.items()}

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        observations, infos = super().reset(seed, options)
        return observations, self._with_turns(infos)

    def step(self, actions: dict) -> tuple[dict, dict, dict, dict, dict]:
        *results, infos = super().step(actions)
        return *results, self._with_turns(infos)

    def _with_turns(self, infos: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        acts = self.aec_env.agent_selection
        waiting = {agent: {**infos.get(agent, {}), MASK: self._first[agent]} for agent in self.agents if agent != acts}
        return infos | waiting
