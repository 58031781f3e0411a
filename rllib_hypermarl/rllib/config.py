"""`HyperMARLConfig`: RLlib's PPO config with one more group for the hypernetwork, checked loudly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import torch
from ray.rllib.algorithms.algorithm_config import NotProvided
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.policy import PolicySpec
from ray.rllib.utils.typing import LearningRateOrSchedule

from .. import env as envs
from ..env import BatchedEnv
from ..errors import ConfigError
from ..losses import PPOLossConfig
from ..nets import ModelSpec
from ..nets.distributions import Bound, LogStd
from ..nets.spec import Activation, Context, Init, MemoryKind, Sharing
from .grammar import Grouped, check_type
from .model import build_model_spec
from .policies import OWN, Patterns

Critic = Literal["independent", "central"]
Optim = Literal["adam", "sgd"]
Head = Literal["actor", "critic"]
Trainable = Literal["all", "contexts"]
HYPER = "hyper"
"""Id of the one RLModule that owns all parameters."""
STATE = "__env_state__"
"""Key of the env's state space among RLlib's spaces."""
MODEL_SPEC = "model_spec"
"""Key of the team's spec in model configs, and in an env runner's state beside the weights."""


def to_hyper(agent_id: str, episode: Any = None, **kwargs: Any) -> str:
    """RLlib's policy mapping on the fast path: every agent's rows are in the one batch of `hyper`."""
    return HYPER


class HyperMARLConfig(Grouped, PPOConfig):
    """Config of `HyperMARL`; see docs/config.md for every key and every default that differs from PPO's.

    config = (
        HyperMARLConfig()
        .environment("vmas/dispersion", env_config={"n_agents": 4, "max_steps": 100})
        .hypermarl(sharing="hyper_mlp", embedding_dim=4)
        .training(lr=1e-3)
    )
    algo = config.build_algo()
    """

    def __init__(self, algo_class: type | None = None):
        from .algorithm import HyperMARL
        from .env_runner import BatchedEnvRunner

        super().__init__(algo_class=algo_class or HyperMARL)
        self.sharing: Sharing = "hyper_mlp"
        self.critic_sharing: Sharing | None = None
        self.critic: Critic = "independent"
        self.context: Context | None = None
        self.embedding_dim = 4
        self.hypernet_hidden: Sequence[int] = (64,)
        self.hypernet_shared_trunk = False
        self.hypernet_rank: int | None = None
        self.hypernet_reads_obs = False
        self.actor_hidden: Sequence[int] = (64, 64)
        self.critic_hidden: Sequence[int] = (64, 64)
        self.activation: Activation = "relu"
        self.init: Init = "exact"
        self.clip_value_loss: float | None = 0.2
        self.standardise_advantages = True
        self.log_std: LogStd = "shared"
        self.action_bound: Bound = "clip"
        self.optim: Optim = "adam"
        self.huber_delta: float | None = None
        self.normalise_obs = False
        self.normalise_values = False
        self.adaptive_lr_kl: float | None = None
        self.sample_ahead = False
        self.early_stop_kl: float | None = None
        self.init_from: str | None = None
        self.init_like: dict[str, str] | None = None
        self.init_heads: Sequence[Head] = ("actor", "critic")
        self.trainable: Trainable = "all"
        self.frozen: Sequence[str] = ()
        self.groups: dict[str, Any] | None = None
        self.memory: MemoryKind | None = None
        self.memory_size = 128
        self.memory_encoder_hidden: Sequence[int] = (128,)
        self.memory_encoder_sharing: Sharing = "full"
        self.sequence_length: int | None = None

        self.stop_env_steps: int = 8_000_000
        self.checkpoint_seconds: float = 30.0
        self.milestone_env_steps: int | None = None
        self.metrics_interval: int | None = None
        self.max_failures: int = 3
        self.device = "auto"
        self.torch_threads: int | str = "auto"

        self.lr = 1e-3
        self.lambda_ = 0.95
        self.clip_param = 0.2
        self.entropy_coeff = 0.01
        self.vf_loss_coeff = 0.5
        self.vf_clip_param = float("inf")
        self.use_kl_loss = False
        self.grad_clip = 0.5
        self.num_epochs = 4
        self.minibatch_size = 1024
        self.train_batch_size_per_learner = 8192
        self.num_env_runners = 0
        self.num_envs_per_env_runner = 128
        self.evaluation_duration = 64
        self.seed = 0

        self._dont_auto_sync_env_runner_states = True  # there are none to merge: weights hold all statistics
        self.env_runner_cls = BatchedEnvRunner
        self.policy_patterns: Patterns = {"*": OWN}
        super().multi_agent(policies={HYPER: PolicySpec()}, policy_mapping_fn=to_hyper)

    # ------------------------------------------------------------------------------------------------- fluent groups

    def hypermarl(
        self,
        *,
        sharing: Sharing = NotProvided,
        critic_sharing: Sharing | None = NotProvided,
        critic: Critic = NotProvided,
        context: Context | None = NotProvided,
        embedding_dim: int = NotProvided,
        hypernet_hidden: Sequence[int] = NotProvided,
        hypernet_shared_trunk: bool = NotProvided,
        hypernet_rank: int | None = NotProvided,
        hypernet_reads_obs: bool = NotProvided,
        actor_hidden: Sequence[int] = NotProvided,
        critic_hidden: Sequence[int] = NotProvided,
        activation: Activation = NotProvided,
        init: Init = NotProvided,
        clip_value_loss: float | None = NotProvided,
        standardise_advantages: bool = NotProvided,
        log_std: LogStd = NotProvided,
        action_bound: Bound = NotProvided,
        optim: Optim = NotProvided,
        huber_delta: float | None = NotProvided,
        normalise_obs: bool = NotProvided,
        normalise_values: bool = NotProvided,
        adaptive_lr_kl: float | None = NotProvided,
        early_stop_kl: float | None = NotProvided,
        sample_ahead: bool = NotProvided,
        init_from: str | None = NotProvided,
        init_like: dict[str, str] | None = NotProvided,
        init_heads: Sequence[Head] = NotProvided,
        trainable: Trainable = NotProvided,
        frozen: Sequence[str] = NotProvided,
        groups: dict[str, str | Sequence[str]] | None = NotProvided,
        memory: MemoryKind | None = NotProvided,
        memory_size: int = NotProvided,
        memory_encoder_hidden: Sequence[int] = NotProvided,
        memory_encoder_sharing: Sharing = NotProvided,
        sequence_length: int | None = NotProvided,
    ) -> HyperMARLConfig:
        """Sets the networks, and of their training what RLlib's `training` has no key for.

        Args:
            sharing: where actor weights come from: `hyper_mlp`, `hyper_linear`, `none`, `full`, `full_id`.
            critic_sharing: the same for critics. None: as `sharing`.
            critic: `independent`, each agent's critic reads its own observation (IPPO); `central`, the env's state,
                or the observations of all agents where it has none (MAPPO).
            context: what hypernetworks read, `embedding` or `one_hot`. None: `embedding` for `hyper_mlp` and
                `one_hot` for `hyper_linear`, the paper's two variants.
            embedding_dim: size of a policy's learned embedding.
            hypernet_hidden: hidden sizes of each generator of `hyper_mlp`.
            hypernet_shared_trunk: its generators of one network have their hidden layers in common.
            hypernet_rank: generated matrices are one for all policies plus a generated product of this rank. None: all
                of their entries are generated.
            hypernet_reads_obs: its generators also read the observation, so that every row has weights of its own: the
                paper's ablation "without gradient decoupling".
            actor_hidden, critic_hidden: hidden sizes of the target networks.
            activation: of the target networks, `relu` or `tanh`.
            init: `exact`, `paper` or `framework`, see `nets/init.py`.
            clip_value_loss: PPO's clip of the new value around the old one; None: off.
            standardise_advantages: those of a minibatch have mean 0 and standard deviation 1, over all agents jointly.
            log_std: of continuous actions: `shared` (one free vector for all, the paper's), `per_policy`, `generated`.
            action_bound: of continuous actions: `clip` (the paper's) or `tanh`.
            optim: `adam` (epsilon 1e-5) or `sgd` (no momentum).
            huber_delta: value errors count linearly beyond it. None: squared throughout.
            normalise_obs: networks read observations normalised by their running mean and standard deviation.
            normalise_values: critics learn returns normalised by theirs; errors, clips and deltas are in those units.
            adaptive_lr_kl: a learning rate that falls after epochs whose KL divergence from the sampling policy is
                over twice this, and rises after those under half of it; it begins at `lr`. None: off.
            early_stop_kl: no further epoch over a rollout after one of a greater divergence. None: off.
            sample_ahead: remote env runners sample the next rollout while learners work, with the weights of before.
            init_from: a run, checkpoint or full bundle whose networks a new run starts from, policies by name. Files of
                runs and checkpoints are pickles, which can run code: only your own.
            init_like: policy of this run -> policy of `init_from` that it starts as.
            init_heads: what is taken from there, `actor` and `critic` or one of them.
            trainable: `all`, or `contexts`: learned embeddings move, everything else stays.
            frozen: policies that act with the weights they start with, and learn nothing.
            groups: name -> pattern or patterns of policies that learn apart from all others, as adversaries do, with
                networks, losses and clipping of their own; or pattern -> `own`, each by itself. None: one group.
            memory: actors and critics each read through an encoder and a recurrent core (`gru` or `lstm`) that all
                agents share. None: agents see the present only.
            memory_size: of a core's state and output.
            memory_encoder_hidden: sizes of the encoders' layers, the last one is what a core reads.
            memory_encoder_sharing: where encoder weights come from, as `sharing`; `full`: one for all (the paper's).
            sequence_length: steps that gradients go back through (truncated BPTT). None: all of a rollout.
        """
        return self._set("hypermarl", locals())

    def run(
        self,
        *,
        seed: int | None = NotProvided,
        stop_env_steps: int = NotProvided,
        checkpoint_seconds: float = NotProvided,
        milestone_env_steps: int | None = NotProvided,
        metrics_interval: int | None = NotProvided,
        max_failures: int = NotProvided,
        device: str = NotProvided,
        torch_threads: int | Literal["auto"] = NotProvided,
    ) -> HyperMARLConfig:
        """Sets what belongs to a run rather than to the algorithm.

        Args:
            seed: of everything random. None: drawn by the system.
            stop_env_steps: env steps after which `train` stops.
            checkpoint_seconds: the longest a finished iteration stays unsaved.
            milestone_env_steps: a checkpoint at each multiple of it stays for good. None: only the newest two stay.
            metrics_interval: iterations between measurements of diversity, gradients and embeddings. None: off.
            max_failures: how often `train` goes on from its last checkpoint by itself when it has lost learners, or all
                env runners.
            device: of env and learner: `cpu`, `cuda`, or `auto` (cuda where there is one).
            torch_threads: of the process that samples and learns. `auto`: the CPUs granted to it.
        """
        return self._set("run", locals())

    def training(self, *, entropy_coeff: LearningRateOrSchedule = NotProvided, **kwargs: Any) -> HyperMARLConfig:
        """RLlib's; its annotation of `entropy_coeff` leaves out the schedule that it takes."""
        return super().training(entropy_coeff=entropy_coeff, **kwargs)

    def env_runners(self, *, num_cpus_per_env_runner: int | float = NotProvided, **kwargs: Any) -> HyperMARLConfig:
        """RLlib's; its annotation of `num_cpus_per_env_runner` leaves out the parts of a CPU that it takes."""
        return super().env_runners(num_cpus_per_env_runner=num_cpus_per_env_runner, **kwargs)

    def multi_agent(self, *, policies: Patterns = NotProvided, **kwargs: Any) -> HyperMARLConfig:
        """Maps agents to policies by patterns: `{"scouts": ["agent_0", "agent_1"], "*": "own"}`; see `policies.py`.

        RLlib's own mapping functions and policy specs belong to its stock env runners and are refused here.
        """
        if policies is not NotProvided:
            values = policies.values() if isinstance(policies, dict) else [None]
            if not all(isinstance(v, str) or (isinstance(v, list | tuple) and v and all(isinstance(i, str) for i in v))
                       for v in values):  # fmt: skip
                raise ConfigError(
                    f"policies is {policies!r}: expected policy: pattern or list of patterns, or pattern: own"
                )
            self.policy_patterns = policies
        return super().multi_agent(**kwargs) if kwargs else self

    def _set(self, group: str, arguments: dict[str, Any]) -> HyperMARLConfig:
        for key, value in arguments.items():
            if key != "self" and value is not NotProvided:
                setattr(self, key, check_type(type(self), group, key, value))
        return self

    # ----------------------------------------------------------------------------------------------------- validation

    def validate(self) -> None:
        """Refuses what cannot work and every RLlib setting that the fast path does not honour.

        Raises:
            ConfigError: one line that names the key, what is wrong and what to do.
        """
        from . import validation

        if self.in_evaluation:  # RLlib's own copy of a config that has been validated
            return
        validation.check_values(self)
        validation.refuse_unhonoured(self)
        try:
            super().validate()
        except ValueError as error:
            raise ConfigError(" ".join(str(error).split())) from error

    # --------------------------------------------------------------------------------- what is built from the config

    def torch_device(self, gpus: float | None = None) -> torch.device:
        """The device of env and learner.

        Args:
            gpus: of an actor of Ray's, the GPUs that RLlib's keys give it. None: this process, as `run.device` says.
        """
        if gpus is not None:
            return torch.device("cuda" if gpus > 0 else "cpu")
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ConfigError(f"run.device is {self.device!r}: expected auto, cpu or cuda") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"run.device is {self.device!r}, but torch sees no CUDA device here")
        return device

    def make_batched_env(self, num_envs: int, device: torch.device) -> BatchedEnv:
        """A fresh batch of `num_envs` copies of the env."""
        if isinstance(self.env, str):
            return envs.make(self.env, num_envs=num_envs, device=device, **self.env_config)
        return self.env(num_envs=num_envs, device=device, **self.env_config)

    def steps_of_sequence(self) -> int:
        """Steps of the sequences that teams with memory learn from."""
        return self.sequence_length or self.get_rollout_fragment_length()

    def initial_lr(self) -> float:
        """The learning rate, or where its schedule begins."""
        return float(self.lr if isinstance(self.lr, int | float) else self.lr[0][1])

    def loss_config(self, entropy_coeff: float) -> PPOLossConfig:
        """Args: entropy_coeff, which may follow a schedule."""
        return PPOLossConfig(
            self.clip_param,
            self.vf_loss_coeff,
            entropy_coeff,
            self.clip_value_loss,
            self.huber_delta,
            self.standardise_advantages,
        )

    def model_spec(
        self,
        observation_spaces: dict[str, gym.Space],
        action_spaces: dict[str, gym.Space],
        state_space: gym.Space | None = None,
    ) -> ModelSpec:
        """The team's networks for an env with these spaces per agent, in the env's order of agents.

        Raises:
            ConfigError: the patterns do not fit the agents, or the spaces are not supported.
        """
        return build_model_spec(self, observation_spaces, action_spaces, state_space)

    def get_evaluation_config_object(self) -> HyperMARLConfig | None:
        """RLlib's copy of the config for evaluation; greedy unless `evaluation_config` says `explore: true`."""
        config = super().get_evaluation_config_object()
        if config is not None:
            config.explore = bool((self.evaluation_config or {}).get("explore", False))
        return config

    def get_default_learner_class(self) -> type:
        from .learner import HyperMARLLearner

        return HyperMARLLearner

    def get_multi_rl_module_spec(
        self, *, env: Any = None, spaces: dict | None = None, inference_only: bool = False, **kwargs: Any
    ) -> MultiRLModuleSpec:
        """One module, `hyper`, that owns every parameter; `spaces["hyper"]` are `Dict` spaces per agent."""
        from .module import HyperModule

        observation_space, action_space = spaces[HYPER]
        state_space, _ = spaces[STATE]
        spec = self.model_spec(dict(observation_space.items()), dict(action_space.items()), state_space)
        return MultiRLModuleSpec(
            rl_module_specs={
                HYPER: RLModuleSpec(
                    module_class=HyperModule,
                    observation_space=observation_space,
                    action_space=action_space,
                    model_config={MODEL_SPEC: spec.to_dict(), "seed": self.seed},
                )
            }
        )
