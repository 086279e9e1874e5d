"""Fixtures of the benchmarks."""

import contextlib
from collections.abc import Iterator

import pytest
import torch

from fcifar.bench import bench, timing
from fcifar.data import Dataset
from fcifar.train.runtime import Runtime, activate, make_runtime

_BUSY: list[float] = []  # cores that other processes used, by benchmark


def pytest_addoption(parser: pytest.Parser) -> None:
    with contextlib.suppress(ValueError):  # the tests have added it
        parser.addoption("--long", action="store_true", help="run all benchmarks")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="run with --long"))


@pytest.fixture(autouse=True)
def _notice_other_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Record how many cores other processes used."""
    benchmark, before = request.getfixturevalue("benchmark"), timing.load()
    yield
    cores = timing.used_by_others(before, timing.load())
    benchmark.extra_info["other_processes"] = cores
    _BUSY.append(cores or 0.0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if notice := timing.busy_notice(max(_BUSY, default=None)):
        terminalreporter.write_line(notice)


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
