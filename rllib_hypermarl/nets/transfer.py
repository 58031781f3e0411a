"""From one team's networks to another's: other policies, another number of them, the same generators."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import TransferError
from .sharing import Axis
from .spec import ModelSpec, encoder_of
from .team import TeamNet

Rows = list[tuple[int, int]]
"""Pairs (row of the source, row of the target)."""


@torch.no_grad()
def transfer(
    source: TeamNet, target: TeamNet, like: Mapping[str, str] | None = None, heads: Sequence[str] | None = None
) -> None:
    """Copies into `target` everything that two teams share.

    What belongs to all policies (generators, shared networks) is copied whole. What belongs to one (embeddings, rows
    and networks of its own) is copied to the policy of the same name; other policies of `target` keep what they were
    initialised with, or copy the rows of the policy that `like` names. Frozen policies of `target` keep the snapshot
    they had in `source`; newly frozen ones take theirs now.

    Args:
        like: policy of `target` -> policy of `source`.
        heads: the heads to copy. None: all that both have.

    Raises:
        TransferError: the networks do not fit, or a policy or head does not exist. Nothing has been copied.
    """
    like, shared = dict(like or {}), [name for name in target.spec.heads if name in source.spec.heads]
    heads = shared if heads is None else target.spec.with_encoders(heads)
    for name in heads:
        if name not in shared:
            raise TransferError(f"no head {name!r} to transfer; both teams have {', '.join(shared) or 'none'}")
    for policy, spec, where in [(p, target.spec, "here") for p in like] + [
        (p, source.spec, "there") for p in like.values()
    ]:
        if policy not in spec.policies:
            raise TransferError(f"like: {policy!r} is no policy {where}; policies are {', '.join(spec.policies)}")
    if (source.spec.groups or target.spec.groups) and not _same_policies(source.spec, target.spec, like):
        raise TransferError(
            f"policies in groups do not change: {dict(source.spec.groups)} there and {dict(target.spec.groups)} here"
        )
    misfits = [text for head in heads for text in _misfits(source.spec, target.spec, head)]
    if misfits:
        raise TransferError(f"networks do not fit: {'; '.join(misfits)}")

    source_of = {policy: like.get(policy, policy) for policy in target.spec.policies}
    rows = common_rows(source.spec, target.spec, source_of)
    axes, theirs = target.policy_axes(), source.state_dict()
    generated = [head for name, head in target.spec.heads.items() if name in heads and head.sharing.startswith("hyper")]
    contexts = {target.spec.context_of(head) for head in generated}
    for name, tensor in target.state_dict().items():
        part, which, *_ = f"{name}.".split(".")
        left_out = {
            "sources": which not in heads,
            "cores": which not in heads,
            "contexts": which not in contexts,
            "log_std": "actor" not in heads,
            "norms": which != "obs" and "critic" not in heads,  # statistics of states and values are the critic's
        }
        if part != "snapshot" and not left_out.get(part, False):
            copy_rows(theirs[name], tensor, axes.get(name), rows)
    if "actor" in heads:
        target.freeze(*target.spec.frozen)
        kept = [(source_of[policy], policy) for policy in target.spec.frozen if source_of[policy] in source.spec.frozen]
        for old, new in kept:
            into = target.snapshot.state_dict()
            for name, tensor in source.snapshot.state_dict().items():
                into[name][target.spec.frozen.index(new)] = tensor[source.spec.frozen.index(old)]


@torch.no_grad()
def without_generators(net: TeamNet, heads: Sequence[str]) -> TeamNet:
    """The named heads as plain weights: what hypernetworks generate now takes their place. Acts bit for bit alike."""
    every = bool(net.spec.groups)  # behind a grouped source there are several
    generated = {name for name in heads if every or net.spec.heads[name].sharing.startswith("hyper")}
    plain = {
        name: dataclasses.replace(head, sharing="none") if name in generated else head
        for name, head in net.spec.heads.items()
        if name in heads
    }
    normalise_values = net.spec.normalise_values and "critic" in plain
    spec = dataclasses.replace(net.spec, heads=plain, context=None, normalise_values=normalise_values, groups={})
    state = net.state_dict()
    if every and net.log_std is not None:
        spec, state["log_std"] = _with_log_std_of_policies(spec), net.policy_log_std()
    target = TeamNet(spec, draw=False)
    for name in generated:
        for depth, (weight, bias) in enumerate(net.generate(name)[name]):
            state |= {f"sources.{name}.weights.{depth}": weight, f"sources.{name}.biases.{depth}": bias}
    target.load_state_dict({name: state[name] for name in target.state_dict()})
    return target


def _with_log_std_of_policies(spec: ModelSpec) -> ModelSpec:
    """The same team, whose policies have log standard deviations of their own."""
    actions = dataclasses.replace(spec.actions, log_std="per_policy")
    own = spec.agent_actions
    own = None if own is None else tuple(dataclasses.replace(a, log_std="per_policy") for a in own)
    return dataclasses.replace(spec, actions=actions, agent_actions=own)


def common_rows(source: ModelSpec, target: ModelSpec, source_of: Mapping[str, str] | None = None) -> Rows:
    """Rows of the policies that both have. Args: source_of: the name in `source` of target's policies, if another."""
    names = [(source_of or {}).get(policy, policy) for policy in target.policies]
    return [(source.policies.index(name), row) for row, name in enumerate(names) if name in source.policies]


def copy_rows(old: Tensor, new: Tensor, axis: Axis | None, rows: Rows) -> None:
    """Copies a parameter, or what is shaped like it; only the given rows of what it holds per policy.

    Args:
        axis: where policies lie in it (`TeamNet.policy_axes`); None: it belongs to all of them.
    """
    if axis is None:
        new.copy_(old)
        return
    dim, first = axis
    new.narrow(dim, 0, first).copy_(old.narrow(dim, 0, first))
    for row, into in rows:
        new.select(dim, first + into).copy_(old.select(dim, first + row))


def _same_policies(source: ModelSpec, target: ModelSpec, like: Mapping[str, str]) -> bool:
    """Whether two teams have the same policies in the same groups, so that all parameters are copied whole."""
    return not like and source.policies == target.policies and source.groups == target.groups


def _misfits(source: ModelSpec, target: ModelSpec, name: str) -> Iterator[str]:
    """What keeps a head from being transferred, in words."""
    there, here = source.heads[name], target.heads[name]
    if there.reads == here.reads == "team" and there.in_dim != here.in_dim:
        encoders = set(map(encoder_of, target.heads))
        others = [repr(h) for h, head in target.heads.items() if head.reads != "team" and h not in encoders]
        yield (
            f"{name} reads the observations of the whole team, {there.in_dim} numbers there and {here.in_dim} here, "
            f"and cannot be transferred to another team size (leave it out: heads=({', '.join(others)},))"
        )
        return
    pairs = {key: (getattr(there, key), getattr(here, key))
             for key in ("in_dim", "out_dim", "hidden", "sharing", "activation", "reads")}  # fmt: skip
    for key in ("memory", "memory_size") if source.memory or target.memory else ():
        pairs[key] = getattr(source, key), getattr(target, key)
    pairs["normalise_obs"] = source.normalise_obs, target.normalise_obs
    if name == "critic":
        pairs["normalise_values"] = source.normalise_values, target.normalise_values
    if there.sharing == here.sharing and here.sharing.startswith("hyper"):
        pairs["context"] = contexts = source.context_of(there), target.context_of(here)
        if contexts == ("embedding", "embedding"):
            pairs["embedding_dim"] = source.embedding_dim, target.embedding_dim
        pairs["hypernet_rank"] = source.hypernet_rank, target.hypernet_rank
        for key in ("hidden", "shared_trunk", "reads_obs") if here.sharing == "hyper_mlp" else ():
            pairs[f"hypernet_{key}"] = getattr(source, f"hypernet_{key}"), getattr(target, f"hypernet_{key}")
    for key, (a, b) in pairs.items():
        if a != b:
            yield f"{name}.{key} is {a!r} there and {b!r} here"
    if name == "actor" and source.actions != target.actions:
        a, b = (None if spec.actions is None else dataclasses.asdict(spec.actions) for spec in (source, target))
        differing = [key for key in (a or b) if a is None or b is None or a[key] != b[key]]
        yield f"actions differ in {', '.join(differing)}"
