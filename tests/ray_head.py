"""A real Ray head, token authentication on, as `ray start` makes it."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rllib_hypermarl.bench.measure import free_port
from tests.helpers import ROOT, environment

RAY = Path(sys.executable).with_name("ray")


class Head:
    """A Ray head of its own home directory, so that nobody's token is touched.

    Args:
        options: of `ray start`, instead of two CPUs; env: of its processes.
    """

    def __init__(self, *options, port=None, **env):
        self.home = Path(tempfile.mkdtemp(prefix="hm_", dir="/tmp"))  # short: sockets lie below it
        path = f"{RAY.parent}:{os.environ['PATH']}"  # a job's `python` is the one that the head finds
        self.env = environment(HOME=str(self.home), RAY_AUTH_MODE="token", PATH=path, **env)
        self.port, dashboard = port or free_port(), free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        self.ray("get-auth-token", "--generate")
        self.token = (self.home / ".ray" / "auth_token").read_text()
        started = self.ray(
            "start", "--head", "--node-ip-address=127.0.0.1", f"--port={self.port}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}",  # jobs go to the agent
            f"--temp-dir={self.home / 'ray'}", "--disable-usage-stats", *(options or ["--num-cpus=2"]),
        )  # fmt: skip
        if started.returncode:
            self.stop()
            raise RuntimeError(started.stderr)

    def ray(self, *arguments, **env):
        return subprocess.run([RAY, *map(str, arguments)], env={**self.env, **env}, text=True, capture_output=True,
                              timeout=300, cwd=self.home)  # fmt: skip

    def submit(self, *arguments, options=(), **env):
        where = ("--address", self.address, "--working-dir", ROOT)
        command = ("python", "-m", "rllib_hypermarl", *arguments)
        deadline = time.monotonic() + 90
        while True:
            done = self.ray("job", "submit", *where, *options, "--", *command, **env)
            if "No available agent" not in done.stderr or time.monotonic() > deadline:  # a head that has just started
                return done
            time.sleep(1)

    def stop(self):
        # Only processes of this head: `ray stop` would stop those of other tests, too.
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if str(self.home).encode() in (process / "environ").read_bytes():
                    os.kill(int(process.name), 9)
            except OSError:
                continue
        shutil.rmtree(self.home, ignore_errors=True)
