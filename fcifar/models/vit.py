"""The vision transformer, as small as DeiT-Ti and with patches for 32x32 images.

Dosovitskiy et al., "An image is worth 16x16 words", https://arxiv.org/abs/2010.11929; the size is
that of DeiT-Ti in Touvron et al., "Training data-efficient image transformers",
https://arxiv.org/abs/2012.12877.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcifar import layers, random
from fcifar.errors import shown
from fcifar.models.base import Model, from_skeleton
from fcifar.random import Key

SIZE = 32  # pixels a side
EPSILON = 1e-6  # of layer norm, as in the authors' code
DEEPEST = 1000  # blocks

_Keys = list[Key | None]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend between the tokens of [B, N, width].

        Written out, because the fused kernels of ``F.scaled_dot_product_attention`` have no
        forward-mode and no second derivatives on a CPU.
        """
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)  # each [B, heads, N, width / heads]
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        wide = torch.promote_types(x.dtype, torch.float32)
        weights = torch.softmax(scores, -1, dtype=wide).to(x.dtype)
        return self.proj((weights @ value).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, GELU and linear over the last dimension, with dropout after both."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, first: Key | None = None, second: Key | None = None) -> Tensor:
        x = layers.dropout(first, F.gelu(self.fc1(x)), self.dropout)
        return layers.dropout(second, self.fc2(x), self.dropout)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = Mlp(width, 4 * width, dropout)

    def forward(self, x: Tensor, keys: _Keys) -> Tensor:
        x = x + layers.dropout(keys[0], self.attn(self.norm1(x)), self.dropout)
        return x + self.mlp(self.norm2(x), keys[1], keys[2])


class PatchEmbedding(nn.Module):
    """A linear map of the patches of [B, 3, 32, 32] to tokens [B, N, width], row by row."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (SIZE, SIZE):
            given = "x".join(map(str, images.shape[-2:]))
            raise ValueError(f"the images are {given} pixels; this model takes {SIZE}x{SIZE}")
        return self.proj(images).flatten(2).transpose(1, 2)


class _VisionTransformer(nn.Module):
    def __init__(
        self, patch: int, width: int, depth: int, heads: int, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (SIZE // patch) ** 2, width))
        self.patch_embed = PatchEmbedding(patch, width)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor, key: Key | None = None) -> Tensor:
        count = 1 + 3 * len(self.blocks)
        drops = self.dropout > 0 and key is not None
        keys: _Keys = list(random.split(key, count)) if drops else [None] * count
        x = self.patch_embed(images)
        first = self.cls_token.expand(x.shape[0], -1, -1)  # len(x) would fix the size in an export
        x = torch.cat([first, x], 1) + self.pos_embed
        x = layers.dropout(keys[0], x, self.dropout)
        for i, block in enumerate(self.blocks):
            x = block(x, keys[1 + 3 * i : 4 + 3 * i])
        return self.head(self.norm(x)[:, 0])


def check_patch(patch: int) -> None:
    """Raise a ValueError unless ``patch`` divides the side of an image."""
    if isinstance(patch, bool) or not isinstance(patch, int) or patch < 1 or SIZE % patch:
        raise ValueError(f"patch is {shown(patch)}; it must be 1, 2, 4, 8, 16 or 32")


def vit_tiny(
    *,
    patch: int = 4,
    width: int = 192,
    depth: int = 12,
    heads: int = 3,
    num_classes: int = 10,
    dropout: float = 0.0,
) -> Model:
    """ViT-Ti/4, a vision transformer for 32x32 images: 5,362,762 parameters by default.

    Blocks of attention and an MLP with 4 ``width`` hidden units, each after a layer norm; GELU;
    learned position embeddings; the logits are a linear map of the class token. Linear layers and
    position embeddings start normal with standard deviation 0.02, the patch embedding as PyTorch's
    default, biases and the class token as 0. Names are those of timm's ``VisionTransformer``.

    Args:
        patch: pixels a side of a patch, a divisor of 32.
        width: of a token; ``heads`` must divide it.
        depth: blocks, up to 1,000.
        heads: of the attention.
        dropout: the rate after the embedding and after each linear layer of a block except those
            of queries, keys and values, in [0, 1).

    Raises:
        ValueError: an argument is of another type or out of range, or there would be more than
            ``LARGEST_MODEL`` parameters.

    >>> variables = fcifar.models.vit_tiny().init(fcifar.random.key(0, device="meta"))
    >>> sum(p.numel() for p in variables.params.values())
    5362762
    """
    check_patch(patch)
    layers.check_width("width", width)
    layers.check_width("depth", depth, DEEPEST)
    layers.check_width("heads", heads)
    if width % heads:
        raise ValueError(f"heads is {heads}; it must divide width, which is {width}")
    layers.check_width("num_classes", num_classes)
    layers.check_rate("dropout", dropout)
    return from_skeleton(
        lambda: _VisionTransformer(patch, width, depth, heads, num_classes, dropout), _init
    )


def _init(skeleton: nn.Module, key: Key) -> dict[str, Tensor]:
    params_key, patch_key = random.split(key)

    def draw(key: Key, name: str, shape: tuple[int, ...]) -> Tensor:
        if name == "cls_token":
            return torch.zeros(shape, device=key.device, dtype=torch.float32)
        return 0.02 * random.normal(key, shape)

    params = layers.init_weights(skeleton, params_key, draw)
    for name, k in zip(("weight", "bias"), random.split(patch_key), strict=True):
        shape = tuple(params[f"patch_embed.proj.{name}"].shape)
        fan_in = params["patch_embed.proj.weight"][0].numel()
        params[f"patch_embed.proj.{name}"] = layers.fan_in_uniform(k, shape, fan_in)
    return params
