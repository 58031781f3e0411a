"""Changing teams: start from another run's networks, add a policy after build, freeze one.

The learners own the networks and change them; env runners, also those of evaluation and those that Ray restarts later,
take over the new team's spec with its weights.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_LEARNER_GROUP, COMPONENT_RL_MODULE
from ray.rllib.core.learner.learner import Learner

from ..bundle import is_bundle, load_team
from ..errors import CheckpointError, ConfigError
from ..nets import ModelSpec, TeamNet, transfer
from ..nets.transfer import common_rows, copy_rows
from . import checkpoints
from .config import HYPER, MODEL_SPEC
from .module import HyperModule
from .policies import Patterns, map_agents

if TYPE_CHECKING:
    from .algorithm import HyperMARL

_SEED_STRIDE = 1_000_003  # from the seed of a team's parameters to that of a team with one policy more


# ------------------------------------------------------------------------------------------------- another run's start


def load_net(path: str) -> TeamNet:
    """The networks of a run or checkpoint, without its algorithm (opens pickles, which can run code), or of a bundle.

    Raises:
        CheckpointError: there is none, it is damaged, or not one of HyperMARL.
        BundleError: the bundle is damaged.
    """
    return load_team(path) if is_bundle(path) else load_module(checkpoints.find(path)).net


def load_module(checkpoint: Path) -> HyperModule:
    """The team's networks and spaces of a checkpoint, without its algorithm. Opens pickles, which can run code.

    Raises:
        CheckpointError: it is damaged, or not one of HyperMARL.
    """
    checkpoints.verify(checkpoint)
    module = checkpoint.absolute() / COMPONENT_LEARNER_GROUP / COMPONENT_LEARNER / COMPONENT_RL_MODULE / HYPER
    try:
        return HyperModule.from_checkpoint(str(module))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{checkpoint}: holds no team's networks ({type(error).__name__}: {reason})") from error


def start_from(algo: HyperMARL, source: TeamNet) -> None:
    """Gives a new run the networks of another one, as its config says.

    Raises:
        TransferError: they do not fit.
    """
    config = algo.config
    heads = [head for head in config.init_heads if head in _spec(algo).heads]  # `use_critic: false` has no critic
    _on_learners(algo, functools.partial(_transfer_to, source=source, like=config.init_like, heads=heads))
    _hand_on(algo)


def _transfer_to(learner: Learner, source: TeamNet, like: Mapping[str, str] | None, heads: Sequence[str]) -> None:
    transfer(source, learner.module[HYPER].unwrapped().net, like, heads)


# ------------------------------------------------------------------------------------------------------ after the build


def add_policy(algo: HyperMARL, policy_id: str, agents: str | Sequence[str], like: str | None) -> None:
    """See `HyperMARL.add_policy`."""
    old = _spec(algo)
    if old.groups:
        raise ConfigError("hypermarl.groups: teams whose policies learn in groups keep the policies they have")
    if policy_id in old.policies:
        raise ConfigError(f"policy {policy_id!r} exists already; policies are {', '.join(old.policies)}")
    if like is not None and like not in old.policies:
        raise ConfigError(f"like is {like!r}, which is no policy; policies are {', '.join(old.policies)}")
    moved = [agents] if isinstance(agents, str) else list(agents)
    rest = {key: value for key, value in algo.config.policy_patterns.items() if key != policy_id}
    patterns = {policy_id: moved, **rest}  # the first entry that matches counts
    kept = set(map_agents(patterns, list(algo.spaces[HYPER][0])).values())
    frozen = [policy for policy in algo.config.frozen if policy in kept]
    _change(algo, patterns, frozen, None if like is None else {policy_id: like})


def freeze_policy(algo: HyperMARL, policy_id: str) -> None:
    """See `HyperMARL.freeze_policy`."""
    old = _spec(algo)
    if policy_id not in old.policies:
        raise ConfigError(f"{policy_id!r} is no policy; policies are {', '.join(old.policies)}")
    if policy_id in old.frozen:
        raise ConfigError(f"policy {policy_id!r} is frozen already")
    _change(algo, algo.config.policy_patterns, [*algo.config.frozen, policy_id], None)


def _change(algo: HyperMARL, patterns: Patterns, frozen: Sequence[str], like: Mapping[str, str] | None) -> None:
    """Gives a built algorithm another team; a checkpoint taken from now on rebuilds it from the changed config."""
    config = algo.config.copy(copy_frozen=False)
    config.policy_patterns, config.frozen = patterns, frozen
    config.validate()
    algo._sampler.drop_request()
    spec = config.get_multi_rl_module_spec(spaces=algo.spaces)[HYPER].model_config[MODEL_SPEC]
    seed = random.randrange(2**31) if config.seed is None else config.seed + _SEED_STRIDE * len(spec["policies"])
    _on_learners(algo, functools.partial(change_learner, spec=ModelSpec.from_dict(spec), like=like, seed=seed))
    _hand_on(algo)
    config.freeze()
    algo.config = config
    algo.evaluation_config = config.get_evaluation_config_object()
    algo.evaluation_config.validate()
    algo.evaluation_config.freeze()


def change_learner(learner: Learner, spec: ModelSpec, like: Mapping[str, str] | None, seed: int) -> None:
    """Gives one learner another team's networks, with what the optimiser knows of the policies that stay."""
    module, optimizer = learner.module[HYPER].unwrapped(), learner.get_optimizer(HYPER)
    old = module.change_team(spec, seed)
    transfer(old, module.net, like)
    for entries in (
        learner._params, learner._optimizer_parameters, learner._named_optimizers, learner._module_optimizers,
        learner._optimizer_name_to_module, learner._optimizer_lr_schedules,
    ):  # fmt: skip
        entries.clear()  # what RLlib's `remove_module` forgets of a module's optimiser
    learner.configure_optimizers()

    parameters, axes = dict(module.net.named_parameters()), module.net.policy_axes()
    rows = common_rows(old.spec, spec)
    for name, parameter in old.named_parameters():
        slots = {}
        for key, value in optimizer.state.get(parameter, {}).items():
            per_entry = value.shape == parameter.shape  # a moment; else a counter
            slots[key] = value.new_zeros(parameters[name].shape) if per_entry else value
            if per_entry:
                copy_rows(value, slots[key], axes.get(name), rows)
        if slots:
            learner.get_optimizer(HYPER).state[parameters[name]] = slots


# ------------------------------------------------------------------------------------------------------------- helpers


def _spec(algo: HyperMARL) -> ModelSpec:
    return _on_learners(algo, lambda learner: learner.module[HYPER].unwrapped().net.spec)[0]


def _on_learners(algo: HyperMARL, function: Callable[[Learner], Any]) -> list[Any]:
    """Calls a function with every learner.

    Raises:
        Exception: what a learner raised.
    """
    results = list(algo.learner_group.foreach_learner(function))
    for result in results:
        if not result.ok:
            raise result.get()
    return [result.get() for result in results]


def _hand_on(algo: HyperMARL) -> None:
    """Gives all env runners the learners' team and weights, whatever weights they have seen before."""
    component = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
    weights = algo.learner_group.get_state(components=component)[COMPONENT_LEARNER][COMPONENT_RL_MODULE]
    state = {MODEL_SPEC: _spec(algo).to_dict(), COMPONENT_RL_MODULE: weights}
    for group in (algo.env_runner_group, algo.eval_env_runner_group):
        if group is not None:
            group.foreach_env_runner(lambda runner: runner.set_state(state))
