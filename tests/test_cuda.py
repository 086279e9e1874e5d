"""On a GPU: compiled steps, whole runs, determinism, and checkpoints of another device.

Values are compared with those of the CPU: in float64 closely, in float32 after a few steps.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from fcifar import (
    layers,
    metrics,
    precision,
    random,
    recipes,
    step_transforms,
    tensor_files,
    tree,
)
from fcifar.augment import tta
from fcifar.data import Dataset, Split, make_dataset, shapes10
from fcifar.precision import FP64, Policy
from fcifar.recipes import Recipe
from fcifar.step import (
    TrainState,
    TrainStep,
    init_train_state,
    make_eval_step,
    make_train_step,
)
from fcifar.train import loop, run_dir
from fcifar.train.config import read_config
from fcifar.train.runtime import Runtime
from tests.helpers.small import SAME, make_model, make_recipe
from tests.helpers.training import after, records, train

pytestmark = pytest.mark.cuda

CPU, CUDA = "cpu", "cuda:0"
TOTAL = 100  # steps


# Steps -------------------------------------------------------------------------------------------

LONG = {
    *("speed90", "speed93", "speed95", "speed96", "resnet18", "resnet20", "preact-resnet18"),
    *("wrn-16-8", "mlp-mixer"),
}
"""Recipes whose steps take long to compile, or differ little from another's."""
RECIPES = [
    pytest.param(name, marks=pytest.mark.slow) if name in LONG else name
    for name in recipes.RECIPES
    if (not name.startswith("blitz") or name == "blitz") and name not in SAME
]


def parts(recipe: Recipe, policy: Policy) -> tuple[TrainState, TrainStep]:
    """The state of a recipe before its first step, and the step."""
    model, optimizer = recipes.make_model(recipe, 10), recipes.make_optimizer(recipe, TOTAL)
    average = recipes.make_average(recipe, TOTAL)
    step = make_train_step(
        model,
        optimizer,
        loss=recipes.make_loss(recipe),
        augment=recipes.make_augment(recipe),
        preprocess=recipes.make_preprocess(recipe),
        policy=policy,
        reduction=recipes.make_reduction(recipe),
        average=average,
    )
    key = random.key(0)
    return init_train_state(model, optimizer, key=key, policy=policy, average=average), step


def tolerance_of(recipe: Recipe) -> float:
    """Of the change of parameters, relative to its norm."""
    if recipe.optimizer == "muon":
        return 5e-2  # products in bfloat16
    return 1e-2 if recipe.augment else 1e-3  # a pixel of a rotated image may be another


def assert_same_step(before: TrainState, found: Any, expected: Any, tolerance: float) -> None:
    """Equal counts, near losses, and parameters that went to nearly the same place."""
    (state, sums), (other, other_sums) = (tree.on_device(pair, CPU) for pair in (found, expected))
    assert torch.equal(sums.count, other_sums.count)
    torch.testing.assert_close(sums.loss, other_sums.loss, rtol=tolerance, atol=0)
    torch.testing.assert_close(
        state.variables.buffers, other.variables.buffers, rtol=tolerance, atol=tolerance
    )
    params, wanted = state.variables.params, other.variables.params
    moved = tree.norm(tree.map(torch.sub, wanted, before.variables.params))
    assert tree.norm(tree.map(torch.sub, params, wanted)) < tolerance * moved


@pytest.mark.parametrize("name", RECIPES)
def test_a_compiled_step_is_the_eager_one_and_that_of_the_cpu(name: str, make_batch) -> None:
    recipe = make_recipe(name)
    tolerance, (state, step) = tolerance_of(recipe), parts(recipe, FP64)
    there = tree.on_device((state, make_batch()), CUDA)
    found = step_transforms.compile_step(step, donate=False)(*there)
    assert all(leaf.is_cuda for leaf in tree.leaves(found))
    assert_same_step(state, found, step(*there), tolerance)
    assert_same_step(state, found, step(state, make_batch()), tolerance)


@pytest.mark.parametrize("name", RECIPES)
def test_a_compiled_step_in_the_precision_of_its_recipe(name: str, make_batch) -> None:
    recipe = make_recipe(name)
    state, step = parts(recipe, precision.POLICIES[recipe.precision])
    loss = step(state, make_batch())[1].loss
    donating = step_transforms.compile_step(step)
    there, sums = donating(*tree.on_device((state, make_batch()), CUDA))
    torch.testing.assert_close(sums.loss.cpu(), loss, rtol=3e-2, atol=0)
    assert all(leaf.isfinite().all() for leaf in tree.leaves(there))
    _, sums = donating(there, tree.on_device(make_batch(), CUDA))
    assert metrics.summarize(sums)["count"] == 8


def test_compiled_replicas_are_those_of_the_cpu(make_batch) -> None:
    state, step = parts(recipes.get("dropout-adam"), FP64)
    states = step_transforms.stack([state] * 3)
    batches = step_transforms.stack([make_batch(seed=seed) for seed in range(3)])
    compiled = step_transforms.compile_step(step_transforms.map_replicas(step), donate=False)
    found = compiled(*tree.on_device((states, batches), CUDA))
    for i in range(3):
        expected = step(state, step_transforms.take(batches, i))
        assert_same_step(state, step_transforms.take(found, i), expected, 1e-3)


@pytest.mark.parametrize("views", tta.VIEWS)
@pytest.mark.parametrize("name", ["lenet", pytest.param("speednet", marks=pytest.mark.slow)])
def test_a_compiled_evaluation_is_that_of_the_cpu(name: str, views: str, make_batch) -> None:
    model = make_model(name)
    variables = precision.cast(model.init(random.key(0)), torch.float64)
    step = make_eval_step(model, views=tta.VIEWS[views], policy=FP64)
    found = step_transforms.compile_pure(step)(*tree.on_device((variables, make_batch()), CUDA))
    assert all(leaf.is_cuda for leaf in found)
    expected = step(variables, make_batch())
    torch.testing.assert_close(found.logits.cpu(), expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.loss.cpu(), expected.loss, rtol=1e-4, atol=1e-5)


def test_constants_have_the_bits_of_the_cpu() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        found = layers.constant((0.4914, 0.1, 1 / 3), torch.empty(0, device=CUDA), dtype)
        assert tree.equal(found, torch.tensor((0.4914, 0.1, 1 / 3), dtype=dtype))


# Runs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    images = shapes10.generate(train_size=240, test_size=60)
    train, test = Split(*images[:2]), Split(*images[2:])
    return make_dataset("tiny", train, test, shapes10.CLASSES, shapes10.SOURCE)


@pytest.fixture
def recipe() -> Recipe:
    """Twelve steps an epoch, 24 in all."""
    return recipes.get("blitz").replace(batch_size=20, epochs=2, log_every=4, valid_fraction=0.0)


def exact(device: str, precision: str = "fp32") -> Runtime:
    return Runtime(device=device, precision=precision, deterministic=True)


def assert_near(run: Path, other: Path) -> None:
    """Losses and parameters to rounding, counts exactly."""
    assert len(records(run)) == len(records(other)) > 3
    for found, wanted in zip(records(run), records(other), strict=True):
        assert (found["step"], found["count"]) == (wanted["step"], wanted["count"])
        assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-3)
    (found, _), (wanted, _) = (tensor_files.read(r / run_dir.FINAL) for r in (run, other))
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize("compile", [False, True])
def test_a_run_is_near_that_of_the_cpu(
    compile: bool, tmp_path: Path, recipe: Recipe, dataset: Dataset
) -> None:
    train(tmp_path / "here", recipe, exact(CPU), dataset)
    report = train(tmp_path / "there", recipe, exact(CUDA), dataset, compile=compile)
    assert isinstance(report, dict)
    assert_near(tmp_path / "there", tmp_path / "here")
    assert (report["test_n"], report["epochs"]) == (60, 2)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("name", ["blitz", "speed94"])
def test_a_deterministic_run_repeats_its_bits(
    name: str, compile: bool, tmp_path: Path, dataset: Dataset
) -> None:
    recipe = make_recipe(name).replace(batch_size=20, epochs=2, log_every=4)
    runtime = exact(CUDA, recipe.precision)
    a, b = (train(tmp_path / r, recipe, runtime, dataset, compile=compile) for r in ("a", "b"))
    assert isinstance(a, dict)
    assert isinstance(b, dict)
    assert records(tmp_path / "a") == records(tmp_path / "b")
    assert a["params_digest"] == b["params_digest"]
    assert a["test_loss"] == b["test_loss"]


@pytest.mark.parametrize("compile", [False, True])
def test_a_run_on_cuda_resumes_with_its_bits(
    compile: bool, tmp_path: Path, recipe: Recipe, dataset: Dataset
) -> None:
    whole = train(tmp_path / "whole", recipe, exact(CUDA), dataset, compile=compile)
    run = tmp_path / "run"
    stopped = train(run, recipe, exact(CUDA), dataset, compile=compile, stop=after(10))
    assert stopped == loop.Interrupted(15, 10)
    resumed = loop.train(run, read_config(run), dataset, resume=True)
    assert isinstance(whole, dict)
    assert isinstance(resumed, dict)
    assert resumed["params_digest"] == whole["params_digest"]
    assert records(run) == records(tmp_path / "whole")


@pytest.mark.parametrize(("first", "second"), [(CPU, CUDA), (CUDA, CPU)])
def test_a_run_is_resumed_on_the_other_device(
    first: str, second: str, tmp_path: Path, recipe: Recipe, dataset: Dataset
) -> None:
    train(tmp_path / "whole", recipe, exact(CPU), dataset)
    run = tmp_path / "run"
    stopped = train(run, recipe, exact(first), dataset, stop=after(10))
    assert stopped == loop.Interrupted(15, 10)
    before = records(run)
    resumed = loop.train(run, read_config(run, device=second), dataset, resume=True)
    assert isinstance(resumed, dict)
    assert records(run)[: len(before)] == before
    assert_near(run, tmp_path / "whole")


@pytest.mark.parametrize(("first", "second"), [(CPU, CUDA), (CUDA, CPU)])
def test_a_checkpoint_has_the_same_bits_on_every_device(
    first: str, second: str, tmp_path: Path
) -> None:
    state, _ = parts(make_recipe("speed95"), precision.FP32)
    state = step_transforms.init_loop_state(tree.on_device(state, first))
    tensor_files.save(tmp_path / "state", state, {})
    restored, _ = tensor_files.load(tmp_path / "state", tree.on_device(state, second))
    assert {leaf.device for leaf in tree.leaves(restored)} == {torch.device(second)}
    assert tree.equal(restored, state)
