"""Gradients as one more axis: of each example, of second order, and through training.

Everything begins with the loss of one example, ``loss(params, example, *rest) -> []``. The example
is a tree whose leaves lack the batch axis: an image, its label, a key to draw from. What ``rest``
is, all examples share::

    def loss(params, example):
        logits, _ = model.apply(Variables(params, {}), example.images[None])
        return cross_entropy(logits[0], example.labels)

    gradients = per_example(loss)(params, Batch(images, labels))  # each leaf [B, *its shape]

The functions made here are pure, take ``(params, examples, *rest)`` as ``torch.func.vmap`` would,
and compile. Examples are taken ``chunk_size`` at a time (None for all at once), which bounds the
memory for what is computed on the way and changes results by rounding alone. A compiled graph holds
each chunk anew: for very many examples compile the function of one chunk, and loop outside.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, jvp, vmap
from torch.linalg import vector_norm

from fcifar import tree
from fcifar.random import Key
from fcifar.tree import Tree

Loss = Callable[..., Tensor]  # (params, example, *rest) -> []
Objective = Callable[[Tree, Tree, Key], tuple[Tensor, Any]]
"""``(params, examples, key) -> (value [], anything else)``: what a training step descends."""
Gradient = Callable[[Objective], Callable[[Tree, Tree, Key], tuple[Tree, tuple[Tensor, Any]]]]
"""From an objective to ``(params, examples, key) -> (gradient, (value, anything else))``."""


def of_batch(objective: Objective) -> Callable[[Tree, Tree, Key], tuple[Tree, tuple[Tensor, Any]]]:
    """The gradient of the batch as a whole: ``torch.func.grad_and_value``."""
    return grad_and_value(objective, has_aux=True)


# Of each example ---------------------------------------------------------------------------------


def per_example(loss: Loss, *, chunk_size: int | None = None) -> Callable[..., Tree]:
    """``(params, examples, *rest) -> gradients``: those of each example, leaves [B, ...].

    All of them are kept, B times the memory of the parameters. ``per_example_norms`` keeps those
    of one chunk alone; for sums of one's own, ``chunks`` and ``add_up`` do the same.

    >>> gradients = fcifar.grads.per_example(lambda w, x: (w * x).square().sum())
    >>> gradients(torch.ones(2), torch.tensor([[1.0, 0.0], [2.0, 3.0]]))
    tensor([[ 2.,  0.],
            [ 8., 18.]])
    """
    of_chunk = _mapped(grad(loss))

    def gradients(params: Tree, examples: Tree, *rest: Any) -> Tree:
        found = [of_chunk(params, chunk, *rest) for chunk in chunks(examples, chunk_size)]
        return found[0] if len(found) == 1 else tree.map(lambda *xs: torch.cat(xs), *found)

    return gradients


def per_example_norms(loss: Loss, *, chunk_size: int | None = None) -> Callable[..., Tensor]:
    """``(params, examples, *rest) -> [B]``: the Euclidean norms of the examples' gradients.

    >>> norms = fcifar.grads.per_example_norms(lambda w, x: (w * x).sum())
    >>> norms(torch.ones(2), torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([5., 2.])
    """
    of_chunk = _mapped(grad(loss))

    def gradient_norms(params: Tree, examples: Tree, *rest: Any) -> Tensor:
        parts = chunks(examples, chunk_size)
        if not tree.leaves(params):
            return torch.zeros(_size(examples), device=tree.device(examples))
        return torch.cat([norms(of_chunk(params, chunk, *rest)) for chunk in parts])

    return gradient_norms


def norms(gradients: Tree) -> Tensor:
    """Of gradients with leaves [B, ...], the Euclidean norm of each example's: [B].

    Gradients without a leaf do not say how many examples there are: 0 [] for all of them.
    """
    if not tree.leaves(gradients):
        return torch.zeros(())
    each = [vector_norm(rows(leaf), dim=1) for leaf in tree.leaves(gradients)]
    return vector_norm(torch.stack(each), dim=0)


def chunks(examples: Tree, chunk_size: int | None) -> Iterator[Tree]:
    """The examples, at most ``chunk_size`` at a time, in order.

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
    """The sum of one tree or more, of which no more than two are held at a time."""
    return functools.reduce(tree.add, terms)


# The noise of a batch ----------------------------------------------------------------------------


class NoiseScale(NamedTuple):
    """Unbiased estimates of what a batch's gradient is made of, each a 0-d tensor.

    ``squared_norm`` may come out below 0 where the noise is much larger than the gradient. For a
    steady figure average both fields over several batches, and divide then.
    """

    variance: Tensor  # tr(Sigma), of the examples' gradients about their mean
    squared_norm: Tensor  # |G|^2, of the gradient over all examples there could be

    @property
    def scale(self) -> Tensor:
        """tr(Sigma) / |G|^2, in examples: much smaller batches waste steps, much larger examples.

        McCandlish, Kaplan, Amodei et al., "An empirical model of large-batch training",
        https://arxiv.org/abs/1812.06162, equation 2.9.
        """
        return self.variance / self.squared_norm


def noise_scale(loss: Loss, *, chunk_size: int | None = None) -> Callable[..., NoiseScale]:
    """``(params, examples, *rest) -> NoiseScale``, from the gradient of each of B examples.

    Raises:
        ValueError: when called, with a single example.

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
    """From the squared norms of the mean gradients of batches of two sizes.

    Appendix A.1 of McCandlish et al. The smaller batches may be parts of the larger, as where the
    gradient of a batch is the mean of its devices' ones; means over several batches do for both.

    Args:
        small, large: 0-d.
        sizes: examples in a small batch and in a large one.

    Raises:
        ValueError: the second size is not larger than the first, or the first is below 1.
    """
    few, many = sizes
    if not 1 <= few < many:
        raise ValueError(f"noise_scale_of_norms needs two sizes that increase, not {sizes}")
    return NoiseScale(
        variance=(small - large) / (1 / few - 1 / many),
        squared_norm=(many * large - few * small) / (many - few),
    )


# Of second order, and through training -----------------------------------------------------------


def hessian_vector_product(loss: Loss, *, chunk_size: int | None = None) -> Callable[..., Tree]:
    """``(params, vector, examples, *rest) -> H vector``, of the mean loss over the examples.

    Forward over reverse: the derivative of the gradient along ``vector``, a tree like ``params``.
    It costs about as much as two gradients, and no Hessian is made. (Pearlmutter, "Fast exact
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


def unroll(
    step: Callable[[Tree, Any, Any], tuple[Any, Any]], outcome: Callable[[Any], Tensor]
) -> Callable[[Tree, Any, Iterable[Any]], Tensor]:
    """``(hyper, state, batches) -> outcome(state after a step with each batch)``.

    A step that knows its learning rate as a value, and the loss on other images after training::

        def step(rate, state, batch):
            return make_train_step(model, optim.sgd(rate, momentum=0.9))(state, batch)

        after = unroll(step, lambda state: evaluate(state.variables))
        slope = torch.func.grad(after)(rate, state, batches)

    Args:
        step: ``(hyper, state, batch) -> (state, anything)``; ``hyper`` is a tree of tensors.
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
    """``(hyper, state, batches) -> gradient``, of ``unroll`` with respect to ``hyper``.

    In reverse: all steps' intermediate results are held until the end. For a single number
    ``torch.func.jvp`` of ``unroll`` gives the same and holds those of one step.

    >>> step = lambda rate, w, batch: (w - rate * 2 * w, ())  # down w**2
    >>> slope = fcifar.grads.meta_gradient(step, lambda w: w**2)
    >>> slope(torch.tensor(0.25), torch.tensor(1.0), [0, 1])
    tensor(-1.)
    """
    return grad(unroll(step, outcome))


# Shapes ------------------------------------------------------------------------------------------


def _mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function(params, example, *rest)`` over the first axis of the examples."""

    def of_examples(params: Tree, examples: Tree, *rest: Any) -> Any:
        return vmap(function, in_dims=(None, 0, *(None for _ in rest)))(params, examples, *rest)

    return of_examples


def _size(examples: Tree) -> int:
    return len(tree.leaves(examples)[0])


def rows(leaf: Tensor) -> Tensor:
    """[B, ...] as [B, the rest]; [B] as [B, 1]."""
    return leaf.reshape(leaf.shape[0], -1)
