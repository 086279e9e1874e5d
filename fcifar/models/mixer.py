"""MLP-Mixer for 32x32 images: MLPs over the tokens and over the channels in turn.

Tolstikhin et al., "MLP-Mixer: An all-MLP architecture for vision",
https://arxiv.org/abs/2105.01601.
"""

import math

import torch
from torch import Tensor, nn

from fcifar import layers, random
from fcifar.models.base import Model, from_skeleton
from fcifar.models.vit import DEEPEST, EPSILON, SIZE, Mlp, PatchEmbedding, check_patch
from fcifar.random import Key


class _Block(nn.Module):
    def __init__(self, tokens: int, width: int, token_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp_tokens = Mlp(tokens, token_hidden)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp_channels = Mlp(width, channel_hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class _Mixer(nn.Module):
    def __init__(
        self,
        patch: int,
        width: int,
        depth: int,
        token_hidden: int,
        channel_hidden: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        tokens = (SIZE // patch) ** 2
        self.stem = PatchEmbedding(patch, width)
        self.blocks = nn.ModuleList(
            _Block(tokens, width, token_hidden, channel_hidden) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor, key: Key | None = None) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def mlp_mixer(
    *,
    patch: int = 4,
    width: int = 128,
    depth: int = 8,
    token_hidden: int = 64,
    channel_hidden: int = 512,
    num_classes: int = 10,
) -> Model:
    """MLP-Mixer with 64 tokens of 128 channels: 1,132,170 parameters by default.

    The default has the depth of Mixer-S and a quarter of its width and hidden units. Weights start
    as in the authors' code: normal with variance 1 / fan-in and cut at two standard deviations,
    biases and the weights of the head as 0. Names are those of timm's ``MlpMixer``.

    Args:
        patch: pixels a side of a patch, a divisor of 32; there are (32 / ``patch``)**2 tokens.
        width: channels of a token.
        depth: blocks, up to 1,000.
        token_hidden: hidden units of the MLPs over tokens.
        channel_hidden: hidden units of the MLPs over channels.

    Raises:
        ValueError: an argument is of another type or out of range, or there would be more than
            ``LARGEST_MODEL`` parameters.

    >>> variables = fcifar.models.mlp_mixer().init(fcifar.random.key(0, device="meta"))
    >>> sum(p.numel() for p in variables.params.values())
    1132170
    """
    check_patch(patch)
    layers.check_width("width", width)
    layers.check_width("depth", depth, DEEPEST)
    layers.check_width("token_hidden", token_hidden)
    layers.check_width("channel_hidden", channel_hidden)
    layers.check_width("num_classes", num_classes)
    return from_skeleton(
        lambda: _Mixer(patch, width, depth, token_hidden, channel_hidden, num_classes), _init
    )


def _init(skeleton: nn.Module, key: Key) -> dict[str, Tensor]:
    return layers.init_weights(skeleton, key, _draw)


def _draw(key: Key, name: str, shape: tuple[int, ...]) -> Tensor:
    if name == "head.weight":
        return torch.zeros(shape, device=key.device, dtype=torch.float32)
    # A normal distribution cut at two standard deviations has 0.8796 of its standard deviation.
    std = 1 / (0.87962566103423978 * math.sqrt(math.prod(shape[1:])))
    return std * random.truncated_normal(key, -2.0, 2.0, shape)
