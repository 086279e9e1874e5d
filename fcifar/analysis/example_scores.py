"""Per-example scores: loss, margin, gradient norm (GraNd) and error norm (EL2N).

score_step = make_score_step(model)
scores = score_step(variables, batch)
order = scores.gradient_norm.argsort(descending=True)
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from fcifar import precision, tree
from fcifar.grads import per_example_norms
from fcifar.losses import Loss, cross_entropy
from fcifar.models import Buffers, Model, Params, Variables
from fcifar.precision import Policy
from fcifar.step import Batch, EvalOutput, Preprocess, make_eval_step, normalize

GRADIENTS = 2**23  # elements, 32 MiB of float32; more is not faster on a CPU


class Scores(NamedTuple):
    """Scores of B examples by one model, in the dtype of the losses.

    ``gradient_norm`` and ``error_norm`` are the GraNd and EL2N of one model. Paul, Ganguli and
    Dziugaite, "Deep learning on a data diet", https://arxiv.org/abs/2107.07075, average them over
    several models early in training.
    """

    loss: Tensor  # [B]
    correct: Tensor  # bool [B]
    prediction: Tensor  # int64 [B], the class with the largest logit
    probability: Tensor  # [B] in [0, 1], the softmax probability of the true class
    margin: Tensor  # [B], the true class's logit minus the largest other; positive where correct
    gradient_norm: Tensor  # [B], L2 norm of the gradient of the loss with respect to all parameters
    error_norm: Tensor  # [B] in [0, sqrt(2)], L2 norm of the softmax minus the one-hot label


ScoreStep = Callable[[Variables, Batch], Scores]


def make_score_step(
    model: Model,
    *,
    loss: Loss = cross_entropy,
    preprocess: Preprocess = normalize(),  # noqa: B008
    policy: Policy = precision.FP32,
    gradients: int = GRADIENTS,
) -> ScoreStep:
    """Return ``score_step(variables, batch) -> Scores``, in evaluation mode.

    Loss and correctness are those of ``make_eval_step``, bit for bit; so are the other arguments.

    Args:
        gradients: elements of per-example gradients to hold at a time, at least one example's. They
            are computed in chunks by ``torch.func.vmap``, so that memory does not grow with the
            batch.

    >>> model = fcifar.models.lenet()
    >>> batch = fcifar.Batch(torch.zeros(2, 3, 32, 32), torch.arange(2))
    >>> scores = fcifar.make_score_step(model)(model.init(fcifar.random.key(0)), batch)
    >>> scores.gradient_norm.shape
    torch.Size([2])
    """
    eval_step = make_eval_step(model, loss=loss, preprocess=preprocess, policy=policy)

    def objective(params: Params, example: Batch, buffers: Buffers) -> Tensor:
        x = preprocess(example.images).to(policy.compute)[None]
        cast = Variables(precision.cast(params, policy.compute), buffers)
        logits, _ = model.apply(cast, x, train=False)
        return loss(logits[0].to(policy.output), example.labels)

    def score_step(variables: Variables, batch: Batch) -> Scores:
        examples = eval_step(variables, batch)
        size = sum(leaf.numel() for leaf in tree.leaves(variables.params))
        norms = per_example_norms(objective, chunk_size=max(1, gradients // size))(
            variables.params, batch, variables.buffers
        )
        return vmap(_score)(examples, norms, batch.labels)

    return score_step


def _score(example: EvalOutput, gradient_norm: Tensor, label: Tensor) -> Scores:
    """Return the scores of one example, whose logits are [C]."""
    logits = example.logits
    true = torch.arange(len(logits), device=logits.device) == label
    probabilities = logits.softmax(-1)
    # Summed over the other classes, because 1 - p loses digits near 0.
    others = torch.where(true, 0.0, probabilities)
    return Scores(
        loss=example.loss,
        correct=example.correct,
        prediction=logits.argmax(-1),
        probability=torch.where(true, probabilities, 0.0).sum(),
        margin=torch.where(true, logits, 0.0).sum() - logits.masked_fill(true, -torch.inf).amax(),
        gradient_norm=gradient_norm,
        error_norm=torch.sqrt(others.sum().square() + others.square().sum()),
    )
