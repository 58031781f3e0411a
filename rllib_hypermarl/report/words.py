"""A report's numbers in words, for its page and for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .statistics import ENOUGH

NONE = "–"


def interval(final: Mapping[str, Any] | None) -> str:
    """An aggregate over seeds, with what a reader must know of it."""
    if final is None:
        return NONE
    seeds = len(final["values"])
    if final["low"] is None:
        return f"{number(final['iqm'])}, no interval of 1 seed"
    few = f", only {seeds} seeds" if seeds < ENOUGH else ""
    return f"{number(final['iqm'])} [{number(final['low'])}, {number(final['high'])}]{few}"


def reported(figure: Mapping[str, Any] | None) -> str:
    """A figure of others."""
    if figure is None:
        return NONE
    ends = "" if figure["low"] is None else f" [{number(figure['low'])}, {number(figure['high'])}]"
    return number(figure["value"]) + ends


def crossing(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return NONE
    text = f"{found['reached']} of {found['runs']} seeds"
    if found["env_steps"] is not None:
        text += f", median {count(found['env_steps'])} env steps, {duration(found['seconds'])}"
    return text + (f"; IQM at {count(found['iqm_env_steps'])}" if found["iqm_env_steps"] is not None else "; IQM never")


def number(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def count(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def finals_table(numbers: Mapping[str, Any]) -> str:
    """Final greedy returns of all groups, a line each, beside the figures of others if the report has some."""
    others, lines = numbers["reference"], []
    for task in numbers["tasks"]:
        rows = [(task["name"], "greedy return per agent", others or "")]
        for group in task["groups"]:
            final = group["final"]["evaluated"] or group["final"]["greedy"]
            rows.append((group["label"], interval(final), reported(group["reference"]) if others else ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
