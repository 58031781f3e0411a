"""The files of a run: `config.yaml`, and `result.json`, `progress.csv` and TensorBoard events in Tune's formats."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune.utils import flatten_dict
from ray.tune.utils.util import SafeFallbackEncoder
from tensorboardX import SummaryWriter

from .config import HyperMARLConfig
from .grammar import ConfigError, read_yaml

RESULTS = "result.json"
# A run may go on longer, or save more often, and is still the same run.
_FREE = {
    ("run", key)
    for key in (
        "stop_env_steps",
        "checkpoint_seconds",
        "milestone_env_steps",
        "metrics_interval",
        "max_failures",
        "torch_threads",
    )
}


class RunDir:
    """Where a run leaves its results. Rows are appended as iterations finish.

    Args:
        path: an existing directory, see `create`.
        iteration: of the checkpoint that the run goes on from; rows newer than it are dropped.
    """

    def __init__(self, path: Path, iteration: int = 0):
        self.path = path
        self.rows = [row for row in self.read() if row["training_iteration"] <= iteration]
        self._columns: list[str] = []
        self._rewrite()
        purge = iteration + 1 if iteration else None
        self._events = SummaryWriter(str(path), purge_step=purge, flush_secs=30, filename_suffix=f".{iteration}")

    @staticmethod
    def create(path: Path, config: HyperMARLConfig) -> None:
        """Makes the directory, with the run's `config.yaml`.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            config.to_yaml(path / "config.yaml")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error

    def append(self, result: dict[str, Any]) -> None:
        """Adds the result of one iteration, as `Algorithm.train()` returns it."""
        row = _measured({key: value for key, value in result.items() if key != "config"})
        with (self.path / RESULTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, cls=SafeFallbackEncoder) + "\n")
        self.rows.append(row)
        flat = flatten_dict(row, delimiter="/")
        if set(flat) <= set(self._columns):
            with (self.path / "progress.csv").open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(flat)
        else:  # the first evaluation, say, brings columns that earlier rows do not have
            self._write_csv()
        for key, value in flat.items():
            if isinstance(value, int | float | np.number) and not isinstance(value, bool):
                self._events.add_scalar(f"ray/tune/{key}", value, result["training_iteration"])

    def read(self) -> list[dict[str, Any]]:
        """All rows of `result.json`."""
        return read_rows(self.path)

    def close(self) -> None:
        self._events.close()

    def _rewrite(self) -> None:
        if self.rows or (self.path / RESULTS).exists():
            lines = "".join(json.dumps(row) + "\n" for row in self.rows)
            _replace(self.path / RESULTS, lines)
            self._write_csv()

    def _write_csv(self) -> None:
        flat = [flatten_dict(row, delimiter="/") for row in self.rows]
        self._columns = list(dict.fromkeys(key for row in flat for key in row))
        aside = self.path / ".progress.csv"
        with aside.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(flat)
        os.replace(aside, self.path / "progress.csv")


def read_rows(run_dir: Path) -> list[dict[str, Any]]:
    """All rows of a run's `result.json`, without touching it; a last line that was cut by a kill is left out."""
    path = run_dir / RESULTS
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def check_same_run(path: Path, config: HyperMARLConfig) -> bool:
    """Whether `path` holds a run of this config, which can go on.

    Raises:
        ConfigError: it holds a run of another config, or other files.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file; choose another --out")
    if not path.exists() or not any(path.iterdir()):
        return False
    if not (path / "config.yaml").exists():
        raise ConfigError(f"{path} is not empty and holds no run; choose another --out")
    if not (path / RESULTS).exists() and not any(path.glob("checkpoint_*")):
        return False  # it failed before its first iteration, of a wrong config perhaps
    theirs, ours = _flat(read_yaml(path / "config.yaml")), _flat(config.to_groups())
    for key in sorted(theirs.keys() | ours.keys()):
        if key not in _FREE and theirs.get(key) != ours.get(key):
            name = ".".join(key)
            raise ConfigError(
                f"{path} holds a run of another config "
                f"({name} is {theirs.get(key)!r} there and {ours.get(key)!r} here); choose another --out"
            )
    return True


def _measured(row: dict[str, Any]) -> dict[str, Any]:
    """Leaves out NaNs: RLlib fills a metric that was not logged in an iteration (evaluation, mostly) with them."""
    kept = {key: _measured(value) if isinstance(value, dict) else value for key, value in row.items()}
    return {k: v for k, v in kept.items() if v != {} and not (isinstance(v, float | np.floating) and np.isnan(v))}


def _flat(groups: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    return {
        (group, key) if key else (group,): value
        for group, content in groups.items()
        for key, value in (content.items() if isinstance(content, dict) else [("", content)])
    }


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
