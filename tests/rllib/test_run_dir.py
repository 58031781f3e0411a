"""The files of a run: Tune's formats, no row lost, none repeated."""

import csv
import json
import math
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.errors import ConfigError
from rllib_hypermarl.rllib.run_dir import RunDir, check_same_run
from tests.helpers import game


def result(iteration, **more):
    return {
        "training_iteration": iteration,
        "env_runners": {"agent_return_mean": iteration / 10, "by_agent": {"left": 1.0}},
        "num_env_steps_sampled_lifetime": 128 * iteration,
        "config": {"lr": 1},
        **more,
    }


def write(path, iterations, start=0, **more):
    files = RunDir(path, start)
    for iteration in iterations:
        files.append(result(iteration, **more))
    files.close()
    return files


def iterations(path):
    return [json.loads(line)["training_iteration"] for line in (path / "result.json").read_text().splitlines()]


def csv_rows(path):
    with (path / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scalars(path, tag):
    """Step and value as TensorBoard shows them: what an earlier session wrote from a later one's start on is void."""
    found = {}
    for file in sorted(path.glob("events.out.tfevents.*")):
        content = file.read_bytes()
        while content:  # records of: length, its checksum, data, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == SessionLog.START:
                found = {step: value for step, value in found.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == tag:
                    found[event.step] = round(value.simple_value, 5)
    return found


def test_rows_are_in_tune_s_formats(tmp_path):
    write(tmp_path, [1, 2], flag=False)
    first, second = (json.loads(line) for line in (tmp_path / "result.json").read_text().splitlines())
    assert "config" not in first
    assert second["env_runners"] == {"agent_return_mean": 0.2, "by_agent": {"left": 1.0}}
    rows = csv_rows(tmp_path)
    assert [row["env_runners/agent_return_mean"] for row in rows] == ["0.1", "0.2"]
    assert rows[0]["env_runners/by_agent/left"] == "1.0"
    assert scalars(tmp_path, "ray/tune/env_runners/agent_return_mean") == {1: 0.1, 2: 0.2}
    assert scalars(tmp_path, "ray/tune/flag") == {}


def test_a_column_that_comes_later_gets_its_place(tmp_path):
    files = RunDir(tmp_path)
    files.append(result(1, evaluation={"x": math.nan}))
    files.append(result(2, evaluation={"x": 5.0}))
    files.append(result(3))
    files.close()
    assert [row["evaluation/x"] for row in csv_rows(tmp_path)] == ["", "5.0", ""]
    assert "evaluation" not in json.loads((tmp_path / "result.json").read_text().splitlines()[0])


def test_rows_newer_than_the_checkpoint_are_dropped(tmp_path):
    write(tmp_path, [1, 2, 3, 4, 5, 6])
    write(tmp_path, [3, 4, 5], start=2)
    assert iterations(tmp_path) == [1, 2, 3, 4, 5]
    assert [row["training_iteration"] for row in csv_rows(tmp_path)] == ["1", "2", "3", "4", "5"]
    assert list(scalars(tmp_path, "ray/tune/env_runners/agent_return_mean")) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("cut", [1, 20])
def test_a_last_line_that_was_cut_is_healed(tmp_path, cut):
    write(tmp_path, [1, 2, 3])
    text = (tmp_path / "result.json").read_text()
    (tmp_path / "result.json").write_text(text[: -1 - cut])
    assert [row["training_iteration"] for row in RunDir(tmp_path, 3).read()] == [1, 2]
    write(tmp_path, [3, 4], start=2)
    assert iterations(tmp_path) == [1, 2, 3, 4]


def test_a_last_line_without_its_end_is_whole(tmp_path):
    write(tmp_path, [1, 2])
    text = (tmp_path / "result.json").read_text()
    (tmp_path / "result.json").write_text(text.rstrip("\n"))
    write(tmp_path, [3], start=2)
    assert iterations(tmp_path) == [1, 2, 3]


def test_a_run_that_has_no_row_yet_has_no_empty_files(tmp_path):
    RunDir(tmp_path).close()
    assert not (tmp_path / "result.json").exists()


# ------------------------------------------------------------------------------------------------------- the same run


def config(*overrides):
    return HyperMARLConfig.from_groups(game(*overrides))


def test_a_run_of_the_same_config_goes_on_and_of_another_does_not(tmp_path):
    assert check_same_run(tmp_path / "new", config()) is False
    assert check_same_run(tmp_path, config()) is False  # empty
    RunDir.create(tmp_path, config())
    assert check_same_run(tmp_path, config("training.lr=0.5")) is False  # it never began: the place is free
    write(tmp_path, [1])
    assert check_same_run(tmp_path, config()) is True
    assert check_same_run(tmp_path, config("run.stop_env_steps=1000", "run.checkpoint_seconds=1")) is True
    for override, words in (
        ("training.lr=0.5", "training.lr is 0.001 there and 0.5 here"),
        ("env_config.n_agents=5", "env_config.n_agents is 4 there and 5 here"),
        ("run.seed=1", "run.seed is 0 there and 1 here"),
        ("env=games/synchronisation", "env is 'games/specialisation' there"),
        ("policies={team: '*'}", "policies."),
    ):
        with pytest.raises(ConfigError, match=words):
            check_same_run(tmp_path, config(override))


def test_a_directory_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        check_same_run(tmp_path, config())
    with pytest.raises(ConfigError, match="is a file"):
        check_same_run(tmp_path / "thesis.tex", config())


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "run", "/proc/run"):
        with pytest.raises(ConfigError, match="cannot be written"):
            RunDir.create(type(tmp_path)(path), config())
