"""What agents remember: a recurrent core between an encoder and the target network, and the state that it carries.

One core per head serves all agents of a team, whatever the sharing mode; agents differ in the networks that read it
(paper, Appendix G.2), and in their encoders where those are their own.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn


@dataclasses.dataclass(slots=True)
class Memory:
    """The state of a head's core, beside rows of observations; who reads the rows moves it on.

    Attributes:
        state: `[N, B, size]` before the first row, of one agent alone `[B, size]`; of LSTMs twice the size, hidden
            state and cell. Zeros are the beginning of an episode.
        lost: of rows that are L steps of B sequences, `[N or 1, L * B]` bool in the order `(t, b)`: whose memory is
            lost after the row, since an episode ended there or an agent was not alive. None: rows are one step of each
            sequence, and `forget` is the caller's.
    """

    state: Tensor
    lost: Tensor | None = None

    def forget(self, lost: Tensor) -> None:
        """Args: lost: `[N or 1, B]` bool, or `[B]` for all agents alike: whose episode, or life, has ended."""
        self.state = self.state.masked_fill(lost.unsqueeze(-1), 0.0)


class Core(nn.Module):
    """A GRU or LSTM cell over rows of all agents.

    A loop over steps, one product for all agents and sequences in each: PyTorch's whole-sequence modules cannot lose a
    state half way, and are at most 8 % faster on a CPU.

    Args:
        kind: `gru` or `lstm`.
    """

    def __init__(self, kind: str, in_dim: int, size: int):
        super().__init__()
        self.cell = (nn.GRUCell if kind == "gru" else nn.LSTMCell)(in_dim, size)
        self.size = size
        self.state_dim = size if kind == "gru" else 2 * size

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Reads one row each. Args: x `[..., in]`, state `[..., state_dim]`. Returns `[..., size]`, the new state."""
        rows, before = x.flatten(0, -2), state.flatten(0, -2)
        if isinstance(self.cell, nn.GRUCell):
            seen = after = self.cell(rows, before)
        else:
            seen, cell = self.cell(rows, before.split(self.size, dim=-1))
            after = torch.cat([seen, cell], dim=-1)
        return seen.unflatten(0, x.shape[:-1]), after.unflatten(0, x.shape[:-1])

    def forward(self, x: Tensor, state: Tensor, lost: Tensor | None) -> tuple[Tensor, Tensor]:
        """Reads rows in order.

        Args:
            x: `[N, L * B, in]`, rows `(t, b)`.
            state: `[N, B, state_dim]`, before the first step.
            lost: as `Memory.lost`.

        Returns:
            What the core puts out, `[N, L * B, size]`, and the state after the last step.
        """
        steps, out = x.unflatten(1, (-1, state.shape[1])).transpose(0, 1), []  # [L, N, B, in]
        if lost is not None:
            lost = lost.unflatten(1, (-1, state.shape[1])).transpose(0, 1).unsqueeze(-1)
        for t, rows in enumerate(steps):
            seen, state = self.step(rows, state)
            out.append(seen)
            if lost is not None:
                state = state.masked_fill(lost[t], 0.0)
        return torch.stack(out).transpose(0, 1).flatten(1, 2), state
