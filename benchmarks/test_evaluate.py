"""Evaluation of a test set: every example's loss, correctness and logits against mere accuracy.

fcifar's is the evaluation of a run; compiled, that of a run with validation and ``--compile``. The
tutorial's loop takes pictures through a DataLoader, four at a time; the batched module has the
images on the device.
"""

import pytest
import torch

from benchmarks import tutorial
from benchmarks.candidates import DEVICES, NETWORKS
from fcifar.bench import bench, reference_models
from fcifar.bench.bench import Case
from fcifar.data import Dataset
from fcifar.step_transforms import compile_pure
from fcifar.train import evaluate
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime
from fcifar.train.setup import make_training

IMAGES = 1000


@pytest.mark.parametrize("runtime", DEVICES, indirect=True)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["tutorial", "module_batched", "fcifar", "fcifar_compiled"])
def test_evaluate(benchmark, runtime: Runtime, dataset: Dataset, network: str, name: str) -> None:
    if name == "tutorial" and runtime.device != "cpu":
        pytest.skip("the tutorial's loop is that of its page, on the CPU")
    device = runtime.device.partition(":")[0]
    benchmark.group, benchmark.name = f"evaluate {network} {IMAGES} images {device}", name
    recipe = bench.recipe_for(Case(network, 4))
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
        examples = evaluate.evaluate(step, variables, data)
        return examples.correct.float().mean().item()

    def published() -> float:
        return tutorial.accuracy(net, data.images, data.labels)

    way = {"tutorial": published, "module_batched": batched}.get(name, ours)
    way()
    assert benchmark(way) == pytest.approx(batched(), abs=2 / IMAGES)
