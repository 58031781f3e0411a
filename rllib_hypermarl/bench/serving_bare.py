"""What one would write by hand without Serve, as the limit: FastAPI, uvicorn and torch in one process, a forward per
request, no checks, no batches, no updates: `python -m rllib_hypermarl.bench.serving_bare BUNDLE PORT`.
"""

from __future__ import annotations

import sys

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from ..bundle import load_policy


class Request(BaseModel):
    observations: dict[str, list[float]]


def make_app(bundle: str) -> FastAPI:
    """The app of a bundle's team."""
    app, policy = FastAPI(), load_policy(bundle)

    @app.post("/v1/act")
    async def act(request: Request) -> dict[str, dict[str, int]]:
        obs = torch.tensor([request.observations[agent] for agent in policy.spec.agents]).unsqueeze(1)
        with torch.inference_mode():
            actions = policy.actions(obs)[:, 0].tolist()
        return {"actions": dict(zip(policy.spec.agents, actions, strict=True))}

    return app


if __name__ == "__main__":
    torch.set_num_threads(1)
    uvicorn.run(make_app(sys.argv[1]), port=int(sys.argv[2]), log_level="warning", access_log=False)
