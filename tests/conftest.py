"""Shared by all tests: the long mode, the devices, tiny data."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from fcifar import models, optim, random, recipes
from fcifar.step import Batch

# Compiled programs of this session, and of no other; parallel workers share them.
if "FCIFAR_CACHE" not in os.environ:
    os.environ["FCIFAR_CACHE"] = _cache = tempfile.mkdtemp(prefix="fcifar-tests-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run slow tests, and more random cases")


def pytest_configure(config: pytest.Config) -> None:
    """Random cases are the same in each run; ``--long`` draws fifty times as many, and new ones.

    Nothing is timed, for the machine may be busy.
    """
    untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("default", untimed, derandomize=True, max_examples=40)
    settings.register_profile("long", untimed, derandomize=False, max_examples=2000)
    settings.load_profile("long" if config.getoption("--long") else "default")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m cuda``, import only the files with such tests, which is several times faster."""
    if config.getoption("markexpr") != "cuda" or collection_path.suffix != ".py":
        return None
    return "mark.cuda" not in collection_path.read_text() or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --long"))
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch finds none"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The tests' tensors are small: a second thread costs more than it does."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """No test cuts the power, and each file of a run waits for milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _fewer_collections():
    """Steps make many short-lived objects; looking for cycles in them took a tenth of the time."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 20, 100)
    yield
    gc.set_threshold(*before)


@pytest.fixture(scope="module", autouse=True)
def _quick_collections():
    """Modules stay until the end, and collecting garbage need not look at them each time."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_compiled_leftovers():
    """Each test counts its own compilations."""
    yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def _no_registered_leftovers():
    """What a test or a page registers is gone after it."""
    registries = [models.MODELS, optim.OPTIMIZERS, optim.REGISTERED]
    registries += [recipes.AUGMENTS, recipes.RECIPES]
    before = [dict(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        if registry != entries:
            registry.clear()
            registry.update(entries)


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """Keyed random images, with labels that can be learned from them."""

    def make(size: int = 8, seed: int = 0, classes: int = 10) -> Batch:
        image_key, label_key = random.split(random.key(seed))
        labels = random.randint(label_key, (size,), 0, classes)
        noise = random.randint(image_key, (size, 3, 32, 32), 0, 156)
        images = noise + (labels * 10)[:, None, None, None]
        return Batch(images.to(torch.uint8), labels)

    return make
