"""Every file has its own Ray: some need more than one node's worth of CPUs, or kill what others would need."""

import logging

import pytest

from tests.helpers import private_ray


@pytest.fixture(scope="module")
def ray_session():
    with private_ray(num_cpus=2):
        yield


@pytest.fixture(scope="session", autouse=True)
def quiet_rllib():
    logging.getLogger("ray.rllib").setLevel(logging.CRITICAL)
