"""The arithmetic's floor: how fast a training step could be if nothing but arithmetic took time.

    python -m benchmarks.floor [--network lenet] [--batch 64] [--threads 2] [--name floor]

The machine's rate is that of a product of two matrices of 1024 x 1024; its bandwidth, that of a
copy of 256 MiB. The operations of a step are those that a library makes, convolutions backward over
every position. Behind a 2x2 max-pool three of four gradients are zero: the sparse floor counts the
operations that are left for convolutions backward, which is what ``fcifar.kernels`` makes use of.
Beside them stand the measured steps of the records bench_results/STEPS.json.
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import records
from benchmarks.candidates import NETWORKS
from fcifar.bench import bench
from fcifar.bench.bench import Case
from fcifar.bench.reference_models import make_module
from fcifar.train.config import make_config
from fcifar.train.runtime import activate, make_runtime
from fcifar.train.setup import make_training

aten = torch.ops.aten


class Count(NamedTuple):
    """What a training step of one image asks for."""

    operations: float  # multiplications and additions
    sparse_operations: float
    image_bytes: float  # read and written once, as uint8 and float32
    parameter_bytes: float  # a step, not an image: parameters, gradients and momentum


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--batch", action="append", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--steps", action="append", help="records of steps to compare with")
    parser.add_argument("--name", default="floor", help="of the record")
    options = parser.parse_args()
    runtime = make_runtime(device="cpu", threads=options.threads)
    measured = {}
    for name in options.steps or ("steps", "steps_conv3"):
        measured |= records.read(records.RESULTS / f"{name}.json")["results"]
    with activate(runtime):
        rates = [rate() for _ in range(7)]
        bandwidths = [bandwidth() for _ in range(7)]
    rate_, bandwidth_ = records.median(rates), records.median(bandwidths)
    print(f"{rate_ / 1e9:.0f} billion operations and {bandwidth_ / 1e9:.1f} GB a second")
    floors: dict[str, dict[str, float]] = {}
    for network in options.network or NETWORKS:
        count = count_operations(network)
        for batch in options.batch or (4, 64, 512):
            floor = {
                "dense": batch * count.operations / rate_,
                "sparse": batch * count.sparse_operations / rate_,
                "bytes": (batch * count.image_bytes + count.parameter_bytes) / bandwidth_,
            }
            name = bench.group(Case(network, batch), runtime)
            found = measured.get(name, {}).get("fcifar_compiled")
            if found:
                floor["measured"] = found["median_seconds"]
                floor["times_dense_floor"] = found["median_seconds"] / floor["dense"]
            floors[name] = floor
            print(
                name, {what: f"{1e3 * s:.3f}" for what, s in floor.items() if "times" not in what}
            )
    config = {**vars(options), "threads": runtime.threads}
    results = {"operations_per_second": rates, "bytes_per_second": bandwidths, "floors": floors}
    print(records.write(options.name, config, results))


def rate(size: int = 1024, calls: int = 10) -> float:
    """Operations a second in a product of matrices."""
    a, b = torch.ones(size, size), torch.ones(size, size)
    return 2 * size**3 / _seconds(lambda: a @ b, calls)


def bandwidth(size: int = 2**26, calls: int = 3) -> float:
    """Bytes a second, read and written, in a copy."""
    a, b = torch.ones(size), torch.ones(size)
    return 2 * 4 * size / _seconds(lambda: b.copy_(a), calls)


def _seconds(function: Callable[[], object], calls: int) -> float:
    function()
    started = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - started) / calls


def count_operations(network: str) -> Count:
    """By torch's own counter, on a step of the module with one image."""
    recipe = bench.recipe_for(Case(network, 1))
    runtime = make_runtime(device="cpu", threads=1)
    dataset = bench.synthetic(64)
    training = make_training(make_config(recipe, dataset, runtime=runtime), dataset)
    params = training.init().state.variables.params
    module = make_module(recipe, params)
    with FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, 32, 32)).sum().backward()
    of = counter.get_flop_counts()["Global"]
    backward = of[aten.convolution_backward]
    total = counter.get_total_flops()
    values = sum(p.numel() for p in params.values())
    return Count(
        operations=total,
        sparse_operations=total - 0.75 * backward,
        image_bytes=3 * 32 * 32 * (1 + 4 + 4),
        # Parameters and momentum are read and written, gradients written and read.
        parameter_bytes=4 * 6 * values,
    )


if __name__ == "__main__":
    main()
