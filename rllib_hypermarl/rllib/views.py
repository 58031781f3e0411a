"""The team's networks in stock RLlib: one view per policy beside the one module that owns the parameters.

    config = (
        PPOConfig()
        .environment(MyMultiAgentEnv)
        .multi_agent(policies={"scout", "carrier"}, policy_mapping_fn=...)
        .rl_module(rl_module_spec=stock_module_spec(["scout", "carrier"], obs_space, action_space, embedding_dim=4))
    )

RLlib's env runners, connectors, callbacks, PPO learner and checkpoints work as with any RLModules, at their price per
agent and step in Python. See docs/howto-stock-rllib.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.distribution import Distribution
from ray.rllib.core.distribution.torch.torch_distribution import (
    TorchCategorical,
    TorchDiagGaussian,
    TorchMultiCategorical,
)
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule, MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchDDPRLModule
from torch import Tensor
from torch.nn import functional

from ..errors import CheckpointError, ConfigError
from ..nets import TeamNet
from ..nets.distributions import FORBIDDEN
from ..nets.team import Weights
from .config import HYPER, MODEL_SPEC, HyperMARLConfig
from .module import HyperModule

_OBSERVATIONS, _ACTION_MASK = "observations", "action_mask"  # of a `Dict` space, as in RLlib's examples
# Keys of the group `hypermarl` that make the networks. The others are of HyperMARL's own learner.
_NETWORK_KEYS = {
    "sharing", "critic_sharing", "context", "embedding_dim", "hypernet_hidden", "hypernet_shared_trunk",
    "hypernet_rank", "actor_hidden", "critic_hidden", "activation", "init", "log_std", "memory", "memory_size",
    "memory_encoder_hidden", "memory_encoder_sharing", "sequence_length",
}  # fmt: skip
_SEQUENCE_LENGTH = 20  # RLlib's own default


def stock_module_spec(
    policies: Sequence[str],
    observation_space: gym.Space | Mapping[str, gym.Space],
    action_space: gym.Space | Mapping[str, gym.Space],
    *,
    seed: int | None = None,
    others: Mapping[str, RLModuleSpec] | None = None,
    **networks: Any,
) -> MultiRLModuleSpec:
    """What `PPOConfig.rl_module` takes: the owner of all parameters, and a view for each policy.

    Args:
        policies: ids of the policies whose weights are generated; agents are mapped to them as in any RLlib config.
        observation_space, action_space: of every agent that follows one of them; or by policy, where they differ.
            Observations may be `Dict(observations=Box, action_mask=Box)`, as in RLlib's examples: what the mask of
            discrete actions has at zero is never done.
        seed: of the initial parameters. None: the global stream.
        others: modules of other policies, heuristics for example.
        networks: `sharing`, `critic_sharing`, `context`, `embedding_dim`, `hypernet_hidden`, `hypernet_shared_trunk`,
            `hypernet_rank`, `actor_hidden`, `critic_hidden`, `activation`, `init`, `log_std`, `memory`, `memory_size`,
            `memory_encoder_hidden`, `memory_encoder_sharing`, `sequence_length` (None: 20, as RLlib's) of
            `HyperMARLConfig.hypermarl`.

    Raises:
        ConfigError: a key or a value is not possible here.
    """
    for key in networks.keys() - _NETWORK_KEYS:
        if key not in inspect.signature(HyperMARLConfig.hypermarl).parameters:
            raise ConfigError(f"stock_module_spec: unknown key {key!r}; it takes {', '.join(sorted(_NETWORK_KEYS))}")
        reasons = {
            "critic": "a policy's view sees one agent at a time",
            "hypernet_reads_obs": "a policy's view takes weights that are generated for the policy",
        }
        reason = reasons.get(key, "RLlib's learner does not know it")
        raise ConfigError(f"stock_module_spec: {key} is not possible here ({reason}); use HyperMARLConfig")
    spaces = [
        {policy: space if isinstance(space, gym.Space) else space[policy] for policy in policies}
        for space in (observation_space, action_space)
    ]
    observed = {policy: _without_mask(policy, space) for policy, space in spaces[0].items()}
    made = HyperMARLConfig().hypermarl(**networks)
    length = _SEQUENCE_LENGTH if made.sequence_length is None else made.sequence_length
    if made.memory is not None and (length < 1 or not made.memory_encoder_hidden):
        raise ConfigError("stock_module_spec: sequence_length must be at least 1, memory_encoder_hidden have a layer")
    model, remembered = made.model_spec(observed, spaces[1]), {}
    if made.memory is not None:
        sizes = {head: model.memory_dim(head) for head in ("actor", "critic")}
        remembered = {"max_seq_len": length, "memory": sizes}
    owner = RLModuleSpec(
        module_class=HyperModule,
        observation_space=gym.spaces.Dict(list(spaces[0].items())),
        action_space=gym.spaces.Dict(list(spaces[1].items())),
        model_config={MODEL_SPEC: model.to_dict(), "seed": seed},
    )
    views = {
        policy: RLModuleSpec(
            PolicyView, spaces[0][policy], spaces[1][policy], model_config={"policy": policy, **remembered}
        )
        for policy in policies
    }
    return MultiRLModuleSpec(
        multi_rl_module_class=TeamModule, rl_module_specs={HYPER: owner, **views, **(others or {})}
    )


def _without_mask(policy: str, space: gym.Space) -> gym.Space:
    """What networks read of an observation space."""
    if not isinstance(space, gym.spaces.Dict):
        return space
    if set(space) != {_OBSERVATIONS, _ACTION_MASK}:
        raise ConfigError(
            f"stock_module_spec: observations of {policy} are a Dict of {', '.join(space)}; flatten them, or have "
            f"{_OBSERVATIONS} and {_ACTION_MASK}"
        )
    return space[_OBSERVATIONS]


class PolicyView(RLModule, ValueFunctionAPI):
    """One policy of the team. It holds no parameters: RLlib gives it no optimiser, and no state to save.

    Not an `nn.Module`, on purpose; `TeamModule` ties it to their owner. Model config: `policy`, its id in the owner's
    spec. Of teams with memory, too: `max_seq_len`, RLlib's own key, and `memory`, head -> size of its state. Their
    batches have an axis of steps behind that of sequences, `[B, L, ...]`, as RLlib's connectors make them.
    """

    framework = "torch"

    def __init__(self, *args: Any, catalog_class: Any = None, **kwargs: Any):
        super().__init__(*args, **kwargs)  # RLlib would make a catalog of networks, for nobody

    def setup(self) -> None:
        self._owner: HyperModule | None = None

    def tie(self, owner: HyperModule) -> None:
        """Makes this a view on `owner`.

        Raises:
            ConfigError: it has no such policy.
        """
        policy, policies = self.model_config["policy"], owner.net.spec.policies
        if policy not in policies:
            raise ConfigError(f"no policy {policy!r} among those whose weights are generated: {', '.join(policies)}")
        self._owner, self._index = owner, policies.index(policy)
        self._actions = owner.net.spec.actions
        self._used: list[int] | None = None  # of the team's choices or dimensions, those that this policy has
        if owner.net.spec.agent_actions is not None:
            team, self._actions = self._actions, owner.net.spec.agent_actions[self._index]
            self._used = team.places_of(self._actions)

    def get_initial_state(self) -> dict[str, np.ndarray]:
        """RLlib's hook: what is remembered at the beginning of an episode, head -> `[size]`. Empty without memory."""
        return {head: np.zeros(size, np.float32) for head, size in self.model_config.get("memory", {}).items()}

    @property
    def net(self) -> TeamNet:
        if self._owner is None:
            policy = self.model_config["policy"]
            raise CheckpointError(
                f"the view of policy {policy!r} has no weights of its own: load the directory above it, "
                f"MultiRLModule.from_checkpoint('.../rl_module')[{policy!r}]"
            )
        return self._owner.net

    # ------------------------------------------------------------------------------------------------------- forward

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Args: batch with `obs [B, obs]`. Returns inputs of the action distribution, `[B, ...]`."""
        with torch.no_grad():
            return self.act(batch, _generate_actors(self.net))

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        return self.act_and_value(batch, self.net.generate())

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Returns `[B]`. Args: embeddings: the values themselves, where the forward pass has computed them already."""
        return self._value(batch, self.net.generate("critic")) if embeddings is None else embeddings

    def act(self, batch: dict[str, Any], weights: Weights) -> dict[str, Any]:
        """The inputs of the action distribution, and with memory its state afterwards. Args: weights of the whole team,
        with the head `actor`, and with memory the critic's encoder: the learner's sequences start in mid-episode."""
        inputs, actor = self._action_inputs(batch, weights)
        if actor is None:
            return {Columns.ACTION_DIST_INPUTS: inputs}
        _, critic = self._recalled("critic", self._observed(batch)[0], batch, weights)
        return {Columns.ACTION_DIST_INPUTS: inputs, Columns.STATE_OUT: {"actor": actor, "critic": critic}}

    def act_and_value(self, batch: dict[str, Any], weights: Weights) -> dict[str, Tensor]:
        """The inputs of the distribution, with values where RLlib's loss finds them without another forward pass."""
        inputs, _ = self._action_inputs(batch, weights)
        return {Columns.ACTION_DIST_INPUTS: inputs, Columns.EMBEDDINGS: self._value(batch, weights)}

    def _action_inputs(self, batch: dict[str, Any], weights: Weights) -> tuple[Tensor, Tensor | None]:
        net, used = self.net, slice(None) if self._used is None else self._used
        obs, mask = self._observed(batch)
        seen, state = self._recalled("actor", obs, batch, weights)
        inputs = net.of_policy(self._index, "actor", seen, weights)
        if (log_std := net.policy_log_std()) is not None:
            log_std = log_std[self._index if len(log_std) > 1 else 0]
            inputs = torch.cat([inputs[..., used], log_std[used].expand(*inputs.shape[:-1], -1)], dim=-1)
        elif net.spec.actions.continuous:
            inputs = torch.cat([part[..., used] for part in net.spec.actions.mean_and_log_std(inputs)], dim=-1)
        else:
            inputs = inputs[..., used]
        return inputs if mask is None else inputs.masked_fill(mask == 0, FORBIDDEN), state

    def _value(self, batch: dict[str, Any], weights: Weights) -> Tensor:
        seen, _ = self._recalled("critic", self._observed(batch)[0], batch, weights)
        return self.net.of_policy(self._index, "critic", seen, weights).squeeze(-1)

    def _recalled(
        self, head: str, obs: Tensor, batch: dict[str, Any], weights: Weights
    ) -> tuple[Tensor, Tensor | None]:
        """What a head reads, and the state of its memory afterwards, `[B, size]`; without memory obs, and None."""
        if head not in self.net.cores:
            return obs, None
        return self.net.recalled_of_policy(self._index, head, obs, weights, batch[Columns.STATE_IN][head])

    def _observed(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """What the networks read `[B, obs]`, filled up with zeros where the team sees more; and the action mask."""
        obs, mask = batch[Columns.OBS], None
        if isinstance(obs, Mapping):
            obs, mask = obs[_OBSERVATIONS], obs[_ACTION_MASK]
        missing = self.net.spec.reader("actor").in_dim - obs.shape[-1]
        return self.net.normalised("obs", functional.pad(obs, (0, missing)) if missing else obs), mask

    # --------------------------------------------------------------------------------------------------- distribution

    def get_train_action_dist_cls(self) -> type[Distribution]:
        actions = self._actions
        if actions.continuous:
            return TorchDiagGaussian
        if len(actions.choices) == 1:
            return TorchCategorical
        return TorchMultiCategorical.get_partial_dist_cls(input_lens=list(actions.choices))

    get_exploration_action_dist_cls = get_inference_action_dist_cls = get_train_action_dist_cls

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to compile."""


def _generate_actors(net: TeamNet) -> Weights:
    """What `PolicyView.act` takes."""
    return net.generate("actor", *(("critic_encoder",) if net.cores else ()))


class TeamModule(MultiRLModule):
    """The owner, its views, and whatever other modules a config has beside them.

    Weights are generated once per forward pass for all policies in it; in sampling, once per update.
    """

    def setup(self) -> None:
        super().setup()
        self._generated: tuple[tuple, Weights] | None = None
        self._is_trained = False
        self._tie()

    def add_module(self, module_id: str, module: RLModule, *, override: bool = False) -> None:
        if isinstance(module, TorchDDPRLModule) and isinstance(module.unwrapped(), HyperModule):
            raise ConfigError(
                "learners.num_learners is greater than 1: RLlib wraps each module on its own, and the gradients of "
                "generated weights would never be exchanged; use num_learners of 0 or 1, or HyperMARLConfig"
            )
        super().add_module(module_id, module, override=override)
        self._tie()

    def _tie(self) -> None:
        for module in self._rl_modules.values():
            if isinstance(module, PolicyView):
                module.tie(self.owner)

    @property
    def owner(self) -> HyperModule:
        return self._rl_modules[HYPER].unwrapped()

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, dict[str, Any]]:
        return self._forward_views(batch, "forward_inference", PolicyView.act, self._actors(), **kwargs)

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, dict[str, Any]]:
        return self._forward_views(batch, "forward_exploration", PolicyView.act, self._actors(), **kwargs)

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, dict[str, Any]]:
        self._is_trained = True
        return self._forward_views(batch, "forward_train", PolicyView.act_and_value, self.owner.net.generate())

    def _forward_views(self, batch: dict[str, Any], method: str, of_view: Any, weights: Weights, **kwargs: Any) -> dict:
        with torch.set_grad_enabled(method == "forward_train"):
            return {
                key: of_view(module, rows, weights)
                if isinstance(module := self._rl_modules[key], PolicyView)
                else getattr(module, method)(rows, **kwargs)
                for key, rows in batch.items()
                if key in self._rl_modules
            }

    def _actors(self) -> Weights:
        """The actors' weights, kept until parameters change: torch counts changes in place.

        But not those by fused optimisers. So what is being trained keeps nothing; env runners have copies of their own.
        """
        net = self.owner.net
        if self._is_trained:
            return _generate_actors(net)
        state = (id(net), *(parameter._version for parameter in net.parameters()))
        if self._generated is None or self._generated[0] != state:
            with torch.no_grad():
                self._generated = state, _generate_actors(net)
        return self._generated[1]
