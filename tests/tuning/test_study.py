"""The study is the record: who is asked for, judged, given up, interrupted, and taken up again."""

import math

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from rllib_hypermarl.storage import Storage
from rllib_hypermarl.tuning.results import rank, write_results
from rllib_hypermarl.tuning.spec import Sweep
from rllib_hypermarl.tuning.study import STUDY_NAME, StudySearch, candidates, open_study, storage_url
from tests.helpers import game

STOP = 384  # env steps, of `game`
BASE = game("evaluation.evaluation_interval=1", "evaluation.evaluation_duration=2")


def sweep(search=None, **settings):
    return Sweep(BASE, search or {"training.lr": {"loguniform": [1e-4, 1e-2]}}, {"candidates": 4, **settings})


def opened(made, path):
    study = open_study(made, path)
    design = made.design()
    return study, StudySearch(made, study, made.settings.candidates if design is None else len(design))


def result(value, env_steps=STOP):
    seeds = [value - 1, value + 1]
    return {"objective": value, "env_steps": env_steps, "seed_values": seeds}


def states(study):
    return [trial.state for trial in study.get_trials()]


def test_as_many_candidates_as_the_budget_has(tmp_path):
    study, search = opened(sweep(), tmp_path)
    for i in range(4):
        suggested = search.suggest(f"t{i}")
        assert suggested["candidate"] == i and 1e-4 <= suggested["params"]["training.lr"] <= 1e-2
        search.on_trial_complete(f"t{i}", result(float(i)))
    assert search.suggest("t4") == Searcher.FINISHED
    assert states(study) == [TrialState.COMPLETE] * 4
    assert study.best_value == 3.0


def test_a_bigger_budget_goes_on_with_other_candidates(tmp_path):
    study, search = opened(sweep(), tmp_path)
    for i in range(4):
        search.suggest(f"t{i}")
        search.on_trial_complete(f"t{i}", result(float(i)))
    study, search = opened(sweep(candidates=6), tmp_path)
    assert [search.suggest(f"u{i}")["candidate"] for i in range(2)] == [4, 5]
    assert search.suggest("u2") == Searcher.FINISHED
    assert len({trial.params["training.lr"] for trial in study.get_trials()}) == 6


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_what_a_killed_driver_left_is_taken_up_as_the_same_candidate(tmp_path, sampler):
    _, search = opened(sweep(sampler=sampler), tmp_path)
    first = [search.suggest(f"t{i}") for i in range(3)]
    search.report("t1", result(0.5, 128))
    search.on_trial_complete("t0", result(1.0))

    study, search = opened(sweep(sampler=sampler), tmp_path)  # 1 and 2 were running
    assert TrialState.RUNNING not in states(study)
    again = [search.suggest(f"u{i}") for i in range(3)]
    (new,) = [suggested for suggested in again if suggested not in first]
    assert first[1] in again and first[2] in again
    assert new["candidate"] not in (0, 1, 2) and new["params"] not in [c["params"] for c in first]
    assert search.suggest("u3") == Searcher.FINISHED
    for i in range(3):
        search.on_trial_complete(f"u{i}", result(2.0))
    assert [trial.state for trial in candidates(study).values()] == [TrialState.COMPLETE] * 4


def test_interrupted_twice_it_is_still_the_same_candidate(tmp_path):
    for _ in range(3):
        study, search = opened(sweep(candidates=1), tmp_path)
        assert search.suggest("t")["candidate"] == 0
    search.on_trial_complete("t", result(1.0))
    assert list(candidates(study)) == [0]


def test_a_grid_is_worked_through_once_and_whatever_happens(tmp_path):
    search = {"hypermarl.hypernet_hidden": {"grid": [[4], [8]]}, "training.lr": {"grid": [0.1, 0.2]}}
    _, searcher = opened(sweep(search), tmp_path)
    seen = [searcher.suggest("t0")["params"]]
    searcher.on_trial_complete("t0", result(1.0))
    searcher.suggest("t1")
    _, searcher = opened(sweep(search), tmp_path)
    while (suggested := searcher.suggest(f"u{len(seen)}")) != Searcher.FINISHED:
        seen.append(suggested["params"])
    expected = [{"hypermarl.hypernet_hidden": [h], "training.lr": lr} for h in (4, 8) for lr in (0.1, 0.2)]
    assert sorted(seen, key=str) == sorted(expected, key=str)


def test_rungs_outlive_the_driver(tmp_path):
    made = sweep(scheduler="asha", grace_env_steps=128, reduction_factor=3, candidates=9)
    _, search = opened(made, tmp_path)
    for i, value in enumerate((3.0, 2.0, 1.0)):
        search.suggest(f"t{i}")
        search.report(f"t{i}", result(value, 128))
        assert search.should_prune(f"t{i}") == (i > 0)
        search.on_trial_complete(f"t{i}", result(value, 128 if i else STOP))
    study, search = opened(made, tmp_path)
    search.suggest("bad"), search.suggest("good")
    search.report("bad", result(2.9, 128))
    assert search.should_prune("bad")
    search.report("good", result(3.5, 128))
    assert not search.should_prune("good")
    assert states(study)[:3] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED]


def test_a_candidate_that_is_through_is_not_pruned(tmp_path):
    _, search = opened(sweep(scheduler="asha", grace_env_steps=STOP), tmp_path)
    for i, value in enumerate((3.0, 1.0, 1.0, 1.0)):
        search.suggest(f"t{i}")
        search.report(f"t{i}", result(value))
        assert not search.should_prune(f"t{i}")


def test_what_fails_is_failed_with_its_reason(tmp_path):
    made = sweep(candidates=2)
    study, search = opened(made, tmp_path)
    search.suggest("t0"), search.suggest("t1")
    search.on_trial_complete("t0", {**result(math.nan, 0), "seed_values": [], "error": "no such luck"})
    search.on_trial_complete("t1", error=True)
    assert states(study) == [TrialState.FAIL] * 2
    assert rank(made, study)[0]["error"] == "no such luck"
    assert search.suggest("t2") == Searcher.FINISHED


@pytest.mark.parametrize(("mode", "best"), [("max", [3.0, 1.0]), ("min", [1.0, 3.0])])
def test_the_ranking_puts_what_was_trained_to_the_end_first(tmp_path, mode, best):
    made = sweep(candidates=5, mode=mode)
    study, search = opened(made, tmp_path)
    for i, (value, steps) in enumerate([(1.0, STOP), (9.0, 128), (3.0, STOP), (5.0, 256)]):
        search.suggest(f"t{i}")
        search.report(f"t{i}", result(value, steps))
        search.on_trial_complete(f"t{i}", result(value, steps))
    rows = rank(made, study)
    assert [row["value"] for row in rows] == [*best, 5.0, 9.0]
    assert [row["state"] for row in rows] == ["done", "done", "pruned", "pruned"]
    assert rows[0]["seeds"] == [best[0] - 1, best[0] + 1]


def test_the_page_and_optuna_read_the_study(tmp_path):
    made = sweep(candidates=6)
    study, search = opened(made, tmp_path)
    for i in range(6):
        search.suggest(f"t{i}")
        search.on_trial_complete(f"t{i}", result(float(i), 128))
    write_results(made, study, Storage(tmp_path))
    page = (tmp_path / "index.html").read_text()
    assert "training.lr" in page and page.count("<tr>") == 7
    loaded = optuna.load_study(study_name=STUDY_NAME, storage=storage_url(tmp_path))
    assert len(loaded.trials) == 6
