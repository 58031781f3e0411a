"""Films: every state of every episode is in them once, agents move, teams stand side by side."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from rllib_hypermarl import HyperMARLConfig
from rllib_hypermarl import env as envs
from rllib_hypermarl.env import Mark, Wrapper
from rllib_hypermarl.errors import EnvError, ReportError
from rllib_hypermarl.nets import TeamNet
from rllib_hypermarl.report.video import _limits, check_video, film, titles, write_video


def team(name, **env_config):
    """An untrained team of separate networks, and one copy of its env."""
    env = envs.make(name, num_envs=1, **env_config)
    config = HyperMARLConfig().environment(name, env_config=env_config).hypermarl(sharing="none", actor_hidden=[8])
    torch.manual_seed(1)
    return TeamNet(config.model_spec(env.observation_spaces, env.action_spaces, env.state_space)), env


def frames(path):
    with Image.open(path) as image:
        return [np.array(frame.convert("RGB"), dtype=int) for frame in ImageSequence.Iterator(image)]


@pytest.fixture(scope="module")
def particles():
    net, env = team("bps/1", groups=[1, 2], max_steps=6)
    return film(net, env, 2, seed=3, title="untrained")


def test_a_film_has_every_state_of_every_episode_and_the_env_is_left_alone(particles):
    assert [len(episode.pictures) for episode in particles.episodes] == [7, 6]
    net, env = team("bps/1", groups=[1, 2], max_steps=6)
    again = film(net, env, 2, seed=3, title="untrained")
    assert again == particles
    assert env.film is None
    env.step(torch.zeros(1, 3, dtype=torch.int64))


def test_positions_are_the_env_s_own():
    _, env = team("bps/1", groups=[1, 2], max_steps=3)
    env.film = []
    step = env.reset(seed=5)
    for _ in range(3):
        step = env.step(torch.tensor([[1, 2, 4]]))
    last = {mark.name: mark for mark in env.film[-1]}
    for index, agent in enumerate(env.agents):  # 2:4 of an observation is the position; the episode's last one
        assert (last[agent].x, last[agent].y) == pytest.approx(step.final_obs[0, index, 2:4].tolist())
    assert last["group1_agent0"].family == last["landmark1"].family == 1
    assert last["landmark0"].x - last["group0_agent0"].x == pytest.approx(step.final_obs[0, 0, 4].item(), abs=1e-6)


def test_a_gif_has_a_frame_for_each_state_and_agents_move_in_it(particles, tmp_path):
    path = tmp_path / "film.gif"
    write_video([particles], path)
    shown = frames(path)
    assert len(shown) == 7 + 6  # an episode's end stands still: equal frames are one that lasts longer
    assert all(frame.shape == shown[0].shape for frame in shown)
    field = np.s_[60:, :, :]  # below the title, which tells the step
    assert all((np.abs(a[field] - b[field]) > 60).sum() > 50 for a, b in itertools.pairwise(shown[1:7]))


def test_teams_side_by_side_wait_for_each_other(particles, tmp_path):
    net, env = team("games/specialisation", n_agents=3, horizon=2)
    game = film(net, env, 2, seed=0, title="a game")
    write_video([particles, game], tmp_path / "both.gif")
    shown = frames(tmp_path / "both.gif")
    assert len(shown) == 7 + 6
    right = np.s_[60:, shown[0].shape[1] // 2 + 20 :, :]
    assert (np.abs(shown[0][right] - shown[1][right]) > 60).any()
    assert (np.abs(shown[3][right] - shown[6][right]) > 60).sum() == 0  # its episode was over after two steps


def test_an_mp4_has_a_frame_for_each_state_and_for_the_pause_at_an_episode_s_end(particles, tmp_path):
    path = tmp_path / "film.mp4"
    check_video(path)
    write_video([particles], path)
    from imageio_ffmpeg import count_frames_and_secs

    assert count_frames_and_secs(path)[0] == 7 + 6 + 2 * 8


def test_a_game_is_a_row_per_agent_and_a_column_per_action():
    _, env = team("games/specialisation", n_agents=3, horizon=2)
    env.film = []
    env.reset()
    env.step(torch.tensor([[2, 0, 1]]))
    before, after = ([(m.x, m.y) for m in picture if m.name in env.agents] for picture in env.film)
    assert before == [(-1, 0), (-1, -1), (-1, -2)]
    assert after == [(2, 0), (0, -1), (1, -2)]


def test_vmas_shows_the_end_of_an_episode_before_the_next_begins():
    pytest.importorskip("vmas")
    _, env = team("vmas/dispersion", n_agents=2, n_food=2, max_steps=3, food_radius=1.5, continuous_actions=False)
    env.film = []
    env.reset(seed=0)
    for _ in range(4):
        env.step(torch.zeros(1, 2, dtype=torch.int64))
    assert [sorted(m.name for m in picture) for picture in env.film] == [["agent_0", "agent_1", "food_0", "food_1"]] * 5
    assert [sum(m.gone for m in picture) for picture in env.film[:2]] == [0, 2]  # whoever stands there has eaten
    assert all(mark.family is None for mark in env.film[0])  # all agents have VMAS's one colour


def test_vmas_goals_have_the_colour_of_their_agent():
    pytest.importorskip("vmas")
    _, env = team("vmas/navigation", n_agents=3, collisions=False)
    families = {mark.name: mark.family for mark in env.picture()}
    assert sorted(families.values()) == [0, 0, 1, 1, 2, 2]
    assert [families[agent] for agent in env.agents] == [0, 1, 2]


def test_wrapped_envs_are_filmed_and_all_that_is_seen_fits(particles):
    net, env = team("bps/1", groups=[1, 2], max_steps=6)
    wrapped = Wrapper(env)
    assert film(net, wrapped, 2, seed=3, title="untrained") == particles
    left, right, bottom, top = _limits([particles])
    marks = [mark for episode in particles.episodes for picture in episode.pictures for mark in picture]
    assert all(left < m.x - m.radius < m.x + m.radius < right for m in marks)
    assert all(bottom < m.y - m.radius < m.y + m.radius < top for m in marks)


class _Unseen(envs.BatchedEnv):
    """Without pictures; or, with some, without showing them."""

    def __init__(self):
        _, self._env = team("games/specialisation", n_agents=2, horizon=1)
        for name in ("num_envs", "agents", "observation_spaces", "action_spaces", "max_episode_steps"):
            setattr(self, name, getattr(self._env, name))

    def reset(self, seed=None):
        self.show()
        return self._env.reset(seed)

    def step(self, actions):
        return self._env.step(actions)


def test_what_cannot_be_filmed_is_said(tmp_path):
    net, _ = team("games/specialisation", n_agents=2, horizon=1)
    env = _Unseen()
    with pytest.raises(EnvError, match="_Unseen has no pictures"):
        film(net, env, 1, seed=0, title="")
    env.picture = lambda: [Mark("agent_0", 0.0, 0.0)]
    with pytest.raises(EnvError, match="showed 1 pictures of 1 steps"):
        film(net, env, 1, seed=0, title="")
    with pytest.raises(ReportError, match=r"ends in .gif or .mp4"):
        check_video(tmp_path / "film.avi")
    for path in (tmp_path / "none" / "film.gif", tmp_path / "directory.gif"):
        (tmp_path / "directory.gif").mkdir(exist_ok=True)
        with pytest.raises(ReportError, match="cannot be written"):
            check_video(path)


# -------------------------------------------------------------------------------------------------------------- titles


@pytest.mark.parametrize(
    "configs, expected",
    [
        ([{"env_config.n": 2}], ["vmas/goal"]),
        ([{"hypermarl.sharing": "none"}, {"hypermarl.sharing": "full"}], ["sharing=none", "sharing=full"]),
        ([{"env_config.n": 2}, {"env_config.n": 3}], ["n=2 sharing=full", "n=3 sharing=full"]),
        ([{}, {"env": "vmas/wheel"}], ["vmas/goal sharing=full", "vmas/wheel sharing=full"]),
    ],
)
def test_films_are_named_by_what_differs(configs, expected):
    assert titles([{"env": "vmas/goal", "hypermarl.sharing": "full", **config} for config in configs]) == expected
