"""Results at a URI: what is there after work, what comes back, and what is said where it cannot be."""

import os
import shutil

import pytest
from pyarrow import fs

from rllib_hypermarl.errors import ConfigError, RunFailedError
from rllib_hypermarl.storage import Storage, is_uri


def write(storage, files):
    for name, text in files.items():
        path = storage.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def read(path):
    return {str(p.relative_to(path)): p.read_text() for p in path.rglob("*") if p.is_file()}


RUN = {
    "config.yaml": "a",
    "result.json": "1\n",
    "checkpoint_000002/x/state": "s",
    "checkpoint_000002/manifest.json": "m",
}


@pytest.fixture
def uri(tmp_path):
    return f"file://{tmp_path}/kept"


def test_what_was_sent_comes_back(uri, tmp_path):
    first = Storage(uri)
    first.fetch()
    assert read(first.path) == {}
    write(first, RUN | {".hidden": "h", ".checkpoint_000003.unfinished/x": "h"})
    first.send()
    assert read(tmp_path / "kept") == RUN
    second = Storage(uri)
    second.fetch()
    assert read(second.path) == RUN and second.path != first.path
    write(second, {"result.json": "1\n2\n", "checkpoint_000004/x/state": "t", "checkpoint_000004/manifest.json": "m"})
    shutil.rmtree(second.path / "checkpoint_000002")
    second.send()
    expected = {"config.yaml": "a", "result.json": "1\n2\n"} | {
        k.replace("2", "4"): v for k, v in RUN.items() if "/" in k
    }
    assert read(tmp_path / "kept") == {**expected, "checkpoint_000004/x/state": "t"}
    third = Storage(uri)
    third.fetch(whole=False)
    assert read(third.path) == {"config.yaml": "a", "result.json": "1\n2\n"}
    for storage in (first, second, third):
        storage.discard()
        assert not storage.path.parent.exists()


def test_only_what_has_changed_is_sent(uri, tmp_path):
    storage = Storage(uri)
    write(storage, RUN)
    storage.send()
    for path in (tmp_path / "kept").rglob("*"):
        if path.is_file():
            path.write_text("untouched")
    write(storage, {"result.json": "1\n2\n"})
    storage.send()
    found = read(tmp_path / "kept")
    assert found.pop("result.json") == "1\n2\n" and set(found.values()) == {"untouched"}
    write(storage, {"config.yaml": "b", "result.json": "3"})
    storage.send("config.yaml")
    assert read(tmp_path / "kept")["config.yaml"] == "b" and read(tmp_path / "kept")["result.json"] == "1\n2\n"
    storage.discard()


@pytest.mark.parametrize("sent", range(4))
def test_a_checkpoint_that_was_cut_short_is_not_fetched(uri, tmp_path, sent):
    """Of four files, some arrived: whatever they are, what is fetched is a whole checkpoint or none."""
    kept = tmp_path / "kept"
    storage = Storage(uri)
    write(storage, RUN)
    storage.send()
    times = {name: (kept / name).stat().st_mtime_ns for name in RUN}
    order = sorted(RUN, key=times.get)
    assert order[-1] == "checkpoint_000002/manifest.json"
    for name in order[sent:]:
        (kept / name).unlink()
    other = Storage(uri)
    other.fetch()
    assert not any(name.startswith("checkpoint") for name in read(other.path))
    for made in (storage, other):
        made.discard()


def test_sending_in_the_background_ends_with_the_newest(uri, tmp_path):
    storage = Storage(uri)
    for number in range(50):
        write(storage, {"result.json": str(number)})
        storage.send_soon()
    storage.close()
    assert read(tmp_path / "kept") == {"result.json": "49"}


@pytest.mark.parametrize("moment", ["while it is sent", "while it is about to be sent"])
def test_a_checkpoint_is_sent_whole_even_if_sending_takes_longer_than_it_lives(uri, tmp_path, monkeypatch, moment):
    storage = Storage(uri)
    write(storage, RUN)
    module, slow = {"while it is sent": (fs, "copy_files"), "while it is about to be sent": (os, "link")}[moment]
    function = getattr(module, slow)

    def while_training_goes_on(source, target, **kwargs):
        function(source, target, **kwargs)
        if (storage.path / "checkpoint_000002").exists():
            write(storage, {"checkpoint_000004/manifest.json": "m"})
            (storage.path / "checkpoint_000002").rename(storage.path / ".checkpoint_000002.unfinished")

    monkeypatch.setattr(module, slow, while_training_goes_on)
    storage.send()
    other = Storage(uri)
    other.fetch()
    assert read(other.path) == (RUN if moment == "while it is sent" else {"config.yaml": "a", "result.json": "1\n"})
    storage.close()
    assert set(read(tmp_path / "kept")) == {"config.yaml", "result.json", "checkpoint_000004/manifest.json"}
    other.discard()


def test_a_directory_needs_nothing(tmp_path):
    storage = Storage(tmp_path / "run")
    storage.fetch()
    storage.send()
    storage.send_soon()
    storage.close()
    assert storage.path == tmp_path / "run" and not storage.path.exists()
    assert storage.below("a", "b").path == tmp_path / "run" / "a" / "b"
    assert storage.file_system() == (None, str(tmp_path / "run")) and not is_uri(storage)


def test_names_below_a_uri_keep_its_options():
    storage = Storage("s3://bucket/sweep/?endpoint_override=127.0.0.1:9&scheme=http")
    assert str(storage) == "s3://bucket/sweep?endpoint_override=127.0.0.1:9&scheme=http"
    run = storage.below("candidates", "0003").below("seed_1")
    assert str(run) == "s3://bucket/sweep/candidates/0003/seed_1?endpoint_override=127.0.0.1:9&scheme=http"
    assert run.file_system()[1] == "bucket/sweep/candidates/0003/seed_1"
    assert run.path.name == "seed_1"
    run.discard()


@pytest.mark.parametrize("uri", ["nonsense://x/y", "s3:///", "gs4://bucket/x"])
def test_a_uri_that_is_none_is_named(uri):
    with pytest.raises(ConfigError, match=uri):
        Storage(uri).fetch()


def test_what_cannot_be_written_is_said_and_the_results_stay(uri, tmp_path, capsys):
    storage = Storage(uri)
    write(storage, {"result.json": "1"})
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(ConfigError, match=r"kept: cannot be written"):
        storage.send()
    for _ in range(2):
        storage.send_soon()
        storage.wait()
    assert capsys.readouterr().err.count("results stay in") == 1
    with pytest.raises(RunFailedError, match=f"the results are in {storage.path}"):
        storage.close()
    assert read(storage.path) == {"result.json": "1"}
    (tmp_path / "kept").unlink()
    storage.close()
    assert read(tmp_path / "kept") == {"result.json": "1"}
