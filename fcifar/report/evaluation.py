"""The figures of an evaluation."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from fcifar import random
from fcifar.analysis import calibration
from fcifar.report.channels import channels_picture
from fcifar.report.confusion import confusion_picture
from fcifar.report.predictions import predictions_grid
from fcifar.report.reliability import reliability_picture
from fcifar.step import Batch, EvalOutput

PICTURES = 20


def draw(
    folder: Path, data: Batch, examples: EvalOutput, classes: Sequence[str], *, title: str
) -> None:
    """Write confusion.png, reliability.png, predictions.png, mistakes.png and channels.png.

    Args:
        folder: where to; made if need be.
        data: what was evaluated, uint8 images.
        examples: what the network made of each, in the same order.
        classes: the names.
        title: what was evaluated, in a few words.
    """
    labels = data.labels.cpu()
    confidence, predictions = calibration.softmax_confidence(examples.logits)
    matrix = calibration.confusion_matrix(labels, predictions, len(classes))
    confusion_picture(matrix, classes, folder / "confusion.png", title=title)
    bins = calibration.reliability(confidence, examples.correct)
    ece = calibration.expected_calibration_error(bins)
    reliability_picture(bins, ece, folder / "reliability.png", title=title)

    def grid(rows: Tensor, name: str, heading: str) -> None:
        predictions_grid(
            data.images[rows].cpu(),
            labels[rows],
            predictions[rows],
            confidence[rows],
            classes,
            folder / name,
            heading=f"{title}: {heading}",
        )

    # At random, for a data set may be sorted by class; but always the same, for comparing runs.
    sample = random.permutation(random.key(0), len(labels))[:PICTURES]
    grid(sample, "predictions.png", "predicted (true)")
    mistakes = calibration.most_confident_mistakes(examples.logits, labels, PICTURES)
    if len(mistakes):
        grid(mistakes, "mistakes.png", "the most confident mistakes")
    else:
        (folder / "mistakes.png").unlink(missing_ok=True)
    first = int(sample[0])
    name = classes[int(labels[first])]
    channels_picture(
        data.images[first].cpu(), folder / "channels.png", title=f"{name}, image {first:,}: pixels"
    )
