"""The driver of a sweep: Optuna proposes, Tune runs the trials, the study remembers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.trial import TrialState
from ray import tune
from ray.tune.search.sample import Domain

from ..errors import ConfigError, RunFailedError, StoppedBySignal
from ..rllib.grammar import read_yaml
from ..rllib.resources import check_bundles
from ..signals import StopSignals
from ..storage import Storage
from .candidate import CANDIDATES, Candidate, candidate_bundles, run_storage
from .results import write_results
from .spec import Dimension, Params, Sweep, get_key
from .study import (
    ENV_STEPS,
    ERROR,
    FATAL,
    NO_SPACE,
    OBJECTIVE,
    PARAMS,
    STUDY_FILE,
    PopulationRecorder,
    StudyPruner,
    StudySearch,
    candidates,
    open_study,
    requeue,
    trial_name,
)  # fmt: skip

SWEEP_FILE = "sweep.yaml"
_SEND_SECONDS = _LOOK_SECONDS = 10.0


class Stopping(tune.Stopper):
    """Ends a session of a sweep early: a signal, the time budget, an error that every candidate would meet, a full
    disk, or a Ray without a living node, for which Tune would wait for ever.

    Trials that are stopped so stay unfinished, and go on in the sweep's next session.
    """

    def __init__(self, seconds: float | None, signals: StopSignals):
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._signals = signals
        self._looked = time.monotonic()
        self.error: str | None = None
        self.no_space: str | None = None
        self.nodes_lost = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.error = self.error or result.get(FATAL)
        self.no_space = self.no_space or result.get(NO_SPACE)
        return False

    def stop_all(self) -> bool:
        late = self._deadline is not None and time.monotonic() >= self._deadline
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            self.nodes_lost = not any(node["Alive"] for node in ray.nodes())
        stopped = self._signals.received is not None or self.error is not None or self.no_space is not None
        return late or stopped or self.nodes_lost


def prepare(sweep: Sweep, directory: Path) -> None:
    """Makes the sweep's directory, or finds that it holds this sweep.

    Args:
        directory: of its storage, fetched.

    Raises:
        ConfigError: it holds something else, or cannot be written.
    """
    file = directory / SWEEP_FILE
    if file.exists():
        sweep.check_same(file)
    elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} is not empty and holds no sweep; choose another --out")
    try:
        (directory / CANDIDATES).mkdir(parents=True, exist_ok=True)
        sweep.to_yaml(file)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def only_driver(directory: Path) -> Iterator[None]:
    """Raises: ConfigError: another process works on this sweep."""
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{directory}: another process works on this sweep") from error
        yield


class StudySender(tune.Callback):
    """Sends the study to the sweep's storage as candidates finish, and every ten seconds."""

    def __init__(self, storage: Storage):
        self._storage, self._sent = storage, time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes its callbacks down

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        if time.monotonic() - self._sent >= _SEND_SECONDS:
            self.on_trial_complete()

    def on_trial_complete(self, *args: Any, **info: Any) -> None:
        self._sent = time.monotonic()
        self._storage.send_or_say(STUDY_FILE)


def run_sweep(
    sweep: Sweep, storage: Storage, report: tune.Callback, signals: StopSignals, wait_for_nodes: float = 0.0
) -> optuna.Study:
    """Runs a sweep, or what is left of it, inside a Ray session.

    Args:
        storage: of the sweep, see `prepare`.
        report: told of results as they come.
        signals: SIGINT and SIGTERM end the session.
        wait_for_nodes: seconds that an autoscaler has to bring what a candidate needs.

    Raises:
        ConfigError: the cluster could never run a candidate, or no candidate can work.
        StoppedBySignal: SIGINT or SIGTERM came; the same command goes on from there.
        RunFailedError: no node of Ray's is left.
        OSError: a disk is full.
    """
    settings = sweep.settings
    directory = storage.path.absolute()
    constant = {
        "config": sweep.base,
        "storage": storage.uri or str(directory),
        "seeds": list(settings.seeds),
        "metric": settings.metric,
        "aggregate": settings.aggregate,
        "report_iterations": settings.report_iterations or sweep.base["evaluation"]["evaluation_interval"] or 10,
        "save_when_stopped": settings.scheduler != "pbt",
        "cpus_per_trial": settings.cpus_per_trial,
        "gpus_per_trial": settings.gpus_per_trial,
    }
    check_bundles(
        candidate_bundles(constant),
        "a candidate's processes",
        "lower tune.cpus_per_trial, or what env runners take",
        wait_for_nodes,
    )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = open_study(sweep, directory)
    design = sweep.design()
    budget = len(design) if design is not None else settings.candidates
    search = StudySearch(sweep, study, budget)
    callbacks = [report, StudySender(storage), *_loggers(settings.loggers)]
    if settings.scheduler == "pbt":
        members = _population(search)
        callbacks.insert(0, PopulationRecorder(search, {number: name for name, (number, _) in members.items()}))
        params = dict(members.values())
        constant |= {
            "candidate": tune.grid_search(list(params)),
            PARAMS: tune.sample_from(lambda spec: _now(sweep, storage, spec.config.candidate, params)),
        }
        engine = {"scheduler": _pbt(sweep)}
    else:
        scheduler = StudyPruner(search) if settings.scheduler == "asha" else tune.schedulers.FIFOScheduler()
        engine = {"scheduler": scheduler, "search_alg": search, "num_samples": -1}
    stopping = Stopping(settings.seconds, signals)
    file_system, tune_path = storage.below("tune").file_system()
    tuner = tune.Tuner(
        Candidate,
        param_space=constant,
        tune_config=tune.TuneConfig(
            **engine,
            max_concurrent_trials=settings.max_concurrent,
            reuse_actors=settings.scheduler != "pbt",  # which would have two actors at one member
            trial_dirname_creator=lambda trial: trial_name(trial.config["candidate"]),
        ),
        run_config=tune.RunConfig(
            name=f"session_{time.strftime('%Y%m%d-%H%M%S')}",
            storage_path=tune_path,
            storage_filesystem=file_system,
            stop=stopping,
            failure_config=tune.FailureConfig(max_failures=settings.max_failures),
            callbacks=callbacks,
            verbose=0,
        ),
    )
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # `report` tells what fails; Tune would in tracebacks
    try:
        with signals.noted():
            tuner.fit()
    finally:
        requeue(study)
        write_results(sweep, study, storage)
    if stopping.no_space:
        raise OSError(errno.ENOSPC, stopping.no_space, str(storage))
    if stopping.error:
        raise ConfigError(stopping.error)
    if signals.received:
        raise StoppedBySignal(signals.received)
    if stopping.nodes_lost:
        raise RunFailedError(
            "Ray has no living node left (was its raylet killed?); the same command goes on from there"
        )
    begun = candidates(study).values()
    if begun and all(trial.state == TrialState.FAIL for trial in begun):
        raise ConfigError(f"no candidate can work: {next(iter(begun)).user_attrs.get(ERROR, 'see above')}")
    return study


# ------------------------------------------------------------------------------------------ population based training


def _population(search: StudySearch) -> dict[str, tuple[int, Params]]:
    """All members that are not through: the name that `search` knows one by -> its candidate and first parameters."""
    members: dict[str, tuple[int, Params]] = {}
    while (suggested := search.suggest(name := f"member {len(members)}")) != StudySearch.FINISHED:
        members[name] = suggested["candidate"], suggested[PARAMS]
    return members


def _now(sweep: Sweep, storage: Storage, candidate: int, params: dict[int, Params]) -> Params:
    """A member's parameters: where it was interrupted, those that its run had come to."""
    run = run_storage(storage, candidate, sweep.settings.seeds[0])
    run.fetch(whole=False)
    file = run.path / "config.yaml"
    groups = read_yaml(file) if file.exists() else None
    run.discard()
    return params[candidate] if groups is None else {key: get_key(groups, key) for key in params[candidate]}


def _pbt(sweep: Sweep) -> tune.schedulers.PopulationBasedTraining:
    settings, stop = sweep.settings, sweep.base["run"]["stop_env_steps"]
    return tune.schedulers.PopulationBasedTraining(
        time_attr=ENV_STEPS,
        metric=OBJECTIVE,
        mode=settings.mode,
        perturbation_interval=settings.perturbation_env_steps or max(1, stop // 8),
        hyperparam_mutations={PARAMS: {dimension.key: _domain(dimension) for dimension in sweep.search}},
    )


def _domain(dimension: Dimension) -> Domain:
    """The dimension for Tune's PBT."""
    if dimension.kind == "choice":
        return tune.choice(dimension.values)
    return (tune.loguniform if dimension.kind == "loguniform" else tune.uniform)(*dimension.values)


def _loggers(named: dict[str, dict[str, Any] | None]) -> list[tune.Callback]:
    """Tune's loggers by name; imported only when asked for."""
    made: list[tune.Callback] = []
    for name, arguments in named.items():
        try:
            if name == "wandb":
                from ray.air.integrations.wandb import WandbLoggerCallback as Logger
            elif name == "mlflow":
                from ray.air.integrations.mlflow import MLflowLoggerCallback as Logger
            else:
                raise ConfigError(f"tune.loggers: {name!r} is not known; there are wandb and mlflow")
            made.append(Logger(**(arguments or {})))
        except (ImportError, RuntimeError, TypeError) as error:
            raise ConfigError(f"tune.loggers.{name}: {' '.join(str(error).split())}") from error
    return made
