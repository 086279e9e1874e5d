"""Gradients of each example, beside one pass over the batch.

    python -m benchmarks.grads [--dataset cifar10] [--images 10000] [--chunk 125] [--repetitions 5]

In turns, with the tutorial's network and test images: the gradient of the mean loss, over all
images at once and over CHUNKS of them; the gradient of each image, one chunk after the other, the
norms alone, the sum of clipped ones, and the noise scale; a Hessian-vector product. Eager and
compiled. Then the memory that each takes at its peak beyond torch and the images, in processes of
their own. Writes bench_results/NAME.json.
"""

import argparse
import os
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad

from benchmarks import processes, records
from fcifar import data, grads, models, privacy, random
from fcifar.compiling import compile_pure
from fcifar.losses import cross_entropy
from fcifar.models import Params, Variables
from fcifar.runs.runtime import activate, make_runtime
from fcifar.step import Batch, normalize

MODEL, PREPROCESS = models.lenet(), normalize()
PASS = 500  # images of a pass where they do not go at once: the fastest for an eager one

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
    "each": grads.per_example(example_loss),
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


def make_ways(chunk: int) -> dict[str, Way]:
    """What is measured, by name; the first is what the others are compared with."""
    ways: dict[str, Way] = {
        "batch at once": batch_gradient,
        f"batch by {PASS}": in_chunks(batch_gradient, PASS),
    }
    ways |= {f"{name} by {chunk}": in_chunks(f, chunk) for name, f in FUNCTIONS.items()}
    ways[f"Hessian-vector product by {PASS}"] = in_chunks(product, PASS)
    compiled = {"batch": batch_gradient, **FUNCTIONS}
    for name, function in compiled.items():
        ways[f"{name} by {chunk}, compiled"] = in_chunks(compile_pure(function), chunk)
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--chunk", type=int, default=125)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="grads", help="of the record")
    options = parser.parse_args()
    dataset = data.load(options.dataset, data.data_root())
    batch = Batch(dataset.test_images[: options.images], dataset.test_labels[: options.images])
    params = MODEL.init(random.key(0)).params
    ways, seconds = make_ways(options.chunk), {}
    with activate(make_runtime(device="cpu", threads=options.threads)):
        for repetition in range(options.repetitions + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                way(params, batch)
                if repetition:  # the first round compiles, and counts nowhere
                    seconds.setdefault(name, []).append(time.perf_counter() - started)
    medians = {name: records.median(values) for name, values in seconds.items()}
    first, passes = medians["batch at once"], medians[f"batch by {PASS}"]
    of_compiled = medians[f"batch by {options.chunk}, compiled"]
    ratios = {
        name: {
            "to_the_batch_at_once": median / first,
            "to_the_batch_in_passes": median / passes,
            "to_the_compiled_batch": median / of_compiled,
        }
        for name, median in medians.items()
    }
    for name, median in medians.items():
        shown = "".join(f"{ratio:8.2f}" for ratio in ratios[name].values())
        print(f"{name:34} {median:7.2f} s {shown}", flush=True)
    memory = peaks(options)
    for name, size in memory.items():
        print(f"{name:34} {size / 2**20:7.0f} MiB", flush=True)
    config = {
        **vars(options),
        "cores": sorted(os.sched_getaffinity(0)),
        "data_source": dataset.source,
        "parameters": sum(p.numel() for p in params.values()),
    }
    results = {"seconds": seconds, "ratios": ratios, "peak_bytes": memory}
    print(records.write(options.name, config, results))


def peaks(options: argparse.Namespace) -> dict[str, int]:
    """Bytes that the eager ways take at their peak, beyond a process that loads the images."""
    words = [options.dataset, str(options.images), str(options.chunk), str(options.threads)]
    base = processes.peak_memory(_PEAK, [*words, "nothing"])
    names = [name for name in make_ways(options.chunk) if not name.endswith("compiled")]
    return {name: processes.peak_memory(_PEAK, [*words, name]) - base for name in names}


_PEAK = """
import sys
from benchmarks import grads
grads.once(*sys.argv[1:])
"""


def once(dataset: str, images: str, chunk: str, threads: str, name: str) -> None:
    """Go one way once, or, for a name that is none, one chunk of a pass."""
    torch.set_num_threads(int(threads))
    loaded = data.load(dataset, data.data_root())
    batch = Batch(loaded.test_images[: int(images)], loaded.test_labels[: int(images)])
    params = MODEL.init(random.key(0)).params
    batch_gradient(params, next(grads.chunks(batch, 1)))  # imports what autograd needs
    if way := make_ways(int(chunk)).get(name):
        way(params, batch)


if __name__ == "__main__":
    main()
