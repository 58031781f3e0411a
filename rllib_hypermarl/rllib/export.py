"""From a checkpoint, which holds pickles, to a bundle, which does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import ray
import torch

from .. import __version__
from ..bundle import save_bundle
from . import checkpoints
from .grammar import read_yaml
from .run_dir import read_rows
from .teams import load_module

_SCORES = ("agent_return_mean", "episode_return_mean", "episode_len_mean")


def export_bundle(
    path: str | Path, bundle: Path, kind: Literal["full", "frozen"] = "frozen", include_critic: bool = False
) -> None:
    """Writes the team of a run (its newest checkpoint) or of a checkpoint as a bundle. Needs neither the env nor Ray's
    processes; opens pickles, which can run code.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        BundleError: the bundle cannot be written.
    """
    checkpoint = checkpoints.find(path)
    module = load_module(checkpoint)
    spec = module.net.spec
    critic = spec.reader("critic") if "critic" in spec.heads else None
    save_bundle(
        module.net,
        bundle,
        agents=list(module.observation_space),
        observation_spaces=module.observation_space.spaces,
        state_dim=critic.in_dim if critic is not None and critic.reads == "state" else None,
        kind=kind,
        include_critic=include_critic,
        provenance=provenance(checkpoint),
    )


def provenance(checkpoint: Path) -> dict[str, Any]:
    """Where a checkpoint comes from, as far as it and its run directory tell: the checkpoint's name, env steps and
    library versions, the run's config, and the last evaluation before it.
    """
    manifest, run_dir = checkpoints.verify(checkpoint), checkpoint.absolute().parent
    here = {"rllib_hypermarl": __version__, "ray": ray.__version__, "torch": torch.__version__}
    config = run_dir / "config.yaml"
    return {
        "checkpoint": checkpoint.absolute().name,
        "env_steps": manifest.get("env_steps"),
        "evaluation": _last_evaluation(run_dir, manifest["iteration"]) if manifest else None,
        "config": read_yaml(config) if config.exists() else None,
        "versions": manifest.get("versions", here),
    }


def _last_evaluation(run_dir: Path, iteration: int) -> dict[str, Any] | None:
    rows = [row for row in read_rows(run_dir) if row["training_iteration"] <= iteration and "evaluation" in row]
    if not rows:
        return None
    scores = rows[-1]["evaluation"].get("env_runners", {})
    found = {key: scores[key] for key in _SCORES if key in scores}
    return {"env_steps": int(rows[-1]["num_env_steps_sampled_lifetime"]), **found} if found else None
