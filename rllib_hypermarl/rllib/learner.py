"""PPO's update over rollouts of a whole team, with one optimiser over the one module that owns the parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import ALL_MODULES
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.utils.metrics import (
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
    NUM_TRAINABLE_PARAMETERS,
)
from ray.rllib.utils.schedules.scheduler import Scheduler
from torch import Tensor

from ..errors import RunFailedError
from ..losses import PPOLossConfig, ppo_loss, standardise
from ..nets import TeamNet
from ..nets.normalise import RunningNorm
from ..rollout import Rollout
from .collective import Collective
from .config import HYPER
from .resources import granted_cpus
from .sequences import Sequences, values_and_advantages

_LR_RANGE, _LR_STEP = (1e-6, 1e-2), 1.5  # of the adaptive learning rate
_Statistics = tuple[Tensor, Tensor, Tensor]
"""Of a minibatch's advantages: standard deviation, mean, and their number (per learner), of each agent's group
`[N, 1]`."""
_Orders = list[tuple[Tensor, ...]]  # per epoch, the row indices of each minibatch


class HyperMARLLearner(PPOTorchLearner):
    """Updates the module `hyper` from `Rollout`s instead of from RLlib's episodes and connectors.

    Several learners hold equal shards of every rollout, exchange one flat gradient per minibatch, and stay bit-equal.
    """

    @property
    def net(self) -> TeamNet:
        return self.module[HYPER].unwrapped().net

    # ------------------------------------------------------------------------------------------------ construction

    def build(self) -> None:
        if self.config.num_learners > 0:
            torch.set_num_threads(granted_cpus())
        super().build()
        # Minibatch order has a stream of its own, so that nothing else in the process can disturb it.
        self._generator = torch.Generator(device=self._device)
        self._generator.manual_seed(self.config.seed if self.config.seed is not None else torch.seed())
        self._lr, self._entropy_coeff = (
            Scheduler(fixed_value_or_schedule=schedule, framework="torch")
            for schedule in (self.config.lr, self.config.entropy_coeff)
        )
        self._adapted_lr: float | None = None  # of the adaptive learning rate, once it has moved

    def _map_module_to_device(self, module: MultiRLModule) -> None:
        self._device = self.config.torch_device(
            gpus=self.config.num_gpus_per_learner if self.config.num_learners > 0 else None
        )
        super()._map_module_to_device(module)

    def _make_modules_ddp_if_necessary(self) -> None:
        """Wraps nothing: one exchange of all gradients is ours to make, see `Collective`."""
        self._collective = Collective(max(1, self.config.num_learners))
        self._collective.copy_first(self.net)

    def configure_optimizers(self) -> None:
        """One fused optimiser over everything that is trained (Adam's epsilon as in the paper's code)."""
        params = list(self.net.parameters())
        if self.config.trainable == "contexts":
            self.net.requires_grad_(False)
            params = [parameter.requires_grad_() for parameter in self.net.context_parameters()]
        lr = self.config.initial_lr()
        if self.config.optim == "sgd":
            optimizer = torch.optim.SGD(params, lr=lr, fused=True)
        else:
            optimizer = torch.optim.Adam(params, lr=lr, eps=1e-5, fused=True)
        self.register_optimizer(module_id=HYPER, optimizer=optimizer, params=params)

    # ------------------------------------------------------------------------------------------------------ update

    def update(
        self, *, training_data: Any = None, batch: Any = None, timesteps: dict | None = None, **kwargs: Any
    ) -> dict:
        """`num_epochs` passes over one rollout, in minibatches of about `minibatch_size` rows `(t, e)`.

        Args:
            training_data: RLlib's envelope; its `batch` is the rollout, of tensors or NumPy arrays. Or `batch` itself.
            timesteps: with the env steps sampled so far, for schedules.

        Raises:
            RunFailedError: the learners' shards are not of one size, or empty.
        """
        self._check_is_built()
        rollout: Rollout = (batch if training_data is None else training_data.batch).tensors(self._device)
        num_rows = rollout.env_steps()
        self._check_shards(num_rows)
        self._weights_seq_no += 1
        env_steps = (timesteps or {}).get(NUM_ENV_STEPS_SAMPLED_LIFETIME, 0)
        loss_config = self.config.loss_config(entropy_coeff=_at(self._entropy_coeff, env_steps))
        optimizer = self.get_optimizer(HYPER)
        self._set_lr(_at(self._lr, env_steps) if self._adapted_lr is None else self._adapted_lr)

        value, advantage = values_and_advantages(self.net, rollout, self.config)
        rows, sequences = _rows(rollout, value, advantage), Sequences.of(rollout)
        for key in {"logp", "value", "advantage", "alive"} & rows.keys():  # what frozen policies did teaches nobody
            rows[key] = self.net.trained(rows[key])
        if "value" in self.net.norms:
            self._update_norm("value", (rows["advantage"] + rows["value"]).unsqueeze(-1), rows.get("alive"))
        num_minibatches = min(max(1, round(num_rows / self.config.minibatch_size)), sequences.count)
        orders = [
            [sequences.rows(chosen) for chosen in self._shuffled(sequences.count).tensor_split(num_minibatches)]
            for _ in range(self.config.num_epochs)
        ]
        statistics = self._statistics(rows["advantage"], rows.get("alive"), orders)
        totals: dict[str, Tensor] = {}
        steps = 0
        for order in orders:
            kl_before = totals.get("mean_kl_loss", 0)
            for index in order:
                minibatch = {key: tensor.index_select(1, index) for key, tensor in rows.items()}
                minibatch |= sequences.memories(index)
                loss, stats = self._loss(minibatch, next(statistics), loss_config)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self._collective.average_gradients(self.net.parameters())
                norm = self.net.clip_gradients_(self.config.grad_clip or float("inf"))
                optimizer.step()
                for key, x in (*stats.items(), ("total_loss", loss.detach()), ("gradient_norm", norm)):
                    totals[key] = totals[key] + x if key in totals else x
            steps += num_minibatches
            if self._watches_kl and self._react_to_kl((totals["mean_kl_loss"] - kl_before) / num_minibatches):
                break
        # Only now: the policy that sampled this rollout, and those it was compared with, read by the old statistics.
        for kind in {"obs", "state"} & set(self.net.norms):
            self._update_norm(kind, getattr(rollout, kind), rollout.alive if kind == "obs" else None)
        self._log(rollout, value, advantage, {key: total / steps for key, total in totals.items()}, steps)
        return self.metrics.reduce()

    def _loss(
        self, rows: dict[str, Tensor], statistics: _Statistics | None, config: PPOLossConfig
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The PPO loss of one minibatch; tensors `[N, B, ...]`. Weights are generated here, once.

        Of groups that learn apart it is the sum of their losses, and the numbers for the log are means over groups.

        Args:
            rows: as `_rows` returns them; of teams with memory with those of `Sequences.memories`.
        """
        net, values = self.net, {"value": None, "old_value": None, "value_target": None}
        weights = net.generate()
        dist = net.policy(rows["obs"], weights, rows.get("action_mask"), rows.get("actor_memory"))
        if self.config.use_critic:
            state = rows["state"][0] if "state" in rows else None
            values = {
                "value": net.trained(net.value(rows["obs"], state, weights, rows.get("critic_memory"))),
                "old_value": rows["value"],
                "value_target": rows["advantage"] + rows["value"],
            }
            values = {key: net.normalised("value", x) for key, x in values.items()}
        advantage = rows["advantage"]
        if config.standardise_advantages:
            advantage = standardise(advantage, None if statistics is None else statistics[:2])
        loss, stats = ppo_loss(
            net.trained(dist.log_prob(rows["actions"])),
            net.trained(dist.entropy()),
            old_logp=rows["logp"],
            advantage=advantage,
            config=config,
            weight=None if statistics is None else rows.get("alive", torch.ones_like(rows["logp"])) / statistics[2],
            **values,
        )
        if net.spec.groups:
            stats = {key: x / len(net.spec.groups) for key, x in stats.items()}
        return loss, stats

    def _shuffled(self, num_rows: int) -> Tensor:
        if not self.config.shuffle_batch_per_epoch:
            return torch.arange(num_rows, device=self._device)
        return torch.randperm(num_rows, generator=self._generator, device=self._device)

    def _statistics(self, advantage: Tensor, alive: Tensor | None, orders: _Orders) -> Iterator[_Statistics | None]:
        """Of the advantages of every minibatch, over all learners at once; None: all that a minibatch itself holds.

        Nothing is learnt before the last minibatch that could change them, so one exchange is enough.

        Args:
            advantage: `[N, rows]`; alive: `[N, rows]` bool, which of them count.
        """
        if self._collective.size == 1 and alive is None and not self.net.spec.groups:
            yield from (None for order in orders for _ in order)
            return
        exact = advantage.double()
        counts = torch.ones_like(exact) if alive is None else alive.double()
        exact = exact * counts
        members = self.net.group_members()
        of_row = torch.einsum("gn,snr->sgr", members, torch.stack([counts, exact, exact.square()]))
        sums = torch.stack([of_row[..., index].sum(dim=-1) for order in orders for index in order])
        of_agent = (self._collective.sum(sums) @ members).unsqueeze(-1)  # [minibatches, 3, N, 1]
        count, total, squares = of_agent.unbind(dim=1)
        count = count.clamp_min(1)  # of a minibatch in which nobody was alive
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        yield from zip(*(x.to(advantage.dtype) for x in (std, mean, count / self._collective.size)), strict=True)

    # --------------------------------------------------------------------------------- learning rate and statistics

    def _set_lr(self, lr: float) -> None:
        for group in self.get_optimizer(HYPER).param_groups:  # a restored one brings the rate it was saved with
            group["lr"] = lr

    @property
    def _watches_kl(self) -> bool:
        return self.config.adaptive_lr_kl is not None or self.config.early_stop_kl is not None

    def _react_to_kl(self, kl: Tensor) -> bool:
        """Adapts the learning rate to the divergence of an epoch; returns whether it is the last one."""
        kl = (self._collective.sum(kl.clone()) / self._collective.size).item()
        target = self.config.adaptive_lr_kl
        if target is not None:
            lr = self.get_optimizer(HYPER).param_groups[0]["lr"]
            if kl > 2 * target:
                lr = max(lr / _LR_STEP, _LR_RANGE[0])
            elif kl < target / 2:
                lr = min(lr * _LR_STEP, _LR_RANGE[1])
            self._adapted_lr = lr
            self._set_lr(lr)
        return self.config.early_stop_kl is not None and kl > self.config.early_stop_kl

    def _update_norm(self, kind: str, x: Tensor, alive: Tensor | None) -> None:
        """Args: x `[..., features]`; alive `[...]` bool, which rows count. None: all."""
        rows = x if alive is None else x[alive]
        self.net.norms[kind].update(self._collective.sum(RunningNorm.moments(rows)))

    # ------------------------------------------------------------------------------------------------ data and logs

    def _check_shards(self, num_rows: int) -> None:
        least, most = self._collective.range(num_rows, self._device)
        if not least or least != most:
            raise RunFailedError(f"learners got shards of {int(least)} to {int(most)} rows: all must be of one size")

    def _log(
        self, rollout: Rollout, value: Tensor, advantage: Tensor, means: dict[str, Tensor], gradient_steps: int
    ) -> None:
        """Reads all statistics with one synchronisation and logs them under RLlib's names."""
        if rollout.alive is not None:
            value, advantage = value[rollout.alive], advantage[rollout.alive]
        means["advantage_std"] = advantage.std(correction=0)
        if self.config.use_critic:
            means["vf_explained_var"] = 1 - advantage.var() / (advantage + value).var().clamp_min(1e-12)
        else:
            del means["vf_loss"]
        numbers = dict(zip(means, torch.stack(list(means.values())).tolist(), strict=True))
        numbers["gradients_default_optimizer_global_norm"] = numbers.pop("gradient_norm")
        numbers["default_optimizer_learning_rate"] = self.get_optimizer(HYPER).param_groups[0]["lr"]
        numbers["num_gradient_steps"] = float(gradient_steps)
        numbers[NUM_TRAINABLE_PARAMETERS] = float(sum(p.numel() for p in self.net.parameters() if p.requires_grad))
        self.metrics.log_dict(numbers, key=HYPER, window=1)
        env_steps, agent_steps = rollout.env_steps(), rollout.agent_steps()
        for module, steps in ((ALL_MODULES, agent_steps), (HYPER, agent_steps)):
            self.metrics.log_value((module, NUM_MODULE_STEPS_TRAINED), steps, reduce="sum")
            self.metrics.log_value((module, NUM_MODULE_STEPS_TRAINED_LIFETIME), steps, reduce="lifetime_sum")
        self.metrics.log_value((ALL_MODULES, NUM_ENV_STEPS_TRAINED), env_steps, reduce="sum")
        self.metrics.log_value((ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME), env_steps, reduce="lifetime_sum")

    # ------------------------------------------------------------------------------------------------------- state

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        own = {"generator": self._generator.get_state(), "adapted_lr": self._adapted_lr}
        return {**super().get_state(*args, **kwargs), **own}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if "generator" in state:  # a stock learner has none
            self._generator.set_state(state["generator"])
            self._adapted_lr = state["adapted_lr"] if self.config.adaptive_lr_kl is not None else None


def _at(schedule: Scheduler, env_steps: int) -> float:
    return float(schedule.update(timestep=env_steps))


def _rows(rollout: Rollout, value: Tensor, advantage: Tensor) -> dict[str, Tensor]:
    """The rollout as rows `(t, e)`, tensors `[N, T * E, ...]`."""
    num_agents, num_rows = len(rollout.obs), rollout.env_steps()
    rows = {
        "obs": rollout.obs.view(num_agents, num_rows, -1),
        "actions": rollout.actions.flatten(1, 2),
        "logp": rollout.logp.view(num_agents, num_rows),
        "value": value.view(num_agents, num_rows),
        "advantage": advantage.view(num_agents, num_rows),
    }
    if rollout.state is not None:
        rows["state"] = rollout.state.flatten(0, 1).unsqueeze(0)  # one for the whole team
    for key in ("action_mask", "alive"):
        if getattr(rollout, key) is not None:
            rows[key] = getattr(rollout, key).flatten(1, 2)
    return rows
