"""The commands and their arguments. Heavy imports happen inside the commands, so that `--help` is instant."""

from __future__ import annotations

import atexit
import json
import logging
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import BundleError, HyperMARLError, StoppedBySignal, in_one_line

if TYPE_CHECKING:
    from ..bundle import TeamPolicy
    from ..storage import Storage

_CONFIG = click.argument("config", type=click.Path(path_type=Path))
_OVERRIDES = click.argument("overrides", nargs=-1, metavar="[K=V]...")
_RUN_DIR = click.argument("run_dir")
_RUN_PATH = click.argument("path", metavar="RUN_DIR|CHECKPOINT")
_WAIT = click.option(
    "--wait-for-nodes",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="For an autoscaler to bring them.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def app() -> None:
    """HyperMARL on Ray RLlib. Configs are YAML files (see tune_configs/) with overrides such as training.lr=5e-4."""


@app.command()
@_CONFIG
@_OVERRIDES
@click.option("--out", help="Run directory, or a URI such as s3://bucket/run; default runs/NAME-TIME.")
@click.option("--seed", type=int, help="The same as run.seed=SEED.")
@_WAIT
def train(config: Path, overrides: tuple[str, ...], out: str | None, seed: int | None, wait_for_nodes: float) -> None:
    """Train; with --out of a run of the same config, go on with it."""
    from ..rllib.config import HyperMARLConfig
    from ..rllib.run_dir import check_same_run
    from .ray_session import output_storage
    from .training import start_run

    extra = [] if seed is None else [f"run.seed={seed}"]
    parsed = HyperMARLConfig.from_yaml(config, [*overrides, *extra])
    parsed.validate()
    storage = output_storage(out, config.stem)
    storage.fetch()
    exists = check_same_run(storage.path, parsed)
    start_run(storage, parsed, resume=exists, wait_for_nodes=wait_for_nodes)


@app.command()
@_CONFIG
@_OVERRIDES
@click.option("--out", help="Directory of the sweep, or a URI such as s3://bucket/sweep; default runs/NAME-TIME.")
@_WAIT
def tune(config: Path, overrides: tuple[str, ...], out: str | None, wait_for_nodes: float) -> None:
    """Search for a better config; with --out of the same sweep, go on with it. tune.key=value changes its settings."""
    from ..tuning.spec import Sweep
    from .ray_session import output_storage
    from .tuning import start_sweep

    sweep = Sweep.from_yaml(config, overrides)
    start_sweep(sweep, output_storage(out, config.stem), wait_for_nodes)


@app.command()
@_RUN_DIR
@click.option("--stop-env-steps", type=click.IntRange(min=1), help="Train on to this number of env steps.")
def resume(run_dir: str, stop_env_steps: int | None) -> None:
    """Go on with a run from its newest checkpoint (opened as pickles, which can run code: only your own)."""
    from ..rllib.config import HyperMARLConfig
    from .training import start_run

    storage, config = _stored(run_dir), None
    if stop_env_steps is not None:  # the run's own from now on: it is unfinished until then
        config = HyperMARLConfig.from_yaml(storage.path / "config.yaml", [f"run.stop_env_steps={stop_env_steps}"])
    start_run(storage, config, resume=True)


@app.command()
@_RUN_PATH
@click.option("--episodes", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the episodes.")
@_JSON
@click.option("--random", is_flag=True, help="Play random actions instead of the team's: what to compare it with.")
@click.option("--metrics", is_flag=True, help="Also measure diversity, gradients and embeddings, on one rollout.")
@click.option("--video", type=click.Path(path_type=Path), help="Also film up to three episodes: a .gif or .mp4.")
@click.option("--beside", multiple=True, metavar="RUN_DIR|CHECKPOINT", help="Film this one's episodes at its side.")
def evaluate(
    path: str,
    episodes: int,
    seed: int,
    as_json: bool,
    random: bool,
    metrics: bool,
    video: Path | None,
    beside: tuple[str, ...],
) -> None:
    """Play whole episodes greedily and report the returns (opens pickles, which can run code: only your own)."""
    from .evaluating import evaluate_checkpoint

    if beside and video is None:
        raise click.UsageError("--beside: give the film's name with --video")
    if random and (metrics or video is not None):
        raise click.UsageError("--random: leave out --metrics and --video, which are about the team's own actions")
    if video is not None:
        from ..report.video import check_video

        check_video(video)
    others = [_stored(other) for other in beside]
    report = evaluate_checkpoint(
        _stored(path), episodes, seed, random=random, metrics=metrics, video=video, others=others
    )
    _print(report, as_json)


@app.command()
@click.argument("path", metavar="RUN_DIR|CHECKPOINT|BUNDLE", type=click.Path(exists=True, path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice(["frozen", "full"]), default="frozen", show_default=True,
              help="Plain weights per policy, or all of the team: generators, critics.")  # fmt: skip
@click.option("--critic", is_flag=True, help="Keep the critics in a frozen bundle, for values.")
@click.option("--format", "form", type=click.Choice(["native", "onnx", "torch_export"]), default="native",
              show_default=True, help="A bundle, or programs for other runtimes.")  # fmt: skip
def export(path: Path, bundle: Path, kind: str, critic: bool, form: str) -> None:
    """Write what acts, without anything that can run code (opens a run's pickles, which can: only your own)."""
    from ..bundle import is_bundle, load_policy
    from ..bundle.files import check_free
    from ..bundle.programs import export_programs

    try:
        check_free(bundle)
    except BundleError as error:
        raise click.UsageError(str(error)) from error
    if form == "native" and is_bundle(path):
        raise click.UsageError(f"{path} is a bundle already; --format onnx or torch_export make programs of it")
    if form != "native" and (kind == "full" or critic):
        raise click.UsageError(f"--format {form} holds the actors alone: leave out --kind full and --critic")
    if form == "native":
        written = _export_bundle(path, bundle, kind, critic)
    elif is_bundle(path):
        written = load_policy(path)
        export_programs(written, bundle, form)
    else:
        with tempfile.TemporaryDirectory() as aside:
            written = _export_bundle(path, Path(aside) / "bundle")
        export_programs(written, bundle, form)
    size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
    print(f"{bundle}: version {written.version}, {len(written.spec.agents)} agents, {size / 1000:,.0f} kB")


def _export_bundle(path: Path, bundle: Path, kind: Any = "frozen", critic: bool = False) -> TeamPolicy:
    from ..bundle import load_policy
    from ..rllib.export import export_bundle

    export_bundle(path, bundle, kind, critic)
    return load_policy(bundle)


@app.command()
@_CONFIG
@_OVERRIDES
@_JSON
def inspect(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show agents, policies, parameters and initial weight scales of a config, without training."""
    from ..rllib.config import HyperMARLConfig
    from ..rllib.inspect import inspect_config

    parsed = HyperMARLConfig.from_yaml(config, overrides)
    parsed.validate()
    _print(inspect_config(parsed), as_json)


@app.command()
@click.argument("name", required=False)
@_JSON
def envs(name: str | None, as_json: bool) -> None:
    """List the environments; all of one kind, such as vmas, with agents and spaces; or show one."""
    from .. import env

    available = env.providers()
    if name is None:
        listing: dict[str, Any] = {}
        for prefix, provider in available.items():
            listing[prefix] = {"requires": provider.REQUIRES}
            for key in ("also_requires", "accepts"):
                if more := getattr(provider, key.upper(), None):
                    listing[prefix][key] = more
            listing[prefix]["names"] = provider.names()
        _print(listing, as_json)
    elif name in available:
        _print({one: _short_details(f"{name}/{one}") for one in available[name].names()}, as_json)
    else:
        _print({"name": name, **_details(name)}, as_json)


def _details(name: str) -> dict[str, Any]:
    from .. import env

    made = env.make(name, num_envs=1)
    spaces = {
        a: {"observation": str(made.observation_spaces[a]), "action": str(made.action_spaces[a])} for a in made.agents
    }
    masks = made.reset(0).action_mask is not None
    made.close()
    return {
        "agents": spaces, "action_masks": masks, "max_episode_steps": made.max_episode_steps, "doc": _doc(made),
    }  # fmt: skip


def _short_details(name: str) -> dict[str, Any]:
    """With the number of agents in place of their names, and the spaces of the first one, or of the first of each kind
    where they differ; or why there are none."""
    try:
        details = _details(name)
    except HyperMARLError as error:
        return {"not_available": str(error)}
    agents, masks = details["agents"], details["action_masks"]
    kinds = {tuple(spaces.values()): agent for agent, spaces in reversed(agents.items())}
    spaces = {agent: agents[agent] for agent in agents if agent in kinds.values()}
    return {
        "agents": len(agents),
        **(next(iter(spaces.values())) if len(kinds) == 1 else {"unlike": spaces}),
        **({"action_masks": True} if masks else {}),
    }


@app.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 63_000), default=8000, show_default=True)
@click.option("--replicas", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--ingress",
    type=click.Choice(["proxy", "direct"]),
    default="proxy",
    show_default=True,
    help="direct: replicas also listen themselves, on the ports after --port; faster on one machine.",
)
@click.option("--token-file", help="File with the bearer token that requests need.")
@click.option("--token-env", help="Environment variable with that token.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--timeout", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="Seconds per request.")
def serve(bundle: Path, host: str, port: int, timeout: float, **options: Any) -> None:
    """Answer action requests for a bundle's team over HTTP, until a signal. SIGHUP reads the bundle again."""
    from pydantic import ValidationError

    from ..serving.deployment import Settings
    from .serving import serve_bundle

    try:
        settings = Settings(bundle=str(bundle.absolute()), direct_port=port + 1, **options)
    except ValidationError as error:
        raise click.UsageError(error.errors()[0]["msg"]) from error
    serve_bundle(settings, host, port, timeout)


@app.command()
@click.argument(
    "what",
    type=click.Choice(
        ["throughput", "scaling", "actors", "nodes", "tune", "serving", "pettingzoo", "stock_examples", "peers"]
    ),
    default="throughput",
)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Interleaved; medians count.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Of throughput.")
@click.option("--threads", type=click.IntRange(min=1), help="Torch's, of throughput, scaling and peers.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Of peers: what is finished is kept there."
)
@click.option("--environment", type=click.Path(file_okay=False, path_type=Path), help="Of peers: BenchMARL's.")
@click.option("--seeds", type=click.IntRange(min=0), help="Of peers' learning task; 0: speed alone.")
@click.option("--env-steps", type=click.IntRange(min=1), help="Of each run of that task.")
@_JSON
def bench(what: str, rounds: int, as_json: bool, **options: Any) -> None:
    """Measure this library against a bare loop, stock RLlib and, with peers, BenchMARL on this machine."""
    import importlib
    from inspect import signature

    module = importlib.import_module(f"..bench.{what}", __package__)
    given = {key: value for key, value in options.items() if value is not None}
    for key in given.keys() - signature(module.run).parameters.keys():
        raise click.UsageError(f"--{key.replace('_', '-')}: bench {what} has no such option")
    results = module.run(rounds=rounds, log=lambda line: print(line, file=sys.stderr, flush=True), **given)
    print(json.dumps(results, indent=1) if as_json else module.table(results))


@app.command()
@click.argument("directories", nargs=-1, required=True, metavar="DIR...")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Default: the first DIR.")
@click.option("--threshold", type=float, help="A greedy return: say when it was first reached.")
@click.option(
    "--until", type=click.IntRange(min=1), help="Env steps after which nothing counts: compares at equal ones."
)
@click.option(
    "--beside",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A YAML file of figures of others, docs/paper.yaml say, that stand beside ours.",
)
@click.option("--over", metavar="KEY", help="Draw final returns over a number of env_config, n_agents say.")
@click.option(
    "--store",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also write down there what is read of the runs: small, and a report on it is this report.",
)
def report(directories: tuple[str, ...], out: Path | None, **options: Any) -> None:
    """Aggregate runs over their seeds: page, figures and numbers. DIR: a run, a sweep, or a directory of them."""
    from ..report.words import finals_table
    from ..report.write import write_report
    from ..storage import is_uri

    found = [(called, _stored(called).path) for called in directories]
    if out is None and is_uri(directories[0]):
        raise click.UsageError("--out: give a directory for the report, runs are at a URI")
    if options["until"] is not None and options["store"] is not None:
        raise click.UsageError(
            "--until: a store holds whole runs; leave it out, and give it to the report on the store"
        )
    written, numbers = write_report(found, out or found[0][1], **options)
    for entry in numbers["left_out"]:
        print(f"left out: {entry['run']} {entry['why']}", file=sys.stderr)
    print(finals_table(numbers))
    print(", ".join(str(path) for path in written))


# ------------------------------------------------------------------------------------------------------------- printing


def _stored(where: str) -> Storage:
    """What somebody names to read from; of a URI, a copy that is removed when the command ends."""
    from ..storage import Storage

    storage = Storage(where)
    atexit.register(storage.discard)
    storage.fetch()
    if not storage.path.exists() or (storage.uri and not any(storage.path.iterdir())):
        raise click.UsageError(f"{where!r} does not exist")
    return storage


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=1))
        return
    import yaml

    print(yaml.safe_dump(report, sort_keys=False, default_flow_style=None, width=110), end="")


def _doc(env: Any) -> str:
    return (type(env).__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


def run(arguments: list[str]) -> int:
    """Runs one command. Returns the exit status; errors are one line on stderr."""

    def fail(message: str, status: int) -> int:
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return status

    # Notices about RLlib's new stack.
    for name in ("ray", "ray._common", "ray.rllib.algorithms", "ray.rllib.core", "ray.rllib.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        return app.main(arguments, standalone_mode=False, prog_name="python -m rllib_hypermarl") or 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.ctx.get_help())
        return 2
    except click.ClickException as error:
        return fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        return fail("stopped", 130)
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        return fail("stopped", 143)  # by Ray's handler, which stands from ray.init until training puts ours there
    except StoppedBySignal as stopped:  # said already
        return stopped.exit_status
    except HyperMARLError as error:
        return fail(str(error), error.exit_status)
    except Exception as error:
        return fail(in_one_line(error, Path(tempfile.gettempdir()) / "rllib_hypermarl-error.txt"), 1)
