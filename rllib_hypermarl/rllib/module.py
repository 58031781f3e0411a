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
        self.net = draw(ModelSpec.from_dict(self.model_config["model_spec"]), self.model_config["seed"])

    def change_team(self, spec: ModelSpec, seed: int | None = None) -> TeamNet:
        """Puts fresh networks of another team in the place of the present ones, which it returns."""
        before, device = self.net, next(self.net.parameters()).device
        self.net = draw(spec, seed).to(device)
        self.model_config = {**self.model_config, "model_spec": spec.to_dict()}
        return before

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        obs = batch[Columns.OBS].transpose(0, 1)
        inputs = self.net.action_inputs(obs, self.net.generate("actor"))
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


def draw(spec: ModelSpec, seed: int | None) -> TeamNet:
    """Fresh networks. Args: seed: of the parameters, beside the global stream; None: drawn from that."""
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return TeamNet(spec)
