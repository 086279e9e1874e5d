"""Cross-validation: a group of runs, each on all folds of the training images except one.

So every training image has the prediction of a model that was not trained on it, from which
``analysis.label_errors`` tells likely label errors.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fcifar.analysis import label_errors
from fcifar.analysis.label_errors import LabelErrors
from fcifar.data import Dataset, Split, make_dataset
from fcifar.errors import UsageError, one_line
from fcifar.recipes import Recipe
from fcifar.recipes.checks import MOST_FOLDS, check_count
from fcifar.recipes.trials import make_trials
from fcifar.runs import inference
from fcifar.runs.inference import Trained
from fcifar.train.config import RunConfig
from fcifar.train.runtime import Runtime
from fcifar.train.setup import split_rows
from fcifar.train.sweep import Sweep

_SCORES = ("self_confidence", "suggested_probability", "normalized_margin")
LEFT_OUT = "label_errors"  # in the preparation of a data set


class HeldOut(NamedTuple):
    """Predictions of training images by models that were not trained on them."""

    rows: Tensor  # int64 [M], the images that a model held out, ascending
    probabilities: Tensor  # float64 [M, C], means over the models that did


def make_sweep(config: RunConfig, count: int) -> Sweep:
    """Return the sweep that trains on all folds except one, for each of ``count`` folds.

    Raises:
        UsageError: ``count`` is not from 2 to ``MOST_FOLDS``.
    """
    check_count("--folds", count, 2, MOST_FOLDS)
    each = [(f"{i}/{count}", _with_fold(config.recipe, f"{i}/{count}")) for i in _from_1(count)]
    trials = make_trials(config.recipe, {"fold": each}, (config.seed,))
    return Sweep(trials, "loop", config.replace(recipe=trials[0].recipe))


def _from_1(count: int) -> range:
    return range(1, count + 1)


def _with_fold(recipe: Recipe, fold: str) -> Recipe:
    return recipe.replace(valid="fraction", valid_fraction=0.0, stratify=False, fold=fold)


def predict(
    paths: Sequence[Path],
    models: Sequence[Trained],
    runtime: Runtime,
    dataset: Dataset,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> HeldOut:
    """Predict each training image with the models that held it out.

    Args:
        paths: of the models, for messages.
        models: from ``inference.load``. Those of ``make_sweep`` hold out each image once.
        dataset: the one that they were trained on.
        progress: called with what is predicted, how many models are done, and how many there are.

    Raises:
        UsageError: a model held nothing out, or was trained on another data set.
    """
    labels = dataset.train_labels
    held_out = []
    for path, model in zip(paths, models, strict=True):
        if model.dataset_digest != dataset.digest:
            raise UsageError(
                f"{path} was not trained on {dataset.name} as it is prepared here, but on "
                f"{model.dataset or 'images that it does not record'}; give runs on {dataset.name}"
            )
        if not model.recipe.holds_out:
            raise UsageError(
                f"{path} held out no training images; give runs of --fold or --valid-fraction, or "
                "leave --runs out to train them"
            )
        held_out.append(split_rows(model.recipe, model.seed, labels)[1])
    count = torch.bincount(torch.cat(held_out), minlength=len(labels))
    total = torch.zeros(len(labels), len(dataset.classes), dtype=torch.float64)
    for done, (model, rows) in enumerate(zip(models, held_out, strict=True)):
        progress("predicting the held-out images", done, len(models))
        logits = inference.predict(model, runtime, dataset.train_images[rows])
        total.index_add_(0, rows, logits.double().softmax(-1))
    progress("predicting the held-out images", len(models), len(models))
    rows = torch.nonzero(count).flatten()
    return HeldOut(rows, total[rows] / count[rows, None])


def find(dataset: Dataset, held_out: HeldOut, filter_by: str, rank_by: str) -> LabelErrors:
    """Find likely label errors among the images held out, by ``label_errors.find``.

    The rows of the result are those of the training images.
    """
    labels = dataset.train_labels[held_out.rows]
    found = label_errors.find(held_out.probabilities, labels, filter_by=filter_by, rank_by=rank_by)
    return found._replace(rows=held_out.rows[found.rows])


def summarize(
    dataset: Dataset, held_out: HeldOut, found: LabelErrors, filter_by: str, rank_by: str
) -> dict[str, Any]:
    """Summarize likely label errors, as JSON-serializable values.

    ``n`` training images, of which ``examined`` were held out; ``accuracy`` of the predictions by
    the given labels; ``estimated`` number of label errors among them; ``found``, how many are
    listed in ``images``, each with its row, name, given and suggested class, the probabilities of
    both, and the normalised margin; ``pairs`` of classes with both numbers, the most frequent
    first. ``found`` is from ``find`` with the other arguments.
    """
    labels, classes, rows = dataset.train_labels, dataset.classes, found.rows
    given, at = labels[rows], torch.searchsorted(held_out.rows, rows)
    p = held_out.probabilities[at]
    digits = max(inference.DIGITS, len(str(len(labels) - 1)))
    columns = zip(
        rows.tolist(),
        given.tolist(),
        found.suggested.tolist(),
        p.gather(1, given[:, None])[:, 0].tolist(),
        p.gather(1, found.suggested[:, None])[:, 0].tolist(),
        (label_errors.normalized_margin(p, given) if len(p) else given).tolist(),
        strict=True,
    )
    images = [
        {
            "row": row,
            "image": f"train/{row:0{digits}}",
            "given": classes[label],
            "suggested": classes[suggested],
            "self_confidence": own,
            "suggested_probability": other,
            "normalized_margin": margin,
        }
        for row, label, suggested, own, other, margin in columns
    ]
    right = held_out.probabilities.argmax(1) == labels[held_out.rows]
    size = len(classes)
    cells = torch.bincount(given * size + found.suggested, minlength=size**2).view(size, size)
    joint = found.joint - torch.diag(found.joint.diagonal())
    pairs = [
        {
            "given": classes[i],
            "suggested": classes[j],
            "found": int(cells[i, j]),
            "estimated": int(joint[i, j]),
        }
        for i, j in torch.nonzero((cells > 0) | (joint > 0)).tolist()
    ]
    pairs.sort(key=lambda pair: (-pair["found"], -pair["estimated"]))
    return {
        "dataset": dataset.name,
        "dataset_digest": dataset.digest,
        "n": len(labels),
        "examined": len(held_out.rows),
        "accuracy": right.double().mean().item(),
        "filter": filter_by,
        "rank": rank_by,
        "estimated": found.estimated,
        "found": len(rows),
        "pairs": pairs,
        "images": images,
    }


def tabulate(result: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the images of a summary as columns."""
    names = ("row", "image", "given", "suggested", *_SCORES)
    return {name: np.array([image[name] for image in result["images"]]) for name in names}


def without(dataset: Dataset, rows: Tensor, name: str, how: str) -> Dataset:
    """Return a data set without some training images, and with a digest of its own.

    Its source and its preparation say what was left out, and of which data set.

    Args:
        rows: int64 [M], of the training images.
        name: of the new data set.
        how: how the images were chosen, in a few words.

    Raises:
        UsageError: nothing would be left.
    """
    kept = torch.ones(len(dataset.train_labels), dtype=torch.bool)
    kept[rows] = False
    if not kept.any():
        raise UsageError(f"without {len(rows):,} images, {name} would have no training images")
    made = make_dataset(
        name,
        Split(dataset.train_images[kept], dataset.train_labels[kept]),
        Split(dataset.test_images, dataset.test_labels),
        dataset.classes,
        f"{dataset.name} without {len(rows):,} likely label errors ({one_line(how)})",
        Split(dataset.valid_images, dataset.valid_labels),
    )
    left_out = {
        "dataset": dataset.name,
        "digest": dataset.digest,
        "how": how,
        "rows": rows.sort().values.tolist(),
    }
    return made._replace(preparation={**dataset.preparation, LEFT_OUT: left_out})
