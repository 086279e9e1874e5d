"""What every step promises, over every registered model, optimizer and recipe.

A model joins by being in models.MODELS, an optimizer by being in optim.OPTIMIZERS, a recipe by
being in recipes.RECIPES.
"""

import json
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fcifar import (
    grads,
    losses,
    metrics,
    models,
    optim,
    privacy,
    random,
    recipes,
    tensor_files,
    tree,
)
from fcifar.augment import tta
from fcifar.models import Variables
from fcifar.precision import BF16, FP64
from fcifar.step import (
    Batch,
    TrainState,
    TrainStep,
    init_train_state,
    make_eval_step,
    make_train_step,
    normalize,
)
from fcifar.step_transforms import accumulate, compile_step, init_loop_state, on_indices
from fcifar.train.evaluate import BATCH_SIZE, batch_size_of, evaluate, padded_rows
from tests.helpers.small import DEEPER, chosen_models, compiled_models, make_model, make_recipe


class Case(NamedTuple):
    """A step with a state to start from."""

    make_state: Callable[..., TrainState]  # (seed=0, policy=FP32)
    make_step: Callable[..., TrainStep]  # (**options)
    model: models.Model


def of_parts(model_name: str, optimizer_name: str) -> Case:
    model = make_model(model_name)
    rate = 1e-3 if "adam" in optimizer_name else 0.2 if optimizer_name == "schedule_free" else 1e-2
    optimizer = optim.OPTIMIZERS[optimizer_name](rate)
    return Case(
        lambda seed=0, **kw: init_train_state(model, optimizer, key=random.key(seed), **kw),
        lambda **kw: make_train_step(model, optimizer, **kw),
        model,
    )


def of_recipe(name: str) -> Case:
    recipe = make_recipe(name)
    model = recipes.make_model(recipe, 10)
    optimizer = recipes.make_optimizer(recipe, total_steps=100)
    _, first = recipes.make_stages(recipe, total_steps=100)[0]
    options: dict[str, Any] = {
        "loss": recipes.make_loss(recipe),
        "augment": recipes.make_augment(recipe),
        "mix": recipes.make_mix(recipe, 10),
        "preprocess": recipes.make_preprocess(recipe, first.size),
        "reduction": recipes.make_reduction(recipe),
        "gradient": recipes.make_gradient(recipe),
        "average": recipes.make_average(recipe, total_steps=100),
    }
    average = {"average": options["average"]}
    return Case(
        lambda seed=0, **kw: init_train_state(
            model, optimizer, key=random.key(seed), **{**average, **kw}
        ),
        lambda **kw: make_train_step(model, optimizer, **{**options, **kw}),
        model,
    )


def in_private(model_name: str) -> Case:
    model, optimizer = make_model(model_name), optim.sgd(1e-2, momentum=0.9)
    gradient = privacy.dp_gradient(1.0, 0.01)
    return Case(
        lambda seed=0, **kw: init_train_state(model, optimizer, key=random.key(seed), **kw),
        lambda **kw: make_train_step(model, optimizer, gradient=gradient, **kw),
        model,
    )


GRADIENTS = {
    "accumulated": grads.accumulated(3),
    "sam": grads.sam(0.05),
    "sam-accumulated": grads.sam(0.05, gradient=grads.accumulated(3)),
}


def by_gradient(model_name: str, gradient_name: str) -> Case:
    model, optimizer = make_model(model_name), optim.sgd(1e-2, momentum=0.9)
    gradient = GRADIENTS[gradient_name]
    return Case(
        lambda seed=0, **kw: init_train_state(model, optimizer, key=random.key(seed), **kw),
        lambda **kw: make_train_step(model, optimizer, gradient=gradient, **kw),
        model,
    )


def mixed(mix_name: str) -> Case:
    model, optimizer = make_model("lenet"), optim.sgd(1e-2, momentum=0.9)
    mix = recipes.MIXES[mix_name](0.5)
    return Case(
        lambda seed=0, **kw: init_train_state(model, optimizer, key=random.key(seed), **kw),
        lambda **kw: make_train_step(model, optimizer, mix=mix, **kw),
        model,
    )


def distinct_recipes() -> list[str]:
    """Without those that differ from one before in nothing that a step of a few images sees."""
    unseen = {*("name", "summary", "source", "notes", "expected", "log_every", "valid_fraction")}
    unseen |= {*("epochs", "whiten_epochs", "batch_size", "stratify", "patience", "restore_best")}
    first: dict[str, str] = {}
    for name in recipes.RECIPES:
        values = recipes.to_dict(make_recipe(name))
        seen = {key: value for key, value in values.items() if key not in unseen}
        first.setdefault(json.dumps(seen), name)
    return list(first.values())


# Every optimizer with the small networks, and the large ones with a few; the rest by its recipes.
LARGE: dict[str, tuple[str, ...]] = {
    "speednet": ("nesterov", "muon"),
    "resnet18": ("nesterov",),
    **dict.fromkeys(("resnet20", *DEEPER, "preact_resnet18", "wrn", "vit_tiny", "mlp_mixer"), ()),
}
CASES = {
    **{
        f"{model}-{optimizer}": (of_parts, model, optimizer)
        for model in models.MODELS
        for optimizer in optim.OPTIMIZERS
        if optimizer in LARGE.get(model, optim.OPTIMIZERS)
    },
    **{f"recipe-{recipe}": (of_recipe, recipe) for recipe in distinct_recipes()},
    **{f"private-{model}": (in_private, model) for model in ("lenet", "conv3")},
    **{f"{gradient}-lenet": (by_gradient, "lenet", gradient) for gradient in GRADIENTS},
    **{f"{gradient}-resnet18": (by_gradient, "resnet18", gradient) for gradient in GRADIENTS},
    **{f"mixed-{mix}": (mixed, mix) for mix in recipes.MIXES},
}


# Their parts are in recipe-resnet20 and recipe-wrn-16-8.
SLOW = ("recipe-resnet110", "recipe-preact-resnet18")
# What takes seconds to compile or to train, and is in its parts another case.
DEAR = {
    *("recipe-speed90", "recipe-speed93", "recipe-speed95", "resnet18-nesterov", "private-conv3"),
    *("conv3-adamw", "conv3-nesterov", "conv3-momentum", "recipe-resnet20"),
    *("conv3-adam", "conv3-muon", "conv3-schedule_free", "conv3-schedule_free_adamw"),
    *("speednet-muon", "accumulated-lenet", "sam-lenet"),
    *("recipe-wrn-16-8", "recipe-mlp-mixer", "recipe-speed96", *SLOW),
    *(f"{gradient}-resnet18" for gradient in GRADIENTS),
    *("mixed-cutmix", "recipe-speed94-gpu"),
}
without_dear = pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=[pytest.mark.slow] if name in DEAR else []) for name in CASES],
    indirect=True,
)


@pytest.fixture(
    params=[pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES]
)
def case(request: pytest.FixtureRequest) -> Case:
    make, *arguments = CASES[request.param]
    return make(*arguments)


@pytest.fixture(params=chosen_models())
def model(request: pytest.FixtureRequest) -> models.Model:
    return make_model(request.param)


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


def distance(a: Any, b: Any) -> float:
    """Of two trees, in parts of the second's norm."""
    return float(tree.norm(tree.map(torch.sub, a, b)) / tree.norm(b))


# 1. Pure ----------------------------------------------------------------------------------------


def test_pure(case: Case, make_batch) -> None:
    state, batch, step = case.make_state(), make_batch(), case.make_step()
    kept = clone((state, batch))
    once, twice = step(state, batch), step(state, batch)
    assert tree.equal(once, twice)
    assert tree.equal((state, batch), kept)
    assert not tree.equal(once[0].variables, state.variables), "the step moved"


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
    tensor_files.save(tmp_path / "half.safetensors", half, {})
    loaded, _ = tensor_files.load(tmp_path / "half.safetensors", like=case.make_state(seed=1))
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
    same = [name for name in a if torch.equal(a[name], b[name])]
    assert len(same) < len(a)
    for name in same:  # batch norms, and convolutions that begin as the identity
        assert set(a[name].unique().tolist()) <= {0.0, 1.0}, name


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


@without_dear
def test_compiles_to_one_graph_and_never_again(case: Case, make_batch) -> None:
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    step = case.make_step()
    compiled = torch.compile(step, backend=counting, fullgraph=True)
    state = other = case.make_state()
    for i in range(3):
        batch = make_batch(seed=i)
        state, m = compiled(state, batch)
        other, n = step(other, batch)
        assert tree.equal((state, m), (other, n))
    assert len(graphs) == 1


def test_vmap_over_seeds(case: Case, make_batch) -> None:
    """In float64, for batch norm makes much of a last digit; Muon multiplies in fewer bits."""
    states = [case.make_state(seed=i, policy=FP64) for i in range(3)]
    stacked = tree.map(lambda *xs: torch.stack(xs), *states)
    step, batch = case.make_step(policy=FP64), make_batch()
    together, m = torch.vmap(step, in_dims=(0, None))(stacked, batch)
    for i, state in enumerate(states):
        alone, n = step(state, batch)
        picked = tree.map(lambda x, i=i: x[i], (together, m))
        is_close(picked, (alone, n), rtol=1e-5, atol=1e-8)


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


def make_loop_step(name: str, data: Batch) -> tuple[Any, Any]:
    """A step on rows of ``data``, and the state that it begins with."""
    model, optimizer = make_model(name), optim.sgd(0.01, momentum=0.9)
    step = accumulate(on_indices(make_train_step(model, optimizer), data))
    return step, init_loop_state(init_train_state(model, optimizer, key=random.key(0)))


@pytest.mark.parametrize("name", compiled_models("speednet", "conv3"))
def test_compiled_it_is_as_pure(name: str, make_batch) -> None:
    """The same bits twice, near those of the step."""
    step, start = make_loop_step(name, make_batch(16))
    pure = compile_step(step, donate=False)
    kept, rows = clone(start), torch.arange(8)
    once, twice = pure(start, rows), pure(start, rows)
    assert tree.equal(once, twice)
    assert tree.equal(start, kept)
    (after, _), (expected, _) = once, step(start, rows)
    # Batch norm makes much of a last digit: such gradients are compared as a whole.
    assert distance(after.state.opt_state, expected.state.opt_state) < 2e-3
    opt_state = expected.state.opt_state if start.state.variables.buffers else after.state.opt_state
    after = after._replace(state=after.state._replace(opt_state=opt_state))
    is_close(after, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # a step is compiled twice; tests/runs/test_programs.py compiles one that donates
@pytest.mark.parametrize("name", compiled_models("speednet", "conv3"))
def test_donation_changes_no_bit(name: str, make_batch) -> None:
    """The same bits, in the same memory."""
    step, start = make_loop_step(name, make_batch(16))
    pure, donating = compile_step(step, donate=False), compile_step(step)
    a, b = start, clone(start)
    places = [leaf.data_ptr() for leaf in tree.leaves(b)]
    for i in range(3):
        rows = (torch.arange(8) + 8 * i) % 16
        a, _ = pure(a, rows)
        b, _ = donating(b, rows)
    assert tree.equal(a, b)
    assert [leaf.data_ptr() for leaf in tree.leaves(b)] == places
    assert a.totals.count == 24


# 5. Same as PyTorch: tests/test_optim.py, test_resnet.py and test_speednet.py ------------------


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


def test_buffers_come_out_of_training_and_are_left_alone_by_evaluation(
    model: models.Model, make_batch
) -> None:
    """Those of the model, of the same names, shapes and dtypes; no gradient goes through them."""
    variables = model.init(random.key(0))
    images = normalize()(make_batch().images)
    kept = clone(variables)
    _, seen = model.apply(variables, images, key=random.key(1), train=True)
    _, same = model.apply(variables, images)
    assert tree.equal(variables, kept)
    assert tree.equal(same, variables.buffers)
    assert tree.structure(seen) == tree.structure(variables.buffers)
    for name, buffer in seen.items():
        old = variables.buffers[name]
        assert (buffer.shape, buffer.dtype) == (old.shape, old.dtype), name
        assert torch.equal(buffer, old) == ("running" not in name), name

    def statistics(params: models.Params) -> Tensor:
        within = variables._replace(params=params)
        _, buffers = model.apply(within, images, key=random.key(1), train=True)
        return torch.stack([torch.zeros(()), *(b.sum() for b in buffers.values())]).sum()

    grads = torch.func.grad(statistics)(variables.params)
    assert all(not g.any() for g in grads.values())


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
    for rows, count in padded_rows(23, batch_size, torch.device("cpu")):
        assert len(rows) == batch_size
        seen += rows[:count].tolist()
        examples = on_indices(step, data)(variables, rows)
        weight = (torch.arange(batch_size) < count).to(torch.float32)
        summed = tree.add(summed, metrics.measure(examples.loss, examples.correct, weight))
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


@without_dear
def test_learns_a_tiny_batch(case: Case, make_batch) -> None:
    """Sooner or later, by the median of 20 losses: with momentum, single ones may be high."""
    step, batch, state = case.make_step(), make_batch(16), case.make_state()
    history: list[float] = []
    for _ in range(41 if state.variables.buffers else 151):
        state, found = step(state, batch)
        history.append(float(found.loss))
        if len(history) > 20 and statistics.median(history[-20:]) < 0.95 * history[0]:
            return
    pytest.fail(f"from {history[0]} to {statistics.median(history[-20:])}")


def test_bf16_is_near_fp32(model: models.Model, make_batch) -> None:
    optimizer = optim.sgd(0.01, momentum=0.9)
    state, batch = init_train_state(model, optimizer, key=random.key(0)), make_batch(64)
    exact, m = make_train_step(model, optimizer)(state, batch)
    rough, n = make_train_step(model, optimizer, policy=BF16)(state, batch)
    floating = [x for x in tree.leaves((rough, n)) if x.is_floating_point()]
    assert all(x.dtype == torch.float32 for x in floating)
    torch.testing.assert_close(n.loss, m.loss, rtol=1e-2, atol=0)
    # bfloat16 keeps 8 bits; a gradient is a sum of many products, whose errors partly cancel. Batch
    # norm takes out of it what all images have in common, and leaves the errors.
    moved = tree.map(torch.sub, exact.variables.params, state.variables.params)
    wrong = tree.map(torch.sub, exact.variables.params, rough.variables.params)
    assert tree.norm(wrong) < (0.35 if state.variables.buffers else 0.05) * tree.norm(moved)


def test_parameter_counts() -> None:
    counts = {
        name: sum(p.numel() for p in make().init(random.key(0, device="meta")).params.values())
        for name, make in models.MODELS.items()
    }
    assert counts == {
        "lenet": 62_006,
        "conv3": 541_094,
        "speednet": 1_971_352,
        "resnet18": 11_173_962,
        "resnet20": 269_722,
        "resnet32": 464_154,
        "resnet44": 658_586,
        "resnet56": 853_018,
        "resnet110": 1_727_962,
        "preact_resnet18": 11_171_146,
        "wrn": 36_479_194,
        "vit_tiny": 5_362_762,
        "mlp_mixer": 1_132_170,
    }


def test_parameters_start_as_pytorchs(model: models.Model) -> None:
    """Uniform with the bound of nn.Linear and nn.Conv2d: 1/sqrt(fan_in), weights and biases.

    But for what a network says: see test_resnet.py and test_speednet.py.
    """
    variables = model.init(random.key(0))
    for name, p in variables.params.items():
        layer, _, kind = name.rpartition(".")
        weight = variables.params.get(f"{layer}.weight", variables.buffers.get(f"{layer}.weight"))
        if f"{layer}.running_mean" in variables.buffers:
            assert torch.equal(p, torch.full_like(p, 1.0 if kind == "weight" else 0.0)), name
        elif model_is_pytorchs(variables, name):
            assert weight is not None
            bound = weight[0].numel() ** -0.5
            assert p.abs().max() <= bound
            if p.numel() > 1000:
                assert abs(p.double().std() - bound / 3**0.5) < 0.05 * bound
                assert abs(p.double().mean()) < 0.1 * bound


def model_is_pytorchs(variables: Variables, name: str) -> bool:
    """Whether a parameter of no batch norm starts as PyTorch has it: not kernels before one.

    Models with layer norms have their own initialisation: see test_vit.py.
    """
    return "norm.weight" not in variables.params and not (
        variables.buffers and variables.params[name].ndim == 4
    )


def test_losses_take_examples_and_batches() -> None:
    logits, labels = torch.randn(5, 10), torch.arange(5)
    whole = losses.cross_entropy(logits, labels)
    single = torch.vmap(losses.cross_entropy)(logits, labels)
    torch.testing.assert_close(whole, single)


def test_on_the_cpu_as_many_views_are_evaluated_at_a_time_as_images_otherwise() -> None:
    sizes = {name: batch_size_of(views, "cpu") for name, views in tta.VIEWS.items()}
    assert sizes == {"none": 500, "mirror": 250, "translate": 84}
    assert {batch_size_of(views, "cuda:1") for views in tta.VIEWS.values()} == {BATCH_SIZE}


@pytest.mark.cuda
def test_the_same_start_and_nearly_the_same_step_on_cuda(case: Case, make_batch) -> None:
    state, batch, step = case.make_state(), make_batch(), case.make_step()
    on_gpu = tree.on_device((state, batch), "cuda")
    (after, m), (after_gpu, m_gpu) = step(state, batch), step(*on_gpu)
    assert all(x.is_cuda for x in tree.leaves(after_gpu))
    is_close(tree.on_device((after_gpu, m_gpu), "cpu"), (after, m), rtol=2e-2, atol=2e-3)


# Keys ---------------------------------------------------------------------------------------------

# Optimizers draw nothing, so that one for each model is enough.
DRAWING = [
    *(name for name in CASES if name.startswith(("recipe-", "private-", "mixed-"))),
    *(f"{gradient}-{model}" for gradient in GRADIENTS for model in ("lenet", "resnet18")),
    *(f"{model}-nesterov" for model in ("speednet", "resnet18")),
]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in DRAWING]
)
def test_no_key_is_used_twice(name: str, make_batch) -> None:
    make, *arguments = CASES[name]
    case, batches = make(*arguments), [make_batch(seed=i) for i in range(2)]
    with random.no_reuse():
        run(case.make_step(), case.make_state(), batches)
