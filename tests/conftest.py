"""One thread for everybody: two threads beside another busy process are slower than one. Where Ray starts and stops."""

import logging

import pytest
import torch

from tests.helpers import private_ray

torch.set_num_threads(1)


def _scope(fixture_name, config):
    """`make test` has one Ray for all. Every file of system tests has its own: some need more than one node's worth of
    CPUs, or kill what others would need."""
    return "session" if config.getoption("-m") == "not system" else "module"


@pytest.fixture(scope=_scope)
def ray_session():
    with private_ray(num_cpus=2):
        for name in ("ray.rllib.algorithms", "ray.rllib.core", "ray.rllib.utils"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
