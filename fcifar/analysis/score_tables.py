"""Tables of per-example scores, of one or several networks."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from fcifar.analysis import ensembles
from fcifar.analysis.ensembles import Ensemble
from fcifar.analysis.example_scores import Scores

Table = Mapping[str, np.ndarray]  # columns of one length: numbers, booleans or text
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
LISTED = 20  # examples to look at
OF_ONE = ("loss", "probability", "margin", "gradient_norm", "error_norm")
OF_SEVERAL = (
    *("error_rate", "disagreement", "entropy", "mean_entropy", "mutual_information"),
    "mean_loss",
)


class Examined(NamedTuple):
    """Examples, and what is known of each of them."""

    names: list[str]  # see runs.inference.image_names
    labels: Tensor  # int64 [N]
    scores: Scores  # of the first network
    together: Ensemble | None  # of all networks, where there are several


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
