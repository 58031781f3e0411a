"""Clients that ask all the time and check every answer against the bundle that it says it is from."""

import collections
import contextlib
import threading

from rllib_hypermarl import load_policy
from rllib_hypermarl.serving import TeamClient
from tests.serving.teams import AGENTS, assert_same_actions, observations

_ROWS = (None, 1, 3)


class Load:
    """What several clients were answered.

    Attributes:
        answers: version -> number of right answers.
        errors: every other outcome.
    """

    def __init__(self, url, bundles, clients=4, retries=0, token=None):
        policies = [load_policy(bundle) for bundle in bundles]
        self._expected = {policy.version: [self._play(policy, i) for i in range(12)] for policy in policies}
        self.answers, self.errors = collections.Counter(), []
        self._open = {"url": url, "retries": retries, "token": token, "timeout": 30}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(clients)]

    @staticmethod
    def _request(i):
        return {
            "observations": observations(_ROWS[i % 3], i, AGENTS[: 1 + i % len(AGENTS)]),
            "greedy": i % 2 == 0,
            "seed": i,
        }

    def _play(self, policy, i):
        return policy.act(**self._request(i))

    def _ask(self, thread):
        with TeamClient(**self._open) as client:
            i = thread
            while not self._stop.is_set():
                i += 1
                try:
                    found = client.act(**self._request(i % 12))
                    assert_same_actions(found.actions, self._expected[found.version][i % 12])
                    self.answers[found.version] += 1
                except BaseException as error:
                    self.errors.append(error)

    @contextlib.contextmanager
    def running(self):
        for thread in self._threads:
            thread.start()
        yield self
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def count(self):
        return sum(self.answers.values())
