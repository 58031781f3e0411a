"""What a model is made of, as plain data: nothing here knows PPO, RLlib or an environment."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import Any, Literal, get_args

from .distributions import ActionSpec

Sharing = Literal["hyper_mlp", "hyper_linear", "none", "full", "full_id"]
Context = Literal["embedding", "one_hot"]
Init = Literal["paper", "exact", "framework"]
Activation = Literal["relu", "tanh"]
Reads = Literal["obs", "team", "state"]
MemoryKind = Literal["gru", "lstm"]

SHARING: tuple[str, ...] = get_args(Sharing)
CONTEXTS: tuple[str, ...] = get_args(Context)
INITS: tuple[str, ...] = get_args(Init)
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
MEMORIES: tuple[str, ...] = get_args(MemoryKind)


def encoder_of(head: str) -> str:
    """The name of the head that reads for another one, in a team with memory."""
    return f"{head}_encoder"


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """One target network per policy: an MLP whose weights come from where `sharing` says.

    Attributes:
        in_dim: size of its input, without any agent id.
        out_dim: size of its output (logits, a value, ...).
        hidden: sizes of its hidden layers.
        sharing: `hyper_mlp` and `hyper_linear` generate the weights (paper Eq. 3 and 2), `none` gives every policy its
            own (NoPS), `full` one set for all (FuPS), `full_id` one set that also reads the policy's one-hot id.
        activation: between layers.
        out_gain: gain of the last layer's initialisation (paper: 0.01 for actors, 1 for critics).
        reads: `obs`, each agent's own observation; `team`, the observations of all agents, in their order, without ids;
            `state`, the env's own state.
    """

    in_dim: int
    out_dim: int
    hidden: tuple[int, ...] = (64, 64)
    sharing: Sharing = "hyper_mlp"
    activation: Activation = "relu"
    out_gain: float = 1.0
    reads: Reads = "obs"

    @property
    def layers(self) -> list[tuple[int, int, float]]:
        """`(in, out, gain)` of every layer of the target network."""
        sizes = [self.in_dim, *self.hidden, self.out_dim]
        gains = [math.sqrt(2.0)] * len(self.hidden) + [self.out_gain]
        return list(zip(sizes[:-1], sizes[1:], gains, strict=True))


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A team's networks: named heads over one set of policies.

    Attributes:
        policies: the P policy ids, in the order of the context rows.
        agent_policies: for each of the N agents, in the env's order, the index of its policy.
        heads: name -> target network. PPO has `actor` and `critic`; another learner may add twins or targets.
        context: what hypernetworks read. None: learned embeddings for `hyper_mlp`, one-hot for `hyper_linear` (the
            paper's two variants).
        embedding_dim: size d of a learned embedding.
        hypernet_hidden: hidden sizes of every generator of `hyper_mlp`; `hyper_linear` has none.
        hypernet_shared_trunk: whether the generators of a head have their hidden layers in common.
        hypernet_rank: generated matrices are a learned one for all policies plus a generated product of this rank.
            None: every entry is generated.
        hypernet_reads_obs: generators of `hyper_mlp` also read what the target network reads, so that every row has
            weights of its own (the paper's ablation without gradient decoupling).
        init: `exact`, `paper` or `framework`, see `nets/init.py`.
        actions: what agents can do, and how the outputs of the head `actor` mean it. None: a model without an actor.
        agent_actions: what each agent can do, where that differs; every one of them fits into `actions`. None: all
            can do the same.
        normalise_obs: whether heads read observations (and states) normalised by running statistics.
        normalise_values: whether critics put out values normalised by running statistics of their targets.
        frozen: policies that act with a snapshot of their actor's weights, whatever happens to the parameters.
        memory: `gru` or `lstm`: before each head an encoder, the head `encoder_of` it, and a recurrent core that all
            agents share; the head reads what the core puts out. None: heads read for themselves.
        memory_size: of a core's output, the `in_dim` of the head behind it.
        groups: name -> its policies. Each group has sources of its own, so that nothing one group learns moves another;
            together they hold every policy once. Empty: all policies are one group.
    """

    policies: tuple[str, ...]
    agent_policies: tuple[int, ...]
    heads: dict[str, HeadSpec]
    context: Context | None = None
    embedding_dim: int = 4
    hypernet_hidden: tuple[int, ...] = (64,)
    hypernet_shared_trunk: bool = False
    hypernet_rank: int | None = None
    hypernet_reads_obs: bool = False
    init: Init = "exact"
    actions: ActionSpec | None = None
    normalise_obs: bool = False
    normalise_values: bool = False
    frozen: tuple[str, ...] = ()
    agent_actions: tuple[ActionSpec, ...] | None = None
    memory: MemoryKind | None = None
    memory_size: int = 128
    groups: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.actions is not None and "actor" not in self.heads:
            raise ValueError(f"a spec with actions needs a head 'actor', and has {', '.join(self.heads) or 'none'}")
        if self.actions is not None and self.heads["actor"].out_dim != self.actions.head_dim:
            raise ValueError(f"heads['actor'].out_dim is {self.heads['actor'].out_dim}, not {self.actions.head_dim}")
        own = self.agent_actions
        if own is not None and (len(own) != len(self.agent_policies) or ActionSpec.covering(own) != self.actions):
            raise ValueError("agent_actions must tell of every agent, and together need just what actions has")
        if set(self.agent_policies) != set(range(len(self.policies))):
            raise ValueError(f"agent_policies {self.agent_policies} must use every index of policies {self.policies}")
        unknown = [policy for policy in self.frozen if policy not in self.policies]
        if unknown or len(set(self.frozen)) < len(self.frozen) or (self.frozen and "actor" not in self.heads):
            raise ValueError(
                f"frozen is {self.frozen}: expected some of policies {self.policies}, of a spec with an actor"
            )
        if self.groups and sorted(itertools.chain(*self.groups.values())) != sorted(self.policies):
            raise ValueError(f"groups {self.groups} must hold each of the policies {self.policies} once")
        if self.groups and (self.memory is not None or self.normalise_values):
            raise ValueError("groups share nothing that learns, but cores and the statistics of values are shared")
        if self.memory not in (None, *MEMORIES):
            raise ValueError(f"memory is {self.memory!r}, valid are {', '.join(MEMORIES)} and None")
        if self.memory is not None and self.frozen:
            raise ValueError(f"frozen is {self.frozen}: policies with memory share a core that goes on learning")
        if self.hypernet_rank is not None and self.hypernet_rank < 1:
            raise ValueError(f"hypernet_rank is {self.hypernet_rank}: expected None or a positive number")
        if self.hypernet_reads_obs:
            self._check_reads_obs()
        encoded = {name for name in self.heads if encoder_of(name) in self.heads}
        if encoded != (set(self.heads) - set(map(encoder_of, encoded)) if self.memory is not None else set()):
            raise ValueError(f"memory is {self.memory!r}: with one, and only then, every head has an encoder")
        if any(self.heads[name].in_dim != self.memory_size for name in encoded):
            raise ValueError(f"heads behind a core must have its in_dim, memory_size {self.memory_size}")
        if self.context not in (None, *CONTEXTS):
            raise ValueError(f"context is {self.context!r}, valid are {', '.join(CONTEXTS)} and None")
        if self.init not in INITS:
            raise ValueError(f"init is {self.init!r}, valid are {', '.join(INITS)}")
        for name, head in self.heads.items():
            if head.sharing not in SHARING:
                raise ValueError(f"heads[{name!r}].sharing is {head.sharing!r}, valid are {', '.join(SHARING)}")
            if head.reads not in get_args(Reads):
                raise ValueError(f"heads[{name!r}].reads is {head.reads!r}, valid are {get_args(Reads)}")
            if head.activation not in ACTIVATIONS:
                raise ValueError(f"heads[{name!r}].activation is {head.activation!r}, valid are {ACTIVATIONS}")

    def _check_reads_obs(self) -> None:
        for key in ("memory", "groups", "frozen", "hypernet_rank"):
            if getattr(self, key):
                raise ValueError(
                    f"hypernet_reads_obs with {key} {getattr(self, key)!r}: weights of rows cannot have it"
                )

    def reader(self, head: str) -> HeadSpec:
        """Who reads what a head is about: its encoder in a team with memory, else the head itself."""
        return self.heads[head if self.memory is None else encoder_of(head)]

    def memory_dim(self, head: str) -> int:
        """Numbers that an agent remembers for a head, `actor` say; 0 without memory, or without that head."""
        if self.memory is None or head not in self.heads:
            return 0
        return self.memory_size * (2 if self.memory == "lstm" else 1)

    def with_encoders(self, heads: Iterable[str]) -> list[str]:
        """The heads and whoever reads for them."""
        return [name for head in heads for name in (head, encoder_of(head)) if name == head or name in self.heads]

    def group_rows(self) -> list[list[int]]:
        """Of each group, or the one that all are, the indices of its policies."""
        groups = self.groups.values() or [self.policies]
        return [[self.policies.index(policy) for policy in group] for group in groups]

    def group_agents(self) -> dict[str, list[int]]:
        """Of each group the indices of the agents that follow its policies."""
        rows = dict(zip(self.groups, self.group_rows(), strict=False))
        return {name: [n for n, row in enumerate(self.agent_policies) if row in own] for name, own in rows.items()}

    @property
    def reads_state(self) -> bool:
        """Whether a head reads the env's state."""
        return any(head.reads == "state" for head in self.heads.values())

    def context_of(self, head: HeadSpec) -> Context:
        """The kind of context that generates this head."""
        return self.context or ("embedding" if head.sharing == "hyper_mlp" else "one_hot")

    def generated_by_row(self, head: str) -> bool:
        """Whether a head's weights depend on what it reads: then there are none to generate beforehand."""
        return self.hypernet_reads_obs and self.heads[head].sharing == "hyper_mlp"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelSpec:
        heads = {name: HeadSpec(**{**head, "hidden": tuple(head["hidden"])}) for name, head in data["heads"].items()}
        tuples = {key: tuple(data[key]) for key in ("policies", "agent_policies", "hypernet_hidden")}
        tuples["frozen"] = tuple(data.get("frozen", ()))  # specs of before 0.2 have none
        actions = None if data["actions"] is None else ActionSpec.from_dict(data["actions"])
        own = data.get("agent_actions")
        own = None if own is None else tuple(ActionSpec.from_dict(spec) for spec in own)
        groups = {name: tuple(policies) for name, policies in data.get("groups", {}).items()}
        made = {"heads": heads, "actions": actions, "agent_actions": own, "groups": groups}
        return cls(**{**data, **tuples, **made})
