"""Gradients as one more axis: against a loop over examples, finite differences and closed forms."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, jvp

from fcifar import grads, losses, models, optim, random, tree
from fcifar.grads import (
    NoiseScale,
    gauss_newton_vector_product,
    hessian_vector_product,
    meta_gradient,
    noise_scale,
    noise_scale_of_norms,
    per_example,
    per_example_norms,
    unroll,
)
from fcifar.models import Params, Variables
from fcifar.optim import Optimizer
from fcifar.precision import FP64
from fcifar.step import Batch, TrainState, init_train_state, make_train_step, normalize
from fcifar.tree import Tree
from tests.helpers.small import chosen_models, make_model

F64 = torch.float64


def loss_of(name: str) -> tuple[grads.Loss, Variables]:
    """The loss of one example, ``(params, example, buffers) -> []``, and variables in float64."""
    model = make_model(name)

    def loss(params: Params, example: Batch, buffers: Params) -> Tensor:
        images = normalize()(example.images).double()[None]
        logits, _ = model.apply(Variables(params, buffers), images)
        return losses.cross_entropy(logits[0], example.labels)

    return loss, tree.map(Tensor.double, model.init(random.key(3)))


def by_a_loop(loss: grads.Loss, variables: Variables, batch: Batch) -> Params:
    """Example by example, by ``loss.backward``."""
    rows = []
    for image, label in zip(*batch, strict=True):
        leaves = {name: p.clone().requires_grad_() for name, p in variables.params.items()}
        loss(leaves, Batch(image, label), variables.buffers).backward()
        rows.append({name: leaf.grad for name, leaf in leaves.items()})
    return tree.map(lambda *xs: torch.stack(xs), *rows)


def linear(params: Params, example: Tensor) -> Tensor:
    """A loss whose gradient is the example."""
    return params["w"] @ example


def random_like(values: Tree, seed: int) -> Tree:
    leaves, unflatten = tree.flatten(values)
    keys = random.split(random.key(seed), len(leaves))
    return unflatten(
        [random.normal(k, x.shape).to(x.dtype) for k, x in zip(keys, leaves, strict=True)]
    )


# Of each example ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 100])
@pytest.mark.parametrize("name", chosen_models())
def test_per_example_equals_a_loop(name: str, chunk_size: int | None, make_batch) -> None:
    (loss, variables), batch = loss_of(name), make_batch(7)
    expected = by_a_loop(loss, variables, batch)
    found = per_example(loss, chunk_size=chunk_size)(variables.params, batch, variables.buffers)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    norms = per_example_norms(loss, chunk_size=chunk_size)(
        variables.params, batch, variables.buffers
    )
    by_hand = torch.stack([tree.norm(tree.map(lambda g, i=i: g[i], expected)) for i in range(7)])
    torch.testing.assert_close(norms, by_hand, rtol=1e-9, atol=1e-12)


def test_an_example_may_be_any_tree_and_a_leaf_of_any_shape() -> None:
    def loss(params: Any, example: Any, power: int) -> Tensor:
        (x, scale), key = example["inputs"], example["key"]
        kept = random.bernoulli(key, 0.5, x.shape)
        return (params[0] * (torch.where(kept, x, 0.0) @ params[1]) * scale) ** power

    params = [torch.tensor(2.0), torch.arange(3.0)]
    keys = random.split(random.key(0), 5)
    x, scale = random.normal(random.key(1), (5, 3)), torch.arange(5.0)
    found = per_example(loss, chunk_size=2)(params, {"inputs": (x, scale), "key": keys}, 2)
    for i in range(5):
        alone = grad(loss)(params, {"inputs": (x[i], scale[i]), "key": keys[i]}, 2)
        torch.testing.assert_close([g[i] for g in found], alone)
    assert [g.shape for g in found] == [(5,), (5, 3)]
    torch.testing.assert_close(
        grads.norms(found), torch.stack([tree.norm([g[i] for g in found]) for i in range(5)])
    )


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_without_parameters_gradients_are_empty(chunk_size: int | None) -> None:
    def loss(params: Params, example: Tensor) -> Tensor:
        return example.sum()

    examples = torch.ones(3, 2)
    assert grads.per_example(loss, chunk_size=chunk_size)({}, examples) == {}
    norms = grads.per_example_norms(loss, chunk_size=chunk_size)({}, examples)
    assert torch.equal(norms, torch.zeros(3))
    product = grads.hessian_vector_product(loss, chunk_size=chunk_size)
    assert product({}, {}, examples) == {}
    product = grads.gauss_newton_vector_product(loss, lambda y, x: y, chunk_size=chunk_size)
    assert product({}, {}, examples) == {}
    assert grads.noise_scale(loss, chunk_size=chunk_size)({}, examples) == (0, 0)


def test_chunks_are_the_examples_in_order() -> None:
    batch = Batch(torch.arange(14).reshape(7, 2), torch.arange(7))
    for size, lengths in ((3, [3, 3, 1]), (7, [7]), (100, [7]), (1, [1] * 7), (None, [7])):
        parts = list(grads.chunks(batch, size))
        assert [len(part.labels) for part in parts] == lengths
        assert tree.equal(tree.map(lambda *xs: torch.cat(xs), *parts), batch)
    with pytest.raises(ValueError, match="chunk_size is 0; it must be 1 or more"):
        list(grads.chunks(batch, 0))


# The noise of a batch ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_noise_scale_is_the_trace_of_the_covariance(chunk_size: int | None, make_batch) -> None:
    (loss, variables), batch = loss_of("lenet"), make_batch(9)
    each = by_a_loop(loss, variables, batch)
    flat = torch.cat([g.flatten(1) for g in tree.leaves(each)], dim=1)
    found = noise_scale(loss, chunk_size=chunk_size)(variables.params, batch, variables.buffers)
    trace = flat.var(dim=0, correction=1).sum()
    squared = flat.mean(0).square().sum() - trace / 9
    torch.testing.assert_close(found.variance, trace, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.squared_norm, squared, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.scale, trace / squared, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("few", "many"), [(1, 2), (1, 4), (2, 4)])
def test_the_noise_estimates_are_unbiased(few: int, many: int) -> None:
    """Their mean over every batch that can be drawn from three examples is the true value."""
    examples = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [4.0, -2.0]], dtype=F64)
    params = {"w": torch.ones(2, dtype=F64)}
    found = []
    for rows in itertools.product(range(3), repeat=many):
        batch = examples[list(rows)]
        parts = batch.reshape(-1, few, 2).mean(1).square().sum(1).mean()
        of_norms = noise_scale_of_norms(parts, batch.mean(0).square().sum(), sizes=(few, many))
        found.append(of_norms)
        if few == 1:
            torch.testing.assert_close(noise_scale(linear)(params, batch), of_norms)
    variance, squared_norm = (torch.stack(x).mean() for x in zip(*found, strict=True))
    expected = examples.var(dim=0, correction=0).sum(), examples.mean(0).square().sum()
    torch.testing.assert_close((variance, squared_norm), expected)
    assert NoiseScale(variance, squared_norm).scale == variance / squared_norm


def test_noise_needs_two_sizes() -> None:
    one = torch.tensor(1.0)
    for sizes in ((2, 2), (3, 2), (0, 2)):
        with pytest.raises(ValueError, match="two sizes that increase"):
            noise_scale_of_norms(one, one, sizes=sizes)
    with pytest.raises(ValueError, match="two examples or more"):
        noise_scale(linear)({"w": torch.ones(2)}, torch.ones(1, 2))


# Of second order ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("name", chosen_models())
def test_hessian_vector_product_is_the_slope_of_the_gradient(
    name: str, chunk_size: int | None, make_batch
) -> None:
    """By central differences, with steps small enough that no maximum changes places."""
    (loss, (start, buffers)), batch = loss_of(name), make_batch(5)
    # Away from where it starts, for there ReLU may be given zeros, and has no slope.
    params = tree.map(lambda p, v: p + 0.05 * v, start, random_like(start, 2))
    vector = random_like(params, 1)

    def gradient(at: float) -> Params:
        moved = tree.map(lambda p, v: p + at * v, params, vector)
        each = per_example(loss)(moved, batch, buffers)
        return tree.map(lambda g: g.mean(0), each)

    h = 1e-8 if name == "wrn" else 1e-7  # wrn has the most units, and one at a kink of ReLU
    slope = tree.map(lambda a, b: (a - b) / (2 * h), gradient(h), gradient(-h))
    product = hessian_vector_product(loss, chunk_size=chunk_size)
    found = product(params, vector, batch, buffers)
    assert tree.norm(tree.map(torch.sub, found, slope)) < 1e-6 * tree.norm(slope)


def test_hessian_vector_product_equals_the_whole_hessian() -> None:
    def loss(params: Params, example: tuple[Tensor, Tensor]) -> Tensor:
        x, label = example
        hidden = torch.tanh(params["a"] @ x)
        return losses.cross_entropy(params["b"] @ hidden, label)

    like = {"a": torch.empty(4, 3, dtype=F64), "b": torch.empty(5, 4, dtype=F64)}
    params, vector = random_like(like, 0), random_like(like, 1)
    batch = (random.normal(random.key(2), (6, 3)).double(), torch.arange(6) % 5)

    def mean(p: Params) -> Tensor:
        return torch.stack([loss(p, (batch[0][i], batch[1][i])) for i in range(6)]).mean()

    blocks = hessian(mean)(params)
    expected = {
        row: sum(torch.tensordot(blocks[row][c], vector[c], dims=vector[c].ndim) for c in like)
        for row in like
    }
    found = hessian_vector_product(loss, chunk_size=4)(params, vector, batch)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def hidden_logits(params: Params, example: tuple[Tensor, Tensor]) -> Tensor:
    return params["b"] @ torch.tanh(params["a"] @ example[0])


def label_loss(logits: Tensor, example: tuple[Tensor, Tensor]) -> Tensor:
    return losses.cross_entropy(logits, example[1])


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_gauss_newton_vector_product_equals_the_whole_matrix(chunk_size: int | None) -> None:
    """The mean of J^T (diag p - p p^T) J, which is positive semidefinite."""
    like = {"a": torch.empty(4, 3, dtype=F64), "b": torch.empty(5, 4, dtype=F64)}
    params, vector = random_like(like, 0), random_like(like, 1)
    batch = (random.normal(random.key(2), (6, 3)).double(), torch.arange(6) % 5)
    flat = torch.cat([vector["a"].flatten(), vector["b"].flatten()])
    whole = torch.zeros(32, 32, dtype=F64)
    for x, label in zip(*batch, strict=True):
        jacobian = jacrev(hidden_logits)(params, (x, label))
        j = torch.cat([jacobian["a"].flatten(1), jacobian["b"].flatten(1)], dim=1)
        p = hidden_logits(params, (x, label)).softmax(-1)
        whole += j.T @ (p.diag() - p.outer(p)) @ j / 6
    product = gauss_newton_vector_product(hidden_logits, label_loss, chunk_size=chunk_size)
    found = product(params, vector, batch)
    found = torch.cat([found["a"].flatten(), found["b"].flatten()])
    torch.testing.assert_close(found, whole @ flat, rtol=1e-12, atol=1e-14)
    assert flat @ found > 0


def test_the_gauss_newton_matrix_of_a_linear_model_is_its_hessian() -> None:
    """And that of a model with a hidden layer is not."""
    batch = (random.normal(random.key(2), (6, 3)).double(), torch.arange(6) % 5)

    def linear_logits(w: Tensor, example: tuple[Tensor, Tensor]) -> Tensor:
        return w @ example[0]

    def products(outputs: Any, params: Tree) -> tuple[Tree, Tree]:
        vector = random_like(params, 1)
        exact = hessian_vector_product(lambda p, example: label_loss(outputs(p, example), example))
        approximate = gauss_newton_vector_product(outputs, label_loss)
        return exact(params, vector, batch), approximate(params, vector, batch)

    exact, found = products(linear_logits, random.normal(random.key(3), (5, 3)).double())
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=1e-14)
    like = {"a": torch.empty(4, 3, dtype=F64), "b": torch.empty(5, 4, dtype=F64)}
    exact, found = products(hidden_logits, random_like(like, 0))
    assert tree.norm(tree.map(torch.sub, found, exact)) > 0.1 * tree.norm(exact)


# Through training --------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_meta_gradient_equals_the_hand_written_one(steps: int) -> None:
    """A parabola a w^2 / 2 under gradient descent: w becomes w (1 - rate a)^k."""
    a, start = 0.7, torch.tensor(1.5, dtype=F64)

    def step(rate: Tensor, w: Tensor, target: Tensor) -> tuple[Tensor, None]:
        optimizer = optim.sgd(rate)
        updates, _ = optimizer.update(a * (w - target), optimizer.init(w), w)
        return optim.apply_updates(w, updates), None

    rate, targets = torch.tensor(0.3, dtype=F64), torch.zeros(steps, dtype=F64)
    found = meta_gradient(step, lambda w: a * w * w / 2)(rate, start, targets)
    shrunk = 1 - rate * a
    by_hand = -steps * a * a * start**2 * shrunk ** (2 * steps - 1)
    torch.testing.assert_close(found, by_hand, rtol=1e-12, atol=0)


def sgd(hyper: dict[str, Tensor]) -> Optimizer:
    decay = optim.add_decayed_weights(hyper["weight_decay"])
    return optim.chain(decay, optim.sgd(hyper["learning_rate"], hyper["momentum"], nesterov=True))


def adamw(hyper: dict[str, Tensor]) -> Optimizer:
    b1, decay = hyper["momentum"], hyper["weight_decay"]
    return optim.adamw(hyper["learning_rate"], b1, hyper["b2"], 1e-6, weight_decay=decay)


MUON_ON_LINEAR = {
    "muon": lambda h: optim.muon(h["learning_rate"], h["momentum"], dtype=F64),
    "sgd": lambda h: optim.sgd(h["learning_rate"], h["momentum"]),
}


def muon(hyper: dict[str, Tensor]) -> Optimizer:
    return optim.chain(
        optim.add_decayed_weights(hyper["weight_decay"]),
        optim.multi_transform(
            {name: make(hyper) for name, make in MUON_ON_LINEAR.items()},
            lambda path, leaf: "muon" if leaf.ndim > 1 else "sgd",
        ),
    )


HYPER = {"learning_rate": 1e-2, "momentum": 0.8, "weight_decay": 1e-2, "b2": 0.99}
OPTIMIZERS = {"sgd": sgd, "adamw": adamw, "muon": muon}


def tensors(hyper: dict[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=F64) for name, value in hyper.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_meta_gradient_equals_central_differences(name: str, make_batch) -> None:
    """Of the loss on other images after three steps of lenet, for each number of an optimizer."""
    model, make_optimizer = models.lenet(), OPTIMIZERS[name]
    hyper = tensors(HYPER)
    state = init_train_state(model, make_optimizer(hyper), key=random.key(0), policy=FP64)
    batches, other = [make_batch(4, seed=i) for i in range(3)], make_batch(6, seed=9)

    def step(hyper: dict[str, Tensor], state: TrainState, batch: Batch) -> Any:
        return make_train_step(model, make_optimizer(hyper), policy=FP64)(state, batch)

    def outcome(state: TrainState) -> Tensor:
        logits, _ = model.apply(state.variables, normalize()(other.images).double())
        return losses.cross_entropy(logits, other.labels).mean()

    after = unroll(step, outcome)
    found = meta_gradient(step, outcome)(hyper, state, batches)
    assert set(found) == set(hyper)
    for number in hyper:
        h = 1e-6 * HYPER[number]
        ends = [
            after(tensors({**HYPER, number: HYPER[number] + d}), state, batches) for d in (h, -h)
        ]
        difference = (ends[0] - ends[1]) / (2 * h)
        torch.testing.assert_close(found[number], difference, rtol=1e-4, atol=1e-9)
    along = {n: torch.ones_like(v) if n == "momentum" else 0 * v for n, v in hyper.items()}
    _, forward = jvp(lambda h: after(h, state, batches), (hyper,), (along,))
    torch.testing.assert_close(forward, found["momentum"], rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "adamw")), "muon"]
)
def test_numbers_of_an_optimizer_may_be_tensors(name: str, make_batch) -> None:
    """The same steps as from numbers, to rounding; compiled, other values make no other graph."""
    model, make_optimizer, batch, made = models.lenet(), OPTIMIZERS[name], make_batch(), []

    def counting(graph, inputs):
        made.append(graph)
        return graph

    def step(hyper: Any, state: TrainState, batch: Batch) -> Any:
        return make_train_step(model, make_optimizer(hyper), policy=FP64)(state, batch)

    compiled = torch.compile(step, backend=counting, fullgraph=True)
    start = init_train_state(model, make_optimizer(HYPER), key=random.key(0), policy=FP64)
    for factor in (1.0, 0.5, 0.9):
        hyper = {number: factor * value for number, value in HYPER.items()}
        states = [start, start, start]
        for _ in range(3):
            states = [
                step(hyper, states[0], batch)[0],
                step(tensors(hyper), states[1], batch)[0],
                compiled(tensors(hyper), states[2], batch)[0],
            ]
        for state in states[1:]:
            torch.testing.assert_close(state, states[0], rtol=1e-9, atol=1e-12)
    assert len(made) == 1


def test_a_norm_to_clip_to_may_be_a_tensor() -> None:
    gradient = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}

    def clipped(most: Any) -> Tensor:
        clip = optim.clip_by_global_norm(most)
        return clip.update(gradient, clip.init(gradient), gradient)[0]["b"].sum()

    assert clipped(torch.tensor(1.0)) == clipped(1.0)
    assert grad(clipped)(torch.tensor(2.0)) == pytest.approx(0.8)
    assert grad(clipped)(torch.tensor(9.0)) == 0


# Pure and compiled -------------------------------------------------------------------------------

FUNCTIONS = {
    "per_example": per_example,
    "per_example_norms": per_example_norms,
    "noise_scale": noise_scale,
    "hessian_vector_product": lambda loss, **kw: (
        lambda params, *rest: hessian_vector_product(loss, **kw)(
            params, random_like(params, 5), *rest
        )
    ),
    "gauss_newton_vector_product": lambda loss, **kw: (
        lambda params, *rest: gauss_newton_vector_product(
            loss, lambda output, _: output.square(), **kw
        )(params, random_like(params, 5), *rest)
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.slow]
            if name in ("noise_scale", "gauss_newton_vector_product", "hessian_vector_product")
            else [],
        )
        for name in FUNCTIONS
    ],
)
def test_they_are_pure_and_compile_to_one_graph(name: str, make_batch) -> None:
    loss, variables = loss_of("lenet")
    function = FUNCTIONS[name](loss, chunk_size=3)
    made = []

    def counting(graph, inputs):
        made.append(graph)
        return graph

    compiled = torch.compile(function, backend=counting, fullgraph=True)
    for seed in range(2):
        arguments = (random_like(variables.params, seed), make_batch(5, seed=seed), {})
        kept = tree.map(torch.clone, arguments)
        expected = function(*arguments)
        assert tree.equal(function(*arguments), expected)
        assert tree.equal(arguments, kept)
        torch.testing.assert_close(compiled(*arguments), expected, rtol=1e-10, atol=1e-12)
    assert len(made) == 1
