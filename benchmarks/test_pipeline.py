"""A batch of a data set: gather, augment with a key, normalise; eager, compiled, and image by image
with torchvision's transforms of PIL images in one process.
"""

import pytest
import torch
from torch import Tensor

from benchmarks.reference import tutorial_loop
from benchmarks.reference.candidates import DEVICES
from fcifar import random, recipes
from fcifar.bench.timing import wait_for
from fcifar.data import Dataset
from fcifar.train.runtime import Runtime

pytestmark = pytest.mark.slow

AUGMENTS = {
    "nothing": (),
    "conv3-aug": ("random_flip", "random_rotation:10"),
    "flip-crop": ("random_flip", "random_crop:4"),
}


@pytest.mark.parametrize("runtime", DEVICES, indirect=True)
@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("batch_size", [4, 64, 512])
@pytest.mark.parametrize("name", ["torchvision", "fcifar_eager", "fcifar_compiled"])
def test_pipeline(
    benchmark, runtime: Runtime, dataset: Dataset, augment: str, batch_size: int, name: str
) -> None:
    if name == "torchvision" and runtime.device != "cpu":
        pytest.skip("PIL images are in main memory")
    device = runtime.device.partition(":")[0]
    benchmark.group, benchmark.name = f"pipeline {augment} batch {batch_size} {device}", name
    order = torch.randperm(len(dataset.train_labels), generator=torch.Generator().manual_seed(0))
    rows = order[:batch_size].to(runtime.device)
    if name == "torchvision":
        transform = (*tutorial_loop.make_augment(AUGMENTS[augment]), *tutorial_loop.NORMALISED)
        pil = tutorial_loop.PILDataset(dataset.train_images, dataset.train_labels, *transform)
        indices = rows.tolist()
        benchmark(lambda: torch.stack([pil[i][0] for i in indices]))
        return
    recipe = recipes.get("blitz").replace(augment=AUGMENTS[augment])
    augment_, normalise = recipes.make_augment(recipe), recipes.make_preprocess(recipe)
    images = dataset.train_images.to(runtime.device)
    key, wait = random.key(0, device=runtime.device), wait_for(runtime.device)

    def pipeline(key: Tensor, rows: Tensor) -> Tensor:
        return normalise(augment_(key, images[rows]))

    if name == "fcifar_compiled":
        pipeline = torch.compile(pipeline, fullgraph=True)

    def once() -> Tensor:
        batch = pipeline(key, rows)
        wait()
        return batch

    once()
    assert benchmark(once).shape == (batch_size, 3, 32, 32)
