"""Fixtures of the benchmarks."""

from collections.abc import Iterator

import pytest
import torch

from fcifar.bench import bench
from fcifar.data import Dataset
from fcifar.train.runtime import Runtime, activate, make_runtime


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """Synthetic images, ``bench.IMAGES`` of them."""
    return bench.synthetic()


@pytest.fixture(autouse=True)
def _reset_compiler() -> Iterator[None]:
    """Drop compiled code, because the code of an earlier benchmark would be tried first."""
    yield
    torch._dynamo.reset()


@pytest.fixture
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """The default runtime of the benchmark's device, activated."""
    device = request.param
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and torch finds none")
    runtime = make_runtime(device=device)
    with activate(runtime):
        yield runtime
