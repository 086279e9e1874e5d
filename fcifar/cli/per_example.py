"""What a person sees of single examples, and of several networks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fcifar.cli import output

if TYPE_CHECKING:
    from fcifar.analysis.score_tables import Examined

HARDEST = 5


def of_networks(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines on several networks, if there are several."""
    if "networks" not in result:
        return []
    networks = result["networks"]
    low, high = networks["interval95"]
    return [
        (
            f"{networks['replicas']} networks",
            f"{output.percent(networks['mean_accuracy'], 2)} on average "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %)",
        ),
        (
            "together",
            f"{output.percent(networks['ensemble_accuracy'], 2)} by their mean probabilities; "
            f"{output.percent(networks['mean_disagreement'])} of pairs disagree on an image",
        ),
        ("spread", _spread(networks)),
    ]


def _spread(figures: dict[str, Any]) -> str:
    own = figures["std_distribution"]
    return (
        f"{100 * figures['min_accuracy']:.2f} to {100 * figures['max_accuracy']:.2f} %, std "
        f"{100 * figures['std_accuracy']:.2f} points; independent errors alone give "
        f"{100 * figures['std_independent']:.2f}, and "
        + (f"the networks' own is {100 * own:.2f}" if own > 0 else "no more than that is seen")
    )


def hardest(examined: "Examined", classes: Sequence[str], written: dict[str, Any]) -> None:
    """Print where the scores are, and the hardest examples."""
    from fcifar.analysis import score_tables

    together = examined.together
    answers = examined.scores if together is None else together
    losses = examined.scores.loss if together is None else together.mean_loss
    rows = score_tables.hardest(examined)[:HARDEST].tolist()
    output.stdout.print()
    output.table(
        ("hardest", "class", "predicted", "loss", *(() if together is None else ("wrong",))),
        [
            (
                examined.names[row],
                classes[int(examined.labels[row])],
                classes[int(answers.prediction[row])],
                f"{losses[row].item():.2f}",
                *(() if together is None else (output.percent(together.error_rate[row].item()),)),
            )
            for row in rows
        ],
    )
    output.stdout.print()
    count = f"{output.count(written['rows'], 'image')}, {len(written['columns'])} columns"
    output.facts([("written", f"{written['file']}: {count}")])
