"""What a config may hold: everything else is an error when it is built, never silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from .. import env as envs
from ..errors import ConfigError, UnknownEnvError
from .config import HYPER, to_hyper
from .env_runner import BatchedEnvRunner
from .grammar import GROUPS, check_type

if TYPE_CHECKING:
    from .config import HyperMARLConfig

# Callbacks that RLlib's Algorithm itself fires; those of its env runners have no meaning on batched environments.
_HONOURED_CALLBACKS = {
    "on_algorithm_init", "on_train_result", "on_evaluate_start", "on_evaluate_end", "on_checkpoint_loaded",
}  # fmt: skip
# What we set ourselves, RLlib changes on its own copies, or is bookkeeping.
_INTERNAL = {
    "algo_class", "class", "_is_frozen", "in_evaluation", "evaluation_config", "env", "env_config", "seed", "policies",
    "simple_optimizer", "policy_mapping_fn", "env_runner_cls", "log_level", "log_sys_usage", "callbacks_class",
    "policy_patterns", "_train_batch_size_per_learner", *(f"callbacks_{name}" for name in _HONOURED_CALLBACKS),
}  # fmt: skip
_HINTS = {
    "train_batch_size": "use train_batch_size_per_learner",
    "batch_mode": "rollouts are always truncated, and bootstrap from the final observation",
    "vf_clip_param": "it clamps the squared error; for PPO's value clipping set hypermarl.clip_value_loss",
    "model": "networks are set in the group hypermarl",
    "_model_config": "networks are set in the group hypermarl",
    "_rl_module_spec": "the module is HyperMARL's own; its networks are set in the group hypermarl",
    "observation_filter": "observations reach the networks as the environment gives them",
    "policies_to_train": "generated weights move with the hypernetwork that all share; freeze with hypermarl.frozen",
    "explore": "training always samples; evaluation is greedy, or set evaluation_config={'explore': True}",
}


def refuse_unhonoured(config: HyperMARLConfig) -> None:
    """Refuses every RLlib setting that the fast path would ignore.

    Raises:
        ConfigError: names the key.
    """
    defaults, honoured = vars(type(config)()), {key for keys in GROUPS.values() for key in keys}
    for key, value in vars(config).items():
        if key in honoured or key in _INTERNAL:
            continue
        if key not in defaults:
            raise ConfigError(f"unknown config key {key!r}: {envs.nearest(key, sorted(honoured))}")
        if value != defaults[key]:
            name = key.strip("_")
            raise ConfigError(
                f"{name} is {value!r}: HyperMARL does not honour this RLlib setting; "
                + _HINTS.get(key, "leave it at its default")
            )
    for callback in config.callbacks_class if isinstance(config.callbacks_class, list) else [config.callbacks_class]:
        for name in dir(RLlibCallback):
            overridden = getattr(callback, name) is not getattr(RLlibCallback, name)
            if name.startswith("on_") and overridden and name not in _HONOURED_CALLBACKS:
                raise ConfigError(
                    f"callbacks: {callback.__name__}.{name} would never be called; "
                    f"honoured are {', '.join(sorted(_HONOURED_CALLBACKS))}"
                )
    if not issubclass(config.env_runner_cls, BatchedEnvRunner):
        raise ConfigError(f"env_runner_cls is {config.env_runner_cls!r}: expected BatchedEnvRunner or a subclass of it")
    if (
        not isinstance(config.policies, dict)
        or set(config.policies) != {HYPER}
        or config.policy_mapping_fn is not to_hyper
    ):
        raise ConfigError("policies: map agents with patterns, multi_agent(policies={'team': '*'}), not a function")


def check_values(config: HyperMARLConfig) -> None:
    """Refuses values and combinations that cannot work.

    Raises:
        ConfigError: names the key.
    """

    def fail(key: str, value: Any, why: str) -> None:
        raise ConfigError(f"{key} is {value!r}: {why}")

    if not config.env:
        fail("env", config.env, "expected a name such as vmas/dispersion, or module:Attr")
    if isinstance(config.env, str):
        try:
            envs.resolve(config.env)
        except UnknownEnvError as error:
            raise ConfigError(str(error)) from error
    elif isinstance(config.env, type) and issubclass(config.env, MultiAgentEnv):
        fail("env", config.env.__name__, "of a MultiAgentEnv class, give the name: 'rllib/my_module:MyEnv', or "
             "'rllib/my_env' after ray.tune.register_env('my_env', MyEnv)")  # fmt: skip
    for group, keys in GROUPS.items():
        for key in keys:
            check_type(type(config), group, key, getattr(config, key))
    positive = {
        "hypermarl": ("embedding_dim", "memory_size"),
        "training": ("clip_param", "num_epochs", "minibatch_size", "train_batch_size_per_learner"),
        "env_runners": ("num_envs_per_env_runner", "sample_timeout_s"),
        "run": ("stop_env_steps", "checkpoint_seconds"),
    }
    for group, keys in positive.items():
        for key in keys:
            value = getattr(config, key)
            if not isinstance(value, int | float) or not value > 0:
                fail(f"{group}.{key}", value, "expected a positive number")
    if config.sample_ahead and not config.num_env_runners:
        fail("hypermarl.sample_ahead", True, "only remote env runners can: set env_runners.num_env_runners")
    for key in ("milestone_env_steps", "metrics_interval"):
        if getattr(config, key) is not None and getattr(config, key) < 1:
            fail(f"run.{key}", getattr(config, key), "expected null or a positive number")
    if config.max_failures < 0:
        fail("run.max_failures", config.max_failures, "expected 0 or a positive number")
    for key, least in (("lr", 1e-12), ("entropy_coeff", 0.0)):
        _check_schedule(f"training.{key}", getattr(config, key), least)
    for key in ("huber_delta", "adaptive_lr_kl", "early_stop_kl", "clip_value_loss"):
        value = getattr(config, key)
        if value is not None and not value > 0:
            fail(f"hypermarl.{key}", value, "expected null or a positive number")
    if config.adaptive_lr_kl is not None and not isinstance(config.lr, int | float):
        fail("hypermarl.adaptive_lr_kl", config.adaptive_lr_kl, "training.lr has a schedule; take one or the other")
    if not config.use_critic:
        needless = {key: getattr(config, key) for key in ("critic_sharing", "huber_delta") if getattr(config, key)}
        if config.normalise_values or config.critic == "central" or needless:
            key = next(iter(needless), "normalise_values" if config.normalise_values else "critic")
            fail(f"hypermarl.{key}", getattr(config, key), "there is no critic (training.use_critic is false)")
    if config.memory is not None:
        _check_memory(config, fail)
    if config.groups is not None:
        _check_groups(config, fail)
    if config.hypernet_rank is not None and config.hypernet_rank < 1:
        fail("hypermarl.hypernet_rank", config.hypernet_rank, "expected null or a positive number")
    if config.hypernet_reads_obs:
        for key in ("memory", "groups", "frozen", "hypernet_rank"):
            if getattr(config, key):
                why = "hypermarl.hypernet_reads_obs gives every row weights of its own; leave out one of them"
                fail(f"hypermarl.{key}", getattr(config, key), why)
    for key in ("hypernet_hidden", "actor_hidden", "critic_hidden", "memory_encoder_hidden"):
        if any(size < 1 for size in getattr(config, key)):
            fail(f"hypermarl.{key}", list(getattr(config, key)), "sizes must be positive")
    if config.grad_clip is not None and not config.grad_clip > 0:
        fail("training.grad_clip", config.grad_clip, "expected null or a positive number")
    for key in ("gamma", "lambda_"):
        if not 0 <= getattr(config, key) <= 1:
            fail(f"training.{key}", getattr(config, key), "expected a number from 0 to 1")
    if isinstance(config.torch_threads, int) and config.torch_threads < 1:
        fail("run.torch_threads", config.torch_threads, "expected auto or a positive number")
    if config.init_from is None and config.init_like is not None:
        fail("hypermarl.init_like", config.init_like, "it names policies of init_from, which is not set")
    if not config.init_heads or len(set(config.init_heads)) < len(config.init_heads):
        fail("hypermarl.init_heads", list(config.init_heads), "expected actor, critic or both")
    if config.init_from is None and set(config.init_heads) != {"actor", "critic"}:
        fail("hypermarl.init_heads", list(config.init_heads), "it names networks of init_from, which is not set")
    if config.trainable == "contexts" and len(config.init_heads) < 2:
        fail("hypermarl.trainable", config.trainable, "what init_heads leaves out would stay as it was drawn")
    if len(set(config.frozen)) < len(config.frozen):
        fail("hypermarl.frozen", list(config.frozen), "a policy is named twice")
    config.torch_device()
    for group, key in (("env_runners", "num_env_runners"), ("learners", "num_learners")):
        if getattr(config, key) < 0:
            fail(f"{group}.{key}", getattr(config, key), "expected 0 (in this process) or a number of actors")
    _check_batch(config)
    if config.evaluation_interval is not None and config.evaluation_interval < 1:
        fail("evaluation.evaluation_interval", config.evaluation_interval, "expected null or a positive number")
    if not isinstance(config.evaluation_duration, int) or config.evaluation_duration < 1:
        fail("evaluation.evaluation_duration", config.evaluation_duration, "expected a positive number of episodes")
    unknown = set(config.evaluation_config or {}) - {"explore"}
    if unknown:
        fail("evaluation.evaluation_config", config.evaluation_config, "only the key explore is supported")


def _check_memory(config: HyperMARLConfig, fail: Callable[[str, Any, str], None]) -> None:
    """What teams with memory can do, and how their rollouts are cut."""
    if config.frozen:
        why = "policies of a team with memory share its cores, which go on learning; set hypermarl.memory to null"
        fail("hypermarl.frozen", list(config.frozen), why)
    if not config.memory_encoder_hidden:
        fail("hypermarl.memory_encoder_hidden", [], "an encoder needs at least one layer")
    fragment, length = config.get_rollout_fragment_length(), config.steps_of_sequence()
    if length < 1 or fragment % length:
        fail("hypermarl.sequence_length", config.sequence_length, f"must divide rollout_fragment_length, {fragment}")
    if config.minibatch_size < length:
        why = f"too small for one sequence of {length} steps; set hypermarl.sequence_length, or make it bigger"
        fail("training.minibatch_size", config.minibatch_size, why)


def _check_groups(config: HyperMARLConfig, fail: Callable[[str, Any, str], None]) -> None:
    """What groups that learn apart cannot have, because it is one for all."""
    if not config.groups:
        fail("hypermarl.groups", config.groups, "expected null, or group: pattern or list of patterns of policies")
    shared = {
        "memory": "recurrent cores", "normalise_values": "the statistics of values",
        "adaptive_lr_kl": "the learning rate", "early_stop_kl": "the number of epochs",
    }  # fmt: skip
    for key, what in shared.items():
        if getattr(config, key):
            fail(
                f"hypermarl.{key}", getattr(config, key), f"hypermarl.groups would share {what}; leave out one of them"
            )


def _check_batch(config: HyperMARLConfig) -> None:
    """Every env goes whole to one learner, and all learners get the same number of them."""
    runners, learners = max(1, config.num_env_runners), max(1, config.num_learners)
    batch, num_envs = config.train_batch_size_per_learner, config.num_envs_per_env_runner
    if batch * learners != runners * num_envs * config.get_rollout_fragment_length():
        product, factors = "num_envs_per_env_runner * rollout_fragment_length", f"{num_envs} * "
        if runners > 1 or learners > 1:
            product, factors = f"num_env_runners * {product} / num_learners", f"{runners} * {num_envs} * "
        raise ConfigError(
            f"training.train_batch_size_per_learner is {batch}: expected {product} = {factors}"
            f"{config.rollout_fragment_length}{f' / {learners}' if learners > 1 else ''}; "
            "set rollout_fragment_length to auto or change one of them"
        )
    if runners * num_envs % learners:
        raise ConfigError(
            f"learners.num_learners is {learners}: {runners * num_envs} envs cannot be shared out equally among them; "
            "change env_runners.num_envs_per_env_runner"
        )


def _check_schedule(key: str, value: Any, least: float) -> None:
    """A number, or RLlib's `[[env_steps, value], ...]` from step 0 on, linear between its points."""
    points = [[0, value]] if isinstance(value, int | float) else value
    ordered = all(len(point) == 2 for point in points) and [p[0] for p in points] == sorted({p[0] for p in points})
    if not points or not ordered or points[0][0] != 0 or not all(p[1] >= least for p in points):
        kind = "positive numbers" if least else "numbers of at least 0"
        raise ConfigError(
            f"{key} is {value!r}: expected {kind}, one or a schedule [[0, value], [env_steps, value], ...] in order"
        )
