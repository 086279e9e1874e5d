"""Per-example gradients, second-order derivatives, and gradients through training.

``of_batch``, ``accumulated`` and ``sam`` are values of the argument ``gradient`` of
``make_train_step``. The other functions take the loss of one example, ``loss(params, example,
*rest) -> []``. The example is a tree whose leaves have no batch axis, such as an image, its label
and a key. All examples share ``rest``::

    def loss(params, example):
        logits, _ = model.apply(Variables(params, {}), example.images[None])
        return cross_entropy(logits[0], example.labels)

    gradients = per_example(loss)(params, Batch(images, labels))  # each leaf [B, *its shape]

The returned functions are pure, take ``(params, examples, *rest)`` as under ``torch.func.vmap``,
and can be compiled. They process ``chunk_size`` examples at a time (None: all at once), which
bounds the memory of intermediate results and changes the results by rounding only. A compiled graph
contains each chunk separately: for a large number of examples, compile the function of one chunk
and loop outside.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vjp, vmap
from torch.linalg import vector_norm

from fcifar import random, tree
from fcifar.parallel import ALONE, Axis
from fcifar.random import Key
from fcifar.tree import Tree

Loss = Callable[..., Tensor]  # (params, example, *rest) -> []
Objective = Callable[[Tree, Tree, Key], tuple[Tensor, Any]]
"""``(params, examples, key) -> (value [], aux)``: the objective that a training step minimises."""
Gradient = Callable[[Objective], Callable[[Tree, Tree, Key], tuple[Tree, tuple[Tensor, Any]]]]
"""Maps an objective to ``(params, examples, key) -> (gradient, (value, aux))``."""


def of_batch(objective: Objective) -> Callable[[Tree, Tree, Key], tuple[Tree, tuple[Tensor, Any]]]:
    """The gradient of the whole batch: ``torch.func.grad_and_value``."""
    return grad_and_value(objective, has_aux=True)


def accumulated(
    micro_batch_size: int,
    *,
    reduction: Callable[[Tensor], Tensor] = torch.mean,
    gradient: Gradient = of_batch,
) -> Gradient:
    """The gradient of the whole batch, computed from ``micro_batch_size`` rows at a time.

    Intermediate results of one micro-batch are held at a time. Micro-batches have the random draws
    of their rows in the whole batch (``random.skip_rows``), and an incomplete last one has the
    weight of its rows, so that gradient, value, losses and logits are those of ``gradient`` up to
    rounding.

    Batch norm is the exception: each micro-batch is normalised by its own statistics, as on ranks
    that do not synchronise it. All micro-batches start from the buffers before the step, and the
    new buffers are the mean of theirs, weighted by rows.

    A compiled step contains each micro-batch separately: compilation takes time in proportion to
    their number, and ``torch.compile`` may hold intermediate results of several.

    Args:
        micro_batch_size: 1 or more rows. A batch that is not larger is not split.
        reduction: the reduction of the step, ``torch.mean`` or ``torch.sum``.
        gradient: of each micro-batch. ``accumulated(n, gradient=sam(rho))`` perturbs the parameters
            for each micro-batch, ``sam(rho, gradient=accumulated(n))`` for the whole batch.

    Raises:
        ValueError: ``micro_batch_size`` is not a whole number of 1 or more.

    >>> model, optimizer = fcifar.models.lenet(), fcifar.optim.sgd(0.1)
    >>> gradient = fcifar.grads.accumulated(2)
    >>> step = fcifar.make_train_step(model, optimizer, gradient=gradient)
    >>> state = fcifar.init_train_state(model, optimizer, key=fcifar.random.key(0))
    >>> step(state, fcifar.Batch(torch.zeros(5, 3, 32, 32), torch.arange(5)))[1].count
    tensor(5)
    """
    is_whole = isinstance(micro_batch_size, int) and not isinstance(micro_batch_size, bool)
    if not is_whole or micro_batch_size < 1:
        raise ValueError(
            f"accumulated needs a whole number of rows, 1 or more, not {micro_batch_size}"
        )

    def transformed(objective: Objective) -> Callable[[Tree, Tree, Key], Any]:
        of_part = gradient(objective)

        def of_parts(params: Tree, batch: Tree, key: Key) -> Any:
            count, first, total = _size(batch), 0, None
            if count <= micro_batch_size:
                return of_part(params, batch, key)
            parts = []
            for part in chunks(batch, micro_batch_size):
                part_key, size = random.skip_rows(key, first), _size(part)
                grads, (_, (losses, logits, buffers)) = of_part(params, part, part_key)
                # The weight of a row in the whole batch, relative to its weight in the part.
                ones = torch.ones((count,), dtype=losses.dtype, device=losses.device)
                weight = (reduction(ones) * size) / (reduction(ones[:size]) * count)
                scaled = tree.map(lambda g, w=weight: g * w.to(g.dtype), grads)
                total = scaled if total is None else tree.add(total, scaled)
                parts.append((losses, logits, buffers, size / count))
                first += size
            losses = torch.cat([part[0] for part in parts])
            logits = torch.cat([part[1] for part in parts])
            return total, (reduction(losses), (losses, logits, _mean_buffers(parts)))

        return of_parts

    return transformed


def _mean_buffers(parts: Sequence[tuple[Tensor, Tensor, Tree, float]]) -> Tree:
    """Return the weighted mean of the buffers of micro-batches; integers are the first's.

    It is the mean of the differences from the first: the mean of a constant would round, that of
    zeros does not.
    """
    (first, _), *others = [(buffers, weight) for _, _, buffers, weight in parts]

    def mean(leaf: Tensor, *more: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return leaf
        changes = [(x - leaf) * w for x, (_, w) in zip(more, others, strict=True)]
        return leaf + torch.stack(changes).sum(0)

    return tree.map(mean, first, *(buffers for buffers, _ in others))


def sam(rho: float | Tensor, *, gradient: Gradient = of_batch, axis: Axis = ALONE) -> Gradient:
    """Sharpness-aware minimisation: the gradient at ``params + rho * g / |g|``.

    Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-aware minimization for efficiently improving
    generalization", https://arxiv.org/abs/2010.01412, algorithm 1, for p = 2. ``g`` is the gradient
    at the parameters, and ``|g|`` its norm over all of them; without a gradient (|g| = 0) they are
    not perturbed. A step takes twice the time.

    Both passes have the same draws. Value, losses, logits and buffers are those of the first pass,
    at the parameters.

    Args:
        rho: above 0, the distance; a number or a 0-d tensor, whose value is not checked.
        gradient: of each pass, such as ``accumulated(n)`` for large batches.
        axis: the axis of the step. Ranks then exchange the sum of their gradients, and the
            perturbation is that of the whole batch, as in one process. With ``ALONE``, each rank
            perturbs for its own rows and nothing more is exchanged: the paper's m-sharpness, where
            m is the number of rows of a rank.

    Raises:
        ValueError: ``rho`` is a number that is not above 0 and finite.

    >>> def objective(w, batch, key):
    ...     return (w**2).sum(), ()
    >>> fcifar.grads.sam(0.5)(objective)(torch.tensor([3.0, 4.0]), (), fcifar.random.key(0))[0]
    tensor([6.6000, 8.8000])
    """
    if not isinstance(rho, Tensor) and not 0 < rho < math.inf:
        raise ValueError(f"sam needs a rho above 0, such as 0.05, not {rho}")

    def transformed(objective: Objective) -> Callable[[Tree, Tree, Key], Any]:
        at = gradient(objective)

        def at_perturbed(params: Tree, batch: Tree, key: Key) -> Any:
            grads, output = at(params, batch, key)
            if axis.size > 1:  # only the direction matters, so the sum is as good as the mean
                leaves, unflatten = tree.flatten(grads)
                grads = unflatten(axis.psum(leaves))
            length = _safe_norm(grads)
            perturbed = tree.map(lambda p, g: p + (rho * g / length.to(g.dtype)), params, grads)
            return at(perturbed, batch, random.clone(key))[0], output

        return at_perturbed

    return transformed


def _safe_norm(gradients: Tree) -> Tensor:
    """Return the norm over all leaves, or 1 if it is 0, with a finite derivative there."""
    squares = [torch.sum(torch.square(leaf)) for leaf in tree.leaves(gradients)]
    square = torch.stack(squares).sum() if squares else torch.zeros(())
    return torch.where(square > 0, square, 1.0).sqrt()


# Per-example gradients ---------------------------------------------------------------------------


def per_example(loss: Loss, *, chunk_size: int | None = None) -> Callable[..., Tree]:
    """Return ``(params, examples, *rest) -> gradients`` with leaves [B, ...].

    The result takes B times the memory of the parameters. ``per_example_norms`` holds the gradients
    of one chunk only; use ``chunks`` and ``add_up`` for other sums.

    >>> gradients = fcifar.grads.per_example(lambda w, x: (w * x).square().sum())
    >>> gradients(torch.ones(2), torch.tensor([[1.0, 0.0], [2.0, 3.0]]))
    tensor([[ 2.,  0.],
            [ 8., 18.]])
    """
    of_chunk = _mapped(grad(loss))

    def gradients(params: Tree, examples: Tree, *rest: Any) -> Tree:
        parts = [of_chunk(params, chunk, *rest) for chunk in chunks(examples, chunk_size)]
        return parts[0] if len(parts) == 1 else tree.map(lambda *xs: torch.cat(xs), *parts)

    return gradients


def per_example_norms(loss: Loss, *, chunk_size: int | None = None) -> Callable[..., Tensor]:
    """Return ``(params, examples, *rest) -> [B]``: the Euclidean norm of each example's gradient.

    >>> norms = fcifar.grads.per_example_norms(lambda w, x: (w * x).sum())
    >>> norms(torch.ones(2), torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([5., 2.])
    """
    of_chunk = _mapped(grad(loss))

    def gradient_norms(params: Tree, examples: Tree, *rest: Any) -> Tensor:
        if not tree.leaves(params):
            return torch.zeros(_size(examples), device=tree.device(examples))
        parts = [norms(of_chunk(params, part, *rest)) for part in chunks(examples, chunk_size)]
        return torch.cat(parts)

    return gradient_norms


def norms(gradients: Tree) -> Tensor:
    """Return the Euclidean norm of each example's gradient, of leaves [B, ...]: [B].

    Returns 0 [] for a tree without leaves.
    """
    if not tree.leaves(gradients):
        return torch.zeros(())
    each = [vector_norm(rows(leaf), dim=1) for leaf in tree.leaves(gradients)]
    return vector_norm(torch.stack(each), dim=0)


def chunks(examples: Tree, chunk_size: int | None) -> Iterator[Tree]:
    """Yield the examples in order, at most ``chunk_size`` at a time.

    Raises:
        ValueError: ``chunk_size`` is below 1.

    >>> [len(chunk) for chunk in fcifar.grads.chunks(torch.arange(5), 2)]
    [2, 2, 1]
    """
    if chunk_size is None:
        yield examples
        return
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be 1 or more, or None")
    leaves, unflatten = tree.flatten(examples)
    for parts in zip(*(leaf.split(chunk_size) for leaf in leaves), strict=True):
        yield unflatten(list(parts))


def add_up(terms: Iterable[Tree]) -> Tree:
    """Sum one or more trees, holding at most two at a time."""
    return functools.reduce(tree.add, terms)


# Gradient noise ----------------------------------------------------------------------------------


class NoiseScale(NamedTuple):
    """Unbiased estimates of the signal and the noise in a batch's gradient, each a 0-d tensor.

    ``squared_norm`` may be negative where the noise is much larger than the gradient. For a stable
    estimate, average both fields over several batches before dividing.
    """

    variance: Tensor  # tr(Sigma), the variance of the examples' gradients about their mean
    squared_norm: Tensor  # |G|^2, of the gradient over the whole distribution of examples

    @property
    def scale(self) -> Tensor:
        """tr(Sigma) / |G|^2, in examples.

        Much smaller batches waste steps, much larger ones waste examples. McCandlish, Kaplan,
        Amodei et al., "An empirical model of large-batch training",
        https://arxiv.org/abs/1812.06162, equation 2.9.
        """
        return self.variance / self.squared_norm


def noise_scale(loss: Loss, *, chunk_size: int | None = None) -> Callable[..., NoiseScale]:
    """Return ``(params, examples, *rest) -> NoiseScale``, computed from per-example gradients.

    Raises:
        ValueError: when called with a single example.

    >>> noise = fcifar.grads.noise_scale(lambda w, x: w * x)
    >>> noise(torch.tensor(1.0), torch.tensor([1.0, 3.0]))
    NoiseScale(variance=tensor(2.), squared_norm=tensor(3.))
    """
    of_chunk = _mapped(grad(loss))

    def scale(params: Tree, examples: Tree, *rest: Any) -> NoiseScale:
        def sums(chunk: Tree) -> tuple[Tree, Tensor]:
            gradients = of_chunk(params, chunk, *rest)
            total = tree.map(lambda leaf: leaf.sum(0), gradients)
            return total, norms(gradients).square().sum()

        size = _size(examples)
        if size < 2:
            raise ValueError(f"noise_scale needs two examples or more, not {size}")
        total, squares = add_up(map(sums, chunks(examples, chunk_size)))
        return noise_scale_of_norms(
            squares / size, tree.norm(total).square() / size**2, sizes=(1, size)
        )

    return scale


def noise_scale_of_norms(small: Tensor, large: Tensor, *, sizes: tuple[int, int]) -> NoiseScale:
    """Return the noise scale from the squared gradient norms of batches of two sizes.

    Appendix A.1 of McCandlish et al. The small batches may be parts of the large one, such as the
    shards of data-parallel training. Both norms may be means over several batches.

    Args:
        small, large: squared norms of the mean gradient, 0-d.
        sizes: number of examples in a small batch and in a large one.

    Raises:
        ValueError: not ``1 <= sizes[0] < sizes[1]``.
    """
    few, many = sizes
    if not 1 <= few < many:
        raise ValueError(f"noise_scale_of_norms needs two sizes that increase, not {sizes}")
    return NoiseScale(
        variance=(small - large) / (1 / few - 1 / many),
        squared_norm=(many * large - few * small) / (many - few),
    )


# Second order, and through training --------------------------------------------------------------


def hessian_vector_product(loss: Loss, *, chunk_size: int | None = None) -> Callable[..., Tree]:
    """Return ``(params, vector, examples, *rest) -> H @ vector`` for the mean loss over the
    examples.

    Forward-over-reverse: the derivative of the gradient along ``vector``, a tree like ``params``.
    It costs about two gradients, and the Hessian is never built. (Pearlmutter, "Fast exact
    multiplication by the Hessian", 1994.)

    >>> product = fcifar.grads.hessian_vector_product(lambda w, x: (w**3).sum() * x)
    >>> product(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]), torch.ones(4))
    tensor([ 6., 12.])
    """
    losses = _mapped(loss)

    def product(params: Tree, vector: Tree, examples: Tree, *rest: Any) -> Tree:
        def of_chunk(chunk: Tree) -> Tree:
            gradient = grad(lambda p: losses(p, chunk, *rest).sum())
            return jvp(gradient, (params,), (vector,))[1]

        if not tree.leaves(params):
            return params
        size = _size(examples)
        total = add_up(map(of_chunk, chunks(examples, chunk_size)))
        return tree.map(lambda leaf: leaf / size, total)

    return product


def gauss_newton_vector_product(
    outputs: Callable[..., Tensor],
    loss: Callable[[Tensor, Tree], Tensor],
    *,
    chunk_size: int | None = None,
) -> Callable[..., Tree]:
    """Return ``(params, vector, examples, *rest) -> G @ vector`` for the mean loss over the
    examples.

    The generalised Gauss-Newton matrix is G = mean of J^T H J, where J is the derivative of an
    example's outputs with respect to the parameters, and H the Hessian of its loss with respect to
    the outputs. It is the Hessian where the outputs are linear in the parameters, and positive
    semidefinite if the loss is convex in the outputs. With cross-entropy it is also the Fisher
    information matrix. Schraudolph, "Fast curvature matrix-vector products for second-order
    gradient descent", Neural Computation 14, 2002; Martens, https://arxiv.org/abs/1412.1193,
    section 8.

    Args:
        outputs: ``(params, example, *rest) -> [...]``, such as the logits of an image.
        loss: ``(outputs, example) -> []``.

    >>> product = fcifar.grads.gauss_newton_vector_product(
    ...     lambda w, x: w * x, lambda y, x: y.square().sum()
    ... )
    >>> product(torch.ones(2), torch.tensor([1.0, 0.5]), torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    tensor([10.,  2.])
    """
    each, losses = _mapped(outputs), vmap(loss)

    def product(params: Tree, vector: Tree, examples: Tree, *rest: Any) -> Tree:
        def of_chunk(chunk: Tree) -> Tree:
            def forward(p: Tree) -> Tensor:
                return each(p, chunk, *rest)

            change = jvp(forward, (params,), (vector,))[1]
            values, pullback, *_ = vjp(forward, params)
            slope = grad(lambda y: losses(y, chunk).sum())
            return pullback(jvp(slope, (values,), (change,))[1])[0]

        if not tree.leaves(params):
            return params
        size = _size(examples)
        total = add_up(map(of_chunk, chunks(examples, chunk_size)))
        return tree.map(lambda leaf: leaf / size, total)

    return product


def unroll(
    step: Callable[[Tree, Any, Any], tuple[Any, Any]], outcome: Callable[[Any], Tensor]
) -> Callable[[Tree, Any, Iterable[Any]], Tensor]:
    """Return ``(hyper, state, batches) -> outcome(state after one step per batch)``.

    For example, a step with the learning rate as an argument, and the loss on other images after
    training::

        def step(rate, state, batch):
            return make_train_step(model, optim.sgd(rate, momentum=0.9))(state, batch)

        after = unroll(step, lambda state: evaluate(state.variables))
        slope = torch.func.grad(after)(rate, state, batches)

    Args:
        step: ``(hyper, state, batch) -> (state, aux)``; ``hyper`` is a tree of tensors.
        outcome: ``state -> []``.
    """

    def after(hyper: Tree, state: Any, batches: Iterable[Any]) -> Tensor:
        for batch in batches:
            state, _ = step(hyper, state, batch)
        return outcome(state)

    return after


def meta_gradient(
    step: Callable[[Tree, Any, Any], tuple[Any, Any]], outcome: Callable[[Any], Tensor]
) -> Callable[[Tree, Any, Iterable[Any]], Tree]:
    """Return ``(hyper, state, batches) -> gradient`` of ``unroll`` with respect to ``hyper``.

    Reverse mode: the intermediate results of all steps are held until the end. For a single
    hyperparameter, ``torch.func.jvp`` of ``unroll`` gives the same value and holds one step's
    results.

    >>> step = lambda rate, w, batch: (w - rate * 2 * w, ())  # down w**2
    >>> slope = fcifar.grads.meta_gradient(step, lambda w: w**2)
    >>> slope(torch.tensor(0.25), torch.tensor(1.0), [0, 1])
    tensor(-1.)
    """
    return grad(unroll(step, outcome))


# Shapes ------------------------------------------------------------------------------------------


def _mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Map ``function(params, example, *rest)`` over the first axis of the examples."""

    def of_examples(params: Tree, examples: Tree, *rest: Any) -> Any:
        return vmap(function, in_dims=(None, 0, *(None for _ in rest)))(params, examples, *rest)

    return of_examples


def _size(examples: Tree) -> int:
    return len(tree.leaves(examples)[0])


def rows(leaf: Tensor) -> Tensor:
    """Reshape [B, ...] to [B, n], and [B] to [B, 1]."""
    return leaf.reshape(leaf.shape[0], -1)
