"""Requests per second of a served team: through Serve's proxy, with direct ingress, and beside what else one could run.

All serve four agents (16 numbers, two hidden layers of 64, 9 choices) from one process with one torch thread:

- `nothing`: a Serve deployment that returns at once, the most that Serve's proxy lets through;
- `example`: the class of RLlib's own example; it knows one agent, so a team's decision is four requests. As it is, but
  for `max_ongoing_requests`: with Serve's default it breaks down under 32 clients;
- `proxy`, `direct`: ours; `bare`: FastAPI, uvicorn and torch without Serve, the limit.

Load comes from wrk, an external program, over connections that stay open. Every round starts each of them afresh, and
asks those behind one proxy one after the other with the same number of clients. A figure is the median of the rounds, a
ratio that of the rounds' own ratios: what slows the machine down for a minute slows down both sides.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import httpx
import numpy as np
import ray
import torch
from ray import serve
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.examples.ray_serve.classes.cartpole_deployment import ServeRLlibRLModule
from ray.serve.schema import LoggingConfig

from ..bundle import load_policy, save_bundle
from ..errors import ConfigError, RunFailedError
from ..nets import ActionSpec, HeadSpec, ModelSpec, TeamNet
from ..serving import Settings, build
from ..serving.schemas import encode
from .measure import free_port, machine

CLIENTS = (1, 8, 32, 128)
AGENTS = tuple(f"agent_{i}" for i in range(4))
OBS, CHOICES, HIDDEN, ENVS = 16, 9, (64, 64), 256
APPS = ("nothing", "example", "proxy", "direct", "bare")

_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local file = io.open("{body}", "rb")
wrk.body = file:read("*all")
file:close()
done = function(summary, latency, requests)
  local e = summary.errors
  local errors = e.connect + e.read + e.write + e.status + e.timeout
  io.write(string.format('\\n{{"requests": %d, "us": %d, "p50": %d, "p99": %d, "errors": %d}}\\n', summary.requests,
    summary.duration, latency:percentile(50), latency:percentile(99), errors))
end
"""


@serve.deployment(logging_config=LoggingConfig(enable_access_log=False, log_level="WARN"))
class _Nothing:
    async def __call__(self, request: Any) -> str:
        return "ok"


def run(
    clients: Sequence[int] = CLIENTS, rounds: int = 3, seconds: float = 8, log: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measures every app with every number of clients.

    Returns:
        `points`: per app and number of clients, requests and team decisions per second, p50 and p99 in ms (medians),
        and errors (of all rounds). `batched`: one request for 256 environments, as env decisions per second.
        `ratios`: with 32 clients, medians over rounds and their range, where those were measured.

    Raises:
        ConfigError: there is no load generator.
    """
    if shutil.which("wrk") is None:
        raise ConfigError("bench serving needs the load generator wrk on PATH (Debian: apt-get install wrk)")
    measured: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as directory:
        work = _prepare(Path(directory))
        for _ in range(rounds):
            for session in (_serve_session, _direct_session, _bare_session):
                with session(work) as urls:
                    for app, url in urls.items():
                        _check(app, url, work)
                    for (kind, n), app in itertools.product([*(("single", n) for n in clients), ("batched", 1)], urls):
                        if kind == "batched" and app not in ("proxy", "direct"):
                            continue
                        point = _wrk(urls[app], work / f"{'example' if app == 'example' else kind}.json", n, seconds)
                        measured.setdefault((app, kind, n), []).append(point)
                        log(f"{app:8} {kind:8} {n:4} clients {point['rate']:9,.0f}/s  {point['errors']} errors")
    points = [_point(app, n, found) for (app, kind, n), found in measured.items() if kind == "single"]
    batched = [
        {"app": app, "env_decisions_per_second": round(ENVS * statistics.median(p["rate"] for p in found)),
         "errors": sum(p["errors"] for p in found)}
        for (app, kind, _), found in measured.items() if kind == "batched"
    ]  # fmt: skip
    points.sort(key=lambda point: (APPS.index(point["app"]), point["clients"]))
    rates = {app: [p["rate"] for p in measured.get((app, "single", 32), ())] for app in APPS}
    return {"points": points, "batched": batched, "ratios": _ratios(rates), "machine": machine()}


def _point(app: str, clients: int, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    median = {key: statistics.median(p[key] for p in found) for key in ("rate", "p50", "p99")}
    return {
        "app": app,
        "clients": clients,
        "requests_per_second": round(median["rate"], 1),
        "team_decisions_per_second": round(median["rate"] / (len(AGENTS) if app == "example" else 1), 1),
        "p50_ms": round(median["p50"] / 1000, 2),
        "p99_ms": round(median["p99"] / 1000, 2),
        "errors": sum(p["errors"] for p in found),
    }


def _ratios(rates: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Args: rates: app -> requests per second of each round."""
    if not all(rates.values()):
        return {}

    def ratio(first: str, second: str, times: int = 1) -> dict[str, Any]:
        found = [times * a / b for a, b in zip(rates[first], rates[second], strict=True)]
        return {"median": round(statistics.median(found), 2), "range": [round(min(found), 2), round(max(found), 2)]}

    return {
        "proxy to nothing": ratio("proxy", "nothing"),
        "proxy to example, requests": ratio("proxy", "example"),
        "direct to example, requests": ratio("direct", "example"),
        "direct to example, team decisions": ratio("direct", "example", len(AGENTS)),
        "direct to bare": ratio("direct", "bare"),
    }


# --------------------------------------------------------------------------------------------------------------- work


def _prepare(work: Path) -> Path:
    """Writes the bundle, the example's module and the bodies of requests."""
    torch.manual_seed(0)
    heads = {"actor": HeadSpec(OBS, CHOICES, HIDDEN)}
    net = TeamNet(ModelSpec(AGENTS, tuple(range(len(AGENTS))), heads, actions=ActionSpec(choices=(CHOICES,))))
    space = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    save_bundle(net, work / "bundle", agents=AGENTS, observation_spaces=dict.fromkeys(AGENTS, space))
    RLModuleSpec(
        DefaultPPOTorchRLModule, space, gym.spaces.Discrete(CHOICES), model_config={"fcnet_hiddens": list(HIDDEN)}
    ).build().save_to_path(work / "module")
    rng = np.random.default_rng(0)
    single = {agent: rng.normal(size=OBS).astype(np.float32) for agent in AGENTS}
    many = {agent: rng.normal(size=(ENVS, OBS)).astype(np.float32) for agent in AGENTS}
    bodies = {"single": {"observations": single}, "batched": {"observations": many}}
    for name, body in {**bodies, "example": {"observation": single[AGENTS[0]]}}.items():
        (work / f"{name}.json").write_bytes(encode(body))
        script = _SCRIPT.format(body=work / f"{name}.json")
        (work / f"{name}.lua").write_text(script, encoding="utf-8")
    return work


@contextlib.contextmanager
def _ray_and_serve(settings: Settings) -> Iterator[str]:
    port = free_port()
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        environment = {"runtime_env": {"env_vars": settings.environment()}} if settings.ingress == "direct" else None
        serve.start(http_options={"host": "127.0.0.1", "port": port}, controller_options=environment)
        yield f"http://127.0.0.1:{port}"
        for name in serve.status().applications:  # serve.shutdown() would make Ray write to our stdout
            serve.delete(name)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _serve_session(work: Path) -> Iterator[dict[str, str]]:
    settings = Settings(bundle=str(work / "bundle"), num_cpus=0)
    # Serve lets five requests into a replica at once unless told otherwise, and makes the others wait ever longer. So
    # everybody gets what ours has.
    options = {"ray_actor_options": {"num_cpus": 0}, "max_ongoing_requests": settings.max_ongoing_requests}
    apps = {
        "nothing": _Nothing.options(**options).bind(),
        "example": ServeRLlibRLModule.options(**options).bind(str(work / "module")),
        "proxy": build(settings),
    }
    with _ray_and_serve(settings) as url:
        for name, app in apps.items():
            serve.run(app, name=name, route_prefix=f"/{name}")
        yield {name: f"{url}/{name}{'/v1/act' if name == 'proxy' else ''}" for name in apps}


@contextlib.contextmanager
def _direct_session(work: Path) -> Iterator[dict[str, str]]:
    port = free_port()
    settings = Settings(bundle=str(work / "bundle"), num_cpus=0, ingress="direct", direct_port=port)
    with _ray_and_serve(settings):
        serve.run(build(settings), name="direct", route_prefix="/")
        yield {"direct": f"http://127.0.0.1:{port}/v1/act"}


@contextlib.contextmanager
def _bare_session(work: Path) -> Iterator[dict[str, str]]:
    port = free_port()
    command = [sys.executable, "-m", "rllib_hypermarl.bench.serving_bare", str(work / "bundle"), str(port)]
    process = subprocess.Popen(command)
    try:
        yield {"bare": f"http://127.0.0.1:{port}/v1/act"}
    finally:
        process.terminate()
        process.wait(30)


# --------------------------------------------------------------------------------------------------------------- load


def _check(app: str, url: str, work: Path) -> None:
    """That the app answers, and what the team does, before it is measured."""
    body = (work / f"{'example' if app == 'example' else 'single'}.json").read_bytes()
    deadline = time.monotonic() + 60
    while True:
        try:
            answer = httpx.post(url, content=body, headers={"Content-Type": "application/json"}, timeout=30)
            break
        except httpx.TransportError:  # bare starts in its own time
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    answer.raise_for_status()
    if app in ("proxy", "direct", "bare"):
        expected = load_policy(work / "bundle").act(json.loads(body)["observations"])
        if answer.json()["actions"] != {agent: int(action) for agent, action in expected.items()}:
            raise RunFailedError(f"bench serving: {app} answered something else than the team does")


def _wrk(url: str, body: Path, clients: int, seconds: float) -> dict[str, Any]:
    """One measurement, after a second of warming up."""
    for duration in (1, seconds):
        command = ["wrk", "-t", "1", "-c", str(clients), "-d", f"{duration:.0f}s", "--timeout", "30s", "-s"]
        done = subprocess.run(
            [*command, str(body.with_suffix(".lua")), url], capture_output=True, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
    return {**found, "rate": found["requests"] / found["us"] * 1e6}


def table(results: dict[str, Any]) -> str:
    """The results as text."""
    lines = [f"{'app':8} {'clients':>7} {'requests/s':>11} {'teams/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'errors':>6}"]
    lines += [
        f"{p['app']:8} {p['clients']:7} {p['requests_per_second']:11,.0f} {p['team_decisions_per_second']:9,.0f} "
        f"{p['p50_ms']:8.1f} {p['p99_ms']:8.1f} {p['errors']:6}"
        for p in results["points"]
    ]
    lines += [
        f"{b['app']}, {ENVS} envs a request: {b['env_decisions_per_second']:,} env decisions/s"
        for b in results["batched"]
    ]
    lines += [
        f"{name}: {ratio['median']} ({ratio['range'][0]} to {ratio['range'][1]})"
        for name, ratio in results["ratios"].items()
    ]
    return "\n".join(lines)
