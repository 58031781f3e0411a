"""The page and the figures of a report."""

import re
from html.parser import HTMLParser
from io import BytesIO

import pytest
from PIL import Image

from rllib_hypermarl.errors import ReportError
from rllib_hypermarl.report.across import figure_over
from rllib_hypermarl.report.numbers import report_numbers
from rllib_hypermarl.report.reference import Reference
from rllib_hypermarl.report.write import write_report
from tests.report.stores import grouped, write_run

pytestmark = pytest.mark.usefixtures("few_resamples")


class _Sources(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.sources = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.sources += [value for key, value in attributes if key in ("src", "href", "srcset", "data", "poster")]


def test_the_page_needs_nothing_else(made):
    text = (made / "report.html").read_text()
    page = _Sources(text)
    assert not page.tags & {"script", "link", "iframe", "object", "embed"}
    assert len(page.sources) == 2 + 3 + 1  # curves and finals of two tasks, metrics and embeddings of one
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"url\(|@import|https?://", text)


def test_the_page_says_how_many_seeds_there_are_where_they_are_few(made):
    text = (made / "report.html").read_text()
    assert text.count("only 3 seeds") == 2  # of the greedy and the sampled return of `none`
    assert text.count("no interval of 1 seed") == 4
    assert "sharing=none (3 seeds)" in text and "sharing=hyper_mlp (5 seeds)" not in text
    assert "is unfinished: 512 of 1,024 env steps" in text


def test_figures_are_pictures_named_by_their_task(made):
    names = sorted(path.name for path in made.glob("*.png"))
    four, eight = ("specialisation_n_agents_4", "specialisation_n_agents_8")
    assert names == [
        *(f"{four}_{name}.png" for name in ("curves", "embeddings", "final", "metrics")),
        *(f"{eight}_{name}.png" for name in ("curves", "final")),
    ]
    for name in names:
        with Image.open(BytesIO((made / name).read_bytes())) as image:
            image.verify()
            assert image.width > 1000


def test_final_returns_are_drawn_over_a_number_of_the_env(tmp_path):
    for n in (2, 4, 8):
        for horizon in (1, 5):
            for mode in ("hyper_mlp", "none"):
                env = (f"env_config.n_agents={n}", f"env_config.horizon={horizon}", f"hypermarl.sharing={mode}")
                for seed in range(2):
                    write_run(tmp_path / f"runs/{n}-{horizon}-{mode}-{seed}", *env, seed=seed, rows=2)
    tasks, _ = grouped(tmp_path / "runs")
    told = report_numbers(tasks, [])["tasks"]
    own = figure_over(told, "n_agents")
    with Image.open(BytesIO(own)) as image:
        assert image.width > 1000
    path = tmp_path / "others.yaml"
    for mode in ("full", "none"):  # the figure is about nobody here; about one group of every task
        about = f"env: {tasks[0].env}, config: {{hypermarl.sharing: {mode}}}"
        path.write_text(f"{{name: them, figures: [{{{about}, value: 2, source: x}}]}}")
        beside = report_numbers(tasks, [], reference=Reference.from_yaml(path))["tasks"]
        assert (figure_over(beside, "n_agents") == own) == (mode == "full")
    for wrong in ("n_foods", "horizons"):
        with pytest.raises(ReportError, match=f"--over {wrong}: no two tasks differ"):
            figure_over(told, wrong)
    with pytest.raises(ReportError, match="--over n_agents"):
        figure_over(told[:1], "n_agents")


@pytest.mark.usefixtures("no_figures")
def test_names_cannot_become_markup(tmp_path):
    write_run(tmp_path / "<img src=x>")
    write_report([(str(tmp_path), tmp_path)], tmp_path / "out")
    text = (tmp_path / "out/report.html").read_text()
    assert "<img src=x>" not in text and "&lt;img src=x&gt;" in text
