"""Final returns across tasks: over a number in which their envs differ, the number of agents say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import ReportError
from .figures import FONT, legend, marker, png, style

_Tasks = Sequence[Mapping[str, Any]]
_BESIDE = 0.06  # octaves between the intervals of two lines


def figure_over(tasks: _Tasks, key: str) -> bytes:
    """Final greedy returns over a number of env_config, as a PNG: a panel for all tasks that are alike but for it.

    Args:
        tasks: of a report's numbers.
        key: of env_config, `n_agents` say.

    Raises:
        ReportError: no two tasks differ in it alone, or it is no number.
    """
    panels = _panels(tasks, key)
    drawn = [task for found in panels.values() for task in found]
    if not drawn or not all(type(task["env_config"][key]) in (int, float) for task in drawn):
        raise ReportError(f"--over {key}: no two tasks differ in this number of env_config alone")
    names = list(dict.fromkeys(_name(task, group) for task in drawn for group in task["groups"]))
    with matplotlib.rc_context(FONT):
        rows = (len(panels) + 1) // 2
        figure = Figure(figsize=(10, 3.4 * rows + 0.25 * len(names)), layout="constrained")
        grid = figure.subplots(rows, 2, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        for axes, (title, found) in zip(grid.flat, panels.items(), strict=False):
            for index, name in enumerate(names):
                _line(axes, found, key, name, index, len(names))
            ticks = sorted(task["env_config"][key] for task in found)
            if ticks[0] > 0:
                axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            axes.set_xlabel(key)
            axes.set_ylabel("last greedy return per agent")
            axes.set_title(title)
            axes.grid(alpha=0.25)
        stars = any(group["reference"] for task in drawn for group in task["groups"])
        legend(figure, grid[0][0], f"bars: 95 % interval over seeds{'; stars: figures of others' if stars else ''}")
        return png(figure)


def _panels(tasks: _Tasks, key: str) -> dict[str, list[Mapping[str, Any]]]:
    """Tasks that are alike but for the key, two or more, by what tells them from the others of their env."""
    alike: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for task in tasks:
        if key in task["env_config"]:
            rest = {name: value for name, value in task["env_config"].items() if name != key}
            alike.setdefault((task["env"], json.dumps(rest, sort_keys=True)), []).append(task)
    panels = {}
    for (env, rest), found in alike.items():
        others = [json.loads(other) for name, other in alike if name == env]
        own = {k: v for k, v in json.loads(rest).items() if any(other.get(k) != v for other in others)}
        if len(found) > 1:
            panels[" ".join([env, *(f"{k}={v}" for k, v in own.items())])] = found
    return panels


def _name(task: Mapping[str, Any], group: Mapping[str, Any]) -> str:
    """What a group is called in all tasks: its sharing mode where that tells them apart, since sizes may go with n."""
    modes = [other["config"].get("hypermarl.sharing") for other in task["groups"]]
    return group["label"] if None in modes or len(set(modes)) < len(modes) else group["config"]["hypermarl.sharing"]


def _line(axes: Axes, tasks: _Tasks, key: str, name: str, index: int, count: int) -> None:
    """One group's returns and intervals, and others' figures of it. Args: index: of it among `count`, side by side."""
    groups = [
        (task["env_config"][key] * 2 ** (_BESIDE * (index - (count - 1) / 2)), group)
        for task in sorted(tasks, key=lambda task: task["env_config"][key])
        for group in task["groups"]
        if _name(task, group) == name
    ]
    finals = [(x, final) for x, group in groups if (final := group["final"]["evaluated"] or group["final"]["greedy"])]
    xs, means = [x for x, _ in finals], [final["iqm"] for _, final in finals]
    axes.plot(xs, means, label=name, marker=marker(index), markersize=4, linewidth=1.2, **style(index))
    theirs = [(x, group["reference"]["value"]) for x, group in groups if group["reference"]]
    stars = {"marker": "*", "markersize": 8, "markeredgecolor": "black", "markeredgewidth": 0.5, "linewidth": 0.5}
    axes.plot([x for x, _ in theirs], [value for _, value in theirs], **stars, **style(index))
    for x, final in finals:
        if final["low"] is not None:
            axes.plot([x, x], [final["low"], final["high"]], color=style(index)["color"], linewidth=1.0)
