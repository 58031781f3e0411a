"""PPO without Ray and RLlib, over the same networks, environments and loss: what one would write by hand in one file.

It is the yardstick for the price of RLlib's structure. It does what learning needs and nothing else: no metrics, no
checks, no checkpoints. From equal seeds it finds bit for bit the weights that `HyperMARL` finds.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .. import env as envs
from ..losses import PPOLossConfig, ppo_loss, standardise
from ..nets import Categorical, HeadSpec, ModelSpec, TeamNet
from ..rollout import Rollout, RolloutBuffer, gae, next_values


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of the loop; defaults as in tune_configs/dispersion_base.yaml."""

    env: str
    env_config: dict
    num_envs: int = 128
    length: int = 64
    minibatches: int = 8
    epochs: int = 4
    sharing: str = "hyper_mlp"
    hidden: tuple[int, ...] = (64, 64)
    hypernet_hidden: tuple[int, ...] = (64,)
    embedding_dim: int = 4
    lr: float = 1e-3
    gamma: float = 0.99
    lambda_: float = 0.95
    grad_clip: float = 0.5
    loss: PPOLossConfig = dataclasses.field(default_factory=PPOLossConfig)
    seed: int = 0
    device: str = "cpu"


class BarePPO:
    """Every agent has a policy of its own."""

    def __init__(self, settings: Settings):
        s = self.settings = settings
        self.env = envs.make(s.env, num_envs=s.num_envs, device=s.device, **s.env_config)
        agents = self.env.agents
        (obs_dim,), actions = self.env.observation_spaces[agents[0]].shape, int(self.env.action_spaces[agents[0]].n)
        heads = {
            "actor": HeadSpec(obs_dim, actions, s.hidden, s.sharing, out_gain=0.01),
            "critic": HeadSpec(obs_dim, 1, s.hidden, s.sharing),
        }
        spec = ModelSpec(
            agents, tuple(range(len(agents))), heads, embedding_dim=s.embedding_dim, hypernet_hidden=s.hypernet_hidden
        )
        with torch.random.fork_rng():
            torch.manual_seed(s.seed)
            self.net = TeamNet(spec).to(s.device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=s.lr, eps=1e-5, fused=True)
        self.acting = torch.Generator(s.device).manual_seed(s.seed)
        self.shuffling = torch.Generator().manual_seed(s.seed)
        self.obs = self.env.reset(s.seed).obs.transpose(0, 1)  # [N, E, obs]

    def iterate(self) -> int:
        """One rollout and the update from it. Returns the number of env steps."""
        self.update(self.rollout())
        return self.settings.num_envs * self.settings.length

    @torch.no_grad()
    def rollout(self) -> Rollout:
        num_agents, num_envs, obs_dim = self.obs.shape
        weights = self.net.generate("actor")
        buffer = RolloutBuffer(num_agents, self.settings.length, num_envs, obs_dim, self.obs.device)
        for _ in range(self.settings.length):
            dist = Categorical(self.net("actor", self.obs, weights))
            actions = dist.sample(self.acting)
            step = self.env.step(actions.T)
            buffer.add(self.obs, actions, dist.log_prob(actions), step)
            self.obs = step.obs.transpose(0, 1)
        return buffer.finish(self.obs)

    @torch.no_grad()
    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Returns values and advantages, `[N, T, E]` each."""
        s, weights = self.settings, self.net.generate("critic")
        obs = (rollout.obs.flatten(1, 2), rollout.last_obs, rollout.final_obs)
        value, last, final = (self.net("critic", x, weights).squeeze(-1) for x in obs)
        value = value.view_as(rollout.reward)
        following = next_values(value, last, final, rollout.final_index)
        return value, gae(rollout.reward, value, following, rollout.terminated, rollout.truncated, s.gamma, s.lambda_)

    def update(self, rollout: Rollout) -> None:
        s = self.settings
        value, advantage = self.advantages(rollout)
        columns = (rollout.obs, rollout.actions, rollout.logp, value, advantage)
        columns = [x.flatten(1, 2) for x in columns]  # [N, T * E, ...], views
        for _ in range(s.epochs):
            order = torch.randperm(rollout.env_steps(), generator=self.shuffling).to(value.device)
            for rows in order.tensor_split(s.minibatches):
                self.step(*(x.index_select(1, rows) for x in columns))

    def step(self, obs: Tensor, actions: Tensor, old_logp: Tensor, old_value: Tensor, advantage: Tensor) -> None:
        """One gradient step on rows `[N, B, ...]`."""
        weights = self.net.generate()
        dist = Categorical(self.net("actor", obs, weights))
        loss, _ = ppo_loss(
            dist.log_prob(actions),
            dist.entropy(),
            self.net("critic", obs, weights).squeeze(-1),
            old_logp=old_logp,
            old_value=old_value,
            advantage=standardise(advantage),
            value_target=advantage + old_value,
            config=self.settings.loss,
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.settings.grad_clip)
        self.optimizer.step()
