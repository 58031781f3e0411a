"""A report's page: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, StrictUndefined

from .figures import name_of
from .statistics import ENOUGH

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#111}
table{border-collapse:collapse;font-size:13px;margin:1rem 0}
td,th{border:1px solid #999;padding:.2rem .5rem;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
img{max-width:100%;height:auto}
.wide{overflow-x:auto}
@media print{body{max-width:none;margin:0;font-size:11px}table{font-size:9px}
img,tr{break-inside:avoid}.wide{overflow:visible}}
</style></head><body>
<h1>{{ title }}</h1>
<p>Return: {{ numbers.return }}. Aggregates: {{ numbers.aggregate }}. Greedy: of evaluation episodes, in which agents
take their likeliest actions; sampled: of training episodes. Medians over seeds where no interval stands. Numbers are in
<code>report.json</code>; <code>marl_eval.json</code> is for marl-eval.</p>
{% for note in notes %}<p>marl_eval.json: {{ note }}.</p>
{% endfor %}{% for task in numbers.tasks %}<h2>{{ task.name }}</h2>
<div class="wide"><table>
<tr><th>group</th><th class="n">seeds</th><th class="n">greedy, last</th>{% if task.groups | any_final("evaluated") %}
<th class="n"><code>evaluate</code></th>{% endif %}<th class="n">sampled, last</th>
{% if numbers.threshold is not none %}<th>to a greedy return of {{ numbers.threshold }}</th>{% endif %}
<th class="n">env steps</th><th class="n">training</th><th class="n">env steps per second</th>
<th class="n">parameters</th></tr>
{% for group in task.groups %}<tr><td>{{ group | name }}</td><td class="n">{{ group.seeds | length }}</td>
<td class="n">{{ group.final.greedy | interval }}</td>{% if task.groups | any_final("evaluated") %}
<td class="n">{{ group.final.evaluated | interval }}</td>{% endif %}
<td class="n">{{ group.final.sampled | interval }}</td>
{% if numbers.threshold is not none %}<td>{{ group.to_threshold | crossing }}</td>{% endif %}
<td class="n">{{ group.env_steps | count }}</td><td class="n">{{ group.seconds | duration }}</td>
<td class="n">{{ group.env_steps_per_second | count }}</td><td class="n">{{ group.parameters | count }}</td></tr>
{% endfor %}</table></div>
{% for name, source in images[loop.index0].items() %}
<p><img alt="{{ task.name }}: {{ captions[name] }}" src="{{ source }}"></p>
{% endfor %}{% endfor %}
{% if numbers.left_out %}<h2>Left out</h2>
<ul>{% for entry in numbers.left_out %}<li><code>{{ entry.run }}</code> {{ entry.why }}</li>
{% endfor %}</ul>{% endif %}
<h2>Runs</h2>
<div class="wide"><table>
<tr><th>run</th><th>task</th><th>group</th><th class="n">seed</th><th class="n">env steps</th>
<th class="n">training</th><th class="n">greedy, last</th><th class="n">sampled, last</th><th>again</th></tr>
{% for run in numbers.runs %}<tr><td>{{ run.run }}</td><td>{{ run.task }}</td><td>{{ run.group }}</td>
<td class="n">{{ run.seed }}</td>
<td class="n">{{ run.env_steps | count }}{{ "" if run.finished else " (unfinished)" }}</td>
<td class="n">{{ run.seconds | duration }}</td><td class="n">{{ run.greedy | number }}</td>
<td class="n">{{ run.sampled | number }}</td><td><code>{{ run.command }}</code></td></tr>
{% endfor %}</table></div>
</body></html>
"""
_CAPTIONS = {
    "curves": "learning curves over env steps and over wall-clock, with intervals",
    "final": "final returns with intervals",
    "metrics": "what was measured on the networks",
}
_NONE = "–"


def render(numbers: Mapping[str, Any], images: list[dict[str, bytes]], notes: list[str]) -> str:
    """The page. Args: images, PNGs by name for each task; notes, what marl-eval's file leaves out."""
    page = Environment(autoescape=True, undefined=StrictUndefined)
    page.filters |= {
        "name": name_of, "interval": _interval, "crossing": _crossing, "count": _count, "duration": _duration,
        "number": _number, "any_final": lambda groups, kind: any(group["final"][kind] for group in groups),
    }  # fmt: skip
    sources = [{name: _data_url(png) for name, png in task.items()} for task in images]
    title = "Report on " + ", ".join(task["name"] for task in numbers["tasks"])
    return page.from_string(_PAGE).render(
        title=title, numbers=numbers, images=sources, notes=notes, captions=_CAPTIONS
    )  # fmt: skip


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _interval(final: Mapping[str, Any] | None) -> str:
    if final is None:
        return _NONE
    seeds = len(final["values"])
    if final["low"] is None:
        return f"{_number(final['iqm'])}, no interval of 1 seed"
    few = f", only {seeds} seeds" if seeds < ENOUGH else ""
    return f"{_number(final['iqm'])} [{_number(final['low'])}, {_number(final['high'])}]{few}"


def _crossing(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return _NONE
    text = f"{found['reached']} of {found['runs']} seeds"
    if found["env_steps"] is not None:
        text += f", median {_count(found['env_steps'])} env steps, {_duration(found['seconds'])}"
    return text + (
        f"; IQM at {_count(found['iqm_env_steps'])}" if found["iqm_env_steps"] is not None else "; IQM never"
    )


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.3g}" if abs(value) >= 10 else f"{value:.3f}"


def _count(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
