"""What a sweep leaves behind: a ranked table, the best config and its checkpoint, and a page of plots."""

from __future__ import annotations

import base64
import html
import io
import json
import shutil
import statistics
import warnings
from typing import Any

import optuna
import yaml
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from ..rllib import checkpoints
from ..rllib.config import HyperMARLConfig
from ..storage import Storage
from .candidate import run_storage
from .spec import Sweep
from .study import ENV_STEPS, ERROR, SEED_VALUES, STUDY_FILE, STUDY_NAME, candidate_of, candidates, decoded

STATES = {
    TrialState.COMPLETE: "done", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed", TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
}  # fmt: skip


def rank(sweep: Sweep, study: optuna.Study) -> list[dict[str, Any]]:
    """All candidates as rows: trained to the end, then pruned ones, the furthest first, then all others."""
    maximise = sweep.settings.mode == "max"

    def order(trial: FrozenTrial) -> tuple:
        value = 0.0 if trial.value is None else -trial.value if maximise else trial.value
        complete, pruned = (trial.state == state for state in (TrialState.COMPLETE, TrialState.PRUNED))
        return not complete, not pruned, -trial.user_attrs.get(ENV_STEPS, 0) if pruned else 0, value

    rows = []
    for trial in sorted(candidates(study).values(), key=order):
        seeds = trial.user_attrs.get(SEED_VALUES, [])
        row = {
            "candidate": candidate_of(trial), "state": STATES[trial.state], "value": trial.value, "seeds": seeds,
            "env_steps": trial.user_attrs.get(ENV_STEPS), "params": decoded(sweep, trial),
        }  # fmt: skip
        if ERROR in trial.user_attrs:
            row["error"] = trial.user_attrs[ERROR]
        rows.append(row)
    return rows


def write_results(sweep: Sweep, study: optuna.Study, storage: Storage) -> None:
    """Writes `ranking.json`, `best.yaml`, `best/` (a run directory) and `index.html`."""
    rows, directory = rank(sweep, study), storage.path
    (directory / "ranking.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if rows and rows[0]["state"] == "done":
        _write_best(sweep, rows[0], storage)
    (directory / "index.html").write_text(_page(sweep, study, rows), encoding="utf-8")


def _write_best(sweep: Sweep, row: dict[str, Any], storage: Storage) -> None:
    """The best candidate's config, and of its runs the one with the best seed."""
    settings, directory = sweep.settings, storage.path
    best = max if settings.mode == "max" else min
    seed = best(zip(row["seeds"], settings.seeds, strict=True))[1]
    spread = f", standard deviation {statistics.stdev(row['seeds']):.4g}" if len(row["seeds"]) > 1 else ""
    header = (
        f"# Best of {settings.candidates if not sweep.is_grid else 'all'} candidates of a sweep: {settings.metric} "
        f"{row['value']:.4g}\n# ({settings.aggregate} over seeds {list(settings.seeds)}{spread}) after "
        f"{row['env_steps']:,} env steps.\n"
    )
    config = HyperMARLConfig.from_groups(sweep.groups(row["params"]))
    (directory / "best.yaml").write_text(header + config.to_yaml(), encoding="utf-8")
    run = run_storage(storage, row["candidate"], seed)
    run.fetch()
    target, aside = directory / "best", directory / ".best"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(run.path, aside, ignore=shutil.ignore_patterns(".*", "events.out.*"))
    run.discard()
    for old in checkpoints.list_checkpoints(aside)[:-1]:
        shutil.rmtree(old)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)


def table(rows: list[dict[str, Any]], limit: int = 20) -> Table:
    """The best rows for a terminal."""
    keys = list(dict.fromkeys(key for row in rows for key in row["params"]))
    short_keys = [key.rsplit(".", 1)[-1] for key in keys]
    made = Table("", "candidate", "value", "over seeds", "env steps", *(
        name if short_keys.count(name) == 1 else key for name, key in zip(short_keys, keys, strict=True)
    ))  # fmt: skip
    for place, row in enumerate(rows[:limit], start=1):
        value = row["state"] if row["value"] is None else f"{row['value']:.4g}"
        seeds = f"{min(row['seeds']):.4g} to {max(row['seeds']):.4g}" if row["seeds"] else row.get("error", "")[:60]
        steps = "" if row["env_steps"] is None else f"{row['env_steps']:,}"
        steps += " (pruned)" if row["state"] == "pruned" else ""
        cells = [short(row["params"].get(key, "")) for key in keys]
        made.add_row(str(place), f"{row['candidate']:04d}", value, seeds, steps, *cells)
    return made


def short(value: Any) -> str:
    """A parameter for people."""
    return (
        f"{value:.3g}"
        if isinstance(value, float)
        else json.dumps(value)
        if isinstance(value, list | dict)
        else str(value)
    )


# -------------------------------------------------------------------------------------------------------------- page


def _page(sweep: Sweep, study: optuna.Study, rows: list[dict[str, Any]]) -> str:
    keys = [dimension.key for dimension in sweep.search]
    head = "".join(
        f"<th>{html.escape(name)}</th>" for name in ("candidate", "state", "value", "seeds", "env steps", *keys)
    )
    body = ""
    for row in rows:
        seeds = ", ".join(f"{value:.4g}" for value in row["seeds"]) or row.get("error", "")
        value = "" if row["value"] is None else f"{row['value']:.4g}"
        steps = "" if row["env_steps"] is None else f"{row['env_steps']:,}"
        cells = (
            f"{row['candidate']:04d}",
            row["state"],
            value,
            seeds,
            steps,
            *(short(row["params"].get(k, "")) for k in keys),
        )
        body += "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>\n"
    plots = "\n".join(f"<h2>{title}</h2><img alt='{title}' src='{source}'>" for title, source in _plots(study))
    spec = html.escape(yaml.safe_dump(sweep.to_groups(), sort_keys=False, default_flow_style=None, width=110))
    settings = sweep.settings
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Sweep</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse;font-size:13px}}td,th{{border:1px solid #bbb;padding:.2rem .5rem;text-align:left}}
img{{max-width:100%}}pre{{background:#f4f4f4;padding:1rem;overflow:auto}}</style>
<h1>Sweep over {html.escape(", ".join(keys))}</h1>
<p>{html.escape(settings.metric)}, {settings.mode}, {settings.aggregate} over seeds {list(settings.seeds)}.
Optuna's study: <code>sqlite:///{STUDY_FILE}</code>, study name <code>{STUDY_NAME}</code>.</p>
<table><tr>{head}</tr>
{body}</table>
{plots}
<h2>The sweep</h2><pre>{spec}</pre></html>
"""


def _plots(study: optuna.Study) -> list[tuple[str, str]]:
    """Optuna's plots as data URLs; those that it has too few candidates for are left out."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as plot

    drawings = {
        "Importance of the keys": lambda: plot.plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator()),
        "Parallel coordinates": lambda: plot.plot_parallel_coordinate(study),
        "Value by candidate": lambda: plot.plot_optimization_history(study),
    }
    found = []
    for title, draw in drawings.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                draw()
            except (ValueError, RuntimeError, ZeroDivisionError):
                plt.close("all")
                continue
            file = io.BytesIO()
            plt.gcf().set_size_inches(10, 5)
            plt.savefig(file, format="png", dpi=110, bbox_inches="tight")
            plt.close("all")
        found.append((title, "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()))
    return found
