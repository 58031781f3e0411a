"""What a bundle says of itself, and every limit that it must keep before anything of it is allocated."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import gymnasium as gym
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from ..errors import BundleError
from ..nets import ActionSpec, HeadSpec, ModelSpec, TeamNet
from ..nets.spec import encoder_of

SCHEMA_VERSION = 4
"""Goes up with everything that code before it would refuse or read otherwise, such as a new field of `ModelSpec`."""
SPEC, WEIGHTS = "bundle.json", "weights.safetensors"
MAX_NUMBERS = 2**28
"""Of a bundle, and of the weights that it generates: 1 GiB of single precision."""
BY_ROW = "model.hypernet_reads_obs: a bundle holds a network for each policy, and here each observation has its own"
_MAX_AGENTS = 4096
_MAX_SIZE = 2**20  # of an observation, a layer, an action
_MAX_SIZES = 1000  # layers and discrete components of actions, all together

_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Size = Annotated[int, Field(ge=1, le=_MAX_SIZE)]
_Bound = float | tuple[float, ...]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Observation(_Model):
    """What an agent reads: `size` numbers, and the bounds its space declares (one for all, or one each)."""

    size: _Size
    low: _Bound
    high: _Bound

    @classmethod
    def of(cls, space: gym.Space) -> Observation:
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise BundleError(f"observation space {space} is not a flat Box")
        low, high = (sorted(set(bound.tolist())) for bound in (space.low, space.high))
        return cls(
            size=space.shape[0],
            low=low[0] if len(low) == 1 else tuple(space.low.tolist()),
            high=high[0] if len(high) == 1 else tuple(space.high.tolist()),
        )

    @model_validator(mode="after")
    def _check(self) -> Observation:
        low, high = (b if isinstance(b, tuple) else (b,) * self.size for b in (self.low, self.high))
        if len(low) != self.size or len(high) != self.size:
            raise ValueError(f"{len(low)} low and {len(high)} high bounds for {self.size} numbers")
        if not all(a <= b for a, b in zip(low, high, strict=True)):
            raise ValueError("low bounds are not below the high bounds")
        return self


class BundleSpec(_Model):
    """A bundle's `bundle.json`.

    Attributes:
        kind: `frozen`, plain weights per policy; `full`, the whole team with its generators.
        agents: the N agents in the order of the agent axis.
        observations: what each of them reads.
        model: the networks; of a frozen bundle with `none` in the place of sharing by hypernetworks.
        state_dim: size of the env's state; None where it has none.
        provenance: where it comes from (config, env steps, evaluation, library versions). Nothing depends on it.
        files: sha256 of each file beside this one.
    """

    schema_version: Literal[1, 2, 3, 4] = SCHEMA_VERSION
    kind: Literal["frozen", "full"]
    agents: tuple[str, ...]
    observations: dict[str, Observation]
    model: ModelSpec
    state_dim: _Size | None
    provenance: dict[str, JsonValue]
    files: dict[Literal["weights.safetensors"], _Sha256]

    @property
    def policies(self) -> tuple[str, ...]:
        """The P policies, in the order of the weights' rows."""
        return self.model.policies

    @property
    def agent_policies(self) -> tuple[int, ...]:
        """Of each agent, the index of its policy."""
        return self.model.agent_policies

    @property
    def actions(self) -> ActionSpec:
        return self.model.actions

    @property
    def heads(self) -> dict[str, HeadSpec]:
        """`actor`, and `critic` where the bundle has one; of teams with memory their encoders, too."""
        return self.model.heads

    @property
    def obs_dim(self) -> int:
        """Of the agent that observes most; what others observe is filled up with zeros."""
        return self.model.reader("actor").in_dim

    @property
    def critic_reads(self) -> str | None:
        """`obs`, `team` or `state`; None where the bundle has no critic."""
        return self.model.reader("critic").reads if "critic" in self.heads else None

    def memory_dim(self, head: str) -> int:
        """Numbers that an agent remembers for a head, `actor` or `critic`; 0 without memory, or without that head."""
        return self.model.memory_dim(head)

    def agent_actions(self, agent: str) -> ActionSpec:
        """What one agent can do."""
        own = self.model.agent_actions
        return self.actions if own is None else own[self.agents.index(agent)]

    @model_validator(mode="after")
    def _check(self) -> BundleSpec:
        model, n = self.model, len(self.agents)
        for what, names in (("agents", self.agents), ("policies", model.policies)):
            if not 0 < len(names) <= _MAX_AGENTS or len(set(names)) < len(names) or not all(names):
                raise ValueError(f"{what}: expected 1 to {_MAX_AGENTS} names, no two alike")
        if len(model.agent_policies) != n or set(self.observations) != set(self.agents):
            raise ValueError(f"agents, model.agent_policies and observations must tell of the same {n} agents")
        heads = set(self.heads) - ({encoder_of(name) for name in self.heads} if model.memory is not None else set())
        if model.actions is None or "actor" not in heads or not heads <= {"actor", "critic"}:
            raise ValueError("model.heads must be actor, or actor and critic, with model.actions")
        if any(self.heads[name].reads != model.reader(name).reads for name in heads):
            raise ValueError("model.heads: an encoder must read what the head behind it is said to read")
        actor, critic = model.reader("actor"), model.reader("critic") if "critic" in heads else None
        if actor.reads != "obs" or max(o.size for o in self.observations.values()) != actor.in_dim:
            raise ValueError(f"the actor must read observations, of its size {actor.in_dim} at most")
        if critic is not None:
            reads = {"obs": actor.in_dim, "team": n * actor.in_dim, "state": self.state_dim}
            out_dim = self.heads["critic"].out_dim
            if critic.in_dim != reads[critic.reads] or out_dim != 1:
                raise ValueError(f"the critic has sizes {critic.in_dim} and {out_dim}, not those it must have")
        self._check_sizes()
        if model.normalise_values and critic is None:
            raise ValueError("model.normalise_values without a critic")
        if self.kind == "frozen" and any(head.sharing.startswith("hyper") for head in self.heads.values()):
            raise ValueError("a frozen bundle has no hypernetworks")
        if any(map(model.generated_by_row, self.heads)):
            raise ValueError(BY_ROW)
        if set(self.files) != {WEIGHTS}:
            raise ValueError(f"files must list {WEIGHTS}")
        return self

    def _check_sizes(self) -> None:
        model = self.model
        sizes = [model.embedding_dim, model.memory_size, *model.hypernet_hidden, *model.actions.choices]
        sizes += [] if model.hypernet_rank is None else [model.hypernet_rank]
        sizes += [size for own in model.agent_actions or () for size in own.choices]
        for head in self.heads.values():
            sizes += [head.in_dim, *head.hidden, head.out_dim]
        if not all(1 <= size <= _MAX_SIZE for size in sizes) or len(sizes) > _MAX_SIZES:
            what = "sizes of layers, observations and actions"
            raise ValueError(f"{what} must be 1 to {_MAX_SIZE:,}, and at most {_MAX_SIZES:,} of them")
        rows = len(model.policies)
        generated = sum(rows * (i + 1) * o for head in self.heads.values() for i, o, _ in head.layers)
        numbers = sum(math.prod(shape) for shape in self.shapes().values())
        if max(generated, numbers) > MAX_NUMBERS:
            raise ValueError(f"{max(generated, numbers):,} weights; {MAX_NUMBERS:,} are the most")

    def shapes(self) -> dict[str, torch.Size]:
        """The tensors that the weights' file must hold; allocates nothing."""
        with torch.device("meta"):
            return {name: tensor.shape for name, tensor in TeamNet(self.model, draw=False).state_dict().items()}


# ---------------------------------------------------------------------------------------------------------- as JSON


def dump(spec: BundleSpec) -> bytes:
    """As JSON, with a checksum of its own content."""
    data = json.loads(spec.model_dump_json())
    return (json.dumps({"checksum": _checksum(data)[0], **data}, indent=1) + "\n").encode()


def parse(text: bytes) -> tuple[BundleSpec, str]:
    """Reads what `dump` wrote. Returns the spec and its checksum.

    Raises:
        BundleError: says what is wrong and in which key, without the name of the bundle.
    """
    try:
        data = json.loads(text.decode(), object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError) as error:  # not UTF-8 either
        raise BundleError(f"{SPEC} is no JSON ({error})") from error
    if not isinstance(data, dict):
        raise BundleError(f"{SPEC} is no JSON object")
    schema = data.get("schema_version")
    if type(schema) is int and schema > SCHEMA_VERSION:
        raise BundleError(
            f"has schema_version {schema}, this rllib_hypermarl reads up to {SCHEMA_VERSION}: install a newer one"
        )
    stated = data.pop("checksum", None)
    checksum, canonical = _checksum(data)
    if stated != checksum:
        raise BundleError(f"{SPEC} is damaged (its checksum differs)")
    try:
        return BundleSpec.model_validate_json(canonical), checksum
    except ValidationError as error:
        raise BundleError(f"{SPEC}: {reason(error)}") from error


def reason(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{key}: {first['msg']}" if key else first["msg"].removeprefix("Value error, ")


def _checksum(data: Mapping[str, Any]) -> tuple[str, bytes]:
    """Sha256 of the content, whatever the layout, and the bytes it is of."""
    try:
        canonical = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    except RecursionError as error:
        raise BundleError(f"{SPEC} is nested too deep") from error
    return hashlib.sha256(canonical).hexdigest(), canonical


def _no_key_twice(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)
