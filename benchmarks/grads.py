"""Gradients of each example, beside one pass over the batch.

    python -m benchmarks.grads [--dataset cifar10] [--images 10000] [--repetitions 5]
        [--chunk 125] [--compiled-chunk 50] [--device cpu] [--name grads]

In turns, with the tutorial's network and test images: the gradient of the mean loss, over all
images at once and by 500; the gradient of each image, one chunk after the other; the norms alone,
the sum of clipped ones, and the noise scale; a Hessian-vector product. Eager and compiled. Then the
memory that the eager ones take at their peak beyond that of a process which loads the images and
has made one gradient, on the CPU alone. Writes bench_results/NAME.json.
"""

import argparse
import os
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad

from benchmarks import processes, records
from fcifar import data, grads, models, privacy, random, tree
from fcifar.bench.timing import wait_for
from fcifar.losses import cross_entropy
from fcifar.models import Params, Variables
from fcifar.step import Batch, normalize
from fcifar.step_transforms import compile_pure
from fcifar.train.runtime import activate, make_runtime

MODEL, PREPROCESS = models.lenet(), normalize()
PASS = 500  # images of a batch where they do not go at once: no other is faster

Way = Callable[[Params, Batch], object]


def example_loss(params: Params, example: Batch) -> Tensor:
    """The loss of one image."""
    logits, _ = MODEL.apply(Variables(params, {}), PREPROCESS(example.images)[None])
    return cross_entropy(logits[0], example.labels)


def batch_gradient(params: Params, batch: Batch) -> Params:
    """The gradient of the mean loss of a batch, as a training step has it."""

    def mean(params: Params) -> Tensor:
        logits, _ = MODEL.apply(Variables(params, {}), PREPROCESS(batch.images))
        return cross_entropy(logits, batch.labels).mean()

    return grad(mean)(params)


def clipped(params: Params, batch: Batch) -> Params:
    """The sum of gradients shrunk to a norm of at most 1."""
    return privacy.clipped_sum(grads.per_example(example_loss)(params, batch), 1.0)


def product(params: Params, batch: Batch) -> Params:
    """The Hessian times the parameters."""
    return grads.hessian_vector_product(example_loss)(params, params, batch)


FUNCTIONS: dict[str, Way] = {
    "each image": grads.per_example(example_loss),
    "norms": grads.per_example_norms(example_loss),
    "clipped sum": clipped,
    "noise scale": grads.noise_scale(example_loss),
}


def in_chunks(way: Way, size: int) -> Way:
    """Over a chunk after the other; nothing of one is kept when the next begins."""

    def over_all(params: Params, batch: Batch) -> None:
        for chunk in grads.chunks(batch, size):
            way(params, chunk)

    return over_all


def eager(chunk: int) -> dict[str, Way]:
    """What is measured, by name."""
    return {
        "batch by 500": in_chunks(batch_gradient, PASS),
        "batch at once": batch_gradient,
        **{name: in_chunks(function, chunk) for name, function in FUNCTIONS.items()},
        "Hessian-vector product by 500": in_chunks(product, PASS),
    }


def compiled(chunk: int) -> dict[str, Way]:
    """The same, compiled for one chunk."""
    return {
        "batch by 500": in_chunks(compile_pure(batch_gradient), PASS),
        **{name: in_chunks(compile_pure(f), chunk) for name, f in FUNCTIONS.items()},
        "Hessian-vector product by 500": in_chunks(compile_pure(product), PASS),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--chunk", type=int, default=125)
    parser.add_argument("--compiled-chunk", type=int, default=50)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="grads", help="of the record")
    options = parser.parse_args()
    dataset = data.load(options.dataset, data.data_root())
    runtime = make_runtime(device=options.device, threads=options.threads)
    batch = Batch(dataset.test_images[: options.images], dataset.test_labels[: options.images])
    params, batch = tree.on_device((MODEL.init(random.key(0)).params, batch), runtime.device)
    wait = wait_for(runtime.device)
    groups = {
        "eager_seconds": eager(options.chunk),
        "compiled_seconds": compiled(options.compiled_chunk),
    }
    seconds = {group: {name: [] for name in ways} for group, ways in groups.items()}
    with activate(runtime):
        for repetition in range(options.repetitions + 1):
            for group, ways in groups.items():
                for name, way in ways.items():
                    started = time.perf_counter()
                    way(params, batch)
                    wait()
                    if repetition:  # the first round compiles, and counts nowhere
                        seconds[group][name].append(time.perf_counter() - started)
    ratios = {group: times_the_first(of_group) for group, of_group in seconds.items()}
    memory = peaks(options) if runtime.device == "cpu" else {}
    for group, of_group in seconds.items():
        for name, values in of_group.items():
            ratio = ratios[group][name]
            print(f"{group:17} {name:30} {records.median(values):7.2f} s {ratio:6.2f}", flush=True)
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


def times_the_first(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians in parts of the first one."""
    medians = {name: records.median(values) for name, values in seconds.items()}
    first = next(iter(medians.values()))
    return {name: median / first for name, median in medians.items()}


def peaks(options: argparse.Namespace) -> dict[str, int]:
    """Bytes that the eager ways take at their peak, beyond a process that goes none of them."""
    words = [options.dataset, str(options.images), str(options.chunk), str(options.threads)]
    base = processes.peak_memory(_PEAK, [*words, "none"])
    return {
        name: processes.peak_memory(_PEAK, [*words, name]) - base for name in eager(options.chunk)
    }


_PEAK = """
import sys
from benchmarks import grads
grads.once(*sys.argv[1:])
"""


def once(dataset: str, images: str, chunk: str, threads: str, name: str) -> None:
    """Go one of the eager ways once; of another name, none."""
    torch.set_num_threads(int(threads))
    loaded = data.load(dataset, data.data_root())
    batch = Batch(loaded.test_images[: int(images)], loaded.test_labels[: int(images)])
    params = MODEL.init(random.key(0)).params
    batch_gradient(params, next(grads.chunks(batch, 1)))  # imports what autograd needs
    if way := eager(int(chunk)).get(name):
        way(params, batch)


if __name__ == "__main__":
    main()
