"""Films of teams at play, drawn in two dimensions without a display: one team, or several side by side."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import patches, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from ..env import BatchedEnv, Mark
from ..errors import EnvError, ReportError
from ..evaluation import evaluate
from ..nets import TeamNet
from .figures import COLOURS
from .grouping import labels
from .store import dotted

if TYPE_CHECKING:
    from ..rllib.algorithm import HyperMARL

_TRAIL = 40  # pictures of the past that an agent's trail goes back
_HOLD = 8  # pictures for which the end of an episode stands still
_LEAST = 0.012  # least radius of a mark, as a part of the whole picture


@dataclasses.dataclass(frozen=True)
class Episode:
    """Its pictures, and the return at its end, mean over agents."""

    pictures: list[list[Mark]]
    agent_return: float


@dataclasses.dataclass(frozen=True)
class Film:
    """What one team did."""

    title: str
    agents: tuple[str, ...]
    episodes: list[Episode]


def check_video(path: Path) -> None:
    """Whether a video can be written there, before anything is played.

    Raises:
        ReportError: it has another format, ffmpeg is missing, or its directory.
    """
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise ReportError(f"--video {path}: expected a name that ends in .gif or .mp4")
    if path.suffix.lower() == ".mp4" and not _has_ffmpeg():
        raise ReportError(f"--video {path}: needs ffmpeg (pip install imageio-ffmpeg), or a name that ends in .gif")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ReportError(f"--video {path}: cannot be written; its directory must be there")


def film_teams(algos: Sequence[HyperMARL], path: Path, *, episodes: int, seed: int) -> None:
    """Films what trained teams do, greedily and from one seed, into one video, named by what differs in their configs.

    Raises:
        EnvError: their env has no pictures.
    """
    films = []
    for algo, title in zip(algos, titles([dotted(algo.config.to_groups()) for algo in algos]), strict=True):
        runner = algo.env_runner
        env = runner.make_batched_env(1)
        films.append(film(runner.net, env, episodes, seed=seed, title=title))
        env.close()
    write_video(films, path)


def titles(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells films of these configs apart, their tasks included; of a single one, its env."""
    if len(configs) == 1:
        return [configs[0]["env"]]
    envs = [config["env"] if len({config["env"] for config in configs}) > 1 else "" for config in configs]
    tasks, others = ([label for label, _ in labels(configs, only_task)] for only_task in (True, False))
    return [" ".join(filter(None, parts)) for parts in zip(envs, tasks, others, strict=True)]


def film(net: TeamNet, env: BatchedEnv, episodes: int, *, seed: int, title: str) -> Film:
    """Plays whole episodes greedily.

    Args:
        env: one copy, on the net's device.
    """
    env.film = []
    played = evaluate(net, env, episodes, seed=seed, name=title)
    shown, env.film = env.film, None
    if len(shown) != 1 + played.env_steps():
        raise EnvError(f"{type(env).__name__} showed {len(shown)} pictures of {played.env_steps()} steps and a reset")
    found, start = [], 0
    for length, agent_return in zip(played.lengths.tolist(), played.returns.mean(dim=1).tolist(), strict=True):
        end = start + length + (not found)  # the first has a picture of its reset
        found.append(Episode(shown[start:end], agent_return))
        start = end
    return Film(title, env.agents, found)


def write_video(films: Sequence[Film], path: Path, *, fps: int = 10) -> None:
    """Writes films side by side; where an episode of one is over, it waits for the others."""
    (_write_gif if path.suffix.lower() == ".gif" else _write_mp4)(list(_frames(films)), path, fps)


def _frames(films: Sequence[Film]) -> Iterator[Image.Image]:
    figure = Figure(figsize=(4.2 * len(films), 4.6), dpi=100)
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(films), squeeze=False)[0]
    figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.9, wspace=0.04)
    limits = [_limits([other for other in films if other.agents == one.agents]) for one in films]  # to one scale
    for number, played in enumerate(zip(*(one.episodes for one in films), strict=True), start=1):
        for step in range(max(len(episode.pictures) for episode in played) + _HOLD):
            for axes, one, episode, limit in zip(panels, films, played, limits, strict=True):
                _draw(axes, one, episode, step, limit, number)
            canvas.draw()
            yield Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _draw(axes: Axes, shown: Film, episode: Episode, step: int, limits: tuple[float, ...], number: int) -> None:
    left, right, bottom, top = limits
    least = _LEAST * max(right - left, top - bottom)
    now = min(step, len(episode.pictures) - 1)
    axes.clear()
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    over = now == len(episode.pictures) - 1
    state = f"return {episode.agent_return:.2f}" if over else f"step {now}"
    axes.set_title(f"{shown.title}\nepisode {number}, {state}", fontsize=9)
    agents = {agent: index for index, agent in enumerate(shown.agents)}
    for mark in episode.pictures[now]:
        is_agent = mark.name in agents
        family = agents.get(mark.name) if mark.family is None else mark.family
        colour = "0.6" if family is None else COLOURS[family % len(COLOURS)]
        if is_agent:
            recent = episode.pictures[max(0, now - _TRAIL) : now + 1]
            trail = [past for picture in recent for past in picture if past.name == mark.name]
            axes.plot([m.x for m in trail], [m.y for m in trail], color=colour, linewidth=1.2, alpha=0.6, zorder=2)
            axes.annotate(
                _short(mark.name), (mark.x, mark.y), (5, 4), textcoords="offset points", fontsize=8, color=colour,
                fontweight="bold", zorder=4, path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
            )  # fmt: skip
        look: dict[str, Any] = {"facecolor": to_rgba(colour, 1.0 if is_agent else 0.35), "edgecolor": "black"}
        look |= {"linewidth": 0.7 if is_agent else 0.5}
        if mark.gone:
            look |= {"facecolor": "none", "linestyle": ":"}
        axes.add_patch(_shape(mark, least, zorder=3 if is_agent else 1, **look))


def _shape(mark: Mark, least: float, **look: Any) -> patches.Patch:
    if mark.box is None:
        return patches.Circle((mark.x, mark.y), max(mark.radius, least), **look)
    length, width = (max(side, least / 2) for side in mark.box)
    corner = (mark.x - length / 2, mark.y - width / 2)
    return patches.Rectangle(corner, length, width, angle=math.degrees(mark.angle), rotation_point="center", **look)


def _limits(films: Sequence[Film]) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of all that is ever seen, and some air."""
    marks = [mark for one in films for episode in one.episodes for picture in episode.pictures for mark in picture]
    reach = [max(mark.radius, *(side / 2 for side in mark.box or (0.0,))) for mark in marks]
    left, right = (f(m.x + s * r for m, r in zip(marks, reach, strict=True)) for f, s in ((min, -1), (max, 1)))
    bottom, top = (f(m.y + s * r for m, r in zip(marks, reach, strict=True)) for f, s in ((min, -1), (max, 1)))
    air = 0.05 * max(right - left, top - bottom, 1e-6)
    return left - air, right + air, bottom - air, top + air


def _short(agent: str) -> str:
    """`agent_3` is 3."""
    digits = re.findall(r"\d+", agent)
    return digits[-1] if digits else agent[:3]


def _write_gif(frames: list[Image.Image], path: Path, fps: int) -> None:
    """With one palette and without dithering, so that a frame holds little more than what has moved."""
    first, last = frames[0], frames[-1]
    both = Image.new("RGB", (first.width, 2 * first.height))
    both.paste(first, (0, 0))
    both.paste(last, (0, first.height))
    palette = both.quantize(128)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=1000 // fps, loop=0)


def _write_mp4(frames: list[Image.Image], path: Path, fps: int) -> None:
    from imageio_ffmpeg import write_frames

    options = {"codec": "libx264", "macro_block_size": 2, "ffmpeg_log_level": "error"}
    writer = write_frames(str(path), frames[0].size, fps=fps, **options)
    writer.send(None)
    for frame in frames:
        writer.send(frame.tobytes())
    writer.close()


def _has_ffmpeg() -> bool:
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        return bool(get_ffmpeg_exe())
    except (ImportError, RuntimeError):  # RuntimeError: the package came without a program
        return False
