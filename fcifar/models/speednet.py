"""The models of the CIFAR-10 speed records: a frozen whitening layer and three groups.

Source: Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU",
https://arxiv.org/abs/2404.00498, based on Page, "How to train your ResNet",
https://myrtle.ai/learn/how-to-train-your-resnet/.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcifar import layers, random
from fcifar.errors import shown
from fcifar.models.base import Model, Variables, from_normed_skeleton, keep, on_meta
from fcifar.parallel import ALONE, Axis
from fcifar.random import Key

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu}
PATCH = 2  # the side of a whitened patch, in pixels
COMPONENTS = 3 * PATCH * PATCH
EPSILON = 5e-4  # added to the eigenvalues
LARGEST_SCALE = 1e6

_Normed = tuple[Tensor, dict[str, Tensor]]


class _Group(nn.Module):
    """conv, pool, norm, act; then conv, norm, act once, or twice with a residual connection."""

    def __init__(
        self, inputs: int, outputs: int, depth: int, momentum: float, act: str, axis: Axis
    ) -> None:
        super().__init__()
        self.act = ACTIVATIONS[act]
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs if i == 0 else outputs, outputs, 3, padding=1, bias=False)
            for i in range(depth)
        )
        self.norms = nn.ModuleList(
            layers.BatchNorm(outputs, momentum=momentum, eps=1e-12, scale=False, axis=axis)
            for _ in range(depth)
        )

    def forward(self, x: Tensor, train: bool) -> _Normed:
        statistics: dict[str, Tensor] = {}
        skip: Tensor | float = 0.0
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = conv(x)
            x, running = norm(F.max_pool2d(x, 2) if i == 0 else x, train)
            statistics |= layers.named(f"norms.{i}", running)
            x = self.act(x + skip if i == 2 else x)
            skip = x if i == 0 else skip
        return x, statistics


class _SpeedNet(nn.Module):
    def __init__(
        self,
        widths: Sequence[int],
        depth: int,
        num_classes: int,
        act: str,
        whiten: bool,
        momentum: float,
        logit_scale: float,
        axis: Axis,
    ) -> None:
        super().__init__()
        self.act, self.logit_scale = ACTIVATIONS[act], logit_scale
        self.whiten = nn.Conv2d(3, 2 * COMPONENTS, PATCH)
        if whiten:  # frozen, hence a buffer
            weight = self.whiten.weight.data
            del self.whiten.weight
            self.whiten.register_buffer("weight", weight)
        sizes = [2 * COMPONENTS, *widths]
        self.groups = nn.ModuleList(
            _Group(inputs, outputs, depth, momentum, act, axis)
            for inputs, outputs in zip(sizes, widths, strict=False)
        )
        self.head = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, x: Tensor, train: bool) -> _Normed:
        statistics: dict[str, Tensor] = {}
        x = layers.channels_last(x)
        x = self.act(F.conv2d(x, self.whiten.weight.to(x.dtype), self.whiten.bias))
        for i, group in enumerate(self.groups):
            x, running = group(x, train)
            statistics |= layers.named(f"groups.{i}", running)
        # Not amax: its gradient compares values with the maximum, and a compiler that recomputes
        # them in another precision may find none equal.
        x = F.max_pool2d(x, x.shape[-2:]).flatten(1)
        return self.head(x) * self.logit_scale, statistics


def speednet(
    *,
    widths: Sequence[int] = (64, 256, 256),
    depth: int = 2,
    num_classes: int = 10,
    act: str = "gelu",
    whiten: bool = True,
    dirac: bool = True,
    momentum: float = 0.4,
    logit_scale: float = 1 / 9,
    head_std: float = 0.0,
    axis: Axis = ALONE,
) -> Model:
    """Whitening 3-24 2x2, groups of 3x3 convolutions with batch norm, maximum, linear.

    1.97 million parameters by default. The maps of a 32x32 image are 31, 15, 7 and 3 pixels wide;
    images need at least 16 pixels a side. Parameters start as PyTorch's default initialisation,
    except with ``dirac`` and ``head_std``.

    Args:
        widths: channels of each group.
        depth: convolutions per group, 2 or 3; with 3 there is a residual connection from the first.
        act: ``gelu`` or ``silu``.
        whiten: whether the first layer is frozen, and set by ``adapt`` to the principal components
            of the patches of a sample of images, scaled to unit variance, and their negatives.
        dirac: initialise each 3x3 convolution with the identity on its first outputs.
        momentum: the weight of a batch in the running statistics, in [0, 1].
        logit_scale: a factor of the logits.
        head_std: the standard deviation of the head's initial weights; 0 for PyTorch's default.
        axis: the ranks over which batch norm takes its statistics.

    Raises:
        ValueError: an argument is of another type or out of range, or there would be more than
            ``LARGEST_MODEL`` parameters.
    """
    if not isinstance(widths, list | tuple) or not 1 <= len(widths) <= 3:
        raise ValueError(f"widths is {shown(widths)}; it must be a list of one to three widths")
    for width in widths:
        layers.check_width("widths", width)
    if not isinstance(depth, int) or depth not in (2, 3):
        raise ValueError(f"depth is {shown(depth)}; it must be 2 or 3")
    if not isinstance(act, str) or act not in ACTIVATIONS:
        raise ValueError(f"act is {shown(act)}; it must be {' or '.join(ACTIVATIONS)}")
    layers.check_width("num_classes", num_classes)
    layers.check_switch("whiten", whiten)
    layers.check_switch("dirac", dirac)
    layers.check_number("momentum", momentum, 1)
    layers.check_number("logit_scale", logit_scale, LARGEST_SCALE)
    layers.check_number("head_std", head_std, LARGEST_SCALE)
    skeleton = on_meta(
        lambda: _SpeedNet(widths, depth, num_classes, act, whiten, momentum, logit_scale, axis)
    )

    def init(key: Key) -> Variables:
        params_key, whiten_key = random.split(key)
        params = layers.default_init(skeleton, params_key)
        buffers = layers.default_buffers(skeleton, key.device)
        for name, value in params.items():
            if dirac and name.startswith("groups.") and value.ndim == 4:
                params[name] = with_identity(value)
        if head_std:
            head = params["head.weight"]
            params["head.weight"] = head * (head_std / head.std(correction=0))
        if whiten:
            shape = (2 * COMPONENTS, 3, PATCH, PATCH)
            buffers["whiten.weight"] = layers.fan_in_uniform(whiten_key, shape, COMPONENTS)
        return Variables(params, buffers)

    def adapt(variables: Variables, images: Tensor) -> Variables:
        weight = whitening(images).to(variables.buffers["whiten.weight"])
        return variables._replace(buffers={**variables.buffers, "whiten.weight": weight})

    return from_normed_skeleton(skeleton, init, adapt if whiten else keep)


def with_identity(weight: Tensor) -> Tensor:
    """Set the first min(O, I) outputs of a kernel [O, I, h, w] to copy the inputs."""
    count, centre = min(weight.shape[:2]), [side // 2 for side in weight.shape[2:]]
    channel = torch.arange(count, device=weight.device)
    result = weight.clone()
    result[:count] = 0
    result[channel, channel, centre[0], centre[1]] = 1
    return result


def whitening(images: Tensor) -> Tensor:
    """Return the kernel [24, 3, 2, 2] that whitens the patches of ``images``, [N, 3, H, W].

    With the second moments C = V diag(e) V' of the 2x2 patches, rows 0 to 11 are
    v_i / sqrt(e_i + 5e-4), the largest e_i first, and rows 12 to 23 their negatives. The images
    must be a random sample: a prefix of a data set may hold a single class.

    Computed in float64; the largest element of each v_i is positive, which fixes its sign.
    """
    patches = images.double().unfold(2, PATCH, 1).unfold(3, PATCH, 1)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, COMPONENTS)
    moments = patches.T @ patches / len(patches)
    moments = moments.cpu() if moments.is_cuda else moments  # 12x12, which a GPU is slow for
    # eigh fails on values that are not finite; the loss reports those.
    values, vectors = torch.linalg.eigh(torch.nan_to_num(moments, 0.0, 0.0, 0.0))
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    half = (vectors * largest.sign() * torch.rsqrt(values.clamp(min=0) + EPSILON)).T.flip(0)
    return torch.cat([half, -half]).reshape(-1, 3, PATCH, PATCH)
