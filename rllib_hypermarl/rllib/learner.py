"""PPO's update over rollouts of a whole team, with one optimiser over the one module that owns the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import ALL_MODULES
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.utils.metrics import (
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    NUM_TRAINABLE_PARAMETERS,
)
from torch import Tensor

from ..losses import ppo_loss, standardise
from ..nets import TeamNet
from ..rollout import Rollout, gae, next_values
from .config import HYPER

_VALUE_ROWS = 16_384  # rows (t, e) per chunk of the value pass: bounds its memory


class HyperMARLLearner(PPOTorchLearner):
    """Updates the module `hyper` from `Rollout`s instead of from RLlib's episodes and connectors."""

    @property
    def net(self) -> TeamNet:
        return self.module[HYPER].unwrapped().net

    # ------------------------------------------------------------------------------------------------ construction

    def build(self) -> None:
        super().build()
        # Minibatch order has a stream of its own, so that nothing else in the process can disturb it.
        self._generator = torch.Generator(device=self._device)
        self._generator.manual_seed(self.config.seed if self.config.seed is not None else torch.seed())

    def _map_module_to_device(self, module: MultiRLModule) -> None:
        self._device = self.config.torch_device()
        super()._map_module_to_device(module)

    def configure_optimizers(self) -> None:
        """One fused Adam over everything (epsilon as in the paper's code)."""
        params = list(self.module[HYPER].parameters())
        optimizer = torch.optim.Adam(params, lr=self.config.lr, eps=1e-5, fused=True)
        self.register_optimizer(module_id=HYPER, optimizer=optimizer, params=params)

    # ------------------------------------------------------------------------------------------------------ update

    def update(
        self, *, training_data: Any = None, batch: Any = None, timesteps: dict | None = None, **kwargs: Any
    ) -> dict:
        """`num_epochs` passes over one rollout, in minibatches of `minibatch_size` rows `(t, e)`."""
        self._check_is_built()
        rollout: Rollout = batch if training_data is None else training_data.batch
        self._weights_seq_no += 1
        config, net = self.config, self.net
        optimizer = self.get_optimizer(HYPER)
        for group in optimizer.param_groups:  # a restored optimiser brings the learning rate it was saved with
            group["lr"] = config.lr

        num_agents, num_rows = len(rollout.obs), rollout.env_steps()
        value, advantage = self._values_and_advantages(rollout)
        rows = {
            "obs": rollout.obs.view(num_agents, num_rows, -1),
            "actions": rollout.actions.flatten(1, 2),
            "logp": rollout.logp.view(num_agents, num_rows),
            "value": value.view(num_agents, num_rows),
            "advantage": advantage.view(num_agents, num_rows),
        }
        if rollout.state is not None:
            rows["state"] = rollout.state.flatten(0, 1).unsqueeze(0)  # one for the whole team
        totals: dict[str, Tensor] = {}
        num_minibatches = max(1, round(num_rows / config.minibatch_size))
        for _ in range(config.num_epochs):
            for index in self._shuffled(num_rows).tensor_split(num_minibatches):
                minibatch = {key: tensor.index_select(1, index) for key, tensor in rows.items()}
                loss, stats = self._loss(net, minibatch)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(net.parameters(), config.grad_clip or float("inf"))
                optimizer.step()
                for key, x in (*stats.items(), ("total_loss", loss.detach()), ("gradient_norm", norm)):
                    totals[key] = totals[key] + x if key in totals else x
        steps = config.num_epochs * num_minibatches
        self._log(rollout, value, advantage, {key: total / steps for key, total in totals.items()})
        return self.metrics.reduce()

    def _loss(self, net: TeamNet, rows: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The PPO loss of one minibatch; tensors `[N, B, ...]`. Weights are generated here, once."""
        weights = net.generate("actor", "critic")
        dist = net.policy(rows["obs"], weights)
        return ppo_loss(
            dist.log_prob(rows["actions"]),
            dist.entropy(),
            net.value(rows["obs"], rows["state"][0] if "state" in rows else None, weights),
            old_logp=rows["logp"],
            old_value=rows["value"],
            advantage=standardise(rows["advantage"]),
            value_target=rows["advantage"] + rows["value"],
            config=self.config.loss_config(),
        )

    @torch.no_grad()
    def _values_and_advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Returns values and advantages, `[N, T, E]` each."""
        net, weights = self.net, self.net.generate("critic")
        num_agents, length, num_envs, _ = rollout.obs.shape
        obs = rollout.obs.flatten(1, 2)
        chunks = list(zip_states(obs, None if rollout.state is None else rollout.state.flatten(0, 1)))
        chunks += [(rollout.last_obs, rollout.last_state), (rollout.final_obs, rollout.final_state)]
        values = torch.cat([net.value(x, state, weights) for x, state in chunks], dim=1)
        value, last, final = values.split([length * num_envs, num_envs, rollout.final_obs.shape[1]], dim=1)
        value = value.view(num_agents, length, num_envs)
        following = next_values(value, last, final, rollout.final_index)
        ends = rollout.terminated, rollout.truncated
        return value, gae(rollout.reward, value, following, *ends, self.config.gamma, self.config.lambda_)

    def _shuffled(self, num_rows: int) -> Tensor:
        if not self.config.shuffle_batch_per_epoch:
            return torch.arange(num_rows, device=self._device)
        return torch.randperm(num_rows, generator=self._generator, device=self._device)

    def _log(self, rollout: Rollout, value: Tensor, advantage: Tensor, means: dict[str, Tensor]) -> None:
        """Reads all statistics with one synchronisation and logs them under RLlib's names."""
        means["vf_explained_var"] = 1 - advantage.var() / (advantage + value).var().clamp_min(1e-12)
        numbers = dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))
        numbers["gradients_default_optimizer_global_norm"] = numbers.pop("gradient_norm")
        numbers["default_optimizer_learning_rate"] = self.config.lr
        numbers[NUM_TRAINABLE_PARAMETERS] = float(sum(p.numel() for p in self.net.parameters()))
        self.metrics.log_dict(numbers, key=HYPER, window=1)
        env_steps, agent_steps = rollout.env_steps(), rollout.agent_steps()
        for module, steps in ((ALL_MODULES, agent_steps), (HYPER, agent_steps)):
            self.metrics.log_value((module, NUM_MODULE_STEPS_TRAINED), steps, reduce="sum")
            self.metrics.log_value((module, NUM_MODULE_STEPS_TRAINED_LIFETIME), steps, reduce="lifetime_sum")
        self.metrics.log_value((ALL_MODULES, NUM_ENV_STEPS_TRAINED), env_steps, reduce="sum")
        self.metrics.log_value((ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME), env_steps, reduce="lifetime_sum")

    # ------------------------------------------------------------------------------------------------------- state

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**super().get_state(*args, **kwargs), "generator": self._generator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if "generator" in state:
            self._generator.set_state(state["generator"])


def zip_states(obs: Tensor, state: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Chunks of rows `[N, rows, obs]`, with their states `[rows, state]` where there are any."""
    for first in range(0, obs.shape[1], _VALUE_ROWS):
        rows = slice(first, first + _VALUE_ROWS)
        yield obs[:, rows], None if state is None else state[rows]
