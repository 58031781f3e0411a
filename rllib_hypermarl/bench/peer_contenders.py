"""Who meets in `bench peers`: our algorithm in this process, BenchMARL's IPPO in others, and one set-up for both."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import evaluation
from ..rllib.config import HyperMARLConfig
from .peer_process import PeerProcess
from .throughput import DISPERSION

DIFFERENCES = (
    "BenchMARL's shared networks get no agent ids: on Dispersion, whose agents start in one place, greedy ones all do "
    "the same. Hence the sampled return beside the greedy one.",
    "BenchMARL does not clip value errors and has no setting for it; ours does, at 0.2, as the paper does.",
    "In TorchRL's VMAS envs a time limit is a termination; ours is a truncation, whose value is bootstrapped.",
    "BenchMARL has an optimiser each for actor and critic and clips their gradients apart; ours has one for both.",
    "BenchMARL initialises as torch's Linear does; ours orthogonally, with a small last layer of the actor, and "
    "hypernetworks so that what they generate is like that.",
    "TorchRL resets ended VMAS envs one by one; ours in one go.",
    "An iteration of BenchMARL is timed from one collected batch to the next, the update first; ours samples first.",
    "Made equal: ReLU (BenchMARL's default is tanh), Adam's epsilon, the factor of the value error (halved for "
    "BenchMARL, which does not halve the error), critics shared or not as the actors are, and advantages as they are "
    "(BenchMARL cannot standardise them; ours does by default, which is worse here).",
)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What both sides are told: names are RLlib's, sizes count env steps."""

    num_envs: int
    length: int
    minibatches: int
    threads: int
    seed: int = 0
    lr: float = 1e-3
    epochs: int = 4
    hidden: tuple[int, ...] = (64, 64)
    gamma: float = 0.99
    lambda_: float = 0.95
    clip_param: float = 0.2
    entropy_coeff: float = 0.01
    vf_loss_coeff: float = 0.5
    grad_clip: float = 0.5
    adam_eps: float = 1e-5
    standardise_advantages: bool = False  # BenchMARL cannot
    evaluation_episodes: int = 128
    env_config: dict = dataclasses.field(default_factory=lambda: DISPERSION)

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))


def our_config(setup: Setup, sharing: str) -> HyperMARLConfig:
    """Of `tune_configs/dispersion.yaml`, but for what `setup` says; its rate is constant."""
    same = ("lr", "gamma", "lambda_", "clip_param", "entropy_coeff", "vf_loss_coeff", "grad_clip")
    size = setup.num_envs * setup.length
    return (
        HyperMARLConfig()
        .environment("vmas/dispersion", env_config=dict(setup.env_config))
        .hypermarl(
            sharing=sharing,
            actor_hidden=setup.hidden,
            critic_hidden=setup.hidden,
            standardise_advantages=setup.standardise_advantages,
        )
        .training(
            num_epochs=setup.epochs,
            minibatch_size=size // setup.minibatches,
            train_batch_size_per_learner=size,
            **{key: getattr(setup, key) for key in same},
        )
        .env_runners(num_envs_per_env_runner=setup.num_envs, rollout_fragment_length=setup.length)
        .run(seed=setup.seed, torch_threads=setup.threads, device="cpu")
    )


class Ours:
    """`HyperMARL.train()`."""

    def __init__(self, setup: Setup, sharing: str):
        self._algo = our_config(setup, sharing).build_algo()
        self._episodes, self._evaluated = setup.evaluation_episodes, 0
        self._env = self._algo.env_runner.make_batched_env(self._episodes)
        counts = self._algo.env_runner.net.parameter_counts()
        self.about = {"parameters": counts, "threads": torch.get_num_threads()}

    def iterate(self, n: int = 1) -> tuple[int, float]:
        """Returns env steps and seconds of n iterations."""
        before, start = self._algo.env_steps, time.perf_counter()
        for _ in range(n):
            self._algo.train()
        return self._algo.env_steps - before, time.perf_counter() - start

    def evaluate(self, explore: bool = False) -> float:
        """The mean over episodes and agents of an agent's return; other episodes each time."""
        self._evaluated += 1
        net, seed = self._algo.env_runner.net, 1_000_000 + self._evaluated
        return evaluation.evaluate(net, self._env, self._episodes, seed=seed, explore=explore).returns.mean().item()

    def close(self) -> None:
        self._env.close()
        self._algo.stop()


class Peer:
    """BenchMARL's IPPO, in a process that waits between two iterations."""

    def __init__(self, setup: Setup, sharing: str, command: Sequence[str | Path]):
        told = {**setup.to_json(), "shared": sharing == "shared"}
        self._process = PeerProcess(command, told, f"BenchMARL ({sharing})")
        self.about = self._process.hello

    def iterate(self, n: int = 1) -> tuple[int, float]:
        answer = self._process.ask({"iterate": n})
        return answer["env_steps"], answer["seconds"]

    def evaluate(self, explore: bool = False) -> float:
        return self._process.ask({"evaluate": True, "explore": explore})["agent_return_mean"]

    def close(self) -> None:
        self._process.close()
