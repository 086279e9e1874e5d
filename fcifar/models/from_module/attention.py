"""Attention in plain operations, with a keyed dropout.

torch's fused kernels on the CPU have no rules for ``vmap`` and forward-mode derivatives.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Drop = Callable[[Tensor, float], Tensor]  # (weights, rate) to weights with some dropped


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    drop: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return ``drop(softmax(scale q k' + mask)) v``, and the weights of ``v``.

    Vaswani et al., "Attention is all you need", https://arxiv.org/abs/1706.03762, section 3.2.1.

    Args:
        query: [..., L, E].
        key: [..., S, E].
        value: [..., S, V].
        mask: added to the scores, broadcast to [..., L, S].
    """
    scores = (query * scale) @ key.transpose(-2, -1)
    scores = scores if mask is None else scores + mask
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = drop(scores.softmax(-1, dtype=wide).to(scores.dtype))
    return weights @ value, weights


def as_added(mask: Tensor | None, like: Tensor, *, hidden: bool) -> Tensor | None:
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
    """``torch.nn.functional.scaled_dot_product_attention``.

    Raises:
        ValueError: ``enable_gqa``.
    """
    if enable_gqa:
        raise ValueError("attention with enable_gqa is not known here; repeat the keys yourself")
    if is_causal:
        shape = (query.shape[-2], key.shape[-2])
        attn_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    mask = as_added(attn_mask, query, hidden=False)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    return attend(query, key, value, mask, scale, lambda weights: drop(weights, dropout_p))[0]


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
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``torch.nn.functional.multi_head_attention_forward``, called by ``nn.MultiheadAttention``.

    Args:
        query: [L, B, E]; ``key`` and ``value`` are [S, B, ...].
        attn_mask: True where attention is masked, or values to add to the scores; [L, S] or
            [B * heads, L, S]. ``is_causal`` is only a hint about it, as in torch.

    Raises:
        ValueError: the query has other dimensions, or an unsupported argument is given.
    """
    unknown = (bias_k, bias_v, static_k, static_v, key_padding_mask)
    if query.ndim != 3 or add_zero_attn or any(argument is not None for argument in unknown):
        raise ValueError(
            "nn.MultiheadAttention is known here for batches, without add_bias_kv, add_zero_attn "
            "and key_padding_mask"
        )
    separate = (q_proj_weight, k_proj_weight, v_proj_weight)
    whole = () if in_proj_weight is None else in_proj_weight.chunk(3)
    weights = separate if use_separate_proj_weight else whole
    biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)

    def projected(x: Tensor, i: int) -> Tensor:  # [B, heads, length, E / heads]
        weight = weights[i]
        assert weight is not None
        y = F.linear(x, weight, biases[i])
        return y.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3)

    q, k, v = (projected(x, i) for i, x in enumerate((query, key, value)))
    mask = as_added(attn_mask, q, hidden=True)
    if mask is not None and mask.ndim == 3:
        mask = mask.unflatten(0, (-1, num_heads))
    rate = dropout_p if training else 0.0
    scale = 1 / math.sqrt(q.shape[-1])
    y, seen = attend(q, k, v, mask, scale, lambda weights: drop(weights, rate))
    y = F.linear(y.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    if not need_weights:
        return y, None
    return y, seen.mean(1) if average_attn_weights else seen
