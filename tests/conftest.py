"""One thread for everybody: two threads beside another busy process are slower than one. One Ray for the session."""

import logging

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session():
    """A private Ray that all tests of a session share; everything it started is gone at the end."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    for name in ("ray.rllib.algorithms", "ray.rllib.core", "ray.rllib.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    yield
    ray.shutdown()
