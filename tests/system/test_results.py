"""What the pages of results say makes their numbers does make them."""

import re
import shlex

import pytest

from rllib_hypermarl.cli.app import run
from rllib_hypermarl.report import write
from tests.helpers import ROOT

pytestmark = pytest.mark.system

PAGES = [ROOT / "docs/results.md", *sorted((ROOT / "docs/results").glob("*.md"))]
NAMED = re.compile(r"`(?:python -m rllib_hypermarl )?(report docs/results[^`]*)`((?:[^`]*`--until \d+`)*)")
"""A command, and the other ends it is also given: "`report ...`, and with `--until 2500000`"."""


def commands(text):
    for command, others in NAMED.findall(re.sub(r"\s+", " ", text)):
        yield command
        for until in re.findall(r"--until \d+", others):
            yield re.sub(r" --until \d+|$", f" {until}", command, count=1)


COMMANDS = [
    pytest.param(found, id=f"{page.stem}-{i}") for page in PAGES for i, found in enumerate(commands(page.read_text()))
]


@pytest.fixture(scope="module")
def committed():
    """What the committed JSON files hold, runs aside."""
    return {file.read_bytes() for file in (ROOT / "docs/results").glob("*/*.json")}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_report_that_a_page_names_is_committed_byte_for_byte(command, committed, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "task_figures", lambda task, threshold: {})  # numbers, not pixels
    monkeypatch.chdir(ROOT)
    assert run([*shlex.split(command), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.json").read_bytes() in committed, "make it again, and look at the page's figures"


def test_most_studies_name_their_report():
    assert len(COMMANDS) >= 30
