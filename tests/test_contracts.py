"""What every step promises, over every registered model, optimizer and recipe.

A model joins by being in models.MODELS, an optimizer by being in optim.OPTIMIZERS, a recipe by
being in recipes.RECIPES.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fcifar import losses, metrics, models, optim, random, recipes, tree
from fcifar.compiling import compile_step
from fcifar.precision import BF16, FP64
from fcifar.running import accumulate, on_indices, start_running
from fcifar.runs import checkpoint
from fcifar.runs.evaluate import evaluate, padded_rows
from fcifar.step import (
    Batch,
    TrainState,
    TrainStep,
    init_train_state,
    make_eval_step,
    make_train_step,
    normalize,
)


class Case(NamedTuple):
    """A step with a state to start from."""

    make_state: Callable[..., TrainState]  # (seed=0, policy=FP32)
    make_step: Callable[..., TrainStep]  # (**options)
    model: models.Model


def of_parts(model_name: str, optimizer_name: str) -> Case:
    model = models.MODELS[model_name]()
    optimizer = optim.OPTIMIZERS[optimizer_name](1e-2 if "adam" not in optimizer_name else 1e-3)
    return Case(
        lambda seed=0, **kw: init_train_state(model, optimizer, key=random.key(seed), **kw),
        lambda **kw: make_train_step(model, optimizer, **kw),
        model,
    )


def of_recipe(name: str) -> Case:
    recipe = recipes.get(name)
    model = recipes.make_model(recipe, 10)
    optimizer = recipes.make_optimizer(recipe, total_steps=100)
    preprocess, augment = recipes.make_preprocess(recipe), recipes.make_augment(recipe)
    return Case(
        lambda seed=0, **kw: init_train_state(model, optimizer, key=random.key(seed), **kw),
        lambda **kw: make_train_step(
            model, optimizer, **{"augment": augment, "preprocess": preprocess, **kw}
        ),
        model,
    )


CASES = {
    **{
        f"{model}-{optimizer}": (of_parts, model, optimizer)
        for model in models.MODELS
        for optimizer in optim.OPTIMIZERS
    },
    **{f"recipe-{recipe}": (of_recipe, recipe) for recipe in recipes.RECIPES},
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    make, *arguments = CASES[request.param]
    return make(*arguments)


@pytest.fixture(params=models.MODELS)
def model(request: pytest.FixtureRequest) -> models.Model:
    return models.MODELS[request.param]()


def clone(values: Any) -> Any:
    return tree.map(torch.clone, values)


def run(step: TrainStep, state: TrainState, batches: list[Batch]) -> tuple[TrainState, list]:
    history = []
    for batch in batches:
        state, m = step(state, batch)
        history.append(m)
    return state, history


def is_close(a: Any, b: Any, **tolerance: float) -> None:
    assert tree.structure(a) == tree.structure(b)
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, **tolerance)


# 1. Pure ----------------------------------------------------------------------------------------


def test_pure(case: Case, make_batch) -> None:
    state, batch, step = case.make_state(), make_batch(), case.make_step()
    kept = clone((state, batch))
    once, twice = step(state, batch), step(state, batch)
    assert tree.equal(once, twice)
    assert tree.equal((state, batch), kept)
    assert not tree.equal(once[0].variables, state.variables), "the step moved"


def test_pure_when_compiled_without_donation(model: models.Model, make_batch) -> None:
    optimizer = optim.sgd(0.01, momentum=0.9)
    state, batch = init_train_state(model, optimizer, key=random.key(0)), make_batch()
    step = make_train_step(model, optimizer)
    kept = clone(state)
    compiled = compile_step(step, donate=False)
    once, twice = compiled(state, batch), compiled(state, batch)
    assert tree.equal(once, twice)
    assert tree.equal(state, kept)
    is_close(once, step(state, batch), rtol=1e-4, atol=1e-5)


def test_state_has_no_none_and_keeps_its_shape(case: Case, make_batch) -> None:
    state = case.make_state()
    after, _ = case.make_step()(state, make_batch())
    assert tree.structure(after) == tree.structure(state)
    for name, leaf in tree.named_leaves(state).items():
        assert isinstance(leaf, Tensor), name
        new = tree.named_leaves(after)[name]
        assert (new.shape, new.dtype) == (leaf.shape, leaf.dtype), name


# 2. Total state ---------------------------------------------------------------------------------


def test_total_state(case: Case, make_batch, tmp_path) -> None:
    batches = [make_batch(seed=i) for i in range(6)]
    step = case.make_step()
    whole, _ = run(step, case.make_state(), batches)
    half, _ = run(step, case.make_state(), batches[:3])
    checkpoint.save(tmp_path / "half.safetensors", half, {})
    loaded, _ = checkpoint.load(tmp_path / "half.safetensors", like=case.make_state(seed=1))
    assert tree.equal(loaded, half)
    resumed, _ = run(step, loaded, batches[3:])
    assert tree.equal(resumed, whole)


# 3. Keyed ---------------------------------------------------------------------------------------


def test_keyed(case: Case, make_batch) -> None:
    """Each step draws from fold_in(key, step): the same key the same draws, another step others."""
    seen: list[Tensor] = []

    def watching(key: Tensor, images: Tensor) -> Tensor:
        seen.append(key)
        return images

    step, batch = case.make_step(augment=watching), make_batch()
    start = case.make_state()
    state, _ = step(start, batch)
    step(state, batch)
    step(start._replace(step=torch.tensor(1)), batch)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2]), "history does not enter"
    assert tree.equal(case.make_state(seed=3), case.make_state(seed=3))
    a, b = case.make_state(seed=3).variables.params, case.make_state(seed=4).variables.params
    assert all(not torch.equal(a[name], b[name]) for name in a)


def test_augmentation_reaches_the_images(make_batch) -> None:
    def blacken(key: Tensor, images: Tensor) -> Tensor:
        keep = random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
        return images * keep.to(images.dtype)

    optimizer = optim.sgd(0.1)
    model = models.lenet()
    state, batch = init_train_state(model, optimizer, key=random.key(0)), make_batch()
    plain = make_train_step(model, optimizer)(state, batch)
    augmented = make_train_step(model, optimizer, augment=blacken)
    assert tree.equal(augmented(state, batch), augmented(state, batch))
    assert not tree.equal(augmented(state, batch)[0], plain[0])


# 4. Composable ----------------------------------------------------------------------------------


def test_compiles_to_one_graph_and_never_again(case: Case, make_batch) -> None:
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    step = case.make_step()
    compiled = torch.compile(step, backend=counting, fullgraph=True)
    state = other = case.make_state()
    for i in range(4):
        batch = make_batch(seed=i)
        state, m = compiled(state, batch)
        other, n = step(other, batch)
        assert tree.equal((state, m), (other, n))
    assert len(graphs) == 1


def test_vmap_over_seeds(case: Case, make_batch) -> None:
    states = [case.make_state(seed=i) for i in range(3)]
    stacked = tree.map(lambda *xs: torch.stack(xs), *states)
    step, batch = case.make_step(), make_batch()
    together, m = torch.vmap(step, in_dims=(0, None))(stacked, batch)
    for i, state in enumerate(states):
        alone, n = step(state, batch)
        picked = tree.map(lambda x, i=i: x[i], (together, m))
        is_close(picked, (alone, n), rtol=1e-4, atol=1e-5)


def test_jvp_and_grad_go_around_a_step(model: models.Model, make_batch) -> None:
    """The derivative of the next loss with respect to the learning rate, by three ways."""
    batch = make_batch()
    start = init_train_state(model, optim.sgd(0.0), key=random.key(0), policy=FP64)

    def loss_after(rate: Tensor) -> Tensor:
        step = make_train_step(model, optim.sgd(rate), policy=FP64)
        state, _ = step(start, batch)
        return step(state, batch)[1].loss

    rate, h = torch.tensor(1e-3, dtype=torch.float64), 1e-6
    backward = torch.func.grad(loss_after)(rate)
    _, forward = torch.func.jvp(loss_after, (rate,), (torch.ones_like(rate),))
    difference = (loss_after(rate + h) - loss_after(rate - h)) / (2 * h)
    torch.testing.assert_close(backward, forward, rtol=1e-9, atol=0)
    torch.testing.assert_close(backward, difference, rtol=1e-4, atol=0)


def test_donation_gives_the_same_bits_in_the_same_memory(model: models.Model, make_batch) -> None:
    optimizer = optim.sgd(0.01, momentum=0.9)
    data = make_batch(32)
    step = accumulate(on_indices(make_train_step(model, optimizer), data))
    start = start_running(init_train_state(model, optimizer, key=random.key(0)))
    pure, donating = compile_step(step, donate=False), compile_step(step)

    a, b = clone(start), clone(start)
    places = [leaf.data_ptr() for leaf in tree.leaves(b)]
    for i in range(4):
        rows = torch.arange(8) + 8 * i
        a, _ = pure(a, rows)
        b, _ = donating(b, rows)
    assert tree.equal(a, b)
    assert [leaf.data_ptr() for leaf in tree.leaves(b)] == places
    assert a.totals.count == 32


# 5. Same as PyTorch: tests/test_optim.py ---------------------------------------------------------


def test_eval_step_equals_the_batched_forward(model: models.Model, make_batch) -> None:
    variables = init_train_state(model, optim.sgd(0.0), key=random.key(0), policy=FP64).variables
    batch = make_batch(16)
    examples = make_eval_step(model, policy=FP64)(variables, batch)
    logits, _ = model.apply(variables, normalize()(batch.images).double())
    torch.testing.assert_close(examples.logits, logits, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        examples.loss,
        F.cross_entropy(logits, batch.labels, reduction="none"),
        rtol=1e-10,
        atol=1e-12,
    )
    assert torch.equal(examples.correct, logits.argmax(-1) == batch.labels)


def test_normalize_equals_torchvision(make_batch) -> None:
    from torchvision.transforms import v2

    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
    images = make_batch().images
    twin = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    torch.testing.assert_close(normalize(mean, std)(images), twin(images))
    unit = images.float() / 255
    assert torch.equal(normalize(mean, std)(unit), normalize(mean, std)(images))


# 6. Sums, not means of means ---------------------------------------------------------------------


def test_metrics_add_up_over_batches_of_any_size(model: models.Model, make_batch) -> None:
    def still(variables, images, *, key=None, train=False):  # dropout would draw by the batch
        return model.apply(variables, images)

    optimizer = optim.sgd(0.01)
    state = init_train_state(model, optimizer, key=random.key(0))
    step = make_train_step(model._replace(apply=still), optimizer)
    batch = make_batch(12)
    _, whole = step(state, batch)
    parts = [Batch(batch.images[a:b], batch.labels[a:b]) for a, b in ((0, 5), (5, 6), (6, 12))]
    summed = metrics.zeros()
    for part in parts:
        summed = tree.add(summed, step(state, part)[1])
    torch.testing.assert_close(summed.loss, whole.loss)
    assert (summed.correct, summed.count) == (whole.correct, whole.count)
    assert whole.count == 12


@pytest.mark.parametrize("batch_size", [1, 7, 10, 23, 64])
def test_every_example_counts_exactly_once(batch_size: int, make_batch) -> None:
    model = models.lenet()
    variables, data = model.init(random.key(0)), make_batch(23)
    step = make_eval_step(model)
    whole = step(variables, data)
    found = evaluate(step, variables, data, batch_size=batch_size)
    is_close(found, whole, rtol=1e-5, atol=1e-6)

    summed, seen = metrics.zeros(), []
    for rows in padded_rows(23, batch_size, torch.device("cpu")):
        assert len(rows.index) == batch_size
        seen += rows.index[rows.weight > 0].tolist()
        examples = on_indices(step, data)(variables, rows.index)
        summed = tree.add(summed, metrics.measure(examples.loss, examples.correct, rows.weight))
    assert seen == list(range(23))
    assert summed.count == 23
    assert summed.correct == whole.correct.sum()
    torch.testing.assert_close(summed.loss, whole.loss.sum())


def test_padding_may_hold_anything() -> None:
    m = metrics.measure(
        torch.tensor([1.0, float("nan"), 2.0]),
        torch.tensor([True, True, False]),
        torch.tensor([1.0, 0.0, 1.0]),
    )
    assert metrics.summarize(m) == {"loss": 1.5, "accuracy": 0.5, "count": 2}


# 7. Learns --------------------------------------------------------------------------------------


def test_learns_a_tiny_batch(case: Case, make_batch) -> None:
    step, batch, state = case.make_step(), make_batch(16), case.make_state()
    _, first = step(state, batch)
    for _ in range(150):
        state, last = step(state, batch)
    assert last.loss < 0.95 * first.loss


def test_bf16_is_near_fp32(model: models.Model, make_batch) -> None:
    optimizer = optim.sgd(0.01, momentum=0.9)
    state, batch = init_train_state(model, optimizer, key=random.key(0)), make_batch(64)
    exact, m = make_train_step(model, optimizer)(state, batch)
    rough, n = make_train_step(model, optimizer, policy=BF16)(state, batch)
    assert all(p.dtype == torch.float32 for p in rough.variables.params.values())
    torch.testing.assert_close(n.loss, m.loss, rtol=1e-2, atol=0)
    # bfloat16 keeps 8 bits; a gradient is a sum of many products, whose errors partly cancel.
    moved = tree.map(torch.sub, exact.variables.params, state.variables.params)
    wrong = tree.map(torch.sub, exact.variables.params, rough.variables.params)
    assert tree.norm(wrong) < 0.05 * tree.norm(moved)


def test_parameter_counts() -> None:
    counts = {
        name: sum(p.numel() for p in make().init(random.key(0)).params.values())
        for name, make in models.MODELS.items()
    }
    assert counts == {"lenet": 62_006, "conv3": 541_094}


def test_initialisation_is_pytorchs(model: models.Model) -> None:
    """Uniform with the bound of nn.Linear and nn.Conv2d: 1/sqrt(fan_in), weights and biases."""
    params = model.init(random.key(0)).params
    for name, p in params.items():
        layer = params[name.rpartition(".")[0] + ".weight"]
        bound = layer[0].numel() ** -0.5
        assert p.abs().max() <= bound
        if p.numel() > 1000:
            assert abs(p.double().std() - bound / 3**0.5) < 0.05 * bound
            assert abs(p.double().mean()) < 0.1 * bound


def test_losses_take_examples_and_batches() -> None:
    logits, labels = torch.randn(5, 10), torch.arange(5)
    whole = losses.cross_entropy(logits, labels)
    single = torch.vmap(losses.cross_entropy)(logits, labels)
    torch.testing.assert_close(whole, single)


@pytest.mark.cuda
def test_the_same_start_and_nearly_the_same_step_on_cuda(case: Case, make_batch) -> None:
    state, batch, step = case.make_state(), make_batch(), case.make_step()
    on_gpu = checkpoint.on_device((state, batch), "cuda")
    (after, m), (after_gpu, m_gpu) = step(state, batch), step(*on_gpu)
    assert all(x.is_cuda for x in tree.leaves(after_gpu))
    is_close(checkpoint.on_device((after_gpu, m_gpu), "cpu"), (after, m), rtol=2e-2, atol=2e-3)
