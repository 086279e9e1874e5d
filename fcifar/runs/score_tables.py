"""Per-example scores of one or several models, and tables of them as .csv, .npz or .parquet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fcifar import ensembles, recipes, tree
from fcifar.data import Dataset
from fcifar.ensembles import Ensemble
from fcifar.examples import GRADIENTS, Scores, make_score_step
from fcifar.runs import inference
from fcifar.runs.inference import Trained
from fcifar.step import Batch, Examples
from fcifar.train import evaluate as evaluation
from fcifar.train.runtime import Runtime, activate
from fcifar.train.setup import split_rows

Table = Mapping[str, np.ndarray]  # columns of one length: numbers, booleans or text
DIGITS = 5  # of a row number at least, so that names sort as rows do
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
LISTED = 20  # examples to look at
OF_ONE = ("loss", "probability", "margin", "gradient_norm", "error_norm")
OF_SEVERAL = (
    *("error_rate", "disagreement", "entropy", "mean_entropy", "mutual_information"),
    "mean_loss",
)


class Examined(NamedTuple):
    """Examples, and what is known of each of them."""

    names: list[str]  # see names_of
    labels: Tensor  # int64 [N]
    scores: Scores  # of the first network
    together: Ensemble | None  # of all networks, where there are several


def names_of(network: Trained, dataset: Dataset, split: str) -> list[str]:
    """The name of each image of a split: the part of the data set, and the row in it.

    ``test/00042`` is ``dataset.test_images[42]``. An image that was held out for validation has
    the name that it has among the training images; ``valid/00042`` is
    ``dataset.valid_images[42]``.
    """
    part, labels = "train", dataset.train_labels
    if split == "test":
        part, labels = "test", dataset.test_labels
    if split == "valid" and inference.is_given(network, dataset):
        part, labels = "valid", dataset.valid_labels
    rows = torch.arange(len(labels))
    if split == "valid" and part == "train":
        _, rows = split_rows(network.recipe, network.seed, labels)
    digits = max(DIGITS, len(str(len(labels) - 1)))
    return [f"{part}/{row:0{digits}}" for row in rows.tolist()]


def stack_logits(
    first: Examples, others: Sequence[Trained], runtime: Runtime, data: Batch
) -> Tensor:
    """[R, N, C], on the CPU: the logits of a first network, and of others on the same images."""
    rest = [inference.examine(network, runtime, data).logits for network in others]
    return torch.stack([first.logits, *rest])


def of_networks(runs: Sequence[Path], logits: Tensor, labels: Tensor) -> dict[str, Any]:
    """``networks``: what ``summarize_replicas`` says of several runs; of one run, nothing."""
    if len(runs) == 1:
        return {}
    figures = ensembles.summarize_replicas(logits, labels)
    return {"networks": {"runs": list(map(str, runs)), **figures}}


def score(network: Trained, runtime: Runtime, data: Batch) -> Scores:
    """The scores of each of any number of images, on the CPU."""
    with activate(runtime):
        step = make_score_step(
            network.model,
            preprocess=recipes.make_preprocess(network.recipe),
            policy=runtime.policy,
            gradients=GRADIENTS if runtime.device == "cpu" else 32 * GRADIENTS,  # 1 GiB of float32
        )
        there = tree.on_device((network.variables, data), runtime.device)
        return evaluation.evaluate(step, *there)


def examine(
    network: Trained, runtime: Runtime, dataset: Dataset, split: str, logits: Tensor
) -> Examined:
    """Everything that is known of each image of a split.

    Args:
        network: whose scores they are.
        logits: [R, N, C], those of all networks, which it is one of.
    """
    data = inference.images_of(network, dataset, split)
    return Examined(
        names=names_of(network, dataset, split),
        labels=data.labels,
        scores=score(network, runtime, data),
        together=ensembles.examine(logits, data.labels) if len(logits) > 1 else None,
    )


def tabulate(examined: Examined, classes: Sequence[str]) -> Table:
    """A row for each example: its name, its label, and everything that is known of it."""
    names = np.array(classes)
    scores, together = examined.scores, examined.together

    def numbered(name: str, numbers: Tensor) -> dict[str, np.ndarray]:
        return {name: numbers.numpy(), f"{name}_name": names[numbers.numpy()]}

    table = {
        "id": np.array(examined.names),
        **numbered("label", examined.labels),
        **numbered("prediction", scores.prediction),
        "correct": scores.correct.numpy(),
        **{name: getattr(scores, name).numpy() for name in OF_ONE},
    }
    if together is not None:
        table |= {name: getattr(together, name).numpy() for name in OF_SEVERAL}
        table |= numbered("ensemble_prediction", together.prediction)
        table["ensemble_correct"] = together.correct.numpy()
    return table


def hardest(examined: Examined) -> Tensor:
    """Rows, the hardest first: highest loss; or most networks wrong, then highest mean loss."""
    together = examined.together
    if together is None:
        return ensembles.ranked(examined.scores.loss)
    return ensembles.ranked(together.error_rate, together.mean_loss)


def most_disputed(together: Ensemble) -> Tensor:
    """Rows by disagreement, the highest first, then by mutual information.

    The second is the part of the entropy that comes of it, for entropy is as high where each of
    the networks knows nothing.
    """
    return ensembles.ranked(together.disagreement, together.mutual_information)


def summarize(examined: Examined, table: Table) -> dict[str, Any]:
    """What a table of scores says, as values that JSON holds.

    rows, columns, quantiles of each score (of the finite values, interpolated; None where there
    are none), and the names of the hardest and the most disputed examples.
    """
    scores = [name for name in (*OF_ONE, *OF_SEVERAL) if name in table]
    listed = {"hardest": hardest(examined)}
    if examined.together is not None:
        listed["most_disputed"] = most_disputed(examined.together)
    return {
        "rows": len(examined.names),
        "columns": list(table),
        "quantiles": {name: _quantiles(table[name]) for name in scores},
        **{
            name: [examined.names[row] for row in rows[:LISTED].tolist()]
            for name, rows in listed.items()
        },
    }


def _quantiles(values: np.ndarray) -> dict[str, float | None]:
    finite = values[np.isfinite(values)].astype(np.float64)
    found = np.quantile(finite, QUANTILES).tolist() if len(finite) else [None] * len(QUANTILES)
    return {f"{q:g}": value for q, value in zip(QUANTILES, found, strict=True)}
