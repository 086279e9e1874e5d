"""Influence: against explicit gradients and matrices, and against leaving images out."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, vmap

from fcifar import grads, random, tree
from fcifar.analysis import influence
from fcifar.analysis.influence import Checkpoint, conjugate_gradient, gauss_newton, tracin
from fcifar.bench import reference_models
from fcifar.losses import cross_entropy
from fcifar.models import Params, Variables
from fcifar.precision import FP64
from fcifar.step import Batch, normalize
from tests.helpers.small import make_model

F64 = torch.float64


def drawn(seed: int, *shape: int) -> Tensor:
    return random.normal(random.key(seed), shape).to(F64)


def dot(a: Any, b: Any) -> Tensor:
    return sum((x * y).sum() for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


# Inner products and TracIn -----------------------------------------------------------------------


def by_backward(name: str, variables: Variables, batch: Batch) -> list[Params]:
    """The gradient of each image by ``loss.backward``, each alone in a batch, in evaluation."""
    model, rows = make_model(name), []
    for image, label in zip(*batch, strict=True):
        leaves = {n: p.clone().requires_grad_() for n, p in variables.params.items()}
        x = normalize()(image).double()[None]
        logits, _ = model.apply(Variables(leaves, variables.buffers), x, train=False)
        cross_entropy(logits[0], label).backward()
        rows.append({n: leaf.grad for n, leaf in leaves.items()})
    return rows


@pytest.mark.parametrize("name", ["lenet", "conv3", "speednet", "resnet18"])
def test_tracin_is_the_sum_of_explicit_inner_products(name: str, make_batch) -> None:
    """Of three tests and seven training images, at two checkpoints with their own rates."""
    model, test, train = make_model(name), make_batch(3, seed=1), make_batch(7, seed=2)
    moments = []
    for seed, rate in ((3, 0.1), (4, 0.02)):
        variables = tree.map(Tensor.double, model.init(random.key(seed)))
        moments.append((rate, variables))
    expected = torch.zeros(3, 7, dtype=F64)
    for rate, variables in moments:
        of_test, of_train = (by_backward(name, variables, b) for b in (test, train))
        expected += rate * torch.stack(
            [torch.stack([dot(a, b) for b in of_train]) for a in of_test]
        )
    logits = influence.example_logits(model, policy=FP64)
    checkpoints = [Checkpoint(rate, v.params, (v.buffers,)) for rate, v in moments]
    for chunk_size in (None, 3):
        found = tracin(logits, chunk_size=chunk_size)(checkpoints, test, train)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore")
def test_tracin_is_captums(make_batch, tmp_path) -> None:
    """Of the plain module of conv3 in float64, at two checkpoints."""
    captum = pytest.importorskip("captum.influence")
    model, test, train = make_model("conv3"), make_batch(2, seed=1), make_batch(6, seed=2)
    net = reference_models.MODULES["conv3"](dropout=0.25).double().eval()
    rates = {}
    for seed, rate in ((3, 0.1), (4, 0.02)):
        path = str(tmp_path / f"{seed}.pt")
        rates[path] = rate
        torch.save(tree.map(Tensor.double, model.init(random.key(seed)).params), path)

    def load(module: torch.nn.Module, path: str) -> float:
        module.load_state_dict(torch.load(path))
        return rates[path]

    x, y = (normalize()(images).double() for images in (test.images, train.images))
    reference = captum.TracInCP(
        net,
        torch.utils.data.TensorDataset(y, train.labels),
        list(rates),
        load,
        loss_fn=torch.nn.CrossEntropyLoss(reduction="sum"),
        batch_size=3,
        sample_wise_grads_per_batch=True,
    )
    expected = reference.influence((x, test.labels))
    checkpoints = [Checkpoint(rate, torch.load(path), ({},)) for path, rate in rates.items()]
    found = tracin(influence.example_logits(model, policy=FP64))(checkpoints, test, train)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_step_on_one_image_lowers_the_loss_by_its_score(make_batch) -> None:
    model, rate = make_model("lenet"), 1e-7
    variables = tree.map(Tensor.double, model.init(random.key(0)))
    test, train = make_batch(2, seed=1), make_batch(4, seed=2)
    logits = influence.example_logits(model, policy=FP64)
    loss = influence.example_loss(logits)
    found = tracin(logits)([Checkpoint(rate, variables.params, ({},))], test, train)
    for i in range(4):
        gradient = grad(loss)(variables.params, Batch(train.images[i], train.labels[i]), {})
        after = tree.map(lambda p, g: p - rate * g, variables.params, gradient)
        for j in range(2):
            example = Batch(test.images[j], test.labels[j])
            fall = loss(variables.params, example, {}) - loss(after, example, {})
            torch.testing.assert_close(found[j, i], fall, rtol=1e-3, atol=1e-12)


# Conjugate gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 20])
def test_conjugate_gradients_solve_what_torch_solves(size: int) -> None:
    root = drawn(0, size, size)
    matrix, targets = root @ root.T + 0.5 * torch.eye(size, dtype=F64), drawn(1, 4, size)
    expected = torch.linalg.solve(matrix, targets.T).T
    found = vmap(lambda b: conjugate_gradient(matrix.mv, b, 3 * size))(targets)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_conjugate_gradients_stay_where_they_arrived() -> None:
    """After more steps than needed nothing is NaN, and a target of zeros has the solution 0."""
    target = {"a": torch.tensor([2.0, 0.0], dtype=F64), "b": torch.tensor(4.0, dtype=F64)}
    double = lambda v: tree.map(lambda x: 2 * x, v)  # noqa: E731
    halved = tree.map(lambda x: x / 2, target)
    assert tree.equal(conjugate_gradient(double, target, 9), halved)
    zero = tree.zeros_like(target)
    assert tree.equal(conjugate_gradient(double, zero, 9), zero)


# Influence functions -----------------------------------------------------------------------------

DIM, CLASSES, PENALTY = 5, 3, 0.05


def linear(params: Tensor, example: Batch) -> Tensor:
    return params.reshape(CLASSES, DIM) @ example.images


def rows_of(seed: int, size: int) -> Batch:
    """Points with labels that depend on them, and on chance."""
    x = drawn(seed, size, DIM)
    noise = drawn(seed + 100, size, CLASSES)
    return Batch(x, (x @ drawn(50, DIM, CLASSES) + noise).argmax(-1))


def minimum(data: Batch, weights: Tensor, start: Tensor) -> Tensor:
    """Parameters of softmax regression with an L2 penalty, by six steps of Newton's method."""

    def objective(w: Tensor) -> Tensor:
        losses = vmap(influence.example_loss(linear), in_dims=(None, 0))(w, data)
        return (weights * losses).sum() / len(weights) + PENALTY / 2 * w.square().sum()

    for _ in range(6):
        start = start - torch.linalg.solve(hessian(objective)(start), grad(objective)(start))
    return start


def test_influence_functions_predict_leaving_one_out() -> None:
    """Softmax regression with a penalty, retrained exactly without each training image."""
    train, test, size = rows_of(1, 100), rows_of(2, 8), 100
    losses = vmap(influence.example_loss(linear), in_dims=(None, 0))
    everything = torch.ones(size, dtype=F64)
    fitted = minimum(train, everything, torch.zeros(CLASSES * DIM, dtype=F64))
    assert (minimum(train, everything, fitted) - fitted).norm() < 1e-12
    without_one = everything - torch.eye(size, dtype=F64)
    retrained = vmap(lambda weights: minimum(train, weights, fitted))(without_one)
    rises = (vmap(lambda w: losses(w, test))(retrained) - losses(fitted, test)).T
    found = gauss_newton(linear, damping=PENALTY, iterations=30)(fitted, test, train)
    for predicted, rise in zip(found, rises, strict=True):
        assert torch.corrcoef(torch.stack([predicted, rise]))[0, 1] > 0.99
    slope = (found * rises).sum() / found.square().sum()
    assert 0.95 < slope < 1.15, "sign and scale are right, too"


def test_influence_functions_equal_those_of_the_explicit_matrix() -> None:
    """Of a network with a hidden layer, where the matrix is not the Hessian; in chunks, too."""

    def outputs(params: dict[str, Tensor], example: Batch) -> Tensor:
        return params["b"] @ torch.tanh(params["a"] @ example.images)

    params: Any = {"a": drawn(5, 4, DIM), "b": drawn(6, CLASSES, 4)}
    train, test, damping = rows_of(1, 9), rows_of(2, 3), 0.1
    jacobians = [
        torch.cat([j.flatten(1) for j in jacobian.values()], dim=1)
        for i in range(9)
        for jacobian in [
            torch.func.jacrev(outputs)(params, Batch(train.images[i], train.labels[i]))
        ]
    ]
    matrix = damping * torch.eye(32, dtype=F64)
    for i, jacobian in enumerate(jacobians):
        p = outputs(params, Batch(train.images[i], train.labels[i])).softmax(-1)
        matrix += jacobian.T @ (p.diag() - p.outer(p)) @ jacobian / 9
    each = grads.per_example(influence.example_loss(outputs))
    of_test, of_train = (
        torch.cat([g.flatten(1) for g in each(params, b).values()], dim=1) for b in (test, train)
    )
    expected = of_test @ torch.linalg.solve(matrix, of_train.T) / 9
    for chunk_size in (None, 4):
        method = gauss_newton(outputs, damping=damping, iterations=45, chunk_size=chunk_size)
        torch.testing.assert_close(method(params, test, train), expected, rtol=1e-8, atol=1e-10)


# Evaluation mode ---------------------------------------------------------------------------------


def test_an_image_has_its_own_score_whatever_is_beside_it(make_batch) -> None:
    """With batch norm, its running statistics are constants, and dropout is off."""
    model = make_model("speednet")
    variables = model.init(random.key(0))
    logits = influence.example_logits(model)
    checkpoint = [Checkpoint(1.0, variables.params, (variables.buffers,))]
    test, train = make_batch(1, seed=1), make_batch(6, seed=2)
    together = tracin(logits)(checkpoint, test, train)
    for i in range(6):
        alone = Batch(train.images[i : i + 1], train.labels[i : i + 1])
        torch.testing.assert_close(tracin(logits)(checkpoint, test, alone)[:, 0], together[:, i])
