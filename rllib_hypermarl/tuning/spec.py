"""What a sweep's YAML file says: a base config, the keys to search, and how candidates are found and judged."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
import pydantic
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ..env import nearest
from ..errors import ConfigError
from ..rllib.config import HyperMARLConfig
from ..rllib.grammar import GROUPS, TOP_LEVEL, apply_overrides, read_yaml

Params = dict[str, Any]
"""Config key, `group.key` -> value."""
_SECTIONS = ("base", "config", "search", "tune")
_KINDS = ("loguniform", "uniform", "choice", "grid")


class Settings(pydantic.BaseModel):
    """The section `tune`; docs/tune.md explains every key."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    metric: str = "evaluation/env_runners/agent_return_mean"
    mode: Literal["max", "min"] = "max"
    seeds: tuple[int, ...] = pydantic.Field((0, 1, 2), min_length=1)
    aggregate: Literal["mean", "iqm"] = "mean"
    sampler: Literal["tpe", "random"] = "tpe"
    sampler_seed: int = 0
    candidates: pydantic.PositiveInt = 20
    seconds: pydantic.PositiveFloat | None = None
    report_iterations: pydantic.PositiveInt | None = None
    scheduler: Literal["none", "asha", "pbt"] = "none"
    grace_env_steps: pydantic.PositiveInt | None = None
    reduction_factor: int = pydantic.Field(3, ge=2)
    perturbation_env_steps: pydantic.PositiveInt | None = None
    cpus_per_trial: pydantic.NonNegativeFloat = 1
    gpus_per_trial: pydantic.NonNegativeFloat = 0
    max_concurrent: pydantic.PositiveInt | None = None
    max_failures: pydantic.NonNegativeInt = 3
    loggers: dict[str, dict[str, Any] | None] = {}


# How long a sweep goes on and on what machines: may change between two sessions of it.
_FREE = {
    "candidates", "seconds", "cpus_per_trial", "gpus_per_trial", "max_concurrent", "max_failures", "loggers",
}  # fmt: skip


class Dimension:
    """One key that is searched.

    Args:
        key: config key, `group.key`.
        content: `{loguniform: [low, high]}`, `{uniform: [low, high]}`, `{choice: [...]}` or `{grid: [...]}`; beside it
            perhaps `when: {other.key: value or list of values}`, without which the key stays as in the base config.
    """

    def __init__(self, key: str, content: Any):
        kinds = [kind for kind in _KINDS if isinstance(content, Mapping) and kind in content]
        if len(kinds) != 1 or set(content) - {"when", *kinds} or not isinstance(content.get("when", {}), Mapping):
            raise ConfigError(
                f"search.{key} is {content!r}: expected one of {', '.join(_KINDS)}, and perhaps when, for example "
                "{loguniform: [1.0e-4, 1.0e-2]}"
            )
        self.key, (self.kind,) = key, kinds
        self.when = {k: v if isinstance(v, list) else [v] for k, v in content.get("when", {}).items()}
        self.distribution, self.values = self._read(f"search.{key}.{self.kind}", content[self.kind])

    def _read(self, where: str, values: Any) -> tuple[BaseDistribution, list[Any]]:
        if self.kind in ("choice", "grid"):
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{where} is {values!r}: expected a list of values")
            if len({repr(_encoded(value)) for value in values}) < len(values):
                raise ConfigError(f"{where} is {values!r}: a value is given twice")
            return CategoricalDistribution([_encoded(value) for value in values]), values
        if not isinstance(values, list) or [type(v) in (int, float) for v in values] != [True, True]:
            raise ConfigError(f"{where} is {values!r}: expected [low, high]")
        (low, high), log = values, self.kind == "loguniform"
        if not low < high or (log and low <= 0):
            raise ConfigError(f"{where} is {values!r}: expected low < high{', both positive' if log else ''}")
        distribution = IntDistribution if all(isinstance(v, int) for v in values) else FloatDistribution
        return distribution(low, high, log=log), values

    def suggest(self, trial: optuna.Trial) -> Any:
        """The value that a trial of Optuna gives this key."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return self.decoded(trial.suggest_categorical(self.key, d.choices))
        if isinstance(d, IntDistribution):
            return trial.suggest_int(self.key, d.low, d.high, log=d.log)
        return trial.suggest_float(self.key, d.low, d.high, log=d.log)

    def decoded(self, value: Any) -> Any:
        """The config's value for Optuna's, which holds lists and mappings as JSON."""
        if not isinstance(self.distribution, CategoricalDistribution):
            return value
        return next(v for v in self.values if _encoded(v) == value)

    def applies(self, params: Params, base: Mapping[str, Any]) -> bool:
        """Whether the key is searched beside these values of the keys before it."""
        return all(params.get(key, get_key(base, key)) in values for key, values in self.when.items())


class Sweep:
    """A sweep: `base` groups of a config, `search` dimensions in order, and `settings`.

    Raises:
        ConfigError: a key or value that cannot work, in one line.
    """

    def __init__(self, base: dict[str, Any], search: Mapping[str, Any], settings: Mapping[str, Any]):
        self.base = HyperMARLConfig.from_groups(base).to_groups()
        try:
            self.settings = Settings.model_validate(dict(settings))
        except pydantic.ValidationError as error:
            raise ConfigError(_explained(error)) from error
        if not isinstance(search, Mapping) or not search:
            raise ConfigError("search is empty: name the keys to search, for example training.lr")
        self.search = [Dimension(str(key), content) for key, content in search.items()]
        self._check()

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
        """Reads a sweep's file; overrides `tune.key=value` change its settings, all others the base config.

        `base` is a config file beside it, and `config` holds groups of keys over it; either may be left out.
        """
        data = read_yaml(path)
        for key in data:
            if key not in _SECTIONS:
                raise ConfigError(f"{path}: unknown key {str(key)!r}: {nearest(str(key), _SECTIONS)}")
        for key in ("config", "search", "tune"):
            if not isinstance(data.get(key) or {}, dict):
                raise ConfigError(f"{path}: {key} is {data[key]!r}: expected keys below it")
        base = read_yaml(Path(path).parent / data["base"]) if data.get("base") else {}
        for group, content in (data.get("config") or {}).items():
            merge = isinstance(content, dict) and isinstance(base.get(group), dict) and group != "policies"
            base[group] = {**base[group], **content} if merge else content
        ours = [override for override in overrides if override.startswith("tune.")]
        base = apply_overrides(base, [override for override in overrides if override not in ours])
        settings = apply_overrides({"tune": data.get("tune") or {}}, ours)["tune"]
        return cls(base, data.get("search") or {}, settings)

    def to_groups(self) -> dict[str, Any]:
        return {
            "config": self.base,
            "search": {d.key: {d.kind: d.values, **({"when": d.when} if d.when else {})} for d in self.search},
            "tune": self.settings.model_dump(mode="json"),
        }

    def to_yaml(self, path: Path) -> None:
        """Writes the sweep as one file that stands alone."""
        path.write_text(yaml.safe_dump(self.to_groups(), sort_keys=False, default_flow_style=None, width=120), "utf-8")

    def check_same(self, path: Path) -> None:
        """Refuses the file of another sweep than this.

        Raises:
            ConfigError: names what differs.
        """
        theirs, ours = (_flat(groups) for groups in (read_yaml(path), json.loads(json.dumps(self.to_groups()))))
        for key in sorted(theirs.keys() | ours.keys()):
            if key not in {f"tune.{name}" for name in _FREE} and theirs.get(key) != ours.get(key):
                raise ConfigError(
                    f"{path.parent} holds another sweep ({key} is {theirs.get(key)!r} there, {ours.get(key)!r} here); "
                    "choose another --out"
                )

    def _check(self) -> None:
        keys = [dimension.key for dimension in self.search]
        for number, dimension in enumerate(self.search):
            group, _, key = dimension.key.partition(".")
            if group == "run" and key in ("seed", "stop_env_steps"):
                raise ConfigError(f"search.{dimension.key}: " + (
                    "list seeds in tune.seeds" if key == "seed" else "all candidates train for as many env steps"
                ))  # fmt: skip
            for other in dimension.when:
                if other in keys[number:]:
                    raise ConfigError(f"search.{dimension.key}.when: {other} must be searched before it")
                if other not in keys and get_key(self.base, other) is None and other not in _flat(self.base):
                    raise ConfigError(f"search.{dimension.key}.when: {other!r} is no config key")
            for value in dimension.values:
                HyperMARLConfig.from_groups(self.groups({dimension.key: value}))
        kinds = {dimension.kind == "grid" for dimension in self.search}
        if len(kinds) > 1:
            raise ConfigError("search: grid beside other kinds; write choice to sample from values, or grid everywhere")
        settings = self.settings
        if settings.metric.startswith("evaluation/") and not self.base["evaluation"]["evaluation_interval"]:
            raise ConfigError(f"tune.metric is {settings.metric}, but evaluation.evaluation_interval is not set")
        if settings.scheduler == "pbt" and (self.is_grid or any(dimension.when for dimension in self.search)):
            raise ConfigError(
                "tune.scheduler: pbt mutates sampled keys that all candidates have; leave out grid and when"
            )
        if settings.scheduler == "pbt" and settings.candidates < 4:
            raise ConfigError(f"tune.candidates is {settings.candidates}: pbt needs a population of 4 or more")

    @property
    def is_grid(self) -> bool:
        return self.search[0].kind == "grid"

    def groups(self, params: Params) -> dict[str, Any]:
        """The config of a candidate, as nested groups."""
        return with_params(self.base, params)

    def suggest(self, trial: optuna.Trial) -> Params:
        """Draws a candidate, key by key."""
        params: Params = {}
        for dimension in self.search:
            if dimension.applies(params, self.base):
                params[dimension.key] = dimension.suggest(trial)
        return params

    def design(self) -> list[Params] | None:
        """All candidates in Optuna's values, where they do not depend on results; None where they do (TPE)."""
        if self.is_grid:
            return list(self._grid({}, self.search))
        if self.settings.sampler == "tpe" and self.settings.scheduler != "pbt":
            return None
        # One stream from the first candidate on, so that a sweep that is extended or taken up again has the same.
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=self.settings.sampler_seed))
        trials = [study.ask() for _ in range(self.settings.candidates)]
        for trial in trials:
            self.suggest(trial)
        return [dict(trial.params) for trial in trials]

    def _grid(self, params: Params, left: Sequence[Dimension]) -> Iterator[Params]:
        if not left:
            yield {key: _encoded(value) for key, value in params.items()}
            return
        dimension, rest = left[0], left[1:]
        values = dimension.values if dimension.applies(params, self.base) else [None]
        for value in values:
            more = {dimension.key: value} if dimension.applies(params, self.base) else {}
            yield from self._grid({**params, **more}, rest)


def with_params(base: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """A config's groups with other values for some keys.

    Raises:
        ConfigError: there is no such key.
    """
    groups = copy.deepcopy(dict(base))
    for key, value in params.items():
        group, *rest = key.split(".")
        if group not in (*GROUPS, *TOP_LEVEL) or (group in GROUPS and len(rest) != 1):
            valid = [*TOP_LEVEL, *(f"{g}.{k}" for g, ks in GROUPS.items() for k in ks)]
            raise ConfigError(f"search.{key}: no such config key; {nearest(key, valid)}")
        target, path = groups, [group, *rest]
        for part in path[:-1]:
            target = target.setdefault(part, {})
        target[path[-1]] = value
    return groups


def _encoded(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value)


def get_key(groups: Mapping[str, Any], key: str) -> Any:
    """The value of `group.key` in nested groups; None where there is none."""
    for part in key.split("."):
        groups = groups.get(part) if isinstance(groups, Mapping) else None  # type: ignore[assignment]
    return groups


def _flat(groups: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in groups.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _explained(error: pydantic.ValidationError) -> str:
    item = error.errors()[0]
    key = ".".join(str(part) for part in item["loc"] if not (isinstance(part, str) and "[" in part))
    if item["type"] == "extra_forbidden":
        return f"unknown key 'tune.{key}': {nearest(key, list(Settings.model_fields))}"
    return f"tune.{key} is {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
