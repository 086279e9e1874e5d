"""The arithmetic floor of the tutorials' training steps: their time if only arithmetic took time.

    python -m benchmarks.bench_floor [--network lenet] [--batch 64] [--threads 2] [--name floor]

The machine's rate is measured with a product of two matrices of 1024 x 1024, its bandwidth with a
copy of 256 MiB. The dense floor counts the operations of a library. Three of four gradients behind
a 2x2 max-pool are zero: the sparse floor counts the remaining operations of convolutions backward,
as ``fcifar.kernels`` does them. The measured steps come from the records bench_results/STEPS.json.
"""

import statistics

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import records, script
from benchmarks.reference.candidates import MODELS
from fcifar import random, recipes
from fcifar.bench import bench
from fcifar.bench.bench import Case
from fcifar.bench.reference_models import make_module
from fcifar.train.runtime import activate, make_runtime


def main() -> None:
    parser = script.parser(__doc__, threads=int, name="floor")
    parser.add_argument("--network", action="append", choices=MODELS)
    parser.add_argument("--batch", action="append", type=int)
    parser.add_argument("--steps", action="append", help="records of steps to compare with")
    options = parser.parse_args()
    runtime = make_runtime(device="cpu", threads=options.threads)
    measured = {}
    for name in options.steps or ("steps", "steps_conv3"):
        measured |= records.read(records.RESULTS / f"{name}.json")["results"]
    with activate(runtime):
        rates = [rate() for _ in range(7)]
        bandwidths = [bandwidth() for _ in range(7)]
    peak, copied = statistics.median(rates), statistics.median(bandwidths)
    print(f"{peak / 1e9:.0f} billion operations and {copied / 1e9:.1f} GB per second")
    floors: dict[str, dict[str, float]] = {}
    for network in options.network or MODELS:
        counted = count(network)
        for batch in options.batch or (4, 64, 512):
            floor = {
                "dense": batch * counted["dense"] / peak,
                "sparse": batch * counted["sparse"] / peak,
                "bytes": (batch * counted["image_bytes"] + counted["parameter_bytes"]) / copied,
            }
            name = bench.group(Case(network, batch), runtime)
            if found := measured.get(name, {}).get("fcifar_compiled"):
                floor["measured"] = found["median_seconds"]
                floor["times_dense_floor"] = found["median_seconds"] / floor["dense"]
            floors[name] = floor
            print(name, {what: f"{value:.3g}" for what, value in floor.items()})
    config = {**vars(options), "threads": runtime.threads}
    results = {"operations_per_second": rates, "bytes_per_second": bandwidths, "floors": floors}
    print(records.write(options.name, config, results))


def rate(size: int = 1024, calls: int = 10) -> float:
    """Return operations per second in a product of matrices."""
    a, b = torch.ones(size, size), torch.ones(size, size)
    return 2 * size**3 / script.seconds_per_call(lambda: a @ b, calls)


def bandwidth(size: int = 2**26, calls: int = 3) -> float:
    """Return bytes per second, read and written, in a copy."""
    a, b = torch.ones(size), torch.ones(size)
    return 2 * 4 * size / script.seconds_per_call(lambda: b.copy_(a), calls)


def count(network: str) -> dict[str, float]:
    """Count operations of a step of the module with one image, by ``FlopCounterMode``, and bytes.

    ``parameter_bytes`` are those of a step with any number of images.
    """
    recipe = bench.recipe_for(Case(network, 1))
    params = recipes.make_model(recipe, 10).init(random.key(0)).params
    with FlopCounterMode(display=False) as counter:
        make_module(recipe, params)(torch.zeros(1, 3, 32, 32)).sum().backward()
    total = counter.get_total_flops()
    backward = counter.get_flop_counts()["Global"][torch.ops.aten.convolution_backward]
    return {
        "dense": total,
        "sparse": total - 0.75 * backward,
        "image_bytes": 3 * 32 * 32 * (1 + 4 + 4),  # uint8 and float32, read and written once
        # Parameters, momentum and gradients are read and written.
        "parameter_bytes": 4 * 6 * sum(p.numel() for p in params.values()),
    }


if __name__ == "__main__":
    main()
