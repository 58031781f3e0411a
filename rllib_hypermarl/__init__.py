"""HyperMARL on Ray RLlib: one shared hypernetwork, one learned embedding per policy, specialised agents.

Public names are imported when first used, so that `nets` and the batched environments work where Ray is not installed.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# A wheel ships the repository's `envs/` as `rllib_hypermarl.envs`; in a bare checkout it lies beside this package.
_CHECKOUT = Path(__file__).resolve().parent.parent
if not (Path(__file__).parent / "envs").is_dir() and (_CHECKOUT / "envs" / "matrix_games.py").is_file():
    __path__.append(str(_CHECKOUT))

_PUBLIC = {
    "BatchedEnv": ".env",
    "HyperMARL": ".rllib.algorithm",
    "HyperMARLConfig": ".rllib.config",
    "ModelSpec": ".nets",
    "Step": ".env",
    "TeamPolicy": ".bundle",
    "ViewLearner": ".rllib.view_learner",
    "load_policy": ".bundle",
    "load_team": ".bundle",
    "make": ".env",
    "register": ".env",
    "save_bundle": ".bundle",
    "stock_module_spec": ".rllib.views",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
