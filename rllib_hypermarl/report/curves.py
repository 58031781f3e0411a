"""Learning curves of runs: one picture and the numbers behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SAMPLED = "env_runners/agent_return_mean"
GREEDY = "evaluation/env_runners/agent_return_mean"


def read_curve(run_dir: Path) -> dict[str, Any]:
    """Env steps, seconds and returns of a run, from its `result.json`.

    Returns:
        `run`, `seed`, and equally long lists `env_steps`, `seconds`, `sampled` (mean over agents of the return of
        recent training episodes) and `greedy` (the same of evaluation episodes; None where there was none).

    Raises:
        FileNotFoundError: no results there.
    """
    path = run_dir / "result.json"
    if not path.exists():
        raise FileNotFoundError(f"{run_dir}: holds no result.json")
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # a last line that a kill cut
            break
    return {
        "run": str(run_dir),
        "env_steps": [int(row["num_env_steps_sampled_lifetime"]) for row in rows],
        "seconds": [round(row["time_total_s"], 2) for row in rows],
        "sampled": [_get(row, SAMPLED) for row in rows],
        "greedy": [_get(row, GREEDY) for row in rows],
    }


def plot_curves(curves: list[dict[str, Any]], path: Path) -> None:
    """Draws all curves into one PNG: returns of training episodes as lines, of greedy evaluations as dots."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for index, curve in enumerate(curves):
        color = f"C{index % 10}"
        steps = [x / 1e6 for x in curve["env_steps"]]
        axes.plot(*_present(steps, curve["sampled"]), color=color, alpha=0.5, linewidth=1)
        axes.plot(*_present(steps, curve["greedy"]), "o-", color=color, markersize=3, label=Path(curve["run"]).name)
    axes.set_xlabel("env steps, millions")
    axes.set_ylabel("return, mean over agents")
    axes.grid(alpha=0.3)
    axes.legend(title="greedy evaluation (line: training)", loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _present(steps: list[float], values: list[float | None]) -> tuple[list[float], list[float]]:
    pairs = [(x, y) for x, y in zip(steps, values, strict=True) if y is not None]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _get(row: dict[str, Any], key: str) -> float | None:
    value: Any = row
    for part in key.split("/"):
        value = value.get(part, {})
    return round(value, 4) if isinstance(value, float) else None
