"""Recurrent layers in plain operations, by the equations of torch's documentation.

torch's own on the CPU are single operations that have no rule for ``vmap`` and do not compile.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Drop = Callable[[Tensor, float], Tensor]  # (values, rate) to values with some dropped
State = tuple[Tensor, ...]  # (h,), or (h, c) of an LSTM; each [B, H]
# From the inputs' part [B, G * H] of the gates' sums, the state, and the weight and bias of the
# hidden values, to the next state.
Cell = Callable[[Tensor, State, Tensor, Tensor | None], State]


def _lstm(x: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    h, c = state
    i, f, g, o = (x + F.linear(h, weight, bias)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(x: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
    (h,) = state
    x_r, x_z, x_n = x.chunk(3, -1)
    h_r, h_z, h_n = F.linear(h, weight, bias).chunk(3, -1)
    new = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return (new + torch.sigmoid(x_z + h_z) * (h - new),)


def _simple(activation: Callable[[Tensor], Tensor]) -> Cell:
    def cell(x: Tensor, state: State, weight: Tensor, bias: Tensor | None) -> State:
        return (activation(x + F.linear(state[0], weight, bias)),)

    return cell


CELLS: dict[str, Cell] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _simple(torch.tanh),
    "rnn_relu": _simple(torch.relu),
}


def cell_function(kind: str) -> Callable[..., Any]:
    """``torch.lstm_cell``, ``gru_cell``, ``rnn_tanh_cell`` or ``rnn_relu_cell``."""
    cell = CELLS[kind]

    def one_step(
        input: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        state = tuple(hx) if kind == "lstm" else (hx,)
        after = cell(F.linear(input, w_ih, b_ih), state, w_hh, b_hh)
        return after if kind == "lstm" else after[0]

    return one_step


def layers_function(kind: str) -> Callable[..., tuple[Tensor, ...]]:
    """``torch.lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu``, of sequences of one length.

    Its first argument is the dropout between layers, followed by torch's arguments.

    Raises:
        ValueError: the sequences are packed.
    """

    def run(
        drop: Drop,
        input: Tensor,
        hx: Any,
        flat_weights: Sequence[Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool = False,
    ) -> tuple[Tensor, ...]:
        if not isinstance(has_biases, bool):  # packed: the second argument is batch sizes
            raise ValueError("packed sequences are not known here; give nn.LSTM or GRU a tensor")
        starts = tuple(hx) if kind == "lstm" else (hx,)  # each [layers * directions, B, H]
        directions = 2 if bidirectional else 1
        each = len(flat_weights) // (num_layers * directions)
        x = input.transpose(0, 1) if batch_first else input  # [T, B, ...]
        ends = []
        for layer in range(num_layers):
            sides = []
            for side in range(directions):
                i = layer * directions + side
                weights = flat_weights[i * each : (i + 1) * each]
                y, end = _direction(
                    CELLS[kind], x, tuple(s[i] for s in starts), weights, has_biases, side == 1
                )
                sides.append(y)
                ends.append(end)
            x = torch.cat(sides, -1) if bidirectional else sides[0]
            if train and layer < num_layers - 1:
                x = drop(x, dropout)
        y = x.transpose(0, 1) if batch_first else x
        return y, *(torch.stack(parts) for parts in zip(*ends, strict=True))

    return run


def _direction(
    cell: Cell, x: Tensor, state: State, weights: Sequence[Tensor], has_biases: bool, reverse: bool
) -> tuple[Tensor, State]:
    """Run one layer in one direction over [T, B, I]; return its outputs [T, B, H] and last state.

    Args:
        weights: of the inputs and the hidden values, then their biases with ``has_biases``, then
            optionally the projection of the hidden values.
    """
    w_ih, w_hh, *rest = weights
    b_ih, b_hh, *projection = rest if has_biases else (None, None, *rest)
    inputs = F.linear(x, w_ih, b_ih).unbind(0)
    outputs = []
    for step in reversed(inputs) if reverse else inputs:
        state = cell(step, state, w_hh, b_hh)
        if projection:
            state = F.linear(state[0], projection[0]), *state[1:]
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if reverse else outputs), state
