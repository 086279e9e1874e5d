"""Attributions: which pixels a prediction depends on.

A method transforms a score, as ``torch.func.grad`` does: ``gradient()``, ``smooth_grad()``,
``integrated_gradients()`` and ``grad_cam()`` map ``score(image, *rest) -> []``, such as the logit
of a class, to ``attribute(key, image, *rest)``. It is written for one image, and ``vmap`` maps it
over images::

    attribute = integrated_gradients(steps=50)(score)
    maps = vmap(attribute)(random.split(key, len(images)), images, classes)

``make_attribution_step`` makes the score of a ``Model``. Images are floating, in [0, 1].
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, grad_and_value, vmap
from torch.overrides import TorchFunctionMode

from fcifar import layers, precision, random
from fcifar.models import Model, Variables
from fcifar.precision import Policy
from fcifar.random import Key
from fcifar.step import Batch, Preprocess, normalize

ImageScore = Callable[..., Tensor]  # (image, *rest) -> []
Method = Callable[[ImageScore], Callable[..., Tensor]]
"""Maps a score to ``attribute(key, image, *rest)``: [3, H, W], and for ``grad_cam`` [H, W]."""
AttributionStep = Callable[[Key, Variables, Batch], Tensor]


def gradient() -> Method:
    """The gradient of the score with respect to the image.

    Simonyan, Vedaldi and Zisserman, "Deep inside convolutional networks",
    https://arxiv.org/abs/1312.6034. It draws nothing, and ignores its key.

    >>> attribute = fcifar.analysis.attributions.gradient()(lambda image: (image**2).sum())
    >>> attribute(fcifar.random.key(0), torch.tensor([1.0, -2.0]))
    tensor([ 2., -4.])
    """

    def transformed(score: ImageScore) -> Callable[..., Tensor]:
        slope = grad(score)

        def attribute(key: Key, image: Tensor, *rest: Any) -> Tensor:
            return slope(image, *rest)

        return attribute

    return transformed


def smooth_grad(samples: int = 50, noise: float = 0.15) -> Method:
    """The mean of the gradients at noisy copies of the image.

    Smilkov, Thorat, Kim, Viégas and Wattenberg, "SmoothGrad: removing noise by adding noise",
    https://arxiv.org/abs/1706.03825.

    Args:
        samples: copies, 1 or more.
        noise: standard deviation of the normal noise, as a fraction of the largest minus the
            smallest value of the image. The authors recommend 0.1 to 0.2.

    Raises:
        ValueError: ``samples`` is below 1, or ``noise`` negative.
    """
    if samples < 1 or noise < 0:
        raise ValueError(f"smooth_grad needs samples >= 1 and noise >= 0, not {samples}, {noise}")

    def transformed(score: ImageScore) -> Callable[..., Tensor]:
        slope = grad(score)

        def attribute(key: Key, image: Tensor, *rest: Any) -> Tensor:
            deviation = noise * (image.amax() - image.amin())
            draws = random.normal(key, (samples, *image.shape)).to(image.dtype)
            noisy = image + deviation * draws
            return vmap(lambda x: slope(x, *rest))(noisy).mean(0)

        return attribute

    return transformed


def integrated_gradients(steps: int = 50, baseline: float | Tensor = 0.0) -> Method:
    """The integral of the gradient from a baseline to the image, times their difference.

    Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks",
    https://arxiv.org/abs/1703.01365. Attributions add up to the score of the image minus that of
    the baseline (completeness), up to the error of the quadrature: Gauss and Legendre's with
    ``steps`` nodes, exact where the gradient is a polynomial of degree below 2 * steps on the path.
    It draws nothing, and ignores its key.

    Args:
        steps: gradients of the score, 1 or more.
        baseline: an image without information, a value or of the image's shape; 0 is black.

    Raises:
        ValueError: ``steps`` is below 1.

    >>> attribute = fcifar.analysis.attributions.integrated_gradients(2)(lambda x: x[0] * x[1] ** 2)
    >>> attribute(fcifar.random.key(0), torch.tensor([3.0, 2.0])).round(decimals=4)  # of 12
    tensor([4., 8.])
    """
    if steps < 1:
        raise ValueError(f"integrated_gradients needs steps >= 1, not {steps}")
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]

    def transformed(score: ImageScore) -> Callable[..., Tensor]:
        slope = grad(score)

        def attribute(key: Key, image: Tensor, *rest: Any) -> Tensor:
            along = layers.constant(((1 + nodes) / 2).tolist(), image)
            share = layers.constant((weights / 2).tolist(), image)
            way = image - baseline
            gradients = vmap(lambda a: slope(baseline + a * way, *rest))(along)
            return way * torch.tensordot(share, gradients, 1)

        return attribute

    return transformed


def grad_cam(convolution: int = -1) -> Method:
    """Grad-CAM: which places of the last convolution's feature maps raise the score.

    Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based
    localization", https://arxiv.org/abs/1610.02391. Each map is weighted with the mean of its
    gradient; the sum is 0 where it is negative, and enlarged to the size of the image, bilinearly.

    Any score can be explained that calls ``torch.conv2d``, as ``nn.Conv2d`` does: see
    ``feature_maps``. It draws nothing, and ignores its key.

    Args:
        convolution: an index of the score's convolutions, in the order of the calls; earlier ones
            have larger maps.

    Raises:
        ValueError: of the returned function, there is no such convolution.
    """

    def transformed(score: ImageScore) -> Callable[..., Tensor]:
        at_maps = feature_maps(score, convolution)

        def attribute(key: Key, image: Tensor, *rest: Any) -> Tensor:
            maps, gradients = at_maps(image, *rest)
            weights = gradients.mean((-2, -1), keepdim=True)
            heat = (weights * maps).sum(-3).clamp(min=0).to(image.dtype)
            heat = heat.reshape(1, 1, *heat.shape[-2:])  # of one image
            return F.interpolate(heat, image.shape[-2:], mode="bilinear")[0, 0]

        return attribute

    return transformed


METHODS: dict[str, Callable[[], Method]] = {
    "gradient": gradient,
    "smooth_grad": smooth_grad,
    "integrated_gradients": integrated_gradients,
    "grad_cam": grad_cam,
}
"""The methods by name, with their defaults."""


def make_attribution_step(
    model: Model,
    method: Method,
    *,
    preprocess: Preprocess = normalize(),  # noqa: B008
    policy: Policy = precision.FP32,
) -> AttributionStep:
    """Make ``attribution_step(key, variables, batch) -> attributions``, in evaluation mode.

    The score is the logit of the class in ``batch.labels``, which may be the predicted one. Image i
    draws from ``fold_in(key, i)``, whatever else is in the batch. Attributions are of the images in
    [0, 1]: floating [B, 3, H, W], and for ``grad_cam`` [B, H, W].

    Args:
        method: such as ``integrated_gradients()``.
        preprocess, policy: as for ``make_eval_step``.

    >>> from fcifar.analysis.attributions import grad_cam, make_attribution_step
    >>> model, key = fcifar.models.lenet(), fcifar.random.key(0)
    >>> step = make_attribution_step(model, grad_cam())
    >>> batch = fcifar.Batch(torch.zeros(4, 3, 32, 32), torch.arange(4))
    >>> step(key, model.init(key), batch).shape
    torch.Size([4, 32, 32])
    """

    def attribution_step(key: Key, variables: Variables, batch: Batch) -> Tensor:
        score = class_score(model, variables, preprocess=preprocess, policy=policy)
        images = batch.images
        images = images if images.is_floating_point() else images.to(torch.float32) / 255
        keys = random.row_keys(key, len(images))
        return vmap(method(score))(keys, images, batch.labels)

    return attribution_step


def class_score(
    model: Model,
    variables: Variables,
    *,
    preprocess: Preprocess = normalize(),  # noqa: B008
    policy: Policy = precision.FP32,
) -> ImageScore:
    """Return ``score(image, label) -> []``: the logit of a class, in evaluation mode.

    ``image`` is floating [3, H, W] in [0, 1], ``label`` int64 [].
    """
    cast = variables._replace(params=precision.cast(variables.params, policy.compute))

    def score(image: Tensor, label: Tensor) -> Tensor:
        logits, _ = model.apply(cast, preprocess(image).to(policy.compute)[None], train=False)
        return logits[0].to(policy.output).index_select(0, label[None])[0]

    return score


# Feature maps -------------------------------------------------------------------------------------


def feature_maps(score: ImageScore, convolution: int = -1) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return ``(image, *rest) -> (maps, gradients)``: feature maps, and the score's gradient there.

    They are the last result of the shape of a convolution's output before the next convolution: the
    output after normalisation, residual addition and activation, before it is pooled. Both are
    floating [..., C, h, w].

    The score is computed twice. The first time, results are looked at as they are computed; the
    second time, a tensor of zeros is added to the chosen one, and the gradient with respect to the
    zeros is the gradient at that result. This needs no module and no hook, so that it composes with
    ``vmap`` and ``grad``.

    Args:
        convolution: an index of the calls of ``torch.conv2d``.

    Raises:
        ValueError: of the returned function, there is no such convolution.

    >>> kernel = torch.tensor([[[[2.0]]], [[[3.0]]]])
    >>> score = lambda image: (torch.conv2d(image, kernel).relu().mean((1, 2)) ** 2).sum()
    >>> maps, slopes = fcifar.analysis.attributions.feature_maps(score)(torch.ones(1, 1, 1))
    >>> maps.flatten(), slopes.flatten()
    (tensor([2., 3.]), tensor([4., 6.]))
    """

    def at_maps(image: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        with _Results() as results:
            score(image, *rest)
        found = results.of_convolutions
        if not -len(found) <= convolution < len(found):
            raise ValueError(
                f"the model has no convolution {convolution}: it calls torch.conv2d "
                f"{len(found)} times, and Grad-CAM is of what that returns; choose another method"
            )
        index, like = found[convolution]

        def shifted(shift: Tensor) -> tuple[Tensor, Tensor]:
            with _Results(index, shift) as again:
                value = score(image, *rest)
            return value, again.shifted

        slopes, (_, maps) = grad_and_value(shifted, has_aux=True)(torch.zeros_like(like))
        return maps, slopes

    return at_maps


class _Results(TorchFunctionMode):
    """Looks at the results of torch's functions, and adds a tensor to one of them."""

    def __init__(self, index: int = -1, shift: Tensor | None = None) -> None:
        super().__init__()
        self.index, self.shift = index, shift
        self.calls = 0
        self.of_convolutions: list[tuple[int, Tensor]] = []  # call and result, see feature_maps
        self.shifted = torch.empty(0)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **kwargs or {})
        if not isinstance(result, Tensor):
            return result
        self.calls += 1
        if func is torch.conv2d:
            self.of_convolutions.append((self.calls, result))
        elif (
            self.of_convolutions
            and result.shape == self.of_convolutions[-1][1].shape
            and result.is_floating_point()
        ):
            self.of_convolutions[-1] = self.calls, result
        if self.calls == self.index and self.shift is not None:
            result = self.shifted = result + self.shift
        return result
