"""`serve`: one team on this machine, until a signal ends it."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import queue
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator

import httpx
from ray import serve
from ray.exceptions import RayError

from ..bundle import load_policy
from ..errors import ConfigError, RunFailedError, StoppedBySignal
from ..rllib.resources import granted_cpus
from ..serving.deployment import Settings, build
from .ray_session import ray_session

APP = "hypermarl"
_DIRECT_SECONDS = 30.0  # that replicas may take to listen themselves


def serve_bundle(settings: Settings, host: str, port: int, timeout: float) -> None:
    """Serves until SIGINT or SIGTERM; SIGHUP reads the bundle again.

    In a private Ray, or in the cluster that RAY_ADDRESS names: there Serve may be running already, which then decides
    on host and port.

    Args:
        port: of Serve's proxy; with direct ingress, replicas listen on those after it.
        timeout: seconds after which a request is given up.

    Raises:
        BundleError: there is nothing to serve.
        ConfigError: the port is taken, or the token missing.
        StoppedBySignal: always, in the end.
    """
    policy = load_policy(settings.bundle)
    if settings.token() is None and not _is_loopback(host):
        print(
            f"warning: whoever reaches {host}:{port} can use this team: no token is set (--token-file)", file=sys.stderr
        )
    private = "RAY_ADDRESS" not in os.environ
    if private:
        _check_free(host, port)
        settings.num_cpus = min(settings.num_cpus, granted_cpus() / settings.replicas)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    asked: queue.SimpleQueue[int] = queue.SimpleQueue()
    try:
        with (
            _handled(asked.put, signal.SIGHUP),
            ray_session(),
            _handled(_stop, signal.SIGINT, signal.SIGTERM),  # not before: ray.init puts handlers of its own
            _serving(settings, host, port, timeout) as handle,
            _handled(asked.put, signal.SIGINT, signal.SIGTERM),
        ):
            url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104
            print(f"serving version {policy.version}, agents {', '.join(policy.spec.agents)}", flush=True)
            print(f"  at {url}/v1/act, see {url}/docs", flush=True)
            for direct in _direct_urls(settings, url):
                print(f"  at {direct}/v1/act, a replica itself", flush=True)
            while (signum := asked.get()) == signal.SIGHUP:
                _reload(handle)
    finally:
        if private:
            _wait_until_free(host, port)
    _stop(signum)


@contextlib.contextmanager
def _serving(settings: Settings, host: str, port: int, timeout: float) -> Iterator[serve.DeploymentHandle]:
    http = {"host": host, "port": port, "request_timeout_s": timeout}
    environment = {"runtime_env": {"env_vars": settings.environment()}}
    try:
        try:
            serve.start(proxy_location="HeadOnly", http_options=http, controller_options=environment)
            handle = serve.run(build(settings), name=APP, route_prefix="/")
        except (RuntimeError, RayError) as error:
            raise RunFailedError(f"Serve did not start the team ({' '.join(str(error).split())[:300]})") from error
        yield handle
    finally:
        serve.delete(APP)  # requests that are under way are answered; what else is private goes with its Ray


def _reload(handle: serve.DeploymentHandle) -> None:
    try:
        reports = handle.broadcast("reload").results(timeout_s=60)
    except (TimeoutError, RayError) as error:
        print(f"reload: {' '.join(str(error).split())[:200]}", file=sys.stderr, flush=True)
        return
    for report in {(r["version"], (r["refused"] or {}).get("reason")): r for r in reports}.values():
        if report["refused"]:
            refused = report["refused"]["reason"]
            print(f"bundle refused, still serving version {report['version']}: {refused}", file=sys.stderr, flush=True)
        else:
            print(f"serving version {report['version']}", flush=True)


def _stop(signum: int) -> None:
    stopped = StoppedBySignal(signum)
    print(stopped, file=sys.stderr)
    raise stopped


@contextlib.contextmanager
def _handled(handler: Callable[[int], None], *signals: int) -> Iterator[None]:
    before = {number: signal.signal(number, lambda signum, _: handler(signum)) for number in signals}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _direct_urls(settings: Settings, url: str) -> list[str]:
    """Where replicas listen themselves; Serve takes the first ports that are free, a little after it is up."""
    if settings.ingress != "direct":
        return []
    base, found, deadline = url.rpartition(":")[0], [], time.monotonic() + _DIRECT_SECONDS
    ports = range(settings.direct_port, settings.direct_port + settings.replicas + 20)
    while len(found) < settings.replicas and time.monotonic() < deadline:
        found = [at for at in (f"{base}:{port}" for port in ports) if _is_ready(at)]
        time.sleep(0.2)
    return found


def _is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    return False


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_free(host: str, port: int) -> None:
    try:
        _bind(host, port)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port or --host"
        ) from error


def _bind(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)


def _wait_until_free(host: str, port: int, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            return _bind(host, port)
        except OSError:
            time.sleep(0.1)
