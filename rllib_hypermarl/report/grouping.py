"""Which runs are seeds of one experiment, and what to call it: by what differs in their configs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .store import Run

_ALIKE = (
    "run.seed", "run.checkpoint_seconds", "run.milestone_env_steps", "run.metrics_interval", "run.max_failures",
    "run.torch_threads", "env_runners.sample_timeout_s", "fault_tolerance.", "resources.",
)  # fmt: skip
"""Keys, and groups of keys, in which the seeds of one experiment may differ."""
_GENERATED = {
    "hypermarl.context": {"hyper_mlp", "hyper_linear"},
    "hypermarl.hypernet_": {"hyper_mlp"},
}
"""Keys, and groups of keys, that change nothing but where weights come from one of these."""
_EMBEDDED = {None: {"hyper_mlp"}, "embedding": {"hyper_mlp", "hyper_linear"}}
"""`hypermarl.context` -> who reads embeddings then."""
_SHARINGS = ("hypermarl.sharing", "hypermarl.critic_sharing", "hypermarl.memory_encoder_sharing")
_TASK = ("env", "env_config.")


@dataclasses.dataclass(frozen=True)
class Group:
    """The runs of one config.

    Attributes:
        label: its values of the keys in which the groups of its task differ.
        config: those keys and values.
        runs: by seed; all finished, or none.
    """

    label: str
    config: dict[str, Any]
    runs: list[Run]

    @property
    def finished(self) -> bool:
        return self.runs[0].finished


@dataclasses.dataclass(frozen=True)
class Task:
    """The groups that play one env with one env_config."""

    name: str
    env: str
    env_config: dict[str, Any]
    groups: list[Group]


def group_runs(runs: Sequence[Run]) -> tuple[list[Task], list[dict[str, str]]]:
    """Sorts runs into tasks and groups.

    A run whose seed and config another one has already says nothing new, and is left out; so is an unfinished run of
    a group that has finished ones. Configs that differ in what changes nothing are one.

    Returns:
        The tasks, and of the runs that are left out `run`, its name, and `why`.
    """
    left_out = []
    tasks: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        kept = {key: value for key, value in run.config.items() if _counts(key, run.config)}
        task = {key: value for key, value in kept.items() if _is_task(key)}
        groups = tasks.setdefault(_identity(task), {})
        groups.setdefault(_identity(kept), []).append(run)
    made = []
    task_labels = labels([next(iter(groups.values()))[0].config for groups in tasks.values()], only_task=True)
    for groups, (task_label, _) in zip(tasks.values(), task_labels, strict=True):
        chosen = []
        for members in groups.values():
            members, others = _independent(members)
            chosen.append(members)
            left_out += others
        named = labels([members[0].config for members in chosen])
        first = chosen[0][0].config
        made.append(
            Task(
                f"{first['env']} {task_label}".strip(),
                first["env"],
                {key.partition(".")[2]: value for key, value in first.items() if key.startswith("env_config.")},
                [Group(label, config, members) for (label, config), members in zip(named, chosen, strict=True)],
            )
        )
    return made, left_out


def _independent(runs: list[Run]) -> tuple[list[Run], list[dict[str, str]]]:
    """Of the runs of one config, those that count."""
    by_seed: dict[Any, Run] = {}
    left_out = []
    for run in sorted(runs, key=lambda run: (not run.finished, run.name)):
        if run.seed is not None and run.seed in by_seed:
            left_out.append({"run": run.name, "why": f"has the config and the seed of {by_seed[run.seed].name}"})
        else:
            by_seed[run.seed if run.seed is not None else run.name] = run
    kept = list(by_seed.values())
    if any(run.finished for run in kept):
        stop = kept[0].config["run.stop_env_steps"]
        left_out += [
            {"run": run.name, "why": f"is unfinished: {run.env_steps:,} of {stop:,} env steps"}
            for run in kept
            if not run.finished
        ]
        kept = [run for run in kept if run.finished]
    return sorted(kept, key=lambda run: (run.seed is None, run.seed or 0, run.name)), left_out


def labels(configs: Sequence[Mapping[str, Any]], only_task: bool = False) -> list[tuple[str, dict[str, Any]]]:
    """Per config, a label of the keys in which the configs differ, and those keys with its values.

    Args:
        only_task: label by the keys of the env_config alone, among configs of one env.
    """
    found = []
    for config in configs:
        others = [other for other in configs if other["env"] == config["env"]]
        keys = dict.fromkeys(key for other in others for key in other)
        differing = [
            key
            for key in keys
            if _is_task(key) == only_task
            and _counts(key, config)
            and len({_identity(other.get(key)) for other in others if _counts(key, other)}) > 1
        ]
        if not differing and not only_task:
            differing = ["hypermarl.sharing"]
        short = [key.rpartition(".")[2] for key in differing]
        names = [name if short.count(name) == 1 else key for name, key in zip(short, differing, strict=True)]
        text = " ".join(f"{name}={_text(config.get(key))}" for name, key in zip(names, differing, strict=True))
        found.append((text, {key: config.get(key) for key in differing}))
    return found


def _counts(key: str, config: Mapping[str, Any]) -> bool:
    """Whether the key's value tells this config's experiment from others."""
    sharings = {config.get(name) for name in _SHARINGS}
    if key == "hypermarl.embedding_dim":
        return bool(sharings & _EMBEDDED.get(config.get("hypermarl.context"), set()))
    return not key.startswith(_ALIKE) and all(
        sharings & needed for start, needed in _GENERATED.items() if key.startswith(start)
    )


def _is_task(key: str) -> bool:
    return key == _TASK[0] or key.startswith(_TASK[1])


def _identity(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _text(value: Any) -> str:
    """A value in a label: without spaces, which part keys, and commas, which other tools part labels at."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list) and all(isinstance(item, list) for item in value):  # a schedule
        return ";".join(":".join(map(_text, item)) for item in value)
    if isinstance(value, list):
        return "x".join(_text(item) for item in value)
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(";", ":")).replace('"', "").replace(" ", "")
