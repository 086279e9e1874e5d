"""The tutorial's own step with ``torch.compile(net, backend="fcifar")``.

    python -m benchmarks.bench_backend [--seconds 0.3] [--repetitions 7] [--threads 1]

``zero_grad``, forward pass, loss, ``backward`` and ``optimizer.step`` of an nn.Module on normalised
images: eager, compiled by inductor, and compiled by fcifar's backend, interleaved. Writes
bench_results/backend.json.
"""

from typing import Any

import torch
from torch import nn

from benchmarks import records, script
from benchmarks.render.tables import group_table
from fcifar import kernels
from fcifar.bench import bench, timing
from fcifar.bench.bench import Case
from fcifar.bench.reference_models import MODULES, make_optimizer
from fcifar.bench.timing import Candidate
from fcifar.train.runtime import activate, make_runtime

CASES = (Case("lenet", 4), Case("lenet", 64), Case("lenet", 512), Case("conv3", 64))
BACKENDS: dict[str, Any] = {"module": None, "inductor": "inductor", "fcifar": kernels.backend}


def main() -> None:
    options = script.parser(__doc__, seconds=0.3, repetitions=7, threads=int).parse_args()
    runtime = make_runtime(device="cpu", threads=options.threads)
    results = {}
    with activate(runtime):
        for case in CASES:
            torch._dynamo.reset()
            made = {name: candidate(case, name) for name in BACKENDS}
            found = timing.measure(made, seconds=options.seconds, repetitions=options.repetitions)
            results[bench.group(case, runtime)] = found
            print(f"{bench.group(case, runtime)}\n{group_table(found)}", flush=True)
        print(records.write("backend", {**vars(options), "threads": runtime.threads}, results))


def candidate(case: Case, name: str) -> Candidate:
    """Return the step of a case with a backend."""
    recipe = bench.recipe_for(case)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(case.batch_size, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (case.batch_size,), generator=generator)
    net = MODULES[case.model](**recipe.model_options)
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
