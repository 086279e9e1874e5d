"""Steps, and all that they are made of, run on the device of their arguments.

They make no tensor on another device, copy nothing to or from the host, do not wait for the device,
and have no shape that depends on values. A model, optimizer, augmentation or recipe joins by being
registered.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fcifar import (
    averaging,
    grads,
    losses,
    metrics,
    models,
    optim,
    precision,
    privacy,
    random,
    recipes,
    schedules,
    step_transforms,
    tree,
)
from fcifar.analysis import influence
from fcifar.analysis.example_scores import make_score_step
from fcifar.analysis.influence import Checkpoint
from fcifar.augment import functional, tta
from fcifar.models import Model, Variables
from fcifar.parallel import ALONE, Axis, sum_flat
from fcifar.precision import FP32, Policy
from fcifar.random.threefry import threefry2x32
from fcifar.recipes import Recipe
from fcifar.recipes.build import Hyperparams
from fcifar.step import (
    Batch,
    Shard,
    TrainState,
    TrainStep,
    init_train_state,
    make_eval_step,
    make_train_step,
    normalize,
)
from fcifar.step_transforms import StepInput
from fcifar.train import checkpoint, fingerprint
from fcifar.train.config import RunConfig
from fcifar.train.metrics_log import MetricsLog
from tests.helpers.devices import DeviceError, on_meta
from tests.helpers.small import SAME, chosen_models, make_model, make_recipe

KEY = random.key(0)
BATCH = Batch(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4))
ROWS = torch.arange(4)
TOTAL = 100  # steps
DTYPES = (torch.uint8, torch.float32, torch.bfloat16)


# Training ----------------------------------------------------------------------------------------


def state_of(recipe: Recipe, policy: Policy = FP32, key: Tensor = KEY) -> TrainState:
    return init_train_state(
        recipes.make_model(recipe, 10),
        recipes.make_optimizer(recipe, TOTAL),
        key=key,
        policy=policy,
        average=recipes.make_average(recipe, TOTAL),
    )


def step_of(
    recipe: Recipe,
    model: Model,
    policy: Policy = FP32,
    *,
    size: int = 0,
    hparams: Mapping[str, Tensor] | None = None,
    class_weights: Tensor | None = None,
    axis: Axis = ALONE,
) -> TrainStep:
    numbers = recipes.make_hyperparams(recipe, hparams)
    return make_train_step(
        model,
        recipes.make_optimizer(recipe, TOTAL, numbers),
        loss=recipes.make_loss(recipe, numbers, class_weights),
        augment=recipes.make_augment(recipe),
        mix=recipes.make_mix(recipe, 10),
        preprocess=recipes.make_preprocess(recipe, size),
        policy=policy,
        reduction=recipes.make_reduction(recipe),
        gradient=recipes.make_gradient(recipe, axis),
        average=recipes.make_average(recipe, TOTAL),
        axis=axis,
    )


PRECISIONS = [
    (name, chosen)
    for name, recipe in recipes.RECIPES.items()
    if name not in SAME
    for chosen in sorted({"fp32", recipe.precision})
]


@pytest.mark.parametrize(("name", "chosen"), PRECISIONS)
def test_the_step_of_a_recipe(name: str, chosen: str) -> None:
    recipe, policy = make_recipe(name), precision.POLICIES[chosen]
    model, state = recipes.make_model(recipe, 10), state_of(recipe, policy)
    for size in {stage.size for _, stage in recipes.make_stages(recipe, TOTAL)}:
        on_meta(step_of(recipe, model, policy, size=size), state, BATCH)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
@pytest.mark.parametrize("is_scheduled", [False, True])
def test_an_optimizer(name: str, is_scheduled: bool) -> None:
    schedule = schedules.cosine_decay_schedule(0.1, TOTAL)
    optimizer = optim.OPTIMIZERS[name](schedule if is_scheduled else 0.1)
    optimizer = optim.chain(optim.clip_by_global_norm(1.0), optimizer, optim.freeze_after(3))
    params = make_model("speednet").init(KEY).params
    on_meta(lambda p: optimizer.update(p, optimizer.init(p), p), params)
    on_meta(lambda p: optimizer.value(p, optimizer.init(p)), params)


CHANGES: dict[str, dict[str, Any]] = {
    "class weights": {"class_weights": "balanced", "label_smoothing": 0.1},
    "decay": {"optimizer": "adamw", "momentum": 0.0, "weight_decay": 0.1, "clip_norm": 1.0},
    "warm-up": {"schedule": "cosine", "warmup_steps": 5},
    "moving average": {"ema_decay": 0.9},
    "stochastic weight averaging": {"swa_start": 0.5},
    "lookahead": {"lookahead_every": 2},
    "private": {"dp_clip": 1.0, "dp_noise": 0.5},
    "private in parts": {"dp_clip": 1.0, "micro_batch": 3},
    "micro-batches": {"micro_batch": 3},
    "sam": {"sam_rho": 0.05},
    "sam in micro-batches": {"sam_rho": 0.05, "micro_batch": 3, "loss_reduction": "sum"},
    "schedule-free": {"optimizer": "schedule_free", "momentum": 0.0, "warmup_steps": 5},
    "schedule-free adamw": {"optimizer": "schedule_free_adamw", "momentum": 0.0},
    "mixup": {"augment": ("rand_augment:1,9", "mixup:0.2"), "class_weights": "balanced"},
    "cutmix": {"augment": ("aug_mix", "cutmix:1"), "label_smoothing": 0.1},
    "resized": {
        "model": "resnet18",
        "model_options": {"width": 4},
        "resolutions": ("24:0.5", "32"),
    },
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_step_of_a_changed_recipe(name: str) -> None:
    recipe = recipes.get("blitz").replace(**CHANGES[name])
    model = recipes.make_model(recipe, 10)
    class_weights = recipes.make_class_weights(recipe, BATCH.labels, 10)

    given = () if class_weights is None else (class_weights,)

    def step(state: TrainState, batch: Batch, *weights: Tensor) -> Any:
        make = functools.partial(step_of, class_weights=next(iter(weights), None))
        sizes = {stage.size for _, stage in recipes.make_stages(recipe, TOTAL)}
        return [make(recipe, model, size=size)(state, batch) for size in sizes]

    on_meta(step, state_of(recipe), BATCH, *given)


HPARAMS = {
    name: torch.tensor(0.1)
    for name in ("learning_rate", "momentum", "weight_decay", "label_smoothing")
}


@pytest.mark.parametrize("name", ["blitz", "dropout-adam", "speed94"])
@pytest.mark.parametrize("is_mapped", [False, True])
def test_the_step_of_the_loop(name: str, is_mapped: bool) -> None:
    """With alternating flip and traced hyperparameters: of one run, or of a sweep."""
    recipe = make_recipe(name).replace(weight_decay=0.1)
    model = recipes.make_model(recipe, 10)
    assert set(HPARAMS) == set(Hyperparams._fields)
    flip = step_transforms.alternate(BATCH.labels > 1, ROWS, epoch=1)
    inputs = StepInput(ROWS, flip, HPARAMS)
    loop = step_transforms.init_loop_state(state_of(recipe))
    if is_mapped:
        loop, inputs = (step_transforms.stack([each] * 3) for each in (loop, inputs))

    def step(data: Batch, loop: Any, inputs: StepInput) -> Any:
        one = step_transforms.make_loop_step(
            lambda values: step_of(recipe, model, hparams=values), data
        )
        return (step_transforms.map_replicas(one) if is_mapped else one)(loop, inputs)

    on_meta(step, BATCH, loop, inputs)


def test_the_inputs_of_the_loop() -> None:
    def inputs(key: Tensor, rows: Tensor, mirrored: Tensor) -> StepInput:
        order = random.permutation(random.fold_in(key, 3), rows)
        flip = step_transforms.alternate(mirrored, order, epoch=3)
        return step_transforms.shard(StepInput(order, flip), rank=1, size=2)

    on_meta(inputs, KEY, ROWS, BATCH.labels > 1)


@pytest.mark.parametrize("changes", [{}, {"sam_rho": 0.05, "micro_batch": 3}], ids=["plain", "sam"])
@pytest.mark.parametrize("name", ["conv3-aug", "speed94"])
def test_a_step_over_ranks(name: str, changes: dict[str, Any]) -> None:
    recipe = make_recipe(name).replace(**changes)
    axis = Axis(2, lambda tensors: sum_flat(tensors, sum_vector=torch.clone), 1)
    step = step_of(recipe, recipes.make_model(recipe, 10, axis), axis=axis)
    on_meta(step, state_of(recipe), Shard(*BATCH, torch.tensor(4)))


def test_replicas() -> None:
    recipe = recipes.get("dropout-adam")
    step = step_transforms.map_replicas(step_of(recipe, recipes.make_model(recipe, 10)))
    keys = random.split(KEY, 2)

    def trained(keys: Tensor, batches: Batch) -> Any:
        states = step_transforms.init_replicas(lambda key: state_of(recipe, key=key), keys)
        return step(states, batches)

    on_meta(trained, keys, step_transforms.stack([BATCH] * 2))


def test_a_module_of_others() -> None:
    def make(num_classes: int) -> nn.Module:
        features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout())
        return features.extend([nn.Flatten(), nn.Linear(4 * 30 * 30, num_classes)])

    model, optimizer = models.from_module(make), optim.sgd(0.1, momentum=0.9)
    state = init_train_state(model, optimizer, key=KEY)
    on_meta(make_train_step(model, optimizer), state, BATCH)
    on_meta(make_eval_step(model), state.variables, BATCH)


# Models and evaluation ---------------------------------------------------------------------------


@pytest.fixture(params=chosen_models())
def model(request: pytest.FixtureRequest) -> Model:
    return make_model(request.param)


def test_initialisation(model: Model) -> None:
    optimizer = optim.OPTIMIZERS["muon"](0.1)
    average = averaging.ema(0.9)
    images = normalize()(BATCH.images)

    def init(key: Tensor, images: Tensor) -> TrainState:
        return init_train_state(model, optimizer, key=key, average=average, sample=images)

    on_meta(init, KEY, images)


@pytest.mark.parametrize("chosen", precision.POLICIES)
@pytest.mark.parametrize("views", tta.VIEWS)
def test_evaluation(model: Model, views: str, chosen: str) -> None:
    step = make_eval_step(model, views=tta.VIEWS[views], policy=precision.POLICIES[chosen])
    on_meta(step, model.init(KEY), BATCH)


def test_scores(model: Model) -> None:
    on_meta(make_score_step(model), model.init(KEY), BATCH)


# Parts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", recipes.AUGMENTS)
def test_an_augmentation(name: str, dtype: torch.dtype) -> None:
    make = recipes.AUGMENTS[name]
    augment = make(1) if inspect.signature(make).parameters else make()
    on_meta(augment, KEY, BATCH.images.to(dtype))


IMAGE_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "normalize": normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
    "bilinear rotation": lambda images: functional.rotate(
        images, images[:, 0, 0, 0].float(), interpolation="bilinear", fill=(0.1, 0.2, 0.3)
    ),
    "resize": lambda images: functional.resize(images, 24),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", IMAGE_FUNCTIONS)
def test_a_function_of_images(name: str, dtype: torch.dtype) -> None:
    on_meta(IMAGE_FUNCTIONS[name], BATCH.images.to(dtype))


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "split": lambda key: random.split(key, (2, 3)),
    "fold_in": lambda key: random.fold_in(random.fold_in(key, 7), key[0]),
    "from_row": lambda key: random.bits(random.from_row(key, key[0]), (3, 2)),
    "row_keys": lambda key: random.row_keys(key, 3),
    "bits": lambda key: random.bits(key, (3,)),
    "uniform": lambda key: random.uniform(key, (3,)),
    "uniform in bounds": lambda key: random.uniform(key, (3,), -0.3, 0.7),
    "uniform in tensors": lambda key: random.uniform(key, (3,), random.uniform(key), 3.0),
    "bernoulli": lambda key: random.bernoulli(key, 0.3, (3,)),
    "randint": lambda key: random.randint(key, (3,), -4, 5),
    "randint in tensors": lambda key: random.randint(key, (3,), 0, key[0]),
    "permutation": lambda key: random.permutation(key, 20),
    "permutation of a tensor": lambda key: random.permutation(key, random.split(key, 20)),
    "normal": lambda key: random.normal(key, (3,)),
    "truncated_normal": lambda key: random.truncated_normal(key, -3.0, 9.0, (3,)),
    "gumbel": lambda key: random.gumbel(key, (3,)),
    "categorical": lambda key: random.categorical(key, random.normal(key, (3, 5))),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("is_mapped", [False, True])
def test_a_draw(name: str, is_mapped: bool) -> None:
    draw = torch.vmap(DRAWS[name]) if is_mapped else DRAWS[name]
    on_meta(draw, random.split(KEY, 3) if is_mapped else KEY)


def test_the_cipher() -> None:
    """Keys on the meta device skip it, so it is called by itself."""
    words = torch.zeros(3, dtype=torch.int32)
    on_meta(threefry2x32, words[0], words[1], words, words)


def test_schedules() -> None:
    line = schedules.piecewise_linear_schedule([(0, 0.2), (20, 1.0), (TOTAL, 0.0)])
    cosine = schedules.cosine_decay_schedule(0.1, TOTAL, 0.01)
    for schedule in (schedules.constant_schedule(0.1), line, schedules.warmup(cosine, 0, 0.1, 5)):
        on_meta(schedule, torch.tensor(3))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, "traced"])
def test_losses(smoothing: float | str) -> None:
    def loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        amount = weights[0] if isinstance(smoothing, str) else smoothing
        return losses.smoothed_cross_entropy(amount, weights)(logits, labels)

    on_meta(loss, torch.zeros(4, 10), BATCH.labels, torch.ones(10))


def test_metrics() -> None:
    def measured(values: Tensor, correct: Tensor) -> Any:
        part = metrics.measure(values, correct, weights=values)
        return tree.add(
            tree.add(part, metrics.measure(values, correct)), metrics.zeros(device="meta")
        )

    on_meta(measured, torch.zeros(4), torch.zeros(4, dtype=torch.bool))


@pytest.mark.parametrize(
    "average",
    [
        averaging.none(),
        averaging.ema(0.9, every=2),
        averaging.ema(lambda count: count / (count + 1)),
        averaging.swa(2, every=3),
        averaging.lookahead(0.5),
    ],
)
def test_averages(average: averaging.Average) -> None:
    def averaged(variables: Variables) -> Any:
        variables, state = average.update(variables, average.init(variables))
        return average.value(variables, state), state

    on_meta(averaged, make_model("speednet").init(KEY))


# Gradients ---------------------------------------------------------------------------------------


def example_loss(params: models.Params, example: Batch) -> Tensor:
    images = normalize()(example.images)[None]
    logits, _ = LENET.apply(Variables(params, {}), images)
    return losses.cross_entropy(logits[0], example.labels)


LENET = models.lenet()
LOGITS = influence.example_logits(LENET)
OF_EXAMPLES: dict[str, Callable[[Any, Any], Any]] = {
    "per_example": grads.per_example(example_loss, chunk_size=3),
    "per_example_norms": grads.per_example_norms(example_loss),
    "noise_scale": grads.noise_scale(example_loss, chunk_size=2),
    "hessian_vector_product": lambda params, batch: grads.hessian_vector_product(example_loss)(
        params, params, batch
    ),
    "tracin": lambda params, batch: influence.tracin(LOGITS, chunk_size=3)(
        [Checkpoint(0.1, params, ({},))] * 2, batch, batch
    ),
    "influence functions": lambda params, batch: influence.gauss_newton(
        LOGITS, damping=0.1, iterations=2
    )(params, batch, batch, {}),
}


@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_a_gradient(name: str) -> None:
    on_meta(OF_EXAMPLES[name], LENET.init(KEY).params, BATCH)


def test_a_gradient_through_training() -> None:
    def step(rate: Tensor, state: TrainState, batch: Batch) -> Any:
        return make_train_step(LENET, optim.sgd(rate, momentum=0.9))(state, batch)

    def outcome(state: TrainState) -> Tensor:
        return tree.norm(state.variables)

    state = init_train_state(LENET, optim.sgd(0.1, momentum=0.9), key=KEY)
    on_meta(grads.meta_gradient(step, outcome), torch.tensor(0.1), state, [BATCH, BATCH])


def test_a_private_step() -> None:
    gradient = privacy.dp_gradient(1.0, 0.5, chunk_size=2)
    step = make_train_step(LENET, optim.sgd(0.1), gradient=gradient)
    on_meta(step, init_train_state(LENET, optim.sgd(0.1), key=KEY), BATCH)


# Records -----------------------------------------------------------------------------------------


def test_the_fingerprint_of_a_state() -> None:
    def hashes(key: Tensor, state: TrainState) -> Tensor:
        multipliers = fingerprint.draw_multipliers(key, state)
        leaves = fingerprint.hash_leaves(multipliers, state)
        return fingerprint.combine(multipliers, leaves)

    on_meta(hashes, KEY, state_of(recipes.get("dropout-adam"), precision.BF16))


def test_a_checkpoint_is_restored_to_the_device_of_the_run(tmp_path: Path) -> None:
    recipe = make_recipe("speed95")
    config = RunConfig(recipe=recipe, dataset="none", dataset_digest="0")
    state = step_transforms.init_loop_state(state_of(recipe))
    log = MetricsLog(tmp_path)
    checkpoint.save(tmp_path, config, state, checkpoint.Timings(), log)
    like = tree.on_device(state, "meta")
    restored, _, notes = checkpoint.restore(tmp_path, like, log)
    assert not notes
    assert restored is not like
    assert all(leaf.is_meta for leaf in tree.leaves(restored))
    assert tree.structure(restored) == tree.structure(state)


# What is found -----------------------------------------------------------------------------------

ELSEWHERE = torch.ones(())


def assigned(x: Tensor) -> Tensor:
    x[x > 0] = x[0]
    return x


FAULTS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a value": (lambda x: x * x.sum().item(), "item"),
    "a branch": (lambda x: x if x.sum() > 0 else -x, "item|control flow"),
    "a mask": (lambda x: x[x > 0], "nonzero|dynamic shape"),
    "a mask, assigned": (assigned, "in a mask|dynamic shape"),
    "rows that are not zero": (lambda x: x.nonzero(), "nonzero"),
    "a tensor on the CPU": (lambda x: x + torch.zeros(3), "aten.zeros.* has a tensor on the CPU"),
    "a number on the CPU": (lambda x: x + torch.zeros(()), "aten.zeros.* has a tensor on the CPU"),
    "a number closed over": (lambda x: x + ELSEWHERE, "aten.add.* has a tensor on the CPU"),
    "a copy to the CPU": (lambda x: x.cpu(), "Cannot copy"),
    "a copy from the CPU": (lambda x: x + ELSEWHERE.to(x.device), "_to_copy.* on the CPU"),
    "a tensor of a list": (lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=x.device), "copies"),
    "a moved tensor": (lambda x: x + torch.tensor([1.0, 2.0, 3.0]).to(x.device), "copies"),
    "a tensor of a number": (lambda x: x + torch.as_tensor(1.0, device=x.device), "copies"),
    "a new tensor": (lambda x: x + x.new_tensor([1.0, 2.0, 3.0]), "copies"),
    "a list of rows": (lambda x: x[[0, 2]], "is copied"),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("is_mapped", [False, True])
def test_a_fault_is_found(name: str, is_mapped: bool) -> None:
    fault, message = FAULTS[name]
    with pytest.raises((DeviceError, RuntimeError), match=message):
        on_meta(torch.vmap(fault) if is_mapped else fault, torch.ones(3, 3))


def test_a_result_on_the_cpu_is_found() -> None:
    with pytest.raises(DeviceError, match="results on the CPU: 1"):
        on_meta(lambda x: (x, ELSEWHERE), torch.ones(3))


@pytest.mark.parametrize("is_mapped", [False, True])
def test_a_number_is_no_fault(is_mapped: bool) -> None:
    def function(x: Tensor) -> Tensor:
        return torch.where(x > 0, 2 * x + 1, 0.0)

    on_meta(torch.vmap(function) if is_mapped else function, torch.ones(3, 3))
