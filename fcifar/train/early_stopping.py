"""Early stopping and model selection, as functions of the validation losses so far."""

import math
from collections.abc import Sequence


def best_epoch(losses: Sequence[float]) -> int:
    """Return the index of the lowest loss, the first if several are equal; NaN is the highest."""
    values = [math.inf if math.isnan(loss) else loss for loss in losses]
    return values.index(min(values))


def is_best(losses: Sequence[float]) -> bool:
    """Whether the last loss is lower than all before it; False without losses."""
    return bool(losses) and best_epoch(losses) == len(losses) - 1


def should_stop(losses: Sequence[float], patience: int) -> bool:
    """Whether the last ``patience`` epochs brought no lower loss; never with a patience of 0.

    Prechelt, "Early stopping - but when?", 1998.
    """
    return bool(patience and losses) and len(losses) - 1 - best_epoch(losses) >= patience
