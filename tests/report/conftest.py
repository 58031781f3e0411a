"""A small store of runs, and a report on it."""

import json

import pytest

from rllib_hypermarl.report import statistics, write
from rllib_hypermarl.report.write import write_report
from tests.report.stores import small_store


@pytest.fixture
def few_resamples(monkeypatch):
    """Narrow intervals are not what most tests are about."""
    monkeypatch.setattr(statistics, "REPS", 20)


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(write, "task_figures", lambda task, threshold: {})


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    return small_store(tmp_path_factory.mktemp("runs") / "store")


@pytest.fixture(scope="session")
def made(store, tmp_path_factory):
    """The directory of a report on the store."""
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "REPS", 20)
        write_report([(str(store), store)], out, threshold=0.5)
    return out


@pytest.fixture
def numbers(made):
    return json.loads((made / "report.json").read_text())
