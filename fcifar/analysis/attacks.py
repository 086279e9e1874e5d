"""Adversarial images: FGSM and PGD, in a ball around each image.

An attack transforms a loss, as ``torch.func.grad`` does: ``fgsm(eps)`` and ``pgd(eps)`` map
``loss(image, *rest) -> []`` to ``attack(key, image, *rest) -> image``. It is written for one image,
and ``vmap`` maps it over images, restarts and models::

    attack = pgd(8 / 255, steps=20)(loss)
    adversarial = vmap(attack)(random.split(key, len(images)), images, labels)

The loss is anything that can be differentiated: of one model, the mean over several, or minus the
loss of a class that the model is to predict. ``make_attack_step`` makes it of a ``Model``.

The ball holds the images in [0, 1] whose distance from the original is at most ``eps``: the largest
difference of a value (``linf``) or the Euclidean distance (``l2``) over all pixels and channels, in
units of the range [0, 1]. Adversarial images are not rounded to 8 bits.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.linalg import vector_norm

from fcifar import precision, random
from fcifar.losses import Loss, cross_entropy
from fcifar.models import Model, Variables
from fcifar.precision import Policy
from fcifar.random import Key
from fcifar.step import Batch, Preprocess, normalize

NORMS = ("linf", "l2")

ImageLoss = Callable[..., Tensor]  # (image, *rest) -> []
Attack = Callable[[ImageLoss], Callable[..., Tensor]]
"""Maps a loss to ``attack(key, image, *rest) -> image``, of floating images in [0, 1]."""
AttackStep = Callable[[Key, Variables, Batch], Tensor]


def fgsm(eps: float | Tensor, *, norm: str = "linf") -> Attack:
    """One step of size ``eps`` along the gradient: the fast gradient sign method.

    Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples",
    https://arxiv.org/abs/1412.6572. The step is ``eps * sign(g)``, and for ``l2`` its analogue
    ``eps * g / |g|``; then values are clipped to [0, 1]. It draws nothing, and ignores its key.

    Args:
        eps: 0 or more, the radius of the ball.
        norm: ``linf`` or ``l2``.

    Raises:
        ValueError: there is no such norm.

    >>> attack = fcifar.analysis.attacks.fgsm(0.25)(lambda image, label: (image * label).sum())
    >>> attack(fcifar.random.key(0), torch.tensor([0.5, 0.5, 0.9]), torch.tensor([1.0, -2.0, 3.0]))
    tensor([0.7500, 0.2500, 1.0000])
    """
    return pgd(eps, 1, step_size=eps, norm=norm, random_start=False)


def pgd(
    eps: float | Tensor,
    steps: int = 20,
    *,
    step_size: float | Tensor | None = None,
    norm: str = "linf",
    random_start: bool = True,
) -> Attack:
    """Projected gradient ascent of the loss from a random image of the ball.

    Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards deep learning models resistant to
    adversarial attacks", https://arxiv.org/abs/1706.06083. A step is along the sign of the gradient
    (``linf``) or along the gradient divided by its norm (``l2``), and back into the ball by
    ``project``. The start is uniform in the ball, clipped to [0, 1].

    Args:
        eps: 0 or more, the radius of the ball.
        steps: gradients of the loss, 0 or more.
        step_size: of the image, in each step; by default the authors' 2.5 * eps / steps, with which
            the boundary can be reached from any start.
        norm: ``linf`` or ``l2``.
        random_start: otherwise it is the image itself, and the key is ignored.

    Raises:
        ValueError: there is no such norm, or ``steps`` is negative.
    """
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; it must be {' or '.join(NORMS)}")
    if steps < 0:
        raise ValueError(f"pgd needs 0 steps or more, not {steps}")
    size = 2.5 * eps / max(steps, 1) if step_size is None else step_size

    def transformed(loss: ImageLoss) -> Callable[..., Tensor]:
        gradient = grad(loss)

        def attack(key: Key, image: Tensor, *rest: Any) -> Tensor:
            x = image
            if random_start:
                x = (image + eps * _unit_ball(key, image, norm)).clamp(0, 1)
            for _ in range(steps):
                step = size * _steepest(gradient(x, *rest), norm)
                x = project(x + step, image, eps, norm=norm)
            return x

        return attack

    return transformed


def project(x: Tensor, image: Tensor, eps: float | Tensor, *, norm: str = "linf") -> Tensor:
    """Return ``x`` moved into the ball around ``image``, then clipped to [0, 1].

    For ``linf`` the result is the nearest point of the ball. For ``l2`` the difference is scaled to
    length ``eps`` if it is longer; clipping then brings it nearer to ``image``, never further away.

    Args:
        x: floating, of the shape of ``image``.
        image: in [0, 1]. The norm is over all of its dimensions.
        eps: 0 or more.
        norm: ``linf`` or ``l2``.

    >>> image, x = torch.tensor([0.5, 0.9]), torch.tensor([0.0, 2.0])
    >>> fcifar.analysis.attacks.project(x, image, 0.25)
    tensor([0.2500, 1.0000])
    """
    if norm == "linf":
        return x.clamp(image - eps, image + eps).clamp(0, 1)
    difference = x - image
    length = _length(difference)
    # The quotient is computed for all, and must be finite where it is not used.
    factor = torch.where(length > eps, eps / torch.where(length > eps, length, 1.0), 1.0)
    return (image + factor * difference).clamp(0, 1)


def best_of(attack: Attack, restarts: int, score: ImageLoss | None = None) -> Attack:
    """Attack ``restarts`` times, each with another key, and keep the best image of each.

    The first keys are the same for any number of restarts, so that the score never falls with more.

    Args:
        attack: with a random start.
        restarts: 1 or more.
        score: ``(image, *rest) -> []``, the highest is kept; by default the loss.

    Raises:
        ValueError: ``restarts`` is below 1.
    """
    if restarts < 1:
        raise ValueError(f"best_of needs 1 restart or more, not {restarts}")

    def transformed(loss: ImageLoss) -> Callable[..., Tensor]:
        once, judge = attack(loss), score or loss

        def best(key: Key, image: Tensor, *rest: Any) -> Tensor:
            tried = vmap(lambda k: once(k, image, *rest))(random.split(key, restarts))
            if restarts == 1:
                return tried[0]
            scores = vmap(lambda x: judge(x, *rest))(tried)
            return tried.index_select(0, scores.argmax()[None])[0]

        return best

    return transformed


def make_attack_step(
    model: Model,
    attack: Attack,
    *,
    restarts: int = 1,
    loss: Loss = cross_entropy,
    preprocess: Preprocess = normalize(),  # noqa: B008
    policy: Policy = precision.FP32,
) -> AttackStep:
    """Make ``attack_step(key, variables, batch) -> images``, in evaluation mode.

    Image i draws from ``fold_in(key, i)``, whatever else is in the batch. The result is floating
    [B, 3, H, W], in [0, 1].

    Args:
        attack: such as ``pgd(8 / 255)``.
        restarts: attacks of each image. The one with the smallest margin is kept, the true class's
            logit minus the largest other: one that the model misclassifies, if there is any.
        loss: to be increased, of logits [C] and a label.
        preprocess, policy: as for ``make_eval_step``.

    The key may also be int64 [B, 2], a key for each image.

    >>> from fcifar.analysis.attacks import fgsm, make_attack_step
    >>> model, key = fcifar.models.lenet(), fcifar.random.key(0)
    >>> attack_step = make_attack_step(model, fgsm(8 / 255))
    >>> batch = fcifar.Batch(torch.full((2, 3, 32, 32), 0.5), torch.arange(2))
    >>> images = attack_step(key, model.init(key), batch)
    >>> (images - batch.images).abs().amax((1, 2, 3)) * 255
    tensor([8.0000, 8.0000])
    """

    def attack_step(key: Key, variables: Variables, batch: Batch) -> Tensor:
        cast = variables._replace(params=precision.cast(variables.params, policy.compute))

        def logits_of(image: Tensor) -> Tensor:
            x = preprocess(image).to(policy.compute)[None]
            logits, _ = model.apply(cast, x, train=False)
            return logits[0].to(policy.output)

        def objective(image: Tensor, label: Tensor) -> Tensor:
            return loss(logits_of(image), label)

        def errs_by(image: Tensor, label: Tensor) -> Tensor:
            logits = logits_of(image)
            true = torch.arange(len(logits), device=logits.device) == label
            largest = logits.masked_fill(true, -math.inf).amax()
            return largest - torch.where(true, logits, 0.0).sum()

        images = batch.images
        images = images if images.is_floating_point() else images.to(torch.float32) / 255
        keys = key if key.ndim == 2 else random.row_keys(key, len(images))
        return vmap(best_of(attack, restarts, errs_by)(objective))(keys, images, batch.labels)

    return attack_step


def _steepest(gradient: Tensor, norm: str) -> Tensor:
    """Return the direction of steepest ascent, of length 1 in the norm; 0 for a gradient of 0."""
    if norm == "linf":
        return gradient.sign()
    return gradient / _above_zero(_length(gradient))


def _unit_ball(key: Key, like: Tensor, norm: str) -> Tensor:
    """Draw uniformly from the unit ball of a norm."""
    if norm == "linf":
        return random.uniform(key, like.shape, -1, 1).to(like.dtype)
    direction_key, radius_key = random.split(key)
    direction = random.normal(direction_key, like.shape).to(like.dtype)
    radius = random.uniform(radius_key).to(like.dtype) ** (1 / like.numel())
    return direction * (radius / _above_zero(_length(direction)))


def _length(x: Tensor) -> Tensor:
    """Return the Euclidean norm; gradients of a confident model have squares that underflow."""
    largest = _above_zero(x.abs().amax())
    return largest * vector_norm(x / largest)


def _above_zero(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 1.0)
