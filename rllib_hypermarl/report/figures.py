"""Pictures of a report's numbers: legible in grey (line styles, markers) and without red or green (Okabe and Ito)."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .statistics import ENOUGH

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, without yellow, which paper swallows."""
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_SCALES = {"env_steps": (1e6, "env steps, millions"), "seconds": (60.0, "minutes of training")}
FONT = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
_CONFIDENCE = "shaded: 95 % interval over seeds"


def task_figures(task: Mapping[str, Any], threshold: float | None) -> dict[str, bytes]:
    """The figures of one task, as PNGs by name; those that it has no numbers for are left out."""
    with matplotlib.rc_context(FONT):
        drawn = {
            "curves": _curves(task["groups"], threshold),
            "final": _finals(task["groups"], threshold),
            "metrics": _metrics(task["groups"]),
            "embeddings": _embeddings(task["groups"]),
        }
        return {name: png(figure) for name, figure in drawn.items() if figure is not None}


def name_of(group: Mapping[str, Any]) -> str:
    """A group's label, with what a reader must know of its seeds."""
    seeds = len(group["seeds"])
    few = f" ({seeds} seed{'s' * (seeds > 1)})" if seeds < ENOUGH else ""
    return f"{group['label']}{few}{'' if group['finished'] else ', unfinished'}"


def style(index: int) -> dict[str, Any]:
    """Of the group at this place: no two of 28 share colour and line style."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": _LINES[index % len(_LINES)]}


def marker(index: int) -> str:
    return _MARKERS[index % len(_MARKERS)]


def _curves(groups: Sequence[Mapping[str, Any]], threshold: float | None) -> Figure | None:
    """Greedy and sampled returns, each over env steps and over wall-clock."""
    kinds = [kind for kind in ("greedy", "sampled") if any(g["curves"][kind]["env_steps"] for g in groups)]
    if not kinds:
        return None
    figure = Figure(figsize=(10, 3.3 * len(kinds) + 0.25 * len(groups)), layout="constrained")
    grid = figure.subplots(len(kinds), 2, squeeze=False, sharey="row")
    for row, kind in zip(grid, kinds, strict=True):
        for axes, over in zip(row, _SCALES, strict=True):
            for index, group in enumerate(groups):
                _line(axes, group["curves"][kind][over], over, index, name_of(group))
            if threshold is not None:
                axes.axhline(threshold, color="0.5", linewidth=0.8)
            _label(axes, over)
        row[0].set_ylabel(f"return per agent, {kind}")
    legend(figure, grid[0][0])
    return figure


def _metrics(groups: Sequence[Mapping[str, Any]]) -> Figure | None:
    """One panel for each metric that was measured on networks."""
    names = list(dict.fromkeys(name for group in groups for name, curve in group["metrics"].items() if curve))
    if not names:
        return None
    rows = (len(names) + 1) // 2
    figure = Figure(figsize=(10, 2.8 * rows + 0.25 * len(groups)), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.remove()
    for axes, name in zip(grid.flat, names, strict=False):
        for index, group in enumerate(groups):
            _line(axes, group["metrics"].get(name), "env_steps", index, name_of(group))
        _label(axes, "env_steps")
        axes.set_ylabel(name)
    legend(figure, grid[0][0])
    return figure


def _embeddings(groups: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Maps of learned embeddings, from where they were first measured to where they were last: the two directions in
    which they differ most."""
    known = [group for group in groups if group["embeddings"] is not None]
    if not known:
        return None
    rows = (len(known) + 2) // 3
    figure = Figure(figsize=(10, 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, 3, squeeze=False)
    for axes in grid.flat[len(known) :]:
        axes.remove()
    for axes, group in zip(grid.flat, known, strict=False):
        found = group["embeddings"]
        first, last = (np.array(found[name]["values"], dtype=float) for name in ("first", "last"))
        both = np.concatenate([first, last])
        centre = both.mean(axis=0)
        _, lengths, directions = np.linalg.svd(both - centre, full_matrices=False)
        shares = np.append(lengths**2 / max((lengths**2).sum(), 1e-12), 0.0)
        plane = np.zeros((both.shape[1], 2))
        plane[:, : min(2, len(directions))] = directions[:2].T
        for index, (start, end) in enumerate(zip((first - centre) @ plane, (last - centre) @ plane, strict=True)):
            axes.plot(*zip(start, end, strict=True), color="0.6", linewidth=0.8)
            axes.plot(*end, marker(index), color=style(index)["color"], markersize=6)
            axes.annotate(found["policies"][index], end, (4, 4), textcoords="offset points", fontsize=7)
        axes.set_title(f"{group['label']}, seed {found['seed']}", fontsize=8)
        axes.set_xlabel(f"{shares[0]:.0%} of the variance")
        axes.set_ylabel(f"{shares[1]:.0%}")
        axes.set_aspect("equal", adjustable="datalim")
        axes.grid(alpha=0.25)
    return figure


def _line(axes: Axes, curve: Mapping[str, Any] | None, over: str, index: int, label: str) -> None:
    if curve is None:
        axes.plot([], [], label=label, **style(index))
        return
    xs = [x / _SCALES[over][0] for x in curve["x"]]
    every = max(1, len(xs) // 8)
    dots = {"marker": marker(index), "markersize": 3.5, "markevery": every}
    axes.plot(xs, curve["iqm"], label=label, linewidth=1.3, **dots, **style(index))
    if curve["low"][0] is not None:
        edges = {**style(index), "linewidth": 0.4, "alpha": 0.7}
        axes.fill_between(xs, curve["low"], curve["high"], color=style(index)["color"], alpha=0.15, linewidth=0)
        axes.plot(xs, curve["low"], **edges)
        axes.plot(xs, curve["high"], **edges)


def _label(axes: Axes, over: str) -> None:
    axes.set_xlabel(_SCALES[over][1])
    axes.grid(alpha=0.25)


def legend(figure: Figure, axes: Axes, intervals: str = _CONFIDENCE) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 1 if max(len(label) for label in labels) > 60 else 2 if len(labels) > 3 else len(labels)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=f"IQM; {intervals}")


def _finals(groups: Sequence[Mapping[str, Any]], threshold: float | None) -> Figure | None:
    """Where finished groups ended: IQM, interval and each run."""
    kinds = [kind for kind in ("greedy", "evaluated") if any(group["final"][kind] for group in groups)]
    if not kinds:
        return None
    done = [(i, group) for i, group in enumerate(groups) if any(group["final"][kind] for kind in kinds)]
    figure = Figure(figsize=(10, 1.2 + 0.45 * len(done)), layout="constrained")
    axes = figure.subplots()
    for place, (index, group) in enumerate(done):
        for kind, offset in zip(kinds, (0.0, 0.25), strict=False):
            final = group["final"][kind]
            if final is None:
                continue
            y, colour = place + offset, style(index)["color"]
            axes.plot(final["values"], [y] * len(final["values"]), "|", color="0.45", markersize=9)
            if final["low"] is not None:
                axes.plot([final["low"], final["high"]], [y, y], color=colour, linewidth=2.2)
            shape = {"color": colour, "markersize": 7, "markerfacecolor": colour if kind == "greedy" else "white"}
            axes.plot(final["iqm"], y, marker(index), **shape)
        if group["reference"] is not None:
            axes.plot(group["reference"]["value"], place - 0.25, "k*", markersize=7)
    if threshold is not None:
        axes.axvline(threshold, color="0.5", linewidth=0.8)
    axes.set_yticks(range(len(done)), [textwrap.fill(name_of(group), 60) for _, group in done])
    axes.set_ylim(len(done) - 0.4, -0.6)
    axes.grid(alpha=0.25, axis="x")
    hollow = "; hollow: `evaluate` of the last networks" if "evaluated" in kinds else ""
    star = "; star: figures of others" if any(group["reference"] for _, group in done) else ""
    # Of the figure, not of the axes, which long labels leave little room.
    figure.supxlabel(f"last greedy return per agent: IQM, 95 % interval, and each run{hollow}{star}", size="medium")
    return figure


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return file.getvalue()
