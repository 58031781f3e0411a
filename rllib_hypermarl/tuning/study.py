"""Optuna's study as the one record of a sweep, and what Tune needs to work from it.

The study lies in SQLite in the sweep's directory, and only the sweep's driver writes to it. A driver that was killed
leaves trials RUNNING: the next one hands them out again, and their candidates go on from their own checkpoints.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from ..errors import RunFailedError
from .spec import Params, Sweep

OBJECTIVE, ENV_STEPS, SEED_VALUES, PARAMS = "objective", "env_steps", "seed_values", "params"
TRAINED = "trained_env_steps"
"""Key of a candidate's results: its env steps by now, where ENV_STEPS are those of its last values."""
ERROR, FATAL = "error", "fatal"
"""Keys of a candidate's results, and of a trial's user attributes: why it failed, and why all others would."""
NO_SPACE = "no_space"
"""Key of a candidate's results: its disk is full. It has not failed, and goes on when there is room."""
STUDY_FILE, STUDY_NAME = "study.db", "sweep"
_PLACE = "place"  # of a candidate in a design


def storage_url(directory: Path) -> str:
    """For `optuna.load_study(study_name=STUDY_NAME, storage=...)`, `optuna-dashboard` and the like."""
    return f"sqlite:///{(directory / STUDY_FILE).absolute()}"


def open_study(sweep: Sweep, directory: Path) -> optuna.Study:
    """The sweep's study, with its designed candidates waiting in it, and nothing left RUNNING."""
    settings = sweep.settings
    storage = RDBStorage(storage_url(directory))
    finished = len(storage.get_all_studies()) and len(
        optuna.load_study(study_name=STUDY_NAME, storage=storage).get_trials(deepcopy=False)
    )
    study = optuna.create_study(
        study_name=STUDY_NAME,
        storage=storage,
        load_if_exists=True,
        direction="maximize" if settings.mode == "max" else "minimize",
        # Taken up again, TPE must not repeat the draws that it began with.
        sampler=optuna.samplers.TPESampler(seed=settings.sampler_seed + finished, constant_liar=True),
        pruner=_pruner(sweep),
    )
    requeue(study)
    there = {trial.user_attrs.get(_PLACE) for trial in study.get_trials(deepcopy=False)}
    for place, params in enumerate(sweep.design() or ()):
        if place not in there:
            study.enqueue_trial(params, user_attrs={_PLACE: place})
    return study


def requeue(study: optuna.Study) -> None:
    """Lets trials that were begun and not finished wait to be taken up again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        again = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        again(study, trial)


def trial_name(number: int) -> str:
    """A trial is its candidate by name: PBT copies the configs of others, numbers in them included."""
    return f"candidate_{number:04d}"


def number_of(path: str | Path) -> int:
    """A candidate's number, from a path that ends in its trial's name."""
    return int(Path(path).name.rpartition("_")[2])


def candidate_of(trial: FrozenTrial) -> int:
    """Number of the candidate that a trial trains: the first trial's that did."""
    return trial.system_attrs.get("retry_history", [trial.number])[0]


def candidates(study: optuna.Study) -> dict[int, FrozenTrial]:
    """The last trial of every candidate that has begun; one that was interrupted is WAITING."""
    trials = study.get_trials(deepcopy=False)
    begun = [t for t in trials if t.state != TrialState.WAITING or candidate_of(t) != t.number]
    return {candidate_of(trial): trial for trial in begun}


def _pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    """ASHA; its rungs are kept in the study, and so outlive the driver."""
    settings, stop = sweep.settings, sweep.base["run"]["stop_env_steps"]
    if settings.scheduler != "asha":
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=settings.grace_env_steps or max(1, stop // settings.reduction_factor**2),
        reduction_factor=settings.reduction_factor,
    )


class StudySearch(Searcher):
    """Candidates from a study.

    Args:
        budget: number of candidates of the whole sweep, finished ones included.
    """

    def __init__(self, sweep: Sweep, study: optuna.Study, budget: int):
        super().__init__(metric=OBJECTIVE, mode=sweep.settings.mode)
        self._sweep, self._study, self._budget = sweep, study, budget
        self._stop: int = sweep.base["run"]["stop_env_steps"]
        self._trials: dict[str, optuna.Trial] = {}
        self._reported: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        waiting = any(t.state == TrialState.WAITING for t in self._study.get_trials(deepcopy=False))
        if not waiting and len(candidates(self._study)) >= self._budget:
            return Searcher.FINISHED
        trial = self._trials[trial_id] = self._study.ask()
        params = self._sweep.suggest(trial)
        return {"candidate": candidate_of(self._study.get_trials(deepcopy=False)[trial.number]), PARAMS: params}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.report(trial_id, result)

    def report(self, trial_id: str, result: dict[str, Any]) -> None:
        """Writes an intermediate value down, once."""
        step, value = result[ENV_STEPS], result[OBJECTIVE]
        if self._reported.get(trial_id, -1) < step and not math.isnan(value):
            self._reported[trial_id] = step
            self._trials[trial_id].report(value, step)

    def should_prune(self, trial_id: str) -> bool:
        """Whether the study's pruner gives a trial up; not one that is through."""
        return self._reported.get(trial_id, 0) < self._stop and self._trials[trial_id].should_prune()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._trials[trial_id]
        value = math.nan if result is None else result.get(OBJECTIVE, math.nan)
        if error or math.isnan(value):
            if result is not None and ERROR in result:
                trial.set_user_attr(ERROR, result[ERROR])
            self._study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_user_attr(ENV_STEPS, result[ENV_STEPS])
        trial.set_user_attr(SEED_VALUES, list(result[SEED_VALUES]))
        if PARAMS in result:
            trial.set_user_attr(PARAMS, result[PARAMS])
        whole = result[ENV_STEPS] >= self._stop
        if whole:
            self._study.tell(trial, value)
        else:  # its value is the one that was reported last
            self._study.tell(trial, state=TrialState.PRUNED)

    # Tune saves its searcher now and then; what this one knows is on disk already.
    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise RunFailedError("run the sweep's command again: it goes on from the study")


class PopulationRecorder(tune.Callback):
    """Writes down what members of a population reach; Tune lets no searcher do it beside its PBT.

    Args:
        members: candidate -> the name that `search` knows it by.
    """

    def __init__(self, search: StudySearch, members: dict[int, str]):
        self._search, self._members = search, members

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        self._search.report(self._members[number_of(trial.local_path)], result)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        result = {**trial.last_result, PARAMS: trial.config[PARAMS]}
        self._search.on_trial_complete(self._members[number_of(trial.local_path)], result)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._search.on_trial_complete(self._members[number_of(trial.local_path)], error=True)


class StudyPruner(FIFOScheduler):
    """Stops the trials that the study's pruner gives up."""

    def __init__(self, search: StudySearch):
        super().__init__()
        self._search = search

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self._search.report(trial.trial_id, result)
        return self.STOP if self._search.should_prune(trial.trial_id) else self.CONTINUE


def decoded(sweep: Sweep, trial: FrozenTrial) -> Params:
    """A trial's parameters as the config has them; after population based training, those it ended with."""
    return trial.user_attrs.get(PARAMS) or {
        d.key: d.decoded(trial.params[d.key]) for d in sweep.search if d.key in trial.params
    }
