"""One rollout from runners that are Ray actors, any of which may fail."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from ..errors import ActorsLostError, EnvError, RunFailedError
from ..rollout import Rollout, join
from .env_runner import RemoteSample

RECOVERY_SECONDS = 45.0
"""How long training waits for a first runner to come back when all are gone."""
_POLL_SECONDS = 0.5
_TAG = "sample"


@dataclasses.dataclass(frozen=True)
class _Request:
    """A rollout asked for: the driver's state in the object store, the number of its weights, and who was asked."""

    state: ray.ObjectRef
    seq_no: int
    runners: set[int]


class RemoteSampler:
    """Asks the env runners of a group for rollouts.

    Args:
        restore: brings dead runners back (`Algorithm.restore_env_runners`).
        timeout: seconds after which a rollout goes on without those that have not answered.
    """

    def __init__(self, group: EnvRunnerGroup, restore: Callable[[EnvRunnerGroup], Any], timeout: float):
        self._group, self._restore, self._timeout = group, restore, timeout
        self._late: set[int] = set()  # runners that have not answered an earlier request
        self._request: _Request | None = None  # made, and not collected

    def sample(self, state: dict[str, Any], *, ahead: bool = False) -> tuple[Rollout, list[dict[str, Any]], int]:
        """One rollout of every runner that is well, sampled with the weights that travel in the request.

        A rollout of runners that died or hang is left out. What a late one sends afterwards was sampled with other
        weights, and is dropped.

        Args:
            state: of the driver's runner, `EnvRunner.get_state()`.
            ahead: asks for the next rollout before returning, to be sampled with these weights while the caller learns.

        Returns:
            The rollout of all envs that came, in the runners' order; the metrics of each runner; and by how many
            updates the weights that sampled are older than `state`.

        Raises:
            EnvError: an env failed; the message is its own.
            RunFailedError: nothing came, in spite of waiting for the runners to recover.
        """
        reference, seq_no, started = ray.put(state), state["weights_seq_no"], time.monotonic()
        while True:
            try:
                request = self._request or self._make_request(reference, seq_no)
                samples = self._collect(request)
            except RayError as error:  # where RLlib was told not to restart runners
                raise RunFailedError(f"an env runner died: {' '.join(str(error).split())[:300]}") from error
            if samples:
                break
            if self._group.num_healthy_remote_env_runners():
                raise RunFailedError(
                    f"no env runner answered within env_runners.sample_timeout_s ({self._timeout:g} s); "
                    "raise it if a rollout takes as long"
                )
            if time.monotonic() - started > RECOVERY_SECONDS:
                raise ActorsLostError(
                    f"all {self._group.num_remote_env_runners()} env runners died, and none came back within "
                    f"{RECOVERY_SECONDS:g} s; their logs are in Ray's session directory"
                )
            time.sleep(_POLL_SECONDS)
            self._restore(self._group)
        answers = sorted(samples.items())
        for runner, sample in answers:
            if sample.error is not None:
                raise EnvError(f"{sample.error} (env runner {runner})")
        if ahead:
            self._make_request(reference, seq_no)
        rollout = join([sample.rollout.tensors() for _, sample in answers])
        return rollout, [sample.metrics for _, sample in answers], seq_no - request.seq_no

    def drop_request(self) -> None:
        """Waits for what was asked for ahead, and throws it away: its weights, or its team, are not the next ones."""
        if self._request is not None:
            self._collect(self._request)

    def _make_request(self, state: ray.ObjectRef, seq_no: int) -> _Request:
        runners = set(self._group.healthy_env_runner_ids()) - self._late
        self._request = _Request(state, seq_no, runners)
        self._ask(state, runners)
        return self._request

    def _collect(self, request: _Request) -> dict[int, RemoteSample]:
        """The answers, by runner."""
        self._request = None
        deadline = time.monotonic() + self._timeout
        waiting = request.runners & set(self._group.healthy_env_runner_ids())
        samples: dict[int, RemoteSample] = {}
        while waiting and (left := deadline - time.monotonic()) > 0:
            ready = self._group.fetch_ready_async_reqs(tags=_TAG, timeout_seconds=min(left, _POLL_SECONDS))
            for runner, sample in ready:
                waiting.discard(runner)
                self._late.discard(runner)
                if sample.weights_seq_no == request.seq_no:
                    samples[runner] = sample
                else:
                    self._ask(request.state, {runner})
                    waiting.add(runner)
            waiting &= set(self._group.healthy_env_runner_ids())
            if any(sample.error is not None for sample in samples.values()):
                break
        self._late |= waiting
        return samples

    def _ask(self, state: ray.ObjectRef, runners: set[int]) -> None:
        if runners:  # RLlib takes an empty list for all of them
            self._group.foreach_env_runner_async(
                "sample_remotely", tag=_TAG, kwargs={"state": state}, remote_worker_ids=sorted(runners)
            )
