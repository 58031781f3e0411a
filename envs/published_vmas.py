"""VMAS as the code of the HyperMARL paper steps it, to measure what its two peculiarities do to learning. Not for
anything else: `vmas/NAME` does neither."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..env import Step, Wrapper
from .vmas import VmasEnv


class PublishedVmas(Wrapper):
    """`env: rllib_hypermarl.envs.published_vmas:PublishedVmas`, and `scenario` in its `env_config`.

    Args:
        scenario: of VMAS.
        time_limit_terminates: an episode that runs out of time counts as one whose task ended: nothing is bootstrapped
            (`done = terminated or truncated` in the paper's code).
        stale_first_obs: the first observation of an episode is the last one of the episode before, which the paper's
            wrapper returns after it reset an env; the first after `reset` is right.
        env_config: as of `VmasEnv`.
    """

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device = "cpu",
        *,
        scenario: str,
        time_limit_terminates: bool = True,
        stale_first_obs: bool = True,
        **env_config: Any,
    ):
        super().__init__(VmasEnv(scenario, num_envs, device, **env_config))
        self._time_limit_terminates, self._stale_first_obs = time_limit_terminates, stale_first_obs

    def step(self, actions: Tensor) -> Step:
        step = self.env.step(actions)
        if self._time_limit_terminates:
            ended, never = step.terminated | step.truncated, torch.zeros_like(step.truncated)
            step = dataclasses.replace(step, terminated=ended, truncated=never)
        return dataclasses.replace(step, obs=step.final_obs) if self._stale_first_obs else step
