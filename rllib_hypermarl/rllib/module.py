"""The one RLModule that owns every parameter of the team."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor

from ..nets import ModelSpec, TeamNet


class HyperModule(TorchRLModule, ValueFunctionAPI):
    """The team's networks as an RLModule: rows are `(t, env)`, the agent axis stays inside, `obs [B, N, obs]`.

    The batched env runner and the learner use `net` directly, with weights generated once per rollout and per gradient
    step; the RLModule calls below are for everybody else, and generate the weights at every call.

    Model config: `model_spec` (a `ModelSpec` as a dict) and `seed` (of the initial parameters; None: the global
    stream).
    """

    def __init__(self, *args: Any, catalog_class: Any = None, **kwargs: Any):
        super().__init__(*args, **kwargs)  # RLlib would make a catalog of networks, for nobody

    def setup(self) -> None:
        seed = self.model_config["seed"]
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            self.net = TeamNet(ModelSpec.from_dict(self.model_config["model_spec"]))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        obs = batch[Columns.OBS].transpose(0, 1)
        inputs = self.net("actor", obs, self.net.generate("actor"))
        return {Columns.ACTION_DIST_INPUTS: inputs.transpose(0, 1)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """Args: batch with `obs [B, N, obs]`, and `state [B, state]` if the critic reads it. Returns `[B, N]`."""
        obs = batch[Columns.OBS].transpose(0, 1)
        return self.net.value(obs, batch.get("state"), self.net.generate("critic")).T

    def copy_from(self, other: HyperModule) -> None:
        """Takes over the parameters and statistics of an equal module, without a detour through the host."""
        with torch.no_grad():
            for mine, theirs in zip(self.state_dict().values(), other.state_dict().values(), strict=True):
                mine.copy_(theirs, non_blocking=True)
