"""Evaluation of a test set: every example's loss, correctness and logits against mere accuracy.

fcifar's is the evaluation of a run; compiled, that of a run with validation and ``--compile``. The
tutorial's loop takes pictures through a DataLoader, four at a time; the batched module has the
images on the device.
"""

import pytest
import torch

from benchmarks import tutorial
from benchmarks.contenders import DEVICES, NETWORKS
from fcifar.compiling import compile_pure
from fcifar.data import Dataset
from fcifar.runs import bench, evaluate, yardsticks
from fcifar.runs.bench import Work
from fcifar.runs.program import build
from fcifar.runs.runtime import Runtime

IMAGES = 1000


@pytest.mark.parametrize("runtime", DEVICES, indirect=True)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["tutorial", "module_batched", "fcifar", "fcifar_compiled"])
def test_evaluate(benchmark, runtime: Runtime, dataset: Dataset, network: str, name: str) -> None:
    if name == "tutorial" and runtime.device != "cpu":
        pytest.skip("the tutorial's loop is that of its page, on the CPU")
    device = runtime.device.partition(":")[0]
    benchmark.group, benchmark.name = f"evaluate {network} {IMAGES} images {device}", name
    recipe = bench.recipe_for(Work(network, 4))
    program = build(recipe, runtime, dataset, compiled=False)
    step = compile_pure(program.eval_step) if name == "fcifar_compiled" else program.eval_step
    variables = program.init().state.variables
    net = yardsticks.make_module(recipe, variables.params).eval()
    normalise = yardsticks.make_normalise(recipe, runtime.device)
    data = program.test._replace(
        images=program.test.images[:IMAGES], labels=program.test.labels[:IMAGES]
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
