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
        state: `[N, B, size]` before the first row; of LSTMs twice the size, hidden state and cell.
        lost: of rows that are L steps of B sequences, `[N or 1, L * B]` bool in the order `(t, b)`: whose memory is
            lost after the row, since an episode ended there or an agent was not alive. None: rows are one step of each
            sequence, and `forget` is the caller's.
    """

    state: Tensor
    lost: Tensor | None = None

    def forget(self, lost: Tensor) -> None:
        """Args: lost: `[N or 1, B]` bool."""
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

    def forward(self, x: Tensor, state: Tensor, lost: Tensor | None) -> tuple[Tensor, Tensor]:
        """Reads rows in order.

        Args:
            x: `[N, L * B, in]`, rows `(t, b)`.
            state: `[N, B, state_dim]`, before the first step.
            lost: as `Memory.lost`.

        Returns:
            What the core puts out, `[N, L * B, size]`, and the state after the last step.
        """
        agents, width = state.shape[:2]
        steps = x.unflatten(1, (-1, width)).transpose(0, 1).flatten(1, 2)  # [L, N * B, in]
        if lost is not None:
            lost = lost.expand(agents, -1).unflatten(1, (-1, width)).transpose(0, 1).flatten(1, 2).unsqueeze(-1)
        parts = state.flatten(0, 1).split(self.size, dim=-1)
        out = []
        for t, step in enumerate(steps):
            parts = (self.cell(step, *parts),) if len(parts) == 1 else self.cell(step, parts)
            out.append(parts[0])
            if lost is not None:
                parts = tuple(part.masked_fill(lost[t], 0.0) for part in parts)
        seen = torch.stack(out).unflatten(1, (agents, width)).transpose(0, 1).flatten(1, 2)
        return seen, torch.cat(parts, dim=-1).unflatten(0, (agents, width))
