"""A served team as a Ray Serve application: `serve run rllib_hypermarl.serving:build bundle=DIR`, or a Serve config."""

from __future__ import annotations

import asyncio
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve.config import BackpressureConfig
from ray.serve.schema import LoggingConfig
from ray.util.metrics import Counter, Gauge

from ..errors import ConfigError
from .http import TeamApp
from .schemas import RefusedError, encode, parse
from .team import Ask, ServedTeam, answer, check

MAX_BATCH = 128  # requests of one forward

# Serve runs user code in a second event loop of the replica, so that code that blocks does not hold its own up. Ours
# does not block (torch has a thread), and every request would pay for the way between the loops.
_ONE_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}

# The last two are for load balancers, which are slow to notice that a replica has gone or that its port has another.
_DIRECT = {
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_PORT_QUARANTINE_S": "0",
}


class Settings(BaseModel):
    """Arguments of the application; `args` in a Serve config. Secrets are named, never given."""

    model_config = ConfigDict(extra="forbid")

    bundle: str = Field(description="Directory of the bundle, which every replica can read.")
    token_file: str | None = Field(None, description="File with the token that requests have to bear.")
    token_env: str | None = Field(None, description="Environment variable of the replicas with that token.")
    device: str = "cpu"
    torch_threads: int = Field(1, ge=1)
    replicas: int = Field(1, ge=1)
    num_cpus: float = Field(1.0, ge=0, description="That Ray sets aside for each replica.")
    max_body_mb: float = Field(4.0, gt=0)
    max_ongoing_requests: int = Field(2 * MAX_BATCH, ge=1, description="That a replica works on at once.")
    max_queued_requests: int = Field(512, ge=-1, description="That wait beyond those; more are answered 503.")
    ingress: Literal["proxy", "direct"] = Field(
        "proxy", description="`direct`: replicas listen themselves, see docs/serving.md."
    )

    direct_port: int = Field(30000, ge=1024, le=64000, description="First port of replicas that listen themselves.")

    @model_validator(mode="after")
    def _one_token(self) -> Settings:
        if self.token_file and self.token_env:
            raise ValueError("give token_file or token_env, not both")
        return self

    def token(self) -> str | None:
        """Reads the token where this is called.

        Raises:
            ConfigError: it is not where the settings say.
        """
        if self.token_env:
            token, where = os.environ.get(self.token_env, ""), f"environment variable {self.token_env}"
        elif self.token_file:
            path = Path(self.token_file).expanduser()
            token, where = path.read_text(encoding="utf-8") if path.is_file() else "", f"token file {path}"
        else:
            return None
        if not token.strip():
            raise ConfigError(f"{where} is missing or empty: no requests without a token that was asked for")
        return token.strip()

    def environment(self) -> dict[str, str]:
        """Variables that Serve has to see where its controller and the replicas run."""
        if self.ingress == "proxy":
            return _ONE_LOOP
        ports = "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT", "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"
        first = self.direct_port
        return {**_ONE_LOOP, **_DIRECT, **dict(zip(ports, (str(first), str(first + 1000)), strict=True))}


@serve.deployment(
    name="Team",
    health_check_period_s=5,
    health_check_timeout_s=10,
    graceful_shutdown_timeout_s=10,
    max_surge_percent=25,  # new replicas start before old ones stop
    backpressure_config=BackpressureConfig(status_code=503, retry_after_s=1),
    logging_config=LoggingConfig(enable_access_log=False),
)
@serve.ingress()
class Team:
    """One replica: cached weights, one thread for torch, one forward for the requests that wait together."""

    def __init__(self, settings: dict[str, Any]):
        self.settings = Settings(**settings)
        torch.set_num_threads(self.settings.torch_threads)
        self.team = ServedTeam(self.settings.device)
        self._torch = ThreadPoolExecutor(1, thread_name_prefix="torch")
        self._rows = Counter("hypermarl_serve_env_rows", "Environment rows answered.")
        self._reloads = Counter("hypermarl_serve_reloads", "Bundles loaded.", tag_keys=("result",))
        self._current = Gauge("hypermarl_serve_version", "1 for the version that is served.", tag_keys=("version",))

    def __serve_build_asgi_app__(self) -> Any:
        return TeamApp(self, token=self.settings.token(), max_body=int(self.settings.max_body_mb * 2**20))

    async def reconfigure(self, user_config: Any) -> None:
        """Serve's hook for a new `user_config`: serves its bundle, and goes on with the old one if it is refused.

        Raising here would make Serve stop a replica that works, and start one in its place that cannot. A replica that
        starts while the configured bundle is damaged serves the one of the arguments.
        """
        self._bundle = user_config.get("bundle") if isinstance(user_config, dict) else None
        await self.reload()

    async def reload(self) -> dict[str, Any]:
        """Reads the configured bundle again. Returns what is served then, as `/metadata` does."""
        before = self.team.policy
        await self._in_thread(self.team.exchange, self._bundle, self.settings.bundle)
        after, report = self.team.policy, self.team.metadata()
        self._reloads.inc(tags={"result": "served" if report["refused"] is None else "refused"})
        if before is not None:
            self._current.set(0, {"version": before.version})
        self._current.set(1, {"version": after.version})
        return report

    async def act(self, request: dict[str, Any]) -> dict[str, Any]:
        """For deployment handles: an `ActRequest` as a dict of lists; answers an `ActAnswer` as a dict of arrays.

        Raises:
            RefusedError: names the field.
        """
        found = await self.answer(check(parse(encode(request)), self.team.policy))
        if isinstance(found, RefusedError):
            raise found
        return found

    async def check_health(self) -> None:
        """Serve's hook: raises if torch's thread does not answer within Serve's timeout."""
        await self._in_thread(lambda: None)

    async def answer(self, ask: Ask) -> dict[str, Any] | RefusedError:
        """Answers one request together with those that wait beside it."""
        return await self._answer_batch(ask)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0)
    async def _answer_batch(self, asks: list[Ask]) -> list[dict[str, Any] | RefusedError]:
        answers: list[dict[str, Any] | RefusedError] = []
        # Requests that were checked before a reload are answered by the version that they were checked against.
        for _, group in itertools.groupby(asks, key=lambda ask: id(ask.policy)):
            answers += await self._in_thread(answer, list(group))
        self._rows.inc(sum(ask.rows for ask in asks))
        return answers

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._torch, function, *arguments)


def build(settings: Settings | dict[str, Any]) -> serve.Application:
    """The application of a served team.

    Raises:
        ValidationError: of pydantic, for settings that are no `Settings`.
    """
    settings = Settings.model_validate(settings)  # Serve does not see annotations that are strings, as ours
    return Team.options(
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        user_config={"bundle": settings.bundle},
        ray_actor_options={"num_cpus": settings.num_cpus, "runtime_env": {"env_vars": settings.environment()}},
    ).bind(settings.model_dump())
