"""The time of a training step on this machine, beside the same step in plain PyTorch.

Candidates do the same work: gather a batch from uint8 images on the device, normalise, forward,
backward, update. ``timing.py`` measures them.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from fcifar import random
from fcifar.bench import reference_models, timing
from fcifar.bench.timing import REPETITIONS, Candidate, measure, wait_for
from fcifar.data import Dataset, Split, make_dataset
from fcifar.errors import UsageError, shown
from fcifar.recipes import RECIPES, Recipe
from fcifar.train import environment
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime, activate
from fcifar.train.setup import make_training

LONGEST = 3600  # seconds
IMAGES = 10_240  # enough for a gather to miss the caches

Make = Callable[[Recipe, Runtime, Dataset], Candidate]  # called under ``activate(runtime)``


class Case(NamedTuple):
    """A model and the size of its batches."""

    model: str
    batch_size: int


CASES = (Case("lenet", 4), Case("lenet", 64), Case("lenet", 512), Case("conv3", 512))


# Candidates --------------------------------------------------------------------------------------


def recipe_for(case: Case) -> Recipe:
    """Return the first recipe with the model, without augmentation and validation."""
    recipe = next(r for r in RECIPES.values() if r.model == case.model)
    return recipe.replace(
        batch_size=case.batch_size,
        epochs=1,
        drop_last=True,
        augment=(),
        valid="fraction",
        valid_fraction=0.0,
        stratify=False,
        fold="",
        patience=0,
        restore_best=False,
    )


def synthetic(size: int = IMAGES) -> Dataset:
    """Return noise with labels; the time of a step does not depend on its images."""
    image_key, label_key = random.split(random.key(0))
    distinct = min(size, 1024)  # drawing more would take longer than measuring
    images = random.randint(image_key, (distinct, 3, 32, 32), 0, 256).to(torch.uint8)
    images = images.repeat(-(-size // distinct), 1, 1, 1)[:size]
    train = Split(images, random.randint(label_key, (size,), 0, 10))
    test = Split(*(part[:distinct] for part in train))
    return make_dataset("synthetic", train, test, tuple("abcdefghij"), "noise")


def module(recipe: Recipe, runtime: Runtime, dataset: Dataset) -> Candidate:
    """The tutorial's step as published, ``loss.item()`` included."""
    training = make_training(make_config(recipe, dataset, runtime=runtime), dataset)
    net = reference_models.make_module(recipe, training.init().state.variables.params)
    optimizer = reference_models.make_optimizer(recipe, net.parameters())
    normalise = reference_models.make_normalise(recipe, runtime.device)
    batches = repeated(training.inputs)
    images, labels = training.train

    def once() -> float:
        batch = next(batches).indices
        inputs, targets = normalise(images[batch]), labels[batch]
        optimizer.zero_grad()
        loss = F.cross_entropy(net(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Candidate(once, wait_for(runtime.device), params=lambda: dict(net.state_dict()))


def _fcifar(recipe: Recipe, runtime: Runtime, dataset: Dataset, *, compiled: bool) -> Candidate:
    config = make_config(recipe, dataset, runtime=runtime, compile=compiled)
    training = make_training(config, dataset)
    inputs, state = repeated(training.inputs), training.init()

    def once() -> None:
        nonlocal state
        state, _ = training.stages[0](state, next(inputs))

    return Candidate(once, wait_for(runtime.device), params=lambda: state.state.variables.params)


def repeated(batches_from: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
    """Cycle through the batches of epoch 0, drawn in advance so that steps do not include it."""
    return itertools.cycle(list(batches_from(0)))


fcifar_eager = functools.partial(_fcifar, compiled=False)  # as in ``fcifar train``
fcifar_compiled = functools.partial(_fcifar, compiled=True)  # as in ``fcifar train --compile``
CANDIDATES: dict[str, Make] = {
    "module": module,
    "fcifar_eager": fcifar_eager,
    "fcifar_compiled": fcifar_compiled,
}
REFERENCE = "module"  # the reference of ratios


# Measurements ------------------------------------------------------------------------------------


def measure_step(
    case: Case,
    makes: Mapping[str, Make],
    runtime: Runtime,
    dataset: Dataset,
    *,
    seconds: float,
    repetitions: int = REPETITIONS,
    observe: Callable[[str], object] = lambda name: None,
) -> dict[str, dict[str, Any]]:
    """Return the figures of ``measure``, with images per second and the speed-up over the module.

    All candidates run under the same switches. The deterministic ones do not slow the module down
    on the CPU, where its kernels have no faster variants.
    """
    recipe = recipe_for(case)
    torch._dynamo.reset()  # a step compiled for another batch would be tried first
    with activate(runtime):
        made = {name: make(recipe, runtime, dataset) for name, make in makes.items()}
        figures = measure(made, seconds=seconds, repetitions=repetitions, observe=observe)
    reference = figures.get(REFERENCE)
    for each in figures.values():
        each["images_per_second"] = case.batch_size / each["median_seconds"]
        if reference is not None:
            each[f"times_{REFERENCE}"] = reference["median_seconds"] / each["median_seconds"]
    return figures


def group(case: Case, runtime: Runtime) -> str:
    """Return the name of a case in a record."""
    device = runtime.device.partition(":")[0]
    return f"step {case.model} batch {case.batch_size} {device}"


def run(
    runtime: Runtime,
    *,
    seconds: int,
    compiled: bool = True,
    observe: Callable[[str, int, int], object] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Measure the steps of ``CASES``, and return them with the environment as JSON values.

    Args:
        seconds: for all measurements, without making and compiling the steps.
        compiled: whether to measure the compiled step as well.
        observe: called with a description, the number of the measurement and their total.

    Raises:
        UsageError: ``seconds`` is out of range.
    """
    check_seconds(seconds)
    makes = {n: make for n, make in CANDIDATES.items() if compiled or n != "fcifar_compiled"}
    turns = len(CASES) * len(makes)
    each = seconds / turns / REPETITIONS
    number = itertools.count(1)
    results = {}
    dataset, before = synthetic(), timing.load()
    for case in CASES:

        def progress(name: str, where: str = f"{case.model}, batch {case.batch_size}") -> None:
            observe(where, next(number), turns * (REPETITIONS + 1))

        results[group(case, runtime)] = measure_step(
            case, makes, runtime, dataset, seconds=each, repetitions=REPETITIONS, observe=progress
        )
    with activate(runtime):
        described = environment.describe()
    return {
        "device": runtime.device,
        "threads": runtime.threads,
        "seconds": seconds,
        "other_processes": timing.used_by_others(before, timing.load()),
        "environment": described,
        "results": results,
    }


def check_seconds(seconds: int) -> None:
    """Raise a UsageError unless ``seconds`` is in range."""
    if not 1 <= seconds <= LONGEST:
        raise UsageError(f"--seconds is {shown(seconds)}; it must lie between 1 and {LONGEST}")
