"""Which units can be permuted: no order of them changes the function, and none is left out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.func import functional_call

from fcifar import models, random
from fcifar.analysis import symmetries
from fcifar.analysis.axes import FIXED, Part
from fcifar.analysis.symmetries import Symmetries
from fcifar.models import Model, Variables
from tests.helpers.small import chosen_models, make_model


def drawn(model: Model, seed: int = 0) -> Variables:
    """Random float64 values for all tensors, buffers too; variances are positive."""
    key, shapes = random.key(seed), model.init(random.key(0, device="meta"))

    def draw(i: int, name: str, like: Tensor) -> Tensor:
        if not like.is_floating_point():
            return torch.zeros(like.shape, dtype=like.dtype)
        value = random.normal(random.fold_in(key, i), tuple(like.shape)).double()
        return value.abs() + 0.5 if name.endswith("running_var") else 0.3 * value

    return Variables(
        *(
            {name: draw(1000 * j + i, name, like) for i, (name, like) in enumerate(part.items())}
            for j, part in enumerate(shapes)
        )
    )


def shuffled(found: Symmetries, seed: int = 1) -> list[Tensor]:
    key = random.key(seed)
    sizes = [group.size for group in found.groups]
    return [random.permutation(random.fold_in(key, i), size) for i, size in enumerate(sizes)]


def assert_keeps_the_function(model: Model, found: Symmetries) -> None:
    """A random order of all groups changes every group's tensors, and no output."""
    variables = drawn(model)
    permuted = symmetries.permute(found, shuffled(found), variables)
    images = random.normal(random.key(2), (3, 3, 32, 32)).double()
    with torch.no_grad():
        expected, _ = model.apply(variables, images)
        logits, _ = model.apply(permuted, images)
    assert expected.isfinite().all()
    assert (logits - expected).norm() <= 1e-11 * expected.norm()
    before, after = ({**v.params, **v.buffers} for v in (variables, permuted))
    for name, axes in found.axes.items():
        groups = {part.group for axis in axes for part in axis} - {FIXED}
        large = [g for g in groups if found.groups[g - 1].size > 3]
        assert torch.equal(before[name], after[name]) <= (not large), name


@pytest.mark.parametrize("name", chosen_models())
def test_no_order_changes_what_a_model_computes(name: str) -> None:
    model = make_model(name)
    found = symmetries.find(model)
    assert found.groups
    assert_keeps_the_function(model, found)


def sizes(found: Symmetries) -> dict[str, int]:
    return {group.name: group.size for group in found.groups}


def test_the_groups_of_known_models() -> None:
    lenet = symmetries.find(models.lenet())
    names = {"conv1.weight": 6, "conv2.weight": 16, "fc1.weight": 120, "fc2.weight": 84}
    assert sizes(lenet) == names
    # A channel is 5 x 5 inputs of the first linear layer.
    assert lenet.axes["fc1.weight"][1] == (Part(2, 16, 1, 25),)
    speednet = sizes(symmetries.find(make_model("speednet")))
    assert list(speednet.values()) == [24, 8, 8, 12, 12, 16, 16]
    vit = symmetries.find(make_model("vit_tiny"))
    assert list(vit.groups) == [
        ("patch_embed.proj.weight", 12),  # the residual stream
        ("blocks.0.mlp.fc1.weight", 48),
        ("blocks.1.mlp.fc1.weight", 48),
    ]
    assert vit.fixed_by == ("view",)  # of queries, keys and values to heads
    # A stage of resnet20 has the channels of the one before it in its middle, between new ones.
    resnet = symmetries.find(models.resnet20(width=4))
    stem = sizes(resnet)["conv1.weight"]
    streams = [resnet.axes[f"layer{i}.1.conv2.weight"][0] for i in (1, 2, 3)]
    assert [len(stream) for stream in streams] == [1, 3, 5]
    assert {stream[i].group for i, stream in enumerate(streams)} == {1}
    assert stem == 4
    assert resnet.fixed_by == ()


class Net(nn.Module):
    """conv, something with 8 channels in and out, conv to 6, mean, linear."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, 4), nn.Conv2d(8, 6, 3)
        self.head, self.inner = nn.Linear(6, 10), forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(self, F.relu(self.first(x)))
        return self.head(self.last(x).mean((2, 3)))


def evaluated(make: Callable[[], nn.Module]) -> Model:
    """A module in evaluation as a ``Model``, without the checks of ``from_module``."""
    module = make().eval()

    def init(key: Tensor) -> Variables:
        tensors = (dict(module.named_parameters()), dict(module.named_buffers()))
        return Variables(*({n: v.to(key.device) for n, v in part.items()} for part in tensors))

    def apply(variables, images, *, key=None, train=False):
        return functional_call(module, tuple(variables), (images,)), variables.buffers

    return Model(init, apply)


def conv(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


CASES: dict[str, tuple[Callable[[], nn.Module], list[int], set[str]]] = {
    "nothing": (lambda: Net(lambda net, x: x), [8, 6], set()),
    "residual": (lambda: Net(lambda net, x: x + net.a(x), a=conv(8, 8)), [8, 6], set()),
    "in place": (
        lambda: Net(lambda net, x: F.relu_(x.add_(net.a(x))), a=conv(8, 8)), [8, 6], set()
    ),
    "dense": (
        lambda: Net(
            lambda net, x: net.b(torch.cat([x, net.a(x)], 1)), a=conv(8, 5), b=conv(13, 8)
        ),
        [8, 8, 6, 5],
        set(),
    ),
    "gated": (
        lambda: Net(
            lambda net, x: torch.mul(*net.a(x).chunk(2, 1)), a=conv(8, 16)
        ),
        [8, 8, 6],
        set(),
    ),
    "squeeze and excite": (
        lambda: Net(
            lambda net, x: x * torch.sigmoid(net.b(F.silu(net.a(x.mean((2, 3), keepdim=True))))),
            a=nn.Conv2d(8, 4, 1),
            b=nn.Conv2d(4, 8, 1),
        ),
        [8, 4, 6],
        set(),
    ),
    "depthwise": (
        lambda: Net(lambda net, x: net.a(x), a=conv(8, 8, groups=8)), [8, 6], set()
    ),
    "grouped": (
        lambda: Net(lambda net, x: net.a(x), a=conv(8, 8, groups=2)),
        [6],
        {"grouped convolution"},
    ),
    "transposed": (
        lambda: Net(lambda net, x: net.a(x), a=nn.ConvTranspose2d(8, 8, 3)), [8, 8, 6], set()
    ),
    "normed": (
        lambda: Net(
            lambda net, x: net.c(net.b(net.a(x))),
            a=nn.BatchNorm2d(8),
            b=nn.GroupNorm(1, 8),
            c=nn.GroupNorm(8, 8),
        ),
        [8, 6],
        set(),
    ),
    "group norm": (
        lambda: Net(lambda net, x: net.a(x), a=nn.GroupNorm(2, 8)), [6], {"native_group_norm"}
    ),
    "shuffled": (
        lambda: Net(lambda net, x: net.a(F.pixel_shuffle(x, 2)), a=conv(2, 8)),
        [8, 6],
        {"pixel_shuffle"},
    ),
    "over pixels": (
        lambda: Net(lambda net, x: net.b(F.gelu(net.a(x.flatten(2)))).view_as(x),
                    a=nn.Linear(64, 7), b=nn.Linear(7, 64)),
        [8, 6, 7],
        {"view"},  # of all pixels to rows and columns
    ),
    "flattened": (
        lambda: Net(lambda net, x: net.b(net.a(x.permute(0, 2, 3, 1).flatten(1)))[..., None, None]
                    .expand(-1, -1, 4, 4), a=nn.Linear(512, 9), b=nn.Linear(9, 8)),
        [8, 8, 6, 9],
        set(),
    ),
    "norm of parts": (
        lambda: Net(lambda net, x: net.a(x.movedim(1, -1)).movedim(-1, 1), a=nn.LayerNorm(8)),
        [8, 6],
        set(),
    ),
    "padded": (
        lambda: Net(lambda net, x: net.a(F.pad(x, (0, 0, 0, 0, 3, 0))), a=conv(11, 8)),
        [8, 8, 6, 3],
        set(),
    ),
    "its own order": (
        lambda: Net(lambda net, x: x + x.flip(1)), [6], {"flip"}
    ),
    "sorted": (lambda: Net(lambda net, x: x.sort(1).values), [6], {"sort"}),
    "attention with one head": (
        lambda: Net(
            lambda net, x: F.scaled_dot_product_attention(*[net.a(x.flatten(2).mT)] * 3)
            .mT.unflatten(2, (8, 8)),
            a=nn.Linear(8, 8),
        ),
        [8, 8, 6],
        set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operations(name: str) -> None:
    """Each with the sizes of the groups that should be found, and what keeps others in order."""
    make, expected, fixed_by = CASES[name]
    model = evaluated(make)
    found = symmetries.find(model)
    assert_keeps_the_function(model, found)
    assert sorted(group.size for group in found.groups) == sorted(expected)
    assert set(found.fixed_by) == fixed_by


def test_frozen_parameters_are_permuted_too() -> None:
    model = models.freeze(models.lenet(), ["conv1.*"])
    found = symmetries.find(model)
    assert sorted(sizes(found).values()) == [6, 16, 84, 120]
    assert_keeps_the_function(model, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet", "mobilenet_v2", "shufflenet_v2_x0_5", "vgg11_bn"])
def test_other_peoples_networks(name: str) -> None:
    small = {
        "densenet": lambda: torchvision.models.DenseNet(4, (2, 2, 2, 2), 8, 2, num_classes=10),
        "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=10),
    }
    model = evaluated(small.get(name, lambda: getattr(torchvision.models, name)(num_classes=10)))
    assert_keeps_the_function(model, symmetries.find(model))


def test_a_model_that_depends_on_values_is_refused() -> None:
    def apply(variables, images, *, key=None, train=False):
        logits = images.mean((2, 3)) @ variables.params["w"]
        return (logits if logits.sum().item() > 0 else -logits), {}

    model = Model(lambda key: Variables({"w": torch.ones(3, 10, device=key.device)}, {}), apply)
    with pytest.raises(ValueError, match="forward pass depends on values"):
        symmetries.find(model)
