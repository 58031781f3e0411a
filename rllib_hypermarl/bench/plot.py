"""One picture of both benches: `python -m rllib_hypermarl.bench.plot THROUGHPUT.json SCALING.json OUT.png`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

LABELS = {"ours": "this library", "bare": "bare loop, no Ray", "stock": "stock RLlib PPO"}
STYLES = {16_384: "--", 65_536: "-"}


def plot(throughput_json: str | Path, scaling_json: str | Path, out_png: str | Path) -> None:
    """Draws env steps per second as bars, and the time of a gradient step relative to full sharing as lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    throughput, scaling = (
        json.loads(Path(path).read_text(encoding="utf-8")) for path in (throughput_json, scaling_json)
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    _bars(left, throughput)
    _lines(right, scaling)
    figure.savefig(out_png, dpi=120)
    plt.close(figure)


def _bars(axes: Any, entries: list[dict[str, Any]]) -> None:
    width = 0.8 / len(LABELS)
    for i, (key, label) in enumerate(LABELS.items()):
        bars = axes.bar([x + i * width for x in range(len(entries))], [e[key] for e in entries], width, label=label)
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=7)
    axes.set_yscale("log")
    axes.set_xticks([x + width for x in range(len(entries))], [f"{e['work']}\n{e['sharing']}" for e in entries])
    axes.set_ylabel("env steps per second, training")
    axes.set_ylim(top=3 * max(e["ours"] for e in entries))
    axes.legend(fontsize=8, ncols=3, loc="upper center")


def _lines(axes: Any, entries: list[dict[str, Any]]) -> None:
    for color, mode in (("C0", "hyper_mlp"), ("C1", "none")):
        for rows in sorted({e["rows"] for e in entries}):
            chosen = [e for e in entries if e["rows"] == rows]
            xs, ys = [e["agents"] for e in chosen], [e["ratio"][mode] for e in chosen]
            axes.plot(
                xs, ys, STYLES.get(rows, ":"), color=color, marker="o", markersize=3, label=f"{mode}, {rows:,} rows"
            )
    axes.axhline(1, color="grey", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("agents, each with a policy of its own")
    axes.set_ylabel("time of a gradient step / that of full sharing")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    plot(*sys.argv[1:4])
