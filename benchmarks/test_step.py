"""One training step of each network with its tutorial's optimizer, by everyone who makes one.

Gather, normalise, forward, backward, update. ``python -m benchmarks.steps`` measures the same in
turns, which is what a claim rests on; here each has its time in one piece.
"""

import pytest

from benchmarks.contenders import BATCHES, CONTENDERS, DEVICES, NETWORKS, why_not
from fcifar.bench import bench, timing
from fcifar.bench.bench import Work
from fcifar.data import Dataset
from fcifar.train.runtime import Runtime


@pytest.mark.parametrize("runtime", DEVICES, indirect=True)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("name", [name for name in CONTENDERS if name != "jax_scan"])
def test_step(
    benchmark, runtime: Runtime, dataset: Dataset, network: str, batch_size: int, name: str
) -> None:
    if reason := why_not(name, runtime.device):
        pytest.skip(reason)
    work = Work(network, batch_size)
    benchmark.group, benchmark.name = bench.group(work, runtime), name
    contender = CONTENDERS[name](bench.recipe_for(work), runtime, dataset)
    benchmark.extra_info["first_call_seconds"] = timing.warm_up(contender)

    def once() -> None:
        contender.once()
        contender.wait()

    benchmark(once)
