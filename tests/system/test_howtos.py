"""Every page `docs/howto-*.md` is a program: its Python blocks run in order, in one namespace."""

import re

import pytest

from tests.helpers import ROOT

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(300)]
PAGES = sorted((ROOT / "docs").glob("howto-*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_s_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    namespace = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, page.name, "exec"), namespace)
