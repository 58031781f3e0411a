"""What a sweep's file may say, and what it means."""

import optuna
import pytest
import yaml

from rllib_hypermarl.errors import ConfigError
from rllib_hypermarl.tuning.spec import Sweep
from tests.helpers import GAME, ROOT

LR = {"training.lr": {"loguniform": [1e-4, 1e-2]}}
EVALUATED = {**GAME, "evaluation": {"evaluation_interval": 2, "evaluation_duration": 4}}


def sweep(search=None, base=EVALUATED, **settings):
    return Sweep(base, LR if search is None else search, settings)


def suggested(sweep, number=50, seed=0):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [sweep.suggest(study.ask()) for _ in range(number)]


SPACE = {
    "training.lr": {"loguniform": [1e-4, 1e-2]},
    "training.num_epochs": {"uniform": [1, 4]},
    "training.gamma": {"uniform": [0.9, 0.99]},
    "hypermarl.sharing": {"choice": ["hyper_mlp", "none"]},
    "hypermarl.hypernet_hidden": {"choice": [[16], [16, 16]], "when": {"hypermarl.sharing": "hyper_mlp"}},
    "env_config.n_agents": {"choice": [2, 4]},
}


def test_values_are_of_the_kind_and_range_that_the_space_says():
    found = suggested(sweep(SPACE))
    for params in found:
        assert 1e-4 <= params["training.lr"] <= 1e-2 and 0.9 <= params["training.gamma"] <= 0.99
        assert params["training.num_epochs"] in (1, 2, 3, 4) and isinstance(params["training.num_epochs"], int)
        assert ("hypermarl.hypernet_hidden" in params) == (params["hypermarl.sharing"] == "hyper_mlp")
    assert {params["training.num_epochs"] for params in found} == {1, 2, 3, 4}
    assert {tuple(p["hypermarl.hypernet_hidden"]) for p in found if "hypermarl.hypernet_hidden" in p} == {
        (16,),
        (16, 16),
    }
    assert sum(params["training.lr"] < 1e-3 for params in found) == pytest.approx(25, abs=10)  # log scale


def test_a_candidate_is_the_base_config_with_its_values():
    made = sweep(SPACE)
    groups = made.groups({"training.lr": 0.5, "env_config.n_agents": 2, "hypermarl.hypernet_hidden": [3]})
    assert groups["training"]["lr"] == 0.5 and groups["env_config"]["n_agents"] == 2
    assert groups["hypermarl"]["hypernet_hidden"] == [3]
    assert made.base["training"]["lr"] != 0.5 and made.base["env_config"]["n_agents"] == 4


GRID = {
    "hypermarl.sharing": {"grid": ["hyper_mlp", "none"]},
    "hypermarl.embedding_dim": {"grid": [2, 4, 8], "when": {"hypermarl.sharing": ["hyper_mlp"]}},
    "training.lr": {"grid": [0.1, 0.2]},
}


def test_a_grid_has_every_combination_that_makes_a_difference_once():
    design = sweep(GRID).design()
    assert len(design) == 3 * 2 + 2
    assert len({tuple(sorted(params.items())) for params in design}) == len(design)


def test_a_random_design_that_is_extended_keeps_what_it_had():
    short, longer = (sweep(SPACE, sampler="random", candidates=n).design() for n in (4, 9))
    assert longer[:4] == short and len(longer) == 9
    assert sweep(SPACE, sampler="random", sampler_seed=1, candidates=4).design() != short


def test_tpe_has_no_design():
    assert sweep().design() is None


@pytest.mark.parametrize(
    ("search", "settings", "words"),
    [
        ({}, {}, "search is empty"),
        (
            {"training.lrr": {"uniform": [0.1, 0.2]}},
            {},
            "unknown key 'training.lrr': did you mean 'training.lr'",
        ),
        ({"lr": {"uniform": [0.1, 0.2]}}, {}, "search.lr: no such config key"),
        ({"training.lr": 0.1}, {}, "search.training.lr is 0.1: expected one of loguniform, uniform, choice, grid"),
        ({"training.lr": {"normal": [0, 1]}}, {}, "expected one of loguniform"),
        ({"training.lr": {"uniform": [0.2, 0.1]}}, {}, r"expected low < high"),
        ({"training.lr": {"uniform": [0.1]}}, {}, r"expected \[low, high\]"),
        ({"training.lr": {"loguniform": [0, 1]}}, {}, "both positive"),
        ({"training.lr": {"choice": []}}, {}, "expected a list of values"),
        ({"training.lr": {"choice": [0.1, 0.1]}}, {}, "given twice"),
        ({"training.lr": {"choice": ["fast"]}}, {}, "training.lr is 'fast'"),
        ({"hypermarl.sharing": {"choice": ["hyper"]}}, {}, "hypermarl.sharing is 'hyper'"),
        ({"training.lr": {"choice": [0.1], "when": {"training.lrr": 1}}}, {}, "'training.lrr' is no config key"),
        ({**LR, "training.gamma": {"grid": [0.9]}}, {}, "grid beside other kinds"),
        ({"run.seed": {"grid": [0, 1]}}, {}, "tune.seeds"),
        ({"run.stop_env_steps": {"choice": [1, 2]}}, {}, "as many env steps"),
        (LR, {"candidate": 3}, "unknown key 'tune.candidate': did you mean 'candidates'"),
        (LR, {"candidates": 0}, "tune.candidates is 0"),
        (LR, {"seeds": []}, "tune.seeds"),
        (LR, {"scheduler": "hyperband"}, "tune.scheduler is 'hyperband'"),
        ({"training.lr": {"grid": [0.1]}}, {"scheduler": "pbt"}, "pbt mutates"),
    ],
)
def test_what_cannot_work_is_one_line_that_names_the_key(search, settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        sweep(search, **settings)
    assert "\n" not in str(caught.value)


def test_a_key_may_depend_only_on_keys_before_it():
    with pytest.raises(ConfigError, match="must be searched before it"):
        sweep({"training.gamma": {"choice": [0.9], "when": {"training.lr": 0.1}}, "training.lr": {"choice": [0.1]}})


def test_a_metric_of_evaluation_needs_evaluation():
    with pytest.raises(ConfigError, match="evaluation_interval is not set"):
        sweep(base=GAME)


def test_files_bases_and_overrides(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(EVALUATED))
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"base": "base.yaml", "config": {"training": {"gamma": 0.5}}, "search": LR}))
    made = Sweep.from_yaml(path, ["tune.candidates=7", "hypermarl.embedding_dim=3"])
    assert made.settings.candidates == 7
    assert made.base["training"]["gamma"] == 0.5 and made.base["training"]["num_epochs"] == 2
    assert made.base["hypermarl"]["embedding_dim"] == 3
    made.to_yaml(tmp_path / "whole.yaml")
    again = Sweep.from_yaml(tmp_path / "whole.yaml")
    assert again.to_groups() == made.to_groups()
    again.check_same(tmp_path / "whole.yaml")
    Sweep.from_yaml(path, ["tune.candidates=9", "hypermarl.embedding_dim=3"]).check_same(tmp_path / "whole.yaml")
    with pytest.raises(ConfigError, match=r"another sweep \(config.hypermarl.embedding_dim is 3 there, 4 here\)"):
        Sweep.from_yaml(path).check_same(tmp_path / "whole.yaml")


@pytest.mark.parametrize("data", [{"serach": LR}, {"search": [1]}, {"tune": 3}, {"base": "none.yaml", "search": LR}])
def test_a_file_that_is_no_sweep_is_refused(tmp_path, data):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError):
        Sweep.from_yaml(path)


def is_sweep(path):
    return "search" in yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", [p for p in sorted((ROOT / "tune_configs").glob("*.yaml")) if is_sweep(p)],
                         ids=lambda path: path.stem)  # fmt: skip
def test_the_shipped_sweeps_are_valid(path):
    made = Sweep.from_yaml(path)
    assert made.design() or suggested(made, number=1)
