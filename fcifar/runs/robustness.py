"""Accuracy on corrupted images: those of ``augment.corruptions``, or of CIFAR-10-C's files.

Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and
perturbations", https://arxiv.org/abs/1903.12261. The corruption error of a model is its error rate,
summed over severities, divided by that of a reference model, and the mean over the fifteen
corruptions is the mCE. Without a reference, it is the plain mean of error rates.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcifar import random
from fcifar.analysis.significance import letters
from fcifar.augment.corruptions import BENCHMARK, CORRUPTIONS, EXTRA, SEVERITIES, corrupt
from fcifar.data import Dataset
from fcifar.errors import UsageError, did_you_mean, names_of, shown
from fcifar.runs import inference
from fcifar.runs.inference import Trained
from fcifar.step import Batch
from fcifar.train.runtime import Runtime, activate

Chosen = Mapping[str, Sequence[int]]
"""Severities by the name of a corruption."""

SETS = {"all": BENCHMARK, "extra": EXTRA}
_ROWS = 500  # images that are corrupted at a time; the result does not depend on it


def parse(words: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read corruptions such as ``fog``, ``fog:3``, ``fog,snow:5``, ``all`` and ``extra``.

    Returns:
        Severities by corruption, both in the order of ``CORRUPTIONS``.

    Raises:
        UsageError: there is no such corruption or severity.

    >>> from fcifar.runs.robustness import parse
    >>> parse(["fog:3,fog:5", "snow"])
    {'snow': (1, 2, 3, 4, 5), 'fog': (3, 5)}
    """
    found: dict[str, set[int]] = {}
    for word in (part.strip() for each in words for part in each.split(",")):
        name, colon, severity = word.partition(":")
        known = [*SETS, *CORRUPTIONS]
        if name not in known:
            raise UsageError(
                f"--corrupt is {shown(word)}; it must be {names_of(known)}"
                f"{did_you_mean(name, known)}"
            )
        if colon and severity not in map(str, SEVERITIES):
            raise UsageError(
                f"--corrupt is {shown(word)}; a severity is a whole number from 1 to "
                f"{len(SEVERITIES)}, such as {name}:3"
            )
        for each in SETS.get(name, (name,)):
            found.setdefault(each, set()).update([int(severity)] if colon else SEVERITIES)
    return {name: tuple(sorted(found[name])) for name in CORRUPTIONS if name in found}


def corrupted(images: Tensor, name: str, severity: int, seed: int) -> Tensor:
    """Corrupt images, uint8 [N, 3, H, W].

    The draws of image i depend on seed, name, severity and i.
    """
    key = random.key(seed, device=images.device)
    key = random.fold_in(random.fold_in(key, [*CORRUPTIONS].index(name)), severity)
    augment = corrupt(name, severity)
    starts = range(0, len(images), _ROWS)
    return torch.cat(
        [augment(random.skip_rows(key, i), images[i : i + _ROWS]) for i in starts] or [images]
    )


def evaluate(
    paths: Sequence[Path],
    models: Sequence[Trained],
    runtime: Runtime,
    dataset: Dataset,
    split: str,
    chosen: Chosen,
    logits: Tensor,
    *,
    seed: int = 0,
    has_reference: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Evaluate models on the images of a split as they are, and with each chosen corruption.

    With none chosen, the test images are those of CIFAR-10-C's files, without clean ones.

    Args:
        paths: of the models.
        models: from ``inference.load``; all see the same images.
        dataset: one that ``is_corrupted`` if nothing is chosen, else one that is not.
        chosen: from ``parse``.
        logits: [R, N, C], of the first R models for the images as they are.
        seed: of the key that draws the corruptions.
        has_reference: whether the last model is a reference, whose errors are the unit.
        progress: called with what is evaluated, how many are done, and how many there are.

    Returns:
        JSON-serializable values: ``dataset``, ``split``, ``n``, the number of images of each
        corruption and severity, ``seed``, and those of ``summarize``.

    Raises:
        UsageError: the models cannot be evaluated on the same images, or ``dataset`` is corrupted.
    """
    inference.check_images(models, dataset, split)
    if chosen and is_corrupted(dataset):
        raise UsageError(
            f"the images of {dataset.name} are corrupted already; leave --corrupt out, or choose "
            "another --dataset"
        )
    data = inference.images_of(models[0], dataset, split)
    more = [inference.examine(each, runtime, data).logits for each in models[len(logits) :]]
    correct = torch.stack([each.argmax(-1) == data.labels for each in (*logits, *more)])
    if chosen:
        clean = correct.double().mean(-1).tolist()
        found = _evaluate(models, runtime, data, chosen, seed, progress)
    else:
        clean = [None] * len(models)
        chosen, found = _of_blocks(dataset, correct)
    results = [
        {"run": str(path), "recipe": model.recipe.name, "accuracy": value, "corruptions": by_name}
        for path, model, value, by_name in zip(paths, models, clean, found, strict=True)
    ]
    blocks = 1 if clean[0] is not None else sum(map(len, chosen.values()))
    return {
        "dataset": dataset.name,
        "split": split,
        "n": len(data.labels) // blocks,
        "seed": None if clean[0] is None else seed,
        **summarize(results, chosen, has_reference=has_reference),
    }


def _evaluate(
    models: Sequence[Trained],
    runtime: Runtime,
    data: Batch,
    chosen: Chosen,
    seed: int,
    progress: Callable[[str, int, int], None],
) -> list[dict[str, list[float]]]:
    """Return the accuracies by corruption, in the order of their severities, of each model."""
    found: list[dict[str, list[float]]] = [{name: [] for name in chosen} for _ in models]
    total, done = sum(map(len, chosen.values())), 0
    for name, severities in chosen.items():
        for severity in severities:
            with activate(runtime):
                images = corrupted(data.images.to(runtime.device), name, severity, seed)
            batch = Batch(images, data.labels.to(images.device))
            for model, by_name in zip(models, found, strict=True):
                correct = inference.examine(model, runtime, batch).correct
                by_name[name].append(correct.double().mean().item())
            done += 1
            progress("evaluating corrupted images", done, total)
    return found


def is_corrupted(dataset: Dataset) -> bool:
    """Whether the test images are those of CIFAR-10-C, and it is known which are which."""
    names, severities = (dataset.preparation.get(key) for key in ("corruptions", "severities"))
    blocks = len(names or ()) * len(severities or ())
    return blocks > 0 and len(dataset.test_labels) % blocks == 0


def _of_blocks(
    dataset: Dataset, correct: Tensor
) -> tuple[dict[str, tuple[int, ...]], list[dict[str, list[float]]]]:
    """Return the corruptions of a data set, and the accuracies as ``_evaluate``.

    Args:
        dataset: whose rows are images within severities within corruptions.
        correct: bool [R, N].
    """
    names, severities = (dataset.preparation[key] for key in ("corruptions", "severities"))
    means = correct.reshape(len(correct), len(names), len(severities), -1).double().mean(-1)
    known = [name for name in CORRUPTIONS if name in names]
    ordered = [*known, *(name for name in names if name not in known)]
    found = [dict(zip(names, row, strict=True)) for row in means.tolist()]
    return dict.fromkeys(ordered, tuple(severities)), [
        {name: by_name[name] for name in ordered} for by_name in found
    ]


def summarize(
    results: Sequence[Mapping[str, Any]], chosen: Chosen, *, has_reference: bool = False
) -> dict[str, Any]:
    """Return the means over severities and corruptions, and errors relative to a reference.

    Args:
        results: for each model, with its accuracies as lists by corruption, in ``corruptions``.
        chosen: the severities of these lists.
        has_reference: whether the last result is that of a reference.

    Returns:
        ``severities`` by corruption; ``runs`` has for each model ``corruptions`` with the accuracy
        at each severity, its ``mean``, and ``ce`` (None without a reference, or if it makes no
        error), ``mean_accuracy`` over all corruptions, and over the fifteen of the benchmark at all
        severities ``mean_error`` and ``mce`` (None unless all are chosen); ``reference`` is the
        result of the reference, or None.
    """
    is_complete = all(tuple(chosen.get(name, ())) == SEVERITIES for name in BENCHMARK)
    errors = [
        {name: 1 - sum(values) / len(values) for name, values in result["corruptions"].items()}
        for result in results
    ]
    unit = errors[-1] if has_reference else {}
    runs = []
    for label, result, error in zip(letters(), results, errors, strict=False):
        relative = {
            name: value / unit[name] if unit.get(name) else None for name, value in error.items()
        }
        of_benchmark = [relative[name] for name in BENCHMARK] if is_complete else [None]
        known = [value for value in of_benchmark if value is not None]
        runs.append(
            {
                "name": label,
                **result,
                "corruptions": {
                    name: {"accuracy": values, "mean": 1 - error[name], "ce": relative[name]}
                    for name, values in result["corruptions"].items()
                },
                "mean_accuracy": 1 - sum(error.values()) / len(error),
                "mean_error": _mean([error[name] for name in BENCHMARK]) if is_complete else None,
                "mce": _mean(known) if len(known) == len(of_benchmark) else None,
            }
        )
    reference = runs.pop() if has_reference else None
    return {
        "severities": {name: list(severities) for name, severities in chosen.items()},
        "runs": runs,
        "reference": reference,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
