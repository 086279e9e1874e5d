"""Figures of adversarial attacks: accuracy against eps, and images before and after."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fcifar.analysis.calibration import softmax_confidence
from fcifar.augment.color import to_levels
from fcifar.report.figures.canvas import COLORS, INK, label_axes, new_figure, tidy
from fcifar.report.figures.grids import image_grid, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from fcifar.runs.adversarial import Attacked

GAIN = 10  # of the differences that are shown
_ATTACKS = 4  # of a sheet: the last ones
_UNITS = {"linf": ("largest difference of a value, 1/255", 255.0), "l2": ("Euclidean distance", 1)}


def curve(result: Mapping[str, Any], *, title: str = "") -> "Figure":
    """Draw accuracy against eps, a line for each kind of attack and a chart for each norm.

    Args:
        result: from ``runs.adversarial.evaluate``, of at least one attack.
        title: above the charts.
    """
    norms = list(dict.fromkeys(each["norm"] for each in result["found"]))
    subtitle = f"{result['n']:,} images; bars are 95 % intervals" if title else ""
    figure = new_figure(0.6 + 5.8 * len(norms), 3.9, title, subtitle)
    for axes, norm in zip(figure.subplots(1, len(norms), squeeze=False)[0], norms, strict=True):
        tidy(axes)
        name, scale = _UNITS[norm]
        for color, (label, points) in zip(
            itertools.cycle(COLORS), _lines(result, norm).items(), strict=False
        ):
            found = sorted(points, key=lambda each: each["eps"])
            eps = [0.0, *(scale * each["eps"] for each in found)]
            measured = [result["clean"], *found]
            values = [100 * each["accuracy"] for each in measured]
            ends = [[100 * end for end in each["interval95"]] for each in measured]
            below = [max(value - low, 0.0) for value, (low, _) in zip(values, ends, strict=True)]
            above = [max(high - value, 0.0) for value, (_, high) in zip(values, ends, strict=True)]
            # A line through one attack would say something of smaller eps that was not measured.
            style = {"color": color, "markersize": 5.5, "linewidth": 1.8, "capsize": 3}
            line = "o-" if len(found) > 1 else "o"
            axes.errorbar(eps, values, [below, above], fmt=line, label=label, **style)
        axes.set_ylim(-3, 103)
        axes.legend(frameon=False, labelcolor=INK)
        label_axes(axes, f"eps: {name}", "accuracy under attack, %")
    return figure


def _lines(result: Mapping[str, Any], norm: str) -> dict[str, list[Mapping[str, Any]]]:
    """The attacks of a norm by name, steps and restarts."""
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for each in result["found"]:
        if each["norm"] == norm:
            lines.setdefault(kind(each), []).append(each)
    return lines


def kind(attack: Mapping[str, Any]) -> str:
    """``FGSM``, or ``PGD, 20 steps, 5 restarts``."""
    if attack["name"] == "fgsm":
        return "FGSM"
    restarts = f", {attack['restarts']} restarts" if attack["restarts"] > 1 else ""
    return f"PGD, {attack['steps']} step{'' if attack['steps'] == 1 else 's'}{restarts}"


def sheet(
    attacked: "Attacked", result: Mapping[str, Any], classes: Sequence[str], *, heading: str
) -> "Image":
    """Return a row for each image: the original, then each attack's image and difference.

    Differences are multiplied by ``GAIN`` and added to grey. Of many attacks, the last four.

    Args:
        attacked, result: from ``runs.adversarial.evaluate``.
        classes: C names.
        heading: one line above the grid.
    """
    originals, labels = attacked.batch
    found = result["found"][-_ATTACKS:]
    names = ["original"]
    columns = [(originals, *_verdicts(attacked.clean.logits, labels, classes))]
    last = (attacked.images[-_ATTACKS:], attacked.outputs[-_ATTACKS:])
    for each, images, output in zip(found, *last, strict=True):
        difference = images - originals.to(images.dtype) / 255
        names += [each["attack"], f"difference times {GAIN}"]
        columns.append((to_levels(images), *_verdicts(output.logits, labels, classes)))
        blank = [""] * len(labels)
        enlarged = (0.5 + GAIN * difference).clamp(0, 1)
        columns.append((to_levels(enlarged), blank, [INK] * len(labels)))
    rows = range(len(labels))
    return image_grid(
        torch.stack([column[0][i] for i in rows for column in columns]),
        [column[1][i] for i in rows for column in columns],
        colors=[column[2][i] for i in rows for column in columns],
        columns=len(columns),
        column_names=names,
        heading=heading,
    )


def _verdicts(
    logits: Tensor, labels: Tensor, classes: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Captions and colours of predictions."""
    confidence, predicted = softmax_confidence(logits)
    found = [
        verdict(classes[guess], classes[true], sure)
        for guess, true, sure in zip(
            predicted.tolist(), labels.tolist(), confidence.tolist(), strict=True
        )
    ]
    return [text for text, _ in found], [color for _, color in found]
