"""Env steps until RLlib's own multi-agent examples are solved: with RLlib's default networks, and with ours.

Both sides are stock PPO, runner and learner with the same settings, on the environments that ship with Ray; only the
modules differ. Thresholds are those of Ray's example scripts where they have one. The settings are smaller than PPO's
defaults, which the scripts leave as they are (30 epochs of minibatches of 128 at a rate of 5e-5): a CPU would take
hours.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import FlattenObservations
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.examples.envs.classes.multi_agent import MultiAgentCartPole, TwoStepGame
from ray.rllib.examples.envs.classes.multi_agent.rock_paper_scissors import RockPaperScissors
from ray.rllib.examples.rl_modules.classes import AlwaysSameHeuristicRLM, BeatLastHeuristicRLM

from ..rllib.views import stock_module_spec
from .measure import machine


def _one_hot(choices: int) -> gym.Space:
    """What RLlib's connector makes of a `Discrete` observation."""
    return gym.spaces.Box(0.0, 1.0, (choices,), np.float32)


class _TwoStepGame(TwoStepGame):
    """Ray's, with spaces by agent, which its vector env asks for and this old env does not have."""

    def __init__(self, config: dict[str, Any]):
        super().__init__(config)
        self.agents = self.possible_agents = [self.agent_1, self.agent_2]
        self.observation_spaces = dict.fromkeys(self.agents, self.observation_space)
        self.action_spaces = dict.fromkeys(self.agents, self.action_space)


@dataclasses.dataclass(frozen=True)
class Example:
    """One of Ray's examples.

    Attributes:
        env, env_config: as RLlib takes them.
        observation_space, action_space: of the learned policies, after connectors.
        policies: the learned ones.
        mapping: agent id -> policy.
        others: heuristic policies.
        flatten: agents whose observations are to be one-hot encoded (None: nobody's; empty: everybody's).
        metric: of the result, below `env_runners`.
        threshold: at which it is solved.
        limit: env steps after which it is given up.
        settings: of `PPOConfig.training`.
    """

    env: Any
    observation_space: gym.Space
    action_space: gym.Space
    policies: tuple[str, ...]
    mapping: Callable[..., str]
    threshold: float
    limit: int
    settings: dict[str, Any]
    env_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    others: dict[str, RLModuleSpec] = dataclasses.field(default_factory=dict)
    flatten: tuple[str, ...] | None = None
    metric: tuple[str, ...] = ("episode_return_mean",)


def _numbered(agent: Any, *args: Any, **kwargs: Any) -> str:
    return f"p{agent}"


def _against_heuristics(agent: str, *args: Any, **kwargs: Any) -> str:
    return "learned" if agent == "player1" else random.choice(["always_same", "beat_last"])


_MOVES = gym.spaces.Discrete(3)
_SETTINGS = {"train_batch_size_per_learner": 2000, "minibatch_size": 250, "num_epochs": 10, "lr": 1e-3}
EXAMPLES = {
    # multi_agent_cartpole.py: 600 for two agents
    "cartpole": Example(
        MultiAgentCartPole, gym.spaces.Box(-np.inf, np.inf, (4,), np.float32), gym.spaces.Discrete(2), ("p0", "p1"),
        _numbered, 600.0, 200_000, {**_SETTINGS, "grad_clip": 0.5, "vf_clip_param": 10_000.0}, {"num_agents": 2},
    ),
    # rock_paper_scissors_heuristic_vs_learned.py: 5 without an LSTM (its env is PettingZoo's; this one is Ray's own)
    "rock_paper_scissors": Example(
        RockPaperScissors, _one_hot(3), _MOVES, ("learned",), _against_heuristics, 5.0, 200_000,
        {**_SETTINGS, "vf_loss_coeff": 0.005}, flatten=("player1",),
        others={
            "always_same": RLModuleSpec(AlwaysSameHeuristicRLM, _MOVES, _MOVES),
            "beat_last": RLModuleSpec(BeatLastHeuristicRLM, _MOVES, _MOVES),
        }, metric=("module_episode_returns_mean", "learned"),
    ),
    # two_step_game_with_grouped_agents.py: 7; here each agent has a policy of its own
    "two_step_game": Example(
        _TwoStepGame, _one_hot(6), gym.spaces.Discrete(2), ("p0", "p1"), _numbered, 7.0, 100_000, _SETTINGS,
        flatten=(),
    ),
}  # fmt: skip


def make_config(example: Example, ours: bool, seed: int) -> PPOConfig:
    """Stock PPO on an example, with our networks or RLlib's."""
    if ours:
        spaces = example.observation_space, example.action_space
        spec = stock_module_spec(example.policies, *spaces, seed=seed, others=example.others)
    else:
        spec = MultiRLModuleSpec(
            rl_module_specs={**{policy: RLModuleSpec() for policy in example.policies}, **example.others}
        )
    config = (
        PPOConfig()
        .environment(example.env, env_config=example.env_config)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=20)
        .multi_agent(
            policies={*example.policies, *example.others},
            policy_mapping_fn=example.mapping,
            policies_to_train=list(example.policies),
        )
        .rl_module(rl_module_spec=spec)
        .training(**example.settings)
        .debugging(seed=seed)
    )
    if example.flatten is not None:
        agents = set(example.flatten) or None
        config.env_runners(
            env_to_module_connector=lambda env, spaces, device: FlattenObservations(multi_agent=True, agent_ids=agents)
        )
    return config


def solve(example: Example, ours: bool, seed: int) -> dict[str, Any]:
    """Trains until the threshold or the limit.

    Returns:
        `solved_at`, env steps (None: not within the limit), and `last`, the final value of the metric.
    """
    random.seed(seed)
    algo = make_config(example, ours, seed).build_algo()
    try:
        while True:
            value: Any = (result := algo.train())["env_runners"]
            for key in example.metric:
                value = value.get(key, {})
            steps, value = int(result["num_env_steps_sampled_lifetime"]), float(value or "nan")
            if value >= example.threshold:
                return {"seed": seed, "solved_at": steps, "last": round(value, 2)}
            if steps >= example.limit:
                return {"seed": seed, "solved_at": None, "last": round(value, 2)}
    finally:
        algo.stop()


def run(
    names: Sequence[str] = tuple(EXAMPLES), rounds: int = 3, log: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Solves every example with both kinds of networks, from `rounds` seeds each."""
    torch.set_num_threads(1)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    results = []
    try:
        for name in names:
            example, runs = EXAMPLES[name], {"ours": [], "rllib": []}
            for seed in range(rounds):
                for side, found in runs.items():
                    found.append(solve(example, side == "ours", seed))
                    log(f"{name} {side}: {found[-1]}")
            results.append({"example": name, "threshold": example.threshold, "limit": example.limit, **runs})
    finally:
        ray.shutdown()
    return [{**result, "machine": machine()} for result in results]


def table(results: list[dict[str, Any]]) -> str:
    """The results as text."""
    lines = [f"{'example':20} {'threshold':>9}  env steps until solved, one figure a seed"]
    for result in results:
        for side in ("ours", "rllib"):
            steps = ", ".join("not" if r["solved_at"] is None else f"{r['solved_at']:,}" for r in result[side])
            lines.append(f"{result['example']:20} {result['threshold']:9g}  {side:6} {steps}")
    return "\n".join(lines)
