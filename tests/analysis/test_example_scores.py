"""Scores of single examples: against a loop over them, in closed form, and out of bounds."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fcifar import random, tree
from fcifar.analysis.example_scores import Scores, make_score_step
from fcifar.models import Model, Variables
from fcifar.precision import BF16, FP64
from fcifar.step import Batch, make_eval_step, normalize
from fcifar.train.evaluate import evaluate
from tests.helpers.small import chosen_models, make_model

IDENTITY = normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def variables_of(model: Model) -> Variables:
    """float64, with running statistics that no batch has: they are what evaluation must use."""
    params, buffers = tree.map(lambda v: v.double(), model.init(random.key(3)))
    moved = {
        name: value + (0.3 * random.uniform(random.key(i), value.shape) if "running" in name else 0)
        for i, (name, value) in enumerate(buffers.items())
    }
    return Variables(params, moved)


def by_a_loop(model: Model, variables: Variables, batch: Batch) -> dict[str, list[float]]:
    """Example by example, by ``loss.backward`` and the formulas."""
    rows = []
    for image, label in zip(normalize()(batch.images).double(), batch.labels, strict=True):
        leaves = {n: v.clone().requires_grad_() for n, v in variables.params.items()}
        logits = model.apply(Variables(leaves, variables.buffers), image[None])[0][0]
        loss = -logits.log_softmax(-1)[label]
        loss.backward()
        flat = torch.cat([leaf.grad.flatten() for leaf in leaves.values()])
        logits = logits.detach()
        others = [x for c, x in enumerate(logits.tolist()) if c != label]
        rows.append(
            {
                "loss": loss.item(),
                "correct": bool(logits.argmax() == label),
                "prediction": int(logits.argmax()),
                "probability": logits.softmax(-1)[label].item(),
                "margin": logits[label].item() - max(others),
                "gradient_norm": flat.norm().item(),
                "error_norm": (logits.softmax(-1) - F.one_hot(label, len(logits))).norm().item(),
            }
        )
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.mark.parametrize("name", chosen_models())
def test_scores_equal_a_loop_over_examples(name: str, make_batch) -> None:
    model = make_model(name)
    variables, batch = variables_of(model), make_batch(6)
    scores = make_score_step(model, policy=FP64)(variables, batch)
    expected = by_a_loop(model, variables, batch)
    assert set(expected) == set(Scores._fields)
    for field, values in scores._asdict().items():
        assert values.tolist() == pytest.approx(expected[field], rel=1e-9), field
    assert torch.equal(scores.correct, scores.margin > 0)
    torch.testing.assert_close(scores.probability, torch.exp(-scores.loss))


@pytest.mark.parametrize("at_a_time", [0, 1, 3, 8])
def test_gradients_are_the_same_however_many_are_held(at_a_time: int, make_batch) -> None:
    model, batch = make_model("lenet"), make_batch(8)
    variables = variables_of(model)
    expected = make_score_step(model, policy=FP64)(variables, batch)
    size = sum(value.numel() for value in variables.params.values())
    calls = []

    def apply(variables: Variables, images: Tensor, *, train: bool) -> object:
        calls.append(train)
        return model.apply(variables, images, train=train)

    watched = make_score_step(
        model._replace(apply=apply), policy=FP64, gradients=at_a_time * size + 1
    )
    torch.testing.assert_close(watched(variables, batch), expected)
    chunks = math.ceil(8 / max(1, at_a_time))
    assert calls == [False] * (1 + chunks), "once for the logits, and for each chunk"


@pytest.mark.cuda
@pytest.mark.parametrize("name", chosen_models())
def test_scores_on_a_gpu_are_close(name: str, make_batch) -> None:
    model, batch = make_model(name), make_batch(8)
    variables, step = variables_of(model), make_score_step(model, policy=FP64)
    there = tree.map(lambda v: v.cuda(), (variables, batch))
    found = tree.map(lambda v: v.cpu(), step(*there))
    torch.testing.assert_close(found, step(variables, batch), rtol=1e-6, atol=1e-9)


def test_loss_and_correctness_are_those_of_an_evaluation(make_batch) -> None:
    model, batch = make_model("speednet"), make_batch(16)
    variables = model.init(random.key(0))
    scores, measured = make_score_step(model)(variables, batch), make_eval_step(model)
    assert tree.equal(tuple(scores[:2]), tuple(measured(variables, batch)[:2]))


def test_every_row_counts_once_in_batches_of_any_size(make_batch) -> None:
    model, batch = make_model("lenet"), make_batch(11)
    variables, step = variables_of(model), make_score_step(model, policy=FP64)
    torch.testing.assert_close(
        evaluate(step, variables, batch, batch_size=4), step(variables, batch)
    )


def linear(classes: int = 4) -> tuple[Model, Variables]:
    """Logits W x + b of images of 12 numbers."""

    def apply(variables: Variables, images: Tensor, **_: object) -> tuple[Tensor, dict]:
        return images.flatten(1) @ variables.params["w"] + variables.params["b"], {}

    shapes = {"w": (12, classes), "b": (classes,)}
    params = {n: random.normal(random.key(len(s)), s).double() for n, s in shapes.items()}
    return Model(init=lambda _: Variables(params, {}), apply=apply), Variables(params, {})


def some_images(size: int = 9, classes: int = 4) -> Batch:
    images = random.uniform(random.key(7), (size, 3, 2, 2)).double()
    return Batch(images, random.randint(random.key(8), (size,), 0, classes))


def test_a_linear_model_has_the_textbook_gradient() -> None:
    """(p - y) x' and p - y, so that its norm is that of the error, times that of (x, 1)."""
    model, variables = linear()
    batch = some_images()
    scores = make_score_step(model, preprocess=IDENTITY, policy=FP64)(variables, batch)
    lengths = (batch.images.flatten(1).square().sum(1) + 1).sqrt()
    torch.testing.assert_close(scores.gradient_norm, scores.error_norm * lengths)


def test_the_loss_function_is_used() -> None:
    model, variables = linear()
    batch, step = some_images(), {"preprocess": IDENTITY, "policy": FP64}

    def doubled(logits: Tensor, label: Tensor) -> Tensor:
        return 2 * F.cross_entropy(logits, label, reduction="none")

    once = make_score_step(model, **step)(variables, batch)
    twice = make_score_step(model, loss=doubled, **step)(variables, batch)
    torch.testing.assert_close(twice.gradient_norm, 2 * once.gradient_norm)
    torch.testing.assert_close(twice.loss, 2 * once.loss)
    torch.testing.assert_close(twice.error_norm, once.error_norm)


def fixed(logits: list[float]) -> tuple[Model, Variables]:
    """A network that says the same of every image."""
    params = {"logits": torch.tensor(logits)}

    def apply(variables: Variables, images: Tensor, **_: object) -> tuple[Tensor, dict]:
        return variables.params["logits"].expand(len(images), -1), {}

    return Model(init=lambda _: Variables(params, {}), apply=apply), Variables(params, {})


def test_a_confident_model_keeps_the_digits_of_its_error(make_batch) -> None:
    model, variables = fixed([30.0, 0.0, 0.0])
    batch = make_batch(1)._replace(labels=torch.tensor([0]))
    scores = make_score_step(model)(variables, batch)
    p = math.exp(-30)
    assert scores.error_norm.item() == pytest.approx(math.sqrt(4 * p * p + 2 * p * p), rel=1e-5)
    assert scores.margin.item() == 30


def test_the_largest_error_norm_is_sqrt_2(make_batch) -> None:
    model, variables = fixed([500.0, 0.0, 0.0])
    batch = make_batch(1)._replace(labels=torch.tensor([2]))
    scores = make_score_step(model)(variables, batch)
    assert scores.error_norm.item() == pytest.approx(math.sqrt(2))
    assert scores.gradient_norm.item() == pytest.approx(math.sqrt(2))
    assert (scores.loss.item(), scores.margin.item(), scores.probability.item()) == (500, -500, 0)


def test_a_non_finite_example_does_not_affect_others() -> None:
    model, variables = linear()
    batch = some_images(3)
    batch.images[1] = math.nan
    step = make_score_step(model, preprocess=IDENTITY, policy=FP64)
    scores = step(variables, batch)
    for name in ("loss", "probability", "margin", "gradient_norm", "error_norm"):
        assert getattr(scores, name).isnan().tolist() == [False, True, False], name


def test_arithmetic_in_bfloat16_is_close(make_batch) -> None:
    model, batch = make_model("resnet18"), make_batch(4)
    variables = model.init(random.key(0))
    exact, rough = (make_score_step(model, **p)(variables, batch) for p in ({}, {"policy": BF16}))
    assert rough.gradient_norm.dtype == torch.float32
    torch.testing.assert_close(rough.gradient_norm, exact.gradient_norm, rtol=0.1, atol=0.0)
    assert not torch.equal(rough.gradient_norm, exact.gradient_norm)
