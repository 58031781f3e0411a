"""A report on runs: numbers, page, figures, and the file for marl-eval."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ReportError
from .across import figure_over
from .figures import task_figures
from .grouping import group_runs
from .marl_eval import marl_eval_data
from .numbers import report_numbers
from .page import render
from .reference import Reference
from .store import keep, read_runs


def write_report(
    directories: Sequence[tuple[str, Path]],
    out: Path,
    *,
    threshold: float | None = None,
    until: int | None = None,
    over: str | None = None,
    beside: Path | None = None,
    store: Path | None = None,
) -> tuple[list[Path], dict[str, Any]]:
    """Reads the runs at or below some directories, and writes the report on them into `out`.

    Args:
        directories: of each, what the user calls it (a path or a URI), and where it is.
        threshold: a greedy return; the report says when it was first reached.
        until: env steps after which nothing of a run counts: those of other budgets are compared at equal steps.
        beside: a YAML file of figures of others (`Reference`).
        over: a key of env_config, a number; draws final returns over it.
        store: a directory to also write down what was read of the runs that count: a report on it is this report.

    Returns:
        What was written, the page first; and the report's numbers.

    Raises:
        ReportError: no run can be read, rliable is missing, or the report cannot be written.
    """
    reference = None if beside is None else Reference.from_yaml(beside)
    runs, broken = read_runs(directories)
    tasks, others = group_runs(runs if until is None else [run.until(until) for run in runs])
    left_out = broken + others
    numbers = report_numbers(tasks, left_out, threshold, until, reference)
    for_marl_eval, notes = marl_eval_data(tasks)
    images = [task_figures(task, threshold) for task in numbers["tasks"]]
    across = {} if over is None else {f"over_{_slug(over)}": figure_over(numbers["tasks"], over)}
    files: dict[str, bytes] = {
        "report.html": render(numbers, images, notes, across).encode(),
        "report.json": _json(numbers),
        "marl_eval.json": _json(for_marl_eval),
    }
    files |= {f"{name}.png": png for name, png in across.items()}
    for task, drawn in zip(numbers["tasks"], images, strict=True):
        prefix = f"{_slug(task['name'])}_" if len(images) > 1 else ""
        files |= {f"{prefix}{name}.png": png for name, png in drawn.items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (out / name).write_bytes(content)
        if store is not None:
            for run in [run for task in tasks for group in task.groups for run in group.runs]:
                keep(run, store)
    except OSError as error:
        raise ReportError(f"{error.filename}: cannot be written ({error.strerror})") from error
    return [out / name for name in files], numbers


def _json(data: object) -> bytes:
    """Lists of plain values are on one line each."""
    text = json.dumps(data, indent=1)
    on_one_line = re.sub(r"\[\n *([^][{}]*)\n *\]", lambda found: "[" + re.sub(r"\n *", " ", found[1]) + "]", text)
    return (on_one_line + "\n").encode()


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name.rpartition("/")[2]).strip("_")
