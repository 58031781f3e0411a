"""All numbers of a report, as `report.json` has them. Figures and page are made of these alone."""

from __future__ import annotations

import statistics as median_of
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from .grouping import Group, Task
from .reference import Reference
from .statistics import CONFIDENCE, REPS, curve, estimate, plain, to_threshold
from .store import ENV_STEPS, GREEDY, PARAMETERS, SAMPLED, SECONDS, THROUGHPUT, Run


def report_numbers(
    tasks: Sequence[Task],
    left_out: Sequence[Mapping[str, str]],
    threshold: float | None = None,
    until: int | None = None,
    reference: Reference | None = None,
) -> dict[str, Any]:
    """Everything that a report says. The same runs give the same numbers, to the last byte.

    Args:
        left_out: `run` and `why` of runs that do not count.
        threshold: the greedy return whose first crossing is looked for; None: none is.
        until: env steps after which nothing counts; None: all of it does.
        reference: figures of others, which stand beside the groups they fit.
    """
    return {
        "return": "mean over agents of an episode's return",
        "aggregate": f"interquartile mean over seeds, {CONFIDENCE:.0%} stratified bootstrap interval, {REPS} resamples",
        "threshold": threshold,
        "until": until,
        "reference": None if reference is None else reference.name,
        "tasks": [
            {
                "name": task.name,
                "env": task.env,
                "env_config": task.env_config,
                "groups": [_group_numbers(group, threshold, reference) for group in task.groups],
            }
            for task in tasks
        ],
        "runs": [_run_numbers(run, task, group) for task in tasks for group in task.groups for run in group.runs],
        "left_out": sorted(left_out, key=lambda entry: entry["run"]),
    }


def _group_numbers(group: Group, threshold: float | None, reference: Reference | None) -> dict[str, Any]:
    greedy, sampled = ([run.series(metric) for run in group.runs] for metric in (GREEDY, SAMPLED))
    finals = {
        "greedy": [_last(run, GREEDY) for run in group.runs],
        "sampled": [_last(run, SAMPLED) for run in group.runs],
        "evaluated": [run.evaluation for run in group.runs],
    }
    measured = dict.fromkeys(metric for run in group.runs for metric in run.metrics())
    return {
        "label": group.label,
        "config": group.config,
        "finished": group.finished,
        "seeds": [run.seed for run in group.runs],
        "env_steps": min(run.env_steps for run in group.runs),
        "parameters": plain(group.runs[0].rows[0].get(PARAMETERS, float("nan"))),
        "final": {name: estimate(values) if group.finished else None for name, values in finals.items()},
        "reference": None if reference is None else reference.beside(group.runs[0].config),
        "to_threshold": None if threshold is None or not group.finished else to_threshold(greedy, threshold),
        "seconds": plain(median_of.median(run.rows[-1][SECONDS] for run in group.runs)),
        "env_steps_per_second": plain(median_of.median(_throughput(run) for run in group.runs)),
        "curves": {
            name: {over: curve(series, over) for over in ("env_steps", "seconds")}
            for name, series in (("greedy", greedy), ("sampled", sampled))
        },
        "metrics": {
            metric.partition("/")[2]: curve([run.series(metric) for run in group.runs], "env_steps")
            for metric in measured
        },
        "embeddings": _embeddings(group.runs),
    }


def _embeddings(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Of the first run that has some: two seeds' embeddings have no directions in common to average."""
    found = next(((run.seed, kept) for run in runs if (kept := run.embeddings()) is not None), None)
    if found is None:
        return None
    seed, kept = found
    for name in ("first", "last"):
        kept[name]["values"] = [[plain(x) for x in row] for row in kept[name]["values"]]
    return {"seed": seed, **kept}


def _run_numbers(run: Run, task: Task, group: Group) -> dict[str, Any]:
    return {
        "run": run.name,
        "task": task.name,
        "group": group.label,
        "seed": run.seed,
        "finished": run.finished,
        "env_steps": run.env_steps,
        "seconds": plain(run.rows[-1][SECONDS]),
        "greedy": _plain_or_none(_last(run, GREEDY)),
        "sampled": _plain_or_none(_last(run, SAMPLED)),
        "command": f"python -m rllib_hypermarl train {PurePosixPath(run.name) / 'config.yaml'}",
    }


def _last(run: Run, metric: str) -> float | None:
    return next((row[metric] for row in reversed(run.rows) if metric in row), None)


def _plain_or_none(value: float | None) -> float | None:
    return None if value is None else plain(value)


def _throughput(run: Run) -> float:
    """Median over iterations; of a run that did not measure it, env steps over seconds."""
    values = [row[THROUGHPUT] for row in run.rows if THROUGHPUT in row]
    return median_of.median(values) if values else run.rows[-1][ENV_STEPS] / max(run.rows[-1][SECONDS], 1e-9)
