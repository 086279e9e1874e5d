"""Attributions: against captum and a hook, in closed form, and their contracts."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from fcifar import random, tree
from fcifar.analysis.attributions import (
    METHODS,
    class_score,
    feature_maps,
    grad_cam,
    gradient,
    integrated_gradients,
    make_attribution_step,
    smooth_grad,
)
from fcifar.models import Model, Variables, from_module
from fcifar.precision import BF16, FP64
from fcifar.step import Batch
from tests.golden import make_attributions as golden
from tests.helpers import tiny_conv
from tests.helpers.small import chosen_models, make_model

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/attributions.json").read_text())["values"]
KEY = random.key(5)


# Against captum, and against a hook ---------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_attributions_are_those_of_captum(name: str) -> None:
    model, variables = tiny_conv.pure()
    method = {
        "gradient": gradient(),
        "integrated_gradients": integrated_gradients(golden.STEPS),
        "baseline": integrated_gradients(golden.STEPS, 0.5),
        "grad_cam": grad_cam(),
    }[name]
    options = {"preprocess": tiny_conv.IDENTITY, "policy": FP64}
    step = make_attribution_step(model, method, **options)
    found = step(KEY, variables, Batch(tiny_conv.images(), tiny_conv.LABELS))
    expected = torch.tensor(GOLDEN[name], dtype=torch.float64).reshape(found.shape)
    assert expected.abs().max() > 0.01
    # captum has the nodes and weights of the quadrature in float32.
    exact = name in ("gradient", "grad_cam")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 if exact else 1e-9)


class Residual(nn.Module):
    """Batch norm, an activation in place, and a residual connection, before the pooling."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.last = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.last(self.norm(self.conv(x)) + x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def by_a_hook(module: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM in plain PyTorch, at the module ``last``."""
    kept: list[Tensor] = []
    handle = module.get_submodule("last").register_forward_hook(lambda m, x, y: kept.append(y))
    logits = module(images)
    handle.remove()
    logits.gather(1, classes[:, None]).sum().backward(inputs=kept)
    weights = kept[0].grad.mean((2, 3), keepdim=True)
    heat = F.relu((weights * kept[0]).sum(1, keepdim=True))
    return F.interpolate(heat, images.shape[-2:], mode="bilinear")[:, 0].detach()


def test_grad_cam_of_a_module_is_that_of_a_hook(make_batch) -> None:
    model, batch = from_module(Residual), make_batch(5)
    variables = tree.map(lambda v: v.double(), model.init(random.key(1)))
    variables = moved(variables)
    module = Residual().double().eval()
    module.load_state_dict({**variables.params, **variables.buffers}, strict=False)
    step = make_attribution_step(model, grad_cam(), policy=FP64)
    expected = by_a_hook(module, (batch.images / 255).double() * 2 - 1, batch.labels)
    found = step(KEY, variables, batch)
    assert expected.max() > 0.001
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-7)


def moved(variables: Variables) -> Variables:
    """Variables with running statistics and heads that no initialisation has."""
    leaves, unflatten = tree.flatten(variables)
    return unflatten(
        [
            leaf + 0.05 * random.uniform(random.key(i), leaf.shape).to(leaf.dtype)
            if leaf.is_floating_point()
            else leaf
            for i, leaf in enumerate(leaves)
        ]
    )


@pytest.mark.parametrize("name", chosen_models())
def test_grad_cam_of_every_model(name: str, make_batch) -> None:
    """It is a map of the image's size, and the gradient is that of a shift of the maps."""
    model, batch = make_model(name), make_batch(2)
    variables = moved(tree.map(lambda v: v.double(), model.init(random.key(3))))
    images = (batch.images / 255).double()
    score = class_score(model, variables, policy=FP64)
    maps, slopes = vmap(feature_maps(score))(images, batch.labels)
    assert maps.shape == slopes.shape
    assert maps.shape[-1] > 1
    assert (slopes.flatten(1) != 0).any(1).all()
    heat = make_attribution_step(model, grad_cam(), policy=FP64)(KEY, variables, batch)
    assert heat.shape == (2, 32, 32)
    assert (heat >= 0).all()
    alone = feature_maps(score)(images[1], batch.labels[1])
    for found, expected in zip(alone, (maps[1], slopes[1]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_maps_of_an_earlier_convolution() -> None:
    """The gradient at the first maps, through the second convolution, by hand."""
    model, variables = tiny_conv.pure()
    score = class_score(model, variables, preprocess=tiny_conv.IDENTITY, policy=FP64)
    image, label, params = tiny_conv.images()[0], tiny_conv.LABELS[0], variables.params

    def rest(maps: Tensor) -> Tensor:
        x = F.conv2d(F.avg_pool2d(maps, 2), params["conv2.weight"], params["conv2.bias"], padding=1)
        return (F.relu(x).mean((2, 3)) @ params["head.weight"].T + params["head.bias"])[0, label]

    first = F.relu(F.conv2d(image[None], params["conv1.weight"], params["conv1.bias"], padding=1))
    for index in (0, -2):
        maps, slopes = feature_maps(score, index)(image, label)
        torch.testing.assert_close(maps, first)
        torch.testing.assert_close(slopes, grad(rest)(first))
    for index in (2, -3):
        with pytest.raises(ValueError, match=r"calls torch\.conv2d 2 times"):
            feature_maps(score, index)(image, label)


def test_grad_cam_needs_a_convolution() -> None:
    with pytest.raises(ValueError, match=r"calls torch\.conv2d 0 times"):
        grad_cam()(lambda x: x.sum())(KEY, torch.zeros(3, 4, 4))


# Completeness, and other closed forms -------------------------------------------------------------


def test_attributions_of_a_linear_score_are_exact() -> None:
    weight, image = random.normal(random.key(1), (3, 4, 4)), random.uniform(KEY, (3, 4, 4))

    def score(x: Tensor) -> Tensor:
        return (weight * x).sum()

    for steps in (1, 2, 50):
        found = integrated_gradients(steps)(score)(KEY, image)
        torch.testing.assert_close(found, weight * image)
        found = integrated_gradients(steps, 0.25)(score)(KEY, image)
        torch.testing.assert_close(found, weight * (image - 0.25))
    torch.testing.assert_close(gradient()(score)(KEY, image), weight)
    torch.testing.assert_close(smooth_grad(5)(score)(KEY, image), weight)


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5])
def test_the_quadrature_is_exact_for_polynomials(degree: int) -> None:
    """Of n nodes, for gradients of degree 2 n - 1."""
    image = random.uniform(KEY, (3, 4, 4)).double() + 0.5

    def score(x: Tensor) -> Tensor:
        return (x ** (2 * degree)).sum()

    torch.testing.assert_close(
        integrated_gradients(degree)(score)(KEY, image), image ** (2 * degree), rtol=1e-12, atol=0
    )
    if degree > 1:
        fewer = integrated_gradients(degree - 1)(score)(KEY, image).sum()
        assert abs(fewer - score(image)) > 1e-4 * score(image)


@pytest.mark.parametrize("name", ["lenet", "conv3", "speednet"])
def test_integrated_gradients_are_complete(name: str, make_batch) -> None:
    """They add up to the difference of the logits, better with more nodes."""
    model, batch = make_model(name), make_batch(2)
    variables = tree.map(lambda v: v.double(), model.init(random.key(3)))
    score = vmap(class_score(model, variables, policy=FP64))
    images = (batch.images / 255).double()
    difference = score(images, batch.labels) - score(torch.zeros_like(images), batch.labels)

    def error(steps: int) -> float:
        method = integrated_gradients(steps)
        found = make_attribution_step(model, method, policy=FP64)(
            KEY, variables, batch._replace(images=images)
        )
        return float((found.sum((1, 2, 3)) - difference).abs().max())

    scale = float(difference.abs().max())
    assert error(48) <= 0.02 * scale + 1e-12
    assert error(48) <= error(3) + 1e-12


def test_smooth_grad_is_a_mean_over_noisy_images() -> None:
    model, variables = tiny_conv.pure()
    score = class_score(model, variables, preprocess=tiny_conv.IDENTITY, policy=FP64)
    image, label = tiny_conv.images()[0], tiny_conv.LABELS[0]
    found = smooth_grad(6, 0.2)(score)(KEY, image, label)
    draws = random.normal(KEY, (6, *image.shape)).double()
    deviation = 0.2 * (image.max() - image.min())
    total = sum(grad(score)(image + deviation * draw, label) for draw in draws)
    torch.testing.assert_close(found, total / 6)
    assert not torch.allclose(found, grad(score)(image, label))
    exact = smooth_grad(3, 0.0)(score)(KEY, image, label)
    torch.testing.assert_close(exact, grad(score)(image, label))


# Contracts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_pure_and_keyed_by_image(name: str, make_batch) -> None:
    model, batch = make_model("lenet"), make_batch(3)
    variables = tree.map(lambda v: v.double(), model.init(random.key(3)))
    before = tree.map(torch.clone, (KEY, variables, batch))
    step = make_attribution_step(model, METHODS[name](), policy=FP64)
    found = step(KEY, variables, batch)
    assert torch.equal(found, step(KEY, variables, batch))
    assert all(map(torch.equal, tree.leaves(before), tree.leaves((KEY, variables, batch))))
    last = tree.map(lambda x: x[2:], batch)
    torch.testing.assert_close(step(random.from_row(KEY, 2), variables, last)[0], found[2])
    low = make_attribution_step(model, METHODS[name](), policy=BF16)
    variables = tree.map(lambda v: v.float(), variables)
    assert low(KEY, variables, batch).dtype == torch.float32


@pytest.mark.parametrize("name", ["gradient", "integrated_gradients", "grad_cam"])
def test_a_mirrored_image_has_mirrored_attributions(name: str) -> None:
    """Of a network that is the same for both: kernels are symmetric, and the mean is over all."""
    kernels = [random.normal(random.key(i), (6, n, 3, 3)).double() for i, n in enumerate((3, 6))]
    first, second = (kernel + kernel.flip(-1) for kernel in kernels)

    def score(x: Tensor) -> Tensor:
        x = F.gelu(F.conv2d(x[None], first, padding=1))
        return F.gelu(F.conv2d(x, second, padding=1)).mean((2, 3))[0, :3].sum()

    attribute = METHODS[name]()(score)
    image = random.uniform(KEY, (3, 8, 8)).double()
    found = attribute(KEY, image)
    assert not torch.allclose(found, found.flip(-1))
    torch.testing.assert_close(attribute(KEY, image.flip(-1)), found.flip(-1))


def test_pixels_that_a_model_does_not_see_get_nothing() -> None:
    def score(x: Tensor) -> Tensor:
        return (x[:, :, :4] ** 3).sum()

    image = random.uniform(KEY, (3, 8, 8))
    for method in (gradient(), smooth_grad(4), integrated_gradients(4)):
        found = method(score)(KEY, image)
        assert (found[:, :, 4:] == 0).all()
        assert (found[:, :, :4] > 0).all()


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="samples >= 1"):
        smooth_grad(0)
    with pytest.raises(ValueError, match="noise >= 0"):
        smooth_grad(3, -0.1)
    with pytest.raises(ValueError, match="steps >= 1"):
        integrated_gradients(0)


def test_models_are_functions_alone() -> None:
    """A model written by hand, without a module, has a Grad-CAM too."""
    kernel = random.normal(random.key(1), (10, 3, 3, 3))

    def apply(variables: Variables, images: Tensor, *, key=None, train=False):
        return F.conv2d(images, variables.params["kernel"]).relu().amax((2, 3)), {}

    model = Model(lambda key: Variables({"kernel": kernel}, {}), apply)
    batch = Batch(random.uniform(KEY, (2, 3, 9, 9)), torch.tensor([1, 2]))
    found = make_attribution_step(model, grad_cam())(KEY, model.init(KEY), batch)
    assert found.shape == (2, 9, 9)
    assert (found.flatten(1).amax(1) > 0).all()
