"""Every kind of damage to a checkpoint is one line on stderr and exit status 1: no traceback, no hang."""

import shutil

import pytest

from rllib_hypermarl.cli import run
from rllib_hypermarl.rllib import checkpoints
from tests.helpers import run as run_process
from tests.helpers import write_config

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def trained(tmp_path_factory, ray_session):
    directory = tmp_path_factory.mktemp("damage")
    assert run(["train", str(write_config(directory)), "--out", str(directory / "run")]) == 0
    return checkpoints.find(directory / "run")


@pytest.fixture
def run_dir(trained, tmp_path):
    return shutil.copytree(trained.parent, tmp_path / "run")


def files(checkpoint):
    return sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())


def damages(content):
    return (None, b"", content[: len(content) // 2], content[:-1], b"garbage \xff", b"[]", b"null")


def damage(path, content):
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


def complaint(capfd, *arguments):
    """The one line that a command ends with."""
    capfd.readouterr()
    assert run([str(argument) for argument in arguments]) == 1
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.timeout(600)
def test_of_every_file_with_a_manifest(trained, run_dir, capfd):
    checkpoint = run_dir / trained.name
    assert len(files(trained)) > 15
    for name in files(trained):
        whole = (trained / name).read_bytes()
        for content in damages(whole):
            if name == checkpoints.MANIFEST and content is None:
                continue  # then it is a checkpoint as RLlib writes it: the next test
            damage(checkpoint / name, content)
            assert f"{name} is " in complaint(capfd, "resume", run_dir)
        damage(checkpoint / name, whole)
    assert run(["resume", str(run_dir)]) == 0


@pytest.mark.timeout(600)
def test_of_every_file_without_a_manifest(trained, run_dir, capfd):
    """RLlib's and Tune's own checkpoints have none: what the loader stumbles over is told in one line as well."""
    checkpoint = run_dir / trained.name
    (checkpoint / checkpoints.MANIFEST).unlink()
    harmless = set()
    for name in set(files(trained)) - {checkpoints.MANIFEST}:
        whole = (trained / name).read_bytes()
        for content in (None, whole[: len(whole) // 2], b"null"):
            damage(checkpoint / name, content)
            capfd.readouterr()
            status = run(["evaluate", str(run_dir), "--episodes", "1"])
            if status == 0:
                harmless.add(name)
                continue
            error = capfd.readouterr().err
            assert (status, error.count("\n"), error[:7]) == (1, 1, "error: "), error
        damage(checkpoint / name, whole)
    # RLlib does not read these when it restores a whole algorithm; nothing of the run's state is in them.
    assert all(name.endswith(("metadata.json", "class_and_ctor_args.pkl")) for name in harmless), harmless


def test_of_the_directory(trained, run_dir, capfd):
    checkpoint = run_dir / trained.name
    shutil.rmtree(checkpoint / "learner_group")
    assert "is missing; the checkpoint is damaged" in complaint(capfd, "resume", run_dir)
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    assert "manifest.json is missing" in complaint(capfd, "resume", run_dir)
    assert "manifest.json is missing" in complaint(capfd, "evaluate", checkpoint)


def test_a_real_process_says_it_in_one_line_too(trained, run_dir):
    (run_dir / trained.name / "algorithm_state.pkl").write_bytes(b"garbage")
    for command in ("resume", "evaluate"):
        done = run_process(command, run_dir, cwd=run_dir.parent)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert "algorithm_state.pkl is damaged" in line
