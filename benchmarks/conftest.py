"""Shared by the benchmarks: data, a runtime, and compilations that do not pile up."""

from collections.abc import Iterator

import pytest
import torch

from fcifar.bench import bench
from fcifar.data import Dataset
from fcifar.train.runtime import Runtime, activate, make_runtime


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """Synthetic images; their number is that of ``bench.IMAGES``."""
    return bench.synthetic()


@pytest.fixture(autouse=True)
def _no_compiled_leftovers() -> Iterator[None]:
    """What was compiled for the benchmark before would be tried first."""
    yield
    torch._dynamo.reset()


@pytest.fixture
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """The default runtime of the device that the benchmark is given; switched on."""
    device = request.param
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch finds none")
    runtime = make_runtime(device=device)
    with activate(runtime):
        yield runtime
