"""How long a training step takes on this machine, beside the same step in plain PyTorch.

Candidates do the same work: gather a batch from images that lie on the device as uint8, normalise,
forward, backward, update. How they are measured: ``timing.py``.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from fcifar import random
from fcifar.bench import reference_models
from fcifar.bench.timing import REPETITIONS, Candidate, measure, wait_for
from fcifar.data import Dataset, Split, make_dataset
from fcifar.errors import UsageError, shown
from fcifar.recipes import RECIPES, Recipe
from fcifar.train import environment
from fcifar.train.config import make_config
from fcifar.train.runtime import Runtime, activate
from fcifar.train.setup import make_training

LONGEST = 3600  # seconds
IMAGES = 10_240  # in memory, as many as make a gather miss the caches

Make = Callable[[Recipe, Runtime, Dataset], Candidate]  # under ``activate(runtime)``


class Case(NamedTuple):
    """What is to be trained."""

    network: str
    batch_size: int


CASES = (Case("lenet", 4), Case("lenet", 64), Case("lenet", 512), Case("conv3", 512))


# What is measured --------------------------------------------------------------------------------


def recipe_for(case: Case) -> Recipe:
    """The first recipe of the network, with its optimizer; without augmentation or validation."""
    recipe = next(r for r in RECIPES.values() if r.model == case.network)
    return recipe.replace(
        batch_size=case.batch_size,
        epochs=1,
        drop_last=True,
        augment=(),
        valid="fraction",
        valid_fraction=0.0,
        stratify=False,
        patience=0,
        restore_best=False,
    )


def synthetic(size: int = IMAGES) -> Dataset:
    """Noise with labels, for steps take the same time on anything."""
    image_key, label_key = random.split(random.key(0))
    few = min(size, 1024)  # distinct ones; drawing more would take longer than measuring
    images = random.randint(image_key, (few, 3, 32, 32), 0, 256).to(torch.uint8)
    train = Split(
        images.repeat(-(-size // few), 1, 1, 1)[:size], random.randint(label_key, (size,), 0, 10)
    )
    test = Split(*(part[:few] for part in train))
    return make_dataset("synthetic", train, test, tuple("abcdefghij"), "noise")


def module(recipe: Recipe, runtime: Runtime, dataset: Dataset) -> Candidate:
    """The tutorial's step as published, ``loss.item()`` included."""
    training = make_training(make_config(recipe, dataset, runtime=runtime), dataset)
    net = reference_models.make_module(recipe, training.init().state.variables.params)
    optimizer = reference_models.make_optimizer(recipe, net.parameters())
    inputs_of, normalise = (
        repeated(training.inputs),
        reference_models.make_normalise(recipe, runtime.device),
    )
    images, labels = training.train

    def once() -> float:
        batch = next(inputs_of).indices
        inputs, targets = normalise(images[batch]), labels[batch]
        optimizer.zero_grad()
        loss = F.cross_entropy(net(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return Candidate(once, wait_for(runtime.device), params=lambda: dict(net.state_dict()))


def fcifar_eager(recipe: Recipe, runtime: Runtime, dataset: Dataset) -> Candidate:
    """The step of ``fcifar train``."""
    return _fcifar(recipe, runtime, dataset, compiled=False)


def fcifar_compiled(recipe: Recipe, runtime: Runtime, dataset: Dataset) -> Candidate:
    """The step of ``fcifar train --compile``."""
    return _fcifar(recipe, runtime, dataset, compiled=True)


CANDIDATES: dict[str, Make] = {
    "module": module,
    "fcifar_eager": fcifar_eager,
    "fcifar_compiled": fcifar_compiled,
}
YARDSTICK = "module"  # what ratios are taken to


def _fcifar(recipe: Recipe, runtime: Runtime, dataset: Dataset, *, compiled: bool) -> Candidate:
    config = make_config(recipe, dataset, runtime=runtime, compile=compiled)
    training = make_training(config, dataset)
    inputs, state = repeated(training.inputs), training.init()

    def once() -> None:
        nonlocal state
        state, _ = training.stages[0](state, next(inputs))

    return Candidate(once, wait_for(runtime.device), params=lambda: state.state.variables.params)


def repeated(batches_from: Callable[[int], Iterator[Any]]) -> Iterator[Any]:
    """The batches of an epoch, again and again; drawn now, for drawing them is not in the step."""
    return itertools.cycle(list(batches_from(0)))


# Steps of a network, and of all ------------------------------------------------------------------


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
    """As ``measure``, of the steps of ``work``, with images a second and the ratio to the module.

    All run under the same switches. Those of a deterministic runtime cost the module nothing on the
    CPU, where none of its kernels has a faster form that differs.
    """
    recipe = recipe_for(case)
    torch._dynamo.reset()  # a step compiled for another batch would be tried first
    with activate(runtime):
        made = {name: make(recipe, runtime, dataset) for name, make in makes.items()}
        figures = measure(made, seconds=seconds, repetitions=repetitions, observe=observe)
    return {
        name: {
            **f,
            "images_per_second": case.batch_size / f["median_seconds"],
            **_ratio(f, figures),
        }
        for name, f in figures.items()
    }


def _ratio(figures: dict[str, Any], all_: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """How many times as fast as the reference, where that was measured as well."""
    if YARDSTICK not in all_:
        return {}
    return {f"times_{YARDSTICK}": all_[YARDSTICK]["median_seconds"] / figures["median_seconds"]}


def group(case: Case, runtime: Runtime) -> str:
    """The name of ``work`` in a record."""
    device = runtime.device.partition(":")[0]
    return f"step {case.network} batch {case.batch_size} {device}"


def run(
    runtime: Runtime,
    *,
    seconds: int,
    compiled: bool = True,
    observe: Callable[[str, int, int], object] = lambda what, done, total: None,
) -> dict[str, Any]:
    """The steps of ``CASES``, with the environment, as values that JSON holds.

    Args:
        seconds: for all measurements together; making the steps, and compiling them, comes on top.
        compiled: whether to measure the compiled step as well.
        observe: is told what is being measured, how many measurements are done and of how many.

    Raises:
        UsageError: ``seconds`` is out of range.
    """
    check_seconds(seconds)
    makes = {n: make for n, make in CANDIDATES.items() if compiled or n != "fcifar_compiled"}
    turns = len(CASES) * len(makes)
    told = itertools.count(1)
    results = {}
    dataset = synthetic()
    for case in CASES:

        def say(name: str, where: str = f"{case.network}, batch {case.batch_size}") -> None:
            observe(where, next(told), turns * (REPETITIONS + 1))

        results[group(case, runtime)] = measure_step(
            case,
            makes,
            runtime,
            dataset,
            seconds=seconds / turns / REPETITIONS,
            repetitions=REPETITIONS,
            observe=say,
        )
    with activate(runtime):
        described = environment.describe()
    return {
        "device": runtime.device,
        "threads": runtime.threads,
        "seconds": seconds,
        "environment": described,
        "results": results,
    }


def check_seconds(seconds: int) -> None:
    """Raise a UsageError unless that can be spent on measuring."""
    if not 1 <= seconds <= LONGEST:
        raise UsageError(f"--seconds is {shown(seconds)}; it must lie between 1 and {LONGEST}")
