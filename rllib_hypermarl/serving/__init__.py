"""Trained teams behind HTTP: the Ray Serve application, and a client that needs no Ray."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {"Settings": ".deployment", "TeamClient": ".client", "build": ".deployment"}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
