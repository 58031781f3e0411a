"""What the pages of results say makes their numbers does make them."""

import re
import shlex

import pytest

from rllib_hypermarl.cli.app import run
from rllib_hypermarl.report import write
from tests.helpers import ROOT

pytestmark = pytest.mark.system

PAGES = [ROOT / "docs/results.md", *sorted((ROOT / "docs/results").glob("*.md"))]
COMMANDS = [
    pytest.param(re.sub(r"\s+", " ", found), id=f"{page.stem}-{i}")
    for page in PAGES
    for i, found in enumerate(re.findall(r"`(report docs/results[^`]*)`", page.read_text()))
]


@pytest.fixture(scope="module")
def committed():
    """The committed JSON files, runs aside, by their content."""
    files = [file for file in (ROOT / "docs/results").glob("*/*.json") if file.parent.parent.name == "results"]
    return {file.read_bytes(): file for file in files}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_report_that_a_page_names_is_committed_byte_for_byte(command, committed, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "task_figures", lambda task, threshold: {})  # numbers, not pixels
    monkeypatch.chdir(ROOT)
    assert run([*shlex.split(command), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.json").read_bytes() in committed, "make it again, and look at the page's figures"


def test_most_studies_name_their_report():
    assert len(COMMANDS) >= 25
