"""Runs side by side, on the same images."""

import itertools
import math
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fcifar.comparison import PairedDifference, paired_difference
from fcifar.data import Dataset
from fcifar.errors import UserError, names_of
from fcifar.runs import directory, trained
from fcifar.runs.runtime import Runtime
from fcifar.runs.trained import Trained

SIGNIFICANT = 0.05


def check_number(runs: Sequence[Path]) -> None:
    """Raise a UserError for fewer than two runs."""
    if len(runs) < 2:
        raise UserError(
            f"{' '.join(map(str, runs))} alone cannot be compared; give two runs or more, "
            "or see one with fcifar eval"
        )


def check(runs: Sequence[Path], networks: Sequence[Trained]) -> None:
    """Make sure that networks can be compared.

    Raises:
        UserError: there are fewer than two, or their classes are not the same.
    """
    check_number(runs)
    for run, network in zip(runs, networks, strict=True):
        if network.classes != networks[0].classes:
            raise UserError(
                f"{run} knows the classes {names_of(network.classes)}, but {runs[0]} knows "
                f"{names_of(networks[0].classes)}; compare runs with the same classes"
            )


def check_images(networks: Sequence[Trained], dataset: Dataset, split: str) -> None:
    """Make sure that a split of a data set can be put to all of the networks.

    Raises:
        UserError: there is no such split, or the data set has other classes.
    """
    given = all(trained.is_given(network, dataset) for network in networks)
    if split == "valid" and not given:
        raise UserError(
            "--split valid is another part of the images for each seed; use test or train"
        )
    for network in networks:
        trained.images_of(network, dataset, split)


def compare(
    runs: Sequence[Path],
    networks: Sequence[Trained],
    runtime: Runtime,
    dataset: Dataset,
    split: str,
) -> dict[str, Any]:
    """Figures of each network, and of how each differs from the first, as values JSON holds.

    All are evaluated on the same images in the same order, so that the differences are paired.

    Args:
        runs: where the networks came from: run directories or ``final.safetensors`` files.
        networks: what ``trained.load`` gave for each.
        split: ``test`` or ``train``; ``valid`` where the data set has validation images of its own
            and no network's training held others out of it.

    Raises:
        UserError: there is no such split, ``check`` refuses the networks, or the data set has other
            classes.
    """
    check(runs, networks)
    check_images(networks, dataset, split)
    names = list(itertools.islice(letters(), len(runs)))
    measured, correct = [], []
    for name, run, network in zip(names, runs, networks, strict=True):
        figures, examples = trained.evaluate(network, runtime, dataset, split)
        measured.append({"name": name, **_facts(run, network), **_chosen(figures)})
        correct.append(examples.correct)
    return {
        "dataset": dataset.name,
        "split": split,
        "n": measured[0]["n"],
        "runs": measured,
        "comparisons": [against_first(names, correct, i) for i in range(1, len(runs))],
    }


def statement(first: str, second: str, difference: PairedDifference) -> str:
    """What the p-value of a comparison allows to say, in words, at the 5 % level."""
    if difference.p_value >= SIGNIFICANT:
        return "no difference shown"
    return f"{second if difference.difference > 0 else first} is better"


def _facts(run: Path, network: Trained) -> dict[str, Any]:
    """What is known without an evaluation; of a file alone, neither seed nor seconds."""
    is_run = run.is_dir()
    manifest = directory.read_manifest(run) if is_run else {}
    finished = is_run and (run / directory.REPORT).exists()
    report = directory.read_report(run) if finished else {}
    return {
        "run": str(run),
        "recipe": network.recipe.name,
        "trained_on": network.dataset or None,
        "seed": manifest.get("runtime", {}).get("seed"),
        "train_seconds": report.get("train_seconds"),
    }


def _chosen(figures: dict[str, Any]) -> dict[str, Any]:
    loss = figures["loss"]
    return {
        "accuracy": figures["accuracy"],
        "interval95": figures["interval95"],
        "loss": loss if math.isfinite(loss) else None,
        "n": figures["n"],
        "params_digest": figures["params_digest"],
    }


def against_first(names: Sequence[str], correct: Sequence[Tensor], i: int) -> dict[str, Any]:
    """How network ``i`` differs from the first one, as values that JSON holds.

    Args:
        names: of the networks.
        correct: bool [N] for each: whether it was right, on the same examples in the same order.
        i: 1 or more.
    """
    difference = paired_difference(correct[0], correct[i])
    return {
        "first": names[0],
        "second": names[i],
        **difference._asdict(),
        "statement": statement(names[0], names[i], difference),
    }


def letters() -> Iterator[str]:
    """A to Z, then AA, AB and so on."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_uppercase, repeat=length))
