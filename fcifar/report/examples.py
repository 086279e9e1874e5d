"""Figures of single examples: the hardest, the most disputed, and how scores are spread."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from fcifar.analysis import score_tables
from fcifar.analysis.ensembles import Ensemble
from fcifar.analysis.example_scores import Scores
from fcifar.analysis.score_tables import OF_ONE, OF_SEVERAL, Examined
from fcifar.report.pictures import labelled_grid
from fcifar.report.predictions import RIGHT, WRONG
from fcifar.report.scores import score_histograms

PICTURES = 24  # three rows of eight
VOTED = 3  # classes that are named
IN_WORDS = {
    "loss": "loss, nats",
    "probability": "probability of the true class",
    "margin": "margin of the true class's logit",
    "gradient_norm": "norm of the gradient",
    "error_norm": "norm of the error of the probabilities",
    "error_rate": "share of models that are wrong",
    "disagreement": "share of pairs that disagree",
    "entropy": "entropy of the mean probabilities, nats",
    "mean_entropy": "mean of the models' entropies, nats",
    "mutual_information": "mutual information, nats",
    "mean_loss": "mean loss, nats",
}


def draw(
    folder: Path, images: Tensor, examined: Examined, classes: Sequence[str], *, title: str
) -> None:
    """Write hardest.png and scores.png; with several networks, disputed.png and networks.png too.

    Args:
        folder: where to; made if need be.
        images: uint8 [N, 3, H, W], the examples.
        examined: what is known of them, in the same order.
        classes: the names.
        title: what was evaluated, in a few words.
    """
    together = examined.together
    answers = examined.scores if together is None else together

    def grid(name: str, rows: Tensor, about: Callable[[int], str], heading: str) -> None:
        shown = rows[:PICTURES].tolist()
        verdicts = [_verdict(answers, examined.labels, row, classes) for row in shown]
        labelled_grid(
            images[rows[:PICTURES]].cpu(),
            [
                f"{verdict}\n{about(row)}\n{examined.names[row]}"
                for verdict, row in zip(verdicts, shown, strict=True)
            ],
            folder / name,
            colors=[RIGHT if answers.correct[row] else WRONG for row in shown],
            heading=f"{title}: {heading}; predicted (true)",
        )

    score_histograms(
        {IN_WORDS[name]: getattr(examined.scores, name) for name in OF_ONE},
        examined.scores.correct,
        folder / "scores.png",
        title=f"{title}: scores",
    )
    hardest = score_tables.hardest(examined)
    if together is None:
        grid("hardest.png", hardest, lambda row: _loss(examined.scores.loss[row]), "highest loss")
        for name in ("disputed.png", "networks.png"):
            (folder / name).unlink(missing_ok=True)
        return
    networks = int(together.votes[0].sum())

    def errors(row: int) -> str:
        wrong = networks - int(together.votes[row, examined.labels[row]])
        return f"{wrong} of {networks} wrong\n{_loss(together.mean_loss[row])}"

    grid("hardest.png", hardest, errors, f"hardest for {networks} models")
    grid(
        "disputed.png",
        score_tables.most_disputed(together),
        lambda row: _votes(together.votes[row], classes),
        f"most disputed among {networks} models, with their votes",
    )
    score_histograms(
        {IN_WORDS[name]: getattr(together, name) for name in OF_SEVERAL},
        together.correct,
        folder / "networks.png",
        title=f"{title}: {networks} models, and what they say together",
    )


def _verdict(answers: Scores | Ensemble, labels: Tensor, row: int, classes: Sequence[str]) -> str:
    said, true = classes[int(answers.prediction[row])], classes[int(labels[row])]
    return said if said == true else f"{said} ({true})"


def _loss(loss: Tensor) -> str:
    return f"loss {loss.item():.2f}"


def _votes(votes: Tensor, classes: Sequence[str]) -> str:
    """``cat 5``, ``dog 3``, ``frog 1``, a line each: the classes with most votes."""
    count, number = votes.sort(descending=True, stable=True)
    ranked = list(zip(number.tolist(), count.tolist(), strict=True))[:VOTED]
    return "\n".join(f"{classes[n]} {c}" for n, c in ranked if c)
