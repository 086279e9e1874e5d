"""A training step of each model with its tutorial's optimizer, by every implementation.

Gather, normalise, forward, backward, update. ``python -m benchmarks.bench_steps`` interleaves the
same steps, for claims; here they run one after another.
"""

import pytest

from benchmarks.reference.candidates import BATCHES, CANDIDATES, DEVICES, MODELS, why_not
from fcifar.bench import bench, timing
from fcifar.bench.bench import Case
from fcifar.data import Dataset
from fcifar.train.runtime import Runtime


@pytest.mark.parametrize("runtime", DEVICES, indirect=True)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("name", [name for name in CANDIDATES if name != "jax_scan"])
def test_step(
    benchmark, runtime: Runtime, dataset: Dataset, model: str, batch_size: int, name: str
) -> None:
    if reason := why_not(name, runtime.device):
        pytest.skip(reason)
    case = Case(model, batch_size)
    benchmark.group, benchmark.name = bench.group(case, runtime), name
    candidate = CANDIDATES[name](bench.recipe_for(case), runtime, dataset)
    benchmark.extra_info["first_call_seconds"] = timing.warm_up(candidate)

    def once() -> None:
        candidate.once()
        candidate.wait()

    benchmark(once)
