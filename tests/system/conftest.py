import logging

import pytest


@pytest.fixture(scope="session", autouse=True)
def quiet_rllib():
    logging.getLogger("ray.rllib").setLevel(logging.CRITICAL)
