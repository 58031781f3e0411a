"""Runs on disk: found below a directory, read as far as a report needs them, kept in a form that can be committed."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, ReportError
from ..metrics.measure import EMBEDDINGS
from ..rllib.config import HyperMARLConfig
from ..rllib.run_dir import RESULTS, read_rows
from ..storage import is_uri

SAMPLED = "env_runners/agent_return_mean"
GREEDY = "evaluation/env_runners/agent_return_mean"
ENV_STEPS, SECONDS = "num_env_steps_sampled_lifetime", "time_total_s"
THROUGHPUT, PARAMETERS = "env_steps_per_second", "learners/hyper/num_trainable_parameters"
_EMBEDDINGS = f"metrics/{EMBEDDINGS}/"
_READ = re.compile("|".join([SAMPLED, GREEDY, ENV_STEPS, SECONDS, THROUGHPUT, PARAMETERS, "metrics/.*"]))
"""Keys of a row, its groups joined by `/`, that a report reads; `metrics/`: whatever is measured on networks."""
EVALUATION = "evaluation.json"
"""What `evaluate RUN --json` printed, where somebody put it beside a run's results."""
_CONFIG, _SWEEP, _CANDIDATES = "config.yaml", "sweep.yaml", "candidates"


@dataclasses.dataclass(frozen=True)
class Series:
    """Values of one metric in the course of a run: equally long arrays."""

    env_steps: np.ndarray
    seconds: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """What a report reads of a run.

    Attributes:
        name: its path below the directory that all of a report's runs are in.
        path: where it was read from.
        config: all its keys, `group.key`.
        rows: numbers of its results, `group/key`.
        evaluation: the return of a last evaluation by hand (`EVALUATION`), or None.
    """

    name: str
    path: Path
    config: dict[str, Any]
    rows: list[dict[str, float]]
    evaluation: float | None

    @property
    def seed(self) -> int | None:
        return self.config["run.seed"]

    @property
    def env_steps(self) -> int:
        return int(self.rows[-1][ENV_STEPS])

    @property
    def finished(self) -> bool:
        return self.env_steps >= self.config["run.stop_env_steps"]

    def until(self, env_steps: int) -> Run:
        """The run as it would be had it been told to stop after so many env steps."""
        reached = next((i for i, row in enumerate(self.rows) if row[ENV_STEPS] >= env_steps), len(self.rows))
        return dataclasses.replace(
            self,
            config={**self.config, "run.stop_env_steps": env_steps},
            rows=self.rows[: reached + 1],
            evaluation=self.evaluation if reached + 1 >= len(self.rows) else None,
        )

    def series(self, metric: str) -> Series:
        """The metric in the rows that have it; a report's curves are over what this returns."""
        columns = [[row[key] for row in self.rows if metric in row] for key in (ENV_STEPS, SECONDS, metric)]
        return Series(*(np.array(column, dtype=float) for column in columns))

    def metrics(self) -> list[str]:
        """Keys under `metrics/` that its rows have, but for embeddings."""
        keys = {key for row in self.rows for key in row if key.startswith("metrics/")}
        return sorted(key for key in keys if not key.startswith(_EMBEDDINGS))

    def embeddings(self) -> dict[str, Any] | None:
        """Those of the first and of the last measurement: `policies`, and `env_steps` and `[P, d]` of both; or None."""
        rows = [row for row in self.rows if any(key.startswith(_EMBEDDINGS) for key in row)]
        if not rows:
            return None
        keys = [key.removeprefix(_EMBEDDINGS).rpartition("/") for key in rows[0] if key.startswith(_EMBEDDINGS)]
        policies, dim = list(dict.fromkeys(policy for policy, _, _ in keys)), 1 + max(int(i) for _, _, i in keys)
        return {"policies": policies} | {
            name: {
                "env_steps": int(row[ENV_STEPS]),
                "values": [
                    [row.get(f"{_EMBEDDINGS}{policy}/{i}", math.nan) for i in range(dim)] for policy in policies
                ],
            }
            for name, row in (("first", rows[0]), ("last", rows[-1]))
        }


def read_runs(directories: Sequence[tuple[str, Path]]) -> tuple[list[Run], list[dict[str, str]]]:
    """Reads all runs at or below some directories.

    Args:
        directories: of each, what the user calls it (a path or a URI), and where it is.

    Returns:
        The runs, and of those that cannot be read `run`, its name, and `why`.

    Raises:
        ReportError: there is none.
    """
    found, places = [], set()
    for called, directory in directories:
        below = list(_find(directory))
        if not below:
            raise ReportError(f"{called}: holds no run, a directory with {_CONFIG} and {RESULTS}")
        called = str(called).partition("?")[0] if is_uri(called) else os.path.abspath(called)
        for path in below:
            if path.resolve() not in places:
                places.add(path.resolve())
                found.append((os.path.normpath(os.path.join(called, path.relative_to(directory))), path))
    bases = [_base(called, directory) for called, directory in directories]
    runs, left_out = [], []
    for called, path in found:
        name = _relative(called, bases)
        try:
            runs.append(read_run(name, path))
        except ReportError as error:
            left_out.append({"run": name, "why": str(error)})
    if not runs:
        raise ReportError("; ".join(f"{entry['run']}: {entry['why']}" for entry in left_out[:3]))
    return runs, left_out


def _find(path: Path) -> Iterator[Path]:
    """Run directories at or below `path`, sorted."""
    if (path / _CONFIG).exists() or (path / RESULTS).exists():
        yield path
        return
    if (path / _SWEEP).exists():
        path = path / _CANDIDATES  # beside them, `best` is a copy of one of their runs
    for child in sorted(path.iterdir()) if path.is_dir() else []:
        if child.is_dir() and not child.name.startswith("."):
            yield from _find(child)


def _base(called: str, directory: Path) -> str:
    """What the names of its runs are relative to: a store of runs itself, of a run or a sweep what it is in."""
    called = str(called).partition("?")[0] if is_uri(called) else os.path.abspath(called)
    whole = any((directory / name).exists() for name in (_CONFIG, RESULTS, _SWEEP))
    return os.path.dirname(os.path.normpath(called)) if whole else os.path.normpath(called)


def _relative(called: str, bases: Sequence[str]) -> str:
    try:
        base = os.path.commonpath(bases)
    except ValueError:  # some are URIs, some are not
        return called.lstrip("/")
    return os.path.relpath(called, base)


def read_run(name: str, path: Path) -> Run:
    """Reads a run.

    Raises:
        ReportError: why it is none, without its name.
    """
    failed = "; it failed, see its error.txt" if (path / "error.txt").exists() else ""
    if not (path / _CONFIG).exists():
        raise ReportError(f"has no {_CONFIG}{failed}")
    try:
        groups = HyperMARLConfig.from_yaml(path / _CONFIG).to_groups()  # with defaults of keys that are newer than it
    except ConfigError as error:
        raise ReportError(str(error).replace(str(path / _CONFIG), _CONFIG)) from error
    try:
        rows = [dict(_numbers(row)) for row in read_rows(path)]
    except (OSError, UnicodeDecodeError, AttributeError) as error:
        raise ReportError(f"{RESULTS} cannot be read{failed}") from error
    if not rows:
        raise ReportError(f"has no results: {RESULTS} is missing or empty{failed}")
    if any(key not in row for row in rows for key in (ENV_STEPS, SECONDS)):
        raise ReportError(f"{RESULTS} is not a run's: a row has no {ENV_STEPS} or {SECONDS}")
    _count_on(rows)
    return Run(name, path, dotted(groups), rows, _read_evaluation(path))


def _count_on(rows: Sequence[dict[str, float]]) -> None:
    """Where seconds begin again, a run was resumed from a checkpoint that did not hold them."""
    past = before = 0.0
    for row in rows:
        past += before if row[SECONDS] < before else 0.0
        before = row[SECONDS]
        row[SECONDS] += past


def _read_evaluation(path: Path) -> float | None:
    if not (path / EVALUATION).exists():
        return None
    try:
        value = json.loads((path / EVALUATION).read_text(encoding="utf-8"))["agent_return_mean"]
        return float(value)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{EVALUATION} is not what `evaluate --json` prints") from error


def keep(run: Run, directory: Path) -> None:
    """Writes down what a report reads of a run, so that a report on `directory` is the same report."""
    target = directory / run.name
    if target.resolve() == run.path.resolve():
        raise ReportError(f"{directory}: the runs are there already")
    target.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(_nested(row)) + "\n" for row in run.rows)
    (target / RESULTS).write_text(lines, encoding="utf-8")
    for name in (_CONFIG, EVALUATION):
        if (run.path / name).exists():
            shutil.copy(run.path / name, target / name)


# ------------------------------------------------------------------------------------------------------------ nesting


def _numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers of a row that a report reads, under their joined keys."""
    for key, value in row.items():
        name = prefix + key
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{name}/")
        elif isinstance(value, int | float) and math.isfinite(value) and _READ.fullmatch(name):
            yield name, value


def _nested(row: Mapping[str, float]) -> dict[str, Any]:
    groups: dict[str, Any] = {}
    for key, value in row.items():
        *path, last = key.split("/")
        group = groups
        for part in path:
            group = group.setdefault(part, {})
        group[last] = value
    return groups


def dotted(groups: Mapping[str, Any]) -> dict[str, Any]:
    """A config's nested groups as `group.key`."""
    flat: dict[str, Any] = {}
    for group, content in groups.items():
        if isinstance(content, Mapping) and group != "policies":
            flat |= {f"{group}.{key}": value for key, value in content.items()}
        else:
            flat[group] = content
    return flat
