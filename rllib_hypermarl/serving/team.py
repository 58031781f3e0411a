"""A team as it is served: requests checked against its bundle, answered in one forward, and the bundle exchanged.

No Ray and no HTTP: what they add is in `deployment.py` and `http.py`.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..bundle import BundleSpec, TeamPolicy, load_policy
from ..errors import ConfigError, HyperMARLError
from ..nets import Memory
from .schemas import MAX_NUMBERS, ActRequest, RefusedError, as_rows, check_finite

logger = logging.getLogger("ray.serve")
_random = random.SystemRandom()
_DIRECTORIES = re.compile(r"(?:/[^/\s:'\"]+)+/|/")  # strangers need not know where files lie


@dataclasses.dataclass(slots=True)
class Ask:
    """A request that was checked against a policy, which then has to answer it.

    Attributes:
        agents: indices of the agents that are asked for.
        obs: `[N, B, obs]` float32; zeros for agents that are not.
        mask: `[N, B, choices]` bool, or None where everything is allowed.
        memory: `[N, B, memory]` float32, the actors' and with `values` the critics' behind it; None: the team has none,
            or episodes begin.
        state: `[B, state]` float32, or None.
        single: whether the request had no axis of environments.
        seed: of sampled actions; None: greedy.
    """

    policy: TeamPolicy
    agents: list[int]
    obs: np.ndarray
    mask: np.ndarray | None
    memory: np.ndarray | None
    state: np.ndarray | None
    single: bool
    seed: int | None
    probabilities: bool
    values: bool

    @property
    def rows(self) -> int:
        return self.obs.shape[1]


@np.errstate(over="ignore")  # what is too large is refused
def check(request: ActRequest, policy: TeamPolicy) -> Ask:
    """What a request means for a policy.

    Raises:
        RefusedError: names the field that does not fit the policy.
    """
    spec = policy.spec
    index = {agent: i for i, agent in enumerate(spec.agents)}
    obs, single, first = None, False, ""
    for agent, value in request.observations.items():
        field = f"observations.{agent}"
        if agent not in index:
            raise RefusedError("observations", f"unknown agent {agent[:60]!r}; this team has {_some(spec.agents)}")
        rows, alone = as_rows(value, spec.observations[agent].size, field)
        if obs is None:
            first, single = agent, alone
            remembered = sum(map(spec.memory_dim, ("actor", "critic")))
            most = max(1, MAX_NUMBERS // (len(index) * (spec.obs_dim + remembered)))
            if len(rows) > most:
                raise RefusedError(field, f"{len(rows)} environments in one request; {most} are the most for this team")
            obs = np.zeros((len(index), len(rows), spec.obs_dim), np.float32)  # agents that are not asked act on zeros
        if alone is not single or len(rows) != obs.shape[1]:
            shapes = [f"{n} environments" if not s else "one without an axis" for n, s in
                      ((len(rows), alone), (obs.shape[1], single))]  # fmt: skip
            raise RefusedError(field, f"{shapes[0]}, but observations.{first} has {shapes[1]}")
        obs[index[agent], :, : rows.shape[1]] = rows
    if not np.isfinite(obs).all():
        for agent in request.observations:
            size = spec.observations[agent].size
            check_finite(obs[index[agent], :, :size], single, f"observations.{agent}")
    if request.seed is None and not request.greedy:
        seed = _random.getrandbits(63)
    else:
        seed = None if request.greedy else request.seed
    mask = None if request.action_mask is None else _mask(request, policy, index, obs.shape[1], single)
    memory = None if request.memory is None else _memory(request, policy, index, obs.shape[1], single)
    if request.probabilities and spec.actions.continuous:
        raise RefusedError("probabilities", "this team's actions are continuous, they have none")
    agents = [index[agent] for agent in request.observations]
    state = _check_values(request, policy, obs.shape[1], single) if request.values or request.state else None
    return Ask(policy, agents, obs, mask, memory, state, single, seed, request.probabilities, request.values)


def _mask(request: ActRequest, policy: TeamPolicy, index: dict[str, int], rows: int, single: bool) -> np.ndarray:
    actions = policy.spec.actions
    if actions.continuous:
        raise RefusedError("action_mask", "this team's actions are continuous: nothing to mask")
    mask = np.ones((len(index), rows, sum(actions.choices)), bool)
    for agent, value in request.action_mask.items():
        field = f"action_mask.{agent}"
        if agent not in request.observations:
            raise RefusedError("action_mask", f"agent {agent[:60]!r} is not among observations")
        own = policy.spec.agent_actions(agent)
        array, alone = as_rows(value, sum(own.choices), field, bool)
        if alone is not single or len(array) != rows:
            raise RefusedError(field, f"shape {array.shape[alone:]} does not fit the observations")
        for part in np.split(array, np.cumsum(own.choices)[:-1], axis=1):
            if not part.any(axis=1).all():
                raise RefusedError(field, "allows no choice at all")
        mask[index[agent]][:, actions.places_of(own)] = array
    return mask


def _memory(request: ActRequest, policy: TeamPolicy, index: dict[str, int], rows: int, single: bool) -> np.ndarray:
    size = _memory_size(policy, request.values)
    if size == 0:
        raise RefusedError("memory", "this team has none: leave it out")
    memory = np.zeros((len(index), rows, size), np.float32)
    for agent, value in request.memory.items():
        field = f"memory.{agent}"
        if agent not in request.observations:
            raise RefusedError("memory", f"agent {agent[:60]!r} is not among observations")
        array, alone = as_rows(value, size, field)
        if alone is not single or len(array) != rows:
            raise RefusedError(field, f"shape {array.shape[alone:]} does not fit the observations")
        check_finite(array, single, field)
        memory[index[agent]] = array
    return memory


def _memory_size(policy: TeamPolicy, values: bool) -> int:
    """Numbers that each agent remembers between requests; 0: the team has no memory."""
    return sum(policy.spec.memory_dim(head) for head in ("actor", *(("critic",) if values else ())))


def _check_values(request: ActRequest, policy: TeamPolicy, rows: int, single: bool) -> np.ndarray | None:
    reads = policy.spec.critic_reads
    if not request.values:
        raise RefusedError("state", "is read for `values` only: leave it out, or ask for values")
    if reads is None:
        raise RefusedError("values", "this bundle has no critic; export it with --critic or as --kind full")
    if reads == "team" and len(request.observations) < len(policy.spec.agents):
        raise RefusedError("values", "this critic reads the observations of all agents: send them all")
    if reads != "state":
        if request.state is not None:
            raise RefusedError("state", "this team's critic does not read the environment's state: leave it out")
        return None
    if request.state is None:
        raise RefusedError("values", "this critic reads the environment's state: send `state`")
    state, alone = as_rows(request.state, policy.spec.state_dim, "state")
    if alone is not single or len(state) != rows:
        raise RefusedError("state", "as many rows as each agent has observations")
    check_finite(state, alone, "state")
    return state


@torch.inference_mode()
def answer(asks: Sequence[Ask]) -> list[dict[str, Any] | RefusedError]:
    """Answers requests that were checked against one policy in one forward.

    Returns:
        One `ActAnswer` as a dict of arrays per request, or why there is none.
    """
    policy = asks[0].policy
    device = policy.actor_0_weight.device
    obs = torch.from_numpy(np.concatenate([ask.obs for ask in asks], axis=1)).to(device)
    memory = _memories(asks, device)
    dist = policy.distribution(obs, _masks(asks, device), memory)
    mode = dist.mode()
    greedy = dist.to_env(mode).cpu().numpy()
    # What is not finite has a mode, too, but no meaning.
    checked = [dist.log_prob(mode), *([] if memory is None else [memory.state.sum(dim=-1)])]
    finite = None
    if not all(torch.isfinite(x.sum()) for x in checked):
        finite = torch.stack(checked).isfinite().all(dim=0).all(dim=0).cpu().numpy()
    answers, start = [], 0
    for ask in asks:
        span = slice(start, start + ask.rows)
        start = span.stop
        if finite is not None and not finite[span].all():
            answers.append(_too_large(ask))
            continue
        found: dict[str, Any] = {"version": policy.version}
        if ask.seed is None:
            found["actions"] = _own_parts(_by_agent(greedy[:, span], ask), ask)
        else:
            part, generator = dist.rows(span), torch.Generator(device).manual_seed(ask.seed)
            found["actions"] = _own_parts(_by_agent(part.to_env(part.sample(generator)).cpu().numpy(), ask), ask)
        if ask.probabilities:
            found["probabilities"] = _probabilities(dist.rows(span), ask)
        remembered = [] if memory is None else [memory.state[:, span]]
        if ask.values:
            state = None if ask.state is None else torch.from_numpy(ask.state).to(device)
            critics = _memories([ask], device, "critic")
            values = policy.values(obs[:, span], state, critics)
            remembered += [] if critics is None else [critics.state]
            if not all(torch.isfinite(x).all() for x in (values, *remembered)):
                answers.append(_too_large(ask))
                continue
            found["values"] = _by_agent(values.cpu().numpy(), ask)
        if remembered:
            found["memory"] = _by_agent(torch.cat(remembered, dim=-1).cpu().numpy(), ask)
        answers.append(found)
    return answers


def _too_large(ask: Ask) -> RefusedError:
    given = {"observations": ask.obs, "memory": ask.memory, "state": ask.state}
    largest = max((np.abs(x).max(), field) for field, x in given.items() if x is not None)
    return RefusedError(largest[1], "so large that the networks' outputs are not finite")


def _masks(asks: Sequence[Ask], device: torch.device) -> torch.Tensor | None:
    """`[N, B, choices]`, or None where no request has one."""
    if all(ask.mask is None for ask in asks):
        return None
    width = sum(asks[0].policy.spec.actions.choices)
    masks = [np.ones((*ask.obs.shape[:2], width), bool) if ask.mask is None else ask.mask for ask in asks]
    return torch.from_numpy(np.concatenate(masks, axis=1)).to(device)


def _memories(asks: Sequence[Ask], device: torch.device, head: str = "actor") -> Memory | None:
    """What agents remember for a head, `[N, B, size]`; None for teams without memory."""
    spec = asks[0].policy.spec
    size, first = spec.memory_dim(head), 0 if head == "actor" else spec.memory_dim("actor")
    if size == 0:
        return None
    parts = [
        np.zeros((*ask.obs.shape[:2], size), np.float32) if ask.memory is None else ask.memory[..., first:][..., :size]
        for ask in asks
    ]
    return Memory(torch.from_numpy(np.concatenate(parts, axis=1)).to(device))


def _by_agent(array: np.ndarray, ask: Ask) -> dict[str, Any]:
    """`[N, B, ...]` as agent -> `[B, ...]`, without the axis of environments if the request had none."""
    agents = ask.policy.spec.agents
    if ask.single and array.ndim == 2:  # plain numbers are written faster than arrays of one
        values = array[:, 0].tolist()
        return {agents[i]: values[i] for i in ask.agents}
    found = np.ascontiguousarray(array[:, 0] if ask.single else array)
    return {agents[i]: found[i] for i in ask.agents}


def _own_parts(found: dict[str, Any], ask: Ask) -> dict[str, Any]:
    """Actions agent by agent, of each what it has."""
    spec = ask.policy.spec
    if spec.model.agent_actions is None:
        return found
    return {agent: spec.actions.part_of(x, spec.agent_actions(agent)) for agent, x in found.items()}


def _probabilities(dist: Any, ask: Ask) -> dict[str, Any]:
    """Of every choice; of several components, a list of those."""
    spec = ask.policy.spec
    parts = [_by_agent(part.log_probs.exp().cpu().numpy(), ask) for part in getattr(dist, "parts", [dist])]
    found = {}
    for agent in parts[0]:
        own = [part[agent][..., :n] for part, n in zip(parts, spec.agent_actions(agent).choices, strict=False)]
        found[agent] = own if len(own) > 1 else own[0]
    return found


class ServedTeam:
    """The policy that is served now, and its exchange for another."""

    def __init__(self, device: str = "cpu"):
        self.device = device
        self.policy: TeamPolicy | None = None
        self._loaded_at: float | None = None
        self._refused: dict[str, Any] | None = None

    def exchange(self, bundle: Any, fallback: str | None = None) -> None:
        """Serves another bundle from now on; goes on with what is served if that is refused.

        Args:
            bundle: directory of the bundle.
            fallback: another, for when the first is refused and nothing is served yet.

        Raises:
            HyperMARLError: nothing can be served.
        """
        try:
            policy, self._refused = self._load(bundle), None
        except Exception as error:
            known = isinstance(error, HyperMARLError)
            reason = str(error) if known else f"{type(error).__name__}, see the log"
            serving = "nothing to serve" if self.policy is None else f"still serving version {self.policy.version}"
            logger.error(f"bundle refused, {serving}: {error}", exc_info=not known)
            self._refused = {"at": _timestamp(time.time()), "reason": _DIRECTORIES.sub("", reason)}
            if self.policy is not None:
                return
            if fallback is None or fallback == bundle:
                raise
            policy, bundle = self._load(fallback), fallback
        self.policy, self._loaded_at = policy, time.time()
        logger.info(f"serving version {policy.version} from {bundle}")

    def _load(self, bundle: Any) -> TeamPolicy:
        if not isinstance(bundle, str):
            raise ConfigError("user_config holds no `bundle`, the directory of a policy bundle")
        policy = load_policy(Path(bundle).expanduser(), self.device)
        if self.policy is not None:
            _check_same_team(self.policy, policy)
        answer([check(_example(policy), policy)])  # also warms up
        return policy

    def metadata(self) -> dict[str, Any]:
        """What is served: version, agents, spaces, where it comes from, and the last reload that was refused."""
        spec = self.policy.spec
        return {
            "version": self.policy.version,
            "loaded_at": _timestamp(self._loaded_at),
            "refused": self._refused,
            "kind": spec.kind,
            "agents": spec.agents,
            "observation_sizes": {agent: spec.observations[agent].size for agent in spec.agents},
            "actions": {agent: dataclasses.asdict(spec.agent_actions(agent)) for agent in spec.agents},
            "critic_reads": spec.critic_reads,
            "state_size": spec.state_dim,
            "memory": _memory_metadata(self.policy),
            "provenance": _provenance(spec),
        }


def _memory_metadata(policy: TeamPolicy) -> dict[str, Any] | None:
    spec = policy.spec
    if spec.model.memory is None:
        return None
    with_values = None if spec.critic_reads is None else _memory_size(policy, True)
    return {"kind": spec.model.memory, "size": _memory_size(policy, False), "size_with_values": with_values}


def _provenance(spec: BundleSpec) -> dict[str, Any]:
    """What is everybody's business of it: a run's config holds paths."""
    found = {key: spec.provenance.get(key) for key in ("checkpoint", "env_steps", "evaluation", "versions")}
    config = spec.provenance.get("config")
    config = config if isinstance(config, dict) else {}
    return found | {key: config.get(key) for key in ("env", "env_config")}


def _check_same_team(old: TeamPolicy, new: TeamPolicy) -> None:
    """Whoever asks the old team must be able to ask the new one the same."""
    differs = [f"agent {agent!r}" for agent in old.spec.agents if agent not in new.spec.agents][:1]
    if len({(spec.model.memory, spec.memory_dim("actor")) for spec in (old.spec, new.spec)}) > 1:
        differs.append("its memory")
    for agent in [] if differs else old.spec.agents:
        (size, own), (new_size, new_own) = (
            (spec.observations[agent].size, spec.agent_actions(agent)) for spec in (old.spec, new.spec)
        )
        if size != new_size or (own.choices, own.low, own.high) != (new_own.choices, new_own.low, new_own.high):
            differs.append(f"{'observations' if size != new_size else 'actions'} of agent {agent!r}")
    if differs:
        raise ConfigError(
            f"not the team that is served ({differs[0]} missing or different): deploy it as another application"
        )


def _example(policy: TeamPolicy) -> ActRequest:
    """A request of zeros."""
    return ActRequest(observations={agent: [0.0] * o.size for agent, o in policy.spec.observations.items()})


def _timestamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _some(names: Sequence[str], limit: int = 8) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
