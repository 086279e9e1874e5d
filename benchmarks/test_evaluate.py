"""Evaluation of a test set: loss, correctness and logits of each example, against accuracy alone.

fcifar's evaluation is that of a run; compiled, that of a run with validation and ``--compile``. The
tutorial's loop has a DataLoader with batches of four; the batched module has the images on the
device.
"""

import pytest
import torch

from benchmarks.reference import tutorial_loop
from benchmarks.reference.candidates import DEVICES, MODELS
from fcifar.bench import bench, reference_models
from fcifar.bench.bench import Case
from fcifar.data import Dataset
from fcifar.step_transforms import compile_pure
from fcifar.train import evaluate
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime
from fcifar.train.setup import make_training

pytestmark = pytest.mark.slow

IMAGES = 1000


@pytest.mark.parametrize("runtime", DEVICES, indirect=True)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["tutorial", "module_batched", "fcifar", "fcifar_compiled"])
def test_evaluate(benchmark, runtime: Runtime, dataset: Dataset, model: str, name: str) -> None:
    if name == "tutorial" and runtime.device != "cpu":
        pytest.skip("the tutorial's loop runs on the CPU")
    device = runtime.device.partition(":")[0]
    benchmark.group, benchmark.name = f"evaluate {model} {IMAGES} images {device}", name
    recipe = bench.recipe_for(Case(model, 4))
    training = make_training(make_config(recipe, dataset, runtime=runtime), dataset)
    step = compile_pure(training.eval_step) if name == "fcifar_compiled" else training.eval_step
    variables = training.init().state.variables
    net = reference_models.make_module(recipe, variables.params).eval()
    normalise = reference_models.make_normalise(recipe, runtime.device)
    data = training.test._replace(
        images=training.test.images[:IMAGES], labels=training.test.labels[:IMAGES]
    )

    @torch.no_grad()
    def batched() -> float:
        correct = 0
        for images, labels in zip(data.images.split(500), data.labels.split(500), strict=True):
            correct += (net(normalise(images)).argmax(1) == labels).sum().item()
        return correct / len(data.labels)

    def ours() -> float:
        return evaluate.evaluate(step, variables, data).correct.float().mean().item()

    def published() -> float:
        return tutorial_loop.accuracy(net, data.images, data.labels)

    function = {"tutorial": published, "module_batched": batched}.get(name, ours)
    function()
    assert benchmark(function) == pytest.approx(batched(), abs=2 / IMAGES)
