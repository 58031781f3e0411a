"""A team as programs for other runtimes: ONNX and `torch.export`, of the whole team and of each agent alone."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import torch
from torch import Tensor, nn

from ..errors import BundleError
from ..nets import Categorical, Gaussian, Memory
from .files import check_free
from .policy import AgentPolicy, TeamPolicy

Format = Literal["onnx", "torch_export"]
_SUFFIX = {"onnx": "onnx", "torch_export": "pt2"}


class Greedy(nn.Module):
    """What a program computes: the greedy action, and what to sample from.

    `obs [N, B, obs]` (of one agent: `[B, obs]`) to `actions`, what the env takes, and `log_probs` of discrete actions
    (of several components: side by side), or `mean` and `log_std` of continuous ones, before clipping or squashing.
    Teams with memory read `memory [N, B, size]` (`[B, size]`), too, and put out `new_memory` for the next step.
    """

    def __init__(self, policy: TeamPolicy | AgentPolicy, obs: Tensor, continuous: bool):
        """Args: obs: two rows of an example."""
        super().__init__()
        self.policy = policy
        self.example = {"obs": obs}
        self.outputs = ["actions", *(("mean", "log_std") if continuous else ("log_probs",))]
        if (memory := policy.blank(2)) is not None:
            self.example["memory"] = memory.state
            self.outputs.append("new_memory")

    def forward(self, obs: Tensor, memory: Tensor | None = None) -> tuple[Tensor, ...]:
        kept = None if memory is None else Memory(memory)
        dist = self.policy.distribution(obs, memory=kept)
        actions = dist.to_env(dist.mode())
        if isinstance(dist, Gaussian):
            found = actions, dist.mean, dist.log_std
        else:
            parts = [dist] if isinstance(dist, Categorical) else dist.parts
            found = actions, torch.cat([part.log_probs for part in parts], dim=-1)
        return found if kept is None else (*found, kept.state)

    def dynamic(self, rows: Any) -> tuple[dict[int, Any], ...]:
        """Of every input, the axis that may have any size, and the name of that size."""
        return tuple({x.ndim - 2: rows} for x in self.example.values())


def export_programs(policy: TeamPolicy, path: str | Path, form: Format) -> None:
    """Writes `team.SUFFIX`, `agents/NAME.SUFFIX` (names quoted as in URLs) and `spec.json`, whole or not at all.

    Programs take any number of rows; observations are single precision. They are not bundles: `spec.json` is for
    people and other programs, and nothing checks them when they are loaded.

    Args:
        policy: on the CPU.

    Raises:
        BundleError: the path is taken or cannot be written, or a package is missing.
    """
    path = Path(os.path.abspath(path))
    missing = [name for name in ("onnx", "onnxscript") if form == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise BundleError(f"--format onnx needs the packages {' and '.join(missing)}: pip install {' '.join(missing)}")
    write, suffix = _write_onnx if form == "onnx" else _write_torch_export, _SUFFIX[form]
    spec, continuous = policy.spec, policy.spec.actions.continuous
    aside = path.with_name(f".{path.name}.unfinished")
    try:
        check_free(path)
        shutil.rmtree(aside, ignore_errors=True)
        (aside / "agents").mkdir(parents=True)
        said = {"version": policy.version, **json.loads(spec.model_dump_json(exclude={"files"}))}
        (aside / "spec.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        names = {"version": policy.version, "agents": json.dumps(spec.agents)}
        team = torch.zeros(len(spec.agents), 2, spec.obs_dim)
        write(Greedy(policy, team, continuous), aside / f"team.{suffix}", names)
        for agent in spec.agents:
            own = team[0, :, : spec.observations[agent].size]
            program = aside / "agents" / f"{quote(agent, safe='')}.{suffix}"
            names["agents"] = json.dumps([agent])
            write(Greedy(policy.agent(agent), own, continuous), program, names)
        aside.rename(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_torch_export(program: Greedy, path: Path, names: dict[str, str]) -> None:
    given, sizes = tuple(program.example.values()), program.dynamic(torch.export.Dim.DYNAMIC)
    exported = torch.export.export(program.eval(), given, dynamic_shapes=sizes)
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # holds paths of the exporting machine
    torch.export.save(exported, path, extra_files=names)


def _write_onnx(program: Greedy, path: Path, names: dict[str, str]) -> None:
    import onnx

    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it tells of operators of packages that are not installed
    try:
        with warnings.catch_warnings(action="ignore"):
            made = torch.onnx.export(
                program.eval(), tuple(program.example.values()), dynamo=True, verbose=False, optimize=True,
                input_names=list(program.example), output_names=program.outputs, dynamic_shapes=program.dynamic("rows"),
            )  # fmt: skip
    finally:
        log.setLevel(level)
    model = made.model_proto
    del model.metadata_props[:]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]  # of the exporting machine: source files, stack traces
    onnx.helper.set_model_props(model, names)
    onnx.save(model, path)
