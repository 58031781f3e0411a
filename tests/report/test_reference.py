"""Figures of others beside our own; docs/paper.yaml fits what is shipped."""

import json

import pytest

from rllib_hypermarl.cli.app import run
from rllib_hypermarl.report.reference import Reference
from rllib_hypermarl.report.store import dotted
from rllib_hypermarl.tuning.spec import Sweep
from tests.helpers import ROOT

pytestmark = pytest.mark.usefixtures("few_resamples")


PAPER = """
name: the paper
figures:
- {env: games/specialisation, env_config: {n_agents: 8}, value: 9, source: Table 1}
- {env: games/specialisation, config: {hypermarl.sharing: none}, value: 0.5, low: 0.4, high: 0.6, source: a plot}
- {env: games/specialisation, config: {hypermarl.sharing: none}, value: 7, source: what fits second}
- {env: games/synchronisation, value: 1, source: another game}
"""


@pytest.mark.usefixtures("no_figures")
def test_figures_of_others_stand_beside_the_groups_they_fit(store, tmp_path, capfd):
    (tmp_path / "paper.yaml").write_text(PAPER)
    assert run(["report", str(store), "--out", str(tmp_path), "--beside", str(tmp_path / "paper.yaml")]) == 0
    table = capfd.readouterr().out.splitlines()
    assert (
        table[0].endswith("the paper") and table[1].endswith(" 9.000") and table[-2].endswith(" 0.500 [0.400, 0.600]")
    )
    numbers = json.loads((tmp_path / "report.json").read_text())
    eight, four = ({g["label"]: g["reference"] for g in task["groups"]} for task in numbers["tasks"])
    assert eight["sharing=hyper_mlp"] == {"value": 9.0, "low": None, "high": None, "source": "Table 1"}
    assert four["sharing=none"]["source"] == "a plot" and four["sharing=full"] is four["sharing=hyper_mlp"] is None
    text = (tmp_path / "report.html").read_text()
    assert "the paper on sharing=none: a plot." in text and "0.500 [0.400, 0.600]" in text
    (tmp_path / "paper.yaml").write_text(PAPER.replace("value: 9", "worth: 9"))
    assert run(["report", str(store), "--beside", str(tmp_path / "paper.yaml")]) == 2
    assert "paper.yaml: figures.0.value: Field required" in capfd.readouterr().err


def test_every_figure_of_the_paper_stands_beside_a_run_of_ours():
    """What docs/paper.yaml says of keys and values, some sweep that is shipped has."""
    sweeps = [
        Sweep.from_yaml(path) for path in (ROOT / "tune_configs").glob("*.yaml") if "\nsearch:" in path.read_text()
    ]
    configs = [
        dotted(sweep.groups({d.key: d.decoded(params[d.key]) for d in sweep.search if d.key in params}))
        for sweep in sweeps
        for params in (sweep.design() if sweep.is_grid else [])
    ]
    figures = Reference.from_yaml(ROOT / "docs/paper.yaml").figures
    unfit = [figure for figure in figures if not any(figure.fits(config) for config in configs)]
    assert len(figures) > 70 and not unfit
