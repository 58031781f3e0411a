"""BenchMARL's side of `bench peers`: a script for a Python that has BenchMARL, and nothing of this library.

It speaks JSON, one object a line, over stdin and stdout. The first line it is sent holds the fields of
`peer_contenders.Setup` and `shared`; it answers `{"versions", "parameters", "threads"}`. Then, until stdin ends,

- `{"iterate": n}` is answered by `{"env_steps", "seconds"}` of n iterations together;
- `{"evaluate": true, "explore"}` by `{"agent_return_mean"}`: the mean over episodes and agents of an agent's return,
  one episode of each evaluation env, with sampled actions or the most likely ones;
- whatever fails by `{"error"}`.

BenchMARL's loop is one call that returns at the end. It is held where it has collected a batch and calls back, so an
iteration is the update from one batch and the sampling of the next.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version

os.environ["TQDM_DISABLE"] = "1"

import torch
from benchmarl.algorithms import IppoConfig
from benchmarl.environments import VmasTask
from benchmarl.experiment import Callback, Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig
from torchrl.envs.utils import ExplorationType, set_exploration_type

PACKAGES = ("benchmarl", "torchrl", "tensordict", "torch", "vmas")
GROUP = "agents"  # of VMAS's agents, in BenchMARL


def make_experiment(setup, folder):
    """IPPO on Dispersion.

    Args:
        setup: the fields of `peer_contenders.Setup`, and `shared`: one actor and one critic for all agents, or each its
            own.
        folder: BenchMARL writes its config there.
    """
    env_config = dict(setup["env_config"])
    frames = setup["num_envs"] * setup["length"]
    config = ExperimentConfig.get_from_yaml()
    vars(config).update(
        share_policy_params=setup["shared"],
        prefer_continuous_actions=env_config.pop("continuous_actions"),
        gamma=setup["gamma"],
        lr=setup["lr"],
        adam_eps=setup["adam_eps"],
        clip_grad_norm=True,
        clip_grad_val=setup["grad_clip"],
        max_n_frames=None,
        max_n_iters=10**6,  # it ends when stdin does
        on_policy_collected_frames_per_batch=frames,
        on_policy_n_envs_per_worker=setup["num_envs"],
        on_policy_n_minibatch_iters=setup["epochs"],
        on_policy_minibatch_size=frames // setup["minibatches"],
        evaluation=False,  # on request, below
        evaluation_episodes=setup["evaluation_episodes"],
        render=False,
        loggers=[],
        create_json=False,
        save_folder=folder,
    )
    ippo = IppoConfig.get_from_yaml()
    vars(ippo).update(
        share_param_critic=setup["shared"],
        clip_epsilon=setup["clip_param"],
        entropy_coef=setup["entropy_coeff"],
        critic_coef=setup["vf_loss_coeff"] / 2,  # a factor of the squared error; in RLlib and ours, of half of it
        lmbda=setup["lambda_"],
    )
    model = MlpConfig.get_from_yaml()
    model.num_cells, model.activation_class = setup["hidden"], torch.nn.ReLU
    task = VmasTask.DISPERSION.get_task(env_config)
    return Experiment(task, ippo, model, setup["seed"], config, callbacks=[Commands()])


class Commands(Callback):
    """Does what stdin says whenever a batch has been collected."""

    def __init__(self):
        super().__init__()
        self.left, self.env_steps, self.start = 0, 0, 0.0

    def on_batch_collected(self, batch):
        self.left -= 1
        self.env_steps += batch.numel()  # frames are env steps: the agents are another axis
        if self.left > 0:
            return
        if self.left == 0:
            send({"env_steps": self.env_steps, "seconds": time.perf_counter() - self.start})
        while "iterate" not in (command := receive()):
            send({"agent_return_mean": agent_return(self.experiment, command["explore"])})
        self.left, self.env_steps, self.start = command["iterate"], 0, time.perf_counter()


@torch.no_grad()
def agent_return(experiment, explore):
    """The mean over episodes and agents of an agent's return, one episode of each evaluation env."""
    with set_exploration_type(ExplorationType.RANDOM if explore else ExplorationType.DETERMINISTIC):
        steps = experiment.test_env.rollout(experiment.max_steps, experiment.policy, break_when_any_done=False)
    reward, done = (
        steps["next", GROUP, "reward"],
        steps["next", "done"].unsqueeze(-1).int(),
    )  # [E, T, N, 1], [E, T, 1, 1]
    first = done.cumsum(1) - done == 0  # ended envs start again, which does not count
    return (reward * first).sum(1).mean().item()


def parameters(experiment):
    """How many numbers actor and critic learn."""
    sizes = {
        name.removeprefix("loss_"): sum(p.numel() for p in params)
        for name, params in experiment.algorithm.get_parameters(GROUP).items()
    }
    return {"actor": sizes["objective"], "critic": sizes["critic"]}


# ------------------------------------------------------------------------------------------------------------ protocol


def send(answer):
    print(json.dumps(answer), file=OUT, flush=True)


def receive():
    return json.loads(sys.stdin.readline() or sys.exit())


def main():
    setup = receive()
    torch.set_num_threads(setup["threads"])
    with tempfile.TemporaryDirectory() as folder:
        experiment = make_experiment(setup, folder)
        versions = {package: version(package) for package in PACKAGES}
        send({"versions": versions, "parameters": parameters(experiment), "threads": torch.get_num_threads()})
        experiment.run()


if __name__ == "__main__":
    OUT = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # BenchMARL and others print
    try:
        main()
    except Exception as error:
        with contextlib.suppress(BrokenPipeError):
            send({"error": f"{type(error).__name__}: {error}"})
        raise
