"""Gradients of each example, beside the gradient of a batch.

    python -m benchmarks.bench_grads [--dataset cifar10] [--images 10000] [--repetitions 5]
        [--chunk 125] [--compiled-chunk 50] [--device cpu] [--name grads]

Interleaved, with the tutorial's model and test images, eager and compiled: the gradient of the mean
loss, over all images at once and by 500; the gradients of each image, by chunks; their norms, the
sum of clipped ones, and the noise scale; a Hessian-vector product. On the CPU also the peak memory
of the eager functions, relative to a process that loads the images and computes one gradient.
Writes bench_results/NAME.json.
"""

import argparse
import functools
import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad

from benchmarks import processes, records, script
from fcifar import data, grads, models, privacy, random, tree
from fcifar.bench.timing import wait_for
from fcifar.losses import cross_entropy
from fcifar.models import Params, Variables
from fcifar.step import Batch, normalize
from fcifar.step_transforms import compile_pure
from fcifar.train.runtime import activate, make_runtime

MODEL, PREPROCESS = models.lenet(), normalize()
PASS = 500  # images of a batch, the fastest size

Gradients = Callable[[Params, Batch], object]


def example_loss(params: Params, example: Batch) -> Tensor:
    """Return the loss of one image."""
    logits, _ = MODEL.apply(Variables(params, {}), PREPROCESS(example.images)[None])
    return cross_entropy(logits[0], example.labels)


def batch_gradient(params: Params, batch: Batch) -> Params:
    """Return the gradient of the mean loss of a batch, as in a training step."""

    def mean(params: Params) -> Tensor:
        logits, _ = MODEL.apply(Variables(params, {}), PREPROCESS(batch.images))
        return cross_entropy(logits, batch.labels).mean()

    return grad(mean)(params)


def clipped(params: Params, batch: Batch) -> Params:
    """Return the sum of gradients clipped to a norm of 1."""
    return privacy.clipped_sum(grads.per_example(example_loss)(params, batch), 1.0)


def product(params: Params, batch: Batch) -> Params:
    """Return the product of the Hessian and the parameters."""
    return grads.hessian_vector_product(example_loss)(params, params, batch)


FUNCTIONS: dict[str, Gradients] = {
    "each image": grads.per_example(example_loss),
    "norms": grads.per_example_norms(example_loss),
    "clipped sum": clipped,
    "noise scale": grads.noise_scale(example_loss),
}


def in_chunks(function: Gradients, size: int) -> Gradients:
    """Return a function that applies ``function`` to each chunk and drops the results."""

    def over_all(params: Params, batch: Batch) -> None:
        for chunk in grads.chunks(batch, size):
            function(params, chunk)

    return over_all


def eager(chunk: int) -> dict[str, Gradients]:
    """Return the measured functions by name."""
    return {"batch at once": batch_gradient, **over_chunks(chunk, lambda function: function)}


def over_chunks(chunk: int, wrap: Callable[[Gradients], Gradients]) -> dict[str, Gradients]:
    """Return functions over chunks of the images, each of them wrapped."""
    return {
        "batch by 500": in_chunks(wrap(batch_gradient), PASS),
        **{name: in_chunks(wrap(function), chunk) for name, function in FUNCTIONS.items()},
        "Hessian-vector product by 500": in_chunks(wrap(product), PASS),
    }


def main() -> None:
    sizes = {"images": 10_000, "chunk": 125, "compiled_chunk": 50, "repetitions": 5}
    run = {"dataset": "cifar10", "device": "cpu", "threads": 1, "name": "grads"}
    options = script.parser(__doc__, **sizes, **run).parse_args()
    dataset = data.load(options.dataset, data.data_root())
    runtime = make_runtime(device=options.device, threads=options.threads)
    batch = Batch(dataset.test_images[: options.images], dataset.test_labels[: options.images])
    params, batch = tree.on_device((MODEL.init(random.key(0)).params, batch), runtime.device)
    compiled = over_chunks(options.compiled_chunk, compile_pure)
    groups = {"eager_seconds": eager(options.chunk), "compiled_seconds": compiled}
    calls = {
        (group, name): functools.partial(function, params, batch)
        for group, functions in groups.items()
        for name, function in functions.items()
    }
    with activate(runtime):
        measured = script.interleaved(calls, options.repetitions, wait_for(runtime.device))
    seconds = {group: {name: measured[group, name] for name in groups[group]} for group in groups}
    ratios: dict[str, dict[str, float]] = {}
    for group, of_group in seconds.items():
        medians = records.medians(of_group)
        ratios[group] = {name: s / medians["batch by 500"] for name, s in medians.items()}
        for name, median in medians.items():
            print(f"{group:17} {name:30} {median:7.2f} s {ratios[group][name]:6.2f}", flush=True)
    memory = peaks(options) if runtime.device == "cpu" else {}
    for name, size in memory.items():
        print(f"{'peak':17} {name:30} {size / 2**20:7.0f} MiB", flush=True)
    config = {
        **vars(options),
        "cores": sorted(os.sched_getaffinity(0)),
        "data_source": dataset.source,
        "parameters": sum(p.numel() for p in params.values()),
    }
    results = {**seconds, "times_batch_by_500": ratios, "peak_bytes": memory}
    print(records.write(options.name, config, results))


def peaks(options: argparse.Namespace) -> dict[str, int]:
    """Return the peak memory of the eager functions in bytes, relative to none of them."""
    code = "import sys; from benchmarks import bench_grads; bench_grads.once(*sys.argv[1:])"
    args = [options.dataset, str(options.images), str(options.chunk), str(options.threads)]
    base = processes.peak_memory(code, [*args, "none"])
    return {
        name: processes.peak_memory(code, [*args, name]) - base for name in eager(options.chunk)
    }


def once(dataset: str, images: str, chunk: str, threads: str, name: str) -> None:
    """Call an eager function once, or none for another name."""
    torch.set_num_threads(int(threads))
    loaded = data.load(dataset, data.data_root())
    batch = Batch(loaded.test_images[: int(images)], loaded.test_labels[: int(images)])
    params = MODEL.init(random.key(0)).params
    batch_gradient(params, next(grads.chunks(batch, 1)))  # loads what autograd needs
    if function := eager(int(chunk)).get(name):
        function(params, batch)


if __name__ == "__main__":
    main()
