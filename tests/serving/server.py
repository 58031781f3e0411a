"""A process of the command `serve`, asked over real HTTP."""

import contextlib
import os
import signal
import typing

import httpx
import psutil
import pytest

from rllib_hypermarl.bench.measure import free_port
from tests.helpers import ROOT, processes_of, start, wait_until


class Server:
    """A process of the command `serve`."""

    running: typing.ClassVar[set] = set()  # those that the test has to stop

    def __init__(self, bundle, *arguments, port=None, **env):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        with pytest.MonkeyPatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            self.process = start("serve", bundle, "--port", self.port, *arguments, cwd=ROOT)
        self.running.add(self)
        wait_until(self.ready, self.process)

    def ready(self):
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz", timeout=60).status_code == 200
        return False

    def metadata(self):
        return httpx.get(f"{self.url}/metadata", timeout=60).json()

    def replicas(self):
        """Process ids."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            with contextlib.suppress(OSError):
                title = " ".join(process.info["cmdline"] or [])
                if "ServeReplica" in title and os.getsid(process.pid) == self.process.pid:
                    found.append(process.pid)
        return found

    def stop(self, signum=signal.SIGTERM):
        """Returns exit status, stdout and stderr, once nothing of it is left."""
        self.running.discard(self)
        self.process.send_signal(signum)
        out, err = self.process.communicate(timeout=120)
        wait_until(lambda: not processes_of(self.process.pid))
        return self.process.returncode, out, err
