"""The team's networks: generate once, apply in one batched product."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import MemoryMissingError, TransferError
from .contexts import Embedding, OneHot
from .distributions import Distribution
from .frozen import Snapshot
from .groups import LearningGroups, SeparateSources, clip_by_group_
from .init import init_core, init_embedding, init_source
from .memory import Core, Memory
from .normalise import RunningNorm
from .sharing import Axis, Layer, make_source
from .spec import HeadSpec, ModelSpec, encoder_of
from .target import ACTIVATIONS, AgentGroups, apply_target

Weights = dict[str, list[Layer]]
_OBS_LIMIT = 10.0  # standard deviations
_VALUE_WINDOW = 100.0  # updates over which value targets are normalised: returns grow as a team learns


class TeamNet(nn.Module):
    """All heads of a team: context encoders, weight sources, and the target networks they feed.

    `generate` once per rollout and once per gradient step; `forward` as often as needed with what it returned.

    Args:
        draw: initialise the parameters; else they hold anything, and a state is to be loaded.
    """

    def __init__(self, spec: ModelSpec, draw: bool = True):
        super().__init__()
        self.spec = spec
        num_policies = len(spec.policies)
        self.groups = AgentGroups(spec.agent_policies, num_policies)
        kinds = {spec.context_of(head) for head in spec.heads.values() if head.sharing.startswith("hyper")}
        encoders = {
            "embedding": lambda: Embedding(num_policies, spec.embedding_dim),
            "one_hot": lambda: OneHot(num_policies),
        }
        self.contexts = nn.ModuleDict({kind: encoders[kind]() for kind in sorted(kinds)})
        self.sources = nn.ModuleDict()
        for name, head in spec.heads.items():
            self.sources[name] = self._make_source(head)
        self.cores = nn.ModuleDict()
        for name in spec.heads if spec.memory is not None else ():
            if encoder_of(name) in spec.heads:
                self.cores[name] = Core(spec.memory, spec.heads[encoder_of(name)].out_dim, spec.memory_size)
        self.register_parameter("log_std", None)
        if spec.actions is not None and spec.actions.continuous:
            own = spec.agent_actions
            for bound in ("low", "high"):
                team = getattr(spec.actions, bound)
                rows = team if own is None else [[(*x, *team[len(x) :])] for x in (getattr(a, bound) for a in own)]
                self.register_buffer(f"action_{bound}", torch.tensor(rows), persistent=False)  # [dim] or [N, 1, dim]
            if spec.actions.log_std != "generated":
                rows = num_policies if spec.actions.log_std == "per_policy" else max(1, len(spec.groups))
                self.log_std = nn.Parameter(torch.zeros(rows, len(spec.actions.low)))
        used = own = None  # [N, 1, choices or dim], where agents' actions differ
        if spec.agent_actions is not None:
            used = torch.tensor([[spec.actions.used_by(actions)] for actions in spec.agent_actions])
            own = torch.zeros_like(used)
            for row, actions in zip(own[:, 0], spec.agent_actions, strict=True):
                row[spec.actions.places_of(actions)] = True
        self.register_buffer("actions_used", used, persistent=False)
        self.register_buffer("actions_filled", None if used is None else used & ~own, persistent=False)
        self.norms = nn.ModuleDict()  # of what heads read: `obs`, `state`; and of `value`s
        if spec.normalise_obs:
            self.norms["obs"] = RunningNorm(spec.reader("actor").in_dim, limit=_OBS_LIMIT)
            if spec.reads_state:
                self.norms["state"] = RunningNorm(spec.reader("critic").in_dim, limit=_OBS_LIMIT)
        if spec.normalise_values:
            self.norms["value"] = RunningNorm(1, window=_VALUE_WINDOW)
        self.learning_groups = LearningGroups(spec.group_rows())
        self.snapshot: Snapshot | None = None
        if spec.frozen:
            rows = [spec.policies.index(policy) for policy in spec.frozen]
            log_std_dim = 0 if self.log_std is None else self.log_std.shape[1]
            norm_dim = spec.heads["actor"].in_dim if spec.normalise_obs else 0
            self.snapshot = Snapshot(rows, spec.agent_policies, spec.heads["actor"].layers, log_std_dim, norm_dim)
        if draw:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all parameters afresh with the spec's scheme; standard deviations start at one."""
        if self.log_std is not None:
            nn.init.zeros_(self.log_std)
        for encoder in self.contexts.values():
            if isinstance(encoder, Embedding):
                for rows in self.spec.group_rows():
                    init_embedding(encoder, rows, self.spec.init)
        for name, source in self.sources.items():
            init_source(source, self._context(name), self.spec.init)
        for core in self.cores.values():
            init_core(core, self.spec.init)
        self.freeze(*self.spec.frozen)

    def _make_source(self, head: HeadSpec) -> nn.Module:
        """The weight source of a head; where there are groups of policies, each has one of its own behind it."""
        one_hot, members = self.spec.context_of(head) == "one_hot", self.spec.group_rows()
        dims = [len(rows) if one_hot else self.spec.embedding_dim for rows in members]
        sizes = zip(map(len, members), dims, strict=True)
        sources = [make_source(self.spec, head, count, dim) for count, dim in sizes]
        return SeparateSources(sources, members) if self.spec.groups else sources[0]

    def _context(self, head: str) -> Tensor | None:
        spec = self.spec.heads[head]
        return self.contexts[self.spec.context_of(spec)]() if spec.sharing.startswith("hyper") else None

    def generate(self, *heads: str) -> Weights:
        """The target weights of the named heads and their encoders (all if none is named), for every policy.

        Of heads that are generated row by row (`hypernet_reads_obs`) there are none, and the list of layers is empty.
        """
        names = self.spec.with_encoders(heads) or self.sources
        weights = {name: self.sources[name](self._context(name)) for name in names}
        if self.snapshot is not None and "actor" in weights:
            weights["actor"] = self.snapshot.put_in(weights["actor"], len(self.spec.policies))
        return weights

    def forward(self, head: str, x: Tensor, weights: Weights) -> Tensor:
        """Args: x `[N, B, in]`, each agent's own rows. Returns `[N, B, out]`."""
        grouped = self.groups.gather(x)
        if self.spec.generated_by_row(head):
            return self.groups.scatter(self._apply_by_row(head, grouped))
        return self.groups.scatter(apply_target(weights[head], grouped, self.spec.heads[head].activation))

    def _apply_by_row(self, head: str, x: Tensor, policies: slice = slice(None)) -> Tensor:
        """Args: x `[P, B, in]`, of some policies. Returns `[P, B, out]`."""
        activation = ACTIVATIONS[self.spec.heads[head].activation]
        return self.sources[head].apply(self._context(head), x, activation, policies)

    def of_policy(self, policy: int, head: str, x: Tensor, weights: Weights) -> Tensor:
        """One policy's network alone. Args: policy, its index; x `[..., in]`. Returns `[..., out]`."""
        rows, own = x.flatten(0, -2).unsqueeze(0), slice(policy, policy + 1)
        if self.spec.generated_by_row(head):
            out = self._apply_by_row(head, rows, own)
        else:
            layers = [tuple(t if len(t) == 1 else t[own] for t in layer) for layer in weights[head]]
            out = apply_target(layers, rows, self.spec.heads[head].activation)
        return out.squeeze(0).unflatten(0, x.shape[:-1])

    def recalled_of_policy(
        self, policy: int, head: str, x: Tensor, weights: Weights, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What one policy's network reads, in a team with memory.

        Args:
            policy: its index.
            x: `[B, L, in]`, L steps of B sequences.
            weights: with the head's encoder.
            state: `[B, size]`, of its memory before them.

        Returns:
            `[B, L, in]`, and the state after them.
        """
        encoder = encoder_of(head)
        seen = self.of_policy(policy, encoder, x.transpose(0, 1).flatten(0, 1), weights)
        seen = ACTIVATIONS[self.spec.heads[encoder].activation](seen)
        seen, after = self.cores[head](seen.unsqueeze(0), state.unsqueeze(0), None)
        return seen[0].unflatten(0, (-1, len(x))).transpose(0, 1), after[0]

    def normalised(self, kind: str, x: Tensor) -> Tensor:
        """By the running statistics of `obs`, `state` or `value`; as it is where the spec asks for none."""
        return self.norms[kind](x) if kind in self.norms else x

    # ---------------------------------------------------------------------------------------------------- memory

    def blank(self, head: str, width: int) -> Memory | None:
        """What agents remember in `width` episodes that begin; None for teams without memory."""
        if head not in self.cores:
            return None
        core = self.cores[head]
        return Memory(core.cell.weight_hh.new_zeros(len(self.spec.agent_policies), width, core.state_dim))

    def _recalled(self, head: str, x: Tensor, weights: Weights, memory: Memory | None) -> Tensor:
        """What a head reads, `[N, B, in]`; moves its memory on, where it has one.

        Raises:
            MemoryMissingError: the team has memory, and none was given.
        """
        if head not in self.cores:
            return x
        if memory is None:
            raise MemoryMissingError(
                f"this team has memory ({self.spec.memory}) and acts on whole episodes: its networks need what agents "
                "remember (memory=...), and cannot be asked about single observations"
            )
        encoder = encoder_of(head)
        seen = ACTIVATIONS[self.spec.heads[encoder].activation](self(encoder, x, weights))
        core = self.cores[head]
        one_step = memory.lost is None
        seen, memory.state = core.step(seen, memory.state) if one_step else core(seen, memory.state, memory.lost)
        return seen

    # -------------------------------------------------------------------------------------------- actors and critics

    def action_inputs(self, obs: Tensor, weights: Weights, memory: Memory | None = None) -> Tensor:
        """What the actors put out. Args: as `policy`'s. Returns `[N, B, out]`."""
        if self.snapshot is None or "obs" not in self.norms:
            return self("actor", self._recalled("actor", self.normalised("obs", obs), weights, memory), weights)
        norm = self.norms["obs"]
        by_policy = self.snapshot.put_in_norm(norm, len(self.spec.policies))
        return self("actor", norm(obs, *(x[self.groups.policy_of].unsqueeze(1) for x in by_policy)), weights)

    def policy(
        self, obs: Tensor, weights: Weights, action_mask: Tensor | None = None, memory: Memory | None = None
    ) -> Distribution:
        """The agents' action distributions.

        Args:
            obs: `[N, B, obs]`.
            weights: with the head `actor`.
            action_mask: `[N, B, sum(choices)]` bool, of discrete actions: True where one is allowed. None: all are.
            memory: of teams that have one, the actors'; this moves it on.
        """
        return self.distribution(self.action_inputs(obs, weights, memory), action_mask)

    def distribution(self, inputs: Tensor, action_mask: Tensor | None = None) -> Distribution:
        """What actors mean that put out `inputs` `[N, B, out]`; action_mask as in `policy`."""
        spec, used = self.spec.actions, self.actions_used
        if spec.continuous:
            bounds = self.action_low, self.action_high
            return spec.distribution(inputs, self.agent_log_std(), *bounds, action_mask, used)
        if used is not None:
            action_mask = used.expand(*inputs.shape) if action_mask is None else self.allowed(action_mask)
        return spec.distribution(inputs, mask=action_mask)

    def policy_log_std(self) -> Tensor | None:
        """The policies' log standard deviations, `[1, dim]` or `[P, dim]`; None where the actor puts them out."""
        shared = self.log_std is not None and self.spec.actions.log_std == "shared"
        return self.log_std[self.learning_groups.of_policy] if shared and self.spec.groups else self.log_std

    def allowed(self, action_mask: Tensor) -> Tensor:
        """A mask `[N, B, sum(choices)]` of discrete actions, whatever it says of what is beyond an agent's own ones."""
        return action_mask if self.actions_used is None else (action_mask & self.actions_used) | self.actions_filled

    def agent_log_std(self) -> Tensor | None:
        """The agents' log standard deviations, `[1, dim]` or `[N, 1, dim]`; None where the actor puts them out."""
        log_std = self.policy_log_std()
        if self.snapshot is not None and log_std is not None:
            log_std = self.snapshot.put_in_log_std(log_std, len(self.spec.policies))
        if log_std is not None and len(log_std) > 1:
            log_std = log_std[self.groups.policy_of].unsqueeze(1)
        return log_std

    def value(self, obs: Tensor, state: Tensor | None, weights: Weights, memory: Memory | None = None) -> Tensor:
        """The agents' values.

        Args:
            obs: `[N, B, obs]`.
            state: `[B, state]`, of envs that have one.
            weights: with the head `critic`.
            memory: of teams that have one, the critics'; this moves it on.

        Returns:
            `[N, B]`, in units of the reward.
        """
        value = self("critic", self.follow(obs, state, weights, memory), weights)
        return (self.norms["value"].inverse(value) if "value" in self.norms else value).squeeze(-1)

    def follow(self, obs: Tensor, state: Tensor | None, weights: Weights, memory: Memory | None) -> Tensor:
        """What the critics' heads read, `[N, B, in]`; takes `value`'s arguments. Memory moves on as in `value`, with
        no more of the weights than the head `critic_encoder`."""
        reads = self.spec.reader("critic").reads
        if reads == "state":
            state = self.normalised("state", state)
        else:
            obs = self.normalised("obs", obs)
            state = obs.transpose(0, 1).flatten(1) if reads == "team" else None
        x = obs if reads == "obs" else state.expand(len(obs), *state.shape)
        return self._recalled("critic", x, weights, memory)

    # --------------------------------------------------------------------------------------------- changing teams

    @torch.no_grad()
    def freeze(self, *policies: str) -> None:
        """Takes the snapshot that frozen policies act with: what their parameters give now.

        Raises:
            TransferError: a policy is not in the spec's `frozen`.
        """
        for policy in policies:
            if policy not in self.spec.frozen:
                raise TransferError(f"policy {policy!r} is not in the spec's frozen {self.spec.frozen}")
            layers = self.sources["actor"](self._context("actor"))
            slot, row = self.spec.frozen.index(policy), self.spec.policies.index(policy)
            self.snapshot.take(slot, row, layers, self.policy_log_std(), dict(self.norms.items()).get("obs"))

    def trained(self, x: Tensor) -> Tensor:
        """The rows of agents whose policies are not frozen. Args: x `[N, ...]`. Returns it as it is if none is."""
        agents = self.trained_agents()
        return x if agents is None else x.index_select(0, agents)

    def trained_agents(self) -> Tensor | None:
        """Indices of the agents whose policies are not frozen; None: all of them."""
        return None if self.snapshot is None else self.snapshot.trained

    def context_parameters(self) -> list[nn.Parameter]:
        """The learned contexts, everything that tells policies apart where embeddings do.

        Raises:
            TransferError: no head reads learned embeddings.
        """
        parameters = list(self.contexts.parameters())
        if not parameters:
            shared = {name: head.sharing for name, head in self.spec.heads.items()}
            raise TransferError(f"no head reads learned embeddings (sharing is {shared}): nothing to fit alone")
        return parameters

    def policy_axes(self) -> dict[str, Axis]:
        """Parameters that hold a slice per policy: name -> where the slices lie. All others belong to everybody."""
        axes = {"contexts.embedding.weight": (0, 0)} if "embedding" in self.contexts else {}
        for name, head in self.spec.heads.items():
            one_hot = head.sharing.startswith("hyper") and self.spec.context_of(head) == "one_hot"
            source = self.sources[name].policy_axes(one_hot)
            axes |= {f"sources.{name}.{key}": axis for key, axis in source.items()}
        if self.log_std is not None and self.spec.actions.log_std == "per_policy":
            axes["log_std"] = (0, 0)
        return axes

    # ------------------------------------------------------------------------------------- groups that learn separately

    def group_members(self) -> Tensor:
        """`[G, N]`, 1.0 where a trained agent is of a group; agents as `trained` leaves them."""
        return self.learning_groups.members(self.trained(self.groups.policy_of))

    def clip_gradients_(self, limit: float) -> Tensor:
        """Clips the norm of the gradient, of each group by itself; returns the greatest norm before."""
        if not self.spec.groups:
            return nn.utils.clip_grad_norm_(self.parameters(), limit)
        per_policy = self.policy_axes()
        owned = [(x, self.learning_groups.owner(name, name in per_policy)) for name, x in self.named_parameters()]
        return clip_by_group_(owned, limit=limit, num_groups=len(self.spec.groups)).max()

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters per head, of the contexts, and in total."""
        counts = {name: sum(p.numel() for p in source.parameters()) for name, source in self.sources.items()}
        if self.cores:
            counts["memory"] = sum(p.numel() for p in self.cores.parameters())
        counts["context"] = sum(p.numel() for p in self.contexts.parameters())
        if self.log_std is not None:
            counts["log_std"] = self.log_std.numel()
        return {"total": sum(counts.values()), **counts}
