"""Runs in the JSON that marl-eval reads (https://github.com/instadeepai/marl-eval, id-marl-eval 0.0.4).

    environment -> task -> algorithm -> run -> step_0, step_1, ..., absolute_metrics -> metric -> list of values

Its reader takes one environment at a time, and wants every algorithm in every task, with equally many runs and steps.
So an environment here is one env (`vmas_dispersion`), its tasks are the env_configs it was played with, algorithms are
the report's groups, and what only some of them have is cut off. Steps are greedy evaluations. `absolute_metrics` is the
evaluation by hand of the last networks where all runs of the environment have one, else the last greedy evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .grouping import Group, Task
from .statistics import plain, shared_grid
from .store import GREEDY, Run

_METRIC = "return"  # one word: its reader parts names at underscores


def marl_eval_data(tasks: Sequence[Task]) -> tuple[dict[str, Any], list[str]]:
    """The data, and a line for each thing that had to be cut off."""
    data: dict[str, Any] = {}
    notes = []
    by_env: dict[str, list[Task]] = {}
    for task in tasks:
        by_env.setdefault(task.env, []).append(task)
    for env, members in by_env.items():
        groups = {task.name: {g.label: g for g in task.groups if g.finished and _evaluated(g)} for task in members}
        groups = {name: found for name, found in groups.items() if found}
        shared = [label for label in next(iter(groups.values()), {}) if all(label in g for g in groups.values())]
        if not shared:
            notes.append(f"{env}: no group is finished and evaluated in all of its tasks")
            continue
        dropped = sorted({label for found in groups.values() for label in found if label not in shared})
        if dropped:
            notes.append(f"{env}: without {'; '.join(dropped)}, which are not in all of its tasks")
        chosen = {name: {label: _evaluated(found[label]) for label in shared} for name, found in groups.items()}
        counts = [len(runs) for found in chosen.values() for runs in found.values()]
        if len(set(counts)) > 1:
            notes.append(f"{env}: the first {min(counts)} of up to {max(counts)} seeds of each group")
        chosen = {name: {label: r[: min(counts)] for label, r in found.items()} for name, found in chosen.items()}
        data[env.replace("/", "_")] = _environment(env, chosen)
    return data, notes


def _evaluated(group: Group) -> list[Run]:
    return [run for run in group.runs if len(run.series(GREEDY).values)]


def _environment(env: str, chosen: dict[str, dict[str, list[Run]]]) -> dict[str, Any]:
    runs = [run for found in chosen.values() for members in found.values() for run in members]
    grid = shared_grid([run.series(GREEDY).env_steps for run in runs])
    by_hand = all(run.evaluation is not None for run in runs)
    return {
        task.removeprefix(env).strip() or env.rpartition("/")[2]: {
            label: {f"run_{i}": _steps(run, grid, by_hand) for i, run in enumerate(members)}
            for label, members in found.items()
        }
        for task, found in chosen.items()
    }


def _steps(run: Run, grid: np.ndarray, by_hand: bool) -> dict[str, Any]:
    series = run.series(GREEDY)
    values = np.interp(grid, series.env_steps, series.values)
    steps = {
        f"step_{i}": {"step_count": int(x), _METRIC: [plain(value)]}
        for i, (x, value) in enumerate(zip(grid, values, strict=True))
    }
    absolute = run.evaluation if by_hand else series.values[-1]
    return {**steps, "absolute_metrics": {_METRIC: [plain(absolute)]}}
