"""What a checkpoint holds, and what the library says about one that is missing or damaged."""

import json
import os
import pickle
import shutil
import signal

import pytest
import torch

from rllib_hypermarl import HyperMARL, HyperMARLConfig
from rllib_hypermarl.errors import ActorsLostError, CheckpointError, StoppedBySignal
from rllib_hypermarl.rllib import checkpoints
from rllib_hypermarl.rllib.train import TrainingRun, train
from rllib_hypermarl.storage import Storage
from tests.helpers import STEPS, comparable, game, same, weights

pytestmark = pytest.mark.usefixtures("ray_session")


def build(*overrides):
    return HyperMARLConfig.from_groups(game(*overrides)).build_algo()


def train_on(algo, iterations):
    """Results and final weights of some more iterations; ends the algorithm."""
    found = [comparable(algo.train()) for _ in range(iterations)]
    learned = weights(algo)
    algo.stop()
    return found, learned


def equal(first, second):
    """Whether two outcomes of `train_on` are equal bit for bit."""
    (rows, learned), (other_rows, other_learned) = first, second
    return all(same(a, b) for a, b in zip(rows, other_rows, strict=True)) and all(
        torch.equal(value, other_learned[name]) for name, value in learned.items()
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint after three iterations of the game, in the middle of its episodes; nobody changes it."""
    algo = build()
    for _ in range(3):
        algo.train()
    path = checkpoints.save(algo, tmp_path_factory.mktemp("run"))
    algo.stop()
    return path


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / saved.name)


# --------------------------------------------------------------------------------------------------------- going on


def test_on_a_game_a_resumed_run_is_the_run_that_never_stopped(saved):
    never_stopped = build()
    for _ in range(3):
        never_stopped.train()
    resumed = checkpoints.load(saved)
    assert (resumed.iteration, resumed.env_steps) == (3, 3 * STEPS)
    assert equal(train_on(resumed, 3), train_on(never_stopped, 3))


def test_seconds_of_training_go_on(tmp_path):
    algo = build()
    before = [algo.train()["time_total_s"] for _ in range(2)][-1]
    resumed = checkpoints.load(checkpoints.save(algo, tmp_path))
    result = resumed.train()
    assert result["time_total_s"] == pytest.approx(before + result["time_this_iter_s"])
    algo.stop()
    resumed.stop()


def test_a_resumed_run_that_evaluates_is_the_run_that_never_stopped(tmp_path):
    evaluating = ("evaluation.evaluation_interval=2", "evaluation.evaluation_duration=3")
    never_stopped = build(*evaluating)
    for _ in range(3):
        never_stopped.train()
    checkpoint = checkpoints.save(never_stopped, tmp_path)
    assert equal(train_on(checkpoints.load(checkpoint), 3), train_on(never_stopped, 3))


@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_a_resumed_team_with_memory_remembers(tmp_path, memory):
    """Bit for bit, from the middle of an episode; without what it remembered, it is another run."""
    game = "env=games/recall", "env_config={n_agents: 4, delay: 3}", f"hypermarl.memory={memory}"
    never_stopped = build(*game, "hypermarl.memory_size=8")
    never_stopped.train()
    checkpoint = checkpoints.save(never_stopped, tmp_path)
    forgetful = checkpoints.load(checkpoint)
    for kept in forgetful.env_runner._memory.values():
        assert kept.state.any()
        kept.state.zero_()
    expected = train_on(never_stopped, 2)
    assert equal(train_on(checkpoints.load(checkpoint), 2), expected)
    assert not equal(train_on(forgetful, 2), expected)


@pytest.mark.parametrize(
    "overrides",
    [
        ("env=vmas/dispersion", "env_config={n_agents: 4, max_steps: 12, continuous_actions: false}"),
        ("env=tests.faulty_envs:GoodEnv", "env_config={horizon: 12}"),
    ],
)
def test_where_an_env_cannot_save_its_state_two_resumes_are_equal_and_counters_go_on(tmp_path, overrides):
    algo = build(*overrides)
    for _ in range(2):
        algo.train()
    checkpoint = checkpoints.save(algo, tmp_path)
    learned = weights(algo)
    algo.stop()
    first = checkpoints.load(checkpoint)
    assert all(torch.equal(value, learned[name]) for name, value in weights(first).items())
    assert (first.iteration, first.env_steps) == (2, 2 * STEPS)
    outcome = train_on(first, 2)
    assert [row["num_env_steps_sampled_lifetime"] for row in outcome[0]] == [3 * STEPS, 4 * STEPS]
    assert equal(outcome, train_on(checkpoints.load(checkpoint), 2))


def test_the_comparison_can_fail(saved, copy):
    """Without Adam's moments the very next iteration differs."""
    path = copy / "learner_group/learner/state.pkl"
    state = pickle.loads(path.read_bytes())
    (optimizer,) = state["optimizer"].values()
    for slots in optimizer["state"]["state"].values():
        slots["exp_avg"][...] = 0
    path.write_bytes(pickle.dumps(state))
    (copy / checkpoints.MANIFEST).unlink()
    assert not equal(train_on(checkpoints.load(copy), 1), train_on(checkpoints.load(saved), 1))


def test_rllib_s_own_restore_works_too(saved):
    restored = HyperMARL.from_checkpoint(str(saved))
    into = build()
    into.restore_from_path(str(saved))
    assert into.env_steps == restored.env_steps == 3 * STEPS
    assert equal(train_on(into, 1), train_on(restored, 1))


# ------------------------------------------------------------------------------------------------------ saving, finding


def test_a_checkpoint_has_a_manifest_of_all_its_files(saved):
    manifest = checkpoints.verify(saved)
    on_disk = {str(p.relative_to(saved)) for p in saved.rglob("*") if p.is_file()} - {checkpoints.MANIFEST}
    assert set(manifest["sha256"]) == on_disk
    assert (manifest["iteration"], manifest["env_steps"]) == (3, 3 * STEPS)


def test_the_newest_two_are_kept_and_nothing_unfinished_is_left(tmp_path):
    algo = build()
    (tmp_path / ".checkpoint_000001.unfinished").mkdir()
    (tmp_path / ".checkpoint_000001.unfinished" / "half").write_text("x")
    for _ in range(4):
        algo.train()
        checkpoints.save(algo, tmp_path)
    algo.stop()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_000003", "checkpoint_000004"]
    assert checkpoints.find(tmp_path).name == "checkpoint_000004"


def test_checkpoints_at_milestones_stay(tmp_path):
    algo = build(f"run.milestone_env_steps={2 * STEPS}", "run.checkpoint_seconds=1000")
    run = TrainingRun(algo, Storage(tmp_path), algo.config)
    for _ in range(7):
        run.iterate()
        assert run.algo.iteration != 5 or run.save()  # between milestones: goes as others do
    run.save()
    run.close()
    algo.stop()
    assert [path.name[-1] for path in checkpoints.list_checkpoints(tmp_path)] == ["2", "4", "6", "7"]


def test_a_save_that_fails_leaves_no_checkpoint(tmp_path, monkeypatch):
    algo = build()
    algo.train()
    save_to_path = HyperMARL.save_to_path

    def full_disk(self, path):
        save_to_path(self, path)
        raise OSError("no space left on device")

    monkeypatch.setattr(HyperMARL, "save_to_path", full_disk)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save(algo, tmp_path)
    assert checkpoints.list_checkpoints(tmp_path) == []
    monkeypatch.undo()
    assert checkpoints.verify(checkpoints.save(algo, tmp_path))
    algo.stop()


def test_what_is_no_checkpoint_is_named(tmp_path, saved):
    for path, words in ((tmp_path / "none", "no such run or checkpoint"), (tmp_path, "holds no checkpoint")):
        with pytest.raises(CheckpointError, match=words):
            checkpoints.find(path)
    assert checkpoints.find(saved) == checkpoints.find(saved.parent) == saved


# -------------------------------------------------------------------------------------------------------------- damage


def complaint(checkpoint):
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(checkpoint)
    message = str(caught.value)
    assert message.startswith(str(checkpoint))
    assert "\n" not in message
    return message


def names(saved):
    return sorted(str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file())


def test_every_file_that_is_missing_cut_or_changed_is_named(saved, copy):
    assert len(names(saved)) > 15
    for name in set(names(saved)) - {checkpoints.MANIFEST}:
        path, content = copy / name, (saved / name).read_bytes()
        path.unlink()
        assert f"{name} is missing" in complaint(copy)
        for damaged in (b"", content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1])):
            path.write_bytes(damaged)
            assert f"{name} is damaged" in complaint(copy)
        path.write_bytes(content)
    assert checkpoints.verify(copy)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"words"', "{}", '{"sha256": []}', '{"sha256": {"a": 1}}']
)
def test_a_manifest_that_is_none_is_named(copy, text):
    (copy / checkpoints.MANIFEST).write_text(text)
    complaint(copy)


def test_a_manifest_that_is_not_text_is_named(copy):
    (copy / checkpoints.MANIFEST).write_bytes(b"\xff\xfe\x00garbage")
    assert "manifest.json is damaged" in complaint(copy)


def test_another_algorithm_s_checkpoint_is_refused(copy, saved):
    (copy / checkpoints.MANIFEST).unlink()
    path = copy / "class_and_ctor_args.pkl"
    content = pickle.loads(path.read_bytes())
    content["class"] = dict
    path.write_bytes(pickle.dumps(content))
    complaint(copy)


def test_the_manifest_is_json_for_everybody(saved):
    assert json.loads((saved / checkpoints.MANIFEST).read_text())["versions"]["ray"] == "2.60.0"


@pytest.mark.parametrize(("signum", "ends_with"), [(signal.SIGTERM, StoppedBySignal), (None, ActorsLostError)])
def test_learners_that_die_of_a_signal_to_all_processes_are_no_failure(saved, tmp_path, monkeypatch, signum, ends_with):
    algo = checkpoints.load(saved)

    def die():
        if signum:
            os.kill(os.getpid(), signum)
        raise ActorsLostError("a learner failed")

    monkeypatch.setattr(algo, "train", die)
    with pytest.raises(ends_with):
        train(algo, Storage(tmp_path / "run"), stop_env_steps=100 * STEPS, settings=algo.config)
    algo.stop()


def test_a_stop_by_a_signal_can_be_copied_as_tune_does():
    assert str(pickle.loads(pickle.dumps(StoppedBySignal(signal.SIGINT)))) == "stopped by SIGINT"
