"""One training step of each network with its tutorial's optimizer, by everyone who makes one.

Gather, normalise, forward, backward, update. ``python -m benchmarks.steps`` measures the same in
turns, which is what a claim rests on; here each has its time in one piece.
"""

import pytest

from benchmarks.candidates import BATCHES, CANDIDATES, DEVICES, NETWORKS, why_not
from fcifar.bench import bench, timing
from fcifar.bench.bench import Case
from fcifar.data import Dataset
from fcifar.train.runtime import Runtime


@pytest.mark.parametrize("runtime", DEVICES, indirect=True)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("name", [name for name in CANDIDATES if name != "jax_scan"])
def test_step(
    benchmark, runtime: Runtime, dataset: Dataset, network: str, batch_size: int, name: str
) -> None:
    if reason := why_not(name, runtime.device):
        pytest.skip(reason)
    case = Case(network, batch_size)
    benchmark.group, benchmark.name = bench.group(case, runtime), name
    candidate = CANDIDATES[name](bench.recipe_for(case), runtime, dataset)
    benchmark.extra_info["first_call_seconds"] = timing.warm_up(candidate)

    def once() -> None:
        candidate.once()
        candidate.wait()

    benchmark(once)
