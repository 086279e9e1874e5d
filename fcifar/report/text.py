"""Numbers and results as text, for the terminal and for pages."""

from collections.abc import Mapping, Sequence
from typing import Any


def percent(fraction: float | None, digits: int = 1) -> str:
    """``0.564`` as ``56.4 %``."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f} %"


def accuracy(value: float, interval: Sequence[float], of: str = "") -> str:
    """``56.40 % (95 % interval 55.4 to 57.4 %)``, with ``of`` behind the value."""
    return f"{percent(value, 2)}{of} (95 % interval {between(interval, 1)} %)"


def between(interval: Sequence[float | None] | None, digits: int = 2) -> str:
    """``(0.55, 0.57)`` as ``55.00 to 57.00``."""
    if not interval or None in interval:
        return "-"
    return " to ".join(f"{100 * end:.{digits}f}" for end in interval if end is not None)


def number(value: float | None) -> str:
    """``0.6934``; a dash for a value that is not finite, which JSON cannot hold."""
    return "-" if value is None else f"{value:.4f}"


def seconds(value: float | None) -> str:
    """``12.3 s``."""
    return "-" if value is None else f"{value:,.1f} s"


def count(number: int, noun: str, plural: str = "") -> str:
    """``1 step``, ``2 steps``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def selected(report: Mapping[str, Any]) -> str:
    """Which step's model a report is of, and why."""
    chosen = report["selected"]
    stopped = f"; stopped early after step {report['steps']:,}" if report["stopped_early"] else ""
    if "valid_loss" not in chosen:
        return f"of the last step, {report['steps']:,}{stopped}"
    # Reports of earlier versions do not have the number of images.
    images = f" of {report['valid_n']:,} images" if report.get("valid_n") else ""
    loss = number(chosen["valid_loss"])
    return f"of step {chosen['step']:,}, chosen by validation loss {loss}{images}{stopped}"


def privacy(report: Mapping[str, Any]) -> str:
    """The guarantee of a private run: ``epsilon 2.35 at delta 1e-05, Poisson sampling``."""
    found = report["privacy"]
    if found["epsilon"] is None:
        return found["note"]
    return f"epsilon {found['epsilon']:.3g} at delta {found['delta']:g}; {found['sampling']}"


def confusions(report: Mapping[str, Any], most: int = 3) -> str:
    """The most frequent confusions: ``cat as dog (120), dog as cat (98)``."""
    classes = list(report["per_class"])
    cells = report.get("confusion_cells")  # true class, predicted class and count, if not 0
    if cells is None:
        rows = enumerate(report["confusion"])
        cells = [(i, j, n) for i, row in rows for j, n in enumerate(row) if n]
    worst = sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: -cell[2])
    return ", ".join(f"{classes[i]} as {classes[j]} ({n:,})" for i, j, n in worst[:most])


def spread(together: Mapping[str, Any]) -> str:
    """How far the accuracies of several models differ, and how much of it is chance.

    Args:
        together: from ``ensembles.summarize_replicas``, of at least two models.
    """
    real = together["std_distribution"]
    rest = (
        f"so {100 * real:.2f} is real difference between the models"
        if real > 0
        else "so no real difference between the models shows"
    )
    return (
        f"{between((together['min_accuracy'], together['max_accuracy']))} %, standard deviation "
        f"{100 * together['std_accuracy']:.2f} points; independent errors on {together['n']:,} "
        f"images alone give {100 * together['std_independent']:.2f}, {rest}"
    )


def shown(value: Any) -> str:
    """A setting as a person writes it: ``yes``, ``0.001``, ``random_flip, cutout:8``."""
    match value:
        case True:
            return "yes"
        case False:
            return "no"
        case tuple() | list():
            return ", ".join(map(shown, value)) or "none"
        case dict():
            return "; ".join(f"{key} {shown(each)}" for key, each in value.items()) or "none"
        case "":
            return "none"
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value)
