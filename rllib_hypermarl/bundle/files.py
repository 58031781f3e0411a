"""Bundles on disk: a directory with `bundle.json` and `weights.safetensors`, written whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from ..errors import BundleError
from ..nets import TeamNet
from ..nets.transfer import without_generators
from . import spec as specs
from .policy import TeamPolicy
from .spec import SPEC, WEIGHTS, BundleSpec, Observation

_MAX_SPEC = 2**24  # bytes
_LONGEST = 400  # characters of an error, which may tell of content
_MAX_HEADER = 2**20  # of the weights' file, beside the numbers


def save_bundle(
    net: TeamNet,
    path: str | Path,
    *,
    agents: Sequence[str],
    observation_spaces: Mapping[str, gym.Space],
    state_dim: int | None = None,
    kind: Literal["full", "frozen"] = "frozen",
    include_critic: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Writes a team as a bundle, aside first, and reads it back before it takes its name.

    Args:
        path: a directory that does not exist or is empty.
        agents: in the env's order.
        observation_spaces: per agent.
        state_dim: of the env's state, where it has one.
        kind: `frozen`: the actors' plain weights, per policy. `full`: everything, so that research can go on.
        include_critic: of a frozen bundle: the critics' weights, too, for `TeamPolicy.values`.
        provenance: what people want to know about it later, as JSON.

    Raises:
        BundleError: the path is taken or cannot be written, or the team does not fit what is said of it.
    """
    path = Path(os.path.abspath(path))
    if any(map(net.spec.generated_by_row, net.spec.heads)):
        raise BundleError(f"{path}: no bundle can be made of this team ({specs.BY_ROW})")
    if kind == "frozen":
        heads = list(net.spec.heads) if include_critic else net.spec.with_encoders(["actor"])
        net = without_generators(net, heads)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    weights = safetensors.torch.save(tensors)
    try:
        spec = BundleSpec(
            kind=kind,
            agents=tuple(agents),
            observations={agent: Observation.of(observation_spaces[agent]) for agent in agents},
            model=dataclasses.asdict(net.spec),
            state_dim=state_dim,
            provenance=dict(provenance or {}),
            files={WEIGHTS: hashlib.sha256(weights).hexdigest()},
        )
    except ValidationError as error:
        raise BundleError(f"{path}: no bundle can be made of this team ({specs.reason(error)})") from error
    aside = path.with_name(f".{path.name}.unfinished")
    try:
        check_free(path)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        (aside / SPEC).write_bytes(specs.dump(spec))
        (aside / WEIGHTS).write_bytes(weights)
        _read(aside)
        aside.rename(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_free(path: Path) -> None:
    """Raises: BundleError: there is something at this path already."""
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise BundleError(f"{path} exists already and is not empty; choose another name")


def is_bundle(path: str | Path) -> bool:
    """Whether a directory means to be a bundle."""
    return (Path(path) / SPEC).exists()


def load_policy(path: str | Path, device: str | torch.device = "cpu") -> TeamPolicy:
    """The team of a bundle, ready to act. Checks everything; nothing in a bundle can run code.

    Raises:
        BundleError: names the bundle, the file, and what is wrong with it.
    """
    spec, net, checksum = _read(Path(path))
    return TeamPolicy(spec, net, version=checksum[:16]).to(device)


def load_team(path: str | Path) -> TeamNet:
    """The networks of a bundle, to go on with: of a full one as they were trained, of a frozen one without what
    generated them.

    Raises:
        BundleError: as `load_policy`.
    """
    return _read(Path(path))[1]


# ------------------------------------------------------------------------------------------------------------ reading


def _read(path: Path) -> tuple[BundleSpec, TeamNet, str]:
    try:
        found = sorted(os.listdir(path))
        if found != [SPEC, WEIGHTS]:
            held = ", ".join(map(repr, found[:5])) or "nothing"
            raise BundleError(f"holds {held}; expected {SPEC} and {WEIGHTS}, nothing else")
        spec, checksum = specs.parse(_bytes(path / SPEC, _MAX_SPEC))
        shapes = spec.shapes()
        size = 4 * sum(math.prod(shape) for shape in shapes.values())
        data = _bytes(path / WEIGHTS, size + _MAX_HEADER)
        if hashlib.sha256(data).hexdigest() != spec.files[WEIGHTS]:
            raise BundleError(f"{WEIGHTS} is damaged (its checksum differs)")
        net = TeamNet(spec.model, draw=False)
        net.load_state_dict(_tensors(data, shapes))
        return spec, net.eval(), checksum
    except BundleError as error:
        raise BundleError(f"{path}: {' '.join(str(error).split())[:_LONGEST]}") from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read as a bundle ({error.strerror})") from error


def _bytes(path: Path, limit: int) -> bytes:
    """A plain file's content, read once: what is checked is what is used."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would never end
    with os.fdopen(file, "rb") as stream:
        info = os.fstat(file)
        if not stat.S_ISREG(info.st_mode):
            raise BundleError(f"{path.name} is no plain file")
        if info.st_size > limit:
            raise BundleError(f"{path.name} has {info.st_size:,} bytes, more than the {limit:,} that are possible")
        return stream.read(info.st_size)


def _tensors(data: bytes, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # also what torch and the library raise on dtypes that they do not know
        raise BundleError(f"{WEIGHTS} cannot be read ({type(error).__name__}: {error})") from error
    if tensors.keys() != shapes.keys():
        odd = sorted(tensors.keys() ^ shapes.keys())
        raise BundleError(f"{WEIGHTS} lacks or has beside what its spec says: {', '.join(odd[:3])}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.dtype != torch.float32 or tensor.shape != shape:
            is_, says = f"{tensor.dtype} {tuple(tensor.shape)}", f"torch.float32 {tuple(shape)}"
            raise BundleError(f"{WEIGHTS}: {name} is {is_}, its spec says {says}")
        if not torch.isfinite(tensor).all():
            raise BundleError(f"{WEIGHTS}: {name} is not finite")
        if name.endswith((".var", ".count", ".obs_std")) and (tensor < 0).any():
            raise BundleError(f"{WEIGHTS}: {name} is negative")
    return tensors
