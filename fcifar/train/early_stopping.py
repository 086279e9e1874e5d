"""Early stopping: which epoch was best by validation loss, and when to stop.

Both follow from the losses so far alone, so that a resumed run decides as an uninterrupted one.
"""

import math
from collections.abc import Sequence


def best_epoch(losses: Sequence[float]) -> int:
    """The index of the lowest loss, the first of equals; a loss that is not a number is worst."""
    ranked = [math.inf if math.isnan(loss) else loss for loss in losses]
    return ranked.index(min(ranked))


def is_best(losses: Sequence[float]) -> bool:
    """Whether there is a last loss, and it is lower than all before it."""
    return bool(losses) and best_epoch(losses) == len(losses) - 1


def should_stop(losses: Sequence[float], patience: int) -> bool:
    """Whether the last ``patience`` epochs brought no lower loss; never with a patience of 0.

    Early stopping: Prechelt, "Early stopping - but when?", 1998.
    """
    return bool(patience and losses) and len(losses) - 1 - best_epoch(losses) >= patience
