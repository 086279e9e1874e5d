"""The influence of training images on the loss of test images: TracIn and influence functions.

    logits = example_logits(model)
    scores = tracin(logits)([Checkpoint(0.01, params, (buffers,)), ...], test, train)  # [T, N]

Scores estimate how far a training image has lowered the loss of a test image: that of a proponent
is positive, that of an opponent negative. Both methods multiply gradients of training images with a
direction for each test image. Forward-mode differentiation of the training losses along that
direction gives these products exactly, without a gradient of any training image.

All images are evaluated alone, in evaluation mode: without augmentation and dropout, and with the
running statistics of batch norm as constants. What a training image contributes to these
statistics, or to the normalisation of others in its batches, is left out.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vmap

from fcifar import precision, tree
from fcifar.grads import add_up, chunks, gauss_newton_vector_product, per_example
from fcifar.losses import Loss, cross_entropy
from fcifar.models import Buffers, Model, Params, Variables
from fcifar.precision import Policy
from fcifar.step import Batch, Preprocess, normalize
from fcifar.tree import Tree

Outputs = Callable[..., Tensor]  # (params, example, *rest) -> logits [C]
Product = Callable[[Tree], Tree]  # vector -> matrix @ vector


def example_logits(
    model: Model,
    *,
    preprocess: Preprocess = normalize(),  # noqa: B008
    policy: Policy = precision.FP32,
) -> Outputs:
    """Return ``(params, example, buffers) -> [C]``: the logits of one image in evaluation mode.

    Its ``example`` is a ``Batch`` without the batch axis. Arguments as for ``make_eval_step``.

    >>> model = fcifar.models.lenet()
    >>> variables = model.init(fcifar.random.key(0))
    >>> example = fcifar.Batch(torch.zeros(3, 32, 32), torch.tensor(3))
    >>> fcifar.analysis.influence.example_logits(model)(variables.params, example, {}).shape
    torch.Size([10])
    """

    def outputs(params: Params, example: Batch, buffers: Buffers) -> Tensor:
        x = preprocess(example.images).to(policy.compute)[None]
        cast = Variables(precision.cast(params, policy.compute), buffers)
        return model.apply(cast, x, train=False)[0][0].to(policy.output)

    return outputs


def example_loss(outputs: Outputs, loss: Loss = cross_entropy) -> Callable[..., Tensor]:
    """Return ``(params, example, *rest) -> []``, the loss of one example."""

    def of_example(params: Tree, example: Batch, *rest: Any) -> Tensor:
        return loss(outputs(params, example, *rest), example.labels)

    return of_example


def gradient_dots(
    outputs: Outputs, loss: Loss = cross_entropy, *, chunk_size: int | None = None
) -> Callable[..., Tensor]:
    """Return ``(params, directions, examples, *rest) -> [T, N]``: inner products of the gradient of
    each example with each direction.

    One forward-mode derivative for each direction, of ``chunk_size`` examples at a time. All
    directions share the forward pass, and no gradient of an example is computed.

    Args:
        outputs: ``(params, example, *rest) -> [C]``.
        loss: of the outputs and the example's label.

    Returns:
        A function of directions with leaves [T, *shape of the parameter] and N examples.
    """
    each = example_loss(outputs, loss)

    def dots(params: Tree, directions: Tree, examples: Batch, *rest: Any) -> Tensor:
        def of_chunk(chunk: Batch) -> Tensor:
            def losses(p: Tree) -> Tensor:
                in_dims = (None, 0, *(None for _ in rest))
                return vmap(each, in_dims=in_dims)(p, chunk, *rest)

            return vmap(lambda direction: jvp(losses, (params,), (direction,))[1])(directions)

        return torch.cat([of_chunk(chunk) for chunk in chunks(examples, chunk_size)], dim=1)

    return dots


# TracIn ------------------------------------------------------------------------------------------


class Checkpoint(NamedTuple):
    """The parameters at a moment of training, and the learning rate there."""

    learning_rate: float | Tensor
    params: Tree
    rest: tuple[Any, ...] = ()  # further arguments of the outputs, such as the buffers


def tracin(
    outputs: Outputs, loss: Loss = cross_entropy, *, chunk_size: int | None = None
) -> Callable[[Iterable[Checkpoint], Batch, Batch], Tensor]:
    """Return ``(checkpoints, test, train) -> [T, N]``: TracInCP scores.

    The sum over checkpoints of the learning rate times the inner product of the gradients of a test
    and a training image. A step of SGD on the training image alone, with that rate, would lower the
    loss of the test image by as much, to first order. Pruthi, Liu, Kale and Sundararajan,
    "Estimating training data influence by tracing gradient descent",
    https://arxiv.org/abs/2002.08484, section 3.

    Arguments as for ``gradient_dots``.

    >>> influence, batch = fcifar.analysis.influence, fcifar.Batch
    >>> train = batch(torch.eye(2), torch.tensor([0, 1]))
    >>> score = influence.tracin(lambda w, example: w @ example.images)
    >>> checkpoints = [influence.Checkpoint(0.1, torch.zeros(2, 2))]
    >>> score(checkpoints, batch(torch.ones(1, 2), torch.tensor([0])), train)
    tensor([[ 0.0500, -0.0500]])
    """
    gradients = per_example(example_loss(outputs, loss))
    dots = gradient_dots(outputs, loss, chunk_size=chunk_size)

    def scores(checkpoints: Iterable[Checkpoint], test: Batch, train: Batch) -> Tensor:
        def at(checkpoint: Checkpoint) -> Tensor:
            learning_rate, params, rest = checkpoint
            directions = gradients(params, test, *rest)
            return learning_rate * dots(params, directions, train, *rest)

        return add_up(map(at, checkpoints))

    return scores


# Influence functions -----------------------------------------------------------------------------


def gauss_newton(
    outputs: Outputs,
    loss: Loss = cross_entropy,
    *,
    damping: float,
    iterations: int,
    chunk_size: int | None = None,
) -> Callable[..., Tensor]:
    """Return ``(params, test, train, *rest) -> [T, N]``: influence functions.

    A score is g_test . (G + damping I)^-1 g_train / N, with the Gauss-Newton matrix G of the mean
    loss of the training images in place of its Hessian: how far the loss of the test image rises if
    the training image is removed and the parameters follow to the new minimum, to first order, in
    nats. Koh and Liang, "Understanding black-box predictions via influence functions",
    https://arxiv.org/abs/1703.04730, equation 2, with the sign changed.

    For a large number of training images, solve with ``cg_step`` and the matrix of some of them,
    and multiply with ``gradient_dots``.

    Args:
        damping: above 0. An L2 penalty of ``damping / 2 * |params|^2`` has the same effect. Small
            values need more iterations, and assume that training reached a minimum.
        iterations: of conjugate gradients.
        others: as for ``gradient_dots``.
    """
    gradients = per_example(example_loss(outputs, loss))
    dots = gradient_dots(outputs, loss, chunk_size=chunk_size)

    def scores(params: Tree, test: Batch, train: Batch, *rest: Any) -> Tensor:
        product = damped(outputs, loss, damping=damping, chunk_size=chunk_size)

        def solve(gradient: Tree) -> Tree:
            matrix = lambda vector: product(params, vector, train, *rest)  # noqa: E731
            return conjugate_gradient(matrix, gradient, iterations)

        directions = vmap(solve)(gradients(params, test, *rest))
        return dots(params, directions, train, *rest) / len(train.labels)

    return scores


def damped(
    outputs: Outputs,
    loss: Loss = cross_entropy,
    *,
    damping: float,
    chunk_size: int | None = None,
) -> Callable[..., Tree]:
    """Return ``(params, vector, examples, *rest) -> (G + damping I) @ vector``, see
    ``grads.gauss_newton_vector_product``.
    """
    product = gauss_newton_vector_product(
        outputs, lambda logits, example: loss(logits, example.labels), chunk_size=chunk_size
    )

    def of(params: Tree, vector: Tree, examples: Batch, *rest: Any) -> Tree:
        curved = product(params, vector, examples, *rest)
        return tree.map(lambda c, v: c + damping * v, curved, vector)

    return of


# Conjugate gradients -----------------------------------------------------------------------------


class CGState(NamedTuple):
    """The state of conjugate gradients."""

    solution: Tree
    residual: Tree  # target - matrix @ solution, by recurrence
    direction: Tree
    squared: Tensor  # [], |residual|^2


def cg_init(target: Tree) -> CGState:
    """Return the state before the first step, with the solution 0."""
    return CGState(tree.zeros_like(target), target, target, _dot(target, target))


def cg_step(product: Product, state: CGState) -> CGState:
    """Take a step of conjugate gradients, which calls ``product`` once.

    Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems", 1952. The
    matrix is symmetric and positive definite. A state with the residual 0 does not change. Under
    ``vmap``, several systems with one matrix are solved at once.
    """
    x, residual, direction, squared = state
    image = product(direction)
    curvature = _dot(direction, image)
    length = _ratio(squared, curvature)
    x = tree.map(lambda a, b: a + length * b, x, direction)
    residual = tree.map(lambda a, b: a - length * b, residual, image)
    new = _dot(residual, residual)
    direction = tree.map(lambda a, b: a + _ratio(new, squared) * b, residual, direction)
    return CGState(x, residual, direction, new)


def conjugate_gradient(product: Product, target: Tree, iterations: int) -> Tree:
    """Solve ``matrix @ x = target`` by so many steps from x = 0.

    In exact arithmetic, as many steps as the matrix has different eigenvalues are enough.

    Args:
        product: maps a tree like ``target`` to the product with the matrix.

    >>> matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> target = torch.tensor([3.0, 3.0])
    >>> fcifar.analysis.influence.conjugate_gradient(matrix.mv, target, iterations=2)
    tensor([1., 1.])
    """
    state = cg_init(target)
    for _ in range(iterations):
        state = cg_step(product, state)
    return state.solution


def _dot(a: Tree, b: Tree) -> Tensor:
    """Return the inner product of two trees with leaves, 0-d."""
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    return torch.stack([(x * y).sum() for x, y in pairs]).sum()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a / b``, or 0 where ``b`` is 0."""
    return torch.where(b != 0, a / torch.where(b != 0, b, 1.0), 0.0)
