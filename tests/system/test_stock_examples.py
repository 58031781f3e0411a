"""RLlib's own multi-agent examples are solved with our networks as with its own."""

import pytest

from rllib_hypermarl.bench import stock_examples

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(600)]


@pytest.mark.parametrize("name", sorted(stock_examples.EXAMPLES.keys() - {"two_step_game"}))  # solved below
def test_an_example_is_solved(name):
    found = stock_examples.solve(stock_examples.EXAMPLES[name], ours=True, seed=0)
    assert found["solved_at"] is not None, found


def test_the_bench_solves_with_both_kinds_of_networks():
    solved = {side: stock_examples.solve(stock_examples.EXAMPLES["two_step_game"], side == "ours", 1)
              for side in ("ours", "rllib")}  # fmt: skip
    assert all(found["solved_at"] for found in solved.values())
    result = {"example": "two_step_game", "threshold": 7, "limit": 1, **{k: [v] for k, v in solved.items()}}
    assert "two_step_game" in stock_examples.table([result])
