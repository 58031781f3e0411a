"""A report's page: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, StrictUndefined

from .figures import name_of
from .words import count, crossing, duration, interval, number, reported

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
<p>{% if numbers.until is not none %}Of every run the first {{ numbers.until | count }} env steps. {% endif %}
Return: {{ numbers.return }}. Aggregates: {{ numbers.aggregate }}. Greedy: of evaluation episodes, in which agents
take their likeliest actions; sampled: of training episodes. Medians over seeds where no interval stands. Numbers are in
<code>report.json</code>; <code>marl_eval.json</code> is for marl-eval.</p>
{% for note in notes %}<p>marl_eval.json: {{ note }}.</p>
{% endfor %}{% for name, source in across.items() %}<p><img alt="final returns {{ name }}" src="{{ source }}"></p>
{% endfor %}{% for task in numbers.tasks %}<h2>{{ task.name }}</h2>
<div class="wide"><table>
<tr><th>group</th><th class="n">seeds</th><th class="n">greedy, last</th>{% if task.groups | any_final("evaluated") %}
<th class="n"><code>evaluate</code></th>{% endif %}{% if numbers.reference %}
<th class="n">{{ numbers.reference }}</th>{% endif %}<th class="n">sampled, last</th>
{% if numbers.threshold is not none %}<th>to a greedy return of {{ numbers.threshold }}</th>{% endif %}
<th class="n">env steps</th><th class="n">training</th><th class="n">env steps per second</th>
<th class="n">parameters</th></tr>
{% for group in task.groups %}<tr><td>{{ group | name }}</td><td class="n">{{ group.seeds | length }}</td>
<td class="n">{{ group.final.greedy | interval }}</td>{% if task.groups | any_final("evaluated") %}
<td class="n">{{ group.final.evaluated | interval }}</td>{% endif %}{% if numbers.reference %}
<td class="n">{{ group.reference | reported }}</td>{% endif %}
<td class="n">{{ group.final.sampled | interval }}</td>
{% if numbers.threshold is not none %}<td>{{ group.to_threshold | crossing }}</td>{% endif %}
<td class="n">{{ group.env_steps | count }}</td><td class="n">{{ group.seconds | duration }}</td>
<td class="n">{{ group.env_steps_per_second | count }}</td><td class="n">{{ group.parameters | count }}</td></tr>
{% endfor %}</table></div>
{% if numbers.reference %}<ul>{% for group in task.groups if group.reference %}
<li>{{ numbers.reference }} on {{ group.label }}: {{ group.reference.source }}.</li>{% endfor %}</ul>{% endif %}
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
    "embeddings": "learned embeddings in two dimensions, with a line from where they started",
}


def render(
    numbers: Mapping[str, Any], images: list[dict[str, bytes]], notes: list[str], across: Mapping[str, bytes]
) -> str:
    """The page.

    Args:
        images: PNGs by name, for each task.
        notes: what marl-eval's file leaves out.
        across: PNGs that are about several tasks.
    """
    page = Environment(autoescape=True, undefined=StrictUndefined)
    page.filters |= {
        "name": name_of, "interval": interval, "reported": reported, "crossing": crossing, "count": count,
        "duration": duration, "number": number,
        "any_final": lambda groups, kind: any(group["final"][kind] for group in groups),
    }  # fmt: skip
    sources = [{name: _data_url(png) for name, png in task.items()} for task in images]
    title = "Report on " + ", ".join(task["name"] for task in numbers["tasks"])
    return page.from_string(_PAGE).render(
        title=title, numbers=numbers, images=sources, notes=notes, captions=_CAPTIONS,
        across={name: _data_url(png) for name, png in across.items()},
    )  # fmt: skip


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
