"""The tutorial's own step with ``torch.compile(net, backend="fcifar")`` in it, beside the others.

    python -m benchmarks.backend [--seconds 0.3] [--repetitions 7] [--threads 1]

``zero_grad``, forward pass, loss, ``backward``, ``optimizer.step`` of an nn.Module on images that
are normalised already: the module as it is, compiled by inductor, and compiled by our backend, in
turns. Writes bench_results/backend.json.
"""

import argparse
from typing import Any

import torch
from torch import nn

from benchmarks import records
from fcifar import kernels
from fcifar.bench import bench, timing
from fcifar.bench.bench import Case
from fcifar.bench.reference_models import MODULES, make_optimizer
from fcifar.bench.timing import Candidate
from fcifar.train.runtime import activate, make_runtime

CASES = (Case("lenet", 4), Case("lenet", 64), Case("lenet", 512), Case("conv3", 64))
BACKENDS: dict[str, Any] = {"module": None, "inductor": "inductor", "fcifar": kernels.backend}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="of one measurement")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    runtime = make_runtime(device="cpu", threads=options.threads)
    results = {}
    with activate(runtime):
        for case in CASES:
            torch._dynamo.reset()
            made = {name: candidate(case, name) for name in BACKENDS}
            found = timing.measure(made, seconds=options.seconds, repetitions=options.repetitions)
            results[bench.group(case, runtime)] = found
            medians = {name: f"{1e3 * f['median_seconds']:.3g} ms" for name, f in found.items()}
            print(case.network, case.batch_size, medians, flush=True)
        print(records.write("backend", {**vars(options), "threads": runtime.threads}, results))


def candidate(case: Case, name: str) -> Candidate:
    recipe = bench.recipe_for(case)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(case.batch_size, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (case.batch_size,), generator=generator)
    net = MODULES[case.network](**recipe.model_options)
    forward = net if BACKENDS[name] is None else torch.compile(net, backend=BACKENDS[name])
    criterion, optimizer = nn.CrossEntropyLoss(), make_optimizer(recipe, net.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss = criterion(forward(images), labels)
        loss.backward()
        optimizer.step()

    return Candidate(step)


if __name__ == "__main__":
    main()
