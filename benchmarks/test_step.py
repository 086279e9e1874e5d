"""A training step of each model with its tutorial's optimizer, by every implementation.

Gather, normalise, forward, backward, update. ``python -m benchmarks.bench_steps`` interleaves the
same steps, for claims; here they run one after another.
"""

from collections.abc import Iterable
from typing import Any

import pytest

from benchmarks.reference.candidates import BATCHES, CANDIDATES, DEVICES, MODELS, why_not
from fcifar.bench import bench, timing
from fcifar.bench.bench import Case
from fcifar.data import Dataset
from fcifar.train.runtime import Runtime

SHORT = (4, 64, 512, "module", "module_compiled", "fcifar_compiled", "jax_nchw", "jax_nhwc")


def long_but_short(values: Iterable[Any]) -> list[Any]:
    """Leave the values that are not in ``SHORT`` to --long."""
    slow = pytest.mark.slow
    return [value if value in SHORT else pytest.param(value, marks=slow) for value in values]


@pytest.mark.parametrize("runtime", DEVICES, indirect=True)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch_size", long_but_short(BATCHES))
@pytest.mark.parametrize("name", long_but_short(n for n in CANDIDATES if n != "jax_scan"))
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
