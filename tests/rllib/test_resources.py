"""How many CPUs a process may count on."""

import math

import pytest

from rllib_hypermarl.rllib.resources import cpu_quota, granted_cpus


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("max 100000\n", math.inf), ("150000 100000\n", 1), ("400000 100000\n", 4), ("20000 100000\n", 1), ("", math.inf)],
)
def test_a_container_s_quota_counts(tmp_path, text, cpus):
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_quota(tmp_path / "cpu.max") == cpus


def test_without_a_container_there_is_none(tmp_path):
    assert cpu_quota(tmp_path / "cpu.max") == math.inf
    assert isinstance(granted_cpus(), int) and granted_cpus() >= 1
