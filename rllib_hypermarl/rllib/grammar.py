"""One grammar for YAML files, command-line overrides and Python: groups of keys, checked by name and type.

A group is one of the config's fluent methods; its keys are that method's arguments. What a group accepts is the list
below, which is also the list of RLlib settings that the fast path honours. Everything else is refused, by name.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pydantic
import yaml

from ..env import nearest
from ..errors import ConfigError

# Group -> keys that the fast path honours. `hypermarl` and `run` are ours, all others are RLlib's fluent methods.
GROUPS: dict[str, tuple[str, ...]] = {
    "hypermarl": (
        "sharing", "critic_sharing", "critic", "context", "embedding_dim", "hypernet_hidden",
        "hypernet_shared_trunk", "hypernet_rank", "hypernet_reads_obs", "actor_hidden", "critic_hidden", "activation",
        "init", "clip_value_loss", "standardise_advantages", "log_std", "action_bound", "optim", "huber_delta",
        "normalise_obs", "normalise_values", "adaptive_lr_kl", "early_stop_kl", "sample_ahead",
        "init_from", "init_like", "init_heads", "trainable", "frozen", "groups",
        "memory", "memory_size", "memory_encoder_hidden", "memory_encoder_sharing", "sequence_length",
    ),
    "training": (
        "lr", "gamma", "lambda_", "use_critic", "clip_param", "vf_loss_coeff", "entropy_coeff", "grad_clip",
        "num_epochs", "minibatch_size", "train_batch_size_per_learner", "shuffle_batch_per_epoch",
    ),
    "env_runners": (
        "num_env_runners", "num_envs_per_env_runner", "rollout_fragment_length", "num_cpus_per_env_runner",
        "num_gpus_per_env_runner", "custom_resources_per_env_runner", "sample_timeout_s",
    ),
    "learners": ("num_learners", "num_cpus_per_learner", "num_gpus_per_learner", "custom_resources_per_learner"),
    "fault_tolerance": (
        "restart_failed_env_runners", "max_num_env_runner_restarts", "env_runner_health_probe_timeout_s",
        "env_runner_restore_timeout_s",
    ),
    "evaluation": ("evaluation_interval", "evaluation_duration", "evaluation_config"),
    "reporting": (
        "metrics_num_episodes_for_smoothing", "min_time_s_per_iteration", "min_train_timesteps_per_iteration",
        "min_sample_timesteps_per_iteration",
    ),
    "resources": ("num_cpus_for_main_process", "custom_resources_for_main_process", "placement_strategy"),
    "run": (
        "seed", "stop_env_steps", "checkpoint_seconds", "milestone_env_steps", "metrics_interval", "max_failures",
        "device", "torch_threads",
    ),
}  # fmt: skip
TOP_LEVEL = ("env", "env_config", "policies")


class _Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number, as everybody expects and YAML 1.1 does not, and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise ConfigError(f"line {node.start_mark.line + 1}: {', '.join(sorted(twice))} is given twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a config file.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(f"{path}: {reason}") from error
    try:
        data = yaml.load(text, _Loader)  # a SafeLoader
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: {getattr(error, 'problem', None) or 'not valid YAML'}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of groups ({', '.join([*TOP_LEVEL, *GROUPS])})")
    return data


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Applies command-line overrides `group.key=value`, the value in YAML.

    Raises:
        ConfigError: no `=`, or a key below something that is no mapping.
    """
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in data.items()}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: expected group.key=value, for example training.lr=5e-4")
        try:
            value = yaml.load(text, _Loader)  # a SafeLoader
        except yaml.YAMLError as error:
            raise ConfigError(f"override {override!r}: {text!r} is not valid YAML") from error
        *path, last = key.split(".")
        target = result
        for part in path:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ConfigError(f"override {override!r}: {part!r} holds a value, not keys")
        target[last] = value
    return result


def _declaring(config_class: type, group: str, key: str) -> Callable | None:
    """The fluent method `group` of a config class, or of the nearest base of it, that has the argument `key`."""
    methods = [vars(base)[group] for base in config_class.__mro__ if group in vars(base)]
    return next((method for method in methods if key in method.__annotations__), None)


def check_type(config_class: type, group: str, key: str, value: Any) -> Any:
    """Checks a value against the annotation of a fluent method's argument, and returns it converted.

    Raises:
        ConfigError: names the key and what was expected.
    """
    method = _declaring(config_class, group, key)
    only = type(
        key, (), {"__annotations__": {key: method.__annotations__[key]}}
    )  # others name types not imported there
    hint = typing.get_type_hints(only, globalns=method.__globals__)[key]
    try:
        return pydantic.TypeAdapter(hint, config={"arbitrary_types_allowed": True}).validate_python(value)
    except pydantic.ValidationError as error:
        expected = " or ".join(dict.fromkeys(item["msg"] for item in error.errors()))
        raise ConfigError(f"{group}.{key} is {value!r}: {expected[0].lower()}{expected[1:]}") from error


def check_keys(config_class: type, data: Mapping[str, Any]) -> None:
    """Refuses unknown groups and keys, and tells RLlib keys that we do not honour from misspelt ones.

    Raises:
        ConfigError: names the nearest valid key.
    """
    valid = [*TOP_LEVEL, *GROUPS, *(f"{group}.{key}" for group, keys in GROUPS.items() for key in keys)]
    for group, content in data.items():
        if group in TOP_LEVEL:
            continue
        if group not in GROUPS:
            raise ConfigError(f"unknown key {str(group)!r}: {nearest(str(group), [*TOP_LEVEL, *GROUPS])}")
        if not isinstance(content, Mapping):
            raise ConfigError(f"{group} is {content!r}: expected keys below it ({', '.join(GROUPS[group])})")
        for key in content:
            if key in GROUPS[group]:
                continue
            name = f"{group}.{key}"
            if _declaring(config_class, group, key):
                raise ConfigError(f"{name}: HyperMARL does not honour this RLlib setting; leave it out")
            raise ConfigError(f"unknown key {name!r}: {nearest(name, valid)}")


class Grouped:
    """What a config needs to be written and read as nested groups, in YAML or not."""

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Self:
        """Reads a config file and applies overrides `group.key=value`.

        Raises:
            ConfigError: one line that names the key and what to do.
        """
        data = read_yaml(path)
        if "search" in data:
            raise ConfigError(f"{path} describes a sweep: run it with `tune`")
        return cls.from_groups(apply_overrides(data, overrides))

    @classmethod
    def from_groups(cls, data: dict[str, Any]) -> Self:
        """Makes a config of nested groups, as a YAML file holds them."""
        config = cls()
        check_keys(cls, data)
        if not isinstance(data.get("env"), str):
            raise ConfigError(f"env is {data.get('env')!r}: expected a name such as vmas/dispersion, or module:Attr")
        if not isinstance(data.get("env_config") or {}, dict):
            raise ConfigError(f"env_config is {data['env_config']!r}: expected keys below it")
        config.environment(data["env"], env_config=data.get("env_config") or {})
        if data.get("policies") is not None:
            config.multi_agent(policies=data["policies"])
        for group, keys in data.items():
            if group in GROUPS:
                values = {key: check_type(cls, group, key, value) for key, value in keys.items()}
                try:
                    getattr(config, group)(**values)
                except ConfigError:
                    raise
                except (TypeError, ValueError) as error:  # RLlib's own
                    raise ConfigError(f"{group}: {' '.join(str(error).split())}") from error
        return config

    def to_groups(self) -> dict[str, Any]:
        """The config as nested groups of plain values; `from_groups` reads it back."""
        groups: dict[str, Any] = {
            "env": f"{self.env.__module__}:{self.env.__qualname__}" if isinstance(self.env, type) else self.env,
            "env_config": dict(self.env_config),
            "policies": {k: v if isinstance(v, str) else list(v) for k, v in self.policy_patterns.items()},
        }
        for group, keys in GROUPS.items():
            values = {key: getattr(self, key) for key in keys}
            groups[group] = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
        return groups

    def to_yaml(self, path: str | Path | None = None) -> str:
        """The config as YAML text, also written to `path` if given."""
        text = yaml.safe_dump(self.to_groups(), sort_keys=False, default_flow_style=None, width=120)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text
