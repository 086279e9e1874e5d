"""Tables of per-example scores of one or several models."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fcifar.analysis import ensembles
from fcifar.analysis.ensembles import Ensemble
from fcifar.analysis.example_scores import Scores

Table = Mapping[str, np.ndarray]  # columns of one length: numbers, booleans or text
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
LISTED = 20  # examples named in a summary
OF_ONE = ("loss", "probability", "margin", "gradient_norm", "error_norm")
OF_SEVERAL = (
    *("error_rate", "disagreement", "entropy", "mean_entropy", "mutual_information"),
    "mean_loss",
)


class Examined(NamedTuple):
    """Scored examples."""

    names: list[str]  # see runs.inference.image_names
    labels: Tensor  # int64 [N]
    scores: Scores  # by the first model
    together: Ensemble | None  # of all models, if there are several


def tabulate(examined: Examined, classes: Sequence[str]) -> Table:
    """Return a table with a row for each example: name, label and scores."""
    class_names = np.array(classes)
    scores, together = examined.scores, examined.together

    def class_columns(name: str, indices: Tensor) -> dict[str, np.ndarray]:
        return {name: indices.numpy(), f"{name}_name": class_names[indices.numpy()]}

    table = {
        "id": np.array(examined.names),
        **class_columns("label", examined.labels),
        **class_columns("prediction", scores.prediction),
        "correct": scores.correct.numpy(),
        **{name: getattr(scores, name).numpy() for name in OF_ONE},
    }
    if together is not None:
        table |= {name: getattr(together, name).numpy() for name in OF_SEVERAL}
        table |= class_columns("ensemble_prediction", together.prediction)
        table["ensemble_correct"] = together.correct.numpy()
    return table


def hardest(examined: Examined) -> Tensor:
    """Return rows by loss, or by the models' error rate, then mean loss; the highest first."""
    together = examined.together
    if together is None:
        return ensembles.ranked(examined.scores.loss)
    return ensembles.ranked(together.error_rate, together.mean_loss)


def most_disputed(together: Ensemble) -> Tensor:
    """Return rows by disagreement, then mutual information; the highest first."""
    return ensembles.ranked(together.disagreement, together.mutual_information)


def summarize(examined: Examined, table: Table) -> dict[str, Any]:
    """Summarize a table of scores, as JSON-serializable values.

    rows, columns, quantiles of each score (interpolated, of the finite values; None without any),
    and the names of the hardest and the most disputed examples.
    """

    def names(rows: Tensor) -> list[str]:
        return [examined.names[row] for row in rows[:LISTED].tolist()]

    scores = [name for name in (*OF_ONE, *OF_SEVERAL) if name in table]
    together = examined.together
    return {
        "rows": len(examined.names),
        "columns": list(table),
        "quantiles": {name: _quantiles(table[name]) for name in scores},
        "hardest": names(hardest(examined)),
        **({} if together is None else {"most_disputed": names(most_disputed(together))}),
    }


def _quantiles(values: np.ndarray) -> dict[str, float | None]:
    finite = values[np.isfinite(values)].astype(np.float64)
    result = np.quantile(finite, QUANTILES).tolist() if len(finite) else [None] * len(QUANTILES)
    return {f"{q:g}": value for q, value in zip(QUANTILES, result, strict=True)}
