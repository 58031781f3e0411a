"""Aggregates over seeds: rliable's interquartile means and bootstrap intervals, of numbers and of curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ReportError
from .store import Series

REPS = 2000
CONFIDENCE = 0.95
ENOUGH = 5
"""Seeds below which an interval says little; whoever shows one then says so."""
_SEED = 0
_POINTS = 60


def iqm(values: np.ndarray) -> np.ndarray:
    """Interquartile means over runs, rliable's `aggregate_iqm` of each column. Args: values `[R, C]`. Returns `[C]`.

    Without a quarter of the runs, rounded down, at both ends: of three runs it is the mean, of five that of the
    middle three.
    """
    # scipy's trim_mean to the last bit, without its handling of axes and NaN: that is most of two thousand resamples.
    cut = len(values) // 4
    return np.partition(values, (cut, len(values) - cut - 1), axis=0)[cut : len(values) - cut].mean(axis=0)


def intervals(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The IQM over runs and its 95 % interval by rliable's stratified bootstrap (percentiles), for each column.

    Args:
        values: `[R, C]`, R independent runs.

    Returns:
        The IQM, and the lower and the upper end, each `[C]`; of one run, both ends are NaN.

    Raises:
        ReportError: rliable is not installed.
    """
    point = iqm(values)
    if len(values) == 1:
        return point, np.full_like(point, math.nan), np.full_like(point, math.nan)
    try:
        from rliable.library import get_interval_estimates
    except (ImportError, TypeError) as error:  # TypeError: rliable's arch on pandas 3
        raise ReportError(f"a report needs rliable: pip install 'rllib-hypermarl[report]' ({error})") from error
    outside = np.random.get_state()
    np.random.seed(_SEED)  # rliable 1.2 draws from the global stream, whatever random_state it is given
    try:
        _, ends = get_interval_estimates(
            {"": values[:, None, :]},
            lambda runs: iqm(runs[:, 0]),
            reps=REPS,
            confidence_interval_size=CONFIDENCE,
        )
    finally:
        np.random.set_state(outside)
    low, high = ends[""]
    return point, low, high


def estimate(values: Sequence[float | None]) -> dict[str, Any] | None:
    """One number per run, aggregated: `iqm`, `low`, `high` (None of a single run), the `values`; None without any."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    point, low, high = intervals(np.array(known)[:, None])
    return {"iqm": plain(point[0]), "low": plain(low[0]), "high": plain(high[0]), "values": [plain(v) for v in known]}


def curve(series: Sequence[Series], over: str) -> dict[str, list[float | None]] | None:
    """A metric over `env_steps` or `seconds`, aggregated over runs: `x`, `iqm`, `low`, `high`; None without values.

    Between two of its values, a run is on the line that joins them. The curve covers what all runs do.
    """
    known = [one for one in series if len(one.values)]
    if not known:
        return None
    grid, values = on_grid(known, over)
    point, low, high = intervals(values)
    columns = {"x": grid, "iqm": point, "low": low, "high": high}
    return {name: [plain(value) for value in column] for name, column in columns.items()}


def shared_grid(axes: Sequence[np.ndarray]) -> np.ndarray:
    """Where to compare runs whose values are at `axes`: there, if that is few and the same for all, else evenly spaced
    over what all of them cover."""
    first = axes[0]
    if len(first) <= 2 * _POINTS and all(np.array_equal(first, axis) for axis in axes):
        return first
    start, end = max(axis[0] for axis in axes), min(axis[-1] for axis in axes)
    return np.linspace(min(start, end), end, _POINTS)


def on_grid(series: Sequence[Series], over: str) -> tuple[np.ndarray, np.ndarray]:
    """The shared grid of runs, `[C]`, and their values there, `[R, C]`."""
    axes = [getattr(one, over) for one in series]
    grid = shared_grid(axes)
    return grid, np.stack([np.interp(grid, x, one.values) for x, one in zip(axes, series, strict=True)])


def to_threshold(series: Sequence[Series], threshold: float) -> dict[str, Any] | None:
    """When runs first have a value of at least `threshold`.

    Returns:
        `reached` of `runs`, and the medians over all runs of `env_steps` and `seconds` (None where half of the runs or
        more never got there); `iqm_env_steps`: where the IQM over runs does. None without values.
    """
    known = [one for one in series if len(one.values)]
    if not known:
        return None
    first = [next(iter(np.flatnonzero(one.values >= threshold)), None) for one in known]
    medians = {}
    for over in ("env_steps", "seconds"):
        times = [math.inf if i is None else getattr(one, over)[i] for one, i in zip(known, first, strict=True)]
        medians[over] = plain(float(np.median(times)))
    grid, values = on_grid(known, "env_steps")
    crossed = grid[iqm(values) >= threshold]
    return {
        "reached": sum(i is not None for i in first),
        "runs": len(known),
        **medians,
        "iqm_env_steps": plain(crossed[0]) if len(crossed) else None,
    }


def plain(value: float) -> int | float | None:
    """A number for JSON: six significant digits, so that the last bits of a machine do not matter; None for none."""
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(f"{value:.6g}")
