"""Images a second of each policy, beside torchvision's DataLoader with the same policy.

    python -m benchmarks.bench_augment [--images 4096] [--batch 512] [--repetitions 5]
        [--workers 0] [--threads 1] [--device cpu] [--compiled yes] [--name augment]

Each policy draws once for each image. fcifar's takes batches on the device, eager and compiled.
torchvision's transform draws once for all images that it is given, so that it is called for each
image, in a DataLoader with ``--workers`` processes. Both start from uint8 images in memory and end
with batches of uint8 images (mixup: of float32 ones, with targets); the DataLoader's stay on the
CPU. mixup and CutMix of torchvision draw one weight for a batch, and are called for each batch.
Writes bench_results/NAME.json.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import records, script
from fcifar import augment, random, step_transforms
from fcifar.bench.timing import wait_for
from fcifar.data import shapes10
from fcifar.train.runtime import activate, make_runtime

POLICIES: dict[str, Callable[[], Any]] = {
    "random_flip": augment.random_flip,
    "rand_augment:2,9": augment.rand_augment,
    "trivial_augment": augment.trivial_augment,
    "auto_augment": augment.auto_augment,
    "aug_mix:3": augment.aug_mix,
    "random_erasing": augment.random_erasing,
    "mixup:0.2": functools.partial(augment.mixup, 0.2),
    "cutmix:1": functools.partial(augment.cutmix, 1.0),
}
MIXES = ("mixup:0.2", "cutmix:1")


def twins() -> dict[str, Any]:
    """Return torchvision's transforms by the same names."""
    from torchvision.transforms import v2

    return {
        "random_flip": v2.RandomHorizontalFlip(),
        "rand_augment:2,9": v2.RandAugment(2, 9),
        "trivial_augment": v2.TrivialAugmentWide(),
        "auto_augment": v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
        "aug_mix:3": v2.AugMix(3),
        "random_erasing": v2.RandomErasing(),
        "mixup:0.2": v2.MixUp(alpha=0.2, num_classes=10),
        "cutmix:1": v2.CutMix(alpha=1.0, num_classes=10),
    }


class Images(NamedTuple):
    """Images, their labels, and a transform of one image, as a data set."""

    images: Tensor
    labels: Tensor
    transform: Any = None


class Transformed(Dataset):
    """The data set of a DataLoader."""

    def __init__(self, of: Images) -> None:
        self.of = of

    def __len__(self) -> int:
        return len(self.of.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.of.images[index]
        return self.of.transform(image) if self.of.transform else image, self.of.labels[index]


def loader(name: str, images: Tensor, labels: Tensor, batch: int, workers: int) -> DataLoader:
    """Return torchvision's DataLoader with a policy, for each image or for each batch."""
    transform = twins()[name]
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    if name not in MIXES:
        return DataLoader(Transformed(Images(images, labels, transform)), batch, **options)

    def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return transform(*map(torch.stack, zip(*items, strict=True)))

    return DataLoader(
        Transformed(Images(images / 255, labels)), batch, collate_fn=collate, **options
    )


def ours(name: str, labels: Tensor) -> Callable[[Tensor, Tensor], Any]:
    """Return fcifar's policy as a function of a key and a batch of images."""
    made = POLICIES[name]()
    if name not in MIXES:
        return made
    return lambda key, images: made(key, images, labels[: len(images)])


def over_batches(
    function: Callable[[Tensor, Tensor], Any], images: Tensor, size: int
) -> Callable[[], None]:
    """Return a function that augments all images, by batches, each with its key."""
    key = random.key(0, device=images.device)

    def batches() -> Iterator[Any]:
        for i, batch in enumerate(images.split(size)):
            yield function(random.fold_in(key, i), batch)

    return lambda: exhaust(batches())


def exhaust(values: Any) -> None:
    """Compute all values, and drop them."""
    for _ in values:
        pass


def main() -> None:
    sizes = {"images": 4096, "batch": 512, "repetitions": 5, "workers": 0}
    run = {"threads": 1, "device": "cpu", "compiled": "yes", "name": "augment"}
    options = script.parser(__doc__, **sizes, **run).parse_args()
    runtime = make_runtime(device=options.device, threads=options.threads)
    images, labels, _, _ = shapes10.generate(train_size=options.images, test_size=1)
    here, here_labels = images.to(runtime.device), labels.to(runtime.device)
    calls: dict[tuple[str, str], Callable[[], None]] = {}
    for name in POLICIES:
        function = ours(name, here_labels)
        calls[name, "eager"] = over_batches(function, here, options.batch)
        if options.compiled == "yes":
            compiled = step_transforms.compile_pure(function)
            calls[name, "compiled"] = over_batches(compiled, here, options.batch)
        theirs = loader(name, images, labels, options.batch, options.workers)
        calls[name, "torchvision"] = functools.partial(exhaust, theirs)
    with activate(runtime):
        seconds = script.interleaved(calls, options.repetitions, wait_for(runtime.device))
    medians = {case: records.medians({"": each})[""] for case, each in seconds.items()}
    results: dict[str, dict[str, Any]] = {}
    for (name, case), median in medians.items():
        rate, ratio = options.images / median, medians[name, "torchvision"] / median
        results.setdefault(name, {})[case] = {
            "seconds": seconds[name, case],
            "images_per_second": rate,
            "times_torchvision": ratio,
        }
        print(f"{name:18} {case:12} {rate:12,.0f} images/s {ratio:7.2f}", flush=True)
    config = {**vars(options), "cores": sorted(os.sched_getaffinity(0))}
    print(records.write(options.name, config, results))


if __name__ == "__main__":
    main()
