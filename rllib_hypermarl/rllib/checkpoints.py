"""Checkpoints on disk: RLlib's own, written aside and renamed, with a manifest that makes damage visible.

RLlib's checkpoints hold pickles, which can run code when loaded: open only your own.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch

from .. import __version__
from ..errors import CheckpointError

if TYPE_CHECKING:
    from .algorithm import HyperMARL

MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint_\d+")


def save(algo: HyperMARL, run_dir: Path, keep: int = 2, keep_every: int | None = None) -> Path:
    """Writes `run_dir/checkpoint_ITERATION` whole or not at all, and removes all but the newest `keep`.

    Args:
        keep_every: env steps; the first checkpoint at or after each multiple of it stays, too. None: none does.
    """
    target = run_dir / f"checkpoint_{algo.iteration:06d}"
    if target.exists():
        return target
    aside = run_dir / f".{target.name}.unfinished"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    algo.save_to_path(aside.absolute())
    manifest = {
        "iteration": algo.iteration,
        "env_steps": algo.env_steps,
        "versions": {"rllib_hypermarl": __version__, "ray": ray.__version__, "torch": torch.__version__},
        "sha256": {str(path.relative_to(aside)): _sha256(path) for path in _files(aside)},
    }
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    aside.rename(target)
    stays = _milestones(run_dir, keep_every) if keep_every else set()
    for old in list_checkpoints(run_dir)[:-keep]:
        if old not in stays:
            _remove(old)
    return target


def _remove(checkpoint: Path) -> None:
    """Out of sight at once: whoever lists or sends checkpoints meanwhile finds it whole or not at all."""
    aside = checkpoint.with_name(f".{checkpoint.name}.unfinished")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _milestones(run_dir: Path, every: int) -> set[Path]:
    """The first checkpoint at or after each multiple of `every` env steps."""
    first: dict[int, Path] = {}
    for path in list_checkpoints(run_dir):
        first.setdefault(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["env_steps"] // every, path)
    return {path for multiple, path in first.items() if multiple}


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints of a run (or a Tune trial), oldest first."""
    return sorted(path for path in run_dir.glob("checkpoint_*") if _NAME.fullmatch(path.name) and path.is_dir())


def find(path: str | Path) -> Path:
    """The checkpoint meant by a run directory (its newest) or by a checkpoint directory.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such run or checkpoint")
    if list_checkpoints(path):
        return list_checkpoints(path)[-1]
    if _NAME.fullmatch(path.absolute().name) or (path / MANIFEST).exists() or (path / "rllib_checkpoint.json").exists():
        return path
    raise CheckpointError(f"{path}: holds no checkpoint")


def verify(checkpoint: Path) -> dict[str, Any]:
    """Compares every file with the manifest.

    Returns:
        The manifest; empty for a checkpoint that RLlib or Tune wrote without us.

    Raises:
        CheckpointError: names the first file that is missing or changed.
    """
    if not (checkpoint / MANIFEST).exists():
        if not (checkpoint / "rllib_checkpoint.json").exists():
            raise CheckpointError(f"{checkpoint}: {MANIFEST} is missing; the checkpoint is damaged")
        return {}
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        checksums = manifest["sha256"].items()
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{checkpoint}: {MANIFEST} is damaged") from error
    for name, checksum in checksums:
        if not (checkpoint / name).is_file():
            raise CheckpointError(f"{checkpoint}: {name} is missing; the checkpoint is damaged")
        if _sha256(checkpoint / name) != checksum:
            raise CheckpointError(f"{checkpoint}: {name} is damaged (its checksum differs); use an older checkpoint")
    return manifest


def load(checkpoint: Path) -> HyperMARL:
    """Builds the algorithm that a checkpoint holds, and restores it.

    Raises:
        CheckpointError: the checkpoint is damaged, or not one of HyperMARL.
    """
    from .algorithm import HyperMARL

    verify(checkpoint)
    try:
        algo = HyperMARL.from_checkpoint(str(checkpoint.absolute()))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{checkpoint}: cannot be restored ({type(error).__name__}: {reason[:200]})") from error
    if not isinstance(algo, HyperMARL):
        algo.stop()
        raise CheckpointError(f"{checkpoint}: holds a {type(algo).__name__}, not a HyperMARL")
    return algo


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
