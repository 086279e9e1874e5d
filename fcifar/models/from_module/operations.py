"""Fused operations of torch in plain ones: attention, recurrent layers, deformable convolution.

torch's own on the CPU have no rules for ``vmap`` and forward-mode derivatives, or do not compile.
``drop`` is a keyed dropout.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Drop = Callable[[Tensor, float], Tensor]  # (values, rate) to values with some dropped

# Attention ---------------------------------------------------------------------------------------


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    drop: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return ``drop(softmax(scale q k' + mask)) v``, and the weights of ``v``.

    Vaswani et al., "Attention is all you need", https://arxiv.org/abs/1706.03762, section 3.2.1.
    """
    scores = (query * scale) @ key.transpose(-2, -1)
    scores = scores if mask is None else scores + mask
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = drop(scores.softmax(-1, dtype=wide).to(scores.dtype))
    return weights @ value, weights


def _as_added(mask: Tensor | None, like: Tensor, *, hidden: bool) -> Tensor | None:
    """A mask as values to add to the scores. A boolean mask is -inf where it equals ``hidden``."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    zeros = torch.zeros(mask.shape, dtype=like.dtype, device=like.device)
    return zeros.masked_fill(mask if hidden else ~mask, -math.inf)


def scaled_dot_product(
    drop: Drop,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention``, without ``enable_gqa``."""
    if enable_gqa:
        raise ValueError("attention with enable_gqa is not supported; repeat the keys instead")
    if is_causal:
        shape = (query.shape[-2], key.shape[-2])
        attn_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    mask = _as_added(attn_mask, query, hidden=False)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return _attend(query, key, value, mask, scale, lambda weights: drop(weights, dropout_p))[0]


def multi_head(
    drop: Drop,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    *,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    average_attn_weights: bool = True,
    **rest: Any,
) -> tuple[Tensor, Tensor | None]:
    """``torch.nn.functional.multi_head_attention_forward``, called by ``nn.MultiheadAttention``.

    Args:
        query: [L, B, E]; ``key`` and ``value`` are [S, B, ...].
        attn_mask: True where attention is masked, or values to add to the scores; [L, S] or
            [B * heads, L, S].
    """
    unknown = (bias_k, bias_v, *map(rest.get, ("static_k", "static_v", "key_padding_mask")))
    if query.ndim != 3 or add_zero_attn or any(argument is not None for argument in unknown):
        raise ValueError(
            "nn.MultiheadAttention is supported for batches, without add_bias_kv, add_zero_attn "
            "and key_padding_mask"
        )
    if use_separate_proj_weight:
        weights = [rest[f"{name}_proj_weight"] for name in "qkv"]
    else:
        weights = () if in_proj_weight is None else in_proj_weight.chunk(3)
    biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)

    def projected(x: Tensor, i: int) -> Tensor:  # [B, heads, length, E / heads]
        y = F.linear(x, weights[i], biases[i])
        return y.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3)

    q, k, v = (projected(x, i) for i, x in enumerate((query, key, value)))
    mask = _as_added(attn_mask, q, hidden=True)
    if mask is not None and mask.ndim == 3:
        mask = mask.unflatten(0, (-1, num_heads))
    rate = dropout_p if training else 0.0
    scale = 1 / math.sqrt(q.shape[-1])
    y, seen = _attend(q, k, v, mask, scale, lambda weights: drop(weights, rate))
    y = F.linear(y.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    if not need_weights:
        return y, None
    return y, seen.mean(1) if average_attn_weights else seen


# Recurrent layers, by the equations of torch's documentation --------------------------------------

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
    """``torch.lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu``, of sequences that are not packed."""

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
        if not isinstance(has_biases, bool):  # packed: the arguments are others
            raise ValueError("packed sequences are not supported; give nn.LSTM or GRU a tensor")
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


# Deformable convolution --------------------------------------------------------------------------


def deform_conv2d(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *settings: int
) -> Tensor:
    """``torchvision.ops.deform_conv2d``: a convolution at learned offsets, bilinearly sampled.

    Zhu et al., "Deformable ConvNets v2", https://arxiv.org/abs/1811.11168.
    """
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, *rest = settings
    offset_groups, use_mask = rest
    n, channels, height, width = input.shape
    kernel_h, kernel_w = weight.shape[-2:]
    out_h, out_w = offset.shape[-2:]
    taps, wide = kernel_h * kernel_w, torch.promote_types(input.dtype, torch.float32)

    def count(size: int, step: int) -> Tensor:
        return torch.arange(size, device=input.device, dtype=wide) * step

    # Sampling positions of each tap: [n, offset_groups, taps, out_h, out_w].
    moved = offset.to(wide).reshape(n, offset_groups, taps, 2, out_h, out_w)
    taps_y = count(kernel_h, dilation_h).repeat_interleave(kernel_w)[:, None, None] - pad_h
    taps_x = count(kernel_w, dilation_w).repeat(kernel_h)[:, None, None] - pad_w
    y = moved[:, :, :, 0] + taps_y + count(out_h, stride_h)[:, None]
    x = moved[:, :, :, 1] + taps_x + count(out_w, stride_w)
    pixels = input.reshape(n, offset_groups, channels // offset_groups, height * width)
    columns: Any = 0
    for corner_y in (y.floor(), y.floor() + 1):
        for corner_x in (x.floor(), x.floor() + 1):
            share = (1 - (y - corner_y).abs()) * (1 - (x - corner_x).abs())
            inside = (corner_y >= 0) & (corner_y < height) & (corner_x >= 0) & (corner_x < width)
            share = torch.where(inside, share, 0.0)
            at = corner_y.clamp(0, height - 1) * width + corner_x.clamp(0, width - 1)
            at = at.to(torch.int64).flatten(2)[:, :, None].expand(-1, -1, pixels.shape[2], -1)
            seen = pixels.gather(-1, at).unflatten(-1, (taps, out_h, out_w))
            columns = columns + seen * share[:, :, None]
    if use_mask:
        columns = columns * mask.reshape(n, offset_groups, 1, taps, out_h, out_w)
    columns = columns.to(input.dtype).reshape(n, groups, -1, out_h * out_w)
    kernels = weight.reshape(groups, weight.shape[0] // groups, -1)
    result = (kernels @ columns).reshape(n, weight.shape[0], out_h, out_w)
    return result + bias[:, None, None]
