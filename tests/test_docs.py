"""The pages say what is true: their tables equal the code's, their examples run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ray.rllib.algorithms.ppo import PPOConfig

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl.rllib.grammar import GROUPS
from rllib_hypermarl.rllib.run_dir import RunDir

ROOT = Path(__file__).parent.parent


def code_blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def test_config_page_lists_every_key_and_every_default_that_differs():
    page = (ROOT / "docs/config.md").read_text(encoding="utf-8")
    keys, differing = page.split("## Defaults that differ")
    for group, names in GROUPS.items():
        assert f"`{group}`" in keys
        for name in names:
            assert f"`{name}`" in keys, f"{group}.{name} is not in docs/config.md"

    table = dict(re.findall(r"^\| `(\w+)` \| (\S+ \| \S+) \|", differing, flags=re.MULTILINE))
    stock, ours = vars(PPOConfig()), vars(HyperMARLConfig())
    set_by_us = {"algo_class", "env_runner_cls", "policies", "policy_mapping_fn"}
    differs = {k: f"{stock[k]} | {ours[k]}" for k in ours if k in stock and k not in set_by_us and stock[k] != ours[k]}
    assert table == {k.removeprefix("_"): v for k, v in differs.items()}


def anchors(page: Path) -> set[str]:
    """What `#...` may name in a page: its ids, and those that GitHub makes of headings."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name)
def test_links_of_a_page_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^()\s]+)\)", text) if not re.match(r"https?://", link)]
    lost = []
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert not lost


@pytest.mark.system
def test_the_readme_s_own_environment_trains_from_its_yaml_and_the_metrics_page_explains_the_result(tmp_path):
    (env,) = [block for block in code_blocks("README.md", "python") if "# my_env.py" in block]
    (config,) = [block for block in code_blocks("README.md", "yaml") if "# my_env.yaml" in block]
    (tmp_path / "my_env.py").write_text(env)
    (tmp_path / "my_env.yaml").write_text(config)
    command = [sys.executable, "-m", "rllib_hypermarl", "train", "my_env.yaml", "--out", "run"]
    overrides = ["run.torch_threads=1", "evaluation.evaluation_interval=5"]
    paths = {"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    subprocess.run([*command, *overrides], cwd=tmp_path, env=paths, check=True, timeout=240)

    rows = RunDir(tmp_path / "run", iteration=10**9).read()
    assert rows[-1]["num_env_steps_sampled_lifetime"] >= 200_000
    assert rows[-1]["env_runners"]["agent_return_mean"] > 0.9  # six agents in six places; chance is 0.40

    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    for group in ("env_runners", "learners"):
        for key in [
            k for part in (rows[-1][group].values() if group == "learners" else [rows[-1][group]]) for k in part
        ]:
            name = re.sub(r"_(lifetime|min|max)$", "", key.removesuffix("_throughput"))
            assert name in page, f"docs/metrics.md does not explain {group}/.../{key}"
