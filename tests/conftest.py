"""One thread for everybody: two threads beside another busy process are slower than one. One Ray for the session."""

import logging

import pytest
import torch

from tests.helpers import private_ray

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session():
    """The Ray that all tests of a session share (system tests: those of a file)."""
    with private_ray(num_cpus=2):
        for name in ("ray.rllib.algorithms", "ray.rllib.core", "ray.rllib.utils"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
